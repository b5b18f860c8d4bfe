"""The doctor: the limit of every rule, that it finds every sabotaged run, and what the command prints about runs on disk."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from gotr1_core.chain import parse
from gotr1_core.cli.main import call
from gotr1_core.components.build import build
from gotr1_core.components.prompts import prompts_of
from gotr1_core.config.models import RunConfig, dump, validate
from gotr1_core.doctor.measures import Row
from gotr1_core.doctor.rules import RULES, Finding, examine_run
from gotr1_core.errors import Gotr1Error
from gotr1_core.judges import Judges
from gotr1_core.loop import Trainer
from gotr1_core.plugins import Registry
from gotr1_core.reward import Expression
from gotr1_core.rollout import Parts
from gotr1_core.runs import start
from gotr1_core.runs.checkpoint import complete_checkpoints, find_damage, read_state
from gotr1_core.runs.recorder import Run
from gotr1_core.samples import PLAN, Prompt, Rollout, Sample, Sampling, SegmentName

Make = Callable[..., RunConfig]
Examined = Callable[..., list[Finding]]
Sabotage = Callable[[Parts], Parts | None]
Refused = Callable[..., tuple[str, str]]
Captured = pytest.CaptureFixture[str]

# As the embedded world has them; all segments are alike but for their names.
SEGMENT = {"sampler_gap": 1e-7, "ratio": 1.0, "ratio_min": 0.8, "ratio_max": 1.2, "clipped": 0.05, "entropy": 0.4, "kl": 0.05}
HEALTHY: Row = {
    **{"seconds": 1.0, "reward": 0.7, "group_std": 0.2, "constant_groups": 0.3, "idle": 0.0, "nan": 0.0, "nan.pi": 0.0},
    **{"malformed": 0.02, "truncated": 0.0, "chain_tokens": 36.0, "regions": 2.3, "duplicates.plan": 0.0, "duplicates.image": 0.0},
    **{f"{segment}.{name}": value for segment in ("plan", "image") for name, value in SEGMENT.items()},
    "gradient_norm": 0.1,
}


def config(**changed: Any) -> RunConfig:
    return validate(RunConfig, {"planner": "x", "renderer": "x", "judge": "x", **changed})


def rows(count: int, **changed: float | None) -> list[Row]:
    """Metrics of steps of a healthy run, with changes. In their names a double underscore stands for a dot."""
    return [{"step": step + 1, **HEALTHY, **{name.replace("__", "."): value for name, value in changed.items()}} for step in range(count)]


def causes(steps: Sequence[Row], **changed: Any) -> list[tuple[str, str, int]]:
    numbered = [{**row, "step": number} for number, row in enumerate(steps, 1)]
    return [(*finding.cause, finding.step) for finding in examine_run(numbered, config(**changed))]


FINE = {"outcome": "finished", "error": "", "hint": "", "findings": []}
"""What the command tells of a run that ended well, beside its steps."""

# -- where the limits are ---------------------------------------------------------------------------------------------------


def test_a_healthy_run_has_no_findings() -> None:
    assert causes(rows(60)) == []
    assert examine_run([], config()) == []


@pytest.mark.parametrize(
    ("rule", "metric", "within", "beyond", "step"),
    [
        ("sampler gap", "plan.sampler_gap", 1e-4, 1.01e-4, 1),
        ("missing rewards", "nan", 0.5, 0.51, 1),
        ("missing scores", "nan.pi", 0.05, 0.051, 5),
        ("clipped", "image.clipped", 0.3, 0.31, 5),
        ("kl", "plan.kl", 1.0, 1.01, 5),
        ("spread", "group_std", 7.1e-4, 6.9e-4, 5),
        ("constant groups", "constant_groups", 0.9, 0.91, 5),
        ("malformed", "malformed", 0.25, 0.26, 5),
        ("truncated", "truncated", 0.25, 0.26, 5),
        ("regions", "regions", 0.5, 0.49, 5),
        ("duplicate plans", "duplicates.plan", 0.5, 0.51, 5),
        ("duplicate images", "duplicates.image", 0.5, 0.51, 5),
    ],
)
def test_limits_of_levels(rule: str, metric: str, within: float, beyond: float, step: int) -> None:
    assert causes([{**HEALTHY, metric: within}] * 30) == []
    assert causes([{**HEALTHY, metric: beyond}] * 30) == [(rule, metric, step)]


@pytest.mark.parametrize(("end", "within", "beyond"), [("ratio_max", 100.0, 101.0), ("ratio_min", 0.01, 0.0099)])
def test_limits_of_ratios(end: str, within: float, beyond: float) -> None:
    assert causes([{**HEALTHY, f"plan.{end}": within}] * 30) == []
    assert causes([{**HEALTHY, f"plan.{end}": beyond}] * 30) == [("ratio", "plan.ratio", 5)]


@pytest.mark.parametrize(
    ("rule", "metric", "before", "within", "beyond"),
    [
        ("entropy", "plan.entropy", 0.4, 0.041, 0.039),
        ("entropy", "plan.entropy", 0.4, 1.59, 1.61),
        ("entropy", "plan.entropy", 0.01, 0.49, 0.51),  # four times next to nothing is still little
        ("chain length", "chain_tokens", 36.0, 18.1, 17.9),
        ("chain length", "chain_tokens", 36.0, 71.9, 72.1),
        ("regions", "regions", 2.0, 1.01, 0.99),
        ("regions", "regions", 2.0, 3.99, 4.01),
    ],
)
def test_limits_of_changes(rule: str, metric: str, before: float, within: float, beyond: float) -> None:
    """A change counts when all of the last five steps have the new level, and not before step twenty."""
    begun = [{**HEALTHY, metric: before}] * 18
    assert causes([*begun, *[{**HEALTHY, metric: within}] * 12]) == []
    assert causes([*begun, *[{**HEALTHY, metric: beyond}] * 12]) == [(rule, metric, 23)]
    assert causes([*begun[:6], *[{**HEALTHY, metric: beyond}] * 13]) == []
    assert causes([*begun[:6], *[{**HEALTHY, metric: beyond}] * 14]) == [(rule, metric, 20)]


def test_nothing_collapses_from_nothing() -> None:
    """The miniature's pictures have almost no entropy from the beginning."""
    assert causes([{**HEALTHY, "image.entropy": 0.04}] * 10 + [{**HEALTHY, "image.entropy": 1e-5}] * 20) == []


