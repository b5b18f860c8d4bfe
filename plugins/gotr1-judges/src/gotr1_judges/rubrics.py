"""Reads rubrics: the text files with a judge's questions. The package has versions of them, and you can have a folder of your own.

A file begins with the kind of its answer, ``answer: KIND``. After an empty line follows the question. Kinds:

- ``score``: JSON with a ``score`` from 0 to 10, written after a description and a reason;
- ``digit``: one token, 0 to 9, and ``yes``: one token, yes or no; the score is the mean over the token's probabilities;
- ``boxes``: where in the picture something is;
- ``list``: a JSON list of sentences.

``{prompt}``, ``{plan}`` (the chain without its boxes), ``{phrase}`` and ``{requirement}`` are filled in. A question with
``{requirement}`` is asked for each requirement of the prompt. Its score is the mean (Davidsonian Scene Graph, arXiv 2310.18235).
A question of kind ``yes`` with the prompt is VQAScore (arXiv 2404.01291).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from gotr1_core.engine.files import read_text
from gotr1_core.errors import UsageError, nearest

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

REWARDS = ("sem", "spa", "ri", "pi")
REQUIREMENTS = "requirements"
NEWEST = "v1"
FIELDS = ("prompt", "plan", "phrase", "requirement")
KINDS = {"sem": ("score", "digit", "yes"), "ri": ("boxes",), REQUIREMENTS: ("list",)}
KINDS |= dict.fromkeys(("spa", "pi"), KINDS["sem"])
NEEDED = {"sem": ("plan",), "spa": ("prompt", "requirement"), "pi": ("prompt", "requirement")}
NEEDED |= {"ri": ("phrase",), REQUIREMENTS: ("prompt",)}
"""A question must have at least one of these fields. Otherwise it would be the same for every sample."""
WORDS = {"digit": tuple("0123456789"), "yes": ("no", "yes")}
"""The one-token answers of a kind, from the worst to the best."""
_FIELD = re.compile(r"\{([a-z_]+)\}")
_HEAD = re.compile(r"\ufeff?answer: *(\w+) *\r?\n\r?\n")


@dataclass(frozen=True)
class Rubric:
    """One question: the kind of its answer, its words, and the fields between them. There is one more piece of words than fields."""

    kind: str
    words: tuple[str, ...]
    fields: tuple[str, ...]

    @classmethod
    def parse(cls, text: str, where: str) -> Rubric:
        """Parses a file's text. ``where`` names the file in messages.

        Raises:
            UsageError: the text does not begin with a known kind, or has an unknown field.
        """
        head = _HEAD.match(text)
        kinds = sorted({kind for allowed in KINDS.values() for kind in allowed})
        if head is None or head[1] not in kinds:
            raise UsageError(
                f"{where} does not begin with the kind of its answer",
                hint=f"begin it with answer: KIND and an empty line; kinds: {', '.join(kinds)}",
            )
        pieces = _FIELD.split(text[head.end() :].strip())
        for name in pieces[1::2]:
            if name not in FIELDS:
                raise UsageError(f"{where} has the unknown field {{{name}}}", hint=f"{nearest(name, FIELDS)}fields: {', '.join(FIELDS)}")
        return cls(head[1], tuple(pieces[::2]), tuple(pieces[1::2]))

    def fill(self, **values: str) -> tuple[str, ...]:
        """Returns the question's parts with ``values`` for the fields, see :class:`gotr1_judges.asking.Question`."""
        parts = [self.words[0]]
        for name, words in zip(self.fields, self.words[1:], strict=True):
            parts += [values[name], words]
        return tuple(parts)


def rubric_versions() -> list[str]:
    """Returns the names of the package's versions. A published version never changes; better rubrics get a new name."""
    return sorted(folder.name for folder in files("gotr1_judges").joinpath("rubrics").iterdir() if folder.is_dir())


