"""Pipelines of diffusers on disk and on a hub, looked at before their weights are."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from gotr1_core.errors import UsageError, first_line
from gotr1_core.policies.hub import Weights, find_weights
from gotr1_core.policies.lora import merged_state


def preflight(model: str, key: str, kind: str) -> dict[str, int]:
    """The ``parameters`` of a pipeline that can be had and is of a class, where they are known.

    Raises:
        UsageError: there are no weights, or they are another pipeline's.
    """
    weights = find_weights(model, key=f"{key}.model", check=lambda config: only(kind, config, f"{key}.model={model}"))
    return {} if weights.parameters is None else {"parameters": weights.parameters}


def only(kind: str, config: Mapping[str, Any], where: str) -> None:
    """Refuses what is no pipeline of a class; ``config`` is its `model_index.json`, or what a hub tells of it."""
    told = config.get("_class_name") or config.get("diffusers", {}).get("_class_name")
    if told != kind:
        what = f"a {told}" if told else f"a {config['model_type']} model" if "model_type" in config else "no pipeline of diffusers"
        raise UsageError(f"{where} is {what}, not a {kind}", hint="give a folder that its save_pretrained wrote, or a hub name of one")


def load(options: Any, kind: str) -> Any:
    """A pipeline with its weights in the options' type; those of the VAE in float32 where its config asks for it.

    Raises:
        UsageError: it cannot be had, is of another class, or has not all that is needed.
    """
    weights = find_weights(options.model, key="model", check=lambda config: only(kind, config, options.model))
    logging.getLogger("transformers.utils.import_utils").addFilter(_is_not_about_torchvision)
    import diffusers  # takes seconds, which a refusal need not wait for
    import transformers

    if not sys.stderr.isatty():  # a bar of a logged run is noise
        diffusers.utils.logging.disable_progress_bar()
        transformers.utils.logging.disable_progress_bar()
    dtype = getattr(torch, options.dtype)
    try:
        pipeline = getattr(diffusers, kind).from_pretrained(
            weights.folder or options.model,
            dtype={"default": dtype, "vae": torch.float32},  # from bfloat16 nothing would come back
            use_safetensors=True,
            variant=options.variant,
            local_files_only=weights.folder is not None,
            **(_encoders(weights, dtype, options.variant) if weights.folder else {}),
        )
    except (KeyError, RuntimeError, TypeError, ValueError) as error:  # diffusers has no exceptions of its own
        first = first_line(error)
        raise _not_whole(options.model, first) from error
    for part in pipeline.components.values():
        missing = [name for name, tensor in part.named_parameters() if tensor.is_meta] if isinstance(part, nn.Module) else []
        if missing:
            raise _not_whole(options.model, f"{type(part).__name__} lacks {missing[0]}")
    if not getattr(pipeline.vae.config, "force_upcast", False):
        nn.Module.to(pipeline.vae, dtype)  # diffusers' own warns of layers to be kept, of which there are none
    return pipeline


def _is_not_about_torchvision(record: logging.LogRecord) -> bool:
    """Pipelines import image processors, which warn that they go without it; nothing here shows a picture to a pipeline."""
    return "requires torchvision" not in record.getMessage()


def _encoders(weights: Weights, dtype: torch.dtype, variant: str | None) -> dict[str, Any]:
    """A folder's text encoders. Loaded here, as transformers would go on with random weights in the place of those that are missing."""
    import transformers

    found = {}
    for name, kind in weights.config.items():
        if not name.startswith("text_encoder") or not all(kind):
            continue
        made: Any = getattr(transformers, kind[1])
        how = {"dtype": dtype, "variant": variant, "local_files_only": True, "use_safetensors": True}
        found[name], told = made.from_pretrained(weights.folder, subfolder=name, output_loading_info=True, **how)
        if told["missing_keys"]:
            raise _not_whole(str(weights.folder), f"{name} lacks {sorted(told['missing_keys'])[0]}")
    return found


def _not_whole(model: str, what: str) -> UsageError:
    return UsageError(f"{model} is no whole pipeline: {what}", hint="give a folder that its save_pretrained wrote, or a hub name of one")


def merged(model: Any) -> nn.Module:
    """A denoiser without adapters, these added to its layers; itself if it has none."""
    if not hasattr(model, "peft_config") and not any("lora_" in name for name, _ in model.named_parameters()):
        return model
    with torch.device("meta"):
        plain: nn.Module = type(model).from_config(model.config)
    state = merged_state(model)
    plain.load_state_dict(state, assign=True)
    return plain


def check(pipeline: Any, denoiser: Any, model: str) -> None:
    """Refuses a pipeline of the right class whose parts are made for something else, as refiners and inpainting models are."""
    if pipeline.text_encoder is None or pipeline.tokenizer is None:
        raise UsageError(f"{model} lacks its first text encoder: is it a refiner?", hint="give the base model")
    takes, gives = denoiser.config.in_channels, pipeline.vae.config.latent_channels
    if takes != gives:
        what = f"{model}: its {type(denoiser).__name__} takes {takes} channels and the VAE gives {gives}"
        raise UsageError(what, hint="give a text-to-image model, not one for inpainting or editing")
