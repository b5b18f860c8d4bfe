"""The trainable module of the Janus policy. Its forward scores, so that whatever wraps it takes part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gotr1_core.samples import IMAGE, PLAN, Rollout, Scored, SegmentName
from gotr1_core.sampling import score
from gotr1_janus.layout import Sequences, attention, unconditional

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
        mask, positions = attention(rows.lengths, rows.ids.shape[1])
        language = self.model.model.language_model
        language.train(self.checkpointing and torch.is_grad_enabled())  # transformers checkpoints in training mode only
        embeds = self.embed(rows.ids, rows.is_image)
        output = language(inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False)
        language.eval()
        return output.last_hidden_state

    def forward(self, segments: Mapping[SegmentName, Rollout]) -> dict[SegmentName, Scored]:
        """Scores a plan rollout, an image rollout, or both, where ``parent`` points from image rows to plan rows."""
        plan, image = segments.get(PLAN), segments.get(IMAGE)
        contexts, images, host = self._lay_out(plan, image)
        guided = image is not None and len(image) > 0 and self._guided(image)
        if image is not None and guided:
            contexts += [unconditional(c, self.pad) for c in contexts[: len(image)]]
            images += images[: len(image)]
        hidden = self.hidden(Sequences.of(contexts, images))
        scored: dict[SegmentName, Scored] = {}
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

    def _score_plan(self, plan: Rollout, hidden: Tensor, fed: list[int]) -> Scored:
        tokens, mask = plan.tensors["tokens"], plan.tensors["mask"]
        width = hidden.shape[1]
        # In a row of width L the context ends at L - fed; the begin-of-image token is its last, the plan's tokens come before it.
        written = plan.tensors["length"]
        start = width - torch.tensor(fed, device=tokens.device) - 1 - written
        index = (start.unsqueeze(1) - 1 + torch.arange(tokens.shape[1], device=tokens.device)).clamp(0, width - 1)
        chosen = hidden.gather(1, index.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))
        return self._fill(self.model.lm_head, chosen, tokens, mask, plan.sampling.temperature, None, 1.0)

    def _score_image(self, image: Rollout, hidden: Tensor, other: Tensor | None) -> Scored:
        tokens = image.tensors["tokens"]
        count = tokens.shape[1]
        kept = None if other is None else other[:, -count:]
        settings = image.sampling
        head = self.model.model.generation_head
        return self._fill(
            head, hidden[:, -count:], tokens, image.tensors["mask"], settings.image_temperature, kept, settings.guidance_scale
        )

    def _fill(
        self, head: nn.Module, hidden: Tensor, tokens: Tensor, mask: Tensor, temperature: float, other: Tensor | None, scale: float
    ) -> Scored:
        """Scores the masked positions alone and puts the numbers back in their places; elsewhere they are 0."""
        log_prob, entropy = score(
            head,
            hidden[mask],
            tokens[mask],
            temperature=temperature,
            unconditional=None if other is None else other[mask],
            guidance_scale=scale,
            chunk=self.chunk,
        )
        empty = torch.zeros(mask.shape, dtype=log_prob.dtype, device=log_prob.device)
        return Scored(empty.masked_scatter(mask, log_prob), empty.masked_scatter(mask, entropy), hidden)


def contexts_of(rollout: Rollout, boi: int) -> list[Tensor]:
    """Prompt, chain and begin-of-image ``[C]`` of every row."""
    t = rollout.tensors
    end = t["prompt"].new_tensor([boi])
    plan, length = (t["tokens"], t["length"]) if rollout.segment == PLAN else (t["plan"], t["plan_length"])
    sizes = zip(t["prompt"], t["prompt_length"].tolist(), plan, length.tolist(), strict=True)
    return [torch.cat([prompt[:p], chain[:c], end]) for prompt, p, chain, c in sizes]
