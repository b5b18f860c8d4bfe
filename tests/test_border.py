"""The border: what a component returns is checked where it comes in, and what it raises is told with its name, file and line."""

from __future__ import annotations

import inspect
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gaussian import GaussianRenderer
from PIL import Image as Picture
from saboteurs import HonestJudge
from torch import Tensor, nn

from gotr1_core.advantages import Advantages
from gotr1_core.border import algorithm_calls, calls
from gotr1_core.border.contract import ContractError, introduce, raised_by_component
from gotr1_core.chain import parse
from gotr1_core.cli.main import call
from gotr1_core.config.models import LoraConfig, SegmentConfig
from gotr1_core.engine.critic import critic_values
from gotr1_core.errors import Gotr1Error
from gotr1_core.judges import Judges
from gotr1_core.policies.lora import add_lora
from gotr1_core.protocols import Critic, Estimates, Experience, Loss
from gotr1_core.reward import Expression
from gotr1_core.rollout import RolloutSettings, roll_out
from gotr1_core.samples import IMAGE, PLAN, ActionStats, Example, Prompt, Rollout, Sample, Sampling
from gotr1_rl.grpo import Grpo, GrpoOptions
from gotr1_testing import TinyPolicy
from gotr1_testing.enumerable import TinyModule
from gotr1_testing.exact import example_rewards, make_tree, update_gradient, with_rewards
from gotr1_testing.runner import run_checks

PROMPTS = (Prompt("a circle"), Prompt("a red square"), Prompt("three crosses"))
SAMPLING = Sampling(max_chain_tokens=2, guidance_scale=1.0)
SEGMENTS = {PLAN: SegmentConfig()}


# -- planners ---------------------------------------------------------------------------------------------------------------


class Changed(TinyPolicy):
    """The tiny policy, whose rollout of plans is changed."""

    def __init__(self, change: Callable[[Rollout], Any]) -> None:
        super().__init__()
        self.change = change

    def plan(self, prompts: Sequence[Prompt], *, seeds: Sequence[int], sampling: Sampling) -> Rollout:
        return self.change(super().plan(prompts, seeds=seeds, sampling=sampling))  # type: ignore[no-any-return]


class ChangedModule(TinyModule):
    """The tiny module, whose stats are changed."""

    def __init__(self, change: Callable[[ActionStats], Any]) -> None:
        super().__init__()
        self.change = change

    def forward(self, segments: Mapping[Any, Rollout]) -> Any:
        return {name: self.change(stats) for name, stats in super().forward(segments).items()}


def with_tensors(**changes: Callable[[Tensor], Any] | None) -> Callable[[Rollout], Rollout]:
    """Changes tensors of a rollout, or takes them out (None)."""

    def change(rollout: Rollout) -> Rollout:
        tensors = dict(rollout.tensors)
        for name, function in changes.items():
            old = tensors.pop(name)
            if function is not None:
                tensors[name] = function(old)
        return replace(rollout, tensors=tensors)

    return change


def changed(change: Callable[[ActionStats], Any]) -> TinyPolicy:
    policy = TinyPolicy()
    policy.module = ChangedModule(change)
    return policy


def scored_as(segments: Callable[[dict[Any, ActionStats]], Any]) -> TinyPolicy:
    policy = TinyPolicy()
    forward = policy.module.forward
    policy.module.forward = lambda rollouts: segments(forward(rollouts))  # type: ignore[method-assign]
    return policy


