"""The recipe of the small judge, cut short: its questions and answers, and that a training step computes what the model does."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from gotr1_core.chain import parse
from gotr1_core.samples import Prompt, Sample
from gotr1_judges.answers import read_score
from gotr1_scenes.annotate import annotated
from gotr1_scenes.judge import SceneLayout, ScenesJudge, look_of, prompt_wish
from gotr1_scenes.language import has_held_out_pair, is_validation_text
from gotr1_scenes.painter import BACKGROUND, paint
from gotr1_scenes.reader import read_things
from gotr1_scenes.understand import read_wish
from gotr1_scenes.wish import Wish
from gotr1_scenes.world import CANVAS, COLORS, GRID, SHAPES, Look, Thing, holds
from gotr1_scenes_recipe import check_judge, judge
from gotr1_scenes_recipe.judge import (
    LIMIT,
    RUBRICS,
    batch,
    copy_weights,
    digit_tokens,
    encode_questions,
    make_judge,
    make_model,
    make_student,
    make_tokenizer,
    question_parts,
    subjects,
    train,
)
from gotr1_scenes_recipe.packing import LONGEST, forward, pack
from gotr1_scenes_recipe.questions import (
    ASKS,
    EMPTY,
    KINDS,
    NAMES,
    PARTS,
    STANDS,
    WRITTEN,
    TaughtQuestion,
    boxes_answer,
    make_questions,
    near_prompt,
    picture_cells,
    score_parts,
    sketch_cells,
)
from gotr1_scenes_recipe.samples import changed_scene, draw_samples, painted_sample
from gotr1_scenes_recipe.state import resume
from gotr1_scenes_recipe.teaching import attribute, word_targets
from gotr1_scenes_recipe.verdicts import verdict
from gotr1_testing.judges import JudgeSubject, same_in_any_batch


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as the recipe makes it, with a tokenizer of fewer texts."""
    return save(tmp_path_factory.mktemp("judge") / "untrained")


def save(folder: Path) -> Path:
    tokenizer = make_tokenizer(300)
    make_model(tokenizer, 0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(judge.PROCESSOR))
    return folder


@pytest.fixture(scope="module")
def small(untrained: Path) -> Any:
    return make_student(untrained)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [painted_sample(f"test/{i}") for i in range(6)]


def asked_of(samples: Sequence[Sample]) -> tuple[list[Any], list[TaughtQuestion]]:
    shown, asked = make_questions(samples, 2, random.Random(0))
    return [one.image for one in shown], asked


def test_it_is_small_enough(untrained: Path) -> None:
    size = sum(file.stat().st_size for file in untrained.iterdir())
    assert 0 < size / 2 < 0.95 * LIMIT  # float32 here, float16 where it is shipped; the rest is its log


def test_it_is_asked_by_the_worlds_own_rubrics(untrained: Path, small: Any) -> None:
    assert {path.stem for path in RUBRICS.glob("*.txt")} == {"sem", "spa", "pi", "ri", "spa-expected", "pi-expected"}
    kinds = {"text": ("digit", "score", "boxes", "score"), "expected": ("digit", "digit", "boxes", "digit")}
    for scoring, wanted in kinds.items():
        rubrics = make_judge(untrained, scoring).rubrics
        assert tuple(rubrics[name].kind for name in ("sem", "spa", "ri", "pi")) == wanted
        assert sum(map(len, rubrics["pi"].words)) < 50  # and not by the package's, which are long
    assert small.rubrics["pi"].kind == "digit"
    assert small.rubrics["pi-written"].kind == "score"
    assert small.rewards.keys() == {"sem", "spa", "ri", "pi"}


def test_a_coordinate_with_its_comma_is_one_token(small: Any) -> None:
    ids = small.answerer.chat.tokenizer("<box>[[83, 167, 333, 417]]</box>", add_special_tokens=False).input_ids
    assert len(ids) == 8
    assert all(token in small.answerer.chat.word_tokens(str(digit)) for digit, token in enumerate(digit_tokens(small)))


