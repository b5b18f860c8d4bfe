"""Makes the components of a run out of its config. What is impossible is refused before any weight is loaded."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gotr1_core.config import ComponentConfig, JudgeConfig, PromptsConfig, RunConfig, SamplingConfig
from gotr1_core.errors import UsageError
from gotr1_core.evaluation import REWARD
from gotr1_core.geometry import check_context, check_credit, check_geometry
from gotr1_core.hookspecs import Kind
from gotr1_core.lora import add_lora
from gotr1_core.memory import is_out_of_memory
from gotr1_core.plugins import Registry, load, options_of
from gotr1_core.protocols import Planner, Policy, Renderer, RewardJudge, RLAlgorithm
from gotr1_core.reward import Expression
from gotr1_core.rollout import Judges, check_rewards, offers
from gotr1_core.samples import IMAGE, PLAN, Prompt, Sampling, SegmentName
from gotr1_core.trackers import check_tracker


@dataclass(frozen=True)
class Parts:
    """The components of a run. Planner and renderer are one object where one policy has both roles."""

    planner: Planner
    renderer: Renderer
    judges: Judges
    algorithm: RLAlgorithm

    @property
    def unified(self) -> bool:
        return self.planner is self.renderer  # type: ignore[comparison-overlap]

    def policies(self) -> dict[str, Policy]:
        """Planner and renderer by role; the planner alone where it is both."""
        return {"planner": self.planner} if self.unified else {"planner": self.planner, "renderer": self.renderer}

    def trained(self, train: str) -> dict[str, tuple[Policy, tuple[SegmentName, ...]]]:
        """The policies that train, by role, and their segments that do."""
        wanted: dict[str, tuple[SegmentName, ...]] = {"planner": (PLAN,), "renderer": (IMAGE,), "both": (PLAN, IMAGE)}
        if self.unified:
            return {"planner": (self.planner, wanted[train])}
        roles: dict[str, tuple[Policy, tuple[SegmentName, ...]]] = {
            "planner": (self.planner, (PLAN,)),
            "renderer": (self.renderer, (IMAGE,)),
        }
        return {role: pair for role, pair in roles.items() if train in (role, "both")}


def component(registry: Registry, kind: Kind, config: ComponentConfig, *, key: str | None = None, **more: Any) -> Any:
    """One component by its registered name, its options checked; ``key`` is its place in a config, for messages."""
    found = registry.find(kind, config.name).component
    options = options_of(found, config.options)
    make = load(found.target)
    try:
        if hasattr(make, "preflight"):
            make.preflight(options, key=key or kind)
        return make(options, **more)
    except OSError as error:  # weights that are not where the config says, most often
        if is_out_of_memory(error):
            raise
        first = str(error).strip().split("\n")[0]
        raise UsageError(f"the {kind} {config.name!r} cannot be made: {first}", hint="see its options; is the path right?") from error


def check(registry: Registry, config: RunConfig, processes: int | None = None) -> dict[str, int]:
    """Names and options of every component, the reward, the prompts, the geometry; loads no weights.

    ``processes`` is None where it is not known how many will train.

    Returns what the components know about their sizes beforehand: ``image_tokens``, ``context``.

    Raises:
        UsageError: the first thing that cannot be.
    """
    named: list[tuple[Kind, ComponentConfig]] = [
        ("planner", config.planner),
        ("renderer", config.renderer),
        ("algorithm", config.algorithm),
    ]
    named += [("judge", judge) for judge in config.judge]
    named += [("source", config.prompts.source)] if config.prompts.source else []
    _check_options(registry, config, named)
    check_tracker(config.tracker)
    _check_judges(registry, config)
    if config.prompts.source is None and config.prompts.file is None:
        raise UsageError("there are no prompts", hint="give --prompts FILE, or prompts.source=NAME")
    check_geometry(config, processes)
    check_credit(component(registry, "algorithm", config.algorithm), config)
    sizes = preflight(registry, config)
    if _shares(registry, config, "renderer"):
        check_context(config, sizes)
        if config.offload:
            hint = "set offload=false, or name a renderer with options of its own"
            raise UsageError("offload: planner and renderer are one policy, and none is ever idle", hint=hint)
    return sizes


def _check_judges(registry: Registry, config: RunConfig) -> None:
    """Each judge once, and together they offer what the reward needs; where a judge's class says what it offers."""
    check_labels(config.judge)
    expression = Expression.parse(config.reward)
    offered = {j.label: getattr(load(registry.find("judge", j.name).component.target), "rewards", None) for j in config.judge}
    known = {name: rewards for name, rewards in offered.items() if isinstance(rewards, Mapping)}
    names = offers(known)
    if len(known) == len(offered):  # else one tells only when it is made
        check_rewards(expression, known)
        if config.evaluation.metric not in (REWARD, *names):
            raise _no_metric(config, list(names))


