"""Prompts from the user's own files."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from copy import copy
from operator import eq
from pathlib import Path
from tempfile import SpooledTemporaryFile
from threading import Lock
from typing import overload
from weakref import finalize

from gotr1_core.data.rows import DataRow, iterate_rows
from gotr1_core.errors import UsageError
from gotr1_core.samples import Prompt

HINT = 'give a text file with one prompt a line, or JSONL, a JSON array or CSV, each row with a "prompt"'

IN_MEMORY = 1 << 20
"""Bytes of prompts that need no temporary file."""

_encode = json.JSONEncoder(ensure_ascii=False).encode


class PromptFile(Sequence[Prompt]):
    """Prompts in their order, made when they are asked for. Many are in a temporary file, so a million take 8 MB of memory.

    They do not change when the file that they come from does. It is equal to every sequence of equal prompts. A part of it shares its file.

    Raises:
        OSError: there is no room for the temporary file.
    """

    def __init__(self, prompts: Iterable[Prompt]) -> None:
        self._ends, self._reading = array("Q", [0]), Lock()
        self._file = SpooledTemporaryFile(max_size=IN_MEMORY)  # noqa: SIM115 - closed with the last part that shares its ends:
        finalize(self._ends, self._file.close)
        for prompt in prompts:
            rest = [prompt.id, prompt.category, prompt.metadata] if prompt.category or prompt.metadata else prompt.id
            written = self._file.write(f"{_encode(rest)}\n{prompt.text}".encode())
            self._ends.append(self._ends[-1] + written)
        self._numbers = range(len(self._ends) - 1)

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> PromptFile: ...
    def __getitem__(self, index: int | slice) -> Prompt | PromptFile:
        if isinstance(index, slice):
            part = copy(self)
            part._numbers = self._numbers[index]
            return part
        rest, text = self._read(self._numbers[index])
        values = json.loads(rest)
        return Prompt(text, values) if isinstance(values, str) else Prompt(text, *values)

    def texts(self) -> Iterator[str]:
        """The prompts' texts alone, in a third of the time."""
        return (self._read(number)[1] for number in self._numbers)

    def _read(self, number: int) -> tuple[str, str]:
        """A prompt's JSON, which has no line break, and its text."""
        start, end = self._ends[number : number + 2]
        with self._reading:
            self._file.seek(start)
            rest, _, text = self._file.read(end - start).decode().partition("\n")
        return rest, text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(eq, self, other))

    __hash__ = None  # type: ignore[assignment]  # it is compared by its prompts, whose metadata have no hash


def prompt_texts(prompts: Sequence[Prompt]) -> Iterator[str]:
    """The texts of prompts. Those of a file are read without what else it says of them."""
    return prompts.texts() if isinstance(prompts, PromptFile) else (prompt.text for prompt in prompts)


def read_prompts(path: Path) -> Sequence[Prompt]:
    """Reads lines of text, or rows with ``prompt`` and optionally ``id``, ``category``, ``metadata``, as :func:`iterate_rows` finds them.

    Raises:
        UsageError: the file cannot be read, is not UTF-8 text or has no prompts, or a row is wrong.
    """
    stem = path.stem
    with closing(iterate_rows(path, "prompts", hint=HINT)) as rows:
        return PromptFile(row_prompt(row, f"{stem}-{i}", hint=HINT) for i, row in enumerate(rows))


def row_prompt(row: DataRow, name: str, *, hint: str) -> Prompt:
    """Returns the prompt of a row, with all that it carries. ``name`` is its id if the row has none.

    Raises:
        UsageError: there is no prompt, or one of its values has the wrong type. ``hint`` says what a row should be.
    """
    prompt, identity = row.values.get("prompt"), row.values.get("id")
    category, metadata = row.values.get("category", ""), row.values.get("metadata", {})
    if "prompt" not in row.values:
        raise UsageError(f'{row.where}, is not {{"prompt": …}}', hint=hint)
    if not isinstance(prompt, str) or not prompt.strip():
        raise UsageError(f"{row.where}: the prompt is not a text", hint=hint)
    if not isinstance(identity, str | int | None) or not isinstance(category, str) or not isinstance(metadata, dict):
        message = "category must be a text and metadata an object, and id a text or a number"
        raise UsageError(f"{row.where}: {message}", hint="leave out what you do not need")
    return Prompt(prompt, name if identity is None else str(identity), category, metadata)
