"""What a Janus checkpoint must have, looked at before its weights are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gotr1_core.errors import UsageError, first_line
from gotr1_core.policies.hub import find_weights, local_folder
from gotr1_janus.cache import imported, place_of
from gotr1_janus.options import JanusOptions
from gotr1_janus.released import MODEL_TYPE
from gotr1_janus.text import Text

_CONVERTED = "give a Janus in transformers' format (such as deepseek-community/Janus-Pro-1B), or a released one"
_DOWNLOAD = "get it with `hf download OWNER/NAME --local-dir DIR`, then give DIR"


def preflight(options: JanusOptions, key: str) -> dict[str, int]:
    """Sizes of a checkpoint that can be had and is a Janus: ``image_tokens``, ``context``, ``parameters``.

    Of one that is still to be downloaded no more is known than the hub tells: its type, perhaps its parameters.

    Raises:
        UsageError: there are no weights, they are of another model, or tokenizer, template and instruction do not go together.
    """
    released = released_folder(options.model, f"{key}.model")
    place = released and place_of(released)
    if released and place and not place.is_dir():
        return _released_sizes(released, place, options)
    model = str(place or options.model)
    weights = find_weights(model, key=f"{key}.model", check=lambda config: only_janus(config, f"{key}.model={model}"))
    sizes = {} if weights.parameters is None else {"parameters": weights.parameters}
    if weights.folder is None:
        return sizes
    config = _config(weights.folder)
    text = Text(load_tokenizer(weights.folder), options.instruction)
    rows = config.text_config.vocab_size
    if len(text.tokenizer) > rows:
        raise UsageError(
            f"{weights.folder}: the tokenizer has {len(text.tokenizer)} tokens and the model {rows} embeddings",
            hint="give a checkpoint together with its own tokenizer",
        )
    return {**sizes, "image_tokens": config.vq_config.num_patches**2, "context": config.text_config.max_position_embeddings}


def source(model: str) -> tuple[Path | str, bool]:
    """What transformers loads, a folder or the name of what it is to download; and whether it was made of a released checkpoint.

    Raises:
        UsageError, Gotr1Error: it cannot be had, is of another model, or cannot be imported.
    """
    released = released_folder(model, "model")
    if released is not None:
        return imported(released), True
    weights = find_weights(model, key="model", check=lambda config: only_janus(config, model))
    return weights.folder or model, False


def released_folder(model: str, key: str) -> Path | None:
    """Where a checkpoint in the format of the release lies; None for any other."""
    folder = local_folder(model, key=key)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8")) if folder else None
    except (OSError, ValueError, RecursionError):
        return None  # which is told where weights are looked for
    return folder if isinstance(config, dict) and config.get("model_type") == MODEL_TYPE else None


def _released_sizes(folder: Path, place: Path, options: JanusOptions) -> dict[str, int]:
    """Sizes of a released checkpoint that can be imported; nothing is written yet."""
    from gotr1_janus.convert import check_room, examine
    from gotr1_janus.shards import Shards

    with Shards(folder) as shards:
        found = examine(folder, shards)
        check_room(place, sum(header.bytes for header in shards.headers.values()))
        parameters = sum(shards.headers[name].numbers for name in found.targets)
    Text(found.processor.tokenizer, options.instruction)
    context = found.config.text_config.max_position_embeddings
    return {"parameters": parameters, "image_tokens": found.config.vq_config.num_patches**2, "context": context}


def only_janus(config: Mapping[str, Any], where: str) -> None:
    """Refuses the config of another model; ``where`` it was found."""
    kind = config.get("model_type")
    if kind == MODEL_TYPE:  # on a hub; what is on disk is imported
        raise UsageError(f"{where} is in the format of its release, which is imported from a folder", hint=_DOWNLOAD)
    if kind != "janus":
        what = f"a {kind} model" if kind else "a diffusers pipeline" if "_class_name" in config else "a model of unnamed type"
        raise UsageError(f"{where} is {what}, not janus", hint=_CONVERTED)


def load_tokenizer(source: Path | str) -> Any:
    """The tokenizer of a folder, no network used, or of a hub name, with the tokens that sampling needs."""
    from transformers import AutoTokenizer

    local = isinstance(source, Path)
    if isinstance(source, Path) and not any((source / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise UsageError(f"{source} has no tokenizer.json", hint="copy the tokenizer's files of the original checkpoint into it")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local)
    except Exception as error:  # what the tokenizers library raises is an Exception and no more
        first = first_line(error)
        raise UsageError(f"the tokenizer of {source} cannot be read: {first}", hint="copy it from the original checkpoint again") from error
    known = tokenizer.get_vocab()
    for name in ("boi_token", "pad_token"):
        if getattr(tokenizer, name, None) not in known:
            raise UsageError(
                f"the tokenizer of {source} knows no {name}", hint="give a Janus checkpoint's own tokenizer, tokenizer_config.json included"
            )
    if not tokenizer.chat_template:
        raise UsageError(
            f"the tokenizer of {source} has no chat template", hint="copy the original checkpoint's chat_template.jinja into it"
        )
    return tokenizer


def _config(folder: Path) -> Any:
    from transformers import JanusConfig

    try:
        return JanusConfig.from_pretrained(folder)
    except Exception as error:  # transformers checks types with its own exceptions
        first = first_line(error)
        raise UsageError(f"{folder / 'config.json'} describes no Janus: {first}", hint=_CONVERTED) from error
