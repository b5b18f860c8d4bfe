"""Checks a run's config before any weight is loaded: names, options, reward, prompts, sizes, and whether the weights are there."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gotr1_core.components.build import check_metric, is_unified, judge_key, make_component
from gotr1_core.components.limits import check_context, check_groups, check_limits
from gotr1_core.config.models import ComponentConfig, JudgeConfig, RunConfig
from gotr1_core.errors import UsageError
from gotr1_core.hookspecs import Kind
from gotr1_core.judges import check_rewards, offers
from gotr1_core.plugins import Registry, load, options_of
from gotr1_core.protocols import Planner, RLAlgorithm
from gotr1_core.reward import Expression
from gotr1_core.samples import Prompt, Sampling


@dataclass(frozen=True)
class Checked:
    """What the check of a config found out, so that nothing is asked or made twice.

    ``sizes`` is what the components know about themselves: ``image_tokens`` of a picture, ``context`` in positions, ``parameters``.
    ``algorithm`` was made to try it on made-up rewards, and holds no weights.
    """

    sizes: Mapping[str, int]
    algorithm: RLAlgorithm


def check(registry: Registry, config: RunConfig, processes: int | None = None) -> Checked:
    """Checks names and options of every component, the reward, the prompts and the sizes of a step. Loads no weights.

    ``processes`` is None where it is not known how many will train.

    Raises:
        UsageError: the first thing that cannot be.
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
            raise UsageError("offload: planner and renderer are one policy, and none is ever idle", hint=hint)
    return Checked(sizes, algorithm)


def _check_options(registry: Registry, config: RunConfig) -> bool:
    """Checks every component's name and options; true if planner and renderer are one policy."""
    named: list[tuple[Kind, ComponentConfig]] = [("planner", config.planner), ("algorithm", config.algorithm)]
    named += [("judge", judge) for judge in config.judge]
    named += [("source", config.prompts.source)] if config.prompts.source else []
    unified = is_unified(registry, config)
    named += [] if unified else [("renderer", config.renderer)]
    for kind, part in named:
        options_of(registry.find(kind, part.name).component, part.options)
    return unified


def _check_judges(registry: Registry, config: RunConfig) -> None:
    """Checks that each judge is there once, and that together they offer what the reward needs, where their classes say what they offer."""
    check_labels(config.judge)
    expression = Expression.parse(config.reward)
    offered = {j.label: getattr(load(registry.find("judge", j.name).component.target), "rewards", None) for j in config.judge}
    known = {name: rewards for name, rewards in offered.items() if isinstance(rewards, Mapping)}
    names = offers(known)
    if len(known) == len(offered):  # else one tells only when it is made
        check_rewards(expression, known)
        check_metric(config, list(names))


def check_labels(judges: Sequence[JudgeConfig]) -> None:
    """Checks that every judge has a name of its own.

    Raises:
        UsageError: two are known as the same.
    """
    labels = [judge.label for judge in judges]
    twice = sorted(label for label in set(labels) if labels.count(label) > 1)
    if twice:
        raise UsageError(f"the judge {twice[0]!r} is named twice", hint="give it once, or one of them a name of its own: as: NAME")


def preflight(registry: Registry, config: RunConfig, *, unified: bool) -> dict[str, int]:
    """Asks every component's class, if it has a preflight, whether it could be made; returns the sizes that they know."""
    asked: list[tuple[Kind, str, ComponentConfig]] = [("planner", "planner", config.planner)]
    asked += [] if unified else [("renderer", "renderer", config.renderer)]
    asked += [("judge", judge_key(judge, config), judge) for judge in config.judge]
    sizes: dict[str, int] = {}
    for kind, key, part in asked:
        found = registry.find(kind, part.name).component
        made = load(found.target)
        if hasattr(made, "preflight"):
            for name, size in made.preflight(options_of(found, part.options), key=key).items():
                sizes[name] = size + sizes.get(name, 0) if name == "parameters" else size
    return sizes


def check_prompts(planner: Planner, prompts: Sequence[Prompt], sampling: Sampling) -> None:
    """Asks a planner that can tell to refuse prompts that it could not plan, such as one longer than its context."""
    if hasattr(planner, "check_prompts"):
        planner.check_prompts(prompts, sampling)


def check_tracker(name: str | None) -> None:
    """Checks that a tracker's package is there; accelerate would go on without a word.

    Raises:
        UsageError: it is not installed.
    """
    if name and importlib.util.find_spec(name) is None:
        raise UsageError(f"tracker: the package {name} is not installed", hint=f"pip install {name}, or tracker=null")
