"""Reads the samples that a run saved, for the report, the doctor and judges that score them again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gotr1_core.engine.files import split_lines
from gotr1_core.pictures.sample_files import SAMPLES


def saved_rows(samples: Path) -> tuple[list[dict[str, Any]], int]:
    """The rows of ``samples.jsonl`` in a folder of saved samples, and how many others are damaged."""
    rows, damaged = list[dict[str, Any]](), 0
    file = samples / SAMPLES
    for _, line in split_lines(file.read_bytes().decode("utf-8-sig", errors="replace") if file.is_file() else ""):
        try:
            row = json.loads(line)
            rows.append(row | {"words": {name: dict(words) for name, words in row.get("words", {}).items()}})
        except (ValueError, TypeError, AttributeError, RecursionError):
            damaged += 1
    return rows, damaged


def saved_words(run: Path) -> list[Mapping[str, Any]]:
    """What judges said of a run's saved samples, by the score's name; that of the last step first."""
    folders = sorted((run / "samples").glob("*"), key=lambda folder: (folder.name.startswith("step-"), folder.name), reverse=True)
    return [row["words"] for folder in folders for row in saved_rows(folder)[0]]
