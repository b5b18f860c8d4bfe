"""A run on one page: the page shows what is on disk, and none of it is read as markup."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from gotr1_core.config.models import RunConfig, dump, validate
from gotr1_core.runs.report import write_report

PROMPTS = [["1", "a circle"], ["2", "a square"]]
STEP = {"reward": 0.5, "plan.entropy": 1.0, "plan.sampler_gap": 1e-7, "nan": 0.0, "seconds": 1.0}


class Reader(HTMLParser):
    """Collects tags with their attributes, and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "one"
    (folder / "samples" / "held-out-after").mkdir(parents=True)
    config = validate(RunConfig, {"planner": "x", "renderer": "x", "judge": "x", "steps": 3, "reward": "pi * (1 - 0)"})
    (folder / "config.yaml").write_text(dump(config))
    rows = [{"step": 0, "evaluation": "before", "reward": 0.1}, *({"step": i + 1, **STEP} for i in range(3))]
    rows[2]["plan.entropy"] = None  # a gap
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / "held-out.json").write_text(
        json.dumps({"before": {"prompts": PROMPTS, "pi": [0.0, 0.5]}, "after": {"prompts": PROMPTS, "pi": [1.0, None]}})
    )
    sample = {"prompt": "<b>a circle</b>", "image": "000.png", "scores": {"pi": 0.5, "ri": None}, "legend": {"1": "<b>猫"}}
    (folder / "samples" / "held-out-after" / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    return folder


def test_everything_is_on_the_page(run: Path) -> None:
    page = Reader(write_report(run).read_text(encoding="utf-8"))
    assert "3 of 3 steps" in page.text
    assert "change+1.000 [-0.122, +1.000]" in page.text.replace("\n", "")  # of the one pair that is known
    charts = [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg"]
    assert charts == ["reward", "plan.entropy", "plan.sampler_gap", "seconds"]
    assert sum(tag == "polyline" for tag, _ in page.tags) == 5  # the gap makes two lines of one
    (picture,) = [attributes for tag, attributes in page.tags if tag == "img"]
    assert picture["src"] == "samples/held-out-after/000-plan.png"
    assert "pi 0.50" in page.text
    assert "1: <b>猫" in page.text
    assert "The doctor finds nothing." in page.text
    assert not any(tag in ("script", "link", "b") for tag, _ in page.tags)


def test_what_judges_counted_is_on_the_page(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        print(json.dumps({"step": 4, **STEP, "judge.a.requests": 1234.0, "judge.a.lost": None}), file=file)
    assert "judge.a.requests1,234" in Reader(write_report(run).read_text(encoding="utf-8")).text.replace("\n", "")


def test_findings_come_first(run: Path) -> None:
    row = {"step": 4, **STEP, "plan.sampler_gap": 0.5}
    with (run / "metrics.jsonl").open("a") as file:
        print(json.dumps(row), file=file)
    page = Reader(write_report(run).read_text(encoding="utf-8"))
    assert "step 4, sampler gap: plan.sampler_gap 0.5" in page.text
    assert page.text.index("step 4, sampler gap") < page.text.index("Held-out prompts")


def test_a_run_that_has_hardly_begun(run: Path) -> None:
    for name in ("metrics.jsonl", "held-out.json"):
        (run / name).unlink()
    assert "0 of 3 steps" in Reader(write_report(run).read_text(encoding="utf-8")).text