@pytest.mark.parametrize(
    ("metric", "worst"),
    [("plan.clipped", 1.0), ("plan.ratio_max", 1e6), ("plan.ratio_min", 0.0), ("plan.kl", 1e6), ("plan.entropy", 0.0), ("malformed", 1.0)],
)
def test_one_bad_step_is_noise(metric: str, worst: float) -> None:
    assert causes([*rows(22), {**HEALTHY, metric: worst}, *rows(20)]) == []


def test_limits_of_gradients() -> None:
    assert causes([*rows(20), {**HEALTHY, "gradient_norm": 4.9}]) == []
    assert causes([*rows(20), {**HEALTHY, "gradient_norm": 5.1}]) == [("gradient", "gradient_norm", 21)]
    assert causes([*rows(5), {**HEALTHY, "gradient_norm": 5.1}]) == [("gradient", "gradient_norm", 6)]
    assert causes([*rows(4), {**HEALTHY, "gradient_norm": 5.1}]) == []  # nothing is usual yet


LOST = {**HEALTHY, "gradient_norm": None, "skipped_updates": 1.0}


def test_a_skipped_update_is_said_once() -> None:
    assert causes([*rows(3), LOST, *rows(20), LOST]) == [("skipped updates", "skipped_updates", 4)]
    planner = {**HEALTHY, "planner.gradient_norm": None, "planner.skipped_updates": 2.0}
    assert causes([planner], updates=4) == [("skipped updates", "planner.skipped_updates", 1)]


def test_skipped_updates_in_a_row_stop_a_run() -> None:
    def steps(rows: Sequence[Row], **changed: Any) -> list[int]:
        return [step for rule, _, step in causes(rows, **changed) if rule == "only skipped updates"]

    assert steps([LOST] * 12) == [10]
    assert steps([LOST] * 3 + rows(1) + [LOST] * 4, skipped_limit=4) == [8]
    assert steps([LOST] * 3 + rows(1) + [LOST] * 3, skipped_limit=4) == []
    idle = {name: value for name, value in HEALTHY.items() if name != "gradient_norm"}  # nothing to learn from, so no update
    assert steps([LOST, LOST, idle, LOST], skipped_limit=3) == [4]
    some, all_of_them = ({**LOST, "skipped_updates": float(count)} for count in (3, 4))
    assert steps([all_of_them, some, all_of_them], skipped_limit=8, updates=4) == []
    assert steps([some, all_of_them, all_of_them], skipped_limit=8, updates=4) == [3]


def test_float16_may_look_for_its_scale() -> None:
    assert causes([LOST] * 4 + rows(3), mixed_precision="fp16") == []
    assert causes([LOST] * 5, mixed_precision="fp16") == [("skipped updates", "skipped_updates", 5)]


