"""A run in one pydantic model. Unknown keys are errors. What it is read from is in ``layers.py``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from gotr1_core.config.merge import label_of, named
from gotr1_core.config.messages import explain, keys
from gotr1_core.samples import Sampling

LABEL = re.compile(r"[A-Za-z]\w*(-[A-Za-z0-9]\w*)*", re.ASCII)  # what stands before the dot of JUDGE.NAME in a reward expression


class Strict(BaseModel):
    """Frozen, and without room for a typo."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ComponentConfig(BaseModel):
    """A registered component by name; its other keys are its options, which the plugin's own model checks."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class JudgeConfig(ComponentConfig):
    """A judge; ``as: LABEL`` gives its scores another name than its own, so that two of one name can judge together."""

    @property
    def label(self) -> str:
        return label_of({"name": self.name, **(self.model_extra or {})})

    @property
    def options(self) -> dict[str, Any]:
        return {key: value for key, value in super().options.items() if key != "as"}

    @model_validator(mode="after")
    def _check_label(self) -> JudgeConfig:
        given = (self.model_extra or {}).get("as", "judge")  # its own name is the plugin's to say
        if not isinstance(given, str) or not LABEL.fullmatch(given):
            raise ValueError(f"as: {given!r} is no name for a judge: a letter, then letters, digits, _ and -")
        return self


def _algorithm(value: Any) -> Any:
    """``algorithm.ratio=token`` alone sets an option of the default."""
    given = named(value)
    return {"name": "grpo", **given} if isinstance(given, dict) else given


def _listed(value: Any) -> Any:
    return [named(v) for v in (value if isinstance(value, list) else [value])]


ConfigT = TypeVar("ConfigT", bound=BaseModel)
# What a config may say is more than what it becomes; the JSON Schema describes the former.
_OPTIONS: dict[str, Any] = {"type": "object", "properties": {"name": {"type": "string"}}}
_SCHEMA: dict[str, Any] = {"anyOf": [{"type": "string"}, {**_OPTIONS, "required": ["name"]}]}
Named = Annotated[ComponentConfig, BeforeValidator(named), WithJsonSchema(_SCHEMA)]
JudgeList = Annotated[
    list[JudgeConfig], BeforeValidator(_listed), WithJsonSchema({"anyOf": [*_SCHEMA["anyOf"], {"type": "array", "items": _SCHEMA}]})
]
Algorithm = Annotated[ComponentConfig, BeforeValidator(_algorithm), WithJsonSchema({"anyOf": [{"type": "string"}, _OPTIONS]})]
Files = Annotated[
    list[Path],
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
    AfterValidator(lambda files: [file.absolute() for file in files]),
]


class SamplingConfig(Strict):
    """See :class:`gotr1_core.samples.Sampling`."""

    temperature: float = Field(1.0, ge=0, description="Of the plan's tokens; 0 decodes greedily.")
    image_temperature: float = Field(
        1.0, ge=0, description="Of the picture's tokens; 0 decodes greedily. It multiplies the noise of denoising steps."
    )
    guidance_scale: float = Field(5.0, ge=0, description="Classifier-free guidance u + w (c - u); 1 is none.")
    max_chain_tokens: int = Field(600, gt=0, description="A chain that has not ended by then is cut.")
    log_prob: Literal["guided", "conditional"] = Field("guided", description="Distribution under which guided images are scored.")
    denoising_steps: int = Field(20, gt=0, description="Steps in which a diffusion model draws.")


class OptimizerConfig(Strict):
    """AdamW; one for each policy."""

    learning_rate: float = Field(1e-5, gt=0, description="Learning rate at its peak.")
    schedule: Literal["constant", "linear", "cosine"] = Field("cosine", description="How the rate falls after the warm-up.")
    warmup: int = Field(0, ge=0, description="Updates of linear warm-up.")
    floor: float = Field(0.0, ge=0, le=1, description="Where the schedule ends, as a share of the rate.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled, as in AdamW.")
    betas: tuple[float, float] = Field((0.9, 0.95), description="Decays of the running means of gradient and square.")
    max_grad_norm: float = Field(1.0, gt=0, description="Limit of the global gradient norm.")
    ema: float = Field(0.0, ge=0, lt=1, description="Decay of a moving average of the weights, for evaluation and export; 0 has none.")


class LoraConfig(Strict):
    """Low-rank adapters (arXiv 2106.09685) instead of full weights."""

    rank: int = Field(32, gt=0, description="Rank of an adapter.")
    alpha: float = Field(32.0, gt=0, description="An adapter's output counts alpha / rank times.")
    targets: list[str] | Literal["all-linear"] = Field("all-linear", description="Layers, within what the policy lets LoRA adapt.")


class SegmentConfig(Strict):
    """What belongs to a segment and not to a policy."""

    weight: float = Field(1.0, ge=0, description="Of the segment's loss; 0 leaves it out.")
    clip_low: float = Field(0.2, gt=0, le=1, description="The ratio is clipped below 1 - clip_low.")
    clip_high: float = Field(0.2, gt=0, description="... and above 1 + clip_high (larger than clip_low: DAPO, arXiv 2503.14476).")
    kl: float = Field(0.0, ge=0, description="Weight of the divergence from the starting policy; 0 does without a reference pass.")
    entropy: float = Field(0.0, ge=0, description="Weight of an entropy bonus.")


class SegmentsConfig(Strict):
    """The two segments."""

    plan: SegmentConfig = SegmentConfig()
    image: SegmentConfig = SegmentConfig()


class PromptsConfig(Strict):
    """Where prompts come from: a source, or a file of your own (text, one prompt a line, or JSONL with "prompt")."""

    source: Named | None = Field(None, description="A component that makes prompts.")
    file: Path | None = Field(None, description="Training prompts of your own, in place of the source's.")
    held_out: PositiveInt | Path = Field(
        300,
        description="Held-out prompts: how many of the source's validation split (of your own file without a source: its last), or a file.",
    )
    seed: int = Field(0, ge=0, description="Of the source.")


class EvaluationConfig(Strict):
    """Held-out evaluation during a run."""

    every: int = Field(20, ge=0, description="Steps between evaluations; 0 evaluates before and after only.")
    prompts: int = Field(60, gt=0, description="Held-out prompts of the evaluations on the way.")
    metric: str = Field("reward", description="What the best checkpoint is best in: a reward's name, or reward.")
    best_of: int = Field(0, ge=0, description="Also show the untrained model's best of so many by the training reward; 0 does not.")
    greedy: bool = Field(False, description="Also show the untrained model decoded greedily.")
    seed: int = Field(1, ge=0, description="Every evaluation draws with it, so that scores before and after compare.")
    batch: int = Field(64, gt=0, description="Prompts drawn at the same time.")
    sampling: SamplingConfig | None = Field(None, description="If other than training's.")


class CheckpointConfig(Strict):
    """What a run keeps of itself on the way; a checkpoint is also written after every evaluation, and at the end."""

    every: int = Field(10, ge=0, description="Steps between checkpoints; 0 writes them after evaluations only.")
    keep: PositiveInt = Field(2, description="The last so many are kept, and the best one.")


class RunConfig(Strict):
    """Everything about a training run."""

    plugins: Files = Field([], description="Single-file plugins, loaded before components are named; what --plugin gives.")
    planner: Named = Field(description="What writes the chain.")
    renderer: Named = Field(description="What draws it; named as the planner, the two are one policy.")
    judge: JudgeList = Field(
        description="What scores plan and picture; a list where several share the work. Of two of one name one is known `as` another."
    )
    algorithm: Algorithm = Field(ComponentConfig(name="grpo"), description="What turns rewards into gradients.")
    prompts: PromptsConfig = PromptsConfig()
    reward: str = Field("pi * (sem + spa) / 2 * ri", description="Expression of the judges' scores that makes a sample's total.")
    train: Literal["planner", "renderer", "both"] = Field("both", description="Whose segments train.")
    steps: int = Field(1000, gt=0, description="Rollouts, each with its updates.")
    groups: int = Field(8, gt=0, description="Prompts of a step, over all processes.")
    plans: int = Field(16, gt=0, description="Plans of a prompt (N).")
    images: int = Field(1, gt=0, description="Images of a plan (M).")
    updates: int = Field(1, gt=0, description="Optimizer updates on a rollout; with more than one, ratios leave 1 and are clipped.")
    micro_batch: int = Field(16, gt=0, description="Plans, with their images, in one forward and backward pass.")
    rollout_groups: int = Field(8, gt=0, description="Prompt groups sampled together; results do not depend on it, memory does.")
    constant_groups: Literal["keep", "skip", "refill"] = Field(
        "keep", description="Groups without a difference: kept in the denominators, left out, or replaced by new prompts (DAPO)."
    )
    constant_tolerance: float = Field(1e-9, ge=0, description="Totals of a group that differ by no more than this are no difference.")
    refill_limit: int = Field(3, gt=0, description="Rounds of new prompts a step may draw for refill.")
    prune: bool = Field(True, description="Do not draw images that cannot change their total.")
    mask_truncated: bool = Field(False, description="Chains that were cut carry no gradient.")
    nan_limit: float = Field(0.5, gt=0, le=1, description="A larger share of samples without a reward stops the run.")
    sampler_gap_limit: float | None = Field(
        None, gt=0, description="A larger mean deviation of scorer from sampler stops the run; by precision if not given (1e-4, or 2e-2)."
    )
    constant_limit: int = Field(20, gt=0, description="So many steps in a row with nothing but constant groups stop the run.")
    seed: int = Field(0, ge=0, description="Of what is drawn and of LoRA's beginning.")
    sampling: SamplingConfig = SamplingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    segments: SegmentsConfig = SegmentsConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    renderer_optimizer: OptimizerConfig | None = Field(
        None, description="The renderer's, where it is a model of its own; else as the planner's."
    )
    lora: LoraConfig | None = LoraConfig()
    shard: bool = Field(False, description="Spread full weights, their gradients and the optimizer over the processes (FSDP2).")
    offload: bool = Field(False, description="Of planner and renderer only the one at work is on the device, the other in main memory.")
    gradient_checkpointing: bool = Field(False, description="Compute activations again in the backward pass instead of keeping them.")
    mixed_precision: Literal["no", "bf16", "fp16"] = Field("no", description="Type that matrix products are computed in.")
    output: Path = Field(Path("runs"), description="Folder of runs.")
    name: str | None = Field(None, description="Of the run's folder; a date and time if not given.")
    save_samples: int = Field(10, ge=0, description="Steps between saved samples with pictures; 0 saves none.")
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracker: Literal["tensorboard", "trackio", "wandb"] | None = Field(
        None, description="Also sends numbers and pictures there, through accelerate; secrets come from the environment."
    )


class SftConfig(Strict):
    """Everything about stage one."""

    plugins: Files = Field([], description="Single-file plugins, loaded before components are named; what --plugin gives.")
    policy: Named = Field(description="What trains.")
    kind: Literal["planner", "renderer"] = Field("planner", description="As which of the two the policy is registered.")
    data: Annotated[
        ComponentConfig | Path,
        BeforeValidator(lambda v: Path(v) if isinstance(v, str) and v.endswith(".jsonl") else named(v)),
        WithJsonSchema(_SCHEMA),
    ] = Field(description="A source, or a JSONL file of prompts, chains and pictures.")
    steps: int = Field(1000, gt=0, description="Optimizer updates.")
    batch: int = Field(64, gt=0, description="Examples of an update.")
    micro_batch: int = Field(64, gt=0, description="Examples in one forward and backward pass.")
    sort_window: int = Field(1, gt=0, description="So many batches are sorted by length together, which saves padding.")
    weights: dict[Literal["plan", "image"], float] = Field({"plan": 1.0, "image": 1.0}, description="Of the segments' losses.")
    optimizer: OptimizerConfig = OptimizerConfig()
    lora: LoraConfig | None = Field(None, description="Adapters instead of full weights.")
    gradient_checkpointing: bool = Field(False, description="Compute activations again in the backward pass instead of keeping them.")
    mixed_precision: Literal["no", "bf16", "fp16"] = Field("no", description="Type that matrix products are computed in.")
    seed: int = Field(0, ge=0, description="Of the order of the data, of what is dropped, and of LoRA's beginning.")
    save_every: int = Field(500, gt=0, description="Steps between saves, from which a stopped training goes on.")
    output: Path = Field(Path("runs/sft"), description="Where the model, its log and its saves go.")


def validate(model: type[ConfigT], data: Mapping[str, Any]) -> ConfigT:
    """The checked config; the first complaint as an error that names the nearest key."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        stage = " --stage sft" if model is SftConfig else ""
        raise explain(error, data, keys(model), see=f"see `gotr1 config schema{stage}`") from None


def flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys."""
    found: dict[str, Any] = {}
    for key, value in data.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found


def dump(config: BaseModel) -> str:
    """A config as YAML that reads back equal."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def make_sampling(config: SamplingConfig) -> Sampling:
    """The settings as the core uses them."""
    return Sampling(**config.model_dump())
