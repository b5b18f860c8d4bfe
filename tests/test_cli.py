"""The command line: statuses, two lines of error and no traceback, what lies over what, and runs restored. Nothing trains here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict
from torch import nn

from gotr1_core.build import FilePrompts, held_out_prompts, read_prompts, training_prompts
from gotr1_core.chain import parse
from gotr1_core.checkpoint import STATE, TRAINABLE, save_checkpoint
from gotr1_core.cli.common import load_config
from gotr1_core.cli.main import call, run
from gotr1_core.config import PromptsConfig, RunConfig, dump, validate
from gotr1_core.errors import UsageError
from gotr1_core.hookspecs import Component
from gotr1_core.plugins import Registry
from gotr1_core.restore import checkpoint_of, restore
from gotr1_core.samples import Prompt, Rollout, Sample, Sampling, SegmentName
from gotr1_core.tracking import new_folder

# -- a policy that draws its own weight, and its sampling settings -----------------------------------------------------------


class ToyOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: str = ""
    shade: float = 0.0


class ToyPolicy:
    lora_prefix = ""

    def __init__(self, options: ToyOptions, device: Any = "cpu") -> None:
        if options.model:
            Path(options.model).read_bytes()  # as a library does with weights that are not there
        self.module = nn.Linear(1, 1).to(device)
        nn.init.constant_(self.module.weight, options.shade)

    def plan(self, prompts: Sequence[Prompt], *, seeds: Sequence[int], sampling: Sampling) -> Rollout:
        chains = [parse(f"<|obj_start|>{p.text}<|obj_end|><|box_start|>(0,0),(500,999)<|box_end|>") for p in prompts]
        return Rollout("plan", sampling, self._tensors(len(prompts)), chains=tuple(chains))

    def render(self, prompts: Sequence[Prompt], chains: Any, *, seeds: Any, sampling: Sampling, plans: Any = None) -> Rollout:
        colour = (round(255 * self.module.weight.item()), round(10 * sampling.guidance_scale), seeds[0] % 256)
        images = [Image.new("RGB", (8, 8), colour) for _ in prompts]
        return Rollout("image", sampling, self._tensors(len(prompts)), images=tuple(images))

    @staticmethod
    def _tensors(rows: int) -> dict[str, torch.Tensor]:
        return {"log_prob": torch.zeros(rows, 1), "mask": torch.ones(rows, 1, dtype=torch.bool)}


class ToyJudge:
    rewards: Mapping[str, SegmentName] = {"pi": "image"}

    def __init__(self, options: None) -> None:
        pass


class ToyBenchmark:
    def __init__(self, options: None) -> None:
        pass

    def prompts(self, count: int | None) -> list[Prompt]:
        return [Prompt(f"prompt {i}", category="even" if i % 2 == 0 else "odd") for i in range(4)][:count]

    def measure(self, samples: Sequence[Sample]) -> dict[str, list[float]]:
        assert all(s.image is not None for s in samples)
        shades = [s.image.getpixel((0, 0))[0] / 255 for s in samples if s.image is not None]
        return {"shade": shades, "scale": [s.image.getpixel((0, 0))[1] / 10 for s in samples if s.image is not None]}


PRESET = """
planner: {name: toy, shade: 0.2}
renderer: toy
judge: toy
reward: pi
prompts: {source: scenes, held_out: 4}
lora: null
steps: 7
"""


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Installs planner, renderer, judge, benchmark and preset ``toy``; in a folder of its own."""
    preset = tmp_path / "toy.yaml"
    preset.write_text(PRESET)

    def components() -> list[Component]:
        policy, options = f"{__name__}:ToyPolicy", f"{__name__}:ToyOptions"
        return [
            Component("planner", "toy", policy, options),
            Component("renderer", "toy", policy, options),
            Component("judge", "toy", f"{__name__}:ToyJudge"),
            Component("benchmark", "toy", f"{__name__}:ToyBenchmark"),
            Component("preset", "toy", f"gotr1_core:{preset}"),
        ]

    point = SimpleNamespace(
        name="toy", load=lambda: SimpleNamespace(gotr1_components=components), dist=SimpleNamespace(name="gotr1-toy", version="3")
    )
    real = list(entry_points(group="gotr1"))
    monkeypatch.setattr("gotr1_core.plugins.entry_points", lambda group: [*real, point])
    monkeypatch.setattr("gotr1_core.cli.common.device", lambda: "cpu")
    for command in ("generate", "evaluate", "train", "sft"):
        monkeypatch.setattr(f"gotr1_core.cli.{command}.device", lambda: "cpu", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def trained(toy: Path) -> Path:
    """A run whose weight is 0.6 (its best checkpoint) and 1 (its last), to generate with guidance 3."""
    folder = toy / "runs" / "mine"
    config = validate(RunConfig, {**load_config(Registry(), None, "toy", {}, []), "name": "mine"})
    for name, weight in (("best", 0.6), ("last", 1.0)):
        policy = ToyPolicy(ToyOptions(shade=weight))
        save_checkpoint(folder / "checkpoints" / name, {"planner": policy.module}, {"sampling": vars(Sampling(guidance_scale=3.0))})
    (folder / "config.yaml").write_text(dump(config))
    return folder


Captured = pytest.CaptureFixture[str]


def refused(arguments: list[str], capsys: Captured, status: int = 2) -> tuple[str, str]:
    """Error and hint of a command that fails as it should: two lines, nothing else."""
    capsys.readouterr()
    assert call(arguments) == status
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert len(lines) == 2, err
    assert lines[0].startswith("error: ")
    assert lines[1].startswith("hint: ")
    return lines[0].removeprefix("error: "), lines[1].removeprefix("hint: ")


# -- statuses ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["train", "--help"], ["generate", "-h"], ["plugins"], ["plugins", "--json"]])
def test_looking_around_is_a_success(arguments: list[str], capsys: Captured) -> None:
    assert call(arguments) == 0
    out, err = capsys.readouterr()
    assert out
    assert err == ""


def test_commands_have_their_names(capsys: Captured) -> None:
    call(["--help"])
    shown = capsys.readouterr().out
    assert all(f" {name} " in shown for name in ("train", "sft", "generate", "evaluate", "plugins"))


def test_without_arguments_it_shows_the_help(capsys: Captured) -> None:
    assert call([]) == 2
    out, err = capsys.readouterr()
    assert "Usage" in out + err
    assert "error:" not in err


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["trian"], "No such command 'trian'", "--help"),
        (["train", "--plannr", "toy"], "No such option: --plannr", "--help"),
        (["generate"], "Missing argument", "--help"),
        (["generate", "x", "--seed", "many"], "--seed", "--help"),
        (["generate", "x", "-n", "0"], "-n 0: there is nothing to draw", "1 or more"),
        (["generate", "x", "-n", "-3"], "-n -3: there is nothing to draw", "1 or more"),
        (["generate", ""], "the prompt is empty", "say what to draw"),
        (["generate", " \n"], "the prompt is empty", "say what to draw"),
        (["generate", "x", "--checkpoint", "nowhere"], "nowhere is no run with a checkpoint", "gotr1 train"),
        (["generate", "x", "--planner", "tyo", "--renderer", "toy"], "there is no planner 'tyo'", "did you mean 'toy'?"),
        (["generate", "x", "--planner", "toy", "--renderer", "zzz"], "there is no renderer 'zzz'", "known: janus, toy"),
        (["generate", "x", "--planner", "toy"], "renderer: Field required", "config reference"),
        (["generate", "x", "--preset", "tyo"], "there is no preset 'tyo'", "did you mean 'toy'?"),
        (["generate", "x", "--preset", "toy", "planner.shad=1"], "unknown key planner.shad", "planner.shade"),
        (["generate", "x", "--preset", "toy", "planner.shade=dark"], "planner.shade: ", "see"),
        (["generate", "x", "--preset", "toy", "stepps=1"], "unknown key stepps", "did you mean steps?"),
        (["generate", "x", "--preset", "toy", "steps"], "'steps' is not KEY=VALUE", "steps=20"),
        (["generate", "x", "--preset", "toy", "planner.model=/no/where"], "the planner 'toy' cannot be made: [Errno 2]", "path"),
        (["generate", "x", "--preset", "toy", "--out", "toy.yaml"], "cannot make the folder toy.yaml", "another folder"),
        (["evaluate", "--benchmark", "tyo"], "there is no benchmark 'tyo'", "did you mean 'toy'?"),
        (["evaluate", "--benchmark", "toy", "--checkpoint", "nowhere"], "nowhere is no run", "gotr1 train"),
        (["evaluate", "--benchmark", "toy", "--preset", "toy", "--count", "0"], "--count", "--help"),
        (["evaluate", "--benchmark", "toy", "--preset", "toy", "--batch", "0"], "--batch", "--help"),
        (["train", "none.yaml"], "there is no config none.yaml", "YAML file"),
        (["train", "--preset", "toy", "step=3"], "unknown key step", "did you mean steps?"),
        (["train", "--preset", "toy", "steps=0"], "steps: ", "config reference"),
        (["train", "--preset", "toy", "=3"], "'=3' is not KEY=VALUE", "steps=20"),
        (["train", "toy.yaml", "toy.yaml"], "'toy.yaml' is not KEY=VALUE", "steps=20"),
        (["train", "--planner", "toy", "--renderer", "toy"], "judge: Field required", "config reference"),
        (["train", "--preset", "toy", "--judge", "tyo"], "there is no judge 'tyo'", "did you mean 'toy'?"),
        (["train", "--preset", "toy", "--judge", "toy", "--judge", "toy"], "the judge 'toy' is named twice", "once"),
        (["train", "--preset", "toy", "--algorithm", "gppo"], "there is no algorithm 'gppo'", "did you mean 'grpo'?"),
        (["train", "--preset", "toy", "algorithm.ratoi=token"], "unknown key algorithm.ratoi", "algorithm.ratio"),
        (["train", "--preset", "toy", "algorithm.credit=split"], "images is 1", "images=2"),
        (["train", "--preset", "toy", "reward=pj"], "pj", "pi"),
        (["train", "--preset", "toy", "evaluation.metric=pj"], "evaluation.metric: no judge scores 'pj'", "known: reward, pi"),
        (["train", "--preset", "toy", "prompts=null"], "prompts: ", "config reference"),
        (["train", "--preset", "toy", "prompts={held_out: 3}", "prompts.source=null"], "there are no prompts", "--prompts FILE"),
        (["train", "--preset", "toy", "prompts.source=scene"], "there is no source 'scene'", "did you mean 'scenes'?"),
        (["train", "--preset", "toy", "--prompts", "none.txt"], "cannot read none.txt: No such file", "one prompt a line"),
        (
            ["train", "--preset", "toy", "--prompts", "toy.yaml", "prompts.source=null", "prompts.held_out=300"],
            "holds out the last of them",
            "smaller number",
        ),
        (["train", "--preset", "toy", "prompts.held_out=none.jsonl"], "cannot read none.jsonl", "JSONL"),
        (["sft"], "policy: Field required", "config reference"),
        (["sft", "none.yaml"], "there is no config none.yaml", "YAML file"),
        (["sft", "policy=tyo", "data=scenes"], "there is no planner 'tyo'", "did you mean 'toy'?"),
        (["sft", "policy=toy", "data=scene"], "there is no source 'scene'", "did you mean 'scenes'?"),
        (["sft", "policy=toy", "data=none.jsonl"], "none.jsonl", ""),
    ],
)
def test_mistakes_cost_two_lines(arguments: list[str], message: str, hint: str, toy: Path, capsys: Captured) -> None:
    error, advice = refused(arguments, capsys)
    assert message in error
    assert hint in advice
    assert not (toy / "pictures").exists()
    assert not (toy / "runs").exists()  # no empty run is left, whose name would then be taken


