"""``transformers serve`` with a tiny LLaVA: transport, pictures, errors, and probabilities that equal those asked in the process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_llava import make_tiny_llava, transformers_serve

from gotr1_core.errors import UsageError
from gotr1_judges.asking import Question
from gotr1_judges.rubrics import WORDS
from gotr1_served.answerer import ServedAnswerer
from gotr1_served.judge import OpenAIJudge
from gotr1_served.options import OpenAIJudgeOptions

from .conftest import make_samples


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llava(tmp_path_factory.mktemp("llava") / "tiny")


@pytest.fixture(scope="module")
def url(llava: Path) -> Iterator[str]:
    with transformers_serve(llava) as address:
        yield address


def judge(url: str, llava: Path, **options: object) -> OpenAIJudge:
    chosen = {"scoring": "expected", "answer_tokens": 16, **options}
    return OpenAIJudge(OpenAIJudgeOptions(base_url=url, model=str(llava), **chosen))  # type: ignore[arg-type]


def asked_here(llava: Path, questions: Sequence[Question]) -> list[float]:
    """P(Yes) of the same checkpoint in this process, from the logits of Yes and No after the chat template."""
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    processor, model = AutoProcessor.from_pretrained(llava), LlavaForConditionalGeneration.from_pretrained(llava).eval()
    tokens, found = processor.tokenizer.convert_tokens_to_ids(["Yes", "No"]), []
    for question in questions:
        text = f"{question.text}\n\n\nAnswer Yes or No only."
        content = [{"type": "text", "text": text}]
        content = content if question.image is None else [{"type": "image"}, {"type": "text", "text": f"\n{text}"}]
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = processor(text=prompt, images=question.image, return_tensors="pt", add_special_tokens=False)
        with torch.no_grad():
            logits = model(**inputs).logits[0, -1]
        found.append(float(logits[tokens].softmax(-1)[0]))
    return found


def test_probabilities_are_those_of_the_model_in_the_process(url: str, llava: Path) -> None:
    made = judge(url, llava)
    assert made.settings["source"] == "systemone"  # it answers logprobs without any, which is noticed
    assert isinstance(made.answerer, ServedAnswerer)
    pictures = [Image.new("RGB", (28, 28), colour) for colour in ("red", "white", "navy")]
    questions = [Question((f"Is it {word}?",), image) for word in ("red", "a dog") for image in (None, *pictures)]
    theirs = made.answerer.word_probabilities(questions, WORDS["yes"])
    ours = asked_here(llava, questions)
    assert len({round(p, 6) for p in ours}) == len(ours)  # the pictures matter
    assert [row[1] for row in theirs if isinstance(row, list)] == pytest.approx(ours, abs=1e-5)


def test_scores_by_digits_are_probabilities(url: str, llava: Path) -> None:
    found = judge(url, llava).score(make_samples(3), ["pi", "sem", "spa"])
    assert all(0 < score < 1 for scores in found.values() for score in scores)


def test_without_probabilities_it_stops_or_writes_verdicts(url: str, llava: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = judge(url, llava, scoring="text")
    assert made.settings == {"scoring": "text", "source": None, "model": str(llava)}
    assert not made.answerer.style.use_schema  # type: ignore[attr-defined]  # it ignores response_format
    scores = made.score(make_samples(2), ["pi"])["pi"]
    assert all(score != score for score in scores)  # random weights write nothing that can be read: NaN, never 0


def test_a_model_that_it_has_not_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="no-such-model"):
        OpenAIJudge(OpenAIJudgeOptions(base_url=url, model="no-such-model", timeout=20, deadline=30, patience=10, tries=1))
