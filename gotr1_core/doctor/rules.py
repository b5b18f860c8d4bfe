"""The doctor's rules: which metrics show that a run is not healthy, what that means, and what to do.

A rule looks at the metrics of the steps so far, or of the evaluations so far. It finds nothing, or it reports what it measured. Six
rules stop a run, because more steps would be wasted. The others warn, once for each metric.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gotr1_core.config.models import RunConfig
from gotr1_core.doctor import measures
from gotr1_core.doctor.measures import Measure, Row
from gotr1_core.errors import NOT_FINITE_HINT


@dataclass(frozen=True)
class Rule:
    """What is measured, what it means if it is out of its ``limit``, and what to do. A broken rule with ``stops`` ends the run."""

    name: str
    limit: str
    explanation: str
    hint: str
    measure: Measure
    stops: bool = False


@dataclass(frozen=True)
class Finding:
    """A metric that broke a rule in ``step``; step 0 is before the first step. ``examples`` are what judges said of missing scores."""

    rule: Rule
    metric: str
    step: int
    measured: str
    examples: tuple[str, ...] = ()

    @property
    def cause(self) -> tuple[str, str]:
        """Returns rule and metric. Findings with the same cause are reported once."""
        return self.rule.name, self.metric

    @property
    def message(self) -> str:
        """Returns the finding as one line for people."""
        examples = f" For example, {', '.join(self.examples)}." if self.examples else ""
        return f"step {self.step}, {self.rule.name}: {self.measured}. {self.rule.explanation}{examples}"


OVER = f"mean of {measures.RECENT} steps"
TREND = f"mean of {measures.RECENT} steps against the first {measures.RECENT}, from step {measures.GRACE} on"
MOSTLY_NOT_FINITE = Rule(
    "mostly not finite",
    "most samples without a reward, if more than nan_limit, are not finite; any step, and the evaluation before the first",
    "The model's logits, latents or pixels are NaN or infinite, so there are no plans or pictures to score.",
    NOT_FINITE_HINT,
    measures.mostly_not_finite,
    stops=True,
)
NOT_FINITE = Rule(
    "not finite",
    "above 0; any step, and any evaluation",
    "Where logits, latents or pixels are NaN or infinite there is no plan or picture. Such samples have no reward and teach nothing.",
    NOT_FINITE_HINT,
    measures.not_finite,
)
MISSING_REWARDS = Rule(
    "missing rewards",
    f"above nan_limit, {RunConfig.model_fields['nan_limit'].default:g} if not given; any step, and the evaluation before the first",
    "A sample without a reward teaches nothing.",
    "check the judge and what it is asked to score, or raise nan_limit",
    measures.missing_rewards,
    stops=True,
)
STEPWISE: tuple[Rule, ...] = (
    Rule(
        "sampler gap",
        f"sampler_gap_limit; if not given {measures.FLOAT32_GAP:g} nats per token, "
        f"{measures.HALF_PRECISION_GAP:g} in half precision; any step",
        "Sampler and training pass disagree about log-probabilities, so the gradient is that of another policy.",
        "gotr1 check planner NAME (or renderer) finds which of the two is wrong; half precision, or sampling.log_prob=conditional, "
        "may need a larger sampler_gap_limit",
        measures.sampler_gap,
        stops=True,
    ),
    Rule(
        "log-probabilities",
        "not finite in the training pass, and updates were not skipped for it; any step",
        "The training pass does not compute what the sampler did, and what it learns from is not the reward.",
        "gotr1 check planner NAME (or renderer) looks for it; " + NOT_FINITE_HINT,
        measures.lost_log_probs,
        stops=True,
    ),
    Rule(
        "constant rewards",
        f"every group constant for constant_limit steps, {RunConfig.model_fields['constant_limit'].default} if not given",
        "Equal rewards give nothing to learn from.",
        "look at samples/, the reward expression and the temperature, or raise constant_limit",
        measures.constant_rewards,
        stops=True,
    ),
    MOSTLY_NOT_FINITE,
    NOT_FINITE,
    MISSING_REWARDS,
    Rule(
        "only skipped updates",
        f"skipped_limit updates in a row, {RunConfig.model_fields['skipped_limit'].default} if not given",
        "No gradient is finite any more, so nothing is learned.",
        NOT_FINITE_HINT,
        measures.only_skipped,
        stops=True,
    ),
    Rule(
        "skipped updates",
        f"above 0; any step, in float16 {measures.RECENT} steps in a row",
        "An update whose gradient is NaN or infinite is not applied: weights and moments stay as they were.",
        NOT_FINITE_HINT,
        measures.skipped_updates,
    ),
    Rule(
        "missing scores",
        f"above {measures.MISSING_SCORES:g}, {OVER}",
        "A judge fails on some of the samples, and these drop out of their groups.",
        "check the judge's replies, its deadline and its server",
        measures.missing_scores,
    ),
    Rule(
        "clipped",
        f"above {measures.CLIPPED:g}, {OVER}",
        "The clip removes the gradient of many actions, so they teach nothing.",
        "lower optimizer.learning_rate or updates, or widen segments.*.clip_low and clip_high",
        measures.share_above("clipped", measures.CLIPPED),
    ),
    Rule(
        "ratio",
        f"below {1 / measures.RATIO:g} or above {measures.RATIO:g}, median of {measures.RECENT} steps",
        "Within a step the policy moves far from the policy that sampled.",
        "lower optimizer.learning_rate or updates",
        measures.ratio,
    ),
    Rule(
        "kl",
        f"above {measures.KL:g} nats per token, median of {measures.RECENT} steps",
        "The policy is far from its start, and may have forgotten abilities.",
        "raise segments.*.kl, or lower optimizer.learning_rate",
        measures.kl,
    ),
    Rule(
        "entropy",
        f"below {measures.COLLAPSED:g} times the first steps' value if that is above {measures.CERTAIN:g} nats, "
        f"or above both {measures.DISSOLVED:g} times that value and {measures.UNSURE:g} nats, {TREND}",
        "The policy collapses to one answer, or dissolves into noise.",
        "raise segments.*.entropy against collapse, segments.*.kl against both, or lower optimizer.learning_rate",
        measures.entropy_change,
    ),
    Rule(
        "spread",
        f"below {measures.SPREAD:g} of the mean reward, {OVER}",
        "Samples of a prompt hardly differ in reward, so noise decides which is better.",
        "look at the reward expression, raise sampling.temperature or plans",
        measures.reward_spread,
    ),
    Rule(
        "constant groups",
        f"above {measures.CONSTANT:g}, {OVER}",
        "Most prompts teach nothing, because all their samples have the same reward.",
        "choose harder or easier prompts, or constant_groups=refill",
        measures.many_constant_groups,
    ),
    Rule(
        "malformed",
        f"above {measures.MALFORMED:g}, {OVER}",
        "Many chains are not well formed, so their boxes cannot be read.",
        "train longer in stage one (gotr1 sft), or lower sampling.temperature",
        measures.share_above("malformed", measures.MALFORMED),
    ),
    Rule(
        "truncated",
        f"above {measures.TRUNCATED:g}, {OVER}",
        "Many chains are cut before they end.",
        "raise sampling.max_chain_tokens, or set mask_truncated=true",
        measures.share_above("truncated", measures.TRUNCATED),
    ),
    Rule(
        "chain length",
        f"below {measures.SHORTER:g} or above {measures.LONGER:g} times the value of the first steps, {TREND}",
        "Chains grow or shrink: the reward may pay for length.",
        "look at samples/ and at the reward expression",
        measures.length_changed("chain_tokens"),
    ),
    Rule(
        "regions",
        f"below {measures.FEW_REGIONS:g} per chain, {OVER}; "
        f"or below {measures.SHORTER:g} or above {measures.LONGER:g} times the value of the first steps, {TREND}",
        "Plans lose boxes, or have too many: the reward may pay for it.",
        "look at samples/ and at the reward expression; ri and spa pay for boxes that are right",
        measures.regions_per_chain,
    ),
    Rule(
        "gradient",
        f"above {measures.SPIKE:g} times the median of the last {measures.GRACE} steps; any step that has {measures.RECENT} before it",
        "One update may undo the run.",
        "look at the step's samples, lower optimizer.max_grad_norm or optimizer.learning_rate",
        measures.gradient_spike,
    ),
    Rule(
        "duplicate plans",
        f"above {measures.DUPLICATES:g}, {OVER}",
        "Plans of a prompt repeat each other, so there is little to compare.",
        "raise sampling.temperature",
        measures.share_above("duplicates.plan", measures.DUPLICATES),
    ),
    Rule(
        "duplicate images",
        f"above {measures.DUPLICATES:g}, {OVER}",
        "Pictures of a prompt repeat each other, so there is little to compare.",
        "raise sampling.image_temperature",
        measures.share_above("duplicates.image", measures.DUPLICATES),
    ),
)
JUDGES_PART = Rule(
    "judges part",
    f"moved apart by more than {measures.PARTED:g} since before training; any evaluation",
    "If one judge's score rises and another judge's does not, the judge is more often at fault than the picture is better.",
    "look at samples/ of both evaluations; raise segments.*.kl, train for fewer steps, or let both judges decide: min(A.NAME, B.NAME)",
    measures.judges_part,
)
RULES = (*STEPWISE, JUDGES_PART)


def step_findings(steps: Sequence[Row], config: RunConfig) -> list[Finding]:
    """Returns what the rules find in the last step, from the metrics of all steps so far."""
    return _findings(STEPWISE, steps, config)


def evaluation_findings(evaluations: Sequence[Row], config: RunConfig) -> list[Finding]:
    """Returns what the rules find in the last of all evaluations so far: missing rewards before training, later judges that part.

    In each of them, also samples that are not finite.
    """
    if evaluations[-1]["step"] == 0:
        return _findings((MOSTLY_NOT_FINITE, NOT_FINITE, MISSING_REWARDS), evaluations[-1:], config)
    return _findings((NOT_FINITE, JUDGES_PART), evaluations, config)


def _findings(rules: Sequence[Rule], rows: Sequence[Row], config: RunConfig) -> list[Finding]:
    step = int(rows[-1].get("step") or 0)
    return [Finding(rule, metric, step, measured) for rule in rules for metric, measured in rule.measure(rows, config)]


def add_examples(findings: Iterable[Finding], words: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Adds to each finding about missing scores what the judges said of some of them: ``unreadable: …``.

    Args:
        findings: what rules found.
        words: of some samples, what judges said by the score's name, as in ``samples.jsonl``.
    """
    return [replace(f, examples=measures.missing_examples(f.metric, words)) if f.metric.startswith("nan") else f for f in findings]


def examine_run(rows: Iterable[Row], config: RunConfig) -> list[Finding]:
    """Returns the first finding of every cause in all rows of a run's metrics, in order."""
    first_findings: dict[tuple[str, str], Finding] = {}
    steps: list[Row] = []
    evaluations: list[Row] = []
    for row in rows:
        if "evaluation" in row:
            evaluations.append(row)
            new = evaluation_findings(evaluations, config)
        else:
            steps.append(row)
            new = step_findings(steps, config)
        for finding in new:
            first_findings.setdefault(finding.cause, finding)
    return list(first_findings.values())
