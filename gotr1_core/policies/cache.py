"""Keys and values of a decoder, written in place: tensors are made once, and a step reads them up to the current length.

A cache that grows by concatenation copies everything it has at every token, which was the largest part of a rollout on a CPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

GROWTH = 128
"""Columns for which room is made ahead: chains are often far shorter than they may be."""


class KeyValueCache:
    """Keys and values of R rows in every layer, ``[2, R, groups, columns, D]``; the first ``length`` columns are written.

    Room is made for many columns at once, ``capacity`` at most. What is not written is 0: a column that no row sees must not be NaN.

    Has the methods that models of transformers call on a cache, so that one can be their ``past_key_values``.
    """

    is_compileable = False
    is_sliding: tuple[bool, ...] = ()

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.layers: list[Tensor] = []
        self.rows = 0  # the first of them, which go on; the others keep what they have
        self.column: Tensor | None = None  # where a fixed cache is written next, ``[1]``
        self._lengths: list[int] = []  # of each layer, because a model writes one layer after another

    @property
    def length(self) -> int:
        """How many columns the first layer has: all layers have as many between two calls of the model."""
        return self._lengths[0] if self._lengths else 0

    def empty_like(self, rows: int, capacity: int) -> KeyValueCache:
        """A cache of the same layers with nothing written, for other rows."""
        made = KeyValueCache(capacity)
        for layer in self.layers:
            made._add_layer(layer.new_zeros(2, rows, layer.shape[2], min(capacity, GROWTH), layer.shape[4]))
        return made

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Writes the next L columns of a layer, ``[R, groups, L, D]`` each. Returns views of all that its rows have now."""
        rows, groups, count, dim = keys.shape
        if layer == len(self.layers):
            self._add_layer(keys.new_zeros(2, rows, groups, min(self.capacity, count + GROWTH), dim))
        start, end = self._next(layer, count)
        tensor = self.layers[layer][:, : self.rows]
        tensor[0, :, :, start:end] = keys
        tensor[1, :, :, start:end] = values
        return tensor[0, :, :, :end], tensor[1, :, :, :end]

    def write_one(self, layer: int, pair: Tensor) -> tuple[Tensor, Tensor]:
        """Writes one column of a layer that exists, keys and values ``pair [R, 2, groups, D]``. Returns :meth:`pair`."""
        if self.column is not None:
            self.layers[layer].index_copy_(3, self.column, pair.transpose(0, 1).unsqueeze(3))
        else:
            start, _ = self._next(layer, 1)
            self.layers[layer][:, : self.rows].select(3, start).copy_(pair.transpose(0, 1))
        return self.pair(layer)

    def pair(self, layer: int) -> tuple[Tensor, Tensor]:
        """Views of the keys and of the values that its rows have now, ``[R * groups, length, D]``; of a fixed cache, of all columns."""
        end = self._lengths[layer] if self.column is None else self.capacity
        keys, values = self.layers[layer][:, : self.rows, :, :end].flatten(1, 2)
        return keys, values

    def fix(self) -> None:
        """Fixes shapes and addresses, as a captured CUDA graph needs: room is made for the capacity, and :meth:`pair` has all of it.

        A token is then written at ``column``, and :meth:`advance` goes to the next one.
        """
        for layer, length in enumerate(self._lengths):
            self._next(layer, self.capacity - length)
            self._lengths[layer] = length
        self.column = torch.tensor([self.length], device=self.layers[0].device)

    def advance(self) -> None:
        """Goes to the next column of a fixed cache, after a token was written in every layer."""
        if self.column is None:
            raise ValueError("only a fixed cache is advanced")
        self.column += 1
        self._lengths = [length + 1 for length in self._lengths]

    def move(self, rows: Tensor, capacity: int) -> KeyValueCache:
        """Moves rows ``rows [K]`` into a new cache with another capacity. A row may be named more than once. This cache is empty then."""
        moved = KeyValueCache(capacity)
        for layer, length in enumerate(self._lengths):
            keys, values = self.layers[layer][:, :, :, :length]
            moved.write(layer, keys[rows], values[rows])
            self.layers[layer] = keys[:0]  # frees it before the next layer is made
        self.layers, self._lengths, self.rows = [], [], 0
        return moved

    def order(self, rows: Tensor, count: int) -> None:
        """Puts the rows that go on in the order ``rows [R]``, a permutation; the first ``count`` go on from now. Copies what moves."""
        changed = (rows != torch.arange(len(rows), device=rows.device)).nonzero().flatten()
        if len(changed):
            for layer, length in enumerate(self._lengths):
                written = self.layers[layer][..., :length, :]
                written[:, changed] = written[:, rows[changed]]
        self.rows = count

    def _add_layer(self, tensor: Tensor) -> None:
        self.rows = tensor.shape[1]
        self.layers.append(tensor)
        self._lengths.append(0)

    def _next(self, layer: int, count: int) -> tuple[int, int]:
        """Makes room for the next columns of a layer. Returns the first of them and the one after the last."""
        start = self._lengths[layer]
        end = self._lengths[layer] = start + count
        old = self.layers[layer]
        if end > (room := old.shape[3]):
            new = old.new_zeros(*old.shape[:3], min(self.capacity, max(end, room + max(room // 2, GROWTH))), old.shape[4])
            new[..., :start, :] = old[..., :start, :]
            self.layers[layer] = new
        return start, end

    # -- what models of transformers call -----------------------------------------------------------------------------------

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """The same as :meth:`write`: ``keys`` and ``values [R, groups, L, D]``, in the order of arguments of transformers' caches."""
        return self.write(layer_idx, keys, values)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """The number of columns that a layer has."""
        return self._lengths[layer_idx] if layer_idx < len(self._lengths) else 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """The column of the next token."""
        return self.get_seq_length(layer_idx)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Columns that an attention mask needs for ``query_length`` more tokens, and the number of the first of them."""
        return self.get_seq_length(layer_idx) + query_length, 0
