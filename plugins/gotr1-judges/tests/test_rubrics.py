"""Rubrics: the package's own, a folder's, a single file's; and files that are refused."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

import pytest

from gotr1_core.errors import UsageError
from gotr1_judges.rubrics import REQUIREMENTS, REWARDS, Rubric, read_rubrics, rubric_versions

OWN = Path(str(files("gotr1_judges").joinpath("rubrics")))


def read(folder: str | Path = "v1", scoring: str = "text", family: str = "qwen-vl", **single: str) -> dict[str, Rubric]:
    return read_rubrics(str(folder), single, scoring=scoring, family=family, key="judge")


def refusal(folder: str | Path = "v1", **single: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        read(folder, **single)
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("version", rubric_versions())
@pytest.mark.parametrize("family", ["qwen-vl", "internvl"])
def test_own_rubrics(version: str, family: str) -> None:
    text, expected = read(version, family=family), read(version, "expected", family)
    assert text.keys() == {*REWARDS, REQUIREMENTS}
    assert {text[name].kind for name in ("sem", "spa", "pi")} == {"score"}
    assert {expected[name].kind for name in ("sem", "spa", "pi")} == {"digit"}
    assert text["ri"] == expected["ri"]
    assert ("<box>" in "".join(text["ri"].words)) == (family == "internvl")  # asked as the model was taught to answer
    assert set(text["sem"].fields) == {"prompt", "plan"}


@pytest.mark.parametrize("file", sorted(OWN.rglob("*.txt")), ids=lambda file: file.stem)
def test_every_file_is_a_rubric(file: Path) -> None:
    """Also the files that no scoring uses directly. Each says one thing, in ASCII letters, and no line occurs twice."""
    text = file.read_text(encoding="utf-8")
    assert Rubric.parse(text, str(file)).fields
    lines = [line for line in text.splitlines() if line]
    assert len(lines) == len(set(lines))
    assert text.isascii()


def test_a_rubric_is_filled_in() -> None:
    rubric = Rubric.parse('answer: score\n\nIs {plan} what {prompt} says? {"score": 0}\n', "here")
    assert rubric.fields == ("plan", "prompt")
    # Somebody's words stand at odd places, whatever they say, and are not filled in again.
    assert rubric.fill(plan="{prompt}", prompt="b", phrase="c") == ("Is ", "{prompt}", " what ", "b", ' says? {"score": 0}')


def test_a_folder_wins_over_the_built_in_versions(tmp_path: Path) -> None:
    (tmp_path / "pi.txt").write_text("answer: score\n\nMine: {prompt}", encoding="utf-8")
    found = read(tmp_path)
    assert found["pi"].words == ("Mine: ", "")
    assert found["sem"] == read()["sem"]
    assert read(tmp_path, "expected")["pi"].words == ("Mine: ", "")  # one that it has stands before another scoring's
    assert read(tmp_path, "expected")["sem"] == read("v1", "expected")["sem"]


def test_a_single_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_bytes(b"\xef\xbb\xbfanswer: yes\r\n\r\nIs it {prompt}?\r\n")
    assert read(pi=str(file))["pi"] == Rubric("yes", ("Is it ", "?"), ("prompt",))
    assert read(pi="pi-yes")["pi"] == read(pi="pi-yes.txt")["pi"]
    assert read(pi="pi-yes")["pi"].kind == "yes"
    assert read(pi="pi-requirements")["pi"].fields == ("requirement",)
    (tmp_path / "pi-yes.txt").write_text("answer: yes\n\nOurs: {prompt}")
    assert read(tmp_path, pi="pi-yes")["pi"].words == ("Ours: ", "")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("pi", "Is it {prompt}?", "does not begin with the kind of its answer"),
        ("pi", "answer: maybe\n\nIs it {prompt}?", "does not begin with the kind of its answer"),
        ("pi", "answer: yes\nIs it {prompt}?", "does not begin with the kind of its answer"),
        ("pi", "answer: yes\n\nIs it {promt}?", "has the unknown field {promt}"),
        ("pi", "answer: yes\n\nIs it good?", "asks the same question about every sample"),
        ("pi", "answer: yes\n\nIs {phrase} in {prompt}?", "has fields that do not suit pi"),
        ("ri", "answer: boxes\n\nWhere is {phrase} of {prompt}?", "has fields that do not suit ri"),
        ("pi", "answer: boxes\n\nWhere is {prompt}?", "asks for an answer of kind boxes"),
        ("sem", "answer: yes\n\nIs it {requirement}?", "asks the same question about every sample"),
        ("ri", "answer: boxes\n\nWhere is {prompt}?", "asks the same question about every sample"),
        ("ri", "answer: score\n\nWhere is {phrase}?", "asks for an answer of kind score"),
        ("requirements", "answer: yes\n\nWhat is {prompt}?", "asks for an answer of kind yes"),
    ],
)
def test_what_is_no_rubric(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    error = refusal(tmp_path)
    assert said in error.message
    assert f"{name}.txt" in error.message


def test_what_is_not_there(tmp_path: Path) -> None:
    assert "judge.rubrics: there is no folder v0" in refusal("v0").message
    assert "v1" in str(refusal("v0").hint)
    assert "has no rubrics" in refusal(tmp_path).message
    assert refusal(pi="nowhere").message.startswith("judge.rubric.pi: cannot read nowhere: No such file")
    (tmp_path / "pi.txt").write_bytes(b"answer: yes\n\n\xff{prompt}")
    assert "is not UTF-8" in refusal(tmp_path).message
    assert "cannot read" in refusal(pi=str(tmp_path)).message


def test_the_hint_names_the_field(tmp_path: Path) -> None:
    (tmp_path / "pi.txt").write_text("answer: yes\n\n{promt}")
    assert re.match("did you mean 'prompt'", str(refusal(tmp_path).hint))
