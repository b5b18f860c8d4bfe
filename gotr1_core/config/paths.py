"""Marks the options that name files, and makes their paths absolute. A plugin's options use ``InputFile`` and ``InputPath``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import AfterValidator


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

    def change(mark: Input) -> Callable[[str, str], str]:
        return lambda _, text: str(absolute_path(Path(text))) if mark.is_path(text, options) else text

    marks = {name: mark for name, mark in marked_options(model).items() if name in options}
    return {**options, **{name: change_texts(options[name], change(mark)) for name, mark in marks.items()}}