def test_painted_samples_are_right_and_wrong() -> None:
    made = [painted_sample(f"many/{i}") for i in range(60)]
    scores = ScenesJudge().score(made, ["pi", "sem", "ri", "correct"])
    assert 0.2 < sum(scores["correct"]) / len(made) < 0.6
    assert len({round(score, 3) for score in scores["pi"]}) > 6
    assert min(scores["ri"]) > 0.9  # the plan is of the picture
    assert painted_sample("many/1").chain == made[1].chain


def test_a_change_is_one_thing() -> None:
    rng = random.Random(0)
    scene = next(made.scene for i in range(60) if len((made := annotated("train", 0, i)).scene) == 2)
    after = [changed_scene(scene, rng) for _ in range(60)]
    assert {len(other) for other in after} == {1, 2, 3}
    looks = [sum(a.look != b.look for a, b in zip(scene, other, strict=True)) for other in after if len(other) == 2]
    assert set(looks) == {0, 1}
    assert all(set(other) != set(scene) for other in after)


def test_questions_are_answered_by_the_exact_judge(samples: list[Sample]) -> None:
    images, asked = asked_of(samples)
    plans = {s.chain.without_boxes(): [look_of(r.phrase) for r in s.chain.regions] for s in samples}
    assert {one.reward for one in asked} == {"sem", "spa", "pi", "ri", "has", "names", "asks", "stands", "pi-written", "spa-written"}
    for one in asked:
        if one.reward == "pi":
            assert one.picture is not None
            exact = ScenesJudge().score([Sample(Prompt(one.fields["prompt"]), samples[0].chain, images[one.picture])], ["pi"])["pi"][0]
            assert one.answer == exact
        elif one.reward == "ri":
            assert one.picture is not None
            assert one.answer == boxes_answer(images[one.picture], one.fields["phrase"])
        elif one.reward == "has":
            there = [thing.look for thing in read_things(images[one.picture])] if one.picture is not None else plans[one.fields["plan"]]
            assert one.answer == max(look_of(one.fields["phrase"]).agreement(look) for look in there)
        elif one.reward in WRITTEN.values():
            assert one.picture is not None
            name, image = one.reward.removesuffix("-written"), images[one.picture]
            mine = [s.chain for s in samples if s.chain.without_boxes() == one.fields["plan"]]
            exact = [ScenesJudge().score([Sample(Prompt(one.fields["prompt"]), chain, image)], [name])[name][0] for chain in mine]
            assert any(abs(read_score(str(one.answer)) - score) <= 0.0051 for score in exact)  # told in hundredths
        assert one.reward == "has" or (one.picture is None) == (one.reward in ("sem", NAMES, ASKS, STANDS))
    sizes = {image.size for image in images}
    assert sizes == {(48, 48), (64, 64), (448, 448)}
    assert any(one.answer == "<box>[]</box>" for one in asked)


def test_its_answers_are_what_the_judge_reads(small: Any, samples: list[Sample]) -> None:
    """Boxes of the taught answers give the exact judge's ``ri``, up to the rounding of thousandths."""
    truth = {
        (id(s.image), phrase.lower()): boxes_answer(s.image, phrase) for s in samples for phrase in (r.phrase for r in s.chain.regions)
    }  # type: ignore[arg-type]

    class Taught:
        def answer(self, questions: Sequence[Any]) -> list[str]:
            return [truth[id(q.image), q.parts[1]] for q in questions]

        def extent(self, image: Any) -> tuple[float, float]:
            return 1000.0, 1000.0

    taught = type(small).__mro__[2](Taught(), small.rubrics)
    assert taught.score(samples, ["ri"])["ri"] == pytest.approx(ScenesJudge().score(samples, ["ri"])["ri"], abs=0.01)