PLANNERS: dict[str, tuple[Callable[[], TinyPolicy], str]] = {
    "nothing": (lambda: Changed(lambda _: None), "plan() returned None; expected a Rollout"),
    "chains alone": (lambda: Changed(lambda r: list(r.chains)), "plan() returned list of 6; expected a Rollout"),
    "labelled image": (lambda: Changed(lambda r: replace(r, segment=IMAGE)), "plan() returned 'image' as segment; expected 'plan'"),
    "no sampling": (lambda: Changed(lambda r: replace(r, sampling=None)), "plan() returned None as sampling; expected the Sampling"),
    "no mask": (lambda: Changed(with_tensors(mask=None)), "plan() returned None as tensors['mask']; expected bool [6, T]"),
    "a mask of floats": (
        lambda: Changed(with_tensors(mask=Tensor.float)),
        "plan() returned float32 [6, 2] as tensors['mask']; expected bool [6, T]",
    ),
    "a flat mask": (lambda: Changed(with_tensors(mask=lambda m: m[:, 0])), "plan() returned bool [6] as tensors['mask']"),
    "no log-probabilities": (lambda: Changed(with_tensors(log_prob=None)), "plan() returned None as tensors['log_prob']; expected float32"),
    "log-probabilities of sequences": (
        lambda: Changed(with_tensors(log_prob=lambda x: x.sum(1))),
        "plan() returned float32 [6] as tensors['log_prob']; expected float32 or float64 [6, 2]",
    ),
    "half log-probabilities": (
        lambda: Changed(with_tensors(log_prob=Tensor.half)),
        "plan() returned float16 [6, 2] as tensors['log_prob']",
    ),
    "an array": (lambda: Changed(with_tensors(log_prob=Tensor.numpy)), "plan() returned ndarray of 6 as tensors['log_prob']"),
    "no truncated": (lambda: Changed(with_tensors(truncated=None)), "plan() returned None as tensors['truncated']; expected bool [6]"),
    "truncated as numbers": (
        lambda: Changed(with_tensors(truncated=Tensor.long)),
        "plan() returned int64 [6] as tensors['truncated']; expected bool [6]",
    ),
    "too few rows": (
        lambda: Changed(lambda r: r.rows(torch.arange(5))),
        "plan() returned bool [5, 2] as tensors['mask']; expected bool [6, T]",
    ),
    "too few rows of its own": (
        lambda: Changed(with_tensors(tokens=lambda t: t[:5])),
        "plan() returned int64 [5, 2] as tensors['tokens']; expected a dense tensor [6, …]",
    ),
    "too few chains": (
        lambda: Changed(lambda r: replace(r, chains=r.chains[1:])),
        "plan() returned tuple of 5 as chains; expected 6, each a",
    ),
    "chains of text": (
        lambda: Changed(lambda r: replace(r, chains=tuple(c.raw for c in r.chains))),
        "' as chains[0]; expected a Chain",
    ),
    "another sampling": (
        lambda: Changed(lambda r: replace(r, sampling=replace(r.sampling, temperature=0.5))),
        "plan() returned Sampling as sampling; expected the Sampling that it was given",
    ),
    "a gradient": (
        lambda: Changed(with_tensors(log_prob=lambda x: x.clone().requires_grad_())),
        "plan() returned float32 [6, 2] as tensors['log_prob']; expected a tensor without a gradient: sample under torch.no_grad()",
    ),
    "a sparse tensor": (
        lambda: Changed(with_tensors(tokens=Tensor.to_sparse)),
        "plan() returned int64 [6, 2] as tensors['tokens']; expected a dense tensor [6, …]",
    ),
    "a number for a name": (
        lambda: Changed(lambda r: replace(r, tensors={**r.tensors, 3: r.tensors["mask"]})),  # type: ignore[dict-item]
        "plan() returned 3 as a name in tensors; expected a text",
    ),
    "chains without their text": (
        lambda: Changed(lambda r: replace(r, chains=tuple(replace(c, raw=None) for c in r.chains))),  # type: ignore[arg-type]
        "plan() returned None as chains[0].raw; expected a text",
    ),
    "no stats of the plan": (
        lambda: scored_as(lambda stats: {IMAGE: stats[PLAN]}),
        "module.forward() returned dict with the names image; expected a mapping with the names plan",
    ),
    "stats alone": (lambda: scored_as(lambda stats: stats[PLAN]), "module.forward() returned ActionStats; expected a mapping"),
    "tensors for stats": (
        lambda: changed(lambda s: s.log_prob),
        "module.forward() returned float64 [6, 2] as ['plan']; expected an ActionStats",
    ),
    "stats of sequences": (
        lambda: changed(lambda s: replace(s, log_prob=s.log_prob.sum(1))),
        "module.forward() returned float64 [6] as plan log_prob; expected float32 or float64 [6, 2]",
    ),
    "stats in half precision": (
        lambda: changed(lambda s: replace(s, log_prob=s.log_prob.bfloat16())),
        "module.forward() returned bfloat16 [6, 2] as plan log_prob",
    ),
    "no gradient": (
        lambda: changed(lambda s: replace(s, log_prob=s.log_prob.detach())),
        "module.forward() returned float64 [6, 2] as plan log_prob; expected a tensor with a gradient",
    ),
    "no entropy": (lambda: changed(lambda s: replace(s, entropy=None)), "module.forward() returned None as plan entropy"),
}
"""Planners with one mistake each, and what the error says about it."""


def one_step(planner: Any) -> None:
    """What a training step does with a planner: draws, joins, scores, updates."""
    judges = Judges({"honest": HonestJudge()}, Expression.parse("letters"))
    settings = RolloutSettings(SAMPLING, seed=(1,), plans=2, pictures_unused=True)
    batch = roll_out(planner, TinyPolicy(), judges, PROMPTS, settings)  # type: ignore[arg-type]
    rewards = torch.arange(6, dtype=torch.float64).view(3, 2, 1)
    update_gradient(Grpo(GrpoOptions()), planner, replace(batch, rewards=rewards), SEGMENTS)


def test_the_tiny_planner_trains() -> None:
    one_step(TinyPolicy())


@pytest.mark.parametrize("name", PLANNERS)
def test_a_planner_with_one_mistake_is_told_so_in_training(name: str) -> None:
    make, message = PLANNERS[name]
    planner = make()
    introduce(type(planner), "planner", "mine", "gotr1-mine")
    with pytest.raises(ContractError) as caught:
        one_step(planner)
    assert caught.value.message.startswith("the planner 'mine' of gotr1-mine: ")
    assert message in caught.value.message
    assert (caught.value.hint or "").startswith("see /")
    assert caught.value.code == 1


@pytest.mark.parametrize("name", [name for name in PLANNERS if name != "no gradient"])
def test_a_planner_with_one_mistake_fails_every_check_that_uses_it(name: str) -> None:
    make, message = PLANNERS[name]
    [result] = run_checks("planner", make, only=["log-probs-match-sampler"])
    assert result.passed is False
    found = re.sub(r"\d+", "N", result.note)
    assert re.sub(r"\d+", "N", message) in found


