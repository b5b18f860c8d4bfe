"""The prompts of a run, from your own files or from a source."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gotr1_core.border.calls import call_prompts
from gotr1_core.components.build import make_component
from gotr1_core.config.models import PromptsConfig
from gotr1_core.data.prompts import prompt_texts, read_prompts
from gotr1_core.engine.console import print
from gotr1_core.errors import UsageError
from gotr1_core.plugins import Registry
from gotr1_core.protocols import PromptSource
from gotr1_core.samples import Example, Prompt, prompt_key


class FilePrompts:
    """A source of the prompts in ``all``, in order. After the last one it starts again with the first."""

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self.all = prompts

    def prompts(self, split: str, count: int, seed: int, start: int = 0) -> Sequence[Prompt]:
        """``count`` prompts from number ``start`` on. ``split`` and ``seed`` change nothing."""
        return [self.all[i % len(self.all)] for i in range(start, start + count)]

    def examples(self, split: str, start: int, count: int, seed: int) -> Sequence[Example]:
        """Always fails: prompts alone are no examples.

        Raises:
            UsageError: always.
        """
        raise UsageError("a file of prompts has no chains and pictures to learn from", hint="give gotr1 sft a source, or JSONL examples")


def prompts_of(registry: Registry, config: PromptsConfig) -> tuple[PromptSource, Sequence[Prompt]]:
    """The source of training prompts, and the held-out prompts.

    Held-out prompts come from a file, else from the start of the source's validation split, else from the end of your own file.

    Raises:
        UsageError: there is neither a source nor a file, a file cannot be read, or ``prompts.held_out`` leaves none to train with.
    """
    if config.file is None and config.source is None:
        raise UsageError("there are no prompts", hint="give --prompts FILE, or prompts.source=NAME")
    own: Sequence[Prompt] = read_prompts(config.file) if config.file is not None else []
    source: Any = make_component(registry, "source", config.source) if config.source is not None else None
    if isinstance(config.held_out, Path):
        held_out = read_prompts(config.held_out)
    elif source is not None:
        held_out = list(call_prompts(source, "validation", config.held_out, config.seed))
    else:
        own, held_out = _split(own, config)
    return FilePrompts(own) if own else source, held_out


def _split(prompts: Sequence[Prompt], config: PromptsConfig) -> tuple[Sequence[Prompt], Sequence[Prompt]]:
    """Splits your own prompts: the last ``held_out`` are for evaluation, the others for training."""
    assert isinstance(config.held_out, int)
    if config.held_out >= len(prompts):
        raise UsageError(
            f"{config.file} has {len(prompts)} prompts, but prompts.held_out={config.held_out} would hold out all of them",
            hint="set prompts.held_out to a smaller number, or to another file",
        )
    return prompts[: -config.held_out], prompts[-config.held_out :]


def own_prompts(source: PromptSource) -> Sequence[Prompt]:
    """The prompts of your own training file. A source that is a component may have prompts without end, so it has none here."""
    return source.all if isinstance(source, FilePrompts) else ()


def count_repeats(source: PromptSource, held_out: Sequence[Prompt]) -> dict[str, int]:
    """How many prompts repeat an earlier one, and how many held-out prompts train too. Nothing is removed.

    Training prompts are counted if they are from your own file. ``Prompt.key`` says when two prompts are equal.
    """
    training = own_prompts(source)
    trained, measured = _key_hashes(training), _key_hashes(held_out)
    return {
        "training": len(training),
        "training_repeated": len(training) - len(trained),
        "held_out": len(held_out),
        "held_out_repeated": len(held_out) - len(measured),
        "held_out_in_training": int(np.isin(measured, trained).sum()),
    }


def _key_hashes(prompts: Sequence[Prompt]) -> NDArray[np.int64]:
    """The distinct 64-bit hashes of prompts' keys, rising: a tenth of the keys' memory.

    Among a million keys two have one hash with a probability of 3e-8.
    """
    hashes = np.fromiter((hash(prompt_key(text)) for text in prompt_texts(prompts)), np.int64, count=len(prompts))
    hashes.sort()  # in place; numpy.unique would hold two more copies
    first = np.ones(len(hashes), bool)
    first[1:] = hashes[1:] != hashes[:-1]
    return hashes[first]


def note_repeats(counts: Mapping[str, int]) -> None:
    """Prints a line about repeated prompts, if there are some. ``counts`` are those of :func:`count_repeats`."""
    notes = [
        f"{counts[f'{kind}_repeated']} of {counts[kind]} {name} prompts repeat an earlier one"
        for kind, name in (("training", "training"), ("held_out", "held-out"))
        if counts[f"{kind}_repeated"]
    ]
    if counts["held_out_in_training"]:
        notes.append(f"{counts['held_out_in_training']} held-out prompts are training prompts too")
    if notes:
        print(f"note: {'; '.join(notes)}. All are used.", file=sys.stderr)
