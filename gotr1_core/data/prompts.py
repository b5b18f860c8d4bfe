"""Prompts from the user's own files."""

from __future__ import annotations

from pathlib import Path

from gotr1_core.data.rows import DataRow, read_rows
from gotr1_core.errors import UsageError
from gotr1_core.samples import Prompt

HINT = 'give a text file with one prompt a line, or JSONL, a JSON array or CSV, each row with a "prompt"'


def read_prompts(path: Path) -> list[Prompt]:
    """Reads lines of text, or rows with ``prompt`` and optionally ``id``, ``category``, ``metadata``, as :func:`read_rows` finds them.

    Raises:
        UsageError: the file cannot be read, is not UTF-8 text or has no prompts, or a row is wrong.
    """
    return [row_prompt(row, f"{path.stem}-{i}", hint=HINT) for i, row in enumerate(read_rows(path, "prompts", hint=HINT))]


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
