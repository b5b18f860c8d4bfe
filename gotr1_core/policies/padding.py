"""Rows of different lengths as one batch. Lengths tell what is padding, never the pad id, because content may have that id too."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def left_pad(rows: Sequence[Tensor], value: int = 0) -> tuple[Tensor, Tensor]:
    """Pads rows of ids on the left with ``value``: returns ids ``[B, L]`` and the rows' lengths ``[B]``."""
    lengths = torch.tensor([len(row) for row in rows], device=rows[0].device)
    flipped = pad_sequence([row.flip(0) for row in rows], batch_first=True, padding_value=value)
    return flipped.flip(1), lengths


def right_pad(rows: Sequence[Tensor], value: int = 0) -> tuple[Tensor, Tensor]:
    """Pads rows of ids on the right with ``value``: returns ids ``[B, L]`` and the rows' lengths ``[B]``."""
    lengths = torch.tensor([len(row) for row in rows], device=rows[0].device)
    return pad_sequence(list(rows), batch_first=True, padding_value=value), lengths


def mask_and_positions(lengths: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Returns, for left-padded rows of ``lengths [B]``, the mask of what is no padding and position ids from 0; both ``[B, width]``."""
    offset = width - lengths.unsqueeze(1)
    columns = torch.arange(width, device=lengths.device).unsqueeze(0)
    return columns >= offset, (columns - offset).clamp_min(0)
