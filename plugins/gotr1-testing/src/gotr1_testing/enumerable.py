"""A policy so small that every expectation is a sum: chains of at most two of three symbols, pictures of two, in float64.

It has all that a real policy has, in small: prompts of any length with padding, a stop token, pictures that depend on the plan and are
drawn under guidance with an unconditional row of their own, layers for adapters, heads outside them, features::

    x = [one-hot of the symbol before, one-hot of the plan's first symbol, mean embedding of the prompt]    logits = head(body(x))

If all probabilities are quarters, sixteen sequences can occur exactly as often as their probabilities say. So do all groups of G of
them. An estimator's mean over these groups is its expectation, with no statistical error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from gotr1_core.chain import Chain, parse
from gotr1_core.errors import UsageError
from gotr1_core.protocols import Loss
from gotr1_core.samples import IMAGE, PLAN, ActionStats, Example, Prompt, Rollout, Sampling, SegmentName
from gotr1_core.sampling import apply_guidance, decode, uniforms

SYMBOLS, LENGTH, WIDTH = 3, 2, 8
END = 0  # the symbol that ends a chain, where chains end by themselves
LETTERS = "abc"


class TinyModule(nn.Module):
    """Log-probabilities of plans and pictures. With ``ends`` symbol 0 ends a chain; without it every chain has two symbols."""

    def __init__(self, *, ends: bool = True) -> None:
        super().__init__()
        self.ends = ends
        self.embed = nn.Embedding(256, 4, dtype=torch.float64)  # of the prompt's bytes
        self.body = nn.Linear(1 + 2 * SYMBOLS + 4, WIDTH, bias=False, dtype=torch.float64)
        self.plan_head = nn.Linear(WIDTH, SYMBOLS, bias=False, dtype=torch.float64)
        self.image_head = nn.Linear(WIDTH, SYMBOLS, bias=False, dtype=torch.float64)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.7 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))

    def prompt(self, ids: Tensor, length: Tensor) -> Tensor:
        """Mean embeddings ``[B, 4]`` of padded bytes ``[B, L]``. Masked by ``length [B]``, because any byte may be content."""
        mask = torch.arange(ids.shape[1], device=ids.device) < length.unsqueeze(1)
        embedded: Tensor = self.embed(ids) * mask.unsqueeze(-1)
        return embedded.sum(1) / length.clamp_min(1).unsqueeze(1)

    def hidden(self, before: Tensor, plan: Tensor | None, prompt: Tensor | None) -> Tensor:
        """Features ``[..., WIDTH]`` of states ``[...]``.

        Args:
            before: the symbol before each state, -1 at the start.
            plan: the plan's first symbol; None for plans and for the unconditional row.
            prompt: mean embeddings ``[..., 4]``; None for the unconditional row.
        """
        previous = nn.functional.one_hot(before + 1, 1 + SYMBOLS).double()
        no_plan = previous.new_zeros(*before.shape, SYMBOLS)
        planned = no_plan if plan is None else nn.functional.one_hot(plan, SYMBOLS).double().expand_as(no_plan)
        asked = previous.new_zeros(*before.shape, 4) if prompt is None else prompt.expand(*before.shape, 4)
        features: Tensor = self.body(torch.cat([previous, planned, asked], -1).to(self.body.weight.dtype))
        return features

    def forward(self, segments: Mapping[SegmentName, Rollout]) -> dict[SegmentName, ActionStats]:
        """The training pass on a plan rollout, an image rollout, or both."""
        return {name: self.action_stats(rollout) for name, rollout in segments.items()}

    def action_stats(self, rollout: Rollout) -> ActionStats:
        """The training pass on one rollout."""
        t, sampling = rollout.tensors, rollout.sampling
        prompt = self.prompt(t["prompt"], t["prompt_length"]).unsqueeze(1)
        tokens = t["tokens"]
        before = torch.cat([torch.full_like(tokens[:, :1], -1), tokens[:, :-1]], 1)
        if rollout.segment == PLAN:
            features = self.hidden(before, None, prompt)
            return self.token_stats(self.plan_head(features) / (sampling.temperature or 1.0), tokens, features)
        features, unconditional = self.image_rows(before, t["plan"].unsqueeze(1), prompt)
        logits = self.guided(self.image_head(features), self.image_head(unconditional), sampling.guidance_scale)
        return self.token_stats(logits / (sampling.image_temperature or 1.0), tokens, features)

    def image_rows(self, before: Tensor, plan: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor]:
        """Features ``[..., WIDTH]`` of the conditional and of the unconditional row, from states ``[...]``."""
        return self.hidden(before, plan, prompt), self.hidden(before, None, None)

    def guided(self, conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
        """Guided logits ``[..., SYMBOLS]``."""
        return apply_guidance(conditional, unconditional, scale)

    def token_stats(self, logits: Tensor, tokens: Tensor, features: Tensor) -> ActionStats:
        """Log-probabilities and entropies ``[B, T]`` of tokens ``[B, T]`` under logits ``[B, T, SYMBOLS]``."""
        log_probs = torch.log_softmax(logits, -1)
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        return ActionStats(log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1), entropy, features)


class TinyPolicy:
    """The enumerable policy, planner and renderer."""

    lora_prefix = "body"
    features = WIDTH

    def __init__(self, *, ends: bool = True) -> None:
        self.module = TinyModule(ends=ends)

    def encode(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Bytes of prompts, ``prompt [B, L]``, padded with zeros at the right, and ``prompt_length [B]``."""
        rows = [torch.tensor(list(p.text.encode()), dtype=torch.long) for p in prompts]
        ids = nn.utils.rnn.pad_sequence([torch.cat([row, row.new_zeros(1)]) for row in rows], batch_first=True)
        return {"prompt": ids, "prompt_length": torch.tensor([len(row) for row in rows])}

    @torch.no_grad()
    def plan(self, prompts: Sequence[Prompt], *, seeds: Sequence[int], sampling: Sampling) -> Rollout:
        """One chain of at most two letters per prompt and seed."""
        tensors = self.encode(prompts)
        asked = self.module.prompt(tensors["prompt"], tensors["prompt_length"])
        start = torch.full((len(prompts),), -1)

        def advance(tokens: Tensor | None) -> Tensor:
            return self.module.plan_head(self.module.hidden(start if tokens is None else tokens, None, asked))

        noise = uniforms(seeds, min(LENGTH, sampling.max_chain_tokens))
        drawn = decode(advance, noise, sampling.temperature, stop=END if self.module.ends else None)
        cut = ~drawn.finished if self.module.ends else torch.zeros(len(prompts), dtype=torch.bool)
        tensors |= {"tokens": drawn.tokens, "mask": drawn.mask, "log_prob": drawn.log_prob, "truncated": cut}
        return Rollout(PLAN, sampling, tensors, chains=self.chains(drawn.tokens, drawn.mask))

    def chains(self, tokens: Tensor, mask: Tensor) -> tuple[Chain, ...]:
        """The letters of tokens ``[B, T]`` where ``mask [B, T]`` is true, without the symbol that ended a chain."""
        rows = [[k for k in row[m].tolist() if not (self.module.ends and k == END)] for row, m in zip(tokens, mask, strict=True)]
        return tuple(parse("".join(LETTERS[k] for k in row)) for row in rows)

    @torch.no_grad()
    def render(
        self,
        prompts: Sequence[Prompt],
        chains: Sequence[Chain],
        *,
        seeds: Sequence[int],
        sampling: Sampling,
        plans: Rollout | None = None,
        groups: Sequence[int] | None = None,
    ) -> Rollout:
        """One picture of two grey pixels per prompt, chain and seed. Of the chain it sees only the first letter."""
        del plans, groups  # the chains have all that it needs
        tensors = self.encode(prompts)
        asked = self.module.prompt(tensors["prompt"], tensors["prompt_length"])
        plan = torch.tensor([max(0, LETTERS.find(chain.raw[:1])) for chain in chains])
        start = torch.full((len(prompts),), -1)

        def advance(tokens: Tensor | None) -> Tensor:
            rows = self.module.image_rows(start if tokens is None else tokens, plan, asked)
            conditional, unconditional = (self.module.image_head(row) for row in rows)
            return apply_guidance(conditional, unconditional, sampling.guidance_scale)

        drawn = decode(advance, uniforms(seeds, LENGTH), sampling.image_temperature)
        tensors |= {"plan": plan, "tokens": drawn.tokens, "mask": drawn.mask, "log_prob": drawn.log_prob}
        tensors["parent"] = torch.arange(len(prompts))
        pixels = (100 * drawn.tokens.unsqueeze(1)).byte().numpy().astype(np.uint8)
        return Rollout(IMAGE, sampling, tensors, images=tuple(Image.fromarray(p) for p in pixels))

    def supervised_loss(self, module: nn.Module, examples: Sequence[Example], *, seed: int) -> Loss:
        """It has no stage one."""
        raise NotImplementedError

    def enable_gradient_checkpointing(self) -> None:
        """Does nothing: there are hardly any activations."""

    def save(self, folder: Path) -> None:
        """It cannot be saved: its code makes it anew.

        Raises:
            UsageError: always.
        """
        raise UsageError("the enumerable policy is made by its code alone", hint="there is nothing to save")

    def save_adapter(self, folder: Path) -> None:
        """It cannot be saved: its code makes it anew.

        Raises:
            UsageError: always.
        """
        raise UsageError("the enumerable policy is made by its code alone", hint="there is nothing to save")


