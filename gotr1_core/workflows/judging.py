"""Scores pictures that already exist with judges alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from pydantic import Field

from gotr1_core.chain import parse
from gotr1_core.config.models import Files, JudgeList, Strict
from gotr1_core.data.pictures import read_picture
from gotr1_core.judges import Judges
from gotr1_core.pictures.sample_files import Picture
from gotr1_core.protocols import RewardJudge
from gotr1_core.reward import Expression
from gotr1_core.samples import IMAGE, PLAN, Sample


class ScoreConfig(Strict):
    """The config of ``gotr1 score``: plugin files, judges and the reward."""

    plugins: Files = Field([])
    judge: JudgeList
    reward: str | None = None


def score_pictures(
    judges: Mapping[str, RewardJudge], pictures: Sequence[Picture], reward: Expression | None, batch: int = 64
) -> Iterator[Sample]:
    """Yields every picture as a sample with its scores: scores of the image if there is one, scores of the plan if one is known.

    Without a chain, a score that compares picture and plan sees an empty plan.

    The reward is NaN if a score that it needs is missing, or if no expression is given. Files are read ``batch`` at a time.
    """
    offered = Judges(judges, reward or Expression.parse("0")).offered()
    all_judges = Judges(judges, reward or Expression.parse("0"), also=frozenset(offered))
    groups = {text: number for number, text in enumerate(dict.fromkeys(picture.prompt.text for picture in pictures))}
    for start in range(0, len(pictures), batch):
        chunk = pictures[start : start + batch]
        images = [None if picture.path is None else read_picture(picture.path) for picture in chunk]
        samples = [
            Sample(picture.prompt, picture.chain or parse(""), image, (groups[picture.prompt.text], 0, 0))
            for picture, image in zip(chunk, images, strict=True)
        ]
        scores: list[dict[str, float]] = [{} for _ in chunk]
        rows_of_stage = {
            PLAN: [i for i, picture in enumerate(chunk) if picture.chain is not None],
            IMAGE: [i for i, picture in enumerate(chunk) if picture.path is not None],
        }
        for stage, rows in rows_of_stage.items():
            for i, stage_scores in zip(rows, all_judges.score([samples[i] for i in rows], stage), strict=True):
                scores[i] |= stage_scores
        with_nan = [{name: row.get(name, float("nan")) for name in offered} for row in scores]
        rewards = all_judges.total_rewards(with_nan) if reward else torch.full((len(chunk),), torch.nan)
        for sample, row, total in zip(samples, scores, rewards.tolist(), strict=True):
            yield replace(sample, scores={name: row[name] for name in offered if name in row}, reward=total)
