"""Regional attention: pixels inside a region's box attend to its phrase, others do not. It needs no training.

In every cross-attention of the UNet a pixel attends to the full text, and separately to the phrase of each region that covers it. The
outputs are mixed:

    out = (1 − Σ w) A(pixel, text) + Σ w_r A(pixel, phrase r),    w_r = strength · m_r / max(1, Σ m)

m_r is the share of the pixel's square that the box covers, at the attention's own resolution. So even a small box counts, and m_r is
exactly 0 outside the box. The processors get the regions as an argument and store nothing: with gradient checkpointing a block runs again
later, when stored regions could be those of another call. Keys and values of texts do not change between the steps of a drawing:
:class:`Keys`, an argument too, keeps them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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


KEPT_BYTES = 2**26
"""So much of keys and values :class:`Keys` holds at most. For a large UNet they would take gigabytes and save next to nothing."""


@dataclass
class Keys:
    """Keys and values of the cross-attention layers, computed once for calls with the same weights, texts and regions, without gradient."""

    kept: dict[tuple[int, str], tuple[Tensor, Tensor]] = field(default_factory=dict)
    size: int = 0  # bytes of ``kept``

    def of(self, attn: nn.Module, name: str, compute: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Keys and values ``[B, H, L, D]`` that were kept for ``attn`` under ``name``, else those of ``compute``, kept if there is room."""
        if (pair := self.kept.get((id(attn), name))) is None:
            pair = compute()
            size = sum(tensor.numel() * tensor.element_size() for tensor in pair)
            if self.size + size <= KEPT_BYTES:
                self.kept[id(attn), name] = pair
                self.size += size
        return pair


@dataclass(frozen=True)
class Regions:
    """The regions of the first K rows of a UNet call. The other rows have none.

    ``states [K, R, L, D]`` are the encodings of their phrases. ``weights[N]``, of shape ``[K, R, N]``, are the w_r of a resolution with N
    pixels. ``present`` are the rows and columns ``[M]`` of those that have a box. Only they are computed; None if all have one.
    """

    states: Tensor
    weights: Mapping[int, Tensor]
    present: tuple[Tensor, Tensor] | None = None

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
        rows, columns = ((boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])).nonzero(as_tuple=True)
        return cls(states, weights, (rows, columns))


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
        keys: Keys | None = None,
    ) -> Tensor:
        """The output ``[B, N, C]`` for pixels ``hidden_states [B, N, C]``. ``attention_mask [B, 1, L]`` is added to the text's logits."""
        del temb
        keys = keys if keys is not None else Keys()
        query, mask = _heads(attn, attn.to_q(hidden_states)), None if attention_mask is None else attention_mask.unsqueeze(1)
        key, value = keys.of(attn, "text", lambda: _keys(attn, encoder_hidden_states))
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        if regions is not None:
            out = _mix_regions(attn, query, out, regions, keys)
        merged = out.transpose(1, 2).flatten(2)
        projected: Tensor = attn.to_out[1](attn.to_out[0](merged.to(query.dtype)))
        return projected


class SelfAttention:
    """diffusers' own self-attention. Takes and ignores ``regions`` and ``keys``, of which diffusers' processor would warn."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        regions: Regions | None = None,
        keys: Keys | None = None,
    ) -> Tensor:
        """The output ``[B, N, C]`` for pixels ``hidden_states [B, N, C]``."""
        from diffusers.models.attention_processor import AttnProcessor2_0

        del regions, keys
        out: Tensor = AttnProcessor2_0()(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        return out


def _heads(attn: Any, states: Tensor) -> Tensor:
    """Splits ``[..., L, heads * d]`` into ``[..., heads, L, d]``."""
    return states.unflatten(-1, (attn.heads, -1)).transpose(-3, -2)


def _keys(attn: nn.Module, states: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values ``[..., heads, L, d]`` of encodings ``[..., L, D]``."""
    return _heads(attn, attn.to_k(states)), _heads(attn, attn.to_v(states))  # type: ignore[operator]


def _mix_regions(attn: Any, query: Tensor, out: Tensor, regions: Regions, keys: Keys) -> Tensor:
    """Mixes the text's output ``out [B, heads, N, d]`` with that of the phrases, inside boxes."""
    weights = regions.weights[query.shape[2]].to(out.dtype)
    count = weights.shape[:2]
    rows, columns = regions.present or torch.meshgrid(*(torch.arange(n, device=out.device) for n in count), indexing="ij")
    rows, columns = rows.flatten(), columns.flatten()
    key, value = keys.of(attn, "phrases", lambda: _keys(attn, regions.states[rows, columns]))
    of_phrases = F.scaled_dot_product_attention(query[rows], key, value)  # [M, heads, N, d]
    weighted = weights[rows, columns][:, None, :, None] * of_phrases
    inside = weighted.new_zeros(*count, *weighted.shape[1:]).index_put((rows, columns), weighted).sum(1)
    outside = (1 - weights.sum(1))[:, None, :, None] * out[: count[0]]
    return torch.cat([inside + outside, out[count[0] :]])
