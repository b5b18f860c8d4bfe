"""``gotr1 train``"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gotr1_core.cli.common import (
    AlgorithmName,
    ConfigOrWord,
    JudgeNames,
    PlannerName,
    PresetName,
    PromptsFile,
    RendererName,
    Words,
    config_or_words,
    load_config,
    registry,
)
from gotr1_core.errors import UsageError

if TYPE_CHECKING:
    from gotr1_core.config import RunConfig


def command(
    config: ConfigOrWord = None,
    override: Words = None,
    planner: PlannerName = None,
    renderer: RendererName = None,
    judge: JudgeNames = None,
    algorithm: AlgorithmName = None,
    preset: PresetName = None,
    prompts: PromptsFile = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with a run, from its last checkpoint.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the config and the geometry of a step; start nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: print JSON.")] = False,
    cpu: Annotated[bool, typer.Option("--cpu", help="Train on the CPU although there is a GPU.")] = False,
) -> None:
    """Trains planner, renderer or both with reinforcement learning."""
    path, words = config_or_words(config, override or [])
    named = {"planner": planner, "renderer": renderer, "judge": judge, "algorithm": algorithm}
    own = {"prompts": {"file": str(prompts)} if prompts else None}
    if resume is not None:
        given = [f"--{key}" for key, value in {**named, "preset": preset, "prompts": prompts}.items() if value]
        if given or path:
            raise UsageError(
                f"{given[0] if given else path} has no meaning with --resume",
                hint="a run goes on with its own config; change it by KEY=VALUE",
            )
        return _resume(resume, words, dry_run=dry_run, as_json=as_json, cpu=cpu)
    data = load_config(registry(), path, preset, {**named, **own}, words)
    from gotr1_core.config import RunConfig, validate

    settings = validate(RunConfig, data)
    if dry_run:
        return _show(settings, as_json=as_json)
    from gotr1_core.cli.run import watched
    from gotr1_core.session import train

    watched(lambda view: train(settings, registry=registry(), listeners=[view], cpu=cpu), settings.steps, live=sys.stderr.isatty())


def _resume(folder: Path, words: list[str], *, dry_run: bool, as_json: bool, cpu: bool) -> None:
    from gotr1_core.cli.run import watched
    from gotr1_core.session import resume, resumed_config

    settings, changed = resumed_config(folder, words)
    for key, (was, now) in changed.items():
        print(f"{key}: {json.dumps(was)} -> {json.dumps(now)}", file=sys.stderr)
    if dry_run:
        return _show(settings, as_json=as_json)
    watched(lambda view: resume(folder, words, registry=registry(), listeners=[view], cpu=cpu), settings.steps, live=sys.stderr.isatty())


def _show(config: RunConfig, *, as_json: bool) -> None:
    """What would run, on stdout."""
    import os

    from gotr1_core.build import check
    from gotr1_core.config import dump
    from gotr1_core.geometry import geometry

    processes = int(os.environ.get("WORLD_SIZE", "1"))
    shape: dict[str, Any] = geometry(config, processes, check(registry(), config, processes))
    if as_json:
        print(json.dumps({"config": config.model_dump(mode="json"), "geometry": shape}))
        return
    print(dump(config), end="")
    print("\n# geometry of a step")
    for name, value in shape.items():
        print(f"# {name:<38}{'not known beforehand' if value is None else value}")
