"""``taskvec completion``: the shell's completion of verbs, their options, groups, keys and values."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from taskvec.cli import VERBS
from taskvec.cli.options import LISTING, Parser, write
from taskvec.errors import UserError

EXAMPLES = """\
  eval "$(taskvec completion bash)"       in ~/.bashrc
  eval "$(taskvec completion zsh)"        in ~/.zshrc"""

# The words up to the cursor are asked about; after an option that takes a path, and where we know nothing, files are
# offered. Candidates may hold brackets and commas, so they are split at line ends alone.
BASH = """\
_taskvec() {
    local IFS=$'\\n'
    COMPREPLY=()
    case "${COMP_WORDS[COMP_CWORD-1]}" in --include|--config-dir|--outputs|--output|-o) return ;; esac
    COMPREPLY=($(taskvec completion words "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
complete -o nospace -o default -F _taskvec taskvec"""

TASK_KEYS = (
    "suite.tasks",
    "suite.control",
    "suite.held_out",
    "protocol.targets",
    "protocol.target",
)
TASK_KEYS = (*TASK_KEYS, "protocol.a", "protocol.b", "protocol.c")
PART_KEYS = {
    "protocol.questions": "question",
    "finetune.objective": "objective",
    "merge.objective": "objective",
    "merge.adapter": "adapter",
}
NOT_SET = ("compute", "sweep")
RUN_FLAGS = ("-m", "--multirun", "--include", "--help", "--version")
TAKE_RUNS = ("figure", "retry")


def main(arguments: list[str]) -> int:
    """Print the script that makes the shell complete what is typed; ``words ...`` answers it."""
    if arguments[:1] == ["words"]:
        found = candidates(arguments[1:-1], arguments[-1]) if arguments[1:] else []
        write("\n".join(found))
        return 0
    parser = Parser("completion", "Print the shell completion script.", EXAMPLES)
    parser.add_argument("shell", choices=["bash", "zsh"])
    shell = parser.read(arguments).shell
    first = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    write(first + BASH)
    return 0


def candidates(before: Sequence[str], word: str) -> list[str]:
    """Return what a word may become, given the words before it."""
    from taskvec.runner import compose

    verb = next((found for found in before if found in VERBS), "run")
    compose.register_all()
    if "=" in word and not word.startswith("-"):
        return values(word, before)
    found = list(keys(before, word)) if verb in ("run", "show", "store", "help") else []
    if verb == "run":
        found += [*RUN_FLAGS, *([] if before else VERBS)]
    else:
        lines = options_of(verb)
        taken = choices(lines, before[-1])
        if taken:
            return [choice for choice in taken if choice.startswith(word)]
        for line in lines:
            own = [name for name in line if name.startswith("-")]
            found += own or line
        found += names(verb)
    return sorted({name for name in found if name.startswith(word)})


def options_of(verb: str) -> list[list[str]]:
    """Return the options of a verb, each with the words that it takes, and the words of its arguments."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        importlib.import_module(f"taskvec.cli.{verb}").main([LISTING])
    return [line.split() for line in said.getvalue().splitlines() if line.strip()]


def choices(lines: Sequence[Sequence[str]], option: str) -> list[str]:
    """Return the words that an option takes, none if it takes no certain ones or is no option."""
    own = [line for line in lines if option in line and option.startswith("-")]
    return [word for word in own[0] if not word.startswith("-")] if own else []


def names(verb: str) -> Iterable[str]:
    """Return the names that a verb takes: runs, groups, pages, components."""
    from taskvec import registry
    from taskvec.runner.configs import options

    groups = ("method", *registry.PACKAGES, "experiment", "task")
    if verb in TAKE_RUNS:
        return [path.name for path in Path("outputs/runs").glob("*")]
    if verb == "list":
        return groups
    if verb == "docs":
        return importlib.import_module("taskvec.cli.docs").pages()
    if verb == "help":
        components = [name for group in registry.PACKAGES for name in options(group)]
        return [*VERBS, *components, *options("method")]
    return ()


def keys(before: Sequence[str], word: str) -> Iterable[str]:
    """Return the keys that a word may become: groups, and with a dot what the chosen options have."""
    from taskvec.runner import compose

    chosen = [word for word in before if "=" in word and not word.startswith("-")]
    parent, dot, _ = word.rpartition(".")
    try:
        known = compose.known_keys(parent, chosen)
    except UserError:  # what stands before cannot be composed
        return []
    if dot:
        return [f"{parent}.{key}=" for key in known]
    top = [key for key in known if "." not in key]
    # `compute.` and `sweep.` hold keys and are none; a group is both
    return [f"{key}." if key in NOT_SET else f"{key}=" for key in top]


def values(word: str, before: Sequence[str]) -> list[str]:
    """Return what ``key=...`` may become: the last value of a list or of a sweep is completed."""
    key, _, value = word.partition("=")
    start = 1 + max(value.rfind(","), value.rfind("["))
    done, last = value[:start], value[start:]
    others = value.strip("[]").split(",")[:-1]
    found = []
    for name in allowed(key, before):
        if name.startswith(last) and name not in others:
            found.append(f"{key}={done}{name}")
    return sorted(found)


def allowed(key: str, before: Sequence[str]) -> list[str]:
    """Return the words that a key takes: options of a group, tasks, parts of components, the words of a type."""
    from taskvec import registry
    from taskvec.cli.help import field_of, words
    from taskvec.runner.configs import options

    key = key.lstrip("+")
    if key in (*registry.GROUPS, "method", "experiment", "source"):
        return options(key)
    if key in TASK_KEYS:
        return options("task")
    if key in PART_KEYS:
        return [entry.name for entry in registry.entries(PART_KEYS[key])]
    field = field_of(key, [word for word in before if "=" in word])
    return [str(word) for word in words(field.annotation)] if field else []