def test_packed_rows_are_what_the_model_computes(small: Any, samples: list[Sample]) -> None:
    """Each row alone through the model's own forward pass, compared with rows that share their beginning."""
    images, asked = asked_of(samples[:2])
    digits = digit_tokens(small)
    rows, places, targets = encode_questions(small, asked, digits)
    pictures, about = [one.picture for one in asked], subjects(asked)
    pixels = small.answerer.pictures.inputs(images)["pixel_values"]
    model = small.answerer.model
    with torch.no_grad():
        features = model.model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output
        found = model.lm_head(forward(model, features, rows, about, places))
        alone = []
        for row, picture, mine in zip(rows, pictures, places, strict=True):
            given = {} if picture is None else {"pixel_values": pixels[picture : picture + 1]}
            alone.append(model(input_ids=row[None], attention_mask=torch.ones(1, len(row), dtype=torch.long), **given).logits[0, mine])
    assert found.shape == targets.shape
    assert torch.allclose(found, torch.cat(alone), atol=1e-5)  # float32
    packed = pack(rows, about)
    assert len(packed.ids) < len(rows) / 2
    assert packed.ids.numel() < sum(map(len, rows))  # what is padded counted: drills share nothing
    assert packed.ids.shape[1] <= LONGEST


def test_cells_are_of_what_covers_them() -> None:
    """A thing of 20 world pixels from (4, 8) touches three by three cells of eight. A box of the canvas at the same place touches the
    same."""
    look = Look("square", "red", "striped")
    picture = paint((Thing(look, (4, 8, 24, 28)),), 64)
    kind = KINDS["square", "red", "striped"]
    rows = [picture_cells(picture)[6 * row : 6 * row + 6] for row in range(6)]
    empty = (EMPTY, 0, 0, 0, 0)
    thing = (kind, 1, 2, 6, 7)
    assert rows == [(empty,) * 6, *[(thing,) * 3 + (empty,) * 3] * 3, *[(empty,) * 6] * 2]
    plan = parse("<|obj_start|>a red square<|obj_end|><|box_start|>(83,166),(500,583)<|box_end|>")
    assert sketch_cells(plan) == tuple((len(KINDS), *cell[1:]) if cell == thing else cell for row in rows for cell in row)
    # A thing whose colour cannot be told teaches nothing about its cells.
    grey = Image.new("RGB", (48, 48), BACKGROUND)
    grey.paste(COLORS["red"], (8, 8, 16, 16))
    grey.paste(COLORS["blue"], (16, 8, 24, 16))
    assert [cell is None for cell in picture_cells(grey)[6:12]] == [False, True, True, False, False, False]


def test_tokens_of_a_picture_lie_row_by_row(small: Any) -> None:
    """Cells are numbered in this order too."""
    model = small.answerer.model
    pixels = torch.randn(1, 3, judge.SIDE, judge.SIDE, generator=torch.Generator().manual_seed(0))
    across, cell = 6, judge.SIDE // 6
    with torch.no_grad():
        before = model.model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output
        for row, column in ((0, 5), (3, 1), (5, 0)):
            changed = pixels.clone()
            changed[:, :, row * cell : (row + 1) * cell, column * cell : (column + 1) * cell] += 1
            after = model.model.get_image_features(pixel_values=changed, return_dict=True).pooler_output
            assert int((after - before)[0].norm(dim=-1).argmax()) == across * row + column


def test_parts_of_a_score() -> None:
    """A red circle that is there, a blue square that is green, one thing too many, and a relation the wrong way round."""
    wish = Wish((Look("circle", "red"), Look("square", "blue")), (("left", 0, 1),))
    circle, square, cross = Look("circle", "red", "plain"), Look("square", "green", "plain"), Look("cross", "cyan", "striped")
    right, left, low = (0.6, 0.1, 0.8, 0.3), (0.1, 0.1, 0.3, 0.3), (0.1, 0.7, 0.3, 0.9)
    assert score_parts(wish, SceneLayout((circle, square, cross), (left, right, low))) == (7, 4, 0, 0, 3, 2, 1)
    assert score_parts(wish, SceneLayout((circle, square, cross), (right, left, low))) == (7, 4, 0, 0, 3, 2, 2)
    assert score_parts(wish, SceneLayout((circle, square, cross), (right, left, low)), placed=False)[-1] == 0
    assert score_parts(wish, SceneLayout((), ())) == (1, 1, 0, 0, 0, 2, 2)


