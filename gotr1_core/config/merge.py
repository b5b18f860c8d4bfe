"""Merges YAML files, presets with their variants, and KEY=VALUE words into one mapping. Later layers win. ``models.py`` checks it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import reduce
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from gotr1_core.config.messages import shown
from gotr1_core.config.paths import check_regular
from gotr1_core.config.yaml_text import DEEPEST, LARGEST, NotYaml, parse_yaml
from gotr1_core.errors import UsageError


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
ANY = "*"
"""The NAME of a variant for every component that has none of its own, the preset's component excepted."""


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
        own = {str(_single_component(preset.get(kind)).get("name")).rpartition(":")[2], "None"}
        variant = variants.get(name) or (variants.get(ANY) if name not in own else None)
        if variant is not None:
            base = merge(merge(base, {kind: component["name"]}), variant)
            if isinstance(base[kind], list):
                changes = [_options_under_name(reduce(merge, changes, {}), kind, base[kind])]
    return reduce(merge, changes, base)


def _single_component(value: Any) -> Mapping[str, Any]:
    """The component in ``value``, if it is one component or a list of one; else an empty mapping."""
    component = as_component(value[0] if isinstance(value, list) and len(value) == 1 else value)
    return component if isinstance(component, Mapping) else {}


def _options_under_name(layer: Mapping[str, Any], kind: str, components: Sequence[Any]) -> dict[str, Any]:
    """Moves the options of a layer's only component under its name, so that they do not replace the whole list of a variant.

    Options that are under the name of one of the list's ``components`` already stay there.
    """
    component = _single_component(layer.get(kind))
    if "name" not in component:
        return dict(layer)
    labels = {label_of(item) for item in map(as_component, components) if isinstance(item, Mapping)}
    named = {key: value for key, value in component.items() if key in labels and isinstance(value, Mapping)}
    own = {key: value for key, value in component.items() if key != "name" and key not in named}
    options = merge({component["name"]: own} if own else {}, named)
    return {key: value for key, value in layer.items() if key != kind} | ({kind: options} if options else {})


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
    ``${PACKAGE:NAME}`` in a value is the folder of a Python package.

    Raises:
        UsageError: a word is not valid text or not KEY=VALUE, or its value is not YAML, or names a package that is not installed.
    """
    pairs = []
    for word in words:
        if any("\ud800" <= letter <= "\udfff" for letter in word):  # Python's stand-in for bytes that are not text
            raise UsageError(
                f"{shown(word)} is not valid text", hint="write it in UTF-8, in a terminal that has it, such as LC_ALL=C.UTF-8"
            )
        key, sign, value = word.partition("=")
        if not sign or not key:
            raise UsageError(f"{shown(word)} is not KEY=VALUE", hint="for example steps=20 or planner.model=PATH")
        path = key.split(".")
        if len(path) > DEEPEST:
            raise UsageError(f"the key {shown(key)} has more than {DEEPEST} parts", hint="see `gotr1 config schema`")
        try:
            pairs.append((path, _replace_folders(parse_yaml(value))))
        except NotYaml as error:
            first = next(iter(value.splitlines()), "").strip()
            raise UsageError(f"the value of {key[:80]} is not YAML: {first[:80]} ({error})", hint="quote it") from None
    tree: dict[str, Any] = {}
    for path, parsed in sorted(pairs, key=lambda pair: len(pair[0])):
        for key in reversed(path):
            parsed = {key: parsed}
        tree = merge(tree, parsed)
    return tree


_PACKAGE = re.compile(r"\$\{PACKAGE:([^}]*)\}")


def _replace_folders(value: Any, folder: str = "${HERE}") -> Any:
    """Replaces ``${HERE}`` and ``${PACKAGE:NAME}`` in every text of a parsed value, so that no folder's name is read as YAML."""
    if isinstance(value, str):  # split, not replaced in two passes: a folder's name may look like one of the two
        return "".join(package_folder(p) if i % 2 else p.replace("${HERE}", folder) for i, p in enumerate(_PACKAGE.split(value)))
    if isinstance(value, list):
        return [_replace_folders(v, folder) for v in value]
    return {k: _replace_folders(v, folder) for k, v in value.items()} if isinstance(value, dict) else value


def package_folder(name: str) -> str:
    """The folder of an installed package. Python finds a top-level package without importing it, so a dotted name is refused.

    Raises:
        UsageError: no such package is installed, or it has several folders.
    """
    try:
        spec = find_spec(name) if name.isidentifier() else None
    except ValueError:  # a module that was not made by an import
        spec = None
    folders = list(spec.submodule_search_locations or []) if spec is not None else []
    if len(folders) != 1:  # a package without __init__.py may have several
        hint = "install it, or correct the name; write ${PACKAGE:gotr1_scenes}/weights/janus for a folder inside a package"
        raise UsageError(f"${{PACKAGE:NAME}}: no package {shown(name)} is installed", hint=hint)
    return str(Path(folders[0]).resolve())


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. In texts, ``${HERE}`` becomes the file's own folder, and ``${PACKAGE:NAME}`` that of a Python package.

    Raises:
        UsageError: the file cannot be read, is not YAML, or is not a mapping; or a package is not installed.
    """
    try:
        check_regular(path)
        with path.open(encoding="utf-8-sig") as file:
            data = _replace_folders(parse_yaml(file.read(LARGEST + 1)), str(path.parent.resolve()))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", hint="give the path of a YAML file") from None
    except ValueError as error:  # also a null character in the path
        reason = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error
        raise UsageError(f"{path} is not YAML: {reason}", hint="`gotr1 config show` prints a config") from None
    if not isinstance(data, dict):
        raise UsageError(f"{path} is not a mapping of keys to values", hint="`gotr1 config show` prints a config")
    return data
