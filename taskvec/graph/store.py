"""The artefact store: content checked on every read, complete or absent, shared between processes and machines."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from taskvec.data.files import sha256
from taskvec.errors import UserError
from taskvec.graph.artefact import Content, Node, fingerprint, read_json
from taskvec.graph.locking import at_once, held
from taskvec.graph.usage import measured

log = logging.getLogger(__name__)
MANIFEST, RECORD, TENSORS = "SHA256SUMS", "artefact.json", "tensors.safetensors"


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

    def get(self, artefact: Node, compute: Callable[[], Content]) -> tuple[Content, dict[str, Any], bool]:
        """Return (content, record, computed here): read if stored and intact, else computed once and written.

        Raises:
            UserError: if the store cannot be written.
        """
        stored = self._read_if_intact(artefact)
        if stored is None:
            with held(self.root / "locks" / f"{artefact.fingerprint}.lock", f"computes {artefact.label}"):
                stored = self._read_if_intact(artefact, warn=True)  # another process may have been first
                if stored is None:
                    shutil.rmtree(self.folder(artefact), ignore_errors=True)
                    return self._compute(artefact, compute)
        return *stored, False

    def offer(self, artefact: Node, content: Content) -> dict[str, Any] | None:
        """Write an artefact that was computed along with another one, and return its record.

        None if it is stored by now, or another process computes it: waiting here, under the lock of the artefact that is
        being computed, could wait for ever.
        """
        with at_once(self.root / "locks" / f"{artefact.fingerprint}.lock") as free:
            if not free or self.has(artefact):
                return None
            return self._compute(artefact, lambda: content)[1]

    def _compute(self, artefact: Node, compute: Callable[[], Content]) -> tuple[Content, dict[str, Any], bool]:
        for leftover in self.root.glob(f"{artefact.kind}/.tmp-{artefact.fingerprint}-*"):
            shutil.rmtree(leftover, ignore_errors=True)  # of a killed process: this one holds the lock
        content, usage = measured(compute)
        record = artefact.recipe | {"label": artefact.label, "meta": dict(content.meta), "usage": usage}
        self._write(self.folder(artefact), record, content.tensors)
        shutil.rmtree(self.partial(artefact), ignore_errors=True)
        if artefact.kind == "decoded":  # made as they were written; from here on they are memory-mapped
            content = self.read(self.folder(artefact))[0]
        return content, record, True

    def _read_if_intact(self, artefact: Node, warn: bool = False) -> tuple[Content, dict[str, Any]] | None:
        if not self.has(artefact):
            return None
        try:
            return self.read(self.folder(artefact))
        except OSError:
            return None  # another process removed it meanwhile
        except CorruptError as error:
            if warn:
                log.warning("store: %s is corrupt (%s); it is computed again", artefact.label, error)
            return None

    def read(self, folder: Path) -> tuple[Content, dict[str, Any]]:
        """Return an artefact's content and record after checking every byte of it.

        Raises:
            CorruptError: naming the first file that is missing or not as written.
        """
        self.verify(folder)
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        tensors: Mapping[str, Any] = {}
        if (folder / TENSORS).exists():
            from safetensors.torch import load_file

            tensors = load_file(folder / TENSORS)
        return Content(tensors, record["meta"]), record

    def verify(self, folder: Path) -> None:
        """Check a stored artefact against its manifest and its name.

        Raises:
            CorruptError: naming the first file that is missing or not as written.
        """
        try:
            *lines, end = (folder / MANIFEST).read_bytes().decode("ascii").split("\n")
            sums = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
            present = {path.name for path in folder.iterdir()} - {MANIFEST}
        except (OSError, ValueError) as error:
            raise CorruptError(f"{folder}/{MANIFEST} cannot be read") from error
        if end or RECORD not in sums or set(sums) != present:
            raise CorruptError(f"{folder}/{MANIFEST} differs from the files beside it")
        for name, digest in sums.items():
            try:
                intact = sha256(folder / name) == digest
            except UserError:  # unreadable, or removed meanwhile
                intact = False
            if not intact:
                raise CorruptError(f"{folder}/{name} differs from {MANIFEST}")
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if fingerprint({key: record[key] for key in ("kind", "version", "spec", "inputs")}) != folder.name:
            raise CorruptError(f"{folder}: the folder's name is not the fingerprint of its record")

    def records(self) -> Iterator[tuple[Path, dict[str, Any] | None]]:
        """Yield the folder and the record (None if unreadable) of every stored artefact."""
        for path in sorted(self.root.glob(f"[!.]*/*/{MANIFEST}")):
            yield path.parent, read_json(path.parent / RECORD)

    def _write(self, folder: Path, record: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
        temporary = folder.with_name(f".tmp-{folder.name}-{os.getpid()}")
        try:
            temporary.mkdir(parents=True)
            text = json.dumps(record, indent=1, sort_keys=True, allow_nan=False)
            (temporary / RECORD).write_text(text, encoding="utf-8")
            if tensors:
                from taskvec.vectors.deferred import save_tensors

                save_tensors(temporary / TENSORS, tensors)
                shutil.copymode(temporary / RECORD, temporary / TENSORS)  # others may read it too
            files = sorted(path.name for path in temporary.iterdir())
            sums = "".join(f"{sha256(temporary / name)}  {name}\n" for name in files)
            (temporary / MANIFEST).write_text(sums, encoding="ascii")
            for path in temporary.iterdir():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            temporary.rename(folder)
        except Exception as error:
            shutil.rmtree(temporary, ignore_errors=True)
            reason = getattr(error, "strerror", None) or str(error)
            if isinstance(error, OSError) or "SafetensorError" in type(error).__name__:
                raise UserError(f"store {self.root}: cannot be written: {reason}") from error
            raise

    def remove(self, folder: Path) -> int:
        """Delete a stored artefact and return the bytes freed."""
        size = sum(path.stat().st_size for path in folder.iterdir())
        doomed = folder.with_name(f".tmp-{folder.name}-{os.getpid()}-{time.time_ns()}")
        folder.rename(doomed)
        shutil.rmtree(doomed)
        return size
