"""What a checkpoint saves comes back exactly. A checkpoint on disk is complete, or it is not there."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from gotr1_core.config.models import OptimizerConfig
from gotr1_core.engine.files import recover_folder, write_atomically
from gotr1_core.engine.optim import clip_gradients, learning_rate_at, make_optimizer, set_learning_rate
from gotr1_core.engine.tensors import fingerprint, load_optimizer, load_trainable, optimizer_tensors, trainable_tensors
from gotr1_core.errors import UsageError
from gotr1_core.runs.checkpoint import (
    CHECKPOINTS,
    MANIFEST,
    STATE,
    TRAINABLE,
    complete_checkpoints,
    damaged_checkpoints,
    find_damage,
    new_checkpoint,
    prune_checkpoints,
    read_state,
    remove_leftovers,
    warn_of_damage,
)

KEPT: dict[str, Any] = {"rows": 1, "drawn": 0, "pending": False, "best": None, "sampling": {}, "starting": {}, "updates": {}}
"""The state of a run beside its step."""


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


def save(run: Path, step: int, module: nn.Module | None = None, **state: Any) -> Path:
    """Saves a checkpoint as a run does."""
    with new_checkpoint(run, step) as part:
        (part / "planner").mkdir()
        save_file(trainable_tensors(module or make()), part / "planner" / TRAINABLE)
        (part / STATE).write_text(json.dumps({**KEPT, "step": step, **state}))
    return run / CHECKPOINTS / f"step-{step:06d}"


def test_what_trains_comes_back(tmp_path: Path) -> None:
    one, other = make(), make()
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.normal_()
    folder = save(tmp_path, 3, one, sampling={"temperature": 1.0})
    load_trainable(other, folder / "planner" / TRAINABLE)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b) == a.requires_grad  # what is frozen is not kept
    assert read_state(folder) == {**KEPT, "step": 3, "sampling": {"temperature": 1.0}}
    assert trainable_tensors(one).keys() == {"1.weight", "1.bias", "2.weight", "2.bias"}
    assert list(folder.parent.iterdir()) == [folder]
    assert complete_checkpoints(tmp_path) == {3: folder}


def test_the_manifest_lists_every_file(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    files = json.loads((folder / MANIFEST).read_text())["files"]
    assert files.keys() == {STATE, f"planner/{TRAINABLE}"}
    for name, entry in files.items():
        content = (folder / name).read_bytes()
        assert entry == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_a_checkpoint_is_replaced_whole(tmp_path: Path) -> None:
    folder = save(tmp_path, 1)
    (folder / "renderer").mkdir()
    assert save(tmp_path, 1, rows=2) == folder
    assert read_state(folder) == {**KEPT, "step": 1, "rows": 2}
    assert not (folder / "renderer").exists()


def write_and_fail(run: Path, error: BaseException) -> None:
    with new_checkpoint(run, 1) as part:
        (part / "half").write_text("x")
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_a_failed_save_leaves_the_old_one(tmp_path: Path, error: BaseException) -> None:
    folder = save(tmp_path, 1)
    with pytest.raises(type(error)):
        write_and_fail(tmp_path, error)
    assert read_state(folder) == {**KEPT, "step": 1}
    assert list(folder.parent.iterdir()) == [folder]


def test_leftovers_of_a_killed_save_do_not_matter(tmp_path: Path) -> None:
    for name in ("step-000001.part", "step-000001.old"):
        (tmp_path / CHECKPOINTS / name).mkdir(parents=True)
        (tmp_path / CHECKPOINTS / name / "junk").write_text("x")
    assert complete_checkpoints(tmp_path) == {}
    folder = save(tmp_path, 1)
    assert list(folder.parent.iterdir()) == [folder]
    assert not (folder / "junk").exists()


def test_a_checkpoint_that_was_moved_aside_is_restored(tmp_path: Path) -> None:
    """After a process was killed between the two renames."""
    folder = save(tmp_path, 1)
    folder.rename(folder.with_name(folder.name + ".old"))
    recover_folder(folder)
    assert complete_checkpoints(tmp_path) == {1: folder}
    recover_folder(folder)
    assert list(folder.parent.iterdir()) == [folder]


# -- damage -----------------------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def overwrite(text: str) -> Callable[[Path], Any]:
    return lambda path: path.write_text(text)


@pytest.mark.parametrize(
    ("name", "how", "problem", "by_size"),
    [
        (f"planner/{TRAINABLE}", Path.unlink, "is missing", True),
        (f"planner/{TRAINABLE}", cut, "is not what was saved", True),
        (f"planner/{TRAINABLE}", flip, "is not what was saved", False),
        (STATE, flip, "is not what was saved", True),
        (STATE, overwrite("{}"), "is not what was saved", True),
        (MANIFEST, Path.unlink, "is missing", True),
        (MANIFEST, cut, "is damaged", True),
        (MANIFEST, overwrite(""), "is damaged", True),
        (MANIFEST, overwrite("[]"), "is damaged", True),
        (MANIFEST, overwrite("{}"), "is damaged", True),
        (MANIFEST, overwrite('{"files": {}}'), "does not list state.json", True),
        (MANIFEST, overwrite('{"files": {"state.json": 1}}'), "is damaged", True),
        (MANIFEST, overwrite('{"files": ' + "[" * 99_999), "is damaged", True),
        (MANIFEST, overwrite(json.dumps({"files": {STATE: {}, "\0": {}}})), "is damaged", True),
        (MANIFEST, overwrite("\x80"), "is damaged", True),
    ],
)
def test_damage_is_found(tmp_path: Path, name: str, how: Callable[[Path], Any], problem: str, by_size: bool) -> None:
    before, folder = save(tmp_path, 1), save(tmp_path, 2)
    assert find_damage(folder) is None
    how(folder / name)
    assert find_damage(folder) == f"{name} {problem}"
    assert (find_damage(folder, deep=False) is not None) == by_size
    assert complete_checkpoints(tmp_path) == ({1: before} if by_size else {1: before, 2: folder})
    with pytest.raises(UsageError, match="is damaged"):
        read_state(folder)


@pytest.mark.parametrize(
    ("changed", "key"), [({"rows": "3"}, "rows"), ({"step": 7}, "step"), ({"pending": 1}, "pending"), ({"best": {"score": 1}}, "best")]
)
def test_a_state_that_no_run_wrote_is_no_checkpoint(tmp_path: Path, changed: dict[str, Any], key: str) -> None:
    """Also if the manifest was made again after the edit."""
    folder = save(tmp_path, 2)
    with new_checkpoint(tmp_path, 2) as part:
        (part / STATE).write_text(json.dumps({**KEPT, "step": 2, **changed}))
    assert find_damage(folder) == f"state.json is damaged: it has no {key} that a run wrote"
    assert complete_checkpoints(tmp_path) == {}


def test_what_is_no_checkpoint_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save(tmp_path, 1)
    for name in ("step-²", "step-1", "step-", "step-000002"):
        (folder.parent / name).mkdir()
    (folder.parent / "step-000003").write_text("a file")
    (folder.parent / "step-000004").symlink_to("step-000004")  # a loop
    (folder.parent / "step-000005.part").mkdir()  # of a killed process: it says nothing
    assert complete_checkpoints(tmp_path) == {1: folder}
    damaged = ["step-", "step-000002", "step-000003", "step-000004", "step-1", "step-²"]
    assert [path.name for path in damaged_checkpoints(tmp_path)] == damaged
    for _ in range(2):
        warn_of_damage(tmp_path, "going on from step-000001")
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 6
    assert err[1] == f"warning: {folder.parent}/step-000002 is damaged: manifest.json is missing; going on from step-000001"
    assert err[-1] == f"warning: {folder.parent}/step-² is damaged: no run gives such a name; going on from step-000001"


def test_incomplete_checkpoints_do_not_count_when_others_are_removed(tmp_path: Path) -> None:
    first, second, third = (save(tmp_path, step) for step in (1, 2, 3))
    cut(third / "planner" / TRAINABLE)
    (third.parent / "step-²").mkdir()
    prune_checkpoints(tmp_path, 2, best=None)
    assert complete_checkpoints(tmp_path) == {1: first, 2: second}
    assert third.is_dir()  # gotr1 removes nothing that it did not finish or replace itself


def test_a_process_that_was_killed_while_it_removed_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it left is no checkpoint, and is removed at the next save."""
    first, second = save(tmp_path, 1), save(tmp_path, 2)

    def killed(folder: Path, **more: Any) -> None:
        (folder / STATE).unlink()
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr("gotr1_core.runs.checkpoint.shutil.rmtree", killed)
        with pytest.raises(SystemExit):
            prune_checkpoints(tmp_path, 1, best=None)
    assert {path.name for path in first.parent.iterdir()} == {"step-000001.removed", "step-000002"}
    assert complete_checkpoints(tmp_path) == {2: second}
    assert damaged_checkpoints(tmp_path) == {}
    prune_checkpoints(tmp_path, 1, best=None)
    assert list(first.parent.iterdir()) == [second]


