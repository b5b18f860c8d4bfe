"""Measures the embedded world: the annotation noise, prompts read back, the judge on painted truth, how much there is of what.

    python -m gotr1_scenes.measure noise
    python -m gotr1_scenes.measure understood
    python -m gotr1_scenes.measure confusion
    python -m gotr1_scenes.measure sizes

Each prints Markdown tables, which ``docs/scenes.md`` shows.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np
from PIL import Image

from gotr1_core.chain import iou
from gotr1_core.samples import Sample
from gotr1_scenes.annotate import annotated
from gotr1_scenes.judge import REWARDS, ScenesJudge
from gotr1_scenes.language import CATEGORIES, phrase
from gotr1_scenes.painter import paint, patch_table
from gotr1_scenes.reader import read
from gotr1_scenes.source import as_prompt
from gotr1_scenes.understand import wish_of
from gotr1_scenes.world import COLORS, SHAPES, TEXTURES, Look, Scene

Attribute = Literal["color", "shape", "texture"]
VALUES: dict[Attribute, tuple[str, ...]] = {"color": tuple(COLORS), "shape": SHAPES, "texture": TEXTURES}
MISSING, UNSURE, EXTRA = "not found", "unsure", "nothing"
Confusion = Counter[tuple[str, str]]


def noise(count: int, split: str = "train", seed: int = 0) -> dict[tuple[str, bool], tuple[int, int]]:
    """Per category and hard phrasing (true) or plain one: the number of examples and of wrong ones among them."""
    seen: Counter[tuple[str, bool]] = Counter()
    wrong: Counter[tuple[str, bool]] = Counter()
    for example in (annotated(split, seed, i) for i in range(count)):
        key = (example.phrase.category, example.phrase.hard)
        seen[key] += 1
        wrong[key] += example.wrong
    return {key: (seen[key], wrong[key]) for key in sorted(seen)}


def understood(count: int, split: str, seed: int = 0) -> dict[tuple[str, bool], tuple[int, int]]:
    """Per category and hard phrasing (true) or plain one: the number of prompts and of those whose text is read as their wish."""
    every: Counter[tuple[str, bool]] = Counter()
    right: Counter[tuple[str, bool]] = Counter()
    for made in (phrase(split, seed, i) for i in range(count)):
        every[made.category, made.hard] += 1
        right[made.category, made.hard] += wish_of(made.text) == made.wish
    return {key: (every[key], right[key]) for key in sorted(every)}


def noisy(picture: Image.Image, sigma: float, rng: np.random.Generator) -> Image.Image:
    """The picture with Gaussian noise of deviation ``sigma``, of 255, on every channel of every pixel."""
    pixels = np.asarray(picture)
    return Image.fromarray((pixels + rng.normal(0, sigma, pixels.shape)).round().clip(0, 255).astype(np.uint8))


def confusion(pairs: Iterable[tuple[Scene, Image.Image]]) -> dict[Attribute, Confusion]:
    """Painted against read attributes over pictures of scenes; a thing is found where an IoU of boxes is above a half."""
    tables: dict[Attribute, Confusion] = {attribute: Counter() for attribute in VALUES}

    def add(painted: Look | None, found: Look | None) -> None:
        for attribute, table in tables.items():
            was = EXTRA if painted is None else getattr(painted, attribute)
            table[was, MISSING if found is None else getattr(found, attribute) or UNSURE] += 1

    for scene, picture in pairs:
        left = read(picture)
        for thing in scene:
            same = [other for other in left if iou(thing.box, other.box) > 0.5]
            add(thing.look, same[0].look if same else None)
            left = [other for other in left if other not in same[:1]]
        for other in left:
            add(None, other.look)
    return tables


def truth(count: int, sigma: float = 0.0, split: str = "validation") -> list[tuple[Scene, Sample]]:
    """Painted right answers to the first ``count`` prompts of a split, with noise of ``sigma`` on the pictures."""
    rng = np.random.default_rng(0)
    made = [annotated(split, 0, i, clean=True) for i in range(count)]
    pictures = [noisy(paint(m.scene), sigma, rng) if sigma else paint(m.scene) for m in made]
    return [(m.scene, Sample(as_prompt(m.phrase, ""), m.chain, picture)) for m, picture in zip(made, pictures, strict=True)]


def table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def show_noise(count: int, sigma: float) -> None:
    del sigma
    found = noise(count)
    rows = [(c, *found[c, True], f"{found[c, True][1] / found[c, True][0]:.3f}", *found[c, False]) for c in CATEGORIES]
    print(table(("category", "hard", "wrong among them", "rate", "plain", "wrong among them"), rows))


def show_understood(count: int, sigma: float) -> None:
    del sigma
    found = {split: understood(count, split) for split in ("train", "validation")}
    rows = [(c, *(n for counts in found.values() for hard in (False, True) for n in counts[c, hard])) for c in CATEGORIES]
    head = [f"{split}, {kind}" for split in found for kind in ("plain", "hard")]
    print(table(("category", *(cell for name in head for cell in (name, "read right"))), rows))


def show_confusion(count: int, sigma: float) -> None:
    pairs = truth(count, sigma)
    for attribute, counts in confusion((s, p.image) for s, p in pairs if p.image is not None).items():
        read_as = (*VALUES[attribute], UNSURE, MISSING)
        rows = [(was, *(counts[was, name] for name in read_as)) for was in (*VALUES[attribute], EXTRA)]
        print(table((f"{attribute}: painted \\ read", *read_as), rows) + "\n")
    scores = ScenesJudge().score([sample for _, sample in pairs], list(REWARDS))
    print(table(("reward", "mean", "lowest"), [(name, f"{np.mean(v):.4f}", f"{min(v):.4f}") for name, v in scores.items()]))


def show_sizes(count: int, sigma: float) -> None:
    del sigma
    rows: list[tuple[str, object]] = [("distinct 8x8 patches", len(patch_table()))]
    for split in ("train", "validation"):
        made = [phrase(split, 0, i) for i in range(count)]
        rows.append((f"distinct texts among {count} prompts, {split}", len({m.text for m in made})))
        rows.append((f"distinct words, {split}", len({word for m in made for word in m.text.replace(",", "").split()})))
        rows.append((f"share with something held out, {split}", f"{np.mean([m.held_out for m in made]):.3f}"))
    chains = [annotated("train", 0, i) for i in range(count)]
    rows.append(("things of a scene, mean", f"{np.mean([len(c.scene) for c in chains]):.2f}"))
    rows.append(
        (
            "characters of a chain, mean and most",
            f"{np.mean([len(c.chain.raw) for c in chains]):.0f}, {max(len(c.chain.raw) for c in chains)}",
        )
    )
    print(table(("what", "how much"), rows))


SHOW: dict[str, tuple[Callable[[int, float], None], int]] = {
    "noise": (show_noise, 24_000),
    "understood": (show_understood, 24_000),
    "confusion": (show_confusion, 2_000),
    "sizes": (show_sizes, 24_000),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=SHOW)
    parser.add_argument("--count", type=int, help="prompts to look at")
    parser.add_argument("--sigma", type=float, default=0.0, help="Gaussian noise on the pictures of the confusion table, of 255")
    args = parser.parse_args()
    show, usual = SHOW[args.what]
    show(args.count or usual, args.sigma)


if __name__ == "__main__":
    main()