def check_labels(judges: Sequence[JudgeConfig]) -> None:
    """Has every judge stand under a name of its own.

    Raises:
        UsageError: two are known as the same.
    """
    labels = [judge.label for judge in judges]
    twice = sorted(label for label in set(labels) if labels.count(label) > 1)
    if twice:
        raise UsageError(f"the judge {twice[0]!r} is named twice", hint="give it once, or one of them a name of its own: as: NAME")


def _no_metric(config: RunConfig, names: Sequence[str]) -> UsageError:
    return UsageError(f"evaluation.metric: no judge scores {config.evaluation.metric!r}", hint=f"known: {', '.join((REWARD, *names))}")


def preflight(registry: Registry, config: RunConfig) -> dict[str, int]:
    """Asks every component that can tell whether it could be made, before anything is loaded; returns the sizes that it knows."""
    parts: list[tuple[Kind, ComponentConfig]] = [("planner", config.planner)]
    parts += [] if _shares(registry, config, "renderer") else [("renderer", config.renderer)]
    parts += [("judge", judge) for judge in config.judge]
    sizes: dict[str, int] = {}
    for kind, part in parts:
        found = registry.find(kind, part.name).component
        made = load(found.target)
        if hasattr(made, "preflight"):
            key = _key(part, config) if isinstance(part, JudgeConfig) else kind
            for name, size in made.preflight(options_of(found, part.options), key=key).items():
                sizes[name] = size + sizes.get(name, 0) if name == "parameters" else size
    return sizes


def check_prompts(planner: Planner, prompts: Sequence[Prompt], sampling: Sampling) -> None:
    """Has a planner that can tell refuse prompts that it could not plan, such as one longer than its context, before anything is drawn."""
    if hasattr(planner, "check_prompts"):
        planner.check_prompts(prompts, sampling)


def _check_options(registry: Registry, config: RunConfig, named: Sequence[tuple[Kind, ComponentConfig]]) -> None:
    for kind, part in named:
        found = registry.find(kind, part.name).component
        if part.options or not _shares(registry, config, kind):
            options_of(found, part.options)


def _shares(registry: Registry, config: RunConfig, kind: Kind) -> bool:
    """Whether the renderer is the planner's own policy: the same class, and no options of its own or the same ones."""
    if kind != "renderer":
        return False
    same = (
        registry.find("planner", config.planner.name).component.target == registry.find("renderer", config.renderer.name).component.target
    )
    return same and config.renderer.options in ({}, config.planner.options)


def build(registry: Registry, config: RunConfig, *, device: torch.device | str = "cpu", judged: bool = True) -> Parts:
    """The components, weights loaded, adapters in place; without ``judged`` there are no judges, and the reward is unknown."""
    if judged:
        check(registry, config)
    judges = make_judges(registry, config, device=device) if judged else Judges({}, Expression.parse("1 / 0"))
    if judged and config.evaluation.metric not in (REWARD, *judges.offered()):
        raise _no_metric(config, list(judges.offered()))
    planner, renderer = policies(registry, config, device=device)
    parts = Parts(planner, renderer, judges, component(registry, "algorithm", config.algorithm))
    prepare(parts, config)
    return parts


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


def policies(registry: Registry, config: RunConfig, *, device: torch.device | str = "cpu") -> tuple[Planner, Renderer]:
    """Planner and renderer with their weights: all that drawing needs. One object where one policy has both roles."""
    _check_options(registry, config, [("planner", config.planner), ("renderer", config.renderer)])
    planner: Planner = component(registry, "planner", config.planner, device=device)
    if _shares(registry, config, "renderer"):
        return planner, planner  # type: ignore[return-value]
    if config.offload:  # before the other is loaded: the device need not have room for both
        planner.module.to("cpu")
    return planner, renderer_alone(registry, config, device=device)


def renderer_alone(registry: Registry, config: RunConfig, *, device: torch.device | str = "cpu") -> Renderer:
    """The renderer with its weights, which are the planner's where one policy has both roles: all that drawing given chains needs."""
    shared = _shares(registry, config, "renderer")
    made: Renderer = component(registry, "planner" if shared else "renderer", config.planner if shared else config.renderer, device=device)
    return made


