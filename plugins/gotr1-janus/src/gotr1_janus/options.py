"""Options of planner and renderer ``janus``."""

from __future__ import annotations

from string import Formatter
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

INSTRUCTION = "Follow the caption to generate an image through a chain of thought process: {prompt}"


class JanusOptions(BaseModel):
    """Where the model is and how it is run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field("deepseek-community/Janus-Pro-1B", description="A folder or a hub name of a transformers Janus checkpoint.")
    instruction: str = Field(INSTRUCTION, description="What the user says to the model; {prompt} is the prompt.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="Type of the weights.")
    attention: Literal["sdpa", "eager", "flash_attention_2"] = Field(
        "sdpa", description="Attention kernel; eager is fastest for a small model on a CPU."
    )
    cache: Literal["dynamic", "static"] = Field(
        "dynamic", description="KV cache of the sampler; static keeps one shape, for compiled kernels."
    )
    chunk: int = Field(4096, gt=0, description="Positions whose logits exist at the same time while scoring.")
    drop_conditions: float = Field(0.1, ge=0, le=1, description="SFT: share of samples whose prompt and chain are dropped, for guidance.")

    @field_validator("instruction")
    @classmethod
    def _has_the_prompt(cls, value: str) -> str:
        try:
            fields = [(name, form, conversion) for _, name, form, conversion in Formatter().parse(value) if name is not None]
        except ValueError as error:
            raise ValueError(f"a brace of the text itself is written twice, {{{{ or }}}} ({error})") from None
        if fields != [("prompt", "", None)]:
            raise ValueError("{prompt} must be there once, and no other field; a brace of the text itself is written twice, {{ or }}")
        return value
