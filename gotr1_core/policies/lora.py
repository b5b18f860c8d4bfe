"""LoRA adapters for any policy, through peft (imported when used)."""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from gotr1_core.config.models import LoraConfig
from gotr1_core.errors import UsageError
from gotr1_core.protocols import Policy


def add_lora(policy: Policy, config: LoraConfig) -> None:
    """Freezes the policy's module and puts trainable adapters into the layers below ``policy.lora_prefix``.

    LoRA: Hu et al., arXiv 2106.09685. The layers are named in full, so that nothing outside the prefix is hit. Without dropout:
    a policy scores what it samples.
    """
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    names = layers(policy.module, policy.lora_prefix, config)
    policy.module.requires_grad_(False)
    inject_adapter_in_model(PeftConfig(r=config.rank, lora_alpha=config.alpha, target_modules=names, lora_dropout=0.0), policy.module)
    for name, parameter in policy.module.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()  # peft takes the layer's type, and bfloat16 would swallow most of an update of 1e-5
        parameter.requires_grad_("lora_" in name)


def merged_state(module: nn.Module) -> dict[str, Tensor]:
    """A module's state under the names it has without adapters, each adapter added to its layer: what others can load."""
    from peft.tuners.lora import LoraLayer

    state = module.state_dict()
    for name, layer in module.named_modules():
        if isinstance(layer, LoraLayer):
            mine = {key: state.pop(key) for key in [k for k in state if k.startswith(f"{name}.")]}
            base = f"{name}.base_layer."
            state |= {f"{name}.{key.removeprefix(base)}": value for key, value in mine.items() if key.startswith(base)}
            for adapter in layer.active_adapters:
                weight = state[f"{name}.weight"]
                state[f"{name}.weight"] = (weight + layer.get_delta_weight(adapter).detach()).to(weight.dtype)
    return state


def adapter(module: nn.Module, part: str) -> tuple[Any, dict[str, Tensor]]:
    """The adapters that :func:`add_lora` put into a module, as peft's config and state.

    Names are those within ``part``, the library's own model inside the module: what others know. The config lists the layers in full,
    so that loading hits these and no others.
    """
    from peft import get_peft_model_state_dict
    from peft.tuners.lora import LoraLayer

    whole: Any = module
    config = copy(whole.peft_config["default"])
    config.target_modules = [name for name, layer in module.get_submodule(part).named_modules() if isinstance(layer, LoraLayer)]
    # No embedding is adapted; left to find that out, peft would ask a hub for the base model's config.
    state = get_peft_model_state_dict(module, save_embedding_layers=False)
    return config, {name.removeprefix(f"{part}."): tensor.cpu().contiguous() for name, tensor in state.items()}


def save_adapter(module: nn.Module, part: str, folder: Path, *, base: str) -> None:
    """Writes a module's adapters where ``PeftModel.from_pretrained(model, folder)`` loads them onto the library's model.

    ``part`` is that model inside the module, ``base`` where it came from.
    """
    config, state = adapter(module, part)
    config.base_model_name_or_path, config.inference_mode = base, True
    kind = type(module.get_submodule(part))
    config.save_pretrained(folder, auto_mapping_dict={"base_model_class": kind.__name__, "parent_library": kind.__module__})
    save_file(
        {f"base_model.model.{name}": tensor for name, tensor in state.items()}, folder / "adapter_model.safetensors", {"format": "pt"}
    )


def layers(module: nn.Module, prefix: str, config: LoraConfig) -> list[str]:
    """Full names of the linear layers that adapters go into."""
    linear = [n for n, m in module.named_modules() if isinstance(m, nn.Linear) and n.startswith(prefix)]
    if not linear:
        raise UsageError("lora: this policy has no layer for it", hint="lora=null trains its weights themselves")
    if config.targets == "all-linear":
        return linear
    chosen = [n for n in linear if n.rsplit(".", 1)[-1] in config.targets]
    missing = set(config.targets) - {n.rsplit(".", 1)[-1] for n in linear}
    if missing:
        known = sorted({n.rsplit(".", 1)[-1] for n in linear})
        raise UsageError(f"lora.targets: no layer is called {sorted(missing)[0]!r}", hint=f"known: {', '.join(known)}")
    return chosen
