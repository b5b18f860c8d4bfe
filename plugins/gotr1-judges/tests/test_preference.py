"""CLIPs as judges: a cosine between two constants. And HPS v2.1, whose tensors have open_clip's names."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from gotr1_core.chain import parse
from gotr1_core.errors import UsageError
from gotr1_core.samples import Prompt, Sample
from gotr1_judges.open_clip import _BLOCK, is_open_clip, load_open_clip, to_transformers_names
from gotr1_judges.options import ClipOptions, HpsOptions, PickScoreOptions
from gotr1_judges.preference import ClipJudge, HpsJudge, PickScoreJudge
from gotr1_testing.judges import shape_samples


def test_constants() -> None:
    """The constants are those of docs/judges.md."""
    assert (ClipOptions().low, ClipOptions().high) == (0, 0.4)  # CLIPScore's 2.5
    assert (PickScoreOptions().low, PickScoreOptions().high) == (0, 0.26)
    assert (HpsOptions().low, HpsOptions().high) == (0, 0.4)
    with pytest.raises(ValidationError, match="low must be below high"):
        ClipOptions(low=0.4)


def test_the_score_is_the_cosine_of_transformers(tiny_clip: Path) -> None:
    """The cosine of each picture with its own prompt, scaled between the constants and clipped."""
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(tiny_clip).eval()
    judge = ClipJudge(ClipOptions(model=str(tiny_clip), batch=4))
    samples, cosines = shape_samples(), []
    for sample in samples:
        words = judge.tokenizer(sample.prompt.text, return_tensors="pt")
        pixels = judge.processor(sample.image, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            cosines.append(float(model(**words, pixel_values=pixels).logits_per_image / model.logit_scale.exp()))
    assert judge.cosines(samples) == pytest.approx(cosines, abs=1e-5)  # float32
    assert max(cosines) - min(cosines) > 0.05
    middle = sorted(cosines)[3]
    judge = ClipJudge(ClipOptions(model=str(tiny_clip), low=middle - 0.02, high=middle + 0.02))
    wanted = [min(1.0, max(0.0, (cosine - middle + 0.02) / 0.04)) for cosine in cosines]
    assert {0.0, 1.0} <= set(wanted)
    assert judge.score(samples, ["clip"])["clip"] == pytest.approx(wanted, abs=1e-3)


def test_a_long_prompt_is_cut(tiny_clip: Path) -> None:
    judge = PickScoreJudge(PickScoreOptions(model=str(tiny_clip)))
    samples = [Sample(Prompt("a red circle " * times), parse(""), Image.new("RGB", (40, 40))) for times in (20, 30)]
    one, other = judge.score(samples, ["pickscore"])["pickscore"]
    assert one == pytest.approx(other, abs=1e-5)


def test_a_prompts_special_tokens_are_text(tiny_clip: Path) -> None:
    """A CLIP reads up to its first end token. Words after one that a prompt spells count."""
    judge = ClipJudge(ClipOptions(model=str(tiny_clip)))
    image = Image.new("RGB", (40, 40), "red")
    texts = ["a dog", "a dog <|endoftext|> a red bus", "a dog <|endoftext|> a cat", "a dog <|startoftext|> a cat", "a dog <unk> a cat"]
    cosines = judge.cosines([Sample(Prompt(text), parse(""), image) for text in texts])
    alone = [judge.cosines([Sample(Prompt(text), parse(""), image)])[0] for text in texts]
    assert cosines == pytest.approx(alone, abs=1e-5)
    assert len({round(cosine, 5) for cosine in cosines}) == len(texts)


def test_without_a_picture_there_is_no_score(tiny_clip: Path) -> None:
    judge = HpsJudge(HpsOptions(model=str(tiny_clip)))
    samples = [Sample(Prompt("a"), parse(""), None), Sample(Prompt("a"), parse(""), Image.new("L", (40, 40)))]
    found = judge.score(samples, ["hps"])["hps"]
    assert math.isnan(found[0])
    assert not math.isnan(found[1])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_half_precision(tiny_clip: Path, dtype: str) -> None:
    judge = ClipJudge(ClipOptions(model=str(tiny_clip), dtype=dtype))
    exact = ClipJudge(ClipOptions(model=str(tiny_clip))).cosines(shape_samples())
    assert judge.cosines(shape_samples()) == pytest.approx(exact, abs=0.03)  # bfloat16 has 8 bits, and two layers add up


# -- open_clip --------------------------------------------------------------------------------------------------------------


def open_clip(model: Any) -> dict[str, torch.Tensor]:
    """A CLIP's tensors under the names of open_clip's own modules. They are made from its structure, not from our table of names."""
    found = {
        "logit_scale": model.logit_scale.data,
        "text_projection": model.text_projection.weight.T,
        "visual.proj": model.visual_projection.weight.T,
    }
    text, vision = model.text_model, model.vision_model
    found |= {
        "token_embedding.weight": text.embeddings.token_embedding.weight,
        "positional_embedding": text.embeddings.position_embedding.weight,
    }
    found |= {"visual.class_embedding": vision.embeddings.class_embedding, "visual.conv1.weight": vision.embeddings.patch_embedding.weight}
    found["visual.positional_embedding"] = vision.embeddings.position_embedding.weight
    norms = {"ln_final": text.final_layer_norm, "visual.ln_pre": vision.pre_layrnorm, "visual.ln_post": vision.post_layernorm}
    for prefix, tower in (("", text), ("visual.", vision)):
        for number, layer in enumerate(tower.encoder.layers):
            block = f"{prefix}transformer.resblocks.{number}"
            attention = layer.self_attn
            for kind in ("weight", "bias"):
                parts = [getattr(part, kind) for part in (attention.q_proj, attention.k_proj, attention.v_proj)]
                found[f"{block}.attn.in_proj_{kind}"] = torch.cat(parts)
            norms |= {f"{block}.ln_1": layer.layer_norm1, f"{block}.ln_2": layer.layer_norm2, f"{block}.attn.out_proj": attention.out_proj}
            norms |= {f"{block}.mlp.c_fc": layer.mlp.fc1, f"{block}.mlp.c_proj": layer.mlp.fc2}
    for name, part in norms.items():
        found |= {f"{name}.weight": part.weight, f"{name}.bias": part.bias}
    return {name: tensor.detach().contiguous().clone() for name, tensor in found.items()}


@pytest.fixture
def released(tiny_clip: Path, tmp_path: Path) -> Path:
    """The tiny CLIP as a folder, with open_clip's names of tensors."""
    from transformers import CLIPModel

    folder = tmp_path / "hps"
    shutil.copytree(tiny_clip, folder)
    save_file(open_clip(CLIPModel.from_pretrained(tiny_clip)), folder / "model.safetensors")
    return folder


