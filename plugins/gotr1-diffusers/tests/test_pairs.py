"""Every planner with every renderer, in miniature: one step of each pair by the command, after which the trained part has changed."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest

from gotr1_core.cli.main import call
from gotr1_core.plugins import Registry
from gotr1_scenes.source import write_jsonl

PLANNERS = ("janus", "qwen", "file")
RENDERERS = ("janus", "sdxl", "flow")
SMALL = [
    *("steps=1", "groups=2", "plans=3", "prompts.held_out=2", "evaluation.prompts=2", "evaluation.best_of=0", "evaluation.greedy=false"),
    *("constant_groups=keep", "reward=(sem + spa + ri + pi) / 4", "sampling.denoising_steps=3", "prune=false", "save_samples=0"),
]


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts with their true plans, two for each."""
    path = write_jsonl(tmp_path_factory.mktemp("truth"), 6, clean=True)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    other = "There is <|obj_start|>a red cross<|obj_end|><|box_start|>(0,0),(250,250)<|box_end|>."
    path.write_text("".join(json.dumps(row | {"chain": [row["chain"], other]}) + "\n" for row in rows))
    return path


def test_every_planner_and_renderer_is_here() -> None:
    """A new planner or renderer must be added here. The planner behind a server is tried in gotr1-served."""
    for kind, names in (("planner", (*PLANNERS, "openai")), ("renderer", RENDERERS)):
        assert {provided.component.name for provided in Registry().of_kind(kind)} == set(names)


@pytest.mark.parametrize(("planner", "renderer"), list(product(PLANNERS, RENDERERS)))
def test_a_step_of_every_pair(planner: str, renderer: str, truth: Path, tiny_flow: Path, tmp_path: Path) -> None:
    words = [*SMALL, f"output={tmp_path}", "name=pair", f"train={'renderer' if planner == 'file' else 'both'}"]
    if planner == "file":
        words += [f"planner.chains={truth}", f"prompts.file={truth}", "prompts.source=null"]
    if renderer == "flow":
        words += [f"renderer.model={tiny_flow}", "renderer.text_tokens=20"]
    status = call(["train", "--preset", "scenes", "--planner", planner, "--renderer", renderer, "--judge", "scenes", *words])
    assert status == 0
    rows = [json.loads(line) for line in (tmp_path / "pair" / "metrics.jsonl").read_text().splitlines()]
    (step,) = (row for row in rows if "evaluation" not in row)
    norms = {name: value for name, value in step.items() if name.endswith("gradient_norm")}
    one = planner == renderer or planner == "file"  # model that trains
    assert set(norms) == ({"gradient_norm"} if one else {"planner.gradient_norm", "renderer.gradient_norm"})
    assert all(value > 0 for value in norms.values())
    segments = ("image",) if planner == "file" else ("plan", "image")
    roles = {"plan": "planner", "image": "renderer"}
    for segment in segments:  # what is sampled is what is scored: the limit of float32
        prefix = "" if one else f"{roles[segment]}."
        assert step[f"{prefix}{segment}.sampler_gap"] <= 1e-4
    assert ("duplicates.plan" in step) == (planner != "file")  # nothing is sampled there
    assert {row["evaluation"] for row in rows if "evaluation" in row} == {"before", "after"}
