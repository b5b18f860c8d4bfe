"""What the doctor's rules measure in a run's metrics, and where their limits are. `docs/doctor.md` says why they are there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from statistics import fmean, median
from typing import Any

from gotr1_core.config.models import RunConfig

Row = Mapping[str, Any]  # as metrics.jsonl has them: numbers, and None for NaN
Measure = Callable[[Sequence[Row], RunConfig], Iterator[tuple[str, str]]]
"""Gives every metric that is out of its limit in the last of some steps, and in words what was measured."""

RECENT = 5  # steps that a rule about a level looks at: one step is noise
GRACE = 20  # steps before a rule about a change speaks, and those that say what is usual

FLOAT32_GAP = 1e-4  # a thousand times the rounding of the embedded world
HALF_PRECISION_GAP = 2e-2  # bfloat16 gives 0.01 at guidance 5; sampling outside of autocast, a real mistake, 0.03
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
HALF = 0.5  # of the prompts: means of fewer are of other prompts than the other judge's
PARTED = 0.1  # of the range of a score, further apart than before training
DUPLICATES = 0.5  # of what a prompt's samples could repeat; healthy runs have none


def sampler_gap_limit(config: RunConfig) -> float:
    """Largest mean deviation, nats per token, of the scorer from the sampler that rounding explains.

    In float32 they differ by the order of sums: 1e-7 is usual, and guidance multiplies it by its scale. bfloat16 has eight bits: a cached
    decoding step and one pass over the sequence round logits of size 10 differently by a few hundredths.
    """
    if config.sampler_gap_limit is not None:
        return config.sampler_gap_limit
    half = config.mixed_precision != "no" or any(
        part.options.get("dtype") in ("bfloat16", "float16") for part in (config.planner, config.renderer)
    )
    return HALF_PRECISION_GAP if half else FLOAT32_GAP


# -- reading rows -----------------------------------------------------------------------------------------------------------


def known_values(rows: Sequence[Row], name: str) -> list[float]:
    """A metric over the steps that have it and know it."""
    found = [row.get(name) for row in rows]
    return [v for v in found if v is not None and not math.isnan(v)]


def named(rows: Sequence[Row], ending: str) -> list[str]:
    """The metrics of this name in the last step, of every segment and role."""
    return [key for key in rows[-1] if key == ending or key.endswith(f".{ending}")]


def recent(rows: Sequence[Row], name: str) -> list[float]:
    """The last values that are known; none until there are enough, so that no single step is judged."""
    found = known_values(rows[-GRACE:], name)[-RECENT:]
    return found if len(found) == RECENT else []


def level(rows: Sequence[Row], name: str) -> float:
    """Mean of the last steps, for shares and whatever else cannot be very large once; NaN until there are enough."""
    found = recent(rows, name)
    return fmean(found) if found else math.nan


def beginning(rows: Sequence[Row], name: str) -> float:
    """Mean of the first steps; NaN before there is a trend to speak of."""
    found = known_values(rows[:RECENT], name) if len(rows) >= GRACE else []
    return fmean(found) if found else math.nan


# -- rules ------------------------------------------------------------------------------------------------------------------


def above(ending: str, limit: float) -> Measure:
    """A share above a limit."""

    def measure(rows: Sequence[Row], config: RunConfig) -> Iterator[tuple[str, str]]:
        del config
        for name in named(rows, ending):
            if (share := level(rows, name)) > limit:
                yield name, f"{name} {share:.3g} over {RECENT} steps (limit {limit:g})"

    return measure


def changed(ending: str) -> Measure:
    """A length that is far from that of the first steps."""

    def measure(rows: Sequence[Row], config: RunConfig) -> Iterator[tuple[str, str]]:
        del config
        for name in named(rows, ending):
            first, last = beginning(rows, name), level(rows, name)
            if first > 0 and (last < SHORTER * first or last > LONGER * first):
                yield name, f"{name} went from {first:.3g} to {last:.3g}"

    return measure


def sampler_gap(rows: Sequence[Row], config: RunConfig) -> Iterator[tuple[str, str]]:
    limit = sampler_gap_limit(config)
    for name in named(rows, "sampler_gap"):
        found = rows[-1][name]
        if found is None or math.isnan(found):
            yield name, f"{name} is not a number"
        elif found > limit:
            yield name, f"{name} {found:.2g} nats per token (limit {limit:g})"


def constant(rows: Sequence[Row], config: RunConfig) -> Iterator[tuple[str, str]]:
    last = rows[-config.constant_limit :]
    if len(last) == config.constant_limit and all(row.get("idle") == 1 for row in last):
        yield "idle", f"for {config.constant_limit} steps all samples of every prompt had the same reward"


def missing(rows: Sequence[Row], config: RunConfig) -> Iterator[tuple[str, str]]:
    share = rows[-1].get("nan")
    if share is not None and share > config.nan_limit:
        names = [name.removeprefix("nan.") for name, lacking in rows[-1].items() if name.startswith("nan.") and lacking]
        yield "nan", f"{share:.0%} of the samples have no reward ({', '.join(names) or 'the total'} could not be had)"


def missing_scores(rows: Sequence[Row], config: RunConfig) -> Iterator[tuple[str, str]]:
    del config
    for name in rows[-1]:
        if name.startswith("nan.") and (share := level(rows, name)) > MISSING_SCORES:
            yield name, f"{name} {share:.3g} over {RECENT} steps (limit {MISSING_SCORES:g})"


def ratio(rows: Sequence[Row], config: RunConfig) -> Iterator[tuple[str, str]]:
    del config
    for name in (largest.removesuffix("_max") for largest in named(rows, "ratio_max")):
        low, high = (median(recent(rows, f"{name}_{end}") or [1.0]) for end in ("min", "max"))
        if low < 1 / RATIO or high > RATIO:
            yield name, f"{name}s from {low:.3g} to {high:.3g} over {RECENT} steps (limit {1 / RATIO:g} to {RATIO:g})"


def kl(rows: Sequence[Row], config: RunConfig) -> Iterator[tuple[str, str]]:
    del config
    for name in named(rows, "kl"):
        found = median(recent(rows, name) or [0.0])
        if found > KL:
            yield name, f"{name} {found:.3g} nats per token over {RECENT} steps (limit {KL:g})"


def entropy(rows: Sequence[Row], config: RunConfig) -> Iterator[tuple[str, str]]:
    del config
    for name in named(rows, "entropy"):
        first, last = beginning(rows, name), level(rows, name)
        if (first > CERTAIN and last < COLLAPSED * first) or (last > UNSURE and last > DISSOLVED * first):
            yield name, f"{name} went from {first:.3g} to {last:.3g} nats per token"


def constant_groups(rows: Sequence[Row], config: RunConfig) -> Iterator[tuple[str, str]]:
    """One sample is no group: what it is compared with, a critic says."""
    if config.plans * config.images > 1:
        yield from above("constant_groups", CONSTANT)(rows, config)


def spread(rows: Sequence[Row], config: RunConfig) -> Iterator[tuple[str, str]]:
    """Of groups that do differ; those that do not have a rule of their own."""
    del config
    found, reward = level(rows, "group_std"), level(rows, "reward")
    if found < SPREAD * abs(reward) and not level(rows, "constant_groups") > CONSTANT:
        yield "group_std", f"group_std {found:.2g} over {RECENT} steps, of a reward of {reward:.2g}"


def regions(rows: Sequence[Row], config: RunConfig) -> Iterator[tuple[str, str]]:
    found = level(rows, "regions")
    if found < FEW_REGIONS:
        yield "regions", f"{found:.2g} regions per chain over {RECENT} steps (limit {FEW_REGIONS:g})"
    else:
        yield from changed("regions")(rows, config)


def gradient(rows: Sequence[Row], config: RunConfig) -> Iterator[tuple[str, str]]:
    """Mixed precision in float16 looks for its scale by gradients that are not finite, and skips their updates."""
    tries = RECENT if config.mixed_precision == "fp16" else 1
    for name in named(rows, "gradient_norm"):
        last = [row.get(name, 0.0) for row in rows[-tries:]]
        if len(last) == tries and all(norm is None or not math.isfinite(norm) for norm in last):
            yield name, f"{name} is not finite"
        known = known_values(rows[-GRACE - 1 : -1], name)
        norm, usual = rows[-1][name], median(known or [0.0])
        if len(known) >= RECENT and usual > 0 and norm is not None and SPIKE * usual < norm < math.inf:
            yield name, f"{name} {norm:.3g}, {norm / usual:.0f} times what is usual (limit {SPIKE:g})"


def judges_part(evaluations: Sequence[Row], config: RunConfig) -> Iterator[tuple[str, str]]:
    """Judges of the same reward that agree less than they did before training: by how far one's mean has moved past the other's."""
    first, last = evaluations[0], evaluations[-1]
    judges = [judge.label for judge in config.judge]
    for name in dict.fromkeys(key.partition(".")[2] for key in last if key.partition(".")[0] in judges):
        for pair in combinations([f"{judge}.{name}" for judge in judges], 2):
            known = [[row[key] for row in (first, last) if row.get(f"nan.{key}", 0) <= HALF and known_values([row], key)] for key in pair]
            if any(len(mine) < 2 for mine in known):
                continue
            (a, b), (c, d) = known
            if abs((b - a) - (d - c)) > PARTED:
                told = ", ".join(f"{key} from {was:.3g} to {now:.3g}" for key, (was, now) in zip(pair, known, strict=True))
                yield name, f"on held-out prompts {told} (limit {PARTED:g} apart)"
