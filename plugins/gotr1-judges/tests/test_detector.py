"""A detector instead of an LLM: what it looks for, which of its boxes count, and their units."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from gotr1_core.chain import Chain, Region, parse
from gotr1_core.samples import Prompt, Sample
from gotr1_judges.detector import DetectorJudge
from gotr1_judges.options import DetectorOptions

DOG = Region("red circle", (0, 0, 499, 999))


@pytest.fixture(scope="module")
def owl(tiny_owl: Path) -> DetectorJudge:
    return DetectorJudge(DetectorOptions(model=str(tiny_owl)))


@pytest.fixture(scope="module")
def dino(tiny_dino: Path) -> DetectorJudge:
    return DetectorJudge(DetectorOptions(model=str(tiny_dino)))


def sample(*parts: str | Region, image: Image.Image | None = None) -> Sample:
    return Sample(Prompt("x"), Chain.of(parts), image or Image.new("RGB", (64, 32), "red"))


def test_thresholds_are_the_models_own(owl: DetectorJudge, dino: DetectorJudge, tiny_owl: Path) -> None:
    assert (dino.threshold, owl.threshold) == (0.25, 0.1)
    assert DetectorJudge(DetectorOptions(model=str(tiny_owl), threshold=0.6)).threshold == 0.6


@pytest.mark.parametrize("which", ["owl", "dino"])
def test_boxes_are_the_librarys(which: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a threshold the most certain box comes first, in fractions of the picture. OWLv2's are of a square around the picture."""
    judge: DetectorJudge = request.getfixturevalue(which)
    monkeypatch.setattr(judge, "threshold", 0.0)
    image = Image.new("RGB", (64, 32), "white")
    image.paste("red", (8, 8, 24, 24))
    inputs = judge.processor(images=image, text=[["red circle"]], return_tensors="pt")
    with torch.no_grad():
        outputs = judge.model(**inputs)
    stretch = 2.0 if which == "owl" else 1.0  # the square is twice as high as the picture
    found = []
    for best in outputs.logits[0].max(-1).values.argsort(descending=True).tolist():
        x, y, w, h = outputs.pred_boxes[0, best].tolist()
        corners = [x - w / 2, stretch * (y - h / 2), x + w / 2, stretch * (y + h / 2)]
        x1, y1, x2, y2 = (min(1.0, max(0.0, corner)) for corner in corners)
        if x1 < x2 and y1 < y2:  # else it is beside the picture
            found.append((x1, y1, x2, y2))
    assert judge.locate([(image, "red circle")])[0][0] == pytest.approx(found[0], abs=1e-4)  # float32, in pixels in between
    for phrase in ("Red.  circle ", "red? circle?", "red .?circle"):
        assert judge.locate([(image, phrase)])[0] == judge.locate([(image, "red circle")])[0]


def test_uncertain_and_duplicate_boxes_do_not_count(owl: DetectorJudge, monkeypatch: pytest.MonkeyPatch) -> None:
    result = {"scores": torch.tensor([0.3, 0.9, 0.8]), "boxes": torch.tensor([[0.0, 0, 32, 32], [0, 0, 64, 32], [0, 0, 63, 32]])}
    assert owl._without_duplicates(result, Image.new("RGB", (64, 32))) == [(0, 0, 1, 1), (0, 0, 0.5, 1)]
    monkeypatch.setattr(owl, "threshold", 1.0)
    assert owl.locate([(Image.new("RGB", (64, 32)), "red circle")]) == [[]]


def test_missing_objects_count_0_and_missing_pictures_nan(owl: DetectorJudge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owl, "threshold", 1.0)
    malformed = Sample(Prompt("x"), parse("a <|obj_start|>red circle"), Image.new("RGB", (64, 32)))
    bare = Sample(Prompt("x"), Chain.of([DOG]), None)
    stranger = Sample(Prompt("x"), parse(""), Image.new("RGB", (64, 32)), plan_known=False)  # from elsewhere, its plan not given
    found = owl.score([sample(DOG), sample("nothing"), malformed, bare, stranger], ["ri"])["ri"]
    assert found[:3] == [0, 0, 0]
    assert all(math.isnan(score) for score in found[3:])
    assert owl.score([], ["ri"]) == {"ri": []}


@pytest.mark.parametrize("output", ["logits", "pred_boxes"])
@pytest.mark.parametrize("which", ["owl", "dino"])
def test_an_output_that_is_nan_is_no_missing_object(
    which: str, output: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge: DetectorJudge = request.getfixturevalue(which)
    forward = judge.model.forward

    def spoiled(**given: object) -> object:
        outputs = forward(**given)
        getattr(outputs, output)[0, 0] = math.nan
        return outputs

    monkeypatch.setattr(judge.model, "forward", spoiled)
    first, second = judge.score([sample(DOG), sample(DOG)], ["ri"])["ri"]
    assert math.isnan(first)
    assert not math.isnan(second)


def test_a_phrases_special_tokens_are_text(owl: DetectorJudge, dino: DetectorJudge, monkeypatch: pytest.MonkeyPatch) -> None:
    """A special token in a phrase would end or split it. The model gets no more of them than those around every phrase."""
    for judge, words in ((owl, ("<|endoftext|>", "<|startoftext|>", "!")), (dino, ("[SEP]", "[PAD]", "[CLS]", "[sep]", "?", "."))):
        rows: list[list[int]] = []
        kept = judge.model.forward
        monkeypatch.setattr(judge.model, "forward", lambda kept=kept, rows=rows, **x: rows.append(x["input_ids"][0].tolist()) or kept(**x))
        for phrase in ("red circle", *(f"red {word} circle" for word in words)):
            judge.locate([(Image.new("RGB", (64, 32), "red"), phrase)])
        tokenizer = judge.processor.tokenizer
        around = {tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, 1012, 1029}
        assert len(rows) == 1 + len(words)
        assert {tuple(i for i in row if i in around) for row in rows} == {tuple(i for i in rows[0] if i in around)}


def test_a_phrase_of_dots_and_question_marks_finds_nothing(owl: DetectorJudge, dino: DetectorJudge) -> None:
    for judge in (owl, dino):
        assert judge.score([sample(Region("?.?", DOG.box))], ["ri"]) == {"ri": [0.0]}


def test_a_phrase_of_any_length(owl: DetectorJudge, dino: DetectorJudge) -> None:
    """OWLv2 reads 16 tokens."""
    long = Region("a very large and very red circle on a mat of many colours " * 4, DOG.box)
    for judge in (owl, dino):
        assert not math.isnan(judge.score([sample(long)], ["ri"])["ri"][0])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("which", ["tiny_owl", "tiny_dino"])
def test_in_half_precision(which: str, dtype: str, request: pytest.FixtureRequest) -> None:
    """bfloat16 is the default on a GPU. Without a threshold something is found."""
    judge = DetectorJudge(DetectorOptions(model=str(request.getfixturevalue(which)), threshold=0.0, dtype=dtype))
    pictures = [(Image.new("RGB", size, "red"), "red circle") for size in ((64, 32), (96, 96))]
    for boxes in judge.locate(pictures):
        assert boxes
        assert all(0 <= corner <= 1 for box in boxes for corner in box)
