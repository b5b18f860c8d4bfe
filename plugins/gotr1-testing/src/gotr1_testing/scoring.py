"""Checks of a policy's scoring: what is sampled is what is scored, alone as in a batch, today as tomorrow."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray

from gotr1_core.samples import PLAN, Sampling
from gotr1_testing.finding import Check, Measured, NotRun, worst
from gotr1_testing.subject import Drawn, Row, Subject, largest, together
from gotr1_testing.tolerances import gap_limit, gradient_share


def gap_of(subject: Subject, one: torch.Tensor, other: torch.Tensor, sampling: Sampling, note: str = "") -> Measured:
    """How far two lists of log-probabilities of the same actions are apart."""
    guidance = sampling.guidance_scale if subject.segment != PLAN else 1.0
    limit, mean = gap_limit(subject.dtype, guidance, sampling.temperature)
    gap = (one.double() - other.double()).abs()
    value = (gap.mean() if mean else gap.max()).item() if len(gap) else 0.0
    return Measured(value, limit, f"{'mean' if mean else 'largest'} of {len(gap)} actions {note}".strip())


def sampled_is_scored(subject: Subject) -> Measured:
    """Over every guidance scale and temperature, the sampler's log-probabilities against the scorer's."""
    found = []
    for setting in subject.case.settings:
        sampling = subject.sampling(setting.guidance_scale, setting.temperature)
        drawn = subject.draw(sampling)
        where = f"at guidance {sampling.guidance_scale:g}, temperature {sampling.temperature:g}"
        found.append(gap_of(subject, subject.log_prob(drawn), drawn.log_prob[drawn.mask], sampling, where))
    return worst(found)


def sampled_is_scored_with_lora(subject: Subject) -> Measured:
    """The same with adapters that do something."""
    return sampled_is_scored(subject.with_lora())


def both_endings(subject: Subject) -> Measured:
    """Whether the other checks saw chains that ended by themselves and chains that were cut."""
    cut = [bool(c) for setting in subject.case.settings for c in _cut(subject, subject.sampling(temperature=setting.temperature))]
    fewer = min(sum(cut), len(cut) - sum(cut))
    if fewer == 0:
        what = "ended by itself" if all(cut) else "was cut"
        raise NotRun(f"no chain of {len(cut)} {what} within {subject.chain_tokens} tokens, so the checks say nothing about such ones")
    return Measured(fewer, 1, f"{sum(cut)} of {len(cut)} chains were cut at {subject.chain_tokens} tokens", at_least=True)


def _cut(subject: Subject, sampling: Sampling) -> list[bool]:
    cut: list[bool] = subject.draw(sampling).rollout.tensors["truncated"].tolist()
    return cut


def given_chains_are_scored(subject: Subject) -> Measured:
    """A unified policy that draws chains it did not write."""
    if not subject.unified:
        raise NotRun("it never writes the chains that it draws")
    sampling = subject.sampling(guidance_scale=max(subject.case.guidance))
    rows = subject.rows
    with torch.no_grad():
        rollout = subject.policy.render([r.prompt for r in rows], [r.chain for r in rows], seeds=[r.seed for r in rows], sampling=sampling)
    drawn = Drawn(rollout)
    return gap_of(subject, subject.log_prob(drawn), drawn.log_prob[drawn.mask], sampling)


def together_as_apart(subject: Subject) -> Measured:
    """A unified policy that scores plans and pictures in one pass says what it says of each alone; also with two pictures of a plan."""
    if not subject.unified:
        raise NotRun("it does not write the chains that it draws")
    sampling = subject.sampling(guidance_scale=max(subject.case.guidance))
    drawn = subject.draw(sampling)
    assert drawn.plans is not None
    with torch.no_grad():
        both = subject.module({PLAN: drawn.plans, subject.segment: drawn.rollout})
        plans = subject.module({PLAN: drawn.plans})[PLAN]
    mask = drawn.plans.tensors["mask"]
    image = gap_of(subject, both[subject.segment].log_prob[drawn.mask], subject.log_prob(drawn), sampling, "of the picture")
    return worst([image, gap_of(subject, both[PLAN].log_prob[mask], plans.log_prob[mask], sampling, "of the plan")])


def same_score_twice(subject: Subject) -> Measured:
    """Scoring has no randomness of its own, such as dropout: twice the same pass gives the same bits."""
    drawn = subject.draw(subject.sampling(guidance_scale=max(subject.case.guidance)))
    one, other = subject.log_prob(drawn), subject.log_prob(drawn)
    gap = (one.double() - other.double()).abs()
    return Measured(gap.max().item() if len(gap) else 0.0, 0.0, f"{len(gap)} actions, largest difference of two passes")


def log_probs_are_float32(subject: Subject) -> Measured:
    """Log-probabilities are finite, and float32 or finer whatever the weights are: ratios are made of their differences."""
    drawn = subject.draw(subject.sampling())
    with torch.no_grad():
        scored = subject.score(drawn)
    tensors = {"the sampler's": drawn.log_prob, "the scorer's": scored.log_prob, "entropy": scored.entropy}
    finite = {name: bool(tensor[drawn.mask].isfinite().all()) for name, tensor in tensors.items()}
    if not all(finite.values()):
        return Measured(float("nan"), 0.0, f"not finite: {', '.join(name for name, good in finite.items() if not good)}")
    coarsest = max(tensors, key=lambda name: torch.finfo(tensors[name].dtype).eps)
    return Measured(torch.finfo(tensors[coarsest].dtype).eps, torch.finfo(torch.float32).eps, f"unit of rounding; coarsest: {coarsest}")


def scored_alone_as_in_a_batch(subject: Subject) -> Measured:
    """Log-probabilities of the same actions: of samples drawn apart, with the padding they then have, and joined into one batch."""
    sampling = subject.sampling(guidance_scale=max(subject.case.guidance))
    parts = [subject.draw(sampling, [subject.rows[r] for r in rows]) for rows in _parts(len(subject.rows))]
    batch = together(parts)
    with torch.no_grad():
        whole = subject.score(batch).log_prob
    found, start = [], 0
    for part in parts:
        rows = range(start, start + len(part.mask))
        found.append(gap_of(subject, subject.log_prob(part), whole[rows][batch.mask[rows]], sampling, f"(samples {_list(rows)})"))
        start += len(part.mask)
    backwards = batch.take(range(start)[::-1])
    found.append(gap_of(subject, subject.log_prob(backwards), whole.flip(0)[backwards.mask], sampling, "(backwards)"))
    return worst(found)


def _parts(count: int) -> list[list[int]]:
    """Single rows, a few out of order with one of them twice, and all of them backwards."""
    last = count - 1
    return [[0], [last], [count // 2], [last, 0, count // 3, last], list(range(count))[::-1]]


def _list(rows: Sequence[int]) -> str:
    return ", ".join(map(str, rows)) if len(rows) < 6 else f"{rows[0]} to {rows[-1]}"


def drawn_alone_as_in_a_batch(subject: Subject) -> Measured:
    """The same row drawn alone, elsewhere in a batch and beside others is the same sample; its log-probabilities differ by rounding."""
    sampling = subject.sampling(guidance_scale=max(subject.case.guidance))
    if torch.finfo(subject.dtype).eps > 1e-6:
        raise NotRun(f"the weights are {_name(subject.dtype)}, where rounding alone makes another token now and then; use float32")
    whole = subject.draw(sampling)
    found = []
    for rows in _parts(len(whole.mask)):
        again = subject.draw(sampling, [subject.rows[r] for r in rows])
        other = [r for k, r in enumerate(rows) if not _same_sample(whole, r, again, k)]
        if other:
            return Measured(float("inf"), 0.0, f"row {other[0]} is another sample when drawn with the rows {_list(rows)}")
        mine = torch.cat([again.log_prob[k][again.mask[k]] for k in range(len(rows))])
        before = torch.cat([whole.log_prob[r][whole.mask[r]] for r in rows])
        found.append(gap_of(subject, mine, before, sampling, f"(rows {_list(rows)})"))
    return worst(found)


def _same_sample(one: Drawn, row: int, other: Drawn, at: int) -> bool:
    """Whether two rows took the same actions, as far as plans and pictures tell."""
    if int(one.mask[row].sum()) != int(other.mask[at].sum()):
        return False
    texts = [(d.plans or d.rollout).chains for d in (one, other)]
    if texts[0] and texts[0][row] != texts[1][at]:
        return False
    # A pixel may be rounded to its neighbour.
    pictures = [d.rollout.images for d in (one, other)]
    return not pictures[0] or _furthest(np.asarray(pictures[0][row], int), np.asarray(pictures[1][at], int)) <= 1


def _furthest(one: NDArray[np.int_], other: NDArray[np.int_]) -> float:
    return float(np.abs(one - other).max(initial=0)) if one.shape == other.shape else float("inf")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def seeds_tell_samples_apart(subject: Subject) -> Measured:
    """Seeds are 63-bit numbers; neighbours among large ones give other samples, and the same seed the same sample again."""
    first, count = 2**62 + 1, 12
    prompt, chain = subject.case.prompts[0], subject.case.chains[0]
    rows = [Row(prompt, chain, first + i) for i in range(count)] + [Row(prompt, chain, first)]
    drawn = subject.draw(subject.sampling(), rows)
    if not _same_sample(drawn, 0, drawn, count):
        return Measured(0, 2, "the same prompt and seed gave two samples", at_least=True)
    kinds: list[int] = []
    for row in range(count):
        if not any(_same_sample(drawn, row, drawn, kind) and _near(drawn, row, kind) for kind in kinds):
            kinds.append(row)
    return Measured(len(kinds), 2, f"different samples of {count} neighbouring seeds", at_least=True)


def _near(drawn: Drawn, one: int, other: int) -> bool:
    """Whether two rows have the same log-probabilities: of pictures too small to tell apart by their pixels."""
    gap = (drawn.log_prob[one] - drawn.log_prob[other]).abs() * drawn.mask[one]
    return bool((gap < 1e-5).all())


def actions_are_marked(subject: Subject) -> Measured:
    """The mask says which actions were sampled: from the first on without a hole, as many as the limit where a chain was cut, no more
    than that elsewhere. A token that was appended, not sampled, is none."""
    found = 0
    notes = []
    for setting in subject.case.settings:
        drawn = subject.draw(subject.sampling(setting.guidance_scale, setting.temperature))
        mask, cut = drawn.mask, drawn.rollout.tensors["truncated"]
        if mask.dtype != torch.bool or mask.shape != drawn.log_prob.shape or cut.shape != mask.shape[:1]:
            return Measured(float("nan"), 0.0, "mask and log_prob are [B, T] and truncated [B], masks of booleans")
        length = mask.sum(1)
        holes = mask != (torch.arange(mask.shape[1], device=mask.device) < length.unsqueeze(1))
        wrong = {
            "has a hole": holes.any(1),
            "was cut and has another number of actions than the limit": cut & (length != subject.chain_tokens),
            "has more actions than the limit": length > subject.chain_tokens,
            "has no action": length == 0,
        }
        found += sum(int(rows.sum()) for rows in wrong.values())
        notes += [f"row {int(rows.nonzero()[0])} {what}" for what, rows in wrong.items() if rows.any()]
    return Measured(found, 0.0, notes[0] if notes else "rows with a wrong mask")


def groups_have_one_window(subject: Subject) -> Measured:
    """All samples of a prompt train the same steps: a window drawn per sample compares siblings by different steps, and collapses."""
    drawn = subject.draw(subject.sampling(guidance_scale=max(subject.case.guidance)), subject.many_rows(8 * len(subject.case.prompts)))
    # Where denoising steps are told, the mask alone would not tell which ones they are.
    mask = drawn.mask * (drawn.rollout.tensors.get("step", torch.zeros_like(drawn.mask, dtype=torch.long)) + 1)
    rows = subject.many_rows(8 * len(subject.case.prompts))
    groups = [[k for k, _ in members] for _, members in groupby(enumerate(rows), key=lambda pair: pair[1].prompt)]
    wrong = sum(int((mask[members] != mask[members[0]]).any()) for members in groups)
    return Measured(wrong, 0.0, f"of {len(groups)} groups of {len(groups[0])} differ in what is marked as an action")


def padding_has_no_gradient(subject: Subject) -> Measured:
    """The gradient of some samples is the same beside longer ones that weigh nothing, with the padding that takes, as it is alone."""
    subject.needs_training()
    sampling = subject.sampling(guidance_scale=max(subject.case.guidance))
    each = subject.case.each
    first, others = subject.draw(sampling, subject.rows[:each]), subject.draw(sampling, subject.rows[each:])

    def gradient(drawn: Drawn) -> dict[str, torch.Tensor]:
        subject.module.zero_grad()
        scored = subject.score(drawn).log_prob
        torch.where(drawn.mask, scored, 0.0)[:each].double().sum().backward()
        return {name: p.grad.detach().clone() for name, p in subject.trained.items() if p.grad is not None}

    alone, beside = gradient(first), gradient(together([first, others]))
    subject.module.zero_grad()
    if not alone or alone.keys() != beside.keys():
        return Measured(float("nan"), 0.0, "other parameters have a gradient when samples are scored beside longer ones")
    size = largest(g.abs().max().item() for g in alone.values())
    gap = largest((alone[name] - beside[name]).abs().max().item() for name in alone)
    return Measured(gap / max(size, 1e-30), gradient_share(subject.dtype), "largest difference of entries, as a share of the largest")


SCORING = (
    Check("sampled-is-scored", "the sampler's log-probabilities are the scorer's", sampled_is_scored),
    Check("same-score-twice", "scoring has no randomness of its own, such as dropout", same_score_twice),
    Check("log-probs-are-float32", "log-probabilities are finite, and float32 or finer", log_probs_are_float32),
    Check("scored-alone-as-in-a-batch", "a score depends neither on padding nor on the place in a batch", scored_alone_as_in_a_batch),
    Check("drawn-alone-as-in-a-batch", "a sample depends on its own seed and prompt alone", drawn_alone_as_in_a_batch),
    Check("seeds-tell-samples-apart", "another seed is another sample, however large the seeds", seeds_tell_samples_apart),
    Check("padding-has-no-gradient", "what is padded adds nothing to a gradient", padding_has_no_gradient),
)
WITH_LORA = Check("sampled-is-scored-lora", "the same with adapters that do something", sampled_is_scored_with_lora, changes=True)
OF_PLANS = (
    Check("both-endings", "chains that ended by themselves and chains that were cut were seen", both_endings),
    Check("actions-are-marked", "what was sampled is an action, and what was appended is none", actions_are_marked),
)
OF_PICTURES = (
    Check("groups-have-one-window", "all samples of a prompt train the same steps", groups_have_one_window),
    Check("given-chains-are-scored", "chains of another planner are drawn and scored alike", given_chains_are_scored),
    Check("together-as-apart", "plan and picture scored in one pass are what they are alone", together_as_apart),
)
