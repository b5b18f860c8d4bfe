"""Saves a trainer in a checkpoint, and restores it from one."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path

from safetensors.torch import save_file

from gotr1_core.engine.critic import critic_tensors, load_critic
from gotr1_core.engine.tensors import gather_to_cpu, load_optimizer, load_trainable, optimizer_tensors, read_tensors, trainable_tensors
from gotr1_core.errors import UsageError
from gotr1_core.loop import Progress, Trainer
from gotr1_core.runs.checkpoint import (
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
    """Saves trained weights, optimizers, critics, moving averages and the run's progress. Returns the checkpoint's folder.

    Every process has to call it, because each may hold shards of the tensors. The main process writes into the folder ``run``.
    The first ``rows`` rows of metrics belong to the checkpoint.
    """
    folder = run / CHECKPOINTS / f"step-{trainer.at.step:06d}"
    if not trainer.accelerator.is_main_process:
        for learner in trainer.learners.values():  # in the order in which the main process gathers them
            trainable_tensors(learner.policy.module, keep=False)
            optimizer_tensors(learner.optimizer, keep=False)
            if learner.ema is not None:
                gather_to_cpu(learner.ema.tensors, keep=False)
        return folder
    sampling = (trainer.config.evaluation.sampling or trainer.config.sampling).model_dump()
    state = {"rows": rows, "sampling": sampling, "starting": trainer.starting, **asdict(trainer.at)}
    state["updates"] = {role: learner.updates for role, learner in trainer.learners.items()}
    if trainer.accelerator.scaler is not None:
        state["scaler"] = trainer.accelerator.scaler.state_dict()
    with new_checkpoint(run, trainer.at.step) as unfinished:
        for role, learner in trainer.learners.items():
            (unfinished / role).mkdir()
            save_file(trainable_tensors(learner.policy.module), unfinished / role / TRAINABLE)
            save_file(optimizer_tensors(learner.optimizer), unfinished / role / OPTIMIZER)
            if learner.ema is not None:
                save_file(gather_to_cpu(learner.ema.tensors), unfinished / role / EMA_FILE)
            if learner.critic is not None:
                save_file(critic_tensors(learner.critic), unfinished / role / CRITIC)
        (unfinished / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
    best = trainer.at.best["step"] if trainer.at.best else None
    prune_checkpoints(run, trainer.config.checkpoint.keep, best)
    return folder


def load_trainer(trainer: Trainer, checkpoint: Path) -> int:
    """Restores a trainer from a checkpoint. Returns how many rows of metrics belong to it.

    Raises:
        UsageError: the checkpoint is damaged, or a policy's starting weights are not those that the run started from.
    """
    state = read_state(checkpoint)
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
    return int(state["rows"])
