"""Checks of a policy's log-probabilities: those of the sampler are those of the training pass, alone and in any batch.

The *training pass* is the forward pass that recomputes the log-probabilities of sampled actions for the update.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray

from gotr1_core.border.calls import call_module, call_render
from gotr1_core.samples import PLAN, Sampling
from gotr1_testing.check import Check, Measured, NotRun, worst
from gotr1_testing.subject import Drawn, Row, Subject, join_drawn, max_or_nan
from gotr1_testing.tolerances import gradient_tolerance, log_prob_limit


def compare_log_probs(subject: Subject, first: torch.Tensor, second: torch.Tensor, sampling: Sampling, note: str = "") -> Measured:
    """The difference of two lists ``[number of actions]`` of log-probabilities of the same actions, beside its limit.

    The largest difference, or in half precision the mean; ``note`` is added to the note of the result.
    """
    guidance = sampling.guidance_scale if subject.segment != PLAN else 1.0
    limit, mean = log_prob_limit(subject.dtype, guidance, sampling.temperature)
    gap = (first.double() - second.double()).abs()
    value = (gap.mean() if mean else gap.max()).item() if len(gap) else 0.0
    return Measured(value, limit, f"{'mean' if mean else 'largest'} of {len(gap)} actions {note}".strip())


def log_probs_match_sampler(subject: Subject) -> Measured:
    """Compares sampler and training pass at every guidance scale and temperature."""
    measurements = []
    for setting in subject.case.settings:
        sampling = subject.sampling(setting.guidance_scale, setting.temperature)
        drawn = subject.draw(sampling)
        where = f"at guidance {sampling.guidance_scale:g}, temperature {sampling.temperature:g}"
        measurements.append(compare_log_probs(subject, subject.log_prob(drawn), drawn.log_prob[drawn.mask], sampling, where))
    return worst(measurements)


def log_probs_match_sampler_with_lora(subject: Subject) -> Measured:
    """The same with adapters that are not zero."""
    return log_probs_match_sampler(subject.with_lora())


def both_endings(subject: Subject) -> Measured:
    """Counts chains that ended by themselves and chains that were cut, among those that the other checks draw."""
    cut = [bool(c) for setting in subject.case.settings for c in _truncated(subject, subject.sampling(temperature=setting.temperature))]
    fewer = min(sum(cut), len(cut) - sum(cut))
    if fewer == 0:
        missing = "ended by itself" if all(cut) else "was cut"
        raise NotRun(f"no chain of {len(cut)} {missing} within {subject.chain_tokens} tokens, so no check says anything about such chains")
    return Measured(fewer, 1, f"{sum(cut)} of {len(cut)} chains were cut at {subject.chain_tokens} tokens", at_least=True)


def _truncated(subject: Subject, sampling: Sampling) -> list[bool]:
    cut: list[bool] = subject.draw(sampling).rollout.tensors["truncated"].tolist()
    return cut


def log_probs_match_for_given_chains(subject: Subject) -> Measured:
    """Compares sampler and training pass of a unified policy on pictures of chains that it did not write."""
    if not subject.unified:
        raise NotRun("it never writes the chains that it draws")
    sampling = subject.sampling(guidance_scale=max(subject.case.guidance))
    rows = subject.rows
    with torch.no_grad():
        rollout = call_render(
            subject.policy, [r.prompt for r in rows], [r.chain for r in rows], seeds=[r.seed for r in rows], sampling=sampling
        )
    drawn = Drawn(rollout)
    return compare_log_probs(subject, subject.log_prob(drawn), drawn.log_prob[drawn.mask], sampling)


def same_log_probs_in_one_pass(subject: Subject) -> Measured:
    """Compares plans and pictures of a unified policy in one training pass with each of them alone."""
    if not subject.unified:
        raise NotRun("it does not write the chains that it draws")
    sampling = subject.sampling(guidance_scale=max(subject.case.guidance))
    drawn = subject.draw(sampling)
    assert drawn.plans is not None
    with torch.no_grad():
        both = call_module(subject.policy, subject.module, {PLAN: drawn.plans, subject.segment: drawn.rollout})
        plans = call_module(subject.policy, subject.module, {PLAN: drawn.plans})[PLAN]
    mask = drawn.plans.tensors["mask"]
    image = compare_log_probs(subject, both[subject.segment].log_prob[drawn.mask], subject.log_prob(drawn), sampling, "of the picture")
    return worst([image, compare_log_probs(subject, both[PLAN].log_prob[mask], plans.log_prob[mask], sampling, "of the plan")])


def same_log_probs_twice(subject: Subject) -> Measured:
    """Two training passes on the same rollout give the same bits. They do not with dropout."""
    drawn = subject.draw(subject.sampling(guidance_scale=max(subject.case.guidance)))
    first, second = subject.log_prob(drawn), subject.log_prob(drawn)
    gap = (first.double() - second.double()).abs()
    return Measured(gap.max().item() if len(gap) else 0.0, 0.0, f"{len(gap)} actions, largest difference of two passes")


def log_probs_are_float32(subject: Subject) -> Measured:
    """Log-probabilities are finite, and float32 or finer whatever the weights are: ratios come from their differences."""
    drawn = subject.draw(subject.sampling())
    with torch.no_grad():
        stats = subject.action_stats(drawn)
    tensors = {"the sampler's": drawn.log_prob, "the training pass's": stats.log_prob, "entropy": stats.entropy}
    finite = {name: bool(tensor[drawn.mask].isfinite().all()) for name, tensor in tensors.items()}
    if not all(finite.values()):
        return Measured(float("nan"), 0.0, f"not finite: {', '.join(name for name, good in finite.items() if not good)}")
    coarsest = max(tensors, key=lambda name: torch.finfo(tensors[name].dtype).eps)
    return Measured(torch.finfo(tensors[coarsest].dtype).eps, torch.finfo(torch.float32).eps, f"unit of rounding; coarsest: {coarsest}")


def same_log_probs_alone_and_in_batch(subject: Subject) -> Measured:
    """Compares the training pass on small batches, with the padding of their own, with that on all of them as one batch."""
    sampling = subject.sampling(guidance_scale=max(subject.case.guidance))
    parts = [subject.draw(sampling, [subject.rows[r] for r in rows]) for rows in _row_selections(len(subject.rows))]
    batch = join_drawn(parts)
    with torch.no_grad():
        full = subject.action_stats(batch).log_prob
    measurements, start = [], 0
    for part in parts:
        rows = range(start, start + len(part.mask))
        note = f"(samples {_list_rows(rows)})"
        measurements.append(compare_log_probs(subject, subject.log_prob(part), full[rows][batch.mask[rows]], sampling, note))
        start += len(part.mask)
    backwards = batch.take(range(start)[::-1])
    reversed_full = full.flip(0)[backwards.mask]
    measurements.append(compare_log_probs(subject, subject.log_prob(backwards), reversed_full, sampling, "(backwards)"))
    return worst(measurements)


def _row_selections(count: int) -> list[list[int]]:
    """Single rows, a few rows out of order with one of them twice, and all rows backwards."""
    last = count - 1
    return [[0], [last], [count // 2], [last, 0, count // 3, last], list(range(count))[::-1]]


def _list_rows(rows: Sequence[int]) -> str:
    return ", ".join(map(str, rows)) if len(rows) < 6 else f"{rows[0]} to {rows[-1]}"


def same_sample_alone_and_in_batch(subject: Subject) -> Measured:
    """A row drawn alone, at another place or beside other rows is the same sample; its log-probabilities differ only by rounding."""
    sampling = subject.sampling(guidance_scale=max(subject.case.guidance))
    if torch.finfo(subject.dtype).eps > 1e-6:
        raise NotRun(f"the weights are {_dtype_name(subject.dtype)}, and rounding alone sometimes gives another token; use float32")
    full = subject.draw(sampling)
    measurements = []
    for rows in _row_selections(len(full.mask)):
        again = subject.draw(sampling, [subject.rows[r] for r in rows])
        different = [r for k, r in enumerate(rows) if not same_sample(full, r, again, k)]
        if different:
            return Measured(float("inf"), 0.0, f"row {different[0]} is another sample when drawn with the rows {_list_rows(rows)}")
        log_probs = torch.cat([again.log_prob[k][again.mask[k]] for k in range(len(rows))])
        in_full_batch = torch.cat([full.log_prob[r][full.mask[r]] for r in rows])
        measurements.append(compare_log_probs(subject, log_probs, in_full_batch, sampling, f"(rows {_list_rows(rows)})"))
    return worst(measurements)


def same_sample(first: Drawn, first_row: int, second: Drawn, second_row: int) -> bool:
    """True if two rows took the same number of actions and have the same plan and the same picture."""
    if int(first.mask[first_row].sum()) != int(second.mask[second_row].sum()):
        return False
    chains = [(d.plans or d.rollout).chains for d in (first, second)]
    if chains[0] and chains[0][first_row] != chains[1][second_row]:
        return False
    # Rounding may change a pixel by 1.
    images = [d.rollout.images for d in (first, second)]
    return not images[0] or _pixel_difference(np.asarray(images[0][first_row], int), np.asarray(images[1][second_row], int)) <= 1


def _pixel_difference(first: NDArray[np.int_], second: NDArray[np.int_]) -> float:
    return float(np.abs(first - second).max(initial=0)) if first.shape == second.shape else float("inf")


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def other_seeds_give_other_samples(subject: Subject) -> Measured:
    """Seeds are 63-bit numbers. Large neighbouring seeds give different samples, and the same seed gives the same sample again."""
    first, count = 2**62 + 1, 12
    prompt, chain = subject.case.prompts[0], subject.case.chains[0]
    rows = [Row(prompt, chain, first + i) for i in range(count)] + [Row(prompt, chain, first)]
    drawn = subject.draw(subject.sampling(), rows)
    if not same_sample(drawn, 0, drawn, count):
        return Measured(0, 2, "the same prompt and seed gave two samples", at_least=True)
    distinct: list[int] = []
    for row in range(count):
        if not any(same_sample(drawn, row, drawn, kept) and same_row_log_probs(drawn, row, kept) for kept in distinct):
            distinct.append(row)
    return Measured(len(distinct), 2, f"different samples of {count} neighbouring seeds", at_least=True)


def same_row_log_probs(drawn: Drawn, first: int, second: int) -> bool:
    """True if two rows have the same log-probabilities. Small pictures may differ and yet have the same pixels."""
    gap = (drawn.log_prob[first] - drawn.log_prob[second]).abs() * drawn.mask[first]
    return bool((gap < 1e-5).all())


def actions_are_marked(subject: Subject) -> Measured:
    """The mask marks the sampled actions, from the first on without a hole. A token that was appended is not an action.

    A chain that was cut has as many actions as the limit; no other chain has more.
    """
    wrong_rows = 0
    notes = []
    for setting in subject.case.settings:
        drawn = subject.draw(subject.sampling(setting.guidance_scale, setting.temperature))
        mask, cut = drawn.mask, drawn.rollout.tensors["truncated"]
        length = mask.sum(1)
        holes = mask != (torch.arange(mask.shape[1], device=mask.device) < length.unsqueeze(1))
        mistakes = {
            "has a hole": holes.any(1),
            "was cut, but its number of actions is not the limit": cut & (length != subject.chain_tokens),
            "has more actions than the limit": length > subject.chain_tokens,
            "has no action": length == 0,
        }
        wrong_rows += sum(int(rows.sum()) for rows in mistakes.values())
        notes += [f"row {int(rows.nonzero()[0])} {mistake}" for mistake, rows in mistakes.items() if rows.any()]
    return Measured(wrong_rows, 0.0, notes[0] if notes else "rows with a wrong mask")


def groups_have_one_window(subject: Subject) -> Measured:
    """All samples of a prompt train the same steps. With a window per sample, siblings are compared by different steps: it collapses."""
    drawn = subject.draw(subject.sampling(guidance_scale=max(subject.case.guidance)), subject.make_rows(8 * len(subject.case.prompts)))
    # If the rollout has the denoising steps of its actions, compare these too: the mask alone does not say which steps they are.
    mask = drawn.mask * (drawn.rollout.tensors.get("step", torch.zeros_like(drawn.mask, dtype=torch.long)) + 1)
    rows = subject.make_rows(8 * len(subject.case.prompts))
    groups = [[k for k, _ in members] for _, members in groupby(enumerate(rows), key=lambda pair: pair[1].prompt)]
    wrong = sum(int((mask[members] != mask[members[0]]).any()) for members in groups)
    return Measured(wrong, 0.0, f"of {len(groups)} groups of {len(groups[0])} have samples with different actions")


def padding_has_no_gradient(subject: Subject) -> Measured:
    """Compares the gradient of some samples alone with their gradient beside longer samples of weight 0, where they are padded."""
    subject.require_trainable()
    sampling = subject.sampling(guidance_scale=max(subject.case.guidance))
    count = subject.case.samples_per_prompt
    short, long = subject.draw(sampling, subject.rows[:count]), subject.draw(sampling, subject.rows[count:])

    def gradient(drawn: Drawn) -> dict[str, torch.Tensor]:
        subject.module.zero_grad()
        log_prob = subject.action_stats(drawn).log_prob
        torch.where(drawn.mask, log_prob, 0.0)[:count].double().sum().backward()
        return {name: p.grad.detach().clone() for name, p in subject.trained.items() if p.grad is not None}

    alone, beside = gradient(short), gradient(join_drawn([short, long]))
    subject.module.zero_grad()
    if not alone or alone.keys() != beside.keys():
        return Measured(float("nan"), 0.0, "other parameters have a gradient when longer samples are in the batch")
    size = max_or_nan(g.abs().max().item() for g in alone.values())
    gap = max_or_nan((alone[name] - beside[name]).abs().max().item() for name in alone)
    return Measured(
        gap / max(size, 1e-30), gradient_tolerance(subject.dtype), "largest difference of entries, relative to the largest entry"
    )


LOG_PROBS = (
    Check("log-probs-match-sampler", "the training pass has the sampler's log-probabilities", log_probs_match_sampler),
    Check("same-log-probs-twice", "the training pass is not random, as it would be with dropout", same_log_probs_twice),
    Check("log-probs-are-float32", "log-probabilities are finite, and float32 or finer", log_probs_are_float32),
    Check(
        "same-log-probs-alone-and-in-batch",
        "log-probabilities depend neither on padding nor on the place in a batch",
        same_log_probs_alone_and_in_batch,
    ),
    Check("same-sample-alone-and-in-batch", "a sample depends only on its own seed and prompt", same_sample_alone_and_in_batch),
    Check("other-seeds-give-other-samples", "another seed gives another sample, however large the seeds", other_seeds_give_other_samples),
    Check("padding-has-no-gradient", "padding adds nothing to a gradient", padding_has_no_gradient),
)
LORA = Check("log-probs-match-sampler-lora", "the same with adapters that are not zero", log_probs_match_sampler_with_lora, changes=True)
PLANNER_ONLY = (
    Check("both-endings", "some of the drawn chains ended by themselves and some were cut", both_endings),
    Check("actions-are-marked", "every sampled token is an action, and no appended token is", actions_are_marked),
)
RENDERER_ONLY = (
    Check("groups-have-one-window", "all samples of a prompt train the same steps", groups_have_one_window),
    Check(
        "log-probs-match-for-given-chains",
        "the training pass has the sampler's log-probabilities for chains of another planner",
        log_probs_match_for_given_chains,
    ),
    Check(
        "same-log-probs-in-one-pass",
        "plan and picture in one training pass have the log-probabilities that they have alone",
        same_log_probs_in_one_pass,
    ),
)
