"""Scores the saved samples of a run again with another judge, and says how far it agrees with the run's own scores."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gotr1_core.components.fingerprints import file_digest
from gotr1_core.config.models import JUDGE_REMINDER, JudgeConfig
from gotr1_core.engine.console import print
from gotr1_core.engine.files import split_lines, write_atomically
from gotr1_core.errors import UsageError
from gotr1_core.pictures.sample_files import SAMPLES, Picture, find_pictures, nan_for_null, null_for_nan, words_row
from gotr1_core.protocols import RewardJudge
from gotr1_core.runs.records import run_config
from gotr1_core.runs.saved_samples import saved_rows
from gotr1_core.workflows.judging import score_pictures
from gotr1_judges.agreement import Agreement, agreement

RESCORED = "rescored"
"""The folder in a run that has a file of scores for each judge."""


@dataclass(frozen=True)
class SavedSample:
    """A sample that a run saved: its name, such as ``step-000010/3``, what it is, its scores, and a fingerprint of all of it."""

    name: str
    picture: Picture
    scores: Mapping[str, float]
    fingerprint: str


def saved_samples(run: Path) -> list[SavedSample]:
    """The samples that a run saved, in the order of their folders.

    Raises:
        UsageError: the folder is no run, has no samples, or one of them is damaged.
    """
    run_config(run)
    samples: list[SavedSample] = []
    for folder in sorted(file.parent for file in (run / "samples").glob(f"*/{SAMPLES}")):
        rows, damaged = saved_rows(folder)
        if damaged:
            raise UsageError(f"{folder / SAMPLES} is damaged: {damaged} of its rows cannot be read", hint="remove that folder")
        for number, (picture, row) in enumerate(zip(find_pictures([folder]), rows, strict=True)):
            given = row.get("scores")
            scores = {n: nan_for_null(v) for n, v in given.items() if isinstance(v, int | float | None)} if isinstance(given, dict) else {}
            digest = None if picture.path is None else file_digest(picture.path)
            facts = [picture.prompt.text, dict(picture.prompt.metadata), None if picture.chain is None else picture.chain.raw, digest]
            samples.append(SavedSample(f"{folder.name}/{number}", picture, scores, json.dumps(facts, sort_keys=True)))
    if not samples:
        raise UsageError(f"{run} has no saved samples", hint="save_samples=N saves those of every N steps")
    return samples


def rescore(
    run: Path,
    config: JudgeConfig,
    make: Callable[[], RewardJudge],
    *,
    batch: int = 64,
    reminder: float = JUDGE_REMINDER,
    report: Callable[[int], None] = lambda _: None,
) -> dict[str, dict[str, Any]]:
    """Scores the saved samples of a run with a judge. Returns a row for each by its name: ``scores``, and ``words`` if there are any.

    Every score is written to ``rescored/LABEL.jsonl`` in the run's folder at once. What is there already, and was made with the same
    options of the same samples, is not asked again, unless a score is missing. ``report`` is called with the number of samples so far, and
    ``reminder`` is that of :class:`gotr1_core.judges.Judges`.

    Raises:
        UsageError: the folder is no run, has no samples, or the file has scores of this judge with other options.
    """
    samples, file, options = saved_samples(run), run / RESCORED / f"{config.label}.jsonl", {"judge": config.model_dump(mode="json")}
    file.parent.mkdir(exist_ok=True)
    done = _read(file, options, {sample.name: sample.fingerprint for sample in samples})
    write_atomically(file, "".join(json.dumps(row) + "\n" for row in (options, *done.values())))
    left = [sample for sample in samples if sample.name not in done]
    report(len(done))
    if left:
        scored = score_pictures({config.label: make()}, [sample.picture for sample in left], None, batch, reminder)
        with file.open("a", encoding="utf-8") as rows:
            for saved, sample in zip(left, scored, strict=True):
                scores = {name: null_for_nan(value) for name, value in sample.scores.items()}
                done[saved.name] = {"sample": saved.name, "fingerprint": saved.fingerprint, "scores": scores, **words_row(sample)}
                print(json.dumps(done[saved.name]), file=rows, flush=True)
                report(len(done))
    return done


def _read(file: Path, options: Mapping[str, Any], fingerprints: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The rows of a file that are still right, by the sample's name. A row that was cut, or that lacks a score, is left out."""
    rows = []
    for _, line in split_lines(file.read_text(encoding="utf-8", errors="replace")) if file.is_file() else ():
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError):
            continue
    if rows and rows[0] != options:
        raise UsageError(
            f"{file} has scores with other options of the judge", hint="give this judge another name: as=NAME, or remove the file"
        )
    right = [
        row for row in rows[1:] if isinstance(row, dict) and isinstance(row.get("scores"), dict) and None not in row["scores"].values()
    ]
    return {row["sample"]: row for row in right if fingerprints.get(str(row.get("sample"))) == row.get("fingerprint")}


def compare_scores(samples: Sequence[SavedSample], rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Agreement]:
    """How far a judge's ``rows`` agree with the scores that the run gave its samples, by the run's name of each score that both have.

    The run's ``sem``, and its ``JUDGE.sem`` of each judge, are compared with the ``sem`` of the rows.
    """
    both = [(sample, rows[sample.name]["scores"]) for sample in samples if sample.name in rows]
    names = dict.fromkeys(name for sample, scores in both for name in sample.scores if reward_of(name) in scores)
    prompts = [sample.picture.prompt.key for sample, _ in both]
    groups = [(sample.name.partition("/")[0], sample.picture.prompt.key) for sample, _ in both]

    def column(scores: Sequence[Mapping[str, Any]], name: str) -> list[float]:
        return [float(nan_for_null(row.get(name))) for row in scores]

    own, others = [sample.scores for sample, _ in both], [scores for _, scores in both]
    return {name: agreement(column(own, name), column(others, reward_of(name)), prompts, groups) for name in names}


def reward_of(score: str) -> str:
    """Returns the reward of a run's score: ``sem`` of ``sem`` and of ``JUDGE.sem``."""
    return score.rpartition(".")[2]
