"""Impossible settings are refused before weights are loaded, in two lines. GoT-R1's presets work with the judges that they name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gotr1_core.api import component
from gotr1_core.cli.main import call
from gotr1_core.components.build import make_judge
from gotr1_core.components.preflight import check
from gotr1_core.components.resolve import resolve_config
from gotr1_core.config.models import ComponentConfig, RunConfig, validate
from gotr1_core.errors import UsageError
from gotr1_core.plugins import Registry
from gotr1_judges.options import ClipOptions, DetectorOptions, HpsOptions, InternJudgeOptions, QwenJudgeOptions
from gotr1_judges.preference import ClipJudge, HpsJudge
from gotr1_judges.rubric import InternJudge, QwenJudge

Tiny = Callable[[str], Path]


def refusal(judge: Any, options: Any) -> UsageError:
    with pytest.raises(UsageError) as caught:
        judge.preflight(options, key="judge")
    error = caught.value
    assert error.hint
    assert "\n" not in error.message + error.hint
    return error


def test_sizes(tiny: Tiny, tiny_clip: Path, tiny_owl: Path) -> None:
    """No judge reports a policy's context length or the size of a picture."""
    assert QwenJudge.preflight(QwenJudgeOptions(model=str(tiny("qwen3_vl")))).keys() == {"parameters"}
    assert InternJudge.preflight(InternJudgeOptions(model=str(tiny("internvl")), scoring="expected")).keys() == {"parameters"}
    assert ClipJudge.preflight(ClipOptions(model=str(tiny_clip))).keys() == {"parameters"}
    from gotr1_judges.detector import DetectorJudge

    assert DetectorJudge.preflight(DetectorOptions(model=str(tiny_owl))).keys() == {"parameters"}


def test_weights_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["score", "--judge", "internvl", f"judge.model={tmp_path / 'none'}", "--prompt", "x", str(picture(tmp_path))]) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error: judge.model: ")
    assert hint.startswith("hint: ")


def picture(folder: Path) -> Path:
    from PIL import Image

    Image.new("RGB", (8, 8)).save(folder / "x.png")
    return folder / "x.png"


def test_weights_of_another_model(tiny: Tiny, tiny_clip: Path) -> None:
    assert "is a internvl model, and the judge qwen-vl loads" in refusal(QwenJudge, QwenJudgeOptions(model=str(tiny("internvl")))).message
    other = refusal(InternJudge, InternJudgeOptions(model=str(tiny("qwen3_vl"))))
    assert "-hf" in str(other.hint)
    assert "is a qwen3_vl model" in refusal(ClipJudge, ClipOptions(model=str(tiny("qwen3_vl")))).message
    assert "is a clip model" in refusal(QwenJudge, QwenJudgeOptions(model=str(tiny_clip))).message


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tokenizer.json", "has no tokenizer.json"),
        ("preprocessor_config.json", "the image processor"),
        ("chat_template.jinja", "chat template"),
        ("model.safetensors", "safetensors"),
    ],
)
def test_an_incomplete_folder(tiny: Tiny, tmp_path: Path, name: str, said: str) -> None:
    folder = tmp_path / "judge"
    shutil.copytree(tiny("internvl"), folder)
    assert (folder / name).is_file()
    (folder / name).unlink()
    assert said in refusal(InternJudge, InternJudgeOptions(model=str(folder))).message


def test_a_template_without_a_place_for_the_picture(tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "judge"
    shutil.copytree(tiny("internvl"), folder)
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text().replace("<IMG_CONTEXT>", ""))
    assert "must insert the question and its picture exactly once" in refusal(InternJudge, InternJudgeOptions(model=str(folder))).message


def test_rubrics_are_checked_before_weights() -> None:
    assert "judge.rubrics" in refusal(InternJudge, InternJudgeOptions(model="no/where", rubrics="v0")).message


def test_hps_is_released_as_a_pickle() -> None:
    error = refusal(HpsJudge, HpsOptions())
    assert "pickle" in error.message
    assert "docs/judges.md" in str(error.hint)


