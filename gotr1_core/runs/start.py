"""Starts or resumes a run: the functions behind ``gotr1 train``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import set_seed

from gotr1_core.border.calls import call_join_run
from gotr1_core.border.registration import hook_problem
from gotr1_core.components.build import build, prepare
from gotr1_core.components.inputs import absolute_inputs, check_unchanged, run_inputs
from gotr1_core.components.limits import check_limits
from gotr1_core.components.preflight import check, check_prompts, preflight_prompts
from gotr1_core.components.prompt_checks import note_prompts
from gotr1_core.components.prompts import count_repeats, note_repeats, own_prompts, prompts_of
from gotr1_core.components.resolve import add_config_plugins
from gotr1_core.config.merge import merge, parse_overrides
from gotr1_core.config.models import ComponentConfig, JudgeConfig, RunConfig, dump, flatten_keys, make_sampling, validate
from gotr1_core.engine.accelerate_settings import refuse_settings
from gotr1_core.engine.collectives import gather_objects, make_accelerator, wait_for_all
from gotr1_core.engine.console import print
from gotr1_core.engine.files import write_atomically
from gotr1_core.engine.interrupts import Interrupted, ignore_sigterm
from gotr1_core.engine.out_of_memory import explain_out_of_memory
from gotr1_core.errors import UsageError
from gotr1_core.loop import Trainer, evaluations_before, run_loop
from gotr1_core.plugins import Registry, load
from gotr1_core.protocols import PromptSource
from gotr1_core.rollout import Parts
from gotr1_core.runs.checkpoint import complete_checkpoints, explain_full_disk, remove_leftovers, warn_of_damage
from gotr1_core.runs.inputs import COMPONENTS, check_inputs
from gotr1_core.runs.launched import is_launched
from gotr1_core.runs.losses import Losses, find_losses, mend_records
from gotr1_core.runs.outcome import FAILED, FINISHED, Outcome, outcome_of
from gotr1_core.runs.recorder import Run
from gotr1_core.runs.records import CONFIG, ENVIRONMENT, check_output, environment, lock_folder, new_folder, read_environment, run_config
from gotr1_core.runs.trackers import Tracker
from gotr1_core.runs.trainer_state import load_trainer
from gotr1_core.samples import Prompt, Sample

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
    _check_listeners(listeners)
    add_config_plugins(registry, config.plugins)
    config = absolute_inputs(registry, config)
    accelerator = make_accelerator(config.mixed_precision, cpu=cpu)
    if accelerator.is_main_process:  # it writes a file for a moment
        check_output(config)
    reads, main = _reads(parts, source, held_out), accelerator.is_main_process
    before = run_inputs(registry, config, reads) if main else {}
    trainer, held_out = _make_trainer(registry, config, accelerator, parts, source, held_out)
    inputs = run_inputs(registry, config, reads) if main else {}  # again: a model may have been downloaded, or a file edited
    check_unchanged(before, inputs)
    repeats = count_repeats(trainer.source, held_out)
    if main:
        note_repeats(repeats)
    made = str(new_folder(registry, config, inputs, recorded={"prompts": repeats})) if main else ""
    folder = Path(gather_objects(accelerator, made)[0])
    with _lock_run(folder, main=main):
        return _train(trainer, held_out, Run(folder, config, registry.manager, main=main), listeners, {})


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
    _check_listeners(listeners)
    run_config(folder)  # refuses a folder that is not a run
    on_cpu = cpu or not torch.cuda.is_available()
    refuse_settings(cpu=on_cpu)
    main = PartialState(cpu=on_cpu).is_main_process  # needs no config, which is read in the lock
    with _lock_run(folder, main=main):
        config, changed = resumed_config(folder, words, registry)
        add_config_plugins(registry, config.plugins)
        config, reads = absolute_inputs(registry, config), _reads(parts, source, held_out)
        check_inputs(folder, registry, config, reads)
        accelerator = make_accelerator(config.mixed_precision, cpu=cpu)
        last = gather_objects(accelerator, _last_checkpoint(folder) if main else None)[0]
        losses = gather_objects(accelerator, find_losses(folder, config, last) if main else None)[0]
        prepared, redone = None, {}
        if losses.evaluations or not losses.is_done:  # otherwise no weights are needed
            prepared = _make_trainer(registry, config, accelerator, parts, source, held_out)
            check_inputs(folder, registry, config, reads)  # again: a model may have been downloaded, or a file edited while models loaded
            redone = _evaluate_again(*prepared, losses)
            if last is not None:
                load_trainer(prepared[0], last)
        if main:
            mend_records(folder, losses)
            _record_resume(folder, registry, config, changed, last, losses)
        wait_for_all(accelerator)  # before the others read what was mended
        run = Run(folder, config, registry.manager, main=main)
        run.records.truncate(len(losses.rows) if last else None, is_done=losses.is_done)
        if prepared is None:
            return _watched(run, listeners, config.steps, lambda: None)
        return _train(*prepared, run, listeners, redone)


def _check_listeners(listeners: Sequence[object]) -> None:
    """Refuses listeners with hooks that nobody would call. A registry checks the listeners of plugins."""
    for problem in filter(None, map(hook_problem, listeners)):
        raise UsageError(f"a listener is broken: {problem}", hint="mend it; docs/plugins.md lists the hooks")


def _reads(parts: Parts | None, source: PromptSource | None, held_out: Sequence[Prompt] | None) -> Sequence[str]:
    """The first words of the config keys whose files a run reads. What is given to it is not read."""
    components = COMPONENTS if parts is None else ("plugins",)
    return components if source is not None and held_out is not None else (*components, "prompts")


def _last_checkpoint(folder: Path) -> Path | None:
    """The last complete checkpoint, if there is one. Removes what a killed process left, and warns of what is damaged."""
    remove_leftovers(folder)
    complete = complete_checkpoints(folder)
    last = complete.get(max(complete, default=0))
    warn_of_damage(folder, f"going on from {last.name if last else 'the start'}")
    return last


def _evaluate_again(trainer: Trainer, held_out: Sequence[Prompt], losses: Losses) -> dict[str, Sequence[Sample]]:
    """Makes the lost evaluations of the untrained model again, by name. The trainer must have the weights that the run started from."""
    wanted = evaluations_before(trainer.config)
    return {name: trainer.evaluate_prompts(held_out, **wanted[name]) for name in losses.evaluations if name in wanted}


def resumed_config(folder: Path, words: Sequence[str], registry: Registry | None = None) -> tuple[RunConfig, dict[str, tuple[Any, Any]]]:
    """A run's config with KEY=VALUE changes, and the changed keys: dotted key to (old value, new value).

    ``registry`` finds the options of planner and judges that may change.

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
        if key == "judge" and registry and _lasting(registry, old.judge) == _lasting(registry, config.judge):
            continue
        if key.startswith("planner.") and registry and key.removeprefix("planner.") in _changeable(registry, "planner", config.planner):
            continue
        if any(key == fixed or key.startswith(f"{fixed}.") for fixed in fixed_keys):
            raise UsageError(
                f"{key} cannot change when a run is resumed (it was {old_value!r}, not {new_value!r})", hint="start a new run with it"
            )
    complete = complete_checkpoints(folder)
    done = max(complete, default=0)
    losses = find_losses(folder, config, complete.get(done))
    if config.steps < done or (losses.is_done and not losses):
        raise UsageError(f"{folder} has done {done} of {config.steps} steps", hint=f"steps={done + old.steps} would continue it")
    return config, changed


