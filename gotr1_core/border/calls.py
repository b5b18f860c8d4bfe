"""Calls the functions of components, and checks what they return. Training, drawing, scoring and ``gotr1 check`` all call them here.

Every function raises a :class:`~gotr1_core.border.contract.ContractError` for a result that breaks the contract, and for an exception.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL.Image import Image
from safetensors import SafetensorError
from torch import Tensor, nn

from gotr1_core.border.contract import Call
from gotr1_core.chain import Chain
from gotr1_core.errors import nearest
from gotr1_core.protocols import (
    Benchmark,
    ExplainingJudge,
    Loss,
    Metered,
    Planner,
    Policy,
    PromptSource,
    Renderer,
    RewardJudge,
    RunMember,
)
from gotr1_core.samples import IMAGE, PLAN, ActionStats, Example, Prompt, Rollout, Sample, Sampling, SegmentName, Words

if TYPE_CHECKING:
    pass

NEEDED = {
    "planner": ("module", "plan"),
    "renderer": ("module", "render"),
    "judge": ("rewards", "score"),
    "algorithm": ("advantages", "count", "loss"),
    "source": ("prompts",),
    "benchmark": ("prompts", "measure"),
}
"""What a component of each kind must have to work at all. The rest of its protocol is needed where it is used."""
TOGETHER = {
    "algorithm": (
        ("estimate", "needs_reference"),
        ("critic", "value_loss", "estimate", "needs_reference"),
        ("value_loss", "critic"),
        ("state_dict", "load_state_dict"),
        ("load_state_dict", "state_dict"),
    ),
}
"""What a component of a kind needs beside the first of each row, if it has that. Without the others it would not be called at all."""
SIZES = ("image_tokens", "context", "parameters")
"""The sizes that a ``preflight`` may report."""
_SCORE = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def check_component(kind: str, component: Any) -> None:
    """Checks that a component has what :data:`NEEDED` lists, and that a policy's ``module`` is an ``nn.Module``."""
    for name in NEEDED[kind]:
        call = Call(kind, component, name)
        with call.told():
            there = hasattr(component, name)
        if not there:
            raise call.lacks(name, f"{', '.join(NEEDED[kind])} of a {kind}")
    if "module" in NEEDED[kind] and not isinstance(component.module, nn.Module):
        raise Call(kind, component, "module").wrong(component.module, "a torch.nn.Module")
    for first, *others in TOGETHER.get(kind, ()):
        for name in others if hasattr(component, first) else ():
            if not hasattr(component, name):
                raise Call(kind, component, name).lacks(name, f"{name} beside {first}")
    if kind == "judge":
        offered_rewards(component)


def offered_rewards(judge: RewardJudge) -> Mapping[str, SegmentName]:
    """What a judge or its class says that it scores, checked: names, each with ``plan`` or ``image``."""
    call = Call("judge", judge, "rewards")
    with call.told():
        rewards = judge.rewards
    call.need(isinstance(rewards, Mapping), rewards, "a mapping of names to plan or image")
    for name, stage in rewards.items():
        call.need(
            isinstance(name, str) and bool(_SCORE.fullmatch(name)), name, "a letter, then letters, digits and _", "the name of a score"
        )
        call.need(stage in (PLAN, IMAGE), stage, "'plan' or 'image'", f"[{name!r}]")
    return rewards


def call_preflight(kind: str, make: Any, options: Any, key: str) -> Mapping[str, int]:
    """The sizes that a class's ``preflight`` reports (:data:`SIZES`); none if it has no such function."""
    if not hasattr(make, "preflight"):
        return {}
    call = Call(kind, make, "preflight")
    with call.told(OSError):
        sizes: Mapping[str, int] = make.preflight(options, key=key)
    call.need(isinstance(sizes, Mapping) and {*sizes} <= {*SIZES}, sizes, f"a mapping with names of {', '.join(SIZES)}")
    for name, size in sizes.items():
        call.need(isinstance(size, int) and size >= 0, size, "a number from 0 on", f"[{name!r}]")
    return sizes


def call_can_score(make: Any, options: Any, prompts: Sequence[Prompt]) -> Sequence[bool]:
    """Which prompts a judge's class can score: one bool each."""
    call = Call("judge", make, "can_score")
    with call.told():
        known = make.can_score(options, prompts)
    return call.items(known, bool, "a bool", count=len(prompts))