class NoPrefix(TinyPolicy):
    lora_prefix: Any = None


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        (None, "has no lora_prefix; expected the name of the part of module"),
        (3, "has no lora_prefix; expected the name of the part of module"),
        ("bdy", "lora_prefix is 'bdy'; expected the name of a part of module; did you mean 'body'?"),
    ],
)
def test_a_policy_without_lora_prefix_is_noticed(prefix: Any, message: str) -> None:
    policy = NoPrefix()
    policy.lora_prefix = prefix
    with pytest.raises(ContractError, match=re.escape(message)):
        add_lora(policy, LoraConfig(rank=2))  # type: ignore[arg-type]
    results = {result.name: result for result in run_checks("planner", lambda: policy, only=["log-probs-match-sampler-lora"])}
    [result] = results.values()
    assert result.passed is False
    assert message in result.note


# -- renderers --------------------------------------------------------------------------------------------------------------


RENDERERS: dict[str, tuple[Callable[[Rollout], Any], str]] = {
    "nothing": (lambda _: None, "render() returned None; expected a Rollout"),
    "labelled plan": (lambda r: replace(r, segment=PLAN), "render() returned 'plan' as segment; expected 'image'"),
    "too few pictures": (lambda r: replace(r, images=r.images[1:]), "render() returned tuple of 2 as images; expected 3, each a picture"),
    "arrays": (lambda r: replace(r, images=tuple(np.asarray(i) for i in r.images)), "render() returned ndarray of"),
    "a picture without pixels": (
        lambda r: replace(r, images=(Picture.new("RGB", (0, 3)), *r.images[1:])),
        "render() returned Image as images[0]; expected at least one pixel",
    ),
    "a picture of floats": (
        lambda r: replace(r, images=tuple(i.convert("F") for i in r.images)),
        "render() returned 'F' as images[0].mode; expected one of RGB, RGBA, L, LA, P, 1",
    ),
    "no pictures": (lambda r: replace(r, images=()), "render() returned tuple of 0 as images"),
    "steps of another shape": (
        with_tensors(step=lambda s: s[:, :1]),
        "render() returned int64 [3, 1] as tensors['step']; expected integer [3",
    ),
    "steps as floats": (with_tensors(step=Tensor.float), "as tensors['step']; expected integer"),
    "no mask": (with_tensors(mask=None), "render() returned None as tensors['mask']; expected bool [3, T]"),
}


JOINED: dict[str, tuple[Callable[[Rollout, int], Any], str]] = {
    "other names": (
        lambda r, call: replace(r, tensors={**r.tensors, f"x{call}": r.tensors["tokens"]}),
        "x1 as tensors; expected the names of an earlier call, prompt, ",
    ),
    "other sizes": (
        lambda r, call: replace(r, tensors={**r.tensors, "x": torch.zeros(len(r), 1, 2 + call)}),
        "plan() returned float32 [2, 1, 3] as tensors['x']; expected float32 [B, …, 2], as in an earlier call",
    ),
    "other dtypes": (
        lambda r, call: replace(r, tensors={**r.tensors, "x": torch.zeros(len(r), 1).to(torch.int64 if call else torch.float32)}),
        "plan() returned int64 [2, 1] as tensors['x']; expected float32 [B, …], as in an earlier call",
    ),
    "other dimensions": (
        lambda r, call: replace(r, tensors={**r.tensors, "x": torch.zeros(len(r), *[1] * call)}),
        "plan() returned float32 [2, 1] as tensors['x']; expected float32 [B], as in an earlier call",
    ),
}


@pytest.mark.parametrize("name", JOINED)
def test_rollouts_of_several_calls_that_cannot_be_joined(name: str) -> None:
    change, message = JOINED[name]
    count = iter(range(9))
    planner: Any = Changed(lambda r: change(r, next(count)))
    judges = Judges({"honest": HonestJudge()}, Expression.parse("letters"))
    settings = RolloutSettings(SAMPLING, seed=(1,), plans=2, chunk=1, pictures_unused=True)
    with pytest.raises(ContractError) as caught:
        roll_out(planner, TinyPolicy(), judges, PROMPTS, settings)  # type: ignore[arg-type]
    assert message in caught.value.message
    assert f"see {__file__}:" in (caught.value.hint or "")


@pytest.mark.parametrize("name", RENDERERS)
def test_a_renderer_with_one_mistake(name: str) -> None:
    change, message = RENDERERS[name]

    class Renderer(GaussianRenderer):
        def render(self, *args: Any, **more: Any) -> Rollout:
            drawn = super().render(*args, **more)
            step = torch.arange(drawn.tensors["mask"].shape[1]).expand(drawn.tensors["mask"].shape)
            return change(replace(drawn, tensors={**drawn.tensors, "step": step}))  # type: ignore[no-any-return]

    chains = [parse("a circle")] * 3
    with pytest.raises(ContractError) as caught:
        calls.call_render(Renderer(), PROMPTS, chains, seeds=[1, 2, 3], sampling=SAMPLING)  # type: ignore[arg-type]
    assert message in caught.value.message
    assert f"see {__file__}:" in (caught.value.hint or "")


# -- judges -----------------------------------------------------------------------------------------------------------------

