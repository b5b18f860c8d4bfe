"""Readers of the user's data: prompts, examples, chains and pictures. What is understood is read, what is not is refused with its line."""

from __future__ import annotations

import io
import json
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from gotr1_core.chain import parse
from gotr1_core.cli.main import call
from gotr1_core.config.models import SftConfig, validate
from gotr1_core.data.chains import read_chain, read_chains
from gotr1_core.data.examples import read_examples
from gotr1_core.data.pictures import check_picture, read_picture
from gotr1_core.data.prompts import read_prompts
from gotr1_core.errors import UsageError
from gotr1_core.pictures.sample_files import find_pictures, write_samples
from gotr1_core.samples import Prompt, Sample

if TYPE_CHECKING:
    from gotr1_core.config.models import RunConfig

CASES = Path(__file__).resolve().parents[2] / "shared" / "cases"
THREE = ["a red circle above a blue square", "three circles", "a green cross"]
REGION = "<|obj_start|>red circle<|obj_end|><|box_start|>{}<|box_end|>"
BOX = REGION.format("(100,100),(400,400)")
SEPARATORS = "one\u2028two\u2029three\u0085four\x0bfive\x0csix\x1cseven"
"""A text with characters at which `str.splitlines` splits, and JSON does not."""


def case(name: str) -> Path:
    """A file that a user had."""
    if not CASES.is_dir():
        pytest.skip(f"{CASES} is not there")
    return CASES / name


def write(path: Path, content: str) -> Path:
    path.write_bytes(content.encode())
    return path


# -- prompts ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["prompts.json", "prompts.ndjson", "prompts.csv"])
@pytest.mark.parametrize("suffix", [None, ".txt", ".JSONL", ""])
def test_the_content_says_what_a_file_is(tmp_path: Path, name: str, suffix: str | None) -> None:
    file = tmp_path / (name if suffix is None else f"prompts{suffix}")
    shutil.copy(case(name), file)
    if suffix == ".JSONL" and name == "prompts.csv":  # a suffix of JSON promises JSON
        with pytest.raises(UsageError, match="line 1, is not"):
            read_prompts(file)
        return
    assert [prompt.text for prompt in read_prompts(file)] == THREE
    if name == "prompts.csv":
        assert [prompt.id for prompt in read_prompts(file)] == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("name", "content", "prompts"),
    [
        ("a.json", '["a cat", {"prompt": "a dog", "id": 3}]', [Prompt("a cat", "a-0"), Prompt("a dog", "3")]),
        ("a.jsonl", '"a cat"\n{"prompt": "a dog", "id": null}', [Prompt("a cat", "a-0"), Prompt("a dog", "a-1")]),
        ("a.json", '{\n "prompt": "a cat"\n}\n', [Prompt("a cat", "a-0")]),
        ("a.txt", "\ufeff\n [ ]", []),
        (
            "a.txt",
            "[oil painting] a cat\n{red|blue} dog\n- a bird",
            [Prompt(t, f"a-{i}") for i, t in enumerate(("[oil painting] a cat", "{red|blue} dog", "- a bird"))],
        ),
        (
            "a.csv",
            'Prompt;category\r\n"a cat; a ""dog""";k\r\n\r\n two\u2028lines ;\r\n',
            [Prompt('a cat; a "dog"', "a-0", "k"), Prompt("two\u2028lines", "a-1")],
        ),
        ("a.tsv", 'prompt\tmetadata\n"a, b"\t{"n": [1]}', [Prompt("a, b", "a-0", "", {"n": [1]})]),
        ("a.tsv", "prompt\na, b", [Prompt("a, b", "a-0")]),
        ("a.csv", 'prompt,id\n"two\nlines",x', [Prompt("two\nlines", "x")]),
    ],
)
def test_what_is_understood_is_read(tmp_path: Path, name: str, content: str, prompts: list[Prompt]) -> None:
    file = write(tmp_path / name, content)
    if prompts:
        assert read_prompts(file) == prompts
    else:
        with pytest.raises(UsageError, match="has no prompts"):
            read_prompts(file)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "a cat\n\n{\n", "line 3, looks like JSON, but line 1 does not"),
        ("a.txt", 'a cat\n{"prompt": "a dog"}', "line 2, looks like JSON, but line 1 does not"),
        ("a.txt", '{"prompt": "a dog"}\na cat', 'line 2, is not {"prompt": …}'),
        ("a.txt", '[\n {"prompt": "a"},\n {"prompt": "b"\n]', "line 4, is not"),
        ("a.json", '[\n {"prompt": "a"},\n\n {"prompt": 3},\n {"prompt": "b"}\n]', "line 4: the prompt is not a text"),
        ("a.json", '[\n "a",\n 3]', "line 3, is not"),
        ("a.json", "a cat", "line 1, is not"),
        ("a.json", '{"prompts": ["a", "b"]}', "line 1, is not"),
        ("a.json", "[" * 100_000, "line 1, is not"),
        ("a.txt", "- prompt: a cat\n- prompt: a dog", "line 1, is not"),
        ("a.YML", "\nprompts:\n- a cat", "line 2: YAML cannot be read here"),
        ("a.txt", "['a cat', 'a dog']", "line 1, is not"),
        ("a.txt", "{'prompt': 'a cat'}", "line 1, is not"),
        ("a.jsonl", '{"prompt": "\\ud83d"}', "line 1, is not"),  # half of a character cannot be written again
        ("a.jsonl", '{"prompt": "a", "id": [1]}', "line 1: category must be a text and metadata an object, and id a text or a number"),
        ("a.csv", "a cat\na dog", "line 1: no column is called prompt"),
        ("a.csv", "id,prompt\n1,a cat, a dog", "line 2: 3 cells, but the header has 2"),
        ("a.txt", "prompt\na cat, a dog", "line 2: 2 cells, but the header has 1"),
        ("a.csv", "prompt,prompt\na,b", "line 1: one column must be called prompt"),
        ("a.csv", 'prompt,id\n"a\nb",1\n"c,2', "line 4: unexpected end of data"),
        ("a.csv", "prompt,metadata\na,b", "line 2: category must be a text and metadata an object"),
        ("a.csv", "id,prompt\n1,", "line 2, is not"),
        ("a.csv", "id,prompt\n", "has no prompts"),
    ],
)
def test_what_is_not_understood_is_refused_with_its_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    file = write(tmp_path / name, content)
    with pytest.raises(UsageError) as caught:
        read_prompts(file)
    assert caught.value.message.startswith(str(file))
    assert message in caught.value.message
    assert caught.value.hint


