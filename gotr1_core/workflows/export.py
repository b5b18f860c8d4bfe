"""Writes what a run trained where others can load it: adapters for peft or merged weights, the run's config, and a model card."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors import SafetensorError

from gotr1_core.config.merge import read_yaml
from gotr1_core.config.models import ComponentConfig, RunConfig, validate
from gotr1_core.engine.files import replacing
from gotr1_core.errors import Gotr1Error, UsageError
from gotr1_core.hookspecs import Kind
from gotr1_core.plugins import Registry, options_of
from gotr1_core.rollout import Parts
from gotr1_core.runs.checkpoint import read_state
from gotr1_core.runs.records import CONFIG
from gotr1_core.runs.restore import checkpoint_of, restore
from gotr1_core.workflows.model_card import Card, Piece


def export(registry: Registry, path: Path, out: Path, *, merged: bool = False) -> tuple[Path, int]:
    """Exports a run's best (else last) checkpoint, or the checkpoint that ``path`` is; returns it and how many steps it had.

    One trained policy lies in ``out`` itself, two lie in ``out/planner`` and ``out/renderer``. ``out`` is written whole or not at all.

    Raises:
        UsageError: ``path`` is no run or has no whole checkpoint; ``out`` is taken; adapters are asked of a run that has none.
        Gotr1Error: ``out`` cannot be written.
    """
    run, checkpoint = checkpoint_of(path)
    config = validate(RunConfig, read_yaml(run / CONFIG))
    if config.lora is None and not merged:
        raise UsageError(f"{run} trained full weights and has no adapter", hint="--merge exports the whole model")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"{out} is there already and is not an empty folder", hint="choose another folder")
    config, parts, sampling = restore(registry, checkpoint)
    step = int(read_state(checkpoint)["step"])
    pieces = _pieces(registry, config, parts)
    card = Card(run, config, sampling, step, pieces, parts.unified, merged)
    try:
        with replacing(out.resolve()) as folder:
            for piece, (policy, _) in zip(pieces, parts.trained(config.train).values(), strict=True):
                own = folder / piece.folder
                own.mkdir(exist_ok=True)
                (policy.save if merged else policy.save_adapter)(own)
            shutil.copyfile(run / CONFIG, folder / CONFIG)
            (folder / "README.md").write_text(card.text(), encoding="utf-8")
    except (OSError, SafetensorError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise Gotr1Error(f"{out} cannot be written: {reason}", hint="choose another folder, or make room") from error
    return checkpoint, step


def _pieces(registry: Registry, config: RunConfig, parts: Parts) -> tuple[Piece, ...]:
    """The policies that trained, as the card speaks of them."""
    trained = parts.trained(config.train)
    pieces = []
    for role, (policy, _) in trained.items():
        kind: Kind = "planner" if role == "planner" else "renderer"
        chosen: ComponentConfig = getattr(config, kind)
        given = getattr(options_of(registry.find(kind, chosen.name).component, chosen.options), "model", None)
        base = getattr(policy, "base", given)  # what a policy loaded may have been made of what it was given
        if base is None:
            raise UsageError(f"the {role} {chosen.name!r} has no option model", hint="what cannot be given a model cannot load an export")
        model = getattr(policy.module, "model", policy.module)  # where every policy keeps its library's model
        dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
        pieces.append(Piece(role, role if len(trained) > 1 else ".", str(Path(base).expanduser()), type(model), dtype))
    return tuple(pieces)
