"""Released checkpoints that a config names, imported once."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

from gotr1_janus.processor import FILES

VARIABLE = "GOTR1_CACHE"
_VERSION = 1  # of what the import writes: another number imports again


def cache_folder() -> Path:
    """Where imported checkpoints lie: ``GOTR1_CACHE``, or ``gotr1`` in the user's cache (``XDG_CACHE_HOME``, else ``~/.cache``)."""
    own = os.environ.get(VARIABLE)
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "gotr1"


def place_of(folder: Path) -> Path:
    """The folder in the cache for a released checkpoint, by names, sizes and times of its files: one that has changed has another."""
    digest = hashlib.sha256(str(_VERSION).encode())
    names = {"config.json", *FILES} & {path.name for path in folder.iterdir()}
    weights = {path.name for suffix in ("safetensors", "bin") for path in folder.glob(f"*.{suffix}")}
    for name in sorted(names | weights):
        status = (folder / name).stat()
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return cache_folder() / "janus" / f"{folder.resolve().name}-{digest.hexdigest()[:16]}"


def imported(folder: Path) -> Path:
    """A released checkpoint in transformers' format, imported if that was not done before. Several processes may ask at once.

    Raises:
        UsageError, Gotr1Error: it cannot be imported.
    """
    from filelock import FileLock

    from gotr1_janus.convert import import_checkpoint

    place = place_of(folder)
    if not place.is_dir():
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(place.with_name(f"{place.name}.lock")):
            if not place.is_dir():
                print(f"{folder} is a released checkpoint: imported once, into {place}", file=sys.stderr)
                import_checkpoint(folder, place, lambda line: print(line, file=sys.stderr))
    return place