# -- JSON Lines -------------------------------------------------------------------------------------------------------------


def test_only_newlines_end_a_line_of_json(tmp_path: Path) -> None:
    """Also where a run's metrics, the rows of samples and the supervised examples are read. BOM and blank lines are allowed."""
    from gotr1_core.runs.records import METRICS, Records

    assert read_prompts(case("prompts_ls.txt"))[0].text == "a red\u2028circle"
    row = {"prompt": SEPARATORS, "chain": f"{SEPARATORS} {BOX}", "image": None}
    file = write(tmp_path / "rows.jsonl", f"\ufeff{json.dumps(row, ensure_ascii=False)}\n\n  \r\n{json.dumps(row)}\n")
    assert [example.prompt.text for example in read_examples(file)] == [SEPARATORS] * 2
    assert [chain.raw for chain in read_chains(file, key="chains")[SEPARATORS]] == [row["chain"]] * 2
    assert [picture.prompt.text for picture in find_pictures([file])] == [SEPARATORS] * 2
    line = json.dumps({"step": 0, "evaluation": SEPARATORS}, ensure_ascii=False)
    write(tmp_path / METRICS, f"\ufeff{line}\n\n{line}\n{line[:9]}")  # the last one was cut when a process was killed
    assert [found["evaluation"] for found in Records(tmp_path, main=False).rows] == [SEPARATORS] * 2


def test_a_run_with_any_separator_in_its_prompts_ends_and_resumes(make: Callable[..., RunConfig], tmp_path: Path) -> None:
    from gotr1_core.runs.start import resume, train

    file = write(tmp_path / "odd.txt", "".join(f"{n}{SEPARATORS}\n" for n in "abcdefgh"))
    short = {"groups": 2, "plans": 2, "evaluation": {"every": 0, "prompts": 2}, "checkpoint": {"every": 1}, "save_samples": 1}
    run = train(make(prompts={"file": str(file), "held_out": 2}, steps=1, output=str(tmp_path), name="odd", **short), cpu=True)
    assert f"a{SEPARATORS}" in (tmp_path / "odd/report.html").read_text(encoding="utf-8")
    assert [picture.prompt.text[1:] for picture in find_pictures([run.folder / "samples/step-000001"])] == [SEPARATORS] * 4
    shutil.rmtree(run.folder / "samples")
    assert resume(run.folder, ["steps=2"], cpu=True).records.rows[-2]["step"] == 2


