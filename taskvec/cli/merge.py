"""``taskvec merge``: checkpoints on disk, without a suite."""

from __future__ import annotations

import logging
import sys
from argparse import Namespace
from types import TracebackType
from typing import Any

from taskvec.cli.options import Parser, write
from taskvec.errors import UserError

log = logging.getLogger(__name__)
EXAMPLES = """\
  taskvec merge merge=ties merge.density=0.1 base=BASE 'models=[A,B]' out=OUT     checkpoints of one architecture
  taskvec merge merge=average 'models=[A,B,C]' out=OUT                    a mean of weights needs no base
  taskvec merge base=BASE 'models=[ADAPTER,ADAPTER]' out=OUT alpha=0.5        adapters, onto their base
  taskvec merge base=BASE 'models=[ADAPTER,ADAPTER]' out=OUT --adapter 16    and as an adapter again
  taskvec merge merge=dare seed=1 base=BASE 'models=[A,B]' out=OUT --dry-run      the plan only
  taskvec merge --mergekit recipe.yaml out=OUT                          a mergekit recipe as it is

`taskvec show merge=ties` prints a merge's options, docs/checkpoints.md explains the rest."""
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


def main(arguments: list[str]) -> int:
    """Merge checkpoints into a folder that transformers or open_clip loads."""
    parser = Parser("merge", "Merge checkpoints on disk, piece by piece.", EXAMPLES)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument(
        "--mergekit", metavar="FILE", help="a mergekit recipe (YAML), read as it is"
    )
    parser.add_argument(
        "--tokenizer",
        metavar="base|union|FOLDER",
        help="which tokenizer is written where they differ",
    )
    parser.add_argument("--adapter", type=int, metavar="RANK", help="write an adapter of this rank")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1")
    parser.add_argument(
        "--shard-size", default="2GB", metavar="SIZE", help="of a weight file (default: 2GB)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    options = parser.read(arguments)
    from taskvec.exchange.merging import request_of
    from taskvec.on_disk.plan import plan_of
    from taskvec.on_disk.run import carry_out

    request = request_of(options.overrides, options.mergekit, settings_of(options))
    plan = plan_of(request)
    for line in plan.lines():
        write(line)
    if options.dry_run:
        return 0
    with Bar() as bar:
        report = carry_out(plan, bar.observe)
    for line in report.lines(str(request.out)):
        write(line)
    return 0


def settings_of(options: Namespace) -> dict[str, Any]:
    """Return what flags say about a request.

    Raises:
        UserError: for a device or a size that there is not.
    """
    from taskvec import __version__

    return {
        "version": __version__,
        "tokenizer": options.tokenizer,
        "adapter": _rank(options.adapter),
        "device": _device(options.device),
        "shard_bytes": _size(options.shard_size),
    }


def _rank(rank: int | None) -> int | None:
    """Return an adapter's rank.

    Raises:
        UserError: for none.
    """
    if rank is not None and rank < 1:
        raise UserError(f"--adapter: a rank is at least 1, got {rank}")
    return rank


def _device(name: str) -> str:
    """Return a device.

    Raises:
        UserError: if it is not here.
    """
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name}: not here: {reason}") from error
    return name


def _size(text: str) -> int:
    """Return a number of bytes.

    Raises:
        UserError: if it is none.
    """
    bare = text.upper().removesuffix("B")
    unit = bare[-1:] if bare[-1:] in UNITS else ""
    number = bare.removesuffix(unit)
    if not number.replace(".", "", 1).isdecimal() or float(number) == 0:
        raise UserError(f"--shard-size {text}: not a size such as 500MB or 2GB")
    return int(float(number) * UNITS[unit])


class Bar:
    """Bytes read, speed and time left in a terminal; four plain lines elsewhere."""

    def __init__(self) -> None:
        self._bars: Any = None
        self._task: Any = None
        self._quarter = 0

    def __enter__(self) -> Bar:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                Progress,
                TimeRemainingColumn,
                TransferSpeedColumn,
            )

            columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
            self._bars = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bars.add_task("merge", total=None)
            self._bars.start()
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def observe(self, done: int, total: int) -> None:
        """Show how far the merge is."""
        if self._bars is not None:
            self._bars.update(self._task, completed=done, total=total)
            return
        quarter = 4 * done // total if total else 0
        if quarter > self._quarter:
            self._quarter = quarter
            log.info("merge: %d %%", 25 * quarter)
