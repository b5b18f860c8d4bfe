"""Packs training questions into sequences. Questions about one picture or plan have a common prefix, and it is computed only once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gotr1_core.policies.padding import right_pad

LONGEST = 224  # maximum length of a sequence of several rows, because attention costs its square


@dataclass(frozen=True)
class Packed:
    """Rows packed into P sequences of length L. Rows with a common prefix form a block, which has the prefix once.

    ``ids`` and ``positions`` are ``[P, L]``. ``mask [P, 1, L, L]`` is 0 if a token attends to another one, of its own row or of its block's
    prefix, and very negative otherwise. ``starts`` has for each row: its sequence, the start of its block, the length of the prefix, and
    the start of the rest of the row. ``blocks`` has one row of each block, in the order of the blocks.
    """

    ids: Tensor
    positions: Tensor
    mask: Tensor
    starts: tuple[tuple[int, int, int, int], ...]
    blocks: tuple[int, ...]


def pack(rows: Sequence[Tensor], about: Sequence[int | str]) -> Packed:
    """Packs rows of token ids ``[length]``. Rows with the same subject form blocks, and a sequence has as many blocks as fit.

    Args:
        rows: the token ids of each question.
        about: the subject of each question: the number of its picture, or its plan.
    """
    blocks = shared_prefix_groups(rows, about)
    starts: dict[int, tuple[int, int, int, int]] = {}
    order: list[int] = []
    columns: tuple[list[Tensor], ...] = ([], [], [], [])  # ids, positions, owner of each token, owner of its block's prefix
    for p, numbers in enumerate(_blocks_of_sequences([common + sum(len(rows[i]) - common for i in group) for common, group in blocks])):
        pieces: list[tuple[int, int, int, int, int]] = []  # row, start and end in it, owner, owner of the block's prefix
        at = 0
        for common, group in (blocks[k] for k in numbers):
            begins, root = at, -2 - group[0]  # a row's owner is its number, a prefix's a negative number
            order.append(group[0])
            pieces.append((group[0], 0, common, root, root))
            at += common
            for i in group:
                starts[i] = (p, begins, common, at)
                pieces.append((i, common, len(rows[i]), i, root))
                at += len(rows[i]) - common
        columns[0].append(torch.cat([rows[i][start:end] for i, start, end, _, _ in pieces]))
        columns[1].append(torch.cat([torch.arange(start, end) for _, start, end, _, _ in pieces]))
        for field in (3, 4):
            columns[field - 1].append(torch.cat([torch.full((piece[2] - piece[1],), piece[field]) for piece in pieces]))
    ids, positions, owners, roots = (right_pad(column, pad)[0] for column, pad in zip(columns, (0, 0, -1, -1), strict=True))
    attends = (owners.unsqueeze(2) == owners.unsqueeze(1)) | (roots.unsqueeze(2) == owners.unsqueeze(1))
    attends &= torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    mask = torch.zeros(attends.shape).masked_fill(~attends, torch.finfo(torch.float32).min).unsqueeze(1)
    return Packed(ids, positions, mask, tuple(starts[i] for i in range(len(rows))), tuple(order))


def _blocks_of_sequences(lengths: Sequence[int]) -> list[list[int]]:
    """Distributes blocks over sequences: the longest first, each to the first sequence with room. Returns the blocks of each sequence."""
    sequences: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda k: -lengths[k]):
        blocks = next((numbers for numbers in sequences if sum(lengths[k] for k in numbers) + lengths[number] <= LONGEST), None)
        if blocks is None:
            sequences.append(blocks := [])
        blocks.append(number)
    return sequences


def shared_prefix_groups(rows: Sequence[Tensor], about: Sequence[int | str]) -> list[tuple[int, list[int]]]:
    """Groups rows of token ids ``[length]`` with the same subject so that each group fits into a sequence.

    Returns:
        For each group the number of tokens with which all its rows begin, and the rows' numbers.
    """
    groups: dict[int | str, list[int]] = {}
    for number, subject in enumerate(about):
        groups.setdefault(subject, []).append(number)
    blocks: list[tuple[int, list[int]]] = []
    for group in groups.values():
        shortest = min(len(rows[i]) for i in group)
        same = torch.stack([rows[i][:shortest] == rows[group[0]][:shortest] for i in group]).all(0)
        common = min(int(same.long().cumprod(0).sum()), shortest - 1)
        room = 0
        for number in group:
            if len(rows[number]) - common > room:
                blocks.append((common, []))
                room = LONGEST - common
            blocks[-1][1].append(number)
            room -= len(rows[number]) - common
    return blocks


def forward(model: Any, features: Tensor, rows: Sequence[Tensor], about: Sequence[int | str], places: Sequence[Sequence[int]]) -> Tensor:
    """Returns the last hidden states ``[K, D]`` at K positions of the rows. A picture is computed once for all its questions.

    Args:
        model: the judge's InternVL.
        features: of the pictures, ``[pictures, T, D]``.
        rows: token ids ``[length]`` of each question.
        about: the subject of each question, see `pack`.
        places: the positions in each row.
    """
    packed = pack(rows, about)
    order = torch.tensor([subject for i in packed.blocks if isinstance(subject := about[i], int)])
    embedded = model.get_input_embeddings()(packed.ids)
    embedded = embedded.masked_scatter((packed.ids == model.config.image_token_id).unsqueeze(-1), features[order])
    hidden: Tensor = model.model.language_model(
        inputs_embeds=embedded, attention_mask=packed.mask, position_ids=packed.positions, use_cache=False
    ).last_hidden_state
    at = [
        (p, begins + place if place < common else start + place - common)
        for (p, begins, common, start), row_places in zip(packed.starts, places, strict=True)
        for place in row_places
    ]
    indices = torch.tensor(at)
    return hidden[indices[:, 0], indices[:, 1]]
