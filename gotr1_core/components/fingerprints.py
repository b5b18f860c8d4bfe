"""The fingerprints of the files that a component reads, and what a judge's scores depend on."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from gotr1_core.config.models import ComponentConfig
from gotr1_core.config.paths import Input, change_marked
from gotr1_core.hookspecs import Kind
from gotr1_core.plugins import Registry, options_of
from gotr1_core.policies.hub import cached_commit

Fingerprint = dict[str, Any]
"""Of one input, JSON-ready: ``name``, and ``files`` with a SHA-256 for each file, or the ``commit`` of a hub's copy (None: not known)."""

WHOLE, PIECE, PIECES = 2**28, 2**16, 1024
"""A file of up to WHOLE bytes is hashed whole. Of a larger one, its size and so many pieces of so many bytes, evenly spaced, are hashed."""


def component_inputs(registry: Registry, kind: Kind, component: ComponentConfig, key: str) -> dict[str, Fingerprint]:
    """The fingerprints of the inputs that a component's options mark, with defaults, by config key. ``key`` is the component's.

    Raises:
        UsageError: an option is wrong.
    """
    options = options_of(registry.find(kind, component.name).component, component.options)
    inputs: dict[str, Fingerprint] = {}

    def add(item: str, text: str, mark: Input, given: Mapping[str, Any]) -> None:
        if mark.is_path(text, given) or Path(text).is_absolute():  # the latter: it may be missing now
            inputs[item] = path_fingerprint(Path(text).expanduser())
        elif "/" in text:
            inputs[item] = {"name": text, "commit": cached_commit(text)}

    change_marked(type(options), options, add, key)
    return inputs


def path_fingerprint(path: Path) -> Fingerprint:
    """The fingerprint of a file or folder. Of a missing one ``files`` is empty. Hidden files do not count.

    Of a folder its own files count, and those of its subfolders unless it is a model (it has a ``config.json``).
    A hub's copy in the local cache has its commit instead.
    """
    if path.parent.name == "snapshots" and re.fullmatch("[0-9a-f]{40}", path.name):
        return {"name": str(path), "commit": path.name}
    model = (path / "config.json").is_file() and not (path / "model_index.json").is_file()  # a pipeline's weights are in subfolders
    patterns = ("*",) if model else ("*", "*/*")
    found = {"": path} if path.is_file() else {str(f.relative_to(path)): f for p in patterns for f in sorted(path.glob(p)) if f.is_file()}
    visible = {name: file for name, file in found.items() if not any(part.startswith((".", "__pycache__")) for part in Path(name).parts)}
    return {"name": str(path), "files": {name: file_digest(file) for name, file in visible.items()}}


def file_digest(path: Path) -> str | None:
    """The SHA-256 of a file, or of its size and evenly spaced pieces if it is large; None if it cannot be read."""
    with suppress(OSError, ValueError):
        if not path.is_file():  # opening a pipe may wait for ever
            return None
    with suppress(OSError, ValueError), path.open("rb") as file:
        size = path.stat().st_size
        digest = hashlib.sha256(str(size).encode() if size > WHOLE else b"")
        starts = range(0, size, PIECE) if size <= WHOLE else (number * (size - PIECE) // (PIECES - 1) for number in range(PIECES))
        for start in starts:  # not to the end: a file of the system may have none
            file.seek(start)
            digest.update(file.read(min(PIECE, size - start)))
        return digest.hexdigest()
    return None


def judge_facts(registry: Registry, config: ComponentConfig) -> dict[str, Any]:
    """What the scores of a judge depend on, as JSON: its name, distribution and version, options with defaults, what its files contain.

    Raises:
        UsageError: an option is wrong.
    """
    provided = registry.find("judge", config.name)
    options = options_of(provided.component, config.options)
    files = {key: file | {"name": ""} for key, file in component_inputs(registry, "judge", config, "judge").items()}
    changeable: frozenset[str] = getattr(options, "changeable", frozenset())
    given = {} if options is None else {key: value for key, value in options.model_dump(mode="json").items() if key not in changeable}
    return {"name": config.name, "distribution": provided.distribution, "version": provided.version, "options": given, "files": files}
