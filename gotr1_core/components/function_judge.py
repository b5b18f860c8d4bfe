"""A judge made of one function: ``@judge(rewards={"brightness": "image"})`` above ``def brightness(sample)``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import FunctionType
from typing import TYPE_CHECKING, Any, TypeVar

from gotr1_core.border.contract import Call
from gotr1_core.errors import UsageError
from gotr1_core.hookspecs import Component

if TYPE_CHECKING:
    from gotr1_core.samples import Sample, SegmentName

Function = TypeVar("Function", bound=Callable[..., Any])


def judge(rewards: Mapping[str, SegmentName], *, name: str | None = None, batch: bool = False) -> Callable[[Function], Function]:
    """Registers a function as a judge, and returns the function unchanged.

    The module that defines the function is the plugin. It needs no ``gotr1_components``.

    The function returns a number in [0,1], and with ``batch`` a list of numbers, one per sample. NaN means that there is no score.
    A function with several rewards returns a mapping from each name to its number, or list of numbers.
    Plan rewards and image rewards are asked for in separate calls. For image rewards, a sample without a picture gets NaN, and the
    function does not see it.

    Args:
        rewards: the names of the scores, and what the function must see for each: ``"plan"`` or ``"image"``.
        name: the judge's name. The default is the function's name with ``-`` in place of ``_``.
        batch: False: the function takes one :class:`Sample`. True: it takes a list of them.

    Raises:
        UsageError: no rewards, a stage that is neither plan nor image, or an object that is no function at the top of a module.
    """
    if not isinstance(rewards, Mapping) or not rewards:
        raise UsageError("@judge does not say what the function scores", hint='write @judge(rewards={"brightness": "image"})')
    for reward, stage in rewards.items():
        if stage not in ("plan", "image"):
            raise UsageError(f"@judge: the reward {reward!r} needs {stage!r}", hint="write 'plan' or 'image'")

    def register(function: Function) -> Function:
        if not isinstance(function, FunctionType) or not function.__qualname__.isidentifier():
            hint = "put it above def NAME(sample), outside classes and functions"
            raise UsageError("@judge needs a function at the top of the file", hint=hint)
        offered = dict(rewards)

        class FunctionJudge:
            rewards: Mapping[str, SegmentName] = offered

            def __init__(self, options: None) -> None:
                del options

            def score(self, samples: Sequence[Sample], names: Sequence[str]) -> dict[str, list[float]]:
                return _scores(Call("judge", self, "score"), function, offered, batch, samples, names)

        vars(FunctionJudge.score).update(__wrapped__=function)  # errors name the place of the function
        FunctionJudge.__qualname__, FunctionJudge.__module__ = function.__name__, function.__module__
        target, summary = f"{function.__module__}:{function.__name__}.judge", (function.__doc__ or "").strip().partition("\n")[0]
        component = Component("judge", name or function.__name__.replace("_", "-"), target, None, summary)
        vars(function).update(judge=FunctionJudge, gotr1_component=component)
        return function

    return register


def _scores(
    call: Call,
    function: Callable[..., Any],
    rewards: Mapping[str, SegmentName],
    batch: bool,
    samples: Sequence[Sample],
    names: Sequence[str],
) -> dict[str, list[float]]:
    """Calls the function for the rewards of the plan, then for those of the picture. Its exceptions are not caught."""
    scores = {name: [math.nan] * len(samples) for name in names}
    for stage in ("plan", "image"):
        wanted = [name for name in names if rewards[name] == stage]
        rows = [row for row, sample in enumerate(samples) if stage == "plan" or sample.image is not None]
        if not wanted or not rows:
            continue
        given = [samples[row] for row in rows]
        if batch:
            answer = _by_reward(call, function(given), rewards, wanted)
            columns = {name: answer[name] for name in wanted}
        else:
            answers = [_by_reward(call, function(sample), rewards, wanted) for sample in given]
            columns = {name: [answer[name] for answer in answers] for name in wanted}
        for name, values in call.numbers(columns, wanted, len(given), unit=True).items():
            for row, value in zip(rows, values, strict=True):
                scores[name][row] = value
    return scores


def _by_reward(call: Call, answer: Any, rewards: Mapping[str, SegmentName], wanted: Sequence[str]) -> Mapping[str, Any]:
    """The function's answer as a mapping. A function with one reward may return the number itself."""
    if not isinstance(answer, Mapping) and len(rewards) == 1:
        return {wanted[0]: answer}
    fits = isinstance(answer, Mapping) and {*wanted} <= {*answer} <= {*rewards}
    call.need(fits, answer, f"a mapping with its rewards: {', '.join(wanted)}")
    return answer  # type: ignore[no-any-return]
