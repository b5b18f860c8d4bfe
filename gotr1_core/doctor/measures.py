"""What the doctor's rules measure in a run's metrics, and the limits. `docs/doctor.md` explains each limit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, takewhile
from statistics import fmean, median
from textwrap import shorten
from typing import Any

from gotr1_core.config.models import RunConfig

Row = Mapping[str, Any]  # one line of metrics.jsonl: numbers, and None for NaN
Measure = Callable[[Sequence[Row], RunConfig], Iterator[tuple[str, str]]]
"""Yields each metric that is out of its limit in the last of the given rows, and what was measured, in words."""

RECENT = 5  # steps that a rule about a level looks at, because one step is noise
GRACE = 20  # a rule about a change waits for so many steps; and the steps whose median is the usual value

FLOAT32_GAP = 1e-4  # a thousand times the rounding of the embedded world
HALF_PRECISION_GAP = 2e-2  # bfloat16 gives 0.01 at guidance 5; a real mistake, sampling outside of autocast, gave 0.03
MISSING_SCORES = 0.05  # about one sample in a group of 16
CLIPPED = 0.3  # PPO's usual share is 0.1 to 0.2
# For the most extreme of a step's thousands of tokens: four updates of a healthy run give 0.1 to 2, at four times its learning rate 0.0006.
RATIO = 100.0
KL = 1.0  # nats per token: tokens are on average e times likelier than before training; runs that learn stay below 0.3
COLLAPSED, DISSOLVED = 0.1, 4.0  # times the entropy of the first steps; healthy runs keep four fifths
CERTAIN, UNSURE = 0.05, 0.5  # nats: an entropy below CERTAIN cannot collapse, and one below UNSURE is not noise
SPREAD = 1e-3  # times the mean reward; if one sample of 16 differs by 0.1, the step of a judge from 0 to 10, it is above 0.025
CONSTANT = 0.9  # of the groups; a solved prompt is constant, and in runs of the embedded world half of the groups are at the end
MALFORMED = 0.25  # stays below 0.04 if the reward reads the plan, below 0.22 if it does not
TRUNCATED = 0.25  # healthy runs have next to none
SHORTER, LONGER = 0.5, 2.0  # times the first steps' length; healthy runs stay within a tenth
FEW_REGIONS = 0.5  # regions per chain
SPIKE = 50.0  # times the usual gradient norm; healthy runs reach 6
HALF = 0.5  # of the prompts; if a judge scores fewer, its mean is over other prompts than another judge's
PARTED = 0.1  # of a score's range: how much further apart two judges are than before training
EXAMPLES, SHOWN = 3, 120  # examples of what judges said, and characters of each
DUPLICATES = 0.5  # share of a prompt's samples that repeat another one; healthy runs have none


def sampler_gap_limit(config: RunConfig) -> float:
    """Returns the largest gap between sampler and training pass that rounding explains, mean in nats per token.

    The config's own ``sampler_gap_limit`` wins. In float32 the two passes differ by the order of sums: 1e-7 is usual, and guidance
    multiplies it by its scale. bfloat16 has eight bits: the two passes round logits of size 10 differently by a few hundredths.
    """
    if config.sampler_gap_limit is not None:
        return config.sampler_gap_limit
    half = config.mixed_precision != "no" or any(
        policy.options.get("dtype") in ("bfloat16", "float16") for policy in (config.planner, config.renderer)
    )
    return HALF_PRECISION_GAP if half else FLOAT32_GAP


# -- reading rows -----------------------------------------------------------------------------------------------------------


def known_values(rows: Sequence[Row], name: str) -> list[float]:
    """Returns the values of a metric in the rows that have it, without NaN."""
    values = [row.get(name) for row in rows]
    return [v for v in values if v is not None and not math.isnan(v)]


def metrics_named(rows: Sequence[Row], ending: str) -> list[str]:
    """Returns the metrics of the last row with this name, for every segment and role: ``ending`` and ``….ending``."""
    return [key for key in rows[-1] if key == ending or key.endswith(f".{ending}")]


def recent_values(rows: Sequence[Row], name: str) -> list[float]:
    """Returns the last ``RECENT`` known values; an empty list if there are fewer, so that no single step is judged."""
    values = known_values(rows[-GRACE:], name)[-RECENT:]
    return values if len(values) == RECENT else []


def recent_mean(rows: Sequence[Row], name: str) -> float:
    """Returns the mean of :func:`recent_values`; NaN if there are none. For shares and other numbers without extreme values."""
    values = recent_values(rows, name)
    return fmean(values) if values else math.nan


def first_mean(rows: Sequence[Row], name: str) -> float:
    """Returns the mean of the first ``RECENT`` rows; NaN if there are fewer than ``GRACE`` rows, too few for a trend."""
    values = known_values(rows[:RECENT], name) if len(rows) >= GRACE else []
    return fmean(values) if values else math.nan


# -- rules ------------------------------------------------------------------------------------------------------------------


def share_above(ending: str, limit: float) -> Measure:
    """Returns a measure: the recent mean of a share is above ``limit``."""

    def measure(rows: Sequence[Row], _: RunConfig) -> Iterator[tuple[str, str]]:
        for name in metrics_named(rows, ending):
            if (share := recent_mean(rows, name)) > limit:
                yield name, f"{name} {share:.3g} over {RECENT} steps (limit {limit:g})"

    return measure


def length_changed(ending: str) -> Measure:
    """Returns a measure: the recent mean of a length is far from the mean of the first steps."""

    def measure(rows: Sequence[Row], _: RunConfig) -> Iterator[tuple[str, str]]:
        for name in metrics_named(rows, ending):
            first, last = first_mean(rows, name), recent_mean(rows, name)
            if first > 0 and (last < SHORTER * first or last > LONGER * first):
                yield name, f"{name} went from {first:.3g} to {last:.3g}"

    return measure


def sampler_gap(rows: Sequence[Row], config: RunConfig) -> Iterator[tuple[str, str]]:
    """The gap between sampler and training pass is above its limit in the last step."""
    limit = sampler_gap_limit(config)
    for name in metrics_named(rows, "sampler_gap"):
        if _is_finite(gap := rows[-1][name]) and gap > limit:
            yield name, f"{name} {gap:.2g} nats per token (limit {limit:g})"


def lost_log_probs(rows: Sequence[Row], _: RunConfig) -> Iterator[tuple[str, str]]:
    """Log-probabilities of the training pass are not finite in the last step, and still its updates were applied.

    Those of the sampler are finite where both are compared. Where the gradient is not finite either, :func:`skipped_updates` tells of it.
    """
    for name in _lost_passes(rows):
        role, segment = name.removesuffix(".sampler_gap").rpartition(".")[::2]
        if not rows[-1].get(f"{role}.skipped_updates" if role else "skipped_updates"):
            yield name, f"log-probabilities of the {segment} are NaN or infinite in the training pass, though the sampler's are finite"


def _lost_passes(rows: Sequence[Row]) -> list[str]:
    """The names of the gaps between sampler and training pass that are not finite in the last row."""
    return [name for name in metrics_named(rows, "sampler_gap") if not _is_finite(rows[-1][name])]


def _is_finite(number: float | None) -> bool:
    return number is not None and math.isfinite(number)


def constant_rewards(rows: Sequence[Row], config: RunConfig) -> Iterator[tuple[str, str]]:
    """Every group was constant for ``constant_limit`` steps."""
    last = rows[-config.constant_limit :]
    if len(last) == config.constant_limit and all(row.get("idle") == 1 for row in last):
        yield "idle", f"for {config.constant_limit} steps all samples of every prompt had the same reward"


def missing_rewards(rows: Sequence[Row], config: RunConfig) -> Iterator[tuple[str, str]]:
    """More than ``nan_limit`` of the last row's samples have no reward."""
    share = rows[-1].get("nan")
    if share is not None and share > config.nan_limit and not list(mostly_not_finite(rows, config)):
        scores = [name.removeprefix("nan.") for name, missing in rows[-1].items() if name.startswith("nan.") and missing]
        yield "nan", f"{share:.0%} of the samples have no reward (missing: {', '.join(scores) or 'the reward itself'})"


