"""What judges say beside their numbers: who may say what, where it goes, and that nobody reads it as markup."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gotr1_core.border.calls import call_counts, call_judge
from gotr1_core.border.contract import LONGEST_WORDS, ContractError
from gotr1_core.chain import parse
from gotr1_core.cli.main import call
from gotr1_core.config.models import RunConfig, dump, validate
from gotr1_core.doctor.rules import RULES, Finding, add_examples
from gotr1_core.judges import Judges
from gotr1_core.pictures.sample_files import Picture, write_samples
from gotr1_core.reward import Expression
from gotr1_core.runs.report import write_report
from gotr1_core.samples import IMAGE, Prompt, Sample, SegmentName, Words
from gotr1_core.workflows.judging import score_pictures

SAID = Words("<b>8/10</b>", "it is red", {"red circle": [(0.0, 0.25, 0.5, 1 / 3)]})
LOST = Words("I can't help with that", problem="unreadable")


@dataclass
class Speaks:
    """A judge whose words are given by the prompt's text."""

    words: Mapping[str, Any]
    rewards: Mapping[str, SegmentName]
    counted: Any = None

    def score(self, samples: Sequence[Sample], names: Sequence[str]) -> Mapping[str, Sequence[float]]:
        return {name: [math.nan if s.prompt.text == "lost" else 0.5 for s in samples] for name in names}

    def score_with_words(self, samples: Sequence[Sample], names: Sequence[str]) -> Any:
        return self.score(samples, names), {name: [self.words.get(s.prompt.text) for s in samples] for name in names}

    def counts(self) -> Any:
        return self.counted


def judge(**words: Any) -> Speaks:
    return Speaks({"said": SAID, "lost": LOST, **words}, {"pi": IMAGE})


def sample(text: str, **changed: Any) -> Sample:
    return Sample(Prompt(text), parse("a circle"), Image.new("RGB", (8, 8)), **changed)


def test_words_come_with_the_scores() -> None:
    judged = Judges({"a": judge()}, Expression.parse("pi")).judge([sample("said"), sample("lost"), sample("silent")], IMAGE)
    assert [each.words for each in judged] == [{"pi": SAID}, {"pi": LOST}, {}]
    assert judged[0].scores == {"pi": 0.5}
    lost = Judges({"a": judge()}, Expression.parse("pi")).judge([sample("said", not_finite=IMAGE), sample("said")], IMAGE)
    assert [each.words for each in lost] == [{}, {"pi": SAID}]


