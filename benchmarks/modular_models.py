"""Makes Qwen2.5-VL-7B and SDXL base 1.0 in their true sizes, or tiny ones, with random weights, on any device, also on meta."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from full_size import Coin
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn

from gotr1_core.chain import Chain, parse
from gotr1_core.components.build import make_component, prepare
from gotr1_core.config.models import RunConfig
from gotr1_core.judges import Judges
from gotr1_core.plugins import Registry
from gotr1_core.reward import Expression
from gotr1_core.rollout import Parts
from gotr1_diffusers.options import SdxlOptions
from gotr1_diffusers.sdxl import SdxlPolicy
from gotr1_qwen.options import QwenOptions
from gotr1_qwen.planner import QwenPlanner

CHAIN = parse(
    "There is <|obj_start|>a red cube<|obj_end|><|box_start|>(50,400),(400,800)<|box_end|> on <|obj_start|>a table<|obj_end|>"
    "<|box_start|>(0,600),(999,999)<|box_end|>, and <|obj_start|>a cat<|obj_end|><|box_start|>(500,300),(950,800)<|box_end|> sleeps "
    "to its right under <|obj_start|>a lamp<|obj_end|><|box_start|>(600,0),(800,200)<|box_end|>."
)


@dataclass(frozen=True)
class Size:
    """The configs published with the checkpoints, the length of the instruction in letters (``filler``), and millions of parameters."""

    text: Mapping[str, Any]
    vision: Mapping[str, Any]
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    clips: tuple[Mapping[str, Any], Mapping[str, Any]]
    filler: int
    millions: Mapping[str, float]


_CLIP = {"vocab_size": 49_408, "max_position_embeddings": 77}
SIZES = {
    "true": Size(
        text={
            "vocab_size": 152_064, "hidden_size": 3584, "intermediate_size": 18_944, "num_hidden_layers": 28, "num_attention_heads": 28,
            "num_key_value_heads": 4, "max_position_embeddings": 128_000, "rope_parameters": {"mrope_section": [16, 24, 24]},
        },
        vision={
            "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584, "patch_size": 14,
            "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
        },
        unet={
            "sample_size": 128, "block_out_channels": (320, 640, 1280), "attention_head_dim": (5, 10, 20), "cross_attention_dim": 2048,
            "transformer_layers_per_block": (1, 2, 10), "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
        },
        vae={"block_out_channels": (128, 256, 512, 512), "sample_size": 1024},
        clips=(
            {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "projection_dim": 768},
            {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20, "projection_dim": 1280,
             "hidden_act": "gelu"},
        ),
        filler=770,
        millions={"Qwen2.5-VL": 8292, "UNet": 2567, "CLIP-L": 123, "CLIP-bigG": 695, "VAE": 83.7},
    ),
    "tiny": Size(
        text={
            "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "max_position_embeddings": 2048, "rope_parameters": {"mrope_section": [2, 3, 3]},
        },
        vision={"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 2, "out_hidden_size": 64, "patch_size": 4,
                "window_size": 16, "fullatt_block_indexes": [0]},
        unet={
            "sample_size": 16, "block_out_channels": (32, 64, 64), "attention_head_dim": (1, 2, 2), "cross_attention_dim": 64,
            "transformer_layers_per_block": (1, 1, 2), "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 80,
        },
        vae={"block_out_channels": (32, 32, 32, 32), "sample_size": 128},
        clips=({"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 32},) * 2,
        filler=50,
        millions={},
    ),
}  # fmt: skip
WORDS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role + '\\n' + m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def qwen_tokenizer() -> Any:
    """Returns a tokenizer with one token for each byte. The model has as many tokens as the real one."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate([*WORDS, *alphabet])}, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens(WORDS)
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=WORDS[2], pad_token=WORDS[0])
    made.chat_template = TEMPLATE
    return made


