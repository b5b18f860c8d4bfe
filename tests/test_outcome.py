"""What a run's folder says about its end: errors without secrets, kills, runs that still train; in the report and by the doctor."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import processes_driver as driver

from gotr1_core.cli.launch import _record_failure
from gotr1_core.cli.main import call
from gotr1_core.engine.interrupts import Interrupted
from gotr1_core.errors import Gotr1Error, UsageError
from gotr1_core.hookspecs import hookimpl
from gotr1_core.runs import start
from gotr1_core.runs.outcome import LONGEST, OUTCOME, Outcome, outcome_of, read_outcome, without_secrets, write_outcome
from gotr1_core.runs.records import is_locked, lock_folder
from gotr1_core.runs.report import write_report
from gotr1_core.update import update

Captured = pytest.CaptureFixture[str]
SETTINGS: dict[str, Any] = {"steps": 3, "updates": 1, "evaluation": {"every": 0, "prompts": 4}}


def told(folder: Path, capsys: Captured, status: int) -> dict[str, Any]:
    capsys.readouterr()
    assert call(["doctor", str(folder), "--json"]) == status
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


Failing = Callable[..., Path]


@pytest.fixture
def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Failing:
    """Makes a run in whose loop an error is raised in some step, from 0, and which then goes on if it is resumed."""

    def fail(error: BaseException, *, step: int = 1) -> Path:
        calls = [0]

        def raising(*given: Any, **more: Any) -> Any:
            calls[0] += 1
            if calls[0] == step + 1:
                raise error
            return update(*given, **more)

        monkeypatch.setattr("gotr1_core.loop.update", raising)
        with pytest.raises(type(error) if not isinstance(error, KeyboardInterrupt) else Interrupted):
            start.train(driver.config(output=str(tmp_path), name="x", **SETTINGS), **driver.RUN)
        return tmp_path / "x"

    return fail


def test_a_failed_run_says_why(failing: Failing, capsys: Captured) -> None:
    run = failing(Gotr1Error("the judge is asleep", hint="wake it"))
    assert read_outcome(run) == Outcome("failed", "the judge is asleep", "wake it")
    assert not is_locked(run)
    found = told(run, capsys, 1)
    assert {key: found[key] for key in ("outcome", "error", "hint", "steps")} == {
        **{"outcome": "failed", "error": "the judge is asleep"},
        **{"hint": "wake it", "steps": 1},
    }
    assert call(["doctor", str(run)]) == 1
    assert capsys.readouterr().out.startswith("failed after 1 of 3 steps: the judge is asleep\n  what to do: wake it\n")
    assert '<p class="finding">failed: the judge is asleep<br>wake it</p>' in (run / "report.html").read_text()


def test_a_run_that_fails_before_its_first_evaluation_has_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    def broken(*given: Any, **more: Any) -> Any:
        raise RuntimeError("no <ink>")

    monkeypatch.setattr("gotr1_core.loop.evaluate", broken)
    with pytest.raises(RuntimeError):
        start.train(driver.config(output=str(tmp_path), name="x", **SETTINGS), **driver.RUN)
    ended = read_outcome(tmp_path / "x")
    assert ended.error.startswith("RuntimeError: no <ink> (test_outcome.py, line ")
    assert ended.error.endswith(", in broken)")
    assert ended.hint == f"gotr1 train --resume {tmp_path / 'x'} --debug shows more if it fails again"
    assert "failed: RuntimeError: no &lt;ink&gt; (test_outcome.py" in (tmp_path / "x" / "report.html").read_text()
    assert told(tmp_path / "x", capsys, 1)["steps"] == 0


@pytest.mark.parametrize(
    ("error", "outcome", "message"),
    [
        (SystemExit("done"), "failed", "SystemExit: done"),
        (KeyboardInterrupt(), "interrupted", "interrupted before the first step was saved"),
        (Gotr1Error("out of memory in phase 'update'"), "failed", "out of memory in phase 'update'"),
        (OSError(28, "No space left on device", "x"), "failed", "x cannot be written: No space left on device"),
    ],
)
def test_every_end_is_recorded(failing: Failing, tmp_path: Path, error: BaseException, outcome: str, message: str) -> None:
    if isinstance(error, OSError):
        with pytest.raises(Gotr1Error):
            failing(error)
    else:
        failing(error)
    ended = read_outcome(tmp_path / "x")
    assert (ended.outcome, ended.error.partition(" (")[0]) == (outcome, message)


def test_an_interrupted_run_is_no_failure_and_a_resumed_one_is_finished(failing: Failing, capsys: Captured) -> None:
    run = failing(KeyboardInterrupt(), step=2)
    found = told(run, capsys, 0)
    assert (found["outcome"], found["error"]) == ("interrupted", "interrupted in the middle of a step")
    page = (run / "report.html").read_text()
    assert f"<br>gotr1 train --resume {run.name} goes on</p>" in page  # a page to be passed on: without the machine's paths
    assert str(run) not in page

    class Watching:
        seen: str = ""

        @hookimpl
        def gotr1_step_finished(self, run: Path) -> None:
            self.seen = read_outcome(run).outcome
            assert not (run / OUTCOME).exists()

    watching = Watching()
    start.resume(run, listeners=[watching], **driver.RUN)
    assert watching.seen == "running"
    assert json.loads((run / OUTCOME).read_text()) == {"outcome": "finished"}
    assert told(run, capsys, 0)["outcome"] == "finished"
    assert "interrupted: " not in (run / "report.html").read_text()


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import processes_driver as driver
from gotr1_core.hookspecs import hookimpl
from gotr1_core.runs import start

class Killing:
    @hookimpl
    def gotr1_step_finished(self, step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGKILL)

start.train(driver.config(output=sys.argv[2], name="x", updates=1), listeners=[Killing()], **driver.RUN)
"""


