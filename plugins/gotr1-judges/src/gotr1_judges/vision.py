"""Answers questions with a multimodal LLM of transformers: in batches, with greedy answers or probabilities of one-token answers."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gotr1_core.errors import UsageError
from gotr1_core.policies.cache import KeyValueCache
from gotr1_core.policies.chat_template import fill_template
from gotr1_core.policies.padding import left_pad, mask_and_positions
from gotr1_judges.asking import Question
from gotr1_judges.families import PictureProcessor

if TYPE_CHECKING:
    from PIL.Image import Image

MARK = "\ue000"
"""Stands for the question while a chat template is filled in. It is a private-use character, so no text has it."""
MAX_REMEMBERED = 128
"""Pictures whose features are kept, so that each is encoded once. For InternVL3-8B in bfloat16 they take 0.24 GB."""
CPU_PICTURES = 16
"""Pictures that are encoded at the same time on a CPU. More do not fit into its caches."""
_TEMPLATE_HINT = "give the checkpoint's own chat template"


class ChatFormat:
    """Converts questions to token ids and token ids to answers, with a tokenizer and its chat template.

    Args:
        tokenizer: of transformers, with a chat template.
        image_token: the id that the template writes for a picture.

    Raises:
        UsageError: the template cannot be filled in, or does not insert question and picture exactly once.
    """

    def __init__(self, tokenizer: Any, image_token: int) -> None:
        self.tokenizer, self.image_token = tokenizer, image_token
        words = sorted({str(token) for token in tokenizer.added_tokens_decoder.values()}, key=len, reverse=True)
        self._added_token = re.compile(f"(?={'|'.join(map(re.escape, words))})" if words else r"(?!)")  # also inside each other
        self._frame = {with_picture: self._template_ids(with_picture) for with_picture in (False, True)}

    def prompt_ids(self, parts: Sequence[str], picture: Sequence[int] | None) -> list[int]:
        """Returns the token ids of a conversation up to the model's answer.

        Args:
            parts: the question's, see :class:`gotr1_judges.asking.Question`.
            picture: the placeholder ids of the question's picture.

        Raises:
            ValueError: a value that was filled in would become special tokens.
        """
        before, after = self._frame[picture is not None]
        at = before.index(self.image_token) if picture is not None else len(before)
        question: list[int] = []
        for number, part in enumerate(parts):
            question += self._plain_ids(part) if number % 2 else self._encode(part)
        return [*before[:at], *(picture or ()), *before[at + 1 :], *question, *after]

    def word_tokens(self, word: str) -> list[int]:
        """Returns the ids of all single tokens that spell a word, in any case and with or without a space before it.

        Raises:
            UsageError: there is no such token.
        """
        spellings = {space + form for form in (word, word.lower(), word.capitalize(), word.upper()) for space in ("", " ")}
        ids = [ids for form in sorted(spellings) if len(ids := self._encode(form)) == 1]
        if not ids:
            raise UsageError(f"the tokenizer has no token for {word!r}", hint="use scoring=text with this model")
        return sorted({token for (token,) in ids})

    def decode_answer(self, ids: Sequence[int], stops: Sequence[int]) -> str:
        """Returns the text of an answer up to the first of ``stops``. Special tokens stay, because some models mark boxes with them."""
        end = next((i for i, token in enumerate(ids) if token in stops), len(ids))
        return str(self.tokenizer.decode(ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

    def _plain_ids(self, text: str) -> list[int]:
        """Encodes a text without added tokens. A word that is an added token is split after its first letter."""
        ids: list[int] = []
        at = 0
        for word in self._added_token.finditer(text):
            ids += self._encode(text[at : word.start() + 1])
            at = word.start() + 1
        ids += self._encode(text[at:])
        if any(token in self.tokenizer.all_special_ids or token == self.image_token for token in ids):
            raise ValueError(f"the tokenizer makes special tokens of {text!r}")
        return ids

    def _template_ids(self, with_picture: bool) -> tuple[list[int], list[int]]:
        """Returns the template's ids before and after a question. Those before have one image token if there is a picture."""
        content = [*([{"type": "image"}] if with_picture else []), {"type": "text", "text": MARK}]
        message = {"role": "user", "content": content}
        filled = fill_template(self.tokenizer, [message], add_generation_prompt=True, enable_thinking=False)
        before, mark, after = filled.partition(MARK)
        ids = self._encode(before)
        if not mark or MARK in after or ids.count(self.image_token) != with_picture:
            raise UsageError("the chat template must insert the question and its picture exactly once", hint=_TEMPLATE_HINT)
        return ids, self._encode(after)


@dataclass(frozen=True)
class _Row:
    """A question that can be asked: the numbers of all questions that are the same, their token ids ``[length]``, their picture."""

    numbers: list[int]
    ids: Tensor
    image: Image | None


