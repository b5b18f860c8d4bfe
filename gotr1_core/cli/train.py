"""``gotr1 train``"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from gotr1_core.cli.common import ConfigOrWord, PlannerName, PresetName, RendererName, config_or_words, device, load_config


def command(
    config: ConfigOrWord = None,
    override: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings, such as steps=20 or planner.model=PATH.")
    ] = None,
    planner: PlannerName = None,
    renderer: RendererName = None,
    judge: Annotated[list[str] | None, typer.Option(help="What scores plan and picture; may be given again.")] = None,
    algorithm: Annotated[str | None, typer.Option(help="What turns rewards into gradients.")] = None,
    preset: PresetName = None,
    prompts: Annotated[Path | None, typer.Option(help="Your own prompts: text, one a line, or JSONL.")] = None,
) -> None:
    """Trains planner, renderer or both with reinforcement learning."""
    from gotr1_core.plugins import Registry

    registry = Registry()
    path, words = config_or_words(config, override or [])
    named = {"planner": planner, "renderer": renderer, "judge": judge, "algorithm": algorithm}
    own = {"prompts": {"file": str(prompts)} if prompts else None}
    data = load_config(registry, path, preset, {**named, **own}, words)
    from gotr1_core.cli.run import run_training
    from gotr1_core.config import RunConfig, validate

    run_training(registry, validate(RunConfig, data), device=device(), live=sys.stderr.isatty())
