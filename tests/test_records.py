"""What a run writes to disk: samples with pictures, metrics, and the origin of everything."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gotr1_core.chain import parse
from gotr1_core.config.merge import read_yaml
from gotr1_core.config.models import RunConfig, validate
from gotr1_core.errors import UsageError
from gotr1_core.evaluation import HeldOut
from gotr1_core.pictures.sample_files import OVERLAY_SIDE, draw_overlay, sample_row, write_samples
from gotr1_core.plugins import Registry
from gotr1_core.runs.records import Records, check_output, environment, lock_folder, new_folder
from gotr1_core.samples import Prompt, Sample

CHAIN = "a <|obj_start|>rød katt<|obj_end|> <|box_start|>(0,0),(500,999)<|box_end|>, left"


def no_constant(name: str) -> Any:
    pytest.fail(f"{name} is not JSON")


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line, parse_constant=no_constant) for line in file.read_text(encoding="utf-8").splitlines()]


def sample(size: tuple[int, int] | None = (12, 8), **scores: float) -> Sample:
    image = Image.new("RGB", size, (10, 200, 30)) if size else None
    return Sample(Prompt("en katt"), parse(CHAIN), image, (1, 2, 0), scores, scores.get("pi", math.nan))


def config(folder: Path, **more: Any) -> RunConfig:
    least = {"planner": "janus", "renderer": "janus", "judge": ["scenes"], "prompts": {"source": "scenes"}}
    return validate(RunConfig, {**least, "output": str(folder), **more})


# -- samples ----------------------------------------------------------------------------------------------------------------


def test_samples_are_pictures_overlays_and_rows(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "er"
    drawn = [sample(pi=0.5, ri=math.nan), sample(None, sem=1.0), sample(pi=math.nan)]
    paths = write_samples(folder, drawn)
    assert paths == [folder / "000.png", folder / "002.png"]
    assert sorted(p.name for p in folder.iterdir()) == ["000-plan.png", "000.png", "002-plan.png", "002.png", "samples.jsonl"]
    assert Image.open(paths[0]).tobytes() == drawn[0].image.tobytes()  # type: ignore[union-attr]
    first, second, third = rows(folder / "samples.jsonl")
    assert first == {
        "prompt": "en katt",
        "id": "",
        "category": "",
        "metadata": {},
        "chain": CHAIN,
        "well_formed": True,
        "problems": [],
        "regions": [{"phrase": "rød katt", "box": [0, 0, 500, 999]}],
        "lineage": [1, 2, 0],
        "scores": {"pi": 0.5, "ri": None},
        "reward": 0.5,
        "image": "000.png",
        "overlay": "000-plan.png",
        "legend": {"1": "rød katt"},  # the overlay's built-in font lacks a letter
    }
    assert "image" not in second  # a pruned sample has none
    assert (third["scores"], third["reward"]) == ({"pi": None}, None)
    assert "rød" in (folder / "samples.jsonl").read_text(encoding="utf-8")  # readable, not escaped


def test_a_malformed_chain_says_why() -> None:
    broken = Sample(Prompt("x"), parse("<|obj_start|>cat <|box_start|>(9,9),(1,1)<|box_end|>"), None)
    row = sample_row(broken)
    assert row["well_formed"] is False
    assert row["problems"]
    assert row["regions"] == []


@pytest.mark.parametrize("size", [(12, 8), (8, 12), (OVERLAY_SIDE, OVERLAY_SIDE), (300, 400)])
def test_an_overlay_is_the_picture_enlarged_with_boxes(size: tuple[int, int]) -> None:
    shown = draw_overlay(sample(size))
    factor = shown.width / size[0]
    assert shown.size == (size[0] * factor, size[1] * factor)  # not distorted
    assert factor == int(factor)  # every pixel as large as the next
    assert min(shown.size) >= OVERLAY_SIDE
    assert min(size) < OVERLAY_SIDE or factor == 1
    pixels = np.asarray(shown)
    plain = (pixels == (10, 200, 30)).all(-1)
    half = shown.width // 2
    assert not plain[:, :half].all()  # the box, in the left half
    assert plain[:, half + half // 4 :].all()  # and nothing far to the right of it


def test_a_folder_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "in"):
        with pytest.raises(UsageError, match="cannot make the folder"):
            write_samples(folder, [sample()])


# -- runs -------------------------------------------------------------------------------------------------------------------


def test_a_run_has_a_folder_of_its_own(tmp_path: Path) -> None:
    chosen = config(tmp_path / "runs", name="one", steps=3)
    folder = new_folder(Registry(), chosen)
    assert folder == tmp_path / "runs" / "one"
    assert validate(RunConfig, read_yaml(folder / "config.yaml")) == chosen
    assert json.loads((folder / "environment.json").read_text())["components"]
    (folder / "metrics.jsonl").write_text("kept")
    with pytest.raises(UsageError, match="one is there already") as caught:
        new_folder(Registry(), chosen)
    assert caught.value.hint == f"choose another name=…, or go on with it: gotr1 train --resume {folder}"
    assert (folder / "metrics.jsonl").read_text() == "kept"
    unnamed = new_folder(Registry(), config(tmp_path / "runs"))
    assert unnamed.parent == folder.parent
    assert unnamed != folder
    assert sorted(folder.parent.iterdir()) == sorted([folder, unnamed])


def test_two_runs_that_ask_for_a_name_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name was free when it was asked for, and is taken when the folder is made. The first run keeps it."""
    chosen = config(tmp_path, name="one")
    first = new_folder(Registry(), chosen)
    monkeypatch.setattr("gotr1_core.runs.records.check_output", lambda config: None)
    with pytest.raises(UsageError, match="one is there already"):
        new_folder(Registry(), chosen)
    assert list(tmp_path.iterdir()) == [first]


