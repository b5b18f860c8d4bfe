"""docs/judges.md is right: every judge, option, rubric and check with its limit. The config of its full-size run is valid."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml

from gotr1_core.components.build import make_judges
from gotr1_core.components.preflight import check
from gotr1_core.components.resolve import resolve_config
from gotr1_core.config.models import RunConfig, dump, validate
from gotr1_core.plugins import Registry, load
from gotr1_judges.answers import read_boxes, read_list, read_score
from gotr1_judges.grounding import answered_fractions
from gotr1_judges.plugin import JUDGES
from gotr1_judges.rubrics import FIELDS, KINDS, rubric_versions
from gotr1_testing import judges, reliability

PAGE = (Path(__file__).parents[3] / "docs" / "judges.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in row.split(" | ")] for row in re.findall(r"^\| (.+) \|$", PAGE, re.M)]


@pytest.mark.parametrize("name", JUDGES)
def test_every_judge_and_option(name: str) -> None:
    [row] = [row for row in ROWS if row[0] == f"`{name}`" and len(row) == 5]
    assert set(re.findall(r"`(\w+)`", row[1])) == set(load(f"gotr1_judges.{JUDGES[name][0]}").rewards)
    fields = load(f"gotr1_judges.options:{JUDGES[name][1]}").model_fields
    assert name == "hps" or row[3] == f"`{fields['model'].default}`"
    assert [option for option in fields if f"`judge.{option}`" not in PAGE] == []
    if "high" in fields:
        assert [f"`{name}`", str(fields["low"].default)[0], str(fields["high"].default)] in [row[:3] for row in ROWS]


def test_every_rubric_kind_and_field() -> None:
    names = {
        file.name.removesuffix(".txt") for version in rubric_versions() for file in (files("gotr1_judges") / "rubrics" / version).iterdir()
    }
    assert [name for name in names if f"`{name}`" not in PAGE] == []
    answers = [row for row in ROWS if len(row) > 2 and row[0] in ("`score`", "`boxes`", "`list`")]
    told = {row[0].strip("`"): set(re.findall(r"`(\w+)`", row[2])) for row in answers}
    assert told == {"score": {"sem", "spa", "pi"}, "boxes": {"ri"}, "list": {"requirements"}}
    assert {name for name, kinds in KINDS.items() if "score" in kinds} == told["score"]
    same = [row[0].strip("`") for row in ROWS if row[2:] == ["the same"]]
    assert {*told, *same} == {kind for kinds in KINDS.values() for kind in kinds}
    assert [field for field in FIELDS if f"`{{{field}}}`" not in PAGE] == []


def read(question: str, answer: str) -> Any:
    """What the table says of an answer: a number, boxes in thousandths, or sentences. None for NaN."""
    if question == "score":
        score = read_score(answer)
        return None if math.isnan(score) else score
    if question == "list":
        return read_list(answer)
    boxes = read_boxes(answer)
    return boxes and [[round(1000 * corner) for corner in box] for box in answered_fractions(boxes, (1000.0, 1000.0))]


ANSWERS = [row for row in ROWS if row[0] in ("score", "boxes", "list") and row[1].startswith("`")]


@pytest.mark.parametrize(("question", "answer", "told"), ANSWERS, ids=lambda cell: cell)
def test_every_answer_is_read_as_the_table_says(question: str, answer: str, told: str) -> None:
    meaning = told.partition(": ")[0]
    found = read(question, answer.strip("`").replace("⏎", "\n"))
    if meaning in ("NaN", "missing"):
        assert found == {"NaN": None, "missing": []}[meaning]
    elif question == "list":
        assert found == meaning.removesuffix(":").split(" / ")
    else:
        assert found == ([json.loads(meaning)] if question == "boxes" else pytest.approx(float(meaning)))


def test_the_table_has_every_kind_of_answer() -> None:
    assert {(row[0], row[2].partition(": ")[0] == "NaN") for row in ANSWERS} == {
        (k, b) for k in ("score", "boxes", "list") for b in (True, False)
    }
    assert {row[2] for row in ANSWERS} >= {"missing", "NaN"}


def test_every_check_and_its_limit() -> None:
    limits = {
        "repeats-itself": f"≤ {judges.MAX_DIFFERENCE}",
        "answers-are-read": f"≥ {reliability.MIN_READABLE}",
        "keeps-up": f"≤ {reliability.MAX_SECONDS:g}",
        "prefers-no-side": f"≤ {reliability.MAX_BIAS}",
        "prefers-no-order": f"≤ {reliability.MAX_BIAS}",
        "agrees-with-reference": f"≥ {reliability.MIN_AGREEMENT}",
    }
    assert limits.keys() == {one.name for one in reliability.RELIABILITY}
    assert {row[0].strip("`"): row[2] for row in ROWS if len(row) == 3 and row[0].strip("`") in limits} == limits


def test_the_run_at_full_size(tiny: Callable[[str], Path], tiny_clip: Path, tiny_janus: Path, tmp_path: Path) -> None:
    """Tiny weights replace the downloaded ones, and the policy is tiny. Judges and reward are the page's."""
    config, prompts = tmp_path / "full-size.yaml", tmp_path / "prompts.txt"
    config.write_text(re.findall(r"^<!-- file: full-size.yaml -->\n```yaml\n(.*?)^```", PAGE, re.M | re.S)[0])
    prompts.write_text("\n".join("abcdef"))
    words = [f"judge.internvl.model={tiny('internvl')}", f"judge.hps.model={tiny_clip}", "prompts.held_out=2", "evaluation.prompts=2"]
    words += [f"planner={{name: janus, model: '{tiny_janus}'}}", "renderer=janus", "sampling.max_chain_tokens=300", "train=both"]
    given = {"prompts": {"file": str(prompts)}}
    settings = validate(RunConfig, resolve_config(Registry(), config, None, given, words))
    assert [(judge.name, judge.options["device"]) for judge in settings.judge] == [("internvl", "cuda:1"), ("hps", "cuda:1")]
    assert check(Registry(), settings).sizes["parameters"] > 0


def test_two_judges_of_one_name(tiny: Callable[[str], Path], tiny_janus: Path, tmp_path: Path) -> None:
    config = tmp_path / "ensemble.yaml"
    config.write_text(re.findall(r"^<!-- file: ensemble.yaml -->\n```yaml\n(.*?)^```", PAGE, re.M | re.S)[0])
    words = [f"judge.internvl.model={tiny('internvl')}", f"judge.small.model={tiny('internvl')}", "judge.small.batch=3"]
    words += [f"planner={{name: janus, model: '{tiny_janus}'}}", "renderer=janus", "sampling.max_chain_tokens=300", "prompts.source=scenes"]
    settings = validate(RunConfig, resolve_config(Registry(), config, None, {}, words))
    check(Registry(), settings)
    judges = make_judges(Registry(), settings)
    assert {"internvl.pi", "small.pi"} <= set(judges.offered())
    assert [judge.label for judge in validate(RunConfig, yaml.safe_load(dump(settings))).judge] == ["internvl", "small"]