def test_what_is_named_is_there_or_not(small: Any, samples: list[Sample]) -> None:
    """Every colour, shape and "striped" of a question whose answer is a score, in any form of words."""
    assert [attribute(word) for word in ("crosses", "cross", "circles", "striped", "plain", "reds", "a")] == [
        *("cross", "cross", "circle", "striped", None, None, None)
    ]
    _, asked = asked_of(samples)
    rows, _, _ = encode_questions(small, asked, digit_tokens(small))
    tokenizer = small.answerer.chat.tokenizer
    marks = word_targets(tokenizer, rows, asked)
    assert {one.reward for one, mine in zip(asked, marks, strict=True) if mine} == {"sem", "spa", "pi", "has"}
    for one, row, mine in zip(asked, rows, marks, strict=True):
        told = [(attribute(tokenizer.decode([int(row[at])]).strip()), answer) for at, head, answer in mine if head == "there"]
        there = {value for look in one.looks for value in (look.shape, look.color, look.texture)}
        assert all(answer == (int(value in there),) for value, answer in told)
        text = "".join(question_parts(small, one)).lower()
        wanted = sum(len(re.findall(rf"\b{word}(?:es|s)?\b", text)) for word in (*COLORS, *SHAPES, "striped"))
        assert len(told) == (wanted if one.parts else 0)


def test_a_word_is_taught_with_what_was_said_of_its_thing(small: Any) -> None:
    """In sixths, from the words before a shape and not from those of the last shape. A relation's word tells whether it holds."""
    there, places = (Look("circle", "red", "striped"), Look("square", "blue", "plain")), ((6, 6, 7, 7), (1, 6, 2, 7))
    tokenizer = small.answerer.chat.tokenizer

    def told(reward: str, prompt: str, plan: str = "") -> list[tuple[str, str, int | tuple[int, ...]]]:
        wish = read_wish(prompt) or Wish(there, (("left", 0, 1),))
        found = SceneLayout(there, ((0.5, 0.5, 0.6, 0.6), (0.1, 0.5, 0.2, 0.6)))  # the circle is on the right
        one = TaughtQuestion(reward, {"prompt": prompt, "plan": plan}, 0, 0.5, score_parts(wish, found), there, places)
        rows, _, _ = encode_questions(small, [one], digit_tokens(small))
        [mine] = word_targets(tokenizer, rows, [one])
        named = [(tokenizer.decode([int(rows[0][at])]).strip(), head, answer) for at, head, answer in mine if head != "there"]
        return [(word, head, answer[0] if len(answer) == 1 else answer) for word, head, answer in named]

    assert told("pi", "a striped red circle to the left of a green square and three crosses") == [
        *(("circle", "bound", 6), ("circle", "placed", (6, 6, 7, 7))),
        *(("square", "bound", 3), ("square", "related", 2)),  # half of it is there; the relation is said with its second thing
        ("crosses", "bound", 0),
    ]
    assert told("pi", "a square in blue and a circle without stripes") == [
        *(("square", "bound", 6), ("square", "placed", (1, 6, 2, 7)), ("blue", "bound", 6), ("blue", "placed", (1, 6, 2, 7))),
        *(("circle", "bound", 6), ("circle", "placed", (6, 6, 7, 7)), ("stripes", "bound", 3)),
    ]
    late = told("pi", "a circle and a square, the first blue and the second striped")
    assert late[4:] == [("blue", "bound", 3), ("striped", "bound", 3)]
    sketched = told("spa", "a square with a circle on its left", "There is a circle and a circle.")
    assert [place for _, head, place in sketched if head == "placed"] == [(6, 6, 7, 7), (1, 6, 2, 7), (1, 6, 2, 7), (6, 6, 7, 7)]
    assert sketched[-1][:2] == ("left", "related")


