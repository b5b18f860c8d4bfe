"""Reads the sources with ``ast`` and measures how they are built: imports, lengths, names, signatures, docstrings. Imports none of them.

``python tests/structure.py [ROOT]`` prints the figures of a checkout. The limits are in test_structure.py and test_docstrings.py.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORE = "gotr1_core"
TESTING = "gotr1_testing"
SHARED = (TESTING, "gotr1_judges")
"""Plugins that other plugins may build on, if they say so: the conformance suite, and the rubrics that served judges ask, too."""
IDEA = "idea"
"""The wing of the modules that lie at the top level of the core."""

FRONT_DOOR = CORE
"""``gotr1_core/__init__.py`` re-exports what users import. Its imports are not edges: they point at every wing on purpose. No module of the
core may import from it (:func:`front_door_imports`), so it can never be part of a circle."""

API = f"{CORE}.api"
"""The Python API lies at the top level, but starts what the features offer. So it counts as a wing of its own, ``api``."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, eq=False)
class Module:
    """One source file. ``name`` is dotted; that of a package's ``__init__.py`` is the package's."""

    name: str
    path: Path
    tree: ast.Module
    lines: int
    where: str

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"

    @property
    def runs_code(self) -> bool:
        """True if there is more in the file than a docstring and ``from __future__ import``."""
        body = self.tree.body[1:] if ast.get_docstring(self.tree) is not None else self.tree.body
        return any(not (isinstance(node, ast.ImportFrom) and node.module == "__future__") for node in body)


# --- modules and imports ----------------------------------------------------------------------------------------


@cache
def modules(root: Path) -> dict[str, Module]:
    """Every module of the core and of every ``plugins/*/src`` package, by dotted name."""
    found = {}
    for package in [root / CORE, *sorted(root.glob("plugins/*/src/*"))]:
        for path in sorted(package.rglob("*.py")):
            parts = path.relative_to(package.parent).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            text = path.read_text(encoding="utf-8")
            found[name] = Module(name, path, ast.parse(text), len(text.splitlines()), path.relative_to(root).as_posix())
    return found


def core(root: Path) -> list[Module]:
    """The modules of the core."""
    return [module for name, module in modules(root).items() if name.partition(".")[0] == CORE]


def inside(name: str, package: str) -> bool:
    """True for the package itself and for what lies in it."""
    return name == package or name.startswith(f"{package}.")


def imported(module: Module) -> Iterator[tuple[str, str | None, int]]:
    """Every import in a file as (module, name or None, line): at the top, in functions, under ``TYPE_CHECKING``, and by a literal
    ``import_module("name")``. Relative imports are made absolute."""
    for node in ast.walk(module.tree):
        match node:
            case ast.Import(names=names):
                yield from ((alias.name, None, node.lineno) for alias in names)
            case ast.ImportFrom(module=source, names=names, level=level):
                if level:
                    package = module.name.split(".") if module.is_package else module.name.split(".")[:-1]
                    base = package[: len(package) - level + 1]
                    source = ".".join([*base, source] if source else base)
                yield from ((source or "", alias.name, node.lineno) for alias in names)
            case (
                ast.Call(func=ast.Name(id="import_module" | "__import__"), args=[ast.Constant(value=str(source)), *_])
                | ast.Call(func=ast.Attribute(attr="import_module"), args=[ast.Constant(value=str(source)), *_])
            ):
                yield source, None, node.lineno


@cache
def edges(root: Path) -> dict[str, dict[str, int]]:
    """The import graph: for every module the modules of the repository that it imports, each with the line of the first import.

    ``from a import b`` is an edge to the module ``a.b`` if there is one, else to ``a``. An import of ``a.b.c`` is an edge to ``a.b.c``
    only. It is one to ``a.b`` too if ``a/b/__init__.py`` runs code, unless the importing module lies in ``a.b`` itself.
    """
    known = modules(root)
    graph: dict[str, dict[str, int]] = {}
    for module in known.values():
        targets: dict[str, int] = {}
        for source, name, line in imported(module) if module.name != FRONT_DOOR else ():
            target = _nearest(f"{source}.{name}" if name else source, known)
            if target is None:
                continue
            targets.setdefault(target, line)
            parts = target.split(".")
            for parent in (".".join(parts[:n]) for n in range(1, len(parts))):
                if parent in known and known[parent].runs_code and not inside(module.name, parent) and parent != FRONT_DOOR:
                    targets.setdefault(parent, line)
        targets.pop(module.name, None)
        graph[module.name] = targets
    return graph


