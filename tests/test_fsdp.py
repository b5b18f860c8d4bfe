"""Weights sharded over processes: what is refused, what is gathered at a time, and how processes agree on their passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from gotr1_core.components.limits import check_limits, step_sizes
from gotr1_core.components.preflight import check
from gotr1_core.config.models import RunConfig
from gotr1_core.engine.fsdp import PassKind, blocks, common_sequence
from gotr1_core.errors import UsageError
from gotr1_core.plugins import Registry

Make = Callable[..., RunConfig]
PLAN: PassKind = ("plan",)
BOTH: PassKind = ("image", "plan")


@pytest.mark.parametrize(
    ("changed", "processes", "message", "hint"),
    [
        ({}, 1, "shard=true shards a model over several processes, but there is only one", "-- --num-processes 2, or set shard=false"),
        ({"lora": {"rank": 2}}, 2, "shard=true needs full weights, but lora trains adapters", "set lora=null, or shard=false"),
        ({"lora": {"rank": 2}}, None, "shard=true needs full weights, but lora trains adapters", "set lora=null, or shard=false"),
        ({"mixed_precision": "fp16"}, 3, "shard=true and mixed_precision=fp16 do not go together", "mixed_precision=bf16"),
    ],
)
def test_what_cannot_be_sharded(make: Make, changed: Any, processes: int | None, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_limits(make(shard=True, **changed), processes)
    assert caught.value.message == message
    assert hint in str(caught.value.hint)


def test_a_torch_that_is_too_old_is_reported(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.12.1+cu128")
    with pytest.raises(UsageError, match=r"shard=true needs torch 2.13 or newer, not 2.12.1\+cu128"):
        check_limits(make(shard=True), 3)
    check_limits(make(), 3)


def test_sharding_does_not_matter_where_nothing_trains(registry: Registry, make: Make) -> None:
    """`gotr1 evaluate` and `export` build a run's components in one process, whether the run was sharded or not."""
    check(registry, make(shard=True))


def test_the_command_line_refuses_it_in_two_lines(refused: Any, make: Make, tmp_path: Any) -> None:
    from gotr1_core.config.models import dump

    file = tmp_path / "config.yaml"
    file.write_text(dump(make(shard=True, output=str(tmp_path / "runs"))))
    for more in ([], ["--dry-run"]):
        error, hint = refused(["train", str(file), *more])
        assert error == "shard=true shards a model over several processes, but there is only one"
        assert "--num-processes 2" in hint
    assert list(tmp_path.iterdir()) == [file]


def test_the_sizes_say_what_a_process_has(make: Make) -> None:
    assert step_sizes(make(), 3, {})["trained weights per process"] == "all"
    assert step_sizes(make(shard=True), 3, {})["trained weights per process"] == "1/3"


def test_blocks_are_the_elements_of_the_outermost_lists_that_train() -> None:
    """Lists inside a block do not count, nor do layers outside every list. A list of lists is not a list of blocks itself."""
    inner = nn.ModuleDict({"resnets": nn.ModuleList([nn.Linear(1, 1)])})
    model = nn.ModuleDict(
        {
            "embed": nn.Embedding(2, 2),
            "layers": nn.ModuleList([nn.Sequential(nn.Linear(1, 1), nn.ModuleList([nn.Linear(1, 1)])), nn.Linear(1, 1)]),
            "frozen": nn.ModuleList([nn.Linear(1, 1).requires_grad_(False)]),
            "stages": nn.ModuleList([nn.ModuleList([nn.Linear(1, 1)]), inner]),
        }
    )
    names = {module: name for name, module in model.named_modules()}
    assert [names[block] for block in blocks(model)] == ["layers.0", "layers.1", "stages.0.0", "stages.1.resnets.0"]


@pytest.mark.parametrize(
    ("sequences", "agreed"),
    [
        ([[BOTH, BOTH], [BOTH, BOTH]], [BOTH, BOTH]),
        ([[], [BOTH, PLAN], []], [BOTH, PLAN]),
        ([[BOTH, PLAN], [PLAN, PLAN]], [BOTH, PLAN, PLAN]),
        ([[PLAN, BOTH], [BOTH, BOTH], [BOTH]], [BOTH, BOTH, PLAN, BOTH]),
        ([[], []], []),
    ],
)
def test_processes_agree_on_passes(sequences: Sequence[Sequence[PassKind]], agreed: list[PassKind]) -> None:
    """Each process finds its own micro-batches among them, in their order. The next pass is of the kind that most of them need next."""
    assert common_sequence(sequences) == agreed
