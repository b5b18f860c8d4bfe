"""Rebuilds a run's trained components from its folder."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gotr1_core.components.build import build
from gotr1_core.components.preflight import check
from gotr1_core.components.resolve import add_config_plugins
from gotr1_core.config.merge import merge, parse_overrides
from gotr1_core.config.models import RunConfig, SamplingConfig, Strict, make_sampling, validate
from gotr1_core.engine.console import print
from gotr1_core.engine.intervals import known_mean
from gotr1_core.engine.tensors import load_trainable
from gotr1_core.errors import UsageError
from gotr1_core.plugins import Registry
from gotr1_core.rollout import Parts
from gotr1_core.runs.checkpoint import EMA_FILE, STATE, TRAINABLE, complete_checkpoints, read_state, warn_of_damage
from gotr1_core.runs.inputs import COMPONENTS, POLICIES, check_inputs
from gotr1_core.runs.records import CONFIG, read_held_out, run_config
from gotr1_core.samples import Sampling


class GenerationSettings(Strict):
    """What a user may change when a run's own components draw."""

    sampling: SamplingConfig


def find_checkpoint(path: Path) -> tuple[Path, Path | None]:
    """The run's folder and the checkpoint's, for a path to either.

    A run means its best checkpoint; None if the untrained model was better than all of them; the last if the best is gone.

    Raises:
        UsageError: ``path`` is neither a run nor a checkpoint of one, or the run has no complete checkpoint.
    """
    if (path / CONFIG).is_file():
        checkpoint, _ = best_checkpoint(path)
        warn_of_damage(path, f"using {checkpoint.name if checkpoint else 'the untrained model'}")
        return path, checkpoint
    run = path.resolve().parent.parent
    if (path / STATE).is_file() and (run / CONFIG).is_file():
        return run, path
    raise UsageError(
        f"{path} is neither a run with a checkpoint nor a checkpoint of a run", hint="give the folder that `gotr1 train` named"
    )


def best_checkpoint(run: Path) -> tuple[Path | None, str]:
    """What a run's path means, as :func:`find_checkpoint` says, and what its user should know about that; empty if nothing.

    Raises:
        UsageError: the run has no complete checkpoint, or a file is damaged.
    """
    checkpoints = complete_checkpoints(run)
    if not checkpoints:
        raise UsageError(f"{run} has no complete checkpoint yet", hint=f"gotr1 train --resume {run}")
    last = checkpoints[max(checkpoints)]
    best = read_state(last)["best"]
    if best is None:
        return last, f"{last} is the last checkpoint; none was evaluated, so it may be worse than the untrained model"
    settings = run_config(run).evaluation
    before = read_held_out(run).get("before")
    untrained = known_mean(before[settings.metric][: settings.prompts]) if before and settings.metric in before else math.nan
    checkpoint = checkpoints.get(best["step"])
    if untrained > best.get("score", math.nan):
        trained = f"--checkpoint {checkpoint or last} is trained"
        why = f"{settings.metric} was {untrained:.3f} before training, and then {best['score']:.3f} at best, after step {best['step']}"
        return None, f"this is the untrained model, because {why}; {trained}"
    if checkpoint is None:
        return last, f"the best checkpoint, of step {best['step']}, is gone; {last} is the last, and may be worse than the untrained model"
    return checkpoint, ""


def restore(
    registry: Registry,
    path: Path,
    words: Sequence[str] = (),
    *,
    device: torch.device | str = "cpu",
    with_judges: bool = False,
    accept_changes: bool = False,
) -> tuple[RunConfig, Parts, Sampling]:
    """A run's config, its components with trained weights, and how to sample. ``path`` is a run or one of its checkpoints.

    If the untrained model is better than every checkpoint of a run, its weights are used, with a warning.

    ``words`` are ``sampling.KEY=VALUE`` changes. Without ``with_judges`` no judge is made: drawing needs none, and some cost money.
    ``accept_changes`` only warns of files, such as weights, that are not those that the run read.

    Raises:
        UsageError: ``words`` change another key, no checkpoint is there, it is damaged, or the run read other files than are there now.
    """
    changed = parse_overrides(words)
    if changed.keys() - {"sampling"}:
        raise UsageError("with --checkpoint only sampling.… can be changed", hint="the run's own config has all other keys")
    run, folder = find_checkpoint(path)
    config = run_config(run)
    settings = validate(GenerationSettings, merge({"sampling": _saved_sampling(config, folder)}, changed))
    add_config_plugins(registry, config.plugins)
    reads = COMPONENTS if with_judges else POLICIES
    check_inputs(run, registry, config, reads, accept=accept_changes)
    if run == path and (note := best_checkpoint(run)[1]):
        print(f"warning: {path}: {note}", file=sys.stderr)
    if with_judges:
        check(registry, config)
    parts = build(registry, config, device=device, with_judges=with_judges, preflight=not with_judges)
    if not accept_changes:
        check_inputs(run, registry, config, reads)  # again: a model may have been downloaded
    if folder is not None:
        for role, (policy, _) in parts.trained(config.train).items():
            averaged = folder / role / EMA_FILE
            load_trainable(policy.module, averaged if averaged.is_file() else folder / role / TRAINABLE)
    return config, parts, make_sampling(settings.sampling)


def _saved_sampling(config: RunConfig, checkpoint: Path | None) -> dict[str, Any]:
    """How to sample: as the checkpoint says, or for the untrained model the config."""
    if checkpoint is None:
        return (config.evaluation.sampling or config.sampling).model_dump()
    try:
        return validate(GenerationSettings, {"sampling": read_state(checkpoint)["sampling"]}).sampling.model_dump()
    except (KeyError, UsageError) as error:
        raise UsageError(f"{checkpoint / STATE} is damaged: {error}", hint="use another checkpoint of the run") from None