def _nearest(name: str, known: Mapping[str, Module]) -> str | None:
    """The longest beginning of a dotted name that is a module; None if not even the first part is one."""
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name or None


def circles(root: Path) -> list[list[str]]:
    """For every set of modules that import each other in a circle, its shortest circle through its first module (the first is repeated
    at the end)."""
    graph = edges(root)
    reach = {name: _reachable(name, graph) for name in graph}
    found, done = [], set()
    for name in sorted(graph):
        if name in reach[name] and name not in done:
            done |= {other for other in reach[name] if name in reach[other]}
            found.append(_shortest_circle(name, graph))
    return found


def circle_members(root: Path) -> list[list[str]]:
    """The same sets whole: the strongly connected components with more than one module."""
    graph = edges(root)
    reach = {name: _reachable(name, graph) for name in graph}
    sets = {frozenset(other for other in reach[name] if name in reach[other]) for name in graph if name in reach[name]}
    return sorted(sorted(members) for members in sets)


def mutual(root: Path) -> list[tuple[str, str]]:
    """Pairs of modules that import each other."""
    graph = edges(root)
    return sorted((one, other) for one, targets in graph.items() for other in targets if one < other and one in graph[other])


def _reachable(start: str, graph: Mapping[str, Mapping[str, int]]) -> set[str]:
    seen: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += graph[name]
    return seen


def _shortest_circle(start: str, graph: Mapping[str, Mapping[str, int]]) -> list[str]:
    paths, seen = [[start]], {start}
    for path in paths:  # grows: breadth first
        for target in sorted(graph[path[-1]]):
            if target == start:
                return [*path, start]
            if target not in seen:
                seen.add(target)
                paths.append([*path, target])
    raise AssertionError(f"{start} is in no circle")


def wing(module: Module) -> str:
    """The wing that a module of the core belongs to: its folder's name; ``idea`` at the top level, and ``api`` for the Python API."""
    parts = module.name.split(".")
    if len(parts) > 2 or (len(parts) == 2 and module.is_package):
        return parts[1]
    return "api" if module.name == API else IDEA


def wings(root: Path) -> dict[str, Module]:
    """The packages right below the core, by wing."""
    return {module.name.split(".")[1]: module for module in core(root) if module.is_package and module.name.count(".") == 1}


def arrows(root: Path) -> dict[tuple[str, str], list[str]]:
    """The imports from wing to wing in the core, with the places they stand at."""
    known, found = modules(root), defaultdict(list)
    for source, targets in edges(root).items():
        for target, line in targets.items():
            if inside(source, CORE) and inside(target, CORE) and FRONT_DOOR not in (source, target):
                pair = wing(known[source]), wing(known[target])
                if pair[0] != pair[1]:
                    found[pair].append(f"{known[source].where}:{line} imports {target}")
    return dict(found)


def front_door_imports(root: Path) -> list[str]:
    """Modules of the core that import from ``gotr1_core`` itself: all must import from the module that defines the name."""
    known = modules(root)
    return [
        f"{module.where}:{line} imports {name or CORE} from the front door"
        for module in core(root)
        for source, name, line in imported(module)
        if source == CORE and (name is None or f"{CORE}.{name}" not in known) and module.name != FRONT_DOOR
    ]


def distribution_arrows(root: Path) -> list[str]:
    """Imports between distributions that are not allowed: from the core to a plugin, and from plugin to plugin.

    A plugin's sources may import a distribution of :data:`SHARED` if an extra or the dependencies of its ``pyproject.toml`` name it.
    """
    known, found = modules(root), []
    for source, targets in edges(root).items():
        for target, line in targets.items():
            home, other = source.partition(".")[0], target.partition(".")[0]
            if other in (home, CORE) or (other in SHARED and home != CORE and _declares(known[source].path, other)):
                continue
            found.append(f"{known[source].where}:{line} imports {target}")
    return found


