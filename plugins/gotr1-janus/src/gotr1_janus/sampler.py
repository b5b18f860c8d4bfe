"""Janus as a decoder: text or image tokens fed back, guidance rows beside the conditional ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gotr1_core.policies.decoder import Continuation
from gotr1_core.sampling import Tokens, apply_guidance, decode
from gotr1_janus.module import JanusModule


class Sampler:
    """Continues left-padded contexts ``[R, C]``; see :class:`gotr1_core.policies.decoder.Continuation`."""

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

    def text(self, uniform: Tensor, temperature: float) -> Tokens:
        """Samples text until begin-of-image."""
        return self.rows.generate(self.model.lm_head, uniform, temperature, stop=self.boi)

    def image(self, uniform: Tensor, temperature: float, scale: float | None) -> Tokens:
        """Samples image tokens; with a guidance scale the second half of the rows is the unconditional one."""

        def advance(tokens: Tensor | None) -> Tensor:
            if tokens is None:
                hidden = self.rows.prefill()
            else:
                fed = tokens if scale is None else torch.cat([tokens, tokens])
                hidden = self.rows.step(self.model.prepare_embeddings_for_image_generation(fed.unsqueeze(1)))
            logits = self.model.model.generation_head(hidden).float()
            if scale is None:
                return logits
            conditional, other = logits.chunk(2)
            return apply_guidance(conditional, other, scale)

        return decode(advance, uniform, temperature)


def _cache(config: Any, length: int | None) -> Any:
    """An empty cache, of a fixed length or one that grows. Imported here, as transformers takes seconds that a refusal need not."""
    from transformers import DynamicCache, StaticCache

    return DynamicCache(config=config) if length is None else StaticCache(config=config, max_cache_len=length)
