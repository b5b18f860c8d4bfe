"""Finds plugins, isolates broken ones, and finds components by name.

Three environment variables choose which installed plugins load:

- ``GOTR1_PLUGINS``: only these, by entry point or distribution, separated by commas; empty means none.
- ``GOTR1_DISABLE_PLUGINS``: all but these.
- ``GOTR1_STRICT_PLUGINS=1``: a broken plugin is an error instead of a warning.

Files given to :meth:`Registry.add_file` load in any case.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from operator import attrgetter
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pluggy

from gotr1_core import hookspecs
from gotr1_core.border.discovery import WITHOUT, HookCall, allowed_points, distribution_of, load_plugin_file, plugin_error, raised_by_plugin
from gotr1_core.border.registration import component_problem, hook_problem
from gotr1_core.engine.console import print
from gotr1_core.errors import Gotr1Error, UsageError, nearest, one_line, place_of
from gotr1_core.hookspecs import Component, Kind

STRICT = "GOTR1_STRICT_PLUGINS"


@dataclass(frozen=True)
class Provided:
    """A component, with the distribution and version that provide it."""

    component: Component
    distribution: str
    version: str

    @property
    def facts(self) -> dict[str, Any]:
        """Kind, name, distribution, version and summary, for JSON."""
        c = self.component
        return {"kind": c.kind, "name": c.name, "distribution": self.distribution, "version": self.version, "summary": c.summary}


@dataclass(frozen=True)
class Plugin:
    """A loaded plugin: an entry point of a distribution, or a file with its hash as version. ``hooks`` are those it implements."""

    name: str
    distribution: str
    version: str
    components: tuple[Component, ...]
    hooks: tuple[str, ...]

    @property
    def id(self) -> str:
        """Its name in pluggy. A distribution may have several plugins."""
        return f"{self.distribution}:{self.name}"


@dataclass(frozen=True)
class Broken:
    """A plugin that could not be loaded, or whose commands could not, with the reason."""

    name: str
    distribution: str
    error: str


class Registry:
    """All plugins of this installation, each loaded inside its own ``try``.

    With ``config_plugins=False``, files that a config or a run names are not loaded; ``left_out`` lists them.
    """

    def __init__(self, points: Iterable[EntryPoint] | None = None, *, config_plugins: bool = True) -> None:
        self.config_plugins, self.left_out = config_plugins, list[Path]()
        self.manager = pluggy.PluginManager("gotr1")
        self.manager.add_hookspecs(hookspecs)
        self.loaded: list[Plugin] = []
        self.broken: list[Broken] = []
        self.files: list[Path] = []
        self.commands: dict[str, str] = {}  # by command of the command line, the id of its plugin
        self.strict = _switch(STRICT)
        for point in allowed_points(points):
            distribution, version = distribution_of(point)
            try:
                self.add(point.load(), distribution, version, name=point.name)
            except raised_by_plugin() as error:
                self.fail(point.name, distribution, "does not load", error)

    @property
    def provided(self) -> list[Provided]:
        """Every component, in the order of the plugins."""
        return [Provided(c, plugin.distribution, plugin.version) for plugin in self.loaded for c in plugin.components]

    def fail(self, name: str, distribution: str, what: str, error: BaseException) -> None:
        """Notes a broken plugin and warns on stderr; the other plugins go on.

        Raises:
            Gotr1Error: instead of the warning, if ``GOTR1_STRICT_PLUGINS=1``.
        """
        shown = plugin_error(error)
        if self.strict:
            raise Gotr1Error(
                f"plugin {name} of {distribution} {what}: {shown}", hint=f"mend it, or leave it out: {WITHOUT}={name}"
            ) from error
        self.broken.append(Broken(name, distribution, shown))
        print(f"warning: plugin {name} of {distribution} {what}: {shown}", file=sys.stderr)

    def add(self, plugin: object, distribution: str, version: str = "", *, name: str = "") -> Plugin:
        """Registers a plugin: a module or an object with hooks.

        Raises:
            Gotr1Error: a component or a hook is not as it must be, see :mod:`gotr1_core.border.registration`.
        """
        implementation = getattr(plugin, "gotr1_components", None)
        try:
            if problem := hook_problem(plugin):
                raise Gotr1Error(problem)
            self.manager.register(plugin, f"{distribution}:{name or distribution}")
            self.manager.check_pending()  # a hook that does not exist, such as a misspelt one
            registered = () if implementation is None else implementation()
            if not isinstance(registered, Iterable):
                raise Gotr1Error(f"gotr1_components returned {registered!r}; expected Components{_at(implementation)}")
            components = (*registered, *_decorated(plugin))
            problems = [problem for component in components if (problem := component_problem(component))]
            if problems:
                raise Gotr1Error(f"registers {problems[0]}{_at(implementation)}")
            names = [(c.kind, c.name) for c in components]
            repeated = [f"{kind} {name!r}" for kind, name in names if names.count((kind, name)) > 1]
            if repeated:
                raise Gotr1Error(f"registers the {repeated[0]} twice{_at(implementation)}")
        except raised_by_plugin():
            if self.manager.is_registered(plugin):  # pluggy keeps what it had accepted before it found a wrong hook
                self.manager.unregister(plugin)
            raise
        hooks = tuple(caller.name for caller in self.manager.get_hookcallers(plugin) or ())
        self.loaded.append(Plugin(name or distribution, distribution, version, components, hooks))
        return self.loaded[-1]

    def add_file(self, path: Path) -> None:
        """Loads a single file as a plugin: a module with the file's name, whose version is the beginning of its SHA-256.

        A file that is already loaded is not loaded again.

        Raises:
            UsageError: it is missing, fails to load, registers nothing or nonsense, or another module has its name.
        """
        path = path.resolve()
        if path in self.files:
            return
        same = [file for file in self.files if file.stem == path.stem]
        if same:
            raise UsageError(f"two plugin files have one name: {same[0]} and {path}", hint="rename one of them")
        module, version = load_plugin_file(path)
        try:
            plugin = self.add(module, path.name, version, name=path.stem)
        except raised_by_plugin() as error:
            raise UsageError(f"the plugin {path} is broken: {plugin_error(error)}", hint=_HOOKS) from error
        if not plugin.components and set(plugin.hooks) <= {"gotr1_components"}:
            self.manager.unregister(module)
            self.loaded.remove(plugin)
            raise UsageError(f"the plugin {path} registers nothing", hint=_HOOKS)
        self.files.append(path)

    def implementations(self, hook: str) -> Iterator[tuple[Plugin, HookCall]]:
        """The implementations of a hook in the order of the plugins, to be called by keyword, each in its own ``try``."""
        plugins = {plugin.id: plugin for plugin in self.loaded}
        order = list(plugins)
        implementations = [i for i in getattr(self.manager.hook, hook).get_hookimpls() if i.plugin_name in plugins]
        for implementation in sorted(implementations, key=lambda i: order.index(i.plugin_name)):
            yield plugins[implementation.plugin_name], HookCall(implementation.function, tuple(implementation.argnames))

    def of_kind(self, kind: Kind) -> list[Provided]:
        """The components of a kind, sorted by name."""
        return sorted((p for p in self.provided if p.component.kind == kind), key=lambda p: p.component.name)

    def find(self, kind: Kind, name: str) -> Provided:
        """The component with a name; ``distribution:name`` where two plugins have the same name.

        Raises:
            UsageError: no plugin or more than one provides it.
        """
        distribution, _, bare = name.rpartition(":")
        matches = [p for p in self.of_kind(kind) if p.component.name == bare and distribution in ("", p.distribution)]
        if len(matches) == 1:
            return matches[0]
        if matches:
            both = " or ".join(f"{p.distribution}:{bare}" for p in matches)
            raise UsageError(f"more than one plugin provides the {kind} {bare!r}", hint=f"say {both}")
        names = [p.component.name for p in self.of_kind(kind)]
        hint = f"{nearest(bare, names)}known: {', '.join(names) or 'none; install a plugin'}"
        if self.left_out:
            hint = f"it may be in a file that --no-plugins left out: {', '.join(map(str, self.left_out))}; {hint}"
        raise UsageError(f"there is no {kind} {name!r}", hint=hint)

    def preset(self, name: str) -> Path:
        """The YAML file of a preset."""
        package, _, path = self.find("preset", name).component.target.partition(":")
        module = _module(package)
        assert module.__file__ is not None
        return Path(module.__file__).parent / path


def _decorated(plugin: object) -> list[Component]:
    """The components of a module's own functions with a decorator such as ``@judge``. Imported functions do not count."""
    if not isinstance(plugin, ModuleType):
        return []
    own = [thing for thing in vars(plugin).values() if isinstance(thing, FunctionType) and thing.__module__ == plugin.__name__]
    components = [getattr(function, "gotr1_component", None) for function in own]
    return list(dict.fromkeys(component for component in components if isinstance(component, Component)))


