"""Finds a model's weights in a folder, in the local cache or on the hub, within seconds and before anything is loaded.

The hub's own library is not left to do this, because it retries for much longer than a user waits.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, TypeVar

from gotr1_core.config.paths import check_regular_files
from gotr1_core.engine.files import FILE_BYTES, read_text
from gotr1_core.errors import UsageError, first_line

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

T = TypeVar("T")
Check: TypeAlias = Callable[[Mapping[str, Any]], None]

DEADLINE = 2.0
"""Seconds that the hub has to answer, including name resolution. The command itself starts in two or three; a user waits about five."""

MINIATURE = "the miniature needs no download: `gotr1 train --preset scenes`"


@dataclass(frozen=True)
class Weights:
    """A checkpoint that is available.

    Attributes:
        folder: where its complete files are; None if they are on the hub, and the library that loads them will download them.
        config: its `config.json` (`model_index.json` for a diffusers pipeline), or what the hub reports of it.
        parameters: its number of parameters; None if unknown.
    """

    folder: Path | None
    config: Mapping[str, Any]
    parameters: int | None = None


class _Incomplete(Exception):
    """A folder is not a complete checkpoint. The message continues a sentence that begins with the folder.

    ``variant`` is the one to set instead, null for none, if the files are of another variant than the config asks for.
    """

    def __init__(self, message: str, variant: str | None = None) -> None:
        super().__init__(message)
        self.variant = variant


def find_weights(model: str, *, key: str, check: Check | None = None, variant: str | None = None) -> Weights:
    """Finds a model's weights; asks the hub only if they are not on disk. Takes at most `DEADLINE` plus the time to read headers.

    Args:
        model: a folder, or a hub name `owner/name`.
        key: the config key that names the model, such as `planner.model`, for messages.
        check: raises `UsageError` for a config that the component cannot load; called before the weights are checked.
        variant: of a diffusers pipeline's files, such as ``fp16``; each part that has it is read in it.

    Raises:
        UsageError: the weights are neither on disk nor available on the hub. Says what is missing, how to get it and where to set it.
    """
    folder = _existing_folder(model)
    if folder is not None:
        try:
            return _read_checkpoint(folder, check, variant)
        except _Incomplete as error:
            hint = f"set {key} to the folder of a complete checkpoint (`hf download OWNER/NAME --local-dir DIR` gets one); {MINIATURE}"
            hint = hint if error.variant is None else _variant_hint(key, error.variant)
            raise UsageError(f"{key}: the folder {model} {error}", hint=hint) from None
    _check_hub_name(model, key)
    snapshot, cache_state = _cached_folder(model), "are not in the local cache"
    if snapshot is not None:
        try:
            return _read_checkpoint(snapshot, check, variant)
        except _Incomplete as error:
            cache_state = f"are in the local cache, but the copy {error}"
    return _find_on_hub(model, key, check, cache_state, variant)


def local_folder(model: str, *, key: str) -> Path | None:
    """Returns the folder of a model, complete or not: an existing folder, or the local cache's copy for a hub name; None if neither."""
    folder = _existing_folder(model)
    if folder is None:
        _check_hub_name(model, key)
        folder = _cached_folder(model)
    return folder


def cached_commit(model: str) -> str | None:
    """Returns the commit of a hub name's copy in the local cache; None if the cache has none, or the name cannot be a hub's."""
    with suppress(ValueError):
        folder = _cached_folder(model)
        return folder.name if folder else None
    return None


def _existing_folder(model: str) -> Path | None:
    try:
        path = Path(model).expanduser()
        return path if model.strip() and path.is_dir() else None
    except (OSError, ValueError, RuntimeError):  # not a valid path, or an unknown user's home
        return None


def _check_hub_name(model: str, key: str) -> None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    with suppress(HFValidationError):
        validate_repo_id(model)
        if "/" in model:
            return
    quoted = repr(model if len(model) <= 80 else model[:77] + "...")
    raise UsageError(
        f"{key}: {quoted} is neither a folder that exists nor a hub name owner/name",
        hint=f"set {key} to the folder of a checkpoint or to a hub name; {MINIATURE}",
    )


def _cached_folder(model: str) -> Path | None:
    """The folder of a model's files in the local cache, complete or not."""
    from huggingface_hub import try_to_load_from_cache

    for name in _CONFIGS:
        path = try_to_load_from_cache(model, name)
        if isinstance(path, str):
            return Path(path).parent
    return None


# -- a folder ---------------------------------------------------------------------------------------------------------------

_CONFIGS = ("model_index.json", "config.json")


_WEIGHTS_FILE = re.compile(r"[^.]+(?:\.(?P<variant>[\w-]+?))?(?:-\d+-of-\d+)?\.safetensors")
_PARTS = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")


