"""Paths that cannot be used, in every place of every command that takes one: an error of two lines, and exit status 2."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from gotr1_core.cli.main import call

Refused = Callable[[list[str]], str]

JANUS = ["--planner", "janus", "--renderer", "janus"]
READ: dict[str, list[str]] = {
    "train": ["train", "{}", "--preset", "toy"],
    "train --resume": ["train", "--resume", "{}"],
    "train --resume --dry-run": ["train", "--resume", "{}", "--dry-run"],
    "train --prompts": ["train", "--preset", "toy", "--dry-run", "--prompts", "{}"],
    "train prompts.held_out": ["train", "--preset", "toy", "--dry-run", "prompts={{file: train.txt, held_out: {}}}"],
    "train plugins": ["train", "--preset", "toy", "--dry-run", "plugins=[{}]"],
    "train --plugin": ["train", "--preset", "toy", "--dry-run", "--plugin", "{}"],
    "train of a library's model": ["train", "--preset", "toy", "planner.model={}", "name=x"],
    "train of a checked model": ["train", "--preset", "toy", "--dry-run", *JANUS, "planner.model={}"],
    "train of a file of chains": ["train", "--preset", "toy", "--dry-run", "--planner", "file", "planner.chains={}"],
    "sft": ["sft", "{}"],
    "sft data": ["sft", "policy=toy", "data={}", "output=out"],
    "sft policy": ["sft", "policy={{name: toy, model: {}}}", "data=scenes", "output=out"],
    "generate --chain": ["generate", "x", "--preset", "toy", "--chain", "{}"],
    "generate --checkpoint": ["generate", "x", "--checkpoint", "{}"],
    "generate --prompts": ["generate", "--preset", "toy", "--prompts", "{}"],
    "evaluate --checkpoint": ["evaluate", "--benchmark", "toy", "--checkpoint", "{}"],
    "score": ["score", "{}", "--judge", "toy", "--prompt", "x"],
    "score of rows": ["score", "{}/samples.jsonl", "--judge", "toy"],
    "score --chain": ["score", "red.png", "--judge", "toy", "--prompt", "x", "--chain", "{}.txt"],
    "score --pictures": ["score", "rows.jsonl", "--judge", "toy", "--pictures", "{}"],
    "export": ["export", "{}", "out"],
    "config show": ["config", "show", "{}"],
    "config validate": ["config", "validate", "{}"],
    "config validate --stage sft": ["config", "validate", "--stage", "sft", "{}"],
    "doctor": ["doctor", "{}"],
    "runs": ["runs", "{}"],
    "compare": ["compare", "runs/mine", "{}"],
    "import": ["import", "{}", "out"],
    "import --tokenizer": ["import", ".", "out", "--tokenizer", "{}"],
    "check --samples": ["check", "judge", "toy", "--only", "agrees-with-reference", "--reference", "plans", "--samples", "{}"],
    "check of a library's model": ["check", "planner", "toy", "model={}", "--only", "same-log-probs-twice"],
    "list --plugin": ["list", "--plugin", "{}"],
}
"""Command lines that read the path."""
WRITTEN: dict[str, list[str]] = {
    "train output": ["train", "--preset", "toy", "output={}"],
    "train output --dry-run": ["train", "--preset", "toy", "--dry-run", "output={}"],
    "generate --out": ["generate", "x", "--preset", "toy", "--out", "{}"],
    "generate --out --overwrite": ["generate", "x", "--preset", "toy", "--overwrite", "--out", "{}"],
    "evaluate --out": ["evaluate", "--benchmark", "toy", "--preset", "toy", "--out", "{}"],
    "plugins new --out": ["plugins", "new", "mine", "--kind", "judge", "--out", "{}"],
    "sft output": ["sft", "policy=toy", "data=scenes", "output={}"],
    "export": ["export", "runs/mine", "{}", "--merge"],
}
"""Command lines that write a folder there."""
BAD: dict[str, str] = {
    "long": "x" * 300,
    "longer": "/".join(["x" * 200] * 30),
    "loop": "loop",
    "in a loop": "loop/inner",
    "below a file": "train.txt/inner",
    "null": "a\0b",
    "of the system": "/proc/self/nothing",
}
"""Paths that can be neither read nor written."""
UNREADABLE = ("nothing", "pipe", "a\udc80b", "~nobody-has-this-name/x", "folder")
"""Paths that cannot be read, but a folder may be made of some of them."""


@pytest.fixture
def here(trained: Path) -> Path:
    """The working folder, with a run ``runs/mine``, a picture ``red.png`` and what the paths name."""
    folder = trained.parent.parent
    (folder / "loop").symlink_to("loop")
    (folder / "train.txt").write_text("a circle\n")
    (folder / "rows.jsonl").write_text('{"prompt": "x", "image": "red.png"}')
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    Image.new("RGB", (8, 8), "red").save(folder / "red.png")
    return folder


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command that must fail as wrong usage; gives its error. Notes may stand before the error and its hint."""

    def fail(arguments: list[str]) -> str:
        capsys.readouterr()
        assert call(arguments) == 2
        err = capsys.readouterr().err
        *_, error, hint = err.splitlines()
        assert error.startswith("error: "), err
        assert hint.startswith("hint: "), err
        assert not any(words in err for words in ("looks like a bug", "Traceback")), err
        return error

    return fail


