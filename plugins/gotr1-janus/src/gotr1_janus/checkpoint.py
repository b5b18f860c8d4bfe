"""Finds Janus checkpoints and checks them in seconds, before any weights are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gotr1_core.engine.files import read_json
from gotr1_core.errors import UsageError, first_line
from gotr1_core.policies.context import ContextWindow
from gotr1_core.policies.hub import find_weights, local_folder
from gotr1_core.policies.pretrained import check_attention, load_pretrained
from gotr1_janus.cache import cache_entry, import_once
from gotr1_janus.options import JanusOptions
from gotr1_janus.released import MODEL_TYPE
from gotr1_janus.text import JanusText

_OTHER_MODEL = "give a Janus in transformers' format (such as deepseek-community/Janus-Pro-1B), or a released one"
_DOWNLOAD = "get it with `hf download OWNER/NAME --local-dir DIR`, then give DIR"


def preflight(options: JanusOptions, key: str) -> dict[str, int]:
    """Checks a checkpoint and returns its sizes: ``image_tokens`` of a picture, ``context`` in positions, ``parameters``.

    Before a download only the hub's facts are known: the model's type, and perhaps ``parameters``. ``key`` is the component's place in
    the config, for messages.

    Raises:
        UsageError: there are no weights, they are of another model, or tokenizer, template and instruction do not fit together.
    """
    check_attention(options.attention, f"{key}.attention")
    sizes, window = _examine(options, key)
    return sizes if window is None else {**sizes, "image_tokens": window.reserved - 1, "context": window.context}


def janus_window(options: JanusOptions) -> ContextWindow | None:
    """The context of a checkpoint that is not loaded yet; None before a download.

    Raises:
        UsageError: as `preflight`.
    """
    return _examine(options, "planner")[1]


def context_window(text: JanusText, config: Any) -> ContextWindow:
    """The context of a Janus with a ``JanusConfig``: what its pictures' tokens leave for prompt and chain."""
    tokens = config.vq_config.num_patches**2
    taken_by = f"1 token that begins the image and its {tokens}"
    return ContextWindow(text, config.text_config.max_position_embeddings, tokens + 1, taken_by)


def _examine(options: JanusOptions, key: str) -> tuple[dict[str, int], ContextWindow | None]:
    """The number of ``parameters`` of a checkpoint, if it is known, and its context."""
    released = released_folder(options.model, f"{key}.model")
    entry = released and cache_entry(released)
    if released and entry and not entry.is_dir():
        return _examine_released(released, entry, options)
    model = str(entry or options.model)
    weights = find_weights(model, key=f"{key}.model", check=lambda config: check_janus(config, f"{key}.model={model}"))
    sizes = {} if weights.parameters is None else {"parameters": weights.parameters}
    if weights.folder is None:
        return sizes, None
    config = _config(weights.folder)
    text = JanusText(load_tokenizer(weights.folder), options.instruction)
    rows = config.text_config.vocab_size
    if len(text.tokenizer) > rows:
        raise UsageError(
            f"{weights.folder}: the tokenizer has {len(text.tokenizer)} tokens and the model {rows} embeddings",
            hint="give a checkpoint with its own tokenizer",
        )
    return sizes, context_window(text, config)


def find_janus(model: str) -> tuple[Path | str, bool]:
    """What transformers must load, and True if it was imported from a released checkpoint.

    The first is a folder, or the hub name of a checkpoint that transformers will download. Imports a released checkpoint first.

    Raises:
        UsageError: it is neither on disk nor on the hub, or is another model.
        Gotr1Error: the import cannot be written.
    """
    released = released_folder(model, "model")
    if released is not None:
        return import_once(released), True
    weights = find_weights(model, key="model", check=lambda config: check_janus(config, model))
    return weights.folder or model, False


def released_folder(model: str, key: str) -> Path | None:
    """The folder of a checkpoint in the format of the release; None for any other checkpoint. ``key`` is for messages."""
    folder = local_folder(model, key=key)
    try:
        config = read_json(folder / "config.json") if folder else None
    except UsageError:
        return None  # find_weights reports it
    return folder if config is not None and config.get("model_type") == MODEL_TYPE else None


def _examine_released(folder: Path, entry: Path, options: JanusOptions) -> tuple[dict[str, int], ContextWindow]:
    """The same of a released checkpoint, checked so far that its import into ``entry`` will succeed. Writes nothing."""
    from gotr1_janus.convert import check_room, examine_release
    from gotr1_janus.shards import Shards

    with Shards(folder) as shards:
        conversion = examine_release(folder, shards)
        check_room(entry, sum(header.nbytes for header in shards.headers.values()))
        parameters = sum(shards.headers[name].numel for name in conversion.targets)
    text = JanusText(conversion.processor.tokenizer, options.instruction)
    return {"parameters": parameters}, context_window(text, conversion.config)


def check_janus(config: Mapping[str, Any], where: str) -> None:
    """Checks that a ``config.json`` is that of a Janus in transformers' format. ``where`` names the checkpoint in messages.

    Raises:
        UsageError: it is another model, or has the format of the release.
    """
    kind = config.get("model_type")
    if kind == MODEL_TYPE:  # on a hub: released_folder finds it on disk
        raise UsageError(f"{where} has the format of the release, which can only be imported from a folder", hint=_DOWNLOAD)
    if kind != "janus":
        what = f"a {kind} model" if kind else "a diffusers pipeline" if "_class_name" in config else "a model of unknown type"
        raise UsageError(f"{where} is {what}, not janus", hint=_OTHER_MODEL)


def load_tokenizer(source: Path | str) -> Any:
    """The tokenizer of a folder or of a hub name. Uses no network for a folder.

    Raises:
        UsageError: it is missing or cannot be read, lacks the begin-of-image or pad token, or has no chat template.
    """
    from transformers import AutoTokenizer

    if isinstance(source, Path) and not any((source / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise UsageError(f"{source} has no tokenizer.json", hint="copy the tokenizer's files from the original checkpoint")
    try:
        tokenizer = load_pretrained(AutoTokenizer, source)
    except Exception as error:  # the tokenizers library raises plain Exceptions
        first = first_line(error)
        raise UsageError(f"the tokenizer of {source} cannot be read: {first}", hint="copy it from the original checkpoint again") from error
    vocabulary = tokenizer.get_vocab()
    for name in ("boi_token", "pad_token"):
        if getattr(tokenizer, name, None) not in vocabulary:
            raise UsageError(
                f"the tokenizer of {source} has no {name}", hint="give a Janus checkpoint's own tokenizer, tokenizer_config.json included"
            )
    if not tokenizer.chat_template:
        raise UsageError(f"the tokenizer of {source} has no chat template", hint="copy chat_template.jinja from the original checkpoint")
    return tokenizer


def _config(folder: Path) -> Any:
    from transformers import JanusConfig

    try:
        return load_pretrained(JanusConfig, folder)
    except Exception as error:  # transformers raises its own exceptions for wrong types
        first = first_line(error)
        raise UsageError(f"{folder / 'config.json'} does not describe a Janus: {first}", hint=_OTHER_MODEL) from error
