"""Checks a config before any weights are loaded: names, options, reward, prompts, sizes, and that the weights exist."""

from __future__ import annotations

import importlib.util
import netrc
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from gotr1_core.border.calls import call_preflight, offered_rewards
from gotr1_core.border.contract import Call
from gotr1_core.components.build import check_metric, component_class, is_unified, judge_key, make_component, nothing_to_train
from gotr1_core.components.limits import check_context, check_groups, check_limits, trained_segments
from gotr1_core.config.models import ComponentConfig, JudgeConfig, RunConfig, make_sampling
from gotr1_core.engine.algorithm_state import StateWatch
from gotr1_core.engine.critic import no_features
from gotr1_core.errors import UsageError
from gotr1_core.hookspecs import Kind
from gotr1_core.judges import check_rewards, offers
from gotr1_core.plugins import Registry, options_of
from gotr1_core.protocols import ActorCritic, Planner, RLAlgorithm, Stateful
from gotr1_core.reward import Expression
from gotr1_core.rollout import SEGMENTS
from gotr1_core.samples import Prompt, Sampling


@dataclass(frozen=True)
class Checked:
    """Results of the check of a config, so that nothing is done twice.

    ``sizes`` are what components reported: ``image_tokens`` of a picture, ``context`` in positions, ``parameters`` of all components.
    ``algorithm`` was tried on made-up rewards; it has no weights. One that keeps state is new: the trial does not count.
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
    watch = StateWatch(algorithm)
    check_groups(algorithm, config)
    if isinstance(algorithm, Stateful) or watch.look():  # made-up rewards have changed it
        algorithm = make_component(registry, "algorithm", config.algorithm)
    for role in ("planner", "renderer"):
        make = component_class(registry.find(role, getattr(config, role).name))
        if config.train in (role, "both") and isinstance(algorithm, ActorCritic) and getattr(make, "features", 0) is None:
            raise no_features(role, algorithm)
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
        provided = registry.find(kind, component.name)
        options = options_of(provided.component, component.options)
        trains = kind in ("planner", "renderer") and config.train in (kind, "both")
        make = component_class(provided)
        if trains and not getattr(make, "trainable", True):
            raise nothing_to_train(kind)
        if trains and {*SEGMENTS[kind]} & {*trained_segments(config)} and hasattr(make, "preflight_training"):
            with Call(kind, make, "preflight_training").told():
                make.preflight_training(options, make_sampling(config.sampling), key=kind)
    return unified


def _check_judges(registry: Registry, config: RunConfig) -> None:
    """Checks the judges' labels; and the names in reward and metric, if every class says what it offers before it is made."""
    check_labels(config.judge)
    expression = Expression.parse(config.reward)
    classes = {j.label: component_class(registry.find("judge", j.name)) for j in config.judge}
    known = {label: offered_rewards(made) for label, made in classes.items() if isinstance(getattr(made, "rewards", None), Mapping)}
    if len(known) == len(classes):
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
        provided = registry.find(kind, settings.name)
        make, options = component_class(provided), options_of(provided.component, settings.options)
        reported = call_preflight(kind, make, options, key)
        trains = kind != "judge" and (unified or config.train in (kind, "both"))
        if config.lora is not None and trains and hasattr(make, "preflight_lora"):
            with Call(kind, make, "preflight_lora").told():
                make.preflight_lora(options, config.lora)
        for name, size in reported.items():
            sizes[name] = size + sizes.get(name, 0) if name == "parameters" else size
    return sizes


def preflight_prompts(registry: Registry, config: RunConfig, training: Sequence[Prompt], held_out: Sequence[Prompt]) -> None:
    """Lets a class with a ``preflight_prompts`` refuse prompts, or how they are sampled, before weights are loaded.

    Args:
        registry: finds planner and renderer.
        config: the run's.
        training: the training prompts that are known.
        held_out: those that evaluations sample, perhaps with other settings.
    """
    roles: tuple[Literal["planner", "renderer"], ...] = ("planner",) if is_unified(registry, config) else ("planner", "renderer")
    # A planner that does not train does not sample either: its chains have lengths of their own, which a limit says nothing about.
    writes = getattr(component_class(registry.find("planner", config.planner.name)), "trainable", True)
    for role in roles:
        sampled, evaluated = (None if s is None else make_sampling(s) for s in (config.sampling, config.evaluation.sampling))
        if role == "renderer" and not writes:
            sampled, evaluated = (None if s is None else replace(s, max_chain_tokens=0) for s in (sampled, evaluated))
        provided = registry.find(role, getattr(config, role).name)
        make, options = component_class(provided), options_of(provided.component, getattr(config, role).options)
        if hasattr(make, "preflight_prompts"):
            with Call(role, make, "preflight_prompts").told():
                for prompts in (held_out, training) if training else (held_out,):
                    make.preflight_prompts(options, prompts, sampled)
                if evaluated is not None:
                    make.preflight_prompts(options, held_out, evaluated)


def check_prompts(planner: Planner, prompts: Sequence[Prompt], sampling: Sampling) -> None:
    """Lets a planner with a ``check_prompts`` method refuse prompts that it cannot plan, such as one longer than its context."""
    if hasattr(planner, "check_prompts"):
        with Call("planner", planner, "check_prompts").told():
            planner.check_prompts(prompts, sampling)


def check_tracker(name: str | None) -> None:
    """Checks that a tracker's package is installed, and that wandb has a key. A run would go on without the tracker.

    Raises:
        UsageError: the package is not installed, or wandb has no API key and is not offline.
    """
    if name and importlib.util.find_spec(name) is None:
        raise UsageError(f"tracker: the package {name} is not installed", hint=f"pip install {name}, or tracker=null")
    if name == "wandb" and not _wandb_has_key():
        raise UsageError("tracker: wandb has no API key", hint="run `wandb login`, or set WANDB_API_KEY, or WANDB_MODE=offline")


def _wandb_has_key() -> bool:
    """True if wandb can start without asking for a key, which a run in the background could not answer."""
    import wandb

    settings: Any = wandb.setup().settings
    if settings.mode in ("offline", "disabled", "dryrun") or settings.api_key or getattr(settings, "identity_token_file", None):
        return True
    files = [Path(os.environ["NETRC"])] if os.environ.get("NETRC") else [Path("~/.netrc"), Path("~/_netrc")]
    for file in files:
        with suppress(OSError, RuntimeError, netrc.NetrcParseError):  # RuntimeError: a user without a home
            if {urlsplit(settings.base_url).netloc, "api.wandb.ai"} & netrc.netrc(file.expanduser()).hosts.keys():
                return True
    return False
