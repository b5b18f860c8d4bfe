"""Questions about one picture or one plan share what they begin with, in training as they cannot in a judge: it is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gotr1_core.policies.padding import right_pad

LONGEST = 224  # tokens of a sequence in which rows are together: attention costs its square


@dataclass(frozen=True)
class Packed:
    """Rows in sequences ``[P, L]``, in blocks that share what rows of one picture begin with, so that it is computed once.

    ``seen [P, 1, L, L]`` is 0 where a token sees another, of its own row or of the beginning of its block, and very negative elsewhere;
    ``starts`` say where a row is: its sequence, where its block begins, the length of that beginning, and where it goes on after that.
    ``blocks`` have a row of each block, in the order in which they stand.
    """

    ids: Tensor
    positions: Tensor
    seen: Tensor
    starts: tuple[tuple[int, int, int, int], ...]
    blocks: tuple[int, ...]


def pack(rows: Sequence[Tensor], about: Sequence[int | str]) -> Packed:
    """Rows together that are about one picture, by its number, or about one plan; and as many such blocks in a sequence as fit."""
    blocks = shared_prefix_groups(rows, about)
    starts: dict[int, tuple[int, int, int, int]] = {}
    order: list[int] = []
    columns: tuple[list[Tensor], ...] = ([], [], [], [])  # ids, positions, whose a token is, and whose the beginning of its block is
    for p, mine in enumerate(_shared_out([common + sum(len(rows[i]) - common for i in group) for common, group in blocks])):
        parts: list[tuple[int, int, int, int, int]] = []  # of which row, from where to where, whose, in whose block
        at = 0
        for common, group in (blocks[k] for k in mine):
            begins, root = at, -2 - group[0]  # rows have their own numbers, beginnings negative ones
            order.append(group[0])
            parts.append((group[0], 0, common, root, root))
            at += common
            for i in group:
                starts[i] = (p, begins, common, at)
                parts.append((i, common, len(rows[i]), i, root))
                at += len(rows[i]) - common
        columns[0].append(torch.cat([rows[i][start:end] for i, start, end, _, _ in parts]))
        columns[1].append(torch.cat([torch.arange(start, end) for _, start, end, _, _ in parts]))
        for which in (3, 4):
            columns[which - 1].append(torch.cat([torch.full((part[2] - part[1],), part[which]) for part in parts]))
    ids, positions, whose, roots = (right_pad(column, pad)[0] for column, pad in zip(columns, (0, 0, -1, -1), strict=True))
    sees = (whose.unsqueeze(2) == whose.unsqueeze(1)) | (roots.unsqueeze(2) == whose.unsqueeze(1))
    sees &= torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    seen = torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min).unsqueeze(1)
    return Packed(ids, positions, seen, tuple(starts[i] for i in range(len(rows))), tuple(order))


def _shared_out(lengths: Sequence[int]) -> list[list[int]]:
    """Which blocks stand in which sequence: the longest first, each where there is room."""
    sequences: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda k: -lengths[k]):
        mine = next((those for those in sequences if sum(lengths[k] for k in those) + lengths[number] <= LONGEST), None)
        if mine is None:
            sequences.append(mine := [])
        mine.append(number)
    return sequences


def shared_prefix_groups(rows: Sequence[Tensor], about: Sequence[int | str]) -> list[tuple[int, list[int]]]:
    """The rows of each sequence by their numbers, and with how many tokens all of them begin."""
    groups: dict[int | str, list[int]] = {}
    for number, what in enumerate(about):
        groups.setdefault(what, []).append(number)
    found: list[tuple[int, list[int]]] = []
    for group in groups.values():
        shortest = min(len(rows[i]) for i in group)
        same = torch.stack([rows[i][:shortest] == rows[group[0]][:shortest] for i in group]).all(0)
        common = min(int(same.long().cumprod(0).sum()), shortest - 1)
        room = 0
        for number in group:
            if len(rows[number]) - common > room:
                found.append((common, []))
                room = LONGEST - common
            found[-1][1].append(number)
            room -= len(rows[number]) - common
    return found


def forward(model: Any, features: Tensor, rows: Sequence[Tensor], about: Sequence[int | str], places: Sequence[Sequence[int]]) -> Tensor:
    """Last states ``[K, D]`` at the places of every row. A picture is seen once, however many questions it has."""
    found = pack(rows, about)
    order = torch.tensor([what for i in found.blocks if isinstance(what := about[i], int)])
    embedded = model.get_input_embeddings()(found.ids)
    embedded = embedded.masked_scatter((found.ids == model.config.image_token_id).unsqueeze(-1), features[order])
    hidden: Tensor = model.model.language_model(
        inputs_embeds=embedded, attention_mask=found.seen, position_ids=found.positions, use_cache=False
    ).last_hidden_state
    at = [
        (p, begins + place if place < common else start + place - common)
        for (p, begins, common, start), mine in zip(found.starts, places, strict=True)
        for place in mine
    ]
    where = torch.tensor(at)
    return hidden[where[:, 0], where[:, 1]]
