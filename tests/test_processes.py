"""Two processes do what one does: parameters, samples, metrics, files, checkpoints; and `gotr1 train … -- --num-processes 2`."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load as parse, load_file
from torch import Tensor

from gotr1_core.cli.launch import ERRORS, report_to_launcher
from gotr1_core.cli.main import BUG, call
from gotr1_core.errors import UsageError
from gotr1_core.runs import start
from gotr1_core.runs.checkpoint import CHECKPOINTS, complete_checkpoints, find_damage
from gotr1_core.runs.launched import LAUNCHED
from gotr1_core.runs.outcome import Outcome, read_outcome

HERE = Path(__file__).parent


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


driver = load(HERE / "processes_driver.py")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def together(*command: str, processes: int = 2) -> None:
    """Runs a Python program in several processes that form one process group."""
    among = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    begun = [
        subprocess.Popen(
            [sys.executable, *command], env={**os.environ, **among, "RANK": rank, "LOCAL_RANK": rank}, stderr=subprocess.PIPE, text=True
        )
        for rank in map(str, range(processes))
    ]
    try:
        said = [process.communicate(timeout=300)[1] for process in begun]
    finally:
        for process in begun:
            process.kill()
    assert [process.returncode for process in begun] == [0] * processes, "\n\n".join(said)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with every case run by one process (this one) and by two. Each stopped run is resumed by the other number of processes."""
    folder = tmp_path_factory.mktemp("processes")
    for name in driver.CASES:
        driver.train(name, folder, Accelerator(cpu=True))
    runs = folder / "runs"
    driver.begin(runs, 1)
    shutil.copytree(runs / "stopped-1", runs / "spread-1")
    together(str(HERE / "processes_driver.py"), str(folder))
    driver.resume(runs, "stopped-2")
    driver.resume(runs, "spread-2", "shard=false")
    return folder


@dataclass(frozen=True)
class Result:
    """What a number of processes made of a case."""

    metrics: list[dict[str, float]]
    drawn: list[list[list[list[Any]]]]  # by process and step
    updates: int
    alike: bool
    share: float  # of the weights that train, in the first process
    tensors: Mapping[str, Tensor]

    def samples(self) -> list[list[Any]]:
        """The samples of all processes, step by step, in their order."""
        return [sorted(sample for part in step for sample in part) for step in zip(*self.drawn, strict=True)]

    def ends(self) -> dict[str, Tensor]:
        """Parameters of policy and critic after the last step."""
        return {name: tensor for name, tensor in self.tensors.items() if not name.startswith("start.")}

    def moved(self) -> float:
        """The norm of the change of the policy's parameters since the start."""
        gaps = [self.tensors[name.removeprefix("start.")] - start for name, start in self.tensors.items() if name.startswith("start.")]
        return float(torch.cat([gap.flatten().double() for gap in gaps]).norm())


def result(folder: Path, processes: int, name: str) -> Result:
    stem = f"{processes} {name}"
    return Result(**json.loads((folder / f"{stem}.json").read_text()), tensors=load_file(folder / f"{stem}.safetensors"))


def apart(one: Result, other: Result) -> float:
    """The norm of the difference of parameters."""
    a, b = one.ends(), other.ends()
    assert a.keys() == b.keys()
    return float(torch.cat([(a[name].double() - b[name].double()).flatten() for name in a]).norm())


# -- what one process does --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", driver.CASES)
def test_two_processes_train_as_one(results: Path, name: str) -> None:
    """Parameters after five steps, samples, metrics and updates. In some cases the first process has nothing to learn from, or no pictures.

    If a process's groups are one chunk and one micro-batch, everything is equal to the bit. Otherwise sums of float64 have another order:
    1e-12 of the distance that parameters moved allows a thousand roundings each. The critic is float32, and its values enter the
    advantages: 1e-6.
    """
    one, two = result(results, 1, name), result(results, 2, name)
    tolerance = 0.0 if name in driver.EXACT else 1e-6 if "ppo" in name else 1e-12
    assert two.alike
    assert (one.moved() > 0.1) == (name != "all constant")
    assert apart(one, two) <= tolerance * one.moved()
    assert one.samples() == two.samples()
    assert one.updates == two.updates  # also where nothing was learnt: the schedule goes by steps
    for row, other in zip(one.metrics, two.metrics, strict=True):
        assert other == pytest.approx(row, rel=max(tolerance, 1e-12), abs=1e-6 if "ppo" in name else 1e-12)


