"""Writes the model card of an export: what was trained and how, the scores before and after, how to load the model and draw with it."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from gotr1_core.config.merge import parse_overrides
from gotr1_core.config.models import ComponentConfig, RunConfig, SamplingConfig
from gotr1_core.config.public_names import is_local, package_path, public_name, public_texts
from gotr1_core.engine.files import read_json
from gotr1_core.engine.intervals import estimate
from gotr1_core.errors import UsageError
from gotr1_core.evaluation import HeldOut, change_label, paired
from gotr1_core.runs.records import CONFIG, ENVIRONMENT, HELD_OUT
from gotr1_core.samples import Sampling
from gotr1_core.workflows.markdown import code, code_block, plain

TRAINED = {"planner": "the planner", "renderer": "the renderer", "both": "planner and renderer"}
TRAINED_OF_ONE = {
    "planner": "what one policy plans, not what it draws",
    "renderer": "what one policy draws, not what it plans",
    "both": "planner and renderer, which are one policy",
}
LOADABLE = ("transformers", "diffusers")  # libraries whose models the card's code loads
MERGED = "merged"  # the folder where the card's code saves the full model for gotr1


@dataclass(frozen=True)
class Piece:
    """One exported policy.

    ``folder`` is relative to the card. ``base`` is the model that training started from, a path or a name on the hub, or None for random
    weights. ``model`` is the library's class, and ``dtype`` the type of its weights. ``loadable``: the component has an option ``model``.
    """

    role: str
    folder: str
    base: str | None
    model: type
    dtype: str
    loadable: bool = True

    @property
    def library(self) -> str:
        """Returns the name of the library that defines the model's class, such as ``transformers``."""
        return self.model.__module__.partition(".")[0]

    @property
    def hub_name(self) -> str | None:
        """Returns the base model's name on the hub, if it is from there."""
        if self.base is None or not is_local(self.base):
            return self.base
        name = public_name(self.base)
        return name if "/" in name and package_path(name) is None else None

    @property
    def local_folder(self) -> str | None:
        """Returns the name of the base model's folder, if only its owner has it: it is neither on the hub nor in a package."""
        name = public_name(self.base or "")
        return name if self.base and not self.hub_name and not package_path(name) else None

    @property
    def base_text(self) -> str:
        """Returns the base model as Markdown, by a name that readers elsewhere know."""
        if self.base is None:
            return "none, training started from random weights"
        name = public_name(self.base)
        if inside := package_path(name):
            return f"{code(inside[1])} of the Python package {code(inside[0])}"
        return f"{code(name)}, a local folder" if self.local_folder else code(name)

    @property
    def base_code(self) -> str:
        """Returns a Python expression for the base model: its name on the hub, its place in a package, or a folder beside the card."""
        name = public_name(self.base or "")
        if inside := package_path(name):
            return f"str(files({json.dumps(inside[0])}) / {json.dumps(inside[1], ensure_ascii=False)})"
        return json.dumps(f"./{name}" if self.local_folder else name, ensure_ascii=False)


