"""Makes the components of a run from its config. Every component is made once; `preflight` refuses beforehand what is impossible."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from gotr1_core.config.models import ComponentConfig, JudgeConfig, RunConfig
from gotr1_core.engine.out_of_memory import is_out_of_memory
from gotr1_core.errors import UsageError
from gotr1_core.evaluation import REWARD
from gotr1_core.hookspecs import Kind
from gotr1_core.judges import Judges
from gotr1_core.plugins import Registry, load, options_of
from gotr1_core.policies.lora import add_lora
from gotr1_core.protocols import Planner, Renderer, RewardJudge, RLAlgorithm
from gotr1_core.reward import Expression
from gotr1_core.rollout import Parts


def make_component(
    registry: Registry, kind: Kind, config: ComponentConfig, *, key: str | None = None, preflight: bool = True, **more: Any
) -> Any:
    """One component by its registered name, its options checked.

    Args:
        registry: the plugins.
        kind: what it is, such as ``judge``.
        config: its name and options.
        key: its place in a config, for messages; ``kind`` if not given.
        preflight: asks the component's class first whether it can be made; false where that was asked already.
        more: what the class takes besides its options, such as ``device``.

    Raises:
        UsageError: no such component, a wrong option, or weights that are not there.
    """
    found = registry.find(kind, config.name).component
    options = options_of(found, config.options)
    make = load(found.target)
    try:
        if preflight and hasattr(make, "preflight"):
            make.preflight(options, key=key or kind)
        return make(options, **more)
    except OSError as error:  # weights that are not where the config says, most often
        if is_out_of_memory(error):
            raise
        first = str(error).strip().split("\n")[0]
        raise UsageError(f"the {kind} {config.name!r} cannot be made: {first}", hint="see its options; is the path right?") from error


def is_unified(registry: Registry, config: RunConfig) -> bool:
    """True if the renderer is the planner's own policy: the same class, and no options of its own or the same ones."""
    planner, renderer = registry.find("planner", config.planner.name), registry.find("renderer", config.renderer.name)
    return planner.component.target == renderer.component.target and config.renderer.options in ({}, config.planner.options)


def build(
    registry: Registry,
    config: RunConfig,
    *,
    device: torch.device | str = "cpu",
    judged: bool = True,
    preflight: bool = True,
    algorithm: RLAlgorithm | None = None,
) -> Parts:
    """The components of a run with their weights loaded and their adapters in place.

    Args:
        registry: the plugins.
        config: the run's.
        device: where weights go.
        judged: makes the judges. Without them the reward is unknown.
        preflight: asks each component first whether it can be made; false where the config was checked.
        algorithm: the one that the check of the config made, if it made one.

    Raises:
        UsageError: a component that cannot be made, or an ``evaluation.metric`` that no judge scores.
    """
    algorithm = algorithm or make_component(registry, "algorithm", config.algorithm)
    judges = Judges({}, Expression.parse("1 / 0"))
    if judged:
        judges = make_judges(registry, config, device=device, preflight=preflight)
        check_metric(config, list(judges.offered()))
    planner, renderer = policies(registry, config, device=device, preflight=preflight)
    parts = Parts(planner, renderer, judges, algorithm)
    prepare(parts, config)
    return parts


def check_metric(config: RunConfig, offered: Sequence[str]) -> None:
    """Checks that judges offer the run's ``evaluation.metric``.

    Raises:
        UsageError: no judge scores it.
    """
    if config.evaluation.metric not in (REWARD, *offered):
        known = ", ".join((REWARD, *offered))
        raise UsageError(f"evaluation.metric: no judge scores {config.evaluation.metric!r}", hint=f"known: {known}")


def prepare(parts: Parts, config: RunConfig) -> None:
    """Adapters into what trains, and everything else frozen.

    Raises:
        UsageError: a policy that is to train and has nothing that could.
    """
    trained = parts.trained(config.train)
    for role, (policy, _) in trained.items():
        if not any(p.requires_grad for p in policy.module.parameters()):
            other = "planner" if role == "renderer" else "renderer"
            raise UsageError(f"train: the {role} has nothing to train", hint=f"set train={other}, or choose another {role}")
    training = [policy for policy, _ in trained.values()]
    for policy in parts.policies().values():
        if policy not in training:
            policy.module.requires_grad_(False)
        elif config.lora is not None:
            add_lora(policy, config.lora)
        if policy in training and config.gradient_checkpointing:
            policy.enable_gradient_checkpointing()


def policies(
    registry: Registry, config: RunConfig, *, device: torch.device | str = "cpu", preflight: bool = True
) -> tuple[Planner, Renderer]:
    """Planner and renderer with their weights: all that drawing needs. One object where one policy has both roles."""
    unified = is_unified(registry, config)
    if not unified:  # a wrong option of the renderer, before the planner is loaded
        options_of(registry.find("renderer", config.renderer.name).component, config.renderer.options)
    planner: Planner = make_component(registry, "planner", config.planner, preflight=preflight, device=device)
    if unified:
        return planner, planner  # type: ignore[return-value]
    if config.offload:  # before the other is loaded: the device need not have room for both
        planner.module.to("cpu")
    return planner, make_component(registry, "renderer", config.renderer, preflight=preflight, device=device)


def renderer_alone(registry: Registry, config: RunConfig, *, device: torch.device | str = "cpu") -> Renderer:
    """The renderer with its weights, which are the planner's where one policy has both roles: all that drawing given chains needs."""
    made: Renderer
    if is_unified(registry, config):
        made = make_component(registry, "planner", config.planner, device=device)
    else:
        made = make_component(registry, "renderer", config.renderer, device=device)
    return made


def make_judges(registry: Registry, config: RunConfig, *, device: torch.device | str = "cpu", preflight: bool = True) -> Judges:
    """The judges and the reward that is made of their scores."""
    judges = {
        judge.label: make_judge(registry, judge, key=judge_key(judge, config), device=device, preflight=preflight) for judge in config.judge
    }
    return Judges(judges, Expression.parse(config.reward))


def make_judge(
    registry: Registry, config: ComponentConfig, *, key: str | None = None, device: torch.device | str = "cpu", preflight: bool = True
) -> RewardJudge:
    """One judge. A model of its own goes to ``device``, if its class takes one."""
    takes = inspect.signature(load(registry.find("judge", config.name).component.target)).parameters
    more = {"device": device} if "device" in takes else {}
    judge: RewardJudge = make_component(registry, "judge", config, key=key, preflight=preflight, **more)
    return judge


def judge_key(judge: JudgeConfig, config: RunConfig) -> str:
    """A judge's place in the config, for messages: ``judge``, or ``judge.LABEL`` where there are several."""
    return "judge" if len(config.judge) == 1 else f"judge.{judge.label}"
