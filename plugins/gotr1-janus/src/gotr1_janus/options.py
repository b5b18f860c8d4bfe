"""Options of planner and renderer ``janus``."""

from __future__ import annotations

from string import Formatter
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from gotr1_core.config.paths import InputPath

INSTRUCTION = "Follow the caption to generate an image through a chain of thought process: {prompt}"


class JanusOptions(BaseModel):
    """Where the model is and how it is run."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    model: InputPath = Field("deepseek-community/Janus-Pro-1B", description="A folder or a hub name of a transformers Janus checkpoint.")
    instruction: str = Field(INSTRUCTION, description="The user message to the model; {prompt} stands for the prompt.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="Type of the weights.")
    attention: Literal["sdpa", "eager", "flash_attention_2"] = Field(
        "sdpa", description="Attention kernel; eager is fastest for a small model on a CPU."
    )
    cache: Literal["dynamic", "static"] = Field(
        "dynamic", description="KV cache; static has one shape, and on a GPU a token's kernels are then captured once (CUDA graph)."
    )
    chunk: int = Field(4096, gt=0, description="Positions whose logits exist at the same time in the training pass.")
    drop_conditions: float = Field(0.1, ge=0, le=1, description="SFT: share of samples without prompt and chain, so that guidance works.")

    @field_validator("instruction")
    @classmethod
    def _check_fields(cls, value: str) -> str:
        try:
            fields = [(name, form, conversion) for _, name, form, conversion in Formatter().parse(value) if name is not None]
        except ValueError as error:
            raise ValueError(f"a brace that is text must be written twice, {{{{ or }}}} ({error})") from None
        if fields != [("prompt", "", None)]:
            raise ValueError("{prompt} must be the only field, once; a brace that is text must be written twice, {{ or }}")
        return value
