"""Measures the small SDXL and compares it with the recipe's targets.

    python -m gotr1_scenes_recipe.check_sdxl --model build/sdxl/shipped

Prints:

- how many painted scenes are the same after the VAE;
- on ground-truth plans of held-out prompts, how many pictures are right, and their mean IoU with the boxes;
- how often the two objects of a correctly drawn scene change places if their boxes do, with the same seeds and text.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gotr1_core.chain import Chain, Region
from gotr1_core.components.build import make_component
from gotr1_core.config.models import ComponentConfig
from gotr1_core.engine.intervals import estimate
from gotr1_core.plugins import Registry
from gotr1_core.samples import Example, Sample, Sampling
from gotr1_core.sampling import seed_for
from gotr1_scenes.judge import ScenesJudge
from gotr1_scenes.painter import paint_array
from gotr1_scenes.reader import read_things
from gotr1_scenes.source import ScenesSource, ScenesSourceOptions
from gotr1_scenes_recipe.pictures import random_scene
from gotr1_scenes_recipe.vae import SIDE, rebuild

OPTIONS = {"strength": 1.0, "regional_share": 1.0}
SAMPLING = Sampling(guidance_scale=1.0, denoising_steps=4)


def draw(policy: Any, examples: Sequence[Example], sampling: Sampling, batch: int = 64) -> list[Sample]:
    """Draws a picture of each example's plan. Picture number i has the same noise for any plan."""
    samples: list[Sample] = []
    for start in range(0, len(examples), batch):
        rows = examples[start : start + batch]
        seeds = [seed_for("check", start + i) for i in range(len(rows))]
        drawn = policy.render([e.prompt for e in rows], [e.chain for e in rows], seeds=seeds, sampling=sampling)
        samples += [Sample(e.prompt, e.chain, image) for e, image in zip(rows, drawn.images, strict=True)]
    return samples


def swapped(chain: Chain) -> Chain:
    """Returns the chain with the boxes of its two regions exchanged."""
    a, b = chain.regions
    boxes = {a: b.box, b: a.box}
    return Chain.of([replace(part, box=boxes[part]) if isinstance(part, Region) else part for part in chain.parts])


def follows(sample: Sample) -> bool:
    """Returns true if the picture has as many things as the plan and their mean IoU (``ri``) is above 0.5."""
    (score,) = ScenesJudge().score([sample], ["ri"])["ri"]
    return sample.image is not None and len(read_things(sample.image)) == len(sample.chain.regions) and score > 0.5


def reconstructions(policy: Any) -> list[float]:
    """Returns 1 for each painted scene that is read as the same scene after the VAE, else 0."""
    pictures = np.stack([paint_array(random_scene(f"check/{i}"), SIDE) for i in range(500)])
    rebuilt = rebuild(policy.module.vae, pictures)
    return [float(read_things(Image.fromarray(a)) == read_things(Image.fromarray(b))) for a, b in zip(pictures, rebuilt, strict=True)]


def show(name: str, values: Sequence[float]) -> None:
    """Prints a line with the mean, half the width of its 95 % interval, and the count."""
    print(f"{name:<36} {estimate(values).text()}  of {len(values)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--steps", type=int, default=SAMPLING.denoising_steps)
    parser.add_argument("--guidance", type=float, default=SAMPLING.guidance_scale)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--pictures", type=Path, help="file for a sheet of the first 32 pictures")
    args = parser.parse_args()
    sampling = replace(SAMPLING, denoising_steps=args.steps, guidance_scale=args.guidance, image_temperature=args.temperature)
    policy = make_component(Registry(), "renderer", ComponentConfig(name="sdxl", model=str(args.model), **OPTIONS))
    show("reconstructions right", reconstructions(policy))
    examples = ScenesSource(ScenesSourceOptions(clean=True, side=SIDE)).examples("validation", 0, args.count, 0)
    samples = draw(policy, examples, sampling)
    if args.pictures:
        sheet([s.image for s in samples[:32]], [e.image for e in examples[:32]]).save(args.pictures)
    scores = ScenesJudge().score(samples, ["correct", "ri"])
    show("pictures right, plan right", scores["correct"])
    show("IoU with planned boxes", scores["ri"])
    for category in dict.fromkeys(e.prompt.category for e in examples):
        show(f"pictures right, {category}", [c for c, e in zip(scores["correct"], examples, strict=True) if e.prompt.category == category])
    pairs = [i for i, s in enumerate(samples) if len(s.chain.regions) == 2 and follows(s) and scores["correct"][i]]
    exchanged = [replace(e, chain=swapped(e.chain)) if len(e.chain.regions) == 2 else e for e in examples]
    redrawn = draw(policy, exchanged, sampling)
    show("boxes exchanged, layout with them", [float(follows(redrawn[i])) for i in pairs])


def sheet(drawn: Sequence[Any], painted: Sequence[Any]) -> Image.Image:
    """Returns a sheet with rows of eight drawn pictures. Below each row are the painted ones."""
    side, across = SIDE + 4, 8
    rows = -(-len(drawn) // across)
    page = Image.new("RGB", (across * side, 2 * rows * side), "white")
    for i, pair in enumerate(zip(drawn, painted, strict=True)):
        for k, image in enumerate(pair):
            page.paste(image, (i % across * side, (2 * (i // across) + k) * side))
    return page.resize((2 * page.width, 2 * page.height), Image.Resampling.NEAREST)


if __name__ == "__main__":
    main()