def undeclared_testing(root: Path) -> list[str]:
    """Tests of plugins that import ``gotr1_testing`` although neither their distribution nor ``requirements-dev.txt`` says so."""
    if "./plugins/gotr1-testing" in (root / "requirements-dev.txt").read_text(encoding="utf-8"):
        return []
    return [
        path.relative_to(root).as_posix()
        for path in sorted(root.glob("plugins/*/tests/*.py"))
        if re.search(rf"^\s*(from|import) {TESTING}\b", path.read_text(encoding="utf-8"), re.M) and not _declares(path, TESTING)
    ]


def _declares(path: Path, package: str) -> bool:
    """True if the distribution that a file belongs to is the one of a package, or requires it, perhaps as an extra."""
    folder = next(parent for parent in path.parents if (parent / "pyproject.toml").is_file())
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = [*project.get("dependencies", ()), *(word for extra in project.get("optional-dependencies", {}).values() for word in extra)]
    names = {re.split(r"[^\w.-]", word, maxsplit=1)[0].replace("_", "-").lower() for word in [project["name"], *required]}
    return package.replace("_", "-") in names


# --- signatures and names ---------------------------------------------------------------------------------------


def functions(module: Module) -> Iterator[tuple[str, Function, bool]]:
    """Every function of a file, methods and inner functions too, as (qualified name, function, is a method with self or cls)."""

    def walk(node: ast.AST, prefix: str, in_class: bool) -> Iterator[tuple[str, Function, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, Function):
                bound = in_class and not any(ast.unparse(decorator) == "staticmethod" for decorator in child.decorator_list)
                yield prefix + child.name, child, bound
                yield from walk(child, f"{prefix}{child.name}.", False)
            elif isinstance(child, ast.ClassDef):
                yield from walk(child, f"{prefix}{child.name}.", True)
            else:
                yield from walk(child, prefix, in_class)

    yield from walk(module.tree, "", False)


def parameters(function: Function, bound: bool = False) -> int:
    """How many parameters a function takes: positional, keyword-only, ``*args`` and ``**kwargs``; not self or cls."""
    given = function.args
    return len(_arguments(given)) - (bound and bool(given.posonlyargs or given.args))


def _arguments(given: ast.arguments) -> list[ast.arg]:
    return [argument for argument in (*given.posonlyargs, *given.args, given.vararg, *given.kwonlyargs, given.kwarg) if argument]


def is_command(module: Module, function: Function) -> bool:
    """True for a command of the command line: its parameters are the options of a line, and its docstring is the text of ``--help``.

    Such a function stands at the top level of a file in ``gotr1_core/cli``, or anywhere in a plugin's package. It is named ``command``,
    or ``X.command(…)`` or ``X.callback(…)`` decorates it, or the annotation of one of its parameters mentions ``typer.``.
    """
    if function not in module.tree.body or not (inside(module.name, f"{CORE}.cli") or not inside(module.name, CORE)):
        return False
    decorators = [node.func.attr for node in function.decorator_list if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    annotations = [ast.unparse(argument.annotation) for argument in _arguments(function.args) if argument.annotation]
    return function.name == "command" or bool({"command", "callback"} & {*decorators}) or any("typer." in text for text in annotations)


def signatures(root: Path) -> list[tuple[int, str]]:
    """How many parameters every function of the core takes, most first; commands are left out."""
    counted = [
        (parameters(function, bound), f"{module.where}:{function.lineno} {name}")
        for module in core(root)
        for name, function, bound in functions(module)
        if not is_command(module, function)
    ]
    return sorted(counted, key=lambda row: (-row[0], row[1]))


def top_level(module: Module) -> Iterator[ast.stmt]:
    """The statements at a file's top level, those in ``if`` and ``try`` included."""
    waiting = list(reversed(module.tree.body))
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.If | ast.Try):
            waiting += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]


