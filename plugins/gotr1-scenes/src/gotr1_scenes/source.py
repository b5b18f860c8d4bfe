"""Prompt source ``scenes``: prompts of the embedded world, and supervised examples for the supervised stage."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from gotr1_core.samples import Example, Prompt
from gotr1_scenes.annotate import annotated
from gotr1_scenes.language import HARD_SHARE, Phrase, phrase
from gotr1_scenes.painter import paint
from gotr1_scenes.world import CANVAS


class ScenesSourceOptions(BaseModel):
    """Options of the source ``scenes``."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    hard_share: float = Field(
        HARD_SHARE, ge=0, le=1, description="Share of hard phrasings among training prompts; in validation it is always 0.5."
    )
    clean: bool = Field(False, description="Make supervised examples without annotation noise.")
    side: int = Field(CANVAS, ge=CANVAS, le=4096, description="Height and width of the examples' pictures, in pixels.")


def as_prompt(made: Phrase, name: str) -> Prompt:
    """Returns a phrase as a prompt with its wish as metadata."""
    metadata = made.wish.as_metadata() | {"hard": made.hard, "held_out": made.held_out, "phrasing": made.phrasing}
    return Prompt(made.text, name, made.category, metadata)


class ScenesSource:
    """Deterministic splits of any size. Prompt number i depends on the split, the seed and i alone."""

    def __init__(self, options: ScenesSourceOptions) -> None:
        self.options = options

    def prompts(self, split: str, count: int, seed: int, start: int = 0) -> Sequence[Prompt]:
        """Returns ``count`` prompts of ``train`` or ``validation``, from number ``start`` on. Categories take turns."""
        share = self.options.hard_share if split == "train" else HARD_SHARE
        return [as_prompt(phrase(split, seed, i, share), f"{split}-{seed}-{i}") for i in range(start, start + count)]

    def examples(self, split: str, start: int, count: int, seed: int) -> Sequence[Example]:
        """Returns examples ``start`` to ``start + count - 1``: prompt, chain and painted picture. Unless ``clean``, some are wrong."""
        made = [annotated(split, seed, i, clean=self.options.clean) for i in range(start, start + count)]
        side = self.options.side
        return [Example(as_prompt(m.phrase, f"{split}-{seed}-{start + i}"), m.chain, paint(m.scene, side)) for i, m in enumerate(made)]


def write_jsonl(folder: Path, count: int, *, split: str = "train", seed: int = 0, clean: bool = False) -> Path:
    """Writes supervised examples to ``data.jsonl`` in a folder, with their pictures as PNG files; returns the path of ``data.jsonl``."""
    source = ScenesSource(ScenesSourceOptions(clean=clean))
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    path = folder / "data.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):  # one at a time, because all of them may not fit into memory
            (example,) = source.examples(split, i, 1, seed)
            picture = f"pictures/{i:06d}.png"
            assert example.image is not None
            example.image.save(folder / picture)
            prompt = example.prompt
            row = {
                "prompt": prompt.text,
                "chain": example.chain.raw,
                "image": picture,
                "category": prompt.category,
                "metadata": prompt.metadata,
            }
            file.write(json.dumps(row) + "\n")
    return path
