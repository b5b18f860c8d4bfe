"""Trains the same cases in one process and in several. Tests call it, or run it in each process with FOLDER, FOLDER JANUS, or FOLDER JANUS
DEVICE."""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from safetensors.torch import save_file

from gotr1_core.batch import Batch
from gotr1_core.cli.launch import end_process
from gotr1_core.components.build import build
from gotr1_core.config.models import RunConfig, validate
from gotr1_core.engine.collectives import check_same_weights, leave_process_group
from gotr1_core.engine.dtensor import local_tensor
from gotr1_core.engine.interrupts import Interrupted
from gotr1_core.engine.tensors import fingerprint, trainable_tensors
from gotr1_core.errors import UsageError
from gotr1_core.hookspecs import hookimpl
from gotr1_core.loop import Trainer
from gotr1_core.plugins import Registry
from gotr1_core.rollout import RolloutSettings, roll_out
from gotr1_core.runs import start
from gotr1_core.samples import Prompt, Sample

HERE = Path(__file__).parent
PLUGINS = [HERE / "tiny_plugin.py", HERE / "letters_plugin.py"]
STEPS = 5

# The judge of tiny_plugin gives a "flat" prompt one value whatever the chain is, and a "missing" one none. The first process of two has
# the first two prompts of every four.
FLAT = {"prompts": ["flat a", "flat b", "c", "d"], "reward": "value"}
MISSING = {"prompts": ["missing a", "missing b", "c", "d"], "reward": "value"}
PRUNED = {"prompts": FLAT["prompts"], "reward": "(value - 0.5) * bright"}
NO_KL: Mapping[str, Any] = {"segments": {"plan": {"kl": 0.0}, "image": {"kl": 0.0}}}
PPO = {"algorithm": {"name": "ppo", "value_learning_rate": 0.01, "value_width": 8, "reward_kl": 0.05, "reward_kl_target": 2.0}}
UNEVEN = {"micro_batch": 3, "rollout_groups": 3}

CASES: Mapping[str, Mapping[str, Any]] = {
    "full": {},
    "lost gradient": {},
    "plan alone": {"segments": {"plan": {"kl": 0.05}, "image": {"weight": 0.0}}},
    "image alone": {"train": "renderer"},
    "constant": {**FLAT, **NO_KL},
    "constant, divergence": FLAT,
    "constant, skipped": {**FLAT, "constant_groups": "skip"},
    "all constant": {**NO_KL, "prompts": ["flat a", "flat b"], "reward": "value"},
    "missing": {**MISSING, **NO_KL},
    "pruned": {**PRUNED, **NO_KL},
    # Equal only up to rounding: two processes have other chunks or micro-batches than one, or sums go over all samples.
    "one update": {"updates": 1, **NO_KL},
    "recorded, uneven": UNEVEN,
    "drawn, uneven": UNEVEN,
    "constant, refilled": {**FLAT, "prompts": [*FLAT["prompts"], "e", "f"], "constant_groups": "refill", "plans": 16},
    "ppo": PPO,
    "ppo, uneven": {**PPO, **UNEVEN},
    "ppo, lost gradient": PPO,
    "ppo, missing": {**PPO, **MISSING},
    "ppo, pruned": {**PPO, **PRUNED},
    "ppo, skipped": {**PPO, **FLAT, "constant_groups": "skip"},
}
EXACT = list(CASES)[: list(CASES).index("one update")]
JANUS: Mapping[str, Mapping[str, Any]] = {
    "janus": {"lora": {"rank": 2}},  # the imports of peft and transformers cost more than all the rest
    "janus, recorded, uneven": UNEVEN,
    "janus, checkpointed": {"gradient_checkpointing": True},
}
# Also run with weights sharded over the processes. In some, the first process has no micro-batch, no picture, or fewer micro-batches.
SPREAD = ["full", "plan alone", "constant", "constant, skipped", "all constant", "missing", "pruned", "one update", "recorded, uneven"]
SPREAD += ["lost gradient", "ppo, lost gradient", "ppo, uneven", "ppo, pruned", "ppo, skipped"]
SPREAD_JANUS = ["janus, recorded, uneven", "janus, checkpointed"]
BF16: Mapping[str, Mapping[str, Any]] = {"bf16": {"mixed_precision": "bf16", "steps": 1, "gradient_checkpointing": True}}


