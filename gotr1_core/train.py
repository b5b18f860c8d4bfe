"""The loop: rollout -> scores -> advantages -> updates. It reads like GoT-R1's second stage (arXiv 2505.17022, section 3).

What is not here, and why: no replay buffer and no value model (an algorithm may own one), no reward normalisation over batches (groups
do that), no early stop (the best checkpoint is kept).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from gotr1_core.build import Parts, make_sampling
from gotr1_core.checkpoint import save_checkpoint
from gotr1_core.config import RunConfig
from gotr1_core.credit import constant_groups
from gotr1_core.errors import Gotr1Error
from gotr1_core.evaluate import REWARD, columns, evaluate, summary
from gotr1_core.optim import make_optimizer
from gotr1_core.protocols import PromptSource
from gotr1_core.reference import Reference
from gotr1_core.rollout import Batch, join_batches, roll_out
from gotr1_core.samples import Prompt, Sample
from gotr1_core.update import Clock, Learner, update


class Trainer:
    """A run: its parts, its learners, and where it is."""

    def __init__(self, config: RunConfig, parts: Parts, source: PromptSource, accelerator: Accelerator) -> None:
        self.config, self.parts, self.source, self.accelerator = config, parts, source, accelerator
        self.sampling = make_sampling(config.sampling)
        self.learners = self._learners()
        self.drawn = 0  # training prompts used so far, over all processes
        self.idle = 0  # steps in a row without any difference within groups
        if config.groups % accelerator.num_processes:
            raise Gotr1Error(f"groups={config.groups} cannot be shared by {accelerator.num_processes} processes", hint="choose a multiple")

    def _learners(self) -> dict[str, Learner]:
        found = {}
        for role, (policy, segments) in self.parts.trained(self.config.train).items():
            settings = (self.config.renderer_optimizer if role == "renderer" else None) or self.config.optimizer
            chosen = {name: getattr(self.config.segments, name) for name in segments}
            chosen = {name: s for name, s in chosen.items() if s.weight > 0}
            optimizer = make_optimizer(policy.module, settings)
            module, optimizer = self.accelerator.prepare(policy.module, optimizer)
            reference = Reference(policy.module) if any(s.kl for s in chosen.values()) else None
            found[role] = Learner(policy, module, optimizer, settings, chosen, reference)
        return found

    def prompts(self, count: int) -> tuple[Sequence[Prompt], int]:
        """This process's share of the next ``count`` prompts, and the number of its first one; whole groups only."""
        each = count // self.accelerator.num_processes
        first = self.drawn + each * self.accelerator.process_index
        self.drawn += count
        return self.source.prompts("train", each, self.config.prompts.seed, first), first

    def roll_out(self, step: int) -> Batch:
        """One step's tree of samples. With ``refill``, groups without a difference give way to new ones (DAPO, arXiv 2503.14476)."""
        config, kept = self.config, list[Batch]()
        wanted = config.groups
        for _ in range(config.refill_limit if config.constant_groups == "refill" else 1):
            prompts, first = self.prompts(wanted)
            with torch.no_grad(), self.accelerator.autocast():
                batch = roll_out(
                    self.parts.planner,
                    self.parts.renderer,
                    self.parts.judges,
                    prompts,
                    plans=config.plans,
                    images=config.images,
                    sampling=self.sampling,
                    seed=(config.seed, step),
                    first=first,
                    chunk=config.rollout_groups,
                    prune=config.prune,
                )
            kept.append(batch)
            if config.constant_groups != "refill":
                break
            useful = torch.stack([(~self.constant(b)).sum() for b in kept]).sum().to(self.accelerator.device)
            short = config.groups - int(self.accelerator.reduce(useful, "sum"))
            if short <= 0:
                break
            wanted = -(-short // self.accelerator.num_processes) * self.accelerator.num_processes
        return join_batches(kept)

    def constant(self, batch: Batch) -> Tensor:
        """Which groups have no difference to learn from, ``[P]``."""
        return constant_groups(batch.totals, self.config.constant_tolerance)

    def step(self, step: int) -> tuple[dict[str, float], Batch]:
        """Rollout, credit, updates; returns the step's metrics and what was drawn."""
        clock, begun = Clock(), time.perf_counter()
        with clock.phase("rollout"):
            drawn = self.roll_out(step)
        self._guard(drawn)
        constant = self.constant(drawn)
        batch = drawn if self.config.constant_groups == "keep" or constant.all() else drawn.keep((~constant).nonzero().flatten().tolist())
        credit = self.parts.algorithm.credit(batch.totals)
        metrics = describe(drawn, constant)
        for role, learner in self.learners.items():
            done = update(self.accelerator, learner, self.parts.algorithm, batch, credit, self.config, clock)
            metrics |= {f"{role}.{name}" if len(self.learners) > 1 else name: value for name, value in done.items()}
        seconds = time.perf_counter() - begun
        metrics |= {f"seconds.{name}": value for name, value in clock.seconds.items()} | {"seconds": seconds}
        return metrics, drawn

    def _guard(self, batch: Batch) -> None:
        """Stops a run that cannot learn, with the reason."""
        unknown = batch.totals.isnan().double().mean().item()
        if unknown > self.config.nan_limit:
            names = sorted({n for s in batch.samples for n, v in s.scores.items() if v != v})
            raise Gotr1Error(
                f"{unknown:.0%} of the samples have no reward ({', '.join(names)} could not be had)",
                hint="look at the judge and at what it is asked to score, or raise nan_limit",
            )
        self.idle = self.idle + 1 if bool(self.constant(batch).all()) else 0
        if self.idle >= self.config.constant_limit:
            raise Gotr1Error(
                f"for {self.idle} steps all samples of every prompt had the same reward, so there was nothing to learn from",
                hint="look at samples/, the reward expression and the temperature, or raise constant_limit",
            )

    def evaluate(self, prompts: Sequence[Prompt], **changed: Any) -> list[Sample]:
        """Held-out samples under the evaluation's settings."""
        settings = self.config.evaluation
        sampling = make_sampling(settings.sampling or self.config.sampling)
        arguments: dict[str, Any] = {"sampling": sampling, "seed": settings.seed, "batch": settings.batch, **changed}
        with self.accelerator.autocast():
            return evaluate(self.parts.planner, self.parts.renderer, self.parts.judges, prompts, **arguments)

    def save(self, folder: Path, step: int, score: float) -> None:
        """What trained, and the settings to generate with."""
        modules = {role: learner.policy.module for role, learner in self.learners.items()}
        sampling = (self.config.evaluation.sampling or self.config.sampling).model_dump()
        save_checkpoint(folder, modules, {"step": step, self.config.evaluation.metric: score, "sampling": sampling})


def describe(batch: Batch, constant: Tensor) -> dict[str, float]:
    """Numbers about what was drawn."""
    known = batch.totals[~batch.totals.isnan()]
    numbers = {
        "reward": known.mean().item() if len(known) else float("nan"),
        "reward_deviation": batch.totals.flatten(1).nan_to_num().std(1).mean().item(),
        "constant_groups": constant.double().mean().item(),
        "nan": batch.totals.isnan().double().mean().item(),
        "malformed": sum(not c.well_formed for c in batch.plans.chains) / len(batch.plans),
        "truncated": batch.plans.tensors["truncated"].double().mean().item(),
        "chain_tokens": batch.plans.tensors["mask"].sum(1).double().mean().item(),
        "pruned": 1 - (len(batch.images) if batch.images is not None else 0) / len(batch.samples),
    }
    for name in sorted({n for s in batch.samples for n in s.scores}):
        values = [s.scores[name] for s in batch.samples if s.scores.get(name, float("nan")) == s.scores.get(name, float("nan"))]
        if values:
            numbers[f"reward.{name}"] = sum(values) / len(values)
    return numbers


Report = Callable[[str, Mapping[str, Any]], None]


def train(trainer: Trainer, held_out: Sequence[Prompt], folder: Path, report: Report) -> dict[str, Any]:
    """Evaluates, trains, evaluates on the way and at the end; keeps the best and the last checkpoint.

    ``report(event, data)`` hears of everything: ``evaluated``, ``step``, ``saved``.
    """
    config, settings = trainer.config, trainer.config.evaluation
    rows: dict[str, list[Sample]] = {"before": trainer.evaluate(held_out)}
    report("evaluated", {"name": "before", "step": 0, "samples": rows["before"]})
    if settings.greedy:
        base = settings.sampling or config.sampling
        cold = make_sampling(base.model_copy(update={"temperature": 0.0, "image_temperature": 0.0}))
        rows["before, greedy"] = trainer.evaluate(held_out, sampling=cold)
        report("evaluated", {"name": "before, greedy", "step": 0, "samples": rows["before, greedy"]})
    if settings.best_of > 1:
        name = f"before, best of {settings.best_of}"
        rows[name] = trainer.evaluate(held_out, best_of=settings.best_of)
        report("evaluated", {"name": name, "step": 0, "samples": rows[name]})
    best = -float("inf")
    for step in range(config.steps):
        metrics, batch = trainer.step(step)
        report("step", {"step": step, "metrics": metrics, "batch": batch})
        last = step + 1 == config.steps
        if last or (settings.every and (step + 1) % settings.every == 0):
            samples = trainer.evaluate(held_out if last else held_out[: settings.prompts])
            score = summary(samples[: settings.prompts])[settings.metric].mean
            report("evaluated", {"name": "after" if last else "", "step": step + 1, "samples": samples})
            if trainer.accelerator.is_main_process:
                trainer.save(folder / "checkpoints" / "last", step + 1, score)
                if score > best:
                    trainer.save(folder / "checkpoints" / "best", step + 1, score)
            best = max(best, score)
            trainer.accelerator.wait_for_everyone()
            if last:
                rows["after"] = samples
    return {"rows": {name: columns(samples) for name, samples in rows.items()}, "metric": settings.metric, "reward": REWARD}
