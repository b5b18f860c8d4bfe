"""Components broken on purpose: each makes one mistake that somebody has shipped, and hides it as well as they did.

Where a sampler could have told, it tells the same lie as the scorer.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from gaussian import STEPS, WINDOW, GaussianModule, GaussianRenderer
from PIL import ImageDraw
from torch import Tensor

from gotr1_core.advantages import Advantages, joint
from gotr1_core.config.models import SegmentConfig
from gotr1_core.protocols import Loss
from gotr1_core.samples import IMAGE, PLAN, ActionStats, Prompt, Rollout, Sample, Sampling, SegmentName
from gotr1_core.sampling import apply_guidance, decode, uniforms
from gotr1_rl.grpo import Grpo, GrpoOptions
from gotr1_testing.enumerable import END, LENGTH, TinyModule, TinyPolicy

# -- scoring ----------------------------------------------------------------------------------------------------------------


def tiny(module: type[TinyModule]) -> TinyPolicy:
    """The tiny policy with another module."""
    policy = TinyPolicy()
    policy.module = module()
    return policy


class ConditionalScoring(TinyModule):
    """Images sampled under guidance are scored with the conditional logits alone (T2I-R1, STAGE)."""

    def guided(self, conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
        return conditional


class DividedGuidance(TinyModule):
    """Guided logits are divided by the scale when they are scored (Janus-Pro-R1)."""

    def guided(self, conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
        return apply_guidance(conditional, unconditional, scale) / scale


class MispairedRows(TinyModule):
    """The scorer pairs each conditional row with its neighbour's unconditional one (ReasonGen-R1)."""

    def guided(self, conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
        return apply_guidance(conditional, unconditional.roll(1, 0), scale)


class OtherTemperature(TinyModule):
    """Scores at temperature 1 whatever was sampled at."""

    def score(self, rollout: Rollout) -> ActionStats:
        return super().score(replace(rollout, sampling=replace(rollout.sampling, temperature=1.0, image_temperature=1.0)))


class Dropout(TinyModule):
    """Dropout is on while scoring."""

    def hidden(self, before: Tensor, plan: Tensor | None, prompt: Tensor | None) -> Tensor:
        return torch.nn.functional.dropout(super().hidden(before, plan, prompt), 0.1, training=True)


class PaddedMean(TinyModule):
    """The mean over a prompt counts its padding, so it depends on the longest prompt of the batch."""

    def prompt(self, ids: Tensor, length: Tensor) -> Tensor:
        return super().prompt(ids, length) * (length / ids.shape[1]).unsqueeze(1)


class PaddingLearns(TinyModule):
    """Padding carries gradient, and changes no number: a term that is zero forward and not backward."""

    def prompt(self, ids: Tensor, length: Tensor) -> Tensor:
        padded = torch.arange(ids.shape[1]) >= length.unsqueeze(1)
        leak = (self.embed(ids) * padded.unsqueeze(-1)).sum(1)
        return super().prompt(ids, length) + leak - leak.detach()


class UnconditionalDetached(TinyModule):
    """No gradient goes through the unconditional row."""

    def guided(self, conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
        return apply_guidance(conditional, unconditional.detach(), scale)


class MergedOnce(TinyModule):
    """Weights are copied for inference when they are first used, and never again."""

    kept: Tensor | None = None

    def hidden(self, before: Tensor, plan: Tensor | None, prompt: Tensor | None) -> Tensor:
        if torch.is_grad_enabled():
            return super().hidden(before, plan, prompt)
        self.kept = self.body.weight.detach().clone() if self.kept is None else self.kept
        now = self.body.weight.data
        self.body.weight.data = self.kept
        try:
            return super().hidden(before, plan, prompt)
        finally:
            self.body.weight.data = now


class RunningMean(TinyModule):
    """Features are centred by a running mean, which every pass moves: a buffer that learns although it is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8, dtype=torch.float64))

    def hidden(self, before: Tensor, plan: Tensor | None, prompt: Tensor | None) -> Tensor:
        found = super().hidden(before, plan, prompt)
        if torch.is_grad_enabled():
            self.mean.lerp_(found.detach().flatten(0, -2).mean(0), 0.01)
        return found - self.mean


class KeptToItself(TinyModule):
    """Something that learns is neither parameter nor buffer, so no checkpoint has it."""

    bias = 0.0

    def hidden(self, before: Tensor, plan: Tensor | None, prompt: Tensor | None) -> Tensor:
        self.bias += 0.01 * torch.is_grad_enabled()
        return super().hidden(before, plan, prompt) + self.bias


# -- sampling ---------------------------------------------------------------------------------------------------------------


class TruncatedSampler(TinyPolicy):
    """Samples from the two likeliest symbols, and reports the probabilities of all three (T2I-R1: top-k 50)."""

    @torch.no_grad()
    def plan(self, prompts: Sequence[Prompt], *, seeds: Sequence[int], sampling: Sampling) -> Rollout:
        tensors = self.encode(prompts)
        asked = self.module.prompt(tensors["prompt"], tensors["prompt_length"])
        start = torch.full((len(prompts),), -1)

        def advance(tokens: Tensor | None) -> Tensor:
            logits = self.module.plan_head(self.module.hidden(start if tokens is None else tokens, None, asked))
            return logits.masked_fill(logits == logits.min(-1, keepdim=True).values, -math.inf)

        drawn = decode(advance, uniforms(seeds, min(LENGTH, sampling.max_chain_tokens)), sampling.temperature, stop=END)
        tensors |= {"tokens": drawn.tokens, "mask": drawn.mask, "log_prob": drawn.log_prob, "truncated": ~drawn.finished}
        return honest_log_probs(self, Rollout(PLAN, sampling, tensors, chains=self.chains(drawn.tokens, drawn.mask)))


def honest_log_probs(policy: TinyPolicy, rollout: Rollout) -> Rollout:
    """The scorer's log-probabilities in place of the sampler's."""
    scored = policy.module.score(rollout).log_prob
    return replace(rollout, tensors={**rollout.tensors, "log_prob": scored.masked_fill(~rollout.tensors["mask"], 0.0)})


class ForcedTokens(TinyPolicy):
    """A chain that was cut gets the end appended, and it is scored as if it had been sampled."""

    @torch.no_grad()
    def plan(self, prompts: Sequence[Prompt], *, seeds: Sequence[int], sampling: Sampling) -> Rollout:
        plans = super().plan(prompts, seeds=seeds, sampling=sampling)
        t = plans.tensors
        cut = t["truncated"].unsqueeze(1)
        more = {"tokens": torch.full_like(cut, END, dtype=torch.long), "mask": cut, "log_prob": torch.zeros(cut.shape)}
        return honest_log_probs(self, replace(plans, tensors={**t, **{name: torch.cat([t[name], more[name]], 1) for name in more}}))


class ForcedStart(TinyPolicy):
    """No chain may be empty: the end is taken back and another symbol put there, scored as if it had been sampled."""

    @torch.no_grad()
    def plan(self, prompts: Sequence[Prompt], *, seeds: Sequence[int], sampling: Sampling) -> Rollout:
        plans = super().plan(prompts, seeds=seeds, sampling=sampling)
        t = plans.tensors
        tokens = t["tokens"].clone()
        tokens[:, 0] = tokens[:, 0].clamp_min(1)
        return honest_log_probs(self, replace(plans, tensors={**t, "tokens": tokens}, chains=self.chains(tokens, t["mask"])))


class MasksFromPadIds(TinyPolicy):
    """The end of a chain is also the padding, and actions are what is no padding: a sampled end is none."""

    @torch.no_grad()
    def plan(self, prompts: Sequence[Prompt], *, seeds: Sequence[int], sampling: Sampling) -> Rollout:
        plans = super().plan(prompts, seeds=seeds, sampling=sampling)
        mask = plans.tensors["mask"] & (plans.tensors["tokens"] != END)
        mask[:, 0] |= ~mask.any(1)  # a loss without actions would have shown it
        return replace(plans, tensors={**plans.tensors, "mask": mask})


class Float32Seeds(TinyPolicy):
    """A 64-bit id passes through float32."""

    def plan(self, prompts: Sequence[Prompt], *, seeds: Sequence[int], sampling: Sampling) -> Rollout:
        return super().plan(prompts, seeds=[int(np.float32(seed)) for seed in seeds], sampling=sampling)


class MergedPrompts(TinyPolicy):
    """Prompts are told apart by their beginnings: what two of them have in common is computed once, and belongs to the first."""

    def encode(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        first: dict[str, Prompt] = {}
        return super().encode([first.setdefault(prompt.text[:20], prompt) for prompt in prompts])


# -- Gaussian steps ---------------------------------------------------------------------------------------------------------


class Scoring(GaussianModule):
    """Knows whether it samples or scores."""

    scoring = False

    def score(self, rollout: Rollout) -> ActionStats:
        self.scoring = True
        try:
            return super().score(rollout)
        finally:
            self.scoring = False


class WrongLastAlpha(Scoring):
    """The scorer takes ᾱ' of the last step from the wrong branch (DDIM)."""

    def previous(self, step: int) -> float:
        return 0.98 if self.scoring and step + 1 == STEPS else super().previous(step)


class HalfPrecision(GaussianModule):
    """Log-probabilities are computed in half precision, by sampler and scorer alike, and look like float32 afterwards."""

    def log_prob(self, after: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        return super().log_prob(after.half(), mean.half(), std.half()).to(mean.dtype)


class BareHalfPrecision(GaussianModule):
    """The same, and it shows."""

    def log_prob(self, after: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        return super().log_prob(after.half(), mean.half(), std.half())


class OtherNoise(Scoring):
    """Draws with more noise than it says."""

    def distribution(self, x: Tensor, step: int, asked: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        mean, std = super().distribution(x, step, asked, scale)
        return mean, std if self.scoring else 1.2 * std


class SaysWhatItScores(GaussianRenderer):
    """Reports the scorer's log-probabilities, whatever it drew from."""

    @torch.no_grad()
    def render(self, *args: Any, **more: Any) -> Rollout:
        drawn = super().render(*args, **more)
        return replace(drawn, tensors={**drawn.tensors, "log_prob": self.module.score(drawn).log_prob})


class WindowPerSample(GaussianRenderer):
    """The window of trained steps is drawn for each sample, and not for its group."""

    def window(self, groups: Sequence[int], seeds: Sequence[int]) -> list[int]:
        return [seed % (STEPS - WINDOW + 1) for seed in seeds]


# -- algorithms -------------------------------------------------------------------------------------------------------------


class Broken(Grpo):
    """GRPO without division, to be broken."""

    def __init__(self) -> None:
        super().__init__(GrpoOptions(scale=False))


class ZeroReference(Broken):
    """Zeros as the reference's log-probabilities (T2I-R1, with LoRA)."""

    def loss(self, segment: SegmentName, scored: ActionStats, old: Tensor, reference: Tensor | None, *rest: Any) -> Loss:
        return super().loss(segment, scored, old, None if reference is None else torch.zeros_like(reference), *rest)


class DivergenceWithoutGradient(Broken):
    """The divergence is computed without gradient (Flow-Factory, until fixed); the loss and its statistics look right."""

    def loss(
        self,
        segment: SegmentName,
        scored: ActionStats,
        old: Tensor,
        reference: Tensor | None,
        advantages: Tensor,
        mask: Tensor,
        settings: SegmentConfig,
    ) -> Loss:
        plain = super().loss(segment, scored, old, None, advantages, mask, settings)
        whole = super().loss(segment, scored, old, reference, advantages, mask, settings)
        total = plain.sums[segment] + (whole.sums[segment] - plain.sums[segment]).detach()
        return replace(whole, sums={segment: total})


class MeanOfSlice(Broken):
    """The loss is a mean over the tokens that were passed together, so that a token counts by its neighbours' number."""

    def loss(self, segment: SegmentName, scored: ActionStats, old: Tensor, reference: Tensor | None, *rest: Any) -> Loss:
        found = super().loss(segment, scored, old, reference, *rest)
        return replace(found, sums={segment: found.sums[segment] / found.counts[segment].clamp_min(1)})


class PooledTokenMean(Broken):
    """One mean over the tokens of plan and picture together."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def count(self, mask: Tensor) -> Tensor:
        self.seen += int(mask.sum())
        return torch.tensor(self.seen)


class PerSampleMean(Broken):
    """Each sample's mean over its own tokens, as if that were a sum over tokens: long chains count less."""

    def loss(
        self,
        segment: SegmentName,
        scored: ActionStats,
        old: Tensor,
        reference: Tensor | None,
        advantages: Tensor,
        mask: Tensor,
        settings: SegmentConfig,
    ) -> Loss:
        return super().loss(segment, scored, old, reference, advantages / mask.sum(1).clamp_min(1), mask, settings)


class MergedGroups(Broken):
    """The groups of all prompts are one: their ids were truncated texts, or went through float32."""

    def advantages(self, rewards: Tensor) -> Advantages:
        found = joint(rewards.reshape(1, -1, rewards.shape[2]), scale=False)
        return Advantages(found.plan.view(rewards.shape[:2]), found.image.view(rewards.shape))


class UnknownIsZero(Broken):
    """A sample without a reward has reward 0."""

    def advantages(self, rewards: Tensor) -> Advantages:
        return super().advantages(rewards.nan_to_num(0.0))


class RewardsAsAdvantages(Broken):
    """No baseline at all."""

    def advantages(self, rewards: Tensor) -> Advantages:
        known = rewards.nan_to_num(0.0).double()
        return Advantages(known.mean(-1), known)


class AbsoluteAdvantages(Broken):
    """The sign is lost: what was bad becomes likelier too."""

    def advantages(self, rewards: Tensor) -> Advantages:
        found = super().advantages(rewards)
        return Advantages(found.plan.abs(), found.image.abs())


class MaskedByProduct(Broken):
    """What is masked is multiplied by 0 after the exponential: 0 times infinity."""

    def loss(
        self,
        segment: SegmentName,
        scored: ActionStats,
        old: Tensor,
        reference: Tensor | None,
        advantages: Tensor,
        mask: Tensor,
        settings: SegmentConfig,
    ) -> Loss:
        ratio = (scored.log_prob - old).exp()
        total = -(ratio * advantages.unsqueeze(1) * mask).sum()
        return Loss({segment: total}, {segment: mask.sum()})


# -- judges -----------------------------------------------------------------------------------------------------------------


class HonestJudge:
    """How much of the chain is letters, and how much of the picture is dark."""

    rewards: Mapping[str, SegmentName] = {"letters": PLAN, "dark": IMAGE}

    def score(self, samples: Sequence[Sample], names: Sequence[str]) -> Mapping[str, Sequence[float]]:
        return {name: [self.one(sample, name) for sample in samples] for name in names}

    def one(self, sample: Sample, name: str) -> float:
        if name == "letters":
            return sum(c.isalpha() for c in sample.chain.raw) / max(1, len(sample.chain.raw))
        return self.unknown() if sample.image is None else 1 - float(np.asarray(sample.image.convert("L")).mean()) / 255

    def unknown(self) -> float:
        return math.nan


class ZeroOnFailure(HonestJudge):
    """A failed judge scores 0 (most)."""

    def unknown(self) -> float:
        return 0.0


class RandomOnFailure(HonestJudge):
    """A failed judge scores at random (one)."""

    def unknown(self) -> float:
        return random.Random(0).random()


class OutOfTen(HonestJudge):
    """Scores from 0 to 10 are not divided."""

    def one(self, sample: Sample, name: str) -> float:
        return 10 * super().one(sample, name)


class Peeks(HonestJudge):
    """A reward that is declared the plan's looks at the picture where there is one."""

    def one(self, sample: Sample, name: str) -> float:
        found = super().one(sample, name)
        return found * (0.5 if name == "letters" and sample.image is not None else 1.0)


class ComparesSamples(HonestJudge):
    """Scores are stretched to what the best sample of the batch has."""

    def score(self, samples: Sequence[Sample], names: Sequence[str]) -> Mapping[str, Sequence[float]]:
        found = super().score(samples, names)
        return {name: [v / max([*row, 1e-9]) for v in row] for name, row in found.items()}


class KeepsOrder(HonestJudge):
    """Answers are kept by position."""

    def __init__(self) -> None:
        self.kept: dict[tuple[int, str, int], float] = {}

    def score(self, samples: Sequence[Sample], names: Sequence[str]) -> Mapping[str, Sequence[float]]:
        found = super().score(samples, names)
        return {n: [self.kept.setdefault((len(row), n, i), v) for i, v in enumerate(row)] for n, row in found.items()}


class DrawsOnPicture(HonestJudge):
    """Boxes are drawn on the caller's picture."""

    def one(self, sample: Sample, name: str) -> float:
        if sample.image is not None:
            ImageDraw.Draw(sample.image).rectangle((0, 0, 20, 20), outline="black")
        return super().one(sample, name)


class DependsOnOthersAsked(HonestJudge):
    """A reward is another one when it is asked for beside others."""

    def score(self, samples: Sequence[Sample], names: Sequence[str]) -> Mapping[str, Sequence[float]]:
        found = super().score(samples, names)
        return {name: [v / len(names) for v in row] for name, row in found.items()}