@dataclass(frozen=True)
class Card:
    """A run and its export. ``sampling`` is how to draw with it; ``step`` is the number of steps that the checkpoint was trained for."""

    run: Path
    config: RunConfig
    sampling: Sampling
    step: int
    pieces: tuple[Piece, ...]
    unified: bool
    merged: bool

    def text(self) -> str:
        """Returns the card as Markdown. It starts with the YAML that model hubs read."""
        sections = [self._front_matter(), f"# {plain(self.run.name)}", self._facts(), self._held_out(), self._loading(), self._drawing()]
        return "\n\n".join([*sections, self._versions()]) + "\n"

    def _front_matter(self) -> str:
        """Returns the YAML for hubs, without a license, which is not known, and without local folders, which hubs refuse."""
        bases = list(dict.fromkeys(name for p in self.pieces if (name := p.hub_name) is not None))
        data: dict[str, Any] = {"base_model": bases if len(bases) > 1 else bases[0]} if bases else {}
        library = self.pieces[0].library
        data["library_name"] = library if self.merged or library == "diffusers" else "peft"
        data["tags"] = ["gotr1", "text-to-image", "reinforcement-learning", *([] if self.config.lora is None else ["lora"])]
        return f"---\n{yaml.safe_dump(data, sort_keys=False, allow_unicode=True)}---"

    def _facts(self) -> str:
        config, lora, prompts = self.config, self.config.lora, self.config.prompts
        targets = "" if lora is None else lora.targets if isinstance(lora.targets, str) else ", ".join(lora.targets)
        weights = "full weights" if lora is None else f"LoRA of rank {lora.rank} and alpha {lora.alpha:g} (layers: {plain(targets)})"
        bases = list(dict.fromkeys(p.base_text for p in self.pieces))
        source = (
            f"file {code(prompts.file.name)}" if prompts.file else f"source {_with_options(prompts.source)}" if prompts.source else "none"
        )
        trained = (TRAINED_OF_ONE if self.unified else TRAINED)[config.train]
        facts = {
            "Base model": " and ".join(bases),
            "Trained": f"{trained}: {weights}{', merged' if lora and self.merged else ''}",
            "Planner and renderer": f"{code(config.planner.name)} and {code(config.renderer.name)}",
            "Algorithm": _with_options(config.algorithm),
            "Judges": ", ".join(code(j.name) if j.label == j.name else f"{code(j.name)} as {code(j.label)}" for j in config.judge),
            "Reward": code(config.reward),
            "Prompts": source,
            "Steps": f"{self.step} of {config.steps}, each of prompts × plans × images: {config.groups} × {config.plans} × {config.images}",
            "Learning rate": f"{config.optimizer.learning_rate:g}, {config.optimizer.schedule}",
        }
        intro = (
            "Trained by gotr1 with reinforcement learning to plan before it draws, after GoT-R1 (arXiv 2505.17022): "
            "a planner writes what will be in a picture, and where, as text with boxes; a renderer draws that. "
            f"`{CONFIG}` is the full config of the run."
        )
        return "\n".join([intro, "", *(f"- **{name}**: {value}" for name, value in facts.items())])

    # -- scores -------------------------------------------------------------------------------------------------------------

    def _held_out(self) -> str:
        path = self.run / HELD_OUT
        rows = _read(path)
        if "before" not in rows or "after" not in rows:
            return "## Held-out scores\n\nNone: the run had not ended when this was exported."
        try:
            held_out = {model: HeldOut.from_json(row) for model, row in rows.items()}
            table, count = _table(held_out), len(held_out["after"].prompts)
        except (AttributeError, KeyError, TypeError, ValueError):
            raise _damaged(path) from None
        sampling = self.config.evaluation.sampling or self.config.sampling
        about = (
            f"{count} held-out prompts, one sample each "
            f"(temperature {sampling.temperature:g}, guidance scale {sampling.guidance_scale:g}): means [95 % intervals]. "
            "The change is after - before, prompt by prompt."
        )
        if self.step != self.config.steps:
            about += f" *After* is after the last step, {self.config.steps}; this export is of step {self.step}."
        return "\n".join(["## Held-out scores", "", about, "", *table])

    # -- use ----------------------------------------------------------------------------------------------------------------

    def _loading(self) -> str:
        lines: list[str] = []
        loadable = [p for p in self.pieces if p.library in LOADABLE]
        if loadable:
            folders = [] if self.merged else [code(p.local_folder) for p in loadable if p.local_folder]
            beside = f" Put the base model there, the folder {' and '.join(folders)}: this export has only adapters." if folders else ""
            lines += [f"In Python, from the folder of this file.{beside}", ""]
            lines += code_block("python", [*self._imports(loadable), "", *(line for p in loadable for line in self._load(p))])
        lines += [f"The {p.role} is for {plain(p.library)}'s {code(p.model.__name__)}." for p in self.pieces if p not in loadable]
        return "\n".join(["## Load it", "", *lines])

    def _imports(self, pieces: Sequence[Piece]) -> list[str]:
        models = [p for p in pieces if p.library == "transformers"]
        packaged = not self.merged and any(p.base and package_path(public_name(p.base)) for p in pieces)
        lines = ["from importlib.resources import files", ""] if packaged else []
        lines += ["from diffusers import DiffusionPipeline"] if len(models) < len(pieces) else []
        if models:
            classes = ", ".join(sorted({"AutoTokenizer", *(p.model.__name__ for p in models)}))
            lines += [*([] if self.merged else ["from peft import PeftModel"]), f"from transformers import {classes}"]
        return lines

    def _load(self, piece: Piece) -> list[str]:
        model, tokenizer = self._variables(piece)
        kind, folder, base = piece.model.__name__, json.dumps(piece.folder), piece.base_code
        if piece.library == "diffusers":
            source = folder if self.merged else base
            lines = [f"{model} = DiffusionPipeline.from_pretrained({source})"]
            return lines if self.merged else [*lines, f"{model}.load_lora_weights({folder})"]
        if self.merged:
            return [f"{model} = {kind}.from_pretrained({folder})", f"{tokenizer} = AutoTokenizer.from_pretrained({folder})"]
        return [
            f'{model} = {kind}.from_pretrained({base}, dtype="{piece.dtype}")',
            f"{model} = PeftModel.from_pretrained({model}, {folder})",
            f"{tokenizer} = AutoTokenizer.from_pretrained({base})",
        ]

    def _merge(self, piece: Piece, folder: Path) -> list[str]:
        """Returns the code that merges the adapters of a model that :meth:`_load` loaded, and saves it."""
        model, tokenizer = self._variables(piece)
        if piece.library == "diffusers":
            return [f"{model}.fuse_lora()", f"{model}.unload_lora_weights()", f'{model}.save_pretrained("{folder}")']
        return [f'{model}.merge_and_unload().save_pretrained("{folder}")', f'{tokenizer}.save_pretrained("{folder}")']

    def _variables(self, piece: Piece) -> tuple[str, str]:
        model = "pipeline" if piece.library == "diffusers" else "model"
        return (model, "tokenizer") if len(self.pieces) == 1 else (piece.role, f"{piece.role}_tokenizer")

    def _drawing(self) -> str:
        if without := [p.role for p in self.pieces if not p.loadable]:
            component = code(getattr(self.config, without[0]).name)
            what = f"gotr1 cannot load this export: the {without[0]} {component} has no option `model`. The run itself can draw, with"
            return "\n".join(["## Draw with it", "", f"{what} `gotr1 generate --checkpoint RUN`."])
        folders = {p.role: Path(p.folder) if self.merged else Path(MERGED) / p.folder for p in self.pieces}
        lines = ["From the folder of this file:", ""]
        if not self.merged:
            lines = ["gotr1 draws with a full model. Run this after the code above:", ""]
            lines += code_block("python", [line for piece in self.pieces for line in self._merge(piece, folders[piece.role])])
            lines += ["", "Then run, in the same folder:", ""]
        words = ["gotr1", "generate", "a red circle above a blue square", *self._options(folders)]
        return "\n".join(["## Draw with it", "", *lines, *code_block("sh", [shlex.join(words)])])

    def _options(self, folders: Mapping[str, Path]) -> list[str]:
        """Returns the words for ``gotr1 generate`` that select the run's policies, with the exported models in place of their bases."""
        config = self.config
        words = [f"--planner={config.planner.name}", f"--renderer={config.renderer.name}"]
        for role, component in {"planner": config.planner, "renderer": config.renderer}.items():
            if role == "renderer" and self.unified:
                break
            options = {**public_texts(component.options), **({"model": str(folders[role])} if role in folders else {})}
            words += [_as_word(f"{role}.{key}", value) for key, value in options.items()]
        defaults = SamplingConfig().model_dump()
        return words + [_as_word(f"sampling.{key}", value) for key, value in asdict(self.sampling).items() if value != defaults[key]]

    def _versions(self) -> str:
        path = self.run / ENVIRONMENT
        environment = _read(path)
        if not environment:
            return "## Versions\n\nNot recorded."
        try:
            packages = [
                f"- {plain(f'{name} {version}')}" for name, version in {"Python": environment["python"], **environment["packages"]}.items()
            ]
            texts = [f"{name}: {p['distribution']} {p['version']}".rstrip() for name, p in environment["components"].items()]
        except (AttributeError, KeyError, TypeError):
            raise _damaged(path) from None
        return "\n".join(["## Versions", "", *packages, *(f"- {plain(text)}" for text in texts)])


