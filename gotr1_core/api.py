"""The Python API beside ``train`` and ``resume``: configs, components by name, finished runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gotr1_core.components.build import make_component, make_judge
from gotr1_core.config.models import ComponentConfig, RunConfig, validate
from gotr1_core.hookspecs import Kind
from gotr1_core.plugins import Registry
from gotr1_core.rollout import Parts
from gotr1_core.runs.restore import restore
from gotr1_core.samples import Sampling


def load_config(
    file: Path | str | None = None,
    *,
    preset: str | None = None,
    words: Sequence[str] = (),
    registry: Registry | None = None,
    **keys: Any,
) -> RunConfig:
    """A run's config, put together as ``gotr1 train`` does it: preset, file, ``keys``, then ``words``. Later ones win.

    Args:
        file: a YAML config.
        preset: name of a config to start from.
        words: KEY=VALUE words such as ``["steps=20", "planner.model=PATH"]``.
        registry: the plugins; all installed ones if not given.
        keys: ``planner``, ``renderer``, ``judge``, ``algorithm`` or any other key of a config.

    Raises:
        UsageError: a key is unknown, a value is wrong, or the file cannot be read.
    """
    from gotr1_core.components.inputs import absolute_inputs
    from gotr1_core.components.resolve import resolve_config

    registry = registry or Registry()
    return absolute_inputs(registry, validate(RunConfig, resolve_config(registry, Path(file) if file else None, preset, keys, words)))


def component(kind: Kind, name: str, *, registry: Registry | None = None, device: str = "cpu", **options: Any) -> Any:
    """Makes one component from its registered name, ready to use. Weights are loaded.

    Args:
        kind: ``planner``, ``renderer``, ``judge``, ``algorithm``, ``source`` or ``benchmark``.
        name: its name in ``gotr1 list KIND``.
        registry: the plugins; all installed ones if not given.
        device: the device for weights of a planner, renderer or judge.
        options: its options, as ``gotr1 show KIND NAME`` lists them.

    Raises:
        UsageError: there is no such component, an option is wrong, or weights are missing.
    """
    registry, config = registry or Registry(), ComponentConfig(name=name, **options)
    if kind == "judge":
        return make_judge(registry, config, device=device)
    arguments: dict[str, Any] = {"device": device} if kind in ("planner", "renderer") else {}
    return make_component(registry, kind, config, **arguments)


def load_run(
    path: Path | str, *, registry: Registry | None = None, device: str = "cpu", accept_changes: bool = False
) -> tuple[RunConfig, Parts, Sampling]:
    """A run's config, its components with trained weights, and how to sample. ``path`` is a run, for its best checkpoint, or a checkpoint.

    If the untrained model was better than every checkpoint, this is the untrained model, with a warning.
    The judges are not made, so every reward is unknown (NaN). ``accept_changes`` only warns of files that are not those that the run read.

    Raises:
        UsageError: no run or complete checkpoint is there, it is damaged, or the run read other files than are there now.
    """
    return restore(registry or Registry(), Path(path), device=device, accept_changes=accept_changes)
