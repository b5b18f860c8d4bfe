"""What autoregressive transformers share: log-probabilities of whole sequences in one pass, and plans as tokens.

``language`` is a library's own language model, called as in transformers: ``language(inputs_embeds=, attention_mask=, position_ids=,
past_key_values=, use_cache=)``, whose output has ``last_hidden_state``. The library itself is not imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gotr1_core.chain import Chain
from gotr1_core.errors import UsageError
from gotr1_core.policies.padding import left_pad, mask_and_positions, right_pad
from gotr1_core.samples import PLAN, ActionStats, Rollout, Sampling
from gotr1_core.sampling import Tokens, token_stats, uniforms


def hidden_states(language: nn.Module, embeds: Tensor, lengths: Tensor, *, checkpointing: bool) -> Tensor:
    """Returns the last hidden states ``[R, L, H]`` of left-padded sequences, ``embeds [R, L, H]`` and ``lengths [R]``, in one pass."""
    mask, positions = mask_and_positions(lengths, embeds.shape[1])
    language.train(checkpointing and torch.is_grad_enabled())  # transformers checkpoints in training mode only
    output = language(inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False)
    language.eval()  # no dropout, neither in sampling nor in training
    return output.last_hidden_state  # type: ignore[no-any-return]


def checkpoint_activations(language: Any) -> None:
    """Turns on gradient checkpointing, which :func:`hidden_states` then uses if ``checkpointing`` is true.

    Raises:
        UsageError: the language model has dropout. Checkpointing needs training mode, in which dropout would be on.
    """
    if language.config.attention_dropout:
        raise UsageError(
            "gradient_checkpointing: the language model has attention dropout", hint="set attention_dropout to 0 in its config"
        )
    enable = getattr(language, "activation_checkpointing_enable", None) or language.gradient_checkpointing_enable  # the old name
    enable({"use_reentrant": False})


def states_that_predict(hidden: Tensor, start: Tensor, count: int) -> Tensor:
    """Picks from ``hidden [R, L, H]`` the states ``[R, count, H]`` that predict ``count`` tokens, the first at position ``start [R]``."""
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
    """Computes log-probabilities and entropies ``[R, T]`` of ``tokens [R, T]`` from the states ``hidden [R, T, H]`` that predict them.

    Both are 0 where ``mask``, bool ``[R, T]``, is false. ``chunk`` tokens get logits at a time, which limits memory.
    ``unconditional [R, T, H]`` are the states without the prompt, for classifier-free guidance with ``guidance_scale``.
    """
    log_prob, entropy = token_stats(
        head,
        hidden[mask],
        tokens[mask],
        temperature=temperature,
        unconditional=None if unconditional is None else unconditional[mask],
        guidance_scale=guidance_scale,
        chunk=chunk,
    )
    zeros = torch.zeros(mask.shape, dtype=log_prob.dtype, device=log_prob.device)
    return ActionStats(zeros.masked_scatter(mask, log_prob), zeros.masked_scatter(mask, entropy), hidden)


# -- plans as tokens --------------------------------------------------------------------------------------------------------


def generate_plans(
    prompts: Sequence[Tensor],
    generate: Callable[[Tensor, Tensor, Tensor], tuple[Tokens, Any]],
    to_chain: Callable[[Tensor], Chain],
    *,
    seeds: Sequence[int],
    sampling: Sampling,
) -> Rollout:
    """Samples one chain for each prompt, as a rollout.

    Its tensors, besides those of every rollout: ``prompt [B, P]`` (right-padded), ``prompt_length [B]``, ``tokens [B, T]`` with the one
    that ended the chain, ``length [B]`` without it. ``prompts`` are ids ``[P]`` on the model's device. ``generate`` makes tokens from
    left-padded contexts ``[B, C]``, their lengths ``[B]`` and random numbers ``[B, T]``, and what to remember of them; ``to_chain`` makes
    a chain from ids ``[length]``.
    """
    context, prompt_length = left_pad(prompts)
    sampled, memory = generate(context, prompt_length, uniforms(seeds, sampling.max_chain_tokens))
    length = sampled.mask.sum(1) - sampled.finished.long()
    chains = tuple(to_chain(row[:n]) for row, n in zip(sampled.tokens, length.tolist(), strict=True))
    tensors = {"prompt": right_pad(prompts)[0], "prompt_length": prompt_length, "tokens": sampled.tokens, "length": length}
    tensors |= {"mask": sampled.mask, "log_prob": sampled.log_prob, "truncated": ~sampled.finished}
    return Rollout(PLAN, sampling, tensors, chains=chains, memory=memory)


def plans_from_chains(
    encoded: Sequence[tuple[Tensor, Tensor]], stop: int, chains: Sequence[Chain], *, sampling: Sampling, device: torch.device
) -> Rollout:
    """Makes a rollout of chains that the model did not sample, with the tensors of :func:`generate_plans`.

    ``encoded`` are the ids of each prompt ``[P]`` and of its chain ``[T]``. The token ``stop`` ends each chain. ``log_prob`` is NaN.
    """
    prompt, prompt_length = right_pad([prompt_ids for prompt_ids, _ in encoded])
    tokens, token_count = right_pad([torch.cat([chain_ids, torch.tensor([stop])]) for _, chain_ids in encoded])
    mask = torch.arange(tokens.shape[1]).unsqueeze(0) < token_count.unsqueeze(1)
    tensors = {"prompt": prompt, "prompt_length": prompt_length, "tokens": tokens, "length": token_count - 1, "mask": mask}
    tensors |= {"log_prob": torch.full(mask.shape, float("nan")), "truncated": torch.zeros(len(token_count), dtype=torch.bool)}
    return Rollout(PLAN, sampling, {name: tensor.to(device) for name, tensor in tensors.items()}, chains=tuple(chains))
