"""Components that are broken on purpose. Each makes one mistake that a real project has shipped, and hides it as well as that project did.

Where the sampler could reveal the mistake, it makes the same mistake as the scorer.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from baseline_plugin import RunningBaseline
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
    """Samples images with guidance, and computes their log-probabilities from the conditional logits alone (T2I-R1, STAGE)."""

    def guided(self, conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
        return conditional


class DividedGuidance(TinyModule):
    """Divides guided logits by the guidance scale when it computes log-probabilities (Janus-Pro-R1)."""

    def guided(self, conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
        return apply_guidance(conditional, unconditional, scale) / scale


class MispairedRows(TinyModule):
    """The scorer pairs each conditional row with its neighbour's unconditional one (ReasonGen-R1)."""

    def guided(self, conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
        return apply_guidance(conditional, unconditional.roll(1, 0), scale)


class OtherTemperature(TinyModule):
    """Computes log-probabilities at temperature 1, whatever the sampling temperature was."""

    def action_stats(self, rollout: Rollout) -> ActionStats:
        return super().action_stats(replace(rollout, sampling=replace(rollout.sampling, temperature=1.0, image_temperature=1.0)))


class Dropout(TinyModule):
    """Leaves dropout on while it computes log-probabilities."""

    def hidden(self, before: Tensor, plan: Tensor | None, prompt: Tensor | None) -> Tensor:
        return torch.nn.functional.dropout(super().hidden(before, plan, prompt), 0.1, training=True)


class PaddedMean(TinyModule):
    """Counts padding in the mean over a prompt, so that the mean depends on the longest prompt of the batch."""

    def prompt(self, ids: Tensor, length: Tensor) -> Tensor:
        return super().prompt(ids, length) * (length / ids.shape[1]).unsqueeze(1)


class PaddingLearns(TinyModule):
    """Gives padding a gradient without changing a number: a term that is zero in the forward pass but not in the backward pass."""

    def prompt(self, ids: Tensor, length: Tensor) -> Tensor:
        padded = torch.arange(ids.shape[1]) >= length.unsqueeze(1)
        leak = (self.embed(ids) * padded.unsqueeze(-1)).sum(1)
        return super().prompt(ids, length) + leak - leak.detach()


class UnconditionalDetached(TinyModule):
    """No gradient goes through the unconditional row."""

    def guided(self, conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
        return apply_guidance(conditional, unconditional.detach(), scale)


class MergedOnce(TinyModule):
    """Copies weights for inference when they are first used, and never again."""

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
    """Centres features by a running mean, which every forward pass changes. So a buffer learns although the model is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8, dtype=torch.float64))

    def hidden(self, before: Tensor, plan: Tensor | None, prompt: Tensor | None) -> Tensor:
        found = super().hidden(before, plan, prompt)
        if torch.is_grad_enabled():
            self.mean.lerp_(found.detach().flatten(0, -2).mean(0), 0.01)
        return found - self.mean


class KeptToItself(TinyModule):
    """Keeps a trained tensor that is neither parameter nor buffer, so that no checkpoint contains it."""

    bias = 0.0

    def hidden(self, before: Tensor, plan: Tensor | None, prompt: Tensor | None) -> Tensor:
        self.bias += 0.01 * torch.is_grad_enabled()
        return super().hidden(before, plan, prompt) + self.bias


# -- sampling ---------------------------------------------------------------------------------------------------------------


class TruncatedSampler(TinyPolicy):
    """Samples from the two most likely symbols, and reports the probabilities of all three (T2I-R1: top-k 50)."""

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
    """The scorer's log-probabilities instead of the sampler's."""
    scored = policy.module.action_stats(rollout).log_prob
    return replace(rollout, tensors={**rollout.tensors, "log_prob": scored.masked_fill(~rollout.tensors["mask"], 0.0)})


class ForcedTokens(TinyPolicy):
    """Appends the end token to a chain that was cut, and treats it as sampled."""

    @torch.no_grad()
    def plan(self, prompts: Sequence[Prompt], *, seeds: Sequence[int], sampling: Sampling) -> Rollout:
        plans = super().plan(prompts, seeds=seeds, sampling=sampling)
        t = plans.tensors
        cut = t["truncated"].unsqueeze(1)
        more = {"tokens": torch.full_like(cut, END, dtype=torch.long), "mask": cut, "log_prob": torch.zeros(cut.shape)}
        return honest_log_probs(self, replace(plans, tensors={**t, **{name: torch.cat([t[name], more[name]], 1) for name in more}}))


class ForcedStart(TinyPolicy):
    """Allows no empty chain: replaces the end token by another symbol, and treats that as sampled."""

    @torch.no_grad()
    def plan(self, prompts: Sequence[Prompt], *, seeds: Sequence[int], sampling: Sampling) -> Rollout:
        plans = super().plan(prompts, seeds=seeds, sampling=sampling)
        t = plans.tensors
        tokens = t["tokens"].clone()
        tokens[:, 0] = tokens[:, 0].clamp_min(1)
        return honest_log_probs(self, replace(plans, tensors={**t, "tokens": tokens}, chains=self.chains(tokens, t["mask"])))


class MasksFromPadIds(TinyPolicy):
    """Uses the end token also as padding, and masks all padding out. So a sampled end token does not count as an action."""

    @torch.no_grad()
    def plan(self, prompts: Sequence[Prompt], *, seeds: Sequence[int], sampling: Sampling) -> Rollout:
        plans = super().plan(prompts, seeds=seeds, sampling=sampling)
        mask = plans.tensors["mask"] & (plans.tensors["tokens"] != END)
        mask[:, 0] |= ~mask.any(1)  # a loss without actions would have shown it
        return replace(plans, tensors={**plans.tensors, "mask": mask})


class Float32Seeds(TinyPolicy):
    """Converts a 64-bit id to float32 and back."""

    def plan(self, prompts: Sequence[Prompt], *, seeds: Sequence[int], sampling: Sampling) -> Rollout:
        return super().plan(prompts, seeds=[int(np.float32(seed)) for seed in seeds], sampling=sampling)


class MergedPrompts(TinyPolicy):
    """Tells prompts apart by their beginnings. What two of them share is computed once, for the first."""

    def encode(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        first: dict[str, Prompt] = {}
        return super().encode([first.setdefault(prompt.text[:20], prompt) for prompt in prompts])


class HidesNaN(TinyPolicy):
    """Turns log-probabilities that are not finite into zeros. Chains and pictures of broken numbers look like all others."""

    def plan(self, *args: Any, **more: Any) -> Rollout:
        return self.hidden(super().plan(*args, **more))

    def render(self, *args: Any, **more: Any) -> Rollout:
        return self.hidden(super().render(*args, **more))

    def hidden(self, rollout: Rollout) -> Rollout:
        return replace(rollout, tensors={**rollout.tensors, "log_prob": rollout.tensors["log_prob"].nan_to_num()})


class BlackPictures(TinyPolicy):
    """Draws pictures by a decoder whose numbers it never looks at: those that are not finite become black pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.module.decoder = torch.nn.Linear(1, 1)

    def render(self, *args: Any, **more: Any) -> Rollout:
        drawn = super().render(*args, **more)
        with torch.no_grad():
            shade = self.module.decoder(torch.ones(1)).nan_to_num().sigmoid().item()
        return replace(drawn, images=tuple(image.point(lambda value: value * shade) for image in drawn.images if image is not None))


class CrashesInFull(TinyPolicy):
    """Cannot train on chains of full length. Its chains always have two symbols."""

    def __init__(self) -> None:
        super().__init__(ends=False)
        self.module.forward = self.forward  # type: ignore[method-assign]

    def forward(self, segments: Mapping[SegmentName, Rollout]) -> dict[SegmentName, ActionStats]:
        if PLAN in segments and segments[PLAN].tensors["tokens"].shape[1] == LENGTH:
            raise IndexError("index out of range in self")
        return TinyModule.forward(self.module, segments)


# -- Gaussian steps ---------------------------------------------------------------------------------------------------------


class Scoring(GaussianModule):
    """A base for modules that must know whether they sample or compute log-probabilities."""

    scoring = False

    def action_stats(self, rollout: Rollout) -> ActionStats:
        self.scoring = True
        try:
            return super().action_stats(rollout)
        finally:
            self.scoring = False


class WrongLastAlpha(Scoring):
    """When it computes log-probabilities, it takes ᾱ' of the last step from the wrong branch (DDIM)."""

    def previous(self, step: int) -> float:
        return 0.98 if self.scoring and step + 1 == STEPS else super().previous(step)


class HalfPrecision(GaussianModule):
    """Computes log-probabilities in half precision, in the sampler and in the scorer, and returns them as float32."""

    def log_prob(self, after: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        return super().log_prob(after.half(), mean.half(), std.half()).to(mean.dtype)


class BareHalfPrecision(GaussianModule):
    """Computes log-probabilities in half precision, and returns them in half precision."""

    def log_prob(self, after: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        return super().log_prob(after.half(), mean.half(), std.half())


class OtherNoise(Scoring):
    """Draws with more noise than it reports."""

    def distribution(self, x: Tensor, step: int, asked: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        mean, std = super().distribution(x, step, asked, scale)
        return mean, std if self.scoring else 1.2 * std


class SaysWhatItScores(GaussianRenderer):
    """Reports the scorer's log-probabilities, whatever distribution it drew from."""

    @torch.no_grad()
    def render(self, *args: Any, **more: Any) -> Rollout:
        drawn = super().render(*args, **more)
        return replace(drawn, tensors={**drawn.tensors, "log_prob": self.module.action_stats(drawn).log_prob})


class WindowPerSample(GaussianRenderer):
    """Draws the window of trained steps for each sample instead of for each group."""

    def window(self, groups: Sequence[int], seeds: Sequence[int]) -> list[int]:
        return [seed % (STEPS - WINDOW + 1) for seed in seeds]


# -- algorithms -------------------------------------------------------------------------------------------------------------


class Broken(Grpo):
    """GRPO without division by the standard deviation, as a base for broken variants."""

    def __init__(self) -> None:
        super().__init__(GrpoOptions(scale=False))


class ZeroReference(Broken):
    """Returns zeros as the reference's log-probabilities (T2I-R1, with LoRA)."""

    def loss(self, segment: SegmentName, scored: ActionStats, old: Tensor, reference: Tensor | None, *rest: Any) -> Loss:
        return super().loss(segment, scored, old, None if reference is None else torch.zeros_like(reference), *rest)


class DivergenceWithoutGradient(Broken):
    """Computes the divergence without gradient (Flow-Factory, until fixed). The loss and its statistics look right."""

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


class MeanOfMicroBatch(Broken):
    """Takes the mean over the tokens of a micro-batch, so that the weight of a token depends on how many others are in it."""

    def loss(self, segment: SegmentName, scored: ActionStats, old: Tensor, reference: Tensor | None, *rest: Any) -> Loss:
        found = super().loss(segment, scored, old, reference, *rest)
        return replace(found, sums={segment: found.sums[segment] / found.counts[segment].clamp_min(1)})


class PooledTokenMean(Broken):
    """Takes one mean over the tokens of plan and picture together."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def count(self, mask: Tensor) -> Tensor:
        self.seen += int(mask.sum())
        return torch.tensor(self.seen)


class PerSampleMean(Broken):
    """Takes each sample's mean over its own tokens where a sum over tokens is due. Long chains count less."""

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
    """Puts the samples of all prompts in one group, as if group ids were truncated texts or went through float32."""

    def advantages(self, rewards: Tensor) -> Advantages:
        found = joint(rewards.reshape(1, -1, rewards.shape[2]), scale=False)
        return Advantages(found.plan.view(rewards.shape[:2]), found.image.view(rewards.shape))


class UnknownIsZero(Broken):
    """Gives a sample without a reward the reward 0."""

    def advantages(self, rewards: Tensor) -> Advantages:
        return super().advantages(rewards.nan_to_num(0.0))


class RewardsAsAdvantages(Broken):
    """Uses no baseline at all."""

    def advantages(self, rewards: Tensor) -> Advantages:
        known = rewards.nan_to_num(0.0).double()
        return Advantages(known.mean(-1), known)


class AbsoluteAdvantages(Broken):
    """Drops the sign of advantages: bad samples become more likely too."""

    def advantages(self, rewards: Tensor) -> Advantages:
        found = super().advantages(rewards)
        return Advantages(found.plan.abs(), found.image.abs())


class MaskedByProduct(Broken):
    """Multiplies masked entries by 0 after the exponential: 0 times infinity is NaN."""

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


class ForgetsItsMean(RunningBaseline):
    """Keeps only a part of its state."""

    def state_dict(self) -> Mapping[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.seen = state["seen"]


def hidden_mean() -> Grpo:
    """An algorithm whose running mean is in no attribute: a function that it holds has it."""
    algorithm, means = Broken(), [0.5]

    def advantages(rewards: Tensor) -> Advantages:
        image = rewards.nan_to_num(0.0).double() - means[-1]
        means.append(means[-1] + 0.3 * image.mean().item())
        return Advantages(image.mean(-1), image)

    algorithm.advantages = advantages  # type: ignore[method-assign]
    return algorithm


# -- judges -----------------------------------------------------------------------------------------------------------------


class HonestJudge:
    """Scores how much of the chain is letters, and how much of the picture is dark."""

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
    """Scores 0 where it failed (most projects do)."""

    def unknown(self) -> float:
        return 0.0


class RandomOnFailure(HonestJudge):
    """Scores at random where it failed (one project does)."""

    def unknown(self) -> float:
        return random.Random(0).random()


class OutOfTen(HonestJudge):
    """Does not divide scores from 0 to 10 by 10."""

    def one(self, sample: Sample, name: str) -> float:
        return 10 * super().one(sample, name)


class Peeks(HonestJudge):
    """Declares that a reward needs only the plan, and uses the picture where there is one."""

    def one(self, sample: Sample, name: str) -> float:
        found = super().one(sample, name)
        return found * (0.5 if name == "letters" and sample.image is not None else 1.0)


class ComparesSamples(HonestJudge):
    """Scales scores by the best sample of the batch."""

    def score(self, samples: Sequence[Sample], names: Sequence[str]) -> Mapping[str, Sequence[float]]:
        found = super().score(samples, names)
        return {name: [v / max([*row, 1e-9]) for v in row] for name, row in found.items()}


class KeepsOrder(HonestJudge):
    """Caches answers by the position of a sample in the batch."""

    def __init__(self) -> None:
        self.kept: dict[tuple[int, str, int], float] = {}

    def score(self, samples: Sequence[Sample], names: Sequence[str]) -> Mapping[str, Sequence[float]]:
        found = super().score(samples, names)
        return {n: [self.kept.setdefault((len(row), n, i), v) for i, v in enumerate(row)] for n, row in found.items()}


class DrawsOnPicture(HonestJudge):
    """Draws boxes on the caller's picture."""

    def one(self, sample: Sample, name: str) -> float:
        if sample.image is not None:
            ImageDraw.Draw(sample.image).rectangle((0, 0, 20, 20), outline="black")
        return super().one(sample, name)


class OtherNumbersWithWords(HonestJudge):
    """The scores that come with words are not those without."""

    def score_with_words(
        self, samples: Sequence[Sample], names: Sequence[str]
    ) -> tuple[Mapping[str, Sequence[float]], Mapping[str, Sequence[None]]]:
        return {name: [v / 2 for v in row] for name, row in self.score(samples, names).items()}, {}


class DependsOnOthersAsked(HonestJudge):
    """A reward changes if other rewards are requested together with it."""

    def score(self, samples: Sequence[Sample], names: Sequence[str]) -> Mapping[str, Sequence[float]]:
        found = super().score(samples, names)
        return {name: [v / len(names) for v in row] for name, row in found.items()}
