"""``gotr1 runs`` and ``gotr1 compare``: several runs, what became of each, and how their held-out scores differ."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from gotr1_core.chain import parse
from gotr1_core.cli.main import call
from gotr1_core.config.models import RunConfig, dump, validate
from gotr1_core.engine.intervals import estimate, newcombe
from gotr1_core.evaluation import HeldOut, columns, paired
from gotr1_core.runs.listing import compare_runs, summarize_run
from gotr1_core.runs.outcome import Outcome, write_outcome
from gotr1_core.runs.records import lock_folder
from gotr1_core.samples import Prompt, Sample

Captured = pytest.CaptureFixture[str]
Refused = Callable[..., tuple[str, str]]
PROMPTS = [("0", "a cat", "animals"), ("1", "a dog", "animals"), ("2", "a red car", "colours"), ("3", "two cars", "")]


def made(folder: Path, after: Sequence[float] | None, *, prompts: Sequence[Sequence[str]] = PROMPTS, **changed: Any) -> Path:
    """A run's folder, with a share before and after training."""
    folder.mkdir(parents=True)
    config = validate(RunConfig, {"planner": "x", "renderer": "x", "judge": "x", "steps": 3, "evaluation": {"metric": "pi"}, **changed})
    (folder / "config.yaml").write_text(dump(config))
    rows = [{"step": 0, "evaluation": "before", "pi": 0.25}, {"step": 1, "reward": 0.5}, {"step": 1, "evaluation": "held-out", "pi": 0.5}]
    rows += [{"step": 2, "reward": 0.5}, {"step": 3, "reward": 0.5}, {"step": 3, "evaluation": "after", "pi": 0.75}] if after else []
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scores = {"before": {"prompts": prompts, "pi": [0.0] * len(prompts), "ri": [0.5] * len(prompts)}}
    scores |= {"after": {"prompts": prompts, "pi": after, "ri": [0.5, 0.25, 1.0, 0.75][: len(prompts)]}} if after else {}
    (folder / "held-out.json").write_text(json.dumps(scores))
    return folder


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder ``runs`` in the working folder, with a finished, a failed, a running and a damaged run, and things that are none."""
    monkeypatch.chdir(tmp_path)
    folder = Path("runs")
    write_outcome(made(folder / "a", [1.0, 0.0, 1.0, 1.0]), Outcome("finished"))
    write_outcome(made(folder / "b", None), Outcome("failed", "the judge is asleep", "wake it"))
    made(folder / "c", None)
    (made(folder / "d", None) / "metrics.jsonl").write_text("{}\n{\n")
    made(folder / ".e.part", None)
    (folder / "notes.txt").write_text("mine")
    (folder / "a" / "link").symlink_to(tmp_path)
    return folder


def test_runs_are_listed_with_what_became_of_them(runs: Path, capsys: Captured) -> None:
    with lock_folder(runs / "c"):
        assert call(["runs", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(run["run"], run["outcome"], run["done"], run["steps"]) for run in found] == [
        *[("runs/a", "finished", 3, 3), ("runs/b", "failed", 1, 3), ("runs/c", "running", 1, 3)],
        ("runs/d", "damaged", 0, 0),
    ]
    assert [(run["metric"], run["before"], run["score"]) for run in found[:2]] == [("pi", 0.25, 0.75), ("pi", 0.25, 0.5)]
    assert found[1]["error"] == "the judge is asleep"
    assert "metrics.jsonl is damaged" in found[3]["error"]
    a = runs / "a"
    assert found[0]["size"] == sum(path.lstat().st_size for path in a.iterdir() if not path.is_symlink())
    assert call(["runs", str(runs)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["run", "outcome", "steps", "score", "size", "why"]
    assert lines[1].split()[:6] == ["runs/a", "finished", "3", "of", "3", "pi"]
    assert "pi 0.250 to 0.750" in lines[1]
    assert lines[2].endswith("the judge is asleep")
    assert "killed" in lines[3]


def test_one_run_and_no_runs(runs: Path, capsys: Captured, refused: Refused) -> None:
    assert call(["runs", "runs/a"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    empty = runs.parent / "empty"
    empty.mkdir()
    assert call(["runs", "empty"]) == 0
    assert capsys.readouterr().out == "no runs in empty\n"
    for wrong in ("nowhere", "runs/notes.txt"):
        assert refused(["runs", wrong])[0].startswith(f"cannot read {wrong}: ")


def test_a_run_that_was_not_evaluated_has_no_score(runs: Path, capsys: Captured) -> None:
    (runs / "b" / "metrics.jsonl").write_text("")
    found = summarize_run(runs / "b")
    assert (found.before, found.score, found.done) == (None, None, 0)
    assert call(["runs", "runs/b"]) == 0
    assert " -  " in capsys.readouterr().out


def test_two_runs_are_compared_by_prompt_and_category(runs: Path, capsys: Captured) -> None:
    """Another order of the prompts, and one that the other run does not have."""
    other = [PROMPTS[i] for i in (2, 0, 1)]
    made(runs / "f", [1.0, 0.0, 1.0], prompts=other)
    assert call(["compare", "runs/a", "runs/f", "--json"]) == 0
    out, err = capsys.readouterr()
    [found] = json.loads(out)["comparisons"]
    assert err == ""
    assert (found["from"], found["to"], found["prompts"]) == ("runs/a", "runs/f", 3)
    assert list(found["scores"]) == ["all", "animals", "colours"]
    # pi of the cat 1 -> 0, the dog 0 -> 1, the red car 1 -> 1.
    low, high = newcombe(1, 1, 1, 0)
    assert found["scores"]["all"]["pi"] == pytest.approx({"mean": 0.0, "low": low, "high": high, "count": 3})
    assert found["scores"]["animals"]["pi"]["count"] == 2
    assert found["scores"]["colours"]["pi"]["mean"] == 0.0
    # ri of the cat 0.5 -> 0.25, the dog 0.25 -> 1.0, the red car 1.0 -> 0.5.
    assert found["scores"]["all"]["ri"]["mean"] == pytest.approx((-0.25 + 0.75 - 0.5) / 3)
    assert found["scores"]["colours"]["ri"] == {"mean": -0.5, "low": None, "high": None, "count": 1}
    assert call(["compare", "runs/a", "runs/f", "runs/a"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("from runs/a to runs/f, 3 prompts in both, mean change [95 % interval]\ncategory  pi")
    assert "from runs/a to runs/a, 4 prompts in both" in text
    assert "colours   +0.000 [-0.793, +0.793]  -0.500\n" in text


def test_one_run_is_compared_with_its_start(runs: Path, capsys: Captured) -> None:
    assert call(["compare", "runs/a"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("from runs/a, before to runs/a, after, 4 prompts in both")
    assert "all       +0.750 [" in text
    [comparison] = compare_runs([runs / "a"])
    expected = estimate([1.0, 0.0, 1.0, 1.0])
    change = comparison.scores["all"]["pi"]
    assert (change.mean, change.count) == (0.75, 4)
    assert change.low < expected.low


def test_what_cannot_be_compared(runs: Path, refused: Refused, capsys: Captured) -> None:
    error, hint = refused(["compare", "runs/a", "runs/b"])
    assert error == "runs/b has no evaluation 'after'"
    assert hint.startswith("it has 'before'; --evaluation")
    assert call(["compare", "runs/a", "runs/b", "--evaluation", "before"]) == 0
    made(runs / "g", [1.0], prompts=[("7", "a bird", "")])
    assert refused(["compare", "runs/a", "runs/g"])[0] == "runs/a and runs/g have no held-out prompt in common"
    assert refused(["compare", "runs/a", "runs"])[0] == "runs is not a run"
    (runs / "g" / "held-out.json").write_text("[")
    assert "is damaged" in refused(["compare", "runs/g"])[0]
    made(runs / "h", [1.0] * 4, reward="ri", evaluation={"metric": "pi", "seed": 7})
    capsys.readouterr()
    assert call(["compare", "runs/a", "runs/h"]) == 0
    assert capsys.readouterr().err == "warning: the runs differ in evaluation.seed, reward, so scores may differ for that reason\n"


def test_categories_are_kept_with_the_scores() -> None:
    samples = [Sample(Prompt(text, name, category), parse(""), None, scores={"pi": 0.5}, reward=0.5) for name, text, category in PROMPTS]
    scores = columns(samples)
    assert scores.categories == ["animals", "animals", "colours", ""]
    again = HeldOut.from_json(json.loads(json.dumps(scores.as_json())))
    assert (again.categories, again.prompts) == (scores.categories, [(name, text) for name, text, _ in PROMPTS])
    plain: Mapping[str, Any] = HeldOut([("0", "a cat")], {"pi": [0.5]}).as_json()
    assert plain["prompts"] == [("0", "a cat")]
    assert HeldOut.from_json(plain).categories == ()
    assert paired(again, again, "pi", category="animals").count == 2
    assert math.isnan(paired(HeldOut.from_json(plain), again, "pi", category="animals").mean)
