"""``taskvec import``: fine-tuned models and adapters of others as task vectors."""

from __future__ import annotations

from pathlib import Path

from taskvec.cli.options import Parser, write
from taskvec.text import printable

EXAMPLES = """\
  taskvec import vector mnist.pt --base clip_vit_b32 --as mnist       an open_clip checkpoint (pickles: weights only)
  taskvec import vector my/finetuned --base mini_lm_s --as movies     a transformers or open_clip folder, a hub name
  taskvec import vector my/adapter --base qwen2_5_0_5b --as gsm8k     a peft LoRA adapter
  taskvec finetune=stored merge=ties                                  then: each task's vector by the task's name
  taskvec finetune=stored finetune.name=BACKBONE-TASK               or by names of your own"""


def main(arguments: list[str]) -> int:
    """Write tau = theta - theta_0 of a fine-tuned model below the outputs folder, after checking it against its base.

    Raises:
        UserError: if the model cannot be read, or is no fine-tuned version of the base.
    """
    parser = Parser("import", "Import a fine-tuned model as a task vector.", EXAMPLES)
    parser.add_argument("what", choices=["vector"])
    parser.add_argument(
        "place", metavar="FINE_TUNED", help="a file, a folder, or a hub name that is cached"
    )
    parser.add_argument(
        "--base", required=True, help="a backbone by name, or the folder it was tuned from"
    )
    parser.add_argument("--as", required=True, dest="name", help="the name to store it under")
    parser.add_argument(
        "--forward-mode", choices=["standard", "tangent"], help="how the vector is evaluated"
    )
    parser.outputs()
    options = parser.read(arguments)
    from taskvec.exchange.importing import import_vector

    root = Path(options.outputs).expanduser()
    found = import_vector(options.place, options.base, options.name, root, options.forward_mode)
    for note in found.notes:
        write(printable(f"note: {note}"))
    write(printable(f"{found.path}: {found.vector!r}"))
    return 0