def read_rubrics(folder: str, single: Mapping[str, str], *, scoring: str, family: str, key: str) -> dict[str, Rubric]:
    """Reads the rubrics of every reward, and the one that lists requirements.

    For each reward the file is ``NAME-expected`` (only with that scoring), else ``NAME-FAMILY``, else ``NAME``. It is searched in the
    folder first, and then in the newest version.

    Args:
        folder: a version, or a folder.
        single: by reward, a file or the name of one in the folder. It takes precedence.
        scoring: ``text`` or ``expected``.
        family: of the model, such as ``internvl``.
        key: the judge's place in the config, for messages.

    Raises:
        UsageError: there is no such folder or file, or a rubric does not suit its reward.
    """
    folders = _search_folders(folder, f"{key}.rubrics")
    rubrics = {}
    for name in (*REWARDS, REQUIREMENTS):
        where, text = (
            _read_single(single[name], folders, f"{key}.rubric.{name}") if name in single else _read_default(name, folders, scoring, family)
        )
        rubric = rubrics[name] = Rubric.parse(text, where)
        if rubric.kind not in KINDS[name]:
            raise UsageError(f"{where} asks for an answer of kind {rubric.kind}", hint=f"for {name}: {', '.join(KINDS[name])}")
        if not set(rubric.fields) & set(NEEDED[name]):
            raise UsageError(
                f"{where} asks the same question about every sample", hint=f"write {{{'} or {'.join(NEEDED[name])}}} where it belongs"
            )
        if ("phrase" in rubric.fields and name != "ri") or (name == "ri" and set(rubric.fields) != {"phrase"}):
            raise UsageError(
                f"{where} has fields that do not suit {name}", hint="ri has the field {phrase} and no other; other rewards do not have it"
            )
    return rubrics


def is_rubric_of(folder: str, name: str) -> bool:
    """True if a folder or version has a rubric of this name. Then the name means that rubric, not a file of the working folder."""
    try:
        folders = _search_folders(folder, "rubrics")
    except UsageError:  # the check of the judge reports it
        return False
    return "/" not in name and any(place.joinpath(f"{name.removesuffix('.txt')}.txt").is_file() for place in folders)


def _search_folders(folder: str, key: str) -> list[Traversable]:
    """Returns the folders in which rubrics are searched, in this order."""
    own = files("gotr1_judges").joinpath("rubrics")
    if folder in rubric_versions():
        return [own.joinpath(folder)]
    try:
        path = Path(folder).expanduser()
        exists = path.is_dir()
    except (OSError, ValueError, RuntimeError):  # a name that no file system allows, or a user without a home
        exists = False
    if not exists:
        raise UsageError(
            f"{key}: there is no folder {folder}", hint=f"give a folder of rubrics, or a version: {', '.join(rubric_versions())}"
        )
    stems = {path.stem for path in own.joinpath(NEWEST).iterdir() if isinstance(path, Path)}
    if not any(file.suffix == ".txt" and file.stem in stems for file in path.iterdir()):
        raise UsageError(
            f"{key}: {folder} has no rubrics", hint=f"it needs files such as pi.txt; copy those of {own.joinpath(NEWEST)} and change them"
        )
    return [path, own.joinpath(NEWEST)]


def _read_default(name: str, folders: list[Traversable], scoring: str, family: str) -> tuple[str, str]:
    """Returns path and text of a reward's rubric."""
    stems = [f"{name}-expected"] if scoring == "expected" else []
    stems += [f"{name}-{family}", name]
    file = next(file for folder in folders for stem in stems if (file := folder.joinpath(f"{stem}.txt")).is_file())
    return str(file), _text(file)


def _read_single(name: str, folders: list[Traversable], key: str) -> tuple[str, str]:
    """Returns path and text of a rubric that the option ``rubric`` names: one in a folder, else any file."""
    for folder in folders:
        if "/" not in name and (file := folder.joinpath(f"{name.removesuffix('.txt')}.txt")).is_file():
            return str(file), _text(file, key)
    return name, _text(Path(name), key)


def _text(file: Traversable, key: str = "") -> str:
    return read_text(Path(str(file)), hint="give a text file", key=key)
