"""The sizes of a step: what a dry run reports, what a real step does, and which sizes are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

import gotr1_core.update as updating
from gotr1_core.cli.main import call
from gotr1_core.components.build import build, make_component
from gotr1_core.components.limits import check_context, check_groups, check_limits, step_sizes
from gotr1_core.components.preflight import check
from gotr1_core.components.prompts import prompts_of
from gotr1_core.config.models import ComponentConfig, RunConfig, dump
from gotr1_core.errors import UsageError
from gotr1_core.loop import Trainer
from gotr1_core.plugins import Registry

Make = Callable[..., RunConfig]

# 6 prompts x 4 plans x 2 images in chunks of 4 prompts and micro-batches of 5 plans.
TREE: dict[str, Any] = {"groups": 6, "plans": 4, "images": 2, "micro_batch": 5, "rollout_groups": 4, "updates": 2, "steps": 7}
SHAPE = {
    "prompts": 6,
    "plans": 24,
    "images": 48,
    "processes": 1,
    "prompts per process": 6,
    "trained weights per process": "all",
    "rollout chunks per process": 2,
    "micro-batches per update and process": 5,
    "updates per rollout": 2,
    "updates in all": 14,
    "plan tokens at most": 8,
    "image tokens": 9,
    "tokens per sample at most": 17,
    "samples in all": 336,
}


def test_a_dry_run_counts_as_a_hand_does(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(dump(make(**TREE, output=str(tmp_path / "runs"))))
    assert call(["train", str(file), "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sizes"] == SHAPE
    assert found["config"]["groups"] == 6
    assert call(["train", str(file), "--dry-run"]) == 0
    config, _, shape = capsys.readouterr().out.partition("\n# sizes of a step\n")
    assert config == dump(make(**TREE, output=str(tmp_path / "runs")))  # which runs as it stands
    assert [line.removeprefix("# ").rsplit(maxsplit=1) for line in shape.splitlines()] == [[k, str(v)] for k, v in SHAPE.items()]
    assert list(tmp_path.iterdir()) == [file]  # nothing was started


def test_a_real_step_does_what_the_dry_run_says(registry: Registry, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a divergence, so that every plan has a gradient. Nothing is pruned."""
    config = make(**TREE, segments={"plan": {"kl": 0.1}}, prune=False)
    assert step_sizes(config, 1, check(registry, config).sizes) == SHAPE
    counted = {"chunks": 0, "micro-batches": 0}
    trainer = Trainer(config, build(registry, config), prompts_of(registry, config.prompts)[0], Accelerator(cpu=True))
    draw, cut = trainer.parts.planner.plan, updating.split_batch

    def plan(*arguments: Any, **more: Any) -> Any:
        counted["chunks"] += 1
        return draw(*arguments, **more)

    def counting(*arguments: Any, **more: Any) -> Any:
        micro_batches = cut(*arguments, **more)
        counted["micro-batches"] = len(micro_batches)
        return micro_batches

    monkeypatch.setattr(trainer.parts.planner, "plan", plan)
    monkeypatch.setattr(updating, "split_batch", counting)
    _, batch = trainer.step(0)
    assert len(batch.prompts) == SHAPE["prompts"]
    assert len(batch.plans) == SHAPE["plans"]
    assert batch.images is not None
    assert len(batch.images) == len(batch.samples) == SHAPE["images"]
    assert counted == {"chunks": SHAPE["rollout chunks per process"], "micro-batches": SHAPE["micro-batches per update and process"]}
    assert trainer.learners["planner"].updates == SHAPE["updates per rollout"]
    assert batch.plans.tensors["mask"].shape[1] <= SHAPE["plan tokens at most"]
    assert batch.images.tensors["mask"].shape[1] == SHAPE["image tokens"]


def test_several_processes_share_the_prompts(make: Make) -> None:
    shared = step_sizes(make(**TREE), 3, {})
    assert shared["prompts per process"] == 2
    assert shared["rollout chunks per process"] == 1
    assert shared["micro-batches per update and process"] == 2  # 8 plans
    assert shared["plans"] == 24  # over all
    assert shared["image tokens"] is shared["tokens per sample at most"] is None  # nobody has said it


