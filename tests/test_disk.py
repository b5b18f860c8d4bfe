"""A full disk: a real file system of a few megabytes, which fills up while a run, stage one or pictures are written."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gotr1_core.chain import parse
from gotr1_core.cli.main import call
from gotr1_core.config.models import RunConfig, dump
from gotr1_core.errors import Gotr1Error
from gotr1_core.evaluation import HeldOut
from gotr1_core.hookspecs import hookimpl
from gotr1_core.runs import start
from gotr1_core.runs.checkpoint import CHECKPOINTS, MANIFEST, complete_checkpoints, explain_full_disk, find_damage
from gotr1_core.runs.records import Records
from gotr1_core.samples import Prompt, Sample

Make = Callable[..., RunConfig]
SMALL: dict[str, Any] = {"groups": 2, "plans": 2, "prompts": {"source": "scenes", "held_out": 2}, "checkpoint": {"every": 1}}
SMALL |= {"evaluation": {"every": 2, "prompts": 2}, "save_samples": 1}


class Disk:
    """A small file system of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self) -> None:
        """Fills the remaining room."""
        with suppress(OSError), (self.folder / "ballast").open("ab", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def free(self) -> None:
        (self.folder / "ballast").unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder], capture_output=True)
    if not mounted or mounted.returncode:
        pytest.skip("only root may mount a file system")
    yield Disk(folder)
    subprocess.run(["umount", "--lazy", folder], check=True)


class Filling:
    """A listener that fills the disk in a given hook at a given step."""

    def __init__(self, moment: tuple[str, int], fill: Callable[[], None]) -> None:
        self.moment, self.fill, self.outcome = moment, fill, ""

    def _at(self, *now: object) -> None:
        if now == self.moment:
            self.fill()

    @hookimpl
    def gotr1_run_started(self, step: int) -> None:
        self._at("started", step)

    @hookimpl
    def gotr1_step_finished(self, step: int) -> None:
        self._at("stepped", step)

    @hookimpl
    def gotr1_evaluated(self, step: int) -> None:
        self._at("evaluated", step)

    @hookimpl
    def gotr1_checkpoint_saved(self, step: int) -> None:
        self._at("saved", step)

    @hookimpl
    def gotr1_run_finished(self, outcome: str) -> None:
        self.outcome = outcome


def whole(run: Path) -> None:
    """Asserts that every checkpoint is complete and that no half-written file is left."""
    assert list(run.rglob("*.part")) == []
    assert [find_damage(folder) for folder in (run / CHECKPOINTS).glob("*")] == [None] * len(complete_checkpoints(run))


def manifest(run: Path) -> str:
    """Hashes of weights, optimizer and state after the last step."""
    return (complete_checkpoints(run)[3] / MANIFEST).read_text()


@pytest.fixture(scope="module")
def undisturbed(make: Make, tmp_path_factory: pytest.TempPathFactory) -> str:
    config = make(**SMALL, output=str(tmp_path_factory.mktemp("runs")), name="run")
    return manifest(start.train(config, cpu=True).folder)


@pytest.mark.parametrize("moment", [("started", 0), ("evaluated", 0), ("stepped", 1), ("saved", 1), ("evaluated", 2), ("evaluated", 3)])
def test_a_run_resumes_when_there_is_room_again(make: Make, disk: Disk, undisturbed: str, moment: tuple[str, int]) -> None:
    """Metrics, held-out scores, pictures or a checkpoint cannot be written. Each time the run ends with an error of two lines."""
    run, heard = disk.folder / "run", Filling(moment, disk.fill)
    with pytest.raises(Gotr1Error, match=r"cannot be written: No space left on device") as caught:
        start.train(make(**SMALL, output=str(disk.folder), name="run"), listeners=[heard], cpu=True)
    assert caught.value.code == 1
    assert caught.value.hint == f"make room, then gotr1 train --resume {run}"
    last = max(complete_checkpoints(run), default=None)
    assert last == {("saved", 1): 1, ("evaluated", 2): 1, ("evaluated", 3): 2}.get(moment)
    assert str(caught.value).endswith(f"; the last checkpoint is {complete_checkpoints(run)[last]}" if last else "No space left on device")
    assert heard.outcome == "failed"
    whole(run)
    with pytest.raises(Gotr1Error, match="No space left on device"):  # still
        start.resume(run, cpu=True)
    whole(run)
    disk.free()
    start.resume(run, cpu=True)
    assert manifest(run) == undisturbed