def shared_names(root: Path) -> dict[str, list[str]]:
    """Names that several modules give to a public function or class at their top level, with the modules."""
    homes: dict[str, list[str]] = defaultdict(list)
    for module in modules(root).values():
        for name in dict.fromkeys(node.name for node in top_level(module) if isinstance(node, Function | ast.ClassDef)):
            if not name.startswith("_"):
                homes[name].append(module.name)
    return {name: places for name, places in sorted(homes.items()) if len(places) > 1}


# --- docstrings -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Public:
    """A public function, or a public method of a public class: no underscore begins its name or its class's."""

    module: Module
    owner: ast.ClassDef | None
    function: Function

    @property
    def name(self) -> str:
        return f"{self.owner.name}.{self.function.name}" if self.owner else self.function.name

    @property
    def where(self) -> str:
        return f"{self.module.where}:{self.function.lineno} {self.name}"

    @property
    def docstring(self) -> str:
        return ast.get_docstring(self.function) or ""


def public(root: Path, package: str | None = None) -> list[Public]:
    """Every public function and method of the core and the plugins, or of one package.

    Left out are ``@overload`` stubs and the setters of properties: the function that follows, or the getter, has the docstring.
    """
    found = []
    for module in modules(root).values():
        if package is not None and not inside(module.name, package):
            continue
        owners = [(None, list(top_level(module)))] + [(node, node.body) for node in top_level(module) if isinstance(node, ast.ClassDef)]
        for owner, body in owners:
            if owner is None or not owner.name.startswith("_"):
                found += [
                    Public(module, owner, node)
                    for node in body
                    if isinstance(node, Function) and not node.name.startswith("_") and not _is_overload(node)
                ]
    return found


def _is_overload(function: Function) -> bool:
    return any(ast.unparse(node).rpartition(".")[2] in ("overload", "setter", "deleter") for node in function.decorator_list)


def documented_elsewhere(root: Path, one: Public) -> bool:
    """True if a function needs no docstring of its own, because another one says what it does. That is so for

    - a function or method named like a documented hook in ``gotr1_core/hookspecs.py``: it implements the hook;
    - a method named like a documented method in ``gotr1_core/protocols.py``: protocols are structural, so the name is all there is;
    - a method named like a documented method of a base class in the repository: it overrides that method;
    - ``main`` in a file that ends in ``if __name__ == "__main__"``: it is the program that the file's docstring describes.
    """
    if one.function.name in _hooks(root):
        return True
    if one.owner is None:
        return one.function.name == "main" and _is_program(one.module) and ast.get_docstring(one.module.tree) is not None
    if one.function.name in _protocol_methods(root):
        return True
    classes, seen, waiting = _classes(root), set(), [ast.unparse(base) for base in one.owner.bases]
    while waiting:
        base = waiting.pop().partition("[")[0].rpartition(".")[2]
        if base in seen:
            continue
        seen.add(base)
        for owner in classes.get(base, ()):
            if any(isinstance(node, Function) and node.name == one.function.name and ast.get_docstring(node) for node in owner.body):
                return True
            waiting += [ast.unparse(other) for other in owner.bases]
    return False


