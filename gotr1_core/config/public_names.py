"""Names of models and files for readers elsewhere, in place of paths of this machine. Exports, model cards and reports use them."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from gotr1_core.config.merge import package_folder
from gotr1_core.config.paths import change_texts
from gotr1_core.errors import UsageError

_HUB = re.compile(r"/models--([^/]+)--([^/]+)/snapshots/[^/]+$")
_PATH = re.compile(r"(?<![\w.~/:}$\\-])/[^\s'\"`,;()<>]+")


def public_name(text: str) -> str:
    """The name by which a reader elsewhere knows a model or a file. A text that is no path of this machine stays as it is.

    The copy of a hub's model in the local cache has its hub name, ``OWNER/NAME``. What an installed package has is
    ``${PACKAGE:NAME}/PATH``, as YAML files name it. Everything else has the last part of its path.
    """
    if not is_local(text):
        return text
    path = Path(text).expanduser()
    if hub := _HUB.search(path.as_posix()):
        return f"{hub[1]}/{hub[2]}"
    path = path.resolve()
    packages = [folder for folder in path.parents if (folder / "__init__.py").is_file()]
    if packages and (inside := _in_package(packages[-1], path)):
        return inside
    return path.name or text


def _in_package(folder: Path, path: Path) -> str | None:
    """``${PACKAGE:NAME}/PATH``, if Python finds the package NAME in this folder."""
    with suppress(UsageError):
        if Path(package_folder(folder.name)) == folder:
            return f"${{PACKAGE:{folder.name}}}/{path.relative_to(folder).as_posix()}"
    return None


def package_path(name: str) -> tuple[str, str] | None:
    """Package and path of a name ``${PACKAGE:NAME}/PATH``; None for other names."""
    match = re.fullmatch(r"\$\{PACKAGE:(\w+)\}/(.+)", name)
    return (match[1], match[2]) if match else None


def is_local(text: str) -> bool:
    """True for a path of this machine: an absolute one whose folder exists, or a relative one that exists."""
    with suppress(OSError, ValueError, RuntimeError):  # not a valid path, or an unknown user's home
        path = Path(text).expanduser()
        return bool(text) and (path.exists() or (path.is_absolute() and path.parent != Path(path.anchor) and path.parent.exists()))
    return False


def public_texts(value: Any) -> Any:
    """A copy of JSON-like data in which every absolute path of this machine has its :func:`public_name`."""
    return change_texts(value, lambda _, text: public_name(text) if Path(text).is_absolute() else text)


def public_message(text: str) -> str:
    """A message in which every absolute path of this machine has its :func:`public_name`."""
    return _PATH.sub(lambda match: public_name(match[0]) if is_local(match[0]) else match[0], text)
