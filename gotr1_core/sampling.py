"""Samples tokens and computes their log-probabilities, for every autoregressive policy. Both use the same distribution.

Every sample owns its randomness. One uniform number per position is drawn ahead of time, from a generator seeded by the sample's own
seed, and a token is found by inverting the cumulative distribution. So a token depends on its seed and its logits, not on its batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def seed_for(*lineage: int | str) -> int:
    """A 63-bit seed from a lineage such as (run seed, step, prompt, plan, image)."""
    text = "/".join(str(part) for part in lineage)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def uniforms(seeds: Sequence[int], length: int) -> Tensor:
    """One number in [0, 1) per sample and position, float64 ``[B, length]`` on the CPU."""
    rows = [torch.rand(length, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows) if rows else torch.empty(0, length, dtype=torch.float64)


def apply_guidance(conditional: Tensor, unconditional: Tensor | None, scale: float) -> Tensor:
    """Classifier-free guidance ``u + w * (c - u)`` of logits ``[..., V]``; the conditional logits where there are no unconditional ones."""
    if unconditional is None:
        return conditional
    return unconditional + scale * (conditional - unconditional)


def sample_token(logits: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Samples tokens ``[B]`` from ``logits [B, V]`` by inverse CDF at ``uniform [B]``; returns them and their log-probabilities ``[B]``.

    Temperature 0 takes the most probable token, with log-probability 0. Where logits are not finite (NaN, or nothing but -inf) there is
    no distribution: the token is any, and its log-probability is not finite.
    """
    logits = logits.float()
    if temperature == 0:
        token = logits.argmax(-1)
        log_prob = torch.zeros_like(uniform, dtype=torch.float32)
        return token, log_prob.masked_fill(~logits.amax(-1).isfinite(), torch.nan)
    log_probs = torch.log_softmax(logits / temperature, -1)
    cumulative = log_probs.double().exp().cumsum(-1)
    # In float64 u * s rounds below s for every u < 1, so the search never ends behind the last token that has a probability.
    target = uniform.to(cumulative.device).unsqueeze(-1) * cumulative[:, -1:]
    token = torch.searchsorted(cumulative, target, right=True).squeeze(-1).clamp_max(logits.shape[-1] - 1)
    return token, log_probs.gather(-1, token.unsqueeze(-1)).squeeze(-1)


@dataclass(frozen=True)
class Tokens:
    """Sampled tokens, their log-probabilities and a mask of what was sampled, ``[B, T]``; rows ``finished [B]`` reached the stop token.

    A row whose logits are not finite ends there, and its last log-probability is not finite.
    """

    tokens: Tensor
    log_prob: Tensor
    mask: Tensor
    finished: Tensor


def decode(
    advance: Callable[[Tensor | None], Tensor],
    uniform: Tensor,
    temperature: float,
    stop: int | None = None,
    keep: Callable[[Tensor], Tensor] | None = None,
    check_every: int = 1,
) -> Tokens:
    """Samples up to T tokens per row, the stop token included.

    Args:
        advance: ``advance(None)`` gives the first logits ``[B, V]``, ``advance(tokens [B])`` those after these tokens.
        uniform: random numbers ``[B, T]``.
        stop: the token that ends a row. A row that has stopped is fed it, masked, until the last row has stopped.
        keep: gets the positions of the rows that go on, when a quarter has stopped; drops the others; returns them in their new order.
        check_every: looks whether rows have stopped after so many tokens. It changes no sample.
    """
    logits = advance(None)
    uniform = uniform.to(logits.device)
    tokens = torch.full(uniform.shape, stop or 0, dtype=torch.long, device=logits.device)
    log_prob = torch.zeros(uniform.shape, dtype=torch.float32, device=logits.device)
    mask = torch.zeros(uniform.shape, dtype=torch.bool, device=logits.device)
    finished = torch.zeros(len(uniform), dtype=torch.bool, device=logits.device)
    rows = torch.arange(len(uniform), device=logits.device)  # the rows that ``advance`` still has
    alive = ~finished
    length = uniform.shape[1]
    for t in range(length):
        token, chosen = sample_token(logits, uniform[rows, t], temperature)
        if stop is not None:
            token = torch.where(alive, token, stop)
        tokens[rows, t], log_prob[rows, t], mask[rows, t] = token, torch.where(alive, chosen, 0.0), alive
        if stop is not None:
            alive = alive & (token != stop) & chosen.isfinite()
            finished[rows] = ~alive
            remaining = len(rows) if (t + 1) % check_every else int(alive.sum())
            if not remaining:
                break
            if keep is not None and 4 * remaining <= 3 * len(rows):
                positions = keep(alive.nonzero().flatten())
                rows, token, alive = rows[positions], token[positions], alive[positions]
        if t + 1 < length:
            logits = advance(token)
    length = length if stop is None else int(mask.any(0).sum())
    return Tokens(tokens[:, :length], log_prob[:, :length], mask[:, :length], finished)


def token_stats(
    head: Callable[[Tensor], Tensor],
    hidden: Tensor,
    tokens: Tensor,
    *,
    temperature: float,
    unconditional: Tensor | None = None,
    guidance_scale: float = 1.0,
    chunk: int = 4096,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies ``[N]`` of ``tokens [N]``, computed as the sampler did.

    Args:
        head: maps features to logits ``[N, V]``.
        hidden, unconditional: features ``[N, H]`` that the tokens were predicted from; under guidance, those of the unconditional rows too.
        temperature, guidance_scale: the sampler's. For greedy decoding, 0, temperature 1 is used.
        chunk: logits exist for so many positions at a time, and are computed again in the backward pass.
    """

    def compute(features: Tensor, other: Tensor | None, target: Tensor) -> tuple[Tensor, Tensor]:
        logits = apply_guidance(head(features).float(), None if other is None else head(other).float(), guidance_scale)
        log_probs = torch.log_softmax(logits / (temperature or 1.0), -1)
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        return log_probs.gather(-1, target.unsqueeze(-1)).squeeze(-1), entropy

    chosen, entropies = [], []
    for start in range(0, len(tokens), chunk):
        span = slice(start, start + chunk)
        other = None if unconditional is None else unconditional[span]
        if torch.is_grad_enabled() and len(tokens) > chunk:
            stats = checkpoint(compute, hidden[span], other, tokens[span], use_reentrant=False)
        else:
            stats = compute(hidden[span], other, tokens[span])
        chosen.append(stats[0])
        entropies.append(stats[1])
    if not chosen:
        return hidden.new_zeros(0, dtype=torch.float32), hidden.new_zeros(0, dtype=torch.float32)
    return torch.cat(chosen), torch.cat(entropies)