def test_a_verdict_tells_step_by_step() -> None:
    """What was asked for, what is there, what became of it, how many, how two of them stand. For a sketch: how many boxes are separate."""
    wish = Wish((Look("circle", "red"), Look("square", "blue")), (("left", 0, 1),))
    circle, square = Look("circle", "red", "striped"), Look("square", "green", "plain")
    found = SceneLayout((square, circle), ((0, 0.25, 0.25, 0.5), (0.5, 0.25, 0.75, 0.5)))
    told = json.loads(verdict(wish, found, sketch=False))
    assert {key: value.strip() if isinstance(value, str) else value for key, value in told.items()} == {
        "request": "first red circle; second blue square; left first second",
        "description": "green square 0 3 3 6; striped red circle 6 3 9 6",
        "reason": "first red circle: striped red circle 2 of 2; second blue square: green square 1 of 2; 2 asked 2 there; "
        "left first red circle 6 3 9 6 second blue square 0 3 3 6 no",
        "score": 3.8,  # three quarters of what is said of the things, and half of that for the relation
    }
    sketched = json.loads(verdict(wish, found, sketch=True))["reason"]
    assert sketched == " 2 of 2 apart; left first red circle 6 3 9 6 second blue square 0 3 3 6 no"
    alone = json.loads(verdict(wish, SceneLayout((Look(None, "red", "plain"),), ((0, 0, 0.25, 0.25),)), sketch=False))
    assert alone["description"] == " red thing 0 0 3 3"
    assert " second blue square: nothing 0 of 2; 2 asked 1 there; " in alone["reason"]
    assert alone["reason"].endswith(" left first red circle 0 0 3 3 second blue square nothing no")
    nothing = json.loads(verdict(Wish((Look("cross"),)), SceneLayout((), ()), sketch=False))
    assert nothing == {
        "request": " first cross",
        "description": " nothing",
        "reason": " first cross: nothing 0 of 1; 1 asked 0 there",
        "score": 0.0,
    }


def test_drills_are_parts_of_verdicts(small: Any, samples: list[Sample]) -> None:
    """Requests as at a verdict's beginning, names as it copies them, relations as at its end; right and wrong ones."""
    _, asked = asked_of(samples)
    asks, names, stands = ([one for one in asked if one.reward == kind] for kind in (ASKS, NAMES, STANDS))
    for one in asks:
        wish = read_wish(one.fields["plan"])
        assert wish is not None
        assert f'"request": "{one.answer}", ' in verdict(wish, SceneLayout((), ()), sketch=False)
    assert all(str(one.answer).count(";") + 1 == len(re.findall("|".join(SHAPES), one.fields["plan"])) for one in names)
    for one in stands:
        name, *numbers = re.findall(r"left|right|above|below|\d+", one.fields["plan"])
        places = [int(number) for number in numbers]
        assert one.answer == (" yes" if holds(name, places[:4], places[4:]) else " no")
    assert 0.2 < sum(one.answer == " yes" for one in stands) / len(stands) < 0.6
    rows, told, _ = encode_questions(small, stands[:1], digit_tokens(small))
    said = small.answerer.chat.tokenizer.decode([*rows[0].tolist()])
    assert said.endswith(f"<answer>{stands[0].fields['plan']}{stands[0].answer}")  # as a verdict has it, and only its end is told
    assert len(told[0]) == 2


