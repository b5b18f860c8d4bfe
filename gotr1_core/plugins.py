"""Finds plugins, keeps broken ones apart, and makes components of names."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from gotr1_core import hookspecs
from gotr1_core.errors import Gotr1Error, UsageError
from gotr1_core.hookspecs import KINDS, Component, Kind

GROUP = "gotr1"


@dataclass(frozen=True)
class Provided:
    """A component and the distribution, with its version, that provides it."""

    component: Component
    distribution: str
    version: str


@dataclass(frozen=True)
class Broken:
    """A plugin that could not be loaded, and why."""

    name: str
    distribution: str
    error: str


class Registry:
    """All plugins of this installation, each loaded inside its own ``try``."""

    def __init__(self, points: Iterable[EntryPoint] | None = None) -> None:
        self.manager = pluggy.PluginManager("gotr1")
        self.manager.add_hookspecs(hookspecs)
        self.provided: list[Provided] = []
        self.broken: list[Broken] = []
        for point in sorted(entry_points(group=GROUP) if points is None else points, key=lambda p: p.name):
            self._load(point)

    def _load(self, point: EntryPoint) -> None:
        distribution = point.dist.name if point.dist else point.name
        version = point.dist.version if point.dist else ""
        try:
            self.add(point.load(), distribution, version)
        except (Exception, SystemExit) as error:  # a third party's code may raise anything, and must not take the command line down
            shown = " ".join(f"{type(error).__name__}: {error}".split())  # one line, whatever it says
            self.broken.append(Broken(point.name, distribution, shown))
            print(f"warning: plugin {point.name} of {distribution} does not load: {shown}", file=sys.stderr)

    def add(self, plugin: object, distribution: str, version: str = "") -> None:
        """Registers a plugin, a module or an object with hooks."""
        implementation = getattr(plugin, "gotr1_components", None)
        try:
            self.manager.register(plugin)  # not under the distribution's name: one may have several plugins
            self.manager.check_pending()  # a hook that does not exist, such as a misspelt one
            found = [Provided(c, distribution, version) for c in (implementation() if implementation else ())]
            wrong = [p.component for p in found if not _is_component(p.component)]
            if wrong:
                raise TypeError(f"registers {wrong[0]!r}, which is no Component")
        except (Exception, SystemExit):
            if self.manager.is_registered(plugin):  # pluggy keeps what it had accepted before it found a wrong hook
                self.manager.unregister(plugin)
            raise
        self.provided += found

    def of_kind(self, kind: Kind) -> list[Provided]:
        """What is provided of a kind, by name."""
        return sorted((p for p in self.provided if p.component.kind == kind), key=lambda p: p.component.name)

    def find(self, kind: Kind, name: str) -> Provided:
        """The component of a name, or of ``distribution:name`` where two plugins claim a name."""
        distribution, _, bare = name.rpartition(":")
        found = [p for p in self.of_kind(kind) if p.component.name == bare and distribution in ("", p.distribution)]
        if len(found) == 1:
            return found[0]
        if found:
            both = " or ".join(f"{p.distribution}:{bare}" for p in found)
            raise UsageError(f"more than one plugin provides the {kind} {bare!r}", hint=f"say {both}")
        names = [p.component.name for p in self.of_kind(kind)]
        near = difflib.get_close_matches(bare, names, 1)
        offered = f"did you mean {near[0]!r}? " if near else ""
        raise UsageError(f"there is no {kind} {name!r}", hint=f"{offered}known: {', '.join(names) or 'none; install a plugin'}")

    def preset(self, name: str) -> Path:
        """The YAML file of a preset."""
        package, _, path = self.find("preset", name).component.target.partition(":")
        module = _module(package)
        assert module.__file__ is not None
        return Path(module.__file__).parent / path


def _is_component(thing: object) -> bool:
    """Whether a plugin's word can be taken for it: nothing looks into a component again before it is used."""
    if not isinstance(thing, Component) or thing.kind not in KINDS:
        return False
    return all(isinstance(part, str) for part in (thing.name, thing.target, thing.options or "", thing.summary)) and ":" in thing.target


def load(target: str) -> Any:
    """The object that ``module:name`` names."""
    module, _, name = target.partition(":")
    try:
        return getattr(_module(module), name)
    except AttributeError as error:
        raise Gotr1Error(f"{target} cannot be loaded: {error}", hint=_REINSTALL) from error


_REINSTALL = "install the plugin that provides it again, with what it depends on"


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Gotr1Error(f"{name} cannot be imported: {error}", hint=_REINSTALL) from error


def options_of(component: Component, given: Mapping[str, Any]) -> Any:
    """A component's options, checked against its model."""
    from pydantic import ValidationError

    if component.options is None:
        if given:
            raise UsageError(f"{component.kind} {component.name!r} has no options, but {', '.join(given)} was given")
        return None
    model = load(component.options)
    try:
        return model.model_validate(dict(given))
    except ValidationError as error:
        message, hint = describe(error, f"{component.kind}.", list(model.model_fields))
        raise UsageError(message, hint=hint) from None


def describe(error: Any, prefix: str, fields: list[str]) -> tuple[str, str]:
    """Message and hint for the first complaint of a pydantic ValidationError."""
    first = error.errors(include_url=False)[0]
    where = prefix + ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(first["loc"][-1]), fields, 1)
        return f"unknown key {where}", f"did you mean {prefix}{near[0]}?" if near else f"known: {', '.join(fields)}"
    shown = "" if first["type"] == "missing" else f", not {first['input']!r}"
    return f"{where}: {first['msg']}{shown}", "see `gotr1 train --help` and the options in the plugin's README"
