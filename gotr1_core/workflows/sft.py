"""Stage one: supervised training on prompts, chains and pictures."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file

from gotr1_core.chain import parse
from gotr1_core.config.models import SftConfig, dump
from gotr1_core.engine.collectives import make_accelerator
from gotr1_core.engine.ema import EMA
from gotr1_core.engine.files import read_json, recover, replacing
from gotr1_core.engine.optim import clip_gradients, learning_rate_at, make_optimizer, set_learning_rate
from gotr1_core.engine.tensors import collected, load_optimizer_tensors, load_trainable, optimizer_tensors, read_tensors, trainable
from gotr1_core.errors import UsageError
from gotr1_core.policies.lora import add_lora
from gotr1_core.protocols import Loss, Policy, PromptSource
from gotr1_core.runs.checkpoint import EMA_FILE, OPTIMIZER, STATE, TRAINABLE
from gotr1_core.samples import Example, Prompt, SegmentName
from gotr1_core.sampling import seed_for

Batches = Callable[[int], Sequence[Example]]


def read_examples(path: Path) -> list[Example]:
    """Examples of a JSONL file: ``prompt``, ``chain`` and, where there is one, ``image``, a path beside the file."""
    examples = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}", hint="give a JSONL file with prompt, chain and image") from None
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            image = Image.open(path.parent / row["image"]).convert("RGB") if row.get("image") else None
            prompt = Prompt(row["prompt"], f"{path.stem}-{number}", row.get("category", ""), row.get("metadata", {}))
            examples.append(Example(prompt, parse(row["chain"]), image))
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise UsageError(f"{path}, line {number}: {error}", hint='each line is {"prompt": …, "chain": …, "image": …}') from None
    return examples


def from_source(source: PromptSource, size: int, seed: int, window: int) -> Batches:
    """Batches of a source's training split: step s gets the same examples in every run, whatever was done before it."""
    kept: dict[int, list[Sequence[Example]]] = {}

    def batch(step: int) -> Sequence[Example]:
        block, place = divmod(step, window)
        if block not in kept:
            kept.clear()
            kept[block] = _sorted_batches(source.examples("train", block * window * size, window * size, seed), size, seed_for(seed, block))
        return kept[block][place]

    return batch


def from_examples(examples: Sequence[Example], size: int, seed: int, window: int) -> Batches:
    """Batches of a list of examples, shuffled anew every epoch."""

    kept: dict[int, list[Sequence[Example]]] = {}

    def batch(step: int) -> Sequence[Example]:
        block, place = divmod(step, window)
        if block not in kept:
            numbers = range(block * window * size, (block + 1) * window * size)
            epochs = {n // len(examples) for n in numbers}
            orders = {epoch: _shuffled(len(examples), seed_for(seed, epoch)) for epoch in epochs}
            kept.clear()
            picked = [examples[orders[n // len(examples)][n % len(examples)]] for n in numbers]
            kept[block] = _sorted_batches(picked, size, seed_for(seed, block))
        return kept[block][place]

    return batch


def _shuffled(count: int, seed: int) -> list[int]:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()


def _sorted_batches(examples: Sequence[Example], size: int, seed: int) -> list[Sequence[Example]]:
    """Examples of like length together, the batches in random order."""
    ordered = sorted(examples, key=lambda e: (len(e.chain.parts), len(e.chain.raw) + len(e.prompt.text)))
    batches = [ordered[i : i + size] for i in range(0, len(ordered), size)]
    return [batches[i] for i in _shuffled(len(batches), seed)]


def total(loss: Loss, weights: Mapping[SegmentName, float]) -> torch.Tensor:
    """The weighted sum of the segments' means."""
    means = {name: loss.sums[name] / loss.counts[name].clamp_min(1) for name in loss.sums}
    return torch.stack([weights.get(name, 1.0) * mean for name, mean in means.items()]).sum()


def train_supervised(config: SftConfig, policy: Policy, batches: Batches) -> Iterator[dict[str, Any]]:
    """Runs the stage and yields a row of numbers per step; saves the model where ``config.output`` says, and goes on from there."""
    if config.lora is not None:
        add_lora(policy, config.lora)
    if config.gradient_checkpointing:
        policy.enable_gradient_checkpointing()
    accelerator = make_accelerator(config.mixed_precision, cpu=False)
    optimizer = make_optimizer(policy.module, config.optimizer)
    if accelerator.is_main_process:
        recover(config.output / "model")
    accelerator.wait_for_everyone()
    ema = EMA(policy.module, config.optimizer.ema) if config.optimizer.ema else None
    first = _resume(config.output, policy, optimizer, ema)
    module, optimizer = accelerator.prepare(policy.module, optimizer)
    begun = time.perf_counter()
    for step in range(first, config.steps):
        set_learning_rate(optimizer, learning_rate_at(config.optimizer, step, config.steps))
        examples = batches(step)
        slices = [examples[i : i + config.micro_batch] for i in range(0, len(examples), config.micro_batch)]
        row: dict[str, Any] = {"step": step}
        for number, part in enumerate(slices):
            with accelerator.autocast():
                loss = policy.supervised_loss(module, part, seed=seed_for(config.seed, step, number))
                accelerator.backward(total(loss, config.weights) * (len(part) / len(examples)))
            for name, value in loss.sums.items():
                row[name] = row.get(name, 0.0) + (value / loss.counts[name].clamp_min(1)).item() * len(part) / len(examples)
        accelerator.unscale_gradients(optimizer)  # of fp16, before they are clipped
        row["gradient_norm"] = float(clip_gradients(module.parameters(), config.optimizer.max_grad_norm))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if ema is not None:
            ema.follow(step + 1)
        row |= {"learning_rate": learning_rate_at(config.optimizer, step, config.steps), "seconds": time.perf_counter() - begun}
        if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
            if accelerator.is_main_process:
                _save(config, policy, optimizer, ema, step + 1)
            accelerator.wait_for_everyone()
        yield row


def _save(config: SftConfig, policy: Policy, optimizer: torch.optim.Optimizer, ema: EMA | None, step: int) -> None:
    with replacing(config.output / "model") as part:
        with ema.active() if ema is not None else nullcontext():
            policy.save(part / "weights")
        if ema is not None:
            save_file(collected(ema.tensors), part / EMA_FILE)
        # What goes on training: the weights above have adapters merged, a library's own names and perhaps another type.
        save_file(trainable(policy.module), part / TRAINABLE)
        save_file(optimizer_tensors(optimizer), part / OPTIMIZER)
        (part / STATE).write_text(json.dumps({"step": step}), encoding="utf-8")
        (part / "config.yaml").write_text(dump(config), encoding="utf-8")


def _resume(output: Path, policy: Policy, optimizer: torch.optim.Optimizer, ema: EMA | None) -> int:
    """Goes on with what ``_save`` wrote; 0 where there is nothing."""
    if not (output / "model" / STATE).is_file():
        return 0
    load_trainable(policy.module, output / "model" / TRAINABLE)
    load_optimizer_tensors(optimizer, read_tensors(output / "model" / OPTIMIZER))
    if ema is not None:
        ema.resume(output / "model" / EMA_FILE)
    return int(read_json(output / "model" / STATE)["step"])
