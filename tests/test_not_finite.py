"""Numbers that are not finite make no plan and no picture: NaN scores, no gradient, a count, one warning, and an end if most are so."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import processes_driver as driver

from gotr1_core.batch import join_batches, split_batch
from gotr1_core.chain import parse
from gotr1_core.cli.main import call
from gotr1_core.components.build import build
from gotr1_core.engine.collectives import make_accelerator
from gotr1_core.engine.rollout_metrics import nan_fractions
from gotr1_core.errors import Gotr1Error
from gotr1_core.evaluation import draw_samples, evaluate, measure
from gotr1_core.judges import Judges
from gotr1_core.loop import Trainer
from gotr1_core.pictures.sample_files import find_pictures, write_samples
from gotr1_core.reward import Expression
from gotr1_core.rollout import Parts, RolloutSettings, roll_out
from gotr1_core.runs import start
from gotr1_core.samples import IMAGE, PLAN, Prompt, Rollout, Sample, Sampling
from gotr1_core.sampling import decode, sample_token, uniforms
from gotr1_core.workflows.generation import generate
from gotr1_core.workflows.judging import score_pictures

NAN, INF = math.nan, math.inf
SAMPLING = Sampling(guidance_scale=2.0, max_chain_tokens=6)
PROMPTS = [Prompt(text, str(i)) for i, text in enumerate("abcd")]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [[0.0, NAN, 1.0], [0.0, INF, 1.0], [-INF, -INF, -INF]])
def test_a_token_without_a_distribution_has_no_probability(temperature: float, bad: list[float]) -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0], bad, [-INF, 1.0, 0.0]])
    token, log_prob = sample_token(logits, uniforms([1], 3)[0], temperature)
    assert log_prob.isfinite().tolist() == [True, False, True]
    assert ((token >= 0) & (token < 3)).all()
    assert (log_prob[::2] <= 0).all()


@pytest.mark.parametrize("keep", [None, lambda rows: None])
def test_a_row_ends_where_its_logits_do_and_leaves_its_neighbours_alone(keep: Any) -> None:
    noise = uniforms([1, 2, 3], 5)

    def steps(spoiled: bool) -> Any:
        count = [0]

        def advance(tokens: Any) -> torch.Tensor:
            logits = torch.zeros(3, 4)
            logits[:, 3] = -INF  # the stop token
            if spoiled and count[0] == 2:
                logits[1] = NAN
            count[0] += 1
            return logits

        return decode(advance, noise, 1.0, stop=3)

    sound, spoiled = steps(False), steps(True)
    assert spoiled.mask.sum(1).tolist() == [5, 3, 5]
    assert spoiled.log_prob[1, 2].isnan()
    assert torch.equal(spoiled.tokens[::2], sound.tokens[::2])
    assert torch.equal(spoiled.log_prob[::2], sound.log_prob[::2])


def spoil_plans(policy: Any, bad: Callable[[Prompt], bool]) -> None:
    """The plans of some prompts get log-probabilities that are NaN, as of logits that are."""
    plan = policy.plan

    def spoiled(prompts: Sequence[Prompt], **more: Any) -> Rollout:
        drawn: Rollout = plan(prompts, **more)
        log_prob = drawn.tensors["log_prob"].clone()
        log_prob[[bad(p) for p in prompts]] = NAN
        return replace(drawn, tensors={**drawn.tensors, "log_prob": log_prob})

    policy.plan = spoiled


def spoil_pictures(policy: Any, bad: Callable[[Prompt, int], bool]) -> None:
    """Some pictures, by their prompt and row, are not drawn."""
    render = policy.render

    def spoiled(prompts: Sequence[Prompt], chains: Any, **more: Any) -> Rollout:
        drawn: Rollout = render(prompts, chains, **more)
        return replace(
            drawn, images=tuple(None if bad(p, i) else image for i, (p, image) in enumerate(zip(prompts, drawn.images, strict=True)))
        )

    policy.render = spoiled


def letters(**changed: Any) -> tuple[Any, Parts]:
    torch.manual_seed(0)
    settings = driver.config(**changed)
    return settings, build(driver.registry(), settings)


def tree(parts: Parts, *, prune: bool = True, reward: str = "(value + 1) * bright") -> Any:
    judges = Judges(parts.judges.judges, Expression.parse(reward))
    return roll_out(
        parts.planner, parts.renderer, judges, PROMPTS, RolloutSettings(SAMPLING, seed=(0,), plans=2, images=2, prune=prune, chunk=2)
    )


def test_a_picture_that_is_not_finite_is_no_black_picture() -> None:
    """Half of the pictures of prompt b, all of c: NaN, where a pruned one has 0. All other samples are those of a sound renderer."""
    _, parts = letters()
    sound = tree(parts)
    spoil_pictures(parts.renderer, lambda prompt, row: prompt.text == "c" or (prompt.text == "b" and row % 2 == 0))
    batch = tree(parts)
    lost = [s.not_finite for s in batch.samples]
    assert lost == [*[None] * 4, *[IMAGE, None] * 2, *[IMAGE] * 4, *[None] * 4]
    for sample, expected in zip(batch.samples, sound.samples, strict=True):
        if sample.not_finite:
            assert sample.image is None
            assert math.isnan(sample.reward)
            assert math.isnan(sample.scores["bright"])
            assert sample.scores["value"] == expected.scores["value"]  # its plan is sound
        else:
            assert (sample.scores, sample.reward) == (expected.scores, expected.reward)
            assert sample.image is not None
    assert batch.images is not None
    assert len(batch.images) == 10  # rows that nobody can learn from are gone
    assert batch.images.finite() == [True] * 10
    assert [batch.samples[at].image for at in batch.place.tolist()] == list(batch.images.images)
    assert torch.equal(batch.images.tensors["parent"], batch.place // 2)
    kept = batch.keep([1])
    assert [s.image for s in kept.samples if s.image] == list(kept.images.images)


def test_a_picture_with_a_log_probability_that_is_not_finite_has_no_score() -> None:
    _, parts = letters()
    render = parts.renderer.render

    def spoiled(prompts: Any, chains: Any, **more: Any) -> Rollout:
        drawn = render(prompts, chains, **more)
        log_prob = drawn.tensors["log_prob"].clone()
        log_prob[0, 0] = INF
        return replace(drawn, tensors={**drawn.tensors, "log_prob": log_prob})

    parts.renderer.render = spoiled  # type: ignore[method-assign]
    assert [s.not_finite for s in tree(parts).samples][:2] == [IMAGE, None]


@pytest.mark.parametrize("prune", [True, False])
def test_a_plan_that_is_not_finite_is_not_drawn_and_not_scored(prune: bool) -> None:
    _, parts = letters()
    sound = tree(parts, prune=prune)
    spoil_plans(parts.planner, lambda prompt: prompt.text == "b")
    batch = tree(parts, prune=prune)
    assert [s.not_finite for s in batch.samples] == [*[None] * 4, *[PLAN] * 4, *[None] * 8]
    assert all(math.isnan(v) for s in batch.samples[4:8] for v in (*s.scores.values(), s.reward))
    assert [s.scores.keys() for s in batch.samples] == [s.scores.keys() for s in sound.samples]
    others = [0, 1, 2, 3, *range(8, 16)]
    assert [batch.samples[i].reward for i in others] == [sound.samples[i].reward for i in others]
    assert not batch.plans.tensors["mask"][2:4].any()
    assert batch.plans.tensors["log_prob"].isfinite().all()
    assert nan_fractions(batch.samples)["not_finite.plan"] == 0.25


def test_nobody_learns_from_it() -> None:
    """With a KL all plans go through the module; those that are not finite do not: 0 times NaN would be NaN."""
    settings, parts = letters()
    spoil_plans(parts.planner, lambda prompt: prompt.text == "b")
    batch = join_batches([tree(parts)])
    algorithm: Any = parts.algorithm
    segments = {PLAN: settings.segments.plan, IMAGE: settings.segments.image}
    rows = split_batch(batch, algorithm.advantages(batch.rewards), segments, settings)
    assert sum(len(m.segments[PLAN]) for m in rows) == 6


def test_a_lost_picture_does_not_change_the_mean_of_several_judges() -> None:
    """A judge that lacks one score drops out of its group. A picture that no judge sees makes none drop out."""

    class Constant:
        def __init__(self, value: float) -> None:
            self.rewards, self.value, self.seen = {"x": IMAGE}, value, 0

        def score(self, samples: Sequence[Sample], names: Sequence[str]) -> Any:
            self.seen += len(samples)
            return {"x": [self.value] * len(samples)}

    judges = {"a": Constant(0.2), "b": Constant(0.6)}
    both: Any = Judges(judges, Expression.parse("x"))  # type: ignore[arg-type]
    samples = [Sample(PROMPTS[0], parse("a"), None, (0, i, 0), not_finite=bad) for i, bad in enumerate((None, IMAGE, PLAN))]
    scores = both.score(samples, IMAGE)
    assert [s["x"] for s in scores] == pytest.approx([0.4, NAN, NAN], nan_ok=True)
    assert [judge.seen for judge in judges.values()] == [1, 1]
    assert both.score(samples[1:], IMAGE) == [pytest.approx({"x": NAN, "a.x": NAN, "b.x": NAN}, nan_ok=True)] * 2


def test_best_of_several_skips_samples_that_are_not_finite_and_evaluations_count_them() -> None:
    _, parts = letters()
    spoil_pictures(parts.renderer, lambda prompt, row: prompt.text == "a" or row % 2 == 0)
    settings = RolloutSettings(SAMPLING, seed=(1,), plans=2)
    samples = evaluate(parts.planner, parts.renderer, parts.judges, PROMPTS, settings)
    assert [s.not_finite for s in samples] == [IMAGE, None, None, None]
    assert nan_fractions(samples) == {"nan": 0.25, "nan.bright": 0.25, "not_finite.image": 0.25}


def test_generate_marks_samples_that_are_not_finite_and_benchmarks_skip_them(tmp_path: Path) -> None:
    _, parts = letters()
    spoil_pictures(parts.renderer, lambda prompt, row: row == 1)
    drawn = generate(parts.planner, parts.renderer, "a", number=3, sampling=SAMPLING)
    assert [s.not_finite for s in drawn] == [None, IMAGE, None]
    assert len(write_samples(tmp_path, drawn)) == 2
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [row.get("not_finite") for row in rows] == [None, "image", None]
    assert [picture.path is None for picture in find_pictures([tmp_path])] == [False, True, False]
    samples = draw_samples(parts.planner, parts.renderer, PROMPTS, sampling=SAMPLING, seed=1)
    assert [s.not_finite for s in samples] == [None, IMAGE, None, None]

    class Counting:
        def measure(self, samples: Sequence[Sample]) -> Any:
            return {"size": [sample.image.width for sample in samples if sample.image]}

    assert measure(Counting(), samples)["size"] == pytest.approx([2, NAN, 2, 2], nan_ok=True)  # type: ignore[arg-type]
    assert measure(Counting(), samples[1:2]) == {}  # type: ignore[arg-type]


def test_a_sample_that_is_not_finite_has_no_score_when_scored_again(tmp_path: Path) -> None:
    """A sample of which plan or picture was lost; what was sampled of the plan is no plan, however well it reads."""
    _, parts = letters()
    judges = {"values": parts.judges.judges["values"]}
    spoil_pictures(parts.renderer, lambda prompt, row: row == 1)
    spoil_plans(parts.planner, lambda prompt: prompt.text == "a")
    samples = draw_samples(parts.planner, parts.renderer, PROMPTS, sampling=SAMPLING, seed=1)
    assert [s.not_finite for s in samples] == [PLAN, IMAGE, None, None]
    write_samples(tmp_path, samples)
    again = list(score_pictures(judges, find_pictures([tmp_path]), Expression.parse("value * bright")))
    assert [s.not_finite for s in again] == [PLAN, IMAGE, None, None]
    assert [[math.isnan(v) for v in (s.scores["value"], s.scores["bright"], s.reward)] for s in again] == [
        *([True] * 3, [False, True, True]),
        *([False] * 3, [False] * 3),
    ]


def test_a_run_counts_samples_that_are_not_finite_and_warns_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings, parts = letters(output=str(tmp_path), name="x", steps=2, updates=1)
    spoil_pictures(parts.renderer, lambda prompt, row: row == 0)
    start.train(settings, parts=parts, source=driver.Turn("abcd"), held_out=PROMPTS, cpu=True)
    warnings = [line for line in capsys.readouterr().err.splitlines() if "not finite" in line]
    assert len(warnings) == 1
    assert "use bfloat16 or float32" in warnings[0]
    rows = [json.loads(line) for line in (tmp_path / "x" / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "evaluation" not in row]
    assert len(steps) == 2
    assert all(row["not_finite.image"] > 0 for row in steps)
    assert all(row["gradient_norm"] > 0 for row in steps)


def test_a_run_with_only_samples_that_are_not_finite_stops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings, parts = letters(output=str(tmp_path), name="x", nan_limit=0.5)
    with torch.no_grad():
        parts.planner.module.body.weight.fill_(NAN)  # type: ignore[union-attr, operator]
    with pytest.raises(
        Gotr1Error, match="100% of the samples have no reward: 100% have a plan and 0% a picture that is not finite"
    ) as caught:
        start.train(settings, parts=parts, source=driver.Turn("abcd"), held_out=PROMPTS, cpu=True)
    assert "bfloat16" in str(caught.value.hint)
    assert "warning" not in capsys.readouterr().err  # the error says it already


def test_a_sound_step_has_no_such_number() -> None:
    settings, parts = letters()
    trainer = Trainer(settings, parts, driver.Turn("abcd"), make_accelerator("no", cpu=True))
    assert not [name for name in trainer.step(0)[0] if name.startswith("not_finite")]


def test_generate_says_what_to_set(toy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from gotr1_core.cli import generate as command

    policies = command.policies_to_draw
    bad = [lambda prompt, row: row == 0]

    def spoiled(*given: Any, **more: Any) -> Any:
        planner, renderer, sampling = policies(*given, **more)
        spoil_pictures(renderer, lambda prompt, row: bad[0](prompt, row))
        return planner, renderer, sampling

    monkeypatch.setattr(command, "policies_to_draw", spoiled)
    assert call(["generate", "a", "-n", "2", "--preset", "toy"]) == 0
    out, err = capsys.readouterr()
    assert [json.loads(line)["image"] for line in out.splitlines()] == ["pictures/001.png"]
    assert "warning: 1 of 2 pictures could not be drawn: logits, latents or pixels are not finite. What to do: float16" in err
    bad[0] = lambda prompt, row: True
    assert call(["generate", "a", "-n", "2", "--preset", "toy", "--overwrite"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split(":")[0] for line in err.splitlines()] == ["error", "hint"]
