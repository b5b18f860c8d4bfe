"""Makes the components of a run from its config, each once. ``preflight.py`` checks the config first."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from gotr1_core.border.calls import call_preflight, check_component
from gotr1_core.border.contract import Call, introduce
from gotr1_core.border.discovery import plugin_error, raised_by_plugin
from gotr1_core.components.fingerprints import judge_facts
from gotr1_core.config.models import ComponentConfig, JudgeConfig, RunConfig
from gotr1_core.engine.out_of_memory import is_out_of_memory
from gotr1_core.engine.score_tally import ScoreTally
from gotr1_core.errors import Gotr1Error, UsageError
from gotr1_core.evaluation import REWARD
from gotr1_core.hookspecs import Kind
from gotr1_core.judges import Judges
from gotr1_core.plugins import Provided, Registry, load, options_of
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
    provided = registry.find(kind, config.name)
    options = options_of(provided.component, config.options)
    make = component_class(provided)
    try:
        if preflight:
            call_preflight(kind, make, options, key or kind)
        with Call(kind, make, "__init__").told(OSError):
            component = make(options, **arguments)
    except OSError as error:  # mostly weights that are not where the config says
        if is_out_of_memory(error):
            raise
        reason = str(error).strip().split("\n")[0]
        raise UsageError(f"the {kind} {config.name!r} cannot be made: {reason}", hint="see its options; is the path right?") from error
    introduce(type(component), kind, provided.component.name, provided.distribution)
    check_component(kind, component)
    return component


_CLASS = "name the class, not an object of it: gotr1 calls it with its options"


def component_class(provided: Provided) -> Any:
    """A component's class, imported. From now on errors about the class name the component and its distribution.

    Raises:
        Gotr1Error: the registration names something that cannot be called.
    """
    make = load(provided.component.target)
    if not callable(make):
        kind, name, target = provided.component.kind, provided.component.name, provided.component.target
        raise Gotr1Error(f"the {kind} {name!r} of {provided.distribution} has target={target!r}, which is no class", hint=_CLASS)
    introduce(make, provided.component.kind, provided.component.name, provided.distribution)
    return make


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
    for role, policy in parts.policies().items():
        check_component(role, policy)
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
            with Call("policy", policy, "enable_gradient_checkpointing").told():
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
    settings: dict[str, Any] = {"device": device, "preflight": preflight, "cache": config.cache}
    judges = {judge.label: make_judge(registry, judge, key=judge_key(judge, config), **settings) for judge in config.judge}
    needs = {judge.label: judge.need or getattr(judges[judge.label], "need", "") for judge in config.judge}
    return Judges(judges, Expression.parse(config.reward), reminder=config.judge_reminder, tally=ScoreTally(needs))


def make_judge(
    registry: Registry,
    config: ComponentConfig,
    *,
    key: str | None = None,
    device: torch.device | str = "cpu",
    preflight: bool = True,
    cache: str | None = "off",
) -> RewardJudge:
    """Makes one judge. ``device`` is passed on if the judge's class takes one, and so are ``processes``, this one's number and the count.

    A plugin may keep its scores in ``cache``: a folder, ``off``, or None for the judge's own choice.

    Raises:
        UsageError: ``cache`` names a folder, and no plugin keeps scores.
    """
    parameters = inspect.signature(component_class(registry.find("judge", config.name))).parameters
    given = {"device": device, "processes": (int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))}
    arguments = {name: value for name, value in given.items() if name in parameters}
    judge: RewardJudge = make_component(registry, "judge", config, key=key, preflight=preflight, **arguments)
    if cache == "off":
        return judge
    wrapped = _wrapped(registry, judge, cache, partial(judge_facts, registry, config))
    if wrapped is None and cache is not None:
        raise UsageError(f"cache: no plugin keeps scores in {cache}", hint="install gotr1-judges, or say cache=off")
    return judge if wrapped is None else wrapped


def _wrapped(registry: Registry, judge: RewardJudge, cache: str | None, facts: Callable[[], Mapping[str, Any]]) -> RewardJudge | None:
    """The judge that the last plugin with ``gotr1_wrap_judge`` puts in this one's place; None if none does."""
    for plugin, wrap in reversed(list(registry.implementations("gotr1_wrap_judge"))):
        try:
            wrapped: RewardJudge | None = wrap(judge=judge, cache=cache, facts=facts)
        except Gotr1Error:
            raise
        except raised_by_plugin() as error:
            message = f"the plugin {plugin.name} failed in gotr1_wrap_judge: {plugin_error(error)}"
            raise Gotr1Error(message, hint="--debug shows the traceback; cache=off asks no plugin") from error
        if wrapped is not None:
            check_component("judge", wrapped)
            return wrapped
    return None


def judge_key(judge: JudgeConfig, config: RunConfig) -> str:
    """A judge's key in the config, for messages: ``judge``, or ``judge.LABEL`` if there are several judges."""
    return "judge" if len(config.judge) == 1 else f"judge.{judge.label}"
