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

from gotr1_core.errors import UsageError

DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # or a quota or size limit is reached


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """Yields a new folder to write into. It replaces ``folder`` if the block ends without an error, else it is deleted."""
    part = folder.with_name(folder.name + ".part")
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
    old = folder.with_name(folder.name + ".old")
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(folder: Path) -> None:
    """Puts the old ``folder`` back if a process was killed while it replaced that folder."""
    old = folder.with_name(folder.name + ".old")
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


def check_writable(folder: Path, *, hint: str) -> None:
    """Checks that a folder can be made and written into, by a file without a name that is gone at once. Makes no folder.

    Raises:
        UsageError: it cannot. ``hint`` says what to give instead.
    """
    above = folder
    try:
        above = next((path for path in (folder, *folder.parents) if path.exists()), folder)
        with TemporaryFile(dir=above):
            return
    except (OSError, ValueError) as error:  # also a null character in the path
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            return  # a full disk has an error of its own, with what to do
        why = "is not a folder that you can write to" if isinstance(error, OSError) else str(error)
        raise UsageError(f"cannot make the folder {folder}: {above} {why}", hint=hint) from None


def read_text(path: Path, *, hint: str, key: str = "") -> str:
    """Returns a UTF-8 text file, without the byte order mark that some editors write first. ``key`` begins messages: the config's key.

    Raises:
        UsageError: the file cannot be read, or is not UTF-8 text. ``hint`` says what to give instead.
    """
    where = f"{key}: " if key else ""
    try:
        return path.expanduser().read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"{where}{path} is not UTF-8 text", hint=hint) from None
    except (OSError, ValueError, RuntimeError) as error:  # also a null character in the path, or the home of an unknown user
        raise UsageError(f"{where}cannot read {path}: {getattr(error, 'strerror', None) or error}", hint=hint) from None


def read_lines(path: Path, *, hint: str, key: str = "") -> list[tuple[int, str]]:
    """Returns the lines of a text file that are not blank, stripped, with their numbers from 1; ``key`` as for :func:`read_text`.

    Only newlines end a line: a JSON string may contain other separators, such as U+2028.

    Raises:
        UsageError: as :func:`read_text`.
    """
    return split_lines(read_text(path, hint=hint, key=key))


def split_lines(text: str) -> list[tuple[int, str]]:
    """Returns the lines of a text that are not blank, as :func:`read_lines` does."""
    return [(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file (UTF-8). If writing fails, the file stays as it was."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> dict[str, Any]:
    """Reads a file of a run that holds a JSON object.

    Raises:
        UsageError: the file cannot be read, or holds no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} is damaged: {error}", hint="restore the original file") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path} is damaged: it is not a JSON object", hint="restore the original file")
    return content
