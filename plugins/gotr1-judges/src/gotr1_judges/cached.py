"""A judge in front of another one, which keeps on disk what that one said."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gotr1_core.border.calls import call_counts, call_judge
from gotr1_core.engine.console import print
from gotr1_core.protocols import CacheableJudge, RewardJudge, RunMember
from gotr1_core.samples import IMAGE, Sample, SegmentName, Words
from gotr1_judges.cache import ScoreCache, user_folder

if TYPE_CHECKING:
    from PIL.Image import Image

KEYS = 1  # of how keys are made; another number finds nothing that was kept before


class CachedJudge:
    """Asks a judge only about samples that are not in the cache. Scores that are NaN are not kept: the judge is asked again.

    Args:
        judge: the judge to ask.
        cache: what it said before.
        facts: what its scores depend on besides the sample, as JSON.
    """

    def __init__(self, judge: RewardJudge, cache: ScoreCache, facts: Mapping[str, Any]) -> None:
        self.judge, self.cache = judge, cache
        self.rewards: Mapping[str, SegmentName] = judge.rewards
        self.name = str(facts.get("name", type(judge).__name__))
        self._facts = json.dumps([KEYS, facts], sort_keys=True, default=str)
        self._asked = self._hits = 0
        if isinstance(judge, RunMember):  # from Python 3.12 on, a protocol does not see what __getattr__ gives
            self.join_run = judge.join_run

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["judge"], name)

    def score(self, samples: Sequence[Sample], names: Sequence[str]) -> dict[str, list[float]]:
        """Returns the judge's scores, see its own function."""
        return self.score_with_words(samples, names)[0]

    def score_with_words(self, samples: Sequence[Sample], names: Sequence[str]) -> tuple[dict[str, list[float]], dict[str, list[Words]]]:
        """Returns the judge's scores and words, from the cache where it has them. Samples that are alike are asked about once."""
        seen = {stage: [self._sample_key(sample, stage) for sample in samples] for stage in {self.rewards[name] for name in names}}
        keys = {name: [_digest(name, key) for key in seen[self.rewards[name]]] for name in names}
        known = {key: verdict for key, row in self.cache.read(_different(keys)).items() if (verdict := _from_row(row)) is not None}
        self._asked += len(samples) * len(names)
        self._hits += sum(key in known for column in keys.values() for key in column)
        fresh: dict[str, tuple[float, Words]] = {}
        for missing, rows in self._open(keys, known).items():
            scores, words = call_judge(self.judge, [samples[row] for row in rows], list(missing))
            fresh |= {keys[name][row]: (scores[name][i], words[name][i]) for name in missing for i, row in enumerate(rows)}
        lasting = {key: _as_row(*verdict) for key, verdict in fresh.items() if not math.isnan(verdict[0])}
        self.cache.write(lasting, judge=self.name)
        all_known = known | fresh
        columns = {name: [all_known[key] for key in column] for name, column in keys.items()}
        return {n: [score for score, _ in c] for n, c in columns.items()}, {n: [words for _, words in c] for n, c in columns.items()}

    def counts(self) -> dict[str, float]:
        """Returns what the judge counts, the scores that were asked for, and those that the cache had."""
        return {**call_counts("judge", self.judge), "cache_asked": self._asked, "cache_hits": self._hits}

    @staticmethod
    def _open(keys: Mapping[str, Sequence[str]], known: Mapping[str, Any]) -> dict[tuple[str, ...], list[int]]:
        """Returns the rows to ask about, by the names of the scores that they lack."""
        asked = set(known)
        rows: dict[tuple[str, ...], list[int]] = {}
        for row in range(len(next(iter(keys.values()), ()))):
            missing = tuple(name for name in keys if keys[name][row] not in asked)
            asked |= {keys[name][row] for name in missing}
            if missing:
                rows.setdefault(missing, []).append(row)
        return rows

    def _sample_key(self, sample: Sample, stage: SegmentName) -> str:
        """Returns a text that two samples share only if no judge can tell them apart in this stage."""
        prompt, chain = sample.prompt, sample.chain.raw if sample.plan_known else None
        picture = _picture_digest(sample.image) if stage == IMAGE and sample.image is not None else None
        facts = [prompt.text, prompt.category, dict(prompt.metadata), chain, picture]
        return self._facts + json.dumps(facts, sort_keys=True, default=str)


def wrap(judge: RewardJudge, cache: str | None, facts: Callable[[], Mapping[str, Any]]) -> RewardJudge | None:
    """Returns the judge with a cache in front of it, or None if its scores are not kept.

    Args:
        judge: the judge.
        cache: a folder, or None: the user's folder, for a judge that says so.
        facts: what its scores depend on, as far as its options tell.
    """
    own = judge.cache_key() if isinstance(judge, CacheableJudge) else {}
    if own is None or (cache is None and not (isinstance(judge, CacheableJudge) and judge.cached)):
        if cache is None:
            return None
        print("note: the scores of a judge whose answers are sampled are not kept", file=sys.stderr)
        return judge
    return CachedJudge(judge, ScoreCache(Path(cache) if cache is not None else user_folder()), {**facts(), "key": own})


def _different(keys: Mapping[str, Sequence[str]]) -> list[str]:
    return list(dict.fromkeys(key for column in keys.values() for key in column))


def _digest(*texts: str) -> str:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def _picture_digest(image: Image) -> str:
    if image.mode == "P":  # its bytes are numbers of a palette
        image = image.convert("RGBA")
    return hashlib.sha256(f"{image.mode}{image.size}".encode() + image.tobytes()).hexdigest()


def _as_row(score: float, words: Words) -> dict[str, Any]:
    return {"score": score, **({"words": said} if (said := words.as_json()) else {})}


def _from_row(row: Any) -> tuple[float, Words] | None:
    """Returns score and words of a row; None for one that this program cannot have written."""
    try:
        score, said = float(row["score"]), dict(row.get("words", {}))
        boxes = {phrase: [(b[0], b[1], b[2], b[3]) for b in found] for phrase, found in said.pop("boxes", {}).items()}
        return (score, Words(**said, boxes=boxes)) if 0 <= score <= 1 else None
    except (TypeError, ValueError, KeyError, IndexError, AttributeError):
        return None
