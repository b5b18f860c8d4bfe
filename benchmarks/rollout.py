"""Times plans and pictures of the miniature Janus: transformers' ``generate``, the released inference's loop, and gotr1, in turn.

    python benchmarks/rollout.py                                  # 1, 16 and 64 samples, guidance 1 and 5, medians of five
    python benchmarks/rollout.py --samples 16 --guidance 5 --repeats 9 --threads 1

All contenders have the same weights, prompts and temperature. A prompt has four samples, as in the default run. Pictures are timed up to
their tokens, of the chains that gotr1 wrote: ``generate`` and "written chain" read prompt and chain, "own plan" goes on from the plan's
cache, as in a rollout. The limit is that of matrix products: their operations, divided by what one product of 128 rows reaches here.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from importlib.resources import files
from typing import Any

if "OMP_NUM_THREADS" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as the command line sets it

import torch
from full_size import released_loop
from transformers import GenerationConfig
from transformers.utils import logging

from gotr1_core.policies.padding import left_pad, mask_and_positions
from gotr1_core.sampling import uniforms
from gotr1_janus.options import JanusOptions
from gotr1_janus.policy import JanusPolicy
from gotr1_janus.sampler import sample_image, sample_text

WORDS = [
    "a red circle left of a blue square",
    "two green triangles above a yellow circle",
    "a blue square",
    "a red circle, a blue one",
]
EACH, CHAIN = 4, 80
ALMOST_ONE = 1.000001


class Contenders:
    """The ways to sample B plans, and their pictures."""

    def __init__(self, policy: JanusPolicy, samples: int) -> None:
        self.policy, self.module, self.model, self.samples = policy, policy.module, policy.module.model, samples
        texts = [WORDS[row // EACH % len(WORDS)] for row in range(samples)]
        self.prompts = [torch.tensor(policy.text.encode_prompt(text)) for text in texts]
        self.context, self.lengths = left_pad(self.prompts, self.module.pad)
        self.uniform = uniforms(range(samples), CHAIN)
        self.pictures = uniforms(range(samples), policy.image_tokens)
        self.plan()
        self.fed = int(self.tokens.mask.sum())
        self.read = sum(len(context) for context in self.contexts)

    def plan(self) -> None:
        """gotr1's plans."""
        self.tokens, self.memory = sample_text(self.module, self.context, self.lengths, self.uniform, 1.0)
        length = (self.tokens.mask.sum(1) - self.tokens.finished.long()).tolist()
        boi = torch.tensor([self.module.boi])
        rows = zip(self.prompts, self.tokens.tokens, length, strict=True)
        self.contexts = [torch.cat([prompt, chain[:n], boi]) for prompt, chain, n in rows]

    def plan_by_generate(self) -> None:
        """transformers' plans."""
        config = GenerationConfig(
            **{"do_sample": True, "top_k": 0, "top_p": 1.0, "max_new_tokens": CHAIN, "use_cache": True},
            **{"pad_token_id": self.module.pad, "eos_token_id": self.module.boi},
        )
        mask, _ = mask_and_positions(self.lengths, self.context.shape[1])
        self.model.generate(input_ids=self.context, attention_mask=mask.long(), generation_mode="text", generation_config=config)

    def draw(self, scale: float, *, remember: bool) -> None:
        """gotr1's pictures, with or without the memory of :meth:`plan`."""
        memory = self.memory if remember else None
        sample_image(self.module, self.contexts, self.pictures, 1.0, None if scale == 1 else scale, memory=memory)

    def draw_by_generate(self, scale: float) -> None:
        """transformers' pictures. It makes the unconditional rows itself, also where it should not: at guidance 1 it fails (5.23)."""
        context, lengths = left_pad(self.contexts, self.module.pad)
        mask, _ = mask_and_positions(lengths, context.shape[1])
        config = GenerationConfig(
            **{"do_sample": True, "top_k": 0, "top_p": 1.0, "max_new_tokens": self.policy.image_tokens, "use_cache": True},
            **{"guidance_scale": max(scale, ALMOST_ONE), "pad_token_id": self.module.pad, "bos_token_id": 0, "eos_token_id": None},
        )
        config.generation_kwargs = {"boi_token_id": self.module.boi}
        self.model.generate(input_ids=context, attention_mask=mask.long(), generation_mode="image", generation_config=config)

    def released(self) -> None:
        """The released inference: one sample after another, each with its plan, at guidance 5."""
        for prompt in self.prompts:
            options = {"boi": self.module.boi, "pad": self.module.pad, "chain": CHAIN, "images": 1}
            released_loop(self.model, prompt.tolist(), **options)

    def operations(self, scale: float) -> tuple[float, float]:
        """Operations of matrix products for the plans, and for the pictures if they go on from the plans."""
        language = self.module.language
        layers = 2.0 * sum(p.numel() for layer in language.layers for p in layer.parameters() if p.dim() == 2)
        head = 2.0 * sum(p.numel() for p in self.model.model.generation_head.parameters() if p.dim() == 2)
        words = 2.0 * self.model.lm_head.weight.numel()
        prompts = sum(len(p) for p in self.prompts[::EACH])
        rows = self.samples * self.policy.image_tokens * (1 if scale == 1 else 2)
        return layers * (prompts + self.fed) + words * self.fed, (layers + head) * rows


