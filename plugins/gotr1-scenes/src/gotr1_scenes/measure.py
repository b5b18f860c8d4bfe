"""Measures the embedded world: annotation noise, prompts read back, the judge on painted pictures, and counts.

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
from gotr1_core.engine.console import print
from gotr1_core.samples import Sample
from gotr1_scenes.annotate import annotated
from gotr1_scenes.judge import REWARDS, ScenesJudge
from gotr1_scenes.language import CATEGORIES, phrase
from gotr1_scenes.painter import paint, patch_table
from gotr1_scenes.reader import read_things
from gotr1_scenes.source import as_prompt
from gotr1_scenes.understand import read_wish
from gotr1_scenes.world import COLORS, SHAPES, TEXTURES, Look, Scene

Attribute = Literal["color", "shape", "texture"]
VALUES: dict[Attribute, tuple[str, ...]] = {"color": tuple(COLORS), "shape": SHAPES, "texture": TEXTURES}
MISSING, UNSURE, EXTRA = "not found", "unsure", "nothing"
Confusion = Counter[tuple[str, str]]


def noise(count: int, split: str = "train", seed: int = 0) -> dict[tuple[str, bool], tuple[int, int]]:
    """Returns, by category and whether the phrasing is hard, the number of examples and of wrong ones among them."""
    total: Counter[tuple[str, bool]] = Counter()
    wrong: Counter[tuple[str, bool]] = Counter()
    for example in (annotated(split, seed, i) for i in range(count)):
        key = (example.phrase.category, example.phrase.hard)
        total[key] += 1
        wrong[key] += example.wrong
    return {key: (total[key], wrong[key]) for key in sorted(total)}


def understood(count: int, split: str, seed: int = 0) -> dict[tuple[str, bool], tuple[int, int]]:
    """Returns, by category and whether the phrasing is hard, the number of prompts and of those whose text is read as their wish."""
    total: Counter[tuple[str, bool]] = Counter()
    right: Counter[tuple[str, bool]] = Counter()
    for made in (phrase(split, seed, i) for i in range(count)):
        total[made.category, made.hard] += 1
        right[made.category, made.hard] += read_wish(made.text) == made.wish
    return {key: (total[key], right[key]) for key in sorted(total)}


def noisy(picture: Image.Image, sigma: float, rng: np.random.Generator) -> Image.Image:
    """Returns the picture with Gaussian noise on every channel of every pixel. Its std is ``sigma``, out of 255."""
    pixels = np.asarray(picture)
    return Image.fromarray((pixels + rng.normal(0, sigma, pixels.shape)).round().clip(0, 255).astype(np.uint8))


def confusion(pairs: Iterable[tuple[Scene, Image.Image]]) -> dict[Attribute, Confusion]:
    """Counts pairs of painted and read attributes over pictures of scenes. A thing is found if the IoU of boxes is above 0.5."""
    tables: dict[Attribute, Confusion] = {attribute: Counter() for attribute in VALUES}

    def add(painted: Look | None, read: Look | None) -> None:
        for attribute, table in tables.items():
            was = EXTRA if painted is None else getattr(painted, attribute)
            table[was, MISSING if read is None else getattr(read, attribute) or UNSURE] += 1

    for scene, picture in pairs:
        unmatched = read_things(picture)
        for thing in scene:
            matches = [candidate for candidate in unmatched if iou(thing.box, candidate.box) > 0.5]
            add(thing.look, matches[0].look if matches else None)
            unmatched = [candidate for candidate in unmatched if candidate not in matches[:1]]
        for extra in unmatched:
            add(None, extra.look)
    return tables


def painted_truth(count: int, sigma: float = 0.0, split: str = "validation") -> list[tuple[Scene, Sample]]:
    """Returns scenes and samples with right plans and pictures for the first ``count`` prompts of a split, with noise on the pictures.

    ``sigma`` is the std of the noise, out of 255.
    """
    rng = np.random.default_rng(0)
    made = [annotated(split, 0, i, clean=True) for i in range(count)]
    pictures = [noisy(paint(m.scene), sigma, rng) if sigma else paint(m.scene) for m in made]
    return [(m.scene, Sample(as_prompt(m.phrase, ""), m.chain, picture)) for m, picture in zip(made, pictures, strict=True)]


def markdown_table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Returns a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def show_noise(count: int, sigma: float) -> None:
    """Prints a table of :func:`noise`."""
    del sigma
    counts = noise(count)
    rows = [(c, *counts[c, True], f"{counts[c, True][1] / counts[c, True][0]:.3f}", *counts[c, False]) for c in CATEGORIES]
    print(markdown_table(("category", "hard", "wrong among them", "rate", "plain", "wrong among them"), rows))


def show_understood(count: int, sigma: float) -> None:
    """Prints a table of :func:`understood` for both splits."""
    del sigma
    by_split = {split: understood(count, split) for split in ("train", "validation")}
    rows = [(c, *(n for counts in by_split.values() for hard in (False, True) for n in counts[c, hard])) for c in CATEGORIES]
    head = [f"{split}, {kind}" for split in by_split for kind in ("plain", "hard")]
    print(markdown_table(("category", *(cell for name in head for cell in (name, "read right"))), rows))


def show_confusion(count: int, sigma: float) -> None:
    """Prints tables of :func:`confusion` on painted pictures with noise, and the judge's scores of them."""
    pairs = painted_truth(count, sigma)
    for attribute, counts in confusion((s, p.image) for s, p in pairs if p.image is not None).items():
        read_as = (*VALUES[attribute], UNSURE, MISSING)
        rows = [(was, *(counts[was, name] for name in read_as)) for was in (*VALUES[attribute], EXTRA)]
        print(markdown_table((f"{attribute}: painted \\ read", *read_as), rows) + "\n")
    scores = ScenesJudge().score([sample for _, sample in pairs], list(REWARDS))
    print(markdown_table(("reward", "mean", "lowest"), [(name, f"{np.mean(v):.4f}", f"{min(v):.4f}") for name, v in scores.items()]))


def show_sizes(count: int, sigma: float) -> None:
    """Prints how many patches, texts and words there are, and the sizes of scenes and chains."""
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
    print(markdown_table(("what", "how much"), rows))


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
    parser.add_argument(
        "--sigma", type=float, default=0.0, help="std of the Gaussian noise on the pictures of the confusion table, out of 255"
    )
    args = parser.parse_args()
    show, default_count = SHOW[args.what]
    show(args.count or default_count, args.sigma)


if __name__ == "__main__":
    main()
