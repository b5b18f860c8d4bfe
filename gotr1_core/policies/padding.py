"""Rows of different lengths as one batch. What is padding is told by lengths, never by the pad id, which may be content."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def left_pad(rows: Sequence[Tensor], value: int = 0) -> tuple[Tensor, Tensor]:
    """Rows of ids as one ``[B, L]``, padded at the left, and their lengths ``[B]``."""
    lengths = torch.tensor([len(row) for row in rows], device=rows[0].device)
    flipped = pad_sequence([row.flip(0) for row in rows], batch_first=True, padding_value=value)
    return flipped.flip(1), lengths


def right_pad(rows: Sequence[Tensor], value: int = 0) -> tuple[Tensor, Tensor]:
    """Rows of ids as one ``[B, L]``, padded at the right, and their lengths ``[B]``."""
    lengths = torch.tensor([len(row) for row in rows], device=rows[0].device)
    return pad_sequence(list(rows), batch_first=True, padding_value=value), lengths


def attention(lengths: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Mask ``[B, width]`` of what is no padding in left-padded rows, and position ids that begin at 0 in every row."""
    offset = width - lengths.unsqueeze(1)
    where = torch.arange(width, device=lengths.device).unsqueeze(0)
    return where >= offset, (where - offset).clamp_min(0)
