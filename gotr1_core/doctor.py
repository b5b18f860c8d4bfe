"""The numbers that tell a healthy run from a sick one, and what they mean.

Every rule looks at the metrics of the steps so far and either finds nothing or says what it measured. Three rules stop a run, because
going on would waste it; the others warn, once each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gotr1_core.config import RunConfig

Row = Mapping[str, float | None]
RECENT = 5  # steps that a rule about a level looks at: one step is noise
GRACE = 20  # steps before a rule about a trend speaks
HALF_PRECISION_DEVIATION = 2e-2
FLOAT32_DEVIATION = 1e-4


@dataclass(frozen=True)
class Rule:
    """What is looked at, and what it means when it is out of its limit. ``measure`` returns what it found, or None."""

    name: str
    explanation: str
    hint: str
    measure: Callable[[Sequence[Row], RunConfig], str | None]
    stops: bool = False


@dataclass(frozen=True)
class Finding:
    """A rule that was broken, first in ``step``."""

    rule: Rule
    step: int
    measured: str

    @property
    def message(self) -> str:
        """One line for people."""
        return f"step {self.step}, {self.rule.name}: {self.measured}. {self.rule.explanation}"


def deviation_limit(config: RunConfig) -> float:
    """Largest mean deviation, nats per token, of the scorer from the sampler that rounding explains.

    In float32 they differ by the order of sums: 1e-7 is usual, guidance multiplies it by its scale. bfloat16 has eight bits: a cached
    decoding step and one pass over the sequence round logits of size 10 differently by a few hundredths.
    """
    if config.deviation_limit is not None:
        return config.deviation_limit
    half = config.mixed_precision != "no" or any(
        part.options.get("dtype") in ("bfloat16", "float16") for part in (config.planner, config.renderer)
    )
    return HALF_PRECISION_DEVIATION if half else FLOAT32_DEVIATION


def values(rows: Sequence[Row], name: str) -> list[float]:
    """A metric over the steps that have it and know it."""
    found = [row.get(name) for row in rows]
    return [v for v in found if v is not None and not math.isnan(v)]


def named(rows: Sequence[Row], ending: str) -> list[str]:
    """The metrics of this name, of every segment, role or reward."""
    return sorted({key for row in rows[-RECENT:] for key in row if key == ending or key.endswith(f".{ending}")})


def mean(found: Sequence[float]) -> float:
    return sum(found) / len(found) if found else math.nan


def recent(rows: Sequence[Row], name: str) -> float:
    """Mean over the last steps; NaN until there are enough."""
    return mean(values(rows[-RECENT:], name)) if len(rows) >= RECENT else math.nan


def _above(ending: str, limit: float) -> Callable[[Sequence[Row], RunConfig], str | None]:
    """A level of the last steps above a limit."""

    def measure(rows: Sequence[Row], config: RunConfig) -> str | None:
        del config
        high = {name: level for name in named(rows, ending) if (level := recent(rows, name)) > limit}
        return ", ".join(f"{name} {level:.3g} over {RECENT} steps (limit {limit:g})" for name, level in high.items()) or None

    return measure


def _changed(ending: str, low: float, high: float) -> Callable[[Sequence[Row], RunConfig], str | None]:
    """A level of the last steps that is far from that of the first."""

    def measure(rows: Sequence[Row], config: RunConfig) -> str | None:
        del config
        if len(rows) < GRACE:
            return None
        for name in named(rows, ending):
            first, last = mean(values(rows[:RECENT], name)), recent(rows, name)
            if first > 0 and not low * first <= last <= high * first:
                return f"{name} went from {first:.3g} to {last:.3g}"
        return None

    return measure


def _deviation(rows: Sequence[Row], config: RunConfig) -> str | None:
    limit = deviation_limit(config)
    high = {name: v for name in named(rows[-1:], "deviation") if (v := rows[-1].get(name)) is not None and v > limit}
    return ", ".join(f"{name} {v:.2g} nats per token (limit {limit:g})" for name, v in high.items()) or None


def _constant(rows: Sequence[Row], config: RunConfig) -> str | None:
    last = rows[-config.constant_limit :]
    if len(last) < config.constant_limit or any(row.get("idle") != 1 for row in last):
        return None
    return f"for {config.constant_limit} steps all samples of every prompt had the same reward"


def _missing(rows: Sequence[Row], config: RunConfig) -> str | None:
    share = rows[-1].get("nan")
    if share is None or share <= config.nan_limit:
        return None
    names = [name.removeprefix("nan.") for name in rows[-1] if name.startswith("nan.") and rows[-1][name]]
    return f"{share:.0%} of the samples have no reward ({', '.join(names) or 'the total'} could not be had)"


def _missing_scores(rows: Sequence[Row], config: RunConfig) -> str | None:
    del config
    high = {name: recent(rows, name) for row in rows[-1:] for name in row if name.startswith("nan.")}
    return ", ".join(f"{name.removeprefix('nan.')} {share:.0%}" for name, share in high.items() if share > 0.05) or None


def _ratio(rows: Sequence[Row], config: RunConfig) -> str | None:
    del config
    for ending, low, high in (("ratio_max", 0.0, 10.0), ("ratio_min", 0.1, math.inf)):
        for name in named(rows, ending):
            level = recent(rows, name)
            if level < low or level > high:
                return f"{name} {level:.3g} over {RECENT} steps"
    return None


def _gradient(rows: Sequence[Row], config: RunConfig) -> str | None:
    del config
    for name in named(rows[-1:], "gradient_norm"):
        norm = rows[-1][name]
        if norm is None or not math.isfinite(norm):
            return f"{name} is not finite"
        usual = mean(values(rows[:-1], name)[-GRACE:])
        if len(rows) > GRACE and usual > 0 and norm > 50 * usual:
            return f"{name} {norm:.3g}, {norm / usual:.0f} times what is usual"
    return None


def _entropy(rows: Sequence[Row], config: RunConfig) -> str | None:
    """Far from where it began; below 0.05 nats a policy is certain, and twice nothing is nothing."""
    del config
    if len(rows) < GRACE:
        return None
    for name in named(rows, "entropy"):
        first, last = mean(values(rows[:RECENT], name)), recent(rows, name)
        if (first > 0.05 and last < 0.1 * first) or last > max(0.5, 4 * first):
            return f"{name} went from {first:.3g} to {last:.3g} nats"
    return None


def _no_spread(rows: Sequence[Row], config: RunConfig) -> str | None:
    del config
    level = recent(rows, "reward_deviation")
    return f"reward_deviation {level:.2g} over {RECENT} steps" if level < 1e-3 else None


def _no_regions(rows: Sequence[Row], config: RunConfig) -> str | None:
    del config
    level = recent(rows, "regions")
    return f"{level:.2f} regions per chain" if level < 0.5 else None


RULES: tuple[Rule, ...] = (
    Rule(
        "deviation",
        "What is scored is not what was sampled, so the gradient is that of another policy.",
        "gotr1 check KIND NAME finds which of both is wrong; in half precision try mixed_precision=no, or set deviation_limit",
        _deviation,
        stops=True,
    ),
    Rule(
        "constant rewards",
        "There was nothing to learn from.",
        "look at samples/, the reward expression and the temperature, or raise constant_limit",
        _constant,
        stops=True,
    ),
    Rule(
        "missing rewards",
        "A sample without a reward teaches nothing.",
        "look at the judge and at what it is asked to score, or raise nan_limit",
        _missing,
        stops=True,
    ),
    Rule(
        "missing scores",
        "A judge fails on some of the samples, and groups shrink by them.",
        "look at the judge's replies",
        _missing_scores,
    ),
    Rule(
        "clipped",
        "Most of the gradient is held back by the clip.",
        "lower optimizer.rate or updates, or widen the clip",
        _above("clipped", 0.3),
    ),
    Rule(
        "ratio",
        "The policy has moved far from the one that sampled.",
        "lower optimizer.rate or updates",
        _ratio,
    ),
    Rule(
        "kl",
        "The policy is far from where it began.",
        "raise segments.*.kl, or lower optimizer.rate",
        _above("kl", 1.0),
    ),
    Rule(
        "entropy",
        "The policy collapses, or dissolves.",
        "raise segments.*.entropy or segments.*.kl, or lower optimizer.rate",
        _entropy,
    ),
    Rule(
        "spread",
        "Samples of a prompt hardly differ in reward.",
        "look at the reward expression, raise the temperature or plans",
        _no_spread,
    ),
    Rule(
        "constant groups",
        "Most prompts teach nothing.",
        "choose harder or easier prompts, or constant_groups=refill",
        _above("constant_groups", 0.9),
    ),
    Rule(
        "malformed",
        "Many chains are not well formed.",
        "more of stage one (gotr1 sft), or a lower temperature",
        _above("malformed", 0.25),
    ),
    Rule(
        "truncated",
        "Many chains are cut.",
        "raise sampling.max_chain_tokens",
        _above("truncated", 0.25),
    ),
    Rule(
        "chain length",
        "Chains grow or shrink: the reward may pay for length.",
        "look at samples/",
        _changed("chain_tokens", 0.5, 2.0),
    ),
    Rule(
        "regions",
        "Most plans have no boxes.",
        "look at samples/; a reward with ri or spa pays for boxes",
        _no_regions,
    ),
    Rule(
        "regions changed",
        "Plans say ever more, or ever less.",
        "look at samples/; the reward may pay for it",
        _changed("regions", 0.5, 2.0),
    ),
    Rule(
        "gradient",
        "One update may undo the run.",
        "look at the step's samples, lower optimizer.clip or optimizer.rate",
        _gradient,
    ),
    Rule(
        "duplicate plans",
        "The plans of a prompt are nearly all the same, so there is little to compare.",
        "raise sampling.temperature",
        _above("duplicates.plan", 0.9),
    ),
    Rule(
        "duplicate images",
        "The pictures of a plan are nearly all the same, so there is little to compare.",
        "raise sampling.image_temperature",
        _above("duplicates.image", 0.9),
    ),
)


def look(rows: Sequence[Row], config: RunConfig) -> list[Finding]:
    """What the rules find in the last step, given all steps so far."""
    if not rows:
        return []
    found = []
    for rule in RULES:
        measured = rule.measure(rows, config)
        if measured:
            found.append(Finding(rule, int(rows[-1].get("step") or len(rows)), measured))
    return found


def examine(rows: Sequence[Row], config: RunConfig) -> list[Finding]:
    """Every rule's first finding over a whole run, in order."""
    found: dict[str, Finding] = {}
    for end in range(1, len(rows) + 1):
        for finding in look(rows[:end], config):
            found.setdefault(finding.rule.name, finding)
    return list(found.values())
