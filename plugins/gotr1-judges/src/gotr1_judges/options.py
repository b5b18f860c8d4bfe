"""Options of the judges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gotr1_core.config.paths import Input, InputPath
from gotr1_core.pictures.draw_chain import AUTO, NO_FONT

Rewarded = Literal["sem", "spa", "ri", "pi", "requirements"]


def _is_version(text: str, options: Mapping[str, Any]) -> bool:
    del options
    from gotr1_judges.rubrics import rubric_versions

    return text in rubric_versions()


def _is_in_folder(text: str, options: Mapping[str, Any]) -> bool:
    """True for a rubric that is looked up in the folder of rubrics first, even if the working folder has such a file."""
    from gotr1_judges.rubrics import NEWEST, is_rubric_of

    return is_rubric_of(str(options.get("rubrics", NEWEST)), text)


def _is_no_file(text: str, options: Mapping[str, Any]) -> bool:
    del options
    return text in (AUTO, NO_FONT)


class ModelOptions(BaseModel):
    """Options of every judge that has a model."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Type of the weights; auto is bfloat16, and float32 on a CPU."
    )
    device: str | None = Field(None, description="Device of the model, such as cuda:1; by default that of the run's policies.")


class QuestionOptions(BaseModel):
    """What is asked, and how answers become scores, wherever the model runs."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    scoring: Literal["text", "expected"] = Field(
        "text", description="text: a written verdict with its reason; expected: the mean of a one-token answer, in one forward pass."
    )
    rubrics: Annotated[str, Input(unless=_is_version)] = Field(
        "v1", description="The questions: a version of the package, or a folder whose files replace those of the newest version."
    )
    rubric: dict[Rewarded, Annotated[str, Input(unless=_is_in_folder)]] = Field(
        {}, description="Single rubrics by reward: a file, or the name of one in the folder, such as {pi: pi-yes}."
    )
    canvas: int = Field(448, ge=448, le=4096, description="Side in pixels of the canvas on which the plan's boxes are drawn for spa.")
    font: Annotated[str, Input(unless=_is_no_file)] = Field(
        AUTO,
        description="Font file for names on the canvas that the built-in font lacks; auto looks on the system, none draws numbers only.",
    )
    answer_tokens: int = Field(512, gt=0, description="Maximum length of a written answer in tokens; a longer one is cut.")
    least_mass: float = Field(
        0.1, ge=0, le=1, description="Minimum total probability of the allowed answer tokens; below it the score is NaN."
    )


class RubricOptions(QuestionOptions, ModelOptions):
    """Options of a judge that asks a multimodal LLM in this process."""

    model: InputPath = Field(description="A folder or a hub name.")
    batch: int = Field(16, gt=0, description="Questions in one pass.")
    attention: Literal["sdpa", "eager", "flash_attention_2"] = Field("sdpa", description="Attention kernel.")


class QwenJudgeOptions(RubricOptions):
    """Options of the judge ``qwen-vl``."""

    model: InputPath = Field("Qwen/Qwen2.5-VL-7B-Instruct", description="A folder or a hub name of a Qwen2.5-VL or Qwen3-VL.")


class InternJudgeOptions(RubricOptions):
    """Options of the judge ``internvl``."""

    model: InputPath = Field(
        "OpenGVLab/InternVL3-8B-hf", description="A folder or a hub name of an InternVL3 in transformers' format (-hf)."
    )


class DetectorOptions(ModelOptions):
    """Options of the judge ``detector``."""

    model: InputPath = Field("IDEA-Research/grounding-dino-base", description="A folder or a hub name of a Grounding DINO or an OWLv2.")
    threshold: float | None = Field(
        None, ge=0, le=1, description="Boxes with less confidence do not count; by default 0.25, or 0.1 for an OWLv2."
    )
    overlap: float = Field(0.7, ge=0, le=1, description="If boxes of one phrase have a larger IoU, only the surest counts.")
    batch: int = Field(8, gt=0, description="Pictures with a phrase in one pass.")


class PreferenceOptions(ModelOptions):
    """Options of a judge with a CLIP. Its score is the cosine, scaled so that ``low`` is 0 and ``high`` is 1."""

    model: InputPath = Field(description="A folder or a hub name of a CLIP.")
    low: float = Field(0.0, ge=-1, le=1, description="Cosine of picture and prompt that scores 0.")
    high: float = Field(ge=-1, le=1, description="Cosine of picture and prompt that scores 1.")
    batch: int = Field(32, gt=0, description="Pictures in one pass.")

    @model_validator(mode="after")
    def _low_below_high(self) -> PreferenceOptions:
        if self.low >= self.high:
            raise ValueError("low must be below high")
        return self


class HpsOptions(PreferenceOptions):
    """Options of the judge ``hps``."""

    model: InputPath = Field(
        "xswu/HPSv2", description="A folder with HPS v2.1 in safetensors; its release is a pickle, see docs/judges.md."
    )
    high: float = Field(0.4, ge=-1, le=1, description="Cosine of picture and prompt that scores 1.")


class PickScoreOptions(PreferenceOptions):
    """Options of the judge ``pickscore``."""

    model: InputPath = Field("yuvalkirstain/PickScore_v1", description="A folder or a hub name of PickScore.")
    high: float = Field(0.26, ge=-1, le=1, description="Cosine of picture and prompt that scores 1.")


class ClipOptions(PreferenceOptions):
    """Options of the judge ``clip``."""

    model: InputPath = Field("openai/clip-vit-large-patch14", description="A folder or a hub name of a CLIP.")
    high: float = Field(0.4, ge=-1, le=1, description="Cosine of picture and prompt that scores 1.")