def test_a_checkpoint_that_was_being_replaced_is_not_lost(tmp_path: Path) -> None:
    """The process was killed between the two renames, so the only whole checkpoint has the name of one that is replaced."""
    folder = save(tmp_path, 1)
    folder.rename(folder.with_suffix(".old"))
    folder.with_suffix(".part").mkdir()
    remove_leftovers(tmp_path)
    assert list(folder.parent.iterdir()) == [folder]
    assert complete_checkpoints(tmp_path) == {1: folder}


def test_pruning_keeps_the_last_and_the_best(tmp_path: Path) -> None:
    for step in (2, 4, 10, 100, 1000000):
        save(tmp_path, step)
    prune_checkpoints(tmp_path, 2, best=4)
    assert list(complete_checkpoints(tmp_path)) == [4, 100, 1000000]  # by number, not by name
    prune_checkpoints(tmp_path, 1, best=1000000)
    assert list(complete_checkpoints(tmp_path)) == [1000000]
    prune_checkpoints(tmp_path, 3, best=None)
    assert list(complete_checkpoints(tmp_path)) == [1000000]


def test_a_fingerprint_tells_models_apart() -> None:
    one = make()
    assert fingerprint(one) == fingerprint(make())
    with torch.no_grad():
        one[0].weight[0, 0] += 1e-6  # of what is frozen, too
    assert fingerprint(one) != fingerprint(make())
    assert fingerprint(make().to(torch.bfloat16)) != fingerprint(make())