JUDGES: dict[str, tuple[Callable[[int], Any], str]] = {
    "nothing": (lambda n: None, "score() returned None; expected a mapping with the names pi"),
    "no scores": (lambda n: {}, "score() returned dict of 0; expected a mapping with the names pi"),
    "a list": (lambda n: [0.5] * n, "score() returned list of 2; expected a mapping"),
    "other names": (lambda n: {"pie": [0.5] * n}, "score() returned dict with the names pie; expected a mapping with the names pi"),
    "more names": (lambda n: {"pi": [0.5] * n, "ri": [1.0] * n}, "returned dict with the names pi, ri; expected"),
    "one number": (lambda n: {"pi": 0.5}, "score() returned 0.5 as ['pi']; expected 2, each a number"),
    "too few": (lambda n: {"pi": [0.5]}, "score() returned list of 1 as ['pi']; expected 2, each a number"),
    "too many": (lambda n: {"pi": [0.5] * (n + 1)}, "score() returned list of 3 as ['pi']; expected 2"),
    "above 1": (lambda n: {"pi": [0.5, 1.5]}, "score() returned 1.5 as ['pi'][1]; expected a number in [0,1], or NaN"),
    "below 0": (lambda n: {"pi": [-0.1, 0.5]}, "score() returned -0.1 as ['pi'][0]"),
    "infinite": (lambda n: {"pi": [0.1, math.inf]}, "score() returned inf as ['pi'][1]"),
    "texts": (lambda n: {"pi": ["0.5", "1"]}, "score() returned '0.5' as ['pi'][0]; expected a number in [0,1]"),
    "a text": (lambda n: {"pi": "ab"}, "score() returned 'ab' as ['pi']; expected 2, each a number"),
    "none": (lambda n: {"pi": [None, 0.5]}, "score() returned None as ['pi'][0]"),
    "a set": (lambda n: {"pi": {0.5, 0.25}}, "score() returned set of 2 as ['pi']; expected 2"),
    "a matrix": (lambda n: {"pi": torch.full((n, 2), 0.5)}, "score() returned float32 [2, 2] as ['pi']; expected 2, each a number"),
    "a matrix of numpy": (lambda n: {"pi": np.full((n, 2), 0.5)}, "score() returned ndarray of 2 as ['pi']"),
    "a tensor above 1": (lambda n: {"pi": torch.tensor([0.5, 2.0])}, "score() returned 2.0 as ['pi'][1]"),
}
SAMPLES = [Sample(Prompt("a circle"), parse("a circle"), None, (i, 0, 0)) for i in range(2)]


class Judge:
    def __init__(self, answer: Callable[[int], Any]) -> None:
        self.answer = answer
        self.rewards: Any = {"pi": PLAN}

    def score(self, samples: Sequence[Sample], names: Sequence[str]) -> Any:
        return self.answer(len(samples))


def scores_of(answer: Callable[[int], Any]) -> list[float]:
    return [row["pi"] for row in Judges({"mine": Judge(answer)}, Expression.parse("pi")).score(SAMPLES, PLAN)]


@pytest.mark.parametrize("name", JUDGES)
def test_a_judge_with_one_mistake(name: str) -> None:
    answer, message = JUDGES[name]
    with pytest.raises(ContractError) as caught:
        scores_of(answer)
    assert caught.value.message.startswith(f"the judge Judge of {__name__}: ")
    assert message in caught.value.message
    line = inspect.getsourcelines(Judge.score)[1]
    assert caught.value.hint == f"see {__file__}:{line}; docs/plugins.md says what it must be"
    [result] = run_checks("judge", lambda: Judge(answer), only=["scores-are-in-range"])
    assert result.passed is False


@pytest.mark.parametrize(
    "answer",
    [
        lambda n: {"pi": [0, True]},
        lambda n: {"pi": (np.float32(0.0), np.int64(1))},
        lambda n: {"pi": np.array([0.0, 1.0])},
        lambda n: {"pi": torch.tensor([0.0, 1.0])},
        lambda n: {"pi": [torch.tensor(0.0), torch.tensor(1.0)]},
    ],
)
def test_numbers_of_any_type_are_scores(answer: Callable[[int], Any]) -> None:
    scores = scores_of(answer)
    assert scores == [0.0, 1.0]
    assert all(type(score) is float for score in scores)


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        (None, "rewards is None; expected a mapping of names to plan or image"),
        (["pi"], "rewards is list of 1; expected a mapping"),
        ({"pi": "picture"}, "rewards is 'picture' as ['pi']; expected 'plan' or 'image'"),
        ({"p i": PLAN}, "rewards is 'p i' as the name of a score; expected a letter, then letters, digits and _"),
        ({3: PLAN}, "rewards is 3 as the name of a score"),
    ],
)
def test_what_a_judge_offers_is_checked(rewards: Any, message: str) -> None:
    judge = Judge(lambda n: {})
    judge.rewards = rewards
    with pytest.raises(ContractError) as caught:
        Judges({"mine": judge}, Expression.parse("1"))
    assert message in caught.value.message


# -- algorithms -------------------------------------------------------------------------------------------------------------


def algorithm(**methods: Callable[..., Any]) -> Any:
    """GRPO with other methods, each called with GRPO's own result."""
    made = Grpo(GrpoOptions())

    def replaced(name: str, change: Callable[..., Any]) -> Callable[..., Any]:
        own = getattr(made, name)
        return lambda *args: change(own(*args))

    for name, change in methods.items():
        setattr(made, name, replaced(name, change))
    return made