def test_verdicts_are_about_how_things_stand() -> None:
    _, asked = make_questions([painted_sample(f"standing/{i}") for i in range(12)], 12, random.Random(0))
    told = " ".join(str(one.answer) for one in asked if one.reward in WRITTEN.values())
    assert ' yes"' in told
    assert ' no"' in told
    for one in asked:
        if one.reward in WRITTEN.values():
            wish = read_wish(one.fields["prompt"])
            assert wish is not None and not is_validation_text(one.fields["prompt"]) and not has_held_out_pair(wish)


def test_it_begins_with_the_weights_of_another(small: Any, tmp_path: Path) -> None:
    """Tokens of both keep their vectors. A new token begins with the mean of those that spelled it. All else is the same."""
    old = make_tokenizer(3)
    assert len(old) < len(small.answerer.chat.tokenizer)
    other = make_model(old, 1)
    other.save_pretrained(tmp_path)
    old.save_pretrained(tmp_path)
    tokenizer = small.answerer.chat.tokenizer
    model = make_model(tokenizer, 2)
    copy_weights(model, tokenizer, tmp_path)
    theirs, mine = other.get_input_embeddings().weight, model.get_input_embeddings().weight
    new = next(token for token in sorted(tokenizer.get_vocab()) if token not in old.get_vocab())
    spelled = old(tokenizer.convert_tokens_to_string([new]), add_special_tokens=False).input_ids
    assert torch.allclose(mine[tokenizer.get_vocab()[new]], theirs[spelled].mean(0))
    assert torch.equal(mine[tokenizer.get_vocab()["<img>"]], theirs[old.get_vocab()["<img>"]])
    assert model.lm_head.weight is mine
    for (name, one), (_, two) in zip(model.model.vision_tower.named_parameters(), other.model.vision_tower.named_parameters(), strict=True):
        assert torch.equal(one, two), name


def test_scores_have_parts(samples: list[Sample]) -> None:
    _, asked = asked_of(samples)
    for one in asked:
        assert bool(one.parts) == (one.reward in ("sem", "spa", "pi", "has"))
        assert all(part < most for part, most in zip(one.parts, PARTS, strict=False))


def test_near_prompts_differ_in_one_word_or_in_the_order_of_two() -> None:
    """One word is replaced, or two are exchanged. The wish is the new text's. No validation or held-out text is made."""
    rng = random.Random(0)
    prompts = [painted_sample(f"near/{i}").prompt for i in range(60)]
    exchanged = turned = 0
    for prompt in prompts * 3:
        other = near_prompt(prompt, rng)
        assert other.text != prompt.text
        assert prompt_wish(other) == read_wish(other.text)
        assert not is_validation_text(other.text) and not has_held_out_pair(read_wish(other.text) or Wish(()))
        before, after = prompt_wish(prompt) or Wish(()), prompt_wish(other) or Wish(())
        turned += before.things == after.things and before.relations != after.relations
        words = [text.split() for text in (prompt.text, other.text)]
        if len(words[0]) == len(words[1]):
            apart = [pair for pair in zip(*words, strict=True) if pair[0] != pair[1]]
            exchanged += len(apart) == 2 and {one for one, _ in apart} == {word for _, word in apart}
    assert exchanged > 10
    assert turned > 10


def test_the_place_of_a_phrase_is_its_first_box(samples: list[Sample]) -> None:
    """For ``ri`` the first box of the answer, on the grid of the world's 12 squares, to which drawn ends are rounded."""
    _, asked = asked_of(samples)
    found = [one for one in asked if one.reward == "ri"]
    assert {bool(one.first_box) for one in found} == {True, False}
    for one in found:
        told = json.loads(str(one.answer).removeprefix("<box>").removesuffix("</box>"))
        assert bool(told) == bool(one.first_box)
        for value, place in zip(told[0] if told else (), one.first_box, strict=True):
            assert abs(value * CANVAS / GRID / 1000 - place) <= 0.5
    assert any(one.first_box for one in asked if one.reward == "has")
    assert not any(one.first_box for one in asked if one.reward not in ("ri", "has") or one.picture is None)


