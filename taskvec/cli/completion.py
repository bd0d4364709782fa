"""``taskvec completion``: the shell's completion of verbs and of Hydra's overrides."""

from __future__ import annotations

from taskvec.cli import VERBS
from taskvec.cli.options import Parser, write

EXAMPLES = """\
  eval "$(taskvec completion bash)"       in ~/.bashrc
  eval "$(taskvec completion zsh)"        in ~/.zshrc"""

# Hydra answers `-sc query=bash` for the line in COMP_LINE; verbs are words of ours that it does not know.
BASH = """\
_taskvec() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" line="$COMP_LINE"
    local verbs="{verbs}"
    COMPREPLY=()
    [ "$COMP_CWORD" -eq 1 ] && COMPREPLY=($(compgen -W "$verbs" -- "$word"))
    case "${{COMP_WORDS[1]}}" in
        table|papers|status|retry|store|doctor|list|completion) return ;;
    esac
    line="${{line/taskvec run/taskvec}}"; line="${{line/taskvec show/taskvec}}"
    line="${{line/taskvec prefetch/taskvec}}"
    local words
    words=$(COMP_LINE="$line" COMP_POINT=${{#line}} taskvec -sc query=bash 2>/dev/null)
    COMPREPLY+=($(compgen -o nospace -o default -W "$words" -- "$word"))
}}
COMP_WORDBREAKS=${{COMP_WORDBREAKS//=}}
complete -o nospace -o default -F _taskvec taskvec"""


def main(arguments: list[str]) -> int:
    """Print the script that makes the shell complete verbs, groups, options and keys."""
    parser = Parser("completion", "Print the shell completion script.", EXAMPLES)
    parser.add_argument("shell", choices=["bash", "zsh"])
    shell = parser.read(arguments).shell
    script = BASH.format(verbs=" ".join(VERBS))
    write(f"autoload -U +X bashcompinit && bashcompinit\n{script}" if shell == "zsh" else script)
    return 0