def test_a_killed_run_is_told_from_a_running_one(tmp_path: Path, capsys: Captured) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(Path(__file__).parent), str(tmp_path)], check=False, timeout=300)
    run = tmp_path / "x"
    assert not (run / OUTCOME).exists()
    found = told(run, capsys, 1)
    assert (found["outcome"], found["steps"]) == ("killed", 2)
    assert found["hint"] == f"gotr1 train --resume {run} goes on from its last checkpoint"
    assert "killed: " in write_report(run).read_text()
    with lock_folder(run):
        assert told(run, capsys, 0)["outcome"] == "running"
        assert call(["doctor", str(run)]) == 0
        assert capsys.readouterr().out.startswith("running after 2 of 5 steps\n")
    assert is_locked(run) is False


def test_looking_at_a_lock_does_not_keep_a_run_from_it(tmp_path: Path) -> None:
    with lock_folder(tmp_path):
        assert is_locked(tmp_path)
        with pytest.raises(UsageError, match="is being trained by another process"), lock_folder(tmp_path):
            pass
    assert not is_locked(tmp_path)
    assert not is_locked(tmp_path / "none")


def test_the_launcher_records_the_first_failure(failing: Failing, tmp_path: Path) -> None:
    """The first process knows only that another one has ended; or it was killed itself, and recorded nothing."""
    run = failing(Gotr1Error("another process of this run has ended, or does not answer", hint="look at what it printed"))
    _record_failure(run, Gotr1Error("process 2 of 2 was killed (SIGKILL)", hint="often because memory ran out"))
    assert read_outcome(run) == Outcome("failed", "process 2 of 2 was killed (SIGKILL)", "often because memory ran out")
    assert "process 2 of 2 was killed" in (run / "report.html").read_text()
    (run / OUTCOME).unlink()
    _record_failure(run, Gotr1Error("process 1 of 2 was killed (SIGKILL)"))
    assert read_outcome(run).error == "process 1 of 2 was killed (SIGKILL)"
    write_outcome(run, Outcome("finished"))
    _record_failure(run, Gotr1Error("it is finished"))
    assert read_outcome(run) == Outcome("finished")
    _record_failure(tmp_path / "none", Gotr1Error("no run was made"))
    with lock_folder(run):
        (run / OUTCOME).unlink()
        _record_failure(run, Gotr1Error("another run trains here"))
    assert not (run / OUTCOME).exists()


def test_secrets_stay_out_of_the_record(failing: Failing, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {"MY_JUDGE_KEY": "k3y-of-the-judge", "HF_TOKEN": "hf_abcdefghijkl", "DB_PASSWORD": "correct horse"}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")  # a short value is no secret
    text = (
        "POST https://me:pa55@judge.example/v1?api_key=abc123&n=1 failed with 'Authorization: Bearer eyJhb.GciOi' and k3y-of-the-judge, "
        "hf_abcdefghijkl, correct horse: status 401"
    )
    run = failing(ValueError(text))
    record = (run / OUTCOME).read_text(encoding="utf-8")
    for secret in (*secrets.values(), "pa55", "abc123", "eyJhb"):
        assert secret not in record
        assert secret not in (run / "report.html").read_text(encoding="utf-8")
    assert "POST https://…@judge.example/v1?api_key=…&n=1 failed with 'Authorization: Bearer …' and …, …, …: status 401" in record
    assert len(without_secrets("a" * 10 * LONGEST)) == LONGEST + 1


def test_a_damaged_record_is_said(failing: Failing, refused: Callable[..., tuple[str, str]]) -> None:
    run = failing(ValueError("x"))
    for text in ("{", "[]", "{}", '{"outcome": 3}'):
        (run / OUTCOME).write_text(text)
        assert "outcome.json is damaged" in refused(["doctor", str(run)])[0]
    assert outcome_of(ValueError("never raised"), run).error == "ValueError: never raised"
