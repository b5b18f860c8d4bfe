"""Large and endless inputs are bounded, or refused at once: pictures, files that never end, and numbers beyond reason."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
import tracemalloc
import weakref
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gotr1_core.cli.main import call
from gotr1_core.data.pictures import LARGEST_SIDE, MOST_PIXELS, check_picture, read_picture, shrink
from gotr1_core.data.prompts import PromptFile, read_prompts
from gotr1_core.data.rows import LARGEST_ROW
from gotr1_core.errors import UsageError
from gotr1_core.pictures.sample_files import find_pictures
from gotr1_core.samples import IMAGE, Prompt, Sample, SegmentName
from gotr1_core.workflows.judging import score_pictures

Refused = Callable[..., tuple[str, str]]
PEAK = """
import resource, sys
from pathlib import Path
from PIL import Image
from gotr1_core.chain import parse
from gotr1_core.data.pictures import read_picture
from gotr1_core.samples import Prompt, Sample
from gotr1_scenes.judge import ScenesJudge

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def scored(image):
    return ScenesJudge().score([Sample(Prompt("a red square"), parse(""), image)], ["correct"])["correct"]

scored(read_picture(Path(sys.argv[1])))
before = peak()
print(scored(read_picture(Path(sys.argv[2]))), peak() - before)
"""
"""Scores two files with the exact judge. Prints the second one's score, and by how many MB it raised the peak of memory."""


# -- pictures ---------------------------------------------------------------------------------------------------------------


def header(width: int, height: int) -> bytes:
    """The beginning of a PNG that has so many pixels. Reading them would fail."""
    parts = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts)


@pytest.mark.parametrize(("side", "size"), [(9460, "89 megapixels"), (13_000, "169 megapixels"), (60_000, "3,600 megapixels")])
def test_a_picture_above_the_limit_is_refused_with_its_size(tmp_path: Path, refused: Refused, side: int, size: str) -> None:
    assert side**2 > MOST_PIXELS
    file = tmp_path / "a.png"
    file.write_bytes(header(side, side))
    for read in (check_picture, read_picture):
        with pytest.raises(UsageError, match=f"a.png is too large: {size}, and at most 89 are read"):
            read(file)
    error, hint = refused(["score", str(file), "--prompt", "x", "--judge", "scenes"])
    assert error.startswith(f"{file} is too large")
    assert "2048 x 2048 pixels" in hint


def test_a_picture_at_the_limit_is_not_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(header(9459, 9459))
    check_picture(tmp_path / "a.png")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK"])
