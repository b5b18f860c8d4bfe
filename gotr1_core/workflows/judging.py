"""Scores pictures that already exist with judges alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from pydantic import Field

from gotr1_core.chain import parse
from gotr1_core.config.models import CACHE, JUDGE_REMINDER, REMINDER, CacheFolder, Files, JudgeList, JudgeReminder, Strict
from gotr1_core.data.pictures import read_picture
from gotr1_core.judges import Judges
from gotr1_core.pictures.sample_files import Picture
from gotr1_core.protocols import RewardJudge
from gotr1_core.reward import Expression
from gotr1_core.samples import IMAGE, PLAN, Sample, Words


class ScoreConfig(Strict):
    """The config of ``gotr1 score``: plugin files, judges and the reward."""

    plugins: Files = Field([])
    judge: JudgeList
    reward: str | None = None
    cache: CacheFolder = CACHE
    judge_reminder: JudgeReminder = REMINDER


def score_pictures(
    judges: Mapping[str, RewardJudge],
    pictures: Sequence[Picture],
    reward: Expression | None,
    batch: int = 64,
    reminder: float = JUDGE_REMINDER,
) -> Iterator[Sample]:
    """Yields every picture as a sample with its scores, without its image: of the image if there is one, of the plan if one is known.

    Without a chain, a score that compares picture and plan is NaN.

    The reward is NaN if a score that it needs is missing, if no expression is given, or for a sample that was not finite.
    Files are read ``batch`` at a time, and no more images than these are in memory. ``reminder`` is that of :class:`Judges`.
    """
    offered = Judges(judges, reward or Expression.parse("0")).offered()
    all_judges = Judges(judges, reward or Expression.parse("0"), also=frozenset(offered), reminder=reminder)
    groups = {text: number for number, text in enumerate(dict.fromkeys(picture.prompt.text for picture in pictures))}
    for start in range(0, len(pictures), batch):
        yield from _score_batch(all_judges, pictures[start : start + batch], groups, rewarded=reward is not None)


def _score_batch(judges: Judges, pictures: Sequence[Picture], groups: Mapping[str, int], *, rewarded: bool) -> Iterator[Sample]:
    """Yields one batch with its scores. When it ends, nothing keeps the images: the next batch is read after that."""
    images = [None if picture.path is None else read_picture(picture.path) for picture in pictures]
    samples = [
        Sample(
            p.prompt, p.chain or parse(""), image, (groups[p.prompt.text], 0, 0), plan_known=p.chain is not None, not_finite=p.not_finite
        )
        for p, image in zip(pictures, images, strict=True)
    ]
    scores: list[dict[str, float]] = [{} for _ in pictures]
    words: list[dict[str, Words]] = [{} for _ in pictures]
    rows_of_stage = {
        PLAN: [i for i, picture in enumerate(pictures) if picture.chain is not None],
        IMAGE: [i for i, picture in enumerate(pictures) if picture.path is not None or picture.not_finite],
    }
    for stage, rows in rows_of_stage.items():
        for i, judgement in zip(rows, judges.judge([samples[i] for i in rows], stage), strict=True):
            scores[i] |= judgement.scores
            words[i] |= judgement.words
    offered = judges.offered()
    with_nan = [{name: row.get(name, float("nan")) for name in offered} for row in scores]
    rewards = judges.total_rewards(with_nan) if rewarded else torch.full((len(pictures),), torch.nan)
    for sample, row, said, total in zip(samples, scores, words, rewards.tolist(), strict=True):
        reward = math.nan if sample.not_finite else total
        yield replace(sample, image=None, scores={name: row[name] for name in offered if name in row}, reward=reward, words=said)
