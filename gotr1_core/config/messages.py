"""Turns pydantic's validation errors into errors about the user's own keys."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from gotr1_core.errors import UsageError


def explain(error: ValidationError, data: Any, known: Sequence[str], *, prefix: str = "", see: str) -> UsageError:
    """The first error that pydantic found in ``data``, as a :class:`UsageError` for the caller to raise.

    If a key is unknown, the hint names the nearest of the ``known`` dotted keys. Otherwise the hint is ``see``. ``prefix`` stands
    before every key in the message, such as ``judge.``.
    """
    first = error.errors(include_url=False)[0]
    key = ".".join(_config_path(first["loc"], data, missing=first["type"] == "missing"))
    where = f"{prefix}{key}".rstrip(".")
    if first["type"] == "extra_forbidden":
        last = key.rpartition(".")[2]
        # First a typo or a valid key in the wrong place, then any similar key.
        near = [*difflib.get_close_matches(key, known, 1, cutoff=0.85), *[k for k in known if k.rpartition(".")[2] == last][:1]]
        near = list(dict.fromkeys(near)) or difflib.get_close_matches(key, known, 1, cutoff=0.4)
        suggestions = " or ".join(prefix + k for k in near)
        return UsageError(f"unknown key {where}", hint=f"did you mean {suggestions}?" if near else see)
    # pydantic's message without the names of our classes
    message = " ".join(first["msg"].removeprefix("Value error, ").partition(" for <class")[0].split())
    if first["type"] == "model_type":
        component = first.get("ctx", {}).get("class_name") in ("ComponentConfig", "JudgeConfig")
        message = "Input should be a name, or a mapping with a name" if component else "Input should be a mapping of keys to values"
    value = repr(first["input"])
    suffix = "" if first["type"] == "missing" else f", not {value if len(value) <= 100 else value[:99] + '…'}"
    return UsageError(f"{where}: {message}{suffix}", hint=see)


def _config_path(location: Sequence[str | int], data: Any, *, missing: bool) -> list[str]:
    """The keys in an error's location. The location also has names of union members, which stand in no config; they are left out."""
    path: list[str] = []
    value = data
    for number, key in enumerate(location, start=1):
        exists = key in value if isinstance(value, Mapping) else isinstance(value, list) and isinstance(key, int) and key < len(value)
        if exists:
            value = value[key]
        elif not missing or number < len(location):
            continue
        path.append(str(key))
    return path


def dotted_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """All dotted keys of a model, without the options of components."""
    dotted = []
    for name, field in model.model_fields.items():
        dotted.append(prefix + name)
        types = (field.annotation, *getattr(field.annotation, "__args__", ()))
        for nested in types:
            if isinstance(nested, type) and issubclass(nested, BaseModel) and nested.model_config.get("extra") != "allow":
                dotted += dotted_keys(nested, f"{prefix}{name}.")
    return dotted
