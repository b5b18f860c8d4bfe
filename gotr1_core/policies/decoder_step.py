"""One token per row through a decoder of transformers: its own layers, called with less around them.

A library's forward is made for every case; at one token per row most of its time is overhead. This uses the same weights, norms and
activations. What it computes itself is the rotation of positions (RoPE, arXiv 2104.09864) and the attention.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gotr1_core.policies.cache import KeyValueCache

LAYERS = {"LlamaDecoderLayer", "Qwen2DecoderLayer", "Qwen2_5_VLDecoderLayer", "Qwen3DecoderLayer", "Qwen3VLTextDecoderLayer"}
"""Names of transformers' decoder layers that compute what :class:`DecoderStep` does."""
SMALL = 1024
"""Layers with at most so many inputs get copies of their weights, joined and laid out for few rows. Large products gain nothing by it."""

Projection = Callable[[Tensor], Tensor]


class RowBlock:
    """R rows that are decoded together.

    Args:
        cache: what they have written.
        heads: heads of queries.
        seen: bool ``[R, capacity]``, the columns that a row may attend to. None: all that are written.
        prefix: a cache of one row, of which all rows see the first ``prefix_lengths [R]`` columns before their own.
    """

    def __init__(
        self,
        cache: KeyValueCache,
        heads: int,
        *,
        seen: Tensor | None = None,
        prefix: KeyValueCache | None = None,
        prefix_lengths: Tensor | None = None,
    ) -> None:
        self.cache, self.prefix, self.rows = cache, prefix, cache.rows
        example = cache.layers[0]
        groups, dtype, each = example.shape[2], example.dtype, heads // example.shape[2]
        self.bias: Tensor | None = None
        if cache.column is not None:  # nothing is seen before it is written
            written = torch.arange(cache.capacity, device=example.device) < cache.length
            seen = written.expand(self.rows, -1) if seen is None else seen & written
        if seen is not None:
            self.bias = _attention_bias(seen, dtype).repeat_interleave(groups, 0)  # [R * groups, 1, capacity]
            self._each_bias = self.bias.expand(-1, each, -1)
        if prefix is not None and prefix_lengths is not None:
            columns = torch.arange(prefix.length, device=prefix_lengths.device).unsqueeze(0)
            bias = _attention_bias(columns < prefix_lengths.unsqueeze(1), dtype)
            self.prefix_bias = bias.repeat_interleave(each, 0).transpose(0, 1).contiguous()  # [1, R * each, P]

    def open(self) -> None:
        """Lets rows see the column that is written next, where that is not known by the cache's length."""
        if self.bias is not None and self.cache.column is not None:
            self.bias.index_fill_(2, self.cache.column, 0.0)

    def attend(self, layer: int, query: Tensor, pair: Tensor) -> Tensor:
        """Attention of one token per row.

        Args:
            layer: the number of the decoder's layer.
            query: ``[R, heads, D]``, scaled.
            pair: the rows' keys and values ``[R, 2, groups, D]``, which are written.

        Returns:
            ``[R, heads * D]``.
        """
        keys, values = self.cache.write_one(layer, pair)
        flat, columns, dim = keys.shape
        grouped = query.reshape(flat, -1, dim)  # [R * groups, each, D]
        if self.bias is None:
            scores = torch.bmm(grouped, keys.transpose(1, 2))
        else:
            scores = torch.baddbmm(self._each_bias[:, :, :columns], grouped, keys.transpose(1, 2))
        if self.prefix is not None:
            return self._with_prefix(self.prefix.pair(layer), grouped, scores, values).view(self.rows, -1)
        return torch.bmm(_softmax(scores, values.dtype), values).view(self.rows, -1)

    def _with_prefix(self, prefix: tuple[Tensor, Tensor], grouped: Tensor, scores: Tensor, values: Tensor) -> Tensor:
        """Attention to the prefix and the rows' own columns. The prefix is one row for all, so it is read once in place of once per row."""
        keys, before_values = prefix  # [groups, P, D]
        groups, width, dim = keys.shape
        flat, each, _ = grouped.shape
        by_group = grouped.view(self.rows, groups, each, dim).transpose(0, 1).reshape(groups, -1, dim)  # [groups, R * each, D]
        before = torch.baddbmm(self.prefix_bias, by_group, keys.transpose(1, 2))
        before = before.view(groups, self.rows, each, width).transpose(0, 1).reshape(flat, each, width)
        weights = _softmax(torch.cat([before, scores], -1), values.dtype)
        by_group = weights[:, :, :width].reshape(self.rows, groups, each, width).transpose(0, 1).reshape(groups, -1, width)
        seen = torch.bmm(by_group, before_values).view(groups, self.rows, each, dim).transpose(0, 1).reshape(flat, each, dim)
        return torch.baddbmm(seen, weights[:, :, width:], values)


