"""Writes ``report.html``: a run on one page. It has no scripts and needs no network; its pictures lie in the run's folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from gotr1_core.config.models import RunConfig, dump_public
from gotr1_core.config.public_names import public_message
from gotr1_core.doctor.measures import known_values
from gotr1_core.doctor.rules import add_examples, examine_run
from gotr1_core.engine.files import write_atomically
from gotr1_core.engine.intervals import known_mean
from gotr1_core.engine.rollout_metrics import COUNTED
from gotr1_core.evaluation import HeldOut, change_label, paired
from gotr1_core.pictures.sample_files import SAMPLES
from gotr1_core.runs.losses import recorded_losses
from gotr1_core.runs.outcome import read_outcome
from gotr1_core.runs.records import ENVIRONMENT, REPORT, Records, run_config
from gotr1_core.runs.saved_samples import saved_rows, saved_words

CHARTS = ("reward", "entropy", "kl", "ratio", "clipped", "sampler_gap", "gradient_norm", "constant_groups", "chain_tokens", "seconds")
WIDTH, HEIGHT, PAD = 300, 110, 6
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2rem auto; padding: 0 1rem; color: #222; background: #fff }
h1, h2 { font-weight: 600 } h2 { margin-top: 2.2rem } table { border-collapse: collapse } 
td, th { padding: .2rem .6rem; text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left } tr + tr { border-top: 1px solid #ddd }
figure { display: inline-block; margin: .4rem; vertical-align: top }
figcaption { font-size: 12px; color: #555; max-width: 300px } svg { background: #f7f7f5 } img { width: 220px; image-rendering: pixelated }
.finding { border-left: 4px solid #d1495b; padding-left: .8rem } 
pre { background: #f7f7f5; padding: 1rem; overflow-x: auto; font-size: 13px }
"""


def write_report(folder: Path) -> Path:
    """Writes the report of a run from its files. Returns the path of the page."""
    config, records = run_config(folder), Records(folder, main=False)
    steps = [row for row in records.rows if "seconds" in row]
    title = escape(folder.resolve().name)
    sections = [
        f"<h1>{title}</h1>",
        f"<p>{len(steps)} of {config.steps} steps, reward <code>{escape(config.reward)}</code></p>",
    ]
    outcome = read_outcome(folder)
    if outcome.error:
        kind = ' class="finding"' if outcome.is_bad else ""
        error, hint = (escape(public_message(text)) for text in (outcome.error, outcome.hint))
        sections.append(f"<p{kind}>{escape(outcome.outcome)}: {error}<br>{hint}</p>")
    sections += [f'<p class="finding">At the resume from {escape(where)}: {escape(text)}.</p>' for text, where in _losses(folder)]
    sections += _findings(records.rows, config, saved_words(folder))
    sections += _scores(records.held_out)
    counts = {name: value for row in steps[-1:] for name, value in row.items() if name.startswith(COUNTED) and value is not None}
    if counts:
        rows = [_row("td", [name, f"{value:,g}"]) for name, value in counts.items()]
        sections += ["<h2>Judges, since the run or its resume started</h2><table>", *rows, "</table>"]
    sections += ["<h2>Steps</h2>", *_charts(steps), *_pictures(folder), "<h2>Config</h2>", f"<pre>{escape(dump_public(config))}</pre>"]
    page = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>{"".join(sections)}</html>\n'
    write_atomically(folder / REPORT, page)
    return folder / REPORT


def _losses(folder: Path) -> list[tuple[str, str]]:
    """What was lost of the run's records, once each, with the checkpoint at whose resume it was noticed."""
    return list(dict(recorded_losses(folder)).items()) if (folder / ENVIRONMENT).is_file() else []


def _findings(rows: Sequence[Mapping[str, Any]], config: RunConfig, words: Sequence[Mapping[str, Any]]) -> list[str]:
    """The doctor's findings. Empty for a run without steps."""
    findings = add_examples(examine_run(rows, config), words)
    if not findings:
        return ["<p>The doctor finds nothing.</p>"] if any("evaluation" not in row for row in rows) else []
    return ["<h2>Findings</h2>", *(f'<p class="finding">{escape(f.message)}<br>{escape(f.rule.hint)}</p>' for f in findings)]


