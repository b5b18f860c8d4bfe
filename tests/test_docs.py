"""README and docs are right: their code runs, and their lists are complete.

A comment before a block of code says how this test treats it. `<!-- long: why -->`: its commands are checked, but not run to their end.
`<!-- file: NAME -->`: the block is saved as a file for the blocks that follow. `<!-- tested: FILE -->`: that test runs it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import yaml

from gotr1_core import hookspecs
from gotr1_core.cli import common
from gotr1_core.cli.main import call, commands, read_ahead
from gotr1_core.config.merge import merge, parse_overrides, read_yaml
from gotr1_core.config.messages import dotted_keys
from gotr1_core.config.models import RunConfig, SegmentConfig, SftConfig, validate
from gotr1_core.plugins import Registry, load
from gotr1_core.reward import FUNCTIONS
from gotr1_core.runs.start import FIXED_KEYS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(?:^<!-- (?P<mark>\w+): (?P<what>.+?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
GENERATED = {f"reference/{name}.md" for name in ("cli", "config")}
LANGUAGES = {"sh", "python", "yaml", "json", "toml", "text"}
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


@dataclass(frozen=True)
class Block:
    """A block of code of a page, and the comment before it."""

    language: str
    text: str
    line: int
    mark: str
    what: str


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(m["language"], m["text"], text.count("\n", 0, m.start("text")) + 1, m["mark"] or "", m["what"] or "")
        for m in BLOCK.finditer(text)
    ]


# -- code runs --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path, miniature_run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like the root of a clone, with a run called NAME that was stopped before its end, and prompts of the reader's own."""
    for name in ("plugins", "examples", "benchmarks", "constraints.txt", "requirements.txt", "requirements-dev.txt"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(miniature_run, tmp_path / "runs" / "NAME")
    config = tmp_path / "runs" / "NAME" / "config.yaml"
    config.write_text(config.read_text(encoding="utf-8").replace("\nsteps: 3\n", "\nsteps: 115\n"), encoding="utf-8")
    (tmp_path / "my-prompts.txt").write_text("a red circle\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.unmeasured
@each_page
def test_code_runs(page: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("a_page")  # one for the page: later blocks go on where earlier ones were
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for block in blocks(page):
        where = f"{page.name}, line {block.line}"
        if block.mark == "tested":
            assert (ROOT / block.what).is_file(), where
        elif block.mark == "file":
            (place / block.what).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            code = compile("\n" * (block.line - 1) + block.text, str(page), "exec", dont_inherit=True)
            if block.mark != "long":
                exec(code, vars(module))
        elif block.language == "sh":
            for line in block.text.splitlines():
                (check if block.mark == "long" else run)(line, where)
        elif block.language == "yaml":
            yaml.safe_load(block.text)


ELSEWHERE = {"export", "vllm"}
"""Not programs that are here: one of the shell's own, and a server that needs a GPU."""


def run(line: str, where: str) -> None:
    """Runs a command to its end. gotr1's commands run in this process, which saves the imports."""
    words = shlex.split(line, comments=True)
    if words[:1] == ["gotr1"] and not set(words) & {"&&", "|", ">"}:
        assert call(words[1:]) == 0, f"{where}: {line}"
    elif words:
        assert subprocess.run(["bash", "-c", line], check=False).returncode == 0, f"{where}: {line}"


def check(line: str, where: str) -> None:
    """Checks a command that takes long: its options and files exist, and its config is valid."""
    for command in line.partition(" #")[0].split("&&"):
        words = shlex.split(command)
        if not words:
            continue
        assert words[0] in ELSEWHERE or shutil.which(words[0]), f"{where}: {line}"
        if words[0] == "python" and words[1] == "-m":
            assert importlib.util.find_spec(words[2]), f"{where}: {line}"
        elif words[0] in ("python", "pytest"):
            assert all(Path(word).exists() for word in words[1:] if word.endswith(".py")), f"{where}: {line}"
        elif words[0] == "gotr1":
            check_gotr1(words[1:], f"{where}: {line}")


def check_gotr1(words: list[str], where: str) -> None:
    parsed = parse(words)
    if words[0] == "train" and not any(served in word for served in ("openai", "gpt-4o") for word in words):  # it would ask a server
        assert call(["train", "--dry-run", *words[1:]]) == 0, where  # words may end in those after --
        name = parse_overrides([word for word in words if word.startswith("name=")]).get("name")
        if name:  # what it would have left, for the blocks that follow
            shutil.copytree("runs/NAME", f"runs/{name}")
    elif words[0] == "sft":
        path, given = common.config_or_words(parsed["config"], parsed["override"] or [])
        validate(SftConfig, merge(read_yaml(path) if path else {}, parse_overrides(given)))


def parse(words: list[str]) -> dict[str, Any]:
    """A command's arguments and options as its function would get them. Raises for what does not exist."""
    rest, files = read_ahead(words)
    common.start(files)
    group: Any = commands()
    context = group.make_context("gotr1", rest)
    while hasattr(group, "commands"):
        name, group, rest = group.resolve_command(context, [*context._protected_args, *context.args])
        context = group.make_context(name, rest, parent=context)
    return dict(context.params)


def test_what_does_not_exist_is_noticed(place: Path) -> None:
    with pytest.raises(typer.TyperException, match="No such option"):
        check("gotr1 train --no-such-option", "here")
    with pytest.raises(AssertionError, match="here"):
        check("gotr1 train plans=0", "here")
    with pytest.raises(AssertionError, match="here"):
        check("python -m gotr1_scenes.no_such_module", "here")
    with pytest.raises(AssertionError, match="here"):
        run("gotr1 generate ''", "here")


@each_page
def test_every_block_has_a_language_and_every_mark_a_block(page: Path) -> None:
    """So that the test above sees every block. A drawing is indented instead."""
    text, found = page.read_text(encoding="utf-8"), blocks(page)
    assert {block.language for block in found} <= LANGUAGES
    assert 2 * len(found) == len(re.findall(r"^\s*```", text, re.M))
    assert {block.mark for block in found} <= {"", "long", "file", "tested"}
    assert sum(bool(block.mark) for block in found) == len(re.findall(r"^<!-- \w+: ", text, re.M))


@pytest.mark.parametrize(
    "page", sorted({*PAGES, *ROOT.glob("*.md"), *(ROOT / "docs" / "reference").glob("*.md")}), ids=lambda page: page.name
)
def test_links_into_the_repository_lead_somewhere(page: Path) -> None:
    """mkdocs checks the links of the site, but not README's, and not links to folders."""
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if link not in GENERATED and not (page.parent / link).exists()] == []


# -- nothing is missing -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def reference() -> ModuleType:
    """The hook that makes pages from the code, loaded as mkdocs loads it."""
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "hooks" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def section(text: str, title: str) -> str:
    """The text under a heading that begins like this, up to the next heading of its level or above."""
    level = len(title) - len(title.lstrip("#"))
    found = re.search(rf"^{re.escape(title)}(?!\w).*?$(.*?)(?=^#{{1,{level}}} |\Z)", text, re.M | re.S)
    assert found, f"no section {title!r}"
    return found[1]


def pages(nav: Any) -> Iterator[str]:
    for entry in nav if isinstance(nav, list) else nav.values() if isinstance(nav, dict) else [nav]:
        yield from [entry] if isinstance(entry, str) else pages(entry)


def test_every_page_is_in_the_navigation() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    written = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert set(pages(nav)) == written | GENERATED


def each_command(group: Any, name: str = "gotr1") -> Iterator[tuple[str, Any]]:
    for short, command in group.commands.items():
        yield f"{name} {short}", command
        if hasattr(command, "commands"):
            yield from each_command(command, f"{name} {short}")


def test_cli_reference_has_every_command_and_option(reference: ModuleType) -> None:
    page = reference.cli()
    common.start([])
    found = dict(each_command(commands()))
    assert {"gotr1 train", "gotr1 sft", "gotr1 generate", "gotr1 evaluate", "gotr1 plugins", "gotr1 config show"} <= found.keys()
    for name, command in found.items():
        told = section(page, f"{'#' * len(name.split())} `{name}`")
        assert command.help.splitlines()[0] in told
        for parameter in command.params:
            for spelt in parameter.opts if parameter.param_type_name == "option" else [parameter.metavar or parameter.name]:
                assert spelt in told, f"{name} {spelt}"
            assert parameter.help, f"{name} {parameter.name} says nothing about itself"
            assert parameter.help in told, f"{name} {parameter.name}"


def test_config_reference_has_every_key_and_says_something_about_it(reference: ModuleType) -> None:
    page = reference.settings()
    for model, title in ((RunConfig, "## A run"), (SftConfig, "## Stage one")):
        told = section(page, title)
        rows = dict(re.findall(r"^\| `([\w.]+)` \|.*\| (.*?) \|$", told, re.M))
        sections = set(re.findall(r"^### ([\w.]+) ", told, re.M))
        assert {key for key in dotted_keys(model) if not {key, key.rpartition(".")[0]} & {*rows, *sections, ""}} == set()
        assert rows.keys() <= set(dotted_keys(model))
        assert [key for key, meaning in rows.items() if not meaning.strip()] == []


def test_config_reference_has_every_first_party_component_and_its_options(reference: ModuleType) -> None:
    page = reference.settings()
    found = reference.first_party(Registry())
    assert {"grpo", "janus", "scenes"} <= {provided.component.name for provided in found}
    for provided in found:
        component = provided.component
        told = section(page, f"### {component.kind} {component.name}")
        for option in load(component.options).model_fields if component.options else ():
            assert re.search(rf"^\| `([\w.]+\.)?{option}` \|", told, re.M), f"{component.kind} {component.name}: {option}"


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as .ci/run builds it. A warning is an error."""
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_has_every_hook_protocol_and_public_name(site: Path) -> None:
    import gotr1_core

    page = (site / "reference" / "api" / "index.html").read_text(encoding="utf-8")
    hooks = [f"hookspecs.{name}" for name in vars(hookspecs) if name.startswith("gotr1_")]
    public = [f"{module}.{name}" for name, module in gotr1_core._MODULE.items()]
    assert len(hooks) >= 7
    assert [name for name in [*hooks, *public] if f'id="gotr1_core.{name}"' not in page] == []
    assert ":class:" not in page


def test_the_site_asks_no_other_machine_for_anything(site: Path) -> None:
    asked = re.compile(r"<(?:script|img|link)\b[^>]*?(?:src|href)=\"?(?:https?:)?//[^>]*>")
    found = {m[0] for page in site.rglob("*.html") for m in asked.finditer(page.read_text(encoding="utf-8"))}
    assert {tag for tag in found if 'rel="canonical"' not in tag} == set()


# -- pages that list things --------------------------------------------------------------------------------------------------


def docs(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")


each_algorithm = pytest.mark.parametrize("name", [provided.component.name for provided in Registry().of_kind("algorithm")])


@each_algorithm
def test_an_algorithm_has_a_page_with_its_formula_and_all_its_options(name: str) -> None:
    options = load(Registry().find("algorithm", name).component.options or "").model_fields
    told = section(docs(name), "## Options")
    assert [option for option in options if f"`algorithm.{option}`" not in told] == []
    assert set(re.findall(r"^\| `algorithm\.(\w+)`", told, re.M)) == set(options)
    assert re.search(r"^    (- )?A\w* = ", docs(name), re.M)
    assert "arXiv" in docs(name)


def test_settings_of_segments_are_all_documented() -> None:
    told = section(docs("grpo"), "## Options")
    assert [setting for setting in SegmentConfig.model_fields if f"`segments.S.{setting}`" not in told] == []


def explained(page: str) -> set[str]:
    rows = re.findall(r"^\| (`.+?) \|", section(docs(page), "## Metrics"), re.M)
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def as_explained(metric: str) -> str:
    """A metric's name as the pages write it: S for either segment, NAME for a score."""
    return re.sub(r"^(plan|image)\.", "S.", re.sub(r"^(reward|nan)\..+", r"\1.NAME", metric))


@each_algorithm
def test_every_metric_is_explained(name: str, tmp_path: Path) -> None:
    """The metrics that a run writes are exactly the metrics that the pages explain."""
    short = ["steps=1", "groups=2", "plans=4", "prompts.held_out=2", "evaluation={every: 0, greedy: false, best_of: 0}"]
    everything = ["segments.image.kl=0.01", "constant_groups=keep"]
    options = load(Registry().find("algorithm", name).component.options or "").model_fields
    everything += ["algorithm.reward_kl=0.01"] if "reward_kl" in options else []
    assert call(["train", *short, *everything, f"algorithm.name={name}", f"output={tmp_path}", "name=run"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    [step] = [row for row in rows if "seconds" in row]
    lost = {"not_finite.plan", "not_finite.image", "skipped_updates"}  # only in steps that have some
    assert {as_explained(metric) for metric in step} == (explained("metrics") - lost) | explained("grpo") | explained(name)


def test_rewards_page_has_every_function_and_score() -> None:
    page = docs("rewards")
    judge = load(Registry().find("judge", "scenes").component.target)
    assert [name for name in [*FUNCTIONS, *judge.rewards] if f"`{name}" not in page] == []


def test_what_cannot_change_on_resume_is_listed() -> None:
    page = docs("runs")
    listed = re.findall(r"`([\w.]+)`", "".join(re.findall(r"^\| (`.+?) \|", section(page, "## Stopping and going on"), re.M)))
    assert sorted(listed) == sorted(FIXED_KEYS)


def test_what_a_run_leaves_is_listed(miniature_run: Path) -> None:
    page = section(docs("runs"), "# Runs on disk")
    left = {path.name for path in miniature_run.iterdir()} - {".lock"}
    assert left == {
        "config.yaml",
        "environment.json",
        "inputs.json",
        "metrics.jsonl",
        "report.html",
        "held-out.json",
        "outcome.json",
        "samples",
        "checkpoints",
    }
    last = max((miniature_run / "checkpoints").glob("step-*"))
    left |= {str(path.relative_to(last)) for path in last.rglob("*") if path.is_file()}
    assert [name for name in left if name not in page] == []


def test_design_places_every_module_of_the_core() -> None:
    core = ROOT / "gotr1_core"
    there = {path.name for path in core.glob("*.py")} | {f"{path.parent.name}/" for path in core.glob("*/__init__.py")}
    rows = re.findall(r"^\| (`.+?) \|", section(docs("design"), "### The core"), re.M)
    assert {name for row in rows for name in re.findall(r"`(.+?)`", row)} == there


def test_citation_and_changelog_are_of_this_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    latest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert latest
    assert latest[1].rstrip(",") == project["version"]
