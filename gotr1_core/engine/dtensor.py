"""Tensors that may be sharded over processes (torch's DTensors). Functions here return any other tensor as it is."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def is_dtensor(tensor: Tensor) -> bool:
    """True if a tensor (any shape) is sharded, so that this process has only its shard."""
    return hasattr(tensor, "full_tensor")  # importing DTensor takes time, also for those who have none


def full_tensor(tensor: Tensor) -> Tensor:
    """Returns a tensor of any shape in full. Every process must call it, as shards are gathered."""
    sharded: Any = tensor
    return sharded.full_tensor() if is_dtensor(tensor) else tensor


def local_tensor(tensor: Tensor) -> Tensor:
    """Returns this process's shard of a tensor of any shape. It shares memory with the tensor."""
    sharded: Any = tensor
    return sharded.to_local() if is_dtensor(tensor) else tensor


def shard_like(tensor: Tensor, model: Tensor) -> Tensor:
    """Shards a replicated tensor like ``model``. It stays as it is if ``model`` is not sharded or has not its shape."""
    if not is_dtensor(model) or tensor.shape != model.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    sharded: Any = model
    return distribute_tensor(tensor.to(model.device), sharded.device_mesh, sharded.placements, src_data_rank=None)
