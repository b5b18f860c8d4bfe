"""How many of what a step makes: the shape of a run, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gotr1_core.config import RunConfig
from gotr1_core.errors import UsageError
from gotr1_core.protocols import RLAlgorithm
from gotr1_core.samples import IMAGE, PLAN, SegmentName


def check_geometry(config: RunConfig, processes: int) -> None:
    """Refuses numbers that do not go together, naming the nearest that do.

    Raises:
        UsageError: groups that processes cannot share, or an evaluation of more prompts than are held out.
    """
    if config.groups % processes:
        below, above = config.groups // processes * processes, -(-config.groups // processes) * processes
        nearest = f"groups={above}" if below == 0 else f"groups={below} or groups={above}"
        raise UsageError(f"groups={config.groups} cannot be shared by {processes} processes", hint=f"nearest: {nearest}")
    held_out = config.prompts.held_out
    if config.evaluation.every and isinstance(held_out, int) and config.evaluation.prompts > held_out:
        raise UsageError(
            f"evaluation.prompts={config.evaluation.prompts}, and only {held_out} prompts are held out",
            hint=f"nearest: evaluation.prompts={held_out} or prompts.held_out={config.evaluation.prompts}",
        )
    if config.evaluation.best_of > config.evaluation.batch:
        best = config.evaluation.best_of
        raise UsageError(f"evaluation.batch={config.evaluation.batch} cannot hold best_of={best}", hint=f"nearest: evaluation.batch={best}")


def check_context(config: RunConfig, sizes: Mapping[str, int]) -> None:
    """Refuses chains that no prompt leaves room for, where plan and picture are one sequence of one model.

    Raises:
        UsageError: chain and image tokens alone fill the context; a prompt's own length is known only with the prompt.
    """
    context, image = sizes.get("context"), sizes.get("image_tokens", 0)
    chain = config.sampling.max_chain_tokens
    if context is not None and chain + image >= context:
        raise UsageError(
            f"sampling.max_chain_tokens={chain} with {image} image tokens does not fit the model's context of {context}",
            hint=f"nearest: sampling.max_chain_tokens={context - image - 1}, less what the longest prompt takes",
        )


def check_credit(algorithm: RLAlgorithm, config: RunConfig) -> None:
    """Refuses a tree of samples in which the algorithm can find no difference whatever the rewards are: tried on made-up ones.

    Raises:
        UsageError: the algorithm's own, or that a group is too small.
    """
    import torch

    segments: dict[str, tuple[SegmentName, ...]] = {"planner": (PLAN,), "renderer": (IMAGE,), "both": (PLAN, IMAGE)}
    training = [name for name in segments[config.train] if getattr(config.segments, name).weight > 0]
    if not training:
        name = segments[config.train][0]
        raise UsageError(f"train={config.train}, and nothing of it has a weight", hint=f"set segments.{name}.weight to more than 0")
    totals = torch.linspace(0, 1, 2 * config.plans * config.images).pow(2).view(2, config.plans, config.images)
    credit = algorithm.credit(totals)
    if all(bool((getattr(credit, name) == 0).all()) for name in training):
        raise UsageError(
            f"plans={config.plans}, images={config.images}: {config.algorithm.name} has no samples of a prompt to compare",
            hint="nearest: plans=2" if PLAN in training else "nearest: images=2",
        )


def geometry(config: RunConfig, processes: int, sizes: Mapping[str, int]) -> dict[str, Any]:
    """The numbers of a step, for people to look at before they start it."""
    plans = config.groups * config.plans
    chain, image = config.sampling.max_chain_tokens, sizes.get("image_tokens")
    return {
        "prompts": config.groups,
        "plans": plans,
        "images": plans * config.images,
        "processes": processes,
        "prompts per process": config.groups // processes,
        "rollout chunks per process": -(-config.groups // processes // config.rollout_groups),
        "micro-batches per update and process": -(-plans // processes // config.micro_batch),  # those without an advantage included
        "updates per rollout": config.updates,
        "updates in all": config.steps * config.updates,
        "plan tokens at most": chain,
        "image tokens": image,
        "tokens per sample at most": None if image is None else chain + image,
        "samples in all": config.steps * plans * config.images,
    }
