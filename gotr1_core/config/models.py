"""Pydantic models of a run's config and of stage one's. An unknown key is an error. ``merge.py`` makes the mapping that they check."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema, model_validator

from gotr1_core.config.merge import as_component, label_of
from gotr1_core.config.messages import dotted_keys, explain, refuse_large_integers
from gotr1_core.config.paths import AbsolutePath, absolute_path, change_texts
from gotr1_core.config.public_names import public_texts
from gotr1_core.samples import Sampling

LABEL = re.compile(r"[A-Za-z]\w*(-[A-Za-z0-9]\w*)*", re.ASCII)  # the JUDGE of JUDGE.NAME in a reward expression

JUDGE_REMINDER = 600.0  # seconds
MOST = 100_000  # prompts, samples or examples that are made together; a larger number is a slip, and would take all memory


class Strict(BaseModel):
    """A frozen model that refuses unknown keys, and numbers that are not finite unless a field allows them."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ComponentConfig(BaseModel):
    """A registered component by name. Its other keys are its options; the plugin's own model checks those."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str

    @property
    def options(self) -> dict[str, Any]:
        """The component's options: every key but ``name``."""
        return dict(self.model_extra or {})


class JudgeConfig(ComponentConfig):
    """A judge. ``as: LABEL`` gives it another label than its own name, so that one config can have two judges of one name.

    ``need: optional`` lets it drop out for whole groups of samples. One that is ``required`` pauses a run if too many of its scores are
    missing (``nan_limit``). Without it the judge's class decides.
    """

    @property
    def label(self) -> str:
        """The judge's name in reward expressions, metrics and messages."""
        return label_of({"name": self.name, **(self.model_extra or {})})

    @property
    def options(self) -> dict[str, Any]:
        """The judge's options: every key but ``name``, ``as`` and ``need``."""
        return {key: value for key, value in super().options.items() if key not in ("as", "need")}

    @property
    def need(self) -> str | None:
        """``required``, ``optional``, or None if that is not said."""
        return (self.model_extra or {}).get("need")

    @model_validator(mode="after")
    def _check_label(self) -> JudgeConfig:
        label = (self.model_extra or {}).get("as", "judge")  # a plugin's own name is not checked here
        if not isinstance(label, str) or not LABEL.fullmatch(label):
            raise ValueError(f"as: {label!r} is not a valid judge name: use a letter, then letters, digits, _ and -")
        if (need := (self.model_extra or {}).get("need")) not in (None, "required", "optional"):
            raise ValueError(f"need: {need!r} is neither required nor optional")
        return self


def _default_algorithm(value: Any) -> Any:
    """``algorithm.ratio=token`` without a name sets an option of the default algorithm."""
    component = as_component(value)
    return {"name": "grpo", **component} if isinstance(component, dict) else component


def _component_list(value: Any) -> Any:
    return [as_component(v) for v in (value if isinstance(value, list) else [value])]


ConfigT = TypeVar("ConfigT", bound=BaseModel)
# The JSON Schema describes what a user may write: also a name alone. Validation turns that into a component.
_OPTIONS: dict[str, Any] = {"type": "object", "properties": {"name": {"type": "string"}}}
_SCHEMA: dict[str, Any] = {"anyOf": [{"type": "string"}, {**_OPTIONS, "required": ["name"]}]}
ComponentField = Annotated[ComponentConfig, BeforeValidator(as_component), WithJsonSchema(_SCHEMA)]
JudgeList = Annotated[
    list[JudgeConfig], BeforeValidator(_component_list), WithJsonSchema({"anyOf": [*_SCHEMA["anyOf"], {"type": "array", "items": _SCHEMA}]})
]
Algorithm = Annotated[ComponentConfig, BeforeValidator(_default_algorithm), WithJsonSchema({"anyOf": [{"type": "string"}, _OPTIONS]})]
Files = Annotated[list[AbsolutePath], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]


CacheFolder = Annotated[
    str | None,
    BeforeValidator(lambda value: "off" if value is False else value),  # YAML's off is false
    AfterValidator(lambda text: text if text in (None, "off") else str(absolute_path(Path(text)))),
]
"""Where judges' scores are kept on disk: a folder, ``off``, or None."""
CACHE: Any = Field(
    None, description="Folder where judges' scores are kept, or off; if not given, the user's cache folder, for judges behind a server."
)


