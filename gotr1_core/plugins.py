"""Finds plugins, isolates broken ones, and finds components by name.

Three environment variables choose which installed plugins load:

- ``GOTR1_PLUGINS``: only these, by entry point or distribution, separated by commas; empty means none.
- ``GOTR1_DISABLE_PLUGINS``: all but these.
- ``GOTR1_STRICT_PLUGINS=1``: a broken plugin is an error instead of a warning.

Files given to :meth:`Registry.add_file` load in any case.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from operator import attrgetter
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pluggy

from gotr1_core import hookspecs
from gotr1_core.errors import Gotr1Error, UsageError
from gotr1_core.hookspecs import KINDS, Component, Kind

GROUP = "gotr1"
ONLY, WITHOUT, STRICT = "GOTR1_PLUGINS", "GOTR1_DISABLE_PLUGINS", "GOTR1_STRICT_PLUGINS"
RAISED = (Exception, SystemExit)  # what third-party code may raise; it must not end the command line


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
    """All plugins of this installation, each loaded inside its own ``try``."""

    def __init__(self, points: Iterable[EntryPoint] | None = None) -> None:
        self.manager = pluggy.PluginManager("gotr1")
        self.manager.add_hookspecs(hookspecs)
        self.loaded: list[Plugin] = []
        self.broken: list[Broken] = []
        self.files: list[Path] = []
        self.commands: dict[str, str] = {}  # by command of the command line, the id of its plugin
        self.strict = _switch(STRICT)
        for point in _chosen(entry_points(group=GROUP) if points is None else points):
            distribution, version = _distribution(point)
            try:
                self.add(point.load(), distribution, version, name=point.name)
            except RAISED as error:
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
        shown = one_line(error)
        if self.strict:
            raise Gotr1Error(
                f"plugin {name} of {distribution} {what}: {shown}", hint=f"mend it, or leave it out: {WITHOUT}={name}"
            ) from error
        self.broken.append(Broken(name, distribution, shown))
        print(f"warning: plugin {name} of {distribution} {what}: {shown}", file=sys.stderr)

    def add(self, plugin: object, distribution: str, version: str = "", *, name: str = "") -> Plugin:
        """Registers a plugin: a module or an object with hooks."""
        implementation = getattr(plugin, "gotr1_components", None)
        try:
            self.manager.register(plugin, f"{distribution}:{name or distribution}")
            self.manager.check_pending()  # a hook that does not exist, such as a misspelt one
            components = (*(implementation() if implementation else ()), *_decorated(plugin))
            invalid = [c for c in components if not _is_component(c)]
            if invalid:
                raise TypeError(f"registers {invalid[0]!r}, which is no Component")
            names = [(c.kind, c.name) for c in components]
            repeated = [f"{kind} {name!r}" for kind, name in names if names.count((kind, name)) > 1]
            if repeated:
                raise ValueError(f"registers the {repeated[0]} twice")
        except RAISED:
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
        module, version = _load_file(path)
        try:
            plugin = self.add(module, path.name, version, name=path.stem)
        except RAISED as error:
            raise UsageError(f"the plugin {path} is broken: {one_line(error)}", hint=_HOOKS) from error
        if not plugin.components and set(plugin.hooks) <= {"gotr1_components"}:
            self.manager.unregister(module)
            self.loaded.remove(plugin)
            raise UsageError(f"the plugin {path} registers nothing", hint=_HOOKS)
        self.files.append(path)

    def implementations(self, hook: str) -> Iterator[tuple[Plugin, Callable[..., Any]]]:
        """The implementations of a hook in the order of the plugins, to be called by keyword, each in its own ``try``."""
        plugins = {plugin.id: plugin for plugin in self.loaded}
        order = list(plugins)
        implementations = [i for i in getattr(self.manager.hook, hook).get_hookimpls() if i.plugin_name in plugins]
        for implementation in sorted(implementations, key=lambda i: order.index(i.plugin_name)):

            def call(_implementation: pluggy.HookImpl = implementation, **arguments: Any) -> Any:
                return _implementation.function(*[arguments[name] for name in _implementation.argnames])

            yield plugins[implementation.plugin_name], call

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
        raise UsageError(
            f"there is no {kind} {name!r}", hint=f"{nearest(bare, names)}known: {', '.join(names) or 'none; install a plugin'}"
        )

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


def _is_component(thing: object) -> bool:
    """True for a well-formed component. Nothing checks a component again before it is used."""
    if not isinstance(thing, Component) or thing.kind not in KINDS:
        return False
    return all(isinstance(field, str) for field in (thing.name, thing.target, thing.options or "", thing.summary)) and ":" in thing.target


def one_line(error: BaseException) -> str:
    """An error's type and message in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def nearest(name: str, known: Iterable[str]) -> str:
    """The beginning of a hint that names the closest known name; empty if none is close."""
    near = difflib.get_close_matches(name, list(known), 1)
    return f"did you mean {near[0]!r}? " if near else ""


def _switch(variable: str) -> bool:
    value = os.environ.get(variable, "")
    if value not in ("", "0", "1"):
        raise UsageError(f"{variable} is {value!r}", hint="set it to 1, or to 0")
    return value == "1"


