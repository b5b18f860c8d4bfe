"""Stage one: supervised training of a policy on prompts, chains and pictures."""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gotr1_core.border.algorithm_calls import told_of_backward
from gotr1_core.border.calls import call_examples, call_save, call_supervised_loss
from gotr1_core.border.contract import Call
from gotr1_core.components.fingerprints import Fingerprint, component_inputs, file_digest, path_fingerprint
from gotr1_core.components.inputs import FINGERPRINTS, changed_inputs, describe_changes
from gotr1_core.config.models import ComponentConfig, SftConfig, dump
from gotr1_core.data.examples import HINT
from gotr1_core.data.rows import iterate_rows
from gotr1_core.engine.collectives import any_process, make_accelerator
from gotr1_core.engine.console import print
from gotr1_core.engine.ema import EMA
from gotr1_core.engine.files import MISSING, is_count, read_json, recover_folder, replace_folder
from gotr1_core.engine.optim import clip_gradients, make_optimizer, set_learning_rate, step_if_finite
from gotr1_core.engine.tensors import (
    gather_to_cpu,
    load_optimizer,
    load_trainable,
    optimizer_tensors,
    read_tensors,
    save_tensors,
    trainable_tensors,
)
from gotr1_core.errors import NOT_FINITE_HINT, Gotr1Error, UsageError
from gotr1_core.plugins import Registry, options_of
from gotr1_core.policies.lora import add_lora
from gotr1_core.protocols import Loss, Policy, PromptSource
from gotr1_core.runs.checkpoint import EMA_FILE, OPTIMIZER, STATE, TRAINABLE
from gotr1_core.samples import Example, SegmentName
from gotr1_core.sampling import seed_for

_SAVED = {"step": is_count, "inputs": (MISSING, FINGERPRINTS), "accepted": (MISSING, list)}
Batches = Callable[[int], Sequence[Example]]
"""Returns the examples of a step, counted from 0."""


def from_source(source: PromptSource, size: int, seed: int, window: int) -> Batches:
    """Returns the batches of a source's training split, ``size`` examples each; ``window`` batches are sorted by length together.

    A step always gets the same examples, also in a resumed run.
    """
    return _batches(size, seed, window, lambda numbers: call_examples(source, "train", numbers.start, len(numbers), seed))