def product_rate() -> float:
    """Operations a second of one matrix product, 128 rows, of a size as in the model."""
    x, weight = torch.randn(128, 256), torch.randn(256, 1024)
    times = []
    for _ in range(200):
        start = time.perf_counter()
        x @ weight
        times.append(time.perf_counter() - start)
    return 2 * 128 * 256 * 1024 / statistics.median(times)


def medians(ways: dict[str, tuple[Callable[[], None], Callable[[], None]]], repeats: int) -> dict[str, float]:
    """Median seconds of each way, in turn. The first function of a pair is not timed."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(repeats + 1):
        for name, (before, work) in ways.items():
            before()
            start = time.perf_counter()
            work()
            if number:  # the first round warms up
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in times.items()}


def compare(policy: JanusPolicy, samples: int, scales: list[float], repeats: int) -> None:
    """Prints seconds and ratios to ``generate`` for so many samples."""
    contenders, rate = Contenders(policy, samples), product_rate()

    def nothing() -> None:
        pass

    plans = {"generate": (nothing, contenders.plan_by_generate), "gotr1": (nothing, contenders.plan)}
    show("plans", samples, medians(plans, repeats), contenders.operations(1.0)[0] / rate)
    for scale in scales:
        ways = {
            "generate": (nothing, lambda s=scale: contenders.draw_by_generate(s)),
            "gotr1, written chain": (nothing, lambda s=scale: contenders.draw(s, remember=False)),
            "gotr1, own plan": (contenders.plan, lambda s=scale: contenders.draw(s, remember=True)),
        }
        show(f"pictures, guidance {scale:g}", samples, medians(ways, repeats), contenders.operations(scale)[1] / rate)
    if 5.0 in scales:

        def both() -> None:
            contenders.plan()
            contenders.draw(5.0, remember=True)

        def by_generate() -> None:
            contenders.plan_by_generate()
            contenders.draw_by_generate(5.0)

        ways = {"generate": (nothing, by_generate), "gotr1": (nothing, both)}
        ways |= {"released loop": (nothing, contenders.released)} if samples <= 16 else {}
        show("plans and pictures, guidance 5", samples, medians(ways, repeats), sum(contenders.operations(5.0)) / rate)


def show(what: str, samples: int, found: dict[str, float], limit: float) -> None:
    """Prints one comparison."""
    base = found["generate"]
    for name, seconds in found.items():
        ratio = f"{base / seconds:5.2f} times as fast as generate" if name != "generate" else " " * 28
        print(f"{samples:3} x {what:32} {name:22} {seconds:7.3f} s  {ratio}  {limit / seconds:4.0%} of the product limit", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 5.0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    logging.set_verbosity_error()
    model = files("gotr1_scenes") / "weights" / "janus"
    policy: Any = JanusPolicy(JanusOptions(model=str(model), instruction="{prompt}", attention="eager"))
    with torch.no_grad():
        for samples in args.samples:
            compare(policy, samples, args.guidance, args.repeats)


if __name__ == "__main__":
    main()
