"""Exports the weights that a run trained for other libraries: adapters or merged weights, the run's config, and a model card."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors import SafetensorError

from gotr1_core.config.models import ComponentConfig, RunConfig
from gotr1_core.engine.files import check_writable, replace_folder
from gotr1_core.errors import Gotr1Error, UsageError
from gotr1_core.hookspecs import Kind
from gotr1_core.plugins import Registry, options_of
from gotr1_core.rollout import Parts
from gotr1_core.runs.checkpoint import read_state
from gotr1_core.runs.records import CONFIG, run_config
from gotr1_core.runs.restore import find_checkpoint, restore
from gotr1_core.workflows.model_card import Card, Piece


def export(registry: Registry, path: Path, out: Path, *, merged: bool = False, accept_changes: bool = False) -> tuple[Path, int]:
    """Exports a checkpoint of a run. Returns the checkpoint's folder and the number of steps it was trained for.

    Args:
        registry: the plugins.
        path: a run, for its best checkpoint (the last one if none is marked as best); or one checkpoint.
        out: the folder to write, all of it or nothing. Two trained policies get folders in it, ``planner`` and ``renderer``.
        merged: True writes the full model with merged adapters, False the adapters alone.
        accept_changes: only warns of files, such as the base model's, that are not those that the run read.

    Raises:
        UsageError: ``path`` has no complete checkpoint, ``out`` is not empty, a run without adapters is not exported ``merged``, or the run
            read other files than are there now.
        Gotr1Error: ``out`` cannot be written.
    """
    run, checkpoint = find_checkpoint(path)
    if run_config(run).lora is None and not merged:
        raise UsageError(f"{run} trained full weights and has no adapter", hint="--merge exports the full model")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"{out} exists and is not an empty folder", hint="choose another folder")
    check_writable(out, hint="choose another folder")
    config, parts, sampling = restore(registry, checkpoint, accept_changes=accept_changes)
    step = int(read_state(checkpoint)["step"])
    pieces = _pieces(registry, config, parts)
    card = Card(run, config, sampling, step, pieces, parts.unified, merged)
    try:
        with replace_folder(out.resolve()) as folder:
            for piece, (policy, _) in zip(pieces, parts.trained(config.train).values(), strict=True):
                policy_folder = folder / piece.folder
                policy_folder.mkdir(exist_ok=True)
                (policy.save if merged else policy.save_adapter)(policy_folder)
            shutil.copyfile(run / CONFIG, folder / CONFIG)
            (folder / "README.md").write_text(card.text(), encoding="utf-8")
    except (OSError, SafetensorError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise Gotr1Error(f"{out} cannot be written: {reason}", hint="choose another folder, or free disk space") from error
    return checkpoint, step


def _pieces(registry: Registry, config: RunConfig, parts: Parts) -> tuple[Piece, ...]:
    """Describes the trained policies for the model card."""
    trained = parts.trained(config.train)
    pieces = []
    for role, (policy, _) in trained.items():
        kind: Kind = "planner" if role == "planner" else "renderer"
        component: ComponentConfig = getattr(config, kind)
        option = getattr(options_of(registry.find(kind, component.name).component, component.options), "model", None)
        base = getattr(policy, "base", option)  # a policy may load a model that it made from the one in its option
        if base is None:
            raise UsageError(
                f"the {role} {component.name!r} has no `model` option, so an export could not be loaded",
                hint="the policy needs an option `model`; tell its author",
            )
        model = getattr(policy.module, "model", policy.module)  # every policy keeps its library's model here
        dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
        pieces.append(Piece(role, role if len(trained) > 1 else ".", str(Path(base).expanduser()), type(model), dtype))
    return tuple(pieces)