@pytest.mark.parametrize(
    ("settings", "limit"),
    [
        ({}, 1e-4),
        ({"mixed_precision": "bf16"}, 2e-2),
        ({"planner": {"name": "x", "dtype": "bfloat16"}}, 2e-2),
        ({"renderer": {"name": "x", "dtype": "float16"}}, 2e-2),
        ({"mixed_precision": "bf16", "sampler_gap_limit": 0.5}, 0.5),
    ],
)
def test_the_limit_of_the_sampler_gap_depends_on_the_precision(settings: Any, limit: float) -> None:
    assert causes([{**HEALTHY, "plan.sampler_gap": 0.99 * limit}], **settings) == []
    assert causes([{**HEALTHY, "plan.sampler_gap": 1.01 * limit}], **settings) == [("sampler gap", "plan.sampler_gap", 1)]


@pytest.mark.parametrize("lost", [None, math.nan, math.inf])
def test_log_probabilities_that_are_not_finite_are_told_as_such(lost: float | None) -> None:
    """They are not a disagreement of sampler and training pass. Where the update was skipped for them, that rule tells of it."""
    row = {**HEALTHY, "image.sampler_gap": lost}
    assert causes([row]) == [("log-probabilities", "image.sampler_gap", 1)]
    [found] = examine_run([{**row, "step": 1}], config())
    assert found.rule.stops
    assert found.measured == "log-probabilities of the image are NaN or infinite in the training pass, though the sampler's are finite"
    assert causes([{**row, "skipped_updates": 1.0}]) == [("skipped updates", "skipped_updates", 1)]
    [found] = examine_run([{**row, "skipped_updates": 1.0, "step": 1}], config())
    assert found.measured == "skipped_updates 1 of 1: log-probabilities of the training pass and the gradient are not finite"
    both = {**HEALTHY, "planner.plan.sampler_gap": lost, "planner.skipped_updates": 1.0, "renderer.image.sampler_gap": lost}
    assert causes([both]) == [
        ("log-probabilities", "renderer.image.sampler_gap", 1),
        ("skipped updates", "planner.skipped_updates", 1),
    ]


def test_constant_rewards_count_steps_in_a_row() -> None:
    idle = {**HEALTHY, "idle": 1.0}
    assert causes([idle, idle, HEALTHY, idle, idle], constant_limit=3) == []
    assert causes([HEALTHY, idle, idle, idle], constant_limit=3) == [("constant rewards", "idle", 4)]
    # Of two processes one has a difference.
    assert causes([{**HEALTHY, "idle": 0.5}] * 5, constant_limit=3) == []


def test_groups_without_a_difference_are_not_reported_twice() -> None:
    constant = {**HEALTHY, "constant_groups": 1.0, "group_std": 0.0}
    assert causes([constant] * 9) == [("constant groups", "constant_groups", 5)]


def test_a_group_of_one_sample_is_not_a_constant_group() -> None:
    """PPO allows groups of one sample."""
    assert causes([{**HEALTHY, "constant_groups": 1.0}] * 5, plans=1) == []


def test_steps_that_lack_a_number_do_not_count() -> None:
    """An idle step has no update to measure, and runs of older versions lack some metrics altogether."""
    idle = {name: value for name, value in HEALTHY.items() if not name.startswith(("plan.", "image.", "gradient"))}
    high = {**HEALTHY, "plan.clipped": 0.9}
    assert causes([high, idle, high, idle, high, idle, high]) == []
    assert causes([high, idle, high, idle, high, idle, high, idle, high]) == [("clipped", "plan.clipped", 9)]
    assert causes([{"reward": 0.5, "seconds": 1.0}] * 30) == []


def test_every_metric_is_reported_once_and_under_its_own_name() -> None:
    sick = {**HEALTHY, "planner.plan.sampler_gap": 1.0, "renderer.image.sampler_gap": 2.0, "renderer.image.clipped": 1.0}
    found = [
        ("sampler gap", "planner.plan.sampler_gap", 1),
        ("sampler gap", "renderer.image.sampler_gap", 1),
        ("clipped", "renderer.image.clipped", 5),
    ]
    assert causes([sick] * 30) == found


def test_an_evaluation_before_the_first_step_may_stop_a_run_too() -> None:
    first = {"step": 0, "evaluation": "before", "prompts": 4, "nan": 0.75, "nan.pi": 0.75}
    [finding] = examine_run([first, *rows(5)], config())
    assert (*finding.cause, finding.step) == ("missing rewards", "nan", 0)
    assert finding.measured == "75% of the samples have no reward (missing: pi)"
    assert examine_run([{**first, "nan": 0.5}, *rows(5), {**first, "step": 5}], config()) == []


