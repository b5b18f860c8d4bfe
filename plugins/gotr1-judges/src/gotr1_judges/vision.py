"""A multimodal LLM of transformers as an answerer: questions in batches, greedy answers, probabilities of one-token answers."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gotr1_core.errors import UsageError, first_line
from gotr1_core.policies.padding import attention, left_pad
from gotr1_judges.asking import Question
from gotr1_judges.families import Eyes

if TYPE_CHECKING:
    from PIL.Image import Image

MARK = "\ue000"
"""Stands for the question while a chat template is filled in: a character for private use, so nobody's."""
SEEN = 128
"""So many pictures are remembered as the model saw them: of InternVL3-8B in bfloat16 0.24 GB."""
_TEMPLATE = "give the checkpoint's own chat template"


class Script:
    """A tokenizer and a chat template: questions to ids, ids to answers."""

    def __init__(self, tokenizer: Any, image_token: int) -> None:
        self.tokenizer, self.image_token = tokenizer, image_token
        words = sorted({str(token) for token in tokenizer.added_tokens_decoder.values()}, key=len, reverse=True)
        self._meaning = re.compile("|".join(map(re.escape, words)) if words else r"(?!)")
        self._around = {pictured: self._conversation(pictured) for pictured in (False, True)}

    def ids(self, parts: Sequence[str], picture: Sequence[int] | None) -> list[int]:
        """Ids of a conversation up to where the model begins to write; ``picture`` are those that stand for the question's picture.

        Raises:
            ValueError: somebody's words would be tokens that mean something.
        """
        before, after = self._around[picture is not None]
        at = before.index(self.image_token) if picture is not None else len(before)
        asked: list[int] = []
        for number, part in enumerate(parts):
            asked += self._letters(part) if number % 2 else self._encoded(part)
        return [*before[:at], *(picture or ()), *before[at + 1 :], *asked, *after]

    def one_token(self, word: str) -> list[int]:
        """The tokens that spell a word, in any case and with or without a space before it.

        Raises:
            UsageError: there is none.
        """
        spelt = {space + form for form in (word, word.lower(), word.capitalize(), word.upper()) for space in ("", " ")}
        ids = [ids for form in sorted(spelt) if len(ids := self._encoded(form)) == 1]
        if not ids:
            raise UsageError(f"the tokenizer has no token for {word!r}", hint="use scoring=text with this model")
        return sorted({one for (one,) in ids})

    def decoded(self, ids: Sequence[int], stops: Sequence[int]) -> str:
        """The text of an answer, up to where it ends. Special tokens are kept: some models mark boxes by them."""
        end = next((i for i, one in enumerate(ids) if one in stops), len(ids))
        return str(self.tokenizer.decode(ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _encoded(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

    def _letters(self, text: str) -> list[int]:
        """Ids of a text of which no word is a token that means something: such words are cut after their first letter."""
        found: list[int] = []
        at = 0
        for word in self._meaning.finditer(text):
            found += self._encoded(text[at : word.start() + 1])
            at = word.start() + 1
        found += self._encoded(text[at:])
        if any(one in self.tokenizer.all_special_ids or one == self.image_token for one in found):
            raise ValueError(f"the tokenizer makes special tokens of {text!r}")
        return found

    def _conversation(self, pictured: bool) -> tuple[list[int], list[int]]:
        """The ids before and after a question, with one of the picture's among them."""
        content = [*([{"type": "image"}] if pictured else []), {"type": "text", "text": MARK}]
        try:
            said = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False, enable_thinking=False
            )
        except Exception as error:  # Jinja's errors, and whatever a template raises
            first = first_line(error)
            raise UsageError(f"the chat template cannot be filled in: {first}", hint=_TEMPLATE) from error
        before, mark, after = said.partition(MARK)
        ids = self._encoded(before)
        if not mark or MARK in after or ids.count(self.image_token) != pictured:
            raise UsageError("the chat template does not say a question and its picture once", hint=_TEMPLATE)
        return ids, self._encoded(after)


@dataclass(frozen=True)
class _Row:
    """A question that can be asked: its number, its ids, its picture."""

    number: int
    ids: Tensor
    image: Image | None


class VisionModel:
    """Answers by a model. ``batch`` questions go into one pass, ``answer_tokens`` is where an answer is cut."""

    def __init__(self, model: Any, tokenizer: Any, eyes: Eyes, *, batch: int, answer_tokens: int) -> None:
        from transformers import GenerationConfig

        self.model, self.eyes, self.batch, self.answer_tokens = model.eval().requires_grad_(False), eyes, batch, answer_tokens
        self.script = Script(tokenizer, model.config.image_token_id)
        self.context: int = model.config.get_text_config().max_position_embeddings
        self._seen: dict[bytes, Tensor] = {}
        own = model.generation_config.eos_token_id
        stops = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
        self.stops, self.pad = sorted(stops), tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(stops)
        # In place of the checkpoint's own, which may sample, or have a penalty on what a question and its answer share.
        model.generation_config = GenerationConfig(
            do_sample=False, max_new_tokens=answer_tokens, eos_token_id=self.stops, pad_token_id=self.pad
        )

    def extent(self, image: Image) -> tuple[float, float]:
        """Width and height of a picture in the unit of the model's boxes."""
        return self.eyes.extent(image)

    @torch.no_grad()
    def answer(self, questions: Sequence[Question]) -> list[str | None]:
        """Greedy answers; None where a question cannot be asked."""
        found: list[str | None] = [None] * len(questions)
        for rows in self._batches(questions, self.answer_tokens):
            inputs = self._inputs(rows)
            written = self.model.generate(**inputs, generation_config=self.model.generation_config)
            self._forget()
            asked = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
            for row, ids in zip(rows, written[:, asked:].tolist(), strict=True):
                found[row.number] = self.script.decoded(ids, self.stops)
        return found

    @torch.no_grad()
    def weigh(self, questions: Sequence[Question], words: Sequence[str]) -> list[list[float] | None]:
        """Probabilities of words as the beginning of the answer, in one forward pass; None where a question cannot be asked."""
        tokens = [self.script.one_token(word) for word in words]
        found: list[list[float] | None] = [None] * len(questions)
        for rows in self._batches(questions, 1):
            inputs = self._inputs(rows)
            if rows[0].image is None or not self.eyes.own_positions:
                mask = inputs["attention_mask"]
                inputs["position_ids"] = attention(mask.sum(1), mask.shape[1])[1]
            logits = self.model(**inputs, logits_to_keep=1, use_cache=False).logits[:, -1].float()
            self._forget()
            for row, shares in zip(rows, logits.softmax(-1), strict=True):
                found[row.number] = [float(shares[one].sum()) for one in tokens]
        return found

    def _batches(self, questions: Sequence[Question], room: int) -> Iterator[list[_Row]]:
        """Questions that can be asked, with pictures and without apart, similar lengths together; ``room`` tokens are left to answer."""
        rows = []
        for number, question in enumerate(questions):
            try:
                picture = None if question.image is None else self.eyes.placeholders(question.image)
                ids = self.script.ids(question.parts, picture)
            except ValueError:  # a picture like a ribbon, say
                continue
            if len(ids) + room <= self.context:
                rows.append(_Row(number, torch.tensor(ids), question.image))
        rows.sort(key=lambda row: (row.image is None, len(row.ids)))
        for _, same in groupby(rows, key=lambda row: row.image is None):
            every = list(same)
            yield from (every[i : i + self.batch] for i in range(0, len(every), self.batch))

    def _inputs(self, rows: Sequence[_Row]) -> dict[str, Tensor]:
        """What the model takes for some questions, all with pictures or all without."""
        ids, lengths = left_pad([row.ids for row in rows], self.pad)
        inputs = {"attention_mask": attention(lengths, ids.shape[1])[0].long()}
        images = [row.image for row in rows if row.image is not None]
        if images and not self.eyes.own_positions:
            inputs["inputs_embeds"] = self._embedded(ids.to(self.model.device), images)
        else:
            inputs["input_ids"] = ids
            if images:
                inputs |= {**self.eyes.inputs(images), "mm_token_type_ids": (ids == self.script.image_token).int()}
        return {name: tensor.to(self.model.device) for name, tensor in inputs.items()}

    def _embedded(self, ids: Tensor, images: Sequence[Image]) -> Tensor:
        """Embeddings ``[B, T, D]`` of ids, with what is seen in the places of the pictures' tokens.

        A picture is looked at once, however many questions it has: its phrases are asked for one by one.
        """
        keys = [hashlib.sha256(f"{image.mode}{image.size}".encode() + image.tobytes()).digest() for image in images]
        new = {key: image for key, image in zip(keys, images, strict=True) if key not in self._seen}
        if new:
            pixels = self.eyes.inputs(list(new.values()))["pixel_values"].to(self.model.device)
            self._seen.update(zip(new, self.model.model.get_image_features(pixels).pooler_output, strict=True))
        seen = torch.stack([self._seen[key] for key in keys])
        for key in list(self._seen)[:-SEEN]:
            del self._seen[key]
        embedded: Tensor = self.model.get_input_embeddings()(ids).clone()
        embedded[ids == self.script.image_token] = seen.flatten(0, 1).to(embedded.dtype)
        return embedded

    def _forget(self) -> None:
        """Qwen's module keeps how far positions of the last pictures lag behind, and would use it for what comes next."""
        if hasattr(self.model.model, "rope_deltas"):
            self.model.model.rope_deltas = None