def _at(function: object) -> str:
    """The place of a plugin's function in brackets; empty if it is not known."""
    place = place_of(function) if function is not None else ""
    return f" ({place})" if place else ""


def _switch(variable: str) -> bool:
    value = os.environ.get(variable, "")
    if value not in ("", "0", "1"):
        raise UsageError(f"{variable} is {value!r}", hint="set it to 1, or to 0")
    return value == "1"


_HOOKS = "its functions marked with gotr1_core.hookspecs.hookimpl are its hooks; gotr1_components yields what it provides"


def load(target: str) -> Any:
    """The object that ``module:name`` or ``module:name.attribute`` names.

    Raises:
        Gotr1Error: the module cannot be imported, or has no such object.
    """
    module, _, name = target.partition(":")
    try:
        return attrgetter(name)(_module(module))
    except AttributeError as error:
        near = nearest(name, dir(sys.modules[module]))
        raise Gotr1Error(f"{target} cannot be loaded: {error}", hint=near + _REINSTALL) from error


_REINSTALL = "install the plugin that provides it again, with what it depends on"


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except raised_by_plugin() as error:
        raise Gotr1Error(f"{name} cannot be imported: {one_line(error)}", hint=_REINSTALL) from error


def options_of(component: Component, given: Mapping[str, Any]) -> Any:
    """A component's options, checked against its pydantic model; None for a component without options.

    Raises:
        UsageError: an unknown option, or a value that is not allowed.
        Gotr1Error: the registration names no pydantic model.
    """
    from pydantic import BaseModel, ValidationError

    from gotr1_core.border.contract import Call, introduce
    from gotr1_core.config.messages import dotted_keys, explain, refuse_large_integers

    if component.options is None:
        if given:
            raise UsageError(
                f"{component.kind} {component.name!r} has no options, but {', '.join(given)} was given",
                hint=f"see `gotr1 show {component.kind} {component.name}`",
            )
        return None
    model, see = load(component.options), f"see `gotr1 show {component.kind} {component.name}`"
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise Gotr1Error(
            f"the {component.kind} {component.name!r} has options={component.options!r}, which is no class of pydantic",
            hint=f"see {place_of(model)}; options are a class that inherits from pydantic.BaseModel",
        )
    introduce(model, component.kind, component.name, model.__module__.partition(".")[0])
    try:
        with Call(component.kind, model, "model_validate").told(ValidationError):
            options = model.model_validate(dict(given))
    except ValidationError as error:
        raise explain(error, given, dotted_keys(model), prefix=f"{component.kind}.", see=see) from None
    refuse_large_integers(options, f"{component.kind}.", see=see)
    return options