def test_numbers_that_are_not_finite() -> None:
    """They are reported once for plans and once for pictures. If most samples that lack a reward lack it because of them, the run stops."""
    some = {**HEALTHY, "nan": 0.25, "not_finite.image": 0.125, "not_finite.plan": 0.125}
    assert causes([some] * 3) == [("not finite", "not_finite.plan", 1), ("not finite", "not_finite.image", 1)]
    most = {**HEALTHY, "nan": 0.75, "not_finite.image": 0.5}
    assert causes([most] * 3) == [("mostly not finite", "nan", 1), ("not finite", "not_finite.image", 1)]
    few = {**HEALTHY, "nan": 0.75, "not_finite.image": 0.25}
    assert causes([few] * 2) == [("not finite", "not_finite.image", 1), ("missing rewards", "nan", 1)]
    first = {"step": 0, "evaluation": "before", "prompts": 4, "nan": 0.75, "not_finite.image": 0.75}
    [stopping, warning] = examine_run([first, *rows(5)], config())
    assert (stopping.rule.name, stopping.rule.stops, warning.rule.name) == ("mostly not finite", True, "not finite")
    assert stopping.measured == "75% of the samples have no reward: 0% have a plan and 75% a picture that is not finite"
    assert "bfloat16" in stopping.rule.hint
    healthy = {**first, "nan": 0.0, "not_finite.image": 0.0}
    assert [(f.rule.name, f.step) for f in examine_run([healthy, *rows(5), {**first, "step": 5}], config())] == [("not finite", 5)]


def evaluations(*rows: Mapping[str, float | None]) -> list[Row]:
    """Evaluations before training, during it, and after it."""
    names = ["before", *["held-out"] * (len(rows) - 2), "after"]
    return [{"step": 20 * i, "evaluation": name, "nan": 0.0, **row} for i, (name, row) in enumerate(zip(names, rows, strict=True))]


@pytest.mark.parametrize(
    ("now", "found"),
    [
        ({"a.pi": 0.89, "b.pi": 0.6}, []),
        ({"a.pi": 0.91, "b.pi": 0.6}, ["pi"]),
        ({"a.pi": 0.91, "b.pi": 0.7}, []),  # both like it better
        ({"a.pi": 0.85, "b.pi": 0.54}, ["pi"]),
        ({"a.pi": 0.4, "b.pi": 0.6}, ["pi"]),  # the other way round
        ({"a.pi": None, "b.pi": 0.1}, []),
        ({"a.pi": 0.8, "b.pi": 0.6, "c.pi": 0.6, "a.ri": 0.9}, []),  # c is no judge of this run
        ({"a.pi": 0.8, "b.pi": 0.6, "a.spa": 0.9, "b.spa": 0.3, "spa": 0.6}, ["spa"]),
        ({"a.pi": 0.4, "b.pi": 0.6, "nan.a.pi": 0.6}, []),  # of most prompts it is not known
        ({"a.pi": 0.4, "b.pi": 0.6, "nan.a.pi": 0.4}, ["pi"]),
    ],
)
def test_judges_that_part(now: Mapping[str, float | None], found: list[str]) -> None:
    """A difference between judges before training does not count. What counts is how far one moved past the other: 0.1 at most."""
    before = {"a.pi": 0.8, "b.pi": 0.6, "a.ri": 0.5, "a.spa": 0.5, "b.spa": 0.5}
    judges = config(judge=["a", "b"])
    assert [f.metric for f in examine_run(evaluations(before, now), judges)] == found
    [*told] = examine_run(evaluations(before, before, now, now), judges)
    assert [(f.rule.name, f.metric, f.step) for f in told] == [("judges part", name, 40) for name in found]  # and told once
    assert examine_run(evaluations(before, now), config(judge=["a"])) == []
    assert examine_run(evaluations(now, now), judges) == []


def test_judges_that_part_are_reported_during_the_run(tmp_path: Path, capsys: Captured) -> None:
    """One warning at the evaluation. `gotr1 doctor` reports it too, for the folder."""
    settings = config(judge=["a", "b"])
    (tmp_path / "config.yaml").write_text(dump(settings))
    run = Run(tmp_path, settings, Registry().manager)
    for step, name, high in ((0, "before", 0.6), (20, "held-out", 0.9), (40, "after", 0.9)):
        run.evaluated(name, step, [Sample(Prompt("a"), parse("a"), None, scores={"a.pi": high, "b.pi": 0.5}, reward=high)])
    run.records.close()
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "warning: step 20, judges part: on held-out prompts a.pi from 0.6 to 0.9, b.pi from 0.5 to 0.5 (limit 0.1 apart)"
    )
    assert call(["doctor", str(tmp_path)]) == 1
    assert "judges part" in capsys.readouterr().out


def test_six_rules_stop_a_run() -> None:
    stopping = {"sampler gap", "log-probabilities", "constant rewards", "mostly not finite", "missing rewards", "only skipped updates"}
    assert {rule.name for rule in RULES if rule.stops} == stopping
    assert len({rule.name for rule in RULES}) == len(RULES)


