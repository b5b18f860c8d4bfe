"""Finds pipelines of diffusers on disk or on a hub, checks them before any weights are loaded, and loads them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gotr1_core.engine.files import read_json
from gotr1_core.errors import UsageError, first_line
from gotr1_core.policies.hub import Weights, find_weights
from gotr1_core.policies.lora import merged_state
from gotr1_core.policies.pretrained import build_from_config, load_pretrained

_MISFITS = (AttributeError, LookupError, RuntimeError, TypeError, ValueError, ArithmeticError)
_COMPLETE = "give a folder that the pipeline's save_pretrained wrote, or a hub name of one"


def preflight(options: Any, key: str, kind: str) -> dict[str, int]:
    """Checks that a pipeline has the class ``kind`` and returns its number of ``parameters`` if it is known.

    ``key`` is the component's place in the config, for messages.

    Raises:
        UsageError: there are no weights of ``options.variant``, the pipeline has another class, is no text-to-image model, or cannot draw
            pictures of this height and width.
    """
    where = f"{key}.model={options.model}"
    weights = find_weights(
        options.model, key=f"{key}.model", check=lambda config: check_pipeline_class(kind, config, where), variant=options.variant
    )
    if weights.folder is not None:
        try:
            _check_configs(weights.folder, weights.config, options, key)
        except _MISFITS as error:  # a config says something else than a pipeline's does
            raise _incomplete(where, f"{type(error).__name__}: {first_line(error)}") from error
    return {} if weights.parameters is None else {"parameters": weights.parameters}


def _check_configs(folder: Path, index: Mapping[str, Any], options: Any, key: str) -> None:
    """Checks by the config files of a pipeline's parts what is checked again when it is loaded."""
    where = f"{key}.model={options.model}"
    if not all(index.get("text_encoder", [None])) or not all(index.get("tokenizer", [None])):
        raise no_text_encoder(where)
    denoiser = "unet" if "unet" in index else "transformer"
    configs: list[Any] = [read_json(folder / part / "config.json") for part in (denoiser, "vae")]
    channels = [config.get(name) for config, name in zip(configs, ("in_channels", "latent_channels"), strict=True)]
    if None not in channels:
        check_channels(index[denoiser][1], channels[0], channels[1], where)
    if "block_out_channels" in configs[1]:
        unit = 2 ** (len(configs[1]["block_out_channels"]) - 1) * configs[0].get("patch_size", 1)
        check_sides({"height": options.height, "width": options.width}, unit, prefix=f"{key}.")


def check_pipeline_class(kind: str, config: Mapping[str, Any], where: str) -> None:
    """Checks that a pipeline has the class ``kind``.

    Args:
        kind: the name of a class of diffusers.
        config: the pipeline's `model_index.json`, or a hub's facts about it.
        where: the pipeline's name in messages.

    Raises:
        UsageError: it has another class, or is not a pipeline.
    """
    actual = config.get("_class_name") or config.get("diffusers", {}).get("_class_name")
    if actual != kind:
        what = f"a {actual}" if actual else f"a {config['model_type']} model" if "model_type" in config else "a model of unknown type"
        raise UsageError(f"{where} is {what}, not a {kind}", hint=_COMPLETE)


def check_noise(noise: float, key: str) -> None:
    """Refuses to train without noise: every step would be deterministic. ``noise`` is the value of the option ``key``.

    Raises:
        UsageError: ``noise`` is 0.
    """
    if noise == 0:
        raise UsageError(
            f"{key}={noise:g}: no denoising step has noise, so none can train", hint=f"set {key} to more than 0, or train the planner alone"
        )


def load_pipeline(options: Any, kind: str) -> Any:
    """A pipeline of the class ``kind`` with its weights in ``options.dtype``. The VAE is float32 if its config says ``force_upcast``.

    Raises:
        UsageError: it is neither on disk nor on the hub, has another class, or is incomplete.
    """
    weights = find_weights(
        options.model, key="model", check=lambda config: check_pipeline_class(kind, config, options.model), variant=options.variant
    )
    logging.getLogger("transformers.utils.import_utils").addFilter(_is_not_about_torchvision)
    import diffusers  # takes seconds, so only after the checks
    import transformers

    if not sys.stderr.isatty():  # no progress bars in log files
        diffusers.utils.logging.disable_progress_bar()
        transformers.utils.logging.disable_progress_bar()
    dtype = getattr(torch, options.dtype)
    try:
        pipeline = load_pretrained(
            getattr(diffusers, kind),
            weights.folder or options.model,
            dtype={"default": dtype, "vae": torch.float32},  # bfloat16 would lose digits for good
            use_safetensors=True,
            variant=options.variant,
            **(_load_text_encoders(weights, dtype, options.variant) if weights.folder else {}),
        )
    except _MISFITS as error:  # diffusers has no exceptions of its own
        raise _incomplete(options.model, first_line(error)) from error
    for component in pipeline.components.values():
        missing = [name for name, tensor in component.named_parameters() if tensor.is_meta] if isinstance(component, nn.Module) else []
        if missing:
            raise _incomplete(options.model, f"{type(component).__name__} lacks {missing[0]}")
    if not getattr(pipeline.vae.config, "force_upcast", False):
        nn.Module.to(pipeline.vae, dtype)  # diffusers' own `to` warns needlessly of layers that must keep their type
    return pipeline