def test_words_of_several_judges_are_told_apart() -> None:
    both = Judges({"a": judge(), "b": judge(said=Words(reason="no"))}, Expression.parse("pi"))
    (judged,) = both.judge([sample("said")], IMAGE)
    assert judged.scores == {"pi": 0.5, "a.pi": 0.5, "b.pi": 0.5}
    assert judged.words == {"a.pi": SAID, "b.pi": Words(reason="no")}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("yes", r"returned 'yes' as words\['pi'\]\[0\]; expected Words, or None"),
        (Words(verdict=b"x"), r"as words\['pi'\]\[0\].verdict; expected a text"),  # type: ignore[arg-type]
        (Words(boxes={"x": [(0, 0, 1)]}), "expected 4, each a number"),  # type: ignore[list-item]
    ],
)
def test_words_are_checked(words: Any, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        call_judge(judge(said=words), [sample("said")], ["pi"])


def test_long_words_are_cut_and_can_be_written(tmp_path: Path) -> None:
    _, words = call_judge(judge(said=Words("x" * 9999, "\ud800")), [sample("said")], ["pi"])
    assert len(words["pi"][0].verdict) == LONGEST_WORDS + 1
    write_samples(tmp_path, [sample("said", words={"pi": words["pi"][0]})])
    assert json.loads((tmp_path / "samples.jsonl").read_text())["words"]["pi"]["reason"] == "\\ud800"


def test_a_judge_without_words_says_none() -> None:
    class Silent:
        rewards: Mapping[str, SegmentName] = {"pi": IMAGE}

        def score(self, samples: Sequence[Sample], names: Sequence[str]) -> Mapping[str, Sequence[float]]:
            return {"pi": [0.5 for _ in samples]}

    assert call_judge(Silent(), [sample("said")], ["pi"]) == ({"pi": [0.5]}, {"pi": [Words()]})
    assert call_counts("judge", Silent()) == {}


def test_counts_are_numbers_by_name() -> None:
    assert Judges({"a": Speaks({}, {"pi": IMAGE}, {"requests": 3})}, Expression.parse("pi")).counts() == {"judge.a.requests": 3.0}
    for wrong in (None, {"requests": "3"}, {1: 2}, {"requests": math.inf}):
        with pytest.raises(ContractError, match="counts"):
            call_counts("judge", Speaks({}, {"pi": IMAGE}, wrong))


def test_words_are_in_the_files_of_samples(tmp_path: Path) -> None:
    write_samples(tmp_path, [sample("said", words={"pi": SAID}), sample("silent")])
    first, second = map(json.loads, (tmp_path / "samples.jsonl").read_text().splitlines())
    boxes = {"red circle": [[0.0, 0.25, 0.5, 0.3333]]}
    assert first["words"] == {"pi": {"verdict": "<b>8/10</b>", "reason": "it is red", "boxes": boxes}}
    assert "words" not in second


def test_pictures_that_are_scored_get_words(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    pictures = [Picture(tmp_path / "x.png", Prompt(text), None) for text in ("said", "lost")]
    assert [s.words for s in score_pictures({"a": judge()}, pictures, None)] == [{"pi": SAID}, {"pi": LOST}]


def test_gotr1_score_gives_words_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (48, 48), "white").save(tmp_path / "x.png")
    assert call(["score", str(tmp_path), "--prompt", "a red circle", "--judge", "scenes", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["words"]["pi"] == {"reason": "found nothing"}


def test_examples_of_what_could_not_be_read() -> None:
    rule = next(rule for rule in RULES if rule.name == "missing scores")
    said: list[Mapping[str, Any]] = [{"a.pi": {"problem": "unreadable", "verdict": f"answer\n{i}"}} for i in (1, 1, 2, 3, 4)]
    said += [{"ri": {"problem": "refused"}}, {"pi": {"reason": "fine"}}, {}]
    missing, other = Finding(rule, "nan.pi", 3, "x"), Finding(rule, "kl", 3, "x")
    first, second = add_examples([missing, other], said)
    assert first.examples == ("unreadable: 'answer 1'", "unreadable: 'answer 2'", "unreadable: 'answer 3'")
    assert first.message.endswith(" For example, unreadable: 'answer 1', unreadable: 'answer 2', unreadable: 'answer 3'.")
    assert second == other
    assert add_examples([Finding(rule, "nan.ri", 3, "x")], said)[0].examples == ("refused",)


def write_run(folder: Path, words: Any) -> Path:
    """A run of six steps whose judge could not be read on half of the samples."""
    (folder / "samples" / "step-000001").mkdir(parents=True)
    config = validate(RunConfig, {"planner": "x", "renderer": "x", "judge": "x", "steps": 6, "reward": "pi", "nan_limit": 1.0})
    (folder / "config.yaml").write_text(dump(config))
    rows = [{"step": i + 1, "reward": 0.5, "nan.pi": 0.5, "seconds": 1.0} for i in range(6)]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    row = {"prompt": "x", "image": "000.png", "scores": {"pi": None}, "words": words}
    (folder / "samples" / "step-000001" / "samples.jsonl").write_text(json.dumps(row) + "\n")
    return folder


def test_report_and_doctor_show_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", {"pi": {"verdict": "<script>alert()\u001b[2J", "problem": "unreadable"}})
    page = write_report(run).read_text(encoding="utf-8")
    assert "what the judges said" in page
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    assert call(["doctor", str(run)]) == 1
    assert "For example, unreadable: '<script>alert()" in capsys.readouterr().out
    assert call(["doctor", str(run), "--json"]) == 1
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert [f["examples"] for f in findings if f["metric"] == "nan.pi"] == [["unreadable: '<script>alert()\\x1b[2J'"]]


@pytest.mark.parametrize("words", [3, {"pi": 3}, {"pi": {"boxes": 3}}, {"pi": {"problem": 3, "verdict": [1]}}, None])
def test_damaged_words_stop_neither_report_nor_doctor(words: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", words)
    assert "step-000001" in write_report(run).read_text(encoding="utf-8")
    assert call(["doctor", str(run)]) == 1
    assert "nan.pi" in capsys.readouterr().out