def _with_options(component: ComponentConfig) -> str:
    """Returns a component's name, with its options if it has any."""
    options = yaml.safe_dump(public_texts(component.options), default_flow_style=True, width=10_000).strip()
    return code(component.name) + (f" with {code(options)}" if component.options else "")


def _as_word(key: str, value: Any) -> str:
    """Returns a setting as ``KEY=VALUE`` that parses to the same value. JSON is YAML too."""
    if isinstance(value, str):
        with suppress(UsageError):
            if parse_overrides([f"{key}={value}"]) == parse_overrides([f"{key}={json.dumps(value, ensure_ascii=False)}"]):
                return f"{key}={value}"
    return f"{key}={json.dumps(value, ensure_ascii=False)}"


def _table(rows: Mapping[str, HeldOut]) -> list[str]:
    """Returns a Markdown table: the mean of every score of every model, and the change from ``before`` to ``after``."""
    before, after = rows["before"], rows["after"]
    lines = [["score", *map(plain, rows), plain(change_label(before, after))], ["---"] * (len(rows) + 2)]
    for name in after:
        lines.append([plain(name), *(estimate(row.column(name)).text() for row in rows.values()), paired(before, after, name).text("+")])
    return [f"| {' | '.join(line)} |" for line in lines]


def _read(path: Path) -> dict[str, Any]:
    """Reads a JSON file of a run; empty if there is none."""
    try:
        return read_json(path) if os.path.lexists(path) else {}
    except UsageError:
        raise _damaged(path) from None


def _damaged(path: Path) -> UsageError:
    return UsageError(f"{path} is damaged", hint="remove the file, and the card leaves out what it says")
