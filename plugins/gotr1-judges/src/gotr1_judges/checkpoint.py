"""Checks a judge's checkpoint before its weights are loaded, and loads model, tokenizer and rubrics."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gotr1_core.errors import UsageError, first_line
from gotr1_core.pictures.draw_chain import check_font
from gotr1_core.policies.hub import Check, Weights, find_weights
from gotr1_core.policies.pretrained import check_attention, load_checkpoint, load_pretrained
from gotr1_judges.families import Family, load_processor
from gotr1_judges.rubrics import WORDS, Rubric, read_rubrics

if TYPE_CHECKING:
    import torch

    from gotr1_judges.options import ModelOptions, RubricOptions
    from gotr1_judges.vision import VisionModel


def preflight(options: RubricOptions, family: Family, key: str) -> dict[str, int]:
    """Checks rubrics, font and checkpoint; returns the number of ``parameters`` if known.

    Raises:
        UsageError: a rubric is wrong; the font cannot be read; there is no such device; there are no weights, or they are another
            model's; the tokenizer or chat template is unusable.
    """
    rubrics = _rubrics(options, family, key)
    check_font(options.font, options.canvas, f"{key}.font")
    check_attention(options.attention, f"{key}.attention")
    check_device(options.device, f"{key}.device")
    where = f"{key}.model"
    weights = find_weights(
        options.model, key=where, check=model_type_check(family.classes, family.name, family.model_hint, f"{where}={options.model}")
    )
    if weights.folder is not None:
        _check_chat_format(weights.folder, rubrics)
    return parameter_count(weights)


def load_answerer(options: RubricOptions, family: Family, *, device: torch.device | str) -> tuple[dict[str, Rubric], VisionModel]:
    """Loads rubrics and the model that answers them.

    Raises:
        UsageError: as `preflight`.
    """
    from gotr1_judges.vision import VisionModel

    rubrics = _rubrics(options, family, "judge")
    weights = find_weights(
        options.model, key="model", check=model_type_check(family.classes, family.name, family.model_hint, options.model)
    )
    source = weights.folder or options.model
    tokenizer, processor = load_tokenizer(source), load_processor(source)
    model = load_model(source, family.classes[str(weights.config.get("model_type"))], options, device)
    model.set_attn_implementation(options.attention)
    pictures = family.pictures(processor, model.config, tokenizer)
    return rubrics, VisionModel(model, tokenizer, pictures, batch=options.batch, answer_tokens=options.answer_tokens)


def load_tokenizer(source: Path | str) -> Any:
    """Loads the tokenizer of a folder, without network, or of a hub name. A combined processor is not used: it may need torchvision.

    Raises:
        UsageError: there is no tokenizer, or it cannot be read.
    """
    from transformers import AutoTokenizer

    if isinstance(source, Path) and not any((source / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise UsageError(f"{source} has no tokenizer.json", hint="copy the tokenizer's files of the original checkpoint into it")
    try:
        return load_pretrained(AutoTokenizer, source)
    except Exception as error:  # the tokenizers library raises plain Exceptions
        first = first_line(error)
        raise UsageError(f"the tokenizer of {source} cannot be read: {first}", hint="copy it from the original checkpoint again") from error


def load_text_tokenizer(source: Path | str) -> Any:
    """Loads a tokenizer for texts by others, see `load_tokenizer`: what looks like a special token in them is text and ends nothing.

    Raises:
        UsageError: as `load_tokenizer`.
    """
    tokenizer = load_tokenizer(source)
    tokenizer.split_special_tokens = True  # the default of every call, also of calls by a processor
    return tokenizer


def load_model(source: Path | str, name: str, options: ModelOptions, device: torch.device | str) -> Any:
    """Loads a model for inference. No weight may be missing.

    Args:
        source: a folder, read without network, or a hub name.
        name: the model's class in transformers.
        options: they say the type of the weights, and perhaps the device.
        device: used if the options have no device.

    Raises:
        UsageError: the checkpoint lacks weights.
    """
    import torch
    import transformers
    from transformers.utils import logging

    check_device(options.device, "device", loading=True)

    if not sys.stderr.isatty():  # in a log a progress bar is noise
        logging.disable_progress_bar()
    target = torch.device(options.device or device)
    model, loading = load_checkpoint(getattr(transformers, name), source, dtype=dtype_of(options.dtype, target))
    if loading["missing_keys"]:  # transformers would use random weights instead
        missing = sorted(loading["missing_keys"])
        raise UsageError(
            f"{source} is an incomplete checkpoint: {missing[0]} and {len(missing) - 1} more weights are missing",
            hint=f"give a checkpoint that transformers' {name} saved",
        )
    return model.to(target).eval()


def dtype_of(name: str, device: torch.device) -> torch.dtype:
    """Returns the type of the weights for the option ``dtype``. ``auto`` is float32 on a CPU and bfloat16 elsewhere."""
    import torch

    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def model_type_check(kinds: Collection[str], judge: str, model_hint: str, where: str) -> Check:
    """Returns a check of a model's config, for `find_weights`. It refuses models whose ``model_type`` is not among ``kinds``.

    Args:
        kinds: the model types that the judge loads.
        judge: its name, for the message.
        model_hint: which model to give, for the hint.
        where: the config key and the model, for the message.
    """

    def check(config: Mapping[str, Any]) -> None:
        kind = config.get("model_type")
        if kind not in kinds:
            label = f"a {kind} model" if kind else "a diffusers pipeline" if "_class_name" in config else "a model of unnamed type"
            raise UsageError(f"{where} is {label}, and the judge {judge} loads {', '.join(kinds)}", hint=model_hint)

    return check


def check_device(name: str | None, key: str, *, loading: bool = False) -> None:
    """Checks that there is a device of that name. A machine without any GPU is refused only when something is loaded there.

    Args:
        name: of torch; None is the run's device, which is there.
        key: the option's place in the config, for the message.
        loading: false in a preflight, which may be made on another machine than the run.

    Raises:
        UsageError: there is no such device.
    """
    import torch

    if name is None:
        return
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"{key}={name} is no device: {first_line(error)}", hint="write cpu, cuda or cuda:1") from None
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count and (count or loading):
        there = f"it has {count} GPUs" if count else "it has no GPU"
        raise UsageError(f"{key}={name} is not on this machine: {there}", hint=f"remove {key}, or set it to another device")


def parameter_count(weights: Weights) -> dict[str, int]:
    """Returns the number of ``parameters`` as a preflight reports it, or an empty dict if it is not known."""
    return {} if weights.parameters is None else {"parameters": weights.parameters}


def _rubrics(options: RubricOptions, family: Family, key: str) -> dict[str, Rubric]:
    return read_rubrics(
        options.rubrics, {str(name): file for name, file in options.rubric.items()}, scoring=options.scoring, family=family.name, key=key
    )


def _check_chat_format(folder: Path, rubrics: Mapping[str, Rubric]) -> None:
    """Checks that tokenizer, chat template and image processor fit, and that the rubrics' one-token answers are tokens."""
    from transformers import AutoConfig

    from gotr1_judges.vision import ChatFormat

    try:
        config = load_pretrained(AutoConfig, folder)
    except Exception as error:  # transformers has its own exceptions for wrong types
        first = first_line(error)
        raise UsageError(f"{folder / 'config.json'} cannot be read: {first}", hint="copy the original checkpoint's") from error
    load_processor(folder)
    chat = ChatFormat(load_tokenizer(folder), config.image_token_id)
    for kind in {rubric.kind for rubric in rubrics.values()} & WORDS.keys():
        for word in WORDS[kind]:
            chat.word_tokens(word)
