"""What a Janus checkpoint must have, looked at before its weights are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gotr1_core.errors import UsageError
from gotr1_core.weights import find_weights
from gotr1_janus.options import JanusOptions
from gotr1_janus.text import Text

_CONVERTED = "give a checkpoint in transformers' format (model_type janus), such as deepseek-community/Janus-Pro-1B"


def preflight(options: JanusOptions, key: str) -> dict[str, int]:
    """Sizes of a checkpoint that can be had and is a Janus: ``image_tokens``, ``context``, ``parameters``.

    Of one that is still to be downloaded no more is known than the hub tells: its type, perhaps its parameters.

    Raises:
        UsageError: there are no weights, they are of another model, or tokenizer, template and instruction do not go together.
    """
    weights = find_weights(options.model, key=f"{key}.model", check=lambda config: only_janus(config, f"{key}.model={options.model}"))
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


def only_janus(config: Mapping[str, Any], where: str) -> None:
    """Refuses the config of another model; ``where`` it was found."""
    kind = config.get("model_type")
    if kind == "multi_modality":
        raise UsageError(
            f"{where} is in the format of the release (model_type multi_modality), which gotr1 cannot load yet", hint=_CONVERTED
        )
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
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
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
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(f"{folder / 'config.json'} describes no Janus: {first}", hint=_CONVERTED) from error
