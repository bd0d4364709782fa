"""The artefact store: content checked on every read, complete or absent, shared between processes and machines."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from taskvec.data.files import sha256
from taskvec.errors import UserError
from taskvec.graph.artefact import Content, Node, fingerprint, read_json
from taskvec.graph.encoding import decode, encode
from taskvec.graph.locking import at_once, held
from taskvec.graph.usage import measured

log = logging.getLogger(__name__)
MANIFEST, RECORD, TENSORS = "SHA256SUMS", "artefact.json", "tensors.safetensors"
RECIPE = ("kind", "version", "spec", "inputs")  # of a record: what its fingerprint is made of

Record: TypeAlias = dict[str, Any]


class Stored(NamedTuple):
    """An artefact as the store has it; ``computed`` says that it was computed just now."""

    content: Content
    record: Record
    computed: bool = False


class CorruptError(RuntimeError):
    """A stored artefact whose files are not what was written."""


class Store:
    """Artefacts below ``root``: ``<kind>/<fingerprint>/`` with the record, the tensors and a manifest of checksums.

    An artefact is written under a temporary name and renamed when complete. A file lock per fingerprint lets one
    process compute while the others wait; the operating system frees the lock of a killed process.
    """

    def __init__(self, root: Path):
        self.root = root

    def folder(self, artefact: Node) -> Path:
        """Return the artefact's folder, which exists once it is complete."""
        return self.root / artefact.kind / artefact.fingerprint

    def partial(self, artefact: Node) -> Path:
        """Return the folder for checkpoints of an artefact that is being computed; removed when it is complete."""
        return self.root / "partial" / artefact.fingerprint

    def has(self, artefact: Node) -> bool:
        """Return whether the artefact is stored, without reading its content."""
        return (self.folder(artefact) / MANIFEST).is_file()

    def get(self, artefact: Node, compute: Callable[[], Content]) -> Stored:
        """Return an artefact, read if it is stored and intact, else computed once and written.

        Raises:
            UserError: if the store cannot be written.
        """
        stored = self._read_if_intact(artefact)
        if stored is None:
            with held(self._lock(artefact), f"computes {artefact.label}"):
                # Another process may have been first
                stored = self._read_if_intact(artefact, warn=True)
                if stored is None:
                    return self._compute(artefact, compute)
        self._tidy(artefact)
        return stored

    def _tidy(self, artefact: Node) -> None:
        """Remove the checkpoints of a complete artefact whose process was killed before it could."""
        if not self.partial(artefact).exists():
            return
        with at_once(self._lock(artefact)) as free:
            if free:
                shutil.rmtree(self.partial(artefact), ignore_errors=True)

    def get_if_free(self, artefact: Node, compute: Callable[[], Content]) -> Stored | None:
        """Return an artefact as :meth:`get` does, or None while another process computes it."""
        if self.has(artefact):
            return self.get(artefact, compute)
        with at_once(self._lock(artefact)) as free:
            if not free:
                return None
            stored = self._read_if_intact(artefact, warn=True)
            return stored or self._compute(artefact, compute)

    def offer(self, artefact: Node, content: Content) -> Record | None:
        """Write an artefact that was computed along with another one, and return its record.

        None if it is stored by now, or another process computes it: waiting here, under the lock of the artefact that
        is being computed, could wait for ever.
        """
        with at_once(self._lock(artefact)) as free:
            if not free or self.has(artefact):
                return None
            return self._compute(artefact, lambda: content).record

    def _lock(self, artefact: Node) -> Path:
        return self.root / "locks" / f"{artefact.fingerprint}.lock"

    def _compute(self, artefact: Node, compute: Callable[[], Content]) -> Stored:
        # Of a killed process, or damaged: this one holds the lock
        leftovers = self.root.glob(f"{artefact.kind}/.tmp-{artefact.fingerprint}-*")
        for leftover in (self.folder(artefact), *leftovers):
            shutil.rmtree(leftover, ignore_errors=True)
        content, usage = measured(compute)
        said = {"label": artefact.label, "meta": dict(content.meta), "usage": usage}
        record = artefact.recipe | said
        self._write(self.folder(artefact), record, content.tensors)
        shutil.rmtree(self.partial(artefact), ignore_errors=True)
        # Made as they were written; from here on they are memory-mapped
        if artefact.kind == "decoded":
            content = self.read(self.folder(artefact)).content
        return Stored(content, record, computed=True)

    def _read_if_intact(self, artefact: Node, warn: bool = False) -> Stored | None:
        if not self.has(artefact):
            return None
        try:
            return self.read(self.folder(artefact))
        except OSError:
            return None  # another process removed it meanwhile
        except CorruptError as error:
            if warn:
                log.warning(
                    "store: %s is corrupt (%s); it is computed again", artefact.label, error
                )
            return None

    def read(self, folder: Path) -> Stored:
        """Return an artefact after checking every byte of it.

        Raises:
            CorruptError: naming the first file that is missing or not as written.
        """
        record = self.verify(folder)
        tensors: Mapping[str, Any] = {}
        if (folder / TENSORS).exists():
            from safetensors.torch import load_file

            tensors = load_file(folder / TENSORS)
        return Stored(Content(tensors, record["meta"]), record)

    def verify(self, folder: Path) -> Record:
        """Check a stored artefact against its manifest and its name, and return its record.

        Raises:
            CorruptError: naming the first file that is missing or not as written.
        """
        for name, digest in _manifest(folder).items():
            try:
                intact = sha256(folder / name) == digest
            except UserError:  # unreadable, or removed meanwhile
                intact = False
            if not intact:
                raise CorruptError(f"{folder}/{name} differs from {MANIFEST}")
        content = (folder / RECORD).read_bytes()
        try:
            record = decode(content)
            recipe = {key: record[key] for key in RECIPE}
            named = fingerprint(recipe)
        except (ValueError, LookupError, TypeError) as error:
            raise CorruptError(f"{folder}/{RECORD} is not a record") from error
        if named != folder.name:
            raise CorruptError(f"{folder}: the folder's name is not the fingerprint of its record")
        return record

    def records(self) -> Iterator[tuple[Path, Record | None]]:
        """Yield the folder and the record (None if unreadable) of every stored artefact."""
        for path in sorted(self.root.glob(f"[!.]*/*/{MANIFEST}")):
            yield path.parent, read_json(path.parent / RECORD)

    def _write(self, folder: Path, record: Record, tensors: Mapping[str, Any]) -> None:
        """Write an artefact under a temporary name and rename it.

        Raises:
            UserError: if the store cannot be written.
        """
        temporary = folder.with_name(f".tmp-{folder.name}-{os.getpid()}")
        try:
            temporary.mkdir(parents=True)
            _fill(temporary, record, tensors)
            temporary.rename(folder)
        except Exception as error:
            shutil.rmtree(temporary, ignore_errors=True)
            reason = getattr(error, "strerror", None) or str(error)
            full = isinstance(error, OSError) or "SafetensorError" in type(error).__name__
            if full:
                raise UserError(f"store {self.root}: cannot be written: {reason}") from error
            raise

    def remove(self, folder: Path) -> int:
        """Delete a stored artefact and return the bytes freed."""
        size = sum(path.stat().st_size for path in folder.iterdir())
        doomed = folder.with_name(f".tmp-{folder.name}-{os.getpid()}-{time.time_ns()}")
        folder.rename(doomed)
        shutil.rmtree(doomed)
        return size


