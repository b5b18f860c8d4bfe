"""engine.files"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from gotr1_core.errors import UsageError

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A folder to write into that takes the place of ``folder`` when the block ends well, and leaves no trace when it does not."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    recover(folder)
    try:
        part.mkdir(parents=True)
        yield part
        _sync(part)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        code = re.search(r"os error (\d+)", str(error)) if isinstance(error, SafetensorError) else None
        if code:  # a full disk is the same error whoever writes
            raise OSError(int(code[1]), os.strerror(int(code[1])), str(folder)) from error
        raise
    old = folder.with_name(folder.name + ".old")
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def recover(folder: Path) -> None:
    """Puts back what a process that was killed while it replaced ``folder`` had moved out of the way."""
    old = folder.with_name(folder.name + ".old")
    if old.exists() and not folder.exists():
        old.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Has the operating system write a folder's files out, so that a rename cannot reach the disk before they do."""
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_atomically(path: Path, text: str) -> None:
    """A text file that is there whole or not at all."""
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
    """A JSON object of a run."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} is damaged: {error}", hint="put it back as it was") from None
    if not isinstance(found, dict):
        raise UsageError(f"{path} is damaged: it is no JSON object", hint="put it back as it was")
    return found
