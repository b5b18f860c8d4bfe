"""Benchmark ``scenes``: held-out prompts of the embedded world, measured by the exact judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gotr1_core.samples import Prompt, Sample
from gotr1_scenes.judge import REWARDS, ScenesJudge
from gotr1_scenes.source import ScenesSource, ScenesSourceOptions


class ScenesBenchmark:
    """The first 300 prompts of the validation split, or as many as asked for."""

    def __init__(self, options: None = None) -> None:
        del options

    def prompts(self, count: int | None = None) -> Sequence[Prompt]:
        """Prompts with their wishes."""
        return ScenesSource(ScenesSourceOptions()).prompts("validation", 300 if count is None else count, 0)

    def measure(self, samples: Sequence[Sample]) -> Mapping[str, Sequence[float]]:
        """Every score of the exact judge."""
        return ScenesJudge().score(samples, list(REWARDS))
