"""Where a model's weights are: a folder, the local cache, or a hub that answers. Told in seconds, before anything is loaded.

A hub's own library retries for much longer than anybody waits for an answer to "is it there?".
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, TypeVar

from gotr1_core.errors import UsageError, first_line

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

T = TypeVar("T")
Check: TypeAlias = Callable[[Mapping[str, Any]], None]

DEADLINE = 2.0
"""Seconds a hub has to answer, name resolution included. A command that asks takes two or three to start, and a user waits five."""

MINIATURE = "the miniature needs no download: `gotr1 train --preset scenes`"


@dataclass(frozen=True)
class Weights:
    """A checkpoint that can be had.

    Attributes:
        folder: where it lies, whole; None where the hub has it and the library that loads it will download it.
        config: its `config.json` (of a diffusers pipeline `model_index.json`), or what the hub tells of it.
        parameters: how many numbers its tensors hold; None where that is not known.
    """

    folder: Path | None
    config: Mapping[str, Any]
    parameters: int | None = None


class _Lacking(Exception):
    """A folder is no whole checkpoint; the message goes on after its name."""


def find_weights(model: str, *, key: str, check: Check | None = None) -> Weights:
    """Where a model's weights are, asking the hub if need be; never longer than `DEADLINE` and what reading headers takes.

    Args:
        model: a folder, or a hub name `owner/name`.
        key: where the config says it, such as `planner.model`, for the messages.
        check: raises `UsageError` for a config that the component cannot load; asked before the weights are looked at.

    Raises:
        UsageError: it is neither on disk nor to be had; says what is missing, how to get it, and how to point to it.
    """
    folder = _folder(model)
    if folder is not None:
        try:
            return _read(folder, check)
        except _Lacking as error:
            raise UsageError(
                f"{key}: the folder {model} {error}",
                hint=f"point {key} to a whole checkpoint (`hf download OWNER/NAME --local-dir DIR` gets one); {MINIATURE}",
            ) from None
    _refuse_other_text(model, key)
    snapshot, lacking = _snapshot(model), "are not in the local cache"
    if snapshot is not None:
        try:
            return _read(snapshot, check)
        except _Lacking as error:
            lacking = f"are in the local cache, but the copy {error}"
    return _on_hub(model, key, check, lacking)


def local_folder(model: str, *, key: str) -> Path | None:
    """The folder that a model's name stands for, whole or not: one that exists, or what the local cache has of a hub name."""
    folder = _folder(model)
    if folder is None:
        _refuse_other_text(model, key)
        folder = _snapshot(model)
    return folder


def _folder(model: str) -> Path | None:
    try:
        path = Path(model).expanduser()
        return path if model.strip() and path.is_dir() else None
    except (OSError, ValueError, RuntimeError):  # a name that no file system takes, or no user's home
        return None


def _refuse_other_text(model: str, key: str) -> None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(model)
        if "/" in model:
            return
    except HFValidationError:
        pass
    shown = repr(model if len(model) <= 80 else model[:77] + "...")
    raise UsageError(
        f"{key}: {shown} is neither a folder that exists nor a hub name owner/name",
        hint=f"set {key}=DIR to a checkpoint's folder, or to a hub name; {MINIATURE}",
    )


def _snapshot(model: str) -> Path | None:
    """The folder of a model's files in the cache, whole or not."""
    from huggingface_hub import try_to_load_from_cache

    for name in _CONFIGS:
        found = try_to_load_from_cache(model, name)
        if isinstance(found, str):
            return Path(found).parent
    return None


# -- a folder ---------------------------------------------------------------------------------------------------------------

_CONFIGS = ("model_index.json", "config.json")


def _read(folder: Path, check: Check | None) -> Weights:
    """The checkpoint in a folder, a pipeline's parts included. Headers are read, no tensor is."""
    name = next((name for name in _CONFIGS if (folder / name).is_file()), None)
    if name is None:
        raise _Lacking("has no config.json (and no model_index.json)")
    config = _json(folder, name)
    if check is not None:
        check(config)
    return Weights(folder, config, _parts(folder, config) if name == "model_index.json" else _tensors(folder))


def _parts(folder: Path, index: Mapping[str, Any]) -> int:
    """A pipeline's parts, `{"unet": ["library", "class"], ...}`; those with a config.json of their own are models."""
    named = [name for name, kind in index.items() if isinstance(kind, list) and len(kind) == 2 and all(kind)]
    missing = [name for name in named if not (folder / name).is_dir()]
    if missing:
        raise _Lacking(f"lacks the part {missing[0]}")
    models = [name for name in named if (folder / name / "config.json").is_file()]
    return sum(_tensors(folder / name, f"{name}/") for name in models)


