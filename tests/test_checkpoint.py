"""What is kept on disk comes back exactly, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from gotr1_core.checkpoint import (
    TRAINABLE,
    load_optimizer_tensors,
    load_trainable,
    optimizer_tensors,
    read_state,
    replacing,
    save_checkpoint,
    trainable,
)
from gotr1_core.config import OptimizerConfig
from gotr1_core.errors import UsageError
from gotr1_core.optim import clip, make_optimizer, rate_at, set_rate


def make(width: int = 4) -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, width), nn.LayerNorm(width), nn.Linear(width, 2))
    module[0].requires_grad_(False)
    return module


def step(module: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    module(torch.randn(5, 3)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_what_trains_comes_back(tmp_path: Path) -> None:
    one, other = make(), make()
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.normal_()
    save_checkpoint(tmp_path / "last", {"planner": one}, {"step": 3, "sampling": {"temperature": 1.0}})
    load_trainable(other, tmp_path / "last" / "planner" / TRAINABLE)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b) == a.requires_grad  # what is frozen is not kept
    assert read_state(tmp_path / "last") == {"step": 3, "sampling": {"temperature": 1.0}}
    assert trainable(one).keys() == {"1.weight", "1.bias", "2.weight", "2.bias"}
    assert [p.name for p in tmp_path.iterdir()] == ["last"]


def test_a_checkpoint_is_replaced_whole(tmp_path: Path) -> None:
    folder = tmp_path / "last"
    save_checkpoint(folder, {"planner": make(), "renderer": make()}, {"step": 1})
    save_checkpoint(folder, {"planner": make()}, {"step": 2})
    assert read_state(folder) == {"step": 2}
    assert not (folder / "renderer").exists()


def write_and_fail(folder: Path) -> None:
    with replacing(folder) as part:
        (part / "half").write_text("x")
        raise KeyboardInterrupt


def test_a_failed_save_leaves_the_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "last"
    save_checkpoint(folder, {"planner": make()}, {"step": 1})
    with pytest.raises(KeyboardInterrupt):
        write_and_fail(folder)
    assert read_state(folder) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last"]


def test_leftovers_of_a_killed_save_do_not_matter(tmp_path: Path) -> None:
    for name in ("last.part", "last.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "junk").write_text("x")
    save_checkpoint(tmp_path / "last", {"planner": make()}, {"step": 1})
    assert [p.name for p in tmp_path.iterdir()] == ["last"]
    assert not (tmp_path / "last" / "junk").exists()


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "last", {"planner": make()}, {})
    path = tmp_path / "last" / "planner" / TRAINABLE
    thawed = make()
    thawed.requires_grad_(True)
    for module in (make(width=5), thawed):
        before = [p.clone() for p in module.parameters()]
        with pytest.raises(UsageError, match="does not fit"):
            load_trainable(module, path)
        assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UsageError, match="damaged"):
        load_trainable(make(), path)
    path.unlink()
    with pytest.raises(UsageError, match="missing"):
        load_trainable(make(), path)


@pytest.mark.parametrize("text", [None, "{", "[1]"])
def test_no_state_is_no_checkpoint(tmp_path: Path, text: str | None) -> None:
    from gotr1_core.errors import Gotr1Error

    if text is not None:
        (tmp_path / "state.json").write_text(text)
    with pytest.raises(Gotr1Error):
        read_state(tmp_path)


def test_an_optimizer_goes_on_exactly() -> None:
    config = OptimizerConfig(rate=0.1, weight_decay=0.1)
    one = make()
    first = make_optimizer(one, config)
    for seed in range(3):
        step(one, first, seed)
    other = make()
    other.load_state_dict(one.state_dict())
    second = make_optimizer(other, config)
    load_optimizer_tensors(second, json_free(optimizer_tensors(first)))
    for seed in range(3, 6):
        step(one, first, seed)
        step(other, second, seed)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def json_free(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Through safetensors, as on disk."""
    from safetensors.torch import load, save

    assert json.dumps(sorted(tensors))  # names are plain text
    return load(save(tensors))


def test_vectors_are_not_decayed_and_frozen_weights_not_optimised() -> None:
    module = make()
    optimizer = make_optimizer(module, OptimizerConfig(weight_decay=0.1))
    decayed, kept = optimizer.param_groups
    assert [p.dim() for p in decayed["params"]] == [2]
    assert decayed["weight_decay"] == 0.1
    assert [p.dim() for p in kept["params"]] == [1, 1, 1]
    assert kept["weight_decay"] == 0


def test_learning_rates() -> None:
    flat = OptimizerConfig(rate=2.0, schedule="constant", warmup=4)
    assert [rate_at(flat, s, 10) for s in (0, 1, 3, 4, 9)] == [0.5, 1.0, 2.0, 2.0, 2.0]
    line = OptimizerConfig(rate=1.0, schedule="linear", floor=0.2)
    assert [rate_at(line, s, 10) for s in (0, 5, 10)] == pytest.approx([1.0, 0.6, 0.2])
    wave = OptimizerConfig(rate=1.0, schedule="cosine", warmup=2)
    assert [rate_at(wave, s, 10) for s in (2, 6, 10)] == pytest.approx([1.0, 0.5, 0.0])
    assert rate_at(OptimizerConfig(warmup=5), 3, 2) > 0  # a warm-up longer than the run
    optimizer = make_optimizer(make(), flat)
    set_rate(optimizer, 0.25)
    assert all(group["lr"] == 0.25 for group in optimizer.param_groups)


def test_clipping_returns_the_norm_before() -> None:
    module = make()
    module[2].weight.grad = torch.full_like(module[2].weight, 3.0)
    assert clip(module.parameters(), 1.0).item() == pytest.approx(3.0 * 8**0.5)
    assert module[2].weight.grad.norm().item() == pytest.approx(1.0, rel=1e-5)
