"""A pipe that nobody writes to, and a device that never ends, are refused at once by everything that reads files."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest

from gotr1_core.cli.main import call
from gotr1_core.components.fingerprints import file_digest
from gotr1_core.data.chains import read_chain, read_chains
from gotr1_core.data.examples import read_examples
from gotr1_core.data.pictures import check_picture, read_picture
from gotr1_core.data.prompts import read_prompts
from gotr1_core.engine.files import read_json, read_lines, read_text
from gotr1_core.errors import UsageError
from gotr1_core.policies.hub import find_weights
from gotr1_core.runs.records import run_config
from gotr1_judges.rubrics import read_rubrics
from gotr1_qwen.instruction import read_instruction

Refused = Callable[..., tuple[str, str]]
WHAT = "it is a pipe, a socket or a device, not a file"
SECONDS = 60  # a command that waits for a pipe waits for ever


@pytest.fixture(autouse=True)
def alarm() -> Iterator[None]:
    """Ends a test that waits."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise TimeoutError("it waits for the pipe")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


READERS: dict[str, Callable[[Path], object]] = {
    "text": lambda path: read_text(path, hint=""),
    "lines": lambda path: read_lines(path, hint=""),
    "JSON": read_json,
    "prompts": read_prompts,
    "examples": read_examples,
    "chain": lambda path: read_chain(path, key="--chain", hint=""),
    "chains": lambda path: read_chains(path, key="chains"),
    "picture": read_picture,
    "picture's head": check_picture,
    "rubric": lambda path: read_rubrics("v1", {"pi": str(path)}, scoring="text", family="internvl", key="judge"),
    "instruction": lambda path: read_instruction(str(path)),
}


@pytest.mark.parametrize("name", READERS)
def test_every_reader_refuses_a_pipe_and_a_device(name: str, pipe: Path) -> None:
    for path in (pipe, Path("/dev/zero")):
        with pytest.raises(UsageError, match=f"cannot read {path}: {WHAT}"):
            READERS[name](path)


COMMANDS = {
    "config": ["train", "PIPE"],
    "prompts": ["train", "--preset", "toy", "--prompts", "PIPE"],
    "held-out prompts": ["train", "--preset", "toy", "prompts.held_out=PIPE"],
    "dry run": ["train", "--dry-run", "--preset", "toy", "--prompts", "PIPE"],
    "chains": ["train", "--preset", "scenes", "--planner", "file", "planner.chains=PIPE"],
    "rubric": ["train", "--preset", "scenes", "--judge", "internvl", "judge.internvl.rubric.pi=PIPE"],
    "prompts to draw": ["generate", "--preset", "toy", "--prompts", "PIPE"],
    "chain": ["generate", "a cat", "--preset", "toy", "--chain", "PIPE"],
    "picture": ["score", "PIPE", "--prompt", "x", "--judge", "toy"],
    "chain to score": ["score", "x.png", "--prompt", "x", "--judge", "toy", "--chain", "PIPE"],
    "examples": ["sft", "policy=toy", "data=PIPE"],
    "config of stage one": ["sft", "PIPE"],
    "shown config": ["config", "show", "PIPE"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_refuses_a_pipe(name: str, pipe: Path, toy: Path, refused: Refused) -> None:
    from PIL import Image

    Image.new("RGB", (4, 4)).save("x.png")
    error, _ = refused([word.replace("PIPE", str(pipe)) for word in COMMANDS[name]])
    assert f"cannot read {pipe}: {WHAT}" in error


def test_a_pipe_with_a_suffix_is_refused(tmp_path: Path, toy: Path, refused: Refused) -> None:
    for name, words in {
        "a.jsonl": ["score", "--judge", "toy"],
        "b.csv": ["score", "--judge", "toy"],
        "c.py": ["list", "--plugin"],
    }.items():
        os.mkfifo(tmp_path / name)
        error, _ = refused([words[0], *words[1:], str(tmp_path / name)])
        assert error.endswith(WHAT)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "model.safetensors.index.json", "part/x.json"])
def test_a_checkpoint_with_a_pipe_is_refused(name: str, tiny_janus: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_janus, tmp_path / "janus"))
    (folder / name).unlink(missing_ok=True)
    (folder / name).parent.mkdir(exist_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(UsageError, match=rf"has a file that cannot be read: {folder}/{name}: {WHAT}"):
        find_weights(str(folder), key="planner.model")
    assert call(["import", str(folder), str(tmp_path / "out")]) == 2


@pytest.mark.parametrize("name", [".lock", "metrics.jsonl", "held-out.json", "inputs.json", "checkpoints/step-000002/state.json"])
def test_a_run_with_a_pipe_is_refused(name: str, trained: Path, refused: Refused) -> None:
    (trained / name).unlink(missing_ok=True)
    os.mkfifo(trained / name)
    for words in (["train", "--resume"], ["doctor"], ["generate", "x", "--checkpoint"], ["export"]):
        error, _ = refused([*words, str(trained)] + (["out"] if words == ["export"] else []))
        assert error == f"{trained} is damaged: {trained}/{name}: {WHAT}"
    with pytest.raises(UsageError):
        run_config(trained)


@pytest.mark.skipif(not Path("/proc/kmsg").is_file() or os.geteuid() != 0, reason="only Linux has it, and only root may read it")
def test_an_ordinary_file_of_the_system_that_never_ends_gets_a_fingerprint() -> None:
    assert file_digest(Path("/proc/kmsg")) is not None
