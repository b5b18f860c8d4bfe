"""The trainable module of the planner ``qwen``. Its forward is the training pass, so that a wrapper such as FSDP takes part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gotr1_core.policies.decoder import action_stats, hidden_states, states_that_predict
from gotr1_core.policies.padding import left_pad
from gotr1_core.samples import PLAN, ActionStats, Rollout, SegmentName


class QwenModule(nn.Module):
    """A Qwen that computes log-probabilities of chains.

    It calls the language model directly, with text and 2-D positions. `model.model` would add position offsets for images, and keep them
    (``rope_deltas``) from an earlier call. ``chunk`` is the number of positions whose logits exist at the same time.
    """

    def __init__(self, model: Any, *, chunk: int) -> None:
        super().__init__()
        self.model, self.chunk = model, chunk
        self.checkpointing = False

    @property
    def language(self) -> Any:
        """The decoder without its head. In Qwen-VL it is one part of the model, beside the vision tower."""
        return getattr(self.model.model, "language_model", self.model.model)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        device: torch.device = self.model.lm_head.weight.device
        return device

    def forward(self, segments: Mapping[SegmentName, Rollout]) -> dict[SegmentName, ActionStats]:
        """Log-probabilities and entropies ``[B, T]`` of a plan rollout."""
        plan = segments[PLAN]
        t, mask = plan.tensors, plan.tensors["mask"]
        answer_length = mask.sum(1)
        rows = zip(t["prompt"], t["prompt_length"].tolist(), t["tokens"], answer_length.tolist(), strict=True)
        # The last token is predicted but not an input. A plan that counts for nothing has no tokens (k = 0).
        ids, lengths = left_pad([torch.cat([prompt[:n], tokens[: max(0, k - 1)]]) for prompt, n, tokens, k in rows])
        embeds: Tensor = self.model.get_input_embeddings()(ids)
        hidden = hidden_states(self.language, embeds, lengths, checkpointing=self.checkpointing)
        chain_hidden = states_that_predict(hidden, ids.shape[1] + 1 - answer_length, mask.shape[1])
        temperature = plan.sampling.temperature
        return {PLAN: action_stats(self.model.lm_head, chain_hidden, t["tokens"], mask, temperature=temperature, chunk=self.chunk)}
