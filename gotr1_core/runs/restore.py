"""Rebuilds a run's trained components from its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from gotr1_core.components.build import build
from gotr1_core.components.preflight import check
from gotr1_core.config.merge import merge, parse_overrides
from gotr1_core.config.models import RunConfig, SamplingConfig, Strict, make_sampling, validate
from gotr1_core.engine.tensors import load_trainable
from gotr1_core.errors import UsageError
from gotr1_core.plugins import Registry
from gotr1_core.rollout import Parts
from gotr1_core.runs.checkpoint import EMA_FILE, STATE, TRAINABLE, complete_checkpoints, read_state
from gotr1_core.runs.inputs import COMPONENTS, POLICIES, check_inputs
from gotr1_core.runs.records import CONFIG, run_config
from gotr1_core.samples import Sampling


class GenerationSettings(Strict):
    """What a user may change when a run's own components draw."""

    sampling: SamplingConfig


def find_checkpoint(path: Path) -> tuple[Path, Path]:
    """The run's folder and the checkpoint's, for a path to either. A run means its best checkpoint, or its last if the best is gone.

    Raises:
        UsageError: ``path`` is neither a run nor a checkpoint of one, or the run has no complete checkpoint.
    """
    if (path / CONFIG).is_file():
        checkpoints = complete_checkpoints(path)
        if not checkpoints:
            raise UsageError(f"{path} has no complete checkpoint yet", hint=f"gotr1 train --resume {path}")
        last = max(checkpoints)
        best = (read_state(checkpoints[last])["best"] or {}).get("step", last)
        return path, checkpoints.get(best, checkpoints[last])
    run = path.resolve().parent.parent
    if (path / STATE).is_file() and (run / CONFIG).is_file():
        return run, path
    raise UsageError(
        f"{path} is neither a run with a checkpoint nor a checkpoint of a run", hint="give the folder that `gotr1 train` named"
    )


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
    try:
        saved = validate(GenerationSettings, {"sampling": read_state(folder)["sampling"]})
    except (KeyError, UsageError) as error:
        raise UsageError(f"{folder / 'state.json'} is damaged: {error}", hint="use another checkpoint of the run") from None
    settings = validate(GenerationSettings, merge(saved.model_dump(), changed))
    for file in config.plugins:
        registry.add_file(file)
    reads = COMPONENTS if with_judges else POLICIES
    check_inputs(run, registry, config, reads, accept=accept_changes)
    if with_judges:
        check(registry, config)
    parts = build(registry, config, device=device, with_judges=with_judges, preflight=not with_judges)
    if not accept_changes:
        check_inputs(run, registry, config, reads)  # again: a model may have been downloaded
    for role, (policy, _) in parts.trained(config.train).items():
        averaged = folder / role / EMA_FILE
        load_trainable(policy.module, averaged if averaged.is_file() else folder / role / TRAINABLE)
    return config, parts, make_sampling(settings.sampling)
