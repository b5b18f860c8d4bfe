"""Supervised examples from the user's own files: prompts with the chain to write and the picture to draw."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from PIL.Image import Image

from gotr1_core.data.chains import row_chain
from gotr1_core.data.pictures import named_picture, read_picture
from gotr1_core.data.prompts import row_prompt
from gotr1_core.data.rows import DataRow, iterate_rows
from gotr1_core.errors import UsageError
from gotr1_core.samples import Example

HINT = 'each row is {"prompt": …, "chain": …, "image": …}'
OUTSIDE = "put the picture beside the data, or allow a folder: pictures=DIR"


def read_examples(path: Path, pictures: Path | None = None) -> list[Example]:
    """Reads rows with ``prompt``, ``chain`` and optionally ``image``, a path relative to the file's folder.

    Pictures must lie in the folder ``pictures``; in the file's own if it is not given.

    Raises:
        UsageError: the file or a picture cannot be read, a row is not an example, or a picture lies elsewhere.
    """
    folder, examples = path.expanduser().parent, []
    with closing(iterate_rows(path, "examples", hint=HINT)) as rows:
        for row in rows:
            prompt = row_prompt(row, f"{path.stem}-{row.number}", hint=HINT)
            examples.append(Example(prompt, row_chain(row, hint=HINT), _picture(row, folder, pictures)))
    return examples


def _picture(row: DataRow, folder: Path, root: Path | None) -> Image | None:
    name = row.values.get("image")
    if not isinstance(name, str | None):
        raise UsageError(f"{row.where}: image is not the name of a file", hint=HINT)
    try:
        return read_picture(named_picture(folder, name, root, hint=OUTSIDE)) if name else None
    except UsageError as error:
        raise UsageError(f"{row.where}: {error.message}", hint=error.hint) from None
