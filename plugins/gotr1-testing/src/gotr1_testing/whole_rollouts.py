"""Checks on whole rollouts: chains of their natural length, and models whose numbers are not finite."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from gotr1_core.samples import PLAN
from gotr1_testing.check import Check, Measured, NotRun
from gotr1_testing.log_probs import compare_log_probs, same_row_log_probs, same_sample
from gotr1_testing.subject import Drawn, Subject, join_drawn


def learns_at_natural_length(subject: Subject) -> Measured:
    """Draws chains that nothing cuts before ``Case.max_chain_tokens``; the training pass runs on them, forward and backward.

    All other checks use chains that are short enough for some to be cut.
    """
    subject.require_parameters()
    if subject.segment != PLAN and not subject.unified:
        raise NotRun("it does not write the chains that it draws, and its own rollouts are never cut")
    limit = subject.case.max_chain_tokens
    sampling = subject.sampling(guidance_scale=max(subject.case.guidance), chain_tokens=limit)
    drawn = subject.draw(sampling, subject.rows[:: subject.case.samples_per_prompt])
    log_prob = subject.action_stats(drawn).log_prob
    if subject.trained:
        torch.where(drawn.mask, log_prob, 0.0).double().sum().backward()
        subject.module.zero_grad()
    plans = drawn.plans or drawn.rollout
    longest, cut = int(plans.tensors["mask"].sum(1).max()), int(plans.tensors["truncated"].sum())
    note = f"chains of up to {longest} tokens, {cut} of {len(plans)} cut at {limit}{'' if cut < len(plans) else ': raise --chain-tokens'}"
    return compare_log_probs(subject, log_prob.detach()[drawn.mask], drawn.log_prob[drawn.mask], sampling, f"({note})")


def numbers_that_are_not_finite_are_marked(subject: Subject) -> Measured:
    """Sets the weights of one part of the model after the other to NaN. What is drawn then is marked, or is what it was before.

    A row is marked by a log-probability that is not finite, or by a picture that is None (``Rollout.finite``). A part that a role does not
    use changes nothing. With all weights NaN, every row is marked.
    """
    subject.require_parameters()
    rows = subject.rows[:2]
    sampling = subject.sampling(guidance_scale=max(subject.case.guidance))
    sound = subject.draw(sampling, rows)

    def draw() -> Drawn:
        return subject.draw(sampling, rows) if subject.segment == PLAN else subject.draw_pictures(sampling, rows, sound.plans)

    wrong: list[str] = []
    for name, part in [("the whole model", subject.module), *model_parts(subject.module)]:
        with _spoiled(part):
            drawn = draw()
        for row in [row for row, finite in enumerate(drawn.rollout.finite()) if finite]:
            unused = part is not subject.module and same_sample(sound, row, drawn, row)
            if not (unused and same_row_log_probs(join_drawn([sound, drawn]), row, len(rows) + row)):
                wrong.append(name)
    note = f"rows that are not marked although weights are NaN{f': those of {wrong[0]}' if wrong else ''}"
    return Measured(len(wrong), 0.0, note)


def model_parts(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The parts of a model by name. One that holds more than half of the parameters is replaced by its own parts."""

    def size(part: nn.Module) -> int:
        return sum(p.numel() for p in part.parameters())

    for name, part in module.named_children():
        if size(part) == 0:
            continue
        if 2 * size(part) > size(module) and any(size(child) for child in part.children()):
            yield from model_parts(part, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", part


@contextmanager
def _spoiled(module: nn.Module) -> Iterator[None]:
    """Sets all floating-point parameters to NaN while the block runs."""
    parameters = [p for p in module.parameters() if p.is_floating_point()]
    with torch.no_grad():
        before = [p.clone() for p in parameters]
        for parameter in parameters:
            parameter.fill_(float("nan"))
        try:
            yield
        finally:
            for parameter, content in zip(parameters, before, strict=True):
                parameter.copy_(content)


WHOLE_ROLLOUTS = (
    Check("learns-at-natural-length", "the training pass works on chains that end by themselves", learns_at_natural_length),
    Check(
        "not-finite-is-marked",
        "what weights that are NaN draw is marked: no probability, or no picture",
        numbers_that_are_not_finite_are_marked,
        changes=True,
    ),
)
