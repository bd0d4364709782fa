"""What computations of one process share: the store, the device, loaded models and decoded data."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from taskvec.errors import UserError
from taskvec.runner.artefact import Artefact, Content
from taskvec.runner.store import Store

if TYPE_CHECKING:
    from taskvec.data.views import View
    from taskvec.models.base import Backbone, Model
    from taskvec.vectors import TaskVector

KEPT = {"images", "texts", "head"}
Observe = Callable[[Artefact, int, int, Mapping[str, float]], None]


class Workspace:
    """Computes artefacts in order, each at most once per store, and keeps models, images and heads in memory."""

    def __init__(  # noqa: PLR0913 (where and how to compute)
        self, store: Store, device: str, precision: str, offload: bool, observe: Observe, done: Callable[..., None]
    ):
        self.store, self.bf16 = store, precision == "bf16"
        self.blocks_device = resolve_device(device)
        self.offload, self.device = offload, "cpu" if offload else self.blocks_device
        self.observe, self.done = observe, done
        self._kept: dict[str, Any] = {}
        self.usage: dict[str, dict[str, Any]] = {}
        set_precision(precision)
        keep_freed_memory()

    def get(self, node: Artefact) -> Content:
        """Return an artefact's content; missing inputs are computed before it, so locks are never nested."""
        if node.fingerprint in self._kept:
            return self._kept[node.fingerprint]
        if not self.store.has(node):
            for child in node.inputs.values():
                self.ensure(child)
        content, record, computed = self.store.get(node, lambda: node.compute(self, node))
        if node.fingerprint not in self.usage or computed:
            cost = record["usage"] | {"label": node.label, "kind": node.kind, "computed": computed}
            self.usage[node.fingerprint] = cost
            self.done(node, record, computed)
        if node.kind in KEPT:
            self._kept[node.fingerprint] = content
        return content

    def ensure(self, node: Artefact) -> None:
        """Compute an artefact unless it is stored."""
        if node.kind != "base" and not self.store.has(node):
            self.get(node)

    def model(self, base: Artefact) -> Model:
        """Return the loaded backbone of a base, one at a time."""
        return self._base(base)[0]

    def backbone(self, base: Artefact) -> Backbone:
        """Return the component that describes a base."""
        return base.compute(self, base).meta["backbone"]

    def base_hash(self, base: Artefact) -> str:
        """Return the hash of a base's editable weights."""
        return self._base(base)[1]

    def _base(self, base: Artefact) -> tuple[Model, str]:
        if base.fingerprint not in self._kept:
            from taskvec.vectors import weights_hash

            model = self.backbone(base).load(self.device)
            if self.offload:
                from taskvec.training.recompute import offload

                offload(model.module, self.blocks_device)
            self._kept[base.fingerprint] = (model, weights_hash(model.parameters))
        return self._kept[base.fingerprint]

    def vector(self, node: Artefact) -> TaskVector:
        """Return a stored task vector, on the CPU."""
        from taskvec.training.fit import HEAD
        from taskvec.vectors import Deferred, TaskVector

        content = self.get(node)
        deltas = {name: delta for name, delta in content.tensors.items() if not name.startswith(HEAD)}
        return TaskVector(
            Deferred.of(deltas), {key: content.meta[key] for key in ("base_hash", "backbone", "forward_mode")}
        )

    def view(self, data: Artefact, head: Artefact | None) -> View:
        """Return a task's split with its head, on the device; a corpus has neither labels nor head."""
        from taskvec.data.views import View

        key = f"{data.fingerprint}/{head.fingerprint if head else ''}"
        if key not in self._kept:
            kept = self.get(head).tensors["head"] if head else None
            self._kept[key] = View.of(self.get(data).tensors, name=data.label, head=kept).to(self.device)
        return self._kept[key]


def resolve_device(device: str) -> str:
    """Return the torch device that ``auto`` stands for, or the device itself once it is known to exist.

    Raises:
        UserError: if the device is not there.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = device.partition(":")
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[kind]
    if int(index or 0) >= count:
        raise UserError(f"device: {device!r} is not available here ({count} {kind} devices); use device=auto")
    return device


def set_precision(precision: str) -> None:
    """Set the arithmetic of float32 matrix products; ``tf32`` acts on CUDA devices, bf16 through autocast."""
    import torch

    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
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
