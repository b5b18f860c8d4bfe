"""Writes the shipped folder of a trained miniature: float16 weights, tokenizer, and the logs of the training runs.

python -m gotr1_scenes_recipe.ship --vq build/vq --sft build/sft --out plugins/gotr1-scenes/src/gotr1_scenes/weights/janus
python -m gotr1_scenes_recipe.ship --sft build/sft-qwen --out plugins/gotr1-scenes/src/gotr1_scenes/weights/qwen
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer

from gotr1_core.policies.pretrained import load_pretrained

LIMITS = {"janus": 12_000_000, "qwen2_5_vl": 8_000_000}
"""Maximum size of the folder in bytes, by ``model_type``."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vq", type=Path, help="output folder of the picture tokenizer's training, if the model has one")
    parser.add_argument("--sft", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    weights = args.sft / "model" / "weights"
    config = load_pretrained(AutoConfig, weights)
    shutil.rmtree(args.out, ignore_errors=True)
    model = getattr(transformers, config.architectures[0])
    load_pretrained(model, weights, dtype=torch.float16).save_pretrained(args.out)
    load_pretrained(AutoTokenizer, weights).save_pretrained(args.out)
    if args.vq is not None:
        shutil.copy(args.vq / "log.jsonl", args.out / "log-vq.jsonl")
    shutil.copy(args.sft / "log.jsonl", args.out / "log-sft.jsonl")
    size, limit = sum(file.stat().st_size for file in args.out.iterdir()), LIMITS[config.model_type]
    print(f"{args.out}: {size / 1e6:.2f} MB")
    if size > limit:
        raise SystemExit(f"the folder has more than {limit / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
