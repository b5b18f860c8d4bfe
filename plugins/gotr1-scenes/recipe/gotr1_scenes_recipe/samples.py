"""Makes the samples that the small judge learns from: painted ones, and samples of a policy.

Painted samples are often wrong, in all the ways in which a policy's are: a thing is missing or extra, or has a wrong attribute or place.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from gotr1_core.chain import parse
from gotr1_core.components.build import make_policies
from gotr1_core.components.resolve import resolve_config
from gotr1_core.config.models import RunConfig, SamplingConfig, validate
from gotr1_core.judges import Judges
from gotr1_core.plugins import Registry
from gotr1_core.reward import Expression
from gotr1_core.rollout import RolloutSettings, roll_out
from gotr1_core.samples import Prompt, Sample, Sampling
from gotr1_scenes.annotate import annotated, describe_scene
from gotr1_scenes.painter import paint
from gotr1_scenes.source import ScenesSource, ScenesSourceOptions, as_prompt
from gotr1_scenes.world import COLORS, MAX_THINGS, SHAPES, TEXTURES, Look, Scene, Thing, place_boxes, random_look

SIZES = (48, 64)  # sides in pixels of the miniatures' pictures
CHUNK, PLANS = 16, 4  # prompts in a file of drawn samples; plans of each prompt
EXAMPLES = 1_000_000  # painted samples use this many of the world's examples


def painted_sample(seed: str) -> Sample:
    """Returns a painted scene with its chain and a prompt, whose wish it may or may not grant. It depends on ``seed`` alone."""
    rng = random.Random(seed)
    made = annotated("train", 0, rng.randrange(EXAMPLES))
    scene = made.scene if rng.random() < 0.4 else changed_scene(made.scene, rng)
    return Sample(as_prompt(made.phrase, ""), describe_scene(scene, "There is "), paint(scene, rng.choice(SIZES)))


def changed_scene(scene: Scene, rng: random.Random) -> Scene:
    """Returns the scene with one change: another look, other places, a thing less or a thing more."""
    kind = rng.choice(("look", "look", "place", "drop", "add"))
    at = rng.randrange(len(scene))
    if kind == "drop" and len(scene) > 1:
        return scene[:at] + scene[at + 1 :]
    if kind == "add" and len(scene) < MAX_THINGS:
        looks = [*(thing.look for thing in scene), rng.choice((random_look(rng), scene[at].look))]
        return tuple(Thing(look, box) for look, box in zip(looks, place_boxes(len(looks), rng), strict=True))
    if kind == "place":
        return tuple(replace(thing, box=box) for thing, box in zip(scene, place_boxes(len(scene), rng), strict=True))
    return (*scene[:at], replace(scene[at], look=other_look(scene[at].look, rng)), *scene[at + 1 :])


def other_look(look: Look, rng: random.Random) -> Look:
    """Returns a look that differs in one attribute."""
    attribute, values = rng.choice((("color", tuple(COLORS)), ("shape", SHAPES), ("texture", TEXTURES)))
    return replace(look, **{attribute: rng.choice([value for value in values if value != getattr(look, attribute)])})


def draw_samples(folder: Path, pair: str, count: int, *, split: str = "train", seed: int = 5) -> list[Sample]:
    """Returns samples of a policy. They are drawn once and kept as files in ``folder``; missing files are drawn.

    The samples of a prompt are adjacent, and the first number of their lineage is the same.

    Args:
        folder: keeps the files.
        pair: ``PLANNER/RENDERER``, with the preset's settings for them.
        count: number of samples.
        split: of the prompts.
        seed: of the prompts and the rollouts.
    """
    folder = folder / pair.replace("/", "-") / split
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{number:04d}.safetensors" for number in range(-(-count // (CHUNK * PLANS)))]
    missing = [number for number, file in enumerate(files) if not file.is_file()]
    if missing:
        planner, renderer, sampling = _policy(pair)
        source = ScenesSource(ScenesSourceOptions())
        for number in missing:
            prompts = source.prompts(split, CHUNK, seed, start=number * CHUNK)
            with torch.no_grad():
                judges = Judges({}, Expression.parse("1"))
                settings = RolloutSettings(sampling, seed=("judge", seed), plans=PLANS, prune=False)
                drawn = roll_out(planner, renderer, judges, prompts, settings, first=number * CHUNK)
            _write(files[number], drawn.samples)
            print(f"drawn by {pair}: {(number + 1) * CHUNK * PLANS} of {count}", flush=True)
    return [sample for file in files for sample in _read(file)][:count]


def _policy(pair: str) -> tuple[Any, Any, Sampling]:
    planner, _, renderer = pair.partition("/")
    registry = Registry()
    config = validate(RunConfig, resolve_config(registry, None, "scenes", {"planner": planner, "renderer": renderer}, []))
    sampling: SamplingConfig = config.sampling
    return *make_policies(registry, config), Sampling(**sampling.model_dump())


def _write(file: Path, samples: Sequence[Sample]) -> None:
    """Writes the pictures as one tensor, and the rest as JSON. The JSON is written first, so if the tensor's file exists, both do."""
    rows: list[dict[str, Any]] = [
        {"prompt": s.prompt.text, "metadata": s.prompt.metadata, "category": s.prompt.category, "chain": s.chain.raw, "group": s.lineage[0]}
        for s in samples
    ]
    file.with_suffix(".json").write_text(json.dumps(rows), encoding="utf-8")
    pixels = [
        torch.frombuffer(bytearray(s.image.tobytes()), dtype=torch.uint8).view(s.image.height, s.image.width, 3) for s in samples if s.image
    ]
    save_file({"pixels": torch.stack(pixels)}, file.with_suffix(".part"))
    file.with_suffix(".part").replace(file)


def _read(file: Path) -> Iterator[Sample]:
    rows = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
    for row, pixels in zip(rows, load_file(file)["pixels"], strict=True):
        prompt = Prompt(row["prompt"], category=row["category"], metadata=row["metadata"])
        yield Sample(prompt, parse(row["chain"]), Image.fromarray(pixels.numpy()), (row["group"], 0, 0))
