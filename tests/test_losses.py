"""A run whose records were deleted, emptied or cut is resumed all the same. It says what is gone, and its report says so too."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gotr1_core.cli.main import call
from gotr1_core.config.models import RunConfig
from gotr1_core.engine.interrupts import Interrupted
from gotr1_core.errors import UsageError
from gotr1_core.hookspecs import hookimpl
from gotr1_core.runs import start
from gotr1_core.runs.checkpoint import MANIFEST, complete_checkpoints
from gotr1_core.runs.report import write_report

Make = Callable[..., RunConfig]
SHORT: dict[str, Any] = {"groups": 2, "plans": 2, "evaluation": {"every": 2, "prompts": 3}, "prompts": {"source": "scenes", "held_out": 3}}
SHORT |= {"checkpoint": {"every": 1}, "save_samples": 1}


class Stopping:
    @hookimpl
    def gotr1_step_finished(self, step: int) -> None:
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(scope="module")
def finished(make: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return start.train(make(**SHORT, output=str(tmp_path_factory.mktemp("runs")), name="run"), cpu=True).folder


@pytest.fixture(scope="module")
def stopped(make: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """After two steps of three; three rows belong to the last checkpoint, one of them an evaluation."""
    output = tmp_path_factory.mktemp("runs")
    with pytest.raises(Interrupted):
        start.train(make(**SHORT, output=str(output), name="run"), listeners=[Stopping()], cpu=True)
    return output / "run"


@pytest.fixture
def done(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def begun(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "run"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_text("")


def first_line_gone(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))


def text_for_a_number(path: Path) -> None:
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps({**json.loads(first), "reward": "high"}), *rest, ""]))


def weights(run: Path) -> dict[str, str]:
    """The hashes of the weights and of the optimizer's state after the last step."""
    files = json.loads((complete_checkpoints(run)[3] / MANIFEST).read_text())["files"]
    return {name: entry["sha256"] for name, entry in files.items() if name.endswith(".safetensors")}


def lost(run: Path) -> list[str]:
    return list(json.loads((run / "environment.json").read_text())["resumed"][-1].get("lost", []))


