"""Bytes that are alive and FLOPs, of code that runs on the meta device: shapes and graphs are real, numbers are not."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary
from typing_extensions import Self

KNOWN = 64
"""Numbers of a tensor whose values are kept beside it: timesteps, which say what of two denoisers is asked."""

CPU = torch.device("cpu")
ASK = torch.ops.aten._local_scalar_dense.default
COPY = torch.ops.aten._to_copy.default
ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default


class Census(TorchDispatchMode):
    """Counts tensors on the meta device that come and go while it is entered, by the `phase` that they were born in.

    Views count as what they look into, once. What an operator needs within itself is not seen. Attention is one
    operator that keeps no map of queries by keys, as on GPUs and CPUs; torch would take it apart on the meta device.
    Where code asks for a number it gets the true one if that follows from known ones, such as timesteps, else 1 or
    True, by which all numbers are finite.
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

    def __enter__(self) -> Self:
        self._plain = nn.functional.scaled_dot_product_attention
        nn.functional.scaled_dot_product_attention = _attention
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        nn.functional.scaled_dot_product_attention = self._plain

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Count none of these, such as weights."""
        self._seen |= {tensor.untyped_storage()._cdata: None for tensor in tensors}

    def rise(self, size: int) -> None:
        """Count so many bytes that come and go."""
        if size > 0:
            torch.empty(size, dtype=torch.uint8, device="meta")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
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
        nested = (each for one in given if isinstance(one, list | tuple) for each in one)
        if any(one is None for one in given) or any(isinstance(each, Tensor) for each in nested):
            return
        if any(isinstance(one, Tensor) for one in given):
            self._values[out] = func(*given, **(kwargs | ({"device": CPU} if "device" in kwargs else {})))


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`scaled_dot_product_attention` as the fused operator; heads that share keys count as if they did not."""
    if query.ndim == 3:
        return _attention(query[None], key[None], value[None], attn_mask, dropout_p, is_causal, scale)[0]
    attended: Tensor = ATTENTION(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]
    return attended
