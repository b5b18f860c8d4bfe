"""Saves a trainer in a checkpoint, and restores it from one."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path

from gotr1_core.engine.algorithm_state import algorithm_state, load_algorithm_state, save_algorithm_state
from gotr1_core.engine.collectives import gather_objects
from gotr1_core.engine.critic import critic_tensors, load_critic
from gotr1_core.engine.tensors import (
    gather_to_cpu,
    load_optimizer,
    load_trainable,
    optimizer_tensors,
    read_tensors,
    save_tensors,
    trainable_tensors,
)
from gotr1_core.errors import UsageError
from gotr1_core.loop import Progress, Trainer
from gotr1_core.runs.checkpoint import (
    ALGORITHM,
    CHECKPOINTS,
    CRITIC,
    EMA_FILE,
    OPTIMIZER,
    STATE,
    TRAINABLE,
    new_checkpoint,
    prune_checkpoints,
    read_state,
)


def save_trainer(trainer: Trainer, run: Path, rows: int) -> Path:
    """Saves trained weights, optimizers, critics, moving averages, the algorithm's own state and the run's progress.

    Returns the checkpoint's folder.

    Every process has to call it, because each may hold shards of the tensors. The main process writes into the folder ``run``.
    The first ``rows`` rows of metrics belong to the checkpoint.

    Raises:
        Gotr1Error: a tensor is not finite; then no checkpoint is written.
    """
    folder = run / CHECKPOINTS / f"step-{trainer.at.step:06d}"
    gathered = gather_objects(trainer.accelerator, (algorithm_state(trainer.parts.algorithm), trainer.state_watch.lost))
    if not trainer.accelerator.is_main_process:
        for learner in trainer.learners.values():  # in the order in which the main process gathers them
            trainable_tensors(learner.policy.module, keep=False)
            optimizer_tensors(learner.optimizer, keep=False)
            if learner.ema is not None:
                gather_to_cpu(learner.ema.tensors, keep=False)
        return folder
    sampling = (trainer.config.evaluation.sampling or trainer.config.sampling).model_dump()
    state = {"rows": rows, "sampling": sampling, "starting": trainer.starting, **asdict(trainer.at)}
    state["lost_state"] = sorted({name for _, lost in gathered for name in lost})
    state["updates"] = {role: learner.updates for role, learner in trainer.learners.items()}
    if trainer.accelerator.scaler is not None:
        state["scaler"] = trainer.accelerator.scaler.state_dict()
    with new_checkpoint(run, trainer.at.step) as unfinished:
        for role, learner in trainer.learners.items():
            (unfinished / role).mkdir()
            save_tensors(trainable_tensors(learner.policy.module), unfinished / role / TRAINABLE)
            save_tensors(optimizer_tensors(learner.optimizer), unfinished / role / OPTIMIZER)
            if learner.ema is not None:
                save_tensors(gather_to_cpu(learner.ema.tensors), unfinished / role / EMA_FILE)
            if learner.critic is not None:
                save_tensors(critic_tensors(learner.critic), unfinished / role / CRITIC)
        if states := [algorithm for algorithm, _ in gathered if algorithm is not None]:
            save_algorithm_state(states, unfinished / ALGORITHM)
        (unfinished / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
    best = trainer.at.best["step"] if trainer.at.best else None
    prune_checkpoints(run, trainer.config.checkpoint.keep, best)
    return folder


def load_trainer(trainer: Trainer, checkpoint: Path) -> None:
    """Restores a trainer from a checkpoint.

    Raises:
        UsageError: the checkpoint is damaged, a policy's starting weights are not those that the run started from, or the algorithm keeps
            state that is not in the checkpoint.
    """
    state = read_state(checkpoint)
    if state.get("lost_state"):
        names, name = ", ".join(state["lost_state"]), trainer.config.algorithm.name
        raise UsageError(
            f"the run cannot go on: the algorithm {name} keeps state that no checkpoint has ({names})",
            hint="start a new run; the algorithm's author can add state_dict and load_state_dict",
        )
    if lacking := trainer.learners.keys() - state["updates"].keys():
        raise UsageError(f"{checkpoint} does not say how many updates {min(lacking)} has had", hint="use another checkpoint of the run")
    accelerator = trainer.accelerator
    load_algorithm_state(trainer.parts.algorithm, checkpoint / ALGORITHM, accelerator.process_index, accelerator.num_processes)
    for role, weights in trainer.starting.items():
        if weights != state["starting"].get(role):
            raise UsageError(
                f"the weights that the {role} starts from are not those that this run started from",
                hint="put the starting weights back, or start a new run",
            )
    for role, learner in trainer.learners.items():
        load_trainable(learner.policy.module, checkpoint / role / TRAINABLE)
        if learner.critic is not None:
            load_critic(learner.critic, checkpoint / role / CRITIC)
        load_optimizer(learner.optimizer, read_tensors(checkpoint / role / OPTIMIZER))
        if learner.ema is not None:
            learner.ema.load(checkpoint / role / EMA_FILE)
        learner.updates = state["updates"][role]
    if trainer.accelerator.scaler is not None and "scaler" in state:  # the saved run may have used another mixed_precision
        trainer.accelerator.scaler.load_state_dict(state["scaler"])
    trainer.at = Progress(**{field.name: state[field.name] for field in fields(Progress)})
