"""Draws the picture of README: the same held-out prompts and seeds before and after a run, with plans drawn over the pictures.

python benchmarks/before_after.py runs/NAME docs/pictures/before-after.png
"""

from __future__ import annotations

import argparse
import json
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from gotr1_core.engine.files import read_lines

TILE, GAP, TEXT, MARGIN = 230, 10, 92, 64


def rows_of(folder: Path) -> list[dict[str, object]]:
    """Returns the samples of one evaluation."""
    return [json.loads(line) for _, line in read_lines(folder / "samples.jsonl", hint="give the folder of a run")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--columns", type=int, default=6, help="number of held-out prompts; always the first ones, none is selected")
    args = parser.parse_args()
    font = ImageFont.load_default(size=15)
    width = MARGIN + args.columns * (TILE + GAP)
    sheet = Image.new("RGB", (width, TEXT + 2 * (TILE + GAP)), "white")
    pen = ImageDraw.Draw(sheet)
    for line, name in enumerate(("before", "after")):
        folder = args.run / "samples" / f"held-out-{name}"
        top = TEXT + line * (TILE + GAP)
        pen.text((6, top + TILE // 2), name, "black", font)
        for column, row in enumerate(rows_of(folder)[: args.columns]):
            left = MARGIN + column * (TILE + GAP)
            with Image.open(folder / f"{column:03d}-plan.png") as picture:
                sheet.paste(picture.resize((TILE, TILE), Image.Resampling.LANCZOS), (left, top))
            correct = row["scores"]["correct"]  # type: ignore[index]
            pen.rectangle((left - 2, top - 2, left + TILE + 1, top + TILE + 1), outline="green" if correct else "red", width=3)
            if line == 0:
                pen.text((left, 6), "\n".join(textwrap.wrap(str(row["prompt"]), 28)[:4]), "black", font)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(args.out, optimize=True)


if __name__ == "__main__":
    main()
