"""LoRA adapters for any policy, through peft (imported when used)."""

from __future__ import annotations

from torch import Tensor, nn

from gotr1_core.config import LoraConfig
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
                state[f"{name}.weight"] = state[f"{name}.weight"] + layer.get_delta_weight(adapter).detach()
    return state


def layers(module: nn.Module, prefix: str, config: LoraConfig) -> list[str]:
    """Full names of the linear layers that adapters go into."""
    linear = [n for n, m in module.named_modules() if isinstance(m, nn.Linear) and n.startswith(prefix)]
    if config.targets == "all-linear":
        return linear
    chosen = [n for n in linear if n.rsplit(".", 1)[-1] in config.targets]
    missing = set(config.targets) - {n.rsplit(".", 1)[-1] for n in linear}
    if missing:
        known = sorted({n.rsplit(".", 1)[-1] for n in linear})
        raise UsageError(f"lora.targets: no layer is called {sorted(missing)[0]!r}", hint=f"known: {', '.join(known)}")
    return chosen
