"""Measures time and memory of Janus-Pro in its true sizes, with random weights. Nothing is downloaded.

    python benchmarks/full_size.py --size 1b --out build/full-size-1b.json
    python benchmarks/full_size.py --size 7b --out build/full-size-7b.json
    python benchmarks/full_size.py --size 1b --dtype float32 --pixels 64 --chain 8 --plans 4 --prompts 1      # small enough for a CPU
    python benchmarks/full_size.py --size 1b --arithmetic                                     # counts the least possible cost

The settings are those of the presets got-r1-1b and got-r1-7b: LoRA 32, bfloat16, guidance 5 in rollouts and in log-probabilities, KL,
gradient checkpointing. Measured are a rollout (plans, then pictures, `--prompts` groups of `--plans`), and log-probabilities and update of
a step of the loop itself, with a judge that costs nothing. The released inference's loop is measured in the same run on the same device.
Random weights never end a chain, so every chain has `--chain` tokens.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    DynamicCache,
    JanusConfig,
    JanusForConditionalGeneration,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from gotr1_core.components.build import make_component, prepare
from gotr1_core.components.prompts import FilePrompts
from gotr1_core.config.merge import merge, read_yaml
from gotr1_core.config.models import RunConfig, validate
from gotr1_core.engine.collectives import make_accelerator
from gotr1_core.judges import Judges
from gotr1_core.loop import Trainer
from gotr1_core.plugins import Registry
from gotr1_core.reward import Expression
from gotr1_core.rollout import Parts
from gotr1_core.samples import PLAN, Prompt, Sample, SegmentName
from gotr1_janus.options import JanusOptions
from gotr1_janus.policy import JanusPolicy
from gotr1_janus.processor import GOT_TOKENS, TEMPLATE

SIZES = {  # of the language model: width, of its MLP, layers, heads
    "1b": (2048, 5632, 24, 16),
    "7b": (4096, 11008, 30, 32),
    "tiny": (64, 128, 2, 4),
}
WORDS = 102_400
PROMPT = "a red cube left of a sleeping cat"  # with bytes as tokens about as long as a real prompt with its instruction
SPECIAL = ["<pad>", "<bos>", "<eos>", "<image_placeholder>", "<begin_of_image>", "<end_of_image>", "<|User|>", "<|Assistant|>"]


# -- the model --------------------------------------------------------------------------------------------------------------


def make_tokenizer() -> Any:
    """Returns a tokenizer with one token for each byte, and the tokens that Janus needs. The model has as many tokens as the real one."""
    words = [*SPECIAL, *GOT_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens([*SPECIAL, *GOT_TOKENS])
    extra = {"image_token": SPECIAL[3], "boi_token": SPECIAL[4], "eoi_token": SPECIAL[5]}
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", extra_special_tokens=extra, add_bos_token=True
    )
    made.chat_template = TEMPLATE
    return made


def make_model(size: str, pixels: int, dtype: torch.dtype, device: str) -> Any:
    """Returns Janus-Pro's architecture in a true size, or a tiny one for trying this script."""
    width, inner, layers, heads = SIZES[size]
    text = LlamaConfig(
        vocab_size=WORDS, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=heads, max_position_embeddings=16_384, tie_word_embeddings=False,
    )  # fmt: skip
    tiny = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4} if size == "tiny" else {}
    vision = JanusVisionConfig(image_size=pixels, projection_dim=width, num_image_tokens=(pixels // 16) ** 2, **tiny)
    vq = JanusVQVAEConfig(projection_dim=width, image_token_embed_dim=width, **({"base_channels": 32} if tiny else {}))
    config = JanusConfig(text_config=text, vision_config=vision, vq_config=vq, image_token_id=3, tie_word_embeddings=False)
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return JanusForConditionalGeneration(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)


class Coin:
    """A judge that costs nothing. Its scores differ within a group."""

    def __init__(self) -> None:
        self.rewards: Mapping[str, SegmentName] = {"coin": PLAN}
        self.tossed = 0

    def score(self, samples: Sequence[Sample], names: Sequence[str]) -> Mapping[str, Sequence[float]]:
        """Returns scores in [0,1] that depend on the samples' order and the number of calls."""
        del names
        self.tossed += 1
        return {"coin": [(i * 7 + self.tossed) % 16 / 15 for i in range(len(samples))]}


def make_trainer(args: argparse.Namespace, policy: JanusPolicy) -> Trainer:
    """Returns the trainer of a preset's run, with another judge and other prompts."""
    registry = Registry()
    name = "got-r1-7b" if args.size == "7b" else "got-r1-1b"
    over: dict[str, Any] = {
        "judge": [],
        "reward": "coin",
        "groups": args.prompts,
        "plans": args.plans,
        "sampling": {"max_chain_tokens": args.chain},
    }
    over["mixed_precision"] = "bf16" if args.dtype == "bfloat16" else "no"
    over |= {key: value for key in ("micro_batch", "rollout_groups") if (value := getattr(args, key)) is not None}
    config = validate(RunConfig, merge(read_yaml(registry.preset(name)), over))
    parts = Parts(
        policy, policy, Judges({"coin": Coin()}, Expression.parse("coin")), make_component(registry, "algorithm", config.algorithm)
    )  # type: ignore[arg-type]
    prepare(parts, config)
    accelerator = make_accelerator(config.mixed_precision, cpu=args.device == "cpu")
    return Trainer(config, parts, FilePrompts([Prompt(f"{PROMPT}, {i}") for i in range(args.prompts)]), accelerator)


# -- the released inference -------------------------------------------------------------------------------------------------


@torch.inference_mode()
def released_loop(model: Any, asked: list[int], *, boi: int, pad: int, chain: int, images: int) -> Tensor:
    """Samples one chain, token by token, then ``images`` pictures of it; returns their pixels ``[images, 3, H, W]``.

    It does so like GoT-R1's inference: tokens are drawn with ``multinomial``, the cache is the growing one of transformers, the prompt is
    read again for the pictures, and conditional and unconditional rows alternate.
    """
    language, embed = model.model.language_model, model.get_input_embeddings()
    ids = torch.tensor([asked], device=model.lm_head.weight.device)
    cache, embeds = DynamicCache(config=language.config), embed(ids)
    for _ in range(chain):
        output = language(inputs_embeds=embeds, past_key_values=cache, use_cache=True)
        token = torch.multinomial(torch.softmax(model.lm_head(output.last_hidden_state[:, -1]), -1), 1)
        ids, embeds = torch.cat([ids, token], 1), embed(token)
        if token.item() == boi:
            break
    else:
        ids = torch.cat([ids, ids.new_tensor([[boi]])], 1)
    rows = ids.repeat(2 * images, 1)
    rows[1::2, 1:-1] = pad
    cache, embeds, drawn = DynamicCache(config=language.config), embed(rows), []
    for _ in range(model.model.vqmodel.config.num_patches**2):
        output = language(inputs_embeds=embeds, past_key_values=cache, use_cache=True)
        logits = model.model.generation_head(output.last_hidden_state[:, -1])
        logits = logits[1::2] + 5 * (logits[0::2] - logits[1::2])
        token = torch.multinomial(torch.softmax(logits, -1), 1)
        drawn.append(token)
        embeds = model.prepare_embeddings_for_image_generation(torch.cat([token, token], 1).view(-1, 1))
    return model.model.vqmodel.decode(torch.cat(drawn, 1)).float().cpu()


# -- measuring --------------------------------------------------------------------------------------------------------------


class Meter:
    """Measures seconds and peak memory in GB, by name of the work."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        self.found: dict[str, dict[str, float]] = {}

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """A context whose time and memory are measured."""
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        begun = time.perf_counter()
        yield
        if self.cuda:
            torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() if self.cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self.found[name] = {"seconds": time.perf_counter() - begun, "peak_gb": peak / 1e9}
        print(f"{name}: {self.found[name]}", flush=True)

    def best(self, name: str, work: Callable[[], Any], times: int) -> None:
        """Measures several times and keeps the quickest. The first time warms up."""
        results = []
        for _ in range(times):
            with self.measure(name):
                work()
            results.append(self.found[name])
        self.found[name] = min(results, key=lambda result: result["seconds"])


def benchmark(args: argparse.Namespace) -> dict[str, Any]:
    """Returns all measurements, with settings and versions."""
    meter = Meter(args.device)
    with meter.measure("making the model"):
        model = make_model(args.size, args.pixels, getattr(torch, args.dtype), args.device)
        options = JanusOptions(model="random", instruction="{prompt}", dtype=args.dtype, attention=args.attention, chunk=1024)
        policy = JanusPolicy.from_model(model, make_tokenizer(), options, device=args.device)
    parameters = {
        "all": sum(p.numel() for p in model.parameters()),
        "language": sum(p.numel() for p in model.model.language_model.parameters()),
    }
    asked = policy.text.encode_prompt(f"{PROMPT}, 0")
    shape = {"boi": policy.module.boi, "pad": policy.module.pad, "chain": args.chain}
    meter.best("released, 1 image of a chain", lambda: released_loop(model, asked, **shape, images=1), args.repeat)
    many = f"released, {args.plans} images of a chain"
    meter.best(many, lambda: released_loop(model, asked, **shape, images=args.plans), args.repeat)
    trainer = make_trainer(args, policy)
    meter.best("rollout", lambda: trainer.sample_batch(0), args.repeat)
    with meter.measure("step"):
        metrics, _ = trainer.step(1)
    images = args.prompts * args.plans
    rate = images / meter.found["rollout"]["seconds"]
    one, several = 1 / meter.found["released, 1 image of a chain"]["seconds"], args.plans / meter.found[many]["seconds"]
    return {
        "settings": {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()},
        "prompt_tokens": len(asked), "image_tokens": policy.image_tokens, "parameters": parameters,
        "trained": sum(p.numel() for p in policy.module.parameters() if p.requires_grad),
        "measured": meter.found,
        "step": {key: value for key, value in metrics.items() if key.startswith("seconds") or "sampler_gap" in key},
        "images_per_second": {"rollout": rate, "step": images / metrics["seconds"], "released, 1": one, "released, many": several},
        "ratio": {"to 1 image of a chain": rate / one, f"to {args.plans} images of a chain": rate / several},
        "with": {
            "device": torch.cuda.get_device_name() if args.device == "cuda" else platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(), "python": platform.python_version(), "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }  # fmt: skip


# -- counting ---------------------------------------------------------------------------------------------------------------


def arithmetic(args: argparse.Namespace) -> dict[str, float]:
    """Counts what a step must at least read, compute and store in bfloat16. No program can do better.

    Every decoding step reads the weights and the cache of its rows once. A token costs two operations per weight. An update with gradient
    checkpointing is two forward passes and a backward pass to activations. The reference is another forward pass.
    """
    width, inner, layers, _ = SIZES[args.size]
    prompt, picture = 50, (args.pixels // 16) ** 2
    block = layers * (4 * width**2 + 3 * width * inner)
    text_head, image_head = WORDS * width, width * (width + 16_384)
    cache = 2 * layers * width * 2
    together = (args.rollout_groups or (1 if args.size == "7b" else 4)) * args.plans
    length = prompt + args.chain + 1 + picture

    def read(steps: int, rows: int, start: int, head: int) -> float:
        return steps * (2 * (block + head) + rows * (start + steps / 2) * cache)

    def sampled(rows: int) -> float:
        return read(args.chain, rows, prompt, text_head) + read(picture, 2 * rows, prompt + args.chain + 1, image_head)

    with torch.device("meta"):
        model = make_model(args.size, args.pixels, torch.bfloat16, "meta")
    adapters = 32 * layers * (4 * 2 * width + 3 * (width + inner))
    forward = 2 * (2 * length * block + args.chain * text_head + 2 * picture * image_head)
    return {
        "weights, billions": sum(p.numel() for p in model.parameters()) / 1e9,
        "weights, GB": 2 * sum(p.numel() for p in model.parameters()) / 1e9,
        "trained, millions": adapters / 1e6,
        "adapters, gradients, AdamW and reference in float32, GB": 5 * 4 * adapters / 1e9,
        "cache of a position of a row, kB": cache / 1e3,
        "samples drawn together": together,
        "their cache, GB": together * 2 * length * cache / 1e9,
        "their cache with chains of 600, GB": together * 2 * (prompt + 601 + picture) * cache / 1e9,
        "read to draw a sample, GB": sampled(together) / together / 1e9,
        "read to draw a sample by the released loop, GB": sampled(1) / 1e9,
        "computed for a sample's update, TFLOP": 4 * forward / 1e12,
        "checkpointed activations of a micro-batch, GB": (args.micro_batch or (2 if args.size == "7b" else 8))
        * 2
        * length
        * layers
        * width
        * 2
        / 1e9,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="1b")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--attention", choices=["sdpa", "eager"], default="sdpa")
    parser.add_argument("--pixels", type=int, default=384, help="width of a picture; 384 is the true one, of 576 tokens")
    parser.add_argument("--chain", type=int, default=150, help="tokens of every chain")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--plans", type=int, default=16)
    parser.add_argument("--micro-batch", type=int, help="plans in a forward and backward pass; the preset's if not given")
    parser.add_argument("--rollout-groups", type=int, help="prompts sampled together; the preset's if not given")
    parser.add_argument("--repeat", type=int, default=2, help="times that sampling is measured; the quickest counts")
    parser.add_argument("--out", type=Path, default=Path("build/full-size.json"))
    parser.add_argument("--arithmetic", action="store_true", help="count instead of measuring")
    args = parser.parse_args()
    if args.arithmetic:
        print("\n".join(f"{name}: {value:.3g}" for name, value in arithmetic(args).items()))
        return
    result = benchmark(args)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: result[key] for key in ("images_per_second", "ratio", "step", "with")}, indent=1))


if __name__ == "__main__":
    main()
