"""How a sample lies in one sequence of Janus: prompt, chain, begin-of-image, image tokens; left-padded in a batch.

::

    conditional     . . . bos p p p p  c c c c c c  boi  i i i i i i
    unconditional   . . . bos _ _ _ _  _ _ _ _ _ _  boi  i i i i i i      _ = pad id, content that is attended to
    padding (.)     masked by length, never by the pad id
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gotr1_core.policies.padding import left_pad


def unconditional(context: Tensor, pad: int) -> Tensor:
    """The context ``[C]`` of the unconditional row: first and last token kept, pad between; prompt and chain are gone."""
    row = torch.full_like(context, pad)
    row[0], row[-1] = context[0], context[-1]
    return row


@dataclass(frozen=True)
class Sequences:
    """Left-padded sequences with what a scorer needs to find its way in them."""

    ids: Tensor  # [R, L] token ids; image tokens are codebook indices
    is_image: Tensor  # [R, L]
    lengths: Tensor  # [R]

    @classmethod
    def of(cls, contexts: Sequence[Tensor], images: Sequence[Tensor]) -> Sequences:
        """Sequences of contexts followed by the image tokens that are fed back (none for a plan on its own)."""
        ids, lengths = left_pad([torch.cat([c, i]) for c, i in zip(contexts, images, strict=True)])
        width = ids.shape[1]
        fed = torch.tensor([len(i) for i in images], device=ids.device).unsqueeze(1)
        is_image = torch.arange(width, device=ids.device).unsqueeze(0) >= width - fed
        return cls(ids, is_image, lengths)
