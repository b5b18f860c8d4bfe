"""The numbers that tell a healthy run from a sick one, and what they mean.

Every rule looks at the metrics of the steps so far and either finds nothing or says what it measured. Three rules stop a run, because
going on would waste it; the others warn, once for each metric. `docs/doctor.md` tells every rule and why its limit is what it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from gotr1_core.config import RunConfig

Row = Mapping[str, Any]  # as metrics.jsonl has them: numbers, and None for NaN
Measure = Callable[[Sequence[Row], RunConfig], Iterator[tuple[str, str]]]
"""Gives every metric that is out of its limit in the last of some steps, and in words what was measured."""

RECENT = 5  # steps that a rule about a level looks at: one step is noise
GRACE = 20  # steps before a rule about a change speaks, and those that say what is usual

FLOAT32_DEVIATION = 1e-4  # a thousand times the rounding of the embedded world
HALF_PRECISION_DEVIATION = 2e-2  # bfloat16 gives 0.01 at guidance 5; sampling outside of autocast, a real mistake, 0.03
MISSING_SCORES = 0.05  # about one sample in a group of 16
CLIPPED = 0.3  # PPO's usual share is 0.1 to 0.2
RATIO = 100.0  # the worst of a step's thousands of tokens: four updates of a healthy run give 0.1 to 2, at four times its rate 0.0006
KL = 1.0  # per token: on average e times less likely before training; runs that learn stay below 0.3
COLLAPSED, DISSOLVED = 0.1, 4.0  # of the entropy in the beginning; healthy runs keep four fifths
CERTAIN, UNSURE = 0.05, 0.5  # nats: below the one there is nothing to collapse from, below the other nothing has dissolved
SPREAD = 1e-3  # of the mean reward; where one sample of 16 differs by 0.1, the step of a judge from 0 to 10, it is above 0.025
CONSTANT = 0.9  # of the groups; a prompt that is solved is constant, and the embedded runs end at half of them
MALFORMED = 0.25  # where a form is paid for it stays below 0.04, where it is not below 0.22
TRUNCATED = 0.25  # healthy runs have next to none
SHORTER, LONGER = 0.5, 2.0  # lengths of healthy runs stay within a tenth
FEW_REGIONS = 0.5  # every other chain has none
SPIKE = 50.0  # times the usual norm; healthy runs reach 6
DUPLICATES = 0.5  # of what a prompt's samples could repeat; healthy runs have none


@dataclass(frozen=True)
class Rule:
    """What is looked at, and what it means when it is out of its ``limit``."""

    name: str
    limit: str
    explanation: str
    hint: str
    measure: Measure
    stops: bool = False


@dataclass(frozen=True)
class Finding:
    """A metric that broke a rule, first in ``step``; 0 is before the first one."""

    rule: Rule
    metric: str
    step: int
    measured: str

    @property
    def cause(self) -> tuple[str, str]:
        """What is told once."""
        return self.rule.name, self.metric

    @property
    def message(self) -> str:
        """One line for people."""
        return f"step {self.step}, {self.rule.name}: {self.measured}. {self.rule.explanation}"


def deviation_limit(config: RunConfig) -> float:
    """Largest mean deviation, nats per token, of the scorer from the sampler that rounding explains.

    In float32 they differ by the order of sums: 1e-7 is usual, and guidance multiplies it by its scale. bfloat16 has eight bits: a cached
    decoding step and one pass over the sequence round logits of size 10 differently by a few hundredths.
    """
    if config.deviation_limit is not None:
        return config.deviation_limit
    half = config.mixed_precision != "no" or any(
        part.options.get("dtype") in ("bfloat16", "float16") for part in (config.planner, config.renderer)
    )
    return HALF_PRECISION_DEVIATION if half else FLOAT32_DEVIATION


# -- reading rows -----------------------------------------------------------------------------------------------------------


def values(rows: Sequence[Row], name: str) -> list[float]:
    """A metric over the steps that have it and know it."""
    found = [row.get(name) for row in rows]
    return [v for v in found if v is not None and not math.isnan(v)]


def named(rows: Sequence[Row], ending: str) -> list[str]:
    """The metrics of this name in the last step, of every segment and role."""
    return [key for key in rows[-1] if key == ending or key.endswith(f".{ending}")]


def recent(rows: Sequence[Row], name: str) -> list[float]:
    """The last values that are known; none until there are enough, so that no single step is judged."""
    found = values(rows[-GRACE:], name)[-RECENT:]
    return found if len(found) == RECENT else []


def level(rows: Sequence[Row], name: str) -> float:
    """Mean of the last steps, for shares and whatever else cannot be very large once; NaN until there are enough."""
    found = recent(rows, name)
    return fmean(found) if found else math.nan


def beginning(rows: Sequence[Row], name: str) -> float:
    """Mean of the first steps; NaN before there is a trend to speak of."""
    found = values(rows[:RECENT], name) if len(rows) >= GRACE else []
    return fmean(found) if found else math.nan


# -- rules ------------------------------------------------------------------------------------------------------------------


def _above(ending: str, limit: float) -> Measure:
    """A share above a limit."""

    def measure(rows: Sequence[Row], config: RunConfig) -> Iterator[tuple[str, str]]:
        del config
        for name in named(rows, ending):
            if (share := level(rows, name)) > limit:
                yield name, f"{name} {share:.3g} over {RECENT} steps (limit {limit:g})"

    return measure


def _changed(ending: str) -> Measure:
    """A length that is far from that of the first steps."""

    def measure(rows: Sequence[Row], config: RunConfig) -> Iterator[tuple[str, str]]:
        del config
        for name in named(rows, ending):
            first, last = beginning(rows, name), level(rows, name)
            if first > 0 and (last < SHORTER * first or last > LONGER * first):
                yield name, f"{name} went from {first:.3g} to {last:.3g}"

    return measure


def _deviation(rows: Sequence[Row], config: RunConfig) -> Iterator[tuple[str, str]]:
    limit = deviation_limit(config)
    for name in named(rows, "deviation"):
        found = rows[-1][name]
        if found is None or math.isnan(found):
            yield name, f"{name} is not a number"
        elif found > limit:
            yield name, f"{name} {found:.2g} nats per token (limit {limit:g})"


def _constant(rows: Sequence[Row], config: RunConfig) -> Iterator[tuple[str, str]]:
    last = rows[-config.constant_limit :]
    if len(last) == config.constant_limit and all(row.get("idle") == 1 for row in last):
        yield "idle", f"for {config.constant_limit} steps all samples of every prompt had the same reward"


def _missing(rows: Sequence[Row], config: RunConfig) -> Iterator[tuple[str, str]]:
    share = rows[-1].get("nan")
    if share is not None and share > config.nan_limit:
        names = [name.removeprefix("nan.") for name, lacking in rows[-1].items() if name.startswith("nan.") and lacking]
        yield "nan", f"{share:.0%} of the samples have no reward ({', '.join(names) or 'the total'} could not be had)"


def _missing_scores(rows: Sequence[Row], config: RunConfig) -> Iterator[tuple[str, str]]:
    del config
    for name in rows[-1]:
        if name.startswith("nan.") and (share := level(rows, name)) > MISSING_SCORES:
            yield name, f"{name} {share:.3g} over {RECENT} steps (limit {MISSING_SCORES:g})"


def _ratio(rows: Sequence[Row], config: RunConfig) -> Iterator[tuple[str, str]]:
    del config
    for name in (largest.removesuffix("_max") for largest in named(rows, "ratio_max")):
        low, high = (median(recent(rows, f"{name}_{end}") or [1.0]) for end in ("min", "max"))
        if low < 1 / RATIO or high > RATIO:
            yield name, f"{name}s from {low:.3g} to {high:.3g} over {RECENT} steps (limit {1 / RATIO:g} to {RATIO:g})"


def _kl(rows: Sequence[Row], config: RunConfig) -> Iterator[tuple[str, str]]:
    del config
    for name in named(rows, "kl"):
        found = median(recent(rows, name) or [0.0])
        if found > KL:
            yield name, f"{name} {found:.3g} nats per token over {RECENT} steps (limit {KL:g})"


def _entropy(rows: Sequence[Row], config: RunConfig) -> Iterator[tuple[str, str]]:
    del config
    for name in named(rows, "entropy"):
        first, last = beginning(rows, name), level(rows, name)
        if (first > CERTAIN and last < COLLAPSED * first) or (last > UNSURE and last > DISSOLVED * first):
            yield name, f"{name} went from {first:.3g} to {last:.3g} nats per token"


def _constant_groups(rows: Sequence[Row], config: RunConfig) -> Iterator[tuple[str, str]]:
    """One sample is no group: what it is compared with, a critic says."""
    if config.plans * config.images > 1:
        yield from _above("constant_groups", CONSTANT)(rows, config)


def _spread(rows: Sequence[Row], config: RunConfig) -> Iterator[tuple[str, str]]:
    """Of groups that do differ; those that do not have a rule of their own."""
    del config
    found, reward = level(rows, "reward_deviation"), level(rows, "reward")
    if found < SPREAD * abs(reward) and not level(rows, "constant_groups") > CONSTANT:
        yield "reward_deviation", f"reward_deviation {found:.2g} over {RECENT} steps, of a reward of {reward:.2g}"


def _regions(rows: Sequence[Row], config: RunConfig) -> Iterator[tuple[str, str]]:
    found = level(rows, "regions")
    if found < FEW_REGIONS:
        yield "regions", f"{found:.2g} regions per chain over {RECENT} steps (limit {FEW_REGIONS:g})"
    else:
        yield from _changed("regions")(rows, config)


def _gradient(rows: Sequence[Row], config: RunConfig) -> Iterator[tuple[str, str]]:
    """Mixed precision in float16 looks for its scale by gradients that are not finite, and skips their updates."""
    tries = RECENT if config.mixed_precision == "fp16" else 1
    for name in named(rows, "gradient_norm"):
        last = [row.get(name, 0.0) for row in rows[-tries:]]
        if len(last) == tries and all(norm is None or not math.isfinite(norm) for norm in last):
            yield name, f"{name} is not finite"
        known = values(rows[-GRACE - 1 : -1], name)
        norm, usual = rows[-1][name], median(known or [0.0])
        if len(known) >= RECENT and usual > 0 and norm is not None and SPIKE * usual < norm < math.inf:
            yield name, f"{name} {norm:.3g}, {norm / usual:.0f} times what is usual (limit {SPIKE:g})"


OVER = f"mean of {RECENT} steps"
TREND = f"mean of {RECENT} steps against the first {RECENT}, from step {GRACE} on"
MISSING_REWARDS = Rule(
    "missing rewards",
    f"above nan_limit, {RunConfig.model_fields['nan_limit'].default:g} if not given; any step, and the evaluation before the first",
    "A sample without a reward teaches nothing.",
    "look at the judge and at what it is asked to score, or raise nan_limit",
    _missing,
    stops=True,
)
RULES: tuple[Rule, ...] = (
    Rule(
        "deviation",
        f"deviation_limit; if not given {FLOAT32_DEVIATION:g} nats per token, {HALF_PRECISION_DEVIATION:g} in half precision; any step",
        "What is scored is not what was sampled, so the gradient is that of another policy.",
        "gotr1 check planner NAME (or renderer) finds which of both is wrong; half precision, or sampling.log_prob=conditional, "
        "may need a deviation_limit of its own",
        _deviation,
        stops=True,
    ),
    Rule(
        "constant rewards",
        f"every group constant for constant_limit steps, {RunConfig.model_fields['constant_limit'].default} if not given",
        "There was nothing to learn from.",
        "look at samples/, the reward expression and the temperature, or raise constant_limit",
        _constant,
        stops=True,
    ),
    MISSING_REWARDS,
    Rule(
        "missing scores",
        f"above {MISSING_SCORES:g}, {OVER}",
        "A judge fails on some of the samples, and groups shrink by them.",
        "look at the judge's replies, its deadline and its server",
        _missing_scores,
    ),
    Rule(
        "clipped",
        f"above {CLIPPED:g}, {OVER}",
        "Many actions teach nothing, because the clip holds their gradient back.",
        "lower optimizer.rate or updates, or widen segments.*.clip_low and clip_high",
        _above("clipped", CLIPPED),
    ),
    Rule(
        "ratio",
        f"below {1 / RATIO:g} or above {RATIO:g}, median of {RECENT} steps",
        "Within a step the policy moves far from the one that sampled.",
        "lower optimizer.rate or updates",
        _ratio,
    ),
    Rule(
        "kl",
        f"above {KL:g} nats per token, median of {RECENT} steps",
        "The policy is far from where it began, and may have forgotten what it could.",
        "raise segments.*.kl, or lower optimizer.rate",
        _kl,
    ),
    Rule(
        "entropy",
        f"below {COLLAPSED:g} times the beginning's, where that is above {CERTAIN:g} nats, "
        f"or above {DISSOLVED:g} times and {UNSURE:g} nats, {TREND}",
        "The policy collapses to one answer, or dissolves into noise.",
        "raise segments.*.entropy against collapse, segments.*.kl against both, or lower optimizer.rate",
        _entropy,
    ),
    Rule(
        "spread",
        f"below {SPREAD:g} of the mean reward, {OVER}",
        "Samples of a prompt hardly differ in reward, so noise decides which is better.",
        "look at the reward expression, raise sampling.temperature or plans",
        _spread,
    ),
    Rule(
        "constant groups",
        f"above {CONSTANT:g}, {OVER}",
        "Most prompts teach nothing, because all their samples have the same reward.",
        "choose harder or easier prompts, or constant_groups=refill",
        _constant_groups,
    ),
    Rule(
        "malformed",
        f"above {MALFORMED:g}, {OVER}",
        "Many chains are not well formed, so their boxes cannot be read.",
        "train longer in stage one (gotr1 sft), or lower sampling.temperature",
        _above("malformed", MALFORMED),
    ),
    Rule(
        "truncated",
        f"above {TRUNCATED:g}, {OVER}",
        "Many chains are cut before they end.",
        "raise sampling.max_chain_tokens, or set mask_truncated=true",
        _above("truncated", TRUNCATED),
    ),
    Rule(
        "chain length",
        f"below {SHORTER:g} or above {LONGER:g} times the beginning's, {TREND}",
        "Chains grow or shrink: the reward may pay for length.",
        "look at samples/ and at the reward expression",
        _changed("chain_tokens"),
    ),
    Rule(
        "regions",
        f"below {FEW_REGIONS:g} per chain, {OVER}; or below {SHORTER:g} or above {LONGER:g} times the beginning's, {TREND}",
        "Plans lose their boxes, or pile them up: the reward may pay for it.",
        "look at samples/ and at the reward expression; ri and spa pay for boxes that are right",
        _regions,
    ),
    Rule(
        "gradient",
        f"not finite, or above {SPIKE:g} times the median of the last {GRACE} steps; any step that has {RECENT} before it",
        "One update may undo the run.",
        "look at the step's samples, lower optimizer.clip or optimizer.rate",
        _gradient,
    ),
    Rule(
        "duplicate plans",
        f"above {DUPLICATES:g}, {OVER}",
        "Plans of a prompt repeat each other, so there is little to compare.",
        "raise sampling.temperature",
        _above("duplicates.plan", DUPLICATES),
    ),
    Rule(
        "duplicate images",
        f"above {DUPLICATES:g}, {OVER}",
        "Pictures of a prompt repeat each other, so there is little to compare.",
        "raise sampling.image_temperature",
        _above("duplicates.image", DUPLICATES),
    ),
)


def look(steps: Sequence[Row], config: RunConfig) -> list[Finding]:
    """What the rules find in the last step, given all steps so far."""
    return _found(RULES, steps, config)


def look_before(evaluation: Row, config: RunConfig) -> list[Finding]:
    """What is found in an evaluation before the first step: whether its rewards are there."""
    return _found((MISSING_REWARDS,), [evaluation], config)


def _found(rules: Sequence[Rule], rows: Sequence[Row], config: RunConfig) -> list[Finding]:
    step = int(rows[-1].get("step") or 0)
    return [Finding(rule, metric, step, measured) for rule in rules for metric, measured in rule.measure(rows, config)]


def examine(rows: Iterable[Row], config: RunConfig) -> list[Finding]:
    """The first finding of every cause over a run's rows of metrics, in order."""
    found: dict[tuple[str, str], Finding] = {}
    steps: list[Row] = []
    for row in rows:
        if "evaluation" in row:
            new = look_before(row, config) if row["step"] == 0 else []
        else:
            steps.append(row)
            new = look(steps, config)
        for finding in new:
            found.setdefault(finding.cause, finding)
    return list(found.values())
