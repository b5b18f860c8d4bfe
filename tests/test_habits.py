"""A contributor's commands are written once, and CI runs the same ones. The files that GitHub shows to reporters are well-formed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
GITHUB = ROOT / ".github"
INSTALL = "pip install -c constraints.txt -r requirements-dev.txt"
CHECKS = ("lint", "types", "docs")
TARGETS = ("setup", "test", "test-fast", *CHECKS, "bench", "coverage", "coverage-report")
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


def make(*words: str) -> list[str]:
    """The lines that ``make`` prints."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "--silent", "--no-print-directory", *words]
    return subprocess.run(command, cwd=ROOT, env=own, check=True, capture_output=True, text=True).stdout.splitlines()


def recipe(target: str) -> list[str]:
    """The commands of a Makefile target. They are not run."""
    return make("--dry-run", target)


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def code(name: str) -> str:
    """A shell script without its comments."""
    return re.sub(r"^\s*#.*", "", text(name), flags=re.M)


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


# -- one truth --------------------------------------------------------------------------------------------------------------


@needs_make
@pytest.mark.parametrize("target", TARGETS)
def test_a_target_has_commands(target: str) -> None:
    assert recipe(target)


@needs_make
def test_setup_and_test_are_the_halves_of_readmes_command() -> None:
    command = " && ".join([*recipe("setup"), *recipe("test")])
    assert make("readme") == [command]
    for page in ("README.md", "CONTRIBUTING.md"):
        assert [line for line in text(page).splitlines() if line.startswith(INSTALL)] == [command], page
    assert INSTALL not in code(".ci/run")


@needs_make
def test_the_fast_tests_are_some_of_the_tests() -> None:
    [fast] = recipe("test-fast")
    [test] = recipe("test")
    assert fast.startswith(f"{test} ")
    paths = fast.removeprefix(test).split()
    assert [path for path in paths if not (ROOT / path).exists()] == []


@needs_make
def test_ci_runs_readmes_command_and_these_targets() -> None:
    run = code(".ci/run")
    assert re.search(r'^command="\$\(make .*\breadme\)"$', run, re.M)
    assert f'step "make --jobs 2 {" ".join(CHECKS)} coverage-report"' in run
    assert re.findall(r"\b(?:ruff|mypy|mkdocs|pytest|coverage [a-z]+)\b", run) == []  # tools are called by the Makefile alone


@needs_make
def test_the_benchmark_is_the_one_of_readme() -> None:
    [command] = recipe("bench")
    assert f"`{command}`" in text("README.md")


@needs_make
def test_a_commit_is_checked_with_the_same_tools() -> None:
    """Those of the environment, which constraints.txt pins. A hook from another repository would have its own version."""
    repositories = read(ROOT / ".pre-commit-config.yaml")["repos"]
    assert [repository["repo"] for repository in repositories] == ["local"]
    hooks = [hook for repository in repositories for hook in repository["hooks"]]
    assert {hook["language"] for hook in hooks} == {"system"}
    checks = [re.sub(r" \.$", "", command) for target in ("lint", "types") for command in recipe(target)]
    assert [hook["entry"].replace(" --force-exclude", "") for hook in hooks] == checks
    [types] = [hook for hook in hooks if hook["entry"] == "mypy"]  # which takes what is given, not the folders of its settings
    folders = tomllib.loads(text("pyproject.toml"))["tool"]["mypy"]["files"]
    assert [folder for folder in folders if not re.search(types["files"], f"{folder}/module.py")] == []


def test_the_workflow_runs_ci_on_linux_and_macos() -> None:
    workflow = read(GITHUB / "workflows" / "ci.yml")
    assert {"push", "pull_request"} <= workflow[True].keys()  # YAML reads `on` as true
    [job] = workflow["jobs"].values()
    assert set(job["strategy"]["matrix"]["os"]) == {"ubuntu-latest", "macos-latest"}
    assert job["runs-on"] == "${{ matrix.os }}"
    assert [step["run"] for step in job["steps"] if "run" in step] == ["bash .ci/run"]
    assert all(re.fullmatch(r"[\w/-]+@v\d+", step["uses"]) for step in job["steps"] if "uses" in step)
    [python] = [step["with"]["python-version"] for step in job["steps"] if "setup-python" in step.get("uses", "")]
    assert f'requires-python = ">={python}"' in text("pyproject.toml")


# -- templates --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["bug", "feature"])
def test_an_issue_form_is_well_formed(form: str) -> None:
    """By GitHub's rules. GitHub does not show a form that breaks one."""
    data = read(GITHUB / "ISSUE_TEMPLATE" / f"{form}.yml")
    assert {"name", "description", "body"} <= data.keys()
    asked = [field for field in data["body"] if field["type"] != "markdown"]
    assert {field["type"] for field in asked} <= {"textarea", "input", "dropdown", "checkboxes"}
    assert all(field["attributes"]["label"] for field in asked)
    ids = [field["id"] for field in asked]
    assert len(set(ids)) == len(ids)
    assert any(field.get("validations", {}).get("required") for field in asked)


def test_a_bug_report_has_what_reproduces_it() -> None:
    fields = [field["id"] for field in read(GITHUB / "ISSUE_TEMPLATE" / "bug.yml")["body"] if "id" in field]
    assert {"command", "config", "doctor", "environment", "expected", "got"} <= set(fields)
    assert isinstance(read(GITHUB / "ISSUE_TEMPLATE" / "config.yml")["blank_issues_enabled"], bool)


def test_a_pull_request_says_why_and_what_was_measured() -> None:
    template = text(".github/PULL_REQUEST_TEMPLATE.md")
    for wanted in ("## Why", "## What changed", "## Measured", "A test fails without", "CHANGELOG.md"):
        assert wanted in template
