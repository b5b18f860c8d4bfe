"""Ctrl-C and SIGTERM: how a real `gotr1 train` ends, and where a run can be stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gotr1_core.config.models import RunConfig
from gotr1_core.engine.interrupts import Interrupted, StopRequest, ignore_sigterm
from gotr1_core.hookspecs import hookimpl
from gotr1_core.runs import start
from gotr1_core.runs.checkpoint import CHECKPOINTS, complete_checkpoints, read_state

Make = Callable[..., RunConfig]
SMALL = ["groups=2", "plans=2", "prompts.held_out=2", "evaluation.greedy=false", "evaluation.best_of=0"]
SMALL += ["steps=50", "evaluation.every=0", "checkpoint.every=0"]  # so that nothing is saved but by a stop


class Training:
    """`gotr1 train` in a process of its own."""

    def __init__(self, *words: str) -> None:
        command = [sys.executable, "-c", "from gotr1_core.cli.main import run; run()", "train", "--cpu", *words]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []

    def until(self, *parts: str) -> None:
        """Reads the output until a line contains all these parts."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))
            if all(part in line for part in parts):
                return
        pytest.fail("\n".join([f"it never said {parts}", *self.lines]))

    def send(self, number: signal.Signals) -> None:
        time.sleep(0.1)  # so that the next step, which takes longer, has begun
        self.process.send_signal(number)

    def finish(self) -> list[str]:
        """The rest of the output. stdout is for data, and there is none."""
        out, err = self.process.communicate(timeout=300)
        assert out == ""
        assert self.process.returncode == 130, err
        assert "Traceback" not in err
        return err.splitlines()


@pytest.fixture
def training() -> Iterator[Callable[..., Training]]:
    begun: list[Training] = []

    def begin(*words: str) -> Training:
        begun.append(Training(*words))
        return begun[-1]

    yield begin
    for one in begun:
        one.process.kill()
        one.process.communicate()


def steps(run: Path) -> list[int]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["step"] for row in rows if "evaluation" not in row]


def test_a_run_is_stopped_again_and_again(training: Any, tmp_path: Path) -> None:
    """By SIGINT, by SIGTERM, and by SIGINT twice."""
    run = tmp_path / "run"
    first = training(*SMALL, f"output={tmp_path}", "name=run")
    first.until('{"step": 1,')
    first.send(signal.SIGINT)
    said = first.finish()
    done = max(complete_checkpoints(run))
    assert steps(run) == list(range(1, done + 1))  # the step that was under way is done and saved
    assert 1 <= done < 50
    assert any(line.startswith("SIGINT: finishing this step and saving it; ") for line in said)
    assert said[-2:] == [f"error: interrupted after step {done} of 50", f"hint: gotr1 train --resume {run} goes on"]

    second = training("--resume", str(run))
    second.until(f'{{"step": {done + 1},')
    second.send(signal.SIGTERM)
    said = second.finish()
    before, done = done, max(complete_checkpoints(run))
    assert before < done < 50
    assert steps(run) == list(range(1, done + 1))
    assert any(line.startswith("SIGTERM: finishing this step and saving it; ") for line in said)
    assert said[-2] == f"error: interrupted after step {done} of 50"

    third = training("--resume", str(run), "groups=8")  # long enough a step to be told twice
    third.until(f'{{"step": {done + 1},')
    third.send(signal.SIGINT)
    third.until("finishing this step")
    third.process.send_signal(signal.SIGINT)
    assert third.finish()[-2:] == ["error: interrupted in the middle of a step", f"hint: gotr1 train --resume {run} goes on"]
    assert max(complete_checkpoints(run)) == done
    assert {path.name for path in (run / CHECKPOINTS).iterdir()} == {path.name for path in complete_checkpoints(run).values()}
    assert start.resumed_config(run, [])[1] == {}


# -- where a run can be stopped ---------------------------------------------------------------------------------------------


class Signalling:
    """A listener that sends this process a signal after an evaluation."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.outcome = ""

    @hookimpl
    def gotr1_evaluated(self, step: int) -> None:
        if step == self.step:
            os.kill(os.getpid(), signal.SIGINT)

    @hookimpl
    def gotr1_run_finished(self, outcome: str) -> None:
        self.outcome = outcome


@pytest.fixture
def config(make: Make, tmp_path: Path) -> RunConfig:
    small: dict[str, Any] = {"groups": 2, "plans": 2, "prompts": {"source": "scenes", "held_out": 2}, "save_samples": 0}
    return make(**small, evaluation={"every": 2, "prompts": 2}, output=str(tmp_path), name="run")


def test_a_stop_while_it_evaluates_keeps_the_evaluation(config: RunConfig, tmp_path: Path) -> None:
    heard = Signalling(2)
    with pytest.raises(Interrupted, match="after step 2 of 3"):
        start.train(config, listeners=[heard], cpu=True)
    assert heard.outcome == "interrupted"
    state = read_state(complete_checkpoints(tmp_path / "run")[2])
    assert not state["pending"]
    assert state["rows"] == 4  # before, two steps, held-out


def test_a_stop_in_the_last_evaluation_is_too_late(config: RunConfig) -> None:
    heard = Signalling(3)
    run = start.train(config, listeners=[heard], cpu=True)
    assert heard.outcome == "finished"
    assert "after" in run.records.held_out


def test_before_the_first_step_it_leaves_at_once(config: RunConfig, tmp_path: Path) -> None:
    heard = Signalling(0)  # no handler is set yet: Python raises KeyboardInterrupt inside the listener
    with pytest.raises(Interrupted, match="before the first step was saved") as caught:
        start.train(config, listeners=[heard], cpu=True)
    assert caught.value.code == 130
    assert heard.outcome == "interrupted"
    assert complete_checkpoints(tmp_path / "run") == {}
    start.resume(tmp_path / "run", cpu=True)
    assert list(complete_checkpoints(tmp_path / "run")) == [2, 3]


# -- the signals themselves -------------------------------------------------------------------------------------------------


def handlers() -> list[Any]:
    return [signal.getsignal(number) for number in StopRequest.signals]


def test_handlers_are_put_back(capsys: pytest.CaptureFixture[str]) -> None:
    before = handlers()
    with StopRequest() as stop:
        assert all(new != old for new, old in zip(handlers(), before, strict=True))
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert handlers() == before
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("SIGTERM: finishing this step and saving it; ")


@pytest.mark.parametrize("first", StopRequest.signals)
def test_sigterm_does_not_count_as_a_second_ctrl_c(first: signal.Signals) -> None:
    """torchrun sends SIGTERM after a SIGINT, and schedulers send it more than once."""
    with StopRequest() as stop:
        for number in (first, signal.SIGTERM, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert stop.requested


def test_one_process_of_several_speaks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with StopRequest(is_main=False):
        os.kill(os.getpid(), signal.SIGINT)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)  # which torchrun sends because another process has ended
        assert stop.requested
    assert capsys.readouterr().err == ""


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Makes SIGINT interrupt, although tests may run in the background of a shell, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_last_words_are_not_cut_short() -> None:
    before = handlers()
    with ignore_sigterm():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert handlers() == before


def test_in_another_thread_signals_are_not_handled() -> None:
    """As in a worker of a notebook or a server: training works, and Ctrl-C keeps its meaning."""
    before, seen = handlers(), []

    def work() -> None:
        with ignore_sigterm(), StopRequest() as stop:
            seen.append((handlers() == before, stop.requested))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(True, False)]
