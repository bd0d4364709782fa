"""Which files a split is read from: Parquet, CSV, JSON lines, an image folder per class, a folder of `datasets`."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from taskvec.data.tasks import Task
from taskvec.errors import UserError

Form = Literal["parquet", "csv", "jsonl", "images", "saved"]
SUFFIXES: dict[str, Form] = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".json": "jsonl",
}
SAVED = "state.json"  # of every folder that `datasets` saved
# What a validation split is called where the task does not say
VAL = ("val", "valid", "validation", "dev")
NUMBERED = re.compile(r"[-_.]?(\d+)(?:-of-(\d+))?")


@dataclass(frozen=True)
class Located:
    """The files of a split, or the one folder of images or of `datasets`; ``held_out``: they are those of train."""

    form: Form
    paths: tuple[Path, ...]
    held_out: bool = False

    def everything(self) -> list[Path]:
        """Return all files and folders that the rows are read from."""
        found = list(self.paths)
        if self.form not in ("images", "saved"):
            return found
        # walked as the table of a folder does: through links, if they are at the top
        for top in sorted(self.paths[0].iterdir()):
            below = [top]
            for place, inside, files in os.walk(top):
                below += [Path(place, name) for name in sorted([*inside, *files])]
            found += filter(Path.exists, below)
        return found


def locate(name: str, task: Task, split: str) -> Located:
    """Return where a local task's split is; a validation split that is not there is held out of train.

    ``splits.SPLIT`` names a file without its suffix, numbered files (``train-00000-of-00005``, ``train_1``), a folder
    of files, of one image folder per class, or one that `datasets` saved; in the task's folder, or in ``data`` below.

    Raises:
        UserError: if the folder or the split does not exist, a numbered file is missing, or two formats hold it.
    """
    folder = task.folder
    if not os.path.isdir(folder):
        raise UserError(f"task {name}: no folder {folder}; see 'path' in task/{name}.yaml")
    called = task.splits.get(split)
    if split == "val" and "val" not in task.splits:
        called = _usual_val(name, folder)
    if called:
        return locate_file(name, folder, called, f" (split {split!r})")
    train = locate_file(name, folder, task.splits["train"], " (split 'train')")
    return replace(train, held_out=True)


def _usual_val(name: str, folder: Path) -> str | None:
    """Return the usual name under which a folder has a validation split, None if it has none.

    Raises:
        UserError: if it has several.
    """
    data = folder / "data"
    entries = os.listdir(folder)
    if os.path.isdir(data):
        entries += os.listdir(data)
    present = []
    for called in VAL:
        begun = [entry for entry in entries if entry.startswith(called)]
        if begun and _candidates(name, folder, called):
            present.append(called)
    if len(present) > 1:
        raise UserError(
            f"task {name}: {folder} has {' and '.join(present)}; name one as splits.val"
        )
    return present[0] if present else None


def locate_file(name: str, folder: Path, called: str, what: str = "") -> Located:
    """Return the one way in which files of a name in a task's folder can be read; ``what`` they are, for errors.

    Raises:
        UserError: if there are none, or several ways.
    """
    found = _candidates(name, folder, called)
    if not found:
        forms = "nor .csv, .jsonl, numbered files or a folder of that name"
        raise UserError(f"task {name}: no {called}.parquet in {folder}{what}, {forms}")
    if len(found) > 1:
        listed = " and ".join(str(located.paths[0]) for located in found)
        raise UserError(
            f"task {name}: both {listed} could be meant{what}; keep one, or name it with its suffix"
        )
    return found[0]


def _candidates(name: str, folder: Path, called: str) -> list[Located]:
    """Return every way in which files of a split's name can be read."""
    found = []
    data = folder / "data"
    for base in (folder, data) if os.path.isdir(data) else (folder,):
        path = base / called
        if path.suffix in SUFFIXES and os.path.isfile(path):
            return [Located(SUFFIXES[path.suffix], (path,))]
        if os.path.isdir(path.parent):
            found += _files(name, path.parent, path.name)
        if os.path.isdir(path):
            found += _inside(path)
    return found


def _files(name: str, folder: Path, stem: str) -> list[Located]:
    """Return the file of a name and the numbered files, for each suffix."""
    found = []
    numbered: dict[str, list[Numbered]] = {}
    entries = [entry for entry in os.listdir(folder) if entry.startswith(stem)]
    for entry in sorted(entries):
        start, suffix = os.path.splitext(entry)
        if suffix not in SUFFIXES:
            continue
        match = NUMBERED.fullmatch(start, len(stem))
        if start == stem:
            found.append(Located(SUFFIXES[suffix], (folder / entry,)))
        elif match:
            number, total = match.groups(default=0)
            part = Numbered(int(number), int(total), folder / entry)
            numbered.setdefault(suffix, []).append(part)
    for suffix, parts in numbered.items():
        parts.sort()
        _complete(name, parts)
        paths = tuple(part.path for part in parts)
        found.append(Located(SUFFIXES[suffix], paths))
    return found


class Numbered(NamedTuple):
    """One of the numbered files of a split; ``total`` 0 where its name does not say of how many."""

    number: int
    total: int
    path: Path


def _complete(name: str, parts: Sequence[Numbered]) -> None:
    """Check that numbered files say one total, and are all there.

    Raises:
        UserError: naming what is missing.
    """
    first = parts[0].path
    numbers = {part.number for part in parts}
    totals = {part.total for part in parts}
    if len(totals) > 1 or len(numbers) < len(parts):
        raise UserError(
            f"task {name}: {first} and its numbered siblings are of more than one set; keep one"
        )
    total = totals.pop()
    missing = sorted(set(range(total)) - numbers)
    if missing:
        count = f"{len(missing)} of the {total} files"
        raise UserError(f"task {name}: {count} beside {first} are missing: {missing[:5]}")


def _inside(folder: Path) -> list[Located]:
    """Return what a split's own folder holds."""
    if (folder / SAVED).is_file():
        return [Located("saved", (folder,))]
    found = []
    files: dict[Form, list[Path]] = {}
    shown = [path for path in folder.iterdir() if not path.name.startswith(".")]
    for path in sorted(shown, key=_natural):
        if path.suffix in SUFFIXES and path.is_file():
            files.setdefault(SUFFIXES[path.suffix], []).append(path)
    for form, paths in files.items():
        found.append(Located(form, tuple(paths)))
    if any(path.is_dir() for path in shown):
        found.append(Located("images", (folder,)))
    return found


def _natural(path: Path) -> list[tuple[int, str]]:
    """Return a key that sorts part-10 after part-2."""
    key = []
    for piece in re.split(r"(\d+)", path.name):
        part = (int(piece), "") if piece.isdecimal() else (-1, piece)
        key.append(part)
    return key
