"""Puts a run's config together from preset, file, options and KEY=VALUE words. Later ones win."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gotr1_core.plugins import Registry

DEFAULT_PRESET = "scenes"


def resolve_config(
    registry: Registry, config: Path | None, preset: str | None, options: Mapping[str, Any], words: Sequence[str]
) -> dict[str, Any]:
    """The config as one mapping, not validated yet. Loads the plugin files that it names.

    ``preset`` names a preset, which may have variants: ``scenes`` if no preset, file, planner, renderer or judge is named, neither by an
    option nor by a word (``planner=NAME``). ``options`` are values by key, such as ``planner``; those that are None do not count.
    """
    from gotr1_core.config.merge import VARIANTS, merge_layers, parse_overrides, read_yaml

    file = load_plugin_files(registry, read_yaml(config)) if config else {}
    given = {key: value for key, value in options.items() if value is not None}
    file = merge_layers(file, given, parse_overrides(words)) if VARIANTS in file else file  # the file may be a copy of a preset
    named = {*given, *(key for key, value in parse_overrides(words).items() if not isinstance(value, Mapping) or "name" in value)}
    if preset is None and config is None and not named & {"planner", "renderer", "judge"}:
        preset = DEFAULT_PRESET
    data: dict[str, Any] = read_yaml(registry.preset(preset)) if preset else {}
    return load_plugin_files(registry, merge_layers(data, file, given, parse_overrides(words)))


def load_plugin_files(registry: Registry, data: dict[str, Any]) -> dict[str, Any]:
    """Loads the plugin files that a config names. Returns the config with those of ``--plugin`` added, so that a run keeps them.

    Files that were left out (see :func:`add_config_plugins`) are not in it.
    """
    files = data.get("plugins") or []
    files = [files] if isinstance(files, str) else files
    if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
        return data  # validation will report it
    add_config_plugins(registry, files)
    return {**data, "plugins": [str(file) for file in registry.files]} if registry.files or files else data


def add_config_plugins(registry: Registry, files: Iterable[str | Path]) -> None:
    """Loads plugin files that a config or a run names, or only notes them in the registry if it leaves such files out.

    Raises:
        UsageError: a file is no plugin.
    """
    for file in map(Path, files):
        if registry.config_plugins or file.resolve() in registry.files:
            registry.add_file(file)
        elif file not in registry.left_out:
            registry.left_out.append(file)
