"""Runs that were killed or stopped are resumed bit for bit. Changes that would make another run of them are refused."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gotr1_core.config.merge import read_yaml
from gotr1_core.config.models import RunConfig, dump, validate
from gotr1_core.engine.interrupts import Interrupted
from gotr1_core.errors import UsageError
from gotr1_core.hookspecs import hookimpl
from gotr1_core.loop import Trainer
from gotr1_core.runs import start
from gotr1_core.runs.checkpoint import CHECKPOINTS, EMA_FILE, OPTIMIZER, TRAINABLE, complete_checkpoints
from gotr1_core.runs.restore import find_checkpoint

Make = Callable[..., RunConfig]

SHORT: dict[str, Any] = {"groups": 2, "plans": 2, "evaluation": {"every": 2, "prompts": 3}, "prompts": {"source": "scenes", "held_out": 3}}
TEN: dict[str, Any] = {
    **SHORT,
    "steps": 10,
    "reward": "value * bright",
    "updates": 2,
    "segments": {"plan": {"kl": 0.05}, "image": {"weight": 0.5, "kl": 0.02}},
    "optimizer": {"learning_rate": 0.01, "schedule": "cosine", "warmup": 3, "weight_decay": 0.1, "ema": 0.9},
    "evaluation": {"every": 3, "prompts": 3},
    "checkpoint": {"every": 2, "keep": 3},
    "save_samples": 3,
}


def rows(run: Path) -> list[dict[str, Any]]:
    """Metrics without times."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith("seconds")} for row in found]


def files(folder: Path) -> dict[str, bytes]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def same(one: Path, other: Path) -> None:
    """Asserts that two runs are equal except for times: weights, optimizer state, position, metrics, held-out scores, pictures."""
    assert rows(one) == rows(other)
    for part in (CHECKPOINTS, "samples"):
        a, b = files(one / part), files(other / part)
        assert a.keys() == b.keys()
        assert [name for name in a if a[name] != b[name]] == []
    assert (one / "held-out.json").read_bytes() == (other / "held-out.json").read_bytes()


def started(config: RunConfig, **more: Any) -> Path:
    return start.train(config, cpu=True, **more).folder


def killed(config: RunConfig, folder: Path, moment: str) -> Path:
    """A run of `gotr1 train` in its own process, which SIGKILL ended at the given moment."""
    file = folder / "config.yaml"
    folder.mkdir()
    file.write_text(dump(config.model_copy(update={"output": folder, "name": "run"})))
    command = [sys.executable, "-c", "from gotr1_core.cli.main import run; run()", "train", str(file), "--cpu"]
    process = subprocess.run(command, env={**os.environ, "GOTR1_TEST_KILL": moment}, capture_output=True, text=True, timeout=300)
    assert process.returncode == -signal.SIGKILL, process.stderr
    return folder / "run"


# -- killed -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lora", "moment", "last"), [({"rank": 2}, "step 5", 4), (None, "checkpoint 6", 4)], ids=["lora", "full"])
def test_a_killed_run_resumes_bit_for_bit(make: Make, tmp_path: Path, lora: Any, moment: str, last: int) -> None:
    """The run is killed after four saved steps and one or two unsaved ones. Resumed, it makes six more, and equals a run of ten steps."""
    config = make(**TEN, lora=lora)
    whole = started(config.model_copy(update={"output": tmp_path, "name": "whole"}))
    run = killed(config, tmp_path / "killed", moment)
    written = [row["step"] for row in rows(run) if "evaluation" not in row]
    assert max(complete_checkpoints(run)) == last < max(written)  # there are metrics that no checkpoint knows of
    assert (run / CHECKPOINTS / "step-000006.part").exists() == (moment == "checkpoint 6")
    assert start.resume(run, cpu=True).folder == run
    same(whole, run)
    assert list(complete_checkpoints(run))[-3:] == [8, 9, 10]
    tensors = complete_checkpoints(run)[10] / "planner"
    assert {f.name for f in tensors.iterdir()} == {TRAINABLE, OPTIMIZER, EMA_FILE}
    [resumed] = json.loads((run / "environment.json").read_text())["resumed"]
    assert (resumed["from"], resumed["changed"]) == (f"step-00000{last}", {})


