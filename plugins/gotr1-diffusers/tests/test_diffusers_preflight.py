"""What is reported of a pipeline before its weights are loaded, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from gotr1_core.components.preflight import check
from gotr1_core.components.resolve import resolve_config
from gotr1_core.config.models import RunConfig, validate
from gotr1_core.errors import UsageError
from gotr1_core.plugins import Registry
from gotr1_core.samples import Sampling
from gotr1_diffusers.flow import FlowPolicy
from gotr1_diffusers.options import FlowOptions, SdxlOptions
from gotr1_diffusers.sdxl import SdxlPolicy


@pytest.fixture
def folder(tiny_sdxl: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_sdxl, tmp_path / "copy"))


def preflight(folder: Path | str) -> dict[str, int]:
    return SdxlPolicy.preflight(SdxlOptions(model=str(folder)), key="renderer")


def change(path: Path, **keys: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def test_parameters_are_counted(tiny_sdxl: Path, sdxl: Callable[..., Any], tiny_flow: Path, flow: Callable[..., Any]) -> None:
    found = preflight(tiny_sdxl)["parameters"], FlowPolicy.preflight(FlowOptions(model=str(tiny_flow)))["parameters"]
    for count, policy in zip(found, (sdxl(), flow()), strict=True):
        buffers = sum(b.numel() for name, b in policy.module.named_buffers() if name in policy.module.state_dict())
        assert count == sum(p.numel() for p in policy.module.parameters()) + buffers


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: change(f / "model_index.json", _class_name="StableDiffusionPipeline"), "is a StableDiffusionPipeline, not a StableDiff"),
        (lambda f: (f / "model_index.json").unlink(), r"has no config.json \(and no model_index.json\)"),
        (lambda f: shutil.rmtree(f / "unet"), "lacks the part unet"),
        (lambda f: shutil.rmtree(f / "tokenizer_2"), "lacks the part tokenizer_2"),
        (lambda f: (f / "vae" / "diffusion_pytorch_model.safetensors").unlink(), r"has no vae/\*.safetensors"),
        (lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"12345678"), "is cut off or damaged"),
    ],
)
def test_an_incomplete_sdxl_pipeline_is_refused(folder: Path, damage: Callable[[Path], object], said: str) -> None:
    damage(folder)
    with pytest.raises(UsageError) as caught:
        preflight(folder)
    assert re.search(said, caught.value.message)
    assert "renderer.model" in caught.value.message
    assert caught.value.hint


def in_variant(folder: Path, parts: list[str]) -> None:
    """Renames the weights of some parts to those of the variant fp16."""
    for part in parts:
        for path in (folder / part).glob("*.safetensors"):
            path.rename(path.with_suffix(".fp16.safetensors"))


@pytest.mark.parametrize("parts", [["unet", "vae", "text_encoder", "text_encoder_2"], ["vae"], ["unet", "text_encoder"]])
def test_a_pipeline_in_one_variant_alone_is_found_and_loads(folder: Path, parts: list[str]) -> None:
    whole = preflight(folder)
    in_variant(folder, parts)
    with pytest.raises(UsageError, match=rf"({'|'.join(parts)})/\*.safetensors only in the variant fp16") as caught:
        preflight(folder)
    assert caught.value.hint == "set renderer.variant=fp16"
    options = SdxlOptions(model=str(folder), variant="fp16")
    assert SdxlPolicy.preflight(options, key="renderer") == whole
    assert SdxlPolicy(options).module is not None


def test_a_pipeline_in_two_variants_is_counted_once(folder: Path) -> None:
    whole = preflight(folder)
    for path in folder.glob("*/*.safetensors"):
        shutil.copyfile(path, path.with_suffix(".fp16.safetensors"))
    assert preflight(folder) == whole
    assert SdxlPolicy.preflight(SdxlOptions(model=str(folder), variant="fp16"), key="renderer") == whole


def test_a_variant_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="has no weights of the variant fp16") as caught:
        SdxlPolicy.preflight(SdxlOptions(model=str(folder), variant="fp16"), key="renderer")
    assert caught.value.hint == "set renderer.variant=null"


def test_what_cannot_draw_is_refused_before_weights_are_loaded(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"renderer\.height=33 is not a multiple of"):
        SdxlPolicy.preflight(SdxlOptions(model=str(folder), height=33), key="renderer")
    change(folder / "unet" / "config.json", in_channels=9)
    with pytest.raises(UsageError, match="takes 9 channels and the VAE gives 4"):
        preflight(folder)
    change(folder / "model_index.json", text_encoder=[None, None], tokenizer=[None, None])
    with pytest.raises(UsageError, match="lacks its first text encoder"):
        preflight(folder)


def test_another_librarys_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UsageError, match="is a llama model, not a StableDiffusionXLPipeline"):
        preflight(tmp_path)
    with pytest.raises(UsageError, match="neither a folder that exists nor a hub name"):
        preflight("nowhere")


def test_the_class_is_read_from_the_hubs_facts() -> None:
    from gotr1_diffusers.checkpoint import check_pipeline_class

    check_pipeline_class("StableDiffusionXLPipeline", {"diffusers": {"_class_name": "StableDiffusionXLPipeline"}}, "x")
    with pytest.raises(UsageError, match="x is a FluxPipeline, not a StableDiffusion3Pipeline"):
        check_pipeline_class("StableDiffusion3Pipeline", {"diffusers": {"_class_name": "FluxPipeline"}}, "x")


def test_sdxl_is_not_flow(tiny_sdxl: Path, tiny_flow: Path) -> None:
    with pytest.raises(UsageError, match="is a StableDiffusionXLPipeline, not a StableDiffusion3Pipeline"):
        FlowPolicy.preflight(FlowOptions(model=str(tiny_sdxl)))
    with pytest.raises(UsageError, match="is a StableDiffusion3Pipeline, not a StableDiffusionXLPipeline"):
        preflight(tiny_flow)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "text_encoder_2"])
def test_a_checkpoint_that_lacks_weights_is_refused(folder: Path, part: str) -> None:
    """Libraries would fill missing weights with random ones."""
    (path,) = (folder / part).glob("*.safetensors")
    tensors = load_file(path)
    tensors.pop(sorted(tensors)[3])
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(UsageError, match="is not a complete pipeline"):
        SdxlPolicy(SdxlOptions(model=str(folder)))


def test_pipelines_that_are_not_text_to_image_are_refused(sdxl_in_memory: Callable[..., Any]) -> None:
    """A refiner has one text encoder, an inpainting model takes more than latents, and other schedules are not DDIM's."""
    from diffusers import DDIMScheduler, EDMEulerScheduler

    for breaks, said in (
        ({"text_encoder": None}, "lacks its first text encoder"),
        ({"scheduler": EDMEulerScheduler()}, "EDMEulerScheduler, has no noise schedule that DDIM knows"),
        ({"scheduler": DDIMScheduler(prediction_type="flow_prediction")}, "predicts 'flow_prediction', which DDIM does not know"),
    ):
        pipeline = sdxl_in_memory()
        for name, part in breaks.items():
            setattr(pipeline, name, part)
        with pytest.raises(UsageError, match=said):
            SdxlPolicy.from_pipeline(pipeline, SdxlOptions())
    pipeline = sdxl_in_memory()
    pipeline.unet.register_to_config(in_channels=9)
    with pytest.raises(UsageError, match="takes 9 channels and the VAE gives 4"):
        SdxlPolicy.from_pipeline(pipeline, SdxlOptions())


