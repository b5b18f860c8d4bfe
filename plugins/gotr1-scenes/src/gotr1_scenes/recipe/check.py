"""Measures a miniature against what the recipe promises.

    python -m gotr1_scenes.recipe.check --model plugins/gotr1-scenes/src/gotr1_scenes/weights/janus

Reconstructions of 500 painted scenes that read back the same; and, on 600 held-out prompts at temperature 1 without guidance, how many
plans are right, and how many pictures are among the right plans.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gotr1_core.build import component
from gotr1_core.config import ComponentConfig
from gotr1_core.evaluation import draw, estimate
from gotr1_core.plugins import Registry
from gotr1_core.samples import Sampling
from gotr1_scenes.judge import ScenesJudge
from gotr1_scenes.painter import paint
from gotr1_scenes.reader import read
from gotr1_scenes.recipe.pictures import random_scene
from gotr1_scenes.source import ScenesSource, ScenesSourceOptions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--count", type=int, default=600)
    args = parser.parse_args()
    options = {"model": str(args.model), "instruction": "{prompt}", "attention": "eager"}
    policy = component(Registry(), "planner", ComponentConfig(name="janus", **options))

    scenes = [random_scene(f"check/{i}") for i in range(500)]
    rebuilt = policy.decode_images(policy.encode_images([paint(scene) for scene in scenes]))
    same = [float(set(read(picture)) == set(scene)) for picture, scene in zip(rebuilt, scenes, strict=True)]
    print(f"reconstructions right          {estimate(same).mean:.3f} ± {estimate(same).half_width:.3f}")

    prompts = ScenesSource(ScenesSourceOptions()).prompts("validation", args.count, 0)
    samples = draw(policy, policy, prompts, sampling=Sampling(guidance_scale=1.0, max_chain_tokens=80), seed=0)
    scores = ScenesJudge().score(samples, ["plan_right", "correct"])
    right = [c for c, p in zip(scores["correct"], scores["plan_right"], strict=True) if p]
    for name, values in (
        ("plans right", scores["plan_right"]),
        ("pictures right", scores["correct"]),
        ("pictures right, plan right", right),
    ):
        print(f"{name:<30} {estimate(values).mean:.3f} ± {estimate(values).half_width:.3f}")
    for category in dict.fromkeys(prompt.category for prompt in prompts):
        chosen = [p for p, prompt in zip(scores["plan_right"], prompts, strict=True) if prompt.category == category]
        print(f"plans right, {category:<17} {estimate(chosen).mean:.3f} ± {estimate(chosen).half_width:.3f}")


if __name__ == "__main__":
    main()
