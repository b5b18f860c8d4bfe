"""What a run leaves on disk as it goes: config, environment, metrics, samples with their pictures."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gotr1_core.chain import draw
from gotr1_core.config import RunConfig, dump
from gotr1_core.errors import UsageError
from gotr1_core.plugins import Registry
from gotr1_core.samples import Sample

SHOWN = 256  # pixels of an overlay's shorter side at least, so that small pictures can be read


def new_folder(config: RunConfig) -> Path:
    """The run's own folder; one that is there is never written into."""
    name = config.name or time.strftime("%Y%m%d-%H%M%S")
    folder = config.output / name
    check_free(config)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UsageError(f"cannot make {folder}: {error.strerror}", hint="choose another output=…") from None
    return folder


def check_free(config: RunConfig) -> None:
    """Refuses a name that is taken; cheap, so that it can be asked before anything is loaded."""
    if config.name and (config.output / config.name).exists():
        raise UsageError(f"{config.output / config.name} is there already", hint="choose another name=…, or remove it")


def environment(registry: Registry, config: RunConfig) -> dict[str, Any]:
    """Versions, and the distribution and version of every component the run uses."""
    packages = {}
    for name in ("gotr1", "torch", "transformers", "diffusers", "accelerate", "peft"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    used = [("planner", config.planner.name), ("renderer", config.renderer.name), ("algorithm", config.algorithm.name)]
    used += [("judge", judge.name) for judge in config.judge]
    used += [("source", config.prompts.source.name)] if config.prompts.source else []
    found = {f"{kind} {name}": registry.find(kind, name) for kind, name in used}  # type: ignore[arg-type]
    components = {key: {"distribution": p.distribution, "version": p.version} for key, p in found.items()}
    return {"python": platform.python_version(), "machine": platform.platform(), "packages": packages, "components": components}


class Records:
    """The files of one run; only the main process has one."""

    def __init__(self, folder: Path, registry: Registry, config: RunConfig) -> None:
        self.folder = folder
        (folder / "config.yaml").write_text(dump(config), encoding="utf-8")
        (folder / "environment.json").write_text(json.dumps(environment(registry, config), indent=1), encoding="utf-8")
        self._metrics = (folder / "metrics.jsonl").open("a", encoding="utf-8")

    def metrics(self, row: Mapping[str, Any]) -> None:
        """Appends one row; NaN becomes null, which JSON can say."""
        print(json.dumps({name: null_for_nan(value) for name, value in row.items()}), file=self._metrics, flush=True)

    def samples(self, step: int, samples: Sequence[Sample], most: int = 16) -> None:
        """Some samples of a step, with their pictures."""
        write_samples(self.folder / "samples" / f"step-{step:06d}", samples[:most])

    def held_out(self, rows: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
        """Every held-out score, sample by sample, of the models compared at the end: what paired intervals are made of."""
        known = {model: {name: [null_for_nan(v) for v in values] for name, values in row.items()} for model, row in rows.items()}
        (self.folder / "held-out.json").write_text(json.dumps(known), encoding="utf-8")

    def close(self) -> None:
        self._metrics.close()


def write_samples(folder: Path, samples: Sequence[Sample]) -> list[Path]:
    """Pictures as PNG, the boxes drawn over them, and a row of JSON each; returns the pictures' paths."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder {folder}: {error.strerror}", hint="choose another folder") from None
    paths = []
    with (folder / "samples.jsonl").open("w", encoding="utf-8") as file:
        for number, sample in enumerate(samples):
            row = as_row(sample)
            if sample.image is not None:
                path = folder / f"{number:03d}.png"
                sample.image.save(path)
                overlay(sample).save(folder / f"{number:03d}-plan.png")
                row["image"] = path.name
                paths.append(path)
            print(json.dumps(row, ensure_ascii=False), file=file)
    return paths


def overlay(sample: Sample) -> Any:
    """The picture, enlarged where it is small, with the plan's boxes over it."""
    assert sample.image is not None
    factor = max(1, -(-SHOWN // min(sample.image.size)))
    size = (sample.image.width * factor, sample.image.height * factor)
    return draw(sample.chain, size, sample.image)


def as_row(sample: Sample) -> dict[str, Any]:
    """A sample as JSON: prompt, chain (text and regions), scores; NaN becomes null."""
    scores = {name: null_for_nan(value) for name, value in sample.scores.items()}
    return {
        "prompt": sample.prompt.text,
        "chain": sample.chain.raw,
        "well_formed": sample.chain.well_formed,
        "problems": list(sample.chain.problems),
        "regions": [{"phrase": r.phrase, "box": list(r.box)} for r in sample.chain.regions],
        "lineage": list(sample.lineage),
        "scores": scores,
        "reward": null_for_nan(sample.reward),
    }


def null_for_nan(value: Any) -> Any:
    """The value, or None for NaN."""
    return None if value != value else value