@pytest.mark.parametrize(("name", "option"), [("sdxl", "eta"), ("flow", "noise_level")])
def test_training_without_noise_is_refused_beforehand(name: str, option: str) -> None:
    """Every step would be deterministic. Drawing without noise is no mistake."""
    words = [f"renderer.model=gone/{name}", f"renderer.{option}=0", "train=renderer", "prompts.source=scenes"]
    data = resolve_config(Registry(), None, None, {"planner": "file", "renderer": name, "judge": ["scenes"]}, words)
    with pytest.raises(UsageError, match=f"renderer.{option}=0: no denoising step has noise"):
        check(Registry(), validate(RunConfig, {**data, "planner": {"name": "file", "chains": "gone.jsonl"}}))
    with pytest.raises(UsageError, match=r"planner\.model.*/gone"):  # it is the next thing that is wrong
        check(Registry(), validate(RunConfig, {**data, "train": "planner", "planner": {"name": "qwen", "model": "/gone"}}))


FEW = Sampling(denoising_steps=4)


@pytest.mark.parametrize(
    ("scheduler", "said"),
    [
        ({"_class_name": "EDMEulerScheduler"}, "EDMEulerScheduler, has no noise schedule that DDIM knows"),
        ({"beta_schedule": "unknown"}, "its scheduler, EulerDiscreteScheduler, cannot be made"),
        ({"timestep_spacing": [1, "x"]}, "DDIM cannot be made of its EulerDiscreteScheduler"),
        ({"prediction_type": "flow"}, "predicts 'flow', which DDIM does not know"),
        ({"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, "cannot start at zero signal"),
        ({"num_train_timesteps": 3}, "denoising_steps=4 is more than the 3 timesteps"),
    ],
)
def test_a_scheduler_that_ddim_does_not_know_is_refused_before_loading(folder: Path, scheduler: dict[str, Any], said: str) -> None:
    options = SdxlOptions(model=str(folder))
    SdxlPolicy.preflight_prompts(options, [], FEW)
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(scheduler if "_class_name" in scheduler else json.loads(file.read_text()) | scheduler))
    if "_class_name" in scheduler:
        change(folder / "model_index.json", scheduler=["diffusers", scheduler["_class_name"]])
    with pytest.raises(UsageError, match=said):
        SdxlPolicy.preflight_prompts(options, [], FEW)


def test_a_scheduler_that_flow_sde_does_not_know_is_refused_before_loading(tiny_flow: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_flow, tmp_path / "copy"))
    options = FlowOptions(model=str(folder))
    FlowPolicy.preflight_prompts(options, [], FEW)
    with pytest.raises(UsageError, match="denoising_steps=5000 is more than the 1000 timesteps"):
        FlowPolicy.preflight_prompts(options, [], Sampling(denoising_steps=5000))
    change(folder / "model_index.json", scheduler=["diffusers", "FlowMatchHeunDiscreteScheduler"])
    (folder / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "FlowMatchHeunDiscreteScheduler"}')
    with pytest.raises(UsageError, match="FlowMatchHeunDiscreteScheduler, has no noise shares that Flow-SDE knows"):
        FlowPolicy.preflight_prompts(options, [], FEW)


