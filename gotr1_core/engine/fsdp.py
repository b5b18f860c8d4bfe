"""Shards full weights over processes with FSDP2 (torch's ``fully_shard``). A process keeps a shard of weights, gradients and moments.

A block's weights are gathered when a pass through the module needs them. Its gradients are summed into shards in the backward pass.
So all processes must make the same passes, with the same segments, whatever each has to learn from: see :func:`align_micro_batches`.

For sampling, weights are gathered once and kept: see :func:`unsharded`. A sampler calls parts of the module, not its forward, and takes
as many steps as its own chains need. Without this it would gather every block for every token.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from accelerate import Accelerator
from torch import nn

from gotr1_core.engine.collectives import gather_objects
from gotr1_core.errors import UsageError
from gotr1_core.samples import IMAGE, PLAN, Rollout, SegmentName

if TYPE_CHECKING:
    from gotr1_core.batch import MicroBatch

PassKind: TypeAlias = tuple[SegmentName, ...]
"""The segments of a pass through a module, sorted."""


# -- weights ----------------------------------------------------------------------------------------------------------------


def shard(accelerator: Accelerator, module: nn.Module) -> None:
    """Shards a module's trainable weights over all processes, in place: block by block, then all that is in no block.

    Frozen weights are not sharded. Gradients become sums over processes, not means, as without sharding.

    Raises:
        UsageError: the trainable parameters have several types, or one of them is a single number.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    types = sorted({str(p.dtype).removeprefix("torch.") for p in trained.values()})
    if len(types) > 1:
        raise UsageError(f"shard: the trainable weights have several types: {', '.join(types)}", hint="shard=false")
    numbers = [name for name, p in trained.items() if not p.dim()]
    if numbers:
        raise UsageError(f"shard: {numbers[0]} is a single number, which cannot be sharded", hint="shard=false")
    # ActionStats has views of hidden states. FSDP2 warns of views, because writing into one would lose its hooks; nobody writes here.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    frozen = {p for p in module.parameters() if not p.requires_grad}
    for submodule in [*blocks(module), module]:
        # The outermost module is resharded too. Else it would stay gathered after a pass without backward, and become outdated.
        fully_shard(submodule, mesh=mesh, reshard_after_forward=True, ignored_params=frozen)
    root, *_ = units = _fsdp_units(module)
    for unit in units:
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)  # gloo has no other reduction
    # The first forward would do this. But a sampler first calls some block, and FSDP2 would then take that block for the outermost.
    root._get_fsdp_state()._lazy_init()


def blocks(module: nn.Module) -> list[nn.Module]:
    """Returns the submodules that are gathered one at a time: trainable elements of the outermost module lists, such as layers.

    The module's forward must call them, and not their inner modules directly.
    """
    units: list[nn.Module] = []
    for child in module.children():
        if isinstance(module, nn.ModuleList) and not isinstance(child, nn.ModuleList | nn.ModuleDict):
            units += [child] if any(p.requires_grad for p in child.parameters()) else []
        else:
            units += blocks(child)
    return units


def is_sharded(module: nn.Module) -> bool:
    """True if :func:`shard` has sharded the module."""
    return hasattr(module, "unshard")


def _fsdp_units(module: nn.Module) -> list[Any]:
    """The module, then its blocks; :func:`shard` has made them FSDPModules."""
    return [submodule for submodule in module.modules() if is_sharded(submodule)]


@contextmanager
def unsharded(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, modules have their full weights and need no communication. For sampling, without gradients.

    All processes must enter it together; each leaves it when it is done.
    """
    sharded = [_fsdp_units(module) for module in modules if is_sharded(module)]
    try:
        for root, *rest in sharded:
            root.set_reshard_after_forward(False)
            for unit in (root, *rest):
                unit.unshard()
        yield
    finally:
        for root, *_ in sharded:
            root.set_reshard_after_forward(True)
            root.reset_iter_state()  # frees the full weights, and forgets the order of calls, which may differ between processes


# -- passes -----------------------------------------------------------------------------------------------------------------


def align_micro_batches(accelerator: Accelerator, micro_batches: Sequence[MicroBatch]) -> list[MicroBatch]:
    """Returns a process's micro-batches in order, with idle ones between them, so that all processes make passes of the same kinds.

    An idle micro-batch is one plan, with one of its pictures if the kind has pictures. Its pass is made only because other processes make
    one; it adds nothing to the loss. A process that has no micro-batch of a kind borrows an idle one from another process.
    """
    kinds = [_kind(micro_batch) for micro_batch in micro_batches]
    kinds_by_process = gather_objects(accelerator, kinds)
    passes = common_sequence(kinds_by_process)
    idle = {kind: _smallest_idle(micro_batch) for kind, micro_batch in zip(reversed(kinds), reversed(micro_batches), strict=True)}
    lenders = {kind: next(i for i, held in enumerate(kinds_by_process) if kind in held) for kind in passes}
    if any(kind not in held for kind in lenders for held in kinds_by_process):
        lent = {kind: _to_device(idle[kind], "cpu") for kind, lender in lenders.items() if lender == accelerator.process_index}
        offers = {kind: micro_batch for offer in gather_objects(accelerator, lent) for kind, micro_batch in offer.items()}
        idle = {kind: _to_device(micro_batch, accelerator.device) for kind, micro_batch in offers.items()} | idle
    remaining = list(micro_batches)
    return [remaining.pop(0) if remaining and _kind(remaining[0]) == kind else idle[kind] for kind in passes]


def common_sequence(sequences: Sequence[Sequence[PassKind]]) -> list[PassKind]:
    """Returns a sequence that contains each of ``sequences`` in its order. Next comes always the kind that most of them need next."""
    remaining, merged = [list(sequence) for sequence in sequences], []
    while any(remaining):
        heads = sorted(sequence[0] for sequence in remaining if sequence)
        merged.append(max(heads, key=heads.count))
        for sequence in remaining:
            if sequence and sequence[0] == merged[-1]:
                sequence.pop(0)
    return merged


def _kind(micro_batch: MicroBatch) -> PassKind:
    return tuple(sorted(micro_batch.segments))


def _smallest_idle(micro_batch: MicroBatch) -> MicroBatch:
    """An idle micro-batch of the same kind, as small as possible."""
    segments: dict[SegmentName, Rollout] = {}
    image = micro_batch.segments.get(IMAGE)
    plan_row = 0 if image is None else int(image.tensors["parent"][0])
    if PLAN in micro_batch.segments:
        segments[PLAN] = micro_batch.segments[PLAN].rows(torch.tensor([plan_row]))
    if image is not None:
        first = image.rows(torch.tensor([0]))
        segments[IMAGE] = replace(first, tensors={**first.tensors, "parent": torch.zeros_like(first.tensors["parent"])}, images=())
    masks = {name: rollout.tensors["mask"] for name, rollout in segments.items()}
    return replace(micro_batch, segments=segments, masks=masks, advantages={}, idle=True)


def _to_device(micro_batch: MicroBatch, device: torch.device | str) -> MicroBatch:
    segments = {
        name: replace(rollout, tensors={key: tensor.to(device) for key, tensor in rollout.tensors.items()})
        for name, rollout in micro_batch.segments.items()
    }
    return replace(micro_batch, segments=segments, masks={name: rollout.tensors["mask"] for name, rollout in segments.items()})
