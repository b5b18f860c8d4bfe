"""Tests the suite with components that are broken on purpose. A check catches each of them, and the correct component passes that check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import saboteurs as broken
import torch
from baseline_plugin import Forgetful, RunningBaseline
from gaussian import GaussianModule, GaussianRenderer

from gotr1_core.config.models import SegmentConfig
from gotr1_core.hookspecs import Kind
from gotr1_core.samples import IMAGE
from gotr1_rl.grpo import Grpo, GrpoOptions
from gotr1_testing import AlgorithmContract, Case, CheckResult, RendererContract, TinyPolicy
from gotr1_testing.exact import example_rewards, make_tree, update_gradient, with_rewards
from gotr1_testing.runner import checks_of, run_checks, subject_of

pytestmark = pytest.mark.unmeasured
CASE = Case(max_chain_tokens=2, statistical_samples=1000)


class TestGaussianRenderer(RendererContract):
    """Log-probabilities of denoising steps are densities, and means over latent dimensions. They pass the same checks as tokens'."""

    @pytest.fixture
    def renderer(self) -> GaussianRenderer:
        return GaussianRenderer()


class TestRunningBaseline(AlgorithmContract):
    """An algorithm with state, which compares without groups."""

    @pytest.fixture
    def algorithm(self) -> RunningBaseline:
        return RunningBaseline()


@dataclass(frozen=True)
class Mistake:
    """A broken component, and the check that fails."""

    kind: Kind
    make: Callable[[], Any]
    check: str
    honest: Callable[[], Any]


def policy(kind: Kind, module: type[broken.TinyModule], check: str) -> Mistake:
    return Mistake(kind, lambda: broken.tiny(module), check, TinyPolicy)


def planner(made: Callable[[], Any], check: str) -> Mistake:
    return Mistake("planner", made, check, TinyPolicy)


def steps(made: Callable[[], Any], check: str) -> Mistake:
    return Mistake("renderer", made, check, GaussianRenderer)


def algorithm(made: Callable[[], Any], check: str) -> Mistake:
    return Mistake("algorithm", made, check, lambda: Grpo(GrpoOptions(scale=False)))


def judge(made: Callable[[], Any], check: str) -> Mistake:
    return Mistake("judge", made, check, broken.HonestJudge)


