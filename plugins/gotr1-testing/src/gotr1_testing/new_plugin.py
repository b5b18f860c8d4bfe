"""``gotr1 plugins new``: writes a package with one component, which works as it is, for you to change."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import gotr1_core
from gotr1_core.engine.console import print
from gotr1_core.errors import UsageError

if TYPE_CHECKING:
    from gotr1_core.hookspecs import Kind

KINDS = ("planner", "renderer", "judge", "algorithm", "source", "benchmark")
_TRY = {
    "planner": "gotr1 train --preset scenes --planner {name} train=planner steps=1",
    "renderer": "gotr1 train --preset scenes --renderer {name} train=renderer steps=1",
    "judge": "gotr1 train --preset scenes --judge scenes --judge {name} 'reward=pi * cover' steps=1",
    "algorithm": "gotr1 train --preset scenes --algorithm {name} steps=1",
    "source": "gotr1 train --preset scenes prompts.source={name} steps=1",
    "benchmark": "gotr1 evaluate --benchmark {name}",
}


def new_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the component; the package is gotr1-NAME.")],
    kind: Annotated[str, typer.Option(help=f"What the package gives: {', '.join(KINDS)}.")],
    out: Annotated[Path | None, typer.Option(help="The folder to make; gotr1-NAME here if not given.")] = None,
) -> None:
    """Writes a package with a component that works as it is. It installs, passes its tests and `gotr1 check`, and trains a step."""
    from gotr1_core.cli.common import parse_kind

    name = name.removeprefix("gotr1-")
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise UsageError(f"{name!r} cannot name a package", hint="use small letters, digits and dashes, such as my-judge")
    component_kind = parse_kind(kind)
    if component_kind not in KINDS:
        raise UsageError(f"there is no package to begin a {kind} with", hint=f"a {kind} needs no code; kinds: {', '.join(KINDS)}")
    folder = out or Path(f"gotr1-{name}")
    if folder.exists():
        raise UsageError(f"{folder} exists already", hint="choose another name, or another folder with --out")
    for path, text in package_files(name, component_kind).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    print(f"pip install -e {folder}\npytest {folder}\ngotr1 check {kind} {name}\n{_TRY[kind].format(name=name)}")


def package_files(name: str, kind: Kind) -> dict[str, str]:
    """The texts of a package's files by path, for a component ``name`` of a kind. Its code is that of the smallest such component."""
    words = {"name": name, "kind": kind, "article": "An" if kind == "algorithm" else "A", "command": _TRY[kind].format(name=name)}
    words |= {"camel": "".join(word.capitalize() for word in name.split("-")), "module": f"gotr1_{name.replace('-', '_')}"}
    code, _, hook = read_template(kind).partition("\n\n\n@hookimpl\n")
    code = _renamed(code, words)
    has_options = f"class {words['camel']}Options" in code
    words["options"] = f'"{words["module"]}.component:{words["camel"]}Options"' if has_options else "None"
    words["summary"] = re.findall(r'"([^"]*)"', hook)[-1]
    return {
        "pyproject.toml": _PROJECT.format(**words),
        "README.md": _README.format(**words),
        f"src/{words['module']}/__init__.py": '"""{article} {kind} for gotr1."""\n'.format(**words),
        f"src/{words['module']}/component.py": code.rstrip("\n") + "\n",
        f"src/{words['module']}/plugin.py": _PLUGIN.format(**words),
        f"tests/test_{words['module']}.py": _TESTS.get(kind, _CONTRACT).format(contract=f"{kind.capitalize()}Contract", **words),
    }


def _renamed(code: str, words: Mapping[str, str]) -> str:
    """A template's code without its hook: with other names, and without the imports that only the hook needs."""
    code = re.sub(r"The smallest( trainable)?", words["article"], code, count=1)
    code = code.replace("the smallest {kind}".format(**words), "the {kind} {name}".format(**words))
    for old, new in ((f"Smallest{words['kind'].capitalize()}", ""), ("SmallestOptions", "Options"), ("Smallest", "")):
        code = re.sub(rf"\b{old}\b", words["camel"] + new, code)
    code = re.sub(
        r"^from gotr1_core import .*", lambda line: re.sub(r"\b(Component|hookimpl), |, hookimpl\b", "", line[0]), code, flags=re.M
    )
    return re.sub(r"^from collections\.abc import Iterator\n\n?|(?<=collections\.abc import )Iterator, ", "", code, flags=re.M)


def read_template(kind: Kind) -> str:
    """The code of the smallest component of a kind: in an installed gotr1 part of the package, else the repository's example."""
    core = Path(gotr1_core.__file__).parent
    packaged = core / "templates" / f"{kind}.py"
    return (packaged if packaged.is_file() else core.parent / "examples" / f"smallest_{kind}.py").read_text(encoding="utf-8")


_PROJECT = """\
[build-system]
requires = ["hatchling>=1.27"]
build-backend = "hatchling.build"

[project]
name = "gotr1-{name}"
version = "0.1.0"
description = "The {kind} {name} for gotr1."
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["gotr1>=0.1,<0.2"]

[project.optional-dependencies]
tests = ["gotr1-testing>=0.1,<0.2", "pytest>=8"]

[project.entry-points.gotr1]
{name} = "{module}.plugin"

[tool.hatch.build.targets.wheel]
packages = ["src/{module}"]

[tool.pytest.ini_options]
testpaths = ["tests"]
"""
_README = """\
# gotr1-{name}

{article} {kind} for gotr1. `src/` has its code: change it. How it is called is described in gotr1's docs, "Write a plugin".

```sh
pip install -e '.[tests]'
pytest
gotr1 check {kind} {name}
{command}
```
"""
_PLUGIN = '''\
"""Registers the {kind} by name only, so that listing plugins imports nothing heavy."""

from collections.abc import Iterator

from gotr1_core import Component, hookimpl


@hookimpl
def gotr1_components() -> Iterator[Component]:
    yield Component("{kind}", "{name}", "{module}.component:{camel}", {options}, "{summary}")
'''
_CONTRACT = '''\
"""The conformance suite of gotr1. The {kind} is got by its name, as gotr1 gets it."""

import pytest
from gotr1_testing import {contract}

from gotr1_core import component


class Test{camel}({contract}):
    @pytest.fixture
    def {kind}(self):
        return component("{kind}", "{name}")
'''
_TESTS = {}
_TESTS["source"] = '''\
"""The source, got by its name, as gotr1 gets it."""

from gotr1_core import component


def test_the_same_arguments_give_the_same_prompts():
    source = component("source", "{name}")
    prompts = source.prompts("train", 8, 0)
    assert len(prompts) == 8
    assert list(source.prompts("train", 5, 0, 3)) == list(prompts[3:])
    assert list(source.prompts("validation", 8, 0)) != list(prompts)
'''
_TESTS["benchmark"] = '''\
"""The benchmark, got by its name, as gotr1 gets it."""

from gotr1_core import Sample, component, parse


def test_it_measures_every_sample():
    benchmark = component("benchmark", "{name}")
    prompts = benchmark.prompts(2)
    assert len(prompts) == 2
    measured = benchmark.measure([Sample(prompt, parse(prompt.text), None) for prompt in prompts])
    assert all(len(values) == 2 for values in measured.values())
'''
