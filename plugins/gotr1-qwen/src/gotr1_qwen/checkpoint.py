"""Finds Qwen checkpoints, checks them before any weights are loaded, and loads their parts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gotr1_core.errors import UsageError, first_line
from gotr1_core.policies.context import ContextWindow
from gotr1_core.policies.hub import find_weights
from gotr1_core.policies.pretrained import check_attention, load_checkpoint, load_pretrained
from gotr1_qwen.instruction import read_instruction

if TYPE_CHECKING:
    import torch

    from gotr1_qwen.options import QwenOptions

CLASSES = {
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "qwen2": "Qwen2ForCausalLM",  # Qwen2.5 too
    "qwen3": "Qwen3ForCausalLM",
}
"""transformers' class for the ``model_type`` of a checkpoint's config. ``AutoModelForCausalLM`` does not load the first two."""
_FAMILIES = "give a Qwen2.5-VL, Qwen3-VL, Qwen2.5 or Qwen3 in transformers' format, such as Qwen/Qwen2.5-VL-7B-Instruct"


def preflight(options: QwenOptions, key: str) -> dict[str, int]:
    """Checks a checkpoint and returns its sizes: ``context`` in positions, ``parameters``.

    Before a download only the hub's facts are known: the model's type, and perhaps ``parameters``. ``key`` is the component's place in
    the config, for messages.

    Raises:
        UsageError: there are no weights, they are of another model, or tokenizer, template, instruction and tags do not fit together.
    """
    check_attention(options.attention, f"{key}.attention")
    sizes, window = _examine(options, key)
    return sizes if window is None else {**sizes, "context": window.context}


def qwen_window(options: QwenOptions) -> ContextWindow | None:
    """The context of a checkpoint that is not loaded yet; None before a download.

    Raises:
        UsageError: as `preflight`.
    """
    return _examine(options, "planner")[1]


def _examine(options: QwenOptions, key: str) -> tuple[dict[str, int], ContextWindow | None]:
    """The number of ``parameters`` of a checkpoint, if it is known, and its context."""
    from gotr1_qwen.conversation import Conversation

    instruction = read_instruction(options.instruction, key=f"{key}.instruction")
    weights = find_weights(options.model, key=f"{key}.model", check=lambda config: check_qwen(config, f"{key}.model={options.model}"))
    sizes = {} if weights.parameters is None else {"parameters": weights.parameters}
    if weights.folder is None:
        return sizes, None
    config = _text_config(weights.folder)
    tokenizer = load_tokenizer(weights.folder)
    if len(tokenizer) > config.vocab_size:
        raise UsageError(
            f"{weights.folder}: the tokenizer has {len(tokenizer)} tokens and the model {config.vocab_size} embeddings",
            hint="give a checkpoint with its own tokenizer",
        )
    return sizes, ContextWindow(Conversation(tokenizer, instruction, options.tags), config.max_position_embeddings)


def find_qwen(model: str) -> tuple[Path | str, str]:
    """What transformers must load, and its ``model_type``. The first is a folder, or a hub name that transformers will download.

    Raises:
        UsageError: it is neither on disk nor on the hub, or is another model.
    """
    weights = find_weights(model, key="model", check=lambda config: check_qwen(config, model))
    return weights.folder or model, str(weights.config.get("model_type"))


def check_qwen(config: Mapping[str, Any], where: str) -> None:
    """Checks that a ``config.json`` is that of a Qwen that the planner loads. ``where`` names the checkpoint in messages.

    Raises:
        UsageError: it is another model, or quantised.
    """
    kind = config.get("model_type")
    if kind not in CLASSES:
        what = f"a {kind} model" if kind else "a diffusers pipeline" if "_class_name" in config else "a model of unknown type"
        raise UsageError(f"{where} is {what}, and the planner qwen loads {', '.join(CLASSES)}", hint=_FAMILIES)
    if config.get("quantization_config"):
        raise UsageError(
            f"{where} is quantised, so it cannot be trained or merged", hint="give the original checkpoint that is not quantised"
        )


def load_tokenizer(source: Path | str) -> Any:
    """The tokenizer of a folder or of a hub name. Uses no network for a folder. Not the combined processor, which needs torchvision.

    Raises:
        UsageError: it is missing, cannot be read, or has no chat template.
    """
    from transformers import AutoTokenizer

    if isinstance(source, Path) and not any((source / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise UsageError(f"{source} has no tokenizer.json", hint="copy the tokenizer's files from the original checkpoint")
    try:
        tokenizer = load_pretrained(AutoTokenizer, source)
    except Exception as error:  # the tokenizers library raises plain Exceptions
        first = first_line(error)
        raise UsageError(f"the tokenizer of {source} cannot be read: {first}", hint="copy it from the original checkpoint again") from error
    if not tokenizer.chat_template:
        raise UsageError(f"the tokenizer of {source} has no chat template", hint="copy chat_template.jinja from the original checkpoint")
    return tokenizer


def load_model(source: Path | str, kind: str, dtype: torch.dtype) -> Any:
    """The model with its weights in ``dtype``.

    Args:
        source: a folder, or a hub name.
        kind: its ``model_type``, a key of `CLASSES`.
        dtype: the type of the weights.

    Raises:
        UsageError: weights are missing.
    """
    import transformers

    model, info = load_checkpoint(getattr(transformers, CLASSES[kind]), source, dtype=dtype)
    if info["missing_keys"]:  # transformers would use random weights in their place
        missing = sorted(info["missing_keys"])
        raise UsageError(
            f"{source} is not a complete checkpoint: {missing[0]} and {len(missing) - 1} more weights are missing", hint=_FAMILIES
        )
    return model


def _text_config(folder: Path) -> Any:
    from transformers import AutoConfig

    try:
        return load_pretrained(AutoConfig, folder).get_text_config()
    except Exception as error:  # transformers raises its own exceptions for wrong types
        first = first_line(error)
        raise UsageError(f"{folder / 'config.json'} does not describe a Qwen: {first}", hint=_FAMILIES) from error
