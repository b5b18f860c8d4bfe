"""How far a judge can be trusted: a judge with a weakness fails the check for it, and the exact judge passes all."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gotr1_core.cli.main import call
from gotr1_core.pictures.sample_files import write_samples
from gotr1_core.samples import IMAGE, Prompt, Sample, SegmentName
from gotr1_scenes.judge import ScenesJudge
from gotr1_testing import JUDGE, RELIABILITY
from gotr1_testing.check import CheckResult
from gotr1_testing.judges import JudgeSubject
from gotr1_testing.reliability import MAX_SECONDS, order_pairs, pair_accuracy, relation_samples

nan = math.nan
CHECK = {check.name: check for check in RELIABILITY}


class Bent:
    """The exact judge's ``pi``, changed by a function of the score and the sample."""

    rewards: Mapping[str, SegmentName] = {"pi": IMAGE}

    def __init__(self, bend: Callable[[float, Sample], float]) -> None:
        self.bend = bend

    def score(self, samples: Sequence[Sample], names: Sequence[str]) -> Mapping[str, Sequence[float]]:
        exact = ScenesJudge().score(samples, ["pi"])["pi"]
        return {name: [self.bend(score, sample) for score, sample in zip(exact, samples, strict=True)] for name in names}


def run(name: str, bend: Callable[[float, Sample], float], **more: Any) -> CheckResult:
    return CHECK[name].run(JudgeSubject(Bent(bend), **more))


def test_the_exact_judge_has_no_weakness() -> None:
    found = {name: check.run(JudgeSubject(ScenesJudge(), reference=ScenesJudge())) for name, check in CHECK.items()}
    assert all(finding.passed for finding in found.values()), found
    assert [found[name].measured for name in ("repeats-itself", "prefers-no-side", "prefers-no-order")] == pytest.approx([0, 0, 0])
    assert (found["answers-are-read"].measured, found["agrees-with-reference"].measured) == (1, 1)
    assert found["keeps-up"].measured < MAX_SECONDS


def test_one_that_changes_its_mind() -> None:
    moods = iter(range(10_000))
    assert run("repeats-itself", lambda score, sample: min(1, score + 0.05 * (next(moods) % 2))).passed  # six samples: each the same again
    assert run("repeats-itself", lambda score, sample: (next(moods) % 7) / 7).passed is False
    silent = {"n": 0}

    def sometimes(score: float, sample: Sample) -> float:
        silent["n"] += 1
        return nan if silent["n"] == 9 else score

    assert run("repeats-itself", sometimes).measured == math.inf
    assert run("repeats-itself", lambda score, sample: nan).passed is None


def test_one_that_does_not_answer() -> None:
    assert run("answers-are-read", lambda score, sample: nan if "one" in sample.prompt.id else score).measured == pytest.approx(4 / 6)
    assert run("answers-are-read", lambda score, sample: score).passed
    assert run("answers-are-read", lambda score, sample: nan).passed is False


def test_one_that_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 12.0 * 60])
    monkeypatch.setattr("gotr1_testing.reliability.time.perf_counter", lambda: next(now))
    finding = run("keeps-up", lambda score, sample: score)
    assert (finding.measured, finding.passed) == (60, False)


def test_one_that_prefers_a_side() -> None:
    found = run("prefers-no-side", lambda score, sample: score / 2 if "left" in sample.prompt.text else score)
    assert found.passed is False
    assert found.measured > 0.3
    assert run("prefers-no-side", lambda score, sample: score / 2).measured == 0
    assert run("prefers-no-side", lambda score, sample: nan).passed is None


def test_one_that_prefers_an_order() -> None:
    found = run("prefers-no-order", lambda score, sample: score if sample.prompt.text.startswith("a red") else score / 2)
    assert found.passed is False
    assert run("prefers-no-order", lambda score, sample: nan).passed is None


def test_what_they_are_tried_on() -> None:
    """For every relation, the exact judge finds the right samples right and the others wrong."""
    for relation, samples in relation_samples().items():
        scores = ScenesJudge().score(samples, ["pi", "spa", "ri", "correct"])
        assert scores["correct"] == [1, 0] * 3, relation
        assert min(scores["ri"]) > 0.9  # boxes of 96 pixels
    one, other = zip(*order_pairs(), strict=True)
    assert all(a.prompt != b.prompt and a.chain == b.chain for a, b in zip(one, other, strict=True))
    exact = [ScenesJudge().score(samples, ["pi", "sem", "spa"]) for samples in (one, other)]
    assert exact[0] == exact[1]
    assert set(ScenesJudge().score(one, ["correct"])["correct"]) == {0, 1}


