"""Continues rows of tokens one token at a time, with the keys and values of what they have in a cache that is written in place.

``language`` is a library's own language model, called as in transformers (see :mod:`gotr1_core.policies.decoder`); its layers are called
one by one where :class:`DecoderStep` knows them. The library itself is not imported here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from gotr1_core.errors import UsageError
from gotr1_core.policies.cache import KeyValueCache
from gotr1_core.policies.decoder_step import DecoderStep, RowBlock
from gotr1_core.policies.padding import mask_and_positions
from gotr1_core.sampling import Tokens, decode

Embed = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Memory:
    """Keys and values of a rollout's rows, from which the policy that computed them can go on, once, while its weights are the same.

    Attributes:
        cache: of R rows.
        seen: bool ``[R, L]``, the columns of the cache that a row may attend to.
        index: ``[B]``, the row of the cache for each row of the rollout.
        weights: how often the weights that computed it had been changed.
    """

    cache: KeyValueCache
    seen: Tensor
    index: Tensor
    weights: int

    def holds(self, language: nn.Module) -> bool:
        """True if it was not used up, and no weight of ``language`` has been changed since."""
        return bool(self.cache.layers) and self.weights == _changes(language)

    def rows(self, index: Tensor) -> Memory:
        """The memory of the rollout's rows ``index [K]``. The cache is the same."""
        return replace(self, index=self.index[index.to(self.index.device)])