def test_open_clips_tensors_are_the_same_model(tiny_clip: Path, released: Path) -> None:
    assert is_open_clip(released)
    assert not is_open_clip(tiny_clip)
    samples = shape_samples()
    one = ClipJudge(ClipOptions(model=str(tiny_clip), low=-1, high=1)).score(samples, ["clip"])["clip"]
    other = HpsJudge(HpsOptions(model=str(released), low=-1, high=1)).score(samples, ["hps"])["hps"]
    assert other == pytest.approx(one, abs=1e-6)  # the same numbers in the same places
    assert HpsJudge.preflight(HpsOptions(model=str(released))).keys() == {"parameters"}


def test_every_tensor_must_be_there(released: Path) -> None:
    state = load_file(released / "model.safetensors")
    assert (
        to_transformers_names({**state, "attn_mask": torch.zeros(2, 2)}).keys() == to_transformers_names(state).keys()
    )  # a buffer that older ones have
    save_file({name: tensor for name, tensor in state.items() if name != "ln_final.bias"}, released / "model.safetensors")
    with pytest.raises(UsageError, match=r"final_layer_norm\.bias"):
        load_open_clip(released)
    save_file({**state, "visual.head": torch.zeros(2)}, released / "model.safetensors")
    with pytest.raises(UsageError, match=r"visual\.head"):
        load_open_clip(released)
    assert _BLOCK.fullmatch("visual.transformer.resblocks.31.mlp.c_fc.weight")