@pytest.mark.parametrize("name", ["none.ttf", "text.ttf"])
def test_a_font_that_cannot_be_used(tiny: Tiny, tmp_path: Path, name: str) -> None:
    (tmp_path / "text.ttf").write_text("no font")
    error = refusal(InternJudge, InternJudgeOptions(model=str(tiny("internvl")), font=str(tmp_path / name)))
    assert error.message.startswith("judge.font: the font ")


def test_weights_are_in_the_type_and_place_asked_for(tiny: Tiny) -> None:
    judge = component("judge", "internvl", model=str(tiny("internvl")), dtype="bfloat16", device="cpu")
    assert str(judge.answerer.model.dtype) == "torch.bfloat16"
    assert judge.answerer.model.device.type == "cpu"


def test_a_judge_is_on_the_runs_device(tiny_clip: Path) -> None:
    """A judge gets the run's device, unless its options name one or it takes none. Every machine has the device "meta"."""
    assert make_judge(Registry(), ComponentConfig(name="clip", model=str(tiny_clip)), device="meta").model.device.type == "meta"  # type: ignore[attr-defined]
    own = make_judge(Registry(), ComponentConfig(name="clip", model=str(tiny_clip), device="cpu"), device="meta")
    assert own.model.device.type == "cpu"  # type: ignore[attr-defined]
    assert make_judge(Registry(), ComponentConfig(name="scenes"), device="meta").rewards


# -- presets ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["1b", "7b"])
def test_got_r1s_presets_fit(size: str, tiny: Tiny, tiny_clip: Path, tiny_janus: Path, tmp_path: Path) -> None:
    """Tiny weights replace the downloaded ones. Judges are named with their options."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join("abcdef"))
    words = [
        f"planner.model={tiny_janus}",
        "sampling.max_chain_tokens=300",
        f"prompts.file={prompts}",
        "prompts.held_out=2",
        "evaluation.prompts=2",
    ]
    words += [f"judge.qwen-vl.model={tiny('qwen2_5_vl')}", f"judge.hps.model={tiny_clip}"]
    registry = Registry()
    config = validate(RunConfig, resolve_config(registry, None, f"got-r1-{size}", {}, words))
    found = check(registry, config).sizes
    assert found["image_tokens"] == 9
    alone = check(registry, validate(RunConfig, {**config.model_dump(), "judge": ["scenes"], "reward": "pi"})).sizes
    assert found["parameters"] > alone["parameters"]  # a judge's weights take room, too
    assert found["context"] == alone["context"]


def test_a_dry_run_says_which_judge_lacks_its_weights(tiny_janus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join("abcdef"))
    words = [
        "--preset",
        "got-r1-1b",
        f"prompts.file={prompts}",
        "prompts.held_out=2",
        "evaluation.prompts=2",
        f"planner.model={tiny_janus}",
    ]
    words += ["sampling.max_chain_tokens=300", f"judge.qwen-vl.model={tmp_path / 'none'}"]
    assert call(["train", "--dry-run", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.partition(":")[0] for line in err.splitlines()] == ["error", "hint"]
    assert "judge.qwen-vl.model" in err


def test_the_schema_has_the_options_of_the_judges(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["show", "judge", "qwen-vl", "--json"]) == 0
    assert "least_mass" in json.dumps(json.loads(capsys.readouterr().out))


def test_a_device_that_is_not_there_is_refused(tiny: Tiny, tiny_clip: Path, tiny_owl: Path) -> None:
    from gotr1_judges.detector import DetectorJudge

    for judge, options, model in (
        (InternJudge, InternJudgeOptions, tiny("internvl")),
        (ClipJudge, ClipOptions, tiny_clip),
        (DetectorJudge, DetectorOptions, tiny_owl),
    ):
        judge.preflight(options(model=str(model), device="cpu"))  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="device=cuda:99 is not on this machine"):
            judge(options(model=str(model), device="cuda:99"))  # type: ignore[arg-type]
        if not torch.cuda.is_available():  # a dry run may be made on another machine than the run
            judge.preflight(options(model=str(model), device="cuda:99"))  # type: ignore[arg-type]
        assert "judge.device=gpu is no device" in refusal(judge, options(model=str(model), device="gpu")).message
