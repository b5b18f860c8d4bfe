"""PPO's update of a policy small enough for plain Python: the gradient of the whole objective, the value head, and refused settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gotr1_core.batch import Batch
from gotr1_core.chain import parse
from gotr1_core.config.models import OptimizerConfig, RunConfig, SegmentConfig, validate
from gotr1_core.engine.critic import make_critic
from gotr1_core.engine.metrics import Clock
from gotr1_core.errors import UsageError
from gotr1_core.protocols import Experience
from gotr1_core.reference import Reference
from gotr1_core.samples import IMAGE, PLAN, ActionStats, Prompt, Rollout, Sample, Sampling, SegmentName
from gotr1_core.update import Learner, update
from gotr1_rl.ppo import Ppo, PpoOptions

NAN = math.nan
SYMBOLS, WIDTH = 3, 3
RATE = 0.4
LENGTHS = [3, 5, 1, 4, 2, 5]
TOTALS = torch.tensor([[[0.2, 0.9], [0.0, 0.0]], [[0.5, NAN], [1.0, 0.3]], [[NAN, NAN], [0.7, 0.1]]], dtype=torch.float64)
"""Three prompts of two plans of two pictures; those of the second plan are pruned, one is unknown, and both of the fifth plan."""
PLACE = [s for s in range(12) if s // 2 != 1]
SEGMENTS: Mapping[SegmentName, SegmentConfig] = {
    PLAN: SegmentConfig(kl=0.3, clip_low=0.05, clip_high=0.1, entropy=0.02),
    IMAGE: SegmentConfig(weight=0.5, clip_low=0.1, clip_high=0.05),
}


class Toy(nn.Module):
    """The next token depends on the previous one through an embedding, which is also the input of the value head. Float64."""

    def __init__(self) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(5)
        shapes = {"embedding": (SYMBOLS + 1, WIDTH), PLAN: (WIDTH, SYMBOLS), IMAGE: (WIDTH, SYMBOLS)}
        self.weights = nn.ParameterDict(
            {name: nn.Parameter(torch.randn(shape, dtype=torch.float64, generator=random)) for name, shape in shapes.items()}
        )

    def forward(self, segments: Mapping[SegmentName, Rollout]) -> dict[SegmentName, ActionStats]:
        return {name: self.action_stats(name, rollout.tensors["tokens"]) for name, rollout in segments.items()}

    def action_stats(self, name: SegmentName, tokens: Tensor) -> ActionStats:
        features = self.weights["embedding"][torch.cat([torch.full_like(tokens[:, :1], SYMBOLS), tokens[:, :-1]], 1)]
        log_probs = torch.log_softmax(features @ self.weights[name], -1)
        chosen = log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        return ActionStats(chosen, -(log_probs.exp() * log_probs).sum(-1), features)


class ToyPolicy:
    lora_prefix = ""
    features = WIDTH

    def __init__(self) -> None:
        self.module = Toy()


def made_batch() -> Batch:
    random = torch.Generator().manual_seed(6)

    def rollout(name: SegmentName, lengths: list[int], **more: Tensor) -> Rollout:
        width = max(lengths)
        tokens = torch.randint(SYMBOLS, (len(lengths), width), generator=random)
        mask = torch.arange(width) < torch.tensor(lengths).unsqueeze(1)
        return Rollout(name, Sampling(), {"tokens": tokens, "mask": mask, "log_prob": torch.zeros(tokens.shape), **more})

    plans = rollout(PLAN, LENGTHS, truncated=torch.zeros(6, dtype=torch.bool))
    images = rollout(IMAGE, [4] * len(PLACE), parent=torch.tensor(PLACE) // 2)
    samples = tuple(Sample(Prompt("a"), parse("a"), None) for _ in range(12))
    return Batch(tuple(Prompt("a") for _ in range(3)), plans, images, torch.tensor(PLACE), samples, TOTALS)


# -- the whole objective ----------------------------------------------------------------------------------------------------


@dataclass
class Step:
    """A learner at its start, equal every time it is made. The reference is another policy."""

    learner: Learner
    algorithm: Ppo
    batch: Batch

    @classmethod
    def make(cls, options: PpoOptions, *, rate: float = RATE) -> Step:
        policy: Any = ToyPolicy()
        reference = Reference(policy.module)
        random = torch.Generator().manual_seed(8)
        with torch.no_grad():
            for parameter in policy.module.parameters():
                parameter += 0.3 * torch.randn(parameter.shape, dtype=torch.float64, generator=random)
        settings = OptimizerConfig(learning_rate=rate, schedule="constant", max_grad_norm=1e6)
        optimizer = torch.optim.SGD(policy.module.parameters(), lr=rate)
        algorithm = Ppo(options)
        critic = make_critic(torch.device("cpu"), algorithm, "planner", policy, optimizer, settings)
        assert critic is not None
        critic.module.double()
        with torch.no_grad():
            for parameter in critic.module.parameters():
                parameter.copy_(torch.randn(parameter.shape, dtype=torch.float64, generator=random) / 2)
        return cls(Learner(policy, policy.module, optimizer, settings, SEGMENTS, reference, critic=critic), algorithm, made_batch())

    @property
    def head(self) -> nn.Module:
        assert self.learner.critic is not None
        return self.learner.critic.module

    def run(self, **config: Any) -> dict[str, float]:
        data = {"planner": "toy", "renderer": "toy", "judge": "toy", "steps": 9, "micro_batch": 4} | config
        advantages = self.algorithm.advantages(self.batch.rewards)
        return update(Accelerator(cpu=True), self.learner, self.algorithm, self.batch, advantages, validate(RunConfig, data), Clock())

    def parameters(self) -> dict[str, Tensor]:
        mine = {**dict(self.learner.module.named_parameters()), **dict(self.head.named_parameters())}
        return {name: p.detach().clone() for name, p in mine.items()}

    def scored(self) -> dict[SegmentName, ActionStats]:
        assert self.batch.images is not None
        with torch.no_grad():
            return dict(self.learner.module({PLAN: self.batch.plans, IMAGE: self.batch.images}))


def slow_objective(step: Step, before: Experience, features: Mapping[SegmentName, Tensor], options: PpoOptions) -> float:
    """arXiv 1707.06347, eq. 7, with the divergence and entropy of the segments, and the errors of the values on ``features``."""
    targets = Ppo(options).estimate(before, step.head, lambda sums: sums)  # test_ppo.py holds them to a slow reference
    advantages, returns = targets.advantages, targets.returns
    total, scored = 0.0, step.scored()
    assert before.values is not None
    assert before.reference is not None
    for name, settings in SEGMENTS.items():
        with torch.no_grad():
            values = step.head(features[name].flatten(0, 1)).view(features[name].shape[:2])
        places = [(b, t) for b in range(len(before.masks[name])) for t in range(before.masks[name].shape[1]) if before.masks[name][b, t]]
        policy, errors = 0.0, []
        for b, t in places:
            new, old = scored[name].log_prob[b, t].item(), before.old[name][b, t].item()
            a, ratio = advantages[name][b, t].item(), math.exp(new - old)
            policy -= min(ratio * a, min(max(ratio, 1 - settings.clip_low), 1 + settings.clip_high) * a)
            gap = before.reference[name][b, t].item() - new
            policy += settings.kl * (math.exp(gap) - 1 - gap) - settings.entropy * scored[name].entropy[b, t].item()
            if returns[name][b, t].isfinite():
                value, was, target = values[b, t].item(), before.values[name][b, t].item(), returns[name][b, t].item()
                kept = min(max(value, was - CLIP), was + CLIP)
                errors.append(max((value - target) ** 2, (kept - target) ** 2) / 2)
        counted = len(places) * (12 / len(PLACE) if name == IMAGE else 1)  # pruned pictures count as if drawn
        total += settings.weight * policy / counted + sum(errors) / len(errors)
    return total


def seen_by(step: Step) -> Experience:
    """What the algorithm is given of a step, computed again."""
    assert step.learner.reference is not None
    with step.learner.reference.active():
        reference = {name: s.log_prob for name, s in step.scored().items()}
    scored = step.scored()
    with torch.no_grad():
        values = {name: step.head(s.features.flatten(0, 1)).view(s.log_prob.shape) for name, s in scored.items() if s.features is not None}
    old = {name: s.log_prob for name, s in scored.items()}
    assert step.batch.images is not None
    masks = {PLAN: step.batch.plans.tensors["mask"], IMAGE: step.batch.images.tensors["mask"]}
    return Experience(TOTALS, torch.tensor(PLACE), masks, old, reference, values)


CLIP = 0.02
OPTIONS = {
    "plain": PpoOptions(value_learning_rate=RATE, value_clip=CLIP, value_width=3, value_max_grad_norm=1e6),
    "split": PpoOptions(
        value_learning_rate=RATE, value_clip=CLIP, value_width=0, value_max_grad_norm=1e6, advantages="split", decay=0.8, reward_kl=0.2
    ),
    "joint": PpoOptions(
        value_learning_rate=RATE, value_clip=CLIP, value_width=3, value_max_grad_norm=1e6, decay=0.9, discount=0.95, whiten=False
    ),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("number", [1, 2])
def test_the_update_is_the_slope_of_the_papers_objective(options: PpoOptions, number: int) -> None:
    """For every parameter of policy and head: at ratio 1, and after a first update that moved some ratios and values beyond their clips."""
    start = Step.make(options)
    before = seen_by(start)
    at = Step.make(options)
    if number == 2:
        at.run(updates=1)
    features = {name: s.features for name, s in at.scored().items()}
    end = Step.make(options)
    statistics = end.run(updates=number)
    if number == 2:
        assert statistics["plan.clipped"] > 0.1
        assert statistics["plan.value_clipped"] > 0.05
    found = {name: (was - end.parameters()[name]) / RATE for name, was in at.parameters().items()}
    live = {**dict(at.learner.module.named_parameters()), **dict(at.head.named_parameters())}
    size, compared = 1e-6, 0
    for name, parameter in live.items():
        for index in range(parameter.numel()):
            ends = []
            for sign in (1, -1):
                with torch.no_grad():
                    parameter.view(-1)[index] += sign * size
                    ends.append(slow_objective(at, before, features, options))  # type: ignore[arg-type]
                    parameter.view(-1)[index] -= sign * size
            slope = (ends[0] - ends[1]) / (2 * size)
            # Central differences of a float64 number of size one: rounding 1e-16 / 1e-6, curvature times 1e-12.
            assert found[name].view(-1)[index].item() == pytest.approx(slope, abs=2e-8), name
            compared += abs(slope) > 1e-3
    assert compared > 20


@pytest.mark.parametrize("updates", [1, 3])
def test_micro_batches_do_not_change_the_update(updates: int) -> None:
    found = []
    for micro_batch in (6, 4, 1):
        step = Step.make(OPTIONS["joint"])
        step.run(updates=updates, micro_batch=micro_batch)
        found.append(torch.cat([p.flatten() for p in step.parameters().values()]))
    assert (found[0] - torch.cat([p.flatten() for p in Step.make(OPTIONS["joint"]).parameters().values()])).abs().max() > 0.01
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-10, atol=1e-12)


def test_with_one_update_the_ratio_is_one() -> None:
    statistics = Step.make(OPTIONS["plain"]).run()
    assert statistics["plan.ratio"] == statistics["image.ratio"] == 1.0
    assert statistics["plan.clipped"] == statistics["plan.value_clipped"] == 0.0


# -- the head ---------------------------------------------------------------------------------------------------------------


def test_during_the_warm_up_the_head_alone_learns() -> None:
    options = PpoOptions(value_warmup=2, value_learning_rate=0.1, value_width=0)
    step = Step.make(options, rate=0.1)
    start = step.parameters()
    for _ in range(2):
        numbers = step.run(updates=2)
        assert numbers["gradient_norm"] == 0
        assert numbers["value_gradient_norm"] > 0
    now = step.parameters()
    moved = {name for name, p in now.items() if not torch.equal(p, start[name])}
    assert moved == {"layers.1.weight", "layers.1.bias"}
    assert step.run(updates=2)["gradient_norm"] > 0
    assert all(not torch.equal(p, now[name]) for name, p in step.parameters().items())


def test_the_head_learns() -> None:
    """Rewards depend on the tokens. The share of variance that values explain rises from zero towards all that the first token tells."""
    options = PpoOptions(value_warmup=200, value_learning_rate=0.3, value_width=8, value_clip=None)
    step = Step.make(options, rate=0.1)
    with torch.no_grad():
        for parameter in list(step.head.parameters())[-2:]:
            parameter.zero_()
    assert step.batch.images is not None
    # A value sees the token before; all tokens of a sample are one symbol, so from the second on it can know the total.
    symbol = torch.arange(6) % SYMBOLS
    rewards = (symbol.double() / 2).view(3, 2, 1).expand(3, 2, 2)
    plans = replace(step.batch.plans, tensors={**step.batch.plans.tensors, "tokens": symbol.view(6, 1).expand(6, 5).contiguous()})
    parent = step.batch.images.tensors["parent"]
    drawn = {**step.batch.images.tensors, "tokens": symbol[parent].view(-1, 1).expand(-1, 4).contiguous()}
    step.batch = replace(step.batch, plans=plans, images=replace(step.batch.images, tensors=drawn), rewards=rewards)
    found = [step.run() for _ in range(200)]
    assert abs(found[0]["plan.explained_variance"]) < 1e-9
    assert found[-1]["plan.explained_variance"] > 0.5
    assert found[-1]["image.explained_variance"] > 0.5
    assert found[-1]["image.value_loss"] < 0.5 * found[0]["image.value_loss"]
    assert found[-1]["image.value"] == pytest.approx(found[-1]["image.return"], abs=0.05)


def test_no_gradient_of_values_reaches_the_policy() -> None:
    """With given advantages the policy's update is the same for any error of the head. Here all rewards are unknown."""
    step = Step.make(OPTIONS["plain"])
    step.batch = replace(step.batch, rewards=torch.full_like(TOTALS, NAN))
    start = step.parameters()
    step.learner.segments = {PLAN: SegmentConfig(), IMAGE: SegmentConfig()}
    step.learner.reference = None
    step.run()
    assert all(torch.equal(p, start[name]) for name, p in step.parameters().items())


def test_a_policy_without_features_is_refused() -> None:
    policy: Any = ToyPolicy()
    optimizer = torch.optim.SGD(policy.module.parameters(), lr=1.0)
    policy.features = None
    with pytest.raises(UsageError, match="no features") as refused:
        make_critic(torch.device("cpu"), Ppo(PpoOptions()), "renderer", policy, optimizer, OptimizerConfig())
    assert "grpo" in (refused.value.hint or "")