def lora_prefix(policy: Policy) -> str:
    """The name of the part of a policy's module that LoRA adapts; empty for the whole module."""
    call = Call("policy", policy, "lora_prefix")
    prefix: object = getattr(policy, "lora_prefix", None)
    if not isinstance(prefix, str):
        raise call.lacks("lora_prefix", "the name of the part of module that adapters go into, such as 'model'")
    names = [name for name, _ in policy.module.named_modules()]
    if not any(name.startswith(prefix) for name in names):
        raise call.wrong(prefix, f"the name of a part of module; {nearest(prefix, names)}")
    return prefix


def call_plan(planner: Planner, prompts: Sequence[Prompt], *, seeds: Sequence[int], sampling: Sampling) -> Rollout:
    """The rollout of a planner's chains, one per prompt and seed."""
    call = Call("planner", planner, "plan")
    with call.told():
        rollout = planner.plan(prompts, seeds=seeds, sampling=sampling)
    call.rollout(rollout, PLAN, len(prompts), sampling)
    return rollout


def call_render(
    renderer: Renderer,
    prompts: Sequence[Prompt],
    chains: Sequence[Chain],
    *,
    seeds: Sequence[int],
    sampling: Sampling,
    plans: Rollout | None = None,
    groups: Sequence[int] | None = None,
) -> Rollout:
    """The rollout of a renderer's pictures, one per prompt, chain and seed."""
    call = Call("renderer", renderer, "render")
    with call.told():
        rollout = renderer.render(prompts, chains, seeds=seeds, sampling=sampling, plans=plans, groups=groups)
    call.rollout(rollout, IMAGE, len(prompts), sampling)
    return rollout


def check_joinable(planner: Planner, renderer: Renderer, plans: Sequence[Rollout], images: Sequence[Rollout]) -> None:
    """Checks that rollouts of several calls can be joined. The training pass takes rows of all of them in any number and order."""
    for call, rollouts in ((Call("planner", planner, "plan"), plans), (Call("renderer", renderer, "render"), images)):
        if rollouts:
            call.joined(rollouts)


def call_module(
    policy: Policy, module: nn.Module, segments: Mapping[SegmentName, Rollout], *, learns: bool = False, features: bool = False
) -> Mapping[SegmentName, ActionStats]:
    """The stats of a policy's training pass. ``module`` is its module, perhaps wrapped.

    With ``learns``, log-probabilities must have a gradient unless nothing was sampled; with ``features``, stats must have them.
    """
    call = Call("planner" if PLAN in segments else "renderer", policy, "module.forward")
    with call.told():
        stats = module(segments)
    call.need(isinstance(stats, Mapping) and {*segments} <= {*stats}, stats, f"a mapping with the names {', '.join(segments)}")
    for name, rollout in segments.items():
        own, mask = stats[name], rollout.tensors["mask"]
        call.need(isinstance(own, ActionStats), own, "an ActionStats", f"[{name!r}]")
        log_prob = call.tensor(own.log_prob, f"{name} log_prob", "float32 or float64", *mask.shape, device=mask.device)
        call.need(log_prob.requires_grad or not (learns and mask.any()), log_prob, "a tensor with a gradient", f"{name} log_prob")
        call.tensor(own.entropy, f"{name} entropy", "float32 or float64", *mask.shape, device=mask.device)
        if features:
            call.tensor(own.features, f"{name} features", "float", *mask.shape, getattr(policy, "features", "H"))
        if own.mean is not None or own.std is not None:
            call.tensor(own.std, f"{name} std", "float", *mask.shape)
            shape = [f"N{i}" for i in range(own.mean.dim() - 2)] if isinstance(own.mean, Tensor) else ["…"]
            call.tensor(own.mean, f"{name} mean", "float", *mask.shape, *shape)
    return stats  # type: ignore[no-any-return]


def call_supervised_loss(policy: Policy, module: nn.Module, examples: Sequence[Example], *, seed: int) -> Loss:
    """The loss of stage one on some examples."""
    call = Call("policy", policy, "supervised_loss")
    with call.told():
        loss = policy.supervised_loss(module, examples, seed=seed)
    call.need(isinstance(loss, Loss), loss, "a Loss")
    call.need(
        isinstance(loss.sums, Mapping) and {*loss.sums} & {PLAN, IMAGE} != set(), loss.sums, "a scalar for plan, image or both", "sums"
    )
    call.loss(loss, list(loss.sums), learns=True)
    return loss


