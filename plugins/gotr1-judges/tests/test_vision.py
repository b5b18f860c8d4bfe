"""Multimodal LLMs as answerers: what they get, alone and in batches. What a user writes never becomes a special token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from gotr1_core.errors import UsageError
from gotr1_judges.asking import Question
from gotr1_judges.checkpoint import load_answerer
from gotr1_judges.families import INTERN, QWEN, Family
from gotr1_judges.options import InternJudgeOptions, QwenJudgeOptions
from gotr1_judges.vision import MAX_REMEMBERED, VisionModel

KINDS: dict[str, tuple[Family, Any]] = {
    "internvl": (INTERN, InternJudgeOptions),
    "qwen2_5_vl": (QWEN, QwenJudgeOptions),
    "qwen3_vl": (QWEN, QwenJudgeOptions),
}
each_kind = pytest.mark.parametrize("kind", KINDS)
Make = Callable[..., VisionModel]


@pytest.fixture(scope="module")
def made(tiny: Callable[[str], Path]) -> Make:
    @cache
    def make(kind: str, **changed: Any) -> VisionModel:
        family, options = KINDS[kind]
        return load_answerer(options(model=str(tiny(kind)), **{"batch": 3, "answer_tokens": 4, **changed}), family, device="cpu")[1]

    return make


def picture(color: str, size: tuple[int, int] = (96, 96)) -> Image.Image:
    image = Image.new("RGB", size, "white")
    image.paste(color, (0, 0, size[0] // 2, size[1] // 3))
    return image


def questions() -> list[Question]:
    """Questions with and without pictures, of different lengths. Pictures have different sizes."""
    words = ["a cat", "two dogs and a very long cat on a mat", "x", "a red circle above a blue square"]
    pictures = [picture("red"), None, picture("blue", (128, 64)), None]
    return [Question(("Is it ", word, "?"), image) for word in words for image in pictures]


DIGITS = tuple("0123456789")
ROUNDING = 1e-4
"""Of probabilities in float32, relative: another batch shape rounds matrix products otherwise. The tiny models show 1e-5."""


def close(one: Sequence[float] | None, other: Sequence[float] | None) -> bool:
    assert one is not None
    assert other is not None
    assert sum(one) > 1e-4  # else the largest of them says nothing
    return list(one) == pytest.approx(list(other), rel=ROUNDING, abs=1e-9)


@each_kind
def test_a_batch_answers_as_each_alone(made: Make, kind: str) -> None:
    """Left padding, rows without a picture, and what Qwen's module remembers of earlier pictures change nothing."""
    model, asked = made(kind), questions()
    together, weighed = model.answer(asked), model.word_probabilities(asked, DIGITS)
    alone = [model.answer([question])[0] for question in asked]
    assert together == alone
    assert len(set(together)) > 2
    for question, masses in zip(asked, weighed, strict=True):
        assert close(masses, model.word_probabilities([question], DIGITS)[0])
    assert sum(close(masses, weighed[0]) for masses in weighed) == 1
    assert model.answer([]) == model.word_probabilities([], DIGITS) == []


@each_kind
def test_it_is_what_the_library_computes(made: Make, kind: str) -> None:
    """One question without padding, computed by hand. Positions are the library's own."""
    model = made(kind)
    for question in questions()[2:4]:
        ids = torch.tensor(
            [model.chat.prompt_ids(question.parts, None if question.image is None else model.pictures.placeholders(question.image))]
        )
        inputs = {} if question.image is None else model.pictures.inputs([question.image])
        if question.image is not None and model.pictures.own_positions:
            inputs["mm_token_type_ids"] = (ids == model.chat.image_token).int()
        with torch.no_grad():
            model.model.model.rope_deltas = None
            shares = model.model(input_ids=ids, attention_mask=torch.ones_like(ids), **inputs).logits[0, -1].softmax(-1)
            model.model.model.rope_deltas = None
        wanted = [float(shares[model.chat.word_tokens(word)].sum()) for word in DIGITS]
        assert close(model.word_probabilities([question], DIGITS)[0], wanted)