ALGORITHMS: dict[str, tuple[Callable[[], Any], str]] = {
    "no advantages": (lambda: algorithm(advantages=lambda a: None), "advantages() returned None; expected Advantages"),
    "a tensor of advantages": (lambda: algorithm(advantages=lambda a: a.plan), "advantages() returned float64 [3, 4]; expected Advantages"),
    "advantages of another shape": (
        lambda: algorithm(advantages=lambda a: Advantages(a.plan.flatten(), a.image)),
        "advantages() returned float64 [12] as plan; expected float [3, 4]",
    ),
    "advantages of images of another shape": (
        lambda: algorithm(advantages=lambda a: Advantages(a.plan, a.image[..., 0])),
        "advantages() returned float64 [3, 4] as image; expected float [3, 4, 2]",
    ),
    "advantages that are NaN": (
        lambda: algorithm(advantages=lambda a: Advantages(a.plan * math.nan, a.image)),
        "expected finite numbers, 0 where there is no reward",
    ),
    "a count for each row": (lambda: algorithm(count=lambda c: torch.ones(3)), "count() returned float32 [3]; expected a scalar"),
    "a count below 0": (lambda: algorithm(count=lambda c: -c), "expected a number from 0 on"),
    "no loss": (lambda: algorithm(loss=lambda _: None), "loss() returned None; expected a Loss"),
    "a tensor for a loss": (lambda: algorithm(loss=lambda x: x.sums[PLAN]), "loss() returned float64 []; expected a Loss"),
    "another segment": (
        lambda: algorithm(loss=lambda x: replace(x, sums={"plans": x.sums[PLAN]})),
        "loss() returned dict with the names plans as sums; expected scalars for plan",
    ),
    "no counts": (
        lambda: algorithm(loss=lambda x: replace(x, counts={})),
        "loss() returned dict of 0 as counts; expected scalars for plan",
    ),
    "a loss for each row": (
        lambda: algorithm(loss=lambda x: replace(x, sums={PLAN: x.sums[PLAN].expand(3)})),
        "loss() returned float64 [3] as sums['plan']; expected float, a scalar",
    ),
    "a loss without gradient": (
        lambda: algorithm(loss=lambda x: replace(x, sums={PLAN: x.sums[PLAN].detach()})),
        "as sums['plan']; expected a scalar with a gradient",
    ),
    "statistics without weights": (
        lambda: algorithm(loss=lambda x: replace(x, statistics={"ratio": torch.ones(())})),
        "loss() returned float32 [] as statistics['ratio']; expected a pair (value, weight) of scalars",
    ),
    "a statistic under the core's name": (
        lambda: algorithm(loss=lambda x: replace(x, statistics={"sampler_gap": (1.0, 1.0)})),
        "loss() returned 'sampler_gap' as a name in statistics; expected another name: the core measures sampler_gap, worst_sampler_gap",
    ),
    "a number for a statistic's name": (
        lambda: algorithm(loss=lambda x: replace(x, statistics={3: (1.0, 1.0)})),
        "loss() returned 3 as a name in statistics; expected a text",
    ),
    "a number for an action's name": (
        lambda: algorithm(loss=lambda x: replace(x, actions={3: x.sums[PLAN]})),
        "loss() returned 3 as a name in actions; expected a text",
    ),
    "numbers of actions of another shape": (
        lambda: algorithm(loss=lambda x: replace(x, actions={"ratio": torch.ones(3)})),
        "loss() returned float32 [3] as actions['ratio']; expected bool or number [12, 2]",
    ),
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_with_one_mistake(name: str) -> None:
    make, message = ALGORITHMS[name]
    policy = TinyPolicy()
    with pytest.raises(ContractError) as caught:
        update_gradient(make(), policy, with_rewards(make_tree(policy), example_rewards()), SEGMENTS)
    assert message in caught.value.message
    [result] = run_checks("algorithm", make, only=["constant-groups"])
    assert result.passed is False


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"estimate": print}, "has no needs_reference; expected needs_reference beside estimate"),
        ({"estimate": print, "needs_reference": False, "critic": print}, "has no value_loss; expected value_loss beside critic"),
        ({"state_dict": dict}, "has no load_state_dict; expected load_state_dict beside state_dict"),
        ({"load_state_dict": print}, "has no state_dict; expected state_dict beside load_state_dict"),
    ],
)
def test_an_algorithm_with_half_of_what_belongs_together(more: Mapping[str, Any], message: str) -> None:
    """Such an algorithm has only ``advantages``, ``count`` and ``loss`` for the core: the rest would not be called."""
    made = SimpleNamespace(advantages=print, count=print, loss=print, **more)
    with pytest.raises(ContractError, match=message):
        calls.check_component("algorithm", made)


def test_a_component_that_changes_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that a run names by a relative path would go elsewhere."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()

    def moves(count: int) -> Any:
        os.chdir("other")
        return {"pi": [0.5] * count}

    with pytest.raises(ContractError, match=r"changed the working folder in score\(\), to .*other") as caught:
        scores_of(moves)
    assert f"see {__file__}:" in (caught.value.hint or "")
    assert Path.cwd() == tmp_path


