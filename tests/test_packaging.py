"""The core and its plugins as distributions: one version, exact cross-pins, complete dependencies, allowed imports."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from structure import SHARED

ROOT = Path(__file__).resolve().parent.parent

# Import names that are not their distribution's name.
DISTRIBUTION_OF = {"PIL": "pillow", "yaml": "pyyaml", "gotr1_core": "gotr1"}

# The recipe that makes the weights of gotr1-scenes: for a checkout, in no wheel.
RECIPE = "gotr1_scenes_recipe"


@dataclass(frozen=True)
class Distribution:
    directory: Path
    package: Path
    project: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.project["name"])

    @property
    def version(self) -> str:
        return str(self.project["version"])

    @property
    def requirements(self) -> dict[str, Requirement]:
        parsed = map(Requirement, self.project["dependencies"])
        return {canonicalize_name(requirement.name): requirement for requirement in parsed}


def read(directory: Path, package: str) -> Distribution:
    project = tomllib.loads((directory / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return Distribution(directory, directory / package, project)


CORE = read(ROOT, "gotr1_core")
PLUGINS = [
    read(path.parent, f"src/{path.parent.name.replace('-', '_')}") for path in sorted((ROOT / "plugins").glob("gotr1-*/pyproject.toml"))
]
each_plugin = pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.name)
each_distribution = pytest.mark.parametrize("distribution", [CORE, *PLUGINS], ids=lambda distribution: distribution.name)


@each_distribution
def test_hatchling_alone_builds_it(distribution: Distribution) -> None:
    """.ci/run installs hatchling, with what it needs for editable packages, and builds all packages with that."""
    build = tomllib.loads((distribution.directory / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]
    assert build["build-backend"] == "hatchling.build"
    assert [Requirement(requirement).name for requirement in build["requires"]] == ["hatchling"]
    assert "hatchling editables" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


@cache
def imports(package: Path) -> dict[str, list[str]]:
    """Every absolute module name imported in a package, lazily or not, with the places of the imports."""
    found: dict[str, list[str]] = {}
    for path in sorted(package.rglob("*.py")):
        for line, module in imports_of(path.read_text(encoding="utf-8")):
            found.setdefault(module, []).append(f"{path.relative_to(ROOT)}:{line}")
    return found


def imports_of(source: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.stmt | ast.expr):
            yield from ((node.lineno, module) for module in imported_by(node))


def imported_by(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Import(names=names):
            yield from (alias.name for alias in names)
        case ast.ImportFrom(module=str(module), level=0):
            yield module
        # importlib.import_module("name") and __import__("name")
        case (
            ast.Call(func=ast.Name(id="import_module" | "__import__"), args=[ast.Constant(value=str(module)), *_])
            | ast.Call(func=ast.Attribute(attr="import_module"), args=[ast.Constant(value=str(module)), *_])
        ) if not module.startswith("."):
            yield module


def roots(package: Path) -> dict[str, list[str]]:
    """The imports by top-level name, without the standard library and the package itself."""
    found: dict[str, list[str]] = {}
    for module, places in imports(package).items():
        root = module.partition(".")[0]
        if root not in sys.stdlib_module_names and root != package.name:
            found.setdefault(root, []).extend(places)
    return found


def lines(name: str) -> list[str]:
    stripped = (line.partition("#")[0].strip() for line in (ROOT / name).read_text(encoding="utf-8").splitlines())
    return [line for line in stripped if line]


def pins() -> dict[str, Requirement]:
    parsed = [Requirement(line) for line in lines("constraints.txt")]
    by_name = {canonicalize_name(requirement.name): requirement for requirement in parsed}
    assert len(by_name) == len(parsed), "constraints.txt pins something twice"
    return by_name


def pinned_version(requirement: Requirement) -> Version:
    (specifier,) = requirement.specifier
    assert specifier.operator == "==", f"not a pin: {requirement}"
    return Version(specifier.version)


# --- lockstep ---------------------------------------------------------------------------------------------------


def test_first_party_plugins_are_found() -> None:
    assert {plugin.name for plugin in PLUGINS} >= {"gotr1-rl", "gotr1-scenes", "gotr1-janus"}


@each_plugin
def test_plugin_moves_in_lockstep_with_the_core(plugin: Distribution) -> None:
    assert plugin.name == plugin.directory.name
    assert plugin.version == CORE.version
    assert str(plugin.requirements["gotr1"].specifier) == f"=={CORE.version}"
    assert plugin.project["requires-python"] == CORE.project["requires-python"]


@each_plugin
def test_plugin_registers_one_entry_point(plugin: Distribution) -> None:
    short = plugin.name.removeprefix("gotr1-")
    assert plugin.project["entry-points"]["gotr1"] == {short: f"gotr1_{short}.plugin"}
    assert (plugin.package / "plugin.py").is_file()


def test_extras_name_every_plugin_with_the_exact_version() -> None:
    extras = CORE.project["optional-dependencies"]
    exact = {plugin.name.removeprefix("gotr1-"): f"{plugin.name}=={CORE.version}" for plugin in PLUGINS}
    assert sorted(extras["all"]) == sorted(exact.values())
    # The contract classes of the conformance suite need pytest. `gotr1 check`, which comes with `all`, does not.
    exact["testing"] = f"gotr1-testing[pytest]=={CORE.version}"
    assert {name: extras[name] for name in exact} == {name: [pin] for name, pin in exact.items()}


@each_distribution
def test_distribution_is_typed_and_documented(distribution: Distribution) -> None:
    assert (distribution.package / "py.typed").is_file()
    assert (distribution.package / "__init__.py").is_file()
    assert (distribution.directory / str(distribution.project["readme"])).is_file()


# --- what an install brings -------------------------------------------------------------------------------------


def test_requirements_install_the_core_and_every_plugin_from_the_checkout() -> None:
    local = [".", *(f"./plugins/{plugin.name}" for plugin in PLUGINS)]
    assert sorted(lines("requirements.txt")) == sorted(local)
    editable = [line.removeprefix("-e ") for line in lines("requirements-dev.txt") if line.startswith("-e ")]
    assert sorted(editable) == sorted(local)


@each_distribution
def test_a_wheel_holds_the_package_alone(distribution: Distribution) -> None:
    """No tests, no recipe of gotr1-scenes, and of the examples only the smallest components, which `gotr1 plugins new` copies."""
    text = (distribution.directory / "pyproject.toml").read_text(encoding="utf-8")
    package = distribution.package.relative_to(distribution.directory).as_posix()
    targets = tomllib.loads(text)["tool"]["hatch"]["build"]["targets"]
    if distribution is CORE:
        smallest = sorted(path.stem for path in (ROOT / "examples").glob("smallest_*.py"))
        templates = {f"examples/{name}.py": f"gotr1_core/templates/{name.removeprefix('smallest_')}.py" for name in smallest}
        assert targets["wheel"].pop("force-include") == templates
        assert targets["sdist"]["only-include"].pop() == "examples"  # a wheel can be built of it
    assert targets == {"wheel": {"packages": [package]}, "sdist": {"only-include": [package]}}
    assert not (distribution.package / RECIPE).exists()


@each_distribution
def test_constraints_satisfy_the_declared_ranges(distribution: Distribution) -> None:
    pinned = pins()
    for name, requirement in distribution.requirements.items():
        if not name.startswith("gotr1"):
            assert name in pinned, f"{distribution.name} needs {name}, which constraints.txt does not pin"
            assert requirement.specifier.contains(pinned_version(pinned[name])), f"{pinned[name]} is outside {requirement}"


def test_constraints_pin_the_development_tools() -> None:
    tools = {canonicalize_name(Requirement(line).name) for line in lines("requirements-dev.txt") if not line.startswith("-e ")}
    assert tools <= pins().keys()


def test_constraints_are_exact_and_fit_any_machine() -> None:
    versions = {name: pinned_version(requirement) for name, requirement in pins().items()}
    assert "torch" in versions
    assert [name for name, version in versions.items() if version.local] == []
    assert versions.keys().isdisjoint({"pip", "setuptools", CORE.name, *(plugin.name for plugin in PLUGINS)})


# --- what the sources import ------------------------------------------------------------------------------------


@each_distribution
def test_every_import_is_a_declared_dependency(distribution: Distribution) -> None:
    optional = [Requirement(text) for texts in distribution.project.get("optional-dependencies", {}).values() for text in texts]
    declared = {*distribution.requirements, *(canonicalize_name(requirement.name) for requirement in optional)}
    undeclared = {
        root: places
        for root, places in roots(distribution.package).items()
        if canonicalize_name(DISTRIBUTION_OF.get(root, root)) not in declared
    }
    assert undeclared == {}


def test_the_core_imports_no_model_library_and_no_plugin() -> None:
    forbidden = {root: places for root, places in roots(CORE.package).items() if root.startswith(("transformers", "diffusers", "gotr1"))}
    assert forbidden == {}


@each_plugin
def test_a_plugin_imports_no_other_plugin(plugin: Distribution) -> None:
    first_party = {root: places for root, places in roots(plugin.package).items() if root.startswith("gotr1")}
    declared = {name.replace("-", "_") for name in plugin.requirements} & set(SHARED)
    assert first_party.keys() <= {"gotr1_core", *declared}, first_party


@each_distribution
def test_no_distribution_imports_the_recipe(distribution: Distribution) -> None:
    """An editable install finds the recipe, so that only this test notices an import that breaks the wheel."""
    assert (ROOT / "plugins/gotr1-scenes/recipe" / RECIPE / "__init__.py").is_file()
    assert RECIPE not in roots(distribution.package)


def test_nothing_imports_click() -> None:
    """Typer vendors Click. The result of `import click` is not Typer's Click, or an error."""
    modules = {
        f"{path.relative_to(ROOT)}:{line}": module
        for path in repository_files()
        if path.suffix == ".py"
        for line, module in imports_of(path.read_text(encoding="utf-8"))
    }
    assert [place for place, module in modules.items() if module.partition(".")[0] == "click"] == []