class Continuation:
    """R rows that are continued by up to ``steps`` tokens, made by :meth:`read` or :meth:`recall`.

    With ``fixed`` no shape changes from token to token, which a captured CUDA graph needs: all rows go on until the last has ended.

    ``lengths [R]`` are the rows' tokens so far, ``hidden [R, H]`` the states at their ends where these are known. ``seen``, bool
    ``[R, columns]``, are the columns of the cache that a row may attend to.
    """

    def __init__(
        self,
        language: nn.Module,
        cache: KeyValueCache,
        seen: Tensor,
        lengths: Tensor,
        steps: int,
        *,
        hidden: Tensor | None = None,
        fixed: bool = False,
    ) -> None:
        self.language, self.cache, self.lengths, self.hidden, self.fixed = language, cache, lengths, hidden, fixed
        self.context = self.width = seen.shape[1]  # columns of the context, and of what has been fed since too
        self.seen = torch.cat([seen, seen.new_ones(len(seen), steps)], 1)
        self.order = torch.arange(len(seen), device=seen.device)  # the row that stands at each place of the cache
        most = int(lengths.max()) + steps if len(lengths) else steps
        self.decoder = DecoderStep(language, most, fixed=fixed) if DecoderStep.supports(language) else None
        if fixed and self.decoder is None:
            raise UsageError(f"cache=static: the decoder {type(language).__name__} is not known", hint="set cache=dynamic")
        if fixed:
            cache.fix()
        self.blocks = [RowBlock(cache, self.decoder.heads, seen=self.seen)] if self.decoder else []

    @classmethod
    def read(cls, language: nn.Module, embed: Embed, context: Tensor, lengths: Tensor, *, steps: int, fixed: bool = False) -> Continuation:
        """Runs left-padded contexts ``[R, C]`` of ``lengths [R]`` through the model.

        Equal rows that stand together are computed once, so that the samples of a prompt share its prefill.
        """
        distinct, row = torch.unique_consecutive(torch.cat([lengths.unsqueeze(1), context], 1), dim=0, return_inverse=True)
        seen, positions = mask_and_positions(distinct[:, 0], context.shape[1])
        capacity = context.shape[1] + steps
        cache = KeyValueCache(capacity if len(distinct) == len(context) else context.shape[1])
        hidden = _run(language, cache, embed(distinct[:, 1:]), seen, positions)
        if len(distinct) < len(context):
            cache = cache.move(row, capacity)
        return cls(language, cache, seen[row], lengths, steps, hidden=hidden[row], fixed=fixed)

    @classmethod
    def recall(cls, language: nn.Module, memory: Memory, *, steps: int, fixed: bool = False) -> Continuation:
        """Goes on from a memory, which is used up."""
        seen = memory.seen[memory.index]
        return cls(language, memory.cache.move(memory.index, seen.shape[1] + steps), seen, seen.sum(1), steps, fixed=fixed)

    def add_unconditional(self, embed: Embed, context: Tensor) -> None:
        """Adds R rows after the others, which see the beginning of one ``context [C]``: as many of its tokens as their row has.

        All these beginnings are equal, so they are computed once. Only for decoders that :class:`DecoderStep` knows.
        """
        if self.decoder is None:
            raise ValueError("rows can only be added where DecoderStep.supports() the decoder")
        ids = context.unsqueeze(0)
        prefix = KeyValueCache(len(context))
        _run(self.language, prefix, embed(ids), *mask_and_positions(torch.tensor([len(context)], device=ids.device), len(context)))
        own = prefix.empty_like(len(self.lengths), self.seen.shape[1] - self.width)
        if self.fixed:
            own.fix()
        self.blocks.append(RowBlock(own, self.decoder.heads, prefix=prefix, prefix_lengths=self.lengths))
        self.lengths = torch.cat([self.lengths, self.lengths])

    def step(self, embeds: Tensor) -> Tensor:
        """Feeds one more token per row, ``embeds [R, H]``. Returns the hidden states ``[R, H]`` after it."""
        positions = self.lengths
        self.lengths = self.lengths + 1
        self.width += 1
        if self.decoder is not None:
            return self.decoder(embeds, positions, self.blocks)
        return _run(self.language, self.cache, embeds.unsqueeze(1), self.seen[: len(embeds), : self.width], positions.unsqueeze(1))

    def generate(self, head: nn.Module, embed: Embed, uniform: Tensor, temperature: float, stop: int) -> Tokens:
        """Samples up to T tokens per row until the token ``stop``. ``uniform [R, T]`` are the random numbers, one per token."""

        def advance(tokens: Tensor | None) -> Tensor:
            return head(self.hidden if tokens is None else self.step(embed(tokens)))  # type: ignore[no-any-return]

        every = 8 if self.lengths.is_cuda else 1  # asking a GPU whether rows have ended waits for it
        return decode(advance, uniform, temperature, stop=stop, keep=None if self.fixed else self._keep, check_every=every)

    def remember(self, embed: Embed, sampled: Tokens) -> Memory:
        """The memory of the contexts with the tokens that :meth:`generate` has just sampled; of finished rows without the last one."""
        going_on = self.order[: self.cache.rows]
        if not sampled.finished[going_on].all():  # their last tokens are not in the cache yet
            self.step(embed(sampled.tokens[going_on, -1]))
        length = sampled.mask.sum(1) - sampled.finished.long()
        columns = torch.arange(self.width - self.context, device=length.device)
        seen = torch.cat([self.seen[:, : self.context], columns < length[self.order].unsqueeze(1)], 1)
        return Memory(self.cache, seen, self.order.argsort(), _changes(self.language))

    def _keep(self, rows: Tensor) -> Tensor:
        """Continues only the rows at these places, rising ``[K]``; returns the places in the order of the rows from now on.

        They take the places of rows that do not go on, which keep what they have behind them.
        """
        before, count = self.cache.rows, len(rows)
        goes_on = torch.zeros(before, dtype=torch.bool, device=rows.device)
        goes_on[rows] = True
        holes, moved = (~goes_on[:count]).nonzero().flatten(), goes_on[count:].nonzero().flatten() + count
        places = torch.arange(before, device=rows.device)
        places[holes], places[moved] = moved, holes
        self.cache.order(places, count)
        self.order[:before] = self.order[:before][places]
        self.seen[:before] = self.seen[:before][places]
        self.lengths = self.lengths[places[:count]]
        if self.decoder is not None:
            self.blocks = [RowBlock(self.cache, self.decoder.heads, seen=self.seen[:count])]
        return places[:count]


def _changes(module: nn.Module) -> int:
    """How often the weights of a module have been changed in place."""
    return sum(parameter._version for parameter in module.parameters())


def _run(language: nn.Module, cache: KeyValueCache, embeds: Tensor, seen: Tensor, positions: Tensor) -> Tensor:
    """Feeds tokens ``embeds [R, L, H]`` at ``positions [R, L]``. Returns the hidden states ``[R, H]`` at their ends."""
    output = language(inputs_embeds=embeds, attention_mask=seen, position_ids=positions, past_key_values=cache, use_cache=True)
    return output.last_hidden_state[:, -1]  # type: ignore[no-any-return]
