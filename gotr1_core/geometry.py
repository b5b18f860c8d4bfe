"""How many of what a step makes: the shape of a run, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gotr1_core.config import RunConfig
from gotr1_core.errors import UsageError
from gotr1_core.protocols import RLAlgorithm


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


def check_credit(algorithm: RLAlgorithm, config: RunConfig) -> None:
    """Refuses a tree of samples in which the algorithm can find no difference whatever the rewards are: tried on made-up ones.

    Raises:
        UsageError: the algorithm's own, or that a group is too small.
    """
    import torch

    totals = torch.linspace(0, 1, 2 * config.plans * config.images).pow(2).view(2, config.plans, config.images)
    credit = algorithm.credit(totals)
    trained = {"planner": [credit.plan], "renderer": [credit.image], "both": [credit.plan, credit.image]}[config.train]
    if all(bool((advantage == 0).all()) for advantage in trained):
        raise UsageError(
            f"plans={config.plans}, images={config.images}: {config.algorithm.name} has no samples of a prompt to compare",
            hint="nearest: plans=2" if config.train != "renderer" else "nearest: images=2",
        )


def geometry(config: RunConfig, processes: int, sizes: Mapping[str, int]) -> dict[str, Any]:
    """The numbers of a step, for people to look at before they start it."""
    plans = config.groups * config.plans
    image_tokens = sizes.get("image_tokens")
    return {
        "prompts": config.groups,
        "plans": plans,
        "images": plans * config.images,
        "processes": processes,
        "prompts per process": config.groups // processes,
        "rollout chunks per process": -(-config.groups // processes // config.rollout_groups),
        "micro-batches per update and process": -(-plans // processes // config.micro_batch),
        "updates per rollout": config.updates,
        "updates in all": config.steps * config.updates,
        "tokens per sample": config.sampling.max_chain_tokens + (image_tokens or 0) * config.images,
        "plan tokens at most": config.sampling.max_chain_tokens,
        "image tokens": image_tokens,
        "samples in all": config.steps * plans * config.images,
    }
