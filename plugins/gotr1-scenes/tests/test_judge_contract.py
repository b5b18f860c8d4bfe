"""The exact judge passes the conformance suite with exact equality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from gotr1_core.samples import Prompt, Sample
from gotr1_scenes.judge import REWARDS, ScenesJudge
from gotr1_testing import JudgeContract
from gotr1_testing.judges import JudgeSubject, same_in_any_batch, same_in_any_order, shape_samples


class TestScenesJudge(JudgeContract):
    @pytest.fixture
    def judge(self) -> ScenesJudge:
        return ScenesJudge()

    @pytest.fixture
    def unscorable(self) -> Mapping[str, Sequence[Sample]]:
        """A prompt that the judge does not understand."""
        mystery = [replace(sample, prompt=Prompt("the quick brown fox")) for sample in shape_samples()]
        return dict.fromkeys(REWARDS, mystery)


def test_it_knows_the_suites_scenes() -> None:
    """Some are right and some wrong, so that the contract compares scores that differ."""
    scores = JudgeSubject(ScenesJudge()).score()
    assert scores["plan_right"] == [1, 0, 0, 1, 0, 1]
    assert scores["correct"] == [1, 0, 0, 1, 0, 0]
    assert len(set(scores["ri"])) > 2


def test_it_computes_exactly() -> None:
    for check in (same_in_any_batch, same_in_any_order):
        assert check(JudgeSubject(ScenesJudge())).value == 0
