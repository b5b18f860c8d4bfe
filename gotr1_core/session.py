"""Starts a run, or goes on with one: what ``gotr1 train`` does, as functions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from gotr1_core.build import Parts, build, check, held_out_prompts, prepare, training_prompts
from gotr1_core.checkpoint import CHECKPOINTS, NO_ROOM, checkpoints, no_room, write_atomically
from gotr1_core.config import RunConfig, dump, flat, merge, overrides, read_yaml, validate
from gotr1_core.errors import UsageError
from gotr1_core.memory import explained
from gotr1_core.plugins import Registry
from gotr1_core.protocols import PromptSource
from gotr1_core.run import Run
from gotr1_core.samples import Prompt
from gotr1_core.stop import Interrupted
from gotr1_core.trackers import Tracker
from gotr1_core.tracking import CONFIG, ENVIRONMENT, check_free, environment, locked, new_folder
from gotr1_core.train import Trainer
from gotr1_core.train import train as run_loop

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

    Returns:
        The finished run: its folder, and held-out scores in ``records.held_out``.

    Raises:
        UsageError: the config asks for something that cannot be.
        Interrupted: the user stopped it; :func:`resume` goes on.
        Gotr1Error: nothing could be learnt, no memory or no room on the disk.
    """
    registry = registry or Registry()
    if parts is None:
        check(registry, config)
    check_free(config)
    source = source or training_prompts(registry, config.prompts)
    held_out = held_out if held_out is not None else held_out_prompts(registry, config.prompts)
    trainer = make_trainer(config, registry, parts, source, cpu=cpu)
    folder = new_folder(registry, config) if trainer.accelerator.is_main_process else config.output
    return _train(trainer, held_out, _together(trainer.accelerator, folder), registry, listeners, None)


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
) -> Run:
    """Goes on with a run from its last whole checkpoint, bit for bit on the same machine; from the start where there is none.

    ``words`` are KEY=VALUE changes; those that would break the run are refused. The rest as in :func:`start`.
    """
    registry = registry or Registry()
    config, changed = resumed_config(folder, words)
    for file in config.plugins:
        registry.add_file(file)
    if parts is None:
        check(registry, config)
    last = list(checkpoints(folder).values())[-1:]
    source = source or training_prompts(registry, config.prompts)
    held_out = held_out if held_out is not None else held_out_prompts(registry, config.prompts)
    trainer = make_trainer(config, registry, parts, source, cpu=cpu)
    if trainer.accelerator.is_main_process:
        for part in (folder / CHECKPOINTS).glob("*.part"):  # what a killed process was writing
            shutil.rmtree(part, ignore_errors=True)
        _note(folder, registry, config, changed, last)
    return _train(trainer, held_out, folder, registry, listeners, last[0] if last else None, resumed=True)


def resumed_config(folder: Path, words: Sequence[str]) -> tuple[RunConfig, dict[str, tuple[Any, Any]]]:
    """A run's config with changes, and what differs: dotted key to old and new value.

    Raises:
        UsageError: no run, a finished one, or a change that would break it.
    """
    if not (folder / CONFIG).is_file():
        raise UsageError(f"{folder} is no run", hint="give the folder that `gotr1 train` named")
    old = validate(RunConfig, read_yaml(folder / CONFIG))
    config = validate(RunConfig, merge(old.model_dump(mode="json"), overrides(words)))
    before, after = flat(old.model_dump(mode="json")), flat(config.model_dump(mode="json"))
    changed = {key: (before.get(key), after.get(key)) for key in {**before, **after} if before.get(key) != after.get(key)}
    for key, (was, now) in changed.items():
        if any(key == fixed or key.startswith(f"{fixed}.") for fixed in FIXED):
            raise UsageError(f"{key} cannot change when a run is resumed (it was {was!r}, not {now!r})", hint="start a new run with it")
    done = max(checkpoints(folder), default=0)
    state = json.loads((checkpoints(folder)[done] / "state.json").read_text()) if done else {}
    if config.steps < done or (config.steps == done and not state.get("pending")):
        raise UsageError(f"{folder} has done {done} of {config.steps} steps", hint=f"steps={done + old.steps} would go on with it")
    return config, changed


def _note(folder: Path, registry: Registry, config: RunConfig, changed: Mapping[str, Any], last: Sequence[Path]) -> None:
    """Keeps the changed config, and in the environment where the run went on and what was different."""
    known = json.loads((folder / ENVIRONMENT).read_text(encoding="utf-8"))
    now = {"from": last[0].name if last else None, "changed": dict(changed), **environment(registry, config)}
    known["resumed"] = [*known.get("resumed", ()), now]
    write_atomically(folder / CONFIG, dump(config))
    write_atomically(folder / ENVIRONMENT, json.dumps(known, indent=1))


def make_trainer(config: RunConfig, registry: Registry, parts: Parts | None, source: PromptSource, *, cpu: bool) -> Trainer:
    """The components with their weights, and the loop around them."""
    set_seed(config.seed)  # what LoRA draws
    accelerator = Accelerator(mixed_precision=config.mixed_precision, cpu=cpu or not torch.cuda.is_available())
    with explained("loading", config):
        if parts is None:
            parts = build(registry, config, device=accelerator.device)
        else:
            prepare(parts, config)
        return Trainer(config, parts, source, accelerator)


def _together(accelerator: Accelerator, folder: Path) -> Path:
    """The main process's folder, on every process."""
    if accelerator.num_processes == 1:
        return folder
    from accelerate.utils import broadcast_object_list

    return Path(broadcast_object_list([str(folder)])[0])


def _train(
    trainer: Trainer,
    held_out: Sequence[Prompt],
    folder: Path,
    registry: Registry,
    listeners: Sequence[object],
    checkpoint: Path | None,
    *,
    resumed: bool = False,
) -> Run:
    main = trainer.accelerator.is_main_process
    with _writing(folder, main=main):
        run = Run(folder, trainer.config, registry.manager, main=main)
        if resumed:
            run.records.cut(trainer.load(checkpoint) if checkpoint else None)
        mine = [*listeners, *([Tracker(trainer.config)] if main and trainer.config.tracker else [])]
        with _listening(registry, mine):
            outcome = "failed"
            try:
                run.started(trainer.at.step)
                run_loop(trainer, held_out, run)
                outcome = "finished"
            except (Interrupted, KeyboardInterrupt):
                outcome = "interrupted"
                raise
            finally:
                run.finished(outcome)
    return run


@contextmanager
def _writing(folder: Path, *, main: bool) -> Iterator[None]:
    """Holds the folder, and says what to do when it cannot be written to."""
    try:
        if main:
            with locked(folder):
                yield
        else:
            yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise no_room(error, folder) from error


@contextmanager
def _listening(registry: Registry, listeners: Sequence[object]) -> Iterator[None]:
    for listener in listeners:
        registry.manager.register(listener, name=type(listener).__name__)
    try:
        yield
    finally:
        for listener in listeners:
            if registry.manager.is_registered(listener):  # one that failed is not
                registry.manager.unregister(listener)
