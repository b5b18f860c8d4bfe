"""The command line's first steps as functions: configs, components by name, finished runs."""

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
    **named: Any,
) -> RunConfig:
    """A run's config as ``gotr1 train`` makes it: preset, then file, then names, then KEY=VALUE words, each over what comes before.

    Args:
        file: a YAML config.
        preset: a named config to start from.
        words: such as ``["steps=20", "planner.model=PATH"]``.
        registry: the plugins; all that are installed if not given.
        named: ``planner``, ``renderer``, ``judge``, ``algorithm`` or any other key of a config.

    Raises:
        UsageError: an unknown key, a wrong value, a file that is none.
    """
    from gotr1_core.components.resolve import resolve_config

    return validate(RunConfig, resolve_config(registry or Registry(), Path(file) if file else None, preset, named, words))


def component(kind: Kind, name: str, *, registry: Registry | None = None, device: str = "cpu", **options: Any) -> Any:
    """One component by its registered name, ready to use: a judge, a planner with its weights.

    Args:
        kind: ``planner``, ``renderer``, ``judge``, ``algorithm``, ``source`` or ``benchmark``.
        name: as ``gotr1 list KIND`` shows it.
        registry: the plugins; all that are installed if not given.
        device: where a planner's, renderer's or judge's weights go.
        options: the component's, as ``gotr1 show KIND NAME`` lists them.

    Raises:
        UsageError: no such component, a wrong option, weights that are not there.
    """
    registry, config = registry or Registry(), ComponentConfig(name=name, **options)
    if kind == "judge":
        return make_judge(registry, config, device=device)
    more: dict[str, Any] = {"device": device} if kind in ("planner", "renderer") else {}
    return make_component(registry, kind, config, **more)


def load_run(path: Path | str, *, registry: Registry | None = None, device: str = "cpu") -> tuple[RunConfig, Parts, Sampling]:
    """The components of a run with its best checkpoint's weights (or those of the checkpoint that ``path`` is), and how to sample.

    Raises:
        UsageError: no run, no whole checkpoint, or one that is damaged.
    """
    return restore(registry or Registry(), Path(path), device=device)


__all__ = ["component", "load_config", "load_run"]