def _variant_of(name: str) -> str | None:
    """The variant in a file's name, such as ``fp16`` in ``model.fp16.safetensors``; None for a file of no variant."""
    match = _WEIGHTS_FILE.fullmatch(name)
    return match and match["variant"]


def _variant_hint(key: str, variant: str) -> str:
    return f"set {key.removesuffix('model')}variant={variant}"


def _read_checkpoint(folder: Path, check: Check | None, variant: str | None) -> Weights:
    """Reads the config and the tensors' headers of a checkpoint or pipeline. No tensor is read."""
    try:
        check_regular_files(folder, "*", "*/*")
    except OSError as error:
        raise _Incomplete(f"has a file that cannot be read: {error.filename}: {error.strerror}") from None
    name = next((name for name in _CONFIGS if (folder / name).is_file()), None)
    if name is None:
        raise _Incomplete("has no config.json (and no model_index.json)")
    config = _read_json_object(folder, name)
    _refuse_kernels(config)
    if not isinstance(config.get("model_type"), str | None):
        raise _Incomplete(f"has a {name} whose model_type is no text: {str(config['model_type'])[:80]}")
    if check is not None:
        check(config)
    is_pipeline = name == "model_index.json"
    return Weights(folder, config, _count_pipeline_parameters(folder, config, variant) if is_pipeline else _count_model_parameters(folder))


def _refuse_kernels(config: Mapping[str, Any]) -> None:
    """Refuses a config that names code on the hub as its kernel, such as ``owner/name`` for attention: transformers would run it."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            _refuse_kernels(value)
        elif key.endswith("_implementation") and isinstance(value, str) and "/" in value:
            raise _Incomplete(f"has a config.json whose {key} is code on the hub: {value[:80]!r}")


def _count_pipeline_parameters(folder: Path, index: Mapping[str, Any], variant: str | None) -> int:
    """Counts the parameters of a pipeline. Its index is `{"unet": ["library", "class"], ...}`; parts with a config.json are models."""
    parts = [name for name, kind in index.items() if isinstance(kind, list) and len(kind) == 2 and all(kind)]
    missing = [name for name in parts if not _is_plain(name) or not (folder / name).is_dir()]
    if missing:
        raise _Incomplete(f"lacks the part {missing[0]}")
    models = [name for name in parts if (folder / name / "config.json").is_file()]
    if variant and not any(_variant_of(file.name) == variant for name in models for file in (folder / name).glob("*.safetensors")):
        raise _Incomplete(f"has no weights of the variant {variant}", "null")
    return sum(_count_model_parameters(folder / name, f"{name}/", variant) for name in models)


def _count_model_parameters(folder: Path, prefix: str = "", variant: str | None = None) -> int:
    """Counts the parameters of a model's files, which must all be there and complete."""
    if (folder / "adapter_config.json").exists():  # transformers would load the base model that it names, from anywhere
        raise _Incomplete(f"has {prefix}adapter_config.json: it holds an adapter, not a whole model")
    files = {path.name for path in folder.glob("*.safetensors")}
    for index in folder.glob("*.safetensors.index*.json"):
        listed = _read_json_object(folder, index.name).get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
            raise _Incomplete(f"has a {prefix}{index.name} without a weight_map")
        outside = next((name for name in listed.values() if not _is_plain(name)), None)
        if outside is not None:
            raise _Incomplete(f"has a {prefix}{index.name} that names {outside[:80]!r}, which is no file in it")
        files |= set(listed.values())
    if not files:
        raise _Incomplete(f"has no {prefix}*.safetensors (weights in other formats are not loaded)")
    variants = {_variant_of(name) for name in files}
    chosen = variant if variant in variants else None  # as diffusers does: a part without the variant has files of none
    if chosen not in variants:
        only = min(str(name) for name in variants)
        raise _Incomplete(f"has {prefix}*.safetensors only in the variant {only}", only if prefix else None)
    return sum(_count_file_parameters(folder, name, prefix) for name in sorted(files) if _variant_of(name) == chosen)


def _is_plain(name: str) -> bool:
    """True for a name in a folder; false for a path that leads out of it."""
    return name not in ("", ".", "..") and not {"/", "\\", "\0"} & {*name}


def _count_file_parameters(folder: Path, name: str, prefix: str) -> int:
    from safetensors import SafetensorError, safe_open

    if not (folder / name).is_file():
        raise _Incomplete(f"lacks {prefix}{name}, which its index names")
    try:
        # Opening a file reads its header and compares it with the file's size.
        with safe_open(folder / name, framework="np") as file:
            return sum(math.prod(file.get_slice(tensor).get_shape()) for tensor in file.keys())  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise _Incomplete(f"has a {prefix}{name} that is cut off or damaged ({first_line(error)})") from None