# -- what cannot be ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "processes", "message", "hint"),
    [
        ({"groups": 6}, 4, "groups=6 cannot be shared by 4 processes", "nearest: groups=4 or groups=8"),
        ({"groups": 3}, 4, "groups=3 cannot be shared by 4 processes", "nearest: groups=4"),
        (
            {"evaluation": {"every": 2, "prompts": 7}},
            1,
            "evaluation.prompts=7, but only 6 prompts are held out",
            "nearest: evaluation.prompts=6 or prompts.held_out=7",
        ),
        (
            {"evaluation": {"every": 0, "best_of": 9, "batch": 8}},
            1,
            "evaluation.batch=8 cannot hold best_of=9",
            "nearest: evaluation.batch=9",
        ),
    ],
)
def test_numbers_that_do_not_go_together(make: Make, changed: Any, processes: int, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_limits(make(**changed), processes)
    assert (caught.value.message, caught.value.hint) == (message, hint)


@pytest.mark.parametrize(
    ("key", "train", "refused"),
    [
        *(("temperature", train, train != "renderer") for train in ("planner", "renderer", "both")),
        *(("image_temperature", train, train != "planner") for train in ("planner", "renderer", "both")),
    ],
)
def test_what_trains_is_not_decoded_greedily(make: Make, key: str, train: str, refused: bool) -> None:
    """It once stopped at step 1, and said that the sampler and the training pass do not agree."""
    config = make(train=train, sampling={key: 0}, evaluation={"every": 0})
    with pytest.raises(UsageError, match=f"sampling.{key}=0 decodes the") if refused else nullcontext():
        check_limits(config, 1)
    name = "plan" if key == "temperature" else "image"
    check_limits(make(train=train, sampling={key: 0}, evaluation={"every": 0}, segments={name: {"weight": 0}}), 1)
    check_limits(make(train=train, evaluation={"every": 0, "sampling": {key: 0}}), 1)


@pytest.mark.parametrize(
    "changed", [{"groups": 6}, {"evaluation": {"every": 0, "prompts": 7}}, {"evaluation": {"prompts": 6, "best_of": 8, "batch": 8}}]
)
def test_numbers_that_do(make: Make, changed: Any) -> None:
    check_limits(make(**{"evaluation": {"every": 0}, **changed}), 3 if "groups" in changed else 1)


def test_chains_that_leave_no_room_for_a_prompt(registry: Registry, make: Make) -> None:
    """Refused before weights are loaded. The tiny model has 512 positions, and a picture needs 9."""
    check(registry, make(sampling={"max_chain_tokens": 502}))
    with pytest.raises(UsageError) as caught:
        check(registry, make(sampling={"max_chain_tokens": 10**12}))
    assert caught.value.message == "sampling.max_chain_tokens=1000000000000 with 9 image tokens does not fit the model's context of 512"
    assert caught.value.hint == "nearest: sampling.max_chain_tokens=502, less what the longest prompt takes"
    check_context(make(sampling={"max_chain_tokens": 10**12}), {"image_tokens": 9})  # a context that nobody knows


@pytest.mark.parametrize(
    ("changed", "message", "hint"),
    [
        ({"plans": 1, "images": 1}, "plans=1, images=1: grpo has no samples of a prompt to compare", "nearest: plans=2"),
        ({"plans": 1, "images": 1, "train": "renderer"}, "has no samples of a prompt to compare", "nearest: images=2"),
        ({"plans": 1, "images": 2, "train": "planner"}, "has no samples of a prompt to compare", "nearest: plans=2"),
        ({"plans": 1, "images": 2, "segments": {"image": {"weight": 0}}}, "has no samples of a prompt to compare", "nearest: plans=2"),
        ({"plans": 4, "images": 1, "algorithm": {"name": "grpo", "advantages": "split"}}, "advantages=split", "two or more images"),
        (
            {"train": "planner", "segments": {"plan": {"weight": 0}}},
            "train=planner, but no segment of it has a weight",
            "segments.plan.weight",
        ),
    ],
)
def test_trees_without_a_difference(make: Make, changed: Any, message: str, hint: str) -> None:
    config = make(**changed)
    with pytest.raises(UsageError) as caught:
        check_groups(make_component(Registry(), "algorithm", config.algorithm), config)
    assert message in caught.value.message
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize(
    "changed",
    [
        {"plans": 2, "images": 1},
        {"plans": 1, "images": 2},  # the image learns
        {"plans": 1, "images": 2, "train": "renderer"},
        {"plans": 2, "images": 1, "train": "renderer"},
        {"plans": 2, "images": 2, "algorithm": {"name": "grpo", "advantages": "split"}},
    ],
)
def test_sizes_that_are_enough(make: Make, changed: Any) -> None:
    config = make(**changed)
    check_groups(make_component(Registry(), "algorithm", ComponentConfig(**config.algorithm.model_dump())), config)


def test_the_command_line_refuses_them_before_anything_is_there(make: Make, refused: Any, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(dump(make(output=str(tmp_path / "runs"))))
    for more in ([], ["--dry-run"]):
        error, hint = refused(["train", str(file), "plans=1", *more])
        assert error.startswith("plans=1, images=1")
        assert hint == "nearest: plans=2"
        assert refused(["train", str(file), "sampling.temperature=0", *more])[0].startswith("sampling.temperature=0 decodes the plan")
    assert list(tmp_path.iterdir()) == [file]
