"""Regional attention: pixels inside a region's box attend to its phrase, others do not. It needs no training.

In every cross-attention of the UNet a pixel attends to the full text, and separately to the phrase of each region that covers it. The
outputs are mixed:

    out = (1 − Σ w) A(pixel, text) + Σ w_r A(pixel, phrase r),    w_r = strength · m_r / max(1, Σ m)

m_r is the share of the pixel's square that the box covers, at the attention's own resolution. So even a small box counts, and m_r is
exactly 0 outside the box. The processors get the regions as an argument and store nothing: with gradient checkpointing a block runs again
later, when stored regions could be those of another call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def coverage(boxes: Tensor, height: int, width: int) -> Tensor:
    """The share in [0, 1] of every pixel that each box covers, ``[..., height * width]``.

    ``boxes [..., 4]`` are left, top, right and bottom, in shares of width and height.
    """

    def covered_along(begin: Tensor, end: Tensor, size: int) -> Tensor:
        edge = torch.arange(size, device=boxes.device, dtype=boxes.dtype)
        inside = torch.minimum(end[..., None] * size, edge + 1) - torch.maximum(begin[..., None] * size, edge)
        return inside.clamp(0, 1)

    x, y = covered_along(boxes[..., 0], boxes[..., 2], width), covered_along(boxes[..., 1], boxes[..., 3], height)
    return (y[..., :, None] * x[..., None, :]).flatten(-2)


@dataclass(frozen=True)
class Regions:
    """The regions of the first K rows of a UNet call. The other rows have none.

    ``states [K, R, L, D]`` are the encodings of their phrases. ``weights[N]``, of shape ``[K, R, N]``, are the w_r of a resolution with N
    pixels.
    """

    states: Tensor
    weights: Mapping[int, Tensor]

    @classmethod
    def of(cls, states: Tensor, boxes: Tensor, strength: Tensor, sizes: Sequence[tuple[int, int]]) -> Regions | None:
        """Regions with phrases' encodings ``states [K, R, L, D]``, ``boxes [K, R, 4]`` and a ``strength [K]`` for each row.

        ``sizes`` are (height, width) of the resolutions. None if there are no boxes or every strength is 0.
        """
        if not boxes.shape[1] or not bool((strength > 0).any()):
            return None
        weights = {}
        for height, width in sizes:
            covered = coverage(boxes, height, width)
            weights[height * width] = strength[:, None, None] * covered / covered.sum(1, keepdim=True).clamp_min(1)
        return cls(states, weights)


def attention_sizes(unet: Any, height: int, width: int) -> list[tuple[int, int]]:
    """(Height, width) of every resolution at which a UNet attends, for latents of a size. Each level halves it and rounds up."""
    sizes = [(height, width)]
    for _ in range(len(unet.config.block_out_channels) - 1):
        height, width = -(-height // 2), -(-width // 2)
        sizes.append((height, width))
    return sizes


def install_processors(unet: Any) -> None:
    """Replaces a UNet's attention processors by those below. Without regions they compute what diffusers' own do."""
    unet.set_attn_processor({name: CrossAttention() if ".attn2." in name else SelfAttention() for name in unet.attn_processors})


class CrossAttention:
    """Cross-attention to the text and, inside boxes, to the regions' phrases."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        regions: Regions | None = None,
    ) -> Tensor:
        """The output ``[B, N, C]`` for pixels ``hidden_states [B, N, C]``. ``attention_mask [B, 1, L]`` is added to the text's logits."""
        del temb
        query, mask = _heads(attn, attn.to_q(hidden_states)), None if attention_mask is None else attention_mask.unsqueeze(1)
        out = F.scaled_dot_product_attention(query, *_keys(attn, encoder_hidden_states), attn_mask=mask)
        if regions is not None:
            out = _mix_regions(attn, query, out, regions)
        merged = out.transpose(1, 2).flatten(2)
        projected: Tensor = attn.to_out[1](attn.to_out[0](merged.to(query.dtype)))
        return projected


class SelfAttention:
    """diffusers' own self-attention. Takes and ignores ``regions``, of which diffusers' processor would warn."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        regions: Regions | None = None,
    ) -> Tensor:
        """The output ``[B, N, C]`` for pixels ``hidden_states [B, N, C]``."""
        from diffusers.models.attention_processor import AttnProcessor2_0

        del regions
        out: Tensor = AttnProcessor2_0()(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        return out


def _heads(attn: Any, states: Tensor) -> Tensor:
    """Splits ``[..., L, heads * d]`` into ``[..., heads, L, d]``."""
    return states.unflatten(-1, (attn.heads, -1)).transpose(-3, -2)


def _keys(attn: nn.Module, states: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values ``[..., heads, L, d]`` of encodings ``[..., L, D]``."""
    return _heads(attn, attn.to_k(states)), _heads(attn, attn.to_v(states))  # type: ignore[operator]


def _mix_regions(attn: Any, query: Tensor, out: Tensor, regions: Regions) -> Tensor:
    """Mixes the text's output ``out [B, heads, N, d]`` with that of the phrases, inside boxes."""
    weights = regions.weights[query.shape[2]]
    rows, count = weights.shape[:2]
    key, value = (tensor.flatten(0, 1) for tensor in _keys(attn, regions.states))
    query = query[:rows].unsqueeze(1).expand(-1, count, -1, -1, -1).flatten(0, 1)
    of_phrases = F.scaled_dot_product_attention(query, key, value).unflatten(0, (rows, count))
    weights = weights.to(out.dtype)
    inside = (weights[:, :, None, :, None] * of_phrases).sum(1)
    outside = (1 - weights.sum(1))[:, None, :, None] * out[:rows]
    return torch.cat([inside + outside, out[rows:]])
