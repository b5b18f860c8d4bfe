"""Writes docs/reference/api.md, the Python API, from the code: names, signatures, docstrings. The page is readable without a built site.

::

    python docs/hooks/api.py

The source is only read, not run, and nothing but Python is needed.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "api.md"
# Modules that writers of plugins meet: all their public names are on the page. Of other modules, the names of `gotr1_core` are.
IN_FULL = (
    *("advantages", "chain", "config.paths", "gaussian", "hookspecs", "judges", "policies.padding", "protocols", "reward", "samples"),
    "sampling",
)
BESIDES: Mapping[str, Sequence[str]] = {"config.models": ["SegmentConfig"]}
INTRODUCTION = """\
# Python API

<!-- Written by `python docs/hooks/api.py` from the docstrings. Change those, and run it again. -->

Python can call everything that the command line does. `import gotr1_core` costs nothing: each name is imported at its
first use. [Write a plugin](../plugins.md) says how the pieces fit together.
"""
REST = """\
Below are these names, by module. Modules that writers of plugins meet are shown in full.
`[P, N, M]` are prompts, plans of a prompt and images of a plan. `[B, T]` are rows and actions of a row.
"""
SECTION = re.compile(r"^(Args|Attributes|Raises|Returns|Yields):$")
ROLE = re.compile(r":\w+:`~?([^`]+)`")

Definition = ast.ClassDef | ast.FunctionDef | ast.Assign | ast.AnnAssign


def page() -> str:
    """The whole page, as Markdown."""
    public = public_names()
    names = {module: public.get(module, []) for module in sorted({*public, *IN_FULL, *BESIDES})}
    found = {module: definitions(module, chosen) for module, chosen in names.items()}
    anchors = {name: f"gotr1_core.{module}.{name}" for module, defined in found.items() for name in defined}
    rows = []
    for name, module in sorted((name, module) for module, chosen in public.items() for name in chosen):
        first = " ".join(plain(found[module][name][1], anchors).partition("\n\n")[0].split())
        rows.append(f"| [`{name}`](#{anchors[name]}) | `gotr1_core.{module}` | {first.replace('|', chr(92) + '|')} |")
    parts = [INTRODUCTION, "\n".join(["| name of `gotr1_core` | from | |", "|---|---|---|", *rows, ""]), REST]
    for module, defined in found.items():
        parts += [f"## gotr1_core.{module}\n", plain(ast.get_docstring(tree(module)) or "", anchors) + "\n"]
        for name, (node, docstring) in defined.items():
            parts += entry(node, f"gotr1_core.{module}.{name}", docstring, anchors)
    return "\n".join(parts)


def public_names() -> dict[str, list[str]]:
    """The names of ``gotr1_core`` by the module that they are from."""
    nodes = [node for node in ast.walk(ast.parse(read("__init__"))) if isinstance(node, ast.Assign)]
    [home] = [ast.literal_eval(node.value) for node in nodes if ast.unparse(node.targets[0]) == "_HOME"]
    return {module: names.split() for module, names in home.items()}


def read(module: str) -> str:
    """The source of a module of the core."""
    return (ROOT / "gotr1_core" / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")


def tree(module: str) -> ast.Module:
    """The parsed source of a module of the core."""
    return ast.parse(read(module))


def definitions(module: str, chosen: Sequence[str]) -> dict[str, tuple[Definition, str]]:
    """The definitions of a module with their docstrings, by name: all public ones of :data:`IN_FULL`, else the ``chosen`` ones."""
    wanted = {*chosen, *BESIDES.get(module, ())}
    every = members(tree(module).body)
    shown = {
        name: found for name, found in every.items() if name in wanted or (module in IN_FULL and not name.startswith("_") and found[1])
    }
    assert wanted <= shown.keys(), f"gotr1_core.{module} lacks {wanted - shown.keys()}"
    return shown


def members(body: Sequence[ast.stmt]) -> dict[str, tuple[Definition, str]]:
    """Classes, functions and values of a body, with their docstrings. That of a value is the text after it."""
    found: dict[str, tuple[Definition, str]] = {}
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found[node.name] = node, ast.get_docstring(node) or ""
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            text = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
            found[ast.unparse(target)] = node, str(text)
    return found


def entry(node: Definition, name: str, docstring: str, anchors: Mapping[str, str], level: int = 3) -> Iterator[str]:
    """The part of the page about one definition, and about the members of a class."""
    short = ".".join(name.split(".")[-2 if level > 3 else -1 :])
    yield f'<a id="{name}"></a>\n\n{"#" * level} {short}\n'
    yield f"```python\n{signature(node)}\n```\n"
    if docstring:
        yield plain(docstring, anchors) + "\n"
    if isinstance(node, ast.ClassDef):
        if is_model(node):
            yield "\n".join([*described_fields(node), ""])
        for member, (inner, text) in members(node.body).items():
            if isinstance(inner, ast.FunctionDef) and not member.startswith("_"):
                yield from entry(inner, f"{name}.{member}", text, anchors, level + 1)


# -- signatures -------------------------------------------------------------------------------------------------------------


def signature(node: Definition) -> str:
    """A definition without its body. A long one has a line for each argument."""
    if isinstance(node, ast.Assign | ast.AnnAssign):
        return ast.unparse(node)
    marks = [
        f"@{mark}\n" for decorator in node.decorator_list if (mark := ast.unparse(decorator)) in ("property", "staticmethod", "hookspec")
    ]
    if isinstance(node, ast.FunctionDef):
        result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        return "".join(marks) + broken(f"def {node.name}", arguments(node), result)
    bases = [ast.unparse(base) for base in node.bases]
    if "Protocol" in bases:
        return "\n".join([f"class {node.name}({', '.join(bases)}):", *(f"    {field}" for field in fields(node))]).removesuffix(":")
    if is_model(node):
        return f"class {node.name}({', '.join(bases)})"
    init = members(node.body).get("__init__")
    made_by = arguments(init[0]) if init and isinstance(init[0], ast.FunctionDef) else fields(node)
    return broken(f"class {node.name}", made_by)


def broken(start: str, inside: Sequence[str], end: str = "") -> str:
    """``start(inside)end``, in several lines if it is longer than 100 characters."""
    line = f"{start}({', '.join(inside)}){end}"
    return line if len(line) <= 100 else f"{start}(\n" + "".join(f"    {one},\n" for one in inside) + f"){end}"


def arguments(node: ast.FunctionDef) -> list[str]:
    """A function's arguments without ``self``, each as it is written."""
    given = node.args
    positional = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(positional) - len(given.defaults)) + list(given.defaults)
    written = [argument(one, default) for one, default in zip(positional, defaults, strict=True) if one.arg not in ("self", "cls")]
    if given.vararg or given.kwonlyargs:
        written.append(f"*{argument(given.vararg)}" if given.vararg else "*")
    written += [argument(one, default) for one, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    return written + ([f"**{argument(given.kwarg)}"] if given.kwarg else [])


def argument(given: ast.arg, default: ast.expr | None = None) -> str:
    kind = f": {ast.unparse(given.annotation)}" if given.annotation else ""
    value = (f" = {ast.unparse(default)}" if kind else f"={ast.unparse(default)}") if default else ""
    return f"{given.arg}{kind}{value}"


def fields(node: ast.ClassDef) -> list[str]:
    """The annotated attributes of a class, each as it is written."""
    return [ast.unparse(one) for one in node.body if isinstance(one, ast.AnnAssign) and not ast.unparse(one.target).startswith("_")]


def is_model(node: ast.ClassDef) -> bool:
    """True for a model of a config."""
    return any(ast.unparse(base) in ("BaseModel", "Strict") for base in node.bases)


def described_fields(node: ast.ClassDef) -> Iterator[str]:
    """A config model's keys with type, default and description."""
    for one in node.body:
        if isinstance(one, ast.AnnAssign):
            call = one.value if isinstance(one.value, ast.Call) and ast.unparse(one.value.func) == "Field" else None
            default = call.args[0] if call and call.args else None if call else one.value
            said = [ast.literal_eval(k.value) for k in call.keywords if k.arg == "description"] if call else []
            value = f" = {ast.unparse(default)}" if default else ""
            yield f"- `{ast.unparse(one.target)}: {ast.unparse(one.annotation)}{value}`" + "".join(f": {text}" for text in said)


# -- docstrings -------------------------------------------------------------------------------------------------------------


def plain(docstring: str, anchors: Mapping[str, str]) -> str:
    """A docstring as Markdown: its sections become lists, and its roles links to what is on the page."""
    lines: list[str] = []
    inside = False
    for line in docstring.splitlines():
        if SECTION.match(line):
            inside = True
            lines += ["**Arguments:**" if line == "Args:" else f"**{line}**", ""]
        elif inside and re.match(r" {4}\S", line):
            names, colon, text = line.strip().partition(":")
            quoted = [f"`{name.strip(' `')}`" for name in names.split(",")]
            lines.append(f"- {', '.join(quoted)}: {text.strip()}" if colon else line.strip())
        elif inside and line.startswith(" "):
            lines.append(f"  {line.strip()}")
        else:
            inside = inside and not line
            lines.append(line)
    text = "\n".join(lines).replace("\n::\n", "\n").replace("``", "`")
    return ROLE.sub(lambda role: link(role[1], anchors), text).strip()


def link(name: str, anchors: Mapping[str, str]) -> str:
    """A name as code, linked if it is on the page."""
    anchor = anchors.get(name.rpartition(".")[2])
    return f"[`{name}`](#{anchor})" if anchor and (name == anchor or "." not in name) else f"`{name}`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