def test_pairs() -> None:
    groups = ["a", "a", "a", "b", "b"]
    truth = [0.0, 0.5, 1.0, 0.2, 0.8]
    assert pair_accuracy(truth, truth, groups) == (1.0, 4)
    assert pair_accuracy([1 - t for t in truth], truth, groups) == (0.0, 4)
    assert pair_accuracy([0.5] * 5, truth, groups) == (0.5, 4)  # a tie is half right, and so is what is not known
    assert pair_accuracy([nan, 0.5, 1.0, 0.2, 0.8], truth, groups) == (0.75, 4)
    assert pair_accuracy([0.1, 0.2], [0.5, 0.52], ["a", "a"])[1] == 0  # the truth does not tell them apart
    assert pair_accuracy([0.1, 0.2], [0.5, nan], ["a", "a"])[1] == 0
    assert math.isnan(pair_accuracy([0.1, 0.2], [0.5, 0.9], ["a", "b"])[0])


def test_agreement() -> None:
    assert run("agrees-with-reference", lambda score, sample: score).passed is None
    assert run("agrees-with-reference", lambda score, sample: score**2, reference=ScenesJudge()).measured == 1
    assert run("agrees-with-reference", lambda score, sample: 1 - score, reference=ScenesJudge()).measured == 0
    plans = replace(JudgeSubject(ScenesJudge()), judge=Bent(lambda score, sample: score), reference=Bent(lambda score, sample: score))
    plans.reference.rewards = {"other": IMAGE}  # type: ignore[union-attr]
    assert CHECK["agrees-with-reference"].run(plans).passed is None
    single = JudgeSubject(ScenesJudge(), reference=ScenesJudge(), compared=[JudgeSubject(ScenesJudge()).samples[0]])
    assert CHECK["agrees-with-reference"].run(single).passed is None


# -- on the command line ----------------------------------------------------------------------------------------------------


def rows(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    return {row["check"]: row for row in json.loads(capsys.readouterr().out)}


def test_the_command_says_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["check", "judge", "scenes", "--reference", "scenes", "--json"]) == 0
    found = rows(capsys)
    assert found.keys() == {check.name for check in (*JUDGE, *RELIABILITY)}
    assert {row["verdict"] for row in found.values()} == {"ok"}


def test_a_presets_judge_is_the_reference(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On examples of the preset's source: each prompt with its own picture and with others'."""
    only = ["--only", "agrees-with-reference", "--json"]
    assert call(["check", "--plugin", str(half), "judge", "half", "--preset", "scenes", *only]) == 0
    found = rows(capsys)["agrees-with-reference"]
    assert (found["verdict"], found["measured"]) == ("ok", 1)
    assert int(found["note"].rpartition(" of ")[2].rstrip(")")) > 20
    assert call(["check", "judge", "scenes", "--preset", "scenes", *only]) == 0
    assert rows(capsys)["agrees-with-reference"]["verdict"] == "not run"  # it is no reference for itself


def test_samples_of_a_run(half: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = [replace(sample, prompt=Prompt("a red circle above a blue square")) for sample in JudgeSubject(ScenesJudge()).samples]
    write_samples(tmp_path, samples)
    arguments = ["check", "--plugin", str(half), "judge", "half", "--only", "agrees-with-reference", "--json"]
    assert call([*arguments, "--reference", "scenes", "--samples", str(tmp_path)]) == 0
    assert rows(capsys)["agrees-with-reference"]["measured"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["algorithm", "grpo", "--reference", "scenes"], "--reference cannot be used for a check of kind algorithm"),
        (["planner", "janus", "--samples", "."], "--samples cannot be used for a check of kind planner"),
        (["judge", "scenes", "--samples", "."], "--samples cannot be used without a judge to compare with"),
        (["judge", "scenes", "--reference", "scens"], "there is no judge 'scens'"),
    ],
)
def test_what_cannot_be_compared(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["check", *arguments]) == 2
    assert message in capsys.readouterr().err


HALF = """
from gotr1_core.hookspecs import Component, hookimpl
from gotr1_scenes.judge import ScenesJudge


class Half(ScenesJudge):
    rewards = {"pi": "image"}

    def score(self, samples, names):
        return {"pi": [value / 2 for value in super().score(samples, ["pi"])["pi"]]}


@hookimpl
def gotr1_components():
    yield Component("judge", "half", f"{__name__}:Half")
"""


@pytest.fixture
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plugin file with a judge that gives half of the exact judge's scores."""
    file = tmp_path_factory.mktemp("plugin") / "half_plugin.py"
    file.write_text(HALF)
    return file
