"""Reads the instruction, the user message to the model: a version from the package, or a file of your own."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from gotr1_core.engine.files import read_text
from gotr1_core.errors import UsageError

FIELD = "{prompt}"
"""Stands for the prompt in an instruction."""


def instruction_versions() -> list[str]:
    """Names of the package's instructions, sorted. A published one never changes; a better one gets a new name."""
    return sorted(file.name.removesuffix(".txt") for file in files("gotr1_qwen").joinpath("instructions").iterdir())


def read_instruction(name: str, *, key: str = "instruction") -> str:
    """The text of a version or of a file. It has ``{prompt}`` once; other braces are text. ``key`` is its place in the config.

    Raises:
        UsageError: ``name`` is neither a version nor a readable file, or the text does not have ``{prompt}`` exactly once.
    """
    if name in instruction_versions():
        return files("gotr1_qwen").joinpath("instructions", f"{name}.txt").read_text(encoding="utf-8").rstrip("\n")
    hint = f"give a text file, or a version: {', '.join(instruction_versions())}"
    text = read_text(Path(name), hint=hint, key=key).rstrip("\n")
    if (count := text.count(FIELD)) != 1:
        raise UsageError(f"{key}: {name} has {FIELD} {count} times", hint="write it once, where the prompt goes")
    return text
