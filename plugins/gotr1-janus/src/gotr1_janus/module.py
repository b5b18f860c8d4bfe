"""The trainable module of the Janus policy. Its forward is the training pass, so that a wrapper such as FSDP takes part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gotr1_core.policies.decoder import action_stats, hidden_states, states_that_predict
from gotr1_core.samples import IMAGE, PLAN, ActionStats, Rollout, SegmentName
from gotr1_janus.layout import Sequences, unconditional

if TYPE_CHECKING:
    from transformers import JanusForConditionalGeneration


class JanusModule(nn.Module):
    """``JanusForConditionalGeneration`` that computes log-probabilities of plan and image segments in one forward pass.

    A plan is in the batch once, however many images it has: in the sequence of its first image, or alone if it has none.
    ``boi`` and ``pad`` are token ids. ``chunk`` is the number of positions whose logits exist at the same time.
    """

    def __init__(self, model: JanusForConditionalGeneration, *, boi: int, pad: int, chunk: int) -> None:
        super().__init__()
        self.model = model
        self.boi, self.pad, self.chunk = boi, pad, chunk
        self.checkpointing = False

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.model.lm_head.weight.device

    @property
    def language(self) -> nn.Module:
        """The decoder without its heads."""
        language: nn.Module = self.model.model.language_model
        return language

    def embed(self, ids: Tensor, is_image: Tensor) -> Tensor:
        """Embeddings ``[R, L, H]`` of tokens ``ids [R, L]``.

        Text uses the language model's table. Where ``is_image [R, L]`` is true, the image embeddings and the aligner are used.
        """
        text = self.model.get_input_embeddings()(ids.masked_fill(is_image, 0))
        if not is_image.any():
            return text
        image = self.model.prepare_embeddings_for_image_generation(ids[is_image])
        return text.masked_scatter(is_image.unsqueeze(-1), image.to(text.dtype))

    def hidden(self, rows: Sequences) -> Tensor:
        """Last hidden states ``[R, L, H]`` of left-padded sequences ``[R, L]``."""
        embeds = self.embed(rows.ids, rows.is_image)
        return hidden_states(self.language, embeds, rows.lengths, checkpointing=self.checkpointing)

    def forward(self, segments: Mapping[SegmentName, Rollout]) -> dict[SegmentName, ActionStats]:
        """Log-probabilities and entropies ``[B, T]`` of a plan rollout, an image rollout, or both.

        With both, the image rollout's ``parent`` gives for every image the row of its plan.
        """
        plan, image = segments.get(PLAN), segments.get(IMAGE)
        contexts, images, plan_rows = self._lay_out(plan, image)
        guided = image is not None and len(image) > 0 and self._guided(image)
        if image is not None and guided:
            contexts += [unconditional(context, self.pad) for context in contexts[: len(image)]]
            images += images[: len(image)]
        hidden = self.hidden(Sequences.of(contexts, images))
        stats: dict[SegmentName, ActionStats] = {}
        if plan is not None:
            stats[PLAN] = self._plan_stats(plan, hidden[plan_rows], [len(images[row]) for row in plan_rows])
        if image is not None:
            unconditional_hidden = hidden[-len(image) :] if guided else None
            stats[IMAGE] = self._image_stats(image, hidden[: len(image)], unconditional_hidden)
        return stats

    @staticmethod
    def _guided(image: Rollout) -> bool:
        return image.sampling.guidance_scale != 1 and image.sampling.log_prob == "guided"

    def _lay_out(self, plan: Rollout | None, image: Rollout | None) -> tuple[list[Tensor], list[Tensor], list[int]]:
        """Contexts ``[C]``, image tokens that are fed back, and for every plan the number of the sequence that has it."""
        contexts: list[Tensor] = []
        images: list[Tensor] = []
        plan_rows: list[int] = []
        if image is not None:
            contexts = contexts_of(image, self.boi)
            if "dropped" in image.tensors:
                dropped = image.tensors["dropped"].tolist()
                contexts = [unconditional(context, self.pad) if drop else context for context, drop in zip(contexts, dropped, strict=True)]
            images = [row[:-1] for row in image.tensors["tokens"]]
        if plan is None:
            return contexts, images, plan_rows
        first_image: dict[int, int] = {}
        if image is not None:
            for row, parent in enumerate(image.tensors["parent"].tolist()):
                first_image.setdefault(parent, row)
        plan_contexts = contexts_of(plan, self.boi)
        for row in range(len(plan)):
            if row not in first_image:
                first_image[row] = len(contexts)
                contexts.append(plan_contexts[row])
                images.append(plan_contexts[row][:0])
            plan_rows.append(first_image[row])
        return contexts, images, plan_rows

    def _plan_stats(self, plan: Rollout, hidden: Tensor, image_lengths: list[int]) -> ActionStats:
        tokens = plan.tensors["tokens"]
        # A row of width L ends with the image tokens. Before them are begin-of-image, and before that the plan's tokens.
        start = hidden.shape[1] - torch.tensor(image_lengths, device=tokens.device) - 1 - plan.tensors["length"]
        plan_hidden = states_that_predict(hidden, start, tokens.shape[1])
        mask, temperature = plan.tensors["mask"], plan.sampling.temperature
        return action_stats(self.model.lm_head, plan_hidden, tokens, mask, temperature=temperature, chunk=self.chunk)

    def _image_stats(self, image: Rollout, hidden: Tensor, unconditional_hidden: Tensor | None) -> ActionStats:
        tokens = image.tensors["tokens"]
        count = tokens.shape[1]
        return action_stats(
            self.model.model.generation_head,
            hidden[:, -count:],
            tokens,
            image.tensors["mask"],
            temperature=image.sampling.image_temperature,
            chunk=self.chunk,
            unconditional=None if unconditional_hidden is None else unconditional_hidden[:, -count:],
            guidance_scale=image.sampling.guidance_scale,
        )


def contexts_of(rollout: Rollout, boi: int) -> list[Tensor]:
    """The context ``[C]`` of every row: prompt, chain and the begin-of-image token ``boi``, without padding."""
    t = rollout.tensors
    end = t["prompt"].new_tensor([boi])
    chains, chain_lengths = (t["tokens"], t["length"]) if rollout.segment == PLAN else (t["plan"], t["plan_length"])
    rows = zip(t["prompt"], t["prompt_length"].tolist(), chains, chain_lengths.tolist(), strict=True)
    return [torch.cat([prompt[:prompt_length], chain[:chain_length], end]) for prompt, prompt_length, chain, chain_length in rows]