@pytest.mark.parametrize("name", driver.SPREAD)
def test_a_model_sharded_over_two_processes_trains_as_one(results: Path, name: str) -> None:
    """Shards of gradients are the same sums. Only the norm for gradient clipping is summed in another order. Tolerances as above."""
    one, two = result(results, 1, name), result(results, 2, f"spread {name}")
    tolerance = 1e-6 if "ppo" in name else 1e-12
    assert two.alike
    assert (one.share, two.share) == (1, pytest.approx(0.5, abs=0.05))  # three rows are two and one
    assert apart(one, two) <= tolerance * one.moved()
    assert one.samples() == two.samples()
    assert one.updates == two.updates
    for row, other in zip(one.metrics, two.metrics, strict=True):
        assert other == pytest.approx(row, rel=tolerance, abs=tolerance)


@pytest.mark.slow
def test_two_processes_of_janus_train_as_one(tiny_janus: Path, tmp_path: Path) -> None:
    """A transformer in float32: equal to the bit if chunks and micro-batches are the same. Otherwise Adam divides rounding errors by their
    own size."""
    for name in driver.JANUS:
        driver.train(name, tmp_path, Accelerator(cpu=True), tiny_janus)
    together(str(HERE / "processes_driver.py"), str(tmp_path), str(tiny_janus))
    for name in [*driver.JANUS, *(f"spread {name}" for name in driver.SPREAD_JANUS)]:
        one, two = result(tmp_path, 1, name.removeprefix("spread ")), result(tmp_path, 2, name)
        assert two.alike
        assert one.samples() == two.samples()
        assert apart(one, two) <= (1e-3 if "uneven" in name or "spread" in name else 0) * one.moved()


def test_groups_are_never_split(results: Path) -> None:
    """A process has the prompts 0 and 1 of a step, or 2 and 3, with all their plans and pictures."""
    drawn = result(results, 2, "full").drawn
    for process, steps in enumerate(drawn):
        for step, samples in enumerate(steps):
            first = 4 * step + 2 * process
            assert [tuple(sample[:3]) for sample in samples] == list(product((first, first + 1), range(4), range(2)))


def test_one_process_has_no_difference_no_reward_or_no_picture(results: Path) -> None:
    """The groups of the first of two processes have no difference in rewards, no reward, or no picture."""
    (flat, _), (missing, _), (pruned, _) = (result(results, 2, name).drawn for name in ("constant", "missing", "pruned"))
    assert {sample[5] for step in flat for sample in step} == {"0.5"}
    assert {sample[5] for step in missing for sample in step} == {"nan"}
    assert {sample[6] for step in pruned for sample in step} == {None}
    idle = [[row["idle"] for row in result(results, 2, name).metrics] for name in ("constant", "all constant")]
    assert idle == [[0.0] * driver.STEPS, [1.0] * driver.STEPS]


def test_the_schedule_goes_by_updates(results: Path) -> None:
    """Ten updates: linear warm-up over three, then a cosine to 0. Each step reports the learning rate of its second update."""
    rates = [row["learning_rate"] for row in result(results, 2, "full").metrics]
    expected = [0.01 * 2 / 3, *(0.005 * (1 + math.cos(math.pi * (done - 3) / 7)) for done in (3, 5, 7, 9))]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("name", ["2 lost gradient", "2 spread lost gradient", "2 ppo, lost gradient", "2 spread ppo, lost gradient"])
def test_a_gradient_that_one_process_loses_is_lost_for_all(results: Path, name: str) -> None:
    """The loss of the first process is NaN in the second and fourth step. Nobody applies these updates, and the schedule goes on."""
    rows = json.loads((results / f"{name}.json").read_text())["metrics"]
    assert [row.get("skipped_updates", 0.0) for row in rows] == [0.0, 2.0, 0.0, 2.0, 0.0]
    assert ["gradient_norm" in row for row in rows] == [True, False, True, False, True]
    assert all(tensor.isfinite().all() for tensor in load_file(results / f"{name}.safetensors").values())


