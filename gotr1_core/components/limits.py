"""Checks the numbers of a config against each other, and counts the sizes of a step. Loads nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gotr1_core.border.algorithm_calls import call_advantages
from gotr1_core.config.models import MOST, RunConfig
from gotr1_core.errors import UsageError
from gotr1_core.protocols import RLAlgorithm
from gotr1_core.rollout import SEGMENTS
from gotr1_core.samples import PLAN, SegmentName

_TORCH = (2, 13)  # before, FSDP2 ignored dataclasses such as ActionStats in a module's output, without an error


def check_limits(config: RunConfig, processes: int | None) -> None:
    """Checks that the config's numbers go together. Nothing is adjusted behind the user's back: hints name the nearest valid numbers.

    ``processes`` is the number of processes that will train, or None if it is not known yet.

    Raises:
        UsageError: a step has too many samples, ``groups`` is no multiple of ``processes``, the model cannot be sharded, a segment that
            trains is decoded greedily, an evaluation has more prompts than are held out, or its batch is smaller than ``best_of``.
    """
    _check_sharding(config, processes)
    _check_temperatures(config)
    if (samples := config.groups * config.plans * config.images) > MOST:
        numbers = f"groups={config.groups}, plans={config.plans}, images={config.images}"
        raise UsageError(f"{numbers}: a step would have {samples:,} samples", hint=f"at most {MOST:,} in a step; GoT-R1 has 128")
    processes = processes or 1
    if config.groups % processes:
        below, above = config.groups // processes * processes, -(-config.groups // processes) * processes
        nearest = f"groups={above}" if below == 0 else f"groups={below} or groups={above}"
        raise UsageError(f"groups={config.groups} cannot be shared by {processes} processes", hint=f"nearest: {nearest}")
    held_out = config.prompts.held_out
    if config.evaluation.every and isinstance(held_out, int) and config.evaluation.prompts > held_out:
        raise UsageError(
            f"evaluation.prompts={config.evaluation.prompts}, but only {held_out} prompts are held out",
            hint=f"nearest: evaluation.prompts={held_out} or prompts.held_out={config.evaluation.prompts}",
        )
    if config.evaluation.best_of > config.evaluation.batch:
        best = config.evaluation.best_of
        raise UsageError(f"evaluation.batch={config.evaluation.batch} cannot hold best_of={best}", hint=f"nearest: evaluation.batch={best}")


def _check_sharding(config: RunConfig, processes: int | None) -> None:
    """Refuses ``shard=true`` where it cannot work: with one process, adapters, offloading, float16 or an old torch."""
    import torch

    if not config.shard:
        return
    if processes == 1:
        hint = "start several, gotr1 train … -- --num-processes 2, or set shard=false"
        raise UsageError("shard=true shards a model over several processes, but there is only one", hint=hint)
    if config.lora is not None:
        raise UsageError("shard=true needs full weights, but lora trains adapters", hint="set lora=null, or shard=false")
    if config.offload:
        raise UsageError("shard=true and offload=true do not go together: no process has a full model to move", hint="set one of them")
    if config.mixed_precision == "fp16":
        raise UsageError("shard=true and mixed_precision=fp16 do not go together", hint="set mixed_precision=bf16, or shard=false")
    if tuple(map(int, torch.__version__.split(".")[:2])) < _TORCH:
        raise UsageError(f"shard=true needs torch 2.13 or newer, not {torch.__version__}", hint="install a newer torch, or set shard=false")


def trained_segments(config: RunConfig) -> list[SegmentName]:
    """The segments that train and whose loss has a weight."""
    return [name for name in SEGMENTS[config.train] if getattr(config.segments, name).weight > 0]


def _check_temperatures(config: RunConfig) -> None:
    """Refuses to train a segment that is decoded greedily: all samples would be equal, and nothing sampled has a probability."""
    for name in trained_segments(config):
        key = "temperature" if name == PLAN else "image_temperature"
        if getattr(config.sampling, key) == 0:
            raise UsageError(
                f"sampling.{key}=0 decodes the {name} greedily: samples of a prompt do not differ, so there is nothing to learn",
                hint=f"train at sampling.{key}=1; greedy decoding in evaluations: evaluation.sampling.{key}=0",
            )


def check_context(config: RunConfig, sizes: Mapping[str, int]) -> None:
    """Checks that chain and picture fit into the context of a unified policy, where they are one sequence.

    ``sizes`` is what components reported: ``context`` in positions, ``image_tokens`` of a picture. Either may be missing. A prompt's
    own length is not known here, so a chain that passes may still be too long.

    Raises:
        UsageError: chain and image tokens alone fill the context.
    """
    context, image = sizes.get("context"), sizes.get("image_tokens", 0)
    chain = config.sampling.max_chain_tokens
    if context is not None and chain + image >= context:
        raise UsageError(
            f"sampling.max_chain_tokens={chain} with {image} image tokens does not fit the model's context of {context}",
            hint=f"nearest: sampling.max_chain_tokens={context - image - 1}, less what the longest prompt takes",
        )


def check_groups(algorithm: RLAlgorithm, config: RunConfig) -> None:
    """Checks that the algorithm finds a difference between samples of a group. It is tried on made-up rewards that all differ.

    Raises:
        UsageError: no segment that trains has a weight, a group is too small to compare its samples, or the algorithm refuses it.
    """
    import torch

    training = trained_segments(config)
    if not training:
        name = SEGMENTS[config.train][0]
        raise UsageError(f"train={config.train}, but no segment of it has a weight", hint=f"set segments.{name}.weight to more than 0")
    rewards = torch.linspace(0, 1, 2 * config.plans * config.images).pow(2).view(2, config.plans, config.images)
    advantages = call_advantages(algorithm, rewards)
    if all(bool((getattr(advantages, name) == 0).all()) for name in training):
        raise UsageError(
            f"plans={config.plans}, images={config.images}: {config.algorithm.name} has no samples of a prompt to compare",
            hint="nearest: plans=2" if PLAN in training else "nearest: images=2",
        )


def step_sizes(config: RunConfig, processes: int, sizes: Mapping[str, int]) -> dict[str, Any]:
    """The sizes of a step by name, as ``--dry-run`` shows them. ``sizes`` is what components reported; None means not known."""
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
        "micro-batches per update and process": -(-plans // processes // config.micro_batch),  # counts those without an advantage too
        "updates per rollout": config.updates,
        "updates in all": config.steps * config.updates,
        "plan tokens at most": chain,
        "image tokens": image,
        "tokens per sample at most": None if image is None else chain + image,
        "samples in all": config.steps * plans * config.images,
    }