def _scores(held_out: Mapping[str, HeldOut]) -> list[str]:
    """The table of held-out scores, with the paired change if the run has finished."""
    if not held_out:
        return []
    names = list(dict.fromkeys(name for row in held_out.values() for name in row))
    rows = [_row("th", ["held-out", *names])]
    rows += [_row("td", [model, *(f"{known_mean(row.column(n)):.3f}" for n in names)]) for model, row in held_out.items()]
    if {"before", "after"} <= held_out.keys():
        before, after = held_out["before"], held_out["after"]
        rows.append(_row("td", [change_label(before, after), *(paired(before, after, n).text("+") for n in names)]))
    return ["<h2>Held-out prompts</h2><table>", *rows, "</table>"]


def _row(tag: str, cells: Sequence[str]) -> str:
    """One row of a table; ``tag`` is ``th`` or ``td``."""
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _charts(steps: Sequence[Mapping[str, Any]]) -> list[str]:
    """One chart for each metric of :data:`CHARTS`, of every segment and policy that has it."""
    names = list(dict.fromkeys(name for row in steps for name in row))
    chosen = [n for chart in CHARTS for n in names if n == chart or n.startswith(f"{chart}.") or n.endswith(f".{chart}")]
    return [_chart(name, steps) for name in dict.fromkeys(chosen)]


def _chart(name: str, steps: Sequence[Mapping[str, Any]]) -> str:
    """One metric over steps. The line has a gap at steps without a value."""
    known = known_values(steps, name)
    if not known:
        return ""
    low, high = min(known), max(known)
    last = max(1, len(steps) - 1)
    lines: list[list[str]] = []
    line: list[str] = []
    for index, row in enumerate(steps):
        value = row.get(name)
        if value is None or value != value:
            lines, line = [*lines, line], []
            continue
        x = PAD + index / last * (WIDTH - 2 * PAD)
        y = HEIGHT - PAD - (value - low) / (high - low or 1) * (HEIGHT - 2 * PAD)
        line.append(f"{x:.1f},{y:.1f}")
    drawn = "".join(
        f'<polyline fill="none" stroke="#00798c" stroke-width="1.5" points="{" ".join(points)}"/>' for points in [*lines, line] if points
    )
    svg = f'<svg width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="{escape(name)}">{drawn}</svg>'
    return f"<figure>{svg}<figcaption>{escape(name)}: last {known[-1]:.4g}, {low:.4g} to {high:.4g}</figcaption></figure>"


def _pictures(folder: Path) -> list[str]:
    """Pictures of the evaluations before and after, and of the last step whose samples were saved."""
    kept = sorted((folder / "samples").glob("step-*"))[-1:]
    chosen = [*(folder / "samples" / f"held-out-{name}" for name in ("before", "after")), *kept]
    sections = []
    for samples in chosen:
        figures, damaged = _figures(samples)
        if figures or damaged:
            sections.append(f"<h2>{escape(samples.name)}</h2>")
        if damaged:
            sections.append(f'<p class="finding">{SAMPLES} is damaged: {damaged} of its rows cannot be read.</p>')
        sections += figures[:8]
    return sections


def _figures(samples: Path) -> tuple[list[str], int]:
    """A figure for each picture of a folder of samples, and how many of its rows are damaged."""
    figures = []
    rows, damaged = saved_rows(samples)
    for row in rows:
        try:
            if row.get("image"):
                figures.append(_figure(samples.name, row))
        except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError):
            damaged += 1
    return figures, damaged


def _figure(folder: str, row: Mapping[str, Any]) -> str:
    """One picture with its prompt, its scores, the legend of its boxes, and what the judges said."""
    picture = f"samples/{folder}/{Path(row['image']).stem}-plan.png"
    scores = ", ".join(f"{name} {value:.2f}" for name, value in row["scores"].items() if value is not None)
    prompt = escape(row["prompt"])
    legend = ", ".join(f"{number}: {phrase}" for number, phrase in row.get("legend", {}).items())
    said = "".join(f"<p>{escape(name)}: {escape(_said(words))}</p>" for name, words in row["words"].items())
    details = f"<details><summary>what the judges said</summary>{said}</details>" if said else ""
    caption = f"<figcaption>{'<br>'.join([prompt, escape(scores), *([escape(legend)] if legend else [])])}{details}</figcaption>"
    return f'<figure><img src="{escape(picture)}" alt="{prompt}">{caption}</figure>'


def _said(words: Mapping[str, Any]) -> str:
    """What a judge said beside one score, as one text: the problem, the reason or else the verdict, and what was found."""
    found = ", ".join(f"{phrase} ({len(boxes)})" for phrase, boxes in words.get("boxes", {}).items())
    verdict = words.get("reason") or words.get("verdict", "") if not words.get("problem") else words.get("verdict", "")
    return "; ".join(filter(None, [words.get("problem", ""), verdict, f"boxes: {found}" if found else ""]))
