"""Turns pydantic's validation errors into errors about the user's own keys."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from gotr1_core.errors import UsageError

ALIASES = {
    "optimizer.learning_rate": "lr learning_rate base_lr actor_lr rate",
    "optimizer.schedule": "lr_scheduler lr_scheduler_type scheduler lr_schedule",
    "optimizer.warmup": "warmup_steps lr_warmup_steps num_warmup_steps warmup_ratio",
    "optimizer.floor": "min_lr min_lr_ratio lr_min",
    "optimizer.weight_decay": "wd weight_decay adam_weight_decay",
    "optimizer.betas": "adam_betas adam_beta1 adam_beta2",
    "optimizer.max_grad_norm": "max_grad_norm grad_clip clip_grad clip_grad_norm gradient_clipping gradient_clip_val max_norm",
    "optimizer.ema": "ema_decay ema_rate use_ema",
    "sampling.guidance_scale": "cfg cfg_weight cfg_scale guidance guidance_weight classifier_free_guidance",
    "sampling.denoising_steps": "num_inference_steps inference_steps sampling_steps sample_num_steps",
    "sampling.max_chain_tokens": "max_new_tokens max_tokens max_completion_length max_response_length max_length",
    "plans": "num_generations group_size num_return_sequences n_samples rollout_n samples_per_prompt num_samples",
    "images": "images_per_plan num_images num_images_per_prompt",
    "groups micro_batch batch": "batch_size train_batch_size global_batch_size",
    "micro_batch": "per_device_train_batch_size mini_batch_size micro_batch_size gradient_accumulation_steps grad_accum_steps grad_accum",
    "updates": "num_iterations ppo_epochs num_ppo_epochs inner_epochs num_inner_epochs mu",
    "steps": "max_steps num_steps total_steps max_train_steps training_steps iterations epochs num_epochs num_train_epochs",
    "segments.plan.kl segments.image.kl": "beta kl_coef kl_coeff kl_beta kl_weight kl_loss_coef init_kl_coef",
    "segments.plan.clip_low segments.plan.clip_high": "epsilon eps clip_range cliprange clip_ratio clip_eps eps_clip",
    "segments.plan.clip_low segments.plan.clip_high optimizer.max_grad_norm": "clip clipping",
    "segments.plan.clip_low": "epsilon_low clip_ratio_low",
    "segments.plan.clip_high": "epsilon_high clip_ratio_high",
    "segments.plan.entropy segments.image.entropy": "entropy_coef entropy_coeff ent_coef entropy_bonus",
    "evaluation.every": "eval_steps eval_every eval_interval eval_freq test_freq",
    "evaluation.batch": "eval_batch_size per_device_eval_batch_size",
    "checkpoint.every save_every": "save_steps save_interval save_freq checkpoint_steps",
    "checkpoint.keep": "save_total_limit max_checkpoints keep_last",
    "lora.rank": "lora_rank lora_r r",
    "lora.alpha": "lora_alpha",
    "lora.targets": "target_modules lora_target_modules lora_targets",
    "lora": "peft use_peft use_lora peft_config",
    "mixed_precision dtype": "bf16 fp16 precision amp torch_dtype",
    "gradient_checkpointing": "grad_checkpointing activation_checkpointing enable_gradient_checkpointing",
    "shard": "fsdp fsdp2 use_fsdp zero deepspeed",
    "offload": "cpu_offload offload_model",
    "output": "output_dir out_dir save_dir log_dir logging_dir",
    "name": "run_name experiment_name exp_name trial_name",
    "tracker": "report_to logger log_with use_wandb",
    "prompts.file data": "dataset train_dataset train_file dataset_name prompt_file data_path",
    "prompts.held_out": "eval_dataset eval_file val_file validation_file",
    "judge": "reward_model reward_fn reward_funcs reward_function",
    "planner.model policy.model": "model model_name model_path model_name_or_path pretrained_model",
    "planner.attention policy.attention": "attn_implementation flash_attention use_flash_attention",
}
"""Other tools' names of keys, by the keys that they mean here, the run's own first. docs/concepts.md has the same table."""
_KEYS = {alias: tuple(keys.split()) for keys, aliases in ALIASES.items() for alias in aliases.split()}


def explain(error: ValidationError, data: Any, known: Sequence[str], *, prefix: str = "", see: str) -> UsageError:
    """The first error that pydantic found in ``data``, as a :class:`UsageError` for the caller to raise.

    If a key is unknown, the hint names the nearest of the ``known`` dotted keys. Otherwise the hint is ``see``. ``prefix`` stands
    before every key in the message, such as ``judge.``.
    """
    first = error.errors(include_url=False)[0]
    key = ".".join(_config_path(first["loc"], data, missing=first["type"] == "missing"))
    where = f"{prefix}{key}".rstrip(".")
    if first["type"] == "extra_forbidden":
        suggestions = " or ".join(_nearest_keys(key, known, prefix))
        return UsageError(f"unknown key {where}", hint=f"did you mean {suggestions}?" if suggestions else see)
    if first["type"] == "missing" and where in ("planner", "renderer", "judge"):
        hint = f"name one (--{where} NAME), or let a preset supply what you do not name: --preset scenes"
        return UsageError(f"the config names no {where}", hint=hint)
    # pydantic's message without the names of our classes
    message = " ".join(first["msg"].removeprefix("Value error, ").partition(" for <class")[0].split())
    if first["type"] == "model_type":
        component = first.get("ctx", {}).get("class_name") in ("ComponentConfig", "JudgeConfig")
        message = "Input should be a name, or a mapping with a name" if component else "Input should be a mapping of keys to values"
    value = repr(first["input"])
    suffix = "" if first["type"] == "missing" else f", not {value if len(value) <= 100 else value[:99] + '…'}"
    return UsageError(f"{where}: {message}{suffix}", hint=see)


def _nearest_keys(key: str, known: Sequence[str], prefix: str) -> list[str]:
    """The keys that a user may have meant by an unknown one: another tool's name, then a typo, then any similar key."""
    parent, _, last = key.rpartition(".")
    keys = _KEYS.get(last.lower().replace("-", "_"), ())
    beside = dict.fromkeys(f"{parent}.{name.rpartition('.')[2]}".lstrip(".") for name in keys)
    near = [name for name in beside if name in known] or [name for name in keys if name in known or name.rpartition(".")[0] in known]
    if prefix and keys and not near:
        return [keys[0]]  # a key of the run, but the user set it as an option of a component
    if not near:
        # First a typo or a valid key in the wrong place, then any similar key.
        near = [*difflib.get_close_matches(key, known, 1, cutoff=0.85), *[k for k in known if k.rpartition(".")[2] == last][:1]]
        near = list(dict.fromkeys(near)) or difflib.get_close_matches(key, known, 1, cutoff=0.4)
    return [prefix + name for name in near]


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
