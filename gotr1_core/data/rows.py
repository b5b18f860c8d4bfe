"""Rows of a data file: JSON Lines, a JSON array, a table with a header (CSV, TSV), or lines of text. The content decides which it is."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Generator, Iterable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from gotr1_core.engine.files import readable_file
from gotr1_core.engine.reminders import remind
from gotr1_core.errors import UsageError

JSON_SUFFIXES, TABLE_SUFFIXES = {".json", ".jsonl", ".ndjson"}, {".csv", ".tsv"}
LARGEST_ROW = 1_000_000
"""Characters of the longest row that is read."""
PIECE = 2**20  # characters of a JSON array that are read at a time
REMINDER = 5.0  # seconds between messages about how far a file is read
_JSON = re.compile(r'\{\s*(["\'}]|$)|\[\s*(["\'{\[\]]|$)|-\s+prompt:')  # the last is YAML, which is refused, as quotes of Python are
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


class DataRow(NamedTuple):
    """One row of a file: its line from 1, where it is (for messages), and its values by name."""

    number: int
    where: str
    values: Mapping[str, Any]


def read_rows(path: Path, what: str, *, hint: str, key: str = "") -> list[DataRow]:
    """Returns the rows of a file, as :func:`iterate_rows` yields them."""
    return list(iterate_rows(path, what, hint=hint, key=key))


def iterate_rows(path: Path, what: str, *, hint: str, key: str = "") -> Generator[DataRow, None, None]:
    """Yields the rows of a file, which it reads bit by bit. A line of text, or a text in JSON, is a row that has only ``prompt``.

    While a large file is read, stderr says how far.

    Args:
        path: the file. A suffix of JSON or of a table promises such content; without one the content alone decides.
        what: what the rows are, for messages.
        hint: what to give instead, for messages.
        key: the file's place in the config or on the command line, for messages.

    Raises:
        UsageError: the file cannot be read or has no rows, or a line is not a row or is longer than :data:`LARGEST_ROW`.
    """
    place, number, rows = f"{key}: {path}" if key else str(path), 1, 0
    with (
        readable_file(path, hint=hint, key=key) as ordinary,
        ordinary.open(encoding="utf-8-sig") as file,
        remind(lambda: f"reading {path}: {rows:,} {what}, line {number:,}", every=REMINDER),
    ):
        for number, value in _values(file, path.suffix.lower(), f"{place}, line ", hint):
            row = {"prompt": value} if isinstance(value, str) else value
            if not isinstance(row, dict):
                raise UsageError(f'{place}, line {number}, is not {{"prompt": …}}', hint=hint)
            yield DataRow(number, f"{place}, line {number}", row)
            rows += 1
    if not rows:
        raise UsageError(f"{place} has no {what}", hint=hint)


def _lines(file: TextIO, line: str, hint: str) -> Iterator[tuple[int, str]]:
    """The lines of a file from its beginning, with their numbers from 1. A line that is too long is not read to its end."""
    file.seek(0)
    for number in count(1):
        text = file.readline(LARGEST_ROW + 1)
        _check_length(len(text), f"{line}{number}", hint)
        if not text:
            return
        yield number, text


def _check_length(length: int, where: str, hint: str) -> None:
    if length > LARGEST_ROW:
        raise UsageError(f"{where}, is too long: a row has at most {LARGEST_ROW:,} characters", hint=hint)


def _values(file: TextIO, suffix: str, line: str, hint: str) -> Iterator[tuple[int, Any]]:
    """What the rows hold, with the line of each: an object, a text, or what is not a row. ``line`` begins messages."""
    beginning = file.read(1000).lstrip()
    if beginning[:1] == "[" and (suffix in JSON_SUFFIXES or _JSON.match(beginning.partition("\n")[0])):
        yield from _array_values(file, line, hint)
        return
    lines = ((number, text.strip()) for number, text in _lines(file, line, hint) if not text.isspace())
    first_number, first = next(lines, (0, ""))
    if not first:
        return
    if suffix in (".yaml", ".yml"):
        raise UsageError(f"{line}{first_number}: YAML cannot be read here", hint=hint)
    if suffix in JSON_SUFFIXES or _JSON.match(first):
        yield from _json_values(file, first_number, first, line, hint)
        return
    delimiters = [d for d in ",\t;" if "prompt" in (cell.strip().strip('"').lower() for cell in first.split(d))]
    if suffix in TABLE_SUFFIXES and not delimiters:
        raise UsageError(f"{line}{first_number}: no column is called prompt", hint="name the columns in the first line")
    if delimiters:
        delimiter = "\t" if suffix == ".tsv" else delimiters[0]
        yield from _table_values((text for _, text in _lines(file, line, hint)), delimiter, line)
        return
    yield first_number, first
    for number, prompt in lines:
        if _JSON.match(prompt):
            raise UsageError(f"{line}{number}, looks like JSON, but line {first_number} does not", hint=hint)
        yield number, prompt


def _json_values(file: TextIO, first_number: int, first: str, line: str, hint: str) -> Iterator[tuple[int, Any]]:
    """One object over several lines, else JSON Lines. What is not JSON is None."""
    if _parsed(first) is None:
        file.seek(0)
        whole = file.read(LARGEST_ROW + 1)
        if len(whole) <= LARGEST_ROW and isinstance(row := _parsed(whole), dict):
            yield first_number, row
            return
    yield from ((number, _parsed(text)) for number, text in _lines(file, line, hint) if not text.isspace())


class _ArrayText:
    """The text of a JSON array, of which only a piece is in memory. ``at`` is a place in ``text``, ``line`` the number of its line."""

    def __init__(self, file: TextIO) -> None:
        file.seek(0)
        self.file, self.text, self.at, self.line = file, "", 0, 1

    def next(self, at: int) -> str:
        """Goes to a place, then to the next character that is no space. Returns that character; empty at the end."""
        while True:
            match = _SPACE.match(self.text, at)
            end = match.end() if match else at
            self.line, self.at = self.line + self.text.count("\n", self.at, end), end
            if end < len(self.text) or not self._more():
                return self.text[end : end + 1] if end < len(self.text) else ""
            at = self.at

    def value(self) -> tuple[Any, str]:
        """The value that begins here, and its text.

        Raises:
            ValueError, RecursionError: there is no value. ``line`` is then the line of what is wrong.
        """
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
                is_whole = self.text[end : end + 1] in tuple(" \t\n\r,]")  # else a number may go on
                if is_whole or len(self.text) - self.at > LARGEST_ROW or not self._more():
                    return value, self.text[self.at : end]
            except json.JSONDecodeError as error:
                if len(self.text) - self.at > LARGEST_ROW or not self._more():
                    is_cut = error.pos > len(self.text) - 10 or error.msg.startswith("Unterminated")
                    if is_cut and len(self.text) - self.at > LARGEST_ROW:
                        return None, self.text[self.at :]
                    self.line += self.text.count("\n", self.at, error.pos)
                    raise

    def _more(self) -> bool:
        """Adds a piece of the file behind the text, and drops what is before ``at``. False at the end of the file."""
        piece = self.file.read(PIECE)
        if piece:
            self.text, self.at = self.text[self.at :] + piece, 0
        return bool(piece)


def _array_values(file: TextIO, line: str, hint: str) -> Iterator[tuple[int, Any]]:
    """The elements of the JSON array in the file. Where it is no longer JSON, None."""
    array = _ArrayText(file)
    array.next(0)
    sign = array.next(array.at + 1)  # behind the bracket
    while sign != "]":
        number = array.line
        try:
            value, source = array.value()
        except (ValueError, RecursionError):
            yield array.line, None
            return
        _check_length(len(source), f"{line}{number}", hint)
        yield number, value if _is_text(value, source) else None
        sign = array.next(array.at + len(source))
        if sign == ",":
            sign = array.next(array.at + 1)
            sign = "" if sign == "]" else sign  # a comma before the end
        elif sign != "]":
            yield array.line, None
            return
    if array.next(array.at + 1):
        yield array.line, None


def _parsed(line: str) -> Any:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if _is_text(value, line) else None


def _is_text(value: Any, source: str) -> bool:
    """False if the JSON in ``source`` has half a surrogate pair, which is no text: it could not be written again."""
    try:
        return "\\u" not in source or bool(json.dumps(value, ensure_ascii=False).encode())
    except UnicodeEncodeError:
        return False


def _table_values(lines: Iterable[str], delimiter: str, line: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a table below its header. Empty cells are left out; a cell of ``metadata`` is JSON."""
    header: list[str] = []
    reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True)
    number = 1
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells) and header:
                if len(cells) != len(header):
                    raise csv.Error(f"{len(cells)} cells, but the header has {len(header)}")
                values: dict[str, Any] = {name: cell for name, cell in zip(header, cells, strict=True) if cell}
                yield number, values | ({"metadata": _parsed(values["metadata"])} if "metadata" in values else {})
            elif any(cells):
                header = [cell.lower() for cell in cells]
                if header.count("prompt") != 1:
                    raise csv.Error("one column must be called prompt")
            number = reader.line_num + 1
    except csv.Error as error:
        raise UsageError(f"{line}{number}: {error}", hint=f"a cell that has a {delimiter!r} in it needs quotes around it") from None
