"""What a judge's checkpoint must have, looked at before its weights are; and its parts, loaded."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gotr1_core.errors import UsageError, first_line
from gotr1_core.policies.hub import Check, Weights, find_weights
from gotr1_judges.families import Family, load_processor
from gotr1_judges.rubrics import WORDS, Rubric, read_rubrics

if TYPE_CHECKING:
    import torch

    from gotr1_judges.options import ModelOptions, RubricOptions
    from gotr1_judges.vision import VisionModel


def preflight(options: RubricOptions, family: Family, key: str) -> dict[str, int]:
    """The ``parameters`` of a checkpoint that can be had and is of the family.

    Raises:
        UsageError: rubrics that are none; no weights, or of another model; a tokenizer or chat template that cannot ask.
    """
    rubrics = _rubrics(options, family, key)
    where = f"{key}.model"
    weights = find_weights(options.model, key=where, check=only(family.classes, family.name, family.give, f"{where}={options.model}"))
    if weights.folder is not None:
        _check_script(weights.folder, rubrics)
    return sizes(weights)


def load(options: RubricOptions, family: Family, *, device: torch.device | str) -> tuple[dict[str, Rubric], VisionModel]:
    """Rubrics and the model that answers them."""
    from gotr1_judges.vision import VisionModel

    rubrics = _rubrics(options, family, "judge")
    weights = find_weights(options.model, key="model", check=only(family.classes, family.name, family.give, options.model))
    source = weights.folder or options.model
    tokenizer, processor = load_tokenizer(source), load_processor(source)
    model = load_model(source, family.classes[str(weights.config.get("model_type"))], options, device)
    model.set_attn_implementation(options.attention)
    eyes = family.eyes(processor, model.config, tokenizer)
    return rubrics, VisionModel(model, tokenizer, eyes, batch=options.batch, answer_tokens=options.answer_tokens)


def load_tokenizer(source: Path | str) -> Any:
    """The tokenizer of a folder, no network used, or of a hub name. Alone: a combined processor may need torchvision."""
    from transformers import AutoTokenizer

    if isinstance(source, Path) and not any((source / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise UsageError(f"{source} has no tokenizer.json", hint="copy the tokenizer's files of the original checkpoint into it")
    try:
        return AutoTokenizer.from_pretrained(source, local_files_only=isinstance(source, Path))
    except Exception as error:  # what the tokenizers library raises is an Exception and no more
        first = first_line(error)
        raise UsageError(f"the tokenizer of {source} cannot be read: {first}", hint="copy it from the original checkpoint again") from error


def load_model(source: Path | str, name: str, options: ModelOptions, device: torch.device | str) -> Any:
    """A model of transformers by its class, every weight of which must be there, on the device of the options or the one given."""
    import torch
    import transformers
    from transformers.utils import logging

    if not sys.stderr.isatty():  # a bar of a logged run is noise
        logging.disable_progress_bar()
    place = torch.device(options.device or device)
    model, found = getattr(transformers, name).from_pretrained(
        source,
        dtype=dtype_of(options.dtype, place),
        local_files_only=isinstance(source, Path),
        use_safetensors=True,
        output_loading_info=True,
    )
    if found["missing_keys"]:  # transformers would go on with random weights in their place
        missing = sorted(found["missing_keys"])
        raise UsageError(
            f"{source} is no whole checkpoint: {missing[0]} and {len(missing) - 1} more weights are missing",
            hint=f"give a checkpoint that transformers' {name} saved",
        )
    return model.to(place).eval()


def dtype_of(name: str, device: torch.device) -> torch.dtype:
    """The type of weights that an option says, on a device."""
    import torch

    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def only(kinds: Collection[str], judge: str, give: str, where: str) -> Check:
    """What refuses the config of a model whose type is not among ``kinds``, for `find_weights`."""

    def check(config: Mapping[str, Any]) -> None:
        kind = config.get("model_type")
        if kind not in kinds:
            what = f"a {kind} model" if kind else "a diffusers pipeline" if "_class_name" in config else "a model of unnamed type"
            raise UsageError(f"{where} is {what}, and the judge {judge} loads {', '.join(kinds)}", hint=give)

    return check


def sizes(weights: Weights) -> dict[str, int]:
    """What a preflight returns of a judge."""
    return {} if weights.parameters is None else {"parameters": weights.parameters}


def _rubrics(options: RubricOptions, family: Family, key: str) -> dict[str, Rubric]:
    return read_rubrics(
        options.rubrics, {str(name): file for name, file in options.rubric.items()}, scoring=options.scoring, family=family.name, key=key
    )


def _check_script(folder: Path, rubrics: Mapping[str, Rubric]) -> None:
    """Tokenizer, chat template and image processor go together and have the one-token answers of the rubrics."""
    from transformers import AutoConfig

    from gotr1_judges.vision import Script

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers checks types with its own exceptions
        first = first_line(error)
        raise UsageError(f"{folder / 'config.json'} cannot be read: {first}", hint="copy the original checkpoint's") from error
    load_processor(folder)
    script = Script(load_tokenizer(folder), config.image_token_id)
    for kind in {rubric.kind for rubric in rubrics.values()} & WORDS.keys():
        for word in WORDS[kind]:
            script.one_token(word)
