"""Measures or counts the memory of Qwen2.5-VL-7B and SDXL in their true sizes, with random weights. Nothing is downloaded.

    python benchmarks/modular.py --arithmetic                                # counts the memory that is needed: docs/memory.md
    python benchmarks/modular.py --out build/modular.json                    # peaks of a step on a GPU, compared with the counts
    python benchmarks/modular.py micro_batch=1 offload=true                  # with other settings than `SETTINGS`
    python benchmarks/modular.py --device cpu --size tiny planner.dtype=float32 renderer.dtype=float32 mixed_precision=no

Counts come from the classes themselves with meta tensors, which have shapes and no memory. Each phase of a step is run once, and the bytes
of all tensors that exist at the same time are added up. Random weights never end a chain, so every chain has the maximum length, the worst
case. Every plan has the same regions.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from counting import Meter
from modular_models import SIZES, make_parts, models_of
from modular_phases import PROMPT, Counter, bytes_by_phase, held

from gotr1_core import loop
from gotr1_core.components.prompts import FilePrompts
from gotr1_core.config.merge import merge, parse_overrides
from gotr1_core.config.models import RunConfig, validate
from gotr1_core.engine.collectives import make_accelerator
from gotr1_core.loop import Trainer
from gotr1_core.rollout import Parts, swap
from gotr1_core.samples import Prompt

GB = 1e9
SETTINGS: dict[str, Any] = {
    "planner": {"name": "qwen", "dtype": "bfloat16"},
    "renderer": {"name": "sdxl", "dtype": "bfloat16"},
    "judge": [],  # the judge runs elsewhere; here it is a coin
    "reward": "coin",
    "groups": 8,
    "plans": 16,
    "images": 1,
    "rollout_groups": 1,
    "micro_batch": 8,
    "prune": False,  # the worst case
    "lora": {"rank": 32, "alpha": 32},
    "segments": {"plan": {"kl": 0.01}, "image": {"kl": 0.01}},
    "gradient_checkpointing": True,
    "mixed_precision": "bf16",
    "evaluation": {"batch": 16},
}


# -- tables -----------------------------------------------------------------------------------------------------------------

PHASES = {
    "prompts": "the planner reads {batch} prompts of an evaluation",
    "plans": "the planner writes {together} chains",
    "drawing": "the renderer draws, {rows} rows in the UNet",
    "decoding": "the VAE decodes",
    "planner": "the planner learns, chains in micro-batches of {micro_batch}",
    "renderer": "the renderer learns, {learnt} rows in the UNet",
}
CARDS: list[tuple[int, dict[str, Any]]] = [
    (80, {}),
    (80, {"rollout_groups": 4, "evaluation": {"batch": 64}}),
    (80, {"micro_batch": 1, "gradient_checkpointing": False}),
    (48, {"micro_batch": 4}),
    (48, {"offload": True, "rollout_groups": 4, "evaluation": {"batch": 64}}),
    (24, {"micro_batch": 1, "offload": True, "evaluation": {"batch": 8}}),
]


def table(*rows: Any) -> None:
    """Prints rows as a Markdown table. The first row is its head."""
    for number, row in enumerate(rows):
        print("|", " | ".join(f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in row), "|")
        if not number:
            print("|", " | ".join("---" for _ in row), "|")
    print()


def arithmetic(size: str, over: Mapping[str, Any]) -> None:
    """Prints tables of permanent memory, of each phase, and of settings for cards."""
    config = settings(over)
    parts = make_parts(SIZES[size], config, "meta")
    models = models_of(parts)
    weights = {name: [p for key, p in model.named_parameters() if "lora_" not in key] for name, model in models.items()}
    rows = [(name, f"{sum(p.numel() for p in mine) / 1e9:.3f}", sum(p.nbytes for p in mine) / GB) for name, mine in weights.items()]
    table(("weights", "parameters, billions", "GB"), *rows)
    adapters = [
        (f"of the {role}", f"{mine.adapters / 4e6:.0f}", *(f"{n / GB:.2f}" for n in (mine.adapters, mine.moments, mine.reference)))
        for role, mine in held(parts, config).items()
    ]
    table(("adapters, float32", "parameters, millions", "themselves, GB", "moments, GB", "reference, GB"), *adapters)
    found: dict[Any, Any] = {}
    one, other = (bytes_by_phase(parts, config.model_copy(update={"offload": offload}), found) for offload in (False, True))
    names = phase_names(parts, config)
    phases = [(names[phase], one[phase][0] / GB, one[phase][1] / GB, other[phase][1] / GB) for phase in one]
    table(("phase", "it needs, GB", "in all, GB", "with `offload=true`, GB"), *phases)
    fitting(size, over, {config.gradient_checkpointing: parts}, found)


def fitting(size: str, over: Mapping[str, Any], made: dict[bool, Parts], found: dict[Any, Any]) -> None:
    """Prints settings for cards. Components are made once with and once without checkpointing; phases of one size are counted once."""
    fits = []
    for card, changed in CARDS:
        variant = settings(merge(over, changed))
        mine = made.get(variant.gradient_checkpointing) or make_parts(SIZES[size], variant, "meta")
        made[variant.gradient_checkpointing] = mine
        peaks = {phase: total / GB for phase, (_, total) in bytes_by_phase(mine, variant, found).items()}
        most = max(peaks, key=lambda phase: peaks[phase])
        said = ", ".join(f"`{key}={value}`" for key, value in flat(changed)) or "as above"
        fits.append((card, said, phase_names(mine, variant)[most], peaks[most], card - peaks[most]))
    table(("card, GB", "settings", "most when", "in all, GB", "left, GB"), *fits)


def phase_names(parts: Parts, config: RunConfig) -> dict[str, str]:
    """Returns the phases' descriptions with their sizes."""
    counter = Counter(parts, config)
    guided = 2 if config.sampling.guidance_scale != 1 else 1
    rows = counter.together * config.images * guided
    learnt = counter.micro_batch * config.images * guided * counter.renderer.options.trained_steps
    sizes = {"batch": counter.batch, "together": counter.together, "rows": rows, "micro_batch": counter.micro_batch, "learnt": learnt}
    return {phase: text.format(**sizes) for phase, text in PHASES.items()}


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields settings as keys and values of a command line."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value).lower() if isinstance(value, bool) else str(value)


