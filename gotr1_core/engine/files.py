"""Writes files and folders that are complete or not there at all, also if the process is killed; and reads JSON."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from safetensors import SafetensorError

from gotr1_core.config.paths import check_regular
from gotr1_core.errors import UsageError

PART, REPLACED = ".part", ".old"
"""Added to the name of a file or folder while it is written, and to that of a folder while it is replaced."""
DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # or a quota or size limit is reached
_NO_PATH = {errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.ENXIO}
_NO_PATH |= {errno.EACCES, errno.EPERM, errno.EROFS, errno.ETXTBSY, errno.EINVAL}


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """Yields a new folder to write into. It replaces ``folder`` if the block ends without an error, else it is deleted."""
    part = folder.with_name(folder.name + PART)
    shutil.rmtree(part, ignore_errors=True)
    recover_folder(folder)
    try:
        part.mkdir(parents=True)
        yield part
        _sync(part)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        code = re.search(r"os error (\d+)", str(error)) if isinstance(error, SafetensorError) else None
        if code:  # safetensors reports a full disk as an error of its own; make it an OSError as elsewhere
            raise OSError(int(code[1]), os.strerror(int(code[1])), str(folder)) from error
        raise
    old = folder.with_name(folder.name + REPLACED)
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(folder: Path) -> None:
    """Puts the old ``folder`` back if a process was killed while it replaced that folder."""
    old = folder.with_name(folder.name + REPLACED)
    if old.exists() and not folder.exists():
        old.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Flushes a folder's files to disk, so that a rename cannot reach the disk before they do."""
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def path_problem(error: BaseException) -> str | None:
    """What is wrong with a path, if Python raised the error because of one; else None."""
    if isinstance(error, OSError) and error.errno in _NO_PATH and error.filename is not None:
        return f"cannot use {error.filename}: {error.strerror}"
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop from "):  # from Path.resolve, before Python 3.13
        return f"cannot use {str(error).removeprefix('Symlink loop from ')}: {os.strerror(errno.ELOOP)}"
    if isinstance(error, ValueError) and str(error).startswith("embedded null "):
        return "a path has a null character in it"
    return None


def check_writable(folder: Path, *, hint: str) -> None:
    """Checks that a folder can be made and written into, by a file without a name that is gone at once. Makes no folder.

    Raises:
        UsageError: it cannot. ``hint`` says what to give instead.
    """
    try:
        above = next((path for path in (folder, *folder.parents) if _is_there(path)), folder)
    except (OSError, ValueError) as error:  # the path is too long, has a loop of links or a null character
        why = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot make the folder {folder}: {why}", hint=hint) from None
    try:
        with TemporaryFile(dir=above):
            return
    except OSError as error:
        if error.errno in DISK_FULL:
            return  # a full disk has an error of its own, with what to do
        why = "is not a folder that you can write to" if error.errno != errno.EROFS else "is in a read-only file system"
        raise UsageError(f"cannot make the folder {folder}: {above} {why}", hint=hint) from None


def _is_there(path: Path) -> bool:
    """True if something has this name, also a link to nothing."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


TEXT_BYTES, FILE_BYTES = 2**20, 2**30
"""The largest text that is one thing, such as a rubric, and the largest file of any kind that is read as a whole."""


@contextmanager
def readable_file(path: Path, *, hint: str, key: str = "", most: int = FILE_BYTES) -> Iterator[Path]:
    """Yields the path of an ordinary file of at most ``most`` bytes, and explains what fails when the block reads it as text.

    A pipe, a socket or a device is refused, see :func:`check_regular`.

    Raises:
        UsageError: the file cannot be read, is not UTF-8 text, is larger, or is no ordinary file. ``hint`` says what to give instead;
            ``key``, the config's key, begins the message.
    """
    where = f"{key}: " if key else ""
    try:
        file = path.expanduser()
        check_regular(file)
        size = file.stat().st_size
        if size > most:
            sizes = f"{_megabytes(size)}, and at most {_megabytes(most)} are read"
            raise UsageError(f"{where}{path} is too large: {sizes}", hint=hint)
        yield file
    except UnicodeDecodeError:
        raise UsageError(f"{where}{path} is not UTF-8 text", hint=hint) from None
    except (OSError, ValueError, RuntimeError) as error:  # also a null character in the path, or the home of an unknown user
        raise UsageError(f"{where}cannot read {path}: {getattr(error, 'strerror', None) or error}", hint=hint) from None


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def read_text(path: Path, *, hint: str, key: str = "", most: int = TEXT_BYTES) -> str:
    """Returns a UTF-8 text file, without the byte order mark that some editors write first. ``key`` begins messages: the config's key.

    Raises:
        UsageError: as :func:`readable_file`, whose ``hint`` and ``most`` these are.
    """
    with readable_file(path, hint=hint, key=key, most=most) as file:
        return file.read_text(encoding="utf-8-sig")


def read_lines(path: Path, *, hint: str, key: str = "") -> list[tuple[int, str]]:
    """Returns the lines of a text file that are not blank, stripped, with their numbers from 1; ``key`` as for :func:`read_text`.

    Only newlines end a line: a JSON string may contain other separators, such as U+2028.

    Raises:
        UsageError: as :func:`read_text`.
    """
    return split_lines(read_text(path, hint=hint, key=key, most=FILE_BYTES))


def split_lines(text: str) -> list[tuple[int, str]]:
    """Returns the lines of a text that are not blank, as :func:`read_lines` does."""
    return [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file (UTF-8). If writing fails, the file stays as it was."""
    part = path.with_name(path.name + PART)
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def read_json(path: Path, shape: Any = None) -> dict[str, Any]:
    """Reads a file of a run that holds a JSON object, and checks the ``shape`` of what it says, as :func:`misfit` does.

    Raises:
        UsageError: the file cannot be read, holds no JSON object, or one of another shape.
    """
    hint = "restore the original file"
    try:
        content = json.loads(read_text(path, hint=hint, most=FILE_BYTES))
    except (UsageError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} is damaged: {error}", hint=hint) from None
    if not isinstance(content, dict):
        raise UsageError(f"{path} is damaged: it is not a JSON object", hint=hint)
    if name := misfit(content, shape or {}):
        raise UsageError(f"{path} is damaged: it has no {name} that gotr1 wrote", hint=hint)
    return content


def misfit(value: Any, shape: Any, name: str = "object") -> str | None:
    """The name of the first part of JSON data that has not its shape, or None. ``name`` is that of the whole.

    A shape is a type; a function that is true for what fits; a tuple of shapes, of which one must fit; a list of one shape, for lists of
    such; a mapping with a shape for each name that must be there, or ``{str: shape}`` for any names. :data:`MISSING` fits a name
    that is not there.
    """
    if isinstance(shape, tuple):
        return None if any(misfit(value, each) is None for each in shape) else name
    if isinstance(shape, list) and isinstance(value, list):
        parts = ((item, shape[0], f"{name}[{number}]") for number, item in enumerate(value))
        return next((wrong for part in parts if (wrong := misfit(*part))), None)
    if isinstance(shape, dict) and isinstance(value, dict):
        inner = dict.fromkeys(value, shape[str]) if str in shape else shape
        return next((wrong for key, each in inner.items() if (wrong := misfit(value.get(key, ...), each, str(key)))), None)
    fits = isinstance(shape, type) and type(value) is shape
    return None if fits or (callable(shape) and not isinstance(shape, type) and shape(value)) else name


MISSING = type(...)


def is_count(value: object) -> bool:
    """True for an integer from 0 on that a tensor can hold."""
    return type(value) is int and 0 <= value < 2**63
