"""What ``gotr1 doctor`` looks at where no run is named: is this installation fit to train?"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from gotr1_core.hookspecs import Diagnosis
from gotr1_core.plugins import RAISED, Registry, one_line

GB = 1e9
ROOM = {"runs": 1.0, "models": 5.0}  # GB: many checkpoints of adapters; one download of a model of a billion parameters


def diagnose(registry: Registry) -> Iterator[Diagnosis]:
    """Every check in turn; each is made when it is asked for, as some take seconds."""
    yield _one("python", sys.version_info >= (3, 11), platform.python_version(), "install Python 3.11 or newer")
    yield from _packages(registry)
    yield from _devices()
    yield from _disks()
    yield _hub()
    yield from _plugins(registry)


def _one(name: str, healthy: bool, found: str, hint: str) -> Diagnosis:
    """A diagnosis with its hint only where that is needed."""
    return Diagnosis(name, healthy, found, "" if healthy else hint)


def _packages(registry: Registry) -> Iterator[Diagnosis]:
    """What gotr1 and the plugins depend on, in the versions that they ask for; a package once, unless one of them is not content."""
    from packaging.requirements import Requirement

    told: set[str] = set()
    for asker in dict.fromkeys(["gotr1", *(plugin.distribution for plugin in registry.loaded)]):
        try:
            texts = requires(asker) or ()
        except PackageNotFoundError:  # a plugin that is a file, or gotr1 run from its sources
            continue
        for text in texts:
            wanted = Requirement(text)
            if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
                continue
            found = _version(wanted.name)
            fits = bool(found) and wanted.specifier.contains(found, prereleases=True)
            if not fits or wanted.name not in told:
                told.add(wanted.name)
                asked = f"{found or 'not installed'}{'' if fits else f', and {asker} needs {wanted.name}{wanted.specifier}'}"
                yield _one(wanted.name, fits, asked, f"pip install '{wanted.name}{wanted.specifier}'")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _devices() -> Iterator[Diagnosis]:
    import torch

    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            yield _gpu(number)
    elif shutil.which("nvidia-smi"):
        why = f"nvidia-smi is here, and torch {torch.__version__} sees no GPU"
        yield Diagnosis("device", False, why, "install a torch for CUDA that this driver knows, and look at CUDA_VISIBLE_DEVICES")
    else:
        yield Diagnosis("device", True, f"no GPU; {os.cpu_count()} CPU cores, {torch.get_num_threads()} threads")


def _gpu(number: int) -> Diagnosis:
    import torch

    name = f"GPU {number}"
    try:
        free, total = torch.cuda.mem_get_info(number)
        found = f"{torch.cuda.get_device_name(number)}, {free / GB:.0f} of {total / GB:.0f} GB free"
    except RuntimeError as error:
        return Diagnosis(name, False, one_line(error), "look at nvidia-smi; a GPU that fails can be left out with CUDA_VISIBLE_DEVICES")
    return _one(name, free > total / 2, found, "other processes hold most of its memory: nvidia-smi shows which")


def _disks() -> Iterator[Diagnosis]:
    from huggingface_hub import constants

    yield _disk("disk of runs", Path.cwd(), ROOM["runs"], "make room, or train on another disk with output=DIR")
    yield _disk("disk of models", Path(constants.HF_HUB_CACHE), ROOM["models"], "make room, or set HF_HOME to a folder on another disk")


def _disk(name: str, folder: Path, room: float, hint: str) -> Diagnosis:
    place = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    free, mine = shutil.disk_usage(place).free / GB, os.access(place, os.W_OK)
    found = f"{free:.0f} GB free at {place}" if mine else f"{place} cannot be written to"
    return _one(name, mine and free >= room, found, hint)


def _hub() -> Diagnosis:
    """Whether models could be downloaded. Where they could not a hint says what to do, but what is on disk trains without."""
    from gotr1_core.policies.hub import hub_problem

    problem = hub_problem()
    hint = "`hf download OWNER/NAME --local-dir DIR` where there is a network, then planner.model=DIR; what is on disk loads without"
    return Diagnosis("model hub", True, problem or "answers", hint if problem else "")


def _plugins(registry: Registry) -> Iterator[Diagnosis]:
    for plugin in registry.loaded:
        yield Diagnosis(f"plugin {plugin.name}", True, f"{plugin.distribution} {plugin.version}, components: {len(plugin.components)}")
    for broken in registry.broken:
        hint = f"install {broken.distribution} again, or leave it out: GOTR1_DISABLE_PLUGINS={broken.name}"
        yield Diagnosis(f"plugin {broken.name}", False, broken.error, hint)
    for plugin, checks in registry.implementations("gotr1_checks"):
        yield from _own(plugin.distribution, checks)


def _own(distribution: str, checks: Callable[[], Iterable[Diagnosis]]) -> Iterator[Diagnosis]:
    """A plugin's own checks, in their own ``try``."""
    try:
        for found in checks():
            if not isinstance(found, Diagnosis) or not all(isinstance(text, str) for text in (found.name, found.found, found.hint)):
                raise TypeError(f"{found!r} is no Diagnosis of texts")
            yield found
    except RAISED as error:
        yield Diagnosis(f"checks of {distribution}", False, one_line(error), f"they fail themselves: tell the authors of {distribution}")