# -- what the page says -----------------------------------------------------------------------------------------------------


PAGE = (Path(__file__).parent.parent / "docs" / "doctor.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^### (.+?)\n(.*?)(?=^#{1,3} |\Z)", PAGE, re.M | re.S))


def test_the_page_has_every_rule_and_no_other() -> None:
    assert list(SECTIONS) == [rule.name for rule in RULES]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_the_page_tells_a_rule_as_it_is(rule: Any) -> None:
    told = SECTIONS[rule.name].replace("`", "")
    assert told.strip().startswith(rule.explanation)
    assert f"- Limit: {rule.limit}.{' **Stops the run.**' if rule.stops else ''}\n" in told
    assert f"- What to do: {rule.hint}.\n" in told
    assert re.search(r"^- Why there: \S", told, re.M)


def test_the_page_names_what_the_rules_read() -> None:
    """A rule judges every number of a healthy run's row, or reads it to judge another. Exceptions are times and numbers for the reader
    only."""
    read = {
        name for told in SECTIONS.values() for line in re.findall(r"^- Reads: (.+)$", told, re.M) for name in re.findall(r"`(.+?)`", line)
    }
    known = {re.sub(r"^(plan|image)\.", "S.", re.sub(r"^nan\..+", "nan.NAME", name)) for name in HEALTHY}
    assert read == known - {"seconds", "S.ratio"} | {"JUDGE.NAME", "not_finite.S", "skipped_updates"}


# -- saboteurs --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def recorded(registry: Registry, make: Make) -> Callable[..., list[Row]]:
    """Builds the tiny Janus's parts, calls a saboteur on them (and another before every step), and returns the metrics of some steps."""

    def run(sabotage: Sabotage, steps: int = 1, every: Callable[[Parts, int], None] | None = None, **changed: Any) -> list[Row]:
        settings = make(**{"groups": 2, "segments": {"plan": {"kl": 0.01}}, **changed})
        torch.manual_seed(0)
        parts = build(registry, settings)
        parts = sabotage(parts) or parts
        trainer = Trainer(settings, parts, prompts_of(registry, settings.prompts)[0], Accelerator(cpu=True))
        found = []
        for step in range(steps):
            if every:
                every(parts, step)
            found.append({"step": step + 1, **trainer.step(step)[0]})
        return found

    return run


@pytest.fixture
def examined(recorded: Callable[..., list[Row]]) -> Examined:
    """The doctor's findings in such metrics."""
    return lambda *given, constant_limit=20, skipped_limit=10, **changed: examine_run(
        recorded(*given, **changed), config(constant_limit=constant_limit, skipped_limit=skipped_limit)
    )


def named(findings: Sequence[Finding], *rules: str) -> dict[str, str]:
    """The findings of some rules, as metric to rule."""
    return {finding.metric: finding.rule.name for finding in findings if finding.rule.name in rules}


def honest(parts: Parts) -> None:
    """Changes nothing."""


def colder(parts: Parts) -> None:
    """Samples at temperature 0.7, and reports the temperature of the settings."""
    policy: Any = parts.planner
    plan, render = policy.plan, policy.render

    def cold(draw: Callable[..., Rollout]) -> Callable[..., Rollout]:
        def drawn(*given: Any, sampling: Sampling, **more: Any) -> Rollout:
            return replace(draw(*given, sampling=replace(sampling, temperature=0.7, image_temperature=0.7), **more), sampling=sampling)

        return drawn

    policy.plan, policy.render = cold(plan), cold(render)


def dropping(parts: Parts) -> None:
    """Leaves dropout on."""
    policy: Any = parts.planner
    language = policy.module.model.model.language_model
    for layer in language.layers:
        layer.self_attn.attention_dropout = 0.1
    language.train()
    language.train = lambda mode=True: language  # which eval() calls as well


def one_sided(parts: Parts) -> None:
    """Computes log-probabilities of pictures from the condition alone, even if they were sampled with guidance."""
    policy: Any = parts.planner
    policy.module._guided = lambda image: False


def blind(parts: Parts) -> None:
    """Makes every log-probability of the scorer NaN."""
    policy: Any = parts.planner
    policy.module.register_forward_hook(
        lambda module, given, scored: {n: replace(s, log_prob=s.log_prob * math.nan) for n, s in scored.items()}
    )


BOTH = {"plan.sampler_gap": "sampler gap", "image.sampler_gap": "sampler gap"}


