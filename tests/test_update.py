"""One policy's update on a recorded rollout: micro-batches, denominators, ratios, the reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from gotr1_core.advantages import Advantages
from gotr1_core.batch import Batch, split_batch
from gotr1_core.config.models import LoraConfig, OptimizerConfig, RunConfig, SegmentConfig, validate
from gotr1_core.engine.metrics import Clock
from gotr1_core.engine.optim import make_optimizer
from gotr1_core.judges import Judges
from gotr1_core.policies.lora import add_lora
from gotr1_core.protocols import RLAlgorithm
from gotr1_core.reference import Reference
from gotr1_core.reward import Expression
from gotr1_core.rollout import RolloutSettings, roll_out
from gotr1_core.samples import IMAGE, PLAN, Prompt, Rollout, Sampling, SegmentName
from gotr1_core.update import Learner, counts, update
from gotr1_rl.grpo import Grpo, GrpoOptions

PROMPTS = [Prompt(text) for text in ("a", "a red cat", "two dogs", "b c")]
BOTH: Mapping[SegmentName, SegmentConfig] = {PLAN: SegmentConfig(), IMAGE: SegmentConfig(weight=0.5)}


def config(**changed: Any) -> RunConfig:
    data: dict[str, Any] = {"planner": "janus", "renderer": "janus", "judge": "letters", "steps": 4, "micro_batch": 4}
    return validate(RunConfig, data | changed)


@dataclass
class Recorded:
    """A policy, the samples that it drew, and its parameters at that time."""

    policy: Any
    batch: Batch
    start: dict[str, Tensor]

    def learner(
        self, segments: Mapping[SegmentName, SegmentConfig] = BOTH, *, rate: float = 1.0, adam: bool = False, **more: Any
    ) -> Learner:
        """A learner with the parameters at their start. Plain gradient descent shows the gradient; Adam divides it by its own size,
        rounding included."""
        policy = self.policy
        policy.module.zero_grad()
        with torch.no_grad():
            for name, parameter in policy.module.named_parameters():
                parameter.copy_(self.start[name])
        settings = OptimizerConfig(learning_rate=rate, schedule="constant", max_grad_norm=1e6)
        trained = [p for p in policy.module.parameters() if p.requires_grad]
        optimizer = make_optimizer(policy.module, settings) if adam else torch.optim.SGD(trained, lr=rate)
        reference = Reference(policy.module) if any(s.kl for s in segments.values()) else None
        return Learner(policy, policy.module, optimizer, settings, segments, reference, **more)

    def update(
        self,
        learner: Learner,
        settings: RunConfig,
        advantages: Advantages | None = None,
        options: GrpoOptions | None = None,
        algorithm: RLAlgorithm | None = None,
    ) -> dict[str, float]:
        algorithm = algorithm or Grpo(options or GrpoOptions())
        accelerator = Accelerator(cpu=True)
        return update(
            accelerator, learner, algorithm, self.batch, advantages or algorithm.advantages(self.batch.rewards), settings, Clock()
        )

    def moved(self) -> dict[str, Tensor]:
        """The difference of each parameter from its start."""
        named = self.policy.module.named_parameters()
        return {name: p.detach() - self.start[name] for name, p in named if p.requires_grad and not torch.equal(p, self.start[name])}


def record(policy: Any, judge: Any, *, images: int = 2, **more: Any) -> Recorded:
    judges = Judges({"letters": judge}, Expression.parse("letters * bright"))
    sampling = Sampling(guidance_scale=3.0, max_chain_tokens=8)
    drawn = roll_out(policy, policy, judges, PROMPTS, RolloutSettings(sampling, seed=(0, 0), plans=4, images=images, **more))
    return Recorded(policy, drawn, {name: p.detach().clone() for name, p in policy.module.named_parameters()})


@pytest.fixture
def recorded(policy: Any, letters_judge: Any) -> Recorded:
    found = record(policy, letters_judge)
    assert found.batch.images is not None
    assert len(found.batch.images) < len(found.batch.samples)  # some are pruned
    return found


def near(one: Mapping[str, Tensor], other: Mapping[str, Tensor], share: float = 1e-4) -> None:
    """True if equal within a fraction of the largest entry: gradients are sums of float32 terms, in different orders and batch shapes."""
    assert one.keys() == other.keys()
    assert one
    for name in one:
        assert (one[name] - other[name]).abs().max() <= share * max(one[name].abs().max(), other[name].abs().max(), 1e-3), name


# -- micro-batches and denominators -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("updates", [1, 2])
def test_micro_batches_do_not_change_the_update(recorded: Recorded, updates: int) -> None:
    """Micro-batches of 16, 8, 4 and 1 rows."""
    found = []
    for micro_batch in (16, 8, 4, 1):
        recorded.update(recorded.learner(rate=0.05), config(micro_batch=micro_batch, updates=updates))
        found.append(recorded.moved())
    assert max(change.abs().max() for change in found[0].values()) > 1e-3
    # After the first of two updates the parameters differ by rounding, and the second magnifies that a little.
    for other in found[1:]:
        near(found[0], other, 1e-4 if updates == 1 else 1e-3)


def test_micro_batches_do_not_change_an_adam_step(recorded: Recorded) -> None:
    """Adam's first step is learning rate x sign(gradient). If a gradient is only rounding, steps may differ by twice the learning rate."""
    found = []
    for micro_batch in (16, 4, 1):
        recorded.update(recorded.learner(rate=1e-3, adam=True), config(micro_batch=micro_batch))
        found.append(torch.cat([change.flatten() for change in recorded.moved().values()]))
    for other in found[1:]:
        assert other.shape == found[0].shape
        assert ((found[0] - other).abs() > 1e-6).double().mean() < 2e-3


