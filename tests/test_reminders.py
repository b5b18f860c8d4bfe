"""What takes long is named on stderr: a judge that does not return, a benchmark, a large file."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from PIL import Image

from gotr1_core.chain import parse
from gotr1_core.cli.main import call
from gotr1_core.engine.reminders import remind
from gotr1_core.evaluation import measure
from gotr1_core.judges import Judges
from gotr1_core.reward import Expression
from gotr1_core.samples import PLAN, Prompt, Sample, SegmentName

SAMPLE = Sample(Prompt("a"), parse("b"), None)


class SleepyJudge:
    """It waits for as many seconds as it is given."""

    rewards: Mapping[str, SegmentName] = {"sleep": PLAN}

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def score(self, samples: Sequence[Sample], names: Sequence[str]) -> dict[str, list[float]]:
        time.sleep(self.seconds)
        return {name: [1.0] * len(samples) for name in names}


def test_a_judge_that_is_waited_for_is_named_again_and_again(capsys: pytest.CaptureFixture[str]) -> None:
    judges = Judges({"quick": SleepyJudge(0), "slow": SleepyJudge(1.0)}, Expression.parse("sleep"), reminder=0.2)
    assert [row["sleep"] for row in judges.score([SAMPLE], PLAN)] == [1.0]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 2
    assert all(re.fullmatch(r"waiting for the judge 'slow', \d s so far", line) for line in lines)
    time.sleep(0.5)
    assert capsys.readouterr().err == ""  # nobody is waited for now


def test_a_busy_judge_is_named_too_and_its_error_passes(capsys: pytest.CaptureFixture[str]) -> None:
    def compute() -> None:
        with remind(lambda: "computing", every=0.1):
            begun = time.monotonic()
            while time.monotonic() < begun + 0.6:
                pass
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        compute()
    assert "computing, 0 s so far" in capsys.readouterr().err


def test_a_benchmark_that_is_waited_for_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    class Suite:
        def prompts(self, count: int | None = None) -> Sequence[Prompt]:
            return [SAMPLE.prompt]

        def measure(self, samples: Sequence[Sample]) -> Mapping[str, Sequence[float]]:
            return SleepyJudge(0.5).score(samples, ["sleep"])

    assert measure(Suite(), [SAMPLE], reminder=0.1) == {"sleep": [1.0]}
    assert "waiting for the benchmark Suite, 0 s so far" in capsys.readouterr().err


PLUGIN = """
import time
from gotr1_core import judge

@judge(rewards={"sleep": "plan"})
def sleepy(sample):
    time.sleep(0.3)
    return 0.5
"""


def test_a_run_says_which_judge_it_waits_for(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (toy / "sleepy.py").write_text(PLUGIN)
    words = ["--preset", "toy", "--plugin", "sleepy.py", "--judge", "sleepy", "reward=sleep", "judge_reminder=0.1", "steps=1"]
    call(["train", "--cpu", *words, "groups=1", "plans=2", "prompts.held_out=1", "evaluation.prompts=1"])
    assert "waiting for the judge 'sleepy', 0 s so far" in capsys.readouterr().err
    for seconds in ("0", "-1", "inf", "1e10"):
        assert call(["train", "--preset", "toy", f"judge_reminder={seconds}"]) == 2
        assert "judge_reminder" in capsys.readouterr().err


SLEEPY = """
import time
from gotr1_core.hookspecs import Component, hookimpl


class Judge:
    rewards = {"sleep": "image"}

    def __init__(self, options, *, device):
        pass

    def score(self, samples, names):
        time.sleep(0.7)
        return {name: [1.0] * len(samples) for name in names}


@hookimpl
def gotr1_components():
    yield Component("judge", "sleepy", f"{__name__}:Judge", None, "sleeps")
"""


@pytest.mark.parametrize("words", [["score", "picture.png", "--prompt", "a cat"], ["evaluate", "--benchmark=toy", "--preset=toy"]])
def test_score_and_evaluate_name_a_judge_too(
    words: list[str], toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    del toy  # registers the preset
    monkeypatch.chdir(tmp_path)
    Path("sleepy_judge.py").write_text(SLEEPY)
    Image.new("RGB", (8, 8)).save("picture.png")
    assert call([*words, "--judge", "sleepy", "--plugin", "sleepy_judge.py", "judge_reminder=0.2"]) == 0
    assert "waiting for the judge 'sleepy', 0 s so far" in capsys.readouterr().err
    assert call([*words, "--judge", "sleepy", "--plugin", "sleepy_judge.py", "judge_reminder=0"]) == 2
    assert "judge_reminder" in capsys.readouterr().err
