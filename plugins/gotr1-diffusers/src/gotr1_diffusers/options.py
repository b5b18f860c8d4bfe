"""Options of the renderers ``sdxl`` and ``flow``."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gotr1_core.config.paths import InputPath


class DiffusionOptions(BaseModel):
    """The options that both renderers have."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="Type of the weights; the VAE may stay float32.")
    variant: str | None = Field(None, description="Variant of the weight files, such as fp16, if a checkpoint has several.")
    height: int | None = Field(None, gt=0, description="Height of the pictures in pixels; that of the model's training if not given.")
    width: int | None = Field(None, gt=0, description="Width of the pictures in pixels; that of the model's training if not given.")
    trained: Literal["window", "subset", "all"] = Field(
        "window", description="Denoising steps that train: neighbours, any, or all with noise; drawn once per prompt's group."
    )
    trained_steps: int = Field(2, gt=0, description="How many steps train; ignored with trained=all.")
    trained_range: tuple[float, float] = Field((0.0, 1.0), description="Part of the denoising, from 0 to 1, that they are drawn from.")
    noise: Literal["every", "trained"] = Field(
        "every", description="Steps that draw noise: every one, or the trained ones; then the others are deterministic (arXiv 2507.21802)."
    )
    drop_conditions: float = Field(0.1, ge=0, le=1, description="SFT: share of samples without prompt and plan, so that guidance works.")
    train_text: bool = Field(False, description="Train the text encoders too, if full weights train (lora=null).")

    @model_validator(mode="after")
    def _range_rises(self) -> DiffusionOptions:
        if not 0 <= self.trained_range[0] < self.trained_range[1] <= 1:
            raise ValueError("trained_range must be two numbers between 0 and 1, the first one smaller")
        return self


class SdxlOptions(DiffusionOptions):
    """The options of ``sdxl``."""

    model: InputPath = Field("stabilityai/stable-diffusion-xl-base-1.0", description="A folder or a hub name of a diffusers SDXL pipeline.")
    eta: float = Field(1.0, ge=0, description="Noise of DDIM's steps: 1 is that of DDPM; with 0 nothing can train.")
    spacing: Literal["leading", "trailing", "linspace"] | None = Field(
        None, description="Spacing of the timesteps; that of the checkpoint's scheduler if not given."
    )
    layout: Literal["regional", "none"] = Field(
        "regional", description="Use of boxes: each region's phrase is attended to inside its box, or boxes are not used."
    )
    strength: float = Field(0.6, ge=0, le=1, description="Share of a pixel's cross-attention that goes to its regions, not to the text.")
    regional_share: float = Field(0.7, ge=0, le=1, description="Share of the denoising, from its beginning, in which regions are used.")
    snr_gamma: float | None = Field(
        None, gt=0, description="SFT: limit of the signal-to-noise ratio in the loss's weights (arXiv 2303.09556); 5 is usual."
    )


class FlowOptions(DiffusionOptions):
    """The options of ``flow``."""

    model: InputPath = Field("stabilityai/stable-diffusion-3.5-medium", description="A folder or a hub name of a diffusers SD3 pipeline.")
    noise_level: float = Field(0.7, ge=0, description="Noise of Flow-SDE's steps, a in its paper; with 0 nothing can train.")
    text_tokens: int = Field(256, gt=0, le=512, description="Tokens of prompt and chain that T5 reads; CLIP reads the first 77.")
