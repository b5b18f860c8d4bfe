"""The trainable module of the Janus policy. Its forward scores, so that whatever wraps it takes part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gotr1_core.policies.decoder import action_stats, hidden_states, states_before
from gotr1_core.samples import IMAGE, PLAN, ActionStats, Rollout, SegmentName
from gotr1_janus.layout import Sequences, unconditional

if TYPE_CHECKING:
    from transformers import JanusForConditionalGeneration


class JanusModule(nn.Module):
    """``JanusForConditionalGeneration`` as a scorer of plan and image segments, in one fused forward pass.

    A plan is scored once, however many images it has: in the sequence of its first image, or alone if it has none.
    """

    def __init__(self, model: JanusForConditionalGeneration, *, boi: int, pad: int, chunk: int) -> None:
        super().__init__()
        self.model = model
        self.boi, self.pad, self.chunk = boi, pad, chunk
        self.checkpointing = False

    @property
    def device(self) -> torch.device:
        return self.model.lm_head.weight.device

    def embed(self, ids: Tensor, is_image: Tensor) -> Tensor:
        """Embeddings ``[R, L, H]``: text through the language model's table, image tokens through their own and the aligner."""
        text = self.model.get_input_embeddings()(ids.masked_fill(is_image, 0))
        if not is_image.any():
            return text
        image = self.model.prepare_embeddings_for_image_generation(ids[is_image])
        return text.masked_scatter(is_image.unsqueeze(-1), image.to(text.dtype))

    def hidden(self, rows: Sequences) -> Tensor:
        """Last hidden states ``[R, L, H]`` of left-padded sequences."""
        embeds = self.embed(rows.ids, rows.is_image)
        return hidden_states(self.model.model.language_model, embeds, rows.lengths, checkpointing=self.checkpointing)

    def forward(self, segments: Mapping[SegmentName, Rollout]) -> dict[SegmentName, ActionStats]:
        """Scores a plan rollout, an image rollout, or both, where ``parent`` points from image rows to plan rows."""
        plan, image = segments.get(PLAN), segments.get(IMAGE)
        contexts, images, host = self._lay_out(plan, image)
        guided = image is not None and len(image) > 0 and self._guided(image)
        if image is not None and guided:
            contexts += [unconditional(c, self.pad) for c in contexts[: len(image)]]
            images += images[: len(image)]
        hidden = self.hidden(Sequences.of(contexts, images))
        scored: dict[SegmentName, ActionStats] = {}
        if plan is not None:
            scored[PLAN] = self._score_plan(plan, hidden[host], [len(images[h]) for h in host])
        if image is not None:
            other = hidden[-len(image) :] if guided else None
            scored[IMAGE] = self._score_image(image, hidden[: len(image)], other)
        return scored

    @staticmethod
    def _guided(image: Rollout) -> bool:
        return image.sampling.guidance_scale != 1 and image.sampling.log_prob == "guided"

    def _lay_out(self, plan: Rollout | None, image: Rollout | None) -> tuple[list[Tensor], list[Tensor], list[int]]:
        """Contexts, image tokens fed back, and for every plan the sequence in which it is scored."""
        contexts: list[Tensor] = []
        images: list[Tensor] = []
        host: list[int] = []
        if image is not None:
            contexts = contexts_of(image, self.boi)
            if "dropped" in image.tensors:
                dropped = image.tensors["dropped"].tolist()
                contexts = [unconditional(c, self.pad) if d else c for c, d in zip(contexts, dropped, strict=True)]
            images = [row[:-1] for row in image.tensors["tokens"]]
        if plan is None:
            return contexts, images, host
        first: dict[int, int] = {}
        if image is not None:
            for row, parent in enumerate(image.tensors["parent"].tolist()):
                first.setdefault(parent, row)
        alone = contexts_of(plan, self.boi)
        for row in range(len(plan)):
            if row not in first:
                first[row] = len(contexts)
                contexts.append(alone[row])
                images.append(alone[row][:0])
            host.append(first[row])
        return contexts, images, host

    def _score_plan(self, plan: Rollout, hidden: Tensor, fed: list[int]) -> ActionStats:
        tokens = plan.tensors["tokens"]
        # In a row of width L the context ends at L - fed; the begin-of-image token is its last, the plan's tokens come before it.
        start = hidden.shape[1] - torch.tensor(fed, device=tokens.device) - 1 - plan.tensors["length"]
        chosen = states_before(hidden, start, tokens.shape[1])
        mask, temperature = plan.tensors["mask"], plan.sampling.temperature
        return action_stats(self.model.lm_head, chosen, tokens, mask, temperature=temperature, chunk=self.chunk)

    def _score_image(self, image: Rollout, hidden: Tensor, other: Tensor | None) -> ActionStats:
        tokens = image.tensors["tokens"]
        count = tokens.shape[1]
        return action_stats(
            self.model.model.generation_head,
            hidden[:, -count:],
            tokens,
            image.tensors["mask"],
            temperature=image.sampling.image_temperature,
            chunk=self.chunk,
            unconditional=None if other is None else other[:, -count:],
            guidance_scale=image.sampling.guidance_scale,
        )


def contexts_of(rollout: Rollout, boi: int) -> list[Tensor]:
    """Prompt, chain and begin-of-image ``[C]`` of every row."""
    t = rollout.tensors
    end = t["prompt"].new_tensor([boi])
    plan, length = (t["tokens"], t["length"]) if rollout.segment == PLAN else (t["plan"], t["plan_length"])
    sizes = zip(t["prompt"], t["prompt_length"].tolist(), plan, length.tolist(), strict=True)
    return [torch.cat([prompt[:p], chain[:c], end]) for prompt, p, chain, c in sizes]