def test_what_a_backward_pass_raises_names_those_who_made_the_loss() -> None:
    def spent(loss: Loss) -> Loss:
        loss.sums[PLAN].backward()
        return loss

    policy = TinyPolicy()
    made = algorithm(loss=spent)
    with pytest.raises(ContractError, match="the backward pass of the loss failed: RuntimeError: Trying to backward") as caught:
        update_gradient(made, policy, with_rewards(make_tree(policy), example_rewards()), SEGMENTS)
    assert re.search(r"module\.forward\(\) of the .* and loss\(\) of the algorithm .*: neither may call", caught.value.hint or "")


def test_an_algorithm_may_change_the_rewards_that_it_gets() -> None:
    rewards = example_rewards()
    algorithm_calls.call_advantages(algorithm(advantages=lambda a: a), rewards)
    before = rewards.clone()
    made: Any = SimpleNamespace(advantages=lambda given: Grpo(GrpoOptions()).advantages(given.zero_()))
    algorithm_calls.call_advantages(made, rewards)
    assert torch.equal(rewards, before)


SEEN = Experience(torch.zeros(1, 2, 1), torch.arange(0), {PLAN: torch.ones(2, 3, dtype=torch.bool)}, {})
ESTIMATES: dict[str, tuple[Any, str]] = {
    "nothing": (None, "estimate() returned None; expected Estimates"),
    "no advantages": (Estimates({}), "estimate() returned None as advantages['plan']; expected float [2, 3]"),
    "too few advantages": (Estimates({PLAN: torch.zeros(1, 3)}), "returned float32 [1, 3] as advantages['plan']; expected float [2, 3]"),
    "too few rows": (Estimates({PLAN: torch.zeros(1)}), "returned float32 [1] as advantages['plan']; expected float [2]"),
    "no returns": (Estimates({PLAN: torch.zeros(2, 3)}), "estimate() returned None as returns['plan']; expected float [2, 3]"),
}


@pytest.mark.parametrize("name", ESTIMATES)
def test_what_an_algorithm_with_a_critic_estimates(name: str) -> None:
    result, message = ESTIMATES[name]
    made: Any = SimpleNamespace(estimate=lambda *args: result)
    with pytest.raises(ContractError) as caught:
        algorithm_calls.call_estimate(made, SEEN, nn.Linear(1, 1), lambda x: x)
    assert message in caught.value.message


def test_critics_and_their_losses_are_checked() -> None:
    made: Any = SimpleNamespace(critic=lambda width: nn.Linear(width, 1), value_loss=lambda *args: (torch.ones(2), {}))
    with pytest.raises(ContractError, match=r"critic\(\) returned Linear; expected a Critic"):
        algorithm_calls.call_critic(made, 3)
    made.critic = lambda width: Critic(None, 0.1)  # type: ignore[arg-type]
    with pytest.raises(ContractError, match=r"critic\(\) returned None as module; expected a torch.nn.Module"):
        algorithm_calls.call_critic(made, 3)
    with pytest.raises(ContractError, match=r"value_loss\(\) returned float32 \[2\] as the loss; expected float, a scalar"):
        algorithm_calls.call_value_loss(made, torch.ones(2), torch.ones(2), torch.ones(2))