class VisionModel:
    """Answers questions with a model of transformers.

    Args:
        model: put into evaluation mode, without gradients.
        tokenizer: the model's.
        pictures: prepares pictures for the model.
        batch: questions in one pass.
        answer_tokens: maximum length of an answer; a longer one is cut.
    """

    def __init__(self, model: Any, tokenizer: Any, pictures: PictureProcessor, *, batch: int, answer_tokens: int) -> None:
        from transformers import GenerationConfig

        self.model, self.pictures, self.batch, self.answer_tokens = model.eval().requires_grad_(False), pictures, batch, answer_tokens
        self.chat = ChatFormat(tokenizer, model.config.image_token_id)
        self.context: int = model.config.get_text_config().max_position_embeddings
        self._features: dict[bytes, Tensor] = {}
        own = model.generation_config.eos_token_id
        stops = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
        self.stops, self.pad = sorted(stops), tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(stops)
        # Replaces the checkpoint's own config, which may sample or penalise words that question and answer have in common.
        model.generation_config = GenerationConfig(
            do_sample=False, max_new_tokens=answer_tokens, eos_token_id=self.stops, pad_token_id=self.pad
        )

    def extent(self, image: Image) -> tuple[float, float]:
        """Returns width and height of a picture in the unit of the model's boxes."""
        return self.pictures.extent(image)

    @torch.no_grad()
    def answer(self, questions: Sequence[Question]) -> list[str | None]:
        """Returns greedy answers, None for a question that cannot be asked."""
        answers: list[str | None] = [None] * len(questions)
        for rows in self._batches(questions, self.answer_tokens):
            inputs = self._inputs(rows)
            cache = KeyValueCache(inputs["attention_mask"].shape[1] + self.answer_tokens)  # written in place, not joined at every token
            generated = self.model.generate(**inputs, past_key_values=cache, generation_config=self.model.generation_config)
            self._reset_positions()
            prompt_length = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
            for row, ids in zip(rows, generated[:, prompt_length:].tolist(), strict=True):
                text = self.chat.decode_answer(ids, self.stops)
                for number in row.numbers:
                    answers[number] = text
        return answers

    @torch.no_grad()
    def word_probabilities(self, questions: Sequence[Question], words: Sequence[str]) -> list[list[float] | None]:
        """Returns the probability, in [0,1], that the answer begins with each word; None for a question that cannot be asked.

        Each batch takes one forward pass.

        Raises:
            UsageError: a word is not one token (raised by `ChatFormat.word_tokens`).
        """
        tokens = [self.chat.word_tokens(word) for word in words]
        results: list[list[float] | None] = [None] * len(questions)
        for rows in self._batches(questions, 1):
            inputs = self._inputs(rows)
            if rows[0].image is None or not self.pictures.own_positions:
                mask = inputs["attention_mask"]
                inputs["position_ids"] = mask_and_positions(mask.sum(1), mask.shape[1])[1]
            probabilities = self.model(**inputs, logits_to_keep=1, use_cache=False).logits[:, -1].float().softmax(-1)
            self._reset_positions()
            sums = torch.stack([probabilities[:, ids].sum(-1) for ids in tokens], 1).tolist()
            for row, of_words in zip(rows, sums, strict=True):
                for number in row.numbers:
                    results[number] = list(of_words)
        return results

    def _batches(self, questions: Sequence[Question], answer_length: int) -> Iterator[list[_Row]]:
        """Yields batches of the questions that can be asked with ``answer_length`` tokens of answer.

        Questions with pictures and those without are in separate batches. Similar lengths are together. A question without a picture is
        asked once, however often it is there: the plans of a prompt often say the same, in other places.
        """
        rows, asked = [], dict[tuple[int, ...], _Row]()
        for number, question in enumerate(questions):
            try:
                picture = None if question.image is None else self.pictures.placeholders(question.image)
                ids = self.chat.prompt_ids(question.parts, picture)
            except ValueError:  # for example a picture that is far too narrow
                continue
            if len(ids) + answer_length > self.context:
                continue
            same = asked.get(tuple(ids)) if question.image is None else None
            if same is not None:
                same.numbers.append(number)
                continue
            rows.append(_Row([number], torch.tensor(ids), question.image))
            if question.image is None:
                asked[tuple(ids)] = rows[-1]
        rows.sort(key=lambda row: (row.image is None, len(row.ids)))
        for _, group in groupby(rows, key=lambda row: row.image is None):
            same_kind = list(group)
            yield from (same_kind[i : i + self.batch] for i in range(0, len(same_kind), self.batch))

    def _inputs(self, rows: Sequence[_Row]) -> dict[str, Tensor]:
        """Returns the model's keyword arguments for questions that all have pictures or all have none."""
        ids, lengths = left_pad([row.ids for row in rows], self.pad)
        inputs = {"attention_mask": mask_and_positions(lengths, ids.shape[1])[0].long()}
        images = [row.image for row in rows if row.image is not None]
        if images and not self.pictures.own_positions:
            inputs["inputs_embeds"] = self._embedded(ids.to(self.model.device), images)
        else:
            inputs["input_ids"] = ids
            if images:
                inputs |= {**self.pictures.inputs(images), "mm_token_type_ids": (ids == self.chat.image_token).int()}
        return {name: tensor.to(self.model.device) for name, tensor in inputs.items()}

    def _embedded(self, ids: Tensor, images: Sequence[Image]) -> Tensor:
        """Returns embeddings ``[B, T, D]`` of ids, with features of the pictures at the image tokens.

        Each picture is encoded once, because many questions are about the same one: each of its phrases is a question.
        """
        keys = [hashlib.sha256(f"{image.mode}{image.size}".encode() + image.tobytes()).digest() for image in images]
        new = {key: image for key, image in zip(keys, images, strict=True) if key not in self._features}
        if new:
            pixels = self.pictures.inputs(list(new.values()))["pixel_values"].to(self.model.device)
            batches = pixels.split(CPU_PICTURES if pixels.device.type == "cpu" else len(pixels))
            encoded = [features for batch in batches for features in self.model.model.get_image_features(batch).pooler_output]
            self._features.update(zip(new, encoded, strict=True))
        features = torch.stack([self._features[key] for key in keys])
        for key in list(self._features)[:-MAX_REMEMBERED]:
            del self._features[key]
        embedded: Tensor = self.model.get_input_embeddings()(ids).clone()
        embedded[ids == self.chat.image_token] = features.flatten(0, 1).to(embedded.dtype)
        return embedded

    def _reset_positions(self) -> None:
        """Clears Qwen's cached position offsets of the last pictures. The model would use them for the next batch."""
        if hasattr(self.model.model, "rope_deltas"):
            self.model.model.rope_deltas = None