def _not_tiny(temperature: float) -> float:
    if 0 < temperature < 0.01:
        raise ValueError(f"{temperature:g} is too close to 0: logits divided by it overflow; 0 is greedy, 0.01 almost so")
    return temperature


Temperature = Annotated[float, Field(ge=0, le=1000), AfterValidator(_not_tiny)]


JudgeReminder = Annotated[float, Field(gt=0, le=1e9)]
REMINDER: Any = Field(JUDGE_REMINDER, description="Seconds between messages that a judge is waited for. No judge is stopped.")


class SamplingConfig(Strict):
    """How to sample. :class:`gotr1_core.samples.Sampling` says more about each key."""

    temperature: Temperature = Field(1.0, description="Temperature of the plan's tokens; 0 decodes greedily.")
    image_temperature: Temperature = Field(1.0, description="The same of the picture's tokens. For denoising steps it scales the noise.")
    guidance_scale: float = Field(
        5.0, ge=0, le=1000, description="Scale w of classifier-free guidance, u + w (c - u); 1 means no guidance."
    )
    max_chain_tokens: int = Field(600, gt=0, description="Maximum length of a chain in tokens; a longer one is cut.")
    log_prob: Literal["guided", "conditional"] = Field("guided", description="Distribution of guided images' log-probabilities.")
    denoising_steps: int = Field(20, gt=0, description="Denoising steps of a picture that a diffusion model draws.")


_Decay = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Strict):
    """AdamW, one for each policy that trains."""

    learning_rate: float = Field(1e-5, gt=0, description="Peak learning rate.")
    schedule: Literal["constant", "linear", "cosine"] = Field("cosine", description="How the learning rate changes after warm-up.")
    warmup: int = Field(0, ge=0, description="Number of updates of linear warm-up.")
    floor: float = Field(0.0, ge=0, le=1, description="Final learning rate as a fraction of the peak.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay, as in AdamW.")
    betas: tuple[_Decay, _Decay] = Field((0.9, 0.95), description="Decay rates of AdamW's averages of the gradient and of its square.")
    max_grad_norm: float = Field(
        1.0, gt=0, allow_inf_nan=True, description="Gradient clipping: the largest global gradient norm; .inf does not clip."
    )
    ema: float = Field(0.0, ge=0, lt=1, description="Decay of a moving average of the weights, for evaluation and export; 0 keeps none.")


class LoraConfig(Strict):
    """Trains low-rank adapters (LoRA, arXiv 2106.09685) instead of full weights."""

    rank: int = Field(32, gt=0, description="Rank of every adapter.")
    alpha: float = Field(32.0, gt=0, description="An adapter's output is scaled by alpha / rank.")
    targets: list[str] | Literal["all-linear"] = Field("all-linear", description="Layers to adapt, of those that the policy allows.")


class SegmentConfig(Strict):
    """Loss settings of one segment."""

    weight: float = Field(1.0, ge=0, description="Weight of the segment's loss; 0 does not train the segment.")
    clip_low: float = Field(0.2, gt=0, le=1, description="Ratios are clipped below 1 - clip_low.")
    clip_high: float = Field(
        0.2, gt=0, allow_inf_nan=True, description="Ratios are clipped above 1 + clip_high (in DAPO, arXiv 2503.14476, it is larger)."
    )
    kl: float = Field(0.0, ge=0, description="KL coefficient, against the starting policy; 0 skips the reference forward pass.")
    entropy: float = Field(0.0, ge=0, description="Coefficient of the entropy bonus.")


class SegmentsConfig(Strict):
    """Loss settings of the two segments."""

    plan: SegmentConfig = SegmentConfig()
    image: SegmentConfig = SegmentConfig()


class PromptsConfig(Strict):
    """Where prompts come from: a source, or your own file (text with one prompt a line, or JSONL, JSON or CSV with "prompt")."""

    source: ComponentField | None = Field(None, description="Component that makes prompts.")
    file: AbsolutePath | None = Field(None, description="Your own training prompts; they replace the source's.")
    held_out: Annotated[int, Field(gt=0, le=MOST)] | AbsolutePath = Field(
        300, description="Held-out prompts: a number of the source's validation split (without a source: the last of your file), or a file."
    )
    seed: int = Field(0, ge=0, description="Seed of the source.")


