"""``gotr1 score``: judges without a policy, on files, folders and the output of generate and of runs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from gotr1_core.chain import parse
from gotr1_core.cli.main import call
from gotr1_core.data.pictures import read_picture
from gotr1_core.pictures.sample_files import Picture, find_pictures, write_samples
from gotr1_core.reward import Expression
from gotr1_core.samples import Prompt, Sample
from gotr1_core.workflows.judging import score_pictures

Captured = pytest.CaptureFixture[str]
Refused = Callable[..., tuple[str, str]]
BOX = "<|obj_start|>a cat<|obj_end|><|box_start|>(0,0),(500,999)<|box_end|>"
NOTE = "note: {} of {} pictures have no plan: scores that compare a picture with its plan cannot be had\n"


def picture(path: Path, red: int, green: int = 0) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (4, 4), (red, green, 0)).save(path)
    return path


@pytest.fixture
def folder(toy: Path) -> Path:
    """Three pictures, the last of which the judge cannot score."""
    for name, red, green in (("a.png", 51, 0), ("b.JPG", 255, 0), ("c.png", 0, 255)):
        picture(toy / "some" / name, red, green)
    (toy / "some" / "notes.txt").write_text("not a picture")
    return Path("some")


@pytest.fixture
def drawn(toy: Path) -> Path:
    """Output of `gotr1 generate`: one complete sample, and one whose plan was never drawn."""
    chain = parse(f"{BOX} and {BOX}")
    write_samples(
        Path("drawn"), [Sample(Prompt("a cat"), chain, Image.new("RGB", (4, 4), (51, 0, 0))), Sample(Prompt("a dog"), chain, None)]
    )
    return Path("drawn")


def rows(capsys: Captured, *arguments: str, note: str = "") -> list[dict[str, object]]:
    capsys.readouterr()
    assert call(["score", *arguments, "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == note
    found: list[dict[str, object]] = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    return found


def test_a_folders_pictures_are_scored(folder: Path, capsys: Captured) -> None:
    found = rows(capsys, "some", "--prompt", "x", "--judge", "toy", note=NOTE.format(3, 3))
    assert [row["image"] for row in found] == ["some/a.png", "some/b.JPG", "some/c.png"]
    assert found[0] == {"image": "some/a.png", "prompt": "x", "scores": {"pi": pytest.approx(0.2)}}
    assert found[1]["scores"] == {"pi": pytest.approx(1, abs=0.02)}  # JPEG is not exact
    assert found[2]["scores"] == {"pi": None}
    assert rows(capsys, "some", "--prompt", "x", "--judge", "toy", "--batch", "2", note=NOTE.format(3, 3)) == found


def test_scores_as_text(folder: Path, capsys: Captured) -> None:
    assert call(["score", "some", "--prompt", "x", "--judge", "toy", "--reward", "1 - pi"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["image", "pi", "reward"]
    assert lines[1].split() == ["some/a.png", "0.200", "0.800"]
    assert lines[3].split(maxsplit=1) == ["some/c.png", "could not be scored  could not be scored"]


def test_a_chain_brings_scores_of_the_plan(folder: Path, capsys: Captured) -> None:
    both = ["some/a.png", "--prompt", "x", "--judge", "toy", "--judge", "plans"]
    assert rows(capsys, *both, note=NOTE.format(1, 1))[0]["scores"] == {"pi": pytest.approx(0.2)}
    assert rows(capsys, *both, "--chain", BOX)[0]["scores"] == {"pi": pytest.approx(0.2), "boxes": pytest.approx(0.1)}
    Path("chain.txt").write_text(f"{BOX} {BOX}\n")
    [row] = rows(capsys, *both, "--chain", "chain.txt", "--reward", "pi * boxes")
    assert row["scores"] == {"pi": pytest.approx(0.2), "boxes": pytest.approx(0.2)}
    assert row["reward"] == pytest.approx(0.04)
    [row] = rows(capsys, *both, "reward=pi * boxes", note=NOTE.format(1, 1))
    assert row["reward"] is None  # without a plan there is no total, and no zero


def test_judges_take_options(folder: Path, capsys: Captured) -> None:
    plans = ["some/a.png", "--prompt", "x", "--chain", BOX, "--judge", "plans"]
    for words in (["judge.per_box=0.3"], ["judge.plans.per_box=0.3", "--judge", "toy"], ["judge=[{name: plans, per_box: 0.3}]"]):
        assert rows(capsys, *plans, *words)[0]["scores"]["boxes"] == pytest.approx(0.3)  # type: ignore[index]


def test_two_judges_of_one_name_have_names_of_their_own(folder: Path, capsys: Captured) -> None:
    plans = ["some/a.png", "--prompt", "x", "--chain", BOX]
    two = "judge=[{name: plans, per_box: 0.3}, {name: plans, as: other, per_box: 0.2}]"
    [row] = rows(capsys, *plans, two, "judge.other.per_box=0.6", "reward=plans.boxes * other.boxes")
    scores = {"boxes": pytest.approx(0.45), "plans.boxes": pytest.approx(0.3), "other.boxes": pytest.approx(0.6)}
    assert (row["scores"], row["reward"]) == (scores, pytest.approx(0.18))


@pytest.mark.parametrize("given", ["drawn", "drawn/samples.jsonl"])
def test_what_was_generated_brings_prompts_and_plans(given: str, drawn: Path, capsys: Captured) -> None:
    found = rows(capsys, given, "--judge", "toy", "--judge", "plans", "--reward", "boxes")
    assert found == [
        {"image": "drawn/000.png", "prompt": "a cat", "scores": {"pi": pytest.approx(0.2), "boxes": 0.2}, "reward": 0.2},
        {"image": None, "prompt": "a dog", "scores": {"boxes": 0.2}, "reward": 0.2},
    ]
    assert call(["score", given, "--judge", "toy"]) == 0
    assert capsys.readouterr().out.splitlines()[2].split() == ["not", "drawn", "-"]


def test_pictures_of_both_sorts(drawn: Path, folder: Path, capsys: Captured) -> None:
    found = rows(capsys, "drawn", "some/a.png", "--prompt", "x", "--judge", "toy", note=NOTE.format(1, 3))
    assert [row["prompt"] for row in found] == ["a cat", "a dog", "x"]


def test_what_generate_writes_is_scored(toy: Path, capsys: Captured) -> None:
    assert call(["generate", "a cat", "--preset", "toy", "-n", "2", "--out", "out"]) == 0
    found = rows(capsys, "out", "--judge", "toy", "--judge", "plans")
    assert [row["scores"] for row in found] == [{"pi": pytest.approx(0.2), "boxes": 0.1}] * 2


def test_the_exact_judge_scores_a_picture_of_its_world(tmp_path: Path, capsys: Captured) -> None:
    image = Image.new("RGB", (48, 48), (225, 225, 225))
    image.save(tmp_path / "empty.png")
    [row] = rows(capsys, str(tmp_path), "--prompt", "a red circle", "--judge", "scenes", note=NOTE.format(1, 1))
    assert row["scores"] == {"ri": None, "pi": 0, "correct": 0}


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["some"], "there is no judge", "gotr1 list judge"),
        ([], "there are no pictures", "PNG, JPEG or WebP"),
        (["judge=toy"], "there are no pictures", "PNG, JPEG or WebP"),
        (["some", "--prompt", "x", "judge=[plans, {name: plans, per_box: 0.2}]"], "the judge 'plans' is named twice", "as: NAME"),
        (["some", "--prompt", "x", "judge=[{name: plans, as: a.b}]"], "judge.0: as: 'a.b' is not a valid judge name", "gotr1 config"),
        (["some", "--judge", "tyo", "--prompt", "x"], "there is no judge 'tyo'", "did you mean 'toy'?"),
        (["some", "--judge", "toy"], "the prompt of some/a.png is not known", "give --prompt TEXT"),
        (["drawn/000.png", "--judge", "toy"], "the prompt of drawn/000.png is not known", "or the folder drawn, whose samples.jsonl has"),
        (["drawn", "--judge", "toy", "--prompt", "x"], "--prompt cannot be used for pictures that samples.jsonl", "leave it out"),
        (["drawn", "--judge", "toy", "--chain", "x"], "--chain cannot be used for pictures that samples.jsonl", "leave it out"),
        (["some", "--judge", "toy", "--prompt", "x", "--chain", "none.txt"], "there is no file none.txt", "the chain's text"),
        (
            ["some", "--judge", "toy", "--prompt", "x", "--chain", "no such file.JSON"],
            "there is no file no such file.JSON",
            "the chain's text",
        ),
        (["some", "--judge", "toy", "--prompt", "x", "--chain", "some"], "cannot read some: Is a directory", "the chain's text"),
        (["some", "--judge", "toy", "--prompt", "x", "--chain", "some/a.png"], "some/a.png is not UTF-8", "the chain's text"),
        (["none.png", "--judge", "toy", "--prompt", "x"], "cannot read none.png: No such file or directory", "PNG, JPEG or WebP"),
        (["none", "--judge", "toy", "--prompt", "x"], "cannot read none: No such file or directory", "PNG, JPEG or WebP"),
        (["n" * 300, "--judge", "toy", "--prompt", "x"], "File name too long", "PNG, JPEG or WebP"),
        (["some/notes.txt", "--judge", "toy", "--prompt", "x"], "some/notes.txt is not a PNG, JPEG or WebP picture", "PNG, JPEG or WebP"),
        (["odd/x.gif", "--judge", "toy", "--prompt", "x"], "odd/x.gif is not a PNG, JPEG or WebP picture", "PNG, JPEG or WebP"),
        (["odd/cut.png", "--judge", "toy", "--prompt", "x"], "odd/cut.png is damaged: ", "PNG, JPEG or WebP"),
        (["odd/empty.png", "--judge", "toy", "--prompt", "x"], "odd/empty.png is not a PNG, JPEG or WebP picture", "PNG, JPEG or WebP"),
        (["bare", "--judge", "toy", "--prompt", "x"], "bare has no pictures", "PNG, JPEG or WebP"),
        ([".", "--judge", "toy", "--prompt", "x"], ". has no pictures", "a folder in it, such as drawn"),
        (["none.jsonl", "--judge", "toy"], "cannot read none.jsonl: No such file", "that gotr1 wrote"),
        (["bad.jsonl", "--judge", "toy"], "bad.jsonl, line 2: the prompt is not a text", "that gotr1 wrote"),
        (["empty.jsonl", "--judge", "toy"], "empty.jsonl has no samples", "that gotr1 wrote"),
        (["binary.jsonl", "--judge", "toy"], "binary.jsonl is not UTF-8", "that gotr1 wrote"),
        (["gone.jsonl", "--judge", "toy"], "cannot read gone.png: No such file", "PNG, JPEG or WebP"),
        (["some", "--judge", "toy", "--prompt", "x", "--reward", "pj"], "unknown score 'pj'", "offered: pi"),
        (["some", "--judge", "toy", "--prompt", "x", "--reward", "pi +"], "malformed reward", "pi +"),
        (["some", "--judge", "toy", "--prompt", "x", "steps=3"], "steps cannot be set here", "judge.…, reward, cache and judge_reminder"),
        (["some", "--judge", "toy", "--prompt", "x", "judge.x=3"], "judge 'toy' has no options", "gotr1 show judge toy"),
        (["some", "--judge", "toy", "--prompt", "x", "--batch", "0"], "--batch", "gotr1 score --help"),
        (["some", "--prompt", "x", "judge=[3]"], "judge.0: Input should be a name, or a mapping", "gotr1 config schema"),
    ],
)
def test_mistakes_are_reported_in_two_lines(
    arguments: list[str], message: str, hint: str, drawn: Path, folder: Path, capsys: Captured
) -> None:
    Path("odd").mkdir()
    Image.new("RGB", (4, 4)).save("odd/x.gif")
    whole = (folder / "a.png").read_bytes()
    for name, content in (("odd/cut.png", whole[:50]), ("odd/empty.png", b""), ("binary.jsonl", b"\xff"), ("empty.jsonl", b"\n")):
        Path(name).write_bytes(content)
    Path("bad.jsonl").write_text('{"prompt": "x"}\n{"prompt": 3}\n')
    Path("gone.jsonl").write_text('{"prompt": "x", "image": "gone.png"}\n')
    Path("bare").mkdir()
    assert call(["score", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    error, advice = err.split("\n", 1)
    assert error.startswith("error: ")
    assert message in error
    assert advice.startswith("hint: ")
    assert hint in advice


def test_where_nothing_could_be_scored_it_fails(folder: Path, refused: Refused) -> None:
    error, hint = refused(["score", "some/c.png", "--prompt", "x", "--judge", "toy"], status=1)
    assert error == "nothing could be scored"
    plan = "give --chain if it compares pictures with plans"
    assert hint == f"judge toy had no score for such prompts; try other words, {plan}, or another judge"
    error, hint = refused(["score", "some", "--prompt", "x", "--judge", "plans"], status=1)
    assert error == "nothing could be scored"
    assert hint == "judge plans scores plans: give --chain, or a samples.jsonl"


def test_judges_and_reward_of_a_preset(folder: Path, refused: Refused, capsys: Captured) -> None:
    assert call(["score", "some/a.png", "--prompt", "x", "--preset", "toy", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["scores"], row["reward"]) == ({"pi": pytest.approx(0.2)}, pytest.approx(0.2))
    assert "there is no preset 'tyo'" in refused(["score", "some/a.png", "--prompt", "x", "--preset", "tyo"])[0]


# -- as functions -----------------------------------------------------------------------------------------------------------


class Seen:
    """A judge that keeps the samples it was shown."""

    def __init__(self) -> None:
        self.rewards = {"plan": "plan", "both": "image"}
        self.calls: list[tuple[list[str], list[str]]] = []

    def score(self, samples: list[Sample], names: list[str]) -> dict[str, list[float]]:
        self.calls.append((names, [sample.chain.raw for sample in samples]))
        return {name: [math.nan if sample.prompt.text == "hard" else 1.0 for sample in samples] for name in names}


def test_a_judge_gets_plans_and_pictures_where_there_are_any(tmp_path: Path) -> None:
    file, judge = picture(tmp_path / "a.png", 3), Seen()
    pictures = [Picture(file, Prompt("x"), None), Picture(None, Prompt("y"), parse("a")), Picture(file, Prompt("hard"), parse("b"))]
    found = list(score_pictures({"seen": judge}, pictures, Expression.parse("plan * both"), batch=5))  # type: ignore[dict-item]
    assert judge.calls == [(["plan"], ["a", "b"]), (["both"], ["", "b"])]
    assert [sample.scores for sample in found[:2]] == [{"both": 1}, {"plan": 1}]
    assert list(found[2].scores) == ["plan", "both"]
    assert all(math.isnan(sample.reward) for sample in found)


def test_pictures_are_read_upright_and_as_rgb(tmp_path: Path) -> None:
    turned = Image.new("RGB", (4, 2), (200, 0, 0))
    exif = turned.getexif()
    exif[0x0112] = 6  # turned by a quarter, as a phone's photo may be
    turned.save(tmp_path / "a.jpg", exif=exif)
    Image.new("LA", (4, 4), (100, 255)).save(tmp_path / "b.png")
    assert read_picture(tmp_path / "a.jpg").size == (2, 4)
    assert read_picture(tmp_path / "b.png").getpixel((0, 0)) == (100, 100, 100)


def test_a_file_that_only_begins_well_is_refused_when_it_is_read(folder: Path, refused: Refused) -> None:
    big = Path("some/big.png")
    Image.effect_noise((64, 64), 50).save(big)
    big.write_bytes(big.read_bytes()[: big.stat().st_size // 2])
    assert len(find_pictures([big], "x")) == 1
    assert "some/big.png is damaged: " in refused(["score", "some/big.png", "--prompt", "x", "--judge", "toy"])[0]