def mostly_not_finite(rows: Sequence[Row], config: RunConfig) -> Iterator[tuple[str, str]]:
    """More than ``nan_limit`` of the last row's samples have no reward, most of them because their plan or picture is not finite."""
    missing, (plans, pictures) = rows[-1].get("nan") or 0.0, _not_finite(rows[-1])
    if missing > config.nan_limit and plans + pictures > missing / 2:
        yield "nan", f"{missing:.0%} of the samples have no reward: {plans:.0%} have a plan and {pictures:.0%} a picture that is not finite"


def not_finite(rows: Sequence[Row], _: RunConfig) -> Iterator[tuple[str, str]]:
    """Some samples of the last row have a plan or a picture that is not finite."""
    for name, share in zip(("plan", "image"), _not_finite(rows[-1]), strict=True):
        if share:
            yield f"not_finite.{name}", f"not_finite.{name} {share:.3g}"


def _not_finite(row: Row) -> tuple[float, float]:
    """The shares of samples whose plan, and whose picture, is not finite."""
    return row.get("not_finite.plan") or 0.0, row.get("not_finite.image") or 0.0


def missing_scores(rows: Sequence[Row], _: RunConfig) -> Iterator[tuple[str, str]]:
    """The recent share of samples without one score is above its limit."""
    for name in rows[-1]:
        if name.startswith("nan.") and (share := recent_mean(rows, name)) > MISSING_SCORES:
            yield name, f"{name} {share:.3g} over {RECENT} steps (limit {MISSING_SCORES:g})"