class PowerFailure(GeneratorExit):
    """Ends a run as a power failure does: nothing handles it. Of a listener's errors, only this kind is told of by nobody."""


class Stopping:
    """A listener that asks for a stop, or raises an error, after a step. It also counts evaluations."""

    def __init__(self, at: int, error: BaseException | None = None) -> None:
        self.at, self.error = at, error
        self.evaluations: list[str] = []

    @hookimpl
    def gotr1_step_finished(self, step: int) -> None:
        if step == self.at:
            if self.error:
                raise self.error
            os.kill(os.getpid(), signal.SIGINT)

    @hookimpl
    def gotr1_evaluated(self, name: str) -> None:
        self.evaluations.append(name)


@pytest.fixture
def begun(make: Make, tmp_path: Path) -> Callable[..., Path]:
    """A run that was stopped after a step: by Ctrl-C, or without warning, as by a power failure."""

    def begin(at: int, *, saved: bool = True) -> Path:
        config = make(**SHORT, output=str(tmp_path), name="run")
        with pytest.raises(Interrupted if saved else PowerFailure):
            start.train(config, listeners=[Stopping(at, None if saved else PowerFailure())], cpu=True)
        return tmp_path / "run"

    return begin


def test_an_evaluation_that_a_stop_left_out_is_made_up_for(make: Make, begun: Any, tmp_path: Path) -> None:
    """Stopped between step 2 and its evaluation, and again between the last step and the last evaluation."""
    whole = started(make(**SHORT, output=str(tmp_path), name="whole"))
    run = begun(2)
    assert [row.get("evaluation") for row in rows(run)] == ["before", None, None]
    with pytest.raises(Interrupted):
        start.resume(run, listeners=[Stopping(3)], cpu=True)
    assert rows(run)[-1]["step"] == 3
    start.resume(run, cpu=True)
    same(whole, run)
    assert [r["from"] for r in json.loads((run / "environment.json").read_text())["resumed"]] == ["step-000002", "step-000003"]


def test_without_a_checkpoint_a_run_starts_over(make: Make, begun: Any, tmp_path: Path) -> None:
    """Only the evaluations of the untrained model are kept."""
    whole = started(make(**SHORT, output=str(tmp_path), name="whole"))
    run = begun(1, saved=False)
    assert complete_checkpoints(run) == {}
    assert len(rows(run)) == 2
    heard = Stopping(0)
    start.resume(run, listeners=[heard], cpu=True)
    assert heard.evaluations == ["held-out", "after"]
    same(whole, run)


def test_a_finished_run_is_done(make: Make, tmp_path: Path) -> None:
    """It continues only if more steps are asked for. The result is as if they had been asked for at once: nothing else depends on their
    number."""
    run = started(make(**SHORT, output=str(tmp_path), name="run"))
    with pytest.raises(UsageError, match="has done 3 of 3 steps") as caught:
        start.resume(run, cpu=True)
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("steps=6 ")
    with pytest.raises(UsageError, match="has done 3 of 2 steps"):
        start.resume(run, ["steps=2"], cpu=True)
    start.resume(run, ["steps=4"], cpu=True)
    four = started(make(**SHORT, steps=4, output=str(tmp_path), name="four"))
    one, other = (files(complete_checkpoints(folder)[4] / "planner") for folder in (run, four))
    assert one == other
    assert [row["step"] for row in rows(run) if "evaluation" not in row] == [1, 2, 3, 4]
    assert json.loads((run / "held-out.json").read_text()) == json.loads((four / "held-out.json").read_text())


