"""What every autoregressive transformer does here: contexts are continued with a cache, sequences scored in one pass.

The language model is its library's own and is called as transformers' are, ``language(inputs_embeds=, attention_mask=, position_ids=,
past_key_values=, use_cache=)``, which has ``last_hidden_state``. The library itself is not imported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gotr1_core.chain import Chain
from gotr1_core.errors import UsageError
from gotr1_core.policies.padding import attention, left_pad, right_pad
from gotr1_core.samples import PLAN, ActionStats, Rollout, Sampling
from gotr1_core.sampling import Tokens, decode, token_stats, uniforms


class Continuation:
    """Left-padded contexts ``[R, C]`` of ``lengths [R]``, and what is fed after them, up to ``steps`` tokens more.

    Neighbouring equal rows are computed once and their cache is repeated, so that a group shares its prompt. ``cache`` is an empty one
    of the model's library; with ``fixed`` its tensors have one batch size for good, and every row is computed.
    """

    def __init__(
        self,
        language: nn.Module,
        embed: Callable[[Tensor], Tensor],
        context: Tensor,
        lengths: Tensor,
        *,
        steps: int,
        cache: Any,
        fixed: bool = False,
    ) -> None:
        self.language, self.embed, self.context, self.lengths = language, embed, context, lengths
        self.cache, self.fixed = cache, fixed
        keys = torch.cat([lengths.unsqueeze(1), context], 1)
        _, self.owner = torch.unique_consecutive(keys, dim=0, return_inverse=True)
        mask, _ = attention(lengths, context.shape[1])
        self.mask = torch.cat([mask, mask.new_ones(len(mask), steps)], 1)
        self.at = context.shape[1]

    def prefill(self) -> Tensor:
        """Hidden states ``[R, H]`` at the contexts' ends."""
        begins = torch.cat([self.owner.new_ones(1, dtype=torch.bool), self.owner[1:] != self.owner[:-1]])
        first = torch.ones_like(begins).nonzero().flatten() if self.fixed else begins.nonzero().flatten()
        context = self.context[first]
        mask, positions = attention(self.lengths[first], context.shape[1])
        hidden = self._run(self.embed(context), mask, positions)
        if len(first) == len(self.context):
            return hidden
        self.cache.batch_select_indices(self.owner)
        return hidden[self.owner]

    def step(self, embeds: Tensor) -> Tensor:
        """Hidden states ``[R, H]`` after one more token per row, ``embeds [R, 1, H]``."""
        positions = (self.lengths + self.at - self.context.shape[1]).unsqueeze(1)
        self.at += 1
        return self._run(embeds, self.mask[:, : self.at], positions)

    def generate(self, head: nn.Module, uniform: Tensor, temperature: float, stop: int) -> Tokens:
        """Samples tokens of text until ``stop``; ``uniform [R, T]`` are their random numbers."""

        def advance(tokens: Tensor | None) -> Tensor:
            return head(self.prefill() if tokens is None else self.step(self.embed(tokens.unsqueeze(1))))  # type: ignore[no-any-return]

        return decode(advance, uniform, temperature, stop=stop, keep=None if self.fixed else self._keep)

    def _keep(self, rows: Tensor) -> None:
        """Goes on with these rows only."""
        self.cache.batch_select_indices(rows)
        self.mask, self.lengths = self.mask[rows], self.lengths[rows]

    def _run(self, embeds: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        output = self.language(
            inputs_embeds=embeds, attention_mask=mask, position_ids=positions, past_key_values=self.cache, use_cache=True
        )
        return output.last_hidden_state[:, -1]  # type: ignore[no-any-return]


def hidden_states(language: nn.Module, embeds: Tensor, lengths: Tensor, *, checkpointing: bool) -> Tensor:
    """Last hidden states ``[R, L, H]`` of left-padded sequences, in one pass."""
    mask, positions = attention(lengths, embeds.shape[1])
    language.train(checkpointing and torch.is_grad_enabled())  # transformers checkpoints in training mode only
    output = language(inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False)
    language.eval()  # no dropout, in sampling as in scoring
    return output.last_hidden_state  # type: ignore[no-any-return]


def checkpoint_activations(language: Any) -> None:
    """Has a language model compute activations again where :func:`hidden_states` is asked to.

    Raises:
        UsageError: it has dropout, which would then be on.
    """
    if language.config.attention_dropout:
        raise UsageError(
            "gradient_checkpointing: the language model has attention dropout", hint="set attention_dropout to 0 in its config"
        )
    enable = getattr(language, "activation_checkpointing_enable", None) or language.gradient_checkpointing_enable  # the older name
    enable({"use_reentrant": False})


def states_before(hidden: Tensor, start: Tensor, count: int) -> Tensor:
    """Hidden states ``[R, count, H]`` that ``count`` tokens are predicted from, the first of which is at ``start [R]`` of its row."""
    index = (start.unsqueeze(1) - 1 + torch.arange(count, device=hidden.device)).clamp(0, hidden.shape[1] - 1)
    return hidden.gather(1, index.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))


