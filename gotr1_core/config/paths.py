"""Marks the options that name files, and makes their paths absolute. A plugin's options use ``InputFile`` and ``InputPath``."""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel


def check_regular(path: Path) -> None:
    """Refuses a pipe, a socket or a device: opening it may wait for ever, it may never end, and nobody can read it a second time.

    Raises:
        OSError: it is one, or nothing is there.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, "it is a pipe, a socket or a device, not a file", str(path))


def check_regular_files(folder: Path, *patterns: str) -> None:
    """Checks the files of a folder as :func:`check_regular` does, before a library opens them. A link to nothing is not checked."""
    for pattern in patterns:
        for path in folder.glob(pattern):
            if path.exists():
                check_regular(path)


@dataclass(frozen=True)
class Input:
    """Marks an option whose text, or whose texts in a list or mapping, name a file or folder that the component reads.

    Attributes:
        always: the text is always a path. Otherwise it is a path only if it exists; else it may be a hub name or a version.
        unless: ``unless(text, options)`` is true for a text that has another meaning, even if a file has that name.
    """

    always: bool = False
    unless: Callable[[str, Mapping[str, Any]], bool] | None = None

    def is_path(self, text: str, options: Mapping[str, Any]) -> bool:
        """True if a text of the option is a path. ``options`` are all options of the component."""
        if not text.strip() or (self.unless is not None and self.unless(text, options)):
            return False
        with suppress(OSError, ValueError, RuntimeError):  # not a valid path, or an unknown user's home
            return self.always or Path(text).expanduser().exists()
        return False


InputFile = Annotated[Path, Input(always=True)]
"""An option that is always a path."""
InputPath = Annotated[str, Input()]
"""An option that is a path if there is such a file or folder, and otherwise a hub name."""


def absolute_path(path: Path) -> Path:
    """The absolute path. A relative one is relative to the working folder, and ``~`` is the user's home. Symbolic links are kept."""
    with suppress(RuntimeError):  # an unknown user's home
        path = path.expanduser()
    return path.absolute()


AbsolutePath = Annotated[Path, AfterValidator(absolute_path)]


def marked_options(model: Any) -> dict[str, Input]:
    """The options of a pydantic model that are marked as inputs, with their marks; empty for a component without options."""
    fields = getattr(model, "model_fields", {})
    marks = {name: _find_mark(field.annotation, field.metadata) for name, field in fields.items()}
    return {name: mark for name, mark in marks.items() if mark is not None}


def _find_mark(annotation: Any, metadata: Sequence[Any] = ()) -> Input | None:
    marks = [item for item in (*metadata, *getattr(annotation, "__metadata__", ())) if isinstance(item, Input)]
    return next(iter(marks), None) or next((mark for inner in get_args(annotation) if (mark := _find_mark(inner))), None)


def change_texts(value: Any, change: Callable[[str, str], Any], key: str = "") -> Any:
    """A copy of a value in which ``change(key, text)`` replaces every text and path. The key of an item is ``key.ITEM``."""
    if isinstance(value, str | Path):
        return change(key, str(value))
    if isinstance(value, Mapping):
        return {name: change_texts(item, change, f"{key}.{name}") for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [change_texts(item, change, f"{key}.{number}") for number, item in enumerate(value)]
    return value


def absolute_options(model: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as given, with absolute paths where ``model`` marks them as inputs."""

    def change(_: str, text: str, mark: Input, given: Mapping[str, Any]) -> str:
        return str(absolute_path(Path(text))) if mark.is_path(text, given) else text

    return change_marked(model, options, change)


def change_marked(model: Any, options: Any, change: Callable[[str, str, Input, Mapping[str, Any]], Any], key: str = "") -> dict[str, Any]:
    """A copy of a model's ``options`` in which ``change(key, text, mark, options)`` replaces every text that the model marks as an input.

    ``options`` are a mapping or an instance of the model. Options that are models themselves, or lists or mappings of them, are looked
    through, with their own options for the marks.
    """
    given = dict(options) if isinstance(options, Mapping | BaseModel) else {}
    changed, prefix = dict(given), f"{key}." if key else ""
    marks = marked_options(model)
    for name in [name for name in getattr(model, "model_fields", {}) if name in given]:
        if mark := marks.get(name):

            def change_text(item: str, text: str, mark: Input = mark) -> Any:
                return change(item, text, mark, given)

            changed[name] = change_texts(given[name], change_text, f"{prefix}{name}")
        for inner in _models_in(model.model_fields[name].annotation):
            changed[name] = _change_inner(inner, changed[name], change, f"{prefix}{name}")
    return changed


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models_in(inner)]


def _change_inner(model: type[BaseModel], value: Any, change: Callable[..., Any], key: str) -> Any:
    """``change_marked`` for a value that is a model's options, or a list or mapping of such."""
    if isinstance(value, list | tuple):
        return [_change_inner(model, item, change, f"{key}.{number}") for number, item in enumerate(value)]
    if isinstance(value, model) or (isinstance(value, Mapping) and model.model_fields.keys() & value.keys()):
        return change_marked(model, value, change, key)
    if isinstance(value, Mapping):
        return {name: _change_inner(model, item, change, f"{key}.{name}") for name, item in value.items()}
    return value