def missing_examples(metric: str, words: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Returns up to ``EXAMPLES`` different things that judges said where the score of a metric, ``nan.NAME``, is missing; ``nan``: any."""
    score = metric.removeprefix("nan").removeprefix(".")
    examples: dict[str, None] = {}
    for sample in words:
        for name, said in sample.items():
            if said.get("problem") and (score in ("", name) or name.endswith(f".{score}")):
                verdict = shorten(str(said.get("verdict") or said.get("reason") or ""), SHOWN, placeholder=" …")
                examples[f"{said['problem']}: {verdict!r}" if verdict else str(said["problem"])] = None
    return tuple(examples)[:EXAMPLES]


def ratio(rows: Sequence[Row], _: RunConfig) -> Iterator[tuple[str, str]]:
    """The recent median of the smallest or largest probability ratio is out of its limits."""
    for name in (largest.removesuffix("_max") for largest in metrics_named(rows, "ratio_max")):
        low, high = (median(recent_values(rows, f"{name}_{end}") or [1.0]) for end in ("min", "max"))
        if low < 1 / RATIO or high > RATIO:
            yield name, f"{name}s from {low:.3g} to {high:.3g} over {RECENT} steps (limit {1 / RATIO:g} to {RATIO:g})"


def kl(rows: Sequence[Row], _: RunConfig) -> Iterator[tuple[str, str]]:
    """The recent median of the KL divergence from the reference is above its limit."""
    for name in metrics_named(rows, "kl"):
        divergence = median(recent_values(rows, name) or [0.0])
        if divergence > KL:
            yield name, f"{name} {divergence:.3g} nats per token over {RECENT} steps (limit {KL:g})"


def entropy_change(rows: Sequence[Row], _: RunConfig) -> Iterator[tuple[str, str]]:
    """The recent entropy is far below or far above that of the first steps."""
    for name in metrics_named(rows, "entropy"):
        first, last = first_mean(rows, name), recent_mean(rows, name)
        if (first > CERTAIN and last < COLLAPSED * first) or (last > UNSURE and last > DISSOLVED * first):
            yield name, f"{name} went from {first:.3g} to {last:.3g} nats per token"


def many_constant_groups(rows: Sequence[Row], config: RunConfig) -> Iterator[tuple[str, str]]:
    """The recent share of constant groups is above its limit. Groups of one sample are not judged: a critic gives their baseline."""
    if config.plans * config.images > 1:
        yield from share_above("constant_groups", CONSTANT)(rows, config)


def reward_spread(rows: Sequence[Row], _: RunConfig) -> Iterator[tuple[str, str]]:
    """Rewards hardly differ within groups. If most groups are constant, :func:`many_constant_groups` reports that instead."""
    std, reward = recent_mean(rows, "group_std"), recent_mean(rows, "reward")
    if std < SPREAD * abs(reward) and not recent_mean(rows, "constant_groups") > CONSTANT:
        yield "group_std", f"group_std {std:.2g} over {RECENT} steps, of a reward of {reward:.2g}"


def regions_per_chain(rows: Sequence[Row], config: RunConfig) -> Iterator[tuple[str, str]]:
    """Chains have few regions, or far fewer or more than in the first steps."""
    count = recent_mean(rows, "regions")
    if count < FEW_REGIONS:
        yield "regions", f"{count:.2g} regions per chain over {RECENT} steps (limit {FEW_REGIONS:g})"
    else:
        yield from length_changed("regions")(rows, config)


def gradient_spike(rows: Sequence[Row], _: RunConfig) -> Iterator[tuple[str, str]]:
    """The gradient norm is far above its usual value."""
    for name in metrics_named(rows, "gradient_norm"):
        earlier = known_values(rows[-GRACE - 1 : -1], name)
        norm, usual = rows[-1][name], median(earlier or [0.0])
        if len(earlier) >= RECENT and usual > 0 and norm is not None and SPIKE * usual < norm < math.inf:
            yield name, f"{name} {norm:.3g}, {norm / usual:.0f} times the usual value (limit {SPIKE:g})"


def skipped_updates(rows: Sequence[Row], config: RunConfig) -> Iterator[tuple[str, str]]:
    """Updates of the last step were skipped because their gradient is not finite.

    In float16, mixed precision finds its loss scale by such gradients: there it takes ``RECENT`` steps in a row.
    """
    tries = RECENT if config.mixed_precision == "fp16" else 1
    for name in metrics_named(rows, "skipped_updates"):
        if len(rows) >= tries and all(row.get(name) for row in rows[-tries:]):
            what = "log-probabilities of the training pass and the gradient are" if _lost_passes(rows) else "the gradient is"
            yield name, f"{name} {rows[-1][name]:g} of {config.updates}: {what} not finite"


def only_skipped(rows: Sequence[Row], config: RunConfig) -> Iterator[tuple[str, str]]:
    """As many updates in a row as ``skipped_limit`` were skipped. Steps with nothing to learn from do not count."""
    for name in metrics_named(rows, "skipped_updates"):
        norm = f"{name.removesuffix('skipped_updates')}gradient_norm"
        counts = [row.get(name, 0.0) for row in reversed(rows) if norm in row]
        in_a_row = sum(takewhile(lambda count: count >= config.updates, counts))
        if in_a_row >= config.skipped_limit:
            yield name, f"the gradients of {in_a_row:g} updates in a row are not finite (limit {config.skipped_limit})"


def judges_part(evaluations: Sequence[Row], config: RunConfig) -> Iterator[tuple[str, str]]:
    """Two judges of the same score agree less than before training: their mean scores have changed by different amounts."""
    first, last = evaluations[0], evaluations[-1]
    judges = [judge.label for judge in config.judge]
    for name in dict.fromkeys(key.partition(".")[2] for key in last if key.partition(".")[0] in judges):
        for pair in combinations([f"{judge}.{name}" for judge in judges], 2):
            before_after = [
                [row[key] for row in (first, last) if row.get(f"nan.{key}", 0) <= HALF and known_values([row], key)] for key in pair
            ]
            if any(len(means) < 2 for means in before_after):
                continue
            (a_before, a_after), (b_before, b_after) = before_after
            if abs((a_after - a_before) - (b_after - b_before)) > PARTED:
                means = ", ".join(f"{key} from {was:.3g} to {now:.3g}" for key, (was, now) in zip(pair, before_after, strict=True))
                yield name, f"on held-out prompts {means} (limit {PARTED:g} apart)"