class Turn:
    """A source that gives its prompts in turn."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts

    def prompts(self, split: str, count: int, seed: int, start: int = 0) -> Sequence[Prompt]:
        del split, seed
        return [Prompt(self.texts[i % len(self.texts)], str(i)) for i in range(start, start + count)]


def config(*, janus: Path | None = None, prompts: Sequence[str] = (), **changed: Any) -> RunConfig:
    """Four groups of four plans with two pictures. With two processes each has two groups, which are one chunk and one micro-batch."""
    del prompts
    policy: dict[str, Any] = {"name": "letters"}
    if janus is not None:
        policy = {"name": "janus", "model": str(janus), "instruction": "{prompt}", "attention": "eager"}
    data: dict[str, Any] = {
        "plugins": [str(file) for file in PLUGINS],
        "planner": policy,
        "renderer": policy["name"],
        "judge": ["values"],
        "reward": "value * bright",
        "prompts": {"source": "scenes", "held_out": 6},
        "steps": STEPS,
        "groups": 4,
        "plans": 4,
        "images": 2,
        "rollout_groups": 2,
        "micro_batch": 8,
        "updates": 2,
        "nan_limit": 0.9,
        "sampling": {"guidance_scale": 2.0, "max_chain_tokens": 6},
        "segments": {"plan": {"kl": 0.05}, "image": {"weight": 0.5, "kl": 0.02}},
        "optimizer": {"learning_rate": 0.01, "schedule": "cosine", "warmup": 3, "weight_decay": 0.1, "ema": 0.9},
        "evaluation": {"every": 2, "prompts": 4, "batch": 2, "best_of": 2},
        "checkpoint": {"every": 2},
        "save_samples": 1,
        "lora": None,
    }
    return validate(RunConfig, data | changed)


def registry() -> Registry:
    found = Registry()
    for file in PLUGINS:
        found.add_file(file)
    return found


def seen(samples: Sequence[Sample]) -> list[Any]:
    """Samples as JSON, pictures as their digests."""
    pictures = [hashlib.sha256(s.image.tobytes()).hexdigest() if s.image is not None else None for s in samples]
    return [[*s.lineage, s.prompt.text, s.chain.raw, repr(s.reward), picture] for s, picture in zip(samples, pictures, strict=True)]


def recorded(trainer: Trainer) -> Batch:
    """This process's groups of a step. Every process draws the whole step first."""
    c, parts, me = trainer.config, trainer.parts, trainer.accelerator
    prompts = trainer.source.prompts("train", c.groups, 0, 0)
    how = RolloutSettings(trainer.sampling, seed=(0, 0), plans=c.plans, images=c.images, chunk=c.groups)
    with trainer.inference():
        whole = roll_out(parts.planner, parts.renderer, parts.judges, prompts, how)
    each = c.groups // me.num_processes
    return whole.keep(range(each * me.process_index, each * (me.process_index + 1)))


def lose_gradients(trainer: Trainer, steps: set[int]) -> None:
    """The loss of some steps becomes NaN in this process, and so does its gradient."""
    algorithm: Any = trainer.parts.algorithm
    loss = algorithm.loss

    def spoiled(*given: Any) -> Any:
        found = loss(*given)
        factor = math.nan if trainer.at.step in steps else 1.0
        return replace(found, sums={segment: value * factor for segment, value in found.sums.items()})

    algorithm.loss = spoiled


def train(name: str, folder: Path, accelerator: Accelerator, janus: Path | None = None, *, spread: bool = False) -> None:
    """Trains five steps of a case. The main process writes what all processes drew and measured, and the parameters."""
    case = {**CASES, **JANUS, **BF16}[name]
    settings = config(janus=janus, **case, shard=spread)
    set_seed(settings.seed)
    parts = build(registry(), settings, device=accelerator.device)
    trainer = Trainer(settings, parts, Turn(case.get("prompts", ["a red cat", "two dogs", "b c", "d"])), accelerator)
    if "recorded" in name:
        batch = recorded(trainer)
        trainer.sample_batch = lambda step: batch  # type: ignore[method-assign]
    if "lost gradient" in name and accelerator.is_main_process:
        lose_gradients(trainer, {1, 3})
    start = {key: p.clone() for key, p in trainable_tensors(parts.planner.module).items()}
    metrics, drawn = [], []
    for step in range(settings.steps):
        row, mine = trainer.step(step)
        trainer.at.step += 1
        metrics.append({key: value for key, value in row.items() if not key.startswith("seconds") and value == value})
        drawn.append(seen(mine.samples))
    [learner] = trainer.learners.values()
    prints = gather_object([fingerprint(learner.module) + (fingerprint(learner.critic.module) if learner.critic else "")])
    all_drawn = gather_object([drawn])
    ends = trainable_tensors(learner.module)  # by all, as each may have a share of it
    trained = [p for p in learner.module.parameters() if p.requires_grad]
    share = sum(local_tensor(p).numel() for p in trained) / sum(p.numel() for p in trained)
    if accelerator.is_main_process:
        found = {"metrics": metrics, "drawn": all_drawn, "updates": learner.updates, "alike": len(set(prints)) == 1, "share": share}
        stem = f"{accelerator.num_processes} {'spread ' if spread else ''}{name}"
        (folder / f"{stem}.json").write_text(json.dumps(found))
        critic = {f"critic.{key}": p for key, p in trainable_tensors(learner.critic.module).items()} if learner.critic else {}
        save_file(ends | critic | {f"start.{k}": p for k, p in start.items()}, folder / f"{stem}.safetensors")


