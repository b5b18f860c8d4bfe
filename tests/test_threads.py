"""Threads of a run: what the environment says, and what other processes leave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gotr1_core.cli.main import call
from gotr1_core.engine import openmp, threads
from gotr1_core.engine.threads import ThreadPolicy


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in list(os.environ):
        if name.startswith(openmp.SETTINGS) or name == openmp.CHOSEN:
            monkeypatch.delenv(name)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Cores:
    """A machine of two cores, of which other processes use ``others``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reading, self.others, self.own = threads._Reading(0.0, 0.0, 0.0), 0.0, 2.0
        monkeypatch.setattr(threads, "_read", lambda: self.reading)
        monkeypatch.setattr(threads, "_cores", lambda: [0, 1])
        monkeypatch.setattr(threads.time, "sleep", self.wait)

    def wait(self, seconds: float) -> None:
        at, used, own = self.reading
        self.reading = threads._Reading(at + seconds, used + seconds * (self.own + self.others), own + seconds * self.own)


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> Cores:
    torch.set_num_threads(2)
    return Cores(monkeypatch)


@pytest.mark.parametrize(("others", "left"), [(0.0, 2), (0.4, 2), (0.7, 1), (1.0, 1), (1.9, 1), (7.0, 1)])
def test_other_processes_keep_their_cores(cores: Cores, others: float, left: int) -> None:
    policy = ThreadPolicy()
    assert policy.threads == 2
    cores.others = others
    cores.wait(4.0)
    policy.adjust()
    assert policy.threads == torch.get_num_threads() == left
    cores.others = 0.0
    cores.wait(4.0)
    policy.adjust()
    assert policy.threads == 2  # the neighbour has gone


def test_a_run_begins_with_the_cores_that_are_free(cores: Cores) -> None:
    cores.others = 1.0
    assert ThreadPolicy().threads == 1


def test_two_looks_at_almost_the_same_time_change_nothing(cores: Cores) -> None:
    policy = ThreadPolicy()
    cores.others = 2.0
    cores.wait(threads.GRAIN / 2)
    policy.adjust()
    assert policy.threads == 2


def test_a_fixed_number_stays(cores: Cores) -> None:
    cores.others = 2.0
    policy = ThreadPolicy(2)
    cores.wait(9.0)
    policy.adjust()
    assert policy.threads == 2


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_what_a_user_has_set_stays(cores: Cores, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "2")
    before = dict(os.environ)
    openmp.choose_spin()
    assert dict(os.environ) == before
    cores.others = 2.0
    assert ThreadPolicy().threads == 2
    assert threads.policy_in_words().startswith("as the environment says")


def test_processes_that_are_launched_know_that_gotr1_chose(cores: Cores, monkeypatch: pytest.MonkeyPatch) -> None:
    openmp.choose_spin()
    assert os.environ[openmp.SPIN] == openmp.ROUNDS
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # as accelerate's launcher does
    openmp.choose_spin()
    assert os.environ[openmp.SPIN] == openmp.ROUNDS
    cores.others = 1.0
    assert ThreadPolicy().threads == 1


def test_a_busy_process_is_seen() -> None:
    """The real counters. What this process uses itself does not count."""
    start = threads._read()
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        time.sleep(0.3)  # it starts
        first = threads._read()
        time.sleep(1.0)
        second = threads._read()
        process.kill()
    busy = ((second.all - first.all) - (second.own - first.own)) / (second.at - first.at)
    assert busy > 0.2  # of a core, also where others compete for it
    assert start.at < first.at < second.at


def test_the_command_line_sets_the_spin_before_torch() -> None:
    code = (
        "import os, sys; from gotr1_core.cli import main\n"
        "sys.modules['torch'] = None  # an import of it would fail\n"
        "main.call = lambda words: print(os.environ['GOMP_SPINCOUNT']) or 0\n"
        "main.run([])"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith(openmp.SETTINGS)}
    done = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, openmp.ROUNDS + "\n"), done.stderr


def test_every_step_says_its_threads(tiny_janus: Path, tmp_path: Path) -> None:
    words: list[Any] = [f"planner.model={tiny_janus}", "lora=null", "steps=2", "groups=1", "plans=2", "threads=1", "name=x"]
    words += [f"output={tmp_path}", "sampling.max_chain_tokens=4", "prompts.held_out=1", "evaluation.prompts=1", "reward=pi"]
    assert call(["train", "--preset", "scenes", "--cpu", *words]) == 0
    rows = [json.loads(line) for line in (tmp_path / "x" / "metrics.jsonl").read_text().splitlines()]
    assert [row["threads"] for row in rows if "evaluation" not in row] == [1, 1]


def test_the_doctor_says_what_decides(capsys: pytest.CaptureFixture[str]) -> None:
    call(["doctor", "--json"])
    (found,) = [d["found"] for d in json.loads(capsys.readouterr().out) if d["name"] == "threads"]
    assert found == f"{torch.get_num_threads()}, fewer while other processes are busy; threads=N fixes them"