def _distribution(point: EntryPoint) -> tuple[str, str]:
    """The name and version of an entry point's distribution, as far as its metadata has them."""
    try:
        return (point.dist.name or point.name, point.dist.version or "") if point.dist else (point.name, "")
    except (AttributeError, KeyError, TypeError, ValueError, OSError):  # the error depends on the version of Python
        return point.name, ""


def _names(point: EntryPoint) -> set[str]:
    """The names an environment variable may use for a plugin, normalised as distributions compare names."""
    return {_plain(point.name), _plain(_distribution(point)[0])}


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def _chosen(points: Iterable[EntryPoint]) -> list[EntryPoint]:
    """The entry points that the environment allows, sorted by name."""
    chosen = installed = sorted(points, key=lambda p: p.name)
    if ONLY in os.environ:
        only = _listed(ONLY, installed)
        chosen = [p for p in chosen if only & _names(p)]
    if WITHOUT in os.environ:
        without = _listed(WITHOUT, installed)
        chosen = [p for p in chosen if not without & _names(p)]
    return chosen


def _listed(variable: str, points: Iterable[EntryPoint]) -> set[str]:
    """The names that an environment variable lists; each must be installed."""
    installed = {name for point in points for name in _names(point)}
    listed = [name.strip() for name in os.environ[variable].split(",") if name.strip()]
    unknown = [name for name in listed if _plain(name) not in installed]
    if unknown:
        hint = f"{nearest(_plain(unknown[0]), sorted(installed))}installed: {', '.join(sorted(installed)) or 'none'}"
        raise UsageError(f"{variable} names {unknown[0]!r}, which is not installed", hint=hint)
    return {_plain(name) for name in listed}


_HOOKS = "its functions marked with gotr1_core.hookspecs.hookimpl are its hooks; gotr1_components yields what it provides"
_file_modules: dict[str, tuple[Path, str]] = {}
"""The modules that were loaded from plugin files: path and version by name."""


def _load_file(path: Path) -> tuple[ModuleType, str]:
    """The module made from a file, and the beginning of the file's SHA-256. An unchanged file gives the same module."""
    if path.suffix != ".py":
        raise UsageError(f"{path} is no plugin file", hint="give a Python file, such as my_judge.py")
    try:
        source = path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"cannot read the plugin {path}: {error.strerror}", hint="give the path of a Python file; a run names its own in config.yaml"
        ) from None
    name, version = path.stem, hashlib.sha256(source).hexdigest()[:12]
    if name in sys.modules and _file_modules.get(name) == (path, version):
        return sys.modules[name], version
    if name not in _file_modules and _is_taken(name, path):
        raise UsageError(f"the plugin {path} would hide the module {name!r}, which is installed", hint="rename the file")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # the suffix is Python's
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module  # before it runs: dataclasses and pydantic look their module up
    try:
        # Runs exactly what was hashed. An import might run stale bytecode beside the file.
        exec(compile(source, path, "exec", dont_inherit=True), vars(module))
    except BaseException as error:
        sys.modules.pop(name)
        if before is not None:
            sys.modules[name] = before
        if not isinstance(error, RAISED):
            raise
        raise UsageError(f"the plugin {path} does not load: {one_line(error)}", hint="mend it; --debug shows where") from error
    _file_modules[name] = (path, version)
    return module, version


def _is_taken(name: str, path: Path) -> bool:
    """True if another file has a module of this name."""
    if name in sys.modules:
        origin = getattr(sys.modules[name], "__file__", None)
    elif not name.replace("-", "_").isidentifier():
        raise UsageError(f"the plugin {path} cannot be a module called {name!r}", hint="rename it: letters, digits and _")
    else:
        spec = importlib.util.find_spec(name)
        if spec is None:
            return False
        origin = spec.origin
    return origin is None or Path(origin).resolve() != path


def load(target: str) -> Any:
    """The object that ``module:name`` or ``module:name.attribute`` names.

    Raises:
        Gotr1Error: the module cannot be imported, or has no such object.
    """
    module, _, name = target.partition(":")
    try:
        return attrgetter(name)(_module(module))
    except AttributeError as error:
        raise Gotr1Error(f"{target} cannot be loaded: {error}", hint=_REINSTALL) from error


_REINSTALL = "install the plugin that provides it again, with what it depends on"


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except RAISED as error:
        raise Gotr1Error(f"{name} cannot be imported: {one_line(error)}", hint=_REINSTALL) from error


def options_of(component: Component, given: Mapping[str, Any]) -> Any:
    """A component's options, checked against its pydantic model; None for a component without options.

    Raises:
        UsageError: an unknown option, or a value that is not allowed.
    """
    from pydantic import ValidationError

    from gotr1_core.config.messages import dotted_keys, explain

    if component.options is None:
        if given:
            raise UsageError(
                f"{component.kind} {component.name!r} has no options, but {', '.join(given)} was given",
                hint=f"see `gotr1 show {component.kind} {component.name}`",
            )
        return None
    model = load(component.options)
    try:
        return model.model_validate(dict(given))
    except ValidationError as error:
        see = f"see `gotr1 show {component.kind} {component.name}`"
        raise explain(error, given, dotted_keys(model), prefix=f"{component.kind}.", see=see) from None
