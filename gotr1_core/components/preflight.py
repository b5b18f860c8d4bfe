"""Checks a config before any weights are loaded: names, options, reward, prompts, sizes, and that the weights exist."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gotr1_core.components.build import check_metric, is_unified, judge_key, make_component, nothing_to_train
from gotr1_core.components.limits import check_context, check_groups, check_limits
from gotr1_core.config.models import ComponentConfig, JudgeConfig, RunConfig, make_sampling
from gotr1_core.errors import UsageError
from gotr1_core.hookspecs import Kind
from gotr1_core.judges import check_rewards, offers
from gotr1_core.plugins import Registry, load, options_of
from gotr1_core.protocols import Planner, RLAlgorithm
from gotr1_core.reward import Expression
from gotr1_core.samples import Prompt, Sampling


@dataclass(frozen=True)
class Checked:
    """Results of the check of a config, so that nothing is done twice.

    ``sizes`` are what components reported: ``image_tokens`` of a picture, ``context`` in positions, ``parameters`` of all components.
    ``algorithm`` was made to try it on made-up rewards; it has no weights.
    """

    sizes: Mapping[str, int]
    algorithm: RLAlgorithm


def check(registry: Registry, config: RunConfig, processes: int | None = None) -> Checked:
    """Checks every component's name and options, the reward, the prompts and the sizes of a step. Loads no weights.

    ``processes`` is the number of processes that will train, or None if it is not known yet.

    Raises:
        UsageError: something in the config is wrong; the message is about the first such thing.
    """
    unified = _check_options(registry, config)
    check_tracker(config.tracker)
    _check_judges(registry, config)
    if config.prompts.source is None and config.prompts.file is None:
        raise UsageError("there are no prompts", hint="give --prompts FILE, or prompts.source=NAME")
    check_limits(config, processes)
    algorithm: RLAlgorithm = make_component(registry, "algorithm", config.algorithm)
    check_groups(algorithm, config)
    sizes = preflight(registry, config, unified=unified)
    if unified:
        check_context(config, sizes)
        if config.offload:
            hint = "set offload=false, or name a renderer with options of its own"
            raise UsageError("offload: planner and renderer are one policy, which is never idle", hint=hint)
    return Checked(sizes, algorithm)


def _check_options(registry: Registry, config: RunConfig) -> bool:
    """Checks every component's name and options. Returns true if planner and renderer are one policy."""
    components: list[tuple[Kind, ComponentConfig]] = [("planner", config.planner), ("algorithm", config.algorithm)]
    components += [("judge", judge) for judge in config.judge]
    components += [("source", config.prompts.source)] if config.prompts.source else []
    unified = is_unified(registry, config)
    components += [] if unified else [("renderer", config.renderer)]
    for kind, component in components:
        registered = registry.find(kind, component.name).component
        options_of(registered, component.options)
        trains = kind in ("planner", "renderer") and config.train in (kind, "both")
        if trains and not getattr(load(registered.target), "trainable", True):
            raise nothing_to_train(kind)
    return unified


def _check_judges(registry: Registry, config: RunConfig) -> None:
    """Checks the judges' labels; and the names in reward and metric, if every class says what it offers before it is made."""
    check_labels(config.judge)
    expression = Expression.parse(config.reward)
    rewards_by_judge = {j.label: getattr(load(registry.find("judge", j.name).component.target), "rewards", None) for j in config.judge}
    known = {label: rewards for label, rewards in rewards_by_judge.items() if isinstance(rewards, Mapping)}
    if len(known) == len(rewards_by_judge):
        check_metric(config, list(check_rewards(expression, known)))
    else:
        offers(known)


def check_labels(judges: Sequence[JudgeConfig]) -> None:
    """Checks that every judge has a label of its own.

    Raises:
        UsageError: two judges have one label.
    """
    labels = [judge.label for judge in judges]
    repeated = sorted(label for label in set(labels) if labels.count(label) > 1)
    if repeated:
        raise UsageError(f"the judge {repeated[0]!r} is named twice", hint="list it once, or give one of them another label: as: NAME")


def preflight(registry: Registry, config: RunConfig, *, unified: bool) -> dict[str, int]:
    """Calls the ``preflight`` of every component's class that has one. Returns the sizes that they report; ``parameters`` are added up."""
    components: list[tuple[Kind, str, ComponentConfig]] = [("planner", "planner", config.planner)]
    components += [] if unified else [("renderer", "renderer", config.renderer)]
    components += [("judge", judge_key(judge, config), judge) for judge in config.judge]
    sizes: dict[str, int] = {}
    for kind, key, settings in components:
        component = registry.find(kind, settings.name).component
        make = load(component.target)
        if hasattr(make, "preflight"):
            for name, size in make.preflight(options_of(component, settings.options), key=key).items():
                sizes[name] = size + sizes.get(name, 0) if name == "parameters" else size
    return sizes


def preflight_prompts(registry: Registry, config: RunConfig, prompts: Sequence[Prompt]) -> None:
    """Lets a planner's class with a ``preflight_prompts`` refuse prompts before weights are loaded."""
    component = registry.find("planner", config.planner.name).component
    make = load(component.target)
    if hasattr(make, "preflight_prompts"):
        make.preflight_prompts(options_of(component, config.planner.options), prompts, make_sampling(config.sampling))


def check_prompts(planner: Planner, prompts: Sequence[Prompt], sampling: Sampling) -> None:
    """Lets a planner with a ``check_prompts`` method refuse prompts that it cannot plan, such as one longer than its context."""
    if hasattr(planner, "check_prompts"):
        planner.check_prompts(prompts, sampling)


def check_tracker(name: str | None) -> None:
    """Checks that a tracker's package is installed. accelerate itself would continue silently without it.

    Raises:
        UsageError: the package is not installed.
    """
    if name and importlib.util.find_spec(name) is None:
        raise UsageError(f"tracker: the package {name} is not installed", hint=f"pip install {name}, or tracker=null")