def action_stats(
    head: nn.Module,
    hidden: Tensor,
    tokens: Tensor,
    mask: Tensor,
    *,
    temperature: float,
    chunk: int,
    unconditional: Tensor | None = None,
    guidance_scale: float = 1.0,
) -> ActionStats:
    """Scores the masked ones of ``tokens [R, T]`` given ``hidden [R, T, H]``; elsewhere log-probabilities and entropies are 0."""
    log_prob, entropy = token_stats(
        head,
        hidden[mask],
        tokens[mask],
        temperature=temperature,
        unconditional=None if unconditional is None else unconditional[mask],
        guidance_scale=guidance_scale,
        chunk=chunk,
    )
    empty = torch.zeros(mask.shape, dtype=log_prob.dtype, device=log_prob.device)
    return ActionStats(empty.masked_scatter(mask, log_prob), empty.masked_scatter(mask, entropy), hidden)


# -- plans as tokens --------------------------------------------------------------------------------------------------------


def write_plans(
    asked: Sequence[Tensor],
    write: Callable[[Tensor, Tensor, Tensor], Tokens],
    read: Callable[[Tensor], Chain],
    *,
    seeds: Sequence[int],
    sampling: Sampling,
) -> Rollout:
    """One chain for each of the prompts ``asked``, ids ``[P]`` on the model's device, as a rollout.

    ``write`` gets contexts ``[R, C]``, their lengths and random numbers, and gives tokens; ``read`` is told a chain's ids, the token that
    ended it left out. Tensors besides those of every rollout: ``prompt [B, P]``, ``prompt_length``, ``tokens [B, T]`` with the one that
    ended the chain, ``length`` without it.
    """
    context, prompt_length = left_pad(asked)
    drawn = write(context, prompt_length, uniforms(seeds, sampling.max_chain_tokens))
    length = drawn.mask.sum(1) - drawn.finished.long()
    chains = tuple(read(row[:n]) for row, n in zip(drawn.tokens, length.tolist(), strict=True))
    tensors = {"prompt": right_pad(asked)[0], "prompt_length": prompt_length, "tokens": drawn.tokens, "length": length}
    tensors |= {"mask": drawn.mask, "log_prob": drawn.log_prob, "truncated": ~drawn.finished}
    return Rollout(PLAN, sampling, tensors, chains=chains)


def given_plans(
    encoded: Sequence[tuple[Tensor, Tensor]], stop: int, chains: Sequence[Chain], *, sampling: Sampling, device: torch.device
) -> Rollout:
    """Chains that somebody else wrote, ids of prompts and of chains, as a rollout in which ``stop`` ended each; ``log_prob`` is unknown."""
    prompt, prompt_length = right_pad([asked for asked, _ in encoded])
    tokens, full = right_pad([torch.cat([written, torch.tensor([stop])]) for _, written in encoded])
    mask = torch.arange(tokens.shape[1]).unsqueeze(0) < full.unsqueeze(1)
    tensors = {"prompt": prompt, "prompt_length": prompt_length, "tokens": tokens, "length": full - 1, "mask": mask}
    tensors |= {"log_prob": torch.full(mask.shape, float("nan")), "truncated": torch.zeros(len(full), dtype=torch.bool)}
    return Rollout(PLAN, sampling, {name: tensor.to(device) for name, tensor in tensors.items()}, chains=tuple(chains))
