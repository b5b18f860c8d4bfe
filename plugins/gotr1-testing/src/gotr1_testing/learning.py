"""Checks of a policy that trains: its reference, what stays frozen, and what a checkpoint brings back. Updates are the run's own."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from gotr1_core.config.models import SegmentConfig
from gotr1_core.engine.tensors import load_optimizer_tensors, load_trainable, optimizer_tensors, read_tensors, trainable
from gotr1_core.runs.checkpoint import OPTIMIZER, TRAINABLE
from gotr1_testing.finding import Check, Measured, NotRun
from gotr1_testing.scoring import gap_of
from gotr1_testing.subject import Subject
from gotr1_testing.updates import Student


def _student(subject: Subject, rate: float = 1e-4) -> Student:
    """About to learn from a sample of every row, half of them good and half of them bad."""
    subject.needs_training()
    drawn = subject.draw(subject.sampling(guidance_scale=max(subject.case.guidance)))
    return Student.of(subject, drawn, {subject.segment: SegmentConfig(kl=0.1)}, rate=rate)


def with_heads(subject: Subject) -> Subject:
    """Adapters, and beside them what else trained before, in full: heads, most often."""
    before = subject.trained
    subject.with_lora()
    heads = [p for name, p in before.items() if not name.startswith(subject.policy.lora_prefix)]
    if not heads:
        raise NotRun(f"nothing trains outside {subject.policy.lora_prefix!r}")
    for parameter in heads:
        parameter.requires_grad_(True)
    return subject


def reference_is_the_start(subject: Subject) -> Measured:
    """The reference says what the policy said when training began, before and after a step; the divergence from it is 0 and then not."""
    student = _student(subject)
    start = subject.log_prob(student.drawn)
    gaps = [_gap(student, start)]
    divergences = [student.update()[f"{subject.segment}.kl"]]
    gaps.append(_gap(student, start))
    divergences.append(student.update()[f"{subject.segment}.kl"])
    if not divergences[1] > 0:
        return Measured(divergences[1], 1e-12, "is the divergence from the reference after a step", at_least=True)
    then = f"the divergence is {divergences[0]:.0e}, and {divergences[1]:.0e} after a step"
    note = f"how far the reference is from the starting policy; {then}"
    return Measured(max(*gaps, abs(divergences[0])), 0.0, note)


def _gap(student: Student, start: Tensor) -> float:
    assert student.learner.reference is not None
    with student.learner.reference.active():
        now = student.subject.log_prob(student.drawn)
    return (now - start).abs().max().item()


def sampled_is_scored_after_a_step(subject: Subject) -> Measured:
    """The sampler follows what training changes; compared with what the scorer says where it takes gradients."""
    student = _student(subject, rate=1e-3)
    student.update()
    sampling = subject.sampling(guidance_scale=max(subject.case.guidance))
    drawn = subject.draw(sampling)
    return gap_of(subject, subject.score(drawn).log_prob.detach()[drawn.mask], drawn.log_prob[drawn.mask], sampling)


def frozen_stays(subject: Subject) -> Measured:
    """What does not train, parameters and buffers, has the same bits after an update; what trains has not."""
    student = _student(subject)
    module = subject.module
    trained = subject.trained
    still = {n: t for n, t in [*module.named_parameters(), *module.named_buffers()] if n not in trained}
    before = {name: tensor.detach().clone() for name, tensor in [*still.items(), *trained.items()]}
    student.update()
    now = dict(module.named_parameters()) | dict(module.named_buffers())
    changed = [name for name in still if name not in now or not _same(now[name], before[name])]
    moved = sum(not _same(now[name], before[name]) for name in trained)
    if not moved:
        return Measured(0, 1, "of what trains has changed", at_least=True)
    note = f"of {len(still)} frozen tensors have changed, and {moved} of {len(trained)} that train"
    return Measured(len(changed), 0.0, f"{note}: {changed[0]}" if changed else note)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.detach().nan_to_num(), other.nan_to_num())


def state_round_trips(subject: Subject) -> Measured:
    """What a checkpoint holds is all there is: brought back after other steps, the policy scores and learns on as it did."""
    student = _student(subject)
    student.update()
    with tempfile.TemporaryDirectory() as folder:
        weights, moments = Path(folder) / TRAINABLE, Path(folder) / OPTIMIZER
        save_file(trainable(subject.module), weights)
        save_file(optimizer_tensors(student.learner.optimizer), moments)
        outcomes = []
        for _ in range(2):
            load_trainable(subject.module, weights)
            load_optimizer_tensors(student.learner.optimizer, read_tensors(moments))
            scores = subject.log_prob(student.drawn)
            student.update()
            outcomes.append((scores, subject.log_prob(student.drawn)))
            with torch.no_grad():
                for parameter in subject.trained.values():
                    parameter.mul_(1.1).add_(0.01)
            subject.log_prob(student.drawn)  # so that what a policy keeps to itself is another
    gaps = [(a - b).abs().max().item() for a, b in zip(*outcomes, strict=True)]
    return Measured(max(gaps), 0.0, "largest difference of a log-probability after loading, and after one more update")


def _lora(check: Check[Subject]) -> Check[Subject]:
    return Check(
        f"{check.name}-lora", f"{check.shows}; of an adapter that is not new", lambda s: check.measure(s.with_lora()), changes=True
    )


def _heads(check: Check[Subject]) -> Check[Subject]:
    return Check(
        f"{check.name}-heads", f"{check.shows}; heads train in full beside adapters", lambda s: check.measure(with_heads(s)), changes=True
    )


FOLLOWED = Check("sampled-is-scored-after-a-step", "the sampler follows training", sampled_is_scored_after_a_step, changes=True)
REFERENCE = Check("reference-is-the-start", "the reference is the starting policy, after a step too", reference_is_the_start, changes=True)
FROZEN = Check("frozen-stays", "an update changes what trains, and no other bit", frozen_stays, changes=True)
STATE = Check("state-round-trips", "a checkpoint brings the policy and its optimizer back", state_round_trips, changes=True)
LEARNING = (FOLLOWED, _lora(FOLLOWED), REFERENCE, _lora(REFERENCE), _heads(REFERENCE), FROZEN, _lora(FROZEN), STATE, _lora(STATE))
