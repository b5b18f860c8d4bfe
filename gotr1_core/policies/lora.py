"""LoRA adapters (Hu et al., arXiv 2106.09685) for any policy, through peft, which is imported when it is used."""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from gotr1_core.border.calls import lora_prefix
from gotr1_core.config.models import LoraConfig
from gotr1_core.errors import UsageError
from gotr1_core.policies.hub import local_folder
from gotr1_core.protocols import Policy


def add_lora(policy: Policy, config: LoraConfig) -> None:
    """Freezes the policy's module and puts trainable adapters into the linear layers below ``policy.lora_prefix``.

    Full names of layers are used, so that nothing outside the prefix matches. Dropout is 0: a policy must compute the same
    log-probabilities in training as it had when it sampled.
    """
    from peft import LoraConfig as PeftConfig, inject_adapter_in_model

    names = lora_layers(policy.module, lora_prefix(policy), config)
    policy.module.requires_grad_(False)
    inject_adapter_in_model(PeftConfig(r=config.rank, lora_alpha=config.alpha, target_modules=names, lora_dropout=0.0), policy.module)
    for name, parameter in policy.module.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()  # peft uses the layer's dtype; in bfloat16 most of an update of 1e-5 would be lost
        parameter.requires_grad_("lora_" in name)


def merged_state(module: nn.Module) -> dict[str, Tensor]:
    """Returns a module's state with adapters merged into their layers, under the names it has without them; tensors of any shape."""
    from peft.tuners.lora import LoraLayer

    state = module.state_dict()
    for name, layer in module.named_modules():
        if isinstance(layer, LoraLayer):
            layer_state = {key: state.pop(key) for key in [k for k in state if k.startswith(f"{name}.")]}
            base = f"{name}.base_layer."
            state |= {f"{name}.{key.removeprefix(base)}": value for key, value in layer_state.items() if key.startswith(base)}
            for adapter in layer.active_adapters:
                weight = state[f"{name}.weight"]
                state[f"{name}.weight"] = (weight + layer.get_delta_weight(adapter).detach()).to(weight.dtype)
    return state


def peft_adapter(module: nn.Module, submodule: str) -> tuple[Any, dict[str, Tensor]]:
    """Returns the adapters that :func:`add_lora` put into a module, as peft's config and state (tensors of any shape, on the CPU).

    ``submodule`` names the library's own model inside the module. Names in config and state are relative to it, so that the library can
    load them. The config lists full names of layers, so that loading matches no others.
    """
    from peft import get_peft_model_state_dict
    from peft.tuners.lora import LoraLayer

    with_adapters: Any = module
    config = copy(with_adapters.peft_config["default"])
    config.target_modules = [name for name, layer in module.get_submodule(submodule).named_modules() if isinstance(layer, LoraLayer)]
    # No embedding has an adapter. Without this argument peft would ask a hub for the base model's config to find out.
    state = get_peft_model_state_dict(module, save_embedding_layers=False)
    return config, {name.removeprefix(f"{submodule}."): tensor.cpu().contiguous() for name, tensor in state.items()}


def save_adapter(module: nn.Module, submodule: str, folder: Path, *, base: str) -> None:
    """Writes a module's adapters, so that ``PeftModel.from_pretrained(model, folder)`` loads them onto the library's model.

    ``submodule`` names that model inside the module, ``base`` the checkpoint that it came from.
    """
    config, state = peft_adapter(module, submodule)
    config.base_model_name_or_path, config.inference_mode = base, True
    model_class = type(module.get_submodule(submodule))
    config.save_pretrained(folder, auto_mapping_dict={"base_model_class": model_class.__name__, "parent_library": model_class.__module__})
    tensors = {f"base_model.model.{name}": tensor for name, tensor in state.items()}
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})


def lora_layers(module: nn.Module, prefix: str, config: LoraConfig) -> list[str]:
    """Returns the full names of the linear layers below ``prefix`` that get adapters.

    Raises:
        UsageError: there is no linear layer, or ``lora.targets`` is empty or names one that is not there.
    """
    linear = [n for n, m in module.named_modules() if isinstance(m, nn.Linear) and n and n.startswith(prefix)]  # "" is the module itself
    if not linear:
        raise UsageError("lora: this policy has no linear layer for adapters", hint="set lora=null to train its weights directly")
    if config.targets == "all-linear":
        return linear
    _check_targets(config, {n.rsplit(".", 1)[-1] for n in linear})
    return [n for n in linear if n.rsplit(".", 1)[-1] in config.targets]


def check_lora_targets(model: str, config: LoraConfig, part: str = "") -> None:
    """Checks before a checkpoint is loaded that it has a matrix for every name in ``lora.targets``. Reads the headers of its files.

    ``part`` is the folder of the trained part in a pipeline. A model that is not on disk is not checked.

    Raises:
        UsageError: a name has none.
    """
    folder, names = local_folder(model, key="model"), set()
    for file in (folder / part).glob("*.safetensors") if folder and config.targets != "all-linear" else ():
        with safe_open(file, framework="np") as tensors:
            names |= {n.split(".")[-2] for n in tensors.keys() if n.endswith(".weight") and len(tensors.get_slice(n).get_shape()) == 2}  # noqa: SIM118
    if names:
        _check_targets(config, names)


def _check_targets(config: LoraConfig, names: set[str]) -> None:
    missing = sorted(set(config.targets) - names)
    if missing or not config.targets:
        what = f"no layer is called {missing[0]!r}" if missing else "there is no layer in it"
        raise UsageError(f"lora.targets: {what}", hint=f"known: {', '.join(sorted(names))}")
