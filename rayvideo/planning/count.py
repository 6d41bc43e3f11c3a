"""Bytes that are alive and FLOPs, of code that runs on the meta device: shapes and graphs are real, numbers are not."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

KNOWN = 64
"""Numbers of a tensor whose values are kept beside it: timesteps, which say what of two denoisers is asked."""

CPU = torch.device("cpu")
ASK = torch.ops.aten._local_scalar_dense.default
COPY = torch.ops.aten._to_copy.default
CHOOSE_ATTENTION = torch.ops.aten._fused_sdp_choice.default


class Census(TorchDispatchMode):
    """Counts tensors on the meta device that come and go while it is entered, by the `phase` that they were born in.

    Views count as what they look into, once. What an operator needs within itself is not seen. Attention is one operator
    that keeps no map of queries by keys, as on GPUs and CPUs. Where code asks for a number it gets the true one if that
    follows from known ones, such as timesteps, else 1 or True, by which all numbers are finite.
    """

    def __init__(self) -> None:
        super().__init__()
        self.phase = ""
        self.flops: Counter[str] = Counter()
        """By phase."""
        self.now: Counter[str] = Counter()
        """Bytes alive, by phase."""
        self.peak: Counter[str] = Counter()
        """Bytes that were alive when most were."""
        self.mark = 0
        """Most bytes that were alive at once since someone set this."""
        self._most = 0
        self._seen: dict[int, Any] = {}
        self._values: Any = WeakIdKeyDictionary()

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Count none of these, such as weights."""
        self._seen |= {tensor.untyped_storage()._cdata: None for tensor in tensors}

    def rise(self, size: int) -> None:
        """Count so many bytes that come and go."""
        if size > 0:
            torch.empty(size, dtype=torch.uint8, device="meta")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is CHOOSE_ATTENTION:
            return (SDPBackend.FLASH_ATTENTION if args[0].ndim == 4 else SDPBackend.MATH).value
        if func is ASK and args[0].is_meta:
            known = self._values.get(args[0])
            return (True if args[0].dtype is torch.bool else 1) if known is None else func(known)
        if func is COPY and args[0].is_meta and kwargs.get("device") == CPU:
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        out = func(*args, **kwargs)
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.flops[self.phase] += count(*args, **kwargs, out_val=out)
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor) and tensor.is_meta:
                self._note(tensor)
        if isinstance(out, Tensor) and out.is_meta and out.numel() <= KNOWN:
            self._remember(func, args, kwargs, out)
        return out

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        size, phase = storage.nbytes(), self.phase

        def dropped(_: object) -> None:
            del self._seen[key]
            self.now[phase] -= size

        self._seen[key] = weakref.ref(storage, dropped)
        self.now[phase] += size
        total = self.now.total()
        self.mark = max(self.mark, total)
        if total > self._most:
            self._most, self.peak = total, self.now.copy()

    def _remember(self, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
        """Keep the values of a small tensor, if all that it was made of is known."""
        given = [self._values.get(one) if isinstance(one, Tensor) and one.is_meta else one for one in args]
        known = all(one is not None and not isinstance(one, list | tuple) for one in given)
        if known and any(isinstance(one, Tensor) for one in given):
            self._values[out] = func(*given, **(kwargs | ({"device": CPU} if "device" in kwargs else {})))
