"""Checks of an installation, for ``gotr1 doctor`` without a run: is it fit to train?"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from gotr1_core.border.discovery import raised_by_plugin
from gotr1_core.errors import one_line
from gotr1_core.hookspecs import Diagnosis
from gotr1_core.plugins import Registry

GB = 1e9
ROOM = {"runs": 1.0, "models": 5.0}  # GB: many checkpoints of adapters; one download of a model with a billion parameters


def diagnose(registry: Registry) -> Iterator[Diagnosis]:
    """Yields the result of every check. A check runs when its result is asked for, because some take seconds."""
    yield _diagnosis("python", sys.version_info >= (3, 11), platform.python_version(), "install Python 3.11 or newer")
    yield from _packages(registry)
    yield from _devices()
    yield from _disks()
    yield _hub()
    yield from _plugins(registry)


def _diagnosis(name: str, healthy: bool, found: str, hint: str) -> Diagnosis:
    """Returns a diagnosis. It has the hint only if it is not healthy."""
    return Diagnosis(name, healthy, found, "" if healthy else hint)


def _packages(registry: Registry) -> Iterator[Diagnosis]:
    """Checks the versions of the packages that gotr1 and the plugins require. Yields a package once, and again for each wrong version."""
    from packaging.requirements import Requirement

    reported: set[str] = set()
    for distribution in dict.fromkeys(["gotr1", *(plugin.distribution for plugin in registry.loaded)]):
        try:
            texts = requires(distribution) or ()
        except PackageNotFoundError:  # the plugin is a file, or gotr1 runs from its sources
            continue
        for text in texts:
            required = Requirement(text)
            if required.marker and not required.marker.evaluate({"extra": ""}):
                continue
            installed = _version(required.name)
            fits = bool(installed) and required.specifier.contains(installed, prereleases=True)
            if not fits or required.name not in reported:
                reported.add(required.name)
                problem = "" if fits else f", but {distribution} needs {required.name}{required.specifier}"
                hint = f"pip install '{required.name}{required.specifier}'"
                yield _diagnosis(required.name, fits, f"{installed or 'not installed'}{problem}", hint)


def _version(package: str) -> str:
    """Returns the installed version of a package; empty if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _devices() -> Iterator[Diagnosis]:
    import torch

    from gotr1_core.engine.threads import policy_in_words

    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            yield _gpu(number)
    elif shutil.which("nvidia-smi"):
        problem = f"nvidia-smi is installed, but torch {torch.__version__} sees no GPU"
        yield Diagnosis("device", False, problem, "install a torch for a CUDA that the driver supports, and check CUDA_VISIBLE_DEVICES")
    else:
        yield Diagnosis("device", True, f"no GPU; {os.cpu_count()} CPU cores")
    yield Diagnosis("threads", True, f"{torch.get_num_threads()}, {policy_in_words()}")


def _gpu(number: int) -> Diagnosis:
    import torch

    name = f"GPU {number}"
    try:
        free, total = torch.cuda.mem_get_info(number)
        memory = f"{torch.cuda.get_device_name(number)}, {free / GB:.0f} of {total / GB:.0f} GB free"
    except RuntimeError as error:
        return Diagnosis(name, False, one_line(error), "run nvidia-smi; CUDA_VISIBLE_DEVICES can leave out a GPU that fails")
    return _diagnosis(name, free > total / 2, memory, "other processes use most of its memory: nvidia-smi shows which")


def _disks() -> Iterator[Diagnosis]:
    from huggingface_hub import constants

    yield _disk("disk of runs", Path.cwd(), ROOM["runs"], "free disk space, or train on another disk with output=DIR")
    yield _disk(
        "disk of models", Path(constants.HF_HUB_CACHE), ROOM["models"], "free disk space, or set HF_HOME to a folder on another disk"
    )


def _disk(name: str, folder: Path, room: float, hint: str) -> Diagnosis:
    existing = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    free, writable = shutil.disk_usage(existing).free / GB, os.access(existing, os.W_OK)
    space = f"{free:.0f} GB free at {existing}" if writable else f"{existing} cannot be written to"
    return _diagnosis(name, writable and free >= room, space, hint)


def _hub() -> Diagnosis:
    """Checks if models can be downloaded. If not, the diagnosis is a note and no failure: models on disk train without the hub."""
    from gotr1_core.policies.hub import hub_problem

    problem = hub_problem()
    hint = "run `hf download OWNER/NAME --local-dir DIR` with a network, then set planner.model=DIR; models on disk need no hub"
    return Diagnosis("model hub", True, problem or "answers", hint if problem else "")


def _plugins(registry: Registry) -> Iterator[Diagnosis]:
    for plugin in registry.loaded:
        yield Diagnosis(f"plugin {plugin.name}", True, f"{plugin.distribution} {plugin.version}, components: {len(plugin.components)}")
    for broken in registry.broken:
        hint = f"install {broken.distribution} again, or disable it: GOTR1_DISABLE_PLUGINS={broken.name}"
        yield Diagnosis(f"plugin {broken.name}", False, broken.error, hint)
    for plugin, checks in registry.implementations("gotr1_checks"):
        yield from _plugin_checks(plugin.distribution, checks)


def _plugin_checks(distribution: str, checks: Callable[[], Iterable[Diagnosis]]) -> Iterator[Diagnosis]:
    """Yields the results of a plugin's own checks. If they raise an error, that is a diagnosis too."""
    try:
        for result in checks():
            if not isinstance(result, Diagnosis) or not all(isinstance(text, str) for text in (result.name, result.found, result.hint)):
                raise TypeError(f"{result!r} is not a Diagnosis of texts")
            yield result
    except raised_by_plugin() as error:
        yield Diagnosis(f"checks of {distribution}", False, one_line(error), f"the checks fail: tell the authors of {distribution}")
