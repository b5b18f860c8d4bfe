"""What ``gotr1 doctor`` looks at where no run is named: is this installation fit to train?"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from gotr1_core.hookspecs import Diagnosis
from gotr1_core.plugins import RAISED, Registry, one_line

GB = 1e9
ROOM = 5.0  # GB: a checkpoint of a small model with its optimizer, and a cache that can grow


def diagnose(registry: Registry) -> Iterator[Diagnosis]:
    """Every check in turn; each is made when it is asked for, as some take seconds."""
    yield Diagnosis("python", sys.version_info >= (3, 11), platform.python_version(), "install Python 3.11 or newer")
    yield from _packages()
    yield from _devices()
    yield from _disks()
    yield _hub()
    yield from _plugins(registry)


def _packages() -> Iterator[Diagnosis]:
    """The core's dependencies in the versions that it asks for."""
    from packaging.requirements import Requirement

    for text in requires("gotr1") or ():
        wanted = Requirement(text)
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(wanted.name)
        except PackageNotFoundError:
            found = ""
        fits = bool(found) and wanted.specifier.contains(found, prereleases=True)
        yield Diagnosis(wanted.name, fits, found or "not installed", f"pip install '{wanted.name}{wanted.specifier}'")


def _devices() -> Iterator[Diagnosis]:
    import torch

    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(number)
            name = torch.cuda.get_device_name(number)
            busy = "other processes hold most of its memory: nvidia-smi shows which"
            yield Diagnosis(f"GPU {number}", free > total / 2, f"{name}, {free / GB:.0f} of {total / GB:.0f} GB free", busy)
    else:
        yield Diagnosis("device", True, f"no GPU; {os.cpu_count()} CPU cores, {torch.get_num_threads()} threads")


def _disks() -> Iterator[Diagnosis]:
    from huggingface_hub import constants

    for name, folder in (("disk of runs/", Path.cwd()), ("disk of the model cache", Path(constants.HF_HUB_CACHE))):
        place = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
        free = shutil.disk_usage(place).free / GB
        yield Diagnosis(
            name, free > ROOM and os.access(place, os.W_OK), f"{free:.0f} GB free at {place}", "make room, or choose another disk"
        )


def _hub() -> Diagnosis:
    """Whether models could be downloaded; not being able to is no illness where they are on disk."""
    from gotr1_core.weights import hub_problem

    problem = hub_problem()
    return Diagnosis("model hub", True, problem or "answers")


def _plugins(registry: Registry) -> Iterator[Diagnosis]:
    for plugin in registry.loaded:
        yield Diagnosis(plugin.distribution, True, f"{plugin.version}, {len(plugin.components)} components")
    for broken in registry.broken:
        yield Diagnosis(broken.distribution, False, broken.error, "install it again, or leave it out with GOTR1_DISABLE_PLUGINS")
    for plugin, checks in registry.implementations("gotr1_checks"):
        try:
            yield from checks()
        except RAISED as error:
            yield Diagnosis(f"{plugin.distribution}'s own checks", False, one_line(error), "tell its authors")
