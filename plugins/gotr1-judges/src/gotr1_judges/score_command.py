"""``gotr1 score``: scores picture files, or the samples of a run, with judges, without any training."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gotr1_core.cli.common import BatchSize, CacheDir, Json, JudgeNames, PresetWithJudges, registry
from gotr1_core.components.resolve import load_plugin_files, resolve_config
from gotr1_core.engine.console import print
from gotr1_core.errors import Gotr1Error, UsageError

if TYPE_CHECKING:
    from gotr1_core.pictures.sample_files import Picture
    from gotr1_core.samples import Sample
    from gotr1_core.workflows.judging import ScoreConfig


def score_command(
    override: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[IMAGE]...",
            help="PNG, JPEG or WebP files, folders of them, or a samples.jsonl; and options, as judge.KEY=VALUE.",
        ),
    ] = None,
    run: Annotated[Path | None, typer.Option(metavar="RUN", help="Score a run's saved samples again, and compare with its scores.")] = None,
    prompt: Annotated[str | None, typer.Option(help="The prompt of the pictures. A samples.jsonl has its own prompts.")] = None,
    judge: JudgeNames = None,
    preset: PresetWithJudges = None,
    chain: Annotated[str | None, typer.Option(metavar="TEXT|FILE", help="The plan that the pictures were drawn from.")] = None,
    root: Annotated[
        Path | None, typer.Option("--pictures", metavar="DIR", help="Pictures that a samples.jsonl names may lie anywhere in DIR.")
    ] = None,
    reward: Annotated[str | None, typer.Option(help="Also print a reward of the scores, such as 'pi * (sem + spa) / 2 * ri'.")] = None,
    batch: BatchSize = 64,
    cache: CacheDir = None,
    as_json: Json = False,
) -> None:
    """Scores pictures with judges. Without a chain, only scores of the picture are printed."""
    paths = [Path(word) for word in override or () if "=" not in word or _exists(Path(word))]
    given = {"IMAGE": paths, "--prompt": prompt, "--chain": chain, "--pictures": root, "--reward": reward}
    if run is not None and (refused := [name for name, value in given.items() if value]):
        raise UsageError(f"{refused[0]} cannot be combined with --run", hint="leave it out: a run's samples have all of it")
    if not paths and run is None:
        raise UsageError("there are no pictures", hint="give PNG, JPEG or WebP files, or a folder of them")
    config = _config(judge, {"reward": reward, "cache": cache}, preset, [word for word in override or () if Path(word) not in paths])
    from gotr1_core.cli.common import device
    from gotr1_core.cli.progress import progress
    from gotr1_core.components.build import make_judge
    from gotr1_core.components.preflight import check_labels
    from gotr1_core.pictures.sample_files import find_pictures
    from gotr1_core.plugins import options_of
    from gotr1_core.reward import Expression
    from gotr1_core.workflows.judging import score_pictures

    check_labels(config.judge)
    for judge_config in config.judge:  # checked first, because pictures and judges take longer
        options_of(registry().find("judge", judge_config.name).component, judge_config.options)
    if run is not None:
        return _score_run(run, config, batch, as_json=as_json)
    expression = None if config.reward is None else Expression.parse(config.reward)
    pictures = find_pictures(paths, prompt, None if chain is None else _read_chain(chain), root)
    judges = {each.label: make_judge(registry(), each, device=device(), cache=config.cache) for each in config.judge}
    samples = []
    with progress("scoring", len(pictures)) as report:
        for sample in score_pictures(judges, pictures, expression, batch, config.judge_reminder):
            samples.append(sample)
            report(len(samples))
    _check_any_score(samples, config)
    unplanned = sum(picture.chain is None for picture in pictures)
    if unplanned:
        print(
            f"note: {unplanned} of {len(pictures)} pictures have no plan: scores that compare a picture with its plan cannot be had",
            file=sys.stderr,
        )
    if as_json:
        print(json.dumps(_rows(pictures, samples, rewarded=expression is not None), ensure_ascii=False))
    else:
        _print(pictures, samples, rewarded=expression is not None)


def _score_run(run: Path, config: ScoreConfig, batch: int, *, as_json: bool) -> None:
    """Scores a run's samples with every judge, and prints how far each agrees with the run's scores."""
    from gotr1_core.cli.common import device
    from gotr1_core.cli.progress import progress
    from gotr1_core.cli.tables import format_table
    from gotr1_core.components.build import make_judge
    from gotr1_judges.rescoring import compare_scores, rescore, reward_of, saved_samples

    samples, found = saved_samples(run), []
    for judge in config.judge:
        make = partial(make_judge, registry(), judge, device=device(), cache=config.cache)
        with progress(f"scoring with {judge.label}", len(samples)) as report:
            rows = rescore(run, judge, make, batch=batch, reminder=config.judge_reminder, report=report)
        for name, agreed in compare_scores(samples, rows).items():
            missing = sum(row["scores"].get(reward_of(name), 0.0) is None for row in rows.values())
            found.append((judge.label, name, missing, agreed))
    if as_json:
        facts = [{"judge": judge, "score": name, "missing": missing} | _null_for_nan(asdict(a)) for judge, name, missing, a in found]
        print(json.dumps(facts))
    elif not found:
        raise Gotr1Error(f"no score of {run} is one that these judges give", hint="`gotr1 show judge NAME` says what a judge scores")
    else:
        lines = [[j, n, str(a.tau.count), str(m), a.tau.text("+"), a.order.text(), str(a.order.count)] for j, n, m, a in found]
        print(format_table(("judge", "score", "samples", "missing", "Kendall tau-b", "same order", "prompts"), lines), end="")


def _null_for_nan(facts: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
    return {name: {key: None if value != value else value for key, value in estimate.items()} for name, estimate in facts.items()}


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long
        return False


def _config(judge: Sequence[str] | None, given: Mapping[str, str | None], preset: str | None, words: Sequence[str]) -> ScoreConfig:
    from gotr1_core.config.merge import merge, parse_overrides
    from gotr1_core.config.models import validate
    from gotr1_core.workflows.judging import ScoreConfig

    changed = parse_overrides(words)
    unknown = sorted(changed.keys() - {"judge", "reward", "plugins", "cache", "judge_reminder"})
    if unknown:
        raise UsageError(f"{unknown[0]} cannot be set here", hint="only judge.…, reward, cache and judge_reminder can be set")
    options = {key: value for key, value in {"judge": list(judge or ()), **given}.items() if value}
    if preset is None:
        data = load_plugin_files(registry(), merge(options, changed))
    else:  # its judges and its reward; pictures need nothing else of it
        whole = resolve_config(registry(), None, preset, options, words)
        data = {key: whole[key] for key in ("judge", "reward", "plugins", "cache", "judge_reminder") if key in whole}
    if not data.get("judge"):
        raise UsageError("there is no judge", hint="give --judge NAME, or a --preset; `gotr1 list judge` names judges")
    return validate(ScoreConfig, data)


def _read_chain(text_or_file: str) -> str:
    """Returns the text of a chain, given as a text or as the name of a file."""
    from gotr1_core.data.chains import read_chain, written_chain
    from gotr1_core.data.rows import JSON_SUFFIXES

    path = Path(text_or_file)
    if not _exists(path):
        if path.suffix.lower() in (".txt", *JSON_SUFFIXES) and "<|" not in text_or_file:
            raise UsageError(f"there is no file {text_or_file}", hint="give the chain's text, or a file with it")
        return written_chain(text_or_file, "--chain").raw
    return read_chain(path, key="--chain", hint="give the chain's text, or a file with it").raw


def _check_any_score(samples: Sequence[Sample], config: ScoreConfig) -> None:
    """Raises an error if there is not a single score."""
    if any(value == value for sample in samples for value in sample.scores.values()):
        return
    judges = " and ".join(judge.label for judge in config.judge)
    if any(sample.scores for sample in samples):
        plan = "" if all(sample.plan_known for sample in samples) else ", give --chain if it compares pictures with plans"
        hint = f"judge {judges} had no score for such prompts; try other words{plan}, or another judge"
        raise Gotr1Error("nothing could be scored", hint=hint)
    raise Gotr1Error("nothing could be scored", hint=f"judge {judges} scores plans: give --chain, or a samples.jsonl")


def _rows(pictures: Sequence[Picture], samples: Sequence[Sample], *, rewarded: bool) -> list[Mapping[str, Any]]:
    from gotr1_core.pictures.sample_files import null_for_nan, words_row

    return [
        {
            "image": None if picture.path is None else str(picture.path),
            "prompt": sample.prompt.text,
            "scores": {name: null_for_nan(value) for name, value in sample.scores.items()},
        }
        | ({"reward": null_for_nan(sample.reward)} if rewarded else {})
        | words_row(sample)
        for picture, sample in zip(pictures, samples, strict=True)
    ]


def _print(pictures: Sequence[Picture], samples: Sequence[Sample], *, rewarded: bool) -> None:
    from gotr1_core.cli.tables import format_table

    names = list(dict.fromkeys(name for sample in samples for name in sample.scores))
    lines = []
    for picture, sample in zip(pictures, samples, strict=True):
        values = [sample.scores.get(name) for name in names] + ([sample.reward] if rewarded else [])
        lines.append([str(picture.path or "not drawn"), *map(_cell, values)])
    print(format_table(("image", *names, *(["reward"] if rewarded else [])), lines), end="")


def _cell(value: float | None) -> str:
    if value is None:  # there is no picture, or no plan, for this score
        return "-"
    return f"{value:.3f}" if value == value else "could not be scored"