QUARTERS = {True: ((2, 1, 1), ((4, 0, 0), (1, 2, 1), (1, 1, 2))), False: ((2, 1, 1), ((1, 1, 2), (1, 2, 1), (2, 1, 1)))}
"""Probabilities in quarters: of the first symbol, and of the second symbol after each first one. By whether chains end by themselves."""


def exact_sample(*, ends: bool) -> tuple[TinyPolicy, Rollout]:
    """The policy with the probabilities above, and sixteen plans of the empty prompt, each as often as its probability says."""
    policy = TinyPolicy(ends=ends)
    first, second = (torch.tensor(quarters, dtype=torch.float64) for quarters in QUARTERS[ends])
    with torch.no_grad():
        policy.module.body.weight.copy_(torch.eye(*policy.module.body.weight.shape))
        policy.module.plan_head.weight.zero_()
        # Nothing after the end has a log-probability, so any finite logits do there.
        policy.module.plan_head.weight[:, : 1 + SYMBOLS] = torch.cat([first.unsqueeze(1), second.T], 1).clamp_min(0.5).log()
    rows = []
    for a, times in enumerate(first.long().tolist()):
        if ends and a == END:
            rows += [(a, 0)] * (4 * times)
            continue
        for b, second_times in enumerate(second[a].long().tolist()):
            rows += [(a, b)] * (times * second_times)
    return policy, plan_rollout(policy, torch.tensor(rows))


def plan_rollout(policy: TinyPolicy, tokens: Tensor) -> Rollout:
    """A rollout of the plans with tokens ``[B, 2]``, all of the empty prompt."""
    mask = torch.ones_like(tokens, dtype=torch.bool)
    cut = torch.zeros(len(tokens), dtype=torch.bool)
    if policy.module.ends:
        mask[:, 1] = tokens[:, 0] != END
        cut = mask[:, 1] & (tokens[:, 1] != END)
    tensors = policy.encode([Prompt("")] * len(tokens)) | {"tokens": tokens, "mask": mask, "truncated": cut}
    bare = Rollout(PLAN, Sampling(guidance_scale=1.0), tensors | {"log_prob": torch.zeros(mask.shape)}, chains=policy.chains(tokens, mask))
    with torch.no_grad():
        log_prob = policy.module.action_stats(bare).log_prob
    return replace(bare, tensors={**bare.tensors, "log_prob": log_prob})


def all_groups(plans: Rollout, size: int) -> Tensor:
    """The rows of every group of ``size`` plans, ``[len(plans) ** size, size]``. Each group is as frequent as its probability says."""
    return torch.cartesian_prod(*[torch.arange(len(plans))] * size).view(-1, size)
