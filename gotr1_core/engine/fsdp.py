"""Shards full weights over processes with FSDP2 (torch's ``fully_shard``): each process keeps a shard of weights, gradients and moments.

A block's weights are gathered when a pass through the module needs them. Its gradients are summed into shards in the backward pass.
So all processes must take the same passes, with the same segments, whatever each has to learn from: see :func:`in_step`.

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

PassKind: TypeAlias = tuple[SegmentName, ...]  # the segments of a pass


# -- weights ----------------------------------------------------------------------------------------------------------------


def shard(accelerator: Accelerator, module: nn.Module) -> None:
    """Spreads what trains in a module over all processes, in place: block by block, and what is in no block as one more.

    Frozen weights stay whole. Gradients become sums over processes, as elsewhere, and not means.

    Raises:
        UsageError: parameters of several types, or one that is a single number.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    types = sorted({str(p.dtype).removeprefix("torch.") for p in trained.values()})
    if len(types) > 1:
        raise UsageError(f"shard: the weights that train are of several types: {', '.join(types)}", hint="shard=false")
    numbers = [name for name, p in trained.items() if not p.dim()]
    if numbers:
        raise UsageError(f"shard: {numbers[0]} is a single number, which has no shares", hint="shard=false")
    # Scored has views of hidden states; FSDP2 warns of them, as it would lose their hooks if anybody wrote into them.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    frozen = {p for p in module.parameters() if not p.requires_grad}
    for part in [*blocks(module), module]:
        # Also the outermost is gathered anew for the backward pass: else a pass without one would leave it gathered, and then outdated.
        fully_shard(part, mesh=mesh, reshard_after_forward=True, ignored_params=frozen)
    root, *_ = parts = _parts(module)
    for part in parts:
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)  # gloo knows no other
    # The first forward would do this, and a sampler's first call is of some block, which would then be taken for the outermost.
    root._get_fsdp_state()._lazy_init()


def blocks(module: nn.Module) -> list[nn.Module]:
    """What is gathered at a time: the elements of the outermost lists of modules, such as a transformer's layers, if they train.

    The module's forward calls them, and does not reach into them.
    """
    found: list[nn.Module] = []
    for child in module.children():
        if isinstance(module, nn.ModuleList) and not isinstance(child, nn.ModuleList | nn.ModuleDict):
            found += [child] if any(p.requires_grad for p in child.parameters()) else []
        else:
            found += blocks(child)
    return found


def is_sharded(module: nn.Module) -> bool:
    """Whether :func:`shard` has spread it."""
    return hasattr(module, "unshard")


def _parts(module: nn.Module) -> list[Any]:
    """The module, then its blocks, as the FSDPModules that they have become."""
    return [part for part in module.modules() if is_sharded(part)]


@contextmanager
def unsharded(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, these modules have all of their weights, and no part of them talks to other processes. For drawing, without gradients.

    Entering it is for all processes at once; leaving it is not.
    """
    sharded = [_parts(module) for module in modules if is_sharded(module)]
    try:
        for root, *rest in sharded:
            root.set_reshard_after_forward(False)
            for part in (root, *rest):
                part.unshard()
        yield
    finally:
        for root, *_ in sharded:
            root.set_reshard_after_forward(True)
            root.reset_iter_state()  # gives the weights back, and forgets an order of calls that other processes did not have


# -- passes -----------------------------------------------------------------------------------------------------------------


def in_step(accelerator: Accelerator, parts: Sequence[MicroBatch]) -> list[MicroBatch]:
    """A process's slices in their order, and between them idle ones, so that all processes pass through the same kinds of slices.

    An idle slice is one plan, with one picture of it where the others have pictures; it is scored for the others' sake and adds nothing.
    A process that has no picture of its own borrows one.
    """
    kinds = [_kind(part) for part in parts]
    every = gather_objects(accelerator, kinds)
    agreed = common(every)
    spare = {kind: _least(part) for kind, part in zip(reversed(kinds), reversed(parts), strict=True)}
    lent = {kind: next(i for i, theirs in enumerate(every) if kind in theirs) for kind in agreed}
    if any(kind not in theirs for kind in lent for theirs in every):
        mine = {kind: _moved(spare[kind], "cpu") for kind, lender in lent.items() if lender == accelerator.process_index}
        offers = {kind: part for offer in gather_objects(accelerator, mine) for kind, part in offer.items()}
        spare = {kind: _moved(part, accelerator.device) for kind, part in offers.items()} | spare
    left = list(parts)
    return [left.pop(0) if left and _kind(left[0]) == kind else spare[kind] for kind in agreed]


def common(sequences: Sequence[Sequence[PassKind]]) -> list[PassKind]:
    """A sequence in which each of some sequences is contained in its order; what most of them have next comes first."""
    left, found = [list(sequence) for sequence in sequences], []
    while any(left):
        heads = sorted(sequence[0] for sequence in left if sequence)
        found.append(max(heads, key=heads.count))
        for sequence in left:
            if sequence and sequence[0] == found[-1]:
                sequence.pop(0)
    return found


def _kind(part: MicroBatch) -> PassKind:
    return tuple(sorted(part.segments))


def _least(part: MicroBatch) -> MicroBatch:
    """A slice of the same kind that is as small as can be, and idle."""
    chosen: dict[SegmentName, Rollout] = {}
    image = part.segments.get(IMAGE)
    first = 0 if image is None else int(image.tensors["parent"][0])
    if PLAN in part.segments:
        chosen[PLAN] = part.segments[PLAN].rows(torch.tensor([first]))
    if image is not None:
        one = image.rows(torch.tensor([0]))
        chosen[IMAGE] = replace(one, tensors={**one.tensors, "parent": torch.zeros_like(one.tensors["parent"])}, images=())
    masks = {name: rollout.tensors["mask"] for name, rollout in chosen.items()}
    return replace(part, segments=chosen, masks=masks, advantages={}, idle=True)


def _moved(part: MicroBatch, device: torch.device | str) -> MicroBatch:
    segments = {
        name: replace(rollout, tensors={key: tensor.to(device) for key, tensor in rollout.tensors.items()})
        for name, rollout in part.segments.items()
    }
    return replace(part, segments=segments, masks={name: rollout.tensors["mask"] for name, rollout in segments.items()})