def test_a_score_is_the_expectation_of_two_digits(small: Any) -> None:
    digits = digit_tokens(small)
    for score in (0.0, 0.25, 8 / 9, 1.0):
        _, places, targets = encode_questions(small, [TaughtQuestion("pi", {"prompt": "a"}, 0, score)], digits)
        assert len(places[0]) == 1
        assert float((targets[0, digits] * torch.arange(10)).sum()) / 9 == pytest.approx(score)
        assert float(targets.sum()) == pytest.approx(1)


def test_training_resumes_where_it_stopped(samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is killed after its first step ends with the same bits as another, and can be shipped. With a smaller model."""
    sizes = {"SAMPLES": 3, "SKETCHED": 1, "HIDDEN": 48, "SIDE": 48, "PATCH": 4}
    sizes |= {"PROCESSOR": {**judge.PROCESSOR, "size": {"height": 48, "width": 48}}}  # type: ignore[dict-item]
    for name, size in sizes.items():
        monkeypatch.setattr(judge, name, size)
    out, untrained = tmp_path / "out", save(tmp_path / "out" / "untrained")
    train(out, samples, until=2, steps=2, rate=1e-3, seed=0, threads=1)
    whole = load_file(out / "state.safetensors")
    (out / "state.safetensors").unlink()
    update = judge.update

    def killed(*arguments: Any) -> Any:
        update(*arguments)
        judge.save(out, arguments[0].answerer.model, arguments[1], 1)
        raise KeyboardInterrupt

    monkeypatch.setattr(judge, "update", killed)
    with pytest.raises(KeyboardInterrupt):
        train(out, samples, until=2, steps=2, rate=1e-3, seed=0, threads=1)
    monkeypatch.setattr(judge, "update", update)
    assert int(load_file(out / "state.safetensors")["at"]) == 1
    train(out, samples, until=2, steps=2, rate=1e-3, seed=0, threads=1)
    for name, tensor in load_file(out / "state.safetensors").items():
        assert torch.equal(tensor, whole[name]), name
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 1
    assert {"cells", "there", "parts", "where", "bound", "sem", "spa", "ri", "pi", "pi.off"} <= lines[-1].keys()
    assert {"has", "names", "asks", "stands", "pi-written", "spa-written"} <= lines[-1].keys()
    model = make_judge(untrained).answerer.model
    assert resume(out, model) == 2
    judge.ship(out, tmp_path / "shipped")
    shipped = make_judge(tmp_path / "shipped")
    assert (tmp_path / "shipped" / "log.jsonl").is_file()
    assert same_in_any_batch(JudgeSubject(shipped)).within


def test_batches_are_of_their_step(samples: list[Sample]) -> None:
    assert [s.chain for s in batch(3, samples, 0)] == [s.chain for s in batch(3, samples, 0)]
    assert [s.chain for s in batch(3, samples, 0)] != [s.chain for s in batch(4, samples, 0)]


def test_samples_of_a_policy_are_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gotr1_scenes_recipe.samples.CHUNK", 2)
    monkeypatch.setattr("gotr1_scenes_recipe.samples.PLANS", 2)
    drawn = draw_samples(tmp_path, "janus/janus", 4)
    assert len(drawn) == 4
    assert [s.lineage[0] for s in drawn] == [0, 0, 1, 1]
    assert all("things" in s.prompt.metadata and s.image is not None for s in drawn)
    monkeypatch.setattr("gotr1_scenes_recipe.samples._policy", lambda pair: pytest.fail("it was drawn again"))
    again = draw_samples(tmp_path, "janus/janus", 4)
    assert [(s.chain, s.image.tobytes()) for s in again if s.image] == [(s.chain, s.image.tobytes()) for s in drawn if s.image]
    lines = check_judge.agreement(ScenesJudge(), drawn)
    assert [line.split()[0] for line in lines] == ["sem", "spa", "ri", "pi"]
