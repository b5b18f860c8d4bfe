"""Runs whose judge is the small InternVL behind a server of ours: the same scores as in the process, and a server that is killed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from internvl_server import ServerProcess, internvl_server
from PIL import Image

import gotr1_core as gotr1
import gotr1_scenes
from gotr1_core.engine.interrupts import Paused
from gotr1_core.hookspecs import hookimpl
from gotr1_core.samples import Sample
from gotr1_judges.asking import Question
from gotr1_judges.families import INTERN
from gotr1_judges.options import InternJudgeOptions
from gotr1_judges.rubric import RubricJudge
from gotr1_served.answerer import question_text
from gotr1_served.judge import OpenAIJudge
from gotr1_served.options import OpenAIJudgeOptions

STEPS = 20


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with internvl_server() as running:
        yield running


def config(server: ServerProcess, tmp_path: Path, name: str, *words: str) -> Any:
    judge = {"base_url": server.url, "family": "internvl", "rubrics": "${PACKAGE:gotr1_scenes}/rubrics", "scoring": "expected"}
    settings = [f"judge.{key}={value}" for key, value in judge.items()]
    run = [f"steps={STEPS}", "groups=1", "plans=3", "prompts.held_out=2", "checkpoint.every=5", "reward=openai.pi * openai.sem"]
    run += ["cache=off", f"output={tmp_path}", f"name={name}"]
    return gotr1.load_config(preset="scenes", words=["judge=openai", *settings, *run, *words])


def rows(folder: Path) -> list[dict[str, Any]]:
    """The metrics of a run, without times, and without what was spent."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(("seconds", "judge."))} for row in found]


class AfterStep:
    """A listener that does something once after a step."""

    def __init__(self, step: int, action: Any) -> None:
        self.at, self.action = step, action

    @hookimpl
    def gotr1_step_finished(self, step: int) -> None:
        if step == self.at:
            self.action()


@pytest.fixture(scope="module")
def undisturbed(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gotr1.train(config(server, tmp_path_factory.mktemp("runs"), "undisturbed"), cpu=True).folder


class Joined:
    """The model in this process, asked what a server asks it: the joined text of a question, of which it makes tokens as a whole."""

    def __init__(self) -> None:
        from gotr1_judges.checkpoint import load_answerer

        weights = Path(gotr1_scenes.__file__).parent / "weights" / "internvl"
        self.rubrics, self.model = load_answerer(
            InternJudgeOptions(
                model=str(weights), rubrics=str(weights.parent.parent / "rubrics"), scoring="expected", answer_tokens=192, batch=1
            ),
            INTERN,
            device="cpu",
        )

    def answer(self, questions: Sequence[Question]) -> list[str | None]:
        return self.model.answer([Question((question_text(q),), q.image) for q in questions])

    def word_probabilities(self, questions: Sequence[Question], words: Sequence[str]) -> list[list[float] | None]:
        return self.model.word_probabilities([Question((question_text(q),), q.image) for q in questions], words)

    def extent(self, image: Image.Image) -> tuple[float, float]:
        return self.model.extent(image)


def test_scores_are_those_of_the_model_in_the_process(server: ServerProcess) -> None:
    options = {"family": "internvl", "rubrics": str(Path(gotr1_scenes.__file__).parent / "rubrics"), "scoring": "expected"}
    served = OpenAIJudge(OpenAIJudgeOptions(base_url=server.url, **options))  # type: ignore[arg-type]
    here = Joined()
    own = RubricJudge(here, here.rubrics)
    painted = gotr1.component("source", "scenes").examples("validation", 0, 6, 0)
    samples = [Sample(example.prompt, example.chain, example.image) for example in painted]
    samples += [replace(sample, prompt=samples[i - 1].prompt) for i, sample in enumerate(samples)]
    names = ["sem", "spa", "ri", "pi"]
    theirs, ours = served.score(samples, names), own.score(samples, names)
    for name in names:
        assert theirs[name] == pytest.approx(ours[name], abs=1e-9, nan_ok=True)
    assert len(set(theirs["pi"])) > 4


@pytest.mark.slow
def test_what_was_spent_is_in_metrics_and_report(undisturbed: Path) -> None:
    last = [json.loads(line) for line in (undisturbed / "metrics.jsonl").read_text().splitlines() if "seconds" in line][-1]
    assert last["judge.openai.requests"] > 100
    assert last["judge.openai.tokens"] > last["judge.openai.requests"]
    assert last["judge.openai.unanswered"] == 0
    assert "judge.openai.requests" in (undisturbed / "report.html").read_text()


@pytest.mark.slow
def test_a_server_that_is_killed_and_restarted_changes_nothing(server: ServerProcess, undisturbed: Path, tmp_path: Path) -> None:
    def kill() -> None:
        server.kill()
        server.start(wait=False)

    patient = config(server, tmp_path, "patient", "judge.patience=200")
    folder = gotr1.train(patient, cpu=True, listeners=[AfterStep(STEPS // 2, kill)]).folder
    assert rows(folder) == rows(undisturbed)


@pytest.mark.slow
def test_a_server_that_stays_away_pauses_the_run_and_a_resume_ends_as_if_nothing_had_been(
    server: ServerProcess, undisturbed: Path, tmp_path: Path
) -> None:
    with pytest.raises(Paused, match=rf"after step {STEPS // 2 + 2}: missing rewards: . of . scores openai") as error:
        gotr1.train(config(server, tmp_path, "paused", "judge.patience=1"), cpu=True, listeners=[AfterStep(STEPS // 2 + 2, server.kill)])
    folder = tmp_path / "paused"
    assert f"gotr1 train --resume {folder}" in str(error.value.hint)
    assert json.loads((folder / "outcome.json").read_text())["outcome"] == "interrupted"
    server.start()
    gotr1.resume(folder, cpu=True)
    assert rows(folder) == rows(undisturbed)


@pytest.mark.slow
def test_a_budget_ends_a_run_that_can_be_resumed_with_a_larger_one(server: ServerProcess, undisturbed: Path, tmp_path: Path) -> None:
    with pytest.raises(Paused, match=r"the budget of .* is spent: 80 requests") as error:
        gotr1.train(config(server, tmp_path, "poor", "judge.requests=80"), cpu=True)
    assert "raise judge.openai.requests" in str(error.value.hint)
    folder = tmp_path / "poor"
    assert sum(json.loads(path.read_text())["requests"] for path in folder.glob("spent-*.json")) == 80
    with pytest.raises(Paused, match="the budget"):
        gotr1.resume(folder, cpu=True)
    gotr1.resume(folder, ["judge.openai.requests=100000"], cpu=True)
    assert rows(folder) == rows(undisturbed)
