"""Finds plugins, keeps broken ones apart, and makes components of names.

Three variables of the environment say which installed plugins load: ``GOTR1_PLUGINS`` (only those, by entry point or distribution,
separated by commas; empty: none), ``GOTR1_DISABLE_PLUGINS`` (all but those), and ``GOTR1_STRICT_PLUGINS=1`` (a broken plugin is an
error, and no longer a warning). Files given to :meth:`Registry.add_file` load whatever these say.
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
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from gotr1_core import hookspecs
from gotr1_core.errors import Gotr1Error, UsageError
from gotr1_core.hookspecs import KINDS, Component, Kind

GROUP = "gotr1"
ONLY, WITHOUT, STRICT = "GOTR1_PLUGINS", "GOTR1_DISABLE_PLUGINS", "GOTR1_STRICT_PLUGINS"
RAISED = (Exception, SystemExit)  # what a third party's code may raise, and must not take the command line down


@dataclass(frozen=True)
class Provided:
    """A component and the distribution, with its version, that provides it."""

    component: Component
    distribution: str
    version: str


@dataclass(frozen=True)
class Plugin:
    """A plugin that is loaded: an entry point of a distribution, or a file with its hash as version. ``hooks`` are those it implements."""

    name: str
    distribution: str
    version: str
    components: tuple[Component, ...]
    hooks: tuple[str, ...]

    @property
    def id(self) -> str:
        """Under which pluggy knows it; a distribution may have several plugins."""
        return f"{self.distribution}:{self.name}"


@dataclass(frozen=True)
class Broken:
    """A plugin that could not be loaded, or one whose commands could not, and why."""

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
        self.commands: dict[str, str] = {}  # of the command line, and the id of the plugin that each is of
        self.strict = _switch(STRICT)
        for point in _chosen(entry_points(group=GROUP) if points is None else points):
            self._load(point)

    @property
    def provided(self) -> list[Provided]:
        """Every component, in the plugins' order."""
        return [Provided(c, plugin.distribution, plugin.version) for plugin in self.loaded for c in plugin.components]

    def _load(self, point: EntryPoint) -> None:
        distribution, version = _distribution(point)
        try:
            self.add(point.load(), distribution, version, name=point.name)
        except RAISED as error:
            self.fail(point.name, distribution, "does not load", error)

    def fail(self, name: str, distribution: str, what: str, error: BaseException) -> None:
        """Keeps a broken plugin apart, with a line on stderr.

        Raises:
            Gotr1Error: instead, where ``GOTR1_STRICT_PLUGINS=1``.
        """
        shown = one_line(error)
        if self.strict:
            raise Gotr1Error(
                f"plugin {name} of {distribution} {what}: {shown}", hint=f"mend it, or leave it out: {WITHOUT}={name}"
            ) from error
        self.broken.append(Broken(name, distribution, shown))
        print(f"warning: plugin {name} of {distribution} {what}: {shown}", file=sys.stderr)

    def add(self, plugin: object, distribution: str, version: str = "", *, name: str = "") -> Plugin:
        """Registers a plugin, a module or an object with hooks."""
        implementation = getattr(plugin, "gotr1_components", None)
        try:
            self.manager.register(plugin, f"{distribution}:{name or distribution}")
            self.manager.check_pending()  # a hook that does not exist, such as a misspelt one
            components = tuple(implementation() if implementation else ())
            wrong = [c for c in components if not _is_component(c)]
            if wrong:
                raise TypeError(f"registers {wrong[0]!r}, which is no Component")
        except RAISED:
            if self.manager.is_registered(plugin):  # pluggy keeps what it had accepted before it found a wrong hook
                self.manager.unregister(plugin)
            raise
        hooks = tuple(caller.name for caller in self.manager.get_hookcallers(plugin) or ())
        self.loaded.append(Plugin(name or distribution, distribution, version, components, hooks))
        return self.loaded[-1]

    def add_file(self, path: Path) -> None:
        """Loads a single file as a plugin: a module named as the file is, whose version is the beginning of its SHA-256.

        A file that is loaded already is not loaded again.

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
        """What implements a hook, in the plugins' order, so that each can be called in its own ``try``; call it by keyword."""
        known = {plugin.id: plugin for plugin in self.loaded}
        found = [
            implementation for implementation in getattr(self.manager.hook, hook).get_hookimpls() if implementation.plugin_name in known
        ]
        for implementation in sorted(found, key=lambda i: list(known).index(i.plugin_name)):

            def call(_of: pluggy.HookImpl = implementation, **given: Any) -> Any:
                return _of.function(*[given[name] for name in _of.argnames])

            yield known[implementation.plugin_name], call

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
        raise UsageError(
            f"there is no {kind} {name!r}", hint=f"{nearest(bare, names)}known: {', '.join(names) or 'none; install a plugin'}"
        )

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


