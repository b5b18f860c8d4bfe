"""Exports the weights that a run trained for other libraries: adapters or merged weights, the run's config, and a model card."""

from __future__ import annotations

import json
import re
from pathlib import Path

from safetensors import SafetensorError

from gotr1_core.border.calls import call_save
from gotr1_core.config.models import ComponentConfig, RunConfig, dump_public
from gotr1_core.config.public_names import is_local, package_path, public_name
from gotr1_core.engine.files import check_writable, replace_folder
from gotr1_core.errors import Gotr1Error, UsageError
from gotr1_core.hookspecs import Kind
from gotr1_core.plugins import Registry, options_of
from gotr1_core.rollout import Parts
from gotr1_core.runs.checkpoint import read_state
from gotr1_core.runs.records import CONFIG, run_config
from gotr1_core.runs.restore import find_checkpoint, restore
from gotr1_core.workflows.model_card import Card, Piece

_NAMED = re.compile(r'("\w*name_or_path"\s*:\s*)"(/(?:[^"\\]|\\.)*)"')
"""A key such as ``_name_or_path`` with an absolute path, as JSON."""


def export(registry: Registry, path: Path, out: Path, *, merged: bool = False, accept_changes: bool = False) -> tuple[Path | None, int]:
    """Exports a checkpoint of a run. Returns the checkpoint's folder, None for the untrained model, and the steps it was trained for.

    Args:
        registry: the plugins.
        path: a run, for its best checkpoint as :func:`find_checkpoint` chooses it; or one checkpoint.
        out: the folder to write, all of it or nothing. Two trained policies get folders in it, ``planner`` and ``renderer``.
        merged: True writes the full model with merged adapters, False the adapters alone.
        accept_changes: only warns of files, such as the base model's, that are not those that the run read.

    Raises:
        UsageError: ``path`` has no complete checkpoint, ``out`` is not empty, a run without adapters or from random weights is not exported
            ``merged``, or the run read other files than are there now.
        Gotr1Error: ``out`` cannot be written.
    """
    run, checkpoint = find_checkpoint(path)
    if run_config(run).lora is None and not merged:
        raise UsageError(f"{run} trained full weights and has no adapter", hint="--merge exports the full model")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"{out} exists and is not an empty folder", hint="choose another folder")
    check_writable(out, hint="choose another folder")
    config, parts, sampling = restore(registry, path, accept_changes=accept_changes)
    step = int(read_state(checkpoint)["step"]) if checkpoint else 0
    pieces = _pieces(registry, config, parts, merged=merged)
    card = Card(run, config, sampling, step, pieces, parts.unified, merged)
    try:
        with replace_folder(out.resolve()) as folder:
            for piece, (policy, _) in zip(pieces, parts.trained(config.train).values(), strict=True):
                policy_folder = folder / piece.folder
                policy_folder.mkdir(exist_ok=True)
                call_save(policy, policy_folder, adapter=not merged)
                _hide_paths(policy_folder, piece.base)
            (folder / CONFIG).write_text(dump_public(config), encoding="utf-8")
            (folder / "README.md").write_text(card.text(), encoding="utf-8")
    except (OSError, SafetensorError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise Gotr1Error(f"{out} cannot be written: {reason}", hint="choose another folder, or free disk space") from error
    return checkpoint, step


def _pieces(registry: Registry, config: RunConfig, parts: Parts, *, merged: bool) -> tuple[Piece, ...]:
    """Describes the trained policies for the model card.

    A policy's base model is its attribute ``base`` if it has one, else its option ``model``; None for random weights.
    """
    trained = parts.trained(config.train)
    pieces = []
    for role, (policy, _) in trained.items():
        kind: Kind = "planner" if role == "planner" else "renderer"
        component: ComponentConfig = getattr(config, kind)
        options = options_of(registry.find(kind, component.name).component, component.options)
        base = getattr(policy, "base", getattr(options, "model", None))  # a policy may load a model that it made from the one in its option
        if base is None and not merged:
            raise UsageError(
                f"the {role} {component.name!r} was trained from random weights, so its adapters fit no base model",
                hint="--merge exports the full model",
            )
        model = getattr(policy.module, "model", policy.module)  # every policy keeps its library's model here
        dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
        base = str(Path(base).expanduser()) if base is not None else None
        pieces.append(Piece(role, role if len(trained) > 1 else ".", base, type(model), dtype, hasattr(options, "model")))
    return tuple(pieces)


def _hide_paths(folder: Path, base: str | None) -> None:
    """Gives models the names that readers elsewhere know, where a library wrote paths into JSON files.

    Only values of keys such as ``_name_or_path`` are looked at: a tokenizer's words may look like paths.
    """
    known = {}
    if base is not None and is_local(base):
        name = public_name(base)
        known = dict.fromkeys((base, str(Path(base).resolve())), "/".join(package_path(name) or [name]))

    def public(match: re.Match[str]) -> str:
        path = json.loads(f'"{match[2]}"')
        named = next((shown + path[len(start) :] for start, shown in known.items() if f"{path}/".startswith(f"{start}/")), Path(path).name)
        return match[1] + json.dumps(named)

    for file in folder.rglob("*.json"):
        text = file.read_text(encoding="utf-8")
        if (changed := _NAMED.sub(public, text)) != text:
            file.write_text(changed, encoding="utf-8")
