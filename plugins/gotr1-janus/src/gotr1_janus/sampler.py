"""Janus as a decoder: a key-value cache, text or image tokens fed back, guidance rows beside the conditional ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gotr1_core.sampling import Tokens, decode, guide
from gotr1_janus.layout import attention
from gotr1_janus.module import JanusModule


class Sampler:
    """Continues left-padded contexts ``[R, C]``. Neighbouring equal rows are computed once and their cache is repeated."""

    def __init__(self, module: JanusModule, context: Tensor, lengths: Tensor, *, steps: int, cache: str) -> None:
        self.module = module
        self.language = module.model.model.language_model
        self.context, self.lengths = context, lengths
        keys = torch.cat([lengths.unsqueeze(1), context], 1)
        _, self.owner = torch.unique_consecutive(keys, dim=0, return_inverse=True)
        width = context.shape[1]
        mask, _ = attention(lengths, width)
        self.mask = torch.cat([mask, mask.new_ones(len(mask), steps)], 1)
        self.static = cache == "static"
        self.cache = _cache(self.language.config, width + steps if self.static else None)
        self.at = width

    def _run(self, embeds: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        output = self.language(
            inputs_embeds=embeds, attention_mask=mask, position_ids=positions, past_key_values=self.cache, use_cache=True
        )
        return output.last_hidden_state[:, -1]

    def _prefill(self) -> Tensor:
        first = torch.cat([self.owner.new_zeros(1, dtype=torch.bool), self.owner[1:] == self.owner[:-1]]).logical_not().nonzero().flatten()
        if self.static:
            first = torch.arange(len(self.context), device=self.context.device)  # its tensors have one batch size for good
        context = self.context[first]
        mask, positions = attention(self.lengths[first], context.shape[1])
        hidden = self._run(self.module.embed(context, torch.zeros_like(mask)), mask, positions)
        if len(first) == len(self.context):
            return hidden
        self.cache.batch_select_indices(self.owner)
        return hidden[self.owner]

    def _feed(self, embeds: Tensor) -> Tensor:
        """Hidden states after one more token per row, ``embeds [R, 1, H]``."""
        positions = (self.lengths + self.at - self.context.shape[1]).unsqueeze(1)
        self.at += 1
        return self._run(embeds, self.mask[:, : self.at], positions)

    def text(self, uniform: Tensor, temperature: float) -> Tokens:
        """Samples text until begin-of-image."""
        model = self.module.model

        def advance(tokens: Tensor | None) -> Tensor:
            if tokens is None:
                return model.lm_head(self._prefill())
            return model.lm_head(self._feed(model.get_input_embeddings()(tokens.unsqueeze(1))))

        return decode(advance, uniform, temperature, stop=self.module.boi)

    def image(self, uniform: Tensor, temperature: float, scale: float | None) -> Tokens:
        """Samples image tokens; with a guidance scale the second half of the rows is the unconditional one."""
        model = self.module.model

        def advance(tokens: Tensor | None) -> Tensor:
            if tokens is None:
                hidden = self._prefill()
            else:
                fed = tokens if scale is None else torch.cat([tokens, tokens])
                hidden = self._feed(model.prepare_embeddings_for_image_generation(fed.unsqueeze(1)))
            logits = model.model.generation_head(hidden).float()
            if scale is None:
                return logits
            conditional, other = logits.chunk(2)
            return guide(conditional, other, scale)

        return decode(advance, uniform, temperature)


def _cache(config: Any, length: int | None) -> Any:
    """An empty cache, of a fixed length or one that grows. Imported here, as transformers takes seconds that a refusal need not."""
    from transformers import DynamicCache, StaticCache

    return DynamicCache(config=config) if length is None else StaticCache(config=config, max_cache_len=length)