def test_a_folder_is_held_by_one(tmp_path: Path) -> None:
    with lock_folder(tmp_path), pytest.raises(UsageError, match="being trained by another process"), lock_folder(tmp_path):
        pytest.fail("two hold it")
    with lock_folder(tmp_path):
        pass


def test_an_output_that_is_a_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    for output in (tmp_path / "runs", tmp_path / "runs" / "deeper"):
        with pytest.raises(UsageError, match="cannot make") as caught:
            check_output(config(output, name="one"))  # before anything is loaded
        assert caught.value.hint == "choose another output=…"
    check_output(config(tmp_path / "new" / "deeper", name="one"))
    assert not (tmp_path / "new").exists()


def test_the_environment_says_what_was_used(tmp_path: Path) -> None:
    found = environment(Registry(), config(tmp_path))
    release = version("gotr1")
    assert found["components"] == {
        "planner janus": {"distribution": "gotr1-janus", "version": release},
        "renderer janus": {"distribution": "gotr1-janus", "version": release},
        "judge scenes": {"distribution": "gotr1-scenes", "version": release},
        "algorithm grpo": {"distribution": "gotr1-rl", "version": release},
        "source scenes": {"distribution": "gotr1-scenes", "version": release},
    }
    assert found["packages"]["torch"] == version("torch")
    assert found["packages"]["gotr1"] == release
    assert found["python"].startswith("3.")


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    with closing(Records(tmp_path)) as made:
        yield made


def test_rows_are_on_disk_at_once(records: Records) -> None:
    """So that a run can be watched. Rows are JSON, which has no NaN."""
    records.add_metrics({"step": 1, "reward": 0.5})
    records.add_metrics({"step": 2, "reward": math.nan})
    assert rows(records.folder / "metrics.jsonl") == records.rows == [{"step": 1, "reward": 0.5}, {"step": 2, "reward": None}]


def test_some_samples(records: Records) -> None:
    records.add_samples("step-000007", [sample(pi=i / 20) for i in range(20)], most=3)
    folder = records.folder / "samples" / "step-000007"
    assert [row["reward"] for row in rows(folder / "samples.jsonl")] == [0, 0.05, 0.1]
    assert len(list(folder.glob("*.png"))) == 6


def test_held_out_scores_are_kept_sample_by_sample(records: Records) -> None:
    prompts = [("1", "a cat"), ("2", "a dog")]
    records.add_evaluation("before", HeldOut(prompts, {"pi": [0.5, math.nan]}))
    records.add_evaluation("after", HeldOut(prompts, {"pi": [1.0, 0.25]}))
    text = (records.folder / "held-out.json").read_text()
    assert json.loads(text, parse_constant=no_constant) == {
        "before": {"prompts": [["1", "a cat"], ["2", "a dog"]], "pi": [0.5, None]},
        "after": {"prompts": [["1", "a cat"], ["2", "a dog"]], "pi": [1.0, 0.25]},
    }
    with closing(Records(records.folder)) as again:
        assert math.isnan(again.held_out["before"]["pi"][1])


def test_records_resume_at_a_checkpoint(records: Records) -> None:
    """Complete rows up to the checkpoint are kept. Later and half-written rows are dropped."""
    for step in range(5):
        records.add_metrics({"step": step})
    records.add_evaluation("before", HeldOut([("1", "a cat")], {"pi": [0.5]}))
    records.add_evaluation("after", HeldOut([("1", "a cat")], {"pi": [1.0]}))
    records.close()
    with (records.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "rew')
    with closing(Records(records.folder)) as again:
        assert [row["step"] for row in again.rows] == [0, 1, 2, 3, 4]
        again.truncate(2)
        again.add_metrics({"step": 9})
        assert [row["step"] for row in rows(again.folder / "metrics.jsonl")] == [0, 1, 9]
        assert again.held_out.keys() == {"before"}


def test_records_start_over_without_a_checkpoint(records: Records) -> None:
    """Evaluations of the untrained model are not repeated, unless their scores were not kept."""
    records.add_metrics({"step": 0, "evaluation": "before", "pi": 0.5})
    records.add_evaluation("before", HeldOut([("1", "a cat")], {"pi": [0.5]}))
    records.add_metrics({"step": 0, "evaluation": "before, greedy", "pi": 0.5})
    records.add_metrics({"step": 1})
    records.close()
    with closing(Records(records.folder)) as again:
        again.truncate(None)
        assert again.rows == rows(again.folder / "metrics.jsonl") == [{"step": 0, "evaluation": "before", "pi": 0.5}]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metrics.jsonl", '{"step"\n{"step": 2}\n'),
        ("metrics.jsonl", "3\n"),
        ("held-out.json", "{"),
        ("held-out.json", "[]"),
        ("held-out.json", '{"before": {"pi": [1]}}'),
    ],
)
def test_damaged_records_are_reported(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=f"{name} is damaged"):
        Records(tmp_path)


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    with closing(Records(tmp_path, main=False)) as quiet:
        quiet.add_metrics({"step": 1})
        quiet.add_samples("step-000001", [sample()])
        quiet.add_evaluation("before", HeldOut([("1", "a cat")], {"pi": [0.5]}))
        quiet.truncate(None)
    assert list(tmp_path.iterdir()) == []