def call_save(policy: Policy, folder: Path, *, adapter: bool = False) -> None:
    """Lets a policy write its whole model, or its trained adapters alone. Errors of files go through."""
    save = "save_adapter" if adapter else "save"
    with Call("policy", policy, save).told(OSError, SafetensorError):
        getattr(policy, save)(folder)


def call_score(judge: RewardJudge, samples: Sequence[Sample], names: Sequence[str]) -> dict[str, list[float]]:
    """A judge's scores by name, one per sample, each in [0,1] or NaN."""
    call = Call("judge", judge, "score")
    with call.told():
        scores = judge.score(samples, names)
    return call.numbers(scores, names, len(samples), unit=True)


def call_judge(
    judge: RewardJudge, samples: Sequence[Sample], names: Sequence[str]
) -> tuple[dict[str, list[float]], dict[str, list[Words]]]:
    """A judge's scores as :func:`call_score` returns them, and its words by name, one for each sample; empty where it says none."""
    if not isinstance(judge, ExplainingJudge):
        return call_score(judge, samples, names), {name: [Words()] * len(samples) for name in names}
    call = Call("judge", judge, "score_with_words")
    with call.told():
        answer = judge.score_with_words(samples, names)
    call.need(isinstance(answer, tuple) and len(answer) == 2, answer, "a pair: scores by name, and words by name")
    scores, said = answer
    call.need(isinstance(said, Mapping), said, "a mapping of words by name", "the second")
    words = {}
    for name in names:
        listed = call.items(said.get(name, [None] * len(samples)), Words | None, "Words, or None", f"words[{name!r}]", count=len(samples))
        words[name] = [Words() if each is None else call.words(each, f"words[{name!r}][{i}]") for i, each in enumerate(listed)]
    return call.numbers(scores, names, len(samples), unit=True), words


def call_counts(kind: str, component: object) -> dict[str, float]:
    """What a judge or planner has counted so far, by name; nothing if it does not count."""
    if not isinstance(component, Metered):
        return {}
    call = Call(kind, component, "counts")
    with call.told():
        counts = component.counts()
    call.need(isinstance(counts, Mapping) and all(isinstance(name, str) for name in counts), counts, "a mapping of numbers by name")
    return {name: column[0] for name, column in call.numbers({name: [n] for name, n in counts.items()}, None, 1).items()}


def call_join_run(kind: str, component: object, folder: Path, name: str) -> None:
    """Tells a judge or planner which run it works for, if it wants to know."""
    if isinstance(component, RunMember):
        with Call(kind, component, "join_run").told(OSError):
            component.join_run(folder, name=name)


def call_prompts(source: PromptSource, split: str, count: int, seed: int, start: int = 0) -> Sequence[Prompt]:
    """``count`` prompts of a source's split, from number ``start`` on."""
    call = Call("source", source, "prompts")
    with call.told():
        prompts = source.prompts(split, count, seed, start)
    call.prompts(prompts, count)
    return prompts


def call_examples(source: PromptSource, split: str, start: int, count: int, seed: int) -> Sequence[Example]:
    """The examples ``start`` to ``start + count`` of a source's split."""
    call = Call("source", source, "examples")
    with call.told():
        examples = source.examples(split, start, count, seed)
    for i, example in enumerate(call.items(examples, Example, "an Example", count=count)):
        call.need(isinstance(example.chain, Chain), example.chain, "a Chain", f"[{i}].chain")
        call.need(isinstance(example.image, Image | None), example.image, "a picture of PIL, or None", f"[{i}].image")
    call.prompts([example.prompt for example in examples], count)
    return examples


def call_benchmark(benchmark: Benchmark, count: int | None) -> Sequence[Prompt]:
    """A benchmark's prompts, or the first ``count``."""
    call = Call("benchmark", benchmark, "prompts")
    with call.told():
        prompts = benchmark.prompts(count)
    call.prompts(prompts, None)
    call.need(len(prompts) > 0 and (count is None or len(prompts) <= count), prompts, f"1 to {count or 'all'} prompts")
    return prompts


def call_measure(benchmark: Benchmark, samples: Sequence[Sample]) -> dict[str, list[float]]:
    """What a benchmark measures, by name one number per sample; NaN where there is none."""
    call = Call("benchmark", benchmark, "measure")
    with call.told():
        table = benchmark.measure(samples)
    call.need(not isinstance(table, Mapping) or len(table) > 0, table, "at least one name with its numbers")
    return call.numbers(table, None, len(samples))