def make_judges(registry: Registry, config: RunConfig, *, device: torch.device | str = "cpu") -> Judges:
    """The judges and the reward; the metric and what else evaluation wants is scored besides."""
    judges = {judge.label: make_judge(registry, judge, key=_key(judge, config), device=device) for judge in config.judge}
    return Judges(judges, Expression.parse(config.reward))


def make_judge(registry: Registry, config: ComponentConfig, *, key: str | None = None, device: torch.device | str = "cpu") -> RewardJudge:
    """One judge; if its class takes a device, a model of its own is put there."""
    takes = inspect.signature(load(registry.find("judge", config.name).component.target)).parameters
    judge: RewardJudge = component(registry, "judge", config, key=key, **({"device": device} if "device" in takes else {}))
    return judge


def _key(judge: JudgeConfig, config: RunConfig) -> str:
    """A judge's place in the config."""
    return "judge" if len(config.judge) == 1 else f"judge.{judge.label}"


def make_sampling(config: SamplingConfig) -> Sampling:
    """The settings as the core uses them."""
    return Sampling(**config.model_dump())


class FilePrompts:
    """Prompts in their order, again and again."""

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self.all = prompts

    def prompts(self, split: str, count: int, seed: int, start: int = 0) -> Sequence[Prompt]:
        """``count`` prompts from number ``start`` on."""
        del split, seed
        return [self.all[i % len(self.all)] for i in range(start, start + count)]


def read_prompts(path: Path) -> list[Prompt]:
    """Prompts of a text file, one a line, or of a JSONL file with ``prompt`` and, if wanted, ``id``, ``category``, ``metadata``."""
    try:
        # Newlines alone end a line: a JSON string may hold any other separator. Some editors begin a file with a byte order mark.
        text = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", hint="give a file with one prompt a line, or JSONL") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text", hint="give a file with one prompt a line, or JSONL") from None
    lines = [(number, line.strip()) for number, line in enumerate(text, 1) if line.strip()]
    if not lines:
        raise UsageError(f"{path} has no prompts", hint="give a file with one prompt a line, or JSONL")
    if path.suffix != ".jsonl":
        return [Prompt(line, f"{path.stem}-{i}") for i, (_, line) in enumerate(lines)]
    return [_read_row(path, number, line, f"{path.stem}-{i}") for i, (number, line) in enumerate(lines)]


def _read_row(path: Path, number: int, line: str, name: str) -> Prompt:
    """One line of JSONL."""
    try:
        row = json.loads(line)
        prompt, category, metadata = row["prompt"], row.get("category", ""), row.get("metadata", {})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UsageError(f'{path}, line {number}, is not {{"prompt": …}}', hint="one JSON object a line") from None
    if not isinstance(prompt, str) or not prompt.strip():
        raise UsageError(f"{path}, line {number}: the prompt is no text", hint='one {"prompt": "…"} a line')
    if not isinstance(category, str) or not isinstance(metadata, dict):
        raise UsageError(f"{path}, line {number}: category is a text and metadata an object", hint="leave out what you do not need")
    return Prompt(prompt, str(row.get("id", name)), category, metadata)


def training_prompts(registry: Registry, config: PromptsConfig) -> Any:
    """The source of training prompts."""
    if config.file is not None:
        return FilePrompts(_split(config)[0])
    assert config.source is not None
    return component(registry, "source", config.source)


def _split(config: PromptsConfig) -> tuple[list[Prompt], list[Prompt]]:
    """Your own prompts for training and for evaluation. Without a source and a file for the latter, the last ones are held out."""
    assert config.file is not None
    prompts = read_prompts(config.file)
    if isinstance(config.held_out, Path) or config.source is not None:
        return prompts, []
    if config.held_out >= len(prompts):
        raise UsageError(
            f"{config.file} has {len(prompts)} prompts, and prompts.held_out={config.held_out} holds out the last of them",
            hint="set prompts.held_out to a smaller number, or to a file of its own",
        )
    return prompts[: -config.held_out], prompts[-config.held_out :]


def held_out_prompts(registry: Registry, config: PromptsConfig) -> list[Prompt]:
    """The prompts of evaluation: a file's, the first of the source's validation split, or the last of your own file."""
    if isinstance(config.held_out, Path):
        return read_prompts(config.held_out)
    if config.source is None:
        return _split(config)[1]
    source = component(registry, "source", config.source)
    return list(source.prompts("validation", config.held_out, config.seed))