def whole_gradient(recorded: Recorded, segments: Mapping[SegmentName, SegmentConfig], advantages: Advantages) -> dict[str, Tensor]:
    """The gradient of the loss as the formula has it: one forward pass for everything, no row left out, each segment divided by its own
    count."""
    batch, module = recorded.batch, recorded.policy.module
    rollouts: dict[SegmentName, Rollout] = {PLAN: batch.plans}
    if batch.images is not None:
        rollouts[IMAGE] = batch.images
    scored = module(rollouts)
    row_advantages = {PLAN: advantages.plan.flatten(), IMAGE: advantages.image.flatten()[batch.place]}
    tokens = {PLAN: batch.plans.tensors["mask"].sum(), IMAGE: torch.tensor(9 * len(batch.samples))}
    loss = torch.zeros(())
    for name, settings in segments.items():
        gain = (scored[name].log_prob * row_advantages[name].float().unsqueeze(1))[rollouts[name].tensors["mask"]].sum()
        loss = loss - settings.weight * gain / tokens[name]
    named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
    return {n: g for (n, _), g in zip(named, gradients, strict=True) if g is not None and g.abs().max() > 0}


@pytest.mark.parametrize("segments", [BOTH, {PLAN: SegmentConfig()}, {IMAGE: SegmentConfig()}], ids=["both", "plan", "image"])
def test_the_update_is_the_gradient_of_the_loss(recorded: Recorded, segments: Mapping[SegmentName, SegmentConfig]) -> None:
    """On-policy GRPO is -advantage x log p over all tokens of a segment. Pruned images count in the denominator."""
    advantages = Grpo(GrpoOptions()).advantages(recorded.batch.rewards)
    learner = recorded.learner(segments)
    expected = whole_gradient(recorded, segments, advantages)
    recorded.update(learner, config())
    near({n: -g for n, g in expected.items()}, recorded.moved())


def test_skipping_rows_without_advantage_changes_no_gradient(recorded: Recorded) -> None:
    advantages = Grpo(GrpoOptions()).advantages(recorded.batch.rewards)
    plan, image = advantages.plan.clone(), advantages.image.clone()
    plan[:, 1:], image[:, 1:], image[2, 0] = 0, 0, 0
    sparse = Advantages(plan, image)
    learner = recorded.learner()
    parts = split_batch(recorded.batch, sparse, learner.segments, config())
    assert sum(len(part.segments[PLAN]) for part in parts) == 4
    expected = whole_gradient(recorded, BOTH, sparse)
    recorded.update(learner, config(), sparse)
    near({n: -g for n, g in expected.items()}, recorded.moved())
    kl = recorded.learner({PLAN: SegmentConfig(kl=0.1), IMAGE: SegmentConfig()})
    parts = split_batch(recorded.batch, sparse, kl.segments, config())
    assert sum(len(part.segments[PLAN]) for part in parts) == 16  # each plan has a divergence from the reference


def test_a_batch_without_any_advantage_moves_nothing(recorded: Recorded) -> None:
    nothing = Advantages(torch.zeros(4, 4), torch.zeros(4, 4, 2))
    learner = recorded.learner(adam=True)
    assert split_batch(recorded.batch, nothing, learner.segments, config()) == []
    recorded.update(learner, config(), nothing)
    assert recorded.moved() == {}


def divisors(counted: Mapping[str, tuple[float, int, int]]) -> dict[str, float]:
    """The divisors of the sums, from the number of sampled rows and the number of rows that should have been sampled."""
    return {name: sampled * rows / drawn for name, (sampled, rows, drawn) in counted.items()}


