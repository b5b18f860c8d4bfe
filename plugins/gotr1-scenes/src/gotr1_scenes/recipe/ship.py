"""Turns a trained miniature into what is shipped: float16 weights, tokenizer, and the logs of the run that made them.

python -m gotr1_scenes.recipe.ship --vq build/vq --sft build/sft --out plugins/gotr1-scenes/src/gotr1_scenes/weights/janus
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from transformers import AutoTokenizer, JanusForConditionalGeneration

LIMIT = 12_000_000  # bytes of the whole folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vq", type=Path, required=True)
    parser.add_argument("--sft", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    weights = args.sft / "model" / "weights"
    shutil.rmtree(args.out, ignore_errors=True)
    JanusForConditionalGeneration.from_pretrained(weights, dtype=torch.float16).save_pretrained(args.out)
    AutoTokenizer.from_pretrained(weights).save_pretrained(args.out)
    shutil.copy(args.vq / "log.jsonl", args.out / "log-vq.jsonl")
    shutil.copy(args.sft / "log.jsonl", args.out / "log-sft.jsonl")
    size = sum(file.stat().st_size for file in args.out.iterdir())
    print(f"{args.out}: {size / 1e6:.2f} MB")
    if size > LIMIT:
        raise SystemExit(f"that is more than {LIMIT / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
