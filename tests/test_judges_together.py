"""Several judges that offer the same reward: averaged for whole groups, or named separately in the expression."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from gotr1_core.chain import parse
from gotr1_core.engine.interrupts import Paused
from gotr1_core.engine.score_tally import ScoreTally
from gotr1_core.errors import UsageError
from gotr1_core.judges import Judges, averaged, judge_reward, offers
from gotr1_core.pictures.sample_files import Picture
from gotr1_core.reward import Expression
from gotr1_core.samples import IMAGE, PLAN, Prompt, Sample, SegmentName
from gotr1_core.workflows.judging import score_pictures

nan = math.nan


class Table:
    """A judge with a table of scores by the prompt's text. It records what it was asked."""

    def __init__(self, rewards: Mapping[str, SegmentName], scores: Callable[[str, str], float]) -> None:
        self.rewards, self.scores, self.asked = rewards, scores, list[tuple[str, ...]]()

    def score(self, samples: Sequence[Sample], names: Sequence[str]) -> Mapping[str, Sequence[float]]:
        self.asked.append(tuple(names))
        return {name: [self.scores(name, s.prompt.text) for s in samples] for name in names}


def samples(*groups: str) -> list[Sample]:
    """One sample for every letter; the letters of a word are a group."""
    return [Sample(Prompt(letter), parse(""), None, (i, j, 0)) for i, word in enumerate(groups) for j, letter in enumerate(word)]


def close(found: Sequence[float], wanted: Sequence[float]) -> bool:
    return list(found) == pytest.approx(wanted, nan_ok=True)


def test_averaged() -> None:
    one, other = [0.2, 0.4, 0.6, 0.8], [0.4, 0.8, 1.0, 0.0]
    assert close(averaged([one, other], [0, 0, 1, 1]), [0.3, 0.6, 0.8, 0.4])
    assert close(averaged([one], [0, 0, 1, 1]), one)
    # Who lacks one sample drops out for its whole group, and for no other.
    assert close(averaged([one, [0.4, nan, 1.0, 0.0]], [0, 0, 1, 1]), [0.2, 0.4, 0.8, 0.4])
    assert close(averaged([[0.2, 0.4, math.inf, 0.8], other], [0, 0, 1, 1]), [0.3, 0.6, 1.0, 0.0])
    # Where all lack some, one stands alone: no two samples of a group are scored by different judges.
    assert close(averaged([[0.2, nan, nan, 0.8], [nan, 0.8, 1.0, 0.0]], [0, 0, 0, 0]), [nan, 0.8, 1.0, 0.0])
    assert close(averaged([[0.2, nan], [nan, 0.8]], [0, 0]), [0.2, nan])
    assert close(averaged([[nan, nan], [nan, nan]], [0, 0]), [nan, nan])
    # Groups need not stand together.
    assert close(averaged([one, [0.4, nan, 1.0, 0.0]], [0, 1, 0, 1]), [0.3, 0.4, 0.8, 0.8])


def test_what_judges_offer_together() -> None:
    rewards: dict[str, dict[str, SegmentName]] = {
        "qwen-vl": {"sem": PLAN, "pi": IMAGE},
        "other:internvl": {"pi": IMAGE},
        "hps": {"hps": IMAGE},
    }
    assert offers(rewards) == {"sem": PLAN, "pi": IMAGE, "hps": IMAGE, "qwen-vl.pi": IMAGE, "internvl.pi": IMAGE}
    with pytest.raises(UsageError, match="one of the plan and one of the picture"):
        offers({"one": {"pi": PLAN}, "other": {"pi": IMAGE}})


@pytest.fixture
def pair() -> tuple[Table, Table]:
    """Two judges. The second has no plan score of b and no image score of d."""
    rewards: dict[str, SegmentName] = {"sem": PLAN, "pi": IMAGE}
    lacking = {("sem", "b"), ("pi", "d")}
    return Table(rewards, lambda name, text: 0.5), Table(rewards, lambda name, text: nan if (name, text) in lacking else 0.1)


def test_a_mean_for_whole_groups(pair: tuple[Table, Table]) -> None:
    judges = Judges({"qwen-vl": pair[0], "internvl": pair[1]}, Expression.parse("sem * pi"))
    rows = judges.score(samples("ab", "cd"), PLAN)
    assert close([row["sem"] for row in rows], [0.5, 0.5, 0.3, 0.3])
    assert close([row["internvl.sem"] for row in rows], [0.1, nan, 0.1, 0.1])  # what each said stays known
    assert rows[0].keys() == {"sem", "qwen-vl.sem", "internvl.sem"}
    assert close([row["pi"] for row in judges.score(samples("ab", "cd"), IMAGE)], [0.3, 0.3, 0.5, 0.5])
    assert judges.score([], PLAN) == []


