"""Keeps the fingerprints of the files that a run reads, and refuses to go on with other files."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection
from pathlib import Path

from gotr1_core.components.inputs import FINGERPRINTS, Changes, changed_inputs, describe_changes, run_inputs
from gotr1_core.components.resolve import add_config_plugins
from gotr1_core.config.models import RunConfig
from gotr1_core.engine.console import print
from gotr1_core.engine.files import read_json, write_atomically
from gotr1_core.errors import UsageError
from gotr1_core.plugins import Registry
from gotr1_core.runs.checkpoint import complete_checkpoints
from gotr1_core.runs.records import ENVIRONMENT, INPUTS, lock_folder, read_environment, run_config

POLICIES = ("plugins", "planner", "renderer")
"""First words of the config keys of the files that drawing reads."""
COMPONENTS = (*POLICIES, "judge", "algorithm")
ALL = (*COMPONENTS, "prompts")


def check_inputs(folder: Path, registry: Registry, config: RunConfig, reads: Collection[str], *, accept: bool = False) -> None:
    """Checks that the files that the run in ``folder`` reads are those that it started with, or that the user accepted later.

    ``reads`` are the first words of the config keys that count. With ``accept``, changes are only printed, and not recorded.

    Raises:
        UsageError: a file is not the same, or is missing.
    """
    changes = _changes(folder, registry, config, reads)
    if changes and accept:
        print(f"warning: other inputs than those of {folder}: {describe_changes(changes)}", file=sys.stderr)
    elif changes:
        accepting = f"gotr1 train --resume {folder} --accept-changes" if "prompts" in reads else "--accept-changes"
        raise UsageError(
            f"{folder} was trained with other inputs: {describe_changes(changes)}",
            hint=f"put back what was there, or go on with what is there now: {accepting}; if it moved, write its path into config.yaml",
        )


def _changes(folder: Path, registry: Registry, config: RunConfig, reads: Collection[str]) -> Changes:
    recorded = {key: value for key, value in read_json(folder / INPUTS, FINGERPRINTS).items() if key.partition(".")[0] in reads}
    return changed_inputs(recorded, run_inputs(registry, config, reads))


def accept_changes(folder: Path, *, registry: Registry | None = None) -> Changes:
    """Records in a run that its inputs are from now on those that are there now. Call it before the run is resumed.

    Returns the changes. They also go into ``environment.json`` under ``accepted``, with the step of the last checkpoint.

    Raises:
        UsageError: no run is there, it is being trained, or one of its inputs is missing.
    """
    registry, config = registry or Registry(), run_config(folder)
    add_config_plugins(registry, config.plugins)
    changes = _changes(folder, registry, config, ALL)
    missing = {key: change for key, change in changes.items() if not change[1].get("files", True)}
    if missing:
        raise UsageError(describe_changes(missing), hint="put it back, or write its new path into config.yaml")
    if changes:
        with lock_folder(folder):
            environment, step = read_environment(folder), max(complete_checkpoints(folder), default=0)
            accepted = [*environment.get("accepted", ()), {"step": step, "changed": changes}]
            inputs = read_json(folder / INPUTS, FINGERPRINTS) | {key: new for key, (_, new) in changes.items()}
            write_atomically(folder / ENVIRONMENT, json.dumps({**environment, "accepted": accepted}, indent=1))
            write_atomically(folder / INPUTS, json.dumps(inputs, indent=1))
    return changes
