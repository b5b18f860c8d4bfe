"""Writes ``report.html``: a run on one page. It has no scripts and needs no network; its pictures lie in the run's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from gotr1_core.config.models import RunConfig, dump
from gotr1_core.doctor.measures import known_values
from gotr1_core.doctor.rules import examine_run
from gotr1_core.engine.files import read_lines, write_atomically
from gotr1_core.evaluation import HeldOut, change_label, estimate, paired
from gotr1_core.runs.records import Records, run_config

REPORT = "report.html"
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
    sections += _findings(records.rows, config)
    sections += _scores(records.held_out)
    sections += ["<h2>Steps</h2>", *_charts(steps), *_pictures(folder), "<h2>Config</h2>", f"<pre>{escape(dump(config))}</pre>"]
    page = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>{"".join(sections)}</html>\n'
    write_atomically(folder / REPORT, page)
    return folder / REPORT


def _findings(rows: Sequence[Mapping[str, Any]], config: RunConfig) -> list[str]:
    """The doctor's findings. Empty for a run without steps."""
    findings = examine_run(rows, config)
    if not findings:
        return ["<p>The doctor finds nothing.</p>"] if any("evaluation" not in row for row in rows) else []
    return ["<h2>Findings</h2>", *(f'<p class="finding">{escape(f.message)}<br>{escape(f.rule.hint)}</p>' for f in findings)]


def _scores(held_out: Mapping[str, HeldOut]) -> list[str]:
    """The table of held-out scores, with the paired change if the run has finished."""
    if not held_out:
        return []
    names = list(next(iter(held_out.values())))
    rows = [_row("th", ["held-out", *names])]
    rows += [_row("td", [model, *(f"{estimate(row[n]).mean:.3f}" for n in names)]) for model, row in held_out.items()]
    if {"before", "after"} <= held_out.keys():
        before, after = held_out["before"], held_out["after"]
        change = [paired(before, after, n) for n in names]
        rows.append(_row("td", [change_label(before, after), *(f"{c.mean:+.3f} ± {c.half_width:.3f}" for c in change)]))
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
        file = samples / "samples.jsonl"
        rows = [json.loads(line) for _, line in read_lines(file, hint="restore the original file")] if file.is_file() else []
        shown = [row for row in rows if row.get("image")][:8]
        if shown:
            sections.append(f"<h2>{escape(samples.name)}</h2>")
        for row in shown:
            picture = f"samples/{samples.name}/{Path(row['image']).stem}-plan.png"
            scores = ", ".join(f"{name} {value:.2f}" for name, value in row["scores"].items() if value is not None)
            prompt = escape(row["prompt"])
            legend = ", ".join(f"{number}: {phrase}" for number, phrase in row.get("legend", {}).items())
            caption = f"<figcaption>{'<br>'.join([prompt, escape(scores), *([escape(legend)] if legend else [])])}</figcaption>"
            sections.append(f'<figure><img src="{escape(picture)}" alt="{prompt}">{caption}</figure>')
    return sections
