"""Checks of a policy that trains: its reference, its frozen parts, and what a checkpoint restores.

The updates are those of a training run.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from gotr1_core.config.models import SegmentConfig
from gotr1_core.engine.tensors import load_optimizer, load_trainable, optimizer_tensors, read_tensors, trainable_tensors
from gotr1_core.runs.checkpoint import OPTIMIZER, TRAINABLE
from gotr1_testing.check import Check, Measured, NotRun
from gotr1_testing.log_probs import compare_log_probs
from gotr1_testing.subject import Subject
from gotr1_testing.updates import UpdateSetup


def _make_setup(subject: Subject, learning_rate: float = 1e-4) -> UpdateSetup:
    """Sets up updates on a sample of every row, with reward 1 for half of them and 0 for the others."""
    subject.require_trainable()
    drawn = subject.draw(subject.sampling(guidance_scale=max(subject.case.guidance)))
    return UpdateSetup.of(subject, drawn, {subject.segment: SegmentConfig(kl=0.1)}, learning_rate=learning_rate)


def with_heads(subject: Subject) -> Subject:
    """Adds adapters, and keeps training in full what trained outside them before, such as heads."""
    before = subject.trained
    subject.with_lora()
    heads = [p for name, p in before.items() if not name.startswith(subject.policy.lora_prefix)]
    if not heads:
        raise NotRun(f"nothing trains outside {subject.policy.lora_prefix!r}")
    for parameter in heads:
        parameter.requires_grad_(True)
    return subject


def reference_is_the_start(subject: Subject) -> Measured:
    """The reference has the log-probabilities that the policy had when training began, before and after an update.

    The divergence from it is 0 before the update and not after it.
    """
    setup = _make_setup(subject)
    start = subject.log_prob(setup.drawn)
    gaps = [_reference_gap(setup, start)]
    divergences = [setup.update()[f"{subject.segment}.kl"]]
    gaps.append(_reference_gap(setup, start))
    divergences.append(setup.update()[f"{subject.segment}.kl"])
    if not divergences[1] > 0:
        return Measured(divergences[1], 1e-12, "divergence from the reference after a step", at_least=True)
    reported = f"the divergence is {divergences[0]:.0e}, and {divergences[1]:.0e} after a step"
    note = f"difference of the reference from the starting policy; {reported}"
    return Measured(max(*gaps, abs(divergences[0])), 0.0, note)


def _reference_gap(setup: UpdateSetup, start: Tensor) -> float:
    assert setup.learner.reference is not None
    with setup.learner.reference.active():
        log_prob = setup.subject.log_prob(setup.drawn)
    return (log_prob - start).abs().max().item()


def log_probs_match_sampler_after_step(subject: Subject) -> Measured:
    """The sampler uses the trained weights. It is compared with a training pass that records gradients."""
    setup = _make_setup(subject, learning_rate=1e-3)
    setup.update()
    sampling = subject.sampling(guidance_scale=max(subject.case.guidance))
    drawn = subject.draw(sampling)
    log_prob = subject.action_stats(drawn).log_prob.detach()
    return compare_log_probs(subject, log_prob[drawn.mask], drawn.log_prob[drawn.mask], sampling)


def frozen_stays(subject: Subject) -> Measured:
    """An update changes no bit of parameters and buffers that do not train, and some bit of those that train."""
    setup = _make_setup(subject)
    module = subject.module
    trained = subject.trained
    frozen = {n: t for n, t in [*module.named_parameters(), *module.named_buffers()] if n not in trained}
    before = {name: tensor.detach().clone() for name, tensor in [*frozen.items(), *trained.items()]}
    setup.update()
    now = dict(module.named_parameters()) | dict(module.named_buffers())
    changed = [name for name in frozen if name not in now or not _same_bits(now[name], before[name])]
    moved = sum(not _same_bits(now[name], before[name]) for name in trained)
    if not moved:
        return Measured(0, 1, "of the tensors that train have changed", at_least=True)
    note = f"of {len(frozen)} frozen tensors have changed, and {moved} of {len(trained)} that train"
    return Measured(len(changed), 0.0, f"{note}: {changed[0]}" if changed else note)


def _same_bits(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and torch.equal(first.detach().nan_to_num(), second.nan_to_num())


def state_round_trips(subject: Subject) -> Measured:
    """A checkpoint holds the full state: after it is loaded, log-probabilities and the next update are the same as before.

    The check loads it twice, and changes the parameters in between.
    """
    setup = _make_setup(subject)
    setup.update()
    with tempfile.TemporaryDirectory() as folder:
        weights, moments = Path(folder) / TRAINABLE, Path(folder) / OPTIMIZER
        save_file(trainable_tensors(subject.module), weights)
        save_file(optimizer_tensors(setup.learner.optimizer), moments)
        outcomes = []
        for _ in range(2):
            load_trainable(subject.module, weights)
            load_optimizer(setup.learner.optimizer, read_tensors(moments))
            loaded = subject.log_prob(setup.drawn)
            setup.update()
            outcomes.append((loaded, subject.log_prob(setup.drawn)))
            with torch.no_grad():
                for parameter in subject.trained.values():
                    parameter.mul_(1.1).add_(0.01)
            subject.log_prob(setup.drawn)  # so that hidden state of the policy, if any, changes
    gaps = [(a - b).abs().max().item() for a, b in zip(*outcomes, strict=True)]
    return Measured(max(gaps), 0.0, "largest difference of a log-probability after loading and after one more update")


def _lora(check: Check[Subject]) -> Check[Subject]:
    return Check(
        f"{check.name}-lora", f"{check.shows}; with adapters that are not new", lambda s: check.measure(s.with_lora()), changes=True
    )


def _heads(check: Check[Subject]) -> Check[Subject]:
    return Check(
        f"{check.name}-heads", f"{check.shows}; with heads that train beside adapters", lambda s: check.measure(with_heads(s)), changes=True
    )


AFTER_STEP = Check(
    "log-probs-match-sampler-after-step", "the sampler uses the trained weights", log_probs_match_sampler_after_step, changes=True
)
REFERENCE = Check("reference-is-the-start", "the reference is the starting policy, after a step too", reference_is_the_start, changes=True)
FROZEN = Check("frozen-stays", "an update changes what trains, and no other bit", frozen_stays, changes=True)
STATE = Check("state-round-trips", "a checkpoint restores the policy and its optimizer", state_round_trips, changes=True)
LEARNING = (AFTER_STEP, _lora(AFTER_STEP), REFERENCE, _lora(REFERENCE), _heads(REFERENCE), FROZEN, _lora(FROZEN), STATE, _lora(STATE))
