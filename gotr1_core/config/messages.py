"""Turns pydantic's validation errors into errors about the user's own keys."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from gotr1_core.errors import UsageError

LARGEST_INTEGER = 2**63 - 1
"""The largest number that a tensor's integers and sizes can hold."""

ALIASES = {
    "optimizer.learning_rate": "lr learning_rate base_lr actor_lr rate actor_learning_rate optim_lr",
    "optimizer.schedule": "lr_scheduler lr_scheduler_type scheduler lr_schedule",
    "optimizer.warmup": "warmup_steps lr_warmup_steps num_warmup_steps warmup_ratio lr_warmup_ratio",
    "optimizer.floor": "min_lr min_lr_ratio lr_min",
    "optimizer.weight_decay": "wd weight_decay adam_weight_decay",
    "optimizer.betas": "adam_betas adam_beta1 adam_beta2 optim_betas",
    "optimizer.max_grad_norm": "max_grad_norm grad_clip clip_grad clip_grad_norm gradient_clipping gradient_clip_val max_norm",
    "optimizer.ema": "ema_decay ema_rate use_ema",
    "sampling.temperature": "temp sampling_temperature text_temperature",
    "sampling.guidance_scale": "cfg cfg_weight cfg_scale guidance guidance_weight classifier_free_guidance",
    "sampling.denoising_steps": "num_inference_steps inference_steps sampling_steps sample_num_steps sample.num_steps sampling.steps "
    "num_denoising_steps",
    "sampling.max_chain_tokens": "max_new_tokens max_tokens max_completion_length max_response_length max_length generate_max_len "
    "max_gen_tokens",
    "plans": "num_generations group_size num_return_sequences n_samples rollout_n samples_per_prompt num_samples n_samples_per_prompt "
    "rollout.n num_rollouts",
    "images": "images_per_plan num_images num_images_per_prompt num_image_per_prompt",
    "groups micro_batch batch": "batch_size train_batch_size global_batch_size rollout_batch_size ppo_mini_batch_size",
    "micro_batch": "per_device_train_batch_size mini_batch_size micro_batch_size gradient_accumulation_steps grad_accum_steps grad_accum "
    "micro_train_batch_size micro_rollout_batch_size ppo_micro_batch_size ppo_micro_batch_size_per_gpu",
    "updates": "num_iterations ppo_epochs num_ppo_epochs inner_epochs num_inner_epochs mu",
    "steps": "max_steps num_steps total_steps max_train_steps training_steps iterations epochs num_epochs num_train_epochs max_epochs "
    "total_epochs total_training_steps",
    "segments.plan.kl segments.image.kl": "beta kl_coef kl_coeff kl_beta kl_weight kl_loss_coef init_kl_coef kl",
    "segments.plan.clip_low segments.plan.clip_high": "epsilon eps clip_range cliprange clip_ratio clip_eps eps_clip eps_clip_low_high",
    "segments.plan.clip_low segments.plan.clip_high optimizer.max_grad_norm": "clip clipping",
    "segments.plan.clip_low": "epsilon_low clip_ratio_low clip_low eps_clip_low",
    "segments.plan.clip_high": "epsilon_high clip_ratio_high clip_high eps_clip_high",
    "segments.plan.entropy segments.image.entropy": "entropy_coef entropy_coeff ent_coef entropy_bonus entropy entropy_loss_coef",
    "evaluation.every": "eval_steps eval_every eval_interval eval_freq test_freq evaluation.steps eval_strategy validation_epochs "
    "validation_steps",
    "evaluation.batch": "eval_batch_size per_device_eval_batch_size",
    "checkpoint.every save_every": "save_steps save_interval save_freq checkpoint_steps checkpoint.steps checkpointing_steps "
    "save_strategy save_every",
    "checkpoint.keep": "save_total_limit max_checkpoints keep_last checkpoints_total_limit max_ckpt_num",
    "lora.rank": "lora_rank lora_r r",
    "lora.alpha": "lora_alpha",
    "lora.targets": "target_modules lora_target_modules lora_targets",
    "lora": "peft use_peft use_lora peft_config",
    "mixed_precision dtype": "bf16 fp16 precision amp torch_dtype",
    "gradient_checkpointing": "grad_checkpointing activation_checkpointing enable_gradient_checkpointing",
    "shard": "fsdp fsdp2 use_fsdp zero deepspeed zero_stage zero_optimization",
    "offload": "cpu_offload offload_model adam_offload optimizer_offload param_offload",
    "output": "output_dir out_dir save_dir log_dir logging_dir save_path project_dir default_local_dir output_path",
    "name": "run_name experiment_name exp_name trial_name wandb_run_name",
    "tracker": "report_to logger log_with use_wandb wandb tensorboard",
    "prompts.file data": "dataset train_dataset train_file dataset_name prompt_file data_path prompts.path prompt_data train_files "
    "train_data train_data_dir",
    "prompts.held_out": "eval_dataset eval_file val_file validation_file eval_data val_files",
    "judge": "reward_model reward_fn reward_funcs reward_function remote_rm_url reward_pretrain",
    "planner.model policy.model": "model model_name model_path model_name_or_path pretrained_model pretrained_model_name_or_path pretrain",
    "planner.dtype renderer.dtype policy.dtype": "dtype",
    "evaluation": "eval validation",
    "algorithm": "advantage_estimator adv_estimator loss_type",
    "algorithm.kl": "kl_estimator kl_loss_type",
    "mask_truncated": "mask_truncated_completions overlong_filtering",
    "planner.attention policy.attention": "attn_implementation flash_attention use_flash_attention flash_attn",
}
"""Other tools' names of keys, by the keys that they mean here, the run's own first. docs/concepts.md has the same table."""
ADVICE = {
    "set algorithm.scale, an option of grpo and rloo": "scale_rewards normalize_reward normalize_advantages",
    "set algorithm.ratio, an option of grpo": "importance_sampling_level",
    "choose --algorithm ppo, which has algorithm.discount": "gamma",
    "choose --algorithm ppo, which has algorithm.decay": "lam lambd gae_lambda",
    "choose --algorithm ppo, which has algorithm.value_learning_rate": "critic_learning_rate critic_lr",
    "choose --algorithm ppo, which has algorithm.value_clip": "value_clip cliprange_value",
    "choose --algorithm ppo, which has algorithm.reward_kl_target": "kl_target target_kl",
    "set renderer.height and renderer.width, options of sdxl and flow": "resolution image_size height width",
    "set renderer.train_text, an option of sdxl and flow": "train_text_encoder",
    "set renderer.noise_level of flow, or renderer.eta of sdxl": "noise_level eta",
    "set renderer.trained_steps, an option of sdxl and flow": "timestep_fraction sde_window_size",
    "remove it: gotr1 samples from the whole distribution, so that log-probabilities are those of the sampler": "top_p top_k min_p "
    "repetition_penalty",
    "end the command with `-- --num-processes N`": "num_processes num_gpus gpus n_gpus n_gpus_per_node nproc_per_node world_size",
    "continue a run with `gotr1 train --resume RUN`": "resume resume_from_checkpoint load_checkpoint ckpt_path checkpoint_path",
    "write --cpu to train on the CPU; without it a GPU is used if there is one": "device cpu use_cpu no_cuda cuda",
    "remove it: every step is a row of metrics.jsonl": "logging_steps log_every log_interval log_freq",
    "write `gotr1 export RUN OUT`: it makes a folder with a model card, which you can upload": "push_to_hub hub_model_id",
    "choose another name, or another output: a run never overwrites one": "overwrite overwrite_output_dir",
    "remove it: a tracker has the project gotr1, and in it the run under its folder's name": "wandb_project project project_name",
}
"""What to do instead of other tools' names that mean no key here. docs/concepts.md has the same table."""
_ADVICE = {name: advice for advice, names in ADVICE.items() for name in names.split()}
_KEYS = {alias: tuple(keys.split()) for keys, aliases in ALIASES.items() for alias in aliases.split()}


