"""How the code is laid out: what imports what, how long files are, how many parameters functions take, which names are used twice.

tests/structure.py measures. ``python tests/structure.py [ROOT]`` prints the figures.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from structure import (
    CORE,
    IDEA,
    ROOT,
    Module,
    arrows,
    assert_none,
    circles,
    core,
    distribution_arrows,
    edges,
    front_door_imports,
    inside,
    is_command,
    modules,
    parameters,
    shared_names,
    signatures,
    undeclared_testing,
    wings,
)

BASE = {IDEA, "border", "config", "engine", "policies"}
"""The idea and what it is built on. Nothing here may import a feature."""

ALLOWED: dict[str, set[str]] = {
    # The idea calls components at the border, uses the config's types, and its loop and update use the mechanics of training.
    IDEA: {"border", "config", "engine"},
    "border": {IDEA, "config", "engine"},
    "config": {IDEA},
    "engine": {IDEA, "border", "config"},
    "policies": {IDEA, "border", "config", "engine"},
    "data": {IDEA, "config", "engine"},
    # Features import the idea, never the other way round. Among themselves they have an order too: a wing imports only those above it.
    "components": {*BASE, "data"},
    "pictures": {*BASE, "data"},
    "doctor": {*BASE},
    "runs": {*BASE, "data", "components", "pictures", "doctor"},
    "workflows": {*BASE, "data", "components", "pictures", "doctor", "runs"},
    "api": {*BASE, "data", "components", "pictures", "doctor", "runs", "workflows"},
    "cli": {*BASE, "data", "components", "pictures", "doctor", "runs", "workflows", "api"},
}
"""For every wing of the core the other wings that it may import. ``idea`` is the top level of the core; ``api`` is ``api.py`` there."""

TOP_FILES, TOP_LINES = 20, 3_500
"""The top level of the core is what somebody reads in an afternoon."""

MODULE_LINES = 400
CORE_LINES = 17_500
"""The whole core, all wings together. It had 12,776 lines before the conformance suite became a plugin. The rebuild ended below
10,500, and the readers of data and the fingerprints of runs took it to 12,000. The checks of what plugins return, runs that went wrong
and hostile input took it to 15,600; faster runs, the cache of keys and values, and judges behind servers to 17,100; the files
of stage one, and checks of checkpoints before they are loaded, to 17,400."""

PARAMETERS = 8

CONVENTIONS = {
    "command": "the one command that a file of the command line defines",
    "main": "what runs when a file is run as a program",
    "preflight": "the check before weights are loaded that the protocol Preflight names, in the core and for each model family",
    "load_model": "loads a checkpoint's model, in the plugin of each model family",
    "load_tokenizer": "loads a checkpoint's tokenizer, in the plugin of each model family",
}
"""Names that may be used more than once, and what each means wherever it is used. Hooks (``gotr1_…``) may be, too."""


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert_none(" -> ".join(circle) for circle in circles(ROOT))


def test_every_wing_is_known() -> None:
    assert set(wings(ROOT)) | {IDEA, "api"} == set(ALLOWED)


def test_nothing_in_the_idea_imports_a_feature() -> None:
    assert_none(place for (source, target), places in arrows(ROOT).items() for place in places if source in BASE and target not in BASE)


def test_wings_import_only_what_the_table_allows() -> None:
    assert_none(
        f"{source} may not import {target}: {place}"
        for (source, target), places in arrows(ROOT).items()
        for place in places
        if target not in ALLOWED.get(source, ())
    )


def test_the_order_of_the_features_has_no_circle() -> None:
    """Takes away, again and again, the wings whose imports are all taken away already. In the end none may remain."""
    left = {name: targets - BASE for name, targets in ALLOWED.items() if name not in BASE}
    while left:
        free = {name for name, targets in left.items() if not targets & left.keys()}
        assert free, left
        left = {name: targets for name, targets in left.items() if name not in free}


def test_no_module_of_the_core_imports_the_front_door() -> None:
    assert_none(front_door_imports(ROOT))


def test_the_core_imports_no_plugin_and_no_plugin_another() -> None:
    assert_none(distribution_arrows(ROOT))
    assert_none(undeclared_testing(ROOT))


def test_the_top_level_is_short() -> None:
    top = [module for module in core(ROOT) if module.path.parent == ROOT / CORE]
    assert len(top) <= TOP_FILES
    assert sum(module.lines for module in top) <= TOP_LINES


def test_no_module_is_long() -> None:
    assert_none(f"{module.where} has {module.lines} lines" for module in modules(ROOT).values() if module.lines > MODULE_LINES)


def test_the_core_is_small() -> None:
    assert sum(module.lines for module in core(ROOT)) < CORE_LINES


@pytest.mark.parametrize("wing", sorted(ALLOWED.keys() - {IDEA, "api"}))
def test_a_wing_says_in_a_few_lines_what_it_is_and_where_to_begin(wing: str) -> None:
    module = wings(ROOT)[wing]
    docstring = ast.get_docstring(module.tree) or ""
    lines = [line for line in docstring.splitlines() if line.strip()]
    assert 3 <= len(lines) <= 6, f"{module.where}: {len(lines)} lines"
    named = re.findall(r"[\w/]+\.py\b", docstring)
    assert named, f"{module.where} names no file to read first"
    assert_none(f"{module.where} names {name}, which is not there" for name in named if not (module.path.parent / name).is_file())


def test_no_function_takes_many_parameters() -> None:
    """Commands aside: theirs are the options of a line (``is_command`` says which functions these are)."""
    assert_none(f"{where} takes {count} parameters" for count, where in signatures(ROOT) if count > PARAMETERS)


def test_a_name_means_one_thing() -> None:
    """No two modules define a public function or class of one name. Names of conventions and hooks aside."""
    assert_none(
        f"{name}: {', '.join(places)}"
        for name, places in shared_names(ROOT).items()
        if name not in CONVENTIONS and not name.startswith("gotr1_")
    )


# --- the measures themselves --------------------------------------------------------------------------------------


def _tree(root: Path, files: dict[str, str]) -> Path:
    """A checkout with these sources: paths in gotr1_core, or from the root where they begin with ``plugins/``."""
    for name, text in {"__init__.py": "from gotr1_core.a import A", "requirements": "", **files}.items():
        path = root / (name if name.startswith("plugins/") else f"{CORE}/{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_imports_are_found_wherever_they_stand(tmp_path: Path) -> None:
    root = _tree(
        tmp_path,
        {
            "a.py": "if TYPE_CHECKING:\n    from gotr1_core import b\ndef f():\n    import gotr1_core.c\n",
            "b.py": "from .wing import one\nfrom . import c",
            "c.py": "import importlib\nimportlib.import_module('gotr1_core.wing.two')",
            "wing/__init__.py": '"""Text."""\n',
            "wing/one.py": "from gotr1_core.a import A",
            "wing/two.py": "from ..full import deep\nfrom gotr1_core import Name",
            "full/__init__.py": "from gotr1_core.full.deep import X",
            "full/deep.py": "from gotr1_core.full import other",
            "full/other.py": "",
        },
    )
    graph = {name.removeprefix("gotr1_core."): {t.removeprefix("gotr1_core.") for t in targets} for name, targets in edges(root).items()}
    assert graph == {
        CORE: set(),
        "a": {"b", "c"},
        "b": {"wing.one", "c"},
        "c": {"wing.two"},
        "wing": set(),
        "wing.one": {"a"},
        "wing.two": {"full.deep", "full", CORE},  # the package runs code
        "full": {"full.deep"},
        "full.deep": {"full.other"},  # it lies in the package, whose code is running already
        "full.other": set(),
    }
    assert circles(root) == [["gotr1_core.a", "gotr1_core.b", "gotr1_core.wing.one", "gotr1_core.a"]]
    assert arrows(root)["wing", "full"] == [
        "gotr1_core/wing/two.py:1 imports gotr1_core.full.deep",
        "gotr1_core/wing/two.py:1 imports gotr1_core.full",
    ]
    assert front_door_imports(root) == ["gotr1_core/wing/two.py:2 imports Name from the front door"]


def test_a_plugin_imports_the_conformance_suite_where_it_says_so(tmp_path: Path) -> None:
    project = '[project]\nname = "gotr1-x"\n[project.optional-dependencies]\ntesting = ["gotr1_testing==1"]\n'
    root = _tree(
        tmp_path,
        {
            "a.py": "import gotr1_x.mine",
            "plugins/gotr1-testing/src/gotr1_testing/__init__.py": "",
            "plugins/gotr1-x/pyproject.toml": project,
            "plugins/gotr1-x/src/gotr1_x/mine.py": "import gotr1_testing",
            "plugins/gotr1-y/pyproject.toml": '[project]\nname = "gotr1-y"\n',
            "plugins/gotr1-y/src/gotr1_y/mine.py": "import gotr1_testing",
            "plugins/gotr1-y/tests/test_y.py": "import gotr1_testing",
        },
    )
    (root / "requirements-dev.txt").write_text("-e .\n")
    assert distribution_arrows(root) == [
        "gotr1_core/a.py:1 imports gotr1_x.mine",
        "plugins/gotr1-y/src/gotr1_y/mine.py:1 imports gotr1_testing",
    ]
    assert undeclared_testing(root) == ["plugins/gotr1-y/tests/test_y.py"]


@pytest.mark.parametrize(
    ("source", "bound", "count"),
    [
        ("def f(a, /, b, *c, d, **e): ...", False, 5),
        ("def f(self, a, *, b=1): ...", True, 2),
        ("def f(*args): ...", True, 1),
        ("async def f(): ...", False, 0),
    ],
)
def test_parameters_of_every_kind_count(source: str, bound: bool, count: int) -> None:
    function = ast.parse(source).body[0]
    assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
    assert parameters(function, bound) == count


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("gotr1_core.cli.train", "def command(a): ...", True),
        ("gotr1_core.cli.config", "@app.command('x')\ndef show(a): ...", True),
        ("gotr1_core.cli.main", "def run(a: Annotated[int, typer.Option()]): ...", True),
        ("gotr1_core.cli.main", "def run(a: int): ...", False),
        ("gotr1_core.runs.start", "def command(a): ...", False),
        ("gotr1_janus.commands", "def command(a): ...", True),
    ],
)
def test_commands_are_told_from_other_functions(module: str, source: str, expected: bool) -> None:
    tree = ast.parse(source)
    (function,) = tree.body
    assert isinstance(function, ast.FunctionDef)
    assert is_command(Module(module, Path("x.py"), tree, 1, "x.py"), function) is expected


def test_a_longer_name_is_not_inside_a_package() -> None:
    assert inside("gotr1_core.cli", "gotr1_core.cli")
    assert not inside("gotr1_core.client", "gotr1_core.cli")