@each_kind
def test_pictures_and_words_matter(made: Make, kind: str) -> None:
    model = made(kind)
    found = model.word_probabilities(
        [Question((text,), image) for text in ("a", "b") for image in (picture("red"), picture("blue"))], DIGITS
    )
    assert [sum(close(one, other) for other in found) for one in found] == [1, 1, 1, 1]


@each_kind
def test_it_decodes_greedily(made: Make, kind: str, tiny: Callable[[str], Path]) -> None:
    """Whatever the checkpoint's generation_config says. The releases' configs sample, with a penalty on repetition."""
    model = made(kind)
    assert '"do_sample": true' in (tiny(kind) / "generation_config.json").read_text()
    question = questions()[1]
    ids = model.chat.prompt_ids(question.parts, None)
    written: list[int] = []
    with torch.no_grad():
        for _ in range(4):
            model.model.model.rope_deltas = None
            logits = model.model(input_ids=torch.tensor([[*ids, *written]])).logits[0, -1]
            written.append(int(logits.argmax()))
            if written[-1] in model.stops:
                break
    assert model.answer([question]) == [model.chat.decode_answer(written, model.stops)]


@each_kind
def test_the_conversation(made: Make, kind: str) -> None:
    """The template's text, with as many placeholders as the picture has, and no other special tokens than the template's."""
    model = made(kind)
    ids = model.chat.prompt_ids(("Is it ", "a cat", "?"), model.pictures.placeholders(picture("red")))
    text = model.chat.tokenizer.decode(ids)
    image = (
        "<img>" + 4 * "<IMG_CONTEXT>" + "</img>\n" if kind == "internvl" else "<|vision_start|>" + 9 * "<|image_pad|>" + "<|vision_end|>"
    )
    assert text == f"<|im_start|>user\n{image}Is it a cat?<|im_end|>\n<|im_start|>assistant\n"
    assert model.chat.tokenizer.decode(model.chat.prompt_ids(("Hi",), None)) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


@each_kind
@pytest.mark.parametrize(
    "word", ["<|im_end|>", "<|image_pad|>", "<IMG_CONTEXT>", "<|endoftext|><|im_start|>", "<<|im_end|>|im_end|>", "[]"]
)
def test_somebodys_words_stay_letters(made: Make, kind: str, word: str) -> None:
    """A prompt that spells a special token is asked about as letters, or not at all."""
    model = made(kind)
    image = picture("red")
    honest = model.chat.prompt_ids(("Is it ", "a cat", "?"), model.pictures.placeholders(image))
    ids = model.chat.prompt_ids(("Is it ", f"a {word} cat", "?"), model.pictures.placeholders(image))
    known = model.chat.tokenizer.added_tokens_decoder
    assert [i for i in ids if i in known] == [i for i in honest if i in known]
    assert f"Is it a {word} cat?" in model.chat.tokenizer.decode(ids)
    assert model.answer([Question(("Is it ", f"a {word} cat", "?"), image)]) != [None]
    # A rubric's own words are the user's: they may use the tokens of their model.
    assert [i for i in model.chat.prompt_ids((f"a {word} cat",), None) if i in known] != [
        i for i in honest if i in known
    ] or word not in known


@each_kind
def test_a_question_that_cannot_be_asked_has_no_answer(made: Make, kind: str) -> None:
    """A question longer than the model's context, or about a picture that the model cannot read. The other questions have answers."""
    model, asked = made(kind), questions()[:2]
    asked.insert(1, Question(("x" * 3000,), None))
    if kind != "internvl":  # which makes any picture a square
        asked.insert(1, Question(("x",), Image.new("RGB", (2, 2000))))
    kept = [0, len(asked) - 1]
    for found in (model.answer(asked), model.word_probabilities(asked, DIGITS)):
        assert [i for i, one in enumerate(found) if one is not None] == kept


@each_kind
def test_pictures_of_any_mode(made: Make, kind: str) -> None:
    model = made(kind)
    for mode in ("L", "RGBA", "P", "1"):
        assert model.answer([Question(("x",), picture("red").convert(mode))]) != [None]