# -- runs on disk -----------------------------------------------------------------------------------------------------------


class Stopping:
    """Asks for a stop after the second step, in the main process only."""

    @hookimpl
    def gotr1_step_finished(self, step: int) -> None:
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)


def written_below(folder: Path) -> list[str]:
    """A list that gets, from now on, every file below the folder that this process opens for writing or moves."""
    found: list[str] = []

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        path = arguments[0] if event in ("open", "os.mkdir", "os.rename", "os.remove", "shutil.rmtree") else None
        reads = event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if isinstance(path, str | os.PathLike) and str(path).startswith(str(folder)) and not reads:
            found.append(str(path))

    sys.addaudithook(hear)
    return found


# Prompts of one length: padding to the longest of a chunk would differ, and with it the order of sums.
RUN: dict[str, Any] = {"source": Turn([f"p{i:02d}" for i in range(20)]), "held_out": [Prompt(f"q{i:02d}") for i in range(6)], "cpu": True}


def begin(folder: Path, processes: int) -> None:
    """Makes a whole run, and a run that is stopped after two steps."""
    start.train(config(output=str(folder), name=f"whole-{processes}"), **RUN)
    stop(folder, f"stopped-{processes}")


def stop(folder: Path, name: str, *, spread: bool = False) -> None:
    """A run that is stopped after two steps."""
    try:
        start.train(config(output=str(folder), name=name, shard=spread), listeners=[Stopping()], **RUN)
    except Interrupted:
        return
    raise AssertionError("it was not stopped")


def resume(folder: Path, name: str, *words: str) -> None:
    """Resumes a run that was stopped."""
    start.resume(folder / name, words, **RUN)


def unlike(accelerator: Accelerator) -> str:
    """The error that a process raises if another one has other weights."""
    try:
        check_same_weights(accelerator, {"planner": "a", "renderer": f"b{accelerator.process_index}"})
    except UsageError as error:
        return error.message
    return ""


def bf16(folder: Path, janus: Path, device: str) -> None:
    """Full weights under autocast, first whole in every process, then sharded over them. Uses as many GPUs as there are processes."""
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision="bf16")
    if not torch.distributed.is_initialized():  # by accelerate for several processes only
        torch.distributed.init_process_group("gloo" if device == "cpu" else "nccl")
    for spread in (False, True):
        train("bf16", folder, accelerator, janus, spread=spread)
    leave_process_group()


def main(folder: Path, janus: Path | None = None) -> None:
    """Everything, in two processes; they also resume the run that one process left. With a Janus, only its cases."""
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    for name in JANUS if janus else CASES:
        train(name, folder, accelerator, janus)
    for name in SPREAD_JANUS if janus else SPREAD:
        train(name, folder, accelerator, janus, spread=True)
    if janus is None:
        runs = folder / "runs"
        written = written_below(runs)
        begin(runs, 2)
        resume(runs, "stopped-1")
        stop(runs, "spread-2", spread=True)
        resume(runs, "spread-1", "shard=true")
        (folder / f"written-{accelerator.process_index}.json").write_text(json.dumps(written))
        (folder / f"unlike-{accelerator.process_index}.json").write_text(json.dumps(unlike(accelerator)))
    leave_process_group()


if __name__ == "__main__":
    if len(sys.argv) > 3:
        bf16(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
    else:
        main(*map(Path, sys.argv[1:]))
    end_process(0)
