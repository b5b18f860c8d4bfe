"""Nothing is read, written or removed outside of the folders that the user named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from structure import ROOT

from gotr1_core.cli.main import call
from gotr1_core.config.models import RunConfig
from gotr1_core.data.examples import read_examples
from gotr1_core.errors import UsageError
from gotr1_core.pictures.sample_files import find_pictures
from gotr1_core.policies.hub import find_weights
from gotr1_core.runs.checkpoint import MANIFEST, find_damage
from gotr1_core.runs.start import train

WEIGHTS = ROOT / "plugins/gotr1-scenes/src/gotr1_scenes/weights"
BOX = "<|obj_start|>a<|obj_end|><|box_start|>(0,0),(500,500)<|box_end|>"
Refused = Callable[..., tuple[str, str]]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a line that must be refused; returns its error and its hint."""

    def of(words: list[str]) -> tuple[str, str]:
        capsys.readouterr()
        assert call(words) == 2
        error, hint = capsys.readouterr().err.splitlines()
        return error.removeprefix("error: "), hint.removeprefix("hint: ")

    return of


# -- runs -------------------------------------------------------------------------------------------------------------------

NAMES = ["../x", "../../x", "/x", "a/../../x", ".", "..", ".hidden", "a/b", " ", "x\0y", ""]


@pytest.mark.parametrize("name", NAMES[:-3])
def test_a_runs_name_is_that_of_one_folder(name: str, tmp_path: Path, refused: Refused) -> None:
    output = tmp_path / "a" / "b"
    for dry in ([], ["--dry-run"]):
        assert "is not the name of one folder" in refused(["train", *dry, "--preset", "scenes", f"output={output}", f"name={name}"])[0]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [name for name in NAMES if name])
def test_the_same_from_python(name: str, tmp_path: Path, make: Callable[..., RunConfig]) -> None:
    with pytest.raises(UsageError, match="is not the name of one folder"):
        train(make(output=tmp_path / "a", name=name), cpu=True)
    assert not list(tmp_path.iterdir())


# -- checkpoints ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../janus/model.safetensors", "{folder}/janus/model.safetensors", "..", "", "a\\b", "\0"])
def test_a_weight_map_names_files_of_its_folder(name: str, tmp_path: Path) -> None:
    shutil.copytree(WEIGHTS / "janus", tmp_path / "janus")
    model = Path(shutil.copytree(WEIGHTS / "janus", tmp_path / "model"))
    (model / "model.safetensors").unlink()
    index = {"weight_map": {"a": name.replace("{folder}", str(tmp_path))}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UsageError, match="which is no file in it"):
        find_weights(str(model), key="planner.model")


def test_the_parts_of_a_pipeline_lie_in_its_folder(tmp_path: Path) -> None:
    model = Path(shutil.copytree(WEIGHTS / "sdxl", tmp_path / "model"))
    (model / "vae").rename(tmp_path / "vae")
    index = json.loads((model / "model_index.json").read_text())
    index["../vae"] = index.pop("vae")
    (model / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UsageError, match=r"lacks the part \.\./vae"):
        find_weights(str(model), key="renderer.model")


def test_an_adapter_cannot_name_a_model_elsewhere(tmp_path: Path) -> None:
    model = Path(shutil.copytree(WEIGHTS / "qwen", tmp_path / "model"))
    (model / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "../other", "peft_type": "LORA"}))
    with pytest.raises(UsageError, match="holds an adapter, not a whole model"):
        find_weights(str(model), key="planner.model")


@pytest.mark.parametrize("name", ["../{run}/config.yaml", "{run}/config.yaml", "planner/../../x"])
def test_a_manifest_lists_files_of_its_checkpoint(name: str, trained: Path) -> None:
    checkpoint = trained / "checkpoints" / "step-000001"
    manifest = json.loads((checkpoint / MANIFEST).read_text())
    manifest["files"][name.replace("{run}", str(trained))] = {"bytes": 0, "sha256": ""}
    (checkpoint / MANIFEST).write_text(json.dumps(manifest))
    assert find_damage(checkpoint) == "manifest.json is damaged"


# -- pictures ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Callable[..., Path]:
    """A data file in the folder ``data`` whose row names a picture; there are some in and beside that folder."""
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    for path in (folder / "a.png", folder / "images" / "b.png", tmp_path / "secret.png"):
        Image.new("RGB", (8, 8)).save(path)
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "circle.png").symlink_to(folder / "circle.png")
    (folder / "script.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")
    Image.new("RGB", (8, 8)).save(folder / "animation.png", format="GIF")

    def naming(image: Any) -> Path:
        (folder / "data.jsonl").write_text(json.dumps({"prompt": "a", "chain": BOX, "image": image}))
        return folder / "data.jsonl"

    return naming


