"""Measures a miniature and compares it with the recipe's targets.

    python -m gotr1_scenes_recipe.check --model plugins/gotr1-scenes/src/gotr1_scenes/weights/janus
    python -m gotr1_scenes_recipe.check --planner qwen --model plugins/gotr1-scenes/src/gotr1_scenes/weights/qwen

Prints how many plans are right, on 600 held-out prompts at temperature 1. For Janus it also prints how many reconstructions of 500 painted
scenes are read as the same scene, how many pictures without guidance are right, and how many of those with a right plan.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gotr1_core.components.build import make_component
from gotr1_core.config.models import ComponentConfig
from gotr1_core.engine.intervals import estimate
from gotr1_core.evaluation import EVALUATION, draw_samples
from gotr1_core.plugins import Registry
from gotr1_core.samples import Prompt, Sample, Sampling
from gotr1_core.sampling import seed_for
from gotr1_scenes.judge import ScenesJudge
from gotr1_scenes.painter import paint
from gotr1_scenes.reader import read_things
from gotr1_scenes.source import ScenesSource, ScenesSourceOptions
from gotr1_scenes_recipe.pictures import random_scene

OPTIONS: dict[str, dict[str, Any]] = {"janus": {"instruction": "{prompt}"}, "qwen": {"instruction": "plain", "tags": "tokens"}}
SAMPLING = Sampling(guidance_scale=1.0, max_chain_tokens=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--planner", choices=OPTIONS, default="janus")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--count", type=int, default=600)
    args = parser.parse_args()
    config = ComponentConfig(name=args.planner, model=str(args.model), attention="eager", **OPTIONS[args.planner])
    planner = make_component(Registry(), "planner", config)
    prompts = ScenesSource(ScenesSourceOptions()).prompts("validation", args.count, 0)
    if args.planner == "janus":
        show("reconstructions right", reconstructions(planner))
    unified = args.planner == "janus"
    samples = draw_samples(planner, planner, prompts, sampling=SAMPLING, seed=0) if unified else draw_plans(planner, prompts)
    plans = ScenesJudge().score(samples, ["plan_right"])["plan_right"]
    show("plans right", plans)
    if unified:
        pictures = ScenesJudge().score(samples, ["correct"])["correct"]
        show("pictures right", pictures)
        show("pictures right, plan right", [c for c, p in zip(pictures, plans, strict=True) if p])
    for category in dict.fromkeys(prompt.category for prompt in prompts):
        show(f"plans right, {category}", [p for p, prompt in zip(plans, prompts, strict=True) if prompt.category == category])


def show(name: str, values: Sequence[float]) -> None:
    """Prints a line with the mean and half the width of its 95 % interval."""
    print(f"{name:<30} {estimate(values).text()}", flush=True)


def reconstructions(policy: Any) -> list[float]:
    """Returns 1 for each painted scene that is the same after encoding to picture tokens and decoding, else 0."""
    scenes = [random_scene(f"check/{i}") for i in range(500)]
    rebuilt = policy.decode_images(policy.encode_images([paint(scene) for scene in scenes]))
    return [float(set(read_things(picture)) == set(scene)) for picture, scene in zip(rebuilt, scenes, strict=True)]


def draw_plans(planner: Any, prompts: Sequence[Prompt], batch: int = 64) -> list[Sample]:
    """Samples a plan for each prompt, without a picture. The plans are those of :func:`gotr1_core.evaluation.draw_samples`."""
    samples: list[Sample] = []
    for start in range(0, len(prompts), batch):
        rows = prompts[start : start + batch]
        seeds = [seed_for(EVALUATION, 0, start + i, 0, "plan") for i in range(len(rows))]
        chains = planner.plan(rows, seeds=seeds, sampling=SAMPLING).chains
        samples += [Sample(prompt, chain, None) for prompt, chain in zip(rows, chains, strict=True)]
    return samples


if __name__ == "__main__":
    main()