def test_copies_have_to_begin_alike(results: Path) -> None:
    said = [json.loads((results / f"unlike-{process}.json").read_text()) for process in (0, 1)]
    assert said == ["process 2 starts with different weights of the renderer than process 1"] * 2


# -- files ------------------------------------------------------------------------------------------------------------------


def files(folder: Path, *leave: str) -> dict[str, bytes]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in leave]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def rows(run: Path) -> list[dict[str, Any]]:
    """Metrics without times."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith("seconds")} for row in found]


@pytest.mark.parametrize("other", ["whole-2", "stopped-1", "stopped-2"])
def test_runs_and_checkpoints_are_those_of_one_process(results: Path, other: str) -> None:
    """A whole run of two processes; a run begun by one and finished by two, and the reverse."""
    whole, run = results / "runs" / "whole-1", results / "runs" / other
    assert list(complete_checkpoints(run)) == list(complete_checkpoints(whole))
    for part in (CHECKPOINTS, "samples"):
        one, two = files(whole / part), files(run / part)
        assert one.keys() == two.keys()
        assert [name for name in one if one[name] != two[name]] == []
    assert (whole / "held-out.json").read_bytes() == (run / "held-out.json").read_bytes()
    for row, again in zip(rows(whole), rows(run), strict=True):
        assert again.pop("evaluation", None) == row.pop("evaluation", None)
        assert again == pytest.approx(row, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("other", ["spread-1", "spread-2"])
def test_checkpoints_of_a_sharded_model_are_those_of_an_unsharded_one(results: Path, other: str) -> None:
    """Begun by one process and finished by two with a sharded model, and the reverse: equal files up to rounding, with Adam's moments."""
    whole, run = results / "runs" / "whole-1", results / "runs" / other
    one, two = files(whole / CHECKPOINTS, "manifest.json"), files(run / CHECKPOINTS, "manifest.json")
    assert one.keys() == two.keys()
    for name, expected in one.items():
        if name.endswith(".safetensors"):
            tensors, found = parse(expected), parse(two[name])
            assert tensors.keys() == found.keys()
            for key, tensor in tensors.items():
                assert (found[key] - tensor).norm() <= 1e-12 * tensor.norm(), (name, key)  # as above
        else:
            state, now = json.loads(expected), json.loads(two[name])
            assert now.pop("best") == pytest.approx(state.pop("best"), rel=1e-12)
            assert now == state
    assert [row["step"] for row in rows(run)] == [row["step"] for row in rows(whole)]


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_weights_are_sharded_in_mixed_precision(tiny_janus: Path, tmp_path: Path, device: str) -> None:
    """The same processes with sharded and with replicated weights, on as many GPUs as there are: two updates on one rollout.

    Samples are the same, as both draw with unsharded weights. Gradients differ in float32's last digits. The second update's forward pass
    rounds to bfloat16. There such a difference sometimes becomes one of 2^-8, and Adam makes a step of one size of any gradient.
    """
    processes = 2 if device == "cpu" else torch.cuda.device_count()
    together(str(HERE / "processes_driver.py"), str(tmp_path), str(tiny_janus), device, processes=processes)
    copies, shares = result(tmp_path, processes, "bf16"), result(tmp_path, processes, "spread bf16")
    assert shares.alike
    assert shares.share == pytest.approx(1 / processes, rel=0.1)
    assert shares.samples() == copies.samples()
    assert shares.metrics[0]["gradient_norm"] == pytest.approx(copies.metrics[0]["gradient_norm"], rel=2**-8)
    assert apart(copies, shares) <= 0.01 * copies.moved()  # 3e-7 on two CPU processes


def test_one_process_writes(results: Path) -> None:
    written = [json.loads((results / f"written-{process}.json").read_text()) for process in (0, 1)]
    assert len(written[0]) > 50
    assert written[1] == []


# -- gotr1 train … -- --num-processes 2 -------------------------------------------------------------------------------------

LETTERS = ["--planner", "letters", "--renderer", "letters", "prompts.source=scenes", "prompts.held_out=4", "lora=null", "groups=2"]
LETTERS += ["plans=4", "evaluation.prompts=4", "evaluation.every=0", "evaluation.batch=2", "save_samples=0", "checkpoint.every=3"]
SMALL = [*LETTERS, "--judge", "values", "reward=value"]
FAILING = [*LETTERS, "--judge", "failing", "reward=same"]
PLUGINS = [word for file in driver.PLUGINS for word in ("--plugin", str(file))]
TWO = ["--cpu", "--", "--num-processes", "2"]


