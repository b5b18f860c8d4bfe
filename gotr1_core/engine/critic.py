"""What an algorithm may do between rollout and update: estimate values with its own critic, and compute advantages per action."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gotr1_core.border.algorithm_calls import call_critic, call_estimate
from gotr1_core.border.contract import Call
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
    """Makes the algorithm's critic of one policy, if it has one; the policy's optimizer gets its parameters, with their own learning rate.

    Raises:
        UsageError: the policy has no features to estimate values from.
    """
    if not isinstance(algorithm, ActorCritic):
        return None
    width = getattr(policy, "features", None)
    if not isinstance(width, int):
        raise no_features(role, algorithm)
    critic = call_critic(algorithm, width)
    module = critic.module.to(device)
    optimizer.add_param_group(
        {"params": list(module.parameters()), "weight_decay": 0.0, "factor": critic.learning_rate / settings.learning_rate}
    )
    return replace(critic, module=module)


def no_features(role: str, algorithm: RLAlgorithm) -> UsageError:
    """The error of a policy that trains with a critic and has no ``features``. ``role`` is planner or renderer."""
    return UsageError(
        f"the {role} has no features to estimate values from, and {type(algorithm).__name__.lower()} needs them",
        hint="use algorithm=grpo or algorithm=rloo, which compare samples of one prompt instead",
    )


def critic_tensors(critic: Critic) -> dict[str, Tensor]:
    """Returns a critic's full state on the CPU, tensors of any shape by name."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in critic.module.state_dict().items()}


def load_critic(critic: Critic, path: Path) -> None:
    """Loads the state that :func:`critic_tensors` returned and a checkpoint saved.

    Raises:
        UsageError: the file is missing or damaged, or its names and shapes are not the critic's.
    """
    saved, module = read_tensors(path), critic.module
    state = module.state_dict()
    if {name: t.shape for name, t in saved.items()} != {name: t.shape for name, t in state.items()}:
        raise UsageError(f"{path} does not fit the algorithm's critic", hint="use the algorithm options that the run started with")
    module.load_state_dict(saved)


def critic_values(
    critic: nn.Module, stats: Mapping[SegmentName, ActionStats], masks: Mapping[SegmentName, Tensor]
) -> dict[SegmentName, Tensor]:
    """Estimates the values ``[B, T]`` of the states before each action, by segment; 0 where ``masks``, bool ``[B, T]``, is false.

    The critic is called once, with the features of all segments. No gradient reaches the policy.
    """
    features = {name: stats[name].features for name in masks}
    missing = [name for name, tensor in features.items() if tensor is None]
    if missing:
        raise ValueError(f"the policy declares features, but returned none for the segment {missing[0]!r}")
    rows = [tensor.detach()[masks[name]] for name, tensor in features.items() if tensor is not None]
    call = Call("critic", critic, "forward")
    with call.told():
        flat_values = critic(torch.cat(rows))
    values = call.tensor(flat_values, "values", "float", sum(map(len, rows))).split([len(segment_rows) for segment_rows in rows])
    zeros = {name: torch.zeros(mask.shape, dtype=values[0].dtype, device=mask.device) for name, mask in masks.items()}
    return {name: zeros[name].masked_scatter(mask, flat) for (name, mask), flat in zip(masks.items(), values, strict=True)}


def estimate_advantages(
    accelerator: Accelerator,
    algorithm: AdvantageEstimator,
    critic: Critic | None,
    names: Sequence[SegmentName],
    batch: Batch,
    micro_batches: Sequence[MicroBatch],
) -> tuple[list[MicroBatch], Mapping[str, tuple[Tensor, Tensor]]]:
    """Returns the micro-batches with the algorithm's advantages ``[B]`` or ``[B, T]`` and returns ``[B, T]``, and its statistics.

    ``names`` are the segments that train, also those without rollouts. ``micro_batches`` are all of the batch, with log-probabilities
    (and values if there is a critic) filled in. The algorithm sees their rows in the batch's order.
    """
    rows = {name: torch.cat([m.rows[name] for m in micro_batches if name in m.segments] or [torch.zeros(0).long()]) for name in names}
    order = {name: numbers.argsort() for name, numbers in rows.items()}

    def concatenate(field: str, dtype: torch.dtype = torch.float64) -> dict[SegmentName, Tensor]:
        tensors = {name: [getattr(m, field)[name] for m in micro_batches if name in m.segments] for name in names}
        joined = {name: torch.cat(pieces).cpu()[order[name]] if pieces else torch.zeros(0, 0) for name, pieces in tensors.items()}
        return {name: tensor.to(dtype) for name, tensor in joined.items()}

    def over_processes(sums: Tensor) -> Tensor:
        return torch.tensor(sum_over_processes(accelerator, sums.flatten().tolist()), dtype=torch.float64).view(sums.shape)

    experience = Experience(
        rewards=batch.rewards,
        place=batch.place,
        masks=concatenate("masks", torch.bool),
        old=concatenate("old"),
        reference=concatenate("reference") if algorithm.needs_reference else None,
        values=concatenate("values") if critic else None,
    )
    module = critic.module if critic else None
    estimates = call_estimate(algorithm, experience, module, over_processes)
    return _rows_to_micro_batches(micro_batches, estimates), estimates.statistics


def _rows_to_micro_batches(micro_batches: Sequence[MicroBatch], estimates: Estimates) -> list[MicroBatch]:
    """Splits step-wide advantages and returns back into micro-batches."""
    filled = []
    for micro_batch in micro_batches:
        advantages, returns = (
            {name: tensors[name][rows].to(micro_batch.masks[name].device) for name, rows in micro_batch.rows.items() if name in tensors}
            for tensors in (estimates.advantages, estimates.returns)
        )
        filled.append(replace(micro_batch, advantages=advantages, returns=returns))
    return filled
