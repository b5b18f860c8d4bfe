"""Options of the planners ``qwen`` and ``file``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from gotr1_core.config.paths import Input, InputFile, InputPath


def _is_version(text: str, options: Mapping[str, Any]) -> bool:
    del options
    from gotr1_qwen.instruction import instruction_versions

    return text in instruction_versions()


class QwenOptions(BaseModel):
    """Where the model is, its instruction, and how it is run."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    model: InputPath = Field(
        "Qwen/Qwen2.5-VL-7B-Instruct", description="A folder or a hub name of a Qwen2.5-VL, Qwen3-VL, Qwen2.5 or Qwen3."
    )
    instruction: Annotated[str, Input(unless=_is_version)] = Field(
        "v1", description="The user message to the model: v1, plain (the prompt alone), or a text file with {prompt} in it."
    )
    tags: Literal["text", "tokens"] = Field(
        "text",
        description="A chain's tags: text spells them out, which any model can copy; tokens uses one token each, which may need training.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Type of the weights; auto is bfloat16, and float32 on a CPU."
    )
    attention: Literal["sdpa", "eager", "flash_attention_2"] = Field(
        "sdpa", description="Attention kernel; eager is fastest for a small model on a CPU."
    )
    cache: Literal["dynamic", "static"] = Field(
        "dynamic", description="KV cache; static has one shape, and on a GPU a token's kernels are then captured once (CUDA graph)."
    )
    chunk: int = Field(1024, gt=0, description="Positions whose logits exist at the same time in the training pass.")


class FileOptions(BaseModel):
    """Where the chains are."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    chains: InputFile = Field(description='A JSONL file, each line {"prompt": …, "chain": …}, such as the samples.jsonl of gotr1 generate.')