def test_generate_removes_older_pictures_whatever_their_prompt(toy: Path) -> None:
    words = ["generate", SEPARATORS, "--preset", "toy", "--out", "out"]
    assert call([*words, "-n", "3"]) == 0
    rows = toy / "out" / "samples.jsonl"
    write(rows, f"\ufeff\n{rows.read_text(encoding='utf-8')}")
    assert call([*words, "--overwrite"]) == 0
    assert sorted(path.name for path in (toy / "out").iterdir()) == ["000-plan.png", "000.png", "samples.jsonl"]


# -- examples and chains ----------------------------------------------------------------------------------------------------


def test_examples_are_read_in_every_form(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), "red").save(tmp_path / "000.png")
    for name in ("sft_blank.jsonl", "sft_bom.jsonl"):
        shutil.copy(case(name), tmp_path)
    assert [example.prompt.id for example in read_examples(tmp_path / "sft_blank.jsonl")] == ["sft_blank-1", "sft_blank-3"]
    (one,) = read_examples(tmp_path / "sft_bom.jsonl")
    assert one.image is not None
    assert one.chain.regions[0].box == (100, 100, 400, 400)
    rows = [{"prompt": "a red circle", "chain": BOX, "image": "000.png", "id": 7}]
    (array,) = read_examples(write(tmp_path / "a.json", json.dumps(rows)))
    (table,) = read_examples(write(tmp_path / "a.csv", f'prompt,chain,image,id\na red circle,"{BOX}",000.png,7\n'))
    assert array.prompt == table.prompt == Prompt("a red circle", "7")
    assert array.chain == table.chain == parse(BOX)
    with pytest.raises(UsageError, match="line 1: the prompt is not a text"):
        read_examples(case("sft_num.jsonl"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a"}, "line 2: there is no chain"),
        ({"prompt": "a", "chain": 3}, "line 2: the chain is not a text"),
        ({"prompt": "a", "chain": "b", "image": 3}, "line 2: image is not the name of a file"),
        ({"prompt": "a", "chain": "b", "image": "rows.jsonl"}, "rows.jsonl is not a PNG, JPEG or WebP picture"),
        ({"prompt": "a", "chain": REGION.format("(0,0),(1000,5)")}, "line 2: coordinate out of range 0-999"),
        ({"prompt": "a", "chain": REGION.format("(9,9),(3,3)")}, "line 2: reversed or empty box"),
        ({"prompt": "a", "chain": REGION.format("(1 2,9),(30,30)")}, "line 2: box not written as"),
        ({"prompt": "a", "chain": "<|box_start|>(1,1),(2,2)<|box_end|>"}, "line 2: box without a phrase"),
    ],
)
def test_examples_and_chains_that_are_wrong_name_their_line(tmp_path: Path, row: dict[str, object], message: str) -> None:
    file = write(tmp_path / "rows.jsonl", f'{{"prompt": "a", "chain": "b"}}\n{json.dumps(row)}\n')
    with pytest.raises(UsageError) as caught:
        read_examples(file)
    assert f"{file}, line 2: " in caught.value.message
    assert message in caught.value.message
    if "image" not in row:
        with pytest.raises(UsageError) as caught:
            read_chains(file, key="planner.chains")
        assert caught.value.message.startswith(f"planner.chains: {file}, line 2: ")


def test_a_space_inside_a_pair_is_no_mistake(tmp_path: Path) -> None:
    spaced = (case("chain_spaces.txt")).read_text().strip()
    assert parse(spaced).problems  # what a policy samples is read as it is
    chain = read_chain(case("chain_spaces.txt"), key="--chain", hint="")
    assert [region.box for region in chain.regions] == [(333, 83, 666, 416), (333, 583, 666, 916)]
    assert chain == parse(chain.raw)
    file = write(tmp_path / "rows.jsonl", json.dumps({"prompt": "a", "chain": spaced}))
    assert [example.chain for example in read_examples(file)] == [chain]
    assert read_chains(file, key="chains") == {"a": (chain,)}
    assert [picture.chain for picture in find_pictures([file])] == [chain]
    assert read_chain(file, key="--chain", hint="") == chain
    wide = write(tmp_path / "a", REGION.format("\t( 1 ,\n2 ) , (3,4) "))
    assert read_chain(wide, key="--chain", hint="").raw == REGION.format("(1,2),(3,4)")