@pytest.mark.parametrize(
    ("sabotage", "found"),
    [(honest, {}), (colder, BOTH), (dropping, BOTH), (one_sided, {"image.sampler_gap": "sampler gap"}), (blind, {})],
)
def test_a_scorer_unlike_its_sampler_is_found(examined: Examined, sabotage: Any, found: dict[str, str]) -> None:
    assert named(examined(sabotage), "sampler gap") == found


def test_a_scorer_without_numbers_is_found(examined: Examined) -> None:
    """The gradient is not finite either, so the update is skipped, and the rule about skipped updates tells of both."""
    [skipped] = [finding for finding in examined(blind) if finding.rule.name == "skipped updates"]
    assert skipped.measured.endswith("log-probabilities of the training pass and the gradient are not finite")


def test_which_of_two_policies_is_wrong(examined: Examined, tiny_janus: Path) -> None:
    other = {"name": "janus", "model": str(tiny_janus), "instruction": "{prompt}", "attention": "sdpa"}
    found = examined(lambda parts: one_sided(replace(parts, planner=parts.renderer)), renderer=other)
    assert named(found, "sampler gap") == {"renderer.image.sampler_gap": "sampler gap"}


class Judge:
    """Gives the n-th sample that it sees the score ``value(n)``."""

    rewards: Mapping[str, SegmentName] = {"value": PLAN}

    def __init__(self, value: Callable[[int], float]) -> None:
        self.value, self.seen = value, 0

    def score(self, samples: Sequence[Sample], names: Sequence[str]) -> Mapping[str, Sequence[float]]:
        first, self.seen = self.seen, self.seen + len(samples)
        return {name: [self.value(number) for number in range(first, self.seen)] for name in names}


def judged(value: Callable[[int], float]) -> Callable[[Parts], Parts]:
    return lambda parts: replace(parts, judges=Judges({"sick": Judge(value)}, Expression.parse("value")))


def test_a_judge_that_always_fails(examined: Examined) -> None:
    found = examined(judged(lambda n: math.nan), 5)
    assert named(found, "missing rewards", "missing scores") == {"nan": "missing rewards", "nan.value": "missing scores"}
    assert (found[0].step, found[0].measured) == (1, "100% of the samples have no reward (missing: value)")


def test_a_judge_that_fails_at_times(examined: Examined) -> None:
    found = examined(judged(lambda n: math.nan if n % 8 == 3 else n % 4 / 4), 5)
    assert named(found, "missing rewards", "missing scores") == {"nan.value": "missing scores"}
    assert "nan.value 0.125" in next(f.measured for f in found if f.rule.name == "missing scores")


def test_a_judge_that_always_says_the_same(examined: Examined) -> None:
    found = examined(judged(lambda n: 0.5), 7, constant_limit=6)
    assert named(found, "constant rewards", "constant groups", "spread") == {
        "constant_groups": "constant groups",
        "idle": "constant rewards",
    }
    assert next(f.step for f in found if f.rule.stops) == 6


def test_a_judge_that_nearly_says_the_same(examined: Examined) -> None:
    found = examined(judged(lambda n: 0.5 + n % 4 * 1e-5), 5)
    assert named(found, "constant rewards", "constant groups", "spread") == {"group_std": "spread"}


def test_a_far_too_high_learning_rate(examined: Examined) -> None:
    compared = {"plan": {"kl": 0.01}, "image": {"kl": 1e-9}}
    rows = examined(honest, 5, optimizer={"learning_rate": 0.03, "schedule": "constant"}, updates=4, segments=compared)
    found = named(rows, "clipped", "ratio", "kl", "sampler gap")
    assert {"plan.clipped": "clipped", "plan.ratio": "ratio", "plan.kl": "kl", "image.kl": "kl"}.items() <= found.items()
    assert "sampler gap" not in found.values()


def test_gradients_that_are_lost(examined: Examined) -> None:
    """They are not in the weights, so plans stay finite. If there are only such gradients, the run stops."""

    def losing(parts: Parts) -> None:
        policy: Any = parts.planner
        policy.module.model.lm_head.weight.register_hook(lambda gradient: gradient * math.nan)

    found = examined(losing, 3, skipped_limit=3)
    assert named(found, "not finite", "mostly not finite", "gradient") == {}
    assert [(f.rule.name, f.step) for f in found if f.metric == "skipped_updates"] == [("skipped updates", 1), ("only skipped updates", 3)]


def test_chains_that_are_cut(examined: Examined) -> None:
    found = examined(honest, 5, sampling={"max_chain_tokens": 2})
    assert named(found, "truncated", "malformed") == {"truncated": "truncated"}


def test_chains_that_cannot_be_read(examined: Examined) -> None:
    def garbled(parts: Parts) -> None:
        policy: Any = parts.planner
        policy.decode_chain = lambda ids: parse("<|obj_start|>" + "a" * len(ids))

    assert named(examined(garbled, 5), "malformed", "regions") == {"malformed": "malformed", "regions": "regions"}


