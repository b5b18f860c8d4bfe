"""Algorithms with state: checkpoints hold it, a resumed run equals the undisturbed one, and state that would be lost is noticed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from baseline_plugin import Forgetful, RunningBaseline
from processes_driver import Stopping
from safetensors.torch import load_file
from test_processes import free_port
from test_resume import same
from torch import nn

from gotr1_core.cli.main import call
from gotr1_core.config.models import RunConfig
from gotr1_core.engine.algorithm_state import StateWatch, algorithm_state, load_algorithm_state, save_algorithm_state
from gotr1_core.engine.interrupts import Interrupted
from gotr1_core.errors import Gotr1Error, UsageError
from gotr1_core.protocols import Stateful, compares_groups
from gotr1_core.runs import start
from gotr1_core.runs.checkpoint import complete_checkpoints
from gotr1_rl.grpo import Grpo, GrpoOptions
from gotr1_rl.ppo import Ppo, PpoOptions

HERE = Path(__file__).parent
PLUGINS = [str(HERE / f"{name}_plugin.py") for name in ("tiny", "letters", "baseline")]


def config(output: Path, name: str, **changed: Any) -> RunConfig:
    """Four steps of the enumerable policy. A checkpoint is written after each."""
    data: dict[str, Any] = {
        "plugins": PLUGINS,
        "planner": "letters",
        "renderer": "letters",
        "judge": "values",
        "algorithm": "baseline",
        "reward": "value * bright",
        "prompts": {"source": "scenes", "held_out": 4},
        "steps": 4,
        "groups": 4,
        "plans": 2,
        "sampling": {"guidance_scale": 2.0, "max_chain_tokens": 6},
        "optimizer": {"learning_rate": 0.05, "schedule": "constant"},
        "evaluation": {"every": 2, "prompts": 4},
        "checkpoint": {"every": 1},
        "lora": None,
        "output": str(output),
        "name": name,
    }
    return RunConfig.model_validate(data | changed)


def stopped(settings: RunConfig) -> Path:
    """A run that was stopped after its second step."""
    with pytest.raises(Interrupted):
        start.train(settings, listeners=[Stopping()], cpu=True)
    return settings.output / str(settings.name)


def test_a_resumed_run_has_the_baseline_of_the_undisturbed_one(tmp_path: Path) -> None:
    whole = start.train(config(tmp_path, "whole"), cpu=True).folder
    run = stopped(config(tmp_path, "run"))
    start.resume(run, cpu=True)
    same(whole, run)
    saved = complete_checkpoints(run)[4] / "algorithm"
    assert {path.name for path in saved.iterdir()} == {"process-1.json", "process-1.safetensors"}
    assert json.loads((saved / "process-1.json").read_text()) == {"seen": 4, "history": [{"seen": 4}]}  # the check before the run is none
    assert 0 < load_file(saved / "process-1.safetensors")["mean"] < 0.5


def test_state_that_would_be_lost_is_said_once_and_the_resume_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = stopped(config(tmp_path, "run", algorithm="forgetful"))
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: the algorithm")]
    assert len(said) == 1
    assert "forgetful keeps state that no checkpoint has (mean, seen)" in said[0]
    assert call(["train", "--resume", str(run), "--cpu"]) == 2
    error, hint = capsys.readouterr().err.splitlines()[-2:]
    assert error == "error: the run cannot go on: the algorithm forgetful keeps state that no checkpoint has (mean, seen)"
    assert hint == "hint: start a new run; the algorithm's author can add state_dict and load_state_dict"


def test_an_algorithm_without_state_writes_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = stopped(config(tmp_path, "run", algorithm="grpo"))
    assert not (complete_checkpoints(run)[2] / "algorithm").exists()
    assert "no checkpoint has" not in capsys.readouterr().err
    start.resume(run, cpu=True)


def in_two_processes(folder: Path) -> None:
    """Trains a run, and one that is stopped and resumed, in two processes: the main part of this file."""
    among = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(folder)]
    begun = [
        subprocess.Popen(command, env={**among, "RANK": rank, "LOCAL_RANK": rank}, stderr=subprocess.PIPE, text=True) for rank in ("0", "1")
    ]
    said = [process.communicate(timeout=300)[1] for process in begun]
    assert [process.returncode for process in begun] == [0, 0], "\n\n".join(said)


def test_every_process_gets_its_own_state_back(tmp_path: Path) -> None:
    """Two processes have other prompts, so their baselines differ. One process alone cannot go on with them."""
    in_two_processes(tmp_path)
    run = tmp_path / "run"
    states = [load_file(complete_checkpoints(run)[4] / "algorithm" / f"process-{number}.safetensors")["mean"] for number in (1, 2)]
    assert states[0] != states[1]
    same(tmp_path / "whole", run)
    with pytest.raises(UsageError, match="is that of 2 processes, and differs") as caught:
        start.resume(run, ["steps=5"], cpu=True)
    assert caught.value.hint == "resume the run with 2 processes"


# -- what is state ----------------------------------------------------------------------------------------------------------


class Counting:
    """Changes what ``change`` says."""

    total: list[int] = []  # noqa: RUF012 shared by all on purpose
    __slots__ = ("__dict__", "slot")

    def __init__(self) -> None:
        self.options = GrpoOptions()
        self.inner = Grpo(GrpoOptions())
        self.numbers = {"a": [1, 2, {3}]}
        self.module = nn.Linear(2, 2)
        self.generator = torch.Generator().manual_seed(1)
        self.call = lambda: 1
        self.loop: list[Any] = []
        self.loop.append(self.loop)
        self.slot = 1


CHANGES: Mapping[str, Callable[[Any], object]] = {
    "numbers": lambda c: c.numbers["a"][2].add(4),
    "module": lambda c: nn.init.zeros_(c.module.weight),
    "generator": lambda c: torch.rand(1, generator=c.generator),
    "inner": lambda c: setattr(c.inner, "mean", 1.0),
    "slot": lambda c: setattr(c, "slot", 2),
    "total": lambda c: c.total.append(1),
    "call": lambda c: setattr(c, "call", print),
    "new": lambda c: setattr(c, "new", 0),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_any_attribute_is_noticed_once(name: str) -> None:
    counting = Counting()
    watch = StateWatch(counting)
    assert watch.look() == []
    CHANGES[name](counting)
    assert watch.look() == [name]
    assert watch.look() == []
    assert watch.lost == {name}


def test_algorithms_of_the_project_change_nothing() -> None:
    rewards = torch.rand(2, 4, 1)
    for algorithm in (Grpo(GrpoOptions()), Ppo(PpoOptions())):
        watch = StateWatch(algorithm)
        algorithm.advantages(rewards)
        assert watch.look() == []
        assert algorithm_state(algorithm) is None


def test_an_algorithm_says_whether_it_compares_groups() -> None:
    assert compares_groups(Grpo(GrpoOptions()))
    assert not compares_groups(Ppo(PpoOptions()))
    assert not compares_groups(RunningBaseline())
    assert isinstance(RunningBaseline(), Stateful)
    assert not isinstance(Forgetful(), Stateful)


# -- what a checkpoint takes ------------------------------------------------------------------------------------------------


@dataclass
class Holder:
    """A stateful algorithm with any state."""

    state: Any

    def state_dict(self) -> Any:
        return self.state

    def load_state_dict(self, state: Any) -> None:
        self.state = {name: state[name] for name in self.state}

    @cached_property
    def cached(self) -> int:
        return 1


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    shared = torch.arange(6.0).view(2, 3)
    state = {"a": shared, "b": shared.T, "scalar": torch.tensor(1, dtype=torch.int32), "n": [1, 2.5, None, {"x": "é"}], "bad": float("inf")}
    held = algorithm_state(Holder(state))
    assert held is not None
    shared.zero_()  # what was taken does not change with the algorithm
    save_algorithm_state([held], tmp_path / "algorithm")
    back = Holder(dict.fromkeys(state))
    load_algorithm_state(back, tmp_path / "algorithm", 0, 1)
    assert back.state["b"].tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
    assert {name: back.state[name] for name in ("scalar", "n", "bad")} == {name: state[name] for name in ("scalar", "n", "bad")}


@pytest.mark.parametrize("value", [(1, 2), {1: 2}, {"t": torch.ones(1)}, {1}, b"x", torch.float32, [(1,)]])
def test_what_json_would_change_is_refused_before_training(value: Any) -> None:
    with pytest.raises(Gotr1Error, match="cannot hold: 'odd'"):
        algorithm_state(Holder({"fine": 1, "odd": value}))
    with pytest.raises(Gotr1Error, match="cannot hold: 7"):
        algorithm_state(Holder({7: 1}))


def test_a_state_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "algorithm"
    with pytest.raises(UsageError, match="the algorithm has state of its own, but the checkpoint has none"):
        load_algorithm_state(Holder({}), folder, 0, 1)
    load_algorithm_state(object(), folder, 0, 1)
    equal = [({"t": torch.ones(1)}, {"n": 1})] * 2
    save_algorithm_state(equal, folder)
    with pytest.raises(UsageError, match="has no load_state_dict"):
        load_algorithm_state(object(), folder, 0, 2)
    with pytest.raises(UsageError, match=r"cannot take its state from .*: KeyError: 'other'"):
        load_algorithm_state(Holder({"other": 1}), folder, 0, 2)
    taken = Holder({"t": None, "n": None})
    load_algorithm_state(taken, folder, 0, 1)  # another number of processes, whose states are all equal
    assert taken.state["n"] == 1


if __name__ == "__main__":  # one of two processes
    from gotr1_core.engine.collectives import leave_process_group

    folder = Path(sys.argv[1])
    start.train(config(folder, "whole"), cpu=True)
    with pytest.raises(Interrupted):
        start.train(config(folder, "run"), listeners=[Stopping()], cpu=True)
    start.resume(folder / "run", cpu=True)
    leave_process_group()
