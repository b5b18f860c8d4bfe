"""Prompts from the user's own text and JSONL files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gotr1_core.components.prompts import FilePrompts, count_repeats, note_repeats, prompts_of
from gotr1_core.config.models import PromptsConfig, RunConfig, validate
from gotr1_core.data.prompts import read_prompts
from gotr1_core.errors import UsageError
from gotr1_core.plugins import Registry
from gotr1_core.samples import Prompt


def test_prompts_of_a_text_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_bytes("\ufeff a red circle \r\n\r\n\tein grüner Kreis\u2028hier\n".encode())
    assert read_prompts(file) == [Prompt("a red circle", "mine-0"), Prompt("ein grüner Kreis\u2028hier", "mine-1")]


def test_prompts_of_a_jsonl_file(tmp_path: Path) -> None:
    rows = [{"prompt": "one\u2028line"}, {"prompt": "two", "id": 7, "category": "color", "metadata": {"objects": [1]}, "more": 1}]
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(["", *(json.dumps(row, ensure_ascii=False) for row in rows)]), encoding="utf-8")
    assert read_prompts(file) == [Prompt("one\u2028line", "mine-0"), Prompt("two", "7", "color", {"objects": [1]})]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "has no prompts"),
        ("a.txt", b" \n\t\n", "has no prompts"),
        ("a.jsonl", b"\n", "has no prompts"),
        ("a.txt", b"caf\xe9\n", "is not UTF-8 text"),
        ("a.jsonl", b'{"prompt": "caf\xe9"}\n', "is not UTF-8 text"),
        ("a.jsonl", b'\n{"prompt": "fine"}\n\na red circle\n', "line 4, is not"),  # counted as an editor does
        ("a.jsonl", b'{"text": "a"}', "line 1, is not"),
        ("a.jsonl", b'[["a"]]', "line 1, is not"),
        ("a.jsonl", b"3", "line 1, is not"),
        ("a.jsonl", b'{"prompt": 3}', "line 1: the prompt is not a text"),
        ("a.jsonl", b'{"prompt": " "}', "line 1: the prompt is not a text"),
        ("a.jsonl", b'{"prompt": "a", "metadata": 3}', "line 1: category must be a text and metadata an object"),
        ("a.jsonl", b'{"prompt": "a", "category": null}', "line 1: category must be a text and metadata an object"),
    ],
)
def test_invalid_prompt_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        read_prompts(file)
    assert str(file) in caught.value.message


def test_prompts_of_a_file_start_again_after_the_last_one(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("a\nb\nc\n")
    assert [p.text for p in FilePrompts(read_prompts(file)).prompts("train", 5, seed=0, start=2)] == ["c", "a", "b", "c", "a"]


def test_without_a_source_the_last_prompts_of_a_file_are_held_out(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("one\ntwo\nthree\nfour\n", encoding="utf-8")
    chosen = PromptsConfig(file=file, held_out=1)
    trained = prompts_of(Registry(), chosen)[0].prompts("train", 4, 0)
    assert [p.text for p in trained] == ["one", "two", "three", "one"]
    assert [p.text for p in prompts_of(Registry(), chosen)[1]] == ["four"]


def test_repeated_prompts_are_counted_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """café and café are one prompt: composed and decomposed forms of the same letters."""
    file, held_out = tmp_path / "mine.txt", tmp_path / "held.txt"
    file.write_text("a\nb\na\ncaf\u00e9\ncafe\u0301\n", encoding="utf-8")
    held_out.write_text("b\nc\nb\nd\n", encoding="utf-8")
    config = PromptsConfig(file=file, held_out=held_out)
    source, measured = prompts_of(Registry(), config)
    counts = count_repeats(source, measured)
    assert counts == {"training": 5, "training_repeated": 2, "held_out": 4, "held_out_repeated": 1, "held_out_in_training": 1}
    assert [prompt.text for prompt in source.prompts("train", 5, 0)] == ["a", "b", "a", "caf\u00e9", "cafe\u0301"]
    note_repeats(counts)
    assert capsys.readouterr().err == (
        "note: 2 of 5 training prompts repeat an earlier one; 1 of 4 held-out prompts repeat an earlier one; "
        "1 held-out prompts are training prompts too. All are used.\n"
    )


def test_repeated_prompts_of_a_source_are_said_too(capsys: pytest.CaptureFixture[str]) -> None:
    config = validate(RunConfig, {"planner": "x", "renderer": "x", "judge": "x", "prompts": {"source": "scenes"}}).prompts
    counts = count_repeats(*prompts_of(Registry(), config))
    assert (counts["training"], counts["held_out"]) == (0, 300)
    assert counts["held_out_repeated"] > 0
    note_repeats(counts)
    repeated = counts["held_out_repeated"]
    assert capsys.readouterr().err == f"note: {repeated} of 300 held-out prompts repeat an earlier one. All are used.\n"
    note_repeats({**counts, "held_out_repeated": 0})
    assert capsys.readouterr().err == ""
