"""Registers the judges of gotr1-judges, the cache of what judges say, and the commands ``gotr1 score`` and ``gotr1 cache``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from gotr1_core.hookspecs import Component, hookimpl

if TYPE_CHECKING:
    import typer

    from gotr1_core.protocols import RewardJudge

JUDGES = {
    "qwen-vl": ("rubric:QwenJudge", "QwenJudgeOptions", "Qwen2.5-VL or Qwen3-VL reads plan and picture: sem, spa, ri, pi"),
    "internvl": ("rubric:InternJudge", "InternJudgeOptions", "InternVL3 reads plan and picture: sem, spa, ri, pi"),
    "detector": ("detector:DetectorJudge", "DetectorOptions", "Grounding DINO or OWLv2 finds the planned objects: ri"),
    "hps": ("preference:HpsJudge", "HpsOptions", "HPS v2.1: how much people like the picture for the prompt"),
    "pickscore": ("preference:PickScoreJudge", "PickScoreOptions", "PickScore: how much people like the picture for the prompt"),
    "clip": ("preference:ClipJudge", "ClipOptions", "CLIPScore: how similar picture and prompt are to a CLIP"),
}


@hookimpl
def gotr1_components() -> Iterator[Component]:
    """Yields the judges of ``JUDGES``."""
    for name, (target, options, summary) in JUDGES.items():
        yield Component("judge", name, f"gotr1_judges.{target}", f"gotr1_judges.options:{options}", summary)


@hookimpl
def gotr1_commands(app: typer.Typer) -> None:
    """Adds ``gotr1 score`` and ``gotr1 cache``."""
    from gotr1_core.cli.options import ComponentCommand
    from gotr1_judges.commands import app as cache
    from gotr1_judges.score_command import score_command

    app.command("score", cls=ComponentCommand, epilog="--judge NAME --help shows the options of NAME.")(score_command)
    app.add_typer(cache, name="cache")


@hookimpl
def gotr1_wrap_judge(judge: RewardJudge, cache: str | None, facts: Callable[[], Mapping[str, Any]]) -> RewardJudge | None:
    """Puts a cache in front of a judge whose scores are kept."""
    from gotr1_judges.cached import wrap

    return wrap(judge, cache, facts)
