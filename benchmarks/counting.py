"""Counts the bytes of tensors as they are made and freed. With meta tensors, which have no memory, it counts what a GPU would need."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_PLAIN = {name: getattr(F, name) for name in ("linear", "conv2d", "layer_norm", "group_norm", "interpolate")}
_SUM = Tensor.sum


class Allocations(TorchDispatchMode):
    """A context that counts the bytes of all living tensors that operations made: ``now``, and ``peak``, the maximum so far.

    It includes tensors that autograd keeps for the backward pass or makes in it. ``known`` tensors do not count.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes = {t.untyped_storage()._cdata: 0 for t in known}

    def reset(self) -> None:
        """Starts a new peak at the current number of bytes."""
        self.peak = self.now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        out = func(*args, **(kwargs or {}))
        for tensor in [out] if isinstance(out, Tensor) else tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)


@contextmanager
def as_on_a_gpu(*, mixed: bool) -> Iterator[None]:
    """A context in which functions allocate on meta tensors what they allocate on CUDA.

    Attention uses its kernels, which store no attention matrix. If ``mixed``, arguments are cast as `torch.autocast` casts them:
    `torch.autocast` itself does not know meta tensors. The lists of functions are those of ATen's `autocast_mode.h` which the models here
    call.
    """
    low, full = torch.bfloat16, torch.float32
    casts: dict[Tensor, Tensor] = {}  # autocast keeps the casts of trained tensors until its end

    def cast(value: Any, dtype: torch.dtype) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        if not (value.is_leaf and value.requires_grad):
            return value.to(dtype)
        if value not in casts:
            casts[value] = value.to(dtype)
        return casts[value]

    def of(function: Callable[..., Any], dtype: torch.dtype) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            return function(*(cast(a, dtype) for a in args), **{name: cast(value, dtype) for name, value in kwargs.items()})

        return called if mixed else function

    def summed(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        wide = {"dtype": full} if mixed and tensor.dtype == low else {}
        return _SUM(tensor, *args, **(wide | kwargs))

    narrow = ("linear", "conv2d", "scaled_dot_product_attention")
    plain = _PLAIN | {"scaled_dot_product_attention": attention}
    patched = {name: of(function, low if name in narrow else full) for name, function in plain.items()}
    with mock.patch.multiple(F, **patched), mock.patch.object(Tensor, "sum", summed):
        yield


def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *, is_causal: bool = False, **_: Any) -> Tensor:
    """Computes attention with the flash kernel. With a mask or in float32 it uses the memory-efficient kernel."""
    if attn_mask is None and query.dtype != torch.float32:
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, is_causal)[0]
    bias = None if attn_mask is None else attn_mask.to(query.dtype).expand(*query.shape[:-1], key.shape[-2])
    backward = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    kernel = torch.ops.aten._scaled_dot_product_efficient_attention
    return kernel(query, key, value, bias, backward, 0.0, is_causal)[0]


class Meter:
    """Measures the peak of each phase in bytes: of the GPU, or of :class:`Allocations`. Phases may be nested."""

    def __init__(self, device: str) -> None:
        self.allocations = None if device == "cuda" else Allocations()
        self.peaks: dict[str, int] = {}
        self._open: list[str] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """A context in which allocations count."""
        with ExitStack() as stack:
            if self.allocations is not None:
                stack.enter_context(self.allocations)
            yield

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A context that is a phase. A peak inside two phases belongs to the inner one."""
        self._turn()
        self._open.append(name)
        yield
        self._turn()
        self._open.pop()

    def around(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """Returns the function ``work`` as a phase."""

        def measured(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name):
                return work(*args, **kwargs)

        return measured

    def _turn(self) -> None:
        """Assigns the peak so far to the current phase and starts a new one."""
        peak = torch.cuda.max_memory_allocated() if self.allocations is None else self.allocations.peak
        if self._open:
            self.peaks[self._open[-1]] = max(peak, self.peaks.get(self._open[-1], 0))
        if self.allocations is None:
            torch.cuda.reset_peak_memory_stats()
        else:
            self.allocations.reset()
