"""Checks of presets: the config is right, with every variant; what it names is there and is shipped with it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gotr1_core.components.build import is_unified
from gotr1_core.components.preflight import check, preflight_prompts
from gotr1_core.components.prompts import own_prompts, prompts_of
from gotr1_core.config.merge import ANY, VARIANTS, merge_layers, read_yaml
from gotr1_core.config.models import ComponentConfig, RunConfig, validate
from gotr1_core.config.paths import change_texts
from gotr1_core.errors import UsageError
from gotr1_core.hookspecs import Kind
from gotr1_core.plugins import Registry, load
from gotr1_testing.check import Check, Measured, NotRun

NEEDED = ("planner", "renderer", "judge")


@dataclass(frozen=True)
class PresetSubject:
    """A preset by its name, among the registered plugins."""

    name: str
    registry: Registry

    @cached_property
    def file(self) -> Path:
        """The preset's YAML file."""
        return self.registry.preset(self.name)

    @cached_property
    def data(self) -> dict[str, Any]:
        """What the file says, with its variants."""
        return read_yaml(self.file)

    @property
    def variants(self) -> Iterator[tuple[str, str]]:
        """Kind and name of every variant."""
        for kind, parts in self.data.get(VARIANTS, {}).items():
            yield from ((kind, name) for name in parts)

    @property
    def missing(self) -> list[str]:
        """What the preset leaves to the user, of all that a run needs."""
        prompts = self.data.get("prompts") or {}
        return [kind for kind in NEEDED if kind not in self.data] + ([] if {"source", "file"} & {*prompts} else ["prompts"])

    def config(self, **chosen: str) -> RunConfig:
        """The config with ``chosen`` components by kind. Components that the preset leaves to the user are called ``none``.

        Raises:
            UsageError: it is no config.
        """
        merged = merge_layers(self.data, chosen)
        return validate(RunConfig, {**dict.fromkeys(NEEDED, "none"), **merged})


def is_a_config(preset: PresetSubject) -> Measured:
    """The preset is a run's config, and so it is with each of its variants."""
    problems = [] if (problem := _problem(preset)) is None else [problem]
    problems += [problem for kind, name in preset.variants if (problem := _problem(preset, **{kind: name})) is not None]
    return _count(problems, f"of {1 + len([*preset.variants])} configs are wrong")


def _problem(preset: PresetSubject, **chosen: str) -> str | None:
    try:
        preset.config(**chosen)
    except UsageError as error:
        return f"{_title(chosen)}{error.message}"
    return None


def _title(chosen: Mapping[str, str]) -> str:
    return "".join(f"{kind} {name}: " for kind, name in chosen.items())


def _count(problems: list[str], what: str) -> Measured:
    return Measured(len(problems), 0.0, f"{what}{f': {problems[0]}' if problems else ''}")


def dry_run_passes(preset: PresetSubject) -> Measured:
    """What a dry run checks: names, options, the reward, prompts, sizes, and that the weights are there.

    Also with each variant of a component that has a name.
    """
    if preset.missing:
        raise NotRun(f"it leaves to the user: {', '.join(preset.missing)}")
    choices: list[dict[str, str]] = [{}, *({kind: name} for kind, name in preset.variants if name != ANY)]
    configs = {_title(chosen): preset.config(**chosen) for chosen in choices}
    open_options = {title: names for title, config in configs.items() if (names := _open_options(preset.registry, config))}
    problems = []
    for title, config in configs.items():
        if title in open_options:
            continue
        try:
            check(preset.registry, config)
            source, held_out = prompts_of(preset.registry, config.prompts)
            preflight_prompts(preset.registry, config, own_prompts(source), held_out)
        except UsageError as error:
            problems.append(f"{title}{error.message}")
    skipped = "".join(f"; {title}left to the user: {', '.join(names)}" for title, names in open_options.items())
    return _count(problems, f"of {len(configs) - len(open_options)} dry runs fail{skipped}")


def _open_options(registry: Registry, config: RunConfig) -> list[str]:
    """Options of planner and renderer that have no default and are not given, and keys of judges' servers that the environment lacks."""
    roles: tuple[tuple[Kind, ComponentConfig], ...] = (("planner", config.planner), ("renderer", config.renderer))
    if is_unified(registry, config):
        roles = roles[:1]
    found = []
    for role, component in roles:
        model = registry.find(role, component.name).component.options
        fields = load(model).model_fields if model else {}
        found += [f"{role}.{name}" for name, field in fields.items() if field.is_required() and name not in component.options]
    for judge in config.judge:
        model = registry.find("judge", judge.name).component.options
        key = getattr(validate(load(model), judge.options), "key_name", None) if model else None
        found += [f"the environment variable {key}"] if key and key not in os.environ else []
    return found


def files_are_shipped(preset: PresetSubject) -> Measured:
    """The files that it names below its own folder are there, and lie in the package, so that the wheel has them."""
    package, here = preset.file.parent, str(preset.file.parent.resolve())
    while (package.parent / "__init__.py").is_file():
        package = package.parent
    named: list[str] = []
    change_texts(preset.data, lambda _, text: named.append(text) if text.startswith(here) else None)
    if not named:
        raise NotRun("it names no files of its own (${HERE}/…)")
    outside = [text for text in named if not Path(text).exists() or package.resolve() not in Path(text).resolve().parents]
    return _count(outside, f"of {len(set(named))} files are missing, or outside the package {package.name}")


PRESET = (
    Check("is-a-config", "it is a config, with each of its variants", is_a_config),
    Check("files-are-shipped", "the files that it names are in its package", files_are_shipped),
    Check("dry-run-passes", "a dry run passes, with each of its variants", dry_run_passes),
)
