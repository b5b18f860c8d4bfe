"""How many of what a step makes: the shape of a run, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gotr1_core.config.models import RunConfig
from gotr1_core.errors import UsageError
from gotr1_core.protocols import RLAlgorithm
from gotr1_core.samples import IMAGE, PLAN, SegmentName

_TORCH = (2, 13)  # FSDP2 looked at no dataclass in a module's output before, such as Scored, and said nothing


def check_limits(config: RunConfig, processes: int | None) -> None:
    """Refuses numbers that do not go together, naming the nearest that do; ``processes`` is None where it is not known how many train.

    Raises:
        UsageError: groups that processes cannot share, a model that cannot be, or an evaluation of more prompts than are held out.
    """
    _check_sharding(config, processes)
    processes = processes or 1
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


def _check_sharding(config: RunConfig, processes: int | None) -> None:
    """Refuses to spread what cannot be spread: over one process, adapters, with float16's scaled losses."""
    import torch

    if not config.shard:
        return
    if processes == 1:
        hint = "start several, gotr1 train … -- --num-processes 2, or set shard=false"
        raise UsageError("shard=true spreads a model over processes, and there is one", hint=hint)
    if config.lora is not None:
        raise UsageError("shard=true is for full weights, and lora trains adapters", hint="set lora=null, or shard=false")
    if config.offload:
        raise UsageError("shard=true and offload=true do not go together: no process has a whole model to move", hint="set one of them")
    if config.mixed_precision == "fp16":
        raise UsageError("shard=true and mixed_precision=fp16 do not go together", hint="set mixed_precision=bf16, or shard=false")
    if tuple(map(int, torch.__version__.split(".")[:2])) < _TORCH:
        raise UsageError(f"shard=true needs torch 2.13 or newer, not {torch.__version__}", hint="install it, or set shard=false")


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


def check_groups(algorithm: RLAlgorithm, config: RunConfig) -> None:
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
    rewards = torch.linspace(0, 1, 2 * config.plans * config.images).pow(2).view(2, config.plans, config.images)
    advantages = algorithm.advantages(rewards)
    if all(bool((getattr(advantages, name) == 0).all()) for name in training):
        raise UsageError(
            f"plans={config.plans}, images={config.images}: {config.algorithm.name} has no samples of a prompt to compare",
            hint="nearest: plans=2" if PLAN in training else "nearest: images=2",
        )


def step_sizes(config: RunConfig, processes: int, sizes: Mapping[str, int]) -> dict[str, Any]:
    """The numbers of a step, for people to look at before they start it."""
    plans = config.groups * config.plans
    chain, image = config.sampling.max_chain_tokens, sizes.get("image_tokens")
    return {
        "prompts": config.groups,
        "plans": plans,
        "images": plans * config.images,
        "processes": processes,
        "prompts per process": config.groups // processes,
        "trained weights per process": f"1/{processes}" if config.shard else "all",
        "rollout chunks per process": -(-config.groups // processes // config.rollout_groups),
        "micro-batches per update and process": -(-plans // processes // config.micro_batch),  # those without an advantage included
        "updates per rollout": config.updates,
        "updates in all": config.steps * config.updates,
        "plan tokens at most": chain,
        "image tokens": image,
        "tokens per sample at most": None if image is None else chain + image,
        "samples in all": config.steps * plans * config.images,
    }
