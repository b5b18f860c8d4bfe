"""Pipelines so small that each test can build a real one: random weights, pictures of 16 x 16 pixels, latents of 8 x 8."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LENGTH = 12  # ids of a piece, so that the tests' texts have several


def make_tokenizer(pad: str = "<|endoftext|>") -> Any:
    """One token per byte, and one per byte that ends a word."""
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<|startoftext|>", *letters, *(f"{letter}</w>" for letter in letters), "<|endoftext|>"]
    vocab = {word: i for i, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocab, merges=[], pad_token=pad, model_max_length=LENGTH)


def make_encoder(tokenizer: Any, width: int, *, projection: int | None = None) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        projection_dim=projection or width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.5,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def make_vae(channels: int = 4, **more: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=16,
        **more,
    ).eval()


def louder(model: Any, by: float) -> None:
    """Larger matrices, so that the output depends on the conditions."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(by)


def make_sdxl(**scheduler: Any) -> Any:
    """Two levels with attention on the way down, and little else: each module costs the suite half a second."""
    import torch
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    torch.manual_seed(0)
    tokenizers = make_tokenizer(), make_tokenizer("!")
    encoders = make_encoder(tokenizers[0], 8), make_encoder(tokenizers[1], 8, projection=8)
    unet = UNet2DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        mid_block_type=None,
        up_block_types=("UpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        attention_head_dim=(1, 2),
        norm_num_groups=4,
        cross_attention_dim=16,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 8,
    ).eval()
    louder(unet, 1.5)
    settings = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "timestep_spacing": "leading",
        "steps_offset": 1,
    }
    return StableDiffusionXLPipeline(
        vae=make_vae(force_upcast=True, scaling_factor=0.5),
        text_encoder=encoders[0],
        text_encoder_2=encoders[1],
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        unet=unet,
        scheduler=EulerDiscreteScheduler(**(settings | scheduler)),
        add_watermarker=False,
    )


def make_flow(*, t5: bool = True, **scheduler: Any) -> Any:
    """Two blocks, patches of two by two latents."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    third = T5Config(vocab_size=len(tokenizer), d_model=24, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=24,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        pos_embed_max_size=8,
    ).eval()
    with torch.no_grad():
        for parameter in transformer.parameters():  # much of it begins at zero, where nothing depends on anything
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(**({"shift": 3.0} | scheduler)),
        vae=make_vae(scaling_factor=1.5, shift_factor=0.06, force_upcast=False, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=make_encoder(tokenizer, 8, projection=8),
        tokenizer=tokenizer,
        text_encoder_2=make_encoder(tokenizer, 8, projection=8),
        tokenizer_2=tokenizer,
        text_encoder_3=T5EncoderModel(third).eval() if t5 else None,
        tokenizer_3=tokenizer if t5 else None,
    )


@pytest.fixture(scope="session")
def tiny_flow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SD3 pipeline on disk; its T5 reads bytes."""
    folder = tmp_path_factory.mktemp("flow") / "tiny"
    make_flow().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SDXL pipeline on disk, the same in every session."""
    folder = tmp_path_factory.mktemp("sdxl") / "tiny"
    make_sdxl().save_pretrained(folder)
    # As the release's, which is Euler's with what DDIM needs to know beside it.
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"set_alpha_to_one": False, "clip_sample": False}))
    return folder


@pytest.fixture
def sdxl_in_memory() -> Callable[..., Any]:
    """Makes a tiny SDXL pipeline, with settings of its scheduler."""
    return make_sdxl


@pytest.fixture
def flow_in_memory() -> Callable[..., Any]:
    """Makes a tiny SD3 pipeline."""
    return make_flow


@pytest.fixture
def sdxl(tiny_sdxl: Path) -> Callable[..., Any]:
    """Makes a fresh policy around the tiny SDXL, with options."""
    from gotr1_diffusers.options import SdxlOptions
    from gotr1_diffusers.sdxl import SdxlPolicy

    return lambda **options: SdxlPolicy(SdxlOptions(model=str(tiny_sdxl), **options))


@pytest.fixture
def flow(tiny_flow: Path) -> Callable[..., Any]:
    """The same of SD3."""
    from gotr1_diffusers.flow import FlowPolicy
    from gotr1_diffusers.options import FlowOptions

    return lambda **options: FlowPolicy(FlowOptions(model=str(tiny_flow), **{"text_tokens": 20, **options}))
