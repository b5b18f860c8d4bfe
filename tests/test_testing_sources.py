"""Checks of sources, benchmarks and presets: those that ship pass, and each check finds the mistake that it is for."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from gotr1_core import component
from gotr1_core.chain import parse
from gotr1_core.cli.main import call
from gotr1_core.hookspecs import Component
from gotr1_core.plugins import Registry
from gotr1_core.samples import Example, Prompt, Sample
from gotr1_testing import BenchmarkContract, CheckResult, PresetContract, PresetSubject, SourceContract
from gotr1_testing.runner import checks_of

pytestmark = pytest.mark.unmeasured


class TestScenesSource(SourceContract):
    @pytest.fixture
    def source(self) -> Any:
        return component("source", "scenes")


class TestScenesBenchmark(BenchmarkContract):
    @pytest.fixture
    def benchmark(self) -> Any:
        return component("benchmark", "scenes")


class TestPresets(PresetContract):
    @pytest.fixture(params=[provided.component.name for provided in Registry().of_kind("preset")])
    def preset(self, request: Any) -> str:
        return str(request.param)


# -- sources ----------------------------------------------------------------------------------------------------------------


class Captions:
    """A correct source of made-up captions."""

    def prompts(self, split: str, count: int, seed: int, start: int = 0) -> Sequence[Prompt]:
        return [Prompt(f"{split} picture {i} of {seed}", f"{split}-{i}", metadata={"number": i}) for i in range(start, start + count)]

    def examples(self, split: str, start: int, count: int, seed: int) -> Sequence[Example]:
        return [Example(prompt, parse("a cat")) for prompt in self.prompts(split, count, seed, start)]


class Remembers(Captions):
    """Goes on where it stopped, whatever ``start`` is."""

    at = 0

    def prompts(self, split: str, count: int, seed: int, start: int = 0) -> Sequence[Prompt]:
        self.at += count
        return super().prompts(split, count, seed, self.at - count)


class Shuffles(Captions):
    """Shuffles what it gives by the number of prompts that it is asked for."""

    def prompts(self, split: str, count: int, seed: int, start: int = 0) -> Sequence[Prompt]:
        return super().prompts(split, count, seed, start)[::-1]


class OneSplit(Captions):
    """Has one list for both splits."""

    def prompts(self, split: str, count: int, seed: int, start: int = 0) -> Sequence[Prompt]:
        return super().prompts("all", count, seed, start)


class Tuples(Captions):
    """Has metadata that JSON changes."""

    def prompts(self, split: str, count: int, seed: int, start: int = 0) -> Sequence[Prompt]:
        return [Prompt(p.text, p.id, metadata={"at": (1, 2)}) for p in super().prompts(split, count, seed, start)]


class Blank(Captions):
    """Has a prompt without text."""

    def prompts(self, split: str, count: int, seed: int, start: int = 0) -> Sequence[Prompt]:
        return [Prompt("" if i == 3 else p.text) for i, p in enumerate(super().prompts(split, count, seed, start))]


class Short(Captions):
    """Gives one prompt less than asked for."""

    def prompts(self, split: str, count: int, seed: int, start: int = 0) -> Sequence[Prompt]:
        return super().prompts(split, max(0, count - 1), seed, start)


class Malformed(Captions):
    """Has examples whose chains are malformed."""

    def examples(self, split: str, start: int, count: int, seed: int) -> Sequence[Example]:
        return [Example(prompt, parse("a <|obj_start|>cat")) for prompt in self.prompts(split, count, seed, start)]


SOURCES = {
    Remembers: "same-prompts-again",
    Shuffles: "prompts-have-numbers",
    OneSplit: "splits-are-apart",
    Tuples: "prompts-are-usable",
    Blank: "prompts-are-usable",
    Short: "same-prompts-again",
    Malformed: "examples-have-numbers",
}


def verdicts(kind: Any, subject: Any) -> dict[str, CheckResult]:
    return {check.name: check.run(subject) for check in checks_of(kind)}


@pytest.mark.parametrize("broken", SOURCES)
def test_a_mistake_of_a_source_is_caught(broken: type[Captions]) -> None:
    assert all(result.passed for result in verdicts("source", Captions()).values())
    result = verdicts("source", broken())[SOURCES[broken]]
    assert result.passed is False, result


# -- benchmarks -------------------------------------------------------------------------------------------------------------


class Lengths:
    """A correct benchmark, which measures the length of chains."""

    def prompts(self, count: int | None) -> Sequence[Prompt]:
        return [Prompt(f"a number {i}", str(i), "numbers") for i in range(6)][:count]

    def measure(self, samples: Sequence[Sample]) -> Mapping[str, Sequence[float]]:
        return {"length": [float(len(sample.chain.raw)) for sample in samples]}


class Ranks(Lengths):
    """Measures the rank of a sample among the others."""

    def measure(self, samples: Sequence[Sample]) -> Mapping[str, Sequence[float]]:
        lengths = [len(sample.chain.raw) for sample in samples]
        return {"length": [sorted(lengths).index(n) / len(samples) for n in lengths]}


class NeedsPictures(Lengths):
    """Fails where there is no picture."""

    def measure(self, samples: Sequence[Sample]) -> Mapping[str, Sequence[float]]:
        return {"width": [float(sample.image.width) for sample in samples]}  # type: ignore[union-attr]


class Paints(Lengths):
    """Draws on the pictures that it measures."""

    def measure(self, samples: Sequence[Sample]) -> Mapping[str, Sequence[float]]:
        for sample in samples:
            if sample.image is not None:
                sample.image.putpixel((0, 0), (1, 2, 3))
        return super().measure(samples)


class OtherPrompts(Lengths):
    """Gives other prompts each time."""

    asked = 0

    def prompts(self, count: int | None) -> Sequence[Prompt]:
        self.asked += 1
        return [Prompt(f"{p.text} {self.asked}") for p in super().prompts(count)]


BENCHMARKS = {
    Ranks: "measured-alone-as-together",
    NeedsPictures: "measured-alone-as-together",
    Paints: "leaves-samples-alone",
    OtherPrompts: "same-prompts-again",
}


@pytest.mark.parametrize("broken", BENCHMARKS)
def test_a_mistake_of_a_benchmark_is_caught(broken: type[Lengths]) -> None:
    assert all(result.passed for result in verdicts("benchmark", Lengths()).values())
    result = verdicts("benchmark", broken())[BENCHMARKS[broken]]
    assert result.passed is False, result


# -- presets ----------------------------------------------------------------------------------------------------------------

GOOD = """
planner: {name: file, chains: "${HERE}/chains.jsonl"}
renderer: janus
judge: scenes
reward: ri
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with a preset in it, which is registered as `mine`."""
    folder = tmp_path / "preset_package"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "chains.jsonl").write_text("{}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, folder.name, raising=False)
    return folder


def preset(folder: Path, text: str) -> dict[str, CheckResult]:
    class Plugin:
        def gotr1_components(self) -> list[Component]:
            return [Component("preset", "mine", "preset_package:mine.yaml")]

    (folder / "mine.yaml").write_text(text)
    registry = Registry()
    registry.add(Plugin(), "gotr1-mine")
    return verdicts("preset", PresetSubject("mine", registry))


def test_what_a_preset_leaves_open_is_said(package: Path) -> None:
    results = preset(package, GOOD)
    assert [result.passed for result in results.values()] == [True, True, None]
    assert results["dry-run-passes"].note == "it leaves to the user: prompts"


@pytest.mark.parametrize(
    ("text", "check", "note"),
    [
        (GOOD + "stepps: 3", "is-a-config", "stepps"),
        (GOOD + "variants: {judge: {x: {steps: many}}}", "is-a-config", "judge x: steps"),
        (GOOD.replace("chains.jsonl", "gone.jsonl"), "files-are-shipped", "of 1 files are missing"),
        (GOOD.replace("chains.jsonl", "../outside.jsonl"), "files-are-shipped", "outside the package preset_package"),
        (GOOD.replace("reward: ri", "train: renderer\nreward: beauty\nprompts: {source: scenes}"), "dry-run-passes", "beauty"),
    ],
)
def test_a_mistake_of_a_preset_is_caught(text: str, check: str, note: str, package: Path) -> None:
    (package.parent / "outside.jsonl").touch()
    result = preset(package, text)[check]
    assert result.passed is False
    assert note in result.note


# -- the command ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["source", "benchmark", "preset"])
def test_the_command_checks_every_kind(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["check", kind, "scenes", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["check"] for row in rows] == [check.name for check in checks_of(kind)]  # type: ignore[arg-type]
    assert {row["verdict"] for row in rows} == {"ok"}