def test_a_policy_that_collapses(recorded: Callable[..., list[Row]]) -> None:
    """Logits grow fiftyfold, so that a prompt has one plan and one picture. To save time, the steps before are counted three times."""

    def sharpen(parts: Parts, step: int) -> None:
        policy: Any = parts.planner
        with torch.no_grad():
            policy.module.model.lm_head.weight *= 50.0 if step == 5 else 1.0
            policy.module.model.model.generation_head.vision_head.weight *= 50.0 if step == 5 else 1.0

    rows = recorded(honest, 10, sharpen)
    found = named(examine_run(rows[:5] * 3 + rows[5:], config()), "entropy", "duplicate plans", "duplicate images")
    assert found == {
        **{"plan.entropy": "entropy", "image.entropy": "entropy"},
        **{"duplicates.plan": "duplicate plans", "duplicates.image": "duplicate images"},
    }


# -- runs -------------------------------------------------------------------------------------------------------------------


BRITTLE = """
import math, os
from gotr1_core.hookspecs import Component, hookimpl

class Judge:
    rewards = {"brittle": "plan"}
    def __init__(self, options):
        self.left = int(os.environ["GOTR1_TEST_LEFT"])
    def score(self, samples, names):
        self.left -= 1
        return {"brittle": [sum(map(ord, s.chain.raw)) % 97 / 97 if self.left >= 0 else math.nan for s in samples]}

@hookimpl
def gotr1_components():
    yield Component("judge", "brittle", f"{__name__}:Judge")
"""
SHORT: dict[str, Any] = {"groups": 2, "plans": 2, "evaluation": {"every": 0, "prompts": 1}, "prompts": {"source": "scenes", "held_out": 1}}


@pytest.fixture
def brittle(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[str]]:
    """The command of a run whose judge fails after so many calls. The first call is the evaluation's."""
    plugin = tmp_path / "brittle_judge.py"
    plugin.write_text(BRITTLE)
    settings = {**SHORT, "steps": 4, "judge": ["brittle"], "reward": "brittle", "checkpoint": {"every": 1}, "save_samples": 0}
    made = make(**settings, plugins=[str(plugin)], output=str(tmp_path), name="run")
    (tmp_path / "config.yaml").write_text(dump(made))

    def command(calls: int) -> list[str]:
        monkeypatch.setenv("GOTR1_TEST_LEFT", str(calls))
        return ["train", str(tmp_path / "config.yaml"), "--cpu"]

    return command


def told(folder: Path, capsys: Captured, status: int) -> dict[str, Any]:
    capsys.readouterr()
    assert call(["doctor", str(folder), "--json"]) == status
    out, err = capsys.readouterr()
    assert err == ""
    found: dict[str, Any] = json.loads(out)
    return found


def test_a_run_that_stops(brittle: Callable[[int], list[str]], tmp_path: Path, capsys: Captured) -> None:
    assert call(brittle(3)) == 1  # an evaluation and two steps
    *_, error, hint = capsys.readouterr().err.splitlines()
    said = "step 3, missing rewards: 100% of the samples have no reward (missing: brittle). A sample without a reward teaches nothing."
    assert error == f"error: {said}"
    assert hint == "hint: check the judge and what it is asked to score, or raise nan_limit"

    run = tmp_path / "run"
    last = complete_checkpoints(run)[2]
    assert max(complete_checkpoints(run)) == 2
    assert find_damage(last) is None
    assert read_state(last)["step"] == 2
    found = told(run, capsys, 1)
    assert found["steps"] == 3
    [finding] = found["findings"]
    assert (finding["step"], finding["rule"], finding["metric"], finding["stops"]) == (3, "missing rewards", "nan", True)
    assert {"measured", "limit", "explanation", "hint"} < finding.keys()
    assert "missing rewards" in (run / "report.html").read_text()
    assert call(["doctor", str(run)]) == 1
    ended, first, second = capsys.readouterr().out.splitlines()
    assert ended == "failed after 3 of 4 steps"
    assert first == f"{said} It stops the run."
    assert second == "  what to do: check the judge and what it is asked to score, or raise nan_limit"

    brittle(9)  # and the judge is well again
    assert call(["train", "--resume", str(run), "--cpu"]) == 0
    assert [f["rule"] for f in told(run, capsys, 0)["findings"]] == []


def test_a_run_that_stops_before_it_trains(brittle: Callable[[int], list[str]], tmp_path: Path, capsys: Captured) -> None:
    assert call(brittle(0)) == 1
    assert "step 0, missing rewards: 100%" in capsys.readouterr().err
    found = told(tmp_path / "run", capsys, 1)
    assert (found["steps"], [f["step"] for f in found["findings"]]) == (0, [0])
    brittle(9)
    assert call(["train", "--resume", str(tmp_path / "run"), "--cpu"]) == 0  # the evaluation is made again
    assert told(tmp_path / "run", capsys, 0) == FINE | {"steps": 4}


