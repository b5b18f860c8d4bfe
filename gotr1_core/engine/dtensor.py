"""Tensors that may be spread over processes (DTensors), and what of them is here. Of any other tensor all of it is."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def is_spread(tensor: Tensor) -> bool:
    """Whether this process has a share of it alone."""
    return hasattr(tensor, "full_tensor")  # to import DTensor would cost those who have none


def full(tensor: Tensor) -> Tensor:
    """The whole of a tensor. All processes have to ask for it."""
    spread: Any = tensor
    return spread.full_tensor() if is_spread(tensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This process's share of a tensor, in its memory."""
    spread: Any = tensor
    return spread.to_local() if is_spread(tensor) else tensor


def shard_like(tensor: Tensor, model: Tensor) -> Tensor:
    """A whole tensor, which every process has, spread as another of its shape is."""
    if not is_spread(model) or tensor.shape != model.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    spread: Any = model
    return distribute_tensor(tensor.to(model.device), spread.device_mesh, spread.placements, src_data_rank=None)