def test_denominators_count_pruned_images(policy: Any, letters_judge: Any) -> None:
    pruned, full = record(policy, letters_judge), record(policy, letters_judge, prune=False)
    algorithm = Grpo(GrpoOptions())
    one, other = (divisors(counts(r.batch, r.learner(), algorithm, config())) for r in (pruned, full))
    assert one == other
    assert one[IMAGE] == 9 * 32
    assert one[PLAN] == pruned.batch.plans.tensors["mask"].sum()
    sequences = divisors(counts(pruned.batch, pruned.learner(), Grpo(GrpoOptions(ratio="sequence")), config()))
    assert sequences == {PLAN: 16, IMAGE: 32}


def test_pruning_does_not_change_the_plan_gradient(policy: Any, letters_judge: Any) -> None:
    found = []
    for recorded in [record(policy, letters_judge, prune=prune) for prune in (True, False)]:
        recorded.update(recorded.learner({PLAN: SegmentConfig()}), config())
        found.append(recorded.moved())
    # Rewards may differ by one rounded pixel (1e-5 of about 0.1), and so may advantages.
    near(*found, share=2e-3)


# -- ratios -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_with_one_update_the_ratio_is_one(recorded: Recorded, ratio: Any) -> None:
    found = recorded.update(recorded.learner(), config(), options=GrpoOptions(ratio=ratio))
    for name in (PLAN, IMAGE):
        assert found[f"{name}.ratio"] == 1.0
        assert found[f"{name}.clipped"] == 0.0
        assert found[f"{name}.sampler_gap"] <= found[f"{name}.worst_sampler_gap"] <= 1e-4


def test_with_two_updates_the_ratio_differs_from_one(recorded: Recorded) -> None:
    small = recorded.update(recorded.learner(rate=0.02), config(updates=2))
    assert small["plan.ratio"] != 1.0
    assert abs(small["plan.ratio"] - 1) < 0.1
    assert small["plan.worst_sampler_gap"] <= 1e-4  # measured before the first update only
    large = recorded.update(recorded.learner(rate=2.0), config(updates=2))
    assert large["plan.clipped"] > 0.05
    assert large["plan.worst_sampler_gap"] <= 1e-4


def test_the_sampler_gap_shows_another_temperature(recorded: Recorded) -> None:
    """The sampler gap shows whether the scorer's distribution is the sampler's. Here the temperature was another."""
    warmer = replace(recorded.batch.plans, sampling=replace(recorded.batch.plans.sampling, temperature=1.2))
    recorded.batch = replace(recorded.batch, plans=warmer)
    found = recorded.update(recorded.learner(), config())
    assert found["plan.worst_sampler_gap"] > 0.05
    assert found["plan.ratio"] == 1.0  # and the ratio does not


def test_updates_are_counted(recorded: Recorded) -> None:
    learner = recorded.learner(rate=0.01)
    found = recorded.update(learner, config(updates=3))
    assert learner.updates == 3
    assert found["learning_rate"] == 0.01


# -- the reference ----------------------------------------------------------------------------------------------------------


def test_the_divergence_begins_at_zero_and_has_a_gradient(recorded: Recorded) -> None:
    segments: Mapping[SegmentName, SegmentConfig] = {PLAN: SegmentConfig(kl=1.0), IMAGE: SegmentConfig(kl=1.0)}
    nothing = Advantages(torch.zeros(4, 4), torch.zeros(4, 4, 2))
    learner = recorded.learner(segments, rate=1e-3)
    begun = recorded.update(learner, config(), nothing)
    assert begun["plan.kl"] == begun["image.kl"] == 0.0  # the same numbers, computed twice
    assert recorded.moved() == {}  # k3 is flat there
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in recorded.policy.module.parameters():
            if parameter.requires_grad and parameter.dim() > 1:
                parameter += 2e-3 * torch.randn_like(parameter)
        # The pad's embedding is zero and has no gradient; RMSNorm would make any noise in it as large as a word.
        recorded.policy.module.model.get_input_embeddings().weight[recorded.policy.module.pad] = 0
    found = [recorded.update(learner, config(), nothing) for _ in range(6)]
    for name in (PLAN, IMAGE):
        values = [row[f"{name}.kl"] for row in found]
        assert values[0] > 1e-4
        assert values[-1] < 0.8 * values[0]  # it pulls back towards the reference
        assert all(row[f"{name}.ratio"] == 1.0 for row in found)


def outputs(recorded: Recorded) -> list[Tensor]:
    with torch.no_grad():
        scored = recorded.policy.module(recorded.batch.segments(torch.arange(16))[0])
    return [scored[PLAN].log_prob, scored[IMAGE].log_prob]


