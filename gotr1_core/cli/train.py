"""``gotr1 train``: starts or resumes a run, in this process or in several."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gotr1_core.cli import common
from gotr1_core.cli.launch import launch, launch_words, read_launch_options
from gotr1_core.components.resolve import add_config_plugins, resolve_config
from gotr1_core.engine.console import print
from gotr1_core.errors import UsageError
from gotr1_core.runs.launched import is_launched

if TYPE_CHECKING:
    from gotr1_core.cli.view import View
    from gotr1_core.config.models import RunConfig
    from gotr1_core.runs.recorder import Run


def command(
    ctx: typer.Context,
    config: common.ConfigOrWord = None,
    override: common.Words = None,
    planner: common.PlannerName = None,
    renderer: common.RendererName = None,
    judge: common.JudgeNames = None,
    algorithm: common.AlgorithmName = None,
    preset: common.PresetName = None,
    prompts: common.PromptsFile = None,
    cache: common.CacheDir = None,
    resume: Annotated[Path | None, typer.Option(help="Continue this run from its last checkpoint.")] = None,
    accept_changes: common.AcceptChanges = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the config and the sizes of a step; start nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: print JSON.")] = False,
    cpu: Annotated[bool, typer.Option("--cpu", help="Train on the CPU even if there is a GPU.")] = False,
) -> None:
    """Trains planner, renderer or both with reinforcement learning."""
    path, words = common.config_or_words(config, override or [])
    words_after = launch_words(ctx)
    processes = None if words_after is None else read_launch_options(words_after, cpu=cpu)
    named = {"planner": planner, "renderer": renderer, "judge": judge, "algorithm": algorithm}
    prompts_key = {"prompts": {"file": str(prompts)} if prompts else None, "cache": cache}
    if resume is not None:
        refused = [f"--{key}" for key, value in {**named, "preset": preset, "prompts": prompts, "cache": cache}.items() if value]
        if refused or path:
            raise UsageError(
                f"{refused[0] if refused else path} cannot be combined with --resume",
                hint="a run continues with its own config; change it with KEY=VALUE",
            )
        return _resume(resume, words, processes, dry_run=dry_run, as_json=as_json, cpu=cpu, accept=accept_changes)
    if accept_changes:
        raise UsageError("--accept-changes needs --resume", hint="remove it: a new run takes its files as they are")
    data = resolve_config(common.registry(), path, preset, {**named, **prompts_key}, words)
    from gotr1_core.components.inputs import absolute_inputs
    from gotr1_core.config.models import RunConfig, validate

    settings = absolute_inputs(common.registry(), validate(RunConfig, data))
    if dry_run:
        return _print_plan(settings, processes, as_json=as_json, is_new=True)
    if processes is not None:
        return _launch(settings, processes, cpu=cpu)
    from gotr1_core.cli.view import training_view
    from gotr1_core.runs.start import train

    with training_view(settings.steps) as view:
        run = train(settings, registry=common.registry(), listeners=[view], cpu=cpu)
    _finish(run, view)


def _resume(folder: Path, words: list[str], processes: Any, *, dry_run: bool, as_json: bool, cpu: bool, accept: bool) -> None:
    from gotr1_core.cli.view import training_view
    from gotr1_core.components.inputs import describe_changes
    from gotr1_core.runs.inputs import ALL, accept_changes, check_inputs
    from gotr1_core.runs.start import resume, resumed_config

    settings, changed = resumed_config(folder, words, common.registry())
    if not is_launched():  # in a started process, the launcher has printed this
        add_config_plugins(common.registry(), settings.plugins)
        if dry_run or not accept:  # before processes are started, and before anything is loaded
            check_inputs(folder, common.registry(), settings, ALL, accept=accept)
        elif accepted := accept_changes(folder, registry=common.registry()):
            print(f"accepted: {describe_changes(accepted)}", file=sys.stderr)
        for key, (was, now) in changed.items():
            print(f"{key}: {json.dumps(was)} -> {json.dumps(now)}", file=sys.stderr)
    if dry_run:
        return _print_plan(settings, processes, as_json=as_json)
    if processes is not None:
        return _launch(settings, processes, cpu=cpu, resume=folder, words=words)
    with training_view(settings.steps) as view:
        run = resume(folder, words, registry=common.registry(), listeners=[view], cpu=cpu)
    _finish(run, view)


def _finish(run: Run, view: View) -> None:
    """Prints the result of a run, and leaves the group of processes if there is one."""
    from gotr1_core.cli.view import show_result
    from gotr1_core.engine.collectives import leave_process_group

    show_result(run, live=view.live is not None)
    leave_process_group()


def _launch(config: RunConfig, processes: Any, *, cpu: bool, resume: Path | None = None, words: Sequence[str] = ()) -> None:
    """Trains in several processes. Everything that needs no weights is checked first, in this process."""
    from tempfile import TemporaryDirectory

    from gotr1_core.components.preflight import check
    from gotr1_core.config.models import dump
    from gotr1_core.runs.records import check_output

    add_config_plugins(common.registry(), config.plugins)
    check(common.registry(), config, processes.num_processes)
    plugins = [word for file in common.registry().files for word in ("--plugin", str(file))]
    options = [*plugins, *(["--cpu"] if cpu else []), *([] if common.registry().config_plugins else ["--no-plugins"])]
    if resume is not None:
        return launch(processes, ["train", "--resume", str(resume), *words, *options], resume)
    # Named here, so that the hint can name the run's folder if its processes are killed.
    config = config.model_copy(update={"name": config.name or time.strftime("%Y%m%d-%H%M%S")})
    check_output(config)
    with TemporaryDirectory(prefix="gotr1-") as scratch:
        file = Path(scratch, "config.yaml")
        file.write_text(dump(config), encoding="utf-8")
        launch(processes, ["train", str(file), *options], config.output / str(config.name))


def _print_plan(config: RunConfig, processes: Any, *, as_json: bool, is_new: bool = False) -> None:
    """Prints what would run: the config and the sizes of a step. Finds all that a run would find before it samples, except in weights."""
    from gotr1_core.components.limits import step_sizes
    from gotr1_core.components.preflight import check, preflight_prompts
    from gotr1_core.components.prompt_checks import note_prompts
    from gotr1_core.components.prompts import count_repeats, note_repeats, own_prompts, prompts_of
    from gotr1_core.config.models import dump
    from gotr1_core.runs.records import check_output

    if is_new:
        check_output(config)
    count = 1 if processes is None else processes.num_processes
    sizes: dict[str, Any] = step_sizes(config, count, check(common.registry(), config, count).sizes)
    source, held_out = prompts_of(common.registry(), config.prompts)
    preflight_prompts(common.registry(), config, own_prompts(source), held_out)
    note_prompts(common.registry(), config, own_prompts(source), held_out, quiet=False)
    note_repeats(count_repeats(source, held_out))
    if as_json:
        print(json.dumps({"config": config.model_dump(mode="json"), "sizes": sizes}))
        return
    print(dump(config), end="")
    print("\n# sizes of a step")
    for name, value in sizes.items():
        print(f"# {name:<38}{'not known beforehand' if value is None else value}")
