"""The loop: rollout -> scores -> advantages -> updates. It reads like GoT-R1's second stage (arXiv 2505.17022, section 3).

What is not here, and why: no replay buffer, no value model (an algorithm may own one), no reward normalisation over batches (groups
do that), no early stop (the best checkpoint is kept).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor

from gotr1_core.advantages import constant_groups
from gotr1_core.batch import Batch, join_batches
from gotr1_core.config.models import RunConfig, SamplingConfig, make_sampling
from gotr1_core.engine.collectives import any_process, check_alike, gather_objects, sum_over_processes
from gotr1_core.engine.critic import make_critic
from gotr1_core.engine.ema import EMA
from gotr1_core.engine.fsdp import shard, unsharded
from gotr1_core.engine.interrupts import Interrupted, Stop
from gotr1_core.engine.metrics import Clock
from gotr1_core.engine.optim import make_optimizer, move_state
from gotr1_core.engine.out_of_memory import explained
from gotr1_core.engine.rollout_metrics import rollout_metrics
from gotr1_core.engine.tensors import (
    fingerprint,
)
from gotr1_core.errors import UsageError
from gotr1_core.evaluation import ON_THE_WAY, evaluate, summary
from gotr1_core.protocols import ActorCritic, PromptSource
from gotr1_core.reference import Reference
from gotr1_core.rollout import Parts, RolloutSettings, roll_out, swap
from gotr1_core.samples import Prompt, Sample
from gotr1_core.sampling import seed_for
from gotr1_core.update import Learner, update


@dataclass
class Progress:
    """Where a run is; all of it goes into a checkpoint."""

    step: int = 0  # steps done
    drawn: int = 0  # training prompts used, over all processes
    pending: bool = False  # the last step's evaluation is due and not done
    best: dict[str, Any] | None = None  # {"step", "score"} of the best evaluation


class Recorder(Protocol):
    """Where the loop says what happens: metrics, samples, evaluations and checkpoints. `gotr1_core.runs.recorder` keeps them on disk."""

    main: bool
    folder: Path

    def stepped(self, step: int, metrics: Mapping[str, float], samples: Sequence[Sample]) -> None:
        """Step number ``step``, from 1 on, is done."""
        ...

    def evaluated(self, name: str, step: int, samples: Sequence[Sample]) -> None:
        """Held-out samples were drawn and judged after ``step`` steps."""
        ...

    def has_evaluation(self, name: str) -> bool:
        """True if this evaluation was recorded, by this process or before a resume."""
        ...

    def save(self, trainer: Trainer) -> None:
        """Writes a checkpoint of where the trainer is."""
        ...


class Trainer:
    """A run: its parts, its learners, and where it is."""

    def __init__(self, config: RunConfig, parts: Parts, source: PromptSource, accelerator: Accelerator) -> None:
        self.config, self.parts, self.source, self.accelerator = config, parts, source, accelerator
        self.sampling = make_sampling(config.sampling)
        self.starting = {role: fingerprint(policy.module) for role, policy in parts.policies().items()}
        self.learners = self._learners()
        self.offload = accelerator.device if config.offload else None
        critics = {f"critic of the {role}": fingerprint(c.module) for role, learner in self.learners.items() if (c := learner.critic)}
        check_alike(accelerator, self.starting | critics)
        if accelerator.scaler is not None:  # begins with the first loss that is scaled, and a process may have none
            accelerator.scaler.scale(torch.zeros((), device=accelerator.device))
        self.at = Progress()

    def _learners(self) -> dict[str, Learner]:
        found = {}
        for role, (policy, segments) in self.parts.trained(self.config.train).items():
            settings = (self.config.renderer_optimizer if role == "renderer" else None) or self.config.optimizer
            chosen = {name: getattr(self.config.segments, name) for name in segments}
            chosen = {name: s for name, s in chosen.items() if s.weight > 0}
            if self.config.shard:
                shard(self.accelerator, policy.module)
            optimizer = make_optimizer(policy.module, settings)
            optimizer = self.accelerator.prepare(optimizer)
            needed = any(s.kl for s in chosen.values()) or getattr(self.parts.algorithm, "needs_reference", False)
            reference = Reference(policy.module) if needed else None
            critic = make_critic(self.accelerator.device, self.parts.algorithm, role, policy, optimizer, settings)
            ema = EMA(policy.module, settings.ema) if settings.ema else None
            found[role] = Learner(policy, policy.module, optimizer, settings, chosen, reference, critic=critic, ema=ema)
        return found

    def prompts(self, count: int) -> tuple[Sequence[Prompt], int]:
        """This process's share of the next ``count`` prompts, and the number of its first one; whole groups only."""
        each = count // self.accelerator.num_processes
        first = self.at.drawn + each * self.accelerator.process_index
        self.at.drawn += count
        return self.source.prompts("train", each, self.config.prompts.seed, first), first

    def sample_batch(self, step: int) -> Batch:
        """One step's tree of samples. With ``refill``, groups without a difference give way to new ones (DAPO, arXiv 2503.14476)."""
        config, kept = self.config, list[Batch]()
        settings = RolloutSettings(
            self.sampling,
            seed=(config.seed, step),
            plans=config.plans,
            images=config.images,
            chunk=config.rollout_groups,
            prune=config.prune,
            needless=self.parts.judges.blind and config.train == "planner",
            offload=self.offload,
        )
        wanted = config.groups
        for _ in range(config.refill_limit if config.constant_groups == "refill" else 1):
            prompts, first = self.prompts(wanted)
            with self.drawing():
                batch = roll_out(self.parts.planner, self.parts.renderer, self.parts.judges, prompts, settings, first=first)
            kept.append(batch)
            if config.constant_groups != "refill":
                break
            (useful,) = sum_over_processes(self.accelerator, [sum(int((~self.constant(b)).sum()) for b in kept)])
            short = config.groups - int(useful)
            if short <= 0:
                break
            wanted = -(-short // self.accelerator.num_processes) * self.accelerator.num_processes
        return join_batches(kept)

    def constant(self, batch: Batch) -> Tensor:
        """Which groups have no difference to learn from, ``[P]``."""
        return constant_groups(batch.rewards, self.config.constant_tolerance)

    def step(self, step: int) -> tuple[dict[str, float], Batch]:
        """Rollout, advantages, updates; returns the step's metrics, over all processes, and what this one drew."""
        clock, begun = Clock(), time.perf_counter()
        self._seed("step", step)
        with clock.phase("rollout"), explained("rollout", self.config):
            drawn = self.sample_batch(step)
        constant = self.constant(drawn)
        batch = self._useful(drawn, constant)
        advantages = self.parts.algorithm.advantages(batch.rewards)
        metrics = rollout_metrics(drawn, constant, idle=self._idle(drawn)).numbers(self.accelerator)
        for role, learner in self.learners.items():
            self._at_work(role)
            with explained("update", self.config):
                done = update(self.accelerator, learner, self.parts.algorithm, batch, advantages, self.config, clock)
            metrics |= {f"{role}.{name}" if len(self.learners) > 1 else name: value for name, value in done.items()}
        seconds = time.perf_counter() - begun
        metrics |= {f"seconds.{name}": value for name, value in clock.seconds.items()} | {"seconds": seconds}
        return metrics, drawn

    def _at_work(self, role: str) -> None:
        """Has one policy on the device, with its optimizer's moments, and the other in main memory, where the run offloads."""
        if self.offload is None:
            return
        policies = self.parts.policies()
        (idle,) = (policy for other, policy in policies.items() if other != role)
        for other, learner in self.learners.items():
            move_state(learner.optimizer, self.offload if other == role else torch.device("cpu"))
        swap(self.offload, policies[role], idle=idle)

    def _useful(self, drawn: Batch, constant: Tensor) -> Batch:
        """The groups that count. Where no process has any, all of them: a divergence may still have a gradient."""
        if self.config.constant_groups == "keep" or not any_process(self.accelerator, bool((~constant).any())):
            return drawn
        return drawn.keep((~constant).nonzero().flatten().tolist())

    def _idle(self, drawn: Batch) -> bool:
        """Whether no process has a difference to learn from. With values all samples are compared, and a group may be one of them."""
        rewards = torch.cat(gather_objects(self.accelerator, drawn.rewards))
        rewards = rewards.flatten().view(1, 1, -1) if isinstance(self.parts.algorithm, ActorCritic) else rewards
        return bool(constant_groups(rewards, self.config.constant_tolerance).all())

    def evaluate_prompts(self, prompts: Sequence[Prompt], *, sampling: SamplingConfig | None = None, best_of: int = 1) -> list[Sample]:
        """Held-out samples under the evaluation's settings, or with other ``sampling``; of ``best_of`` the one with the largest reward."""
        evaluation = self.config.evaluation
        size = max(1, evaluation.batch // best_of)  # the same pieces for any number of processes
        settings = RolloutSettings(
            make_sampling(sampling or evaluation.sampling or self.config.sampling),
            seed=(evaluation.seed,),
            plans=best_of,
            chunk=size,
            offload=self.offload,
        )
        self._seed("evaluation")
        found: dict[int, list[Sample]] = {}
        parts, others = self.parts, self.accelerator.num_processes
        with explained("evaluation", self.config), self.with_ema(), self.drawing():
            for start in range(size * self.accelerator.process_index, len(prompts), size * others):
                piece = prompts[start : start + size]
                found[start] = evaluate(parts.planner, parts.renderer, parts.judges, piece, settings, first=start)
        every = {start: samples for mine in gather_objects(self.accelerator, found) for start, samples in mine.items()}
        return [sample for start in sorted(every) for sample in every[start]]

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Without gradients, in the run's precision, with all weights here. Every process has to come this way equally often."""
        modules = [policy.module for policy in self.parts.policies().values()]
        with torch.no_grad(), unsharded(modules), self.accelerator.autocast():
            yield

    @contextmanager
    def with_ema(self) -> Iterator[None]:
        """With the moving averages in place of the weights, where the run has them."""
        with ExitStack() as stack:
            for learner in self.learners.values():
                if learner.ema is not None:
                    stack.enter_context(learner.ema.active())
            yield

    def _seed(self, *lineage: int | str) -> None:
        """Seeds the global generators, which nothing here uses but a component might: then a resumed run repeats that as well."""
        set_seed(seed_for(self.config.seed, *lineage, self.accelerator.process_index) % 2**32)

    def agree(self, asked: bool) -> bool:
        """Whether any process was asked."""
        return any_process(self.accelerator, asked)


def run_loop(trainer: Trainer, held_out: Sequence[Prompt], run: Recorder) -> None:
    """Evaluates, trains, evaluates on the way and at the end; keeps the last checkpoints and the best one.

    Raises:
        Interrupted: the user asked to stop. The step that was under way is done and saved.
    """
    config, at = trainer.config, trainer.at
    evaluate_before(trainer, held_out, run)
    with Stop(main=run.main) as stop:
        if at.pending:  # a run that was stopped between a step and its evaluation
            _evaluate(trainer, held_out, run)
            run.save(trainer)
        while at.step < config.steps:
            metrics, batch = trainer.step(at.step)
            at.step += 1
            run.stepped(at.step, metrics, batch.samples)
            at.pending = at.step == config.steps or _due(at.step, config.evaluation.every)
            stopping = trainer.agree(stop.asked)
            saving = at.pending or stopping or _due(at.step, config.checkpoint.every)
            if at.pending and not stopping:
                _evaluate(trainer, held_out, run)
            if saving:
                run.save(trainer)
            if stopping or (saving and at.step < config.steps and trainer.agree(stop.asked)):  # asked while it evaluated
                raise Interrupted(f"interrupted after step {at.step} of {config.steps}", hint=f"gotr1 train --resume {run.folder} goes on")


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _evaluate(trainer: Trainer, held_out: Sequence[Prompt], run: Recorder) -> None:
    """Evaluates after the steps done so far, and notes whether they were the best."""
    at, settings, last = trainer.at, trainer.config.evaluation, trainer.at.step == trainer.config.steps
    samples = trainer.evaluate_prompts(held_out if last else held_out[: settings.prompts])
    score = summary(samples[: settings.prompts])[settings.metric].mean
    if not math.isnan(score) and (at.best is None or score > at.best["score"]):
        at.best = {"step": at.step, "score": score}
    at.pending = False
    run.evaluated("after" if last else ON_THE_WAY, at.step, samples)


def evaluate_before(trainer: Trainer, held_out: Sequence[Prompt], run: Recorder) -> None:
    """The model as it is before training, and where asked for what greedy decoding or choosing the best of several would give."""
    settings = trainer.config.evaluation
    wanted: dict[str, dict[str, Any]] = {"before": {}}
    if settings.greedy:
        base = settings.sampling or trainer.config.sampling
        wanted["before, greedy"] = {"sampling": base.model_copy(update={"temperature": 0.0, "image_temperature": 0.0})}
    if settings.best_of > 1:
        wanted[f"before, best of {settings.best_of}"] = {"best_of": settings.best_of}
    for name, changed in wanted.items():
        if not run.has_evaluation(name):  # a resumed run has them
            if trainer.at.step:
                lacking = run.folder / "held-out.json"
                raise UsageError(f"{lacking} lacks the evaluation {name!r} of the untrained model", hint="put it back")
            run.evaluated(name, 0, trainer.evaluate_prompts(held_out, **changed))