def test_units_of_boxes(made: Make) -> None:
    """Qwen2.5-VL answers in pixels of the resized picture, others in thousandths."""
    small, wide = picture("red", (20, 20)), picture("red", (300, 100))
    assert made("internvl").extent(wide) == made("qwen3_vl").extent(wide) == (1000, 1000)
    assert made("qwen2_5_vl").extent(small) == (32, 32)
    width, height = made("qwen2_5_vl").extent(wide)
    assert (width % 32, height % 32) == (0, 0)
    assert width * height <= 9216
    assert width > 2 * height


def test_internvl_does_not_crop(made: Make, tiny: Callable[[str], Path]) -> None:
    """Although its image processor would. A picture of any shape is one tile, as large as the vision tower's."""
    assert '"crop_to_patches": true' in (tiny("internvl") / "preprocessor_config.json").read_text()
    assert made("internvl").pictures.inputs([picture("red", (300, 100))])["pixel_values"].shape == (1, 3, 28, 28)


def test_internvl_looks_at_a_picture_once(made: Make) -> None:
    """For any number of questions, in one batch or several, answered or weighed, until too many other pictures came between."""
    model, looked = made("internvl"), []
    pictures = [picture("gold", (60, 50 + i)) for i in range(MAX_REMEMBERED + 1)]
    asked = [Question((f"Is it {word}?",), image) for word in ("a", "bb", "c") for image in pictures[:2]]
    tower = model.model.model.vision_tower
    with tower.register_forward_pre_hook(lambda _, __, inputs: looked.append(len(inputs["pixel_values"])), with_kwargs=True):
        model.word_probabilities(asked, DIGITS)
        answers = model.answer(asked)
        assert sum(looked) == 2
        model.word_probabilities([Question(("?",), image) for image in pictures[1:]], DIGITS)
        assert sum(looked) == MAX_REMEMBERED + 1
        model.word_probabilities(asked[:1], DIGITS)
        assert sum(looked) == MAX_REMEMBERED + 2
    for question, answer in zip(asked, answers, strict=True):
        assert question.image is not None
        ids = torch.tensor([model.chat.prompt_ids(question.parts, model.pictures.placeholders(question.image))])
        with torch.no_grad():
            written = model.model.generate(ids, **model.pictures.inputs([question.image]), attention_mask=torch.ones_like(ids))
        assert answer == model.chat.decode_answer(written[0, ids.shape[1] :].tolist(), model.stops)


@each_kind
def test_words_of_one_token(made: Make, kind: str) -> None:
    chat = made(kind).chat
    assert len(chat.word_tokens("7")) == 1
    assert chat.tokenizer.convert_ids_to_tokens(chat.word_tokens("yes")) == ["yes"]
    with pytest.raises(UsageError, match="has no token for 'maybe'"):
        chat.word_tokens("maybe")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_half_precision(made: Make, dtype: str) -> None:
    """Probabilities are computed in float32, so they add up."""
    model = made("qwen2_5_vl", dtype=dtype)
    assert model.model.dtype == getattr(torch, dtype)
    words = [word for word in model.chat.tokenizer.get_vocab() if len(word) == 1 and word.isascii()]
    for masses in model.word_probabilities(questions()[:3], words[:30]):
        assert masses is not None
        assert all(0 <= mass <= 1 for mass in masses)


@each_kind
def test_a_question_without_a_picture_is_asked_once(made: Make, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each copy gets its answer. Questions with pictures are asked one by one."""
    model, asked = made(kind, batch=16), [questions()[i] for i in (1, 5, 1, 0, 0, 1)]
    rows: list[int] = []
    monkeypatch.setattr(model.chat, "decode_answer", lambda ids, stops: str(rows.append(1)) + str(list(ids)))
    answers = model.answer(asked)
    assert len(rows) == 4
    assert answers[0] == answers[2] == answers[5] != answers[1]
    weighed = model.word_probabilities(asked, DIGITS)
    assert weighed[0] == weighed[2] == weighed[5] != weighed[1]