class Launched:
    """A `gotr1 train` that starts processes of its own."""

    def __init__(self, *words: str, **environment: str) -> None:
        command = [sys.executable, "-c", "from gotr1_core.cli.main import run; run()", "train", *words]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []

    def until(self, part: str) -> None:
        """Reads stderr until a line contains this part."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))
            if part in line:
                return
        pytest.fail("\n".join([f"it never said {part}", *self.lines]))

    def worker(self, rank: int) -> psutil.Process:
        [found] = [p for p in psutil.Process(self.process.pid).children() if p.environ().get("RANK") == str(rank)]
        return found

    def finish(self, status: int, timeout: float = 180) -> list[str]:
        """All lines of stderr after the end: no traceback, and no line twice. Imports alone can take a minute."""
        out, err = self.process.communicate(timeout=timeout)
        self.lines += err.splitlines()
        assert self.process.returncode == status, "\n".join(self.lines)
        assert bool(out) == (status == 0)
        assert "Traceback" not in "\n".join(self.lines)
        assert len(set(self.lines)) == len(self.lines)
        return self.lines


@pytest.fixture
def launched() -> Iterator[Callable[..., Launched]]:
    begun: list[Launched] = []

    def begin(*words: str, **environment: str) -> Launched:
        begun.append(Launched(*words, **environment))
        return begun[-1]

    yield begin
    for one in begun:
        with suppress(psutil.NoSuchProcess):
            for process in psutil.Process(one.process.pid).children(recursive=True):
                process.kill()
        one.process.kill()
        one.process.communicate()


def sound(run: Path) -> int:
    """The last step that has a checkpoint. Asserts that every checkpoint is complete."""
    found = complete_checkpoints(run)
    assert all(find_damage(folder) is None for folder in found.values())
    return max(found)


def steps(run: Path) -> list[int]:
    return [row["step"] for row in rows(run) if "evaluation" not in row]


def test_a_killed_process_and_ctrl_c_end_a_run_that_goes_on(launched: Any, tmp_path: Path) -> None:
    """First one of two processes is killed, then two get Ctrl-C, then one process finishes the run."""
    run = tmp_path / "run"
    first = launched(*PLUGINS, *SMALL, "steps=5000", f"output={tmp_path}", "name=run", *TWO)
    first.until('{"step": 7,')
    first.worker(1).kill()
    killed = time.monotonic()
    said = first.finish(1)
    assert time.monotonic() - killed < 30
    again = f"gotr1 train --resume {run} -- --num-processes 2 goes on"
    assert said[-2:] == ["error: process 2 of 2 was killed (SIGKILL)", f"hint: often because memory ran out; {again}"]
    assert read_outcome(run) == Outcome("failed", said[-2].removeprefix("error: "), said[-1].removeprefix("hint: "))
    saved = sound(run)
    assert 6 <= saved <= len(steps(run))

    second = launched("--resume", str(run), "checkpoint.every=0", *TWO)
    second.until(f'{{"step": {saved + 1},')
    second.process.send_signal(signal.SIGINT)
    said = second.finish(130)
    done = sound(run)
    assert saved < done
    assert steps(run) == list(range(1, done + 1))  # the step under way was finished and saved, and none was done twice
    assert said[0] == "checkpoint.every: 3 -> 0"
    assert "SIGINT: finishing this step and saving it; Ctrl-C stops at once" in said
    assert said[-2:] == [f"error: interrupted after step {done} of 5000", f"hint: gotr1 train --resume {run} goes on"]
    assert read_outcome(run).outcome == "interrupted"

    assert call(["train", "--resume", str(run), f"steps={done + 1}", "--cpu"]) == 0
    assert sound(run) == done + 1


@pytest.mark.slow
def test_two_processes_make_lost_evaluations_again(launched: Any, tmp_path: Path) -> None:
    """The first process compares the records; both draw what is lost, and none waits for the other for ever."""
    run = tmp_path / "run"
    launched(*PLUGINS, *SMALL, "steps=2", f"output={tmp_path}", "name=run", *TWO).finish(0)
    scores = (run / "held-out.json").read_bytes()
    (run / "held-out.json").unlink()
    (run / "metrics.jsonl").write_text("")
    said = "".join(launched("--resume", str(run), *TWO).finish(0))
    assert f"warning: {run}: metrics.jsonl has 0 of the" in said
    assert f"warning: {run}: held-out.json lacked 'before'" in said
    assert (run / "held-out.json").read_bytes() == scores
    again = launched("--resume", str(run), *TWO).finish(2)
    assert again[-2] == f"error: {run} has done 2 of 2 steps"


@pytest.mark.slow
def test_the_process_that_writes_is_killed(launched: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    one = launched(*PLUGINS, *SMALL, "steps=5000", f"output={tmp_path}", "name=run", *TWO)
    one.until('{"step": 4,')
    one.worker(0).kill()
    assert one.finish(1)[-2] == "error: process 1 of 2 was killed (SIGKILL)"
    assert sound(run) >= 3


@pytest.mark.slow
def test_a_scheduler_may_ask_everyone_to_end(launched: Any, tmp_path: Path) -> None:
    """SIGTERM, twice, to the launcher and to the processes."""
    one = launched(*PLUGINS, *SMALL, "steps=5000", f"output={tmp_path}", "name=run", *TWO)
    one.until('{"step": 1,')
    for process in (one.process, one.worker(0), one.worker(1), one.process):
        process.send_signal(signal.SIGTERM)
    said = one.finish(130)
    assert "SIGTERM: the processes finish this step and save it" in said
    assert said[-2] == f"error: interrupted after step {sound(tmp_path / 'run')} of 5000"


@pytest.mark.slow
def test_ctrl_c_twice_leaves_at_once(launched: Any, tmp_path: Path) -> None:
    one = launched(*PLUGINS, *SMALL, "steps=5000", "groups=2000", "plans=16", f"output={tmp_path}", "name=run", *TWO)
    one.until('"evaluation": "before"')
    time.sleep(0.5)  # so that the first step, which takes many seconds, has begun
    one.process.send_signal(signal.SIGINT)
    one.until("Ctrl-C stops at once")
    one.process.send_signal(signal.SIGINT)
    assert one.finish(130, timeout=20)[-2] == "error: interrupted before the first step was saved"


@pytest.mark.slow
def test_a_third_ctrl_c_kills_processes_that_do_not_answer(launched: Any, tmp_path: Path) -> None:
    """Processes that wait inside a library for another one do not react to signals. Here they are suspended instead."""
    one = launched(*PLUGINS, *SMALL, "steps=5000", f"output={tmp_path}", "name=run", *TWO)
    one.until('{"step": 1,')
    for worker in (one.worker(0), one.worker(1)):
        worker.suspend()
    for _ in range(3):
        one.process.send_signal(signal.SIGINT)
        time.sleep(0.2)
    said = one.finish(130, timeout=20)
    assert said[-2:] == ["error: interrupted", f"hint: gotr1 train --resume {tmp_path / 'run'} -- --num-processes 2 goes on"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("failing", "status", "error"),
    [
        ("2 bug", 1, ["error: KeyError: 'nobody expects it'", f"hint: {BUG}"]),
        ("1 known", 1, ["error: the judge is asleep", "hint: wake it"]),
    ],
)
def test_an_error_of_one_process_is_reported_once(launched: Any, tmp_path: Path, failing: str, status: int, error: list[str]) -> None:
    one = launched(*PLUGINS, *FAILING, f"output={tmp_path}", *TWO, GOTR1_TEST_FAIL=failing)
    assert one.finish(status)[-2:] == error


def test_an_error_file_is_written_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """torchrun ends a process whose peer died, and reads the file that it left. Half a file would look like a launch that failed."""
    left = tmp_path / "error.json"
    monkeypatch.setenv(LAUNCHED, "1")
    monkeypatch.setenv(ERRORS, str(left))

    def killed(handle: int) -> None:
        del handle
        assert not left.exists()
        raise KeyboardInterrupt

    with monkeypatch.context() as dying:
        dying.setattr(os, "fsync", killed)
        with pytest.raises(KeyboardInterrupt):
            report_to_launcher("its peer went away", None)
    assert not left.exists()
    assert report_to_launcher("its peer went away", None)
    assert json.loads(left.read_text())["message"] == "its peer went away"


@pytest.mark.slow
def test_an_error_of_all_processes_is_reported_once(launched: Any, tmp_path: Path) -> None:
    """The doctor ends the run in all processes. The one that writes still has time for the report."""
    one = launched(*PLUGINS, *FAILING, "constant_limit=3", f"output={tmp_path}", "name=run", *TWO)
    said = one.finish(1)
    assert said[-2].startswith("error: step 3, constant rewards:")
    assert (tmp_path / "run" / "report.html").exists()
    assert [line for line in said if line.startswith("hint:")] == said[-1:]


@pytest.mark.slow
def test_two_machines(launched: Any, tmp_path: Path) -> None:
    """Each machine starts its process, and only the first writes. Here this machine is both."""
    port = str(free_port())
    machine = ["--num-machines", "2", "--main-process-ip", "127.0.0.1", "--main-process-port", port, "--machine-rank"]
    words = [*PLUGINS, *SMALL, "steps=3", f"output={tmp_path}"]
    first, second = (launched(*words, f"name=on-{rank}", *TWO, *machine, rank) for rank in ("0", "1"))
    out, err = first.process.communicate(timeout=180)
    assert out == f"{tmp_path / 'on-0'}\n", err
    out, err = second.process.communicate(timeout=180)
    assert (out, second.process.returncode) == ("", 0), err
    assert [path.name for path in tmp_path.iterdir()] == ["on-0"]
    assert sound(tmp_path / "on-0") == 3


# -- what is refused before anything is started -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "error", "hint"),
    [
        ([], "-- needs --num-processes", "for example: gotr1 train … -- --num-processes 2"),
        (["2"], "after --: 2 is not an option", "accelerate launch --help"),
        (["--num-procs", "2"], "after --: unrecognized arguments: --num-procs", "accelerate launch --help"),
        (["--num-processes", "two"], "invalid int value: 'two'", "accelerate launch --help"),
        (["--num-processes", "0"], "--num-processes 0 cannot be divided among --num-machines 1", "of all machines"),
        (["--num-processes", "3", "--num-machines", "2"], "--num-processes 3 cannot be divided among --num-machines 2", "of all machines"),
        (["--num_processes=2", "--num_machines=2"], "several machines must find each other", "--main-process-ip"),
        (["--num-processes", "3"], "groups=4 cannot be shared by 3 processes", "nearest: groups=3 or groups=6"),
        (["--num-processes", "8"], "groups=4 cannot be shared by 8 processes", "nearest: groups=8"),
        (["--num-processes", "2", "--use-fsdp"], "--use-fsdp cannot be used after --: gotr1 shards", "shard=true"),
        (["--num-processes", "2", "--use_deepspeed"], "--use-deepspeed cannot be used after --: gotr1 shards", "shard=true"),
        (["--num-processes", "2", "--mixed_precision", "bf16"], "--mixed-precision cannot be used after --", "go before --"),
        (["--num-processes", "2", "--cpu"], "--cpu cannot be used after --", "go before --"),
    ],
)
def test_what_cannot_be_started_is_refused(refused: Any, tmp_path: Path, words: list[str], error: str, hint: str) -> None:
    settings = [*PLUGINS, *SMALL, "groups=4", f"output={tmp_path / 'runs'}", "--cpu"]
    message, advice = refused(["train", *settings, "--", *words])
    assert error in message
    assert hint in advice
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_shows_the_prompts_of_a_process(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["train", *PLUGINS, *SMALL, "groups=4", "--dry-run", "--json", *TWO]) == 0
    shape = json.loads(capsys.readouterr().out)["sizes"]
    assert (shape["processes"], shape["prompts"], shape["prompts per process"]) == (2, 4, 2)


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_accelerate_may_not_shard_a_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    """`accelerate launch --use_fsdp` asks for it by an environment variable."""
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(UsageError, match=f"accelerate was asked for {name}, but gotr1 shards"):
        driver.begin(tmp_path, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_config_is_checked_beside_components_of_the_callers() -> None:
    """The config's numbers are checked even if its components were made by the caller."""
    settings = driver.config(groups=4, evaluation={"best_of": 3, "batch": 2, "prompts": 4})
    with pytest.raises(UsageError, match="cannot hold best_of=3"):
        start.train(settings, parts=driver.build(driver.registry(), driver.config()), cpu=True)