def test_a_caret_stays_under_what_it_points_at(toy: Path, capsys: Captured) -> None:
    assert call(["train", "--preset", "toy", "reward=pi + )"]) == 2
    _, hint, caret = capsys.readouterr().err.splitlines()
    assert hint == "hint: pi + )"
    assert caret.index("^") == hint.index(")")


def test_debug_shows_the_traceback(toy: Path) -> None:
    with pytest.raises(UsageError):
        call(["--debug", "train", "--preset", "toy", "step=3"])


def test_run_exits_with_the_status(capsys: Captured) -> None:
    for arguments, status in ((["plugins"], 0), (["trian"], 2)):
        with pytest.raises(SystemExit) as caught:
            run(arguments)
        assert caught.value.code == status


def test_an_interrupt_has_its_own_status(toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gotr1_core.plugins.Registry.preset", interrupted)
    assert call(["generate", "x", "--preset", "toy"]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_plugins_as_json(toy: Path, capsys: Captured) -> None:
    assert call(["plugins", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["failed"] == []
    assert {"kind": "judge", "name": "toy", "plugin": "gotr1-toy 3", "summary": ""} in listed["components"]
    assert {"grpo", "janus", "scenes"} <= {row["name"] for row in listed["components"]}
    assert call(["plugins"]) == 0
    assert ["judge", "toy", "gotr1-toy", "3"] in [line.split() for line in capsys.readouterr().out.splitlines()]


# -- what lies over what ----------------------------------------------------------------------------------------------------


def loaded(config: str | None = None, preset: str | None = None, *words: str, **named: Any) -> dict[str, Any]:
    path = None
    if config is not None:
        path = Path("file.yaml")
        path.write_text(config)
    return load_config(Registry(), path, preset, named, words)


@pytest.mark.usefixtures("toy")
def test_preset_then_file_then_options_then_words() -> None:
    assert loaded(None, "toy")["steps"] == 7
    assert loaded("steps: 8", "toy")["steps"] == 8
    assert loaded("steps: 8", "toy", "steps=9")["steps"] == 9
    assert loaded("steps: 8", "toy")["reward"] == "pi"
    shade = {"name": "toy", "shade": 0.2}
    assert loaded("planner: {shade: 0.4}", "toy")["planner"] == {"name": "toy", "shade": 0.4}
    assert loaded("planner: {shade: 0.4}", "toy", planner="toy")["planner"] == {"name": "toy", "shade": 0.4}
    assert loaded("planner: janus", "toy")["planner"] == {"name": "janus"}
    assert loaded("planner: {name: janus, model: x}", "toy", planner="toy")["planner"] == {"name": "toy"}
    assert loaded(None, "toy", "planner=janus", planner="toy")["planner"] == {"name": "janus"}
    assert loaded(None, "toy", planner=None)["planner"] == shade
    assert loaded(None, "toy", judge=["one", "two"])["judge"] == ["one", "two"]


@pytest.mark.usefixtures("toy")
def test_a_component_named_by_option_takes_options_by_words() -> None:
    found = loaded(None, None, "planner.shade=0.5", planner="toy", renderer="toy")
    assert found == {"planner": {"name": "toy", "shade": 0.5}, "renderer": "toy"}


@pytest.mark.usefixtures("toy")
def test_scenes_is_taken_where_nothing_else_is_named() -> None:
    assert loaded(None, None, "steps=3")["planner"]["name"] == "janus"
    assert loaded(None, None, "steps=3")["steps"] == 3
    assert loaded(None, None, algorithm="grpo")["planner"]["name"] == "janus"
    assert "planner" not in loaded(None, None, judge=["toy"])
    assert loaded(None, None, "algorithm.ratio=sequence")["algorithm"] == {"name": "grpo", "scale": False, "ratio": "sequence"}
    assert loaded("steps: 3") == {"steps": 3}


@pytest.mark.usefixtures("toy")
def test_own_prompts_lie_over_the_presets_and_keep_its_held_out_ones() -> None:
    found = loaded(None, "toy", prompts={"file": "mine.txt"})
    assert found["prompts"] == {"source": "scenes", "held_out": 4, "file": "mine.txt"}
    assert loaded(None, "toy", "prompts.file=other.txt", prompts={"file": "mine.txt"})["prompts"]["file"] == "other.txt"


# -- prompts ----------------------------------------------------------------------------------------------------------------


def test_prompts_of_a_text_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_bytes("\ufeff a red circle \r\n\r\n\tein grüner Kreis\u2028hier\n".encode())
    assert read_prompts(file) == [Prompt("a red circle", "mine-0"), Prompt("ein grüner Kreis\u2028hier", "mine-1")]


def test_prompts_of_a_jsonl_file(tmp_path: Path) -> None:
    rows = [{"prompt": "one\u2028line"}, {"prompt": "two", "id": 7, "category": "color", "metadata": {"objects": [1]}, "more": 1}]
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(["", *(json.dumps(row, ensure_ascii=False) for row in rows)]), encoding="utf-8")
    assert read_prompts(file) == [Prompt("one\u2028line", "mine-0"), Prompt("two", "7", "color", {"objects": [1]})]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "has no prompts"),
        ("a.txt", b" \n\t\n", "has no prompts"),
        ("a.jsonl", b"\n", "has no prompts"),
        ("a.txt", b"caf\xe9\n", "is not UTF-8 text"),
        ("a.jsonl", b'{"prompt": "caf\xe9"}\n', "is not UTF-8 text"),
        ("a.jsonl", b'\n{"prompt": "fine"}\n\na red circle\n', "line 4, is not"),  # counted as an editor does
        ("a.jsonl", b'{"text": "a"}', "line 1, is not"),
        ("a.jsonl", b'["a"]', "line 1, is not"),
        ("a.jsonl", b'"a"', "line 1, is not"),
        ("a.jsonl", b'{"prompt": 3}', "line 1: the prompt is no text"),
        ("a.jsonl", b'{"prompt": " "}', "line 1: the prompt is no text"),
        ("a.jsonl", b'{"prompt": "a", "metadata": 3}', "line 1: category is a text and metadata an object"),
        ("a.jsonl", b'{"prompt": "a", "category": null}', "line 1: category is a text and metadata an object"),
    ],
)
def test_prompt_files_that_are_none(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        read_prompts(file)
    assert str(file) in caught.value.message


def test_prompts_of_a_file_come_again_and_again(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("a\nb\nc\n")
    assert [p.text for p in FilePrompts(read_prompts(file)).prompts("train", 5, seed=0, start=2)] == ["c", "a", "b", "c", "a"]


# -- runs -------------------------------------------------------------------------------------------------------------------


def test_the_name_of_a_run_is_taken_once(toy: Path, capsys: Captured) -> None:
    config = validate(RunConfig, {**load_config(Registry(), None, "toy", {}, []), "name": "mine"})
    folder = new_folder(config)
    assert folder == Path("runs/mine")
    (folder / "metrics.jsonl").write_text("kept")
    with pytest.raises(UsageError, match="runs/mine is there already"):
        new_folder(config)
    # Refused before weights are loaded, which are not there.
    error, hint = refused(["train", "--preset", "toy", "name=mine", "planner.model=/no/where"], capsys)
    assert "runs/mine is there already" in error
    assert "name=" in hint
    assert (folder / "metrics.jsonl").read_text() == "kept"


def test_prompts_are_read_before_weights(toy: Path, capsys: Captured) -> None:
    (toy / "empty.txt").write_text("\n")
    error, _ = refused(["train", "--preset", "toy", "planner.model=/no/where", "--prompts", "empty.txt"], capsys)
    assert error == "empty.txt has no prompts"


def test_a_path_means_a_runs_best_checkpoint_or_the_one_it_names(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert checkpoint_of(trained) == (trained, trained / "checkpoints" / "best")
    last = trained / "checkpoints" / "last"
    assert checkpoint_of(last) == (trained, last)
    (trained / "checkpoints" / "best" / STATE).unlink()
    assert checkpoint_of(trained) == (trained, last)
    monkeypatch.chdir(last)
    assert checkpoint_of(Path())[0] == trained
    for wrong in (trained / "checkpoints", trained.parent, trained / "checkpoints" / "best"):
        with pytest.raises(UsageError, match="is no run with a checkpoint"):
            checkpoint_of(wrong)


def test_restoring_brings_back_weights_and_settings(trained: Path) -> None:
    config, parts, sampling = restore(Registry(), trained)
    assert config.name == "mine"
    assert parts.unified
    assert parts.planner.module.weight.item() == pytest.approx(0.6, rel=1e-7)  # float32
    assert sampling == Sampling(guidance_scale=3.0)
    assert restore(Registry(), trained / "checkpoints" / "last")[1].planner.module.weight.item() == 1
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
        *((f"checkpoints/best/planner/{TRAINABLE}", to) for to in ("missing", "truncated", "empty", "\x80\x02 not a pickle")),
        *((f"checkpoints/best/{STATE}", to) for to in ("truncated", "empty", "{}", '{"sampling": 3}', '{"sampling": {"heat": 1}}')),
        *(("config.yaml", to) for to in ("truncated", "empty", "planner: [", "planner: tyo")),
    ],
)
def test_a_damaged_checkpoint_is_refused(part: str, to: str, trained: Path, capsys: Captured) -> None:
    damage(trained / part, to)
    with pytest.raises(UsageError):
        restore(Registry(), trained)
    refused(["generate", "x", "--checkpoint", str(trained)], capsys)
    refused(["evaluate", "--benchmark", "toy", "--checkpoint", str(trained)], capsys)


def test_weights_of_another_model_are_refused(trained: Path) -> None:
    save_checkpoint(trained / "checkpoints" / "best", {"planner": nn.Linear(2, 1)}, {"sampling": vars(Sampling())})
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
    first = (toy / "out" / "001.png").read_bytes()
    assert call(words) == 0
    assert (toy / "out" / "001.png").read_bytes() == first  # the same seed, the same pictures


def test_generate_needs_neither_judge_nor_prompts(toy: Path) -> None:
    assert call(["generate", "a cat", "--planner", "toy", "--renderer", "toy", "planner.shade=1", "--out", "out"]) == 0
    assert Image.open(toy / "out" / "000.png").getpixel((0, 0))[0] == 255  # type: ignore[index]


def test_generate_with_a_run(trained: Path, capsys: Captured) -> None:
    assert call(["generate", "a cat", "--checkpoint", str(trained), "--out", "out"]) == 0
    assert Image.open("out/000.png").getpixel((0, 0))[:2] == (153, 30)  # type: ignore[index]
    assert call(["generate", "a cat", "--checkpoint", str(trained), "--out", "out", "sampling={guidance_scale: 1}"]) == 0
    assert Image.open("out/000.png").getpixel((0, 0))[:2] == (153, 10)  # type: ignore[index]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["steps=3"], "only sampling.… can be changed"),
        (["planner.shade=1"], "only sampling.… can be changed"),
        (["sampling.heat=1"], "unknown key sampling.heat"),
        (["sampling=3"], "sampling: "),
        (["sampling="], "sampling: "),
        (["sampling.temperature=-1"], "sampling.temperature: "),
        (["--preset", "toy"], "--preset has no meaning with --checkpoint"),
    ],
)
def test_what_a_run_has_settled_is_not_changed_in_silence(words: list[str], message: str, trained: Path, capsys: Captured) -> None:
    for command in (["generate", "x"], ["evaluate", "--benchmark", "toy"]):
        assert message in refused([*command, "--checkpoint", str(trained), *words], capsys)[0]
    assert "--planner" in refused(["generate", "x", "--checkpoint", str(trained), "--planner", "toy"], capsys)[0]


