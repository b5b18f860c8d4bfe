"""Edits a plan and draws it again with the same seed: only the edited part changes (GoT's interactive generation, arXiv 2503.10639).

    python examples/edits.py edits.png
    python examples/edits.py edits.png --planner qwen --renderer sdxl

Draws one sheet with four pictures: the original plan, an object replaced, a box moved, an attribute changed. It takes seconds on a laptop.
"""

from __future__ import annotations

import argparse

from PIL import Image, ImageDraw, ImageFont

import gotr1_core as gotr1

PROMPT = "a red circle and a blue square"
PLAN = (
    "There is <|obj_start|>a red circle<|obj_end|><|box_start|>(83,83),(333,333)<|box_end|>"
    " and <|obj_start|>a blue square<|obj_end|><|box_start|>(500,500),(916,916)<|box_end|>."
)
EDITS = {
    "the plan": ("", ""),
    "an object replaced": ("a red circle", "a red cross"),
    "a box moved": ("(500,500),(916,916)", "(0,500),(416,916)"),
    "an attribute changed": ("a blue square", "a striped yellow square"),
}
TILE, GAP, TEXT = 230, 10, 26


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="PNG file for the sheet")
    parser.add_argument("--planner", default="janus")
    parser.add_argument("--renderer", default="janus")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    config = gotr1.load_config(preset="scenes", planner=args.planner, renderer=args.renderer)
    _, renderer = gotr1.make_policies(gotr1.Registry(), config)
    sampling = gotr1.Sampling(**config.sampling.model_dump())

    sheet = Image.new("RGB", (len(EDITS) * (TILE + GAP), TILE + TEXT), "white")
    for column, (name, (old, new)) in enumerate(EDITS.items()):
        chain = gotr1.parse(PLAN.replace(old, new) if old else PLAN)
        (sample,) = gotr1.generate(chain, renderer, PROMPT, seed=args.seed, sampling=sampling)
        left = column * (TILE + GAP)
        sheet.paste(gotr1.draw_chain(chain, (480, 480), sample.image).resize((TILE, TILE), Image.Resampling.LANCZOS), (left, TEXT))
        ImageDraw.Draw(sheet).text((left, 4), name, "black", ImageFont.load_default(size=15))
    sheet.save(args.out, optimize=True)
    print(args.out)


if __name__ == "__main__":
    main()