def _changeable(registry: Registry, kind: Literal["planner", "judge"], component: ComponentConfig) -> Collection[str]:
    """The options of a component that may change when a run is resumed: those that its options' class lists as ``changeable``."""
    options = registry.find(kind, component.name).component.options
    return () if options is None else getattr(load(options), "changeable", ())


def _lasting(registry: Registry, judges: Sequence[JudgeConfig]) -> list[dict[str, Any]]:
    """What is not changeable of judges' configs."""
    return [{k: v for k, v in j.model_dump().items() if k not in _changeable(registry, "judge", j)} for j in judges]


def _record_resume(
    folder: Path, registry: Registry, config: RunConfig, changed: Mapping[str, Any], last: Path | None, losses: Losses
) -> None:
    """Writes the changed config, and adds to the environment where the run continued, what changed and what was lost. Says the latter."""
    for text in losses.texts:
        print(f"warning: {folder}: {text}. The run goes on, and its report says so.", file=sys.stderr)
    if losses.report:
        print(f"note: {folder} has done its {config.steps} steps and lacks the report of its end; it is written now", file=sys.stderr)
    recorded = read_environment(folder)
    resumed = {"from": last.name if last else None, "changed": dict(changed), **environment(registry, config)}
    resumed |= {"lost": losses.texts} if losses.texts else {}
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
        is_own = source is not None or held_out is not None or parts is not None  # a program gave them, and knows what they are
        source, held_out = source or config_source, config_held_out if held_out is None else held_out
        if not is_own:
            note_prompts(registry, config, own_prompts(source), held_out, quiet=not accelerator.is_main_process)
    if parts is None:
        preflight_prompts(registry, config, own_prompts(source), held_out)
    set_seed(config.seed)  # for LoRA's initial weights
    with explain_out_of_memory("loading", config):
        if parts is None:
            parts = build(registry, config, device=accelerator.device, preflight=False, algorithm=algorithm)
        else:
            prepare(parts, config)
        trainer = Trainer(config, parts, source, accelerator)
    for prompts in (held_out, own_prompts(source)):
        check_prompts(parts.planner, prompts, trainer.sampling)
    if config.evaluation.sampling is not None:
        check_prompts(parts.planner, held_out, make_sampling(config.evaluation.sampling))
    return trainer, held_out


def _train(
    trainer: Trainer, held_out: Sequence[Prompt], run: Run, listeners: Sequence[object], redone: Mapping[str, Sequence[Sample]]
) -> Run:
    """Runs the training loop. ``redone`` are evaluations of the untrained model that were lost and made again."""

    def work() -> None:
        call_join_run("planner", trainer.parts.planner, run.folder, "planner")
        for label, judge in trainer.parts.judges.judges.items():
            call_join_run("judge", judge, run.folder, label)
        for name, samples in redone.items():
            run.evaluated(name, 0, samples)
        run_loop(trainer, held_out, run)

    return _watched(run, listeners, trainer.at.step, work)


def _watched(run: Run, listeners: Sequence[object], step: int, work: Callable[[], None]) -> Run:
    """Does the work of a run that starts after ``step`` steps, and tells listeners how it began and ended."""
    ended, again = Outcome(FAILED), f"gotr1 train --resume {run.folder}"
    with closing(run.records), _registered(run, [*listeners, *([Tracker(run.config)] if run.main and run.config.tracker else [])]):
        try:
            with explain_full_disk(run.folder, again=again):
                run.started(step)
                work()
            ended = Outcome(FINISHED)
        except KeyboardInterrupt:
            when = "before the first step was saved" if not complete_checkpoints(run.folder) else "in the middle of a step"
            stopped = Interrupted(f"interrupted {when}", hint=f"{again} goes on")
            ended = outcome_of(stopped, run.folder)
            raise stopped from None
        except BaseException as error:
            ended = outcome_of(error, run.folder)
            raise
        finally:
            with ignore_sigterm():
                run.finished(ended)
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
