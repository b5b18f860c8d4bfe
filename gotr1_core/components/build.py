"""Makes the components of a run from its config, each once. ``preflight.py`` checks the config first."""

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
    registry: Registry, kind: Kind, config: ComponentConfig, *, key: str | None = None, preflight: bool = True, **arguments: Any
) -> Any:
    """Makes one component from its registered name and its options, which are checked.

    ``key`` is its key in the config, for messages; ``kind`` if not given. The class's ``preflight`` is called first, unless ``preflight``
    is False because it was called already. ``arguments`` are those of the class besides its options, such as ``device``.

    Raises:
        UsageError: there is no such component, an option is wrong, or weights are missing.
    """
    component = registry.find(kind, config.name).component
    options = options_of(component, config.options)
    make = load(component.target)
    try:
        if preflight and hasattr(make, "preflight"):
            make.preflight(options, key=key or kind)
        return make(options, **arguments)
    except OSError as error:  # mostly weights that are not where the config says
        if is_out_of_memory(error):
            raise
        reason = str(error).strip().split("\n")[0]
        raise UsageError(f"the {kind} {config.name!r} cannot be made: {reason}", hint="see its options; is the path right?") from error


def is_unified(registry: Registry, config: RunConfig) -> bool:
    """True if planner and renderer are one policy: the same class, and the renderer has no options or the planner's."""
    planner, renderer = registry.find("planner", config.planner.name), registry.find("renderer", config.renderer.name)
    return planner.component.target == renderer.component.target and config.renderer.options in ({}, config.planner.options)


def build(
    registry: Registry,
    config: RunConfig,
    *,
    device: torch.device | str = "cpu",
    with_judges: bool = True,
    preflight: bool = True,
    algorithm: RLAlgorithm | None = None,
) -> Parts:
    """Makes the components of a run: weights loaded on ``device``, adapters added, everything else frozen.

    Without ``with_judges`` every reward is unknown (NaN). If the config was checked already, ``preflight`` is False, and ``algorithm`` is
    what the check made.

    Raises:
        UsageError: a component cannot be made, or no judge scores ``evaluation.metric``.
    """
    algorithm = algorithm or make_component(registry, "algorithm", config.algorithm)
    judges = Judges({}, Expression.parse("1 / 0"))
    if with_judges:
        judges = make_judges(registry, config, device=device, preflight=preflight)
        check_metric(config, list(judges.offered()))
    planner, renderer = make_policies(registry, config, device=device, preflight=preflight)
    parts = Parts(planner, renderer, judges, algorithm)
    prepare(parts, config)
    return parts


def check_metric(config: RunConfig, offered: Sequence[str]) -> None:
    """Checks ``evaluation.metric`` against ``offered``, the names that the judges score.

    Raises:
        UsageError: the metric is neither ``reward`` nor an offered name.
    """
    if config.evaluation.metric not in (REWARD, *offered):
        known = ", ".join((REWARD, *offered))
        raise UsageError(f"evaluation.metric: no judge scores {config.evaluation.metric!r}", hint=f"known: {known}")


def prepare(parts: Parts, config: RunConfig) -> None:
    """Prepares policies for training: adds adapters to those that train, and freezes the others.

    Raises:
        UsageError: a policy that should train has no trainable parameters.
    """
    trained = parts.trained(config.train)
    for role, (policy, _) in trained.items():
        if not any(p.requires_grad for p in policy.module.parameters()):
            raise nothing_to_train(role)
    training = [policy for policy, _ in trained.values()]
    for policy in parts.policies().values():
        if policy not in training:
            policy.module.requires_grad_(False)
        elif config.lora is not None:
            add_lora(policy, config.lora)
        if policy in training and config.gradient_checkpointing:
            policy.enable_gradient_checkpointing()


def nothing_to_train(role: str) -> UsageError:
    """The error of a policy that should train and has no trainable parameters. ``role`` is planner or renderer."""
    other = "planner" if role == "renderer" else "renderer"
    return UsageError(f"train: the {role} has nothing to train", hint=f"set train={other}, or choose another {role}")


def make_policies(
    registry: Registry, config: RunConfig, *, device: torch.device | str = "cpu", preflight: bool = True
) -> tuple[Planner, Renderer]:
    """Makes planner and renderer with their weights. Both are the same object if they are one policy."""
    unified = is_unified(registry, config)
    if not unified:  # finds a wrong option of the renderer before the planner is loaded
        options_of(registry.find("renderer", config.renderer.name).component, config.renderer.options)
    planner: Planner = make_component(registry, "planner", config.planner, preflight=preflight, device=device)
    if unified:
        return planner, planner  # type: ignore[return-value]
    if config.offload:  # before the renderer is loaded: the device may not have room for both
        planner.module.to("cpu")
    return planner, make_component(registry, "renderer", config.renderer, preflight=preflight, device=device)


def make_renderer(registry: Registry, config: RunConfig, *, device: torch.device | str = "cpu") -> Renderer:
    """Makes only the renderer, for pictures of given chains. If planner and renderer are one policy, the planner's options count."""
    kind: Kind = "planner" if is_unified(registry, config) else "renderer"
    renderer: Renderer = make_component(registry, kind, getattr(config, kind), device=device)
    return renderer


def make_judges(registry: Registry, config: RunConfig, *, device: torch.device | str = "cpu", preflight: bool = True) -> Judges:
    """Makes the judges and parses the reward expression."""
    judges = {
        judge.label: make_judge(registry, judge, key=judge_key(judge, config), device=device, preflight=preflight) for judge in config.judge
    }
    return Judges(judges, Expression.parse(config.reward))


def make_judge(
    registry: Registry, config: ComponentConfig, *, key: str | None = None, device: torch.device | str = "cpu", preflight: bool = True
) -> RewardJudge:
    """Makes one judge. ``device`` is passed on if the judge's class takes one."""
    parameters = inspect.signature(load(registry.find("judge", config.name).component.target)).parameters
    arguments = {"device": device} if "device" in parameters else {}
    judge: RewardJudge = make_component(registry, "judge", config, key=key, preflight=preflight, **arguments)
    return judge


def judge_key(judge: JudgeConfig, config: RunConfig) -> str:
    """A judge's key in the config, for messages: ``judge``, or ``judge.LABEL`` if there are several judges."""
    return "judge" if len(config.judge) == 1 else f"judge.{judge.label}"
