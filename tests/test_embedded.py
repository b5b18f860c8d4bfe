"""The embedded default as a user runs it: it ships with the miniature, and (slow) it learns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gotr1_core.cli.main import call
from gotr1_core.evaluation import paired
from gotr1_core.plugins import Registry
from gotr1_core.runs.checkpoint import complete_checkpoints, read_state
from gotr1_core.runs.records import Records


def test_a_short_run_leaves_everything(miniature_run: Path) -> None:
    rows = [json.loads(line) for line in (miniature_run / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "seconds" in row]
    assert [row["step"] for row in steps] == [1, 2, 3]
    # Sampler and scorer compute the same in float32, in another order: rounding is far below the limit of issue and docs.
    found = [row[name] for row in steps for name in ("plan.worst_sampler_gap", "image.worst_sampler_gap") if name in row]
    assert found
    assert max(found) <= 1e-4
    assert all(row["plan.ratio"] == pytest.approx(1, abs=1e-6) for row in steps if "plan.ratio" in row)  # one update per rollout
    held_out = json.loads((miniature_run / "held-out.json").read_text())
    assert list(held_out) == ["before", "after"]
    assert all(len(row["correct"]) == 6 for row in held_out.values())
    kept = complete_checkpoints(miniature_run)
    assert list(kept) == [2, 3]
    assert all(read_state(folder)["sampling"]["guidance_scale"] == 1.0 for folder in kept.values())
    assert (miniature_run / "samples" / "step-000001" / "000-plan.png").is_file()


def test_the_same_seed_draws_the_same_pictures(tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert call(["generate", "a green cross above a yellow square", "-n", "2", "--seed", "3", "--out", str(tmp_path / name)]) == 0
    assert call(["generate", "a green cross above a yellow square", "-n", "2", "--seed", "4", "--out", str(tmp_path / "c")]) == 0
    a, b, c = ((tmp_path / name / "samples.jsonl").read_text() for name in "abc")
    assert a == b != c
    assert (tmp_path / "a" / "000.png").read_bytes() == (tmp_path / "b" / "000.png").read_bytes()


@pytest.mark.slow
def test_the_default_run_learns(tmp_path: Path) -> None:
    """Takes five minutes. Each seed must gain 0.08; `benchmarks/learning.py` measures three seeds and their mean."""
    assert call(["train", f"output={tmp_path}", "name=full"]) == 0
    assert call(["doctor", str(tmp_path / "full")]) == 0
    rows = Records(tmp_path / "full", main=False).held_out
    assert paired(rows["before"], rows["after"], "correct").mean >= 0.08
    ri = paired(rows["before"], rows["after"], "ri")
    assert ri.high >= 0


def test_sft_resumes_where_it_stopped(tmp_path: Path) -> None:
    weights = Registry().preset("scenes").parent.parent / "weights" / "janus"
    policy = f"policy={{name: janus, model: '{weights}', instruction: '{{prompt}}', attention: eager}}"
    words = [policy, "data=scenes", "batch=4", "micro_batch=4", "save_every=2", f"output={tmp_path}"]
    assert call(["sft", *words, "steps=2"]) == 0
    assert call(["sft", *words, "steps=3"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert json.loads((tmp_path / "model" / "state.json").read_text())["step"] == 3
    # What it wrote loads and draws as a model of its own.
    drawn = ["generate", "a red circle", "--out", str(tmp_path / "drawn"), f"planner.model={tmp_path / 'model' / 'weights'}"]
    assert call(drawn) == 0
    assert (tmp_path / "drawn" / "000.png").is_file()
