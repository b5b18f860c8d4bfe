"""Supervised examples from the user's own files: prompts with the chain to write and the picture to draw."""

from __future__ import annotations

from pathlib import Path

from PIL.Image import Image

from gotr1_core.data.chains import row_chain
from gotr1_core.data.pictures import read_picture
from gotr1_core.data.prompts import row_prompt
from gotr1_core.data.rows import DataRow, read_rows
from gotr1_core.errors import UsageError
from gotr1_core.samples import Example

HINT = 'each row is {"prompt": …, "chain": …, "image": …}'


def read_examples(path: Path) -> list[Example]:
    """Reads rows with ``prompt``, ``chain`` and optionally ``image``, a path relative to the file's folder.

    Raises:
        UsageError: the file or a picture cannot be read, or a row is not an example.
    """
    folder, examples = path.expanduser().parent, []
    for row in read_rows(path, "examples", hint=HINT):
        prompt = row_prompt(row, f"{path.stem}-{row.number}", hint=HINT)
        examples.append(Example(prompt, row_chain(row, hint=HINT), _picture(row, folder)))
    return examples


def _picture(row: DataRow, folder: Path) -> Image | None:
    name = row.values.get("image")
    if not isinstance(name, str | None):
        raise UsageError(f"{row.where}: image is not the name of a file", hint=HINT)
    try:
        return read_picture(folder / name) if name else None
    except UsageError as error:
        raise UsageError(f"{row.where}: {error.message}", hint=error.hint) from None