@pytest.mark.parametrize("lora", [False, True])
def test_the_reference_uses_starting_weights_and_restores_the_policy(policy: Any, letters_judge: Any, lora: bool) -> None:
    """The adapters do not begin at zero, and heads train beside them. So the model with its adapters off would not be the reference."""
    if lora:
        add_lora(policy, LoraConfig(rank=2))
        policy.module.model.lm_head.requires_grad_(True)
        policy.module.model.model.generation_head.requires_grad_(True)
        with torch.no_grad():
            for name, parameter in policy.module.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1)
    recorded = record(policy, letters_judge)
    begun = outputs(recorded)
    learner = recorded.learner({PLAN: SegmentConfig(kl=0.1), IMAGE: SegmentConfig(kl=0.1)}, rate=0.5)
    recorded.update(learner, config())
    trained, after = {n: p.detach().clone() for n, p in policy.module.named_parameters()}, outputs(recorded)
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(begun, after, strict=True))
    assert learner.reference is not None
    with learner.reference.active():
        assert all(torch.equal(a, b) for a, b in zip(begun, outputs(recorded), strict=True))
        assert not torch.is_grad_enabled()
    assert all(torch.equal(a, b) for a, b in zip(after, outputs(recorded), strict=True))
    with pytest.raises(RuntimeError, match="judge"), learner.reference.active():
        raise RuntimeError("judge")
    assert all(torch.equal(p, trained[n]) for n, p in policy.module.named_parameters())
    recorded.update(learner, config())  # the optimizer still holds the parameters that train
    assert any(not torch.equal(p, trained[n]) for n, p in policy.module.named_parameters())
    with learner.reference.active():
        assert all(torch.equal(a, b) for a, b in zip(begun, outputs(recorded), strict=True))


# -- masks and options ------------------------------------------------------------------------------------------------------


def test_truncated_chains_can_be_masked(recorded: Recorded) -> None:
    cut = recorded.batch.plans.tensors["truncated"]
    assert cut.any()
    assert not cut.all()
    segments: Mapping[SegmentName, SegmentConfig] = {PLAN: SegmentConfig()}
    recorded.update(recorded.learner(segments), config(mask_truncated=True))
    masked = recorded.moved()
    mask = recorded.batch.plans.tensors["mask"] & ~cut.unsqueeze(1)
    without = replace(recorded.batch.plans, tensors={**recorded.batch.plans.tensors, "mask": mask})
    recorded.batch = replace(recorded.batch, plans=without)
    learner = recorded.learner(segments)
    expected = whole_gradient(recorded, segments, Grpo(GrpoOptions()).advantages(recorded.batch.rewards))
    near({n: -g for n, g in expected.items()}, masked)
    assert divisors(counts(recorded.batch, learner, Grpo(GrpoOptions()), config()))[PLAN] == mask.sum()


def test_all_chains_truncated_and_masked_move_nothing(recorded: Recorded) -> None:
    plans = recorded.batch.plans
    cut = torch.ones_like(plans.tensors["truncated"])
    recorded.batch = replace(recorded.batch, plans=replace(plans, tensors={**plans.tensors, "truncated": cut}))
    recorded.update(recorded.learner({PLAN: SegmentConfig()}), config(mask_truncated=True))
    assert recorded.moved() == {}


def test_an_entropy_bonus_raises_entropy(recorded: Recorded) -> None:
    nothing = Advantages(torch.zeros(4, 4), torch.zeros(4, 4, 2))
    segments: Mapping[SegmentName, SegmentConfig] = {PLAN: SegmentConfig(entropy=1.0), IMAGE: SegmentConfig(entropy=1.0)}
    learner = recorded.learner(segments, rate=0.05)
    found = [recorded.update(learner, config(), nothing) for _ in range(4)]
    for name in (PLAN, IMAGE):
        values = [row[f"{name}.entropy"] for row in found]
        assert values == sorted(values)
        assert values[-1] > values[0] + 0.01


def test_segments_touch_their_own_head_alone(recorded: Recorded) -> None:
    recorded.update(recorded.learner({PLAN: SegmentConfig()}), config())
    plan = recorded.moved()
    recorded.update(recorded.learner({IMAGE: SegmentConfig()}), config())
    image = recorded.moved()
    heads = [("model.lm_head", plan, image), ("model.model.generation_head", image, plan)]
    for head, mine, other in heads:
        assert any(name.startswith(head) for name in mine)
        assert not any(name.startswith(head) for name in other)


def test_gradients_are_clipped(recorded: Recorded) -> None:
    learner = recorded.learner(rate=1.0)
    learner.settings = learner.settings.model_copy(update={"max_grad_norm": 1e-3})
    found = recorded.update(learner, config())
    assert found["gradient_norm"] > 0.01
    size = torch.cat([change.flatten() for change in recorded.moved().values()]).norm().item()
    assert size == pytest.approx(1e-3, rel=1e-2)  # float32 parameters of order 0.1 take up changes of 1e-5 to some 1e-3
