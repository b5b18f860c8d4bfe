"""Judges alone: scores of pictures that are there already."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from pydantic import Field

from gotr1_core.chain import parse
from gotr1_core.config.models import Files, Strict
from gotr1_core.config.models import JudgeList as JudgeList
from gotr1_core.judges import Judges
from gotr1_core.pictures.sample_files import Picture, read_picture
from gotr1_core.protocols import RewardJudge
from gotr1_core.reward import Expression
from gotr1_core.samples import IMAGE, PLAN, Sample


class ScoreConfig(Strict):
    """What scores."""

    plugins: Files = Field([])
    judge: JudgeList
    reward: str | None = None


def score(judges: Mapping[str, RewardJudge], pictures: Sequence[Picture], reward: Expression | None, batch: int = 64) -> Iterator[Sample]:
    """Every picture with its scores: of the picture where there is one, of the plan where one is known.

    Without a chain, a score that compares picture and plan is that of an empty plan. ``reward`` is NaN where it cannot be had.
    """
    offered = Judges(judges, reward or Expression.parse("0")).offered()
    asked = Judges(judges, reward or Expression.parse("0"), also=frozenset(offered))
    groups = {text: number for number, text in enumerate(dict.fromkeys(picture.prompt.text for picture in pictures))}
    for start in range(0, len(pictures), batch):
        part = pictures[start : start + batch]
        read = [None if p.path is None else read_picture(p.path) for p in part]
        samples = [
            Sample(p.prompt, p.chain or parse(""), image, (groups[p.prompt.text], 0, 0)) for p, image in zip(part, read, strict=True)
        ]
        found: list[dict[str, float]] = [{} for _ in part]
        chosen = {
            PLAN: [i for i, picture in enumerate(part) if picture.chain is not None],
            IMAGE: [i for i, picture in enumerate(part) if picture.path is not None],
        }
        for stage, rows in chosen.items():
            for i, scores in zip(rows, asked.score([samples[i] for i in rows], stage), strict=True):
                found[i] |= scores
        whole = [{name: scores.get(name, float("nan")) for name in offered} for scores in found]
        rewards = asked.total_rewards(whole) if reward else torch.full((len(part),), torch.nan)
        for sample, scores, total in zip(samples, found, rewards.tolist(), strict=True):
            yield replace(sample, scores={name: scores[name] for name in offered if name in scores}, reward=total)
