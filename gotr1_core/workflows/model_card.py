"""The model card of an export: what was trained and how, what that changed, how to load it, how to draw with it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from math import nan
from pathlib import Path
from typing import Any

import yaml

from gotr1_core.config.merge import overrides
from gotr1_core.config.models import ComponentConfig, JudgeConfig, RunConfig, SamplingConfig
from gotr1_core.errors import UsageError
from gotr1_core.evaluation import REWARD, Estimate, estimate, paired
from gotr1_core.runs.records import CONFIG, ENVIRONMENT, HELD_OUT
from gotr1_core.samples import Sampling

TRAINED = {"planner": "the planner", "renderer": "the renderer", "both": "planner and renderer"}
TRAINED_OF_ONE = {
    "planner": "what one policy plans, not what it draws",
    "renderer": "what one policy draws, not what it plans",
    "both": "planner and renderer, which are one policy",
}
LOADABLE = ("transformers", "diffusers")  # libraries whose models the card's code loads
MERGED = "merged"  # where the card's code puts a model that gotr1 is to draw with


@dataclass(frozen=True)
class Piece:
    """One exported policy.

    ``folder`` is relative to the card; ``base`` is the model that training began with, a path or a hub's name; ``model`` is the
    library's class, and ``dtype`` the type of its weights.
    """

    role: str
    folder: str
    base: str
    model: type
    dtype: str

    @property
    def library(self) -> str:
        return self.model.__module__.partition(".")[0]


@dataclass(frozen=True)
class Card:
    """A run, and what was exported of it. ``sampling`` is what to draw with; ``step`` counts the steps that the checkpoint had."""

    run: Path
    config: RunConfig
    sampling: Sampling
    step: int
    pieces: tuple[Piece, ...]
    unified: bool
    merged: bool

    def text(self) -> str:
        """The card as Markdown, behind the YAML that model hubs read."""
        parts = [self._front_matter(), f"# {self.run.name}", self._facts(), self._held_out(), self._loading(), self._drawing()]
        return "\n\n".join([*parts, self._versions()]) + "\n"

    def _front_matter(self) -> str:
        """Without a license: none is known. Without a base model that is a folder: hubs refuse that."""
        bases = list(dict.fromkeys(p.base for p in self.pieces if not Path(p.base).exists()))
        data: dict[str, Any] = {"base_model": bases if len(bases) > 1 else bases[0]} if bases else {}
        library = self.pieces[0].library
        data["library_name"] = library if self.merged or library == "diffusers" else "peft"
        data["tags"] = ["gotr1", "text-to-image", "reinforcement-learning", *([] if self.config.lora is None else ["lora"])]
        return f"---\n{yaml.safe_dump(data, sort_keys=False, allow_unicode=True)}---"

    def _facts(self) -> str:
        config, lora, prompts = self.config, self.config.lora, self.config.prompts
        targets = "" if lora is None else lora.targets if isinstance(lora.targets, str) else ", ".join(lora.targets)
        how = "full weights" if lora is None else f"LoRA of rank {lora.rank} and alpha {lora.alpha:g} (layers: {targets})"
        bases = list(dict.fromkeys(f"`{p.base}`" for p in self.pieces))
        given = f"file `{prompts.file}`" if prompts.file else f"source {_named(prompts.source)}" if prompts.source else "none"
        facts = {
            "Base model": " and ".join(bases),
            "Trained": f"{(TRAINED_OF_ONE if self.unified else TRAINED)[config.train]}: {how}{', merged' if lora and self.merged else ''}",
            "Planner and renderer": f"`{config.planner.name}` and `{config.renderer.name}`",
            "Algorithm": _named(config.algorithm),
            "Judges": ", ".join(_judge(judge) for judge in config.judge),
            "Reward": f"`{config.reward}`",
            "Prompts": given,
            "Steps": f"{self.step} of {config.steps}, each of prompts × plans × images: {config.groups} × {config.plans} × {config.images}",
            "Learning rate": f"{config.optimizer.learning_rate:g}, {config.optimizer.schedule}",
        }
        intro = (
            "Trained by gotr1 with reinforcement learning to plan before it draws, after GoT-R1 (arXiv 2505.17022): "
            "a planner writes what will be in a picture, and where, as text with boxes; a renderer draws that. "
            f"`{CONFIG}` is the whole config."
        )
        return "\n".join([intro, "", *(f"- **{name}**: {value}" for name, value in facts.items())])

    # -- scores -------------------------------------------------------------------------------------------------------------

    def _held_out(self) -> str:
        path = self.run / HELD_OUT
        rows = _read(path)
        if "before" not in rows or "after" not in rows:
            return "## Held-out scores\n\nNone: the run had not ended when this was exported."
        try:
            table = _table({model: {name: [nan if v is None else v for v in row[name]] for name in row} for model, row in rows.items()})
            count = len(rows["after"][REWARD])
        except (KeyError, TypeError, ValueError):
            raise _damaged(path) from None
        used = self.config.evaluation.sampling or self.config.sampling
        about = (
            f"{count} held-out prompts, one sample each (temperature {used.temperature:g}, guidance scale {used.guidance_scale:g}): "
            "means with half of their 95 % interval. The change is after - before, prompt by prompt."
        )
        if self.step != self.config.steps:
            about += f" *After* is after the last step, {self.config.steps}; this export is of step {self.step}."
        return "\n".join(["## Held-out scores", "", about, "", *table])

    # -- use ----------------------------------------------------------------------------------------------------------------

    def _loading(self) -> str:
        lines: list[str] = []
        ours = [p for p in self.pieces if p.library in LOADABLE]
        if ours:
            lines += ["In Python, from the folder of this file:", "", "```python", *self._imports(ours), ""]
            lines += [line for p in ours for line in self._load(p)] + ["```"]
        lines += [f"The {p.role} is for {p.library}'s `{p.model.__name__}`." for p in self.pieces if p not in ours]
        return "\n".join(["## Load it", "", *lines])

    def _imports(self, pieces: Sequence[Piece]) -> list[str]:
        models = [p for p in pieces if p.library == "transformers"]
        lines = ["from diffusers import DiffusionPipeline"] if len(models) < len(pieces) else []
        if models:
            classes = ", ".join(sorted({"AutoTokenizer", *(p.model.__name__ for p in models)}))
            lines += [*([] if self.merged else ["from peft import PeftModel"]), f"from transformers import {classes}"]
        return lines

    def _load(self, piece: Piece) -> list[str]:
        model, tokenizer = self._variables(piece)
        kind, folder, base = piece.model.__name__, json.dumps(piece.folder), json.dumps(piece.base, ensure_ascii=False)
        if piece.library == "diffusers":
            source = folder if self.merged else base
            loaded = [f"{model} = DiffusionPipeline.from_pretrained({source})"]
            return loaded if self.merged else [*loaded, f"{model}.load_lora_weights({folder})"]
        if self.merged:
            return [f"{model} = {kind}.from_pretrained({folder})", f"{tokenizer} = AutoTokenizer.from_pretrained({folder})"]
        return [
            f'{model} = {kind}.from_pretrained({base}, dtype="{piece.dtype}")',
            f"{model} = PeftModel.from_pretrained({model}, {folder})",
            f"{tokenizer} = AutoTokenizer.from_pretrained({base})",
        ]

    def _merge(self, piece: Piece, folder: Path) -> list[str]:
        """What makes a whole model of what :meth:`_load` loaded."""
        model, tokenizer = self._variables(piece)
        if piece.library == "diffusers":
            return [f"{model}.fuse_lora()", f"{model}.unload_lora_weights()", f'{model}.save_pretrained("{folder}")']
        return [f'{model}.merge_and_unload().save_pretrained("{folder}")', f'{tokenizer}.save_pretrained("{folder}")']

    def _variables(self, piece: Piece) -> tuple[str, str]:
        model = "pipeline" if piece.library == "diffusers" else "model"
        return (model, "tokenizer") if len(self.pieces) == 1 else (piece.role, f"{piece.role}_tokenizer")

    def _drawing(self) -> str:
        folders = {p.role: Path(p.folder) if self.merged else Path(MERGED) / p.folder for p in self.pieces}
        lines = ["From the folder of this file:", ""]
        if not self.merged:
            lines = ["gotr1 draws with a whole model. So, after the code above,", "", "```python"]
            lines += [line for piece in self.pieces for line in self._merge(piece, folders[piece.role])]
            lines += ["```", "", "and then, in the same folder,", ""]
        words = ["gotr1", "generate", "a red circle above a blue square", *self._words(folders)]
        return "\n".join(["## Draw with it", "", *lines, "```sh", shlex.join(words), "```"])

    def _words(self, folders: Mapping[str, Path]) -> list[str]:
        """What makes ``gotr1 generate`` put the run's own policies together, with the exported models in the place of their bases."""
        config = self.config
        words = [f"--planner={config.planner.name}", f"--renderer={config.renderer.name}"]
        for role, chosen in {"planner": config.planner, "renderer": config.renderer}.items():
            if role == "renderer" and self.unified:
                break
            options = {**chosen.options, **({"model": str(folders[role])} if role in folders else {})}
            words += [_word(f"{role}.{key}", value) for key, value in options.items()]
        usual = SamplingConfig().model_dump()
        return words + [_word(f"sampling.{key}", value) for key, value in asdict(self.sampling).items() if value != usual[key]]

    def _versions(self) -> str:
        path = self.run / ENVIRONMENT
        known = _read(path)
        if not known:
            return "## Versions\n\nNot recorded."
        try:
            packages = [f"- {name} {version}" for name, version in {"Python": known["python"], **known["packages"]}.items()]
            made = [f"- {name}: {p['distribution']} {p['version']}".rstrip() for name, p in known["components"].items()]
        except (AttributeError, KeyError, TypeError):
            raise _damaged(path) from None
        return "\n".join(["## Versions", "", *packages, *made])