def _tensors(folder: Path, prefix: str = "") -> int:
    """Counts the parameters of a model's files, each of which must be there and whole."""
    files = {path.name for path in folder.glob("*.safetensors")}
    for index in folder.glob("*.safetensors.index*.json"):
        listed = _json(folder, index.name).get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
            raise _Lacking(f"has a {prefix}{index.name} without a weight_map")
        files |= set(listed.values())
    if not files:
        raise _Lacking(f"has no {prefix}*.safetensors (weights in other formats are not loaded)")
    return sum(_parameters(folder, name, prefix) for name in sorted(files))


def _parameters(folder: Path, name: str, prefix: str) -> int:
    from safetensors import SafetensorError, safe_open

    if not (folder / name).is_file():
        raise _Lacking(f"lacks {prefix}{name}, which its index names")
    try:
        # Opening reads the header, and compares what it says with the file's size.
        with safe_open(folder / name, framework="np") as file:
            return sum(math.prod(file.get_slice(tensor).get_shape()) for tensor in file.keys())  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise _Lacking(f"has a {prefix}{name} that is cut off or damaged ({first_line(error)})") from None


def _json(folder: Path, name: str) -> Mapping[str, Any]:
    try:
        found = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _Lacking(f"has a {name} that cannot be read ({first_line(error)})") from None
    if not isinstance(found, dict):
        raise _Lacking(f"has a {name} that is no JSON object")
    return found


# -- the hub ----------------------------------------------------------------------------------------------------------------


def _on_hub(model: str, key: str, check: Check | None, lacking: str) -> Weights:
    """What the hub tells of a model that is not on disk."""
    from huggingface_hub import constants

    def refuse(why: str, first: str = "") -> NoReturn:
        get = f"{first}`hf download {model} --local-dir DIR`, then {key}=DIR; {MINIATURE}"
        raise UsageError(f"{key}: there is no folder {model}, and the weights of that name {lacking}; {why}", hint=get)

    if constants.HF_HUB_OFFLINE:
        refuse("HF_HUB_OFFLINE forbids to ask the hub", "unset it, or where there is a network: ")
    try:
        info = _within(DEADLINE, lambda: _ask(model))
    except Exception as error:  # the network's, the hub's and its library's failures have no common class
        refuse(*_reason(error))
    if check is not None and info.config:
        check(info.config)
    files = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    if not any(name.endswith(".safetensors") for name in files):
        refuse("the hub has no *.safetensors of it, and no other format is loaded", "choose another model: ")
    need, free = _to_download(model, files), _free(Path(constants.HF_HUB_CACHE))
    if need > free:
        refuse(
            f"they are {need / 1e9:.1f} GB, and the cache's disk has {free / 1e9:.1f} GB left",
            "make room, set HF_HOME to another disk, or ",
        )
    return Weights(None, info.config or {}, info.safetensors.total if info.safetensors else None)


def hub_problem() -> str | None:
    """Why no model could be downloaded now, or None."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE forbids to ask it"
    try:
        _within(DEADLINE, lambda: get_session().head(constants.ENDPOINT, timeout=DEADLINE))
    except Exception as error:  # as above
        return _reason(error)[0]
    return None


def _ask(model: str) -> ModelInfo:
    from huggingface_hub import HfApi, constants

    hub = HfApi(endpoint=constants.ENDPOINT)
    info = hub.model_info(model, files_metadata=True, timeout=DEADLINE)
    if info.gated:
        hub.auth_check(model)
    return info


def _within(seconds: float, work: Callable[[], T]) -> T:
    """The result of some work; `TimeoutError` if it takes longer. In a daemon thread: nothing else interrupts name resolution."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except Exception as error:  # is raised where the result is waited for
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future.result(timeout=seconds)


def _reason(error: Exception) -> tuple[str, str]:
    """Why the hub gave nothing, and what comes before the command that downloads."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    network = "with a network: "
    if isinstance(error, GatedRepoError):
        return "the hub gives them to those only who accepted their terms", "accept them on the model's page and set HF_TOKEN, then "
    if isinstance(error, RepositoryNotFoundError):
        return "the hub has no such model, or a private one", "check the name, set HF_TOKEN for a private one, then "
    if isinstance(error, HfHubHTTPError):  # without the hub's own code for it, 404 may as well be a proxy's word
        return f"{constants.ENDPOINT} answers with status {error.response.status_code}", network
    if isinstance(error, TimeoutError):
        return f"the hub did not answer within {DEADLINE:g} seconds", network
    return f"the hub cannot be reached ({first_line(error)})", network


def _to_download(model: str, files: Mapping[str, int]) -> int:
    """Bytes that transformers would download, of its own layout; 0 of another one, and without what the cache has already."""
    from huggingface_hub import try_to_load_from_cache

    wanted = [name for name in files if name == "model.safetensors"]
    wanted = wanted or [name for name in files if re.fullmatch(r"model-\d+-of-\d+\.safetensors", name)]
    return sum(files[name] for name in wanted if not isinstance(try_to_load_from_cache(model, name), str))


def _free(folder: Path) -> int:
    """Bytes left on the disk where a folder is or will be."""
    return shutil.disk_usage(next(parent for parent in (folder, *folder.parents) if parent.is_dir())).free