# -- what may change, and what not ------------------------------------------------------------------------------------------

CHANGES = {
    "planner": "planner.attention=sdpa",
    "renderer": "renderer=toy",
    "judge": "judge=scenes",
    "algorithm.name": "algorithm=other",
    "reward": "reward=value + 1",
    "train": "train=planner",
    "lora": "lora={rank: 4}",
    "seed": "seed=1",
    "prompts": "prompts.seed=1",
    "plugins": "plugins=[]",
    "output": "output=elsewhere",
    "name": "name=other",
    "evaluation.seed": "evaluation.seed=2",
    "evaluation.sampling": "evaluation.sampling={temperature: 0}",
    "evaluation.metric": "evaluation.metric=value",
    "evaluation.prompts": "evaluation.prompts=2",
    "evaluation.best_of": "evaluation.best_of=2",
    "evaluation.greedy": "evaluation.greedy=true",
}


@pytest.fixture(scope="module")
def stopped(make: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps with checkpoints of 1 and 2; the third step is still to do. Only read it; copy it to change it."""
    output = tmp_path_factory.mktemp("runs")
    config = make(**SHORT, checkpoint={"every": 1}, output=str(output), name="run")
    with pytest.raises(Interrupted):
        start.train(config, listeners=[Stopping(2)], cpu=True)
    return output / "run"


@pytest.fixture
def run(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "run"))


def test_every_fixed_key_is_refused(stopped: Path) -> None:
    assert CHANGES.keys() == set(start.FIXED_KEYS)
    for key, word in CHANGES.items():
        with pytest.raises(UsageError, match=f"^{key}.* cannot change when a run is resumed") as caught:
            start.resumed_config(stopped, [word])
        assert caught.value.hint == "start a new run with it"


def test_sampling_is_fixed_if_evaluation_draws_with_it(make: Make, stopped: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^sampling\.temperature cannot change"):
        start.resumed_config(stopped, ["sampling.temperature=0.5"])
    own = make(evaluation={"sampling": {"temperature": 0.0}})
    (tmp_path / "config.yaml").write_text(dump(own))
    assert start.resumed_config(tmp_path, ["sampling.temperature=0.5"])[1] == {"sampling.temperature": (1.0, 0.5)}


def test_what_may_change_is_said_and_kept(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from gotr1_core.cli.main import call

    # The divergence's reference is the starting model, which is known to be the same.
    words = ["optimizer.learning_rate=0.001", "segments.plan.kl=0.1", "checkpoint.keep=1"]
    assert call(["train", "--resume", str(run), *words, "--cpu"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{run}\n"
    lines = [line for line in err.splitlines() if " -> " in line]
    assert lines == ["segments.plan.kl: 0.0 -> 0.1", "optimizer.learning_rate: 0.01 -> 0.001", "checkpoint.keep: 2 -> 1"]
    [resumed] = json.loads((run / "environment.json").read_text())["resumed"]
    assert resumed["changed"] == {"optimizer.learning_rate": [0.01, 0.001], "segments.plan.kl": [0.0, 0.1], "checkpoint.keep": [2, 1]}
    assert resumed["packages"]["torch"]
    config = validate(RunConfig, read_yaml(run / "config.yaml"))
    assert (config.optimizer.learning_rate, config.segments.plan.kl) == (0.001, 0.1)
    assert "plan.kl" in rows(run)[-2]


@pytest.mark.parametrize("words", [["seed=1"], ["steps=1"], ["stepps=4"], ["steps=0"]])
def test_what_is_refused_leaves_no_trace(run: Path, words: list[str]) -> None:
    before = files(run)
    with pytest.raises(UsageError):
        start.resume(run, words, cpu=True)
    assert files(run) == before


# -- what is not as it was --------------------------------------------------------------------------------------------------


def test_a_folder_that_is_not_a_run(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(UsageError, match="is not a run"):
            start.resume(folder)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_another_process_trains(run: Path) -> None:
    part = run / CHECKPOINTS / "step-000003.part"
    part.mkdir()
    before = files(run)
    hold = f"import fcntl, sys; f = open({str(run / '.lock')!r}, 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(UsageError, match="is being trained by another process"):
            start.resume(run, ["steps=4"], cpu=True)
        assert part.exists()  # what the other process is writing
        assert files(run) == before
        other.communicate()
    start.resume(run, cpu=True)
    assert not part.exists()


def test_a_truncated_checkpoint_gives_way_to_the_one_before(stopped: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = run / CHECKPOINTS / "step-000002" / "planner" / TRAINABLE
    tensors.write_bytes(tensors.read_bytes()[:-100])
    start.resume(run, cpu=True)
    warning = f"warning: {tensors.parent.parent} is damaged: planner/{TRAINABLE} is not what was saved; going on from step-000001"
    assert warning in capsys.readouterr().err.splitlines()
    other = Path(shutil.copytree(stopped, run.with_name("other")))
    start.resume(other, cpu=True)
    same(run, other)


def test_a_corrupted_checkpoint_is_an_error(run: Path) -> None:
    """No run continues silently from an older checkpoint, or from a wrong one."""
    tensors = run / CHECKPOINTS / "step-000002" / "planner" / TRAINABLE
    content = bytearray(tensors.read_bytes())
    content[-7] ^= 1
    tensors.write_bytes(content)
    with pytest.raises(UsageError, match=f"step-000002 is damaged: planner/{TRAINABLE} is not what was saved") as caught:
        start.resume(run, cpu=True)
    assert "remove this one" in str(caught.value.hint)
    shutil.rmtree(tensors.parent.parent)
    start.resume(run, cpu=True)
    assert max(complete_checkpoints(run)) == 3


@pytest.mark.parametrize("name", ["environment.json", "config.yaml"])
def test_a_damaged_file_is_named(run: Path, name: str) -> None:
    (run / name).write_text('{"step"\n')
    with pytest.raises(UsageError, match=name):
        start.resume(run, cpu=True)


@pytest.mark.parametrize("part", ["model.lm_head.weight", "model.model.vqmodel.post_quant_conv.weight"], ids=["trained", "frozen"])
def test_another_starting_model_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """Also if it differs only in weights that do not train: the reference and every score would differ."""
    begin = Trainer.__init__

    def changed(self: Trainer, config: RunConfig, parts: Any, *more: Any) -> None:
        with torch.no_grad():
            parts.planner.module.get_parameter(part).flatten()[0] += 1e-3
        begin(self, config, parts, *more)

    monkeypatch.setattr(Trainer, "__init__", changed)
    before = files(run)
    with pytest.raises(UsageError, match="weights that the planner starts from are not those that this run started from"):
        start.resume(run, cpu=True)
    assert files(run) == before


def test_no_run_is_overwritten(make: Make, stopped: Path) -> None:
    before = files(stopped)
    with pytest.raises(UsageError, match="is there already") as caught:
        start.train(make(**SHORT, output=str(stopped.parent), name="run"), cpu=True)
    assert caught.value.hint is not None
    assert f"gotr1 train --resume {stopped}" in caught.value.hint
    assert files(stopped) == before


def test_pruning_keeps_the_last_and_the_best(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.3, 0.9, 0.9, math.nan])  # after 1, 2, 3 and 4 steps: of equal ones the first is the best, and an unknown one is none
    monkeypatch.setattr("gotr1_core.loop.summary", lambda samples: {"reward": next(scores)})
    config = make(**{**SHORT, "steps": 4, "evaluation": {"every": 1, "prompts": 2}, "checkpoint": {"keep": 1}})
    run = started(config.model_copy(update={"output": tmp_path, "name": "run"}))
    assert list(complete_checkpoints(run)) == [2, 4]
    assert find_checkpoint(run) == (run, complete_checkpoints(run)[2])