MISTAKES = {
    # policies: what is scored
    "conditional scoring of guided samples": policy("renderer", broken.ConditionalScoring, "log-probs-match-sampler"),
    "divided guided logits": policy("renderer", broken.DividedGuidance, "log-probs-match-sampler"),
    "mispaired rows": policy("renderer", broken.MispairedRows, "log-probs-match-sampler"),
    "mispaired rows, by batch": policy("renderer", broken.MispairedRows, "same-log-probs-alone-and-in-batch"),
    "another temperature": policy("planner", broken.OtherTemperature, "log-probs-match-sampler"),
    "dropout on": policy("planner", broken.Dropout, "same-log-probs-twice"),
    "a mean that counts padding": policy("planner", broken.PaddedMean, "same-log-probs-alone-and-in-batch"),
    "a mean that counts padding, drawn": policy("planner", broken.PaddedMean, "same-sample-alone-and-in-batch"),
    "padding that learns": policy("planner", broken.PaddingLearns, "padding-has-no-gradient"),
    "no gradient through the unconditional row": policy("renderer", broken.UnconditionalDetached, "surrogate-gradient-is-the-slope"),
    "no gradient through it, of the divergence": policy("renderer", broken.UnconditionalDetached, "kl-gradient-is-the-slope"),
    "no gradient through it, of adapters": policy("renderer", broken.UnconditionalDetached, "surrogate-gradient-is-the-slope-lora"),
    "weights merged once": policy("planner", broken.MergedOnce, "surrogate-gradient-is-the-slope"),
    "weights merged once, after a step": policy("planner", broken.MergedOnce, "log-probs-match-sampler-after-step"),
    "a buffer that learns": policy("planner", broken.RunningMean, "frozen-stays"),
    "a state that no checkpoint has": policy("planner", broken.KeptToItself, "state-round-trips"),
    # policies: what is sampled
    "truncated sampler": planner(broken.TruncatedSampler, "surprise-is-entropy"),
    "truncated sampler, by its gradient": planner(broken.TruncatedSampler, "mean-log-prob-gradient-is-zero"),
    "forced tokens scored": planner(broken.ForcedTokens, "actions-are-marked"),
    "forced tokens scored, by chance": planner(broken.ForcedTokens, "surprise-is-entropy"),
    "forced first token scored": planner(broken.ForcedStart, "mean-log-prob-gradient-is-zero"),
    "masks from pad ids": planner(broken.MasksFromPadIds, "mean-log-prob-gradient-is-zero"),
    "float32 ids": planner(broken.Float32Seeds, "other-seeds-give-other-samples"),
    "merged prompts": planner(broken.MergedPrompts, "same-sample-alone-and-in-batch"),
    "NaN turned into 0, of plans": planner(broken.HidesNaN, "not-finite-is-marked"),
    "NaN turned into 0, of pictures": Mistake("renderer", broken.HidesNaN, "not-finite-is-marked", TinyPolicy),
    "NaN turned into black pixels": Mistake("renderer", broken.BlackPictures, "not-finite-is-marked", TinyPolicy),
    # policies: Gaussian steps
    "wrong last ᾱ": steps(lambda: GaussianRenderer(broken.WrongLastAlpha()), "log-probs-match-sampler"),
    "wrong last ᾱ, by chance": steps(lambda: broken.SaysWhatItScores(broken.WrongLastAlpha()), "mean-log-prob-gradient-is-zero"),
    "half-precision log-probs": steps(lambda: GaussianRenderer(broken.HalfPrecision()), "surrogate-gradient-is-the-slope"),
    "half-precision log-probs that show": steps(lambda: GaussianRenderer(broken.BareHalfPrecision()), "log-probs-are-float32"),
    "per-sample windows": steps(broken.WindowPerSample, "groups-have-one-window"),
    "σ = 0 on a trained step": steps(lambda: GaussianRenderer(GaussianModule(eta=0.0)), "log-probs-are-float32"),
    "another noise than is scored": steps(lambda: broken.SaysWhatItScores(broken.OtherNoise()), "surprise-is-entropy"),
    # algorithms
    "zero reference": algorithm(broken.ZeroReference, "kl-starts-at-0"),
    "zero reference, by its gradient": algorithm(broken.ZeroReference, "kl-gradient"),
    "KL without gradient": algorithm(broken.DivergenceWithoutGradient, "kl-gradient"),
    "a mean over the micro-batch": algorithm(broken.MeanOfMicroBatch, "micro-batches"),
    "pooled token mean": algorithm(broken.PooledTokenMean, "segments-are-independent"),
    "per-sample means": algorithm(broken.PerSampleMean, "expected-gradient-uneven"),
    "merged groups": algorithm(broken.MergedGroups, "groups-are-independent"),
    "merged groups, by constant ones": algorithm(broken.MergedGroups, "constant-groups"),
    "merged groups, by a shift": algorithm(broken.MergedGroups, "shifted-rewards"),
    "unknown rewards are 0": algorithm(broken.UnknownIsZero, "unknown-rewards"),
    "no baseline": algorithm(broken.RewardsAsAdvantages, "shifted-rewards"),
    "absolute advantages": algorithm(broken.AbsoluteAdvantages, "expected-gradient"),
    "a mean that no checkpoint has": algorithm(Forgetful, "state-is-kept"),
    "a state that is kept in part": algorithm(broken.ForgetsItsMean, "state-is-kept"),
    "a state in no attribute": algorithm(broken.hidden_mean, "state-is-kept"),
    "masked by a product": algorithm(broken.MaskedByProduct, "masked-adds-nothing"),
    # judges
    "reward 0 on failure": judge(broken.ZeroOnFailure, "unknown-is-nan"),
    "random reward on failure": judge(broken.RandomOnFailure, "unknown-is-nan"),
    "scores out of ten": judge(broken.OutOfTen, "scores-are-in-range"),
    "a plan reward that looks at the picture": judge(broken.Peeks, "plan-rewards-are-blind"),
    "scores relative to the batch": judge(broken.ComparesSamples, "same-in-any-batch"),
    "answers kept by position": judge(broken.KeepsOrder, "same-in-any-order"),
    "other numbers with words": judge(broken.OtherNumbersWithWords, "same-in-any-order"),
    "a picture drawn upon": judge(broken.DrawsOnPicture, "leaves-samples-alone"),
    "a reward that depends on what else is asked": judge(broken.DependsOnOthersAsked, "same-asked-alone"),
}