def _is_program(module: Module) -> bool:
    return any(isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'" for node in module.tree.body)


@cache
def _protocol_methods(root: Path) -> set[str]:
    tree = modules(root)[f"{CORE}.protocols"].tree
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    return {node.name for owner in classes for node in owner.body if isinstance(node, Function) and ast.get_docstring(node)}


@cache
def _hooks(root: Path) -> set[str]:
    tree = modules(root)[f"{CORE}.hookspecs"].tree
    return {node.name for node in tree.body if isinstance(node, Function) and ast.get_docstring(node)}


@cache
def _classes(root: Path) -> dict[str, list[ast.ClassDef]]:
    found: dict[str, list[ast.ClassDef]] = defaultdict(list)
    for module in modules(root).values():
        for node in top_level(module):
            if isinstance(node, ast.ClassDef):
                found[node.name].append(node)
    return found


def without_docstring(root: Path, package: str | None = None) -> list[Public]:
    """Public functions that have no docstring and implement nothing that has one."""
    return [one for one in public(root, package) if not one.docstring and not documented_elsewhere(root, one)]


def with_tensors(root: Path, package: str | None = None) -> list[Public]:
    """Public functions that take or return tensors: an annotation has the word ``Tensor``, alone or in a container. One without a
    docstring is not counted: it is reported as such, or its protocol's docstring gives the shapes."""
    return [one for one in public(root, package) if one.docstring and any(re.search(r"\bTensor\b", text) for text in annotations(one))]


def annotations(one: Public) -> list[str]:
    """The annotations of a function's parameters and of what it returns."""
    given = [argument.annotation for argument in _arguments(one.function.args)] + [one.function.returns]
    return [ast.unparse(annotation) for annotation in given if annotation is not None]


NAME = r"\*?[A-Za-z_][\w.]*(?:\(\w+\))?|\d+"
DIMENSION = re.compile(rf"\.\.\.|…|(?:{NAME})(?:(?:\s*[-+*/×]+\s*|\s)(?:{NAME}))*")
BRACKETS = re.compile(r"(?<!\w)\[([^\[\]]+)\](?!\()")
SHAPE_WORDS = re.compile(r"\bscalars?\b|\bany shape\b|\b(same|its|their|one) shapes?\b|\bshape of\b|\bshaped like\b", re.IGNORECASE)


def gives_shape(docstring: str) -> bool:
    """True if a docstring says of a tensor what shape it has. It does with either

    - brackets around dimensions, ``[B, T]``, ``[..., V]``, ``[length]``, ``[B, T - 1]``, at least one of which is not a bare number:
      ``[0, 1]`` is a range, and ``name[i]``, ``["a"]`` and a link are not shapes; or
    - the words scalar, any shape, same shape, one shape, its shape, their shapes, shape of, shaped like.
    """
    for inner in BRACKETS.findall(docstring):
        dimensions = [part.strip() for part in inner.split(",")]
        if all(DIMENSION.fullmatch(part) for part in dimensions) and not all(part.isdigit() for part in dimensions):
            return True
    return SHAPE_WORDS.search(docstring) is not None


def without_shape(root: Path, package: str | None = None) -> list[Public]:
    """Public functions with tensors whose docstring gives no shape."""
    return [one for one in with_tensors(root, package) if not gives_shape(one.docstring)]


@cache
def error_classes(root: Path) -> frozenset[str]:
    """``Gotr1Error`` and every class in the repository that derives from it, by name."""
    names, before = {"Gotr1Error"}, 0
    while len(names) != before:
        before = len(names)
        for name, owners in _classes(root).items():
            if any(ast.unparse(base).rpartition(".")[2] in names for owner in owners for base in owner.bases):
                names.add(name)
    return frozenset(names)


def raised(root: Path, one: Public) -> list[str]:
    """The error classes of ours that a function raises itself, by name. Inner functions, classes and lambdas do not count.

    ``raise make(…)`` counts as the class that ``make``, a function at the top level of the same file, is annotated to return.
    """
    errors = error_classes(root)
    makers = {
        node.name: ast.unparse(node.returns).strip("'\"") for node in top_level(one.module) if isinstance(node, Function) and node.returns
    }
    found: dict[str, None] = {}
    waiting: list[ast.AST] = [*one.function.body]
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, Function | ast.ClassDef | ast.Lambda):
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Raise) and node.exc is not None:
            what = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            name = ast.unparse(what).rpartition(".")[2]
            name = makers.get(name, name)
            if name in errors:
                found[name] = None
    return list(found)


