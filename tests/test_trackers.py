"""Experiment trackers: what they get from a real run and from a resumed one, and what happens if they fail."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from gotr1_core.components.preflight import check_tracker
from gotr1_core.config.models import RunConfig, dump
from gotr1_core.hookspecs import hookimpl
from gotr1_core.pictures.sample_files import OVERLAY_SIDE
from gotr1_core.runs import start

Make = Callable[..., RunConfig]
SMALL: dict[str, Any] = {"groups": 2, "plans": 2, "prompts": {"source": "scenes", "held_out": 2}, "checkpoint": {"every": 1}}
SMALL |= {"evaluation": {"every": 2, "prompts": 2}, "save_samples": 2}
SECRETS = {name: f"secret-{name}".ljust(40, "0") for name in ("WANDB_API_KEY", "HF_TOKEN", "OPENAI_API_KEY")}


class PowerFailure(GeneratorExit):
    """Ends a run as a power failure does: nothing handles it. Of a listener's errors, only this kind is told of by nobody."""


class Killed:
    """A listener that ends the run, as a power failure does, after a step's metrics were sent and before the step is saved."""

    @hookimpl(trylast=True)
    def gotr1_step_finished(self, step: int) -> None:
        if step == 3:
            raise PowerFailure


def killed_and_resumed(config: RunConfig) -> start.Run:
    with pytest.raises(PowerFailure):
        start.train(config, listeners=[Killed()], cpu=True)
    return start.resume(config.output / str(config.name), cpu=True)


def without_secrets(run: Path) -> None:
    kept = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert [(path, name) for path, content in kept.items() for name, secret in SECRETS.items() if secret.encode() in content] == []


@pytest.fixture
def config(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], RunConfig]:
    for name, secret in SECRETS.items():
        monkeypatch.setenv(name, secret)
    return lambda tracker: make(**SMALL, tracker=tracker, output=str(tmp_path / "runs"), name="run")


def test_tensorboard_has_numbers_and_pictures_once(config: Any) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = killed_and_resumed(config("tensorboard"))
    found = EventAccumulator(str(run.folder / "tensorboard"), size_guidance={"images": 0}).Reload()
    steps = {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
    rows = [row for row in run.records.rows if "seconds" in row]
    assert steps["reward"] == [(row["step"], pytest.approx(row["reward"])) for row in rows]
    assert [step for step, _ in steps["reward"]] == [1, 2, 3]  # the third was sent twice
    assert steps["before/reward"] == [(0, pytest.approx(sum(run.records.held_out["before"]["reward"]) / 2))]
    assert steps["after/value"] == [(3, pytest.approx(sum(run.records.held_out["after"]["value"]) / 2))]
    assert {tag for tag in steps if "/" not in tag} == rows[0].keys() - {"step"}
    pictures = {tag: found.Images(tag) for tag in found.Tags()["images"]}
    assert pictures.keys() == {"samples", "before", "held-out", "after"}
    shown = -(-OVERLAY_SIDE // 12) * 12  # of the tiny model's 12 pixels
    sizes = {tag: [(event.step, event.width, event.height) for event in events] for tag, events in pictures.items()}
    assert sizes["samples"] == [(step, 4 * shown, shown) for step in (1, 2)]  # 2 x 2 samples in a row
    assert sizes["after"] == [(3, 2 * shown, shown)]
    assert Image.open(io.BytesIO(pictures["after"][0].encoded_image_string)).size == (2 * shown, shown)
    [settings] = run.folder.glob("tensorboard/*/hparams.yml")
    assert yaml.safe_load(settings.read_text())["planner.name"] == "janus"
    without_secrets(run.folder)


def test_wandb_offline(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = killed_and_resumed(config("wandb"))
    records = list(run.folder.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(records) == 2
    assert len({path.name for path in records}) == 1  # one run
    without_secrets(run.folder)


def test_trackio(config: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio")
    run = killed_and_resumed(config("trackio"))
    [one] = trackio.Api().runs("gotr1")
    assert one.name.startswith("run-")
    assert one.config["steps"] == 3
    assert capfd.readouterr().out == ""
    without_secrets(run.folder)


class Breaking:
    """One of accelerate's trackers, which fails at its second step."""

    def __init__(self, kind: type) -> None:
        self.kind, self.logged = kind, 0

    def log(self, tracker: Any, values: Any, step: int, **more: Any) -> None:
        del tracker, values, more
        self.logged += 1
        if step == 2:
            raise ConnectionError("the server\nis gone")


def test_a_tracker_that_fails_is_dropped(config: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboard")
    from accelerate.tracking import TensorBoardTracker

    breaking = Breaking(TensorBoardTracker)
    monkeypatch.setattr(TensorBoardTracker, "log", lambda *arguments, **more: breaking.log(*arguments, **more))
    run = start.train(config("tensorboard"), cpu=True)
    assert "after" in run.records.held_out
    assert breaking.logged == 3  # before, and two steps
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning: Tracker" in line]
    expected = "warning: Tracker failed in gotr1_step_finished and gets no more events of this run: ConnectionError: the server is gone"
    assert [line.partition(" (")[0] for line in warnings] == [expected]


def test_a_tracker_that_is_not_installed_is_refused(config: Any, refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is loaded or made. accelerate itself would continue silently."""
    monkeypatch.setattr("gotr1_core.components.preflight.importlib.util.find_spec", lambda name: None)
    file = tmp_path / "config.yaml"
    file.write_text(dump(config("trackio")))
    error, hint = refused(["train", str(file)])
    assert error == "tracker: the package trackio is not installed"
    assert hint == "pip install trackio, or tracker=null"
    assert not (tmp_path / "runs").exists()


def test_secrets_stay_out_of_a_run(config: Any) -> None:
    run = start.train(config(None), cpu=True)
    without_secrets(run.folder)


def test_wandb_without_a_key_is_refused_before_loading(config: Any, refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run would go on without it. wandb takes its key from the environment, from its settings or from a netrc file."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    keys = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(keys))
    file = tmp_path / "config.yaml"
    file.write_text(dump(config("wandb")))
    monkeypatch.delenv("WANDB_API_KEY")  # that of the fixture
    wandb.teardown()  # it reads the environment again
    error, hint = refused(["train", str(file), "--dry-run"])
    assert error == "tracker: wandb has no API key"
    assert "wandb login" in hint
    keys.write_text(f"machine api.wandb.ai login user password {'0' * 40}\n")
    keys.chmod(0o600)
    check_tracker("wandb")