@pytest.mark.parametrize(
    ("how", "left"),
    [(Path.unlink, 0), (empty, 0), (cut, 1), (first_line_gone, 2), (text_for_a_number, 2)],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_rows_that_are_gone(finished: Path, begun: Path, how: Callable[[Path], Any], left: int, capsys: pytest.CaptureFixture[str]) -> None:
    how(begun / "metrics.jsonl")
    start.resume(begun, cpu=True)
    text = f"metrics.jsonl has {left} of the 3 rows up to step 2"
    damaged = ["metrics.jsonl is damaged; it is kept as metrics.jsonl.damaged"] if how is text_for_a_number else []
    assert lost(begun) == [*damaged, text]
    assert f"warning: {begun}: {text}. The run goes on, and its report says so.\n" in capsys.readouterr().err
    assert f"At the resume from step-000002: {text}." in (begun / "report.html").read_text()
    assert (begun / "metrics.jsonl.damaged").exists() == bool(damaged)
    assert weights(begun) == weights(finished)
    assert (begun / "held-out.json").read_bytes() == (finished / "held-out.json").read_bytes()
    rows = [json.loads(line) for line in (begun / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows][left:] == [2, 3, 3]  # the evaluation that the stop left out, the last step, the last evaluation


@pytest.mark.parametrize("how", [Path.unlink, empty, cut])
def test_held_out_scores_that_are_gone_are_made_again(
    finished: Path, begun: Path, how: Callable[[Path], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """With the weights that the run started from, so they are the same numbers."""
    how(begun / "held-out.json")
    start.resume(begun, cpu=True)
    assert "held-out.json lacked 'before': evaluated again. The run goes on" in capsys.readouterr().err
    assert "At the resume from step-000002: held-out.json lacked" in (begun / "report.html").read_text()
    assert (begun / "held-out.json").read_bytes() == (finished / "held-out.json").read_bytes()
    assert weights(begun) == weights(finished)
    keys = [[json.loads(line).get(key) for key in ("step", "evaluation", "reward")] for line in lines(begun)]
    assert keys == [[json.loads(line).get(key) for key in ("step", "evaluation", "reward")] for line in lines(finished)]


def lines(run: Path) -> list[str]:
    return (run / "metrics.jsonl").read_text().splitlines()


def test_a_run_that_was_killed_before_its_report(done: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Its last checkpoint is there, so a resume writes the report and loads no weights."""
    page = (done / "report.html").read_text()
    (done / "report.html").unlink()
    (done / "outcome.json").unlink()
    monkeypatch.setattr(start, "_make_trainer", lambda *given: pytest.fail("no weights are needed"))
    rows = lines(done)
    assert call(["train", "--resume", str(done), "--cpu"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{done}\n"
    assert f"note: {done} has done its 3 steps and lacks the report of its end; it is written now\n" in err
    assert (done / "report.html").read_text() == page
    assert lines(done) == rows
    assert json.loads((done / "outcome.json").read_text())["outcome"] == "finished"
    assert call(["train", "--resume", str(done), "--cpu"]) == 2  # now it is done
    assert f"error: {done} has done 3 of 3 steps" in capsys.readouterr().err


def test_a_report_that_is_older_than_the_last_checkpoint(done: Path) -> None:
    """A finished run that was continued, and killed before it wrote its report again."""
    os.utime(done / "report.html", (0, 0))
    start.resume(done, cpu=True)
    with pytest.raises(UsageError, match="has done 3 of 3 steps"):
        start.resume(done, cpu=True)


def test_a_finished_run_without_its_scores(finished: Path, done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (done / "held-out.json").unlink()
    start.resume(done, cpu=True)
    assert "held-out.json lacked 'before', 'after': evaluated again." in capsys.readouterr().err
    assert (done / "held-out.json").read_bytes() == (finished / "held-out.json").read_bytes()
    assert lines(done) == lines(finished)
    assert weights(done) == weights(finished)
    with pytest.raises(UsageError, match="has done 3 of 3 steps"):
        start.resume(done, cpu=True)


def test_a_finished_run_without_its_rows(done: Path) -> None:
    """They cannot be had again. It is said once, and the report keeps the mark."""
    (done / "metrics.jsonl").unlink()
    start.resume(done, cpu=True)
    assert "metrics.jsonl has 0 of the 6 rows up to step 3" in (done / "report.html").read_text()
    with pytest.raises(UsageError, match="has done 3 of 3 steps"):
        start.resume(done, cpu=True)


def test_a_record_that_is_a_folder(finished: Path, begun: Path) -> None:
    (begun / "metrics.jsonl").unlink()
    (begun / "metrics.jsonl").mkdir()
    start.resume(begun, cpu=True)
    assert weights(begun) == weights(finished)
    assert (begun / "metrics.jsonl.damaged").is_dir()


SAMPLE = {"prompt": "a circle", "image": "000.png", "scores": {"pi": 0.5}}


CHANGES: list[dict[str, Any]] = [{"image": 3}, {"scores": []}, {"scores": {"pi": "high"}}, {"prompt": None}, {"legend": 1}]


@pytest.mark.parametrize(
    "row", ["{", "3", "[" * 99_999, *(json.dumps({**SAMPLE, **changed}) for changed in CHANGES)], ids=lambda row: row[:40]
)
def test_samples_that_are_damaged_never_take_the_report(done: Path, row: str) -> None:
    (done / "samples" / "held-out-after" / "samples.jsonl").write_text(f"{row}\n{json.dumps(SAMPLE)}\n\xff\x00")
    page = write_report(done).read_text()
    assert "samples.jsonl is damaged: 2 of its rows cannot be read." in page
    assert 'alt="a circle"' in page


def test_an_evaluation_that_lacks_a_score(done: Path) -> None:
    """Judges may change in a run whose user accepts it. The report has both evaluations, and no number where there is none."""
    held_out = json.loads((done / "held-out.json").read_text())
    held_out["after"]["taste"] = held_out["after"].pop("value")
    (done / "held-out.json").write_text(json.dumps(held_out))
    page = write_report(done).read_text()
    assert "<th>value</th>" in page
    assert "<th>taste</th>" in page
    assert "<td>nan</td>" in page


def test_what_cannot_be_written_never_takes_the_end(finished: Path, begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Folders lie where the report and samples should be."""
    (begun / "report.html").unlink()
    (begun / "report.html").mkdir()
    (begun / "samples" / "step-000003" / "samples.jsonl").mkdir(parents=True)
    start.resume(begun, cpu=True)
    err = capsys.readouterr().err
    assert f"warning: {begun}/report.html could not be written: IsADirectoryError" in err
    assert f"warning: {begun}/samples/step-000003 could not be written: IsADirectoryError" in err
    assert weights(begun) == weights(finished)