def test_a_file_that_may_not_grow_is_a_full_disk(make: Make, tmp_path: Path, undisturbed: str) -> None:
    """EFBIG, which a quota may raise. This test needs no right to mount a file system."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    heard = Filling(("stepped", 1), lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard)))
    run = tmp_path / "run"
    try:
        with pytest.raises(Gotr1Error, match="cannot be written: File too large"):
            start.train(make(**SMALL, output=str(tmp_path), name="run"), listeners=[heard], cpu=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert complete_checkpoints(run) == {}
    whole(run)
    start.resume(run, cpu=True)
    assert manifest(run) == undisturbed


def said(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """The status of a command, and its last two lines: error and hint."""
    status = call(words)
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    *_, error, hint = err.splitlines()
    return status, error, hint


def test_the_command_line_says_it_in_two_lines(make: Make, disk: Disk, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(dump(make(**SMALL)))
    disk.fill()
    found = said(["train", str(config), f"output={disk.folder}", "name=run", "--cpu"], capsys)
    assert found == (2, f"error: cannot make {disk.folder}/run: No space left on device", "hint: choose another output=…")
    assert [path.name for path in disk.folder.iterdir()] == ["ballast"]
    out = disk.folder / "pictures"
    found = said(["generate", "a red circle", "--out", str(out)], capsys)
    assert found == (1, f"error: {out} cannot be written: No space left on device", "hint: make room, then draw again")


def test_stage_one_resumes_when_there_is_room_again(make: Make, disk: Disk, capsys: pytest.CaptureFixture[str]) -> None:
    policy = json.dumps(make().planner.model_dump())
    words = ["sft", f"policy={policy}", "data=scenes", "batch=2", "micro_batch=2", "save_every=1", f"output={disk.folder}"]
    assert call([*words, "steps=1"]) == 0
    disk.fill()
    capsys.readouterr()
    status, error, hint = said([*words, "steps=2"], capsys)
    assert status == 1
    assert error == f"error: {disk.folder} cannot be written: No space left on device"
    assert hint == "hint: make room, then run it again: it continues from its last save"
    assert json.loads((disk.folder / "model" / "state.json").read_text())["step"] == 1
    assert list(disk.folder.rglob("*.part")) == []
    disk.free()
    assert call([*words, "steps=2"]) == 0
    assert json.loads((disk.folder / "model" / "state.json").read_text())["step"] == 2
    assert [json.loads(row)["step"] for row in (disk.folder / "log.jsonl").read_text().splitlines()] == [0, 1]


def test_rows_and_pictures_that_do_not_fit(disk: Disk) -> None:
    """The few rows of a run might still fit into the last page of a file."""
    sample = Sample(Prompt("a"), parse("a"), Image.effect_noise((64, 64), 99).convert("RGB"), scores={"a" * 99: 0.5}, reward=0.5)
    with closing(Records(disk.folder)) as records:
        records.add_metrics({"step": 0})
        disk.fill()
        with pytest.raises(Gotr1Error, match="No space"), explain_full_disk(disk.folder, again="try again"):
            list(map(records.add_metrics, ({"step": step, "a" * 99: 0.5} for step in range(1, 200))))
        with pytest.raises(Gotr1Error, match="No space"), explain_full_disk(disk.folder, again="try again"):
            records.add_samples("step-000001", [sample] * 16)
        with pytest.raises(Gotr1Error, match="No space"), explain_full_disk(disk.folder, again="try again"):
            records.add_evaluation("before", HeldOut([("", "")] * 2000, {"a": [0.5] * 2000}))
        disk.free()
    with closing(Records(disk.folder)) as again:
        again.truncate(5)
        assert [row["step"] for row in again.rows] == [0, 1, 2, 3, 4]
        assert again.held_out == {}
