"""What an algorithm may do between rollout and update: estimate values with a critic of its own, and make advantages per action."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gotr1_core.config.models import OptimizerConfig
from gotr1_core.engine.collectives import sum_over_processes
from gotr1_core.engine.tensors import read_tensors
from gotr1_core.errors import UsageError
from gotr1_core.protocols import ActorCritic, AdvantageEstimator, Critic, Estimates, Experience, Policy, RLAlgorithm
from gotr1_core.samples import ActionStats, SegmentName

if TYPE_CHECKING:
    from gotr1_core.batch import Batch, MicroBatch


def make_critic(
    device: torch.device,
    algorithm: RLAlgorithm,
    role: str,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    settings: OptimizerConfig,
) -> Critic | None:
    """The algorithm's critic of one policy, if it has one, its parameters put into the policy's optimizer at a rate of their own.

    Raises:
        UsageError: the policy has no features to estimate values from.
    """
    if not isinstance(algorithm, ActorCritic):
        return None
    width = getattr(policy, "features", None)
    if width is None:
        raise UsageError(
            f"the {role} has no features that a value could be estimated from, and {type(algorithm).__name__.lower()} needs them",
            hint="use algorithm=grpo or algorithm=rloo, which compare samples of one prompt instead",
        )
    critic = algorithm.critic(width)
    module = critic.module.to(device)
    optimizer.add_param_group(
        {"params": list(module.parameters()), "weight_decay": 0.0, "factor": critic.learning_rate / settings.learning_rate}
    )
    return replace(critic, module=module)


def critic_tensors(critic: Critic) -> dict[str, Tensor]:
    """A critic's whole state, on the CPU."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in critic.module.state_dict().items()}


def load_critic(critic: Critic, path: Path) -> None:
    """The inverse of :func:`critic_tensors`."""
    saved, module = read_tensors(path), critic.module
    mine = module.state_dict()
    if {name: t.shape for name, t in saved.items()} != {name: t.shape for name, t in mine.items()}:
        raise UsageError(f"{path} does not fit the algorithm's critic", hint="use the run's own options of the algorithm")
    module.load_state_dict(saved)


def critic_values(
    critic: nn.Module, scored: Mapping[SegmentName, ActionStats], masks: Mapping[SegmentName, Tensor]
) -> dict[SegmentName, Tensor]:
    """Values ``[B, T]`` of the states before each action, 0 where there is none. The critic alone learns from them.

    It is called once, with what both segments have.
    """
    found = {name: scored[name].features for name in masks}
    missing = [name for name, features in found.items() if features is None]
    if missing:
        raise ValueError(f"the policy says that it has features, and scored the segment {missing[0]!r} without")
    rows = [features.detach()[masks[name]] for name, features in found.items() if features is not None]
    flat = critic(torch.cat(rows)).split([len(part) for part in rows])
    empty = {name: torch.zeros(mask.shape, dtype=flat[0].dtype, device=mask.device) for name, mask in masks.items()}
    return {name: empty[name].masked_scatter(mask, part) for (name, mask), part in zip(masks.items(), flat, strict=True)}


def estimate_advantages(
    accelerator: Accelerator,
    algorithm: AdvantageEstimator,
    critic: Critic | None,
    names: Sequence[SegmentName],
    batch: Batch,
    parts: Sequence[MicroBatch],
) -> tuple[list[MicroBatch], Mapping[str, tuple[Tensor, Tensor]]]:
    """Slices with the advantages and the returns that the algorithm makes of the whole step, and its statistics.

    ``parts`` are all of the batch in its order, scored; ``names`` the segments that train, also where none of them was drawn.
    """

    def whole(kind: str) -> dict[SegmentName, Tensor]:
        found = {name: [getattr(part, kind)[name] for part in parts if name in part.segments] for name in names}
        return {name: torch.cat(pieces).cpu() if pieces else torch.zeros(0, 0) for name, pieces in found.items()}

    def over_processes(sums: Tensor) -> Tensor:
        return torch.tensor(sum_over_processes(accelerator, sums.flatten().tolist()), dtype=torch.float64).view(sums.shape)

    seen = Experience(
        rewards=batch.rewards,
        place=batch.place,
        masks={name: mask.bool() for name, mask in whole("masks").items()},
        old=_double(whole("old")),
        reference=_double(whole("reference")) if all(part.reference for part in parts) else None,
        values=_double(whole("values")) if critic else None,
    )
    module = critic.module if critic else None
    targets = algorithm.estimate(seen, module, over_processes)
    return _dealt(parts, targets), targets.statistics


def _double(tensors: Mapping[SegmentName, Tensor]) -> dict[SegmentName, Tensor]:
    return {name: tensor.double() for name, tensor in tensors.items()}


def _dealt(parts: Sequence[MicroBatch], targets: Estimates) -> list[MicroBatch]:
    """Rows of the batch given back to the slices they came from."""
    at: dict[SegmentName, int] = {}
    found = []
    for part in parts:
        spans = {name: slice(at.get(name, 0), at.get(name, 0) + len(rollout)) for name, rollout in part.segments.items()}
        at |= {name: span.stop for name, span in spans.items()}
        advantages, returns = (
            {name: tensors[name][span].to(part.masks[name].device) for name, span in spans.items() if name in tensors}
            for tensors in (targets.advantages, targets.returns)
        )
        found.append(replace(part, advantages=advantages, returns=returns))
    return found
