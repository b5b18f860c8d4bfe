"""Imports released checkpoints that a config names, once, into a cache."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

from gotr1_core.engine.console import print
from gotr1_janus.processor import FILES

VARIABLE = "GOTR1_CACHE"
_VERSION = 1  # of the import's output format; raise it to have every checkpoint imported again


def cache_folder() -> Path:
    """The folder of imported checkpoints: ``GOTR1_CACHE``, or ``gotr1`` in the user's cache (``XDG_CACHE_HOME``, else ``~/.cache``)."""
    folder = os.environ.get(VARIABLE)
    if folder:
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "gotr1"


def cache_entry(folder: Path) -> Path:
    """The folder in the cache for a released checkpoint. It need not exist yet.

    Its name has a hash of the names, sizes and modification times of the checkpoint's files, so a changed checkpoint gets a new folder.
    """
    digest = hashlib.sha256(str(_VERSION).encode())
    small_files = {"config.json", *FILES} & {path.name for path in folder.iterdir()}
    weights = {path.name for suffix in ("safetensors", "bin") for path in folder.glob(f"*.{suffix}")}
    for name in sorted(small_files | weights):
        status = (folder / name).stat()
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return cache_folder() / "janus" / f"{folder.resolve().name}-{digest.hexdigest()[:16]}"


def import_once(folder: Path) -> Path:
    """The folder of a released checkpoint in transformers' format. Imports it if the cache does not have it.

    Safe to call from several processes at once: one imports, the others wait for it.

    Raises:
        UsageError: ``folder`` is not a complete released checkpoint.
        Gotr1Error: the cache cannot be written.
    """
    from filelock import FileLock

    from gotr1_janus.convert import import_checkpoint

    entry = cache_entry(folder)
    if not entry.is_dir():
        entry.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(entry.with_name(f"{entry.name}.lock")):
            if not entry.is_dir():
                print(f"{folder} is a released checkpoint: imported once, into {entry}", file=sys.stderr)
                import_checkpoint(folder, entry, lambda line: print(line, file=sys.stderr))
    return entry
