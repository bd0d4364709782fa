"""Which files a split is read from: Parquet, CSV, JSON lines, an image folder per class, a folder of `datasets`."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from taskvec.data.tasks import Task
from taskvec.errors import UserError

Form = Literal["parquet", "csv", "jsonl", "images", "saved"]
SUFFIXES: dict[str, Form] = {".parquet": "parquet", ".csv": "csv", ".jsonl": "jsonl", ".json": "jsonl"}
SAVED = "state.json"  # of every folder that `datasets` saved
VAL = ("val", "valid", "validation", "dev")  # what a validation split is called where the task does not say
NUMBERED = r"[-_.]?(\d+)(?:-of-(\d+))?"


@dataclass(frozen=True)
class Located:
    """The files of a split, or the one folder of images or of `datasets`; ``held_out``: they are those of train."""

    form: Form
    paths: tuple[Path, ...]
    held_out: bool = False


def locate(name: str, task: Task, split: str) -> Located:
    """Return where a local task's split is; a validation split that is not there is held out of train.

    ``splits.SPLIT`` names a file without its suffix, numbered files (``train-00000-of-00005``, ``train_1``), a folder
    of files, of one image folder per class, or one that `datasets` saved; in the task's folder, or in ``data`` below.

    Raises:
        UserError: if the folder or the split does not exist, a numbered file is missing, or two formats hold it.
    """
    if not task.folder.is_dir():
        raise UserError(f"task {name}: no folder {task.folder}; see 'path' in task/{name}.yaml")
    if split != "val" or task.splits.get("val"):
        return _only(name, task, split, task.splits[split])
    if "val" not in task.splits:
        present = [called for called in VAL if _candidates(name, task.folder, called)]
        if len(present) > 1:
            raise UserError(f"task {name}: {task.folder} has {' and '.join(present)}; name one as splits.val")
        if present:
            return _only(name, task, split, present[0])
    train = _only(name, task, "train", task.splits["train"])
    return replace(train, held_out=True)


def _only(name: str, task: Task, split: str, called: str) -> Located:
    return locate_file(name, task.folder, called, f" (split {split!r})")


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
        raise UserError(f"task {name}: both {listed} could be meant{what}; keep one, or name it with its suffix")
    return found[0]


def _candidates(name: str, folder: Path, called: str) -> list[Located]:
    """Return every way in which files of a split's name can be read."""
    found = []
    for base in (folder, folder / "data"):
        path = base / called
        if path.suffix in SUFFIXES and path.is_file():
            return [Located(SUFFIXES[path.suffix], (path,))]
        if path.parent.is_dir():
            found += _files(name, path.parent, path.name)
        if path.is_dir():
            found += _inside(path)
    return found


def _files(name: str, folder: Path, stem: str) -> list[Located]:
    """Return the file of a name and the numbered files, for each suffix."""
    found = []
    siblings = [path for path in folder.iterdir() if path.suffix in SUFFIXES]
    for suffix, form in SUFFIXES.items():
        pattern = re.compile(re.escape(stem) + NUMBERED + re.escape(suffix))
        numbered = []
        for path in siblings:
            match = pattern.fullmatch(path.name)
            if match:
                numbered.append((int(match[1]), int(match[2] or 0), path))
        if numbered:
            numbered.sort()
            _complete(name, numbered)
            found.append(Located(form, tuple(path for *_, path in numbered)))
        whole = folder / f"{stem}{suffix}"
        if whole.is_file():
            found.append(Located(form, (whole,)))
    return found


def _complete(name: str, numbered: list[tuple[int, int, Path]]) -> None:
    """Check that numbered files say one total, and are all there.

    Raises:
        UserError: naming what is missing.
    """
    totals = {total for _, total, _ in numbered}
    numbers = [number for number, *_ in numbered]
    first = numbered[0][2]
    if len(totals) > 1 or len(set(numbers)) < len(numbers):
        raise UserError(f"task {name}: {first} and its numbered siblings are of more than one set; keep one")
    total = totals.pop()
    missing = sorted(set(range(total)) - set(numbers))
    if missing:
        raise UserError(f"task {name}: {len(missing)} of the {total} files beside {first} are missing: {missing[:5]}")


def _inside(folder: Path) -> list[Located]:
    """Return what a split's own folder holds."""
    if (folder / SAVED).is_file():
        return [Located("saved", (folder,))]
    shown = [path for path in folder.iterdir() if not path.name.startswith(".")]
    found = []
    for form in dict.fromkeys(SUFFIXES.values()):
        files = [path for path in shown if SUFFIXES.get(path.suffix) == form and path.is_file()]
        if files:
            found.append(Located(form, tuple(sorted(files, key=_natural))))
    if any(path.is_dir() for path in shown):
        found.append(Located("images", (folder,)))
    return found


def _natural(path: Path) -> list[tuple[int, str]]:
    """Return a key that sorts part-10 after part-2."""
    pieces = re.split(r"(\d+)", path.name)
    return [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in pieces]