def from_examples(examples: Sequence[Example], size: int, seed: int, window: int) -> Batches:
    """Returns the batches of a list of examples, like :func:`from_source`. The list is shuffled again in every epoch."""

    def take(numbers: range) -> list[Example]:
        orders = {epoch: _shuffled(len(examples), seed_for(seed, epoch)) for epoch in {n // len(examples) for n in numbers}}
        return [examples[orders[n // len(examples)][n % len(examples)]] for n in numbers]

    return _batches(size, seed, window, take)


def _batches(size: int, seed: int, window: int, take: Callable[[range], Sequence[Example]]) -> Batches:
    """Returns batches of ``size`` examples, sorted by length within a window. ``take`` gives the examples with these numbers."""
    cache: dict[int, list[Sequence[Example]]] = {}  # the batches of the current window

    def batch(step: int) -> Sequence[Example]:
        block, place = divmod(step, window)
        if block not in cache:
            examples = take(range(block * window * size, (block + 1) * window * size))
            cache.clear()
            cache[block] = _sorted_batches(examples, size, seed_for(seed, block))
        return cache[block][place]

    return batch


def _shuffled(count: int, seed: int) -> list[int]:
    """Returns the numbers below ``count`` in random order."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()


def _sorted_batches(examples: Sequence[Example], size: int, seed: int) -> list[Sequence[Example]]:
    """Puts examples of similar length into the same batch. The batches are in random order."""
    ordered = sorted(examples, key=lambda e: (len(e.chain.parts), len(e.chain.raw) + len(e.prompt.text)))
    batches = [ordered[i : i + size] for i in range(0, len(ordered), size)]
    return [batches[i] for i in _shuffled(len(batches), seed)]


def weighted_loss(loss: Loss, weights: Mapping[SegmentName, float]) -> torch.Tensor:
    """Returns the weighted sum of the segments' mean losses, a scalar. The weight of a segment is 1 if ``weights`` does not name it."""
    means = {name: loss.sums[name] / loss.counts[name].clamp_min(1) for name in loss.sums}
    return torch.stack([weights.get(name, 1.0) * mean for name, mean in means.items()]).sum()


def sft_inputs(registry: Registry, config: SftConfig) -> dict[str, Fingerprint]:
    """What a training learns from, by config key: its data (a source's options, or a file with its pictures) and its policy's files.

    Raises:
        UsageError: an option is wrong.
    """
    inputs = {f"plugins.{file.stem}": path_fingerprint(file) for file in config.plugins}
    inputs |= component_inputs(registry, config.kind, config.policy, "policy")
    if not isinstance(config.data, ComponentConfig):
        data = path_fingerprint(config.data)
        names = [row.values.get("image") for row in iterate_rows(config.data, "examples", hint=HINT)]
        pictures = [str(file_digest(config.data.parent / name)) for name in names if isinstance(name, str) and name]
        data["files"]["pictures"] = hashlib.sha256("".join(pictures).encode()).hexdigest()
        return inputs | {"data": data}
    options = options_of(registry.find("source", config.data.name).component, config.data.options)
    values = None if options is None else options.model_dump(mode="json")
    source = {"data": {"name": f"source {config.data.name}", "options": values}}
    return inputs | source | component_inputs(registry, "source", config.data, "data")


def record_sft_inputs(config: SftConfig, inputs: Mapping[str, Fingerprint], *, accept: bool = False) -> dict[str, Any]:
    """Compares a training's inputs with those of an earlier save in its output. Returns what the next save keeps about them.

    Raises:
        UsageError: the earlier save learnt from other inputs, and ``accept`` is false; or the save is damaged.
    """
    saves = [config.output / name / STATE for name in ("model", "model.old")]  # .old: a process was killed while it replaced the save
    state = next((read_json(save, _SAVED) for save in saves if save.is_file()), {})
    changes = changed_inputs(state.get("inputs", {}), inputs)
    if changes and not accept:
        raise UsageError(
            f"{config.output} was trained with other inputs: {describe_changes(changes)}",
            hint="choose another output=DIR, put back what was there, or go on with what is there now: --accept-changes",
        )
    if changes:
        print(f"accepted: {describe_changes(changes)}", file=sys.stderr)
    accepted = [{"step": state.get("step"), "changed": changes}] if changes else []
    return {"inputs": inputs, "accepted": [*state.get("accepted", ()), *accepted]}


def train_supervised(
    config: SftConfig, policy: Policy, batches: Batches, record: Mapping[str, Any] | None = None
) -> Iterator[dict[str, Any]]:
    """Trains the policy; yields a row of numbers for each step. Saves into ``config.output`` and continues from an earlier save there.

    Each save keeps ``record``, which is what :func:`record_sft_inputs` returned.

    A step whose loss or gradient is not finite changes nothing; its row counts such steps in ``not_finite``.

    Raises:
        Gotr1Error: most steps are so, or ``config.skipped_limit`` of them in a row; or what would be saved is not finite.
    """
    if config.lora is not None:
        add_lora(policy, config.lora)
    if config.gradient_checkpointing:
        with Call("policy", policy, "enable_gradient_checkpointing").told():
            policy.enable_gradient_checkpointing()
    accelerator = make_accelerator(config.mixed_precision, cpu=False)
    optimizer = make_optimizer(policy.module, config.optimizer)
    if accelerator.is_main_process:
        recover_folder(config.output / "model")
    accelerator.wait_for_everyone()
    ema = EMA(policy.module, config.optimizer.ema) if config.optimizer.ema else None
    first = _resume(config.output, policy, optimizer, ema)
    module, optimizer = accelerator.prepare(policy.module, optimizer)
    started = time.perf_counter()
    skipped = _Skipped(config.skipped_limit, config.steps - first)
    for step in range(first, config.steps):
        rate = set_learning_rate(optimizer, config.optimizer, step, config.steps)
        examples = batches(step)
        micro_batches = [examples[i : i + config.micro_batch] for i in range(0, len(examples), config.micro_batch)]
        row: dict[str, Any] = {"step": step}
        for number, micro_batch in enumerate(micro_batches):
            fraction = len(micro_batch) / len(examples)
            with accelerator.autocast():
                loss = call_supervised_loss(policy, module, micro_batch, seed=seed_for(config.seed, step, number))
                with told_of_backward(policy):
                    accelerator.backward(weighted_loss(loss, config.weights) * fraction)
            for name, value in loss.sums.items():
                row[name] = row.get(name, 0.0) + (value / loss.counts[name].clamp_min(1)).item() * len(micro_batch) / len(examples)
        row["loss"] = sum(config.weights.get(name, 1.0) * row[name] for name in loss.sums)
        lost, scaled = any_process(accelerator, not all(math.isfinite(row[name]) for name in row)), False
        if not lost:
            accelerator.unscale_gradients(optimizer)  # in fp16 gradients are scaled; clipping needs their true norm
            norm = clip_gradients(module.parameters(), config.optimizer.max_grad_norm)
            row["gradient_norm"] = float(norm)
            lost, scaled = not step_if_finite(accelerator, optimizer, [norm]), accelerator.scaler is not None
        optimizer.zero_grad(set_to_none=True)
        if skipped.add(lost, searching=scaled):
            row["not_finite"] = skipped.lost
        elif ema is not None:
            ema.update(step + 1)
        row |= {"learning_rate": rate, "seconds": time.perf_counter() - started}
        if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
            if accelerator.is_main_process:
                _save(config, policy, optimizer, ema, {"step": step + 1, **(record or {})})
            accelerator.wait_for_everyone()
        yield row


@dataclass
class _Skipped:
    """Counts the steps of a training of ``steps`` steps that were skipped, in all and in a row, because a number is not finite."""

    limit: int
    steps: int
    done: int = 0
    lost: int = 0
    in_a_row: int = 0
    searches: int = 0  # of the lost ones, those in which fp16 looks for its loss scale

    def add(self, lost: bool, *, searching: bool) -> bool:
        """Counts a step; says the first one that is ``lost``. ``searching``: it is one that fp16 loses while it looks for its loss scale.

        Raises:
            Gotr1Error: ``limit`` steps in a row are lost; or most of all, and at least three, not counting fp16's search.
        """
        self.done, self.lost = self.done + 1, self.lost + lost
        self.in_a_row = self.in_a_row + 1 if lost else 0
        self.searches += lost and searching
        message = f"the loss or the gradient of {self.lost} of {self.done} steps is not finite, and nothing was learned from them"
        bad = self.lost - self.searches
        if self.in_a_row >= self.limit or (lost and 2 * bad > self.done and bad >= min(3, self.steps)):
            raise Gotr1Error(message, hint=NOT_FINITE_HINT)
        if lost and not searching and bad == 1:
            print(f"warning: {message}. What to do: {NOT_FINITE_HINT}", file=sys.stderr)
        return lost


def _save(config: SftConfig, policy: Policy, optimizer: torch.optim.Optimizer, ema: EMA | None, state: Mapping[str, Any]) -> None:
    with replace_folder(config.output / "model") as folder:
        with ema.active() if ema is not None else nullcontext():
            call_save(policy, folder / "weights")
        if ema is not None:
            save_tensors(gather_to_cpu(ema.tensors), folder / EMA_FILE)
        # To continue training: the weights above have merged adapters, the library's own names and perhaps another dtype.
        save_tensors(trainable_tensors(policy.module), folder / TRAINABLE)
        save_tensors(optimizer_tensors(optimizer), folder / OPTIMIZER)
        (folder / STATE).write_text(json.dumps(state), encoding="utf-8")
        (folder / "config.yaml").write_text(dump(config), encoding="utf-8")


def _resume(output: Path, policy: Policy, optimizer: torch.optim.Optimizer, ema: EMA | None) -> int:
    """Loads what ``_save`` wrote, if there is something. Returns the number of steps done."""
    if not (output / "model" / STATE).is_file():
        return 0
    load_trainable(policy.module, output / "model" / TRAINABLE)
    load_optimizer(optimizer, read_tensors(output / "model" / OPTIMIZER))
    if ema is not None:
        ema.load(output / "model" / EMA_FILE)
    return int(read_json(output / "model" / STATE, _SAVED)["step"])