@pytest.mark.parametrize("changed", [{"trained_steps": 5}, {"trained_range": (0.4, 0.45)}])
def test_too_few_steps_to_train_on_are_refused_before_loading(tiny_sdxl: Path, tiny_flow: Path, changed: dict[str, Any]) -> None:
    SdxlPolicy.preflight_training(SdxlOptions(model=str(tiny_sdxl)), FEW)
    FlowPolicy.preflight_training(FlowOptions(model=str(tiny_flow)), FEW)
    with pytest.raises(UsageError, match="too few of the 4 denoising steps have noise to train on"):
        SdxlPolicy.preflight_training(SdxlOptions(model=str(tiny_sdxl), **changed), FEW)
    with pytest.raises(UsageError, match="too few of the 4 denoising steps have noise to train on"):
        FlowPolicy.preflight_training(FlowOptions(model=str(tiny_flow), **changed), FEW)


def test_a_critic_for_a_renderer_without_features_is_refused_before_loading(tiny_sdxl: Path) -> None:
    words = [f"renderer.model={tiny_sdxl}", "train=both"]
    data = resolve_config(Registry(), None, "scenes", {"planner": "qwen", "renderer": "sdxl", "algorithm": "ppo"}, words)
    with pytest.raises(UsageError, match="the renderer has no features to estimate values from, and ppo needs them"):
        check(Registry(), validate(RunConfig, data))


def prepare_and_load(folder: Path) -> None:
    preflight(folder)
    SdxlPolicy(SdxlOptions(model=str(folder)))


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
@pytest.mark.parametrize("entry", [5, [5, 5], ["transformers", "pipeline"], ["evil", "X"]], ids=str)
def test_an_index_that_names_something_else_is_refused_and_runs_nothing(folder: Path, part: str, entry: object) -> None:
    change(folder / "model_index.json", **{part: entry})
    (folder / part / "evil.py").write_text(f"from pathlib import Path\nPath({str(folder / 'ran')!r}).touch()\nX = 1\n")
    with pytest.raises(UsageError, match=re.escape(str(folder))):
        prepare_and_load(folder)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(("part", "key"), [("unet", "in_channels"), ("vae", "block_out_channels"), ("vae", "latent_channels")])
def test_a_config_with_something_else_is_refused(folder: Path, part: str, key: str) -> None:
    change(folder / part / "config.json", **{key: "x"})
    with pytest.raises(UsageError, match=re.escape(str(folder))):
        prepare_and_load(folder)
