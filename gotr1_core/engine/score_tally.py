"""Counts the scores that judges were asked for: too many missing ones of a required judge pause a run, and an optional one drops out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from accelerate import Accelerator

from gotr1_core.engine.collectives import gather_objects
from gotr1_core.engine.interrupts import Paused
from gotr1_core.samples import Sample

REQUIRED, OPTIONAL = "required", "optional"


@dataclass(frozen=True)
class ScoreTally:
    """Counts scores by ``JUDGE.NAME`` and what became of them. ``needs`` says by judge whether it is required or optional."""

    needs: Mapping[str, str] = field(default_factory=dict)
    counts: dict[str, Counter[str]] = field(default_factory=lambda: {"asked": Counter(), "missing": Counter(), "dropped": Counter()})

    def count(self, judge: str, name: str, scores: list[float], samples: Sequence[Sample]) -> list[float]:
        """Counts scores of one judge and returns them; those of an optional judge without the groups for which it drops out."""
        need, score = self.needs.get(judge), f"{judge}.{name}"
        if need == OPTIONAL:
            scores, groups = dropped_out(scores, [sample.lineage[0] for sample in samples])
            self.counts["dropped"][judge] += groups
        if need == REQUIRED:
            self.counts["asked"][score] += len(scores)
            self.counts["missing"][score] += sum(map(math.isnan, scores))
        return scores

    def dropped_groups(self) -> dict[str, float]:
        """For how many groups each optional judge has dropped out so far, as ``judge.LABEL.dropped_groups``."""
        optional = [judge for judge, need in self.needs.items() if need == OPTIONAL]
        return {f"judge.{judge}.dropped_groups": float(self.counts["dropped"][judge]) for judge in optional}

    def require(self, accelerator: Accelerator, limit: float) -> None:
        """Checks every score of required judges that was asked for since the last call. Every process must call it.

        Raises:
            Paused: more than the fraction ``limit`` of a score is missing, over all processes.
        """
        processes = gather_objects(accelerator, {what: dict(self.counts[what]) for what in ("asked", "missing")})
        for what in ("asked", "missing"):
            self.counts[what].clear()
        for score in sorted({name for counts in processes for name in counts["asked"]}):
            asked, missing = (sum(counts[what].get(score, 0) for counts in processes) for what in ("asked", "missing"))
            if missing > limit * asked:
                message = f"missing rewards: {missing} of {asked} scores {score} could not be had (nan_limit {limit:g})"
                raise Paused(message, hint="check the judge and its server, raise nan_limit, or let the judge drop out: need=optional")


def dropped_out(scores: Sequence[float], groups: Sequence[int]) -> tuple[list[float], int]:
    """Scores of a judge that is optional: where it lacks one of a group, it has none of the group. Also returns how many groups it lacks.

    Args:
        scores: one for each sample, NaN where there is none.
        groups: the group of each sample.
    """
    out = {group for score, group in zip(scores, groups, strict=True) if math.isnan(score)}
    return [math.nan if group in out else score for score, group in zip(scores, groups, strict=True)], len(out)
