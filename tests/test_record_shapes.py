"""JSON files of a run that hold something else than a run writes: every command that reads them says so in two lines."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gotr1_core.cli.main import call
from gotr1_core.engine.files import MISSING, is_count, misfit
from gotr1_core.errors import UsageError
from gotr1_core.runs.report import write_report

HUGE = 10**400  # JSON has such numbers, and no float can hold them
RESUMED: list[Any] = [5, "x", [5], [{}], [{"from": 5}], [{"from": "x", "lost": 5}], [{"from": "x", "lost": [5]}], {"a": 1}]
INPUTS: list[Any] = [5, {}, {"files": {}}, {"name": "x", "files": 5}, {"name": "x", "files": {"a": 5}}, {"name": 5, "commit": "x"}]


@pytest.fixture
def run(trained: Path) -> Path:
    """A run with every record."""
    prompts = [["1", "x"], ["2", "y"]]
    held_out = {"before": {"prompts": prompts, "pi": [0, 1]}, "after": {"prompts": prompts, "pi": [1, None]}}
    (trained / "held-out.json").write_text(json.dumps(held_out))
    (trained / "environment.json").write_text("{}")
    (trained / "samples" / "held-out-after").mkdir(parents=True)
    return trained


def test_misfit_names_the_part_that_is_wrong() -> None:
    shape = {"a": is_count, "b": (MISSING, [{str: int}])}
    assert misfit({"a": 0}, shape) is None
    assert misfit({"a": 2, "b": [{}, {"x": 1}], "c": None}, shape) is None
    for value, name in (({}, "a"), ({"a": True}, "a"), ({"a": -1}, "a"), ({"a": 2**63}, "a"), ({"a": 1, "b": None}, "b"), ([], "object")):
        assert misfit(value, shape) == name
    assert misfit([{}, {"x": "y"}], [{str: int}], "list") == "x"
    assert misfit([{}, 5], [{str: int}], "list") == "list[1]"


@pytest.mark.parametrize("resumed", RESUMED, ids=str)
def test_what_resumes_recorded(resumed: Any, run: Path, refused: Callable[..., tuple[str, str]]) -> None:
    (run / "environment.json").write_text(json.dumps({"resumed": resumed}))
    error, _ = refused(["train", "--resume", str(run), "steps=9", "--dry-run"])
    assert f"{run}/environment.json is damaged" in error
    with pytest.raises(UsageError, match=r"environment\.json is damaged"):
        write_report(run)


@pytest.mark.parametrize("fingerprint", INPUTS, ids=str)
def test_fingerprints_of_inputs(fingerprint: Any, run: Path, refused: Callable[..., tuple[str, str]]) -> None:
    (run / "inputs.json").write_text(json.dumps({"planner.model": fingerprint}))
    for line in (["train", "--resume", str(run), "steps=9", "--dry-run"], ["generate", "x", "--checkpoint", str(run)]):
        error, _ = refused(line)
        assert f"{run}/inputs.json is damaged" in error


def test_held_out_scores_beyond_all_numbers(run: Path, refused: Callable[..., tuple[str, str]], capsys: pytest.CaptureFixture[str]) -> None:
    held_out = json.loads((run / "held-out.json").read_text())
    held_out["after"]["pi"][0] = HUGE
    (run / "held-out.json").write_text(json.dumps(held_out))
    for line in (["compare", str(run)], ["export", str(run), "out", "--merge"], ["generate", "x", "--checkpoint", str(run)]):
        error, _ = refused(line)
        assert "held-out.json is damaged" in error
    assert call(["runs", str(run)]) == 0
    assert "damaged" in capsys.readouterr().out


def test_a_sample_with_a_score_beyond_all_numbers_is_left_out_of_the_report(run: Path) -> None:
    rows = run / "samples" / "held-out-after" / "samples.jsonl"
    rows.write_text(json.dumps({"prompt": "x", "image": "000.png", "scores": {"pi": HUGE}}) + "\n")
    assert "1 of its rows cannot be read" in write_report(run).read_text(encoding="utf-8")


def test_an_evaluation_whose_name_is_no_text(run: Path, refused: Callable[..., tuple[str, str]]) -> None:
    (run / "metrics.jsonl").write_text(json.dumps({"step": 0, "evaluation": ["before"]}) + "\n")
    error, _ = refused(["doctor", str(run)])
    assert "line 1 says evaluation is ['before']" in error


@pytest.mark.parametrize(
    "change", [{"rows": -1}, {"drawn": 10**30}, {"best": {"step": 1, "score": "x"}}, {"updates": {"planner": -1}}, {"starting": {"a": 1}}]
)
def test_a_state_that_no_run_wrote_is_no_checkpoint(change: dict[str, Any], run: Path) -> None:
    import hashlib

    from gotr1_core.runs.checkpoint import complete_checkpoints

    folder = run / "checkpoints" / "step-000002"
    state = json.dumps({**json.loads((folder / "state.json").read_text()), **change})
    (folder / "state.json").write_text(state)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["state.json"] = {"bytes": len(state), "sha256": hashlib.sha256(state.encode()).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert list(complete_checkpoints(run)) == [1]