class EvaluationConfig(Strict):
    """Held-out evaluation during a run."""

    every: int = Field(20, ge=0, description="Steps between evaluations; 0 evaluates only before and after training.")
    prompts: int = Field(60, gt=0, description="Number of held-out prompts in evaluations during training.")
    metric: str = Field("reward", description="Metric that chooses the best checkpoint: a score's name, or reward.")
    best_of: int = Field(
        0, ge=0, le=MOST, description="Also evaluate the untrained model with the best of so many samples by reward; 0 does not."
    )
    greedy: bool = Field(False, description="Also evaluate the untrained model with greedy decoding.")
    seed: int = Field(1, ge=0, description="Seed of every evaluation, so that scores before and after can be compared.")
    batch: int = Field(64, gt=0, description="Prompts drawn together.")
    sampling: SamplingConfig | None = Field(None, description="Sampling in evaluations; the same as in training if not given.")


class CheckpointConfig(Strict):
    """When checkpoints are written and which are kept. Every evaluation and the end of a run write one too."""

    every: int = Field(10, ge=0, description="Steps between checkpoints; 0 writes them only after evaluations.")
    keep: int = Field(2, gt=0, description="How many of the last checkpoints to keep; the best one is kept too.")


class RunConfig(Strict):
    """The config of a training run."""

    plugins: Files = Field([], description="Single-file plugins, loaded before components are looked up. --plugin adds to them.")
    planner: ComponentField = Field(description="Component that writes the chain.")
    renderer: ComponentField = Field(description="Component that draws the picture; with the planner's name, the two are one policy.")
    judge: JudgeList = Field(description="Component that scores plans and pictures, or a list; two of one name need a label, `as`.")
    algorithm: Algorithm = Field(ComponentConfig(name="grpo"), description="Component that turns rewards into gradients.")
    prompts: PromptsConfig = PromptsConfig()
    reward: str = Field("pi * (sem + spa) / 2 * ri", description="Expression that makes a sample's reward from the judges' scores.")
    train: Literal["planner", "renderer", "both"] = Field("both", description="Who trains: planner (plan), renderer (image), or both.")
    steps: int = Field(1000, gt=0, description="Training steps: each is one rollout and its updates.")
    groups: int = Field(8, gt=0, description="Prompts in a step, over all processes.")
    plans: int = Field(16, gt=0, description="Plans per prompt (N).")
    images: int = Field(1, gt=0, description="Images per plan (M).")
    updates: int = Field(1, gt=0, description="Optimizer updates per rollout. After the first one, ratios differ from 1 and are clipped.")
    micro_batch: int = Field(16, gt=0, description="Plans in one forward and backward pass, with their images.")
    rollout_groups: int = Field(8, gt=0, description="Prompt groups sampled together. It changes memory, not results.")
    constant_groups: Literal["keep", "skip", "refill"] = Field(
        "keep", description="Groups whose rewards are equal: keep them in the denominators, skip them, or draw new prompts (DAPO)."
    )
    constant_tolerance: float = Field(1e-9, ge=0, description="Rewards in a group that differ by at most this count as equal.")
    refill_limit: int = Field(3, gt=0, description="Most rounds of new prompts that a step draws for refill.")
    prune: bool = Field(True, description="Do not draw images that cannot change their reward.")
    mask_truncated: bool = Field(False, description="Chains that were cut get no gradient.")
    nan_limit: float = Field(0.5, gt=0, le=1, description="Stop the run if a larger fraction of samples has no reward.")
    judge_reminder: JudgeReminder = REMINDER
    cache: CacheFolder = CACHE
    sampler_gap_limit: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=True,
        description="Stop the run if the mean sampler gap is larger. If not given, precision decides: 1e-4, or 2e-2.",
    )
    constant_limit: int = Field(20, gt=0, description="Stop the run after this many steps in a row with only constant groups.")
    skipped_limit: int = Field(
        10, gt=0, description="Stop after this many updates in a row whose gradient is not finite; they are skipped."
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of sampling and of LoRA's initial weights.")
    sampling: SamplingConfig = SamplingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    segments: SegmentsConfig = SegmentsConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    renderer_optimizer: OptimizerConfig | None = Field(
        None, description="Optimizer of the renderer, if it is a model of its own; the same as the planner's if not given."
    )
    lora: LoraConfig | None = LoraConfig()
    shard: bool = Field(False, description="Shard full weights, gradients and optimizer state over the processes (FSDP2).")
    threads: int | None = Field(
        None, gt=0, le=1024, description="CPU threads of each process; if not given, fewer while other processes are busy."
    )
    offload: bool = Field(False, description="Keep planner or renderer in main memory while the other one works on the device.")
    gradient_checkpointing: bool = Field(False, description="Recompute activations in the backward pass instead of keeping them.")
    mixed_precision: Literal["no", "bf16", "fp16"] = Field("no", description="Data type of matrix products.")
    output: Path = Field(Path("runs"), description="Folder that holds all runs.")
    name: str | None = Field(None, description="Name of the run's folder; date and time if not given.")
    save_samples: int = Field(10, ge=0, description="Steps between saved samples with pictures; 0 saves none.")
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracker: Literal["tensorboard", "trackio", "wandb"] | None = Field(
        None, description="Experiment tracker that also gets numbers and pictures, through accelerate. Secrets come from the environment."
    )


class SftConfig(Strict):
    """The config of stage one: supervised fine-tuning."""

    plugins: Files = Field([], description="Single-file plugins, loaded before components are looked up. --plugin adds to them.")
    policy: ComponentField = Field(description="Component that trains.")
    kind: Literal["planner", "renderer"] = Field("planner", description="The kind that the policy is registered as.")
    data: Annotated[
        ComponentConfig | AbsolutePath,
        BeforeValidator(
            lambda v: Path(v) if isinstance(v, str) and {".", "/"} & {*v} else as_component(v)
        ),  # names of components have neither
        WithJsonSchema(_SCHEMA),
    ] = Field(description="A prompt source, or a file of prompts, chains and pictures, such as JSONL.")
    pictures: AbsolutePath | None = Field(
        None, description="Folder that the pictures named in a data file must lie in; the data file's own if not given."
    )
    steps: int = Field(1000, gt=0, description="Optimizer updates.")
    batch: int = Field(64, gt=0, le=MOST, description="Examples in an update.")
    micro_batch: int = Field(64, gt=0, description="Examples in one forward and backward pass.")
    sort_window: int = Field(1, gt=0, le=MOST, description="Batches that are sorted by length together, to save padding.")
    weights: dict[Literal["plan", "image"], float] = Field({"plan": 1.0, "image": 1.0}, description="Weights of the segments' losses.")
    optimizer: OptimizerConfig = OptimizerConfig()
    lora: LoraConfig | None = Field(None, description="Train adapters instead of full weights.")
    gradient_checkpointing: bool = Field(False, description="Recompute activations in the backward pass instead of keeping them.")
    mixed_precision: Literal["no", "bf16", "fp16"] = Field("no", description="Data type of matrix products.")
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of the order of the data, of dropped conditions, and of LoRA's initial weights.")
    skipped_limit: int = Field(10, gt=0, description="Stop after this many steps in a row whose loss or gradient is not finite.")
    save_every: int = Field(500, gt=0, description="Steps between saves; a stopped training continues from the last one.")
    output: Path = Field(Path("runs/sft"), description="Folder for the model, its log and its saves.")


def validate(model: type[ConfigT], data: Mapping[str, Any]) -> ConfigT:
    """Checks a config and returns it as a ``model``.

    Raises:
        UsageError: the config has an unknown key or a wrong value. The message is about the first one.
    """
    see = f"see `gotr1 config schema{' --stage sft' if model is SftConfig else ''}`"
    try:
        config = model.model_validate(data)
    except ValidationError as error:
        raise explain(error, data, dotted_keys(model), see=see) from None
    refuse_large_integers(config, "", see=see)
    return config


def flatten_keys(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping with dotted keys."""
    dotted: dict[str, Any] = {}
    for key, value in data.items():
        dotted |= flatten_keys(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return dotted


def dump(config: BaseModel, folder: Path | None = None) -> str:
    """A config as YAML. Reading it back gives an equal config. A path in ``folder`` becomes ``${HERE}/…``, so ``folder`` may be moved."""
    data = config.model_dump(mode="json")
    if folder is not None:
        data = change_texts(data, lambda _, text: text.replace(f"{folder.resolve()}/", "${HERE}/"))
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def dump_public(config: BaseModel) -> str:
    """A config as YAML for readers elsewhere: no path of this machine is in it (:mod:`gotr1_core.config.public_names`)."""
    return yaml.safe_dump(public_texts(config.model_dump(mode="json")), sort_keys=False, allow_unicode=True)


def make_sampling(config: SamplingConfig) -> Sampling:
    """The config's sampling as the :class:`Sampling` that the core uses."""
    return Sampling(**config.model_dump())