def one_line(error: BaseException) -> str:
    """An error's type and what it says, in one line whatever it says."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def nearest(name: str, known: Iterable[str]) -> str:
    """The beginning of a hint: the name that may have been meant, or nothing."""
    near = difflib.get_close_matches(name, list(known), 1)
    return f"did you mean {near[0]!r}? " if near else ""


def _switch(variable: str) -> bool:
    value = os.environ.get(variable, "")
    if value not in ("", "0", "1"):
        raise UsageError(f"{variable} is {value!r}", hint="set it to 1, or to 0")
    return value == "1"


def _distribution(point: EntryPoint) -> tuple[str, str]:
    """Name and version of what an entry point is of, as far as its metadata says them."""
    try:
        return (point.dist.name or point.name, point.dist.version or "") if point.dist else (point.name, "")
    except (AttributeError, KeyError, TypeError, ValueError, OSError):  # which differs among versions of Python
        return point.name, ""


def _names(point: EntryPoint) -> set[str]:
    """What the environment may call a plugin, in the form in which distributions compare their names."""
    return {_plain(point.name), _plain(_distribution(point)[0])}


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def _chosen(points: Iterable[EntryPoint]) -> list[EntryPoint]:
    """The entry points that the environment lets load, by name."""
    found = every = sorted(points, key=lambda p: p.name)
    if ONLY in os.environ:
        only = _listed(ONLY, every)
        found = [p for p in found if only & _names(p)]
    if WITHOUT in os.environ:
        without = _listed(WITHOUT, every)
        found = [p for p in found if not without & _names(p)]
    return found


def _listed(variable: str, points: Iterable[EntryPoint]) -> set[str]:
    """The plugins that a variable names, every one of them installed."""
    known = {name for point in points for name in _names(point)}
    given = [name.strip() for name in os.environ[variable].split(",") if name.strip()]
    unknown = [name for name in given if _plain(name) not in known]
    if unknown:
        hint = f"{nearest(_plain(unknown[0]), sorted(known))}installed: {', '.join(sorted(known)) or 'none'}"
        raise UsageError(f"{variable} names {unknown[0]!r}, which is not installed", hint=hint)
    return {_plain(name) for name in given}


_HOOKS = "its functions marked with gotr1_core.hookspecs.hookimpl are its hooks; gotr1_components yields what it provides"
_of_files: dict[str, tuple[Path, str]] = {}
"""The modules that are plugin files: path and version by name."""


def _load_file(path: Path) -> tuple[ModuleType, str]:
    """The module a file makes, the same as long as the file is, and the beginning of its SHA-256."""
    if path.suffix != ".py":
        raise UsageError(f"{path} is no plugin file", hint="give a Python file, such as my_judge.py")
    try:
        source = path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"cannot read the plugin {path}: {error.strerror}", hint="give the path of a Python file; a run names its own in config.yaml"
        ) from None
    name, version = path.stem, hashlib.sha256(source).hexdigest()[:12]
    if name in sys.modules and _of_files.get(name) == (path, version):
        return sys.modules[name], version
    if name not in _of_files and _is_taken(name, path):
        raise UsageError(f"the plugin {path} would hide the module {name!r}, which is installed", hint="rename the file")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # the suffix is Python's
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module  # while it runs as well: dataclasses and pydantic look their module up
    try:
        # What is hashed is what runs; an import would run bytecode that is kept beside the file.
        exec(compile(source, path, "exec", dont_inherit=True), vars(module))
    except BaseException as error:
        sys.modules.pop(name)
        if before is not None:
            sys.modules[name] = before
        if not isinstance(error, RAISED):
            raise
        raise UsageError(f"the plugin {path} does not load: {one_line(error)}", hint="mend it; --debug shows where") from error
    _of_files[name] = (path, version)
    return module, version


def _is_taken(name: str, path: Path) -> bool:
    """Whether a module of this name would be found elsewhere."""
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
    except RAISED as error:
        raise Gotr1Error(f"{name} cannot be imported: {one_line(error)}", hint=_REINSTALL) from error


def options_of(component: Component, given: Mapping[str, Any]) -> Any:
    """A component's options, checked against its model."""
    from pydantic import ValidationError

    from gotr1_core.config.messages import explain, keys

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
        raise explain(error, given, keys(model), prefix=f"{component.kind}.", see=see) from None
