"""``gotr1 score``: scores picture files with judges, without any training."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gotr1_core.cli.common import BatchSize, Json, JudgeNames, registry
from gotr1_core.components.resolve import load_plugin_files
from gotr1_core.errors import Gotr1Error, UsageError

if TYPE_CHECKING:
    from gotr1_core.pictures.sample_files import Picture
    from gotr1_core.samples import Sample
    from gotr1_core.workflows.judging import ScoreConfig


def command(
    override: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE...",
            help="PNG, JPEG or WebP files, folders of them, or a samples.jsonl; and options, as judge.KEY=VALUE.",
        ),
    ],
    prompt: Annotated[str | None, typer.Option(help="The prompt of the pictures. A samples.jsonl has its own prompts.")] = None,
    judge: JudgeNames = None,
    chain: Annotated[str | None, typer.Option(metavar="TEXT|FILE", help="The plan that the pictures were drawn from.")] = None,
    reward: Annotated[str | None, typer.Option(help="Also print a reward of the scores, such as 'pi * (sem + spa) / 2 * ri'.")] = None,
    batch: BatchSize = 64,
    as_json: Json = False,
) -> None:
    """Scores pictures with judges. Without a chain, only scores of the picture are printed."""
    paths = [Path(word) for word in override if "=" not in word or _exists(Path(word))]
    if not paths:
        raise UsageError("there are no pictures", hint="give PNG, JPEG or WebP files, or a folder of them")
    config = _config(judge, reward, [word for word in override if Path(word) not in paths])
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
    expression = None if config.reward is None else Expression.parse(config.reward)
    pictures = find_pictures(paths, prompt, None if chain is None else _read_chain(chain))
    judges = {each.label: make_judge(registry(), each, device=device()) for each in config.judge}
    samples = []
    with progress("scoring", len(pictures)) as report:
        for sample in score_pictures(judges, pictures, expression, batch):
            samples.append(sample)
            report(len(samples))
    _check_any_score(samples, config)
    unplanned = sum(picture.chain is None for picture in pictures)
    if unplanned:
        print(
            f"note: {unplanned} of {len(pictures)} pictures have no plan: scores that compare a picture with its plan see an empty one",
            file=sys.stderr,
        )
    if as_json:
        print(json.dumps(_rows(pictures, samples, rewarded=expression is not None), ensure_ascii=False))
    else:
        _print(pictures, samples, rewarded=expression is not None)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long
        return False


def _config(judge: Sequence[str] | None, reward: str | None, words: Sequence[str]) -> ScoreConfig:
    from gotr1_core.config.merge import merge, parse_overrides
    from gotr1_core.config.models import validate
    from gotr1_core.workflows.judging import ScoreConfig

    changed = parse_overrides(words)
    unknown = sorted(changed.keys() - {"judge", "reward", "plugins"})
    if unknown:
        raise UsageError(f"{unknown[0]} cannot be set here", hint="only judge.… and reward can be set")
    options = {key: value for key, value in {"judge": list(judge or ()), "reward": reward}.items() if value}
    data = load_plugin_files(registry(), merge(options, changed))
    if not data.get("judge"):
        raise UsageError("there is no judge", hint="give --judge NAME; `gotr1 list judge` names them")
    return validate(ScoreConfig, data)


def _read_chain(text_or_file: str) -> str:
    """Returns the text of a chain, given as a text or as the name of a file."""
    from gotr1_core.data.chains import read_chain, written_chain
    from gotr1_core.data.rows import JSON_SUFFIXES

    path = Path(text_or_file)
    if not _exists(path):
        if path.suffix in (".txt", *JSON_SUFFIXES) and " " not in text_or_file:
            raise UsageError(f"there is no file {text_or_file}", hint="give the chain's text, or a file with it")
        return written_chain(text_or_file, "--chain").raw
    return read_chain(path, key="--chain", hint="give the chain's text, or a file with it").raw


def _check_any_score(samples: Sequence[Sample], config: ScoreConfig) -> None:
    """Raises an error if there is not a single score."""
    if any(value == value for sample in samples for value in sample.scores.values()):
        return
    judges = " and ".join(judge.label for judge in config.judge)
    if any(sample.scores for sample in samples):
        raise Gotr1Error("nothing could be scored", hint=f"judge {judges} had no score for such prompts; try other words, or another judge")
    raise Gotr1Error("nothing could be scored", hint=f"judge {judges} scores plans: give --chain, or a samples.jsonl")


def _rows(pictures: Sequence[Picture], samples: Sequence[Sample], *, rewarded: bool) -> list[Mapping[str, Any]]:
    from gotr1_core.pictures.sample_files import null_for_nan

    return [
        {
            "image": None if picture.path is None else str(picture.path),
            "prompt": sample.prompt.text,
            "scores": {name: null_for_nan(value) for name, value in sample.scores.items()},
        }
        | ({"reward": null_for_nan(sample.reward)} if rewarded else {})
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
