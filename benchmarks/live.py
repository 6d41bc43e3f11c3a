"""How much memory tensors take while something runs, counted, since CPUs have no allocator that could be asked."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that are made within this context and are alive at once; `peak` is the most.

    What was there before does not count, such as weights. Nor does what a kernel needs for itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._now = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._note(args, made=False)
        out = func(*args, **(kwargs or {}))
        self._note(out, made=True)
        return out

    def _note(self, tensors: Any, *, made: bool) -> None:
        for tensor in tree_leaves(tensors):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self._known:
                continue
            size = storage.nbytes() if made else 0
            self._known.add(key)
            self._now += size
            self.peak = max(self.peak, self._now)
            weakref.finalize(storage, self._forget, key, size).atexit = False

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._now -= size


class Kept(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes of distinct tensors that autograd holds at once, weights not among them."""

    def __init__(self) -> None:
        self.most, self._now = 0, 0
        self._alive: dict[int, int] = {}
        super().__init__(self._pack, lambda held: held.tensor)

    def _pack(self, tensor: Tensor) -> _Held:
        return _Held(self, tensor)

    def add(self, tensor: Tensor) -> None:
        """One more holds this tensor's storage."""
        key = tensor.untyped_storage().data_ptr()
        self._alive[key] = self._alive.get(key, 0) + 1
        if self._alive[key] == 1 and not isinstance(tensor, torch.nn.Parameter):
            self._now += tensor.untyped_storage().nbytes()
            self.most = max(self.most, self._now)

    def drop(self, tensor: Tensor) -> None:
        """One less does."""
        key = tensor.untyped_storage().data_ptr()
        self._alive[key] -= 1
        if not self._alive[key] and not isinstance(tensor, torch.nn.Parameter):
            self._now -= tensor.untyped_storage().nbytes()


class _Held:
    def __init__(self, kept: Kept, tensor: Tensor) -> None:
        self.tensor, self._kept = tensor, kept
        kept.add(tensor)

    def __del__(self) -> None:
        self._kept.drop(self.tensor)
