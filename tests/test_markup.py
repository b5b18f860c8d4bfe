"""What users, judges and checkpoints wrote is never markup: in the report it stays text, and in the model card too."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from torch import nn

from gotr1_core.config.models import RunConfig, dump, validate
from gotr1_core.runs.records import run_config
from gotr1_core.runs.report import write_report
from gotr1_core.samples import Sampling
from gotr1_core.workflows.markdown import code, code_block, plain
from gotr1_core.workflows.model_card import Card, Piece

EVIL = (
    "</pre></title><script>x()</script>\"' onerror=x() `a` ``b`` | [c](javascript:x()) ![d](e) &lt; *f* <img src=x onerror=x()>"
    "\n```\n# g\n\x1b"
)
TAGS_OF_A_REPORT = {
    *("html", "meta", "title", "style", "h1", "h2", "p", "code", "table", "tr", "th", "td", "pre", "br"),
    *("figure", "figcaption", "svg", "polyline", "img"),
}
TAGS_OF_A_CARD = {"h1", "h2", "p", "ul", "li", "strong", "em", "code", "pre", "table", "thead", "tbody", "tr", "th", "td", "hr"}


class Page(HTMLParser):
    """The tags of a page, their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str | None]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run in which every text is hostile that the report or the card shows."""
    folder = tmp_path / "[x](javascript:x()) <script>&`|"
    (folder / "samples" / "held-out-after").mkdir(parents=True)
    component = {"name": EVIL, "option": EVIL}
    data = {"planner": component, "renderer": component, "judge": [{"name": EVIL, "option": EVIL}, "b"], "algorithm": component}
    data |= {"reward": EVIL, "lora": {"targets": [EVIL]}, "prompts": {"file": "/" + EVIL.replace("\n", "")}, "steps": 3, "name": EVIL}
    config = validate(RunConfig, data)
    (folder / "config.yaml").write_text(dump(config))
    rows = [{"step": i, "reward": 0.5, f"reward.{EVIL}": 0.1 * i, "seconds": 1.0} for i in range(3)]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    prompts = [["1", EVIL], ["2", EVIL]]
    scores = {"prompts": prompts, "reward": [0.5, 1.0], EVIL: [0.0, 1.0]}
    (folder / "held-out.json").write_text(json.dumps({"before": scores, EVIL: scores, "after": scores}))
    sample = {"prompt": EVIL, "image": f"{EVIL}.png", "chain": EVIL, "scores": {EVIL: 0.5}, "legend": {EVIL: EVIL}}
    (folder / "samples" / "held-out-after" / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    component_facts = {EVIL: {"distribution": EVIL, "version": EVIL}}
    (folder / "environment.json").write_text(json.dumps({"python": EVIL, "packages": {EVIL: EVIL}, "components": component_facts}))
    (folder / "outcome.json").write_text(json.dumps({"outcome": "failed", "error": EVIL, "hint": EVIL}))
    return folder


def test_the_report(run: Path) -> None:
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert page.tags <= TAGS_OF_A_REPORT
    assert {name for _, name, _ in page.attributes} <= {
        *("lang", "charset", "class", "width", "height", "role", "aria-label", "fill", "stroke", "stroke-width", "points", "src", "alt")
    }
    assert all(str(value).startswith("samples/held-out-after/") for tag, name, value in page.attributes if name == "src")
    assert page.text.count("<script>x()</script>") > 5


@pytest.mark.parametrize("merged", [True, False])
def test_the_model_card(run: Path, merged: bool) -> None:
    config = run_config(run)
    pieces = tuple(Piece(role, role, EVIL, nn.Linear, "float32") for role in ("planner", "renderer"))
    card = Card(run, config, Sampling(), 2, pieces, unified=False, merged=merged).text()
    _, front, body = card.split("---\n", 2)
    assert "script" in front
    page = Page(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(body))
    assert page.tags <= TAGS_OF_A_CARD
    assert {(name, str(value).split("-")[0]) for _, name, value in page.attributes} <= {("class", "language"), ("style", "text")}
    assert page.text.count("<script>x()</script>") > 5
    assert "\x1b" not in card
    rows = [line for line in body.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in rows}) == 1  # no cell has more columns than the header


@pytest.mark.parametrize("text", ["plan_right", "a b", "kl.2", "internvl.pi", "v1.0.2", "Python 3.11", "a - b"])
def test_ordinary_names_stay_readable(text: str) -> None:
    assert plain(text) == text
    assert code(text) == f"`{text}`"


MARKS = ["`", "a`b", "``", "```", "_x_", "__init__", "a\\", "- a", "+ a", "<b>", "a|b", "&amp;", "*", "~~a~~", EVIL]


@pytest.mark.parametrize("text", MARKS)
def test_a_text_is_shown_as_it_is(text: str) -> None:
    shown = " ".join(text.replace("\x1b", "\\u001b").splitlines())
    render = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render
    as_text, as_code, as_block = (Page(render(each)) for each in (plain(text), code(text), "\n".join(code_block("sh", [text]))))
    assert (as_text.tags, as_text.text.strip()) == ({"p"}, shown.strip())
    assert (as_code.tags, as_code.text.strip()) == ({"p", "code"}, shown.strip())
    assert (as_block.tags, as_block.text.strip()) == ({"pre", "code"}, text.replace("\x1b", "\\u001b").strip())
