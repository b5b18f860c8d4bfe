"""The trainable module of the planner ``qwen``. Its forward scores, so that whatever wraps it takes part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gotr1_core.policies.decoder import action_stats, hidden_states, states_before
from gotr1_core.policies.padding import left_pad
from gotr1_core.samples import PLAN, ActionStats, Rollout, SegmentName


class QwenModule(nn.Module):
    """A Qwen as a scorer of chains.

    The language model is called by itself, with text alone and 2-D positions: those of images, which `model.model` would add and keep
    (``rope_deltas``) from an earlier call, do not come in.
    """

    def __init__(self, model: Any, *, chunk: int) -> None:
        super().__init__()
        self.model, self.chunk = model, chunk
        self.checkpointing = False

    @property
    def language(self) -> Any:
        """The decoder, without its head: a part of Qwen-VL, all of a text-only Qwen."""
        return getattr(self.model.model, "language_model", self.model.model)

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.lm_head.weight.device
        return device

    def forward(self, segments: Mapping[SegmentName, Rollout]) -> dict[SegmentName, ActionStats]:
        """Scores a plan rollout."""
        plan = segments[PLAN]
        t, mask = plan.tensors, plan.tensors["mask"]
        written = mask.sum(1)
        # The last token is predicted and not fed.
        parts = zip(t["prompt"], t["prompt_length"].tolist(), t["tokens"], written.tolist(), strict=True)
        ids, lengths = left_pad([torch.cat([prompt[:n], tokens[: k - 1]]) for prompt, n, tokens, k in parts])
        embeds: Tensor = self.model.get_input_embeddings()(ids)
        hidden = hidden_states(self.language, embeds, lengths, checkpointing=self.checkpointing)
        chosen = states_before(hidden, ids.shape[1] + 1 - written, mask.shape[1])
        temperature = plan.sampling.temperature
        return {PLAN: action_stats(self.model.lm_head, chosen, t["tokens"], mask, temperature=temperature, chunk=self.chunk)}