OUTSIDE = ["../secret.png", "{folder}/secret.png", "link.png", "images/../../secret.png", "circle.png", "/dev/zero", "a\0.png"]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("read", [read_examples, lambda file: find_pictures([file])], ids=["examples", "samples"])
def test_pictures_named_in_data_lie_beside_it(name: str, read: Callable[[Path], Any], data: Callable[..., Path], tmp_path: Path) -> None:
    file = data(name.replace("{folder}", str(tmp_path)))
    with pytest.raises(UsageError, match=r"data\.jsonl, line 1: the picture '.*' does not lie in ") as caught:
        read(file)
    assert caught.value.hint in (
        "put the picture beside the data, or allow a folder: pictures=DIR",
        "put the picture beside the file, or allow its folder: --pictures DIR",
    )


@pytest.mark.parametrize("name", ["a.png", "images/b.png", "images/../a.png"])
def test_pictures_beside_the_data_are_read(name: str, data: Callable[..., Path]) -> None:
    file = data(name)
    assert read_examples(file)[0].image is not None
    assert find_pictures([file])[0].path == file.parent / name


@pytest.mark.parametrize("name", ["script.png", "animation.png"])
def test_only_formats_that_score_reads(name: str, data: Callable[..., Path]) -> None:
    file = data(name)
    for read in (read_examples, lambda path: find_pictures([path])):
        with pytest.raises(UsageError, match="is not a PNG, JPEG or WebP picture"):
            read(file)


def test_a_setting_allows_another_folder(data: Callable[..., Path], tmp_path: Path, refused: Refused) -> None:
    file = data("../secret.png")
    assert read_examples(file, tmp_path)[0].image is not None
    score = ["score", str(file), "--judge", "scenes"]
    assert "does not lie in" in refused(score)[0]
    assert call([*score, "--pictures", str(tmp_path)]) == 1  # it is read; nothing in it can be scored
    sft = ["sft", "policy=janus", f"policy.model={WEIGHTS / 'janus'}", f"data={file}", "steps=1", f"output={tmp_path / 'sft'}"]
    assert "does not lie in" in refused(sft)[0]
    assert "does not lie in" in refused([*sft, f"pictures={tmp_path / 'data'}"])[0]
    assert call([*sft, f"pictures={tmp_path}"]) == 0


# -- generate ---------------------------------------------------------------------------------------------------------------


def test_overwrite_removes_only_what_its_own_list_names(toy: Path) -> None:
    words = ["generate", "a cat", "--preset", "toy", "--out", "out"]
    assert call([*words, "-n", "2"]) == 0
    rows = toy / "out" / "samples.jsonl"
    assert [sorted(json.loads(line).keys() & {"image", "overlay"}) for line in rows.read_text().splitlines()] == [["image", "overlay"]] * 2
    kept = ["mine.png", "mine-plan.png", "notes.txt", "002.png", "002-plan.png", "sub/003.png"]
    (toy / "out" / "sub").mkdir()
    (toy / "004.png").write_text("mine")
    (toy / "out" / "005.png").mkdir()
    for name in kept:
        (toy / "out" / name).write_text("mine")
    names = [
        "mine.png",
        "notes.txt",
        "../004.png",
        str(toy / "004.png"),
        "sub/003.png",
        "..",
        ".",
        "",
        "005.png",
        "x\0",
        3,
        None,
        ["002.png"],
    ]
    lines = [json.dumps({"image": name, "overlay": name}) for name in names] + ["[" * 99_999, "3", "no JSON"]
    rows.write_text(rows.read_text() + "\n".join(lines))
    assert call([*words, "--overwrite"]) == 0
    assert all((toy / "out" / name).read_text() == "mine" for name in kept)
    assert (toy / "004.png").read_text() == "mine"
    assert (toy / "out" / "005.png").is_dir()
    assert not (toy / "out" / "001.png").exists()
    assert not (toy / "out" / "001-plan.png").exists()


@pytest.mark.parametrize("name", ["samples.jsonl", "000.png", "000-plan.png"])
@pytest.mark.parametrize("there", [True, False])
def test_a_link_in_the_place_of_a_picture_is_not_followed(name: str, there: bool, toy: Path, refused: Refused) -> None:
    (toy / "out").mkdir()
    if there:
        (toy / "victim").write_text("mine")
    (toy / "out" / name).symlink_to(toy / "victim")
    words = ["generate", "a cat", "--preset", "toy", "--out", "out"]
    if name != "000-plan.png":
        assert refused(words)[0] == f"out already has pictures: {name}"
    assert call([*words, "--overwrite"]) == 0
    assert not (toy / "out" / name).is_symlink()
    assert (toy / "victim").exists() == there
    assert not there or (toy / "victim").read_text() == "mine"
