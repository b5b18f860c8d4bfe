"""Starts a run, or goes on with one: what ``gotr1 train`` does, as functions."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, set_seed

from gotr1_core.components.build import build, prepare
from gotr1_core.components.limits import check_limits
from gotr1_core.components.preflight import Checked, check, check_prompts
from gotr1_core.components.prompts import FilePrompts, prompts_of
from gotr1_core.config.merge import merge, overrides, read_yaml
from gotr1_core.config.models import RunConfig, dump, flat, validate
from gotr1_core.engine.collectives import gather_objects, make_accelerator
from gotr1_core.engine.files import read_json, write_atomically
from gotr1_core.engine.interrupts import Interrupted, ending
from gotr1_core.engine.out_of_memory import explained
from gotr1_core.errors import UsageError
from gotr1_core.loop import Trainer, run_loop
from gotr1_core.plugins import Registry
from gotr1_core.protocols import PromptSource
from gotr1_core.rollout import Parts
from gotr1_core.runs.checkpoint import CHECKPOINTS, checkpoints, damage, read_state, writing
from gotr1_core.runs.recorder import Run
from gotr1_core.runs.records import CONFIG, ENVIRONMENT, check_free, environment, locked, new_folder
from gotr1_core.runs.trackers import Tracker
from gotr1_core.runs.trainer_state import load_trainer
from gotr1_core.samples import Prompt

# What a run is: with another of these its checkpoint would not load, or its scores before and after would not compare.
FIXED = (
    *("planner", "renderer", "judge", "algorithm.name", "reward", "train", "lora", "seed", "prompts", "plugins", "output", "name"),
    *("evaluation.seed", "evaluation.sampling", "evaluation.metric", "evaluation.prompts", "evaluation.best_of", "evaluation.greedy"),
)


def train(
    config: RunConfig,
    *,
    registry: Registry | None = None,
    parts: Parts | None = None,
    source: PromptSource | None = None,
    held_out: Sequence[Prompt] | None = None,
    listeners: Sequence[object] = (),
    cpu: bool = False,
    launched: bool = False,
) -> Run:
    """Trains as a config says, into a folder of its own.

    Args:
        config: everything about the run.
        registry: the plugins; all that are installed if not given.
        parts: components made by hand, in place of those that the config names; LoRA and freezing are the config's all the same.
        source: training prompts, in place of the config's.
        held_out: evaluation prompts, in place of the config's.
        listeners: objects with lifecycle hooks (:mod:`gotr1_core.hookspecs`).
        cpu: train on the CPU although there is a GPU.
        launched: this is one of several processes, and their launcher has checked the config.

    Returns:
        The finished run: its folder, and held-out scores in ``records.held_out``.

    Raises:
        UsageError: the config asks for something that cannot be.
        Interrupted: the user stopped it; :func:`resume` goes on.
        Gotr1Error: nothing could be learnt, no memory or no room on the disk.
    """
    registry = registry or Registry()
    for file in config.plugins:
        registry.add_file(file)
    accelerator = _accelerator(config, cpu=cpu)
    checked = _check(registry, config, accelerator, parts, launched=launched)
    check_free(config)
    source, held_out = _prompts(registry, config, source, held_out)
    parts = _parts(registry, config, accelerator, parts, checked)
    trainer = make_trainer(config, parts, source, held_out, accelerator)
    main = accelerator.is_main_process
    folder = Path(gather_objects(accelerator, str(new_folder(registry, config)) if main else "")[0])
    with _holding(folder, main=main):
        return _train(trainer, held_out, Run(folder, config, registry.manager, main=main), listeners)


def resume(
    folder: Path,
    words: Sequence[str] = (),
    *,
    registry: Registry | None = None,
    parts: Parts | None = None,
    source: PromptSource | None = None,
    held_out: Sequence[Prompt] | None = None,
    listeners: Sequence[object] = (),
    cpu: bool = False,
    launched: bool = False,
) -> Run:
    """Goes on with a run from its last whole checkpoint, bit for bit on the same machine; from the start where there is none.

    ``words`` are KEY=VALUE changes; those that would break the run are refused. The rest as in :func:`start`.
    """
    registry = registry or Registry()
    _known(folder)
    main = _state(cpu=cpu).is_main_process
    with _holding(folder, main=main):
        config, changed = resumed_config(folder, words)
        for file in config.plugins:
            registry.add_file(file)
        accelerator = _accelerator(config, cpu=cpu)
        checked = _check(registry, config, accelerator, parts, launched=launched)
        last = _last_checkpoint(folder, main=main)
        source, held_out = _prompts(registry, config, source, held_out)
        parts = _parts(registry, config, accelerator, parts, checked)
        trainer = make_trainer(config, parts, source, held_out, accelerator)
        rows = load_trainer(trainer, last) if last else None
        if main:
            for part in (folder / CHECKPOINTS).glob("*.part"):  # what a killed process was writing
                shutil.rmtree(part, ignore_errors=True)
            _note(folder, registry, config, changed, last)
        run = Run(folder, config, registry.manager, main=main)
        run.records.cut(rows)
        return _train(trainer, held_out, run, listeners)


def _known(folder: Path) -> None:
    if not (folder / CONFIG).is_file():
        raise UsageError(f"{folder} is no run", hint="give the folder that `gotr1 train` named")


def _last_checkpoint(folder: Path, *, main: bool) -> Path | None:
    """The last whole checkpoint, and a warning for every later one that is not."""
    found = checkpoints(folder)
    last = max(found, default=0)
    for other in sorted((folder / CHECKPOINTS).glob("step-*")):
        number = other.name.removeprefix("step-")
        if main and number.isdigit() and int(number) > last:
            where = found[last].name if last else "the start"
            print(f"warning: {other} is damaged: {damage(other, deep=False)}; going on from {where}", file=sys.stderr)
    return found.get(last)


def resumed_config(folder: Path, words: Sequence[str]) -> tuple[RunConfig, dict[str, tuple[Any, Any]]]:
    """A run's config with changes, and what differs: dotted key to old and new value.

    Raises:
        UsageError: no run, a finished one, or a change that would break it.
    """
    _known(folder)
    old = validate(RunConfig, read_yaml(folder / CONFIG))
    config = validate(RunConfig, merge(old.model_dump(mode="json"), overrides(words)))
    before, after = flat(old.model_dump(mode="json")), flat(config.model_dump(mode="json"))
    changed = {key: (before.get(key), after.get(key)) for key in {**before, **after} if before.get(key) != after.get(key)}
    # Where evaluation has no sampling of its own, scores before and after would be drawn differently.
    settled = FIXED if old.evaluation.sampling else (*FIXED, "sampling")
    for key, (was, now) in changed.items():
        if any(key == fixed or key.startswith(f"{fixed}.") for fixed in settled):
            raise UsageError(f"{key} cannot change when a run is resumed (it was {was!r}, not {now!r})", hint="start a new run with it")
    done = max(checkpoints(folder), default=0)
    state = read_state(checkpoints(folder)[done], deep=False) if done else {}
    if config.steps < done or (config.steps == done and not state.get("pending")):
        raise UsageError(f"{folder} has done {done} of {config.steps} steps", hint=f"steps={done + old.steps} would go on with it")
    return config, changed


def _note(folder: Path, registry: Registry, config: RunConfig, changed: Mapping[str, Any], last: Path | None) -> None:
    """Keeps the changed config, and in the environment where the run went on and what was different."""
    known = read_json(folder / ENVIRONMENT)
    now = {"from": last.name if last else None, "changed": dict(changed), **environment(registry, config)}
    known["resumed"] = [*known.get("resumed", ()), now]
    write_atomically(folder / CONFIG, dump(config))
    write_atomically(folder / ENVIRONMENT, json.dumps(known, indent=1))


def _state(*, cpu: bool) -> PartialState:
    """This process among the others, before anything about the run is known."""
    _check_whole()
    return PartialState(cpu=cpu or not torch.cuda.is_available())


def _accelerator(config: RunConfig, *, cpu: bool) -> Accelerator:
    _check_whole()
    accelerator = make_accelerator(config.mixed_precision, cpu=cpu)
    if accelerator.distributed_type not in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise _not_whole(accelerator.distributed_type.value)
    return accelerator


def _check_whole() -> None:
    """Refuses what `accelerate launch` asks for by the environment, of which accelerate itself takes no notice on a CPU."""
    for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true":
            raise _not_whole(name)


def _not_whole(asked: str) -> UsageError:
    return UsageError(
        f"accelerate was asked for {asked}, and gotr1 spreads models over processes itself",
        hint="gotr1 train … shard=true lora=null -- --num-processes N",
    )


def _check(registry: Registry, config: RunConfig, accelerator: Accelerator, parts: Parts | None, *, launched: bool) -> Checked | None:
    """Checks a config once in a command: not where the launcher of this process has, and less where components were made by hand."""
    if parts is not None:
        check_limits(config, accelerator.num_processes)
    elif not launched:
        return check(registry, config, accelerator.num_processes)
    return None


def _prompts(
    registry: Registry, config: RunConfig, source: PromptSource | None, held_out: Sequence[Prompt] | None
) -> tuple[PromptSource, Sequence[Prompt]]:
    """Training and held-out prompts; those of the config where others are not given."""
    if source is not None and held_out is not None:
        return source, held_out
    own_source, own_held_out = prompts_of(registry, config.prompts)
    return source or own_source, own_held_out if held_out is None else held_out


def _parts(registry: Registry, config: RunConfig, accelerator: Accelerator, parts: Parts | None, checked: Checked | None) -> Parts:
    """The components with their weights, made from the config where they were not made by hand."""
    set_seed(config.seed)  # what LoRA draws
    with explained("loading", config):
        if parts is not None:
            prepare(parts, config)
            return parts
        algorithm = checked.algorithm if checked else None
        return build(registry, config, device=accelerator.device, preflight=False, algorithm=algorithm)


def make_trainer(config: RunConfig, parts: Parts, source: PromptSource, held_out: Sequence[Prompt], accelerator: Accelerator) -> Trainer:
    """The loop around components whose weights are loaded."""
    with explained("loading", config):
        trainer = Trainer(config, parts, source, accelerator)
    check_prompts(parts.planner, [*held_out, *(source.all if isinstance(source, FilePrompts) else ())], trainer.sampling)
    return trainer


def _train(trainer: Trainer, held_out: Sequence[Prompt], run: Run, listeners: Sequence[object]) -> Run:
    outcome = "failed"
    with closing(run.records), _listening(run, [*listeners, *_trackers(run)]):
        try:
            run.started(trainer.at.step)
            run_loop(trainer, held_out, run)
            outcome = "finished"
        except Interrupted:
            outcome = "interrupted"
            raise
        except KeyboardInterrupt:
            outcome = "interrupted"
            where = "before the first step was saved" if not checkpoints(run.folder) else "in the middle of a step"
            raise Interrupted(f"interrupted {where}", hint=f"gotr1 train --resume {run.folder} goes on") from None
        finally:
            with ending():
                run.finished(outcome)
    return run


def _trackers(run: Run) -> list[object]:
    return [Tracker(run.config)] if run.main and run.config.tracker else []


@contextmanager
def _holding(folder: Path, *, main: bool) -> Iterator[None]:
    """Keeps other processes out of a run's folder, and says what to do when it cannot be written to."""
    with writing(folder, again=f"gotr1 train --resume {folder}"), locked(folder) if main else nullcontext():
        yield


@contextmanager
def _listening(run: Run, listeners: Sequence[object]) -> Iterator[None]:
    manager = run.manager
    try:
        for listener in listeners:
            name = type(listener).__name__
            manager.register(listener, name=f"{name} {id(listener)}" if manager.has_plugin(name) else name)
        yield
    finally:
        for listener in listeners:
            if manager.is_registered(listener):
                manager.unregister(listener)
