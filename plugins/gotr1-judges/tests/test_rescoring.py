"""``gotr1 score --run``: a run's samples are scored again, once each, and two judges are compared."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw
from scipy.stats import kendalltau

from gotr1_core.chain import parse
from gotr1_core.cli.main import call
from gotr1_core.config.models import RunConfig, dump, validate
from gotr1_core.pictures.sample_files import write_samples
from gotr1_core.samples import Prompt, Sample
from gotr1_judges.agreement import agreement

Captured = pytest.CaptureFixture[str]
nan = math.nan
JUDGE = """
from pathlib import Path

from gotr1_core import judge

ASKED = Path(__file__).with_suffix(".asked")


@judge(rewards={"pi": "image", "red": "image"})
def redness(sample):
    with ASKED.open("a") as file:
        print(sample.prompt.text, file=file)
    (red, _, _) = sample.image.convert("RGB").resize((1, 1)).getpixel((0, 0))
    return {"pi": red / 255 if sample.prompt.text != "unscored" else float("nan"), "red": 1.0}
"""


def test_tau_is_that_of_scipy() -> None:
    random.seed(0)
    for size, steps in ((2, 9), (7, 3), (40, 5), (60, 1000)):
        a, b = ([random.randrange(steps) / steps for _ in range(size)] for _ in range(2))
        b = [x if random.random() < 0.5 else y for x, y in zip(a, b, strict=True)]
        found = agreement(a, b, range(size), range(size)).tau
        assert found.mean == pytest.approx(kendalltau(a, b).statistic, nan_ok=True)
        assert found.count == size


def test_the_interval_of_tau_is_that_of_resamples_of_prompts() -> None:
    """Against a bootstrap that repeats the samples themselves."""
    random.seed(1)
    prompts = [i // 4 for i in range(80)]
    a = [random.random() for _ in prompts]
    b = [x + random.gauss(0, 0.4) for x in a]
    found = agreement(a, b, prompts, prompts).tau
    taus = []
    for _ in range(1000):
        rows = [4 * random.randrange(20) + k for _ in range(20) for k in range(4)]
        rows = [4 * (row // 4) + k for row in rows[::4] for k in range(4)]
        taus.append(kendalltau([a[i] for i in rows], [b[i] for i in rows]).statistic)
    taus.sort()
    assert found.low == pytest.approx(taus[25], abs=0.04)
    assert found.high == pytest.approx(taus[975], abs=0.04)
    assert found.low < found.mean < found.high


def test_the_order_of_a_prompts_samples() -> None:
    first = [0.1, 0.2, 0.3, 0.5, 0.5, 0.9, 0.1]
    second = [0.2, 0.1, 0.3, 0.1, 0.9, 0.9, nan]
    found = agreement(first, second, "aaabbbb", "aaabbbb").order
    # a: two of three pairs. b: the two that are equal for the first judge do not count; of the others one is tied, one in order.
    assert (found.mean, found.count) == (pytest.approx((2 / 3 + 0.75) / 2), 2)


def test_what_cannot_be_compared() -> None:
    empty = agreement([], [], [], [])
    assert math.isnan(empty.tau.mean)
    assert empty.order.count == 0
    equal = agreement([0.5, 0.5], [0.1, 0.2], "ab", "ab")
    assert math.isnan(equal.tau.mean)
    one = agreement([0.1, 0.2], [0.1, 0.2], "aa", "aa")
    assert one.tau.mean == 1.0
    assert math.isnan(one.tau.low)  # one prompt does not tell how others would do
    assert agreement([0.1, nan, 0.3], [nan, 0.1, 0.2], "abc", "abc").tau.count == 1


def picture(red: int) -> Image.Image:
    image = Image.new("RGB", (48, 48), "black")
    ImageDraw.Draw(image).rectangle((0, 0, 47, 47), fill=(red, 0, 0))
    return image


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    config = validate(RunConfig, {"planner": "x", "renderer": "x", "judge": "x"})
    for name, texts in (("step-000001", ["a", "a", "b", "b"]), ("held-out-after", ["c", "unscored"])):
        samples = [
            Sample(
                Prompt(text, str(i)), parse("x"), picture(20 * i), (i // 2, i % 2, 0), {"pi": i / 10, "mine.pi": -i / 10, "other": 0.5}, 0.5
            )
            for i, text in enumerate(texts)
        ]
        samples.append(Sample(Prompt("undrawn"), parse("x"), None, (9, 0, 0), {}, 0.0))
        write_samples(folder / "samples" / name, samples)
    (folder / "config.yaml").write_text(dump(config))
    (tmp_path / "redness.py").write_text(JUDGE)
    return folder


def asked(run: Path) -> list[str]:
    file = run.parent / "redness.asked"
    texts = file.read_text().split() if file.is_file() else []
    file.unlink(missing_ok=True)
    return texts


def score(run: Path, capsys: Captured, *words: str) -> Any:
    line = ["score", "--run", str(run), "--judge", "redness", "--plugin", str(run.parent / "redness.py"), "--json", *words]
    assert call(line) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_samples_are_scored_again_and_compared(run: Path, capsys: Captured) -> None:
    found, backwards = score(run, capsys)
    assert (found["judge"], found["score"], found["missing"]) == ("redness", "pi", 1)
    assert (backwards["score"], backwards["missing"], backwards["tau"]["mean"]) == ("mine.pi", 1, pytest.approx(-1.0))  # one judge's own
    assert backwards["order"]["mean"] == 0.0
    assert found["tau"]["mean"] == pytest.approx(1.0)
    assert found["tau"]["count"] == 5  # without the one that could not be scored
    assert (found["order"]["mean"], found["order"]["count"]) == (1.0, 2)
    assert sorted(asked(run)) == ["a", "a", "b", "b", "c", "unscored"]
    assert call(["score", "--run", str(run), "--judge", "redness", "--plugin", str(run.parent / "redness.py")]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split("  ")[0].strip() == "judge"
    assert "+1.000" in table[-2]
    assert "-1.000" in table[-1]


def test_it_goes_on_where_it_stopped(run: Path, capsys: Captured) -> None:
    score(run, capsys)
    asked(run)
    file = run / "rescored" / "redness.jsonl"
    before = file.read_text()
    score(run, capsys)
    assert asked(run) == ["unscored"]  # a missing score is asked for again
    lines = before.splitlines(keepends=True)
    file.write_text("".join(lines[:-3]) + lines[-3][:20])  # killed while it wrote
    found = score(run, capsys)
    assert len(asked(run)) == 3
    assert found[0]["tau"]["count"] == 5
    assert sorted(file.read_text().splitlines()) == sorted(before.splitlines())


def test_a_sample_that_changed_is_asked_again(run: Path, capsys: Captured) -> None:
    score(run, capsys)
    asked(run)
    picture(255).save(run / "samples" / "step-000001" / "001.png")
    score(run, capsys)
    assert sorted(asked(run)) == ["a", "unscored"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--run", "RUN", "x.png"], "IMAGE cannot be combined with --run"),
        (["--run", "RUN", "--prompt", "a"], "--prompt cannot be combined with --run"),
        (["--run", "elsewhere"], "elsewhere is not a run"),
        (["--run", "EMPTY"], "has no saved samples"),
    ],
)
def test_what_cannot_be_scored_again(words: list[str], message: str, run: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent)
    empty = run.parent / "empty"
    empty.mkdir()
    (empty / "config.yaml").write_text((run / "config.yaml").read_text())
    words = [{"RUN": str(run), "EMPTY": str(empty)}.get(word, word) for word in words]
    assert call(["score", *words, "--judge", "scenes"]) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert message in error
    assert hint.startswith("hint: ")


def test_other_options_need_another_name(run: Path, capsys: Captured) -> None:
    (run / "rescored").mkdir()
    (run / "rescored" / "scenes.jsonl").write_text('{"judge": {"name": "scenes", "old": 1}}\n')
    assert call(["score", "--run", str(run), "--judge", "scenes"]) == 2
    assert "other options" in capsys.readouterr().err


def test_a_judge_with_other_scores_has_nothing_to_compare(run: Path, capsys: Captured) -> None:
    (run.parent / "other.py").write_text(JUDGE.replace("redness", "blueness").replace('"pi"', '"rosy"'))
    assert call(["score", "--run", str(run), "--judge", "blueness", "--plugin", str(run.parent / "other.py")]) == 1
    assert "no score" in capsys.readouterr().err