@dataclass(frozen=True)
class _Layer:
    """A decoder layer's parts. The first product of attention and MLP includes the norm before it."""

    query_key_value: Projection
    query_norm: Projection | None
    key_norm: Projection | None
    out: Projection
    gate_up: Projection
    activation: Projection
    down: Projection
    scaling: float


class DecoderStep:
    """The step of a decoder ``language``. Positions from ``positions`` on cannot be asked for.

    Weights may be copied: make a new one after they have changed. With ``fixed``, caches are fixed, and on a GPU the step is captured once
    as a CUDA graph and replayed; blocks must stay the same.
    """

    def __init__(self, language: nn.Module, positions: int, *, fixed: bool = False) -> None:
        decoder: Any = language
        self.fixed = fixed
        self._captured: _Captured | None = None
        self.layers = [_read_layer(layer) for layer in decoder.layers]
        self.norm = decoder.norm
        config = decoder.config
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.heads, self.groups = config.num_attention_heads, config.num_key_value_heads
        example = next(decoder.parameters())
        ids = torch.arange(positions, device=example.device).unsqueeze(0)
        cos, sin = (table[0] for table in decoder.rotary_emb(example.new_empty(1, 1, 1), _as_asked(decoder, ids)))
        cos, sin = (table[0] if table.dim() == 3 else table for table in (cos, sin))  # one of equal sections
        half = self.head_dim // 2
        # Rotating halves negates the second one: the sign is put into the table instead.
        self.cos, self.sin = cos.unsqueeze(1), torch.cat([-sin[:, :half], sin[:, half:]], 1).unsqueeze(1)

    @staticmethod
    def supports(language: Any) -> bool:
        """True if every layer's mathematics is known here, none attends to a window only, and positions rotate alike at any length."""
        layers = getattr(language, "layers", ())
        windows = any(getattr(getattr(layer, "self_attn", None), "sliding_window", None) for layer in layers)
        changing = getattr(getattr(language, "rotary_emb", None), "rope_type", "default") in ("dynamic", "longrope")
        return len(layers) > 0 and all(type(layer).__name__ in LAYERS for layer in layers) and not windows and not changing

    def __call__(self, embeds: Tensor, positions: Tensor, blocks: Sequence[RowBlock]) -> Tensor:
        """Feeds one token per row, ``embeds [R, H]`` at ``positions [R]``; the rows of ``blocks`` one after another. Returns ``[R, H]``."""
        if not self.fixed:
            return self._compute(embeds, positions, blocks)
        for block in blocks:
            block.open()
        if embeds.is_cuda:
            self._captured = self._captured or _Captured(lambda e, p: self._compute(e, p, blocks), embeds, positions)
            hidden = self._captured(embeds, positions)
        else:
            hidden = self._compute(embeds, positions, blocks)
        for block in blocks:
            block.cache.advance()
        return hidden

    def _compute(self, embeds: Tensor, positions: Tensor, blocks: Sequence[RowBlock]) -> Tensor:
        tables = self.cos[positions], self.sin[positions]
        sizes = [block.rows for block in blocks]
        hidden = embeds
        for number, layer in enumerate(self.layers):
            joined = layer.query_key_value(hidden).contiguous().view(len(hidden), -1, self.head_dim)
            query, pair = self._rotate(layer, joined, tables)
            if len(blocks) == 1:
                attended = blocks[0].attend(number, query, pair)
            else:
                parts = zip(blocks, query.split(sizes), pair.split(sizes), strict=True)
                attended = torch.cat([block.attend(number, *part) for block, *part in parts])
            hidden = hidden + layer.out(attended)
            gate, up = layer.gate_up(hidden).chunk(2, -1)
            hidden = hidden + layer.down(layer.activation(gate) * up)
        return self.norm(hidden)  # type: ignore[no-any-return]

    def _rotate(self, layer: _Layer, joined: Tensor, tables: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Queries ``[R, heads, D]``, scaled, and pairs of keys and values ``[R, 2, groups, D]``, of ``joined [R, heads + 2 groups, D]``."""
        heads, ends = self.heads, self.heads + self.groups
        if layer.query_norm is not None and layer.key_norm is not None:
            query, key, value = joined.split([heads, self.groups, self.groups], 1)
            joined = torch.cat([layer.query_norm(query), layer.key_norm(key), value], 1)
        rotated = joined[:, :ends]
        turned = rotated.roll(self.head_dim // 2, -1)
        rotated.mul_(tables[0]).addcmul_(turned, tables[1])
        return joined[:, :heads] * layer.scaling, joined[:, heads:].view(len(joined), 2, self.groups, self.head_dim)


class _Captured:
    """A function of two tensors on a GPU, as a CUDA graph: its kernels are launched at once, without Python in between."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], *example: Tensor) -> None:
        self.inputs = [tensor.clone() for tensor in example]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # kernels and workspaces are chosen before the capture
            for _ in range(3):
                function(*self.inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.output = function(*self.inputs)

    def __call__(self, *inputs: Tensor) -> Tensor:
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        self.graph.replay()
        return self.output.clone()


def _softmax(scores: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.softmax(scores, -1, dtype=torch.float32).to(dtype)


def _attention_bias(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """What a mask ``seen``, bool ``[R, L]``, adds to attention scores, ``[R, 1, L]``: 0, and the least number where it is false."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min).unsqueeze(1)


def _read_layer(layer: Any) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    return _Layer(
        query_key_value=_product(layer.input_layernorm, attention.q_proj, attention.k_proj, attention.v_proj),
        query_norm=getattr(attention, "q_norm", None),
        key_norm=getattr(attention, "k_norm", None),
        out=_product(None, attention.o_proj),
        gate_up=_product(layer.post_attention_layernorm, mlp.gate_proj, mlp.up_proj),
        activation=mlp.act_fn,
        down=_product(None, mlp.down_proj),
        scaling=float(attention.scaling),
    )


def _product(norm: Any, *layers: nn.Module) -> Projection:
    """A norm, if there is one, and linear layers of one input, from ``[R, inputs]`` to ``[R, sum of outputs]``. One product if small."""
    plain = [layer for layer in layers if type(layer) is nn.Linear and layer.in_features <= SMALL]  # without adapters, not quantized
    biases = [layer.bias.detach() for layer in plain if layer.bias is not None]
    known = norm is None or (type(norm).__name__.endswith("RMSNorm") and hasattr(norm, "variance_epsilon"))
    float32 = all(p.dtype == torch.float32 for layer in layers for p in layer.parameters())
    if len(plain) < len(layers) or len(biases) not in (0, len(plain)) or not known or not float32:
        return partial(_one_by_one, norm, layers)
    weight = torch.cat([layer.weight.detach() for layer in plain])
    linear = _few_rows(weight if norm is None else weight * norm.weight.detach(), torch.cat(biases) if biases else None)
    if norm is None:
        return linear
    epsilon = weight.new_full((1, 1, 1), norm.variance_epsilon)
    return lambda x: linear(x * _inverse_rms(x, epsilon))


def _one_by_one(norm: Projection | None, layers: Sequence[nn.Module], x: Tensor) -> Tensor:
    x = x if norm is None else norm(x)
    return layers[0](x) if len(layers) == 1 else torch.cat([layer(x) for layer in layers], -1)


def _inverse_rms(x: Tensor, epsilon: Tensor) -> Tensor:
    """1 / root of the mean square of rows ``x [R, H]`` (RMSNorm, arXiv 1910.07467), ``[R, 1]``. One product, since calls cost most."""
    return torch.baddbmm(epsilon, x.unsqueeze(1), x.unsqueeze(2), alpha=1 / x.shape[1]).rsqrt_().squeeze(2)


def _few_rows(weight: Tensor, bias: Tensor | None) -> Projection:
    """``x @ weight.T + bias`` in the order that is fastest for few rows: with one thread another one than with several."""
    several = torch.get_num_threads() > 1
    matrix = weight if several else weight.t().contiguous()

    def multiply(x: Tensor) -> Tensor:
        product = (matrix @ x.contiguous().t()).t() if several else x @ matrix
        return product if bias is None else product + bias

    return multiply


def _as_asked(language: Any, positions: Tensor) -> Tensor:
    """Position ids as the decoder's rotary embedding takes them: once, or once for each section (time, height, width) of a Qwen-VL."""
    sections = "mrope_section" in (getattr(language.config, "rope_parameters", None) or {})
    return positions.unsqueeze(0).expand(3, -1, -1) if sections else positions