def settings(over: Mapping[str, Any]) -> RunConfig:
    """Returns the config of `SETTINGS` with changes."""
    return validate(RunConfig, merge(SETTINGS, over))


# -- measuring --------------------------------------------------------------------------------------------------------------


def measure(size: str, over: Mapping[str, Any], device: str) -> dict[str, Any]:
    """Returns the peaks of the phases of a run's second step, with the counts."""
    config = settings(over)
    on_meta = make_parts(SIZES[size], config, "meta")
    counted = bytes_by_phase(on_meta, config)
    meter = Meter(device)
    with meter.running():
        parts = make_parts(SIZES[size], config, device)
        accelerator = make_accelerator(config.mixed_precision, cpu=device == "cpu")
        trainer = Trainer(config, parts, FilePrompts([PROMPT]), accelerator)
        trainer.step(0)  # makes the optimizer's moments
        gc.collect()
        with watched(trainer, meter):
            metrics, _ = trainer.step(1)
        prompts = [Prompt(f"{PROMPT.text}, {i}") for i in range(config.evaluation.batch)]
        if trainer.offload is not None:
            swap(trainer.offload, parts.planner, idle=parts.renderer)
        with trainer.inference(), meter.phase("prompts"):
            parts.planner.plan(prompts, seeds=range(len(prompts)), sampling=replace(trainer.sampling, max_chain_tokens=1))
    rows = [(phase, mine / GB, total / GB, meter.peaks[phase] / GB) for phase, (mine, total) in counted.items()]
    table(("phase", "it needs, GB", "in all, GB", "measured, GB"), *((name, *(f"{n:.4g}" for n in numbers)) for name, *numbers in rows))
    return {
        "size": size, "settings": config.model_dump(mode="json"),
        "phases": {name: {"needs_gb": needs, "counted_gb": total, "measured_gb": found} for name, needs, total, found in rows},
        "reserved_gb": torch.cuda.memory_reserved() / GB if device == "cuda" else None,
        "step": {key: value for key, value in metrics.items() if key.startswith("seconds")},
        "with": {
            "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
            "torch": torch.__version__, "python": platform.python_version(),
        },
    }  # fmt: skip


@contextmanager
def watched(trainer: Trainer, meter: Meter) -> Iterator[None]:
    """A context in which a step's phases are measured."""
    planner, renderer = trainer.parts.planner, trainer.parts.renderer
    roles = {id(policy): role for role, policy in trainer.parts.policies().items()}
    plain = loop.update

    def update(accelerator: Any, learner: Any, *rest: Any) -> Any:
        with meter.phase(roles[id(learner.policy)]):
            return plain(accelerator, learner, *rest)

    vae: Any = renderer.module.vae
    with (
        mock.patch.object(planner, "plan", meter.around("plans", planner.plan)),
        mock.patch.object(renderer, "render", meter.around("drawing", renderer.render)),
        mock.patch.object(vae, "decode", meter.around("decoding", vae.decode)),
        mock.patch.object(loop, "update", update),
    ):
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings of a run's config that replace the script's")
    parser.add_argument("--size", choices=SIZES, default="true")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--arithmetic", action="store_true", help="count instead of measuring")
    parser.add_argument("--out", type=Path, default=Path("build/modular.json"))
    args = parser.parse_args()
    over = parse_overrides(args.settings)
    if args.arithmetic:
        arithmetic(args.size, over)
        return
    if args.size == "true" and args.device == "cpu":
        parser.error("the true size needs a GPU; --arithmetic counts without one")
    result = measure(args.size, over, args.device)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