def words(line: list[str], path: str) -> list[str]:
    """The words of a line with the path in its place; in a value of YAML a null character is written as ``\\0``."""
    quoted = json.dumps(path) if "\0" in path else path
    return [word.format(quoted if "=" in word else path) for word in line]


LIBRARY = ("train of a library's model", "sft policy", "check of a library's model")
LINES = [*READ.items(), *((f"{name}, written", line) for name, line in WRITTEN.items())]


@pytest.mark.parametrize("line", LINES, ids=lambda line: str(line[0]))
def test_paths_that_cannot_be_used(line: tuple[str, list[str]], here: Path, refused: Refused) -> None:
    for path in BAD.values():
        refused(words(line[1], path))


@pytest.mark.parametrize("line", READ.items(), ids=lambda line: str(line[0]))
def test_paths_that_cannot_be_read(line: tuple[str, list[str]], here: Path, refused: Refused) -> None:
    assert isinstance(sys.stderr, io.TextIOWrapper)
    sys.stderr.reconfigure(errors="backslashreplace")  # as the console script does
    for path in UNREADABLE:
        if (path == "pipe" and line[0] in LIBRARY) or (path == "folder" and line[0] == "runs"):
            continue  # a library opens the pipe, and waits for ever; a folder may have no runs
        refused(words(line[1], path))


@pytest.mark.parametrize("line", WRITTEN.items(), ids=lambda line: str(line[0]))
def test_files_where_a_folder_is_written(line: tuple[str, list[str]], here: Path, refused: Refused) -> None:
    refused(words(line[1], "train.txt"))


def test_pictures_that_rows_name(here: Path, refused: Refused) -> None:
    for path in [*BAD.values(), "nothing", "folder", "pipe"]:
        (here / "samples.jsonl").write_text(json.dumps({"prompt": "x", "image": path}))
        refused(["score", "samples.jsonl", "--judge", "toy"])
        (here / "examples.jsonl").write_text(json.dumps({"prompt": "x", "chain": "x", "image": path}))
        refused(["sft", "policy=toy", "data=examples.jsonl", "output=out"])


# -- a run whose parts are something else -----------------------------------------------------------------------------------

USES: dict[str, list[str]] = {
    "resume": ["train", "--resume", "runs/mine", "steps=9", "--cpu"],
    "generate": ["generate", "x", "--checkpoint", "runs/mine"],
    "evaluate": ["evaluate", "--benchmark", "toy", "--checkpoint", "runs/mine"],
    "export": ["export", "runs/mine", "out", "--merge"],
    "doctor": ["doctor", "runs/mine"],
    "runs": ["runs"],
    "compare": ["compare", "runs/mine", "runs/kept"],
}
PARTS = ("config.yaml", "environment.json", "inputs.json", "metrics.jsonl", "held-out.json", "checkpoints", "samples", ".lock")
PARTS += ("report.html", "outcome.json")


def replace_by(kind: str, path: Path) -> None:
    """Puts a folder, a file, a pipe, a loop of links or a link to nothing in the place of a part of a run."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if kind == "folder":
        (path / "inner").mkdir(parents=True)
    elif kind == "file":
        path.write_text("\x00 \ufffe not what a run writes {")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(path.name if kind == "loop" else "nothing/at/all")


@pytest.mark.parametrize("kind", ["folder", "file", "pipe", "loop", "dangling link"])
@pytest.mark.parametrize("use", USES)
def test_a_run_with_a_part_that_is_something_else(use: str, kind: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command needs no such part, or says in two lines what is wrong."""
    shutil.move("runs/mine", "runs/kept")
    for part in PARTS:
        shutil.rmtree("runs/mine", ignore_errors=True)
        shutil.rmtree("out", ignore_errors=True)
        shutil.copytree("runs/kept", "runs/mine")
        replace_by(kind, here / "runs" / "mine" / part)
        capsys.readouterr()
        status = call(USES[use])
        out, err = capsys.readouterr()
        assert "looks like a bug" not in err, (part, err)
        if status:
            is_error = [line.partition(": ")[0] for line in err.splitlines()][-2:] == ["error", "hint"]
            assert (status == 2 and is_error) or (status == 1 and use == "doctor" and out), (part, status, err)


# -- places that are read-only ----------------------------------------------------------------------------------------------


@pytest.fixture
def read_only(here: Path) -> Iterator[Path]:
    """A file system that nobody may write to. It has the run ``mine``."""
    folder = here / "read-only"
    folder.mkdir()
    if (
        not shutil.which("mount")
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True).returncode
    ):
        pytest.skip("only root may mount a file system")
    try:
        shutil.copytree(here / "runs" / "mine", folder / "mine")
        (folder / "empty").mkdir()
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_places_that_are_read_only(read_only: Path, refused: Refused) -> None:
    for path in ("read-only/new", "read-only/empty", "read-only"):
        for name, line in WRITTEN.items():
            if (name, path) != ("export", "read-only"):
                assert "read-only" in refused(words(line, path)).lower()
    for line in (
        ["train", "--resume", "read-only/mine", "steps=9"],
        ["train", "--resume", "read-only/mine", "steps=9", "--accept-changes"],
    ):
        assert "read-only" in refused(line).lower()


def test_a_run_in_a_place_that_is_read_only_can_be_used(read_only: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (read_only.parent / "out").mkdir()
    for line in (["generate", "x", "--checkpoint", "read-only/mine"], ["evaluate", "--benchmark", "toy", "--checkpoint", "read-only/mine"]):
        assert call(line) == 0, capsys.readouterr().err
