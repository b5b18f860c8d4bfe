"""What a Qwen checkpoint must have, looked at before its weights are; and its parts, loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gotr1_core.errors import UsageError, first_line
from gotr1_core.policies.hub import find_weights
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
"""transformers' class by the ``model_type`` of a checkpoint's config; ``AutoModelForCausalLM`` takes none of the first two."""
_FAMILIES = "give a Qwen2.5-VL, Qwen3-VL, Qwen2.5 or Qwen3 in transformers' format, such as Qwen/Qwen2.5-VL-7B-Instruct"


def preflight(options: QwenOptions, key: str) -> dict[str, int]:
    """Sizes of a checkpoint that can be had and is a Qwen: ``context``, ``parameters``; no more than the hub tells of one still there.

    Raises:
        UsageError: there are no weights, they are of another model, or tokenizer, template, instruction and tags do not go together.
    """
    from gotr1_qwen.conversation import Conversation

    instruction = read_instruction(options.instruction, key=f"{key}.instruction")
    weights = find_weights(options.model, key=f"{key}.model", check=lambda config: only_qwen(config, f"{key}.model={options.model}"))
    sizes = {} if weights.parameters is None else {"parameters": weights.parameters}
    if weights.folder is None:
        return sizes
    text = _text_config(weights.folder)
    tokenizer = load_tokenizer(weights.folder)
    if len(tokenizer) > text.vocab_size:
        raise UsageError(
            f"{weights.folder}: the tokenizer has {len(tokenizer)} tokens and the model {text.vocab_size} embeddings",
            hint="give a checkpoint together with its own tokenizer",
        )
    Conversation(tokenizer, instruction, options.tags)
    return {**sizes, "context": text.max_position_embeddings}


def source(model: str) -> tuple[Path | str, str]:
    """What transformers loads, a folder or the name of what it is to download; and the ``model_type``.

    Raises:
        UsageError: it cannot be had, or is of another model.
    """
    weights = find_weights(model, key="model", check=lambda config: only_qwen(config, model))
    return weights.folder or model, str(weights.config.get("model_type"))


def only_qwen(config: Mapping[str, Any], where: str) -> None:
    """Refuses the config of another model; ``where`` it was found."""
    kind = config.get("model_type")
    if kind not in CLASSES:
        what = f"a {kind} model" if kind else "a diffusers pipeline" if "_class_name" in config else "a model of unnamed type"
        raise UsageError(f"{where} is {what}, and the planner qwen loads {', '.join(CLASSES)}", hint=_FAMILIES)
    if config.get("quantization_config"):
        raise UsageError(f"{where} is quantised, and cannot be trained or merged", hint="give the checkpoint that it was made of")


def load_tokenizer(source: Path | str) -> Any:
    """The tokenizer of a folder, no network used, or of a hub name. Alone: a combined processor needs torchvision."""
    from transformers import AutoTokenizer

    local = isinstance(source, Path)
    if isinstance(source, Path) and not any((source / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise UsageError(f"{source} has no tokenizer.json", hint="copy the tokenizer's files of the original checkpoint into it")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local)
    except Exception as error:  # what the tokenizers library raises is an Exception and no more
        first = first_line(error)
        raise UsageError(f"the tokenizer of {source} cannot be read: {first}", hint="copy it from the original checkpoint again") from error
    if not tokenizer.chat_template:
        raise UsageError(
            f"the tokenizer of {source} has no chat template", hint="copy the original checkpoint's chat_template.jinja into it"
        )
    return tokenizer


def load_model(source: Path | str, kind: str, dtype: torch.dtype) -> Any:
    """The model with its weights, every one of which must be there."""
    import transformers

    model, found = getattr(transformers, CLASSES[kind]).from_pretrained(
        source, dtype=dtype, local_files_only=isinstance(source, Path), use_safetensors=True, output_loading_info=True
    )
    if found["missing_keys"]:  # transformers would go on with random weights in their place
        missing = sorted(found["missing_keys"])
        raise UsageError(f"{source} is no whole checkpoint: {missing[0]} and {len(missing) - 1} more weights are missing", hint=_FAMILIES)
    return model


def _text_config(folder: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config()
    except Exception as error:  # transformers checks types with its own exceptions
        first = first_line(error)
        raise UsageError(f"{folder / 'config.json'} describes no Qwen: {first}", hint=_FAMILIES) from error