def raises_section(docstring: str) -> dict[str, str]:
    """What the ``Raises:`` section of a docstring says, by class: the lines below it that are indented more, ``Name: when``."""
    found: dict[str, str] = {}
    lines = iter(docstring.splitlines())
    margin = next((len(line) - len(line.lstrip()) for line in lines if line.strip() == "Raises:"), None)
    last, depth = "", None
    for line in lines if margin is not None else ():
        indent = len(line) - len(line.lstrip())
        if not line.strip():
            continue
        if indent <= margin:
            break
        depth = indent if depth is None else depth
        name, colon, when = line.strip().partition(":")
        if indent == depth and colon and " " not in name.strip("`"):
            last = name.strip("`").rpartition(".")[2]
            found[last] = when.strip()
        elif last:
            found[last] = f"{found[last]} {line.strip()}".strip()
    return found


def raising(root: Path, package: str | None = None) -> list[Public]:
    """Public functions that raise an error of ours. Commands are left out: their docstring is printed as the help of a command."""
    return [one for one in public(root, package) if raised(root, one) and not is_command(one.module, one.function)]


def without_raises(root: Path, package: str | None = None) -> list[str]:
    """Those whose docstring has no ``Raises:`` section that names each class and says when."""
    return [
        f"{one.where} raises {', '.join(missing)}"
        for one in raising(root, package)
        if (missing := [name for name in raised(root, one) if not raises_section(one.docstring).get(name)])
    ]


def assert_none(found: Iterable[str]) -> None:
    """Fails, with every entry on a line of its own, if there is one."""
    lines = list(found)
    if lines:
        raise AssertionError("\n".join([f"{len(lines)} found:", *lines]))


# --- the figures ------------------------------------------------------------------------------------------------


def figures(root: Path) -> list[tuple[str, str]]:
    """What ``main`` prints: names of figures and their values."""
    known, inner = modules(root), core(root)
    top = [module for module in inner if module.path.parent == root / CORE]
    plugin = [module for module in known.values() if not inside(module.name, CORE)]
    long = max(known.values(), key=lambda module: module.lines)
    most, where = signatures(root)[0]
    members = circle_members(root)

    def of(part: Iterable[object], whole: Iterable[object]) -> str:
        return f"{len(list(part))} of {len(list(whole))}"

    rows = [
        ("core: files, lines", f"{len(inner)}, {sum(module.lines for module in inner)}"),
        ("core, top level: files, lines", f"{len(top)}, {sum(module.lines for module in top)}"),
        ("plugins' src: files, lines", f"{len(plugin)}, {sum(module.lines for module in plugin)}"),
        ("longest module", f"{long.lines} lines, {long.where}"),
        ("modules over 400 lines", str(sum(module.lines > 400 for module in known.values()))),
        ("import edges", str(sum(map(len, edges(root).values())))),
        ("circles (sets of modules), modules in them", f"{len(members)}, {sum(map(len, members))}"),
        ("pairs of modules that import each other", str(len(mutual(root)))),
        ("imports from the front door inside the core", str(len(front_door_imports(root)))),
        ("imports of a plugin by the core or another plugin", str(len(distribution_arrows(root)))),
        ("longest signature", f"{most} parameters, {where}"),
        ("functions with more than 8 parameters", str(sum(count > 8 for count, _ in signatures(root)))),
        ("names that several modules share", str(len(shared_names(root)))),
    ]
    for title, package in (("core", CORE), ("core and plugins", None)):
        rows += [
            (f"{title}: public functions without a docstring", of(without_docstring(root, package), public(root, package))),
            (f"{title}: with tensors, without a shape", of(without_shape(root, package), with_tensors(root, package))),
            (f"{title}: that raise, without a Raises section", of(without_raises(root, package), raising(root, package))),
        ]
    return rows


def main(root: Path) -> None:
    """Prints the figures of a checkout, then its circles, the imports from wing to wing, and the names used twice."""
    rows = figures(root)
    width = max(len(title) for title, _ in rows)
    print(root)
    for title, value in rows:
        print(f"  {title:<{width}}  {value}")
    for circle in circles(root):
        print("circle:", " -> ".join(circle))
    for members in circle_members(root):
        print("  all its modules:", " ".join(members))
    for (source, target), places in sorted(arrows(root).items()):
        print(f"arrow {source} -> {target}: {len(places)}")
    for name, places in shared_names(root).items():
        print(f"shared name {name}: {', '.join(places)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT)
