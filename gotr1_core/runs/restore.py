"""A run's trained components, rebuilt from its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from gotr1_core.components.build import build
from gotr1_core.components.preflight import check
from gotr1_core.config.merge import merge, overrides, read_yaml
from gotr1_core.config.models import RunConfig, SamplingConfig, Strict, make_sampling, validate
from gotr1_core.engine.tensors import load_trainable
from gotr1_core.errors import UsageError
from gotr1_core.plugins import Registry
from gotr1_core.rollout import Parts
from gotr1_core.runs.checkpoint import EMA_FILE, STATE, TRAINABLE, checkpoints, read_state
from gotr1_core.runs.records import CONFIG
from gotr1_core.samples import Sampling


class Changeable(Strict):
    """What may be changed where a run's own components draw."""

    sampling: SamplingConfig


def checkpoint_of(path: Path) -> tuple[Path, Path]:
    """The run and the checkpoint that a path means: a run's best (else last) checkpoint, or the checkpoint itself."""
    if (path / CONFIG).is_file():
        found = checkpoints(path)
        if not found:
            raise UsageError(f"{path} has no whole checkpoint yet", hint=f"gotr1 train --resume {path}")
        last = max(found)
        best = (read_state(found[last])["best"] or {}).get("step", last)
        return path, found.get(best, found[last])
    run = path.resolve().parent.parent
    if (path / STATE).is_file() and (run / CONFIG).is_file():
        return run, path
    raise UsageError(f"{path} is no run with a checkpoint, and no checkpoint of one", hint="give the folder that `gotr1 train` named")


def restore(
    registry: Registry, path: Path, words: Sequence[str] = (), *, device: torch.device | str = "cpu", judged: bool = False
) -> tuple[RunConfig, Parts, Sampling]:
    """The components of a run with its trained weights, and the settings to generate with, which ``sampling.…`` words may change.

    Without ``judged`` the judges are not made: drawing does not need them, and they may be large or cost money.
    """
    changed = overrides(words)
    if changed.keys() - {"sampling"}:
        raise UsageError("with --checkpoint only sampling.… can be changed", hint="the rest is the run's own")
    run, folder = checkpoint_of(path)
    config = validate(RunConfig, read_yaml(run / "config.yaml"))
    try:
        kept = validate(Changeable, {"sampling": read_state(folder)["sampling"]})
    except (KeyError, UsageError) as error:
        raise UsageError(f"{folder / 'state.json'} is damaged: {error}", hint="use another checkpoint of the run") from None
    settings = validate(Changeable, merge(kept.model_dump(), changed))
    for file in config.plugins:
        registry.add_file(file)
    if judged:
        check(registry, config)
    parts = build(registry, config, device=device, judged=judged, preflight=not judged)
    for role, (policy, _) in parts.trained(config.train).items():
        averaged = folder / role / EMA_FILE
        load_trainable(policy.module, averaged if averaged.is_file() else folder / role / TRAINABLE)
    return config, parts, make_sampling(settings.sampling)