def test_a_wrong_scorer_stops_a_run_in_its_first_step(registry: Registry, make: Make, tmp_path: Path) -> None:
    settings = make(**SHORT, output=str(tmp_path), name="run", save_samples=0)
    parts = build(registry, settings)
    one_sided(parts)
    with pytest.raises(Gotr1Error, match=r"step 1, sampler gap: image\.sampler_gap .* \(limit 0\.0001\)") as stopped:
        start.train(settings, registry=registry, parts=parts, cpu=True)
    assert stopped.value.code == 1
    assert "gotr1 check" in str(stopped.value.hint)
    assert complete_checkpoints(tmp_path / "run") == {}


def test_a_warning_is_given_once_also_across_a_resume(registry: Registry, make: Make, tmp_path: Path, capsys: Captured) -> None:
    """The tiny Janus writes no boxes, which the doctor reports in step 5."""
    settings = make(**SHORT, steps=6, output=str(tmp_path), name="run", save_samples=0, checkpoint={"every": 0})
    start.train(settings, registry=registry, cpu=True)
    warned = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    about = [line for line in warned if line.startswith("warning: step 5, regions: 0 regions per chain over 5 steps")]
    assert len(about) == 1
    assert about[0].endswith("What to do: look at samples/ and at the reward expression; ri and spa pay for boxes that are right")
    start.resume(tmp_path / "run", ["steps=8"], registry=registry, cpu=True)
    assert not set(capsys.readouterr().err.splitlines()) & set(warned)
    causes = [f["metric"] for f in told(tmp_path / "run", capsys, 1)["findings"]]
    assert "regions" in causes
    assert len(causes) == len(set(causes))


# -- the command ------------------------------------------------------------------------------------------------------------


def test_a_healthy_run(miniature_run: Path, capsys: Captured) -> None:
    assert call(["doctor", str(miniature_run)]) == 0
    assert capsys.readouterr().out == "3 steps, nothing found\n"
    assert told(miniature_run, capsys, 0) == FINE | {"steps": 3}
    last = json.loads((miniature_run / "metrics.jsonl").read_text().splitlines()[-2])
    assert {"plan.kl", "regions", "duplicates.plan", "duplicates.image"} <= last.keys()


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """The folder of a run of one step, to damage."""
    (tmp_path / "config.yaml").write_text(dump(config()))
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, **HEALTHY}) + "\n")
    (tmp_path / "outcome.json").write_text('{"outcome": "finished"}')
    return tmp_path


def test_the_limits_are_those_of_the_run_s_config(written: Path, capsys: Captured) -> None:
    (written / "metrics.jsonl").write_text(json.dumps({"step": 1, **HEALTHY, "plan.sampler_gap": 0.01}) + "\n")
    assert [f["rule"] for f in told(written, capsys, 1)["findings"]] == ["sampler gap"]
    (written / "config.yaml").write_text(dump(config(sampler_gap_limit=0.02)))
    assert told(written, capsys, 0)["findings"] == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "has no metrics.jsonl"),
        ("{\n", "metrics.jsonl is damaged: "),
        ("\x00\x01\n", "metrics.jsonl is damaged: "),
        ("[1, 2]\n", "metrics.jsonl is damaged: "),
        ('{"step": 1}\n{"step": 2, "plan.kl": "x"}\n', "metrics.jsonl is damaged: line 2 says plan.kl is 'x', which is not a number"),
        ('{"reward": 1}\n', "metrics.jsonl is damaged: line 1 has no step"),
    ],
)
def test_metrics_that_cannot_be_read(written: Path, refused: Refused, text: str | None, said: str) -> None:
    (written / "metrics.jsonl").unlink()
    if text is not None:
        (written / "metrics.jsonl").write_text(text)
    error, hint = refused(["doctor", str(written)])
    assert said in error
    assert hint.startswith("restore the original file")


def test_what_is_no_run(tmp_path: Path, refused: Refused) -> None:
    assert refused(["doctor", str(tmp_path)]) == (f"{tmp_path} is not a run", "give the folder that `gotr1 train` named")
    (tmp_path / "config.yaml").write_text("steps: 3\n")
    assert "planner" in refused(["doctor", str(tmp_path)])[0]


def test_a_line_that_a_killed_process_left_half_written(written: Path, capsys: Captured) -> None:
    with (written / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "rew')
    assert told(written, capsys, 0) == FINE | {"steps": 1}
