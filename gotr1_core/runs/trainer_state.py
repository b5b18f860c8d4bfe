"""What a trainer leaves in a checkpoint, and how it goes on from one."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path

from safetensors.torch import save_file

from gotr1_core.engine.critic import critic_tensors, load_critic
from gotr1_core.engine.tensors import collected, load_optimizer_tensors, load_trainable, optimizer_tensors, read_tensors, trainable
from gotr1_core.errors import UsageError
from gotr1_core.loop import Progress, Trainer
from gotr1_core.runs.checkpoint import CHECKPOINTS, CRITIC, EMA_FILE, OPTIMIZER, STATE, TRAINABLE, new_checkpoint, prune, read_state


def save_trainer(trainer: Trainer, run: Path, rows: int) -> Path:
    """What trained, its optimizers and where the run is; ``rows`` of metrics belong to it. Returns the checkpoint's folder.

    Every process takes part, as each may have a share of what is saved; the main one writes.
    """
    folder = run / CHECKPOINTS / f"step-{trainer.at.step:06d}"
    if not trainer.accelerator.is_main_process:
        for learner in trainer.learners.values():  # in the order in which they are written
            trainable(learner.policy.module, keep=False)
            optimizer_tensors(learner.optimizer, keep=False)
            if learner.ema is not None:
                collected(learner.ema.tensors, keep=False)
        return folder
    sampling = (trainer.config.evaluation.sampling or trainer.config.sampling).model_dump()
    state = {"rows": rows, "sampling": sampling, "starting": trainer.starting, **asdict(trainer.at)}
    state["updates"] = {role: learner.updates for role, learner in trainer.learners.items()}
    if trainer.accelerator.scaler is not None:
        state["scaler"] = trainer.accelerator.scaler.state_dict()
    with new_checkpoint(run, trainer.at.step) as part:
        for role, learner in trainer.learners.items():
            (part / role).mkdir()
            save_file(trainable(learner.policy.module), part / role / TRAINABLE)
            save_file(optimizer_tensors(learner.optimizer), part / role / OPTIMIZER)
            if learner.ema is not None:
                save_file(collected(learner.ema.tensors), part / role / EMA_FILE)
            if learner.critic is not None:
                save_file(critic_tensors(learner.critic), part / role / CRITIC)
        (part / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
    best = trainer.at.best["step"] if trainer.at.best else None
    prune(run, trainer.config.checkpoint.keep, best)
    return folder


def load_trainer(trainer: Trainer, checkpoint: Path) -> int:
    """Goes on from a checkpoint; returns how many rows of metrics belong to it."""
    state = read_state(checkpoint)
    for role, found in trainer.starting.items():
        if found != state["starting"].get(role):
            raise UsageError(
                f"the weights that the {role} starts from are not those that this run started from",
                hint="put the starting weights back, or start a new run",
            )
    for role, learner in trainer.learners.items():
        load_trainable(learner.policy.module, checkpoint / role / TRAINABLE)
        if learner.critic is not None:
            load_critic(learner.critic, checkpoint / role / CRITIC)
        load_optimizer_tensors(learner.optimizer, read_tensors(checkpoint / role / OPTIMIZER))
        if learner.ema is not None:
            learner.ema.resume(checkpoint / role / EMA_FILE)
        learner.updates = state["updates"][role]
    if trainer.accelerator.scaler is not None and "scaler" in state:  # else mixed_precision was another
        trainer.accelerator.scaler.load_state_dict(state["scaler"])
    trainer.at = Progress(**{field.name: state[field.name] for field in fields(Progress)})
    return int(state["rows"])