def _is_not_about_torchvision(record: logging.LogRecord) -> bool:
    """False for the warning of image processors that torchvision is missing. No pipeline here reads pictures, so they are not used."""
    return "requires torchvision" not in record.getMessage()


def _load_text_encoders(weights: Weights, dtype: torch.dtype, variant: str | None) -> dict[str, Any]:
    """A folder's text encoders by name. diffusers would not report missing weights, for which transformers uses random ones."""
    import transformers

    encoders = {}
    for name, kind in weights.config.items():
        if not name.startswith("text_encoder") or not all(kind):
            continue
        encoder_class: Any = getattr(transformers, kind[1], None)
        if not isinstance(encoder_class, type):
            raise _incomplete(str(weights.folder), f"transformers has no model {kind[1][:100]!r} for {name}")
        assert weights.folder is not None  # the caller's condition
        own_variant = variant if any((weights.folder / name).glob(f"*.{variant}*.safetensors")) else None  # as diffusers does
        settings = {"dtype": dtype, "variant": own_variant, "use_safetensors": True}
        encoders[name], info = load_pretrained(encoder_class, weights.folder, subfolder=name, output_loading_info=True, **settings)
        if info["missing_keys"]:
            raise _incomplete(str(weights.folder), f"{name} lacks {sorted(info['missing_keys'])[0]}")
    return encoders


def _incomplete(model: str, what: str) -> UsageError:
    return UsageError(f"{model} is not a complete pipeline: {what}", hint=_COMPLETE)


def merge_adapters(model: Any) -> nn.Module:
    """A copy of a denoiser with its adapters added to its layers. Without adapters, the denoiser itself."""
    if not hasattr(model, "peft_config") and not any("lora_" in name for name, _ in model.named_parameters()):
        return model
    with torch.device("meta"):
        merged: nn.Module = build_from_config(type(model), model.config)
    state = merged_state(model)
    merged.load_state_dict(state, assign=True)
    return merged


def check_pipeline(pipeline: Any, denoiser: Any, model: str) -> None:
    """Checks that a pipeline of the right class is a text-to-image model, not a refiner or an inpainting model.

    Raises:
        UsageError: its first text encoder is missing, or its denoiser takes other channels than the VAE's latents.
    """
    if pipeline.text_encoder is None or pipeline.tokenizer is None:
        raise no_text_encoder(model)
    check_channels(type(denoiser).__name__, denoiser.config.in_channels, pipeline.vae.config.latent_channels, model)


def no_text_encoder(model: str) -> UsageError:
    """The error of a pipeline without its first text encoder."""
    return UsageError(f"{model} lacks its first text encoder, like a refiner", hint="give the base model")


def check_channels(denoiser: str, denoiser_channels: int, vae_channels: int, model: str) -> None:
    """Checks that a denoiser takes the VAE's latents and nothing else. ``denoiser`` is the name of its class.

    Raises:
        UsageError: it takes other channels.
    """
    if denoiser_channels != vae_channels:
        what = f"{model}: its {denoiser} takes {denoiser_channels} channels and the VAE gives {vae_channels}"
        raise UsageError(what, hint="give a text-to-image model, not one for inpainting or editing")


def check_sides(sides: Mapping[str, int | None], unit: int, prefix: str = "") -> None:
    """Checks that height and width in pixels are multiples of ``unit``. None is the model's own, which is.

    Raises:
        UsageError: one is not. ``prefix`` stands before its name.
    """
    for name, side in sides.items():
        if side is not None and side % unit:
            nearest = f"nearest: {prefix}{name}={max(1, round(side / unit)) * unit}"
            raise UsageError(f"{prefix}{name}={side} is not a multiple of {unit}", hint=nearest)