def test_a_text_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_atomically(path, "one")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\udc80")
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 1) / "planner" / TRAINABLE
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


def test_an_optimizer_resumes_exactly() -> None:
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.1)
    one = make()
    first = make_optimizer(one, config)
    for seed in range(3):
        step(one, first, seed)
    other = make()
    other.load_state_dict(one.state_dict())
    second = make_optimizer(other, config)
    load_optimizer(second, json_free(optimizer_tensors(first)))
    for seed in range(3, 6):
        step(one, first, seed)
        step(other, second, seed)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("key", ["x", "0", "9.exp_avg", "-1.exp_avg", "².exp_avg", "0.exp_avg"])
def test_a_state_of_another_optimizer_is_refused(key: str) -> None:
    optimizer = make_optimizer(make(), OptimizerConfig())
    with pytest.raises(UsageError, match="does not fit the model"):
        load_optimizer(optimizer, {key: torch.zeros(7, 7)})


def json_free(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors after a trip through safetensors, as on disk."""
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
    flat = OptimizerConfig(learning_rate=2.0, schedule="constant", warmup=4)
    assert [learning_rate_at(flat, s, 10) for s in (0, 1, 3, 4, 9)] == [0.5, 1.0, 2.0, 2.0, 2.0]
    line = OptimizerConfig(learning_rate=1.0, schedule="linear", floor=0.2)
    assert [learning_rate_at(line, s, 10) for s in (0, 5, 10)] == pytest.approx([1.0, 0.6, 0.2])
    wave = OptimizerConfig(learning_rate=1.0, schedule="cosine", warmup=2)
    assert [learning_rate_at(wave, s, 10) for s in (2, 6, 10)] == pytest.approx([1.0, 0.5, 0.0])
    assert learning_rate_at(OptimizerConfig(warmup=5), 3, 2) > 0  # a warm-up longer than the run
    optimizer = make_optimizer(make(), flat)
    assert set_learning_rate(optimizer, flat, 1, 10) == 1.0
    assert all(group["lr"] == 1.0 for group in optimizer.param_groups)


def test_clipping_returns_the_norm_before() -> None:
    module = make()
    module[2].weight.grad = torch.full_like(module[2].weight, 3.0)
    assert clip_gradients(module.parameters(), 1.0).item() == pytest.approx(3.0 * 8**0.5)
    assert module[2].weight.grad.norm().item() == pytest.approx(1.0, rel=1e-5)
