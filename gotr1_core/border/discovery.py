"""Where plugins come from: entry points of distributions, as the environment allows, and single files.

:class:`gotr1_core.plugins.Registry` registers what is found here.
"""

from __future__ import annotations

import dis
import hashlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import Distribution, EntryPoint, entry_points
from pathlib import Path
from traceback import walk_tb
from types import ModuleType
from typing import Any

from gotr1_core.config.paths import check_regular
from gotr1_core.errors import Gotr1Error, UsageError, nearest, one_line

GROUP = "gotr1"  # of entry points
ONLY, WITHOUT = "GOTR1_PLUGINS", "GOTR1_DISABLE_PLUGINS"


def raised_by_component(error: BaseException) -> bool:
    """False for Ctrl-C: Python raises it between two instructions, or a signal handler of the core or the standard library does.

    True for every other error, a KeyboardInterrupt of a component's own ``raise`` included, and those of libraries in Rust (panics).
    """
    trace = error.__traceback__
    if not isinstance(error, KeyboardInterrupt) or trace is None:
        return not isinstance(error, KeyboardInterrupt | GeneratorExit)
    while trace.tb_next is not None:
        trace = trace.tb_next
    module = str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
    raises = trace.tb_frame.f_code.co_code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"]
    return raises and module not in {"gotr1_core", *sys.stdlib_module_names}


def raised_by_plugin() -> tuple[type[BaseException], ...]:
    """For an ``except`` clause around a plugin's code: takes every error, which must not end the command line, and lets Ctrl-C pass."""
    error = sys.exception()
    return (BaseException,) if error is not None and raised_by_component(error) else ()


@dataclass(frozen=True)
class HookCall:
    """A plugin's implementation of a hook, to be called by keyword. Two of one function are equal."""

    function: Callable[..., Any]
    names: tuple[str, ...]

    def __call__(self, **arguments: Any) -> Any:
        """Passes the arguments that the function takes."""
        return self.function(*[arguments[name] for name in self.names])


def installed_points() -> tuple[EntryPoint, ...]:
    """The entry points of installed plugins. They are read again when a folder of ``sys.path`` has changed: reading takes 10 ms."""
    return _points_in(tuple((folder, _changed(Path(folder))) for folder in sys.path))


@lru_cache(maxsize=1)
def _points_in(folders: tuple[tuple[str, int], ...]) -> tuple[EntryPoint, ...]:  # noqa: ARG001 - the cache's key
    return tuple(entry_points(group=GROUP))


def _changed(folder: Path) -> int:
    """When something was last added to a folder or removed from it, in nanoseconds; 0 if there is no such folder."""
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return 0


def _name_and_version(distribution: Any) -> tuple[str | None, str | None]:
    return distribution.name, distribution.version


_kept = lru_cache(maxsize=256)(_name_and_version)  # each parses the metadata


def distribution_of(point: EntryPoint) -> tuple[str, str]:
    """The name and version of an entry point's distribution, as far as its metadata has them."""
    try:
        read = _kept if isinstance(point.dist, Distribution) else _name_and_version
        name, version = read(point.dist) if point.dist else (None, None)
        return name or point.name, version or ""
    except (AttributeError, KeyError, TypeError, ValueError, OSError):  # the error depends on the version of Python
        return point.name, ""


def _names(point: EntryPoint) -> set[str]:
    """The names an environment variable may use for a plugin, normalised as distributions compare names."""
    return {_plain(point.name), _plain(distribution_of(point)[0])}


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def allowed_points(points: Iterable[EntryPoint] | None) -> list[EntryPoint]:
    """The entry points that the environment allows, by default of the installed ones, sorted by name."""
    chosen = installed = sorted(installed_points() if points is None else points, key=lambda p: p.name)
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


_file_modules: dict[str, tuple[Path, str]] = {}
"""The modules that were loaded from plugin files: path and version by name."""


def load_plugin_file(path: Path) -> tuple[ModuleType, str]:
    """The module made from a file, and the beginning of the file's SHA-256. An unchanged file gives the same module.

    Raises:
        UsageError: it is no Python file, cannot be read, does not load, or its name is that of another module.
    """
    if path.suffix != ".py":
        raise UsageError(f"{path} is no plugin file", hint="give a Python file, such as my_judge.py")
    try:
        check_regular(path)
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
        if not raised_by_component(error):
            raise
        raise UsageError(f"the plugin {path} does not load: {plugin_error(error)}", hint="mend it; --debug shows where") from error
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


def plugin_error(error: BaseException) -> str:
    """A plugin's error in one line, with the place in brackets where the plugin raised it."""
    frames = [(str(frame.f_globals.get("__name__")).partition(".")[0], frame, line) for frame, line in walk_tb(error.__traceback__)]
    places = [f" ({f.f_code.co_filename}:{line})" for module, f, line in frames if module not in ("gotr1_core", "importlib", "pluggy")]
    return one_line(error) + (places[-1] if places and not isinstance(error, Gotr1Error) else "")
