"""Samples text or image tokens with Janus and a key-value cache. With guidance, unconditional rows run in the same batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gotr1_core.policies.decoder import Continuation
from gotr1_core.sampling import Tokens, apply_guidance, decode
from gotr1_janus.module import JanusModule


class Sampler:
    """Continues left-padded contexts ``[R, C]`` of ``lengths [R]``; see :class:`gotr1_core.policies.decoder.Continuation`.

    ``steps`` is the largest number of tokens to sample, ``cache`` the option of :class:`gotr1_janus.options.JanusOptions`.
    """

    def __init__(self, module: JanusModule, context: Tensor, lengths: Tensor, *, steps: int, cache: str) -> None:
        self.model = module.model
        self.boi = module.boi
        language, static = module.model.model.language_model, cache == "static"
        self.rows = Continuation(
            language,
            module.model.get_input_embeddings(),
            context,
            lengths,
            steps=steps,
            cache=_cache(language.config, context.shape[1] + steps if static else None),
            fixed=static,
        )

    def sample_text(self, uniform: Tensor, temperature: float) -> Tokens:
        """Samples text until begin-of-image. ``uniform [R, T]`` are random numbers, T the most tokens of a row."""
        return self.rows.generate(self.model.lm_head, uniform, temperature, stop=self.boi)

    def sample_image(self, uniform: Tensor, temperature: float, scale: float | None) -> Tokens:
        """Samples I image tokens for each of B rows, from random numbers ``uniform [B, I]``.

        Without guidance ``scale`` is None and B = R. With guidance R = 2B: the second half of the contexts is unconditional.
        """

        def advance(tokens: Tensor | None) -> Tensor:
            if tokens is None:
                hidden = self.rows.prefill()
            else:
                rows = tokens if scale is None else torch.cat([tokens, tokens])
                hidden = self.rows.step(self.model.prepare_embeddings_for_image_generation(rows.unsqueeze(1)))
            logits = self.model.model.generation_head(hidden).float()
            if scale is None:
                return logits
            conditional, unconditional = logits.chunk(2)
            return apply_guidance(conditional, unconditional, scale)

        return decode(advance, uniform, temperature)


def _cache(config: Any, length: int | None) -> Any:
    """An empty cache of a fixed ``length``; one that grows if that is None. Imports transformers late, as that takes seconds."""
    from transformers import DynamicCache, StaticCache

    return DynamicCache(config=config) if length is None else StaticCache(config=config, max_cache_len=length)
