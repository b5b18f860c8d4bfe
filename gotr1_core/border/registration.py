"""What is wrong with a plugin's registrations: components and hooks. It says which field, and the nearest valid one."""

from __future__ import annotations

import inspect
import re
from pathlib import PurePosixPath

from gotr1_core import hookspecs
from gotr1_core.errors import nearest, place_of
from gotr1_core.hookspecs import KINDS, Component

_NAME = re.compile(r"[\w-]+")
_PRESET = "package:path/to/file.yaml"


def component_problem(thing: object) -> str:
    """What is wrong with something that a plugin registers, with its field and what would be right; empty if nothing is."""
    if not isinstance(thing, Component):
        return f"{thing!r}, which is no Component"
    who = f"the {thing.kind} {thing.name!r}"
    fields = {"kind": thing.kind, "name": thing.name, "target": thing.target, "options": thing.options or "", "summary": thing.summary}
    wrong = [f"{who} with {name}={value!r}, which is no text" for name, value in fields.items() if not isinstance(value, str)]
    if wrong:
        return wrong[0]
    if thing.kind not in KINDS:
        return f"{who} with kind={thing.kind!r}; {nearest(thing.kind, KINDS)}kinds: {', '.join(KINDS)}"
    if not _NAME.fullmatch(thing.name):
        return f"{who} with name={thing.name!r}; a name has letters, digits, - and _, and no other characters"
    for field in ("target", "options"):
        module, colon, rest = fields[field].partition(":")
        if not (module and colon and rest) and (field == "target" or thing.options is not None):
            before, _, last = fields[field].rpartition("/" if thing.kind == "preset" else ".")
            near = nearest(fields[field], [f"{before}:{last}"]) if before else ""
            form = _PRESET if thing.kind == "preset" else "module:name"
            return f"{who} with {field}={fields[field]!r}; {near}write {form}"
        path = PurePosixPath(rest)
        if (
            thing.kind == "preset"
            and field == "target"
            and (path.suffix not in (".yaml", ".yml") or path.is_absolute() or ".." in path.parts)
        ):
            return f"{who} with target={thing.target!r}, which is no YAML file in the package; write {_PRESET}"
    return ""


def hook_problem(plugin: object) -> str:
    """What is wrong with the hooks of a plugin, a module or an object: an unknown name or argument, or no mark; empty if nothing is."""
    hooks = {name: function for name, function in vars(hookspecs).items() if hasattr(function, "gotr1_spec")}
    for name in (name for name in dir(plugin) if name.startswith("gotr1_")):
        function = getattr(plugin, name)
        if not inspect.isroutine(function):
            continue
        at, marked = f" ({place_of(function)})", hasattr(function, "gotr1_impl")
        own = not inspect.ismodule(plugin) or function.__module__ == plugin.__name__
        if name not in hooks and (marked or (own and nearest(name, hooks))):
            return f"there is no hook {name}; {nearest(name, hooks) or 'hooks: ' + ', '.join(hooks)}{at}"
        if name in hooks and own and not marked and name != "gotr1_components":
            return f"the hook {name} is not marked with @hookimpl{at}"
        arguments = list(inspect.signature(hooks[name]).parameters) if marked else []
        unknown = [n for n in inspect.signature(function).parameters.values() if marked and n.kind == n.POSITIONAL_OR_KEYWORD]
        for argument in (n.name for n in unknown if n.name not in ("self", *arguments) and n.default is n.empty):
            return f"the hook {name} takes {argument!r}; {nearest(argument, arguments)}arguments: {', '.join(arguments) or 'none'}{at}"
    return ""
