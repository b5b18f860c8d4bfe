"""The files that a config names: absolute paths, their fingerprints, and what changed between two times."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import NoneType
from typing import Any

from gotr1_core.components.build import is_unified, judge_key
from gotr1_core.components.fingerprints import Fingerprint, component_inputs, path_fingerprint
from gotr1_core.config.models import ComponentConfig, RunConfig, SftConfig
from gotr1_core.config.paths import absolute_options
from gotr1_core.errors import Gotr1Error, UsageError
from gotr1_core.hookspecs import Kind
from gotr1_core.plugins import Registry, load

FINGERPRINTS = {
    str: (
        {"name": str, "files": {str: (str, NoneType)}},
        {"name": str, "commit": (str, NoneType)},
        {"name": str, "options": (dict, NoneType)},
    )
}
"""The shape of the fingerprints in a file, by config key."""
Changes = dict[str, tuple[Fingerprint, Fingerprint]]
"""By config key, an input as it was and as it is."""


def absolute_inputs(registry: Registry, config: RunConfig) -> RunConfig:
    """The config with absolute paths in the options of its components. A relative path is relative to the working folder."""
    roles: tuple[Kind, ...] = ("planner", "renderer", "algorithm")
    changed: dict[str, Any] = {role: absolute_component(registry, role, getattr(config, role)) for role in roles}
    changed["judge"] = [absolute_component(registry, "judge", judge) for judge in config.judge]
    if config.prompts.source is not None:
        source = absolute_component(registry, "source", config.prompts.source)
        changed["prompts"] = config.prompts.model_copy(update={"source": source})
    return config.model_copy(update=changed)


def absolute_sft_inputs(registry: Registry, config: SftConfig) -> SftConfig:
    """The same as :func:`absolute_inputs`, for the config of a supervised training."""
    data = config.data if isinstance(config.data, Path) else absolute_component(registry, "source", config.data)
    return config.model_copy(update={"policy": absolute_component(registry, config.kind, config.policy), "data": data})


def absolute_component(registry: Registry, kind: Kind, component: ComponentConfig) -> ComponentConfig:
    """The component with absolute paths in its options. An unknown one is returned as it is; the check of the config reports it."""
    with suppress(Gotr1Error):
        target = registry.find(kind, component.name).component.options
        if target is not None:
            return component.model_copy(update=absolute_options(load(target), component.options))
    return component


def run_inputs(registry: Registry, config: RunConfig, reads: Collection[str]) -> dict[str, Fingerprint]:
    """The fingerprints of the files that a run reads, by config key. ``reads`` are the first words of the keys that count.

    Raises:
        UsageError: an option of a component is wrong.
    """
    inputs = {f"plugins.{file.stem}": path_fingerprint(file) for file in config.plugins}
    own = {"prompts.file": config.prompts.file, "prompts.held_out": config.prompts.held_out}
    inputs |= {key: path_fingerprint(file) for key, file in own.items() if isinstance(file, Path)}
    for key, kind, component in _components(registry, config):
        if key.partition(".")[0] in reads:
            inputs |= component_inputs(registry, kind, component, key)
    return {key: value for key, value in inputs.items() if key.partition(".")[0] in reads}


def _components(registry: Registry, config: RunConfig) -> Iterator[tuple[str, Kind, ComponentConfig]]:
    """The components of a run that are made, each with its key in the config and its kind."""
    yield "planner", "planner", config.planner
    if not is_unified(registry, config):
        yield "renderer", "renderer", config.renderer
    for judge in config.judge:
        yield judge_key(judge, config), "judge", judge
    yield "algorithm", "algorithm", config.algorithm
    if config.prompts.source is not None:
        yield "prompts.source", "source", config.prompts.source


def changed_inputs(before: Mapping[str, Fingerprint], now: Mapping[str, Fingerprint]) -> Changes:
    """The inputs of ``before`` that are not the same now. The path does not count, only what is there."""
    missing: Fingerprint = {"name": "nothing", "files": {}}
    return {key: (old, now.get(key, missing)) for key, old in before.items() if not _same_input(old, now.get(key, missing))}


def check_unchanged(before: Mapping[str, Fingerprint], now: Mapping[str, Fingerprint]) -> None:
    """Checks that no input changed while it was read: the fingerprints would not be those of what was read.

    Raises:
        UsageError: an input is not the same.
    """
    if changes := changed_inputs(before, now):
        raise UsageError(
            f"a file changed while it was read: {describe_changes(changes)}", hint="wait until nobody writes it, then start again"
        )


def _same_input(old: Fingerprint, new: Fingerprint) -> bool:
    if "commit" in old and "commit" in new and None in (old["commit"], new["commit"]):
        return True  # a copy that is not in the cache has no commit yet
    return {**old, "name": ""} == {**new, "name": ""}


def describe_changes(changes: Changes) -> str:
    """One sentence about each change: the key, what changed, and the two fingerprints."""
    return "; ".join(f"{key}: {_describe_change(old, new)}" for key, (old, new) in changes.items())


def _describe_change(old: Fingerprint, new: Fingerprint) -> str:
    if "files" not in old or "files" not in new:
        return f"{old['name']} ({_short(old)}) is now {new['name']} ({_short(new)})"
    was, now = old["files"], new["files"]
    names = [name for name in {**was, **now} if was.get(name) != now.get(name)]
    file = Path(new["name"] if now else old["name"], names[0])
    digests = [f"SHA-256 {(files[names[0]] or 'none')[:12]}" if names[0] in files else "missing" for files in (was, now)]
    more = f", and so with {len(names) - 1} more of its files" if len(names) > 1 else ""
    return f"{file} was {digests[0]}, now {digests[1]}{more}"


def _short(value: Fingerprint) -> str:
    """The commit, the options or the number of files of an input."""
    if "commit" in value:
        return f"commit {(value['commit'] or 'not known')[:12]}"
    return str(value["options"]) if "options" in value else f"{len(value['files'])} files"