def test_lazy_and_dynamic_imports_are_seen() -> None:
    source = "def f():\n    import a.b\n    from c import d\n    importlib.import_module('e.f')\n    from . import g\n"
    assert sorted(imports_of(source)) == [(2, "a.b"), (3, "c"), (4, "e.f")]


# --- registries -------------------------------------------------------------------------------------------------

# Which registry serves the packages is the machine's business. Written in pieces, so that this file passes too.
REGISTRY = re.compile(
    "|".join(
        [
            r"py" + r"pi\.(org|python)",
            r"python" + r"hosted\.org",
            r"download\." + r"pytorch\.org",
            r"registry\." + r"(npmjs|yarnpkg)",
            r"anaconda" + r"\.(org|com)",
            r"deb\." + r"debian\.org",
            r"proxy\." + r"golang\.org",
            r"crates" + r"\.io",
            r"--(extra-)?" + r"index-url",
            r"--find" + r"-links",
        ]
    ).encode(),
    re.IGNORECASE,
)
GENERATED = {".git", ".venv", "runs", "build", "dist", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis"}


def repository_files() -> list[Path]:
    """The files that git would commit. Without git, every file except generated ones."""
    if (ROOT / ".git").exists():
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout.decode().split("\0")
        paths = [ROOT / name for name in names if name]
    else:
        paths = [path for path in ROOT.rglob("*") if GENERATED.isdisjoint(path.relative_to(ROOT).parts)]
    return [path for path in paths if path.is_file()]


def test_no_file_names_a_package_registry() -> None:
    files = repository_files()
    assert Path(__file__) in files
    named = {}
    for path in files:
        if path.suffix not in {".safetensors", ".png"} and (match := REGISTRY.search(path.read_bytes())):
            named[str(path.relative_to(ROOT))] = match.group().decode()
    assert named == {}