def test_a_malformed_chain_that_gotr1_sampled_stays_what_it_was(tmp_path: Path) -> None:
    malformed = parse(REGION.format("(1, 2),(3,4)"))
    write_samples(tmp_path, [Sample(Prompt("a"), malformed, None)])
    file = tmp_path / "samples.jsonl"
    assert read_chains(file, key="chains") == {"a": (malformed,)}
    assert [example.chain for example in read_examples(file)] == [malformed]
    assert [picture.chain for picture in find_pictures([file])] == [malformed]


@pytest.mark.parametrize("name", ["a.jsonl", "a.JSONL", "a.ndjson", "a.csv", "folder/a"])
def test_sft_takes_a_file_of_any_name_for_a_file(name: str) -> None:
    assert validate(SftConfig, {"policy": "janus", "data": name}).data == Path(name).absolute()


# -- samples ----------------------------------------------------------------------------------------------------------------


def test_samples_keep_all_that_a_prompt_carried(tmp_path: Path) -> None:
    prompts = [*read_prompts(case("meta.jsonl")), Prompt("x"), Prompt(SEPARATORS, "7", "k", {"requirements": ["There is a ☃."]})]
    write_samples(tmp_path, [Sample(prompt, parse("x"), None) for prompt in prompts])
    assert [picture.prompt for picture in find_pictures([tmp_path])] == prompts
    assert read_prompts(tmp_path / "samples.jsonl") == prompts
    with pytest.raises(UsageError, match="the metadata of a prompt are not JSON: set"):
        write_samples(tmp_path, [Sample(Prompt("a", metadata={"a": {1}}), parse("x"), None)])


def test_score_knows_the_wish_of_a_samples_prompt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its text is German, which the embedded world's judge does not read: only the metadata say what it asks for."""
    samples = [Sample(prompt, parse(BOX), Image.new("RGB", (48, 48), "white")) for prompt in read_prompts(case("meta.jsonl"))]
    write_samples(tmp_path, samples)
    assert call(["score", str(tmp_path), "--judge", "scenes", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["scores"]["pi"] for row in rows] == [0, 0]


# -- pictures ---------------------------------------------------------------------------------------------------------------


def test_transparent_pictures_are_put_on_white(tmp_path: Path) -> None:
    picture = Image.open(case("transparent.png"))
    white = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    assert np.abs(np.int16(read_picture(case("transparent.png"))) - np.int16(white)).max() <= 1
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "p.png", transparency=0)
    Image.new("RGB", (2, 1), (1, 2, 3)).save(tmp_path / "rgb.png", transparency=(1, 2, 3))
    Image.new("LA", (2, 1), (9, 0)).save(tmp_path / "la.png")
    Image.new("RGBA", (2, 1), (9, 9, 9, 0)).save(tmp_path / "x.webp", lossless=True, exact=True)
    assert [read_picture(tmp_path / "p.png").getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (255, 0, 0)]
    for name in ("rgb.png", "la.png", "x.webp"):
        assert read_picture(tmp_path / name).getpixel((0, 0)) == (255, 255, 255), name


def test_pictures_of_every_depth_and_mode_are_rgb(tmp_path: Path) -> None:
    wide = np.asarray(Image.open(case("gray16.png")))
    assert np.array_equal(np.asarray(read_picture(case("gray16.png")))[..., 0], wide // 257)
    for mode, colour, suffix in (("L", 7, "png"), ("1", 1, "png"), ("P", 0, "png"), ("CMYK", (0, 0, 0, 255), "jpg"), ("L", 128, "jpg")):
        Image.new(mode, (8, 8), colour).save(tmp_path / f"x.{suffix}")
        with Image.open(tmp_path / f"x.{suffix}") as image:
            assert read_picture(tmp_path / f"x.{suffix}").tobytes() == image.convert("RGB").tobytes(), mode


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_score_and_sft_turn_pictures_upright_alike(tmp_path: Path, orientation: int, suffix: str) -> None:
    from PIL import ImageOps

    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (4, 6, 3), dtype=np.uint8)).resize((48, 32))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / f"x.{suffix}", exif=exif)
    file = write(tmp_path / "rows.jsonl", json.dumps({"prompt": "a", "chain": "b", "image": f"x.{suffix}"}))
    (example,) = read_examples(file)
    (picture,) = find_pictures([file])
    assert picture.path is not None
    assert example.image is not None
    upright = ImageOps.exif_transpose(Image.open(tmp_path / f"x.{suffix}")).convert("RGB")
    assert read_picture(picture.path).tobytes() == example.image.tobytes() == upright.tobytes()
    again = io.BytesIO()
    example.image.save(again, suffix if suffix != "jpg" else "jpeg")
    assert Image.open(again).getexif().get(0x0112, 1) == 1  # nobody turns it twice


