"""What computations of one process share: the store, the device, loaded models and decoded data."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from taskvec.errors import UserError
from taskvec.graph.artefact import Content, Node
from taskvec.graph.nodes.statistic import StatisticNode
from taskvec.graph.store import Store

if TYPE_CHECKING:
    from taskvec.config import Component
    from taskvec.training.checkpoint import Checkpoint

Observe = Callable[[Node, int, int, Mapping[str, float]], None]
Done = Callable[[Node, Mapping[str, Any], bool], None]
T = TypeVar("T")
CHECKPOINT_SECONDS = 30.0


class Workspace:
    """Computes artefacts in order, each at most once per store, and keeps what many of them need in memory."""

    def __init__(self, store: Store, compute: Any, observe: Observe, done: Done):
        from taskvec.models.batching import Batching

        self.store, self.bf16 = store, compute.precision == "bf16"
        self.compile, self.batching = compute.compile, Batching(compute.batch)
        self.blocks_device = resolve_device(compute.device)
        self.offload = compute.offload
        self.device = "cpu" if compute.offload else self.blocks_device
        self.observe, self.done = observe, done
        self.usage: dict[str, dict[str, Any]] = {}
        self._kept: dict[str, Any] = {}
        self._planned: list[StatisticNode] = []
        self.resident: int | None = None
        set_precision(compute.precision)
        keep_freed_memory()

    def plan(self, nodes: Iterable[Node]) -> None:
        """Say what will be asked for, so that statistics of one pass are collected together."""
        self._planned += [node for node in nodes if isinstance(node, StatisticNode)]

    def prepare(self, roots: Iterable[Node]) -> None:
        """Compute what some artefacts stand on, and they themselves, in any order that inputs allow.

        What is free comes first: where another process is at an artefact, the next one is taken, and only when nothing
        else is left is the other process waited for. So jobs that share vectors tune different ones side by side.
        """
        pending = to_compute(self.store, roots)
        while pending:
            ready = [node for node in pending.values() if not self._stands_on(node, pending)]
            taken = next((node for node in ready if self._take(node)), None)
            if taken is None:
                taken = ready[0]
                self.get(taken)
            del pending[taken.fingerprint]

    def _stands_on(self, node: Node, pending: Mapping[str, Node]) -> bool:
        """Return whether an input of a node, or what an input that is not stored is made from, is still to come."""
        for child in node.inputs.values():
            if child.fingerprint in pending or not child.stored and self._stands_on(child, pending):
                return True
        return False

    def _take(self, node: Node) -> bool:
        """Compute a node unless another process is at it, and say whether it is there."""
        stored = self.store.get_if_free(node, lambda: node.compute(self))
        if stored is None:
            return False
        self._note(node, stored.record, stored.computed)
        return True

    def get(self, node: Node) -> Content:
        """Return a stored artefact's content; missing inputs are computed before it, so locks are never nested."""
        if not self.store.has(node):
            self._ensure_inputs(node)
        content, record, computed = self.store.get(node, lambda: node.compute(self))
        self._note(node, record, computed)
        return content

    def ensure(self, node: Node) -> None:
        """Compute an artefact unless it is stored; of one that is not stored, its inputs."""
        if not node.stored:
            self._ensure_inputs(node)
        elif not self.store.has(node):
            self.get(node)

    def _ensure_inputs(self, node: Node) -> None:
        for child in node.inputs.values():
            self.ensure(child)

    def _note(self, node: Node, record: Mapping[str, Any], computed: bool) -> None:
        if node.fingerprint in self.usage and not computed:
            return
        told = {"label": node.label, "kind": node.kind, "computed": computed}
        self.usage[node.fingerprint] = record["usage"] | told
        self.done(node, record, computed)

    def keep(self, node: Node, make: Callable[[], T]) -> T:
        """Return ``make()``, made once for the life of the workspace or until :meth:`drop`."""
        return self.keep_as(node.fingerprint, make)

    def keep_as(self, key: str, make: Callable[[], T]) -> T:
        """Return ``make()``, made once for a key."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def drop(self, node: Node) -> None:
        """Forget what was kept for a node."""
        self._kept.pop(node.fingerprint, None)

    def companions(self, node: StatisticNode) -> list[StatisticNode]:
        """Return the planned statistics that are missing and need the same pass as one, each once."""
        found = {}
        for other in self._planned:
            same = other.shared_pass == node.shared_pass and not other.what.derived
            if same and other.fingerprint != node.fingerprint and not self.store.has(other):
                found[other.fingerprint] = other
        return list(found.values())

    def offer(self, node: Node, content: Content) -> None:
        """Store an artefact that was computed along with another one, unless another process is at it."""
        record = self.store.offer(node, content)
        if record is not None:
            self._note(node, record, computed=True)

    def checkpoint(self, node: Node, component: Component) -> Checkpoint:
        """Return where an unfinished computation of a node keeps its state."""
        from taskvec.training.checkpoint import Checkpoint

        # A recipe is a schedule, a learned merge has one
        schedule = getattr(component, "schedule", component)
        every = getattr(schedule, "checkpoint_every", CHECKPOINT_SECONDS)
        return Checkpoint(self.store.partial(node), every)


def silent_workspace(root: Path, compute: Any) -> Workspace:
    """Return a workspace below an outputs folder that shows nobody what it does."""

    def silent(*_: Any) -> None:
        """Show nothing."""

    return Workspace(Store(root / "store"), compute, silent, silent)


def to_compute(store: Store, roots: Iterable[Node]) -> dict[str, Node]:
    """Return what has to be computed, by fingerprint, inputs first; below what is stored nothing is needed."""
    found: dict[str, Node] = {}

    def visit(node: Node) -> None:
        if node.fingerprint in found or node.stored and store.has(node):
            return
        for child in node.inputs.values():
            visit(child)
        if node.stored:
            found[node.fingerprint] = node

    for root in roots:
        visit(root)
    return found


def resolve_device(device: str) -> str:
    """Return the torch device that ``auto`` stands for, or the device itself once it is known to exist.

    Raises:
        UserError: if the device is not there.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = device.partition(":")
    count = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }[kind]
    if int(index or 0) >= count:
        raise UserError(
            f"compute.device: {device!r} is not available here ({count} {kind} devices); use compute.device=auto"
        )
    return device


def set_precision(precision: str) -> None:
    """Set the arithmetic of float32 matrix products; ``tf32`` acts on CUDA devices, bf16 through autocast."""
    import torch

    products = "high" if precision == "tf32" else "highest"
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


def keep_freed_memory() -> None:
    """Let glibc keep 512 MB of freed memory and serve blocks below 64 MB from it; other C libraries are left alone.

    By default every large tensor's pages go back to the system and the next one's are faulted in anew, which takes a
    sixth of the time of forward-mode products on a CPU (tests/bench/linear.py).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        trim_threshold, mmap_threshold = -1, -3  # malloc.h
        mallopt(mmap_threshold, 64 << 20)
        mallopt(trim_threshold, 512 << 20)
