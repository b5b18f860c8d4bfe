"""Benchmark ``scenes``: held-out prompts of the embedded world, scored by the exact judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gotr1_core.samples import Prompt, Sample
from gotr1_scenes.judge import REWARDS, ScenesJudge
from gotr1_scenes.source import ScenesSource, ScenesSourceOptions


class ScenesBenchmark:
    """The first prompts of the validation split: 300, or as many as asked for."""

    def __init__(self, options: None = None) -> None:
        del options

    def prompts(self, count: int | None = None) -> Sequence[Prompt]:
        """Returns the first ``count`` prompts, with their wishes as metadata."""
        return ScenesSource(ScenesSourceOptions()).prompts("validation", 300 if count is None else count, 0)

    def measure(self, samples: Sequence[Sample]) -> Mapping[str, Sequence[float]]:
        """Returns all scores of the exact judge by reward, a value in [0,1] or NaN for each sample."""
        return ScenesJudge().score(samples, list(REWARDS))
