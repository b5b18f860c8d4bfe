"""Makes the small SDXL from scratch, in one command. Given again, the command continues where it stopped.

    python -m gotr1_scenes_recipe.sdxl --out build/sdxl

First it trains the VAE (``vae.py``). Then it adds two CLIP text encoders and a UNet with random weights. ``gotr1 sft`` trains these on
painted scenes with their plans (``sft-sdxl.yaml``). The shipped model is float16, in ``OUT/shipped``, with both logs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from gotr1_core.cli.main import call
from gotr1_core.policies.pretrained import load_pretrained
from gotr1_scenes.annotate import annotated
from gotr1_scenes_recipe import vae
from gotr1_scenes_recipe.vae import CHANNELS, SIDE

LENGTH = 16  # tokens of a piece of text: most texts have two pieces, a region's phrase has six tokens
WIDTH = 64  # of both text encoders
LEVELS = (64, 128)  # channels of the UNet
LIMIT = 16_000_000  # maximum bytes of the shipped folder
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
WORD = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"  # the words of CLIP's tokenizer


def make_tokenizer(examples: int = 5_000) -> CLIPTokenizer:
    """Returns a CLIP tokenizer with every byte and the world's words: about 700 ids."""
    texts = itertools.chain.from_iterable(
        (a.phrase.text, a.chain.without_boxes()) for a in (annotated("train", 0, i) for i in range(examples))
    )
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Lowercase()
    words = pre_tokenizers.Split(Regex(WORD), behavior="removed", invert=True)
    learner.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    learner.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=2_000, end_of_word_suffix="</w>", show_progress=False))
    merges = _merges(learner)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    # Bytes that the world's words lack are tokens too, inside a word and at its end. For CLIP an unknown token would end the text.
    names = dict.fromkeys([*letters, *(f"{letter}</w>" for letter in letters), *(a + b for a, b in merges), BEGIN, END])
    return CLIPTokenizer(vocab={name: i for i, name in enumerate(names)}, merges=merges, model_max_length=LENGTH)


def _merges(learner: Tokenizer) -> list[tuple[str, str]]:
    return [(a, b) for a, b in json.loads(learner.to_str())["model"]["merges"]]


def make_encoder(kind: Any, tokenizer: CLIPTokenizer) -> Any:
    """Returns an encoder with two layers. SDXL uses the states before the last layer, so only one layer of the first encoder counts."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return kind(config)


def make_unet() -> UNet2DConditionModel:
    """Returns a UNet with two levels, 8 x 8 and 4 x 4, each with attention."""
    return UNet2DConditionModel(
        sample_size=SIDE // 8,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        block_out_channels=LEVELS,
        layers_per_block=1,
        attention_head_dim=tuple(level // 32 for level in LEVELS),  # despite its name, the number of heads
        norm_num_groups=16,
        cross_attention_dim=2 * WIDTH,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
    )


def make_pipeline(autoencoder: AutoencoderKL, seed: int) -> StableDiffusionXLPipeline:
    """Returns an SDXL of six million parameters, with a trained VAE and otherwise random weights."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    # Velocity is defined without any signal, so sampling may begin with pure noise. Its last step ends at the picture.
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
        clip_sample=False,
    )
    return StableDiffusionXLPipeline(
        vae=autoencoder,
        text_encoder=make_encoder(CLIPTextModel, tokenizer),
        text_encoder_2=make_encoder(CLIPTextModelWithProjection, tokenizer),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=make_unet(),
        scheduler=scheduler,
        add_watermarker=False,
    )


def assemble(trained: Path, out: Path, seed: int) -> None:
    """Writes the untrained pipeline with a trained VAE."""
    pipeline = make_pipeline(load_pretrained(AutoencoderKL, trained), seed)
    pipeline.save_pretrained(out)
    modules = {name: module for name, module in pipeline.components.items() if isinstance(module, torch.nn.Module)}
    sizes = {name: sum(p.numel() for p in module.parameters()) / 1e6 for name, module in modules.items()}
    listing = ", ".join(f"{name} {size:.2f}" for name, size in sizes.items())
    print(f"{out}: {sum(sizes.values()):.2f} million parameters ({listing}), {len(pipeline.tokenizer)} text tokens", flush=True)


def ship(out: Path) -> None:
    """Writes the trained model in float16, with the logs of both training runs."""
    folder = out / "shipped"
    shutil.rmtree(folder, ignore_errors=True)
    load_pretrained(StableDiffusionXLPipeline, out / "sft" / "model" / "weights", dtype=torch.float16).save_pretrained(folder)
    shutil.copy(out / "vae" / "log.jsonl", folder / "log-vae.jsonl")
    shutil.copy(out / "sft" / "log.jsonl", folder / "log-sft.jsonl")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{folder}: {size / 1e6:.2f} MB")
    if size > LIMIT:
        raise SystemExit(f"the folder has more than {LIMIT / 1e6:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vae-steps", type=int, default=vae.STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings of the `gotr1 sft` stage, such as steps=100")
    args = parser.parse_args()
    if not (args.out / "vae" / "config.json").is_file():
        vae.train(args.out / "vae", steps=args.vae_steps, seed=args.seed)
    if not (args.out / "untrained" / "model_index.json").is_file():
        assemble(args.out / "vae", args.out / "untrained", args.seed)
    settings = [f"policy.model={args.out / 'untrained'}", f"output={args.out / 'sft'}", f"seed={args.seed}"]
    status = call(["sft", str(Path(__file__).with_name("sft-sdxl.yaml")), *settings, *args.overrides])
    if status:
        raise SystemExit(status)
    ship(args.out)


if __name__ == "__main__":
    main()
