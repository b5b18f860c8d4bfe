"""What a config is made of before it is checked: YAML files, presets with their variants, KEY=VALUE words, each over what comes before."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import TypeAdapter, ValidationError

from gotr1_core.errors import UsageError, first_line


def named(value: Any) -> Any:
    """A component given by its name alone, as a mapping; anything else as it is."""
    return {"name": value} if isinstance(value, str) else value


def label_of(component: Mapping[str, Any]) -> str:
    """What a component of a list is called there: ``as`` what it is to be known, else its name, without the distribution before a colon."""
    return str(component.get("as", component.get("name"))).rpartition(":")[2]


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` laid over ``base``, mappings into mappings. A component of another name takes nothing from the one it replaces.

    Over a list of components options go to the only one, or to those whose names they stand under: ``judge.NAME.KEY=VALUE``. A judge's
    name is what it is to be known ``as``, if that is given.
    """
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, list) and isinstance(value, Mapping) and value and "name" not in value:
            merged[key] = _into(key, [named(item) for item in old], value)
            continue
        if isinstance(old, str) and isinstance(value, Mapping):
            old = {"name": old}  # a component given by its name alone, and now its options
        if isinstance(old, Mapping) and isinstance(value, str) and "name" in old:
            value = old if old["name"] == value else {"name": value}
        elif isinstance(old, Mapping) and isinstance(value, Mapping):
            renamed = "name" in value and "name" in old and value["name"] != old["name"]
            value = dict(value) if renamed else merge(old, value)
        merged[key] = value
    return merged


def _into(key: str, listed: Sequence[Any], options: Mapping[str, Any]) -> list[Any]:
    """Options laid over components of a list."""
    names = [label_of(item) if isinstance(item, Mapping) else "" for item in listed]
    if all(name in names and isinstance(own, Mapping) for name, own in options.items()):
        return [merge(item, options.get(name, {})) if isinstance(item, Mapping) else item for name, item in zip(names, listed, strict=True)]
    if len(listed) == 1 and isinstance(listed[0], Mapping):
        return [merge(listed[0], options)]
    given = next(iter(options))
    raise UsageError(f"{key}.{given}: there are {len(listed)} of {key}", hint=f"say which one: {key}.NAME.KEY=…, of {', '.join(names)}")


VARIANTS = "variants"
"""What a preset says for other components than its own: ``variants.KIND.NAME`` is a part of a config."""


def layered(preset: Mapping[str, Any], *over: Mapping[str, Any]) -> dict[str, Any]:
    """A preset with what is laid over it, each over what comes before.

    Where the planner, renderer or algorithm asked for has a variant of the preset, that is laid over the preset first, as if it had named
    the component itself; so has the judge, where one is asked for. A variant may name other judges beside it.
    """
    base = {key: value for key, value in preset.items() if key != VARIANTS}
    asked, layers = reduce(merge, over, base), list(over)
    for kind, variants in _variants(preset).items():
        only = _only(asked.get(kind))
        name = str(only.get("name")).rpartition(":")[2]
        if name in variants:
            base = merge(merge(base, {kind: only["name"]}), variants[name])
            if isinstance(base[kind], list):
                layers = [_into_variant(layer, kind) for layer in layers]
    return reduce(merge, layers, base)


def _only(value: Any) -> Mapping[str, Any]:
    """The component that stands there alone, if one does."""
    only = named(value[0] if isinstance(value, list) and len(value) == 1 else value)
    return only if isinstance(only, Mapping) else {}


def _into_variant(layer: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The options of a layer's only component under its name, so that what a variant lists beside it stays."""
    only = _only(layer.get(kind))
    if "name" not in only:
        return dict(layer)
    options = {key: value for key, value in only.items() if key != "name"}
    return {key: value for key, value in layer.items() if key != kind} | ({kind: {only["name"]: options}} if options else {})


_Variants = TypeAdapter(dict[Literal["planner", "renderer", "judge", "algorithm"], dict[str, dict[str, Any]]])


def _variants(preset: Mapping[str, Any]) -> dict[Any, dict[str, dict[str, Any]]]:
    """By kind and name."""
    try:
        return _Variants.validate_python(preset.get(VARIANTS, {}))
    except ValidationError:
        raise UsageError(f"{VARIANTS}: not what a preset may say", hint="{planner: {NAME: {KEY: VALUE}}}, or of a renderer") from None


def overrides(words: Sequence[str]) -> dict[str, Any]:
    """``a.b=VALUE`` words as nested mappings; split at the first ``=``, values read as YAML.

    Of two words for one key the later holds. ``a=NAME`` counts before ``a.b=VALUE`` wherever it stands, so that a component does
    not lose the options given with it.
    """
    pairs = []
    for word in words:
        key, sign, value = word.partition("=")
        if not sign or not key:
            raise UsageError(f"{word!r} is not KEY=VALUE", hint="for example steps=20 or planner.model=PATH")
        try:
            pairs.append((key.split("."), _load(value)))
        except _NOT_YAML as error:
            raise UsageError(f"the value of {key} is not YAML: {_first_line(value)} ({_problem(error)})", hint="quote it") from None
    tree: dict[str, Any] = {}
    for path, read in sorted(pairs, key=lambda pair: len(pair[0])):
        for part in reversed(path):
            read = {part: read}
        tree = merge(tree, read)
    return tree


# ValueError comes from scalars that only look right, such as 0x_; RecursionError from thousands of brackets.
_NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)


def _problem(error: Exception) -> str:
    """What is wrong with a text that should be YAML, in one line."""
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
    """YAML 1.1, but 1e-4 is a number although it has no dot, dates, "no" and "off" stay texts, and a key stands there once."""

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


def _load(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)


def _placed(value: Any, here: str) -> Any:
    """``${HERE}`` replaced in every text; after reading, so that no folder's name can be taken for YAML."""
    if isinstance(value, str):
        return value.replace("${HERE}", here)
    if isinstance(value, list):
        return [_placed(v, here) for v in value]
    return {k: _placed(v, here) for k, v in value.items()} if isinstance(value, dict) else value


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping from a file; ``${HERE}`` in it is the file's own folder."""
    try:
        data = _placed(_load(path.read_text(encoding="utf-8-sig")), str(path.parent.resolve()))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", hint="give the path of a YAML file") from None
    except _NOT_YAML as error:
        raise UsageError(f"{path} is not YAML: {_problem(error)}", hint="`gotr1 config show` prints a config") from None
    if not isinstance(data, dict):
        raise UsageError(f"{path} is not a mapping of keys to values", hint="`gotr1 config show` prints a config")
    return data