def clip_tokenizer() -> Any:
    """Returns a CLIP tokenizer with one token for each byte."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<|startoftext|>", *letters, *(f"{letter}</w>" for letter in letters), "<|endoftext|>"]
    vocab = {word: i for i, word in enumerate(words)}
    return transformers.CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77)


@contextmanager
def made_as(dtype: str, device: str) -> Iterator[None]:
    """A context in which new weights have this type and device."""
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def make_planner(size: Size, options: Mapping[str, Any], device: str) -> QwenPlanner:
    """Returns Qwen2.5-VL as a planner. Its instruction has as many tokens as v1 in Qwen's tokens. Each of its plans is read as `CHAIN`."""
    text: dict[str, Any] = {**size.text, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, **size.text["rope_parameters"]}}
    marks = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 2, "tie_word_embeddings": False}
    config = transformers.Qwen2_5_VLConfig(text_config=text | marks, vision_config=dict(size.vision), tie_word_embeddings=False)
    with made_as(options["dtype"], device):
        model = transformers.Qwen2_5_VLForConditionalGeneration(config)
    with tempfile.TemporaryDirectory() as folder:
        instruction = Path(folder) / "instruction.txt"
        instruction.write_text("." * size.filler + "{prompt}", encoding="utf-8")
        settings = QwenOptions.model_validate({**options, "model": "random", "instruction": str(instruction)})
        planner = QwenPlanner.from_model(model, qwen_tokenizer(), settings, device=device)
    planner.text.decode_chain = _fixed_chain
    return planner


def _fixed_chain(ids: Any) -> Chain:
    del ids
    return CHAIN


def make_renderer(size: Size, options: Mapping[str, Any], device: str) -> SdxlPolicy:
    """Returns SDXL base 1.0 as a renderer, with its VAE in float32."""
    tokenizers = clip_tokenizer(), clip_tokenizer()
    ids = {f"{name}_token_id": getattr(tokenizers[0], f"{name}_token_id") for name in ("bos", "eos", "pad")}
    clips = [transformers.CLIPTextConfig(**_CLIP, **ids, **clip) for clip in size.clips]
    with made_as(options["dtype"], device):
        encoders = transformers.CLIPTextModel(clips[0]), transformers.CLIPTextModelWithProjection(clips[1])
        unet = diffusers.UNet2DConditionModel(
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            use_linear_projection=True, addition_embed_type="text_time", **size.unet,
        )  # fmt: skip
    with made_as("float32", device):
        blocks = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
        vae = diffusers.AutoencoderKL(
            down_block_types=blocks[0], up_block_types=blocks[1], layers_per_block=2, scaling_factor=0.13025, force_upcast=True, **size.vae
        )
    schedule = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "timestep_spacing": "leading",
        "steps_offset": 1,
    }
    pipeline = diffusers.StableDiffusionXLPipeline(
        vae=vae, text_encoder=encoders[0], text_encoder_2=encoders[1], tokenizer=tokenizers[0], tokenizer_2=tokenizers[1], unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(**schedule), add_watermarker=False,
    )  # fmt: skip
    renderer = SdxlPolicy.from_pipeline(pipeline, SdxlOptions.model_validate({**options, "model": "random"}), device=device)
    assert isinstance(renderer, SdxlPolicy)
    return renderer


def make_parts(size: Size, config: RunConfig, device: str) -> Parts:
    """Returns the components of a run, with adapters."""
    planner = make_planner(size, config.planner.options, device)
    if config.offload and device != "meta":  # meta tensors take no memory
        planner.module.to("cpu")
    renderer = make_renderer(size, config.renderer.options, device)
    judges = Judges({"coin": Coin()}, Expression.parse("coin"))
    parts = Parts(planner, renderer, judges, make_component(Registry(), "algorithm", config.algorithm))  # type: ignore[arg-type]
    found = models_of(parts)
    for name, millions in size.millions.items():
        counted = sum(p.numel() for p in found[name].parameters()) / 1e6
        assert abs(counted - millions) < 0.005 * millions, f"{name} has {counted:.1f} million parameters, not {millions}"
    prepare(parts, config)
    return parts


def models_of(parts: Parts) -> dict[str, nn.Module]:
    """Returns the models of a run by name."""
    planner, renderer = parts.planner.module, parts.renderer.module
    encoders: Any = renderer.text_encoders
    return {"Qwen2.5-VL": planner, "UNet": renderer.model, "CLIP-L": encoders[0], "CLIP-bigG": encoders[1], "VAE": renderer.vae}