def test_values_of_a_critic_are_checked() -> None:
    class Head(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            return features  # [K, H] in place of [K]

    stats = {PLAN: ActionStats(torch.zeros(2, 3), torch.zeros(2, 3), features=torch.zeros(2, 3, 4))}
    with pytest.raises(ContractError, match=r"forward\(\) returned float32 \[6, 4\] as values; expected float \[6\]"):
        critic_values(Head(), stats, {PLAN: torch.ones(2, 3, dtype=torch.bool)})


# -- sources, benchmarks, stage one -----------------------------------------------------------------------------------------

PROMPT_MISTAKES: dict[str, tuple[Any, str]] = {
    "fewer than asked": ([Prompt("a")], "prompts() returned list of 1; expected 2, each a Prompt"),
    "more than asked": ([Prompt("a")] * 3, "prompts() returned list of 3; expected 2, each a Prompt"),
    "nothing": (None, "prompts() returned None; expected 2, each a Prompt"),
    "an iterator": (iter([Prompt("a")] * 2), "prompts() returned list_iterator; expected 2, each a Prompt"),
    "texts": (["a", "b"], "prompts() returned 'a' as [0]; expected a Prompt"),
    "a number for a text": ([Prompt("a"), Prompt(3)], "prompts() returned 3 as [1].text; expected a text"),  # type: ignore[arg-type]
    "no metadata": ([Prompt("a", metadata=None)] * 2, "returned None as [0].metadata; expected a mapping that JSON can write"),  # type: ignore[arg-type]
    "a list of metadata": ([Prompt("a", metadata=[1])] * 2, "returned list of 1 as [0].metadata; expected a mapping"),  # type: ignore[arg-type]
    "metadata with NaN": ([Prompt("a", metadata={"x": math.nan})] * 2, "as [0].metadata; expected a mapping that JSON can write"),
    "metadata that is no JSON": ([Prompt("a", metadata={"x": {1}})] * 2, "as [0].metadata; expected a mapping that JSON can write"),
}


@pytest.mark.parametrize("name", PROMPT_MISTAKES)
def test_a_source_with_one_mistake(name: str) -> None:
    answer, message = PROMPT_MISTAKES[name]
    source: Any = SimpleNamespace(prompts=lambda split, count, seed, start: answer)
    with pytest.raises(ContractError) as caught:
        calls.call_prompts(source, "train", 2, 0)
    assert message in caught.value.message


def test_examples_are_checked() -> None:
    good = Example(Prompt("a"), parse("a"))
    for answer, message in (
        ([good], "examples() returned list of 1; expected 2, each an Example"),
        ([good, Prompt("a")], "as [1]; expected an Example"),
        ([good, replace(good, chain="a")], "examples() returned 'a' as [1].chain; expected a Chain"),  # type: ignore[arg-type]
        ([good, replace(good, image=np.zeros(2))], "as [1].image; expected a picture of PIL, or None"),  # type: ignore[arg-type]
    ):
        source: Any = SimpleNamespace(examples=lambda *args, answer=answer: answer)
        with pytest.raises(ContractError) as caught:
            calls.call_examples(source, "train", 0, 2, 0)
        assert message in caught.value.message


def test_a_benchmark_is_checked() -> None:
    made: Any = SimpleNamespace(prompts=lambda count: [], measure=lambda samples: {"shade": [1.5]})
    with pytest.raises(ContractError, match=r"prompts\(\) returned list of 0; expected 1 to all prompts"):
        calls.call_benchmark(made, None)
    made.prompts = lambda count: [Prompt("a")] * 4
    with pytest.raises(ContractError, match=r"prompts\(\) returned list of 4; expected 1 to 3 prompts"):
        calls.call_benchmark(made, 3)
    with pytest.raises(ContractError, match=r"measure\(\) returned list of 1 as \['shade'\]; expected 2, each a number"):
        calls.call_measure(made, SAMPLES)
    for table, message in (
        ({}, r"returned dict of 0; expected at least one name"),
        ({3: [1.0, 2.0]}, "returned 3 as a name; expected a text"),
    ):
        made.measure = lambda samples, table=table: table
        with pytest.raises(ContractError, match=message):
            calls.call_measure(made, SAMPLES)
    made.measure = lambda samples: {"shade": [1.5, math.inf]}
    with pytest.raises(ContractError, match=r"measure\(\) returned inf as \['shade'\]\[1\]; expected a number, or NaN"):
        calls.call_measure(made, SAMPLES)
    made.measure = lambda samples: {"shade": [15, math.nan]}
    assert calls.call_measure(made, SAMPLES)["shade"][0] == 15.0


def test_the_loss_of_stage_one_is_checked() -> None:
    total = torch.ones((), requires_grad=True)
    for answer, message in (
        (total, "supervised_loss() returned float32 []; expected a Loss"),
        (Loss({}, {}), "supervised_loss() returned dict of 0 as sums; expected a scalar for plan, image or both"),
        (Loss({PLAN: total}, {}), "supervised_loss() returned dict of 0 as counts; expected scalars for plan"),
        (Loss({PLAN: total.detach()}, {PLAN: torch.ones(())}), "as sums['plan']; expected a scalar with a gradient"),
    ):
        policy: Any = SimpleNamespace(supervised_loss=lambda *args, answer=answer, seed: answer)
        with pytest.raises(ContractError) as caught:
            calls.call_supervised_loss(policy, nn.Linear(1, 1), [], seed=0)
        assert message in caught.value.message


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (None, "preflight() returned None; expected a mapping with names of image_tokens, context, parameters"),
        ({"image_token": 3}, "preflight() returned dict with the names image_token; expected a mapping with names of image_tokens"),
        ({"context": "long"}, "preflight() returned 'long' as ['context']; expected a number from 0 on"),
    ],
)
def test_sizes_that_a_preflight_reports_are_checked(sizes: Any, message: str) -> None:
    made = SimpleNamespace(preflight=lambda options, key: sizes)
    with pytest.raises(ContractError) as caught:
        calls.call_preflight("planner", made, None, "planner")
    assert message in caught.value.message


def test_a_component_has_what_its_kind_needs() -> None:
    with pytest.raises(ContractError) as caught:
        calls.check_component("planner", SimpleNamespace(module=nn.Linear(1, 1), plans=print))
    assert caught.value.message.endswith("has no plan; expected module, plan of a planner")
    assert (caught.value.hint or "").startswith("did you mean 'plans'? ")
    with pytest.raises(ContractError, match=r"failed in plan\(\): KeyError: 'x'"):
        calls.check_component("planner", type("P", (), {"module": nn.Linear(1, 1), "plan": property(lambda self: {}["x"])})())
    with pytest.raises(ContractError, match=r"module is 3; expected a torch\.nn\.Module"):
        calls.check_component("renderer", SimpleNamespace(module=3, render=print))


