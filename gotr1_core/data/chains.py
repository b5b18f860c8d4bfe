"""Chains that people and tools wrote. What a policy samples is read by :func:`gotr1_core.chain.parse` alone."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path

from gotr1_core.chain import SCALE, Chain, parse
from gotr1_core.data.prompts import row_prompt
from gotr1_core.data.rows import DataRow, iterate_rows, read_rows
from gotr1_core.engine.files import read_text, split_lines
from gotr1_core.errors import UsageError

REGIONS = f"write each region as <|obj_start|>PHRASE<|obj_end|><|box_start|>(x1,y1),(x2,y2)<|box_end|>, coordinates 0 to {SCALE}"
LINES = 'one {"prompt": "…", "chain": "…"} per line, as in the samples.jsonl of gotr1 generate'
_PAIR = r"\s*\(\s*([0-9]+)\s*,\s*([0-9]+)\s*\)\s*"
_SPACED_BOX = re.compile(rf"(?<=<\|box_start\|>){_PAIR},{_PAIR}(?=<\|box_end\|>)")


def written_chain(text: str, where: str) -> Chain:
    """Returns a chain that somebody wrote. Whitespace around a box's coordinates is removed, because its meaning is certain.

    Raises:
        UsageError: the chain is malformed, such as a coordinate of 1000 or a reversed box. ``where`` begins the message.
    """
    chain = parse(_tidy(text))
    if chain.problems:
        raise UsageError(f"{where}: {chain.problems[0]}", hint=REGIONS)
    return chain


def row_chain(row: DataRow, *, hint: str) -> Chain:
    """Returns the ``chain`` of a row, as :func:`written_chain`. If gotr1 wrote the row for a malformed chain, it is read as it was sampled.

    Raises:
        UsageError: there is no text, or it is malformed.
    """
    return _chain_of(row, row.values.get("chain"), hint)


def read_chain(path: Path, *, key: str, hint: str) -> Chain:
    """Returns the chain in a text file, or of the one row in a file of rows. ``key`` begins messages: the option's name.

    Raises:
        UsageError: the file cannot be read, has several chains, or the chain is malformed. The message names the line.
    """
    text = read_text(path, hint=hint, key=key)
    if text.lstrip()[:1] in ("{", "["):
        rows = read_rows(path, "chains", hint=hint, key=key)
        if len(rows) > 1:
            raise UsageError(f"{key}: {path} has {len(rows)} rows, and one chain is needed", hint=hint)
        return row_chain(rows[0], hint=hint)
    line = next((number for number, line in split_lines(text) if parse(_tidy(line)).problems), 1)
    return written_chain(text.strip(), f"{key}: {path}, line {line}")


def read_chains(path: Path, *, key: str) -> dict[str, tuple[Chain, ...]]:
    """Returns the chains of a file by ``Prompt.key``, in the order of the file: rows with ``prompt`` and ``chain``, one or a list of them.

    Raises:
        UsageError: the file cannot be read or has no chains, or a row is wrong. ``key`` begins messages: the file's place in the config.
    """
    chains: dict[str, list[Chain]] = {}
    with closing(iterate_rows(path, "chains", hint=f"give a JSONL file: {LINES}", key=key)) as rows:
        for row in rows:
            prompt, given = row_prompt(row, "", hint=f"write {LINES}").key, row.values.get("chain")
            texts = given if isinstance(given, list) and given else [given]
            chains.setdefault(prompt, []).extend(_chain_of(row, text, f"write {LINES}") for text in texts)
    return {prompt: tuple(of_prompt) for prompt, of_prompt in chains.items()}


def _tidy(text: str) -> str:
    return _SPACED_BOX.sub(r"(\1,\2),(\3,\4)", text)


def _chain_of(row: DataRow, text: object, hint: str) -> Chain:
    if not isinstance(text, str):
        raise UsageError(f"{row.where}: {'the chain is not a text' if 'chain' in row.values else 'there is no chain'}", hint=hint)
    return parse(text) if row.values.get("well_formed") is False else written_chain(text, row.where)