def found(mistake: Mistake, make: Callable[[], Any]) -> CheckResult:
    (check,) = checks_of(mistake.kind, [mistake.check])
    return check.run(subject_of(mistake.kind, make(), CASE))


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_caught_by_its_check(name: str) -> None:
    mistake = MISTAKES[name]
    honest = found(mistake, mistake.honest)
    assert honest.passed is True, honest
    caught = found(mistake, mistake.make)
    assert caught.passed is False, caught


def test_a_mistake_in_large_actions_is_caught_with_few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of actions with 64 numbers each, 45 samples suffice in place of 1,000."""
    monkeypatch.setattr("gaussian.DIMENSIONS", 64)
    name = "another noise than is scored"
    test_a_mistake_is_caught_by_its_check(name)
    assert "135 actions" in found(MISTAKES[name], MISTAKES[name].honest).note


@pytest.mark.parametrize("module", [broken.ConditionalScoring, broken.DividedGuidance, broken.MispairedRows])
def test_the_sampler_gap_shows_the_mistake_and_the_ratio_does_not(module: type[broken.TinyModule]) -> None:
    """With one update the ratio is 1 whatever the scorer computes; the sampler gap shows the mistake."""
    wrong = broken.tiny(module)
    batch = with_rewards(make_tree(wrong), example_rewards())
    _, statistics = update_gradient(Grpo(GrpoOptions()), wrong, batch, {IMAGE: SegmentConfig()})
    assert statistics["image.ratio"] == 1.0
    assert statistics["image.sampler_gap"] > 0.05
    _, honest = update_gradient(Grpo(GrpoOptions()), TinyPolicy(), batch, {IMAGE: SegmentConfig()})
    assert honest["image.sampler_gap"] < 1e-6


@pytest.mark.parametrize("make", [RunningBaseline, Forgetful, lambda: Grpo(GrpoOptions())])
def test_checks_do_not_share_state(make: Callable[[], Any]) -> None:
    """On the command line, one after the other, checks find what each finds alone with a new algorithm, as in pytest."""
    alone = [check.run(make()) for check in checks_of("algorithm")]
    assert [repr(result) for result in run_checks("algorithm", make)] == [repr(result) for result in alone]


def test_a_policy_that_cannot_train_on_whole_chains_is_caught() -> None:
    """All other checks are made on chains that are cut before their natural end."""
    results = {result.name: result for result in run_checks("planner", broken.CrashesInFull, CASE)}
    assert {name for name, result in results.items() if result.passed is False} == {"learns-at-natural-length"}
    assert "IndexError: index out of range in self" in results["learns-at-natural-length"].note
    honest = {result.name: result for result in run_checks("planner", lambda: TinyPolicy(ends=False), CASE, ["learns-at-natural-length"])}
    assert "chains of up to 2 tokens, 0 of 5 cut at 2" in honest["learns-at-natural-length"].note


def test_modules_that_share_a_weight_are_compared_rightly() -> None:
    class Tied(broken.TinyModule):
        def __init__(self) -> None:
            super().__init__()
            self.image_head.weight = self.plan_head.weight
            self.twin = self.plan_head

    (check,) = checks_of("renderer", ["surrogate-gradient-is-the-slope"])
    result = check.run(subject_of("renderer", broken.tiny(Tied), CASE))
    assert result.passed, result
    assert "float64 throughout" in result.note


def test_a_wrong_gradient_of_one_module_of_many_is_named() -> None:
    """Where everything is float64, modules are compared in groups. Only one of forty has a wrong gradient, by a tenth."""

    class Many(broken.TinyModule):
        def __init__(self) -> None:
            super().__init__()
            self.small = torch.nn.ModuleList(torch.nn.Linear(1, 1, bias=False, dtype=torch.float64) for _ in range(40))
            with torch.no_grad():
                for number, layer in enumerate(self.small):
                    layer.weight.fill_(0.1 + 0.01 * number)

        def hidden(self, *args: Any) -> torch.Tensor:
            features = super().hidden(*args)
            for number, layer in enumerate(self.small):
                factor = 1 + 0.1 * layer.weight.squeeze()
                wrong = factor if number != 21 else 0.9 * factor + 0.1 * factor.detach()
                features = features * wrong
            return features

    (check,) = checks_of("planner", ["surrogate-gradient-is-the-slope"])
    result = check.run(subject_of("planner", broken.tiny(Many), CASE))
    assert result.passed is False
    assert "worst of 44 modules: small.21; float64 throughout" in result.note
