"""Samples text or image tokens with Janus. With guidance, unconditional rows run in the same batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gotr1_core.policies.continuation import Continuation, Memory
from gotr1_core.policies.decoder_step import DecoderStep
from gotr1_core.policies.padding import left_pad
from gotr1_core.sampling import Tokens, apply_guidance, decode
from gotr1_janus.layout import unconditional
from gotr1_janus.module import JanusModule


def sample_text(
    module: JanusModule, context: Tensor, lengths: Tensor, uniform: Tensor, temperature: float, *, fixed: bool = False
) -> tuple[Tokens, Memory]:
    """Continues left-padded contexts ``[R, C]`` of ``lengths [R]`` until begin-of-image.

    ``uniform [R, T]`` are random numbers, T the most tokens of a row. ``fixed``: no shape changes from token to token.
    Returns the tokens, and the memory of contexts and chains.
    """
    embed = module.model.get_input_embeddings()
    rows = Continuation.read(module.language, embed, context, lengths, steps=uniform.shape[1], fixed=fixed)
    sampled = rows.generate(module.model.lm_head, embed, uniform, temperature, stop=module.boi)
    return sampled, rows.remember(embed, sampled)


def sample_image(
    module: JanusModule,
    contexts: Sequence[Tensor],
    uniform: Tensor,
    temperature: float,
    scale: float | None,
    *,
    memory: Memory | None = None,
    fixed: bool = False,
) -> Tokens:
    """Samples I image tokens for each of B rows, from random numbers ``uniform [B, I]``.

    ``contexts`` are prompt, chain and begin-of-image of each row, ``[C]``. ``scale`` is None without guidance. ``memory`` is that of the
    contexts without their last token, if the model has just computed it. ``fixed``: no shape changes from token to token.
    """
    model, guided = module.model, scale is not None
    rows = _start(module, contexts, uniform.shape[1], guided, memory, fixed)

    def advance(tokens: Tensor | None) -> Tensor:
        if tokens is None:
            embeds = model.get_input_embeddings()(torch.stack([context[-1] for context in contexts]))
        else:
            embeds = model.prepare_embeddings_for_image_generation(tokens)
        hidden = rows.step(torch.cat([embeds, embeds]) if guided else embeds)
        logits = model.model.generation_head(hidden).float()
        if scale is None:
            return logits
        conditional, without_prompt = logits.chunk(2)
        return apply_guidance(conditional, without_prompt, scale)

    return decode(advance, uniform, temperature)


def _start(module: JanusModule, contexts: Sequence[Tensor], steps: int, guided: bool, memory: Memory | None, fixed: bool) -> Continuation:
    """The rows before begin-of-image; with guidance, the unconditional ones behind the others."""
    embed, language = module.model.get_input_embeddings(), module.language
    begun = [context[:-1] for context in contexts]
    # Unconditional rows are equal up to their lengths, if they begin alike: their beginning is computed once.
    alike = DecoderStep.supports(language) and len({int(row[0]) for row in begun}) == 1
    if guided and not alike:
        context, lengths = left_pad(begun + [unconditional(c, module.pad)[:-1] for c in contexts], module.pad)
        return Continuation.read(language, embed, context, lengths, steps=steps, fixed=fixed)
    if memory is None:
        rows = Continuation.read(language, embed, *left_pad(begun, module.pad), steps=steps, fixed=fixed)
    else:
        rows = Continuation.recall(language, memory, steps=steps, fixed=fixed)
    if guided:
        rows.add_unconditional(embed, unconditional(max(contexts, key=len), module.pad)[:-1])
    return rows
