"""Starts or resumes a run: the functions behind ``gotr1 train``."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import set_seed

from gotr1_core.components.build import build, prepare
from gotr1_core.components.inputs import absolute_inputs, run_inputs
from gotr1_core.components.limits import check_limits
from gotr1_core.components.preflight import check, check_prompts, preflight_prompts
from gotr1_core.components.prompts import all_prompts, count_repeats, note_repeats, prompts_of
from gotr1_core.config.merge import merge, parse_overrides
from gotr1_core.config.models import RunConfig, dump, flatten_keys, validate
from gotr1_core.engine.accelerate_settings import refuse_settings
from gotr1_core.engine.collectives import gather_objects, make_accelerator
from gotr1_core.engine.files import read_json, write_atomically
from gotr1_core.engine.interrupts import Interrupted, ignore_sigterm
from gotr1_core.engine.out_of_memory import explain_out_of_memory
from gotr1_core.errors import UsageError
from gotr1_core.loop import Trainer, run_loop
from gotr1_core.plugins import Registry
from gotr1_core.protocols import PromptSource
from gotr1_core.rollout import Parts
from gotr1_core.runs.checkpoint import CHECKPOINTS, complete_checkpoints, explain_full_disk, find_damage, read_state
from gotr1_core.runs.inputs import COMPONENTS, check_inputs
from gotr1_core.runs.launched import is_launched
from gotr1_core.runs.recorder import Run
from gotr1_core.runs.records import CONFIG, ENVIRONMENT, check_output, environment, lock_folder, new_folder, run_config
from gotr1_core.runs.trackers import Tracker
from gotr1_core.runs.trainer_state import load_trainer
from gotr1_core.samples import Prompt

# Keys that cannot change in a resume. Otherwise checkpoints would not load, or scores before and after could not be compared.
FIXED_KEYS = (
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
    """Trains a new run, in a new folder.

    Args:
        config: the run's config.
        registry: the plugins; all installed ones if not given.
        parts: your own components, instead of those in the config. The config still decides about LoRA and about what is frozen.
        source: training prompts, instead of the config's.
        held_out: held-out prompts, instead of the config's.
        listeners: objects with lifecycle hooks (:mod:`gotr1_core.hookspecs`).
        cpu: trains on the CPU even if there is a GPU.

    Returns:
        The finished run: its folder, and held-out scores in ``records.held_out``.

    Raises:
        UsageError: the config asks for something impossible.
        Interrupted: the user stopped the run; :func:`resume` continues it.
        Gotr1Error: nothing could be learnt, or memory or disk space ran out.
    """
    registry = registry or Registry()
    for file in config.plugins:
        registry.add_file(file)
    config = absolute_inputs(registry, config)
    accelerator = make_accelerator(config.mixed_precision, cpu=cpu)
    if accelerator.is_main_process:  # it writes a file for a moment
        check_output(config)
    reads = _reads(parts, source, held_out)
    trainer, held_out = _make_trainer(registry, config, accelerator, parts, source, held_out)
    main = accelerator.is_main_process
    repeats = count_repeats(trainer.source, held_out)
    if main:
        note_repeats(repeats, config.prompts)
    made = str(new_folder(registry, config, run_inputs(registry, config, reads), recorded={"prompts": repeats})) if main else ""
    folder = Path(gather_objects(accelerator, made)[0])
    with _lock_run(folder, main=main):
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
) -> Run:
    """Continues a run from its last complete checkpoint, or from the start if it has none. On one machine it repeats bit for bit.

    Args:
        folder: the run's folder.
        words: KEY=VALUE changes of the config; :data:`FIXED_KEYS` cannot change.
        registry, parts, source, held_out, listeners, cpu: as in :func:`train`, and so is what it returns.

    Raises:
        UsageError: no run is there, it is finished, a change is refused, a file is damaged, or the run would read other files than it
            started with (:func:`accept_changes` accepts them).
        Interrupted: the user stopped the run again.
        Gotr1Error: nothing could be learnt, or memory or disk space ran out.
    """
    registry = registry or Registry()
    run_config(folder)  # refuses a folder that is not a run
    on_cpu = cpu or not torch.cuda.is_available()
    refuse_settings(cpu=on_cpu)
    main = PartialState(cpu=on_cpu).is_main_process  # needs no config, which is read in the lock
    with _lock_run(folder, main=main):
        config, changed = resumed_config(folder, words)
        for file in config.plugins:
            registry.add_file(file)
        config, reads = absolute_inputs(registry, config), _reads(parts, source, held_out)
        check_inputs(folder, registry, config, reads)
        accelerator = make_accelerator(config.mixed_precision, cpu=cpu)
        last = _last_checkpoint(folder, main=main)
        trainer, held_out = _make_trainer(registry, config, accelerator, parts, source, held_out)
        check_inputs(folder, registry, config, reads)  # again: a model may have been downloaded, or a file edited while models loaded
        rows = load_trainer(trainer, last) if last else None
        if main:
            for unfinished in (folder / CHECKPOINTS).glob("*.part"):  # a killed process was writing them
                shutil.rmtree(unfinished, ignore_errors=True)
            _record_resume(folder, registry, config, changed, last)
        run = Run(folder, config, registry.manager, main=main)
        run.records.truncate(rows)
        return _train(trainer, held_out, run, listeners)


def _reads(parts: Parts | None, source: PromptSource | None, held_out: Sequence[Prompt] | None) -> Sequence[str]:
    """The first words of the config keys whose files a run reads. What is given to it is not read."""
    components = COMPONENTS if parts is None else ("plugins",)
    return components if source is not None and held_out is not None else (*components, "prompts")


def _last_checkpoint(folder: Path, *, main: bool) -> Path | None:
    """The last complete checkpoint, if there is one. Warns of every later one that is damaged."""
    complete = complete_checkpoints(folder)
    last = max(complete, default=0)
    for checkpoint in sorted((folder / CHECKPOINTS).glob("step-*")):
        number = checkpoint.name.removeprefix("step-")
        if main and number.isdigit() and int(number) > last:
            start = complete[last].name if last else "the start"
            print(f"warning: {checkpoint} is damaged: {find_damage(checkpoint, deep=False)}; going on from {start}", file=sys.stderr)
    return complete.get(last)


def resumed_config(folder: Path, words: Sequence[str]) -> tuple[RunConfig, dict[str, tuple[Any, Any]]]:
    """A run's config with KEY=VALUE changes, and the changed keys: dotted key to (old value, new value).

    Raises:
        UsageError: no run is there, it is finished, or a key cannot change.
    """
    old = run_config(folder)
    config = validate(RunConfig, merge(old.model_dump(mode="json"), parse_overrides(words)))
    before, after = flatten_keys(old.model_dump(mode="json")), flatten_keys(config.model_dump(mode="json"))
    changed = {key: (before.get(key), after.get(key)) for key in {**before, **after} if before.get(key) != after.get(key)}
    # If evaluation uses training's sampling, changing it would make scores before and after differ.
    fixed_keys = FIXED_KEYS if old.evaluation.sampling else (*FIXED_KEYS, "sampling")
    for key, (old_value, new_value) in changed.items():
        if any(key == fixed or key.startswith(f"{fixed}.") for fixed in fixed_keys):
            raise UsageError(
                f"{key} cannot change when a run is resumed (it was {old_value!r}, not {new_value!r})", hint="start a new run with it"
            )
    done = max(complete_checkpoints(folder), default=0)
    state = read_state(complete_checkpoints(folder)[done], deep=False) if done else {}
    if config.steps < done or (config.steps == done and not state.get("pending")):
        raise UsageError(f"{folder} has done {done} of {config.steps} steps", hint=f"steps={done + old.steps} would continue it")
    return config, changed


def _record_resume(folder: Path, registry: Registry, config: RunConfig, changed: Mapping[str, Any], last: Path | None) -> None:
    """Writes the changed config, and adds to the environment where the run continued and what changed."""
    recorded = read_json(folder / ENVIRONMENT)
    resumed = {"from": last.name if last else None, "changed": dict(changed), **environment(registry, config)}
    recorded["resumed"] = [*recorded.get("resumed", ()), resumed]
    write_atomically(folder / CONFIG, dump(config, folder))
    write_atomically(folder / ENVIRONMENT, json.dumps(recorded, indent=1))


def _make_trainer(
    registry: Registry,
    config: RunConfig,
    accelerator: Accelerator,
    parts: Parts | None,
    source: PromptSource | None,
    held_out: Sequence[Prompt] | None,
) -> tuple[Trainer, Sequence[Prompt]]:
    """Checks the config, makes what is not given from it, and returns the trainer and the held-out prompts.

    A command checks its config once: the processes of gotr1's launcher do not check it again.
    """
    algorithm = None
    if parts is not None:
        check_limits(config, accelerator.num_processes)
    elif not is_launched():
        algorithm = check(registry, config, accelerator.num_processes).algorithm
    if source is None or held_out is None:
        config_source, config_held_out = prompts_of(registry, config.prompts)
        source, held_out = source or config_source, config_held_out if held_out is None else held_out
    prompts = all_prompts(source, held_out)
    if parts is None:
        preflight_prompts(registry, config, prompts)
    set_seed(config.seed)  # for LoRA's initial weights
    with explain_out_of_memory("loading", config):
        if parts is None:
            parts = build(registry, config, device=accelerator.device, preflight=False, algorithm=algorithm)
        else:
            prepare(parts, config)
        trainer = Trainer(config, parts, source, accelerator)
    check_prompts(parts.planner, prompts, trainer.sampling)
    return trainer, held_out


def _train(trainer: Trainer, held_out: Sequence[Prompt], run: Run, listeners: Sequence[object]) -> Run:
    """Runs the training loop, and tells listeners how it began and ended."""
    outcome = "failed"
    with closing(run.records), _registered(run, [*listeners, *([Tracker(run.config)] if run.main and run.config.tracker else [])]):
        try:
            run.started(trainer.at.step)
            run_loop(trainer, held_out, run)
            outcome = "finished"
        except Interrupted:
            outcome = "interrupted"
            raise
        except KeyboardInterrupt:
            outcome = "interrupted"
            when = "before the first step was saved" if not complete_checkpoints(run.folder) else "in the middle of a step"
            raise Interrupted(f"interrupted {when}", hint=f"gotr1 train --resume {run.folder} goes on") from None
        finally:
            with ignore_sigterm():
                run.finished(outcome)
    return run


@contextmanager
def _lock_run(folder: Path, *, main: bool) -> Iterator[None]:
    """Locks a run's folder against other runs, and explains a full disk."""
    with explain_full_disk(folder, again=f"gotr1 train --resume {folder}"), lock_folder(folder) if main else nullcontext():
        yield


@contextmanager
def _registered(run: Run, listeners: Sequence[object]) -> Iterator[None]:
    """Registers listeners with the run's plugin manager while the block runs."""
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
