"""Supervised fine-tuning: batches depend only on the step, and a killed run is resumed bit for bit."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from gotr1_core.border.calls import call_supervised_loss
from gotr1_core.chain import parse
from gotr1_core.cli.main import call
from gotr1_core.config.models import SftConfig, validate
from gotr1_core.data.examples import read_examples
from gotr1_core.errors import Gotr1Error, UsageError
from gotr1_core.plugins import Registry
from gotr1_core.runs.checkpoint import EMA_FILE, OPTIMIZER, TRAINABLE
from gotr1_core.runs.records import lock_folder
from gotr1_core.samples import Example, Prompt
from gotr1_core.workflows.sft import _Skipped, from_examples, from_source, train_supervised


def config(model: Path, output: Path, **changed: Any) -> SftConfig:
    data = {"policy": {"name": "janus", "model": str(model), "instruction": "{prompt}", "attention": "eager", "drop_conditions": 0.3}}
    data |= {"data": "scenes", "steps": 6, "batch": 4, "micro_batch": 4, "sort_window": 2, "save_every": 3, "output": str(output)}
    return validate(SftConfig, data | {"optimizer": {"learning_rate": 1e-3, "warmup": 2, "weight_decay": 0.1}} | changed)


def run(config: SftConfig, steps: int) -> tuple[Any, list[dict[str, Any]]]:
    """Trains for so many steps and ends as a killed process does. Returns the policy and the rows."""
    from gotr1_core.components.build import make_component

    registry = Registry()
    policy = make_component(registry, "planner", config.policy)
    source = make_component(registry, "source", config.data)  # type: ignore[arg-type]
    rows = []
    for row in train_supervised(config, policy, from_source(source, config.batch, config.seed, config.sort_window)):
        rows.append(row)
        if len(rows) == steps:
            break
    return policy, rows


def parameters(policy: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in policy.module.named_parameters()}


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_it_resumes_bit_for_bit(tiny_janus: Path, tmp_path: Path, lora: dict[str, int] | None) -> None:
    torch.manual_seed(1)  # peft draws A from the global generator
    whole, all_rows = run(config(tiny_janus, tmp_path / "whole", lora=lora), 6)
    parts = config(tiny_janus, tmp_path / "parts", lora=lora)
    torch.manual_seed(1)
    _, first = run(parts, 3)
    torch.manual_seed(2)
    again, rest = run(parts, 6)
    assert [row["step"] for row in first + rest] == list(range(6))
    for row, other in zip(all_rows, first + rest, strict=True):
        assert {k: v for k, v in row.items() if k != "seconds"} == {k: v for k, v in other.items() if k != "seconds"}
    assert all(torch.equal(p, parameters(whole)[name]) for name, p in parameters(again).items())
    if lora is None:
        begun = parameters(run_none(parts))
        assert sum(not torch.equal(p, begun[name]) for name, p in parameters(again).items()) > 10
    assert run(parts, 6)[1] == []  # nothing is left to do
    assert json.loads((tmp_path / "parts" / "model" / "state.json").read_text()) == {"step": 6}


def run_none(config: SftConfig) -> Any:
    from gotr1_core.components.build import make_component

    return make_component(Registry(), "planner", config.policy)


def test_a_save_that_was_killed_between_its_renames_is_put_back(tiny_janus: Path, tmp_path: Path) -> None:
    settings = config(tiny_janus, tmp_path, save_every=1)
    run(settings, 2)
    (tmp_path / "model").rename(tmp_path / "model.old")
    (tmp_path / "model.part").mkdir()  # whole or not, nobody knows
    assert [row["step"] for row in run(settings, 2)[1]] == [2, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("name", ["trainable.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_save_is_reported(tiny_janus: Path, tmp_path: Path, name: str) -> None:
    settings = config(tiny_janus, tmp_path, save_every=1)
    run(settings, 1)
    path = tmp_path / "model" / name
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UsageError, match=f"{path} is damaged"):
        run(settings, 1)


def test_what_is_saved_is_what_was_trained(tiny_janus: Path, tmp_path: Path) -> None:
    """Also with adapters: the saved model is complete, and others can load it."""
    settings = config(tiny_janus, tmp_path / "run", lora={"rank": 2}, steps=3, optimizer={"learning_rate": 1e-2})
    policy, _ = run(settings, 3)
    loaded = run_none(
        settings.model_copy(update={"policy": settings.policy.model_copy(update={"model": str(tmp_path / "run/model/weights")})})
    )
    given = [Example(Prompt("a cat"), parse("a cat"), Image.new("RGB", (12, 12), "red"))]
    with torch.no_grad():
        losses = [p.supervised_loss(p.module, given, seed=0).sums["image"].item() for p in (policy, loaded, run_none(settings))]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)  # x(W + BA) instead of xW + xBA
    assert losses[2] != pytest.approx(losses[0], rel=1e-4)


def test_what_is_saved_for_others_is_the_average(tiny_janus: Path, tmp_path: Path) -> None:
    """In an uninterrupted run, and in one resumed from its checkpoint."""
    optimizer = {"learning_rate": 1e-2, "ema": 0.9}
    policy, _ = run(config(tiny_janus, tmp_path / "whole", optimizer=optimizer), 6)
    parts = config(tiny_janus, tmp_path / "parts", optimizer=optimizer)
    run(parts, 3)
    run(parts, 6)
    for name in (EMA_FILE, TRAINABLE):
        assert (tmp_path / "parts/model" / name).read_bytes() == (tmp_path / "whole/model" / name).read_bytes()
    average = load_file(tmp_path / "whole/model" / EMA_FILE)
    weights = str(tmp_path / "whole/model/weights")
    shipped = parameters(run_none(parts.model_copy(update={"policy": parts.policy.model_copy(update={"model": weights})})))
    assert all(torch.equal(shipped[name], tensor) for name, tensor in average.items())
    assert any(not torch.equal(shipped[name], tensor) for name, tensor in parameters(policy).items())


def test_a_finished_stage_lowers_the_loss(tiny_janus: Path, tmp_path: Path) -> None:
    _, rows = run(config(tiny_janus, tmp_path, steps=15, save_every=15, batch=8, micro_batch=8, optimizer={"learning_rate": 5e-3}), 15)
    for name in ("plan", "image"):
        assert sum(row[name] for row in rows[-3:]) < 0.9 * sum(row[name] for row in rows[:3])


def examples(count: int) -> list[Example]:
    return [Example(Prompt(str(i)), parse("x" * (i % 5))) for i in range(count)]


def test_batches_of_examples() -> None:
    """Every epoch shows every example once, in a new order. Step s is the same whatever was asked for before."""
    batches = from_examples(examples(12), 4, seed=3, window=3)
    epochs = [[e.prompt.text for s in range(3 * k, 3 * k + 3) for e in batches(s)] for k in range(3)]
    assert all(sorted(epoch, key=int) == [str(i) for i in range(12)] for epoch in epochs)
    assert epochs[0] != epochs[1]
    afresh = from_examples(examples(12), 4, seed=3, window=3)
    assert list(afresh(7)) == list(batches(7))
    assert list(from_examples(examples(12), 4, seed=4, window=3)(7)) != list(batches(7))
    lengths = sorted([(len(e.chain.parts), len(e.chain.raw) + len(e.prompt.text)) for e in batches(s)] for s in range(3))
    assert [n for row in lengths for n in row] == sorted(n for row in lengths for n in row)  # like lengths together


def test_batches_across_an_epoch() -> None:
    batches = from_examples(examples(5), 4, seed=0, window=1)
    shown = [e.prompt.text for s in range(5) for e in batches(s)]
    assert sorted(shown) == sorted(str(i) for i in range(5) for _ in range(4))


def test_batches_of_a_source() -> None:
    from gotr1_core.components.build import make_component
    from gotr1_core.config.models import ComponentConfig

    source = make_component(Registry(), "source", ComponentConfig(name="scenes"))
    one, other = from_source(source, 3, 0, 2), from_source(source, 3, 0, 2)
    later = other(3)
    assert [[e.prompt for e in one(s)] for s in range(4)][3] == [e.prompt for e in later]
    ids = [e.prompt.id for s in range(4) for e in one(s)]
    assert len(set(ids)) == 12


def test_examples_of_a_file(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), "red").save(tmp_path / "a.png")
    rows = [{"prompt": "p", "chain": "c", "image": "a.png", "category": "k"}, {"prompt": "q", "chain": "d"}]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    one, two = read_examples(tmp_path / "x.jsonl")
    assert one.prompt == Prompt("p", "x-1", "k")
    assert one.chain == parse("c")
    assert one.image is not None
    assert one.image.getpixel((0, 0)) == (255, 0, 0)
    assert two.image is None


@pytest.mark.parametrize("line", ["{", "{}", "[]", '{"prompt": "p", "chain": "c", "image": "none.png"}'])
def test_damaged_examples_name_their_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "x.jsonl").write_text('{"prompt": "p", "chain": "c"}\n' + line)
    with pytest.raises(UsageError, match="line 2"):
        read_examples(tmp_path / "x.jsonl")
    with pytest.raises(UsageError, match="cannot read"):
        read_examples(tmp_path / "y.jsonl")


def unlucky(steps: set[int], data: SftConfig, *, gradients: bool = False) -> tuple[Any, list[dict[str, Any]], list[str]]:
    """Trains while the loss of some steps is NaN, or only the gradient. Returns policy, rows, and fingerprints of the weights."""
    from gotr1_core.components.build import make_component
    from gotr1_core.engine.tensors import fingerprint

    policy = make_component(Registry(), "planner", data.policy)
    source = make_component(Registry(), "source", data.data)  # type: ignore[arg-type]
    supervised, rows, weights = policy.supervised_loss, list[dict[str, Any]](), list[str]()

    def spoiled(*given: Any, **more: Any) -> Any:
        loss = supervised(*given, **more)
        if len(rows) not in steps:
            return loss
        for value in loss.sums.values() if gradients else ():
            value.register_hook(lambda gradient: gradient * math.nan)
        return loss if gradients else replace(loss, sums={n: v * math.nan for n, v in loss.sums.items()})

    policy.supervised_loss = spoiled
    for row in train_supervised(data, policy, from_source(source, data.batch, data.seed, data.sort_window)):
        rows.append(row)
        weights.append(fingerprint(policy.module))
    return policy, rows, weights


@pytest.mark.parametrize("gradients", [False, True])
def test_a_step_whose_loss_or_gradient_is_not_finite_changes_nothing(
    gradients: bool, tiny_janus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = config(tiny_janus, tmp_path, micro_batch=2, optimizer={"learning_rate": 1e-3, "ema": 0.5})
    _, rows, weights = unlucky({1, 4}, data, gradients=gradients)
    assert [row.get("not_finite") for row in rows] == [None, 1, None, None, 2, None]
    assert [a == b for a, b in pairwise(weights)] == [True, False, False, True, False]
    assert all(p.isfinite().all() for p in load_file(tmp_path / "model" / TRAINABLE).values())
    assert all(p.isfinite().all() for p in load_file(tmp_path / "model" / OPTIMIZER).values())
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert "the loss or the gradient of 1 of 2 steps is not finite" in warning
    assert "bfloat16" in warning


def test_sft_stops_after_some_in_a_row(tiny_janus: Path, tmp_path: Path) -> None:
    with pytest.raises(Gotr1Error, match="the loss or the gradient of 2 of 6 steps is not finite"):
        unlucky({4, 5}, config(tiny_janus, tmp_path, skipped_limit=2), gradients=True)


def test_float16_may_look_for_its_loss_scale_in_sft() -> None:
    """Steps that it loses with a finite loss are no fault of the run, unless there are too many in a row."""
    steps = _Skipped(limit=5, steps=100)
    assert [steps.add(True, searching=True) for _ in range(4)] == [True] * 4
    assert steps.add(False, searching=True) is False
    assert (steps.lost, steps.in_a_row) == (4, 0)
    assert [steps.add(True, searching=True) for _ in range(4)] == [True] * 4
    with pytest.raises(Gotr1Error, match="of 9 of 10 steps"):
        steps.add(True, searching=True)


def test_a_save_that_is_not_finite_is_neither_written_nor_read(tiny_janus: Path, tmp_path: Path) -> None:
    data = config(tiny_janus, tmp_path, steps=1)
    unlucky(set(), data)
    path = tmp_path / "model" / TRAINABLE
    tensors = load_file(path)
    first = sorted(tensors)[0]
    save_file(tensors | {first: tensors[first] * math.inf}, path)
    with pytest.raises(UsageError, match=f"{path} cannot be used: its {first} has a number that is not finite"):
        unlucky(set(), data.model_copy(update={"steps": 2}))


def test_it_stops_if_most_losses_are_not_finite(tiny_janus: Path, tmp_path: Path) -> None:
    with pytest.raises(Gotr1Error, match="the loss or the gradient of 3 of 3 steps is not finite") as caught:
        unlucky(set(range(6)), config(tiny_janus, tmp_path))
    assert "bfloat16" in str(caught.value.hint)
    assert not (tmp_path / "model").exists()


# -- what its folder says about it ------------------------------------------------------------------------------------------


def sft(tiny_janus: Path, output: Path, *words: str) -> list[str]:
    policy = f"policy={{name: janus, model: '{tiny_janus}', instruction: '{{prompt}}', attention: eager}}"
    return ["sft", policy, "data=scenes", "batch=2", "micro_batch=2", "save_every=2", f"output={output}", *words]


def listed(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert call(["runs", str(folder), "--json"]) == 0
    [found] = json.loads(capsys.readouterr().out)
    return dict(found)


def examined(folder: Path, capsys: pytest.CaptureFixture[str], status: int) -> str:
    capsys.readouterr()
    assert call(["doctor", str(folder)]) == status
    return capsys.readouterr().out


def test_a_finished_one_is_listed_and_goes_on_by_its_own_config(
    tiny_janus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(sft(tiny_janus, Path("runs/sft"), "steps=2")) == 0
    rows = [json.loads(row) for row in Path("runs/sft/log.jsonl").read_text().splitlines()]
    assert rows[0]["loss"] == pytest.approx(rows[0]["plan"] + rows[0]["image"])  # both weights are 1
    found = listed(Path("runs"), capsys)
    assert [found[key] for key in ("run", "outcome", "done", "steps", "metric")] == ["runs/sft", "finished", 2, 2, "loss"]
    assert (found["before"], found["score"]) == (rows[0]["loss"], rows[1]["loss"])
    assert found["size"] > 1000
    assert examined(Path("runs/sft"), capsys, 0).startswith("stage one, finished after 2 of 2 steps\nloss ")
    monkeypatch.chdir(tmp_path / "runs")
    assert call(["sft", "sft/sft.yaml", "steps=3"]) == 0
    assert listed(Path("sft"), capsys)["done"] == 3


def test_one_that_crashed_says_so(
    tiny_janus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = [0]

    def raising(*given: Any, **more: Any) -> Any:
        calls[0] += 1
        if calls[0] == 4:
            raise RuntimeError("the roof fell in")
        return call_supervised_loss(*given, **more)

    monkeypatch.setattr("gotr1_core.workflows.sft.call_supervised_loss", raising)
    assert call(sft(tiny_janus, tmp_path / "sft", "steps=9")) == 1
    found = listed(tmp_path, capsys)
    assert [found[key] for key in ("outcome", "done", "steps")] == ["failed", 3, 9]  # also the step that no 20th row has
    assert found["error"].startswith("RuntimeError: the roof fell in (test_sft.py, line ")
    said = examined(tmp_path / "sft", capsys, 1)
    assert said.startswith("stage one, failed after 3 of 9 steps: RuntimeError: the roof fell in")
    assert f"what to do: gotr1 sft {tmp_path}/sft/sft.yaml --debug shows more if it fails again" in said
    calls[0] = 9
    assert call(["sft", str(tmp_path / "sft" / "sft.yaml"), "steps=4"]) == 0
    assert listed(tmp_path, capsys)["outcome"] == "finished"


def test_one_that_was_stopped_killed_or_still_trains(
    tiny_janus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("gotr1_core.workflows.sft.call_supervised_loss", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        assert call(sft(tiny_janus, tmp_path / "sft", "steps=2")) == 130
    assert f"hint: gotr1 sft {tmp_path}/sft/sft.yaml goes on" in capsys.readouterr().err
    assert listed(tmp_path, capsys)["outcome"] == "interrupted"
    (tmp_path / "sft" / "outcome.json").unlink()
    assert listed(tmp_path, capsys)["outcome"] == "killed"
    with lock_folder(tmp_path / "sft"):
        assert listed(tmp_path, capsys)["outcome"] == "running"
        assert call(sft(tiny_janus, tmp_path / "sft", "steps=2")) == 2
        assert "is being trained by another process" in capsys.readouterr().err


def test_a_damaged_log_and_lost_steps(tiny_janus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(sft(tiny_janus, tmp_path / "sft", "steps=1")) == 0
    log = tmp_path / "sft" / "log.jsonl"
    row = json.loads(log.read_text())
    log.write_text(json.dumps({**row, "loss": None, "not_finite": 1}))
    assert "loss nan to nan\nthe loss or the gradient of 1 steps is not finite" in examined(tmp_path / "sft", capsys, 1)
    for damaged in ("[]", "{", '{"step": 0}', '{"step": "a", "loss": 1}', "[" * 9000):
        log.write_text(damaged)
        found = listed(tmp_path, capsys)
        assert (found["outcome"], "log.jsonl is damaged" in found["error"]) == ("damaged", True)
