"""Prompts of a run: read from files of your own, or given by a source."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from gotr1_core.components.build import make_component
from gotr1_core.config.models import PromptsConfig
from gotr1_core.errors import UsageError
from gotr1_core.plugins import Registry
from gotr1_core.protocols import PromptSource
from gotr1_core.samples import Example, Prompt


class FilePrompts:
    """Prompts in their order, again and again."""

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self.all = prompts

    def prompts(self, split: str, count: int, seed: int, start: int = 0) -> Sequence[Prompt]:
        """``count`` prompts from number ``start`` on."""
        del split, seed
        return [self.all[i % len(self.all)] for i in range(start, start + count)]

    def examples(self, split: str, start: int, count: int, seed: int) -> Sequence[Example]:
        """A file of prompts has no examples to learn from."""
        del split, start, count, seed
        raise UsageError("a file of prompts has no chains and pictures to learn from", hint="give gotr1 sft a source, or JSONL examples")


def read_prompts(path: Path) -> list[Prompt]:
    """Prompts of a text file, one a line, or of a JSONL file with ``prompt`` and, if wanted, ``id``, ``category``, ``metadata``."""
    try:
        # Newlines alone end a line: a JSON string may hold any other separator. Some editors begin a file with a byte order mark.
        text = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", hint="give a file with one prompt a line, or JSONL") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text", hint="give a file with one prompt a line, or JSONL") from None
    lines = [(number, line.strip()) for number, line in enumerate(text, 1) if line.strip()]
    if not lines:
        raise UsageError(f"{path} has no prompts", hint="give a file with one prompt a line, or JSONL")
    if path.suffix != ".jsonl":
        return [Prompt(line, f"{path.stem}-{i}") for i, (_, line) in enumerate(lines)]
    return [_read_row(path, number, line, f"{path.stem}-{i}") for i, (number, line) in enumerate(lines)]


def _read_row(path: Path, number: int, line: str, name: str) -> Prompt:
    """One line of JSONL."""
    try:
        row = json.loads(line)
        prompt, category, metadata = row["prompt"], row.get("category", ""), row.get("metadata", {})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UsageError(f'{path}, line {number}, is not {{"prompt": …}}', hint="one JSON object a line") from None
    if not isinstance(prompt, str) or not prompt.strip():
        raise UsageError(f"{path}, line {number}: the prompt is no text", hint='one {"prompt": "…"} a line')
    if not isinstance(category, str) or not isinstance(metadata, dict):
        raise UsageError(f"{path}, line {number}: category is a text and metadata an object", hint="leave out what you do not need")
    return Prompt(prompt, str(row.get("id", name)), category, metadata)


def prompts_of(registry: Registry, config: PromptsConfig) -> tuple[PromptSource, list[Prompt]]:
    """Training prompts, and the held-out prompts of evaluation. The source is made once, and each file is read once.

    Held-out prompts are a file's, the first of the source's validation split, or the last of your own file.

    Raises:
        UsageError: neither a source nor a file, a file that cannot be read, or one with fewer prompts than ``prompts.held_out`` holds out.
    """
    own = read_prompts(config.file) if config.file is not None else None
    source = make_component(registry, "source", config.source) if config.source is not None else None
    if isinstance(config.held_out, Path):
        held_out = read_prompts(config.held_out)
    elif source is not None:
        held_out = list(source.prompts("validation", config.held_out, config.seed))
    elif own is not None:
        own, held_out = _split(own, config)
    else:
        raise _no_prompts()
    if own is not None:
        return FilePrompts(own), held_out
    if source is None:
        raise _no_prompts()
    return source, held_out


def _no_prompts() -> UsageError:
    return UsageError("there are no prompts", hint="give --prompts FILE, or prompts.source=NAME")


def _split(prompts: list[Prompt], config: PromptsConfig) -> tuple[list[Prompt], list[Prompt]]:
    """Your own prompts for training, and the last of them for evaluation."""
    assert isinstance(config.held_out, int)
    if config.held_out >= len(prompts):
        raise UsageError(
            f"{config.file} has {len(prompts)} prompts, and prompts.held_out={config.held_out} holds out the last of them",
            hint="set prompts.held_out to a smaller number, or to a file of its own",
        )
    return prompts[: -config.held_out], prompts[-config.held_out :]
