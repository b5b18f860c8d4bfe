"""Makes transformers' ``JanusProcessor`` from a released checkpoint's tokenizer and image processor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gotr1_core.chain import BOX_END, BOX_START, OBJ_END, OBJ_START
from gotr1_core.engine.files import FILE_BYTES, read_text
from gotr1_core.errors import UsageError, first_line

GOT_TOKENS = (BOX_START, BOX_END, OBJ_START, OBJ_END)
"""The tokens that GoT adds to the tokenizer, in its order."""

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
)
"""The small files that a released checkpoint may have besides ``config.json``."""

_NAMED = ("bos_token", "eos_token", "pad_token", "unk_token")
_TAGS = {"boi_token": "image_start_tag", "eoi_token": "image_end_tag", "image_token": "image_tag", "pad_token": "pad_tag"}
_DEFAULTS = {  # of the release's processor, which saves only what differs from them
    "image_start_tag": "<begin_of_image>",
    "image_end_tag": "<end_of_image>",
    "image_tag": "<image_placeholder>",
    "pad_tag": "<｜▁pad▁｜>",
}
_COPY = "copy the tokenizer of the original checkpoint into it, or give its folder: --tokenizer DIR"

# The conversation of the release: two separators in turn, no system prompt, an image on a line of its own.
TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- set role = message['role'] | lower -%}"
    "{%- set asked = role != 'assistant' -%}"
    "{{- '<|User|>: ' if role == 'user' else '<|Assistant|>: ' if role == 'assistant' else role | capitalize + ': ' -}}"
    "{%- set parts = [{'type': 'text', 'text': message['content']}] if message['content'] is string else message['content'] -%}"
    "{%- set words = namespace(text='') -%}"
    "{%- for part in parts -%}"
    "{%- set words.text = words.text + ('<image_placeholder>\\n' if part['type'] == 'image' else part['text']) -%}"
    "{%- endfor -%}"
    "{{- words.text | trim -}}"
    "{{- '\\n\\n' if asked else '' if loop.last and not add_generation_prompt else eos_token -}}"
    "{%- endfor -%}"
    "{{- '<|Assistant|>:' if add_generation_prompt else '' -}}"
)


def read_processor(folder: Path, image_size: int, patches: int) -> Any:
    """The ``JanusProcessor`` of a released checkpoint.

    Args:
        folder: the checkpoint's folder, or another one with the tokenizer's files.
        image_size: width and height in pixels of the pictures that the vision tower reads, if ``preprocessor_config.json`` has no size.
        patches: how many tokens the vision tower makes of a picture.

    Raises:
        UsageError: a file is missing or cannot be read, or the tokenizer lacks a token that the model needs.
    """
    from transformers import JanusProcessor
    from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil  # the other one needs torchvision

    config = _read_optional_json(folder / "preprocessor_config.json")
    settings = {key: config[key] for key in ("do_normalize", "image_mean", "image_std", "min_size", "rescale_factor") if key in config}
    size = int(config.get("image_size", image_size))
    images = JanusImageProcessorPil(**{"image_mean": [0.5] * 3, "image_std": [0.5] * 3, **settings}, size={"height": size, "width": size})
    tokenizer = read_tokenizer(folder)
    return JanusProcessor(images, tokenizer, chat_template=TEMPLATE, use_default_system_prompt=True, num_image_tokens=patches)


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer of a released checkpoint, with GoT's four tokens added as the reference does when it loads one.

    Raises:
        UsageError: there is none, it cannot be read, or it lacks begin-of-image, end-of-image or the pad token that guidance uses.
    """
    from transformers import PreTrainedTokenizerFast
    from transformers.tokenization_utils_base import AddedToken

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UsageError(f"{folder} has no tokenizer.json", hint=_COPY)
    config = _read_optional_json(folder / "tokenizer_config.json")
    special_tokens = {**_read_optional_json(folder / "special_tokens_map.json"), **config}
    tags = {**_DEFAULTS, **_read_optional_json(folder / "processor_config.json")}
    arguments: dict[str, Any] = {key: _token_text(special_tokens[key]) for key in _NAMED if special_tokens.get(key)}
    arguments["padding_side"] = "left"
    if "model_max_length" in config:
        arguments["model_max_length"] = config["model_max_length"]
    llama = str(config.get("tokenizer_class", "")).startswith("Llama")
    if "add_bos_token" in config or llama:  # a Llama tokenizer adds it even if the config does not mention it
        arguments["add_bos_token"] = bool(config.get("add_bos_token", llama))
    added_tokens = config.get("added_tokens_decoder") or {}
    try:
        added = {int(i): AddedToken(**{k: v for k, v in token.items() if k != "__type"}) for i, token in sorted(added_tokens.items())}
        bare = PreTrainedTokenizerFast(tokenizer_file=str(path), added_tokens_decoder=added)
        vocabulary = bare.get_vocab()
        for role, tag in _TAGS.items():
            if role != "image_token" and tags[tag] not in vocabulary:
                raise UsageError(f"the tokenizer of {folder} lacks {tags[tag]}, its {role}", hint=_COPY)
        arguments["pad_token"] = tags["pad_tag"]
        extra = {role: tags[tag] for role, tag in _TAGS.items() if role != "pad_token"}
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path), added_tokens_decoder=added, extra_special_tokens=extra, **arguments)
    except UsageError:
        raise
    except Exception as error:  # the tokenizers library raises plain Exceptions
        first = first_line(error)
        raise UsageError(f"{path} cannot be read: {first}", hint=_COPY) from error
    for role in ("bos_token", "eos_token"):
        if getattr(tokenizer, role) not in vocabulary:
            raise UsageError(
                f"the tokenizer of {folder} has no {role} in its vocabulary", hint=f"tokenizer_config.json must name one; {_COPY}"
            )
    tokenizer.add_tokens(list(GOT_TOKENS))
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def _token_text(token: Any) -> Any:
    """A token's text. These files have it alone, or in a mapping with matching options."""
    return token.get("content") if isinstance(token, Mapping) else token


def _read_optional_json(path: Path) -> dict[str, Any]:
    """A file's JSON object; empty if there is no such file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(read_text(path, hint="copy it again", most=FILE_BYTES))
    except (UsageError, ValueError, RecursionError) as error:
        first = first_line(error)
        raise UsageError(f"{path} cannot be read: {first}", hint="copy it from the original checkpoint again") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path} is not a JSON object", hint="copy it from the original checkpoint again")
    return content
