"""Bytes that are alive and FLOPs, of code that runs on the meta device: shapes and graphs are real, numbers are not."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

KNOWN = 64
"""Numbers of a tensor whose values are kept beside it: timesteps, which say what of two denoisers is asked."""

CPU = torch.device("cpu")
_ASK = torch.ops.aten._local_scalar_dense.default
_ATTEND = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default


class Census(TorchDispatchMode):
    """Counts the tensors on the meta device that come and go while it is entered, by the `phase` that they were born in.

    Views count as what they look into, once. What an operator needs within itself is not seen. Where code asks for a
    number, it gets the true one if that follows from known timesteps, else 1 or True: all numbers are finite.
    """

    def __init__(self, there: Iterable[Tensor]) -> None:
        """Of `there`, such as weights, nothing is counted."""
        super().__init__()
        self.phase = ""
        self.flops: Counter[str] = Counter()
        """By phase."""
        self.now: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        """Bytes alive when most were, by phase."""
        self._most = 0
        self._seen: dict[int, Any] = {tensor.untyped_storage()._cdata: None for tensor in there}
        self._values: Any = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is _ASK and args[0].is_meta:
            known = self._values.get(args[0])
            return (True if args[0].dtype is torch.bool else 1) if known is None else func(known)
        out = func(*args, **kwargs)
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.flops[self.phase] += count(*args, **kwargs, out_val=out)
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor) and tensor.is_meta:
                self._note(tensor)
        if isinstance(out, Tensor) and out.is_meta and out.numel() <= KNOWN and out.is_contiguous():
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
        if total > self._most:
            self._most, self.peak = total, self.now.copy()

    def _remember(self, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
        """Keep the values of a small tensor, if all that it was made of is known."""
        given = [self._values.get(one) if isinstance(one, Tensor) and one.is_meta else one for one in args]
        tensors = [one for one in given if isinstance(one, Tensor)]
        if tensors and all(one is not None for one in given) and not any(isinstance(one, list) for one in given):
            self._values[out] = func(*given, **(kwargs | ({"device": CPU} if "device" in kwargs else {})))


class FusedAttention(TorchFunctionMode):
    """Attention as one operator, which keeps no map of queries by keys: so it is on GPUs and CPUs, not on meta."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.scaled_dot_product_attention:
            return _fused(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    attended: Tensor = _ATTEND(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]
    return attended