def test_a_picture_is_shrunk_when_it_is_read(tmp_path: Path, mode: str) -> None:
    """Whatever its mode, its parts stay where they are and keep their colours."""
    small = Image.new("RGB", (4, 2), "white")
    small.paste("black", (0, 0, 2, 2))
    if mode == "I;16":
        image = Image.fromarray(np.repeat(np.repeat(np.asarray(small.convert("L"), np.uint16) * 257, 1000, 0), 1000, 1))
    else:
        image = small.convert(mode).resize((4000, 2000), Image.Resampling.NEAREST)
    file = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    image.save(file)
    read = read_picture(file)
    assert (read.mode, read.size) == ("RGB", (LARGEST_SIDE, LARGEST_SIDE // 2))
    assert [read.getpixel((x, 512)) for x in (10, 1010, 1040, 2040)] == [(0, 0, 0)] * 2 + [(255, 255, 255)] * 2


def test_transparent_pixels_of_a_large_picture_are_put_on_white(tmp_path: Path) -> None:
    """Also at the edge of what is transparent, whose hidden colour must not shine through."""
    image = Image.new("RGBA", (3001, 3), (0, 0, 0, 0))
    image.paste((255, 255, 255, 255), (0, 0, 1500, 3))
    image.save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png").getextrema() == ((255, 255),) * 3


def test_pictures_that_gotr1_draws_are_not_touched() -> None:
    for side in (48, 384, 1024, LARGEST_SIDE):
        image = Image.effect_noise((side, 8), 50)
        assert shrink(image) is image
    assert shrink(Image.new("L", (10**6, 1))).size == (LARGEST_SIDE, 1)


def test_twelve_megapixels_take_little_memory(tmp_path: Path) -> None:
    """They once took 1.9 GB. The process is measured by the system, and the picture alone takes 48 MB."""
    from gotr1_scenes.painter import paint
    from gotr1_scenes.world import Look, Thing

    scene = paint((Thing(Look("square", "red", "plain"), (4, 4, 24, 24)),))
    for side in (48, 3464):
        scene.resize((side, side), Image.Resampling.NEAREST).save(tmp_path / f"{side}.png")
    command = [sys.executable, "-c", PEAK, str(tmp_path / "48.png"), str(tmp_path / "3464.png")]
    score, megabytes = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    assert score == "[1.0]"
    assert float(megabytes) < 200


class Watching:
    """A judge that counts the pictures that exist when it is called."""

    rewards: Mapping[str, SegmentName] = {"alive": IMAGE}

    def __init__(self) -> None:
        self.pictures: list[weakref.ref[Image.Image]] = []
        self.most = 0

    def score(self, samples: Sequence[Sample], names: Sequence[str]) -> dict[str, list[float]]:
        self.pictures += [weakref.ref(sample.image) for sample in samples if sample.image is not None]
        self.most = max(self.most, sum(picture() is not None for picture in self.pictures))
        return {name: [0.5] * len(samples) for name in names}


def test_score_keeps_no_more_than_one_batch_of_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(9):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    judge = Watching()
    rows = [sample.scores for sample in score_pictures({"watching": judge}, find_pictures([tmp_path], "x"), None, batch=2)]
    assert rows == [{"alive": 0.5}] * 9
    assert judge.most == 2
    judge = Watching()
    monkeypatch.setattr("gotr1_core.components.build.make_judge", lambda *_, **__: judge)
    assert call(["score", str(tmp_path), "--prompt", "x", "--judge", "scenes", "--batch", "3"]) == 0
    assert judge.most == 3


def test_evaluate_keeps_no_more_than_one_batch_of_pictures(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for more in ([], ["--out", "out"]):
        judge = Watching()
        monkeypatch.setattr("gotr1_core.components.build.make_judge", lambda *_, judge=judge, **__: judge)
        assert call(["evaluate", "--count", "12", "--preset", "toy", "--judge", "toy", "--batch", "2", *more]) == 0
        assert len(judge.pictures) == 12
        assert judge.most <= 4  # the first picture, and the one that was written last, may still be there


# -- rows and prompts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "before", "after", "line"),
    [
        ("a.txt", "a cat\n", "", 2),
        ("a.jsonl", '{"prompt": "a cat"}\n{"prompt": "', '"}', 2),
        ("a.json", '[\n"a cat",\n"', '"]', 3),
        ("a.csv", "prompt,id\na cat,1\n", ",2", 3),
        ("b.txt", "", "", 1),
    ],
)
def test_a_line_of_a_hundred_megabytes_is_refused(tmp_path: Path, name: str, before: str, after: str, line: int) -> None:
    file = tmp_path / name
    with file.open("w", encoding="utf-8") as out:
        out.write(before)
        for _ in range(100):
            out.write("x" * 10**6)
        out.write(after)
    with pytest.raises(UsageError, match=f"{name}, line {line}, is too long: a row has at most 1,000,000 characters"):
        read_prompts(file)


def test_a_line_at_the_limit_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" * LARGEST_ROW)
    assert [len(prompt.text) for prompt in read_prompts(tmp_path / "a.txt")] == [LARGEST_ROW]


def test_an_array_in_one_long_line_has_short_rows(tmp_path: Path) -> None:
    texts = [f"a cat number {number}" for number in range(80_000)]
    for name, content in (("a.json", json.dumps(texts)), ("a.txt", f"\n{json.dumps([{'prompt': text} for text in texts])}\n")):
        (tmp_path / name).write_text(content)
        assert [prompt.text for prompt in read_prompts(tmp_path / name)] == texts


ARRAYS: list[tuple[str, Any]] = [
    *(("[]", []), ('[\n"a",\n"b"\n]\n', ["a", "b"]), ("[1e5, 23, -0.5e-3]", 1), ('["a" "b"]', 1), ('["a",]', 1), ('["a"]]', 1)),
    *(
        ('["a",\n\n"b', 3),
        ('["a",\n{"prompt": "b",\n"id": x}]', 3),
        ('[\n"a"', 2),
        ("[" * 50, 1),
        ('[\n"' + "x" * 300 + '"]', "line 2, is too long"),
    ),
]


@pytest.mark.parametrize("piece", [1, 3, 50, 2**20])
@pytest.mark.parametrize(("text", "wanted"), ARRAYS, ids=lambda each: str(each)[:20])
def test_an_array_is_read_in_pieces(text: str, wanted: Any, piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``wanted`` are the prompts, or the line of the first row that is wrong."""
    monkeypatch.setattr("gotr1_core.data.rows.PIECE", piece)
    monkeypatch.setattr("gotr1_core.data.rows.LARGEST_ROW", 200)
    file = tmp_path / "a.json"
    file.write_text(text)
    if isinstance(wanted, list) and wanted:
        assert [prompt.text for prompt in read_prompts(file)] == wanted
        return
    what = "has no prompts" if wanted == [] else f"line {wanted}, is not" if isinstance(wanted, int) else wanted
    with pytest.raises(UsageError, match=what):
        read_prompts(file)


def test_an_array_of_prompts_takes_little_more_memory_than_its_prompts(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    with file.open("w", encoding="utf-8") as out:
        out.write('["a"' + ", \n" + " " * 10**6 * 50 + ', "b"]')
    tracemalloc.start()
    with pytest.raises(UsageError, match=r"a.json, line 2, is not"):
        read_prompts(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * 10**7


def test_a_text_that_is_one_thing_is_not_large(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "chain.txt").write_text("a cat " * 200_000)
    error, _ = refused(["generate", "a cat", "--chain", str(tmp_path / "chain.txt")])
    assert error == f"--chain: {tmp_path}/chain.txt is too large: 1.2 MB, and at most 1.0 MB are read"
    with (tmp_path / "endless.jsonl").open("wb") as file:
        file.truncate(2**30 + 1)  # takes no room
    with pytest.raises(UsageError, match=r"endless.jsonl is too large: 1,073.7 MB, and at most 1,073.7 MB are read"):
        read_prompts(tmp_path / "endless.jsonl")


def test_the_prompts_of_a_file_are_those_that_were_written(tmp_path: Path) -> None:
    prompts = [
        Prompt("a ☃", "1", "k", {"x": [1, None, {"y": 0.5}]}),
        Prompt("b", "2"),
        Prompt("c", "3", "", {"z": 1}),
        Prompt("d", "4", "k"),
    ]
    file = PromptFile(prompts)
    assert file == prompts
    assert [*file] == prompts
    assert [file[i] for i in (-1, 1)] == [prompts[-1], prompts[1]]
    assert file[1:][:2] == prompts[1:3]
    assert file[1:] != prompts[:3]
    assert list(file[1:-1].texts()) == ["b", "c"]
    assert file != prompts[:3]
    with pytest.raises(IndexError):
        file[1:][3]


READING = """
import resource, sys
from pathlib import Path
from gotr1_core.components.prompts import FilePrompts, count_repeats
from gotr1_core.data.prompts import read_prompts

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
prompts = read_prompts(Path(sys.argv[1]))
counts = count_repeats(FilePrompts(prompts), [])
print(len(prompts), counts["training_repeated"], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before)
"""


def test_prompts_take_little_more_memory_than_their_file(tmp_path: Path) -> None:
    """60,000 rows of 16 MB. As objects they would take 100 MB."""
    file = tmp_path / "a.jsonl"
    things = {"things": [{"shape": "circle", "color": "red", "texture": "plain"}] * 3, "relations": [["left", 0, 1]]}
    with file.open("w", encoding="utf-8") as out:
        for number in range(60_000):
            out.write(json.dumps({"prompt": f"a cat number {number}", "category": "cats", "metadata": things}) + "\n")
    size = file.stat().st_size / 1e6
    assert size > 14
    command = [sys.executable, "-c", READING, str(file)]
    count, repeated, megabytes = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    assert (count, repeated) == ("60000", "0")
    assert float(megabytes) < size + 25


def test_a_large_file_says_how_far_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("gotr1_core.data.rows.REMINDER", 0.1)
    (tmp_path / "a.txt").write_text("a cat\n" * 100_000)
    assert len(read_prompts(tmp_path / "a.txt")) == 100_000
    assert re.match(rf"reading {tmp_path}/a.txt: [\d,]+ prompts, line [\d,]+, 0 s so far\n", capsys.readouterr().err)


def test_a_prompts_length_bounds_its_tokens(policy: Any) -> None:
    """So a short one needs no tokenizer to know that it fits. What may become a special token is tokenized."""
    text = policy.text
    for prompt in ("a", "a red circle, 7 blue ones", "A" * 50, "tab\tand\nline", "x.y?!"):
        most = text.max_prompt_tokens(prompt)
        assert most is not None
        assert most >= len(text.encode_prompt(prompt))
    assert {text.max_prompt_tokens(prompt) for prompt in ("", " \n", "<|User|>", "a <b", "☃", "\ud800")} == {None}
    encoded: list[str] = []
    window = replace(policy.window, text=Counting(text, encoded))
    window.check(["a cat"] * 5 + ["☃" * 3] * 5 + ["a" * 470], 10)
    assert encoded == ["☃" * 3, "a" * 470]
    with pytest.raises(UsageError, match="too long for the model's context"):
        policy.window.check(["a cat", "a" * 600], 10)
    with pytest.raises(UsageError, match="a prompt is empty"):
        policy.window.check(["a cat", " "], 10)


class Counting:
    """A text encoder that notes what it encodes."""

    def __init__(self, text: Any, encoded: list[str]) -> None:
        self.text, self.encoded = text, encoded

    def __getattr__(self, name: str) -> Any:
        return getattr(self.text, name)

    def encode_prompt(self, prompt: str) -> Any:
        self.encoded.append(prompt)
        return self.text.encode_prompt(prompt)


# -- numbers ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generate", "a cat", "-n", str(10**20)], f"-n {10**20}: these are 100,000,000,000,000,000,000 pictures"),
        (["evaluate", "--count", str(10**13)], "'--count'"),
        (["train", f"prompts.held_out={10**13}"], "prompts.held_out: Input should be less than or equal to 100000"),
        (["train", f"groups={10**13}"], "groups=10000000000000, plans=4, images=1: a step would have 40,000,000,000,000 samples"),
        (["train", f"plans={10**13}"], "a step would have"),
        (["train", f"images={10**13}", "--dry-run"], "a step would have"),
        (["train", f"evaluation.best_of={10**13}", f"evaluation.batch={10**13}"], "evaluation.best_of: Input should be less"),
        (["train", f"steps={10**20}", f"plans={10**20}"], ""),
        (["sft", "policy=janus", "data=scenes", f"batch={10**13}"], "batch: Input should be less than or equal to 100000"),
        (["sft", "policy=janus", "data=scenes", "batch=10000", "sort_window=1000"], "10,000,000 examples would be made together"),
        (["train", "--judge", "internvl", f"judge.internvl.canvas={10**13}"], "canvas"),
    ],
)
def test_numbers_beyond_reason_are_refused_at_once(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    monkeypatch.chdir(tmp_path)
    error, hint = refused(words if words[0] != "train" else [*words, "--preset", "scenes"])
    assert message in error
    assert hint
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_prompts_counts_for_the_number_of_pictures(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "a.txt").write_text("a cat\n" * 1001)
    error, _ = refused(["generate", "--prompts", str(tmp_path / "a.txt"), "-n", "100", "--out", str(tmp_path / "out")])
    assert error == "-n 100: these are 100,100 pictures"
