"""Commands that draw: generate and evaluate, with a config and with a run. Runs are restored, damaged ones refused."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from gotr1_core.cli.main import call, run
from gotr1_core.components.resolve import resolve_config
from gotr1_core.config.models import RunConfig, validate
from gotr1_core.engine.tensors import trainable_tensors
from gotr1_core.errors import UsageError
from gotr1_core.plugins import Registry
from gotr1_core.runs.checkpoint import MANIFEST, STATE, TRAINABLE, new_checkpoint
from gotr1_core.runs.records import new_folder
from gotr1_core.runs.restore import find_checkpoint, restore
from gotr1_core.samples import Sampling

Captured = pytest.CaptureFixture[str]
Refused = Callable[..., tuple[str, str]]

# -- runs -------------------------------------------------------------------------------------------------------------------


def test_the_name_of_a_run_is_taken_once(toy: Path, refused: Refused) -> None:
    config = validate(RunConfig, {**resolve_config(Registry(), None, "toy", {}, []), "name": "mine"})
    folder = new_folder(Registry(), config)
    assert folder == Path("runs/mine")
    (folder / "metrics.jsonl").write_text("kept")
    with pytest.raises(UsageError, match="runs/mine is there already"):
        new_folder(Registry(), config)
    # Refused before weights are loaded, which are not there.
    error, hint = refused(["train", "--preset", "toy", "name=mine", "planner.model=/no/where"])
    assert "runs/mine is there already" in error
    assert "name=" in hint
    assert (folder / "metrics.jsonl").read_text() == "kept"


def test_prompts_are_read_before_weights(toy: Path, refused: Refused) -> None:
    (toy / "empty.txt").write_text("\n")
    error, _ = refused(["train", "--preset", "toy", "planner.model=/no/where", "--prompts", "empty.txt"])
    assert error == f"{toy / 'empty.txt'} has no prompts"


def test_a_path_means_a_runs_best_checkpoint_or_the_one_it_names(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    best, last = (trained / "checkpoints" / f"step-00000{step}" for step in (1, 2))
    assert find_checkpoint(trained) == (trained, best)
    assert find_checkpoint(last) == (trained, last)
    (best / STATE).unlink()
    assert find_checkpoint(trained) == (trained, last)
    monkeypatch.chdir(last)
    assert find_checkpoint(Path())[0] == trained
    for wrong in (trained / "checkpoints", trained.parent, best):
        with pytest.raises(UsageError, match="is neither a run with a checkpoint"):
            find_checkpoint(wrong)


def evaluated(run: Path, before: list[float], best: Mapping[str, float] | None) -> Path:
    """Adds a third checkpoint, which says what was best so far, and the scores before training."""
    with new_checkpoint(run, 3) as part:
        shutil.copytree(run / "checkpoints" / "step-000002" / "planner", part / "planner")
        state = json.loads((run / "checkpoints" / "step-000002" / STATE).read_text())
        (part / STATE).write_text(json.dumps(state | {"step": 3, "best": best}))
    rows = {"before": {"prompts": [[str(i), "a"] for i in range(len(before))], "reward": before}}
    (run / "held-out.json").write_text(json.dumps(rows))
    return run / "checkpoints"


def test_the_untrained_model_is_the_best_if_nothing_was_better(trained: Path, capsys: Captured) -> None:
    """Compared are the scores of the first four prompts, which evaluations during training have."""
    checkpoints = evaluated(trained, [0.5, 0.7, 0.6, 0.6, 0.0], {"step": 1, "score": 0.59})
    assert find_checkpoint(trained) == (trained, None)
    config, parts, sampling = restore(Registry(), trained)
    assert parts.planner.module.weight.item() == pytest.approx(0.2)  # type: ignore[union-attr, operator]
    assert sampling.guidance_scale == config.sampling.guidance_scale == 5
    assert capsys.readouterr().err == (
        f"warning: {trained}: this is the untrained model, because reward was 0.600 before training, and then 0.590 at best, after step 1; "
        f"--checkpoint {checkpoints / 'step-000001'} is trained\n"
    )
    assert call(["generate", "a cat", "--checkpoint", str(checkpoints / "step-000001"), "--out", "out"]) == 0
    assert Image.open("out/000.png").getpixel((0, 0))[0] == 153  # type: ignore[index]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("before", "best", "chosen", "says"),
    [
        ([0.6], {"step": 1, "score": 0.6}, 1, ""),  # of equal ones the trained model
        ([0.6, None], {"step": 1, "score": 0.7}, 1, ""),
        ([None], {"step": 1, "score": 0.1}, 1, ""),
        ([0.6], None, 3, "step-000003 is the last checkpoint; none was evaluated, so it may be worse than the untrained model"),
        ([0.6], {"step": 9, "score": 0.7}, 3, "the best checkpoint, of step 9, is gone; "),
    ],
)
def test_the_best_checkpoint_and_what_is_said_about_it(
    before: list[Any], best: Any, chosen: int, says: str, trained: Path, capsys: Captured
) -> None:
    checkpoints = evaluated(trained, before, best)
    assert find_checkpoint(trained) == (trained, checkpoints / f"step-00000{chosen}")
    restore(Registry(), trained)
    said = capsys.readouterr().err
    assert says in said
    assert bool(said) == bool(says)


def test_restoring_brings_back_weights_and_settings(trained: Path) -> None:
    config, parts, sampling = restore(Registry(), trained)
    assert config.name == "mine"
    assert parts.unified
    assert parts.planner.module.weight.item() == pytest.approx(0.6, rel=1e-7)  # float32
    assert sampling == Sampling(guidance_scale=3.0)
    assert restore(Registry(), trained / "checkpoints" / "step-000002")[1].planner.module.weight.item() == 1
    assert restore(Registry(), trained, ["sampling.temperature=0"])[2] == Sampling(guidance_scale=3.0, temperature=0.0)


def damage(path: Path, to: str) -> None:
    if to == "missing":
        path.unlink()
    elif to == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif to == "empty":
        path.write_bytes(b"")
    else:
        path.write_bytes(to.encode())


@pytest.mark.parametrize(
    ("part", "to"),
    [
        *((f"planner/{TRAINABLE}", to) for to in ("missing", "truncated", "empty", "\x80\x02 not a pickle")),
        *((STATE, to) for to in ("truncated", "empty", "{}", '{"sampling": 3}')),
        *((MANIFEST, to) for to in ("missing", "truncated", "empty", "{}")),
        *(("../../config.yaml", to) for to in ("empty", "planner: [", "planner: tyo")),
    ],
)
def test_a_damaged_checkpoint_is_refused(part: str, to: str, trained: Path, refused: Refused) -> None:
    checkpoint = trained / "checkpoints" / "step-000001"
    damage(checkpoint / part, to)
    with pytest.raises(UsageError):
        restore(Registry(), checkpoint)
    refused(["generate", "x", "--checkpoint", str(checkpoint)])
    refused(["evaluate", "--benchmark", "toy", "--checkpoint", str(checkpoint)])


@pytest.mark.parametrize(
    "changed", [{"sampling": None}, {"sampling": 3}, {"sampling": {"heat": 1}}, {"step": 2}, {"step": True}, {"best": {}}]
)
def test_a_state_that_no_run_wrote_is_refused(changed: dict[str, Any], trained: Path, refused: Refused) -> None:
    """The manifest says that the checkpoint is complete, but the content of the state is wrong."""
    checkpoint = trained / "checkpoints" / "step-000001"
    state = json.loads((checkpoint / STATE).read_text())
    with new_checkpoint(trained, 1) as part:
        (part / STATE).write_text(json.dumps({**state, **changed}))
    assert "state.json is damaged" in refused(["generate", "x", "--checkpoint", str(checkpoint)])[0]


def test_weights_of_another_model_are_refused(trained: Path) -> None:
    state = json.loads((trained / "checkpoints" / "step-000001" / STATE).read_text())
    with new_checkpoint(trained, 1) as part:
        (part / "planner").mkdir()
        save_file(trainable_tensors(nn.Linear(2, 1)), part / "planner" / TRAINABLE)
        (part / STATE).write_text(json.dumps(state))
    with pytest.raises(UsageError, match="does not fit the model: weight"):
        restore(Registry(), trained)


# -- drawing ----------------------------------------------------------------------------------------------------------------


def test_generate_writes_pictures_chains_and_overlays(toy: Path, capsys: Captured) -> None:
    words = ["generate", "a cat", "-n", "2", "--seed", "7", "--out", "out", "--preset", "toy", "sampling.guidance_scale=2"]
    assert call(words) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["image"] for row in rows] == ["out/000.png", "out/001.png"]
    assert "a cat" in rows[0]["chain"]
    assert sorted(p.name for p in (toy / "out").iterdir()) == ["000-plan.png", "000.png", "001-plan.png", "001.png", "samples.jsonl"]
    red, green, _ = Image.open("out/000.png").getpixel((0, 0))  # type: ignore[misc]
    assert (red, green) == (51, 20)  # the preset's shade and this call's guidance
    assert call([*words, "--out", "again"]) == 0
    assert (toy / "again" / "001.png").read_bytes() == (toy / "out" / "001.png").read_bytes()  # the same seed, the same pictures


CHAIN = "<|obj_start|>a cat<|obj_end|><|box_start|>(0,0),(499,999)<|box_end|>"


def test_generate_draws_a_chain_that_was_written(toy: Path, trained: Path, capsys: Captured) -> None:
    (toy / "chain.txt").write_text(f"{CHAIN} sleeps.\n")
    words = ["generate", "a cat", "-n", "2", "--seed", "7", "--chain", "chain.txt"]
    assert call([*words, "--out", "alone", "--renderer", "toy"]) == 0  # a planner need not be named
    assert call([*words, "--out", "unread", "--preset", "toy", "planner.model=/no/where", "renderer.shade=0.5"]) == 0  # nor loaded
    assert call([*words, "--out", "own", "--preset", "toy"]) == 0
    assert call([*words, "--out", "of-a-run", "--checkpoint", str(trained)]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["chain"] for row in rows} == {f"{CHAIN} sleeps."}
    assert call(["generate", "a cat", "-n", "2", "--seed", "7", "--out", "planned", "--preset", "toy"]) == 0
    drawn = [(toy / out / "001.png").read_bytes() for out in ("own", "planned")]
    assert drawn[0] == drawn[1]  # the toy's pictures are those of the seed alone, and the seed is the one of a planned picture


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (None, "--chain: cannot read chain.txt: No such file"),
        (b"\xff\xfe\x00", "--chain: chain.txt is not UTF-8 text"),
        (b"a cat", "--chain: chain.txt: there is no region in it"),
        (f"{CHAIN}\n{CHAIN} <|box_start|>(1,2)".encode(), "--chain: chain.txt, line 2: <|box_start|> without <|box_end|>"),
        (CHAIN.replace("499", "1000").encode(), "--chain: chain.txt, line 1: coordinate out of range 0-999: '(0,0),(1000,999)'"),
        (CHAIN.replace("0,0", "600,0").encode(), "--chain: chain.txt, line 1: reversed or empty box: "),
        (CHAIN.replace("499", "4 99").encode(), "--chain: chain.txt, line 1: box not written as (x1,y1),(x2,y2): "),
        (json.dumps({"chain": "x"}).encode() + b"\n{}", "--chain: chain.txt has 2 rows, and one chain is needed"),
        (b'{"prompt": "x"}', "--chain: chain.txt, line 1: there is no chain"),
    ],
)
def test_generate_refuses_an_invalid_chain(toy: Path, refused: Refused, text: bytes | None, error: str) -> None:
    if text is not None:
        (toy / "chain.txt").write_bytes(text)
    message, hint = refused(["generate", "a cat", "--preset", "toy", "--chain", "chain.txt"])
    assert message.startswith(error)
    assert "--chain" in message + hint
    assert not (toy / "pictures").exists()


def test_generate_keeps_older_pictures(toy: Path, refused: Refused) -> None:
    words = ["generate", "a cat", "--preset", "toy", "--out", "out"]
    (toy / "out").mkdir()
    (toy / "out" / "mine.png").write_text("mine")
    assert call([*words, "-n", "3"]) == 0  # a folder with something else in it is no reason to refuse
    before = {path.name: path.read_bytes() for path in (toy / "out").iterdir()}
    error, hint = refused([*words, "planner.model=/no/where"])  # before weights are loaded, which are not there
    assert error == "out already has pictures: samples.jsonl"
    assert hint == "choose another --out, or give --overwrite to replace them"
    (toy / "out" / "samples.jsonl").unlink()
    assert refused(words)[0] == "out already has pictures: 000.png"
    assert all((toy / "out" / name).read_bytes() == data for name, data in before.items() if name != "samples.jsonl")


def test_generate_overwrites_all_that_it_wrote_and_nothing_else(toy: Path) -> None:
    words = ["generate", "a cat", "--preset", "toy", "--out", "out"]
    assert call([*words, "-n", "3"]) == 0
    for name in ("mine.png", "007.png", "mine-plan.png"):
        (toy / "out" / name).write_text("mine")
    rows = toy / "out" / "samples.jsonl"
    rows.write_text(rows.read_text() + 'no JSON\n3\n{"image": 3}\n{"image": "../toy.yaml"}\n{"prompt": "not drawn"}\n')
    assert call([*words, "--overwrite"]) == 0
    assert sorted(p.name for p in (toy / "out").iterdir()) == [
        *("000-plan.png", "000.png", "007.png", "mine-plan.png", "mine.png", "samples.jsonl")
    ]
    assert (toy / "toy.yaml").is_file()
    assert len(rows.read_text().splitlines()) == 1


def test_generate_draws_every_prompt_of_a_file(toy: Path, refused: Refused, capsys: Captured) -> None:
    """Each prompt is drawn as it would be alone, whatever the file has besides. Its metadata go with its samples."""
    rows = [{"prompt": "a cat"}, {"prompt": "a dog", "id": "d", "category": "pets", "metadata": {"count": 1}}]
    (toy / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["generate", "--preset", "toy", "--seed", "7", "-n", "2"]
    assert call([*words, "--prompts", "mine.jsonl", "sampling.guidance_scale=2", "--out", "all"]) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["image"], row["prompt"]) for row in printed] == [
        (str(Path("all", f"{number:03d}.png")), prompt) for number, prompt in enumerate(["a cat", "a cat", "a dog", "a dog"])
    ]
    kept = [json.loads(line) for line in (toy / "all" / "samples.jsonl").read_text().splitlines()]
    assert [row["lineage"] for row in kept] == [[0, 0, 0], [0, 1, 0], [1, 0, 0], [1, 1, 0]]
    assert [(row["id"], row["category"], row["metadata"]) for row in kept[2:]] == [("d", "pets", {"count": 1})] * 2
    assert call([*words, "a dog", "sampling.guidance_scale=2", "--out", "dog"]) == 0
    assert [(toy / "dog" / f"{i:03d}.png").read_bytes() for i in range(2)] == [(toy / "all" / f"{i:03d}.png").read_bytes() for i in (2, 3)]
    capsys.readouterr()
    assert "a file of prompts" in refused([*words, "a dog", "--prompts", "mine.jsonl"])[0]
    (toy / "chain.txt").write_text("a cat")
    assert "--chain" in refused([*words, "--prompts", "mine.jsonl", "--chain", "chain.txt"])[0]
    (toy / "empty.txt").write_text("\n")
    assert "has no prompts" in refused([*words, "--prompts", "empty.txt"])[0]


def test_what_was_drawn_before_an_error_is_kept(toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    """The second batch fails: the sixteen pictures of the first one are on disk, and are printed."""
    import gotr1_core.workflows.generation as generation

    draw, calls = generation._draw, []

    def fail_at_second(*arguments: object, **more: object) -> object:
        calls.append(arguments)
        if len(calls) == 2:
            raise MemoryError
        return draw(*arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(generation, "_draw", fail_at_second)
    assert call(["generate", "a cat", "--preset", "toy", "-n", "20", "--out", "out"]) == 1
    assert len(capsys.readouterr().out.splitlines()) == 16
    assert len(list((toy / "out").glob("???.png"))) == len((toy / "out" / "samples.jsonl").read_text().splitlines()) == 16


def test_generate_needs_neither_judge_nor_prompts(toy: Path) -> None:
    assert call(["generate", "a cat", "--planner", "toy", "--renderer", "toy", "planner.shade=1", "--out", "out"]) == 0
    assert Image.open(toy / "out" / "000.png").getpixel((0, 0))[0] == 255  # type: ignore[index]


def test_generate_with_a_run(trained: Path) -> None:
    assert call(["generate", "a cat", "--checkpoint", str(trained), "--out", "out"]) == 0
    assert Image.open("out/000.png").getpixel((0, 0))[:2] == (153, 30)  # type: ignore[index]
    assert call(["generate", "a cat", "--checkpoint", str(trained), "--out", "other", "sampling={guidance_scale: 1}"]) == 0
    assert Image.open("other/000.png").getpixel((0, 0))[:2] == (153, 10)  # type: ignore[index]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["steps=3"], "only sampling.… can be changed"),
        (["planner.shade=1"], "only sampling.… can be changed"),
        (["sampling.heat=1"], "unknown key sampling.heat"),
        (["sampling=3"], "sampling: "),
        (["sampling="], "sampling: "),
        (["sampling.temperature=-1"], "sampling.temperature: "),
        (["--preset", "toy"], "--preset cannot be combined with --checkpoint"),
    ],
)
def test_what_a_run_has_settled_is_not_changed_in_silence(words: list[str], message: str, trained: Path, refused: Refused) -> None:
    for command in (["generate", "x"], ["evaluate", "--benchmark", "toy"]):
        assert message in refused([*command, "--checkpoint", str(trained), *words])[0]
    assert "--planner" in refused(["generate", "x", "--checkpoint", str(trained), "--planner", "toy"])[0]


def test_evaluate_prints_numbers_by_category(trained: Path, capsys: Captured) -> None:
    assert call(["evaluate", "--benchmark", "toy", "--preset", "toy", "--json", "--batch", "3"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["benchmark"], found["count"]) == ("toy", 4)
    assert list(found["scores"]) == ["all", "even", "odd"]
    assert found["scores"]["all"]["shade"] == {"mean": pytest.approx(0.2), "low": None, "high": None, "count": 4}
    assert found["scores"]["odd"]["scale"]["mean"] == 5
    assert (
        call(["evaluate", "--benchmark", "toy", "--checkpoint", str(trained), "--json", "--count", "1", "sampling.guidance_scale=2"]) == 0
    )
    # One prompt has no interval, nor have equal numbers: null, where NaN would not be JSON.
    found = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert found["scores"]["all"] == {
        "shade": {"mean": pytest.approx(0.6), "low": None, "high": None, "count": 1},
        "scale": {"mean": 2, "low": None, "high": None, "count": 1},
    }
    assert call(["evaluate", "--benchmark", "toy", "--preset", "toy"]) == 0
    assert "all       0.200  5.000\n" in capsys.readouterr().out


def test_evaluate_takes_components_and_judges_and_keeps_its_samples(trained: Path, refused: Refused, capsys: Captured) -> None:
    """Judges add their scores to the benchmark's. Each sample's picture and scores are in the folder."""
    command = ["evaluate", "--benchmark", "toy", "--planner", "toy", "--renderer", "toy", "planner.shade=0.6", "renderer.shade=0.6"]
    assert call([*command, "--judge", "toy", "--out", "kept", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["scores"]["all"]
    assert {name: cell["mean"] for name, cell in found.items()} == {"shade": pytest.approx(0.6), "scale": 5, "pi": pytest.approx(0.6)}
    rows = [json.loads(line) for line in Path("kept/samples.jsonl").read_text().splitlines()]
    assert [row["image"] for row in rows] == [f"{number:03d}.png" for number in range(4)]
    assert all(row["scores"] == {"shade": pytest.approx(0.6), "scale": 5, "pi": pytest.approx(0.6)} for row in rows)
    assert call(["score", "kept", "--judge", "toy", "--json"]) == 0
    assert all(row["scores"] == {"pi": pytest.approx(0.6)} for row in json.loads(capsys.readouterr().out))
    assert "already has pictures" in refused([*command, "--out", "kept"])[0]
    # A judge of the same name as the benchmark's score stays apart from it; a run can be judged by any judge.
    assert call(["evaluate", "--benchmark", "toy", "--checkpoint", str(trained), "--judge", "toy", "--count", "1", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["scores"]["all"]) == ["shade", "scale", "pi"]
    assert "judge 'tyo'" in refused(["evaluate", "--benchmark", "toy", "--judge", "tyo"])[0]
    assert "--planner" in refused(["evaluate", "--benchmark", "toy", "--checkpoint", str(trained), "--planner", "toy"])[0]


@pytest.mark.parametrize(
    ("encoding", "arguments", "out", "err"),
    [
        ("ascii", ["config", "show", "--preset", "toy", "name=±"], rb"name: \xb1", b""),
        ("cp1252", ["config", "show", "--preset", "toy", "name=±"], b"name: \xb1", b""),
        ("cp1252", ["train", "猫.yaml"], b"", rb"error: there is no config \u732b.yaml"),
        ("utf-8", ["train", "\udcff.yaml"], b"", rb"error: there is no config \udcff.yaml"),  # a file's name that is not UTF-8
    ],
)
@pytest.mark.usefixtures("toy")
def test_what_a_terminal_cannot_show_is_escaped(
    encoding: str, arguments: list[str], out: bytes, err: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding=encoding) for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    with pytest.raises(SystemExit):
        run(arguments)
    for name, expected in (("stdout", out), ("stderr", err)):
        streams[name].flush()
        assert expected in streams[name].buffer.getvalue()  # type: ignore[attr-defined]


# -- how far it is ----------------------------------------------------------------------------------------------------------


def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")


def test_generate_shows_a_bar_on_a_terminal_only(toy: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["generate", "a cat", "--preset", "toy", "-n", "20"]
    assert call([*words, "--out", "a"]) == 0
    assert capsys.readouterr().err == ""
    on_a_terminal(monkeypatch)
    assert call([*words, "--out", "b"]) == 0
    out, err = capsys.readouterr()
    assert "drawing" in err
    assert "20/20" in err
    assert len([json.loads(line) for line in out.splitlines()]) == 20


def test_sft_says_how_far_it_is(tiny_janus: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = f"policy={{name: janus, model: '{tiny_janus}', instruction: '{{prompt}}', attention: eager}}"
    words = ["sft", policy, "data=scenes", "batch=2", "micro_batch=2", "save_every=3", f"output={tmp_path}"]
    assert call([*words, "steps=2"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'model' / 'weights'}\n"
    rows = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    assert [row["step"] for row in rows] == [0, 1]
    assert rows == [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert "training" not in err
    on_a_terminal(monkeypatch)
    assert call([*words, "steps=3"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'model' / 'weights'}\n"
    assert "3/3" in err
    assert not [line for line in err.splitlines() if line.startswith("{")]
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert call([*words[:-1], f"output={blocked}", "steps=1"]) == 2
    assert f"error: cannot make the folder {blocked}: {blocked} is not a folder that you can write to" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["evaluate", "--preset", "scenes"], ["generate", "a cat", "--preset", "scenes"]])
def test_what_drawing_does_not_read_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert call([*words, "prompts.held_out=3"]) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error == "error: prompts cannot be set here"
    assert hint == "hint: drawing reads planner.…, renderer.… and sampling.…; --help has the rest"
