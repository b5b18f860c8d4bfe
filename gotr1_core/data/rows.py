"""Rows of a data file: JSON Lines, a JSON array, a table with a header (CSV, TSV), or lines of text. The content decides which it is."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from gotr1_core.engine.files import read_text, split_lines
from gotr1_core.errors import UsageError

JSON_SUFFIXES, TABLE_SUFFIXES = {".json", ".jsonl", ".ndjson"}, {".csv", ".tsv"}
_JSON = re.compile(r'\{\s*("|\}|$)|\[\s*(["{\[\]]|$)|-\s+prompt:')  # the last is YAML, which is refused
_SEPARATORS = re.compile(r"[\s,]*")


class DataRow(NamedTuple):
    """One row of a file: its line from 1, where it is (for messages), and its values by name."""

    number: int
    where: str
    values: Mapping[str, Any]


def read_rows(path: Path, what: str, *, hint: str, key: str = "") -> list[DataRow]:
    """Returns the rows of a file. A line of text, or a text in JSON, is a row that has only ``prompt``.

    Args:
        path: the file. A suffix of JSON or of a table promises such content; without one the content alone decides.
        what: what the rows are, for messages.
        hint: what to give instead, for messages.
        key: the file's place in the config or on the command line, for messages.

    Raises:
        UsageError: the file cannot be read or has no rows, or a line is not a row.
    """
    text, place = read_text(path, hint=hint, key=key), f"{key}: {path}" if key else str(path)
    lines, rows = split_lines(text), []
    values = _values(text, lines, path.suffix.lower(), f"{place}, line ", hint) if lines else iter(())
    for number, value in values:
        where = f"{place}, line {number}"
        row = {"prompt": value} if isinstance(value, str) else value
        with suppress(UnicodeEncodeError):
            if isinstance(row, dict) and json.dumps(row, ensure_ascii=False).encode():
                rows.append(DataRow(number, where, row))
                continue
        raise UsageError(f'{where}, is not {{"prompt": …}}', hint=hint)  # half a surrogate pair is no text: it could not be written again
    if not rows:
        raise UsageError(f"{place} has no {what}", hint=hint)
    return rows


def _values(text: str, lines: list[tuple[int, str]], suffix: str, line: str, hint: str) -> Iterator[tuple[int, Any]]:
    """What the rows hold, with the line of each: an object, a text, or what is not a row. ``line`` begins messages."""
    first_number, first = lines[0]
    if suffix in JSON_SUFFIXES or _JSON.match(first):
        yield from _json_values(text, lines)
        return
    delimiters = [d for d in ",\t;" if "prompt" in (cell.strip().strip('"').lower() for cell in first.split(d))]
    if suffix in TABLE_SUFFIXES and not delimiters:
        raise UsageError(f"{line}{first_number}: no column is called prompt", hint="name the columns in the first line")
    if delimiters:
        yield from _table_values(text, "\t" if suffix == ".tsv" else delimiters[0], line)
        return
    for number, prompt in lines:
        if _JSON.match(prompt):
            raise UsageError(f"{line}{number}, looks like JSON, but line {first_number} does not", hint=hint)
        yield number, prompt


def _json_values(text: str, lines: list[tuple[int, str]]) -> Iterator[tuple[int, Any]]:
    """The elements of a JSON array, else one object, else JSON Lines. What is not JSON is None."""
    start = text.index(lines[0][1])
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:
        if text[start] == "[":
            yield getattr(error, "lineno", lines[0][0]), None
            return
        whole = None
    if isinstance(whole, dict):
        yield lines[0][0], whole
    elif isinstance(whole, list):
        number, done, decoder = 1, 0, json.JSONDecoder()
        at = _end(text, start + 1)
        while text[at] != "]":
            number, done = number + text.count("\n", done, at), at
            value, end = decoder.raw_decode(text, at)
            yield number, value
            at = _end(text, end)
    else:
        yield from ((number, _parsed(line)) for number, line in lines)


def _end(text: str, at: int) -> int:
    match = _SEPARATORS.match(text, at)
    return match.end() if match else at


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _table_values(text: str, delimiter: str, line: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a table below its header. Empty cells are left out; a cell of ``metadata`` is JSON."""
    header: list[str] = []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)
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
