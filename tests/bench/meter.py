"""How much memory a piece of work takes, counted from the tensors that it makes."""

from __future__ import annotations

import weakref
from collections.abc import Iterable

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Memory(TorchDispatchMode):
    """Counts the bytes of the tensors made inside the context that are alive, and notes the largest of them.

    What shares memory with tensors that are ``known`` was not made inside.
    """

    def __init__(self, known: Iterable[Tensor] = ()):
        super().__init__()
        self.alive, self.peak, self.largest, self.shape = 0, 0, 0, ()
        self._known = weakref.WeakSet(tensor.untyped_storage() for tensor in known)

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor):
                self._note(tensor)
        return result

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        size = storage.nbytes()
        self._known.add(storage)
        weakref.finalize(storage, self._free, size)
        self.alive += size
        self.peak = max(self.peak, self.alive)
        if size > self.largest:
            self.largest, self.shape = size, tuple(tensor.shape)

    def _free(self, size: int) -> None:
        self.alive -= size