def explain(error: ValidationError, data: Any, known: Sequence[str], *, prefix: str = "", see: str) -> UsageError:
    """The first error that pydantic found in ``data``, as a :class:`UsageError` for the caller to raise.

    If a key is unknown, the hint names the nearest of the ``known`` dotted keys. Otherwise the hint is ``see``. ``prefix`` stands
    before every key in the message, such as ``judge.``.
    """
    first = error.errors(include_url=False)[0]
    key = ".".join(_config_path(first["loc"], data, missing=first["type"] == "missing"))
    key = key if len(key) <= 100 else f"{key[:99]}…"
    where = f"{prefix}{key}".rstrip(".")
    if first["type"] == "extra_forbidden":
        return UsageError(f"unknown key {where}", hint=_hint(_with_only_key(key, first["input"]), known, prefix) or see)
    if first["type"] == "missing" and where in ("planner", "renderer", "judge"):
        hint = f"name one (--{where} NAME), or let a preset supply what you do not name: --preset scenes"
        return UsageError(f"the config names no {where}", hint=hint)
    if first["type"] == "missing" and where in ("policy", "data"):
        example = {"policy": "policy=janus", "data": "data=FILE, or data=scenes"}[where]
        return UsageError(f"the config names no {where}", hint=f"name one, such as {example}; {see}")
    # pydantic's message without the names of our classes
    message = " ".join(first["msg"].removeprefix("Value error, ").partition(" for <class")[0].split())
    if first["type"] == "model_type":
        component = first.get("ctx", {}).get("class_name") in ("ComponentConfig", "JudgeConfig")
        message = "Input should be a name, or a mapping with a name" if component else "Input should be a mapping of keys to values"
    suffix = "" if first["type"] == "missing" else f", not {shown(first['input'])}"
    tree = _with_only_key(key, first["input"])  # such as train.learning_rate, where train is a name here
    instead = _hint(tree, known, prefix) if _as_name(tree.rpartition(".")[2]) in _KEYS | _ADVICE and tree != key else None
    return UsageError(f"{where}: {message}{suffix}", hint=instead or see)


