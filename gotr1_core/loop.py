"""The loop: rollout, scores, advantages, updates. It follows GoT-R1's second stage (arXiv 2505.17022, section 3).

There is no replay buffer, no value model (an algorithm may own one), no reward normalisation over batches (groups do that), and no
early stop (the best checkpoint is kept).
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor

from gotr1_core.advantages import constant_groups
from gotr1_core.batch import Batch
from gotr1_core.border.algorithm_calls import call_advantages
from gotr1_core.border.calls import call_counts, call_prompts
from gotr1_core.config.models import RunConfig, SamplingConfig, make_sampling
from gotr1_core.engine.algorithm_state import StateWatch, algorithm_state
from gotr1_core.engine.collectives import Meeting, any_process, check_same_weights, gather_objects, pause_together, sum_over_processes
from gotr1_core.engine.console import print
from gotr1_core.engine.critic import make_critic
from gotr1_core.engine.ema import EMA
from gotr1_core.engine.fsdp import shard, unsharded
from gotr1_core.engine.interrupts import Interrupted, Paused, StopRequest
from gotr1_core.engine.metrics import Clock
from gotr1_core.engine.optim import make_optimizer, move_optimizer_state
from gotr1_core.engine.out_of_memory import explain_out_of_memory
from gotr1_core.engine.rollout_metrics import rollout_metrics
from gotr1_core.engine.tensors import fingerprint
from gotr1_core.evaluation import AFTER, ON_THE_WAY, evaluate, summary
from gotr1_core.protocols import PromptSource, compares_groups
from gotr1_core.reference import Reference
from gotr1_core.rollout import Parts, RolloutSettings, join_checked, roll_out, swap
from gotr1_core.samples import Prompt, Sample
from gotr1_core.sampling import seed_for
from gotr1_core.update import Learner, update

KEEP_STATE_HINT = "give it state_dict and load_state_dict, or train without a resume: a resumed run would go on with other numbers"


@dataclass
class Progress:
    """Where a run is; all of it goes into a checkpoint."""

    step: int = 0  # steps done
    drawn: int = 0  # training prompts used, over all processes
    pending: bool = False  # the last step's evaluation is due and not done
    best: dict[str, Any] | None = None  # {"step", "score"} of the best evaluation


class Recorder(Protocol):
    """Takes what happens in the loop: metrics, samples, evaluations, checkpoints. `gotr1_core.runs.recorder` keeps them on disk."""

    main: bool
    folder: Path

    def stepped(self, step: int, metrics: Mapping[str, float], samples: Sequence[Sample]) -> None:
        """Step number ``step``, counted from 1, is done."""

    def evaluating(self, name: str, step: int, total: int, samples: Sequence[Sample]) -> None:
        """An evaluation of held-out prompts is under way: this process has drawn and judged these ``samples`` of ``total``."""

    def evaluated(self, name: str, step: int, samples: Sequence[Sample]) -> None:
        """Held-out samples were drawn and judged after ``step`` steps."""

    def has_evaluation(self, name: str) -> bool:
        """True if this evaluation was recorded, by this process or before a resume."""

    def save(self, trainer: Trainer) -> None:
        """Writes a checkpoint of the trainer as it is."""


class Trainer:
    """What trains in a run: its components, its learners, and where it is."""

    def __init__(self, config: RunConfig, parts: Parts, source: PromptSource, accelerator: Accelerator) -> None:
        self.config, self.parts, self.source, self.accelerator = config, parts, source, accelerator
        self.sampling = make_sampling(config.sampling)
        self.starting = {role: fingerprint(policy.module) for role, policy in parts.policies().items()}
        self.learners = self._learners()
        self.offload = accelerator.device if config.offload else None
        critics = {f"critic of the {role}": fingerprint(c.module) for role, learner in self.learners.items() if (c := learner.critic)}
        check_same_weights(accelerator, self.starting | critics)
        if accelerator.scaler is not None:  # it is made with the first loss that is scaled, and a process may have none
            accelerator.scaler.scale(torch.zeros((), device=accelerator.device))
        self.meeting = Meeting(accelerator, needed=bool(parts.judges.thread_safe), reminder=config.judge_reminder)
        self.at = Progress()
        algorithm_state(parts.algorithm)  # refuses what no checkpoint could hold before any work is done
        self.state_watch = StateWatch(parts.algorithm)

    def _learners(self) -> dict[str, Learner]:
        """By role, each policy that trains with its optimizer, and the reference, critic and average that it needs."""
        learners = {}
        for role, (policy, names) in self.parts.trained(self.config.train).items():
            settings = (self.config.renderer_optimizer if role == "renderer" else None) or self.config.optimizer
            segments = {name: getattr(self.config.segments, name) for name in names}
            segments = {name: segment for name, segment in segments.items() if segment.weight > 0}
            if self.config.shard:
                shard(self.accelerator, policy.module)
            optimizer = self.accelerator.prepare(make_optimizer(policy.module, settings))
            needed = any(s.kl for s in segments.values()) or getattr(self.parts.algorithm, "needs_reference", False)
            reference = Reference(policy.module) if needed else None
            critic = make_critic(self.accelerator.device, self.parts.algorithm, role, policy, optimizer, settings)
            ema = EMA(policy.module, settings.ema) if settings.ema else None
            learners[role] = Learner(policy, policy.module, optimizer, settings, segments, reference, critic=critic, ema=ema)
        return learners

    def step(self, step: int) -> tuple[dict[str, float], Batch]:
        """One step: rollout, advantages, updates. Returns its metrics over all processes, and the batch that this process drew."""
        clock, begun, drawn = Clock(), time.perf_counter(), self.at.drawn
        self._seed("step", step)
        try:
            with clock.phase("rollout"), explain_out_of_memory("rollout", self.config):
                batch = self.sample_batch(step)
            self.parts.judges.tally.require(self.accelerator, self.config.nan_limit)
        except Paused:  # nothing has been learned from the step, and a resume repeats it
            self.at.drawn = drawn
            raise
        constant = self._constant_groups(batch)
        useful = self._useful(batch, constant)
        advantages = call_advantages(self.parts.algorithm, useful.rewards)
        metrics = rollout_metrics(batch, constant, idle=self._idle(batch)).reduce(self.accelerator)
        metrics = {name: value for name, value in metrics.items() if value or not name.startswith("not_finite.")}  # only if there are some
        metrics |= self._judge_counts()
        for role, learner in self.learners.items():
            self._bring_to_device(role)
            with explain_out_of_memory("update", self.config):
                statistics = update(self.accelerator, learner, self.parts.algorithm, useful, advantages, self.config, clock)
            metrics |= {f"{role}.{name}" if len(self.learners) > 1 else name: value for name, value in statistics.items()}
        self._watch_state()
        seconds = time.perf_counter() - begun
        metrics |= {f"seconds.{name}": value for name, value in clock.seconds.items()} | {"seconds": seconds}
        return metrics, batch

    def _judge_counts(self) -> dict[str, float]:
        """What judges have counted since the run or its resume started, over all processes."""
        planner = {f"planning.{name}": count for name, count in call_counts("planner", self.parts.planner).items()}
        processes = gather_objects(self.accelerator, planner | self.parts.judges.counts())
        return {name: sum(counts.get(name, 0.0) for counts in processes) for name in dict.fromkeys(chain.from_iterable(processes))}

    def _watch_state(self) -> None:
        """Warns, once for each attribute, of state of the algorithm that no checkpoint has."""
        if (changed := self.state_watch.look()) and self.accelerator.is_main_process:
            message = f"the algorithm {self.config.algorithm.name} keeps state that no checkpoint has ({', '.join(changed)})"
            print(f"warning: {message}. What to do: {KEEP_STATE_HINT}", file=sys.stderr)

    def sample_batch(self, step: int) -> Batch:
        """One step's tree of samples. With ``refill``, constant groups are replaced by new ones (DAPO, arXiv 2503.14476)."""
        config, batches = self.config, list[Batch]()
        settings = RolloutSettings(
            self.sampling,
            seed=(config.seed, step),
            plans=config.plans,
            images=config.images,
            chunk=config.rollout_groups,
            prune=config.prune,
            pictures_unused=self.parts.judges.blind and config.train == "planner",
            offload=self.offload,
        )
        count = config.groups
        for _ in range(config.refill_limit if config.constant_groups == "refill" else 1):
            prompts, first = self._next_prompts(count)
            with self.inference():
                draw = partial(roll_out, self.parts.planner, self.parts.renderer, self.parts.judges, prompts, settings, first=first)
                batch = pause_together(self.accelerator, self.meeting, draw)
            batches.append(batch)
            if config.constant_groups != "refill":
                break
            (useful,) = sum_over_processes(self.accelerator, [sum(int((~self._constant_groups(b)).sum()) for b in batches)])
            short = config.groups - int(useful)
            if short <= 0:
                break
            count = -(-short // self.accelerator.num_processes) * self.accelerator.num_processes
        return join_checked(self.parts.planner, self.parts.renderer, batches)

    def _next_prompts(self, count: int) -> tuple[Sequence[Prompt], int]:
        """This process's part of the next ``count`` prompts, and the number of its first prompt."""
        own_count = count // self.accelerator.num_processes
        first = self.at.drawn + own_count * self.accelerator.process_index
        self.at.drawn += count
        return call_prompts(self.source, "train", own_count, self.config.prompts.seed, first), first

    def _constant_groups(self, batch: Batch) -> Tensor:
        """Groups with no difference to learn from, bool ``[P]``."""
        return constant_groups(batch.rewards, self.config.constant_tolerance)

    def _useful(self, batch: Batch, constant: Tensor) -> Batch:
        """The groups that count. If no process has any, all of them: a KL term may still have a gradient."""
        if self.config.constant_groups == "keep" or not any_process(self.accelerator, bool((~constant).any())):
            return batch
        return batch.keep((~constant).nonzero().flatten().tolist())

    def _idle(self, batch: Batch) -> bool:
        """True if no process has a difference to learn from. Without groups, all samples of the step count as one."""
        rewards = torch.cat(gather_objects(self.accelerator, batch.rewards))
        rewards = rewards if compares_groups(self.parts.algorithm) else rewards.flatten().view(1, 1, -1)
        return bool(constant_groups(rewards, self.config.constant_tolerance).all())

    def _bring_to_device(self, role: str) -> None:
        """Moves one policy with its optimizer's moments to the device, and the other to main memory, if the run offloads."""
        if self.offload is None:
            return
        policies = self.parts.policies()
        (idle,) = (policy for name, policy in policies.items() if name != role)
        for name, learner in self.learners.items():
            move_optimizer_state(learner.optimizer, self.offload if name == role else torch.device("cpu"))
        swap(self.offload, policies[role], idle=idle)

    def evaluate_prompts(
        self,
        prompts: Sequence[Prompt],
        *,
        sampling: SamplingConfig | None = None,
        best_of: int = 1,
        report: Callable[[int, Sequence[Sample]], None] = lambda _total, _samples: None,
    ) -> list[Sample]:
        """Held-out samples under the evaluation's settings, or with other ``sampling``; of ``best_of`` the one with the largest reward.

        ``report`` is called at the start and after each ``evaluation.batch`` with how many samples this process draws, and those so far.
        """
        evaluation = self.config.evaluation
        chunk = max(1, evaluation.batch // best_of)  # the same chunks for any number of processes
        chosen = make_sampling(sampling or evaluation.sampling or self.config.sampling)
        settings = RolloutSettings(chosen, seed=(evaluation.seed,), plans=best_of, chunk=chunk, offload=self.offload)
        self._seed("evaluation")
        everyone, processes = (self.parts.planner, self.parts.renderer, self.parts.judges), self.accelerator.num_processes
        starts = range(chunk * self.accelerator.process_index, len(prompts), chunk * processes)
        total = sum(len(prompts[start : start + chunk]) for start in starts)
        report(total, [])
        own: dict[int, list[Sample]] = {}

        def draw() -> None:
            for start in starts:
                own[start] = evaluate(*everyone, prompts[start : start + chunk], settings, first=start)
                report(total, [sample for samples in own.values() for sample in samples])

        with explain_out_of_memory("evaluation", self.config), self._averaged_weights(), self.inference():
            pause_together(self.accelerator, self.meeting, draw)
        chunks = {start: samples for process in gather_objects(self.accelerator, own) for start, samples in process.items()}
        return [sample for start in sorted(chunks) for sample in chunks[start]]

    @contextmanager
    def inference(self) -> Iterator[None]:
        """No gradients, the run's precision, and full weights on each process. All processes must enter it equally often."""
        modules = [policy.module for policy in self.parts.policies().values()]
        with torch.no_grad(), unsharded(modules), self.accelerator.autocast():
            yield

    @contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        """Moving averages in place of the weights, if the run has them."""
        with ExitStack() as stack:
            for learner in self.learners.values():
                if learner.ema is not None:
                    stack.enter_context(learner.ema.active())
            yield

    def _seed(self, *lineage: int | str) -> None:
        """Seeds the global generators. Nothing here uses them, but a component might; then a resumed run repeats its draws as well."""
        set_seed(seed_for(self.config.seed, *lineage, self.accelerator.process_index) % 2**32)


def run_loop(trainer: Trainer, held_out: Sequence[Prompt], run: Recorder) -> None:
    """Evaluates, trains, evaluates on the way and at the end; saves checkpoints.

    Raises:
        Interrupted: the user asked to stop. The step that was under way is done and saved.
        Paused: a component cannot go on. The state before the step or the evaluation that was under way is saved.
    """
    try:
        _run_loop(trainer, held_out, run)
    except Paused as paused:
        if trainer.at.step > 0:  # otherwise a resume starts from the beginning
            run.save(trainer)
        again = f"{paused.hint or 'then'}; gotr1 train --resume {run.folder} goes on"
        raise Paused(f"after step {trainer.at.step}: {paused.message}", hint=again) from paused


def _run_loop(trainer: Trainer, held_out: Sequence[Prompt], run: Recorder) -> None:
    config, at = trainer.config, trainer.at
    evaluate_before(trainer, held_out, run)
    with StopRequest(is_main=run.main) as stop:
        # A run that was stopped between a step and its evaluation, or whose last evaluation is lost.
        if at.pending or (at.step == config.steps and not run.has_evaluation(AFTER)):
            _evaluate(trainer, held_out, run)
            run.save(trainer)
        while at.step < config.steps:
            metrics, batch = trainer.step(at.step)
            at.step += 1
            run.stepped(at.step, metrics, batch.samples)
            at.pending = at.step == config.steps or _due(at.step, config.evaluation.every)
            stopping = any_process(trainer.accelerator, stop.requested)
            saving = at.pending or stopping or _due(at.step, config.checkpoint.every)
            if at.pending and not stopping:
                _evaluate(trainer, held_out, run)
            if saving:
                run.save(trainer)
            # The user may also have asked while it evaluated.
            if stopping or (saving and at.step < config.steps and any_process(trainer.accelerator, stop.requested)):
                raise Interrupted(f"interrupted after step {at.step} of {config.steps}", hint=f"gotr1 train --resume {run.folder} goes on")


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _evaluate(trainer: Trainer, held_out: Sequence[Prompt], run: Recorder) -> None:
    """Evaluates the model as it is, and notes if it is the best so far."""
    at, settings, last = trainer.at, trainer.config.evaluation, trainer.at.step == trainer.config.steps
    name, prompts = (AFTER, held_out) if last else (ON_THE_WAY, held_out[: settings.prompts])
    samples = trainer.evaluate_prompts(prompts, report=partial(run.evaluating, name, at.step))
    trainer.parts.judges.tally.require(trainer.accelerator, trainer.config.nan_limit)
    score = summary(samples[: settings.prompts])[settings.metric]
    if not math.isnan(score) and (at.best is None or score > at.best["score"]):
        at.best = {"step": at.step, "score": score}
    at.pending = False
    run.evaluated(name, at.step, samples)


def evaluations_before(config: RunConfig) -> dict[str, dict[str, Any]]:
    """The evaluations of the untrained model that a run makes: by name what :meth:`Trainer.evaluate_prompts` is told."""
    settings = config.evaluation
    wanted: dict[str, dict[str, Any]] = {"before": {}}
    if settings.greedy:
        base = settings.sampling or config.sampling
        wanted["before, greedy"] = {"sampling": base.model_copy(update={"temperature": 0.0, "image_temperature": 0.0})}
    if settings.best_of > 1:
        wanted[f"before, best of {settings.best_of}"] = {"best_of": settings.best_of}
    return wanted


def evaluate_before(trainer: Trainer, held_out: Sequence[Prompt], run: Recorder) -> None:
    """Evaluates the model before training; on request also decoded greedily, and with the best of several samples."""
    for name, changed in evaluations_before(trainer.config).items():
        if not run.has_evaluation(name):  # a resumed run has them
            report = partial(run.evaluating, name, 0)
            run.evaluated(name, 0, trainer.evaluate_prompts(held_out, **changed, report=report))
