"""Lays out a sample in one Janus sequence: prompt, chain, begin-of-image, image tokens. Sequences of a batch are left-padded.

::

    conditional     . . . bos p p p p  c c c c c c  boi  i i i i i i
    unconditional   . . . bos _ _ _ _  _ _ _ _ _ _  boi  i i i i i i      _ = pad id as content: attended to
    padding (.)     masked by length, never by the pad id
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gotr1_core.policies.padding import left_pad


def unconditional(context: Tensor, pad: int) -> Tensor:
    """The context ``[C]`` of the unconditional row. It keeps the first and last token of ``context [C]``; all others become ``pad``."""
    row = torch.full_like(context, pad)
    row[0], row[-1] = context[0], context[-1]
    return row


@dataclass(frozen=True)
class Sequences:
    """R left-padded sequences with what the training pass must know of them."""

    ids: Tensor  # [R, L] token ids; image tokens are codebook indices
    is_image: Tensor  # [R, L] booleans: this position holds an image token
    lengths: Tensor  # [R] lengths without padding

    @classmethod
    def of(cls, contexts: Sequence[Tensor], images: Sequence[Tensor]) -> Sequences:
        """Joins each context ``[C]`` with its image tokens ``[I]`` that are fed back, padded to ``[R, L]``. A plan alone has none."""
        ids, lengths = left_pad([torch.cat([context, image]) for context, image in zip(contexts, images, strict=True)])
        width = ids.shape[1]
        image_lengths = torch.tensor([len(image) for image in images], device=ids.device).unsqueeze(1)
        is_image = torch.arange(width, device=ids.device).unsqueeze(0) >= width - image_lengths
        return cls(ids, is_image, lengths)