def _read_json_object(folder: Path, name: str) -> Mapping[str, Any]:
    try:
        content = json.loads(read_text(folder / name, hint="download it again", most=FILE_BYTES))
    except (UsageError, ValueError, RecursionError) as error:
        raise _Incomplete(f"has a {name} that cannot be read ({first_line(error)})") from None
    if not isinstance(content, dict):
        raise _Incomplete(f"has a {name} that is not a JSON object")
    return content


# -- the hub ----------------------------------------------------------------------------------------------------------------


def _find_on_hub(model: str, key: str, check: Check | None, cache_state: str, variant: str | None) -> Weights:
    """Asks the hub about a model that is not on disk. ``cache_state`` says why the local cache is not enough."""
    from huggingface_hub import constants

    def refuse(reason: str, first: str = "") -> NoReturn:
        hint = f"{first}`hf download {model} --local-dir DIR`, then {key}=DIR; {MINIATURE}"
        raise UsageError(f"{key}: there is no folder {model}, and the weights of that name {cache_state}; {reason}", hint=hint)

    if constants.HF_HUB_OFFLINE:
        refuse("HF_HUB_OFFLINE forbids asking the hub", "unset it, or with a network: ")
    try:
        info = _with_deadline(DEADLINE, lambda: _request_info(model))
    except Exception as error:  # failures of the network, the hub and its library have no common class
        refuse(*_explain_failure(error))
    if check is not None and info.config:
        check(info.config)
    files = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    if not any(name.endswith(".safetensors") for name in files):
        refuse("the hub has no *.safetensors for it, and other formats are not loaded", "choose another model: ")
    for part in _PARTS if "model_index.json" in files else ():
        variants = {
            _variant_of(name.removeprefix(f"{part}/")) for name in files if name.startswith(f"{part}/") and name.endswith(".safetensors")
        }
        if variants and not variants & {None, variant}:
            only = min(map(str, variants))
            refuse(f"the hub has its {part} only in the variant {only}", f"{_variant_hint(key, only)}, or ")
    needed, free = _download_bytes(model, files), _free_bytes(Path(constants.HF_HUB_CACHE))
    if needed > free:
        refuse(
            f"they are {needed / 1e9:.1f} GB, and the cache's disk has {free / 1e9:.1f} GB free",
            "free some space, set HF_HOME to another disk, or ",
        )
    return Weights(None, info.config or {}, info.safetensors.total if info.safetensors else None)


def hub_problem() -> str | None:
    """Returns why the hub cannot be reached now, or None if it can."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE forbids asking it"
    try:
        _with_deadline(DEADLINE, lambda: get_session().head(constants.ENDPOINT, timeout=DEADLINE))
    except Exception as error:  # no common class, as above
        return _explain_failure(error)[0]
    return None


def _request_info(model: str) -> ModelInfo:
    from huggingface_hub import HfApi, constants

    hub = HfApi(endpoint=constants.ENDPOINT)
    info = hub.model_info(model, files_metadata=True, timeout=DEADLINE)
    if info.gated:
        hub.auth_check(model)
    return info


def _with_deadline(seconds: float, work: Callable[[], T]) -> T:
    """Returns the result of ``work``; `TimeoutError` if it takes longer. A daemon thread, as nothing else interrupts name resolution."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except Exception as error:  # raised below, when the result is read
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future.result(timeout=seconds)


def _explain_failure(error: Exception) -> tuple[str, str]:
    """Returns why the hub refused or did not answer, and what to do before the download command."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    network = "with a network: "
    if isinstance(error, GatedRepoError):
        return "the hub gives them only to users who accepted their terms", "accept them on the model's page and set HF_TOKEN, then "
    if isinstance(error, RepositoryNotFoundError):
        return "the hub has no such model, or a private one", "check the name, set HF_TOKEN for a private one, then "
    if isinstance(error, HfHubHTTPError):  # without the hub's own error code, a 404 may come from a proxy
        return f"{constants.ENDPOINT} answers with status {error.response.status_code}", network
    if isinstance(error, TimeoutError):
        return f"the hub did not answer within {DEADLINE:g} seconds", network
    return f"the hub cannot be reached ({first_line(error)})", network


def _download_bytes(model: str, files: Mapping[str, int]) -> int:
    """Bytes of weights that transformers would download, without what the cache has. 0 for file layouts other than its own."""
    from huggingface_hub import try_to_load_from_cache

    weights = [name for name in files if name == "model.safetensors"]
    weights = weights or [name for name in files if re.fullmatch(r"model-\d+-of-\d+\.safetensors", name)]
    return sum(files[name] for name in weights if not isinstance(try_to_load_from_cache(model, name), str))


def _free_bytes(folder: Path) -> int:
    """Free bytes on the disk where a folder is or will be."""
    return shutil.disk_usage(next(parent for parent in (folder, *folder.parents) if parent.is_dir())).free