def _judge(judge: JudgeConfig) -> str:
    return f"`{judge.name}`" if judge.label == judge.name else f"`{judge.name}` as `{judge.label}`"


def _named(component: ComponentConfig) -> str:
    """A component's name, and its options if it was given any."""
    options = yaml.safe_dump(component.options, default_flow_style=True, width=10_000).strip()
    return f"`{component.name}`" + (f" with `{options}`" if component.options else "")


def _word(key: str, value: Any) -> str:
    """A setting as ``KEY=VALUE``, which reads back equal. JSON is YAML too."""
    if isinstance(value, str):
        with suppress(UsageError):
            if overrides([f"{key}={value}"]) == overrides([f"{key}={json.dumps(value, ensure_ascii=False)}"]):
                return f"{key}={value}"
    return f"{key}={json.dumps(value, ensure_ascii=False)}"


def _table(rows: Mapping[str, Mapping[str, Sequence[float]]]) -> list[str]:
    """Means of every score of every model, and the change from ``before`` to ``after``, in Markdown."""
    lines = [["score", *rows, "change"], ["---"] * (len(rows) + 2)]
    for name in rows["after"]:
        change = paired(rows["before"][name], rows["after"][name])
        lines.append([name, *(_shown(estimate(row[name])) for row in rows.values()), _shown(change, "+")])
    return [f"| {' | '.join(line)} |" for line in lines]


def _shown(value: Estimate, sign: str = "") -> str:
    return f"{value.mean:{sign}.3f} ± {value.half_width:.3f}" if value.count else "–"


def _read(path: Path) -> dict[str, Any]:
    """A JSON file of a run; empty where there is none."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, TypeError, ValueError):
        raise _damaged(path) from None


def _damaged(path: Path) -> UsageError:
    return UsageError(f"{path} is damaged", hint="remove it, and the card goes without")