def colours(image: Image.Image) -> list[int]:
    """The pixels in an order that turning does not change."""
    pixels = np.asarray(image, np.int64).reshape(-1, 3)
    return sorted((pixels * (65536, 256, 1)).sum(1).tolist())


def metadata(content: bytes, kind: str) -> range:
    """The bytes of a file's EXIF data, without the lengths and checksums around them."""
    start = content.index(b"eXIf") + 4 if kind == "png" else content.index(b"Exif\0\0")
    length = int.from_bytes(content[start - 8 : start - 4]) if kind == "png" else int.from_bytes(content[start - 2 : start]) - 2
    return range(start, start + length)


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_broken_metadata_is_no_reason_to_refuse_a_picture(tmp_path: Path, kind: str) -> None:
    image = Image.open(case("exif6.jpg"))
    exif = image.getexif()
    exif.update({0x010F: "maker", 0x011A: 72.0, 0x0213: 1, 0x9003: "2024:01:01 00:00:00"})
    exif.get_ifd(0x8769)[0x9000] = b"0231"
    image.save(tmp_path / f"good.{kind}", exif=exif, **({"quality": 95} if kind == "jpg" else {}))
    good = (tmp_path / f"good.{kind}").read_bytes()
    pixels = colours(Image.open(tmp_path / f"good.{kind}").convert("RGB"))
    bytes_of_metadata, mutate = metadata(good, kind), random.Random(16)
    file = tmp_path / f"x.{kind}"
    for _ in range(300):
        mutated = bytearray(good)
        for at in mutate.choices(bytes_of_metadata, k=mutate.randint(1, 6)):
            mutated[at] = mutate.choice((0, 255, mutate.randrange(256)))
        file.write_bytes(mutated)
        check_picture(file)
        assert colours(read_picture(file)) == pixels, mutated  # turned or not, the pixels are there
    file.write_bytes(good[: len(good) // 2])
    with pytest.raises(UsageError, match="is damaged"):
        read_picture(file)


def test_a_file_of_other_bytes_is_an_error_of_two_lines_or_a_picture(tmp_path: Path) -> None:
    mutate, file = random.Random(17), tmp_path / "x"
    for name in ("exif6.jpg", "gray16.png", "transparent.png"):
        good = (case(name)).read_bytes()
        for _ in range(100):
            mutated = bytearray(good)
            for at in mutate.choices(range(len(good)), k=mutate.randint(1, 6)):
                mutated[at] = mutate.randrange(256)
            file.write_bytes(mutated)
            with suppress(UsageError):
                assert read_picture(file).mode == "RGB"


def test_a_folder_of_pictures_is_read_without_the_files_that_macos_adds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.png", "house-plan.png", "a-plan.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    for name in ("._a.png", "._house-plan.png", "b.tiff", "._b.tiff", "notes.txt"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7 AppleDouble")
    assert [picture.path for picture in find_pictures([tmp_path], "x")] == [tmp_path / n for n in ("a-plan.png", "a.png", "house-plan.png")]
    assert capsys.readouterr().err.splitlines() == [
        f"note: {tmp_path}: files ._* of macOS are passed over (3): they are no pictures",
        f"note: {tmp_path}: pictures in other formats are passed over (1), such as b.tiff",
    ]
    write_samples(tmp_path / "drawn", [Sample(Prompt("a"), parse(BOX), Image.new("RGB", (4, 4)))])
    assert [picture.path for picture in find_pictures([tmp_path / "drawn"])] == [tmp_path / "drawn" / "000.png"]  # the overlay is gotr1's