def test_rewards_named_with_their_judge(pair: tuple[Table, Table]) -> None:
    judges = Judges({"qwen-vl": pair[0], "internvl": pair[1]}, Expression.parse("qwen-vl.sem - 2 * internvl.pi"))
    rows = judges.score(samples("ab"), PLAN)
    assert rows == [{"qwen-vl.sem": 0.5}] * 2
    assert judges.settled(rows).tolist() == [False, False]
    rows = [{**row, **more} for row, more in zip(rows, judges.score(samples("ab"), IMAGE), strict=True)]
    assert close(judges.total_rewards(rows).tolist(), [0.3, 0.3])
    assert (pair[0].asked, pair[1].asked) == ([("sem",)], [("pi",)])  # no more than is wanted


def test_a_judges_own_name_settles_a_total(pair: tuple[Table, Table]) -> None:
    blind = Table({"sem": PLAN}, lambda name, text: float(text != "a"))
    judges = Judges({"qwen-vl": pair[0], "blind": blind}, Expression.parse("blind.sem * pi"))
    assert judges.settled(judges.score(samples("ab"), PLAN)).tolist() == [True, False]


def test_names_that_are_accepted_and_listed(pair: tuple[Table, Table]) -> None:
    """A name such as qwen-vl.pi is accepted even if no other judge offers the reward. The list of names then has only the short form."""
    one = Judges({"qwen-vl": pair[0]}, Expression.parse("qwen-vl.pi"))
    assert one.offered().keys() == {"sem", "pi"}
    assert one.score(samples("a"), IMAGE) == [{"qwen-vl.pi": 0.5}]
    with pytest.raises(UsageError, match=r"internvl\.pi") as caught:
        Judges({"qwen-vl": pair[0]}, Expression.parse("internvl.pi"))
    assert caught.value.hint is not None
    assert caught.value.hint.endswith("offered: pi, sem")
    both = Judges({"qwen-vl": pair[0], "internvl": pair[1]}, Expression.parse("pi"), also=frozenset({"internvl.sem"}))
    assert both.offered().keys() == {"sem", "pi", "qwen-vl.sem", "qwen-vl.pi", "internvl.sem", "internvl.pi"}
    assert both.score(samples("a"), PLAN) == [{"internvl.sem": 0.1}]
    assert judge_reward("gotr1-judges:qwen-vl", "pi") == "qwen-vl.pi"


def test_pictures_of_one_prompt_are_a_group(pair: tuple[Table, Table], tmp_path: Path) -> None:
    """Also where judges score files."""
    seen = iter([0.1, nan, 0.1])
    moody = Table({"pi": IMAGE}, lambda name, text: next(seen))
    Image.new("RGB", (4, 4)).save(tmp_path / "one.png")
    pictures = [Picture(tmp_path / "one.png", Prompt(text), None) for text in ("a", "a", "b")]
    found = list(score_pictures({"qwen-vl": pair[0], "moody": moody}, pictures, Expression.parse("pi")))
    assert close([sample.reward for sample in found], [0.5, 0.5, 0.3])
    assert found[0].scores.keys() == {"pi", "qwen-vl.pi", "moody.pi"}


def test_rewards_need_every_name_of_the_expression(pair: tuple[Table, Table]) -> None:
    judges = Judges({"qwen-vl": pair[0], "internvl": pair[1]}, Expression.parse("pi"))
    rewards = judges.total_rewards(judges.score(samples("cd"), IMAGE))
    assert torch.equal(rewards, torch.tensor([0.5, 0.5], dtype=torch.float64))


@pytest.mark.parametrize("need", ["optional", "required", ""])
def test_an_optional_judge_drops_out_for_whole_groups(pair: tuple[Table, Table], need: str) -> None:
    """Alone its scores would be used where it has some. Groups that it could score keep them, and what dropped out is counted."""
    judges = Judges({"internvl": pair[1]}, Expression.parse("sem"), tally=ScoreTally({"internvl": need}))
    found = [row["sem"] for row in judges.score(samples("ab", "cd", "bb"), PLAN)]
    is_out = need == "optional"
    assert close(found, [nan if is_out else 0.1, nan, 0.1, 0.1, nan, nan])
    assert judges.counts() == ({"judge.internvl.dropped_groups": 2.0} if is_out else {})
    accelerator = Accelerator(cpu=True)
    if need == "required":
        with pytest.raises(Paused, match=r"3 of 6 scores internvl.sem could not be had \(nan_limit 0.4\)"):
            judges.tally.require(accelerator, 0.4)
    judges.tally.require(accelerator, 0.4)  # each step is counted on its own