def _hint(key: str, known: Sequence[str], prefix: str) -> str | None:
    """What a user may have meant by an unknown key, as a hint; None if nothing is near."""
    near = _nearest_keys(key, known, prefix)
    return f"did you mean {' or '.join(near)}?" if near else _ADVICE.get(_as_name(key.rpartition(".")[2]))


def _as_name(key: str) -> str:
    """A key as the tables above write it."""
    return key.lower().replace("-", "_")


def _with_only_key(key: str, value: Any) -> str:
    """A key with the keys under it while there is only one, such as ``rollout.n`` of ``{"rollout": {"n": 8}}``."""
    while isinstance(value, Mapping) and len(value) == 1:
        [(name, value)] = value.items()
        key = f"{key}.{name}"
    return key


def refuse_large_integers(value: Any, key: str, *, see: str) -> None:
    """Checks a config, or a component's options: every integer in it must be one that a tensor can count. ``see`` is the hint.

    Raises:
        UsageError: an integer is too large. ``key`` begins the dotted key in the message; it ends with a dot, or is empty.
    """
    if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        raise UsageError(f"{key.rstrip('.')}: Input should be at most {LARGEST_INTEGER}, not {shown(value)}", hint=see)
    if isinstance(value, BaseModel):
        value = dict(value)
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    for name, item in items:
        refuse_large_integers(item, f"{key}{name}.", see=see)


def shown(value: Any, length: int = 100) -> str:
    """The beginning of ``repr(value)``, ``length`` characters at most. Only what is shown is formatted, since a value may be huge."""
    text = ""
    for piece in _pieces(value, length):
        text += piece
        if len(text) > length:
            return f"{text[: length - 1]}…"
    return text


def _pieces(value: Any, length: int) -> Iterator[str]:
    """``repr(value)`` in pieces, each made when it is asked for."""
    if isinstance(value, str | bytes):
        yield repr(value[: length + 1])
    elif isinstance(value, int) and value.bit_length() > 8 * length:  # Python refuses to write some of them
        yield f"an integer of {value.bit_length()} bits"
    elif isinstance(value, dict):
        for number, (key, item) in enumerate(value.items()):
            yield ", " if number else "{"
            yield from _pieces(key, length)
            yield ": "
            yield from _pieces(item, length)
        yield "}" if value else "{}"
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield ", " if number else "["
            yield from _pieces(item, length)
        yield "]" if value else "[]"
    else:
        yield repr(value)


def _nearest_keys(key: str, known: Sequence[str], prefix: str) -> list[str]:
    """The keys that a user may have meant by an unknown one: another tool's name, then a typo or a key in the wrong place."""
    parent, _, last = key.rpartition(".")
    short = ".".join(_as_name(key).split(".")[-2:])
    keys = _KEYS.get(short) or _KEYS.get(_as_name(last), ())
    # A component's option has the last part of a key of a component, or of a key without parts: segments.plan.kl is no algorithm.kl.
    options = [name for name in keys if not prefix or name.rpartition(".")[0] in ("", "planner", "renderer", "policy", "algorithm")]
    beside = dict.fromkeys(f"{parent}.{name.rpartition('.')[2]}".lstrip(".") for name in options)
    near = [name for name in beside if name in known] or [name for name in keys if name in known or name.rpartition(".")[0] in known]
    if near:
        return [prefix + name for name in near]
    if prefix and keys:  # a key of the run, but the user set it as an option of a component
        return [name for name in keys if not name.startswith(prefix)][:1]
    if _as_name(last) in _ADVICE:
        return []
    # First a typo or a valid key in the wrong place, then a typo in a key's last part.
    near = difflib.get_close_matches(key, known, 1, cutoff=0.85)
    near += [last] if last in known else [name for name in known if name.rpartition(".")[2] == last][:1]
    ends = {name.rpartition(".")[2]: name for name in reversed(known) if not parent or name.startswith(f"{parent}.")}
    similar = difflib.get_close_matches(last, ends, 1, cutoff=0.8) or [name for name in ends if name.startswith(f"{last}_")][:1]
    near = near or [ends[name] for name in similar]
    if prefix and not near:
        return [name for names in ALIASES for name in names.split() if name.rpartition(".")[2] == last][:1]
    return [prefix + name for name in dict.fromkeys(near)]


def _config_path(location: Sequence[str | int], data: Any, *, missing: bool) -> list[str]:
    """The keys in an error's location. The location also has names of union members, which stand in no config; they are left out."""
    path: list[str] = []
    value = data
    for number, key in enumerate(location, start=1):
        exists = key in value if isinstance(value, Mapping) else isinstance(value, list) and isinstance(key, int) and key < len(value)
        if exists:
            value = value[key]
        elif not missing or number < len(location):
            continue
        path.append(str(key))
    return path


def dotted_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """All dotted keys of a model, without the options of components."""
    dotted = []
    for name, field in model.model_fields.items():
        dotted.append(prefix + name)
        types = (field.annotation, *getattr(field.annotation, "__args__", ()))
        for nested in types:
            if isinstance(nested, type) and issubclass(nested, BaseModel) and nested.model_config.get("extra") != "allow":
                dotted += dotted_keys(nested, f"{prefix}{name}.")
    return dotted
