"""Merges YAML files, presets with their variants, and KEY=VALUE words into one mapping. Later layers win. ``models.py`` checks it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import TypeAdapter, ValidationError

from gotr1_core.errors import UsageError, first_line


def as_component(value: Any) -> Any:
    """A component that is only a name becomes ``{"name": name}``. Every other value is returned unchanged."""
    return {"name": value} if isinstance(value, str) else value


def label_of(component: Mapping[str, Any]) -> str:
    """The label of a component in a list: its ``as``, else its name, without the distribution before a colon."""
    return str(component.get("as", component.get("name"))).rpartition(":")[2]


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merges ``over`` into ``base``, nested mappings too. A component with another name takes no options from the one it replaces.

    Where ``base`` has a list of components, options go to its only component, or to the components that they name:
    ``judge.NAME.KEY=VALUE``. A judge's NAME is its ``as``, if it has one.
    """
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, list) and isinstance(value, Mapping) and value and "name" not in value:
            merged[key] = _merge_into_list(key, [as_component(item) for item in old], value)
            continue
        if isinstance(old, str) and isinstance(value, Mapping):
            old = {"name": old}  # the component was only a name so far; now it gets options
        if isinstance(old, Mapping) and isinstance(value, str) and "name" in old:
            value = old if old["name"] == value else {"name": value}
        elif isinstance(old, Mapping) and isinstance(value, Mapping):
            renamed = "name" in value and "name" in old and value["name"] != old["name"]
            value = dict(value) if renamed else merge(old, value)
        merged[key] = value
    return merged


def _merge_into_list(key: str, components: Sequence[Any], options: Mapping[str, Any]) -> list[Any]:
    """Merges options into the components of a list."""
    labels = [label_of(item) if isinstance(item, Mapping) else "" for item in components]
    if all(label in labels and isinstance(value, Mapping) for label, value in options.items()):
        pairs = zip(labels, components, strict=True)
        return [merge(item, options.get(label, {})) if isinstance(item, Mapping) else item for label, item in pairs]
    if len(components) == 1 and isinstance(components[0], Mapping):
        return [merge(components[0], options)]
    first = next(iter(options))
    hint = f"say which one: {key}.NAME.KEY=…; NAME is one of {', '.join(labels)}"
    raise UsageError(f"{key}.{first}: the config has {len(components)} components under {key}", hint=hint)


VARIANTS = "variants"
"""The key of a preset for components other than its own: ``variants.KIND.NAME`` is a part of a config."""


def merge_layers(preset: Mapping[str, Any], *layers: Mapping[str, Any]) -> dict[str, Any]:
    """A preset merged with layers, in their order.

    The layers together choose a planner, renderer, algorithm and judge. If the preset has a variant for a chosen component, the variant
    is merged into the preset first, as if the preset had named that component itself. For a judge this holds only where there is one
    judge; its variant may list more judges beside it.
    """
    base = {key: value for key, value in preset.items() if key != VARIANTS}
    merged, changes = reduce(merge, layers, base), list(layers)
    for kind, variants in _read_variants(preset).items():
        component = _single_component(merged.get(kind))
        name = str(component.get("name")).rpartition(":")[2]
        if name in variants:
            base = merge(merge(base, {kind: component["name"]}), variants[name])
            if isinstance(base[kind], list):
                changes = [_options_under_name(layer, kind) for layer in changes]
    return reduce(merge, changes, base)


def _single_component(value: Any) -> Mapping[str, Any]:
    """The component in ``value``, if it is one component or a list of one; else an empty mapping."""
    component = as_component(value[0] if isinstance(value, list) and len(value) == 1 else value)
    return component if isinstance(component, Mapping) else {}


def _options_under_name(layer: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Moves the options of a layer's only component under its name, so that they do not replace the whole list of a variant."""
    component = _single_component(layer.get(kind))
    if "name" not in component:
        return dict(layer)
    options = {key: value for key, value in component.items() if key != "name"}
    return {key: value for key, value in layer.items() if key != kind} | ({kind: {component["name"]: options}} if options else {})


_Variants = TypeAdapter(dict[Literal["planner", "renderer", "judge", "algorithm"], dict[str, dict[str, Any]]])


def _read_variants(preset: Mapping[str, Any]) -> dict[Any, dict[str, dict[str, Any]]]:
    """A preset's variants by kind and name."""
    try:
        return _Variants.validate_python(preset.get(VARIANTS, {}))
    except ValidationError:
        hint = "write {planner: {NAME: {KEY: VALUE}}}; renderer, judge and algorithm go the same way"
        raise UsageError(f"{VARIANTS}: this is not a mapping of variants", hint=hint) from None


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """``a.b=VALUE`` words as nested mappings. Words are split at the first ``=``; values are read as YAML.

    If two words set one key, the later one wins. ``a=NAME`` is merged before ``a.b=VALUE`` in any order, so a component keeps its options.

    Raises:
        UsageError: a word is not KEY=VALUE, or its value is not YAML.
    """
    pairs = []
    for word in words:
        key, sign, value = word.partition("=")
        if not sign or not key:
            raise UsageError(f"{word!r} is not KEY=VALUE", hint="for example steps=20 or planner.model=PATH")
        try:
            pairs.append((key.split("."), yaml.load(value, Loader=_Loader)))
        except _NOT_YAML as error:
            raise UsageError(f"the value of {key} is not YAML: {_first_line(value)} ({_yaml_problem(error)})", hint="quote it") from None
    tree: dict[str, Any] = {}
    for path, parsed in sorted(pairs, key=lambda pair: len(pair[0])):
        for key in reversed(path):
            parsed = {key: parsed}
        tree = merge(tree, parsed)
    return tree


# ValueError: scalars such as 0x_, which look like numbers and are not. RecursionError: thousands of brackets.
_NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)


def _yaml_problem(error: Exception) -> str:
    """Says in one line why a text is not YAML."""
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8 text"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark:
        return f"{error.problem}, line {error.problem_mark.line + 1}"
    return first_line(error)


def _first_line(text: str) -> str:
    return text.splitlines()[0] if text.strip() else text.strip()


class _Loader(yaml.SafeLoader):
    """YAML 1.1 with four changes: 1e-4 is a number without a dot; dates stay text; "no" and "off" stay text; a repeated key is an error."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} is there twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return node


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":bool"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


def _replace_here(value: Any, folder: str) -> Any:
    """Replaces ``${HERE}`` in every text of a parsed value. It runs after parsing, so that no folder's name is read as YAML."""
    if isinstance(value, str):
        return value.replace("${HERE}", folder)
    if isinstance(value, list):
        return [_replace_here(v, folder) for v in value]
    return {k: _replace_here(v, folder) for k, v in value.items()} if isinstance(value, dict) else value


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. ``${HERE}`` in a text becomes the file's own folder.

    Raises:
        UsageError: the file cannot be read, is not YAML, or is not a mapping.
    """
    try:
        data = _replace_here(yaml.load(path.read_text(encoding="utf-8-sig"), Loader=_Loader), str(path.parent.resolve()))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", hint="give the path of a YAML file") from None
    except _NOT_YAML as error:
        raise UsageError(f"{path} is not YAML: {_yaml_problem(error)}", hint="`gotr1 config show` prints a config") from None
    if not isinstance(data, dict):
        raise UsageError(f"{path} is not a mapping of keys to values", hint="`gotr1 config show` prints a config")
    return data