def test_the_checks_read_no_number_of_a_tensor_on_a_device() -> None:
    """Tensors of the device ``meta`` have no numbers, and raise an error where one is read. On a GPU, reading one would wait for it."""
    meta = {"device": "meta"}
    tensors = {"mask": torch.ones(3, 2, dtype=torch.bool, **meta), "log_prob": torch.zeros(3, 2, **meta)}
    rollout = Rollout(PLAN, SAMPLING, {**tensors, "truncated": torch.ones(3, dtype=torch.bool, **meta)}, chains=(parse("a"),) * 3)
    planner: Any = SimpleNamespace(plan=lambda *args, **more: rollout)
    assert calls.call_plan(planner, PROMPTS, seeds=[1, 2, 3], sampling=SAMPLING) is rollout
    log_prob = torch.zeros(3, 2, requires_grad=True, **meta)
    stats = ActionStats(log_prob, log_prob, features=torch.zeros(3, 2, 4, **meta), mean=torch.zeros(3, 2, 5, 6, **meta), std=log_prob)
    module: Any = lambda segments: {PLAN: stats}  # noqa: E731
    assert calls.call_module(planner, module, {PLAN: rollout}, learns=True, features=True) == {PLAN: stats}
    loss = Loss({PLAN: log_prob.sum()}, {PLAN: log_prob.sum()}, {"x": (log_prob.sum(), log_prob.sum())}, {"y": log_prob})
    learner: Any = SimpleNamespace(loss=lambda *args: loss, value_loss=lambda *args: (log_prob.sum(), {}))
    assert algorithm_calls.call_loss(learner, PLAN, stats, log_prob, None, log_prob[:, 0], tensors["mask"], SegmentConfig()) is loss
    algorithm_calls.call_value_loss(learner, log_prob, log_prob, log_prob)


# -- what a component raises ------------------------------------------------------------------------------------------------


def raising(error: BaseException) -> Callable[[int], Any]:
    def answer(count: int) -> Any:
        raise error

    return answer


class Panic(BaseException):
    """As libraries in Rust raise it: no Exception."""


RAISED = [
    KeyError("x"),
    TypeError("no\nidea"),
    AssertionError(),
    SystemExit(0),
    SystemExit("bye"),
    KeyboardInterrupt(),
    NotImplementedError(),
    Panic("of a tokenizer"),
]


@pytest.mark.parametrize("error", RAISED, ids=repr)
def test_what_a_component_raises_names_it_with_its_line(error: BaseException) -> None:
    with pytest.raises(ContractError) as caught:
        scores_of(raising(error))
    reason = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
    assert caught.value.message == f"the judge Judge of {__name__} failed in score(): {reason}"
    line = inspect.getsourcelines(raising)[1] + 2
    assert caught.value.hint == f"see {__file__}:{line}; --debug shows the traceback"
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [Gotr1Error("asleep", hint="wake it"), MemoryError(), torch.OutOfMemoryError()], ids=repr)
def test_our_own_errors_and_full_memory_go_through(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        scores_of(raising(error))
    assert caught.value is error


def test_ctrl_c_inside_a_component_is_ctrl_c() -> None:
    def press(count: int) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            pass

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            scores_of(press)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not raised_by_component(caught.value)


JUDGE = """
from gotr1_core import Component, hookimpl

class Mine:
    rewards = {"pi": "image"}

    def __init__(self, options):
        pass

    def score(self, samples, names):
        BODY

@hookimpl
def gotr1_components():
    yield Component("judge", "mine", f"{__name__}:Mine")
"""


BODIES = {
    "return {'pi': [1.5] * len(samples)}": ("mine.py: score() returned 1.5 as ['pi'][0]; expected a number in [0,1], or NaN", 10),
    "import sys; sys.exit(0)": ("mine.py failed in score(): SystemExit: 0", 11),
    "raise KeyboardInterrupt": ("mine.py failed in score(): KeyboardInterrupt", 11),
    "return {}['pi']": ("mine.py failed in score(): KeyError: 'pi'", 11),
}


WRAPS = {
    "sys.exit(0)": "the plugin mine failed in gotr1_wrap_judge: SystemExit: 0",
    "return 5": "the judge int of builtins has no rewards",
}


@pytest.mark.parametrize("body", WRAPS)
def test_a_plugin_that_fails_to_wrap_a_judge_ends_no_command_without_a_word(body: str, toy: Path, refused: Callable[..., Any]) -> None:
    (toy / "mine.py").write_text(
        f"import sys\nfrom gotr1_core import hookimpl\n\n@hookimpl\ndef gotr1_wrap_judge(judge, cache, facts):\n    {body}\n"
    )
    assert call(["generate", "a circle", "--preset", "toy", "--out", "pictures"]) == 0
    error, _ = refused(["score", "pictures", "--judge", "toy", "--plugin", "mine.py"], 1)
    assert error.startswith(WRAPS[body])


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("command", ["train", "score"])
def test_a_command_tells_it_in_two_lines(body: str, command: str, toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (toy / "mine.py").write_text(JUDGE.replace("BODY", body))
    sys.modules.pop("mine", None)
    line = ["train", "--preset", "toy", "--judge", "mine", "--plugin", "mine.py", "--cpu", "reward=pi"]
    if command == "score":
        assert call(["generate", "a circle", "--preset", "toy", "--out", "pictures", "-n", "2"]) == 0
        line = ["score", "pictures", "--judge", "mine", "--plugin", "mine.py"]
    assert call(line) == 1
    error, hint = capsys.readouterr().err.splitlines()[-2:]
    message, number = BODIES[body]
    assert error == f"error: the judge 'mine' of {message}"
    assert hint.startswith(f"hint: see {toy / 'mine.py'}:{number}; ")
