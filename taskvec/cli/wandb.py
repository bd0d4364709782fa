"""``taskvec wandb``: a report over mirrored runs, and sending what ran offline."""

from __future__ import annotations

from pathlib import Path

from taskvec.cli.options import Parser, write
from taskvec.errors import UserError

EXAMPLES = """\
  taskvec wandb sync                         sends each run that was mirrored offline, once
  taskvec wandb report --project taskvec     builds a workspace and a report in the project
  taskvec wandb report -o dashboard.json     writes both as JSON, without network
  wandb sweep experiments/wandb_sweep.yaml   for W&B's own agents"""


def main(arguments: list[str]) -> int:
    """Build the workspace and the report of a project, or send offline runs to it."""
    parser = Parser("wandb", "Build a report of mirrored runs, or send offline ones.", EXAMPLES)
    parser.add_argument("what", choices=("report", "sync"))
    parser.add_argument("--project", help="default: taskvec; of sync: the runs' own")
    parser.add_argument("--entity", help="default: that of the configured key")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="of report: write JSON instead"
    )
    parser.outputs()
    options = parser.read(arguments)
    if options.what == "sync":
        return _sync(options.outputs, options.project, options.entity)
    return _report(options.project or "taskvec", options.entity, options.output)


def _report(project: str, entity: str | None, output: Path | None) -> int:
    from taskvec.runner.folder import write_atomically
    from taskvec.runner.track.wandb_report import dashboard, default_entity, save

    if output is not None:
        made = dashboard(entity or "entity", project)
        write_atomically(output, f"{made.text()}\n")
        write(str(output))
        return 0
    made = dashboard(entity or default_entity(), project)
    for address in save(made):
        write(address)
    return 0


def _sync(outputs: Path, project: str | None, entity: str | None) -> int:
    from taskvec.runner.track.wandb import has_key
    from taskvec.runner.track.wandb_sync import send, waiting

    if not waiting(outputs):
        write(f"no offline run in {outputs}/wandb waits to be sent")
        return 0
    import wandb

    if not has_key(wandb.setup().settings.base_url):
        raise UserError("wandb sync: no API key is configured (`wandb login`)")
    options = []
    for name, value in (("--project", project), ("--entity", entity)):
        options += [name, value] if value else []
    for name in send(outputs, options):
        write(f"sent {name}")
    return 0