def _manifest(folder: Path) -> dict[str, str]:
    """Return the checksum of each file of an artefact, by name.

    Raises:
        CorruptError: if the manifest is not of the form it is written in, or other files lie beside it.
    """
    sums = {}
    try:
        text = (folder / MANIFEST).read_bytes().decode("ascii")
        *lines, end = text.split("\n")
        for line in lines:
            digest, name = line.split("  ", 1)
            sums[name] = digest
        present = {path.name for path in folder.iterdir()}
    except (OSError, ValueError) as error:
        raise CorruptError(f"{folder}/{MANIFEST} cannot be read") from error
    if end or RECORD not in sums or {*sums, MANIFEST} != present:
        raise CorruptError(f"{folder}/{MANIFEST} differs from the files beside it")
    return sums


def _fill(folder: Path, record: Record, tensors: Mapping[str, Any]) -> None:
    """Write record, tensors and manifest, and see them on the disk."""
    (folder / RECORD).write_text(encode(record), encoding="utf-8")
    if tensors:
        from taskvec.vectors.deferred import save_tensors

        save_tensors(folder / TENSORS, tensors)
        shutil.copymode(folder / RECORD, folder / TENSORS)  # others may read it too
    names = sorted(path.name for path in folder.iterdir())
    sums = [f"{sha256(folder / name)}  {name}\n" for name in names]
    (folder / MANIFEST).write_text("".join(sums), encoding="ascii")
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
