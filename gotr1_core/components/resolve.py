"""Puts a run's config together: preset, file, options and KEY=VALUE words, each over what comes before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gotr1_core.plugins import Registry

DEFAULT_PRESET = "scenes"


def resolve_config(
    registry: Registry, config: Path | None, preset: str | None, named: Mapping[str, Any], words: Sequence[str]
) -> dict[str, Any]:
    """Preset (and its variants), then file, then options, then KEY=VALUE words, each over what comes before; plugin files are loaded.

    Where neither a preset, a file nor a component is named, the preset ``scenes`` is taken.
    """
    from gotr1_core.config.merge import VARIANTS, layered, overrides, read_yaml

    own = with_plugins(registry, read_yaml(config)) if config else {}
    given = {key: value for key, value in named.items() if value is not None}
    own = layered(own, given, overrides(words)) if VARIANTS in own else own  # such as a copy of a preset
    if preset is None and config is None and not given.keys() & {"planner", "renderer", "judge"}:
        preset = DEFAULT_PRESET
    data: dict[str, Any] = read_yaml(registry.preset(preset)) if preset else {}
    return with_plugins(registry, layered(data, own, given, overrides(words)))


def with_plugins(registry: Registry, data: dict[str, Any]) -> dict[str, Any]:
    """Loads the plugin files that a config names, and names those of --plugin in it too, so that the run's own config has them."""
    named = data.get("plugins") or []
    named = [named] if isinstance(named, str) else named
    if not isinstance(named, list) or not all(isinstance(file, str) for file in named):
        return data  # which validation will tell
    for file in named:
        registry.add_file(Path(file))
    return {**data, "plugins": [str(file) for file in registry.files]} if registry.files else data
