"""The schedulers of a checkpoint: which of them go with DDIM and Flow-SDE, and the denoising steps that they give.

It needs no weights, so a run that cannot draw or train is refused before any are loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gotr1_core.errors import UsageError, first_line
from gotr1_core.policies.hub import find_weights
from gotr1_core.policies.pretrained import build_from_config, load_pretrained
from gotr1_core.samples import Sampling
from gotr1_diffusers.checkpoint import check_pipeline_class
from gotr1_diffusers.options import FlowOptions, SdxlOptions
from gotr1_diffusers.steps import PREDICTIONS, Steps, ddim, flow_sde

_OTHER = "use another checkpoint"


def preflight_scheduler(options: Any, kind: str) -> Any:
    """The scheduler of a checkpoint that is not loaded yet; None before a download. ``kind`` is the class of its pipeline.

    Raises:
        UsageError: there is no such checkpoint, or its scheduler cannot be made.
    """
    weights = find_weights(
        options.model, key="renderer.model", check=lambda config: check_pipeline_class(kind, config, options.model), variant=options.variant
    )
    if weights.folder is None:
        return None
    return _load_scheduler(weights.folder, str(weights.config["scheduler"][1]))


def _load_scheduler(folder: Path, name: str) -> Any:
    import diffusers

    try:
        return load_pretrained(getattr(diffusers, name), folder, subfolder="scheduler")
    except Exception as error:  # diffusers has no exceptions of its own
        raise UsageError(f"{folder}: its scheduler, {name}, cannot be made: {first_line(error)}", hint=_OTHER) from error


def ddim_scheduler(scheduler: Any, options: SdxlOptions) -> Any:
    """A DDIM scheduler with the checkpoint's noise schedule, for timesteps and ᾱ. The step itself is that of :func:`ddim`.

    Raises:
        UsageError: the scheduler has no noise schedule that DDIM knows, or the model predicts what DDIM does not.
    """
    from diffusers import DDIMScheduler

    name = type(scheduler).__name__
    if "beta_schedule" not in scheduler.config:
        raise UsageError(f"{options.model}: its scheduler, {name}, has no noise schedule that DDIM knows", hint=_OTHER)
    spacing = {} if options.spacing is None else {"timestep_spacing": options.spacing}
    try:
        ours = build_from_config(DDIMScheduler, scheduler.config, **spacing)
        ours.set_timesteps(1)  # reads what the constructor only keeps, such as timestep_spacing
    except (NotImplementedError, TypeError, ValueError) as error:
        raise UsageError(f"{options.model}: DDIM cannot be made of its {name}: {first_line(error)}", hint=_OTHER) from error
    if ours.config.prediction_type not in PREDICTIONS:
        what = f"{options.model} predicts {ours.config.prediction_type!r}, which DDIM does not know"
        raise UsageError(what, hint=f"it knows {', '.join(PREDICTIONS)}; {_OTHER}")
    return ours


def sdxl_steps(scheduler: Any, options: SdxlOptions, sampling: Sampling) -> Steps:
    """The steps of a DDIM scheduler.

    Raises:
        UsageError: the model was trained with fewer timesteps, or see :func:`ddim`.
    """
    _check_count(scheduler, sampling)
    scheduler.set_timesteps(sampling.denoising_steps)
    eta = options.eta * sampling.image_temperature
    last = float(scheduler.final_alpha_cumprod)
    timesteps = [int(t) for t in scheduler.timesteps]
    return ddim(timesteps, scheduler.alphas_cumprod, last, prediction=scheduler.config.prediction_type, eta=eta)


def flow_scheduler(scheduler: Any, options: FlowOptions) -> Any:
    """A new scheduler like the checkpoint's.

    Raises:
        UsageError: it is not Euler's for flow matching, whose noise shares Flow-SDE needs.
    """
    if "use_dynamic_shifting" not in scheduler.config:
        name = type(scheduler).__name__
        raise UsageError(f"{options.model}: its scheduler, {name}, has no noise shares that Flow-SDE knows", hint=_OTHER)
    return build_from_config(type(scheduler), scheduler.config)


def flow_steps(scheduler: Any, options: FlowOptions, sampling: Sampling, tokens: int) -> Steps:
    """The steps of Flow-SDE, over the noise shares of the checkpoint's scheduler. ``tokens`` is the number of a picture's patches.

    Raises:
        UsageError: the model was trained with fewer timesteps.
    """
    _check_count(scheduler, sampling)
    config, shift = scheduler.config, {}
    if config.use_dynamic_shifting:  # towards noise, by the picture's size
        slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
        shift = {"mu": config.base_shift + slope * (tokens - config.base_image_seq_len)}
    scheduler.set_timesteps(sampling.denoising_steps, **shift)
    return flow_sde(scheduler.timesteps, scheduler.sigmas, level=options.noise_level * sampling.image_temperature)


def _check_count(scheduler: Any, sampling: Sampling) -> None:
    most = scheduler.config.num_train_timesteps
    if sampling.denoising_steps > most:
        what = f"sampling.denoising_steps={sampling.denoising_steps} is more than the {most} timesteps that the model was trained with"
        raise UsageError(what, hint=f"nearest: sampling.denoising_steps={most}")
