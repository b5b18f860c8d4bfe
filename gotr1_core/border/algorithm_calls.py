"""Calls the functions of algorithms, and checks what they return, as ``calls.py`` does for other components."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gotr1_core.advantages import Advantages
from gotr1_core.border.contract import Call, ContractError, is_scalar
from gotr1_core.engine.out_of_memory import is_out_of_memory
from gotr1_core.errors import Gotr1Error, one_line
from gotr1_core.protocols import ActorCritic, AdvantageEstimator, Critic, Estimates, Experience, Loss, Policy, RLAlgorithm
from gotr1_core.samples import ActionStats, SegmentName

if TYPE_CHECKING:
    from gotr1_core.config.models import SegmentConfig


def call_advantages(algorithm: RLAlgorithm, rewards: Tensor) -> Advantages:
    """An algorithm's advantages of plans ``[P, N]`` and images ``[P, N, M]`` from rewards ``[P, N, M]``."""
    call = Call("algorithm", algorithm, "advantages")
    with call.told():
        advantages = algorithm.advantages(rewards.clone())  # which it may change
    call.need(isinstance(advantages, Advantages), advantages, "Advantages")
    for name, tensor, shape in (("plan", advantages.plan, rewards.shape[:2]), ("image", advantages.image, rewards.shape)):
        call.tensor(tensor, name, "float", *shape)
        call.need(bool(tensor.isfinite().all()), tensor, "finite numbers, 0 where there is no reward", f"{name} with NaN or infinities:")
    return advantages


def call_count(algorithm: RLAlgorithm, mask: Tensor) -> float:
    """What an algorithm divides the sums of a segment's loss by, from its mask ``[B, T]``."""
    call = Call("algorithm", algorithm, "count")
    with call.told():
        count = algorithm.count(mask)
    call.need(is_scalar(count), count, "a scalar")
    number = float(count)
    call.need(0 <= number < torch.inf, number, "a number from 0 on")
    return number


def call_loss(
    algorithm: RLAlgorithm,
    segment: SegmentName,
    stats: ActionStats,
    old: Tensor,
    reference: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    settings: SegmentConfig,
) -> Loss:
    """An algorithm's loss on one segment. ``old``, ``reference`` and ``mask`` are ``[B, T]``, ``advantages [B]`` or ``[B, T]``."""
    call = Call("algorithm", algorithm, "loss")
    with call.told():
        loss = algorithm.loss(segment, stats, old, reference, advantages, mask, settings)
    call.loss(loss, [segment], learns=stats.log_prob.requires_grad)
    call.need(isinstance(loss.actions, Mapping), loss.actions, "a mapping of tensors by name", "actions")
    call.texts(loss.actions, "actions")
    for name, numbers in loss.actions.items():
        call.tensor(numbers, f"actions[{name!r}]", "bool or number", *mask.shape)
    return loss


def call_estimate(
    algorithm: AdvantageEstimator, seen: Experience, critic: nn.Module | None, total: Callable[[Tensor], Tensor]
) -> Estimates:
    """An algorithm's advantages of the whole step. ``total`` sums a tensor of any shape over processes."""
    call = Call("algorithm", algorithm, "estimate")
    with call.told():
        estimates = algorithm.estimate(seen, critic, total)
    call.need(isinstance(estimates, Estimates), estimates, "Estimates")
    for name, mask in seen.masks.items():
        if not len(mask):
            continue
        own = estimates.advantages.get(name)
        call.tensor(own, f"advantages[{name!r}]", "float", *mask.shape[: own.dim() if isinstance(own, Tensor) else 2])
        if critic is not None:
            call.tensor(estimates.returns.get(name), f"returns[{name!r}]", "float", *mask.shape)
    call.statistics(estimates.statistics, "statistics")
    return estimates


def call_critic(algorithm: ActorCritic, width: int) -> Critic:
    """A new critic of an algorithm, for features of ``width`` numbers."""
    call = Call("algorithm", algorithm, "critic")
    with call.told():
        critic = algorithm.critic(width)
    call.need(isinstance(critic, Critic), critic, "a Critic")
    call.need(isinstance(critic.module, nn.Module), critic.module, "a torch.nn.Module", "module")
    return critic


def call_value_loss(
    algorithm: ActorCritic, values: Tensor, old: Tensor, returns: Tensor
) -> tuple[Tensor, Mapping[str, tuple[Tensor, Tensor]]]:
    """The loss of a critic's values ``[K]`` against returns ``[K]``, a scalar, and its statistics; ``old [K]`` are earlier values."""
    call = Call("algorithm", algorithm, "value_loss")
    with call.told():
        result = algorithm.value_loss(values, old, returns)
    call.need(isinstance(result, tuple) and len(result) == 2, result, "a pair: a scalar and its statistics")
    call.tensor(result[0], "the loss", "float")
    call.statistics(result[1], "statistics")
    return result


@contextmanager
def told_of_backward(policy: Policy, algorithm: RLAlgorithm | None = None) -> Iterator[None]:
    """Tells of what the backward pass of a loss raises, such as that a graph was used twice.

    No function of a component runs then. So the error names all whose functions made the loss: those of ``policy`` and ``algorithm``.

    Raises:
        ContractError: the pass raised an exception that is neither ours nor about full memory.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, Gotr1Error) or is_out_of_memory(error):
            raise
        made = [Call("policy", policy, "module.forward" if algorithm else "supervised_loss")]
        made += [Call("algorithm", algorithm, "loss")] if algorithm else []
        functions = " and ".join(f"{call.function}() of {call.who()}" for call in made)
        hint = f"{functions} made it: neither may call backward(), or change a tensor in place; --debug shows the traceback"
        raise ContractError(f"the backward pass of the loss failed: {one_line(error)}", hint=hint) from error
