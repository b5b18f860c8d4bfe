"""What pydantic complains about, in the words of whoever wrote the config."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from gotr1_core.errors import UsageError


def explain(error: ValidationError, data: Any, known: Sequence[str], *, prefix: str = "", see: str) -> UsageError:
    """The first complaint as an error that names the nearest of the known keys, else what to ``see``."""
    first = error.errors(include_url=False)[0]
    key = ".".join(_place(first["loc"], data, missing=first["type"] == "missing"))
    where = f"{prefix}{key}".rstrip(".")
    if first["type"] == "extra_forbidden":
        last = key.rpartition(".")[2]
        # A slip of a letter, or the right key in the wrong place; else whatever is nearest.
        near = [*difflib.get_close_matches(key, known, 1, cutoff=0.85), *[k for k in known if k.rpartition(".")[2] == last][:1]]
        near = list(dict.fromkeys(near)) or difflib.get_close_matches(key, known, 1, cutoff=0.4)
        meant = " or ".join(prefix + k for k in near)
        return UsageError(f"unknown key {where}", hint=f"did you mean {meant}?" if near else see)
    # Without the names of classes.
    message = " ".join(first["msg"].removeprefix("Value error, ").partition(" for <class")[0].split())
    if first["type"] == "model_type":
        component = first.get("ctx", {}).get("class_name") in ("ComponentConfig", "JudgeConfig")
        message = "Input should be a name, or a mapping with a name" if component else "Input should be a mapping of keys to values"
    given = repr(first["input"])
    shown = "" if first["type"] == "missing" else f", not {given if len(given) <= 100 else given[:99] + '…'}"
    return UsageError(f"{where}: {message}{shown}", hint=see)


def _place(location: Sequence[str | int], data: Any, *, missing: bool) -> list[str]:
    """The keys of a complaint's place. Between them pydantic puts the members of unions, which are in nobody's config."""
    place: list[str] = []
    here = data
    for number, part in enumerate(location, start=1):
        inside = part in here if isinstance(here, Mapping) else isinstance(here, list) and isinstance(part, int) and part < len(here)
        if inside:
            here = here[part]
        elif not missing or number < len(location):
            continue
        place.append(str(part))
    return place


def keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """All dotted keys of a model; a component's options are not among them."""
    found = []
    for name, field in model.model_fields.items():
        found.append(prefix + name)
        kinds = (field.annotation, *getattr(field.annotation, "__args__", ()))
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel) and kind.model_config.get("extra") != "allow":
                found += keys(kind, f"{prefix}{name}.")
    return found