def test_evaluate_prints_numbers_by_category(trained: Path, capsys: Captured) -> None:
    assert call(["evaluate", "--benchmark", "toy", "--preset", "toy", "--json", "--batch", "3"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["benchmark"], found["count"]) == ("toy", 4)
    assert list(found["scores"]) == ["all", "even", "odd"]
    assert found["scores"]["all"]["shade"] == {"mean": pytest.approx(0.2), "half_width": 0, "count": 4}
    assert found["scores"]["odd"]["scale"]["mean"] == 5
    assert (
        call(["evaluate", "--benchmark", "toy", "--checkpoint", str(trained), "--json", "--count", "1", "sampling.guidance_scale=2"]) == 0
    )
    # One prompt has no interval: null, where NaN would not be JSON.
    found = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert found["scores"]["all"] == {
        "shade": {"mean": pytest.approx(0.6), "half_width": None, "count": 1},
        "scale": {"mean": 2, "half_width": None, "count": 1},
    }
    assert call(["evaluate", "--benchmark", "toy", "--preset", "toy"]) == 0
    assert "0.200 ± 0.000" in capsys.readouterr().out


def test_without_a_source_the_last_prompts_of_a_file_are_held_out(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("one\ntwo\nthree\nfour\n", encoding="utf-8")
    chosen = PromptsConfig(file=file, held_out=1)
    trained = training_prompts(Registry(), chosen).prompts("train", 4, 0)
    assert [p.text for p in trained] == ["one", "two", "three", "one"]
    assert [p.text for p in held_out_prompts(Registry(), chosen)] == ["four"]
