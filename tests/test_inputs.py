"""The files that a run reads: absolute paths in its config, fingerprints in its folder, and what happens if they are not the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
from PIL import Image
from pydantic import BaseModel
from safetensors.torch import load_file, save_file

from gotr1_core.cli.main import call
from gotr1_core.components.fingerprints import PIECE, PIECES, WHOLE, file_digest, path_fingerprint
from gotr1_core.components.inputs import changed_inputs
from gotr1_core.config.merge import read_yaml
from gotr1_core.config.models import RunConfig, SftConfig, dump, validate
from gotr1_core.config.paths import Input, InputFile, InputPath, absolute_options, change_marked, marked_options
from gotr1_core.errors import UsageError
from gotr1_core.runs import start
from gotr1_core.runs.inputs import accept_changes
from gotr1_core.runs.records import Records, run_config
from gotr1_core.runs.restore import restore
from gotr1_core.workflows.sft import record_sft_inputs, sft_inputs

Make = Callable[..., RunConfig]
Refused = Callable[..., tuple[str, str]]
WORDS = ["one", "two", "three", "four", "five", "six"]


# -- what an option says ----------------------------------------------------------------------------------------------------


class Options(BaseModel):
    model: InputPath = "owner/name"
    data: InputFile | None = None
    notes: dict[str, Annotated[str, Input(unless=lambda text, options: text == options["model"])]] = {}
    label: str = "x"


def test_marked_options_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only marked ones: a file always, another text if there is such a file and it means nothing else."""
    monkeypatch.chdir(tmp_path)
    for name in ("x", "note", "own"):
        (tmp_path / name).write_text("")
    (tmp_path / "owner").mkdir()
    given: dict[str, Any] = {"model": "own", "data": "none.jsonl", "notes": {"a": "note", "b": "own", "c": "gone"}, "label": "x"}
    assert list(marked_options(Options)) == ["model", "data", "notes"]
    assert absolute_options(Options, given) == {
        "model": f"{tmp_path}/own",
        "data": f"{tmp_path}/none.jsonl",
        "notes": {"a": f"{tmp_path}/note", "b": "own", "c": "gone"},
        "label": "x",
    }
    names = {"model": "owner/name", "data": None, "notes": {}}
    assert absolute_options(Options, names) == names
    assert absolute_options(Options, {"data": "~/x", "model": "\0"}) == {"data": str(Path.home() / "x"), "model": "\0"}
    assert absolute_options(None, {}) == {}


class Outer(BaseModel):
    inner: Options | None = None
    several: list[Options] = []
    named: dict[str, Options] = {}


def test_marks_count_in_models_inside_the_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").write_text("")
    given = {"model": "x", "notes": {"a": "x"}, "label": "x"}  # the note is the model's name, so it is none
    wanted = {**given, "model": f"{tmp_path}/x"}
    options = {"inner": given, "several": [given, {}], "named": {"one": given}}
    changed = absolute_options(Outer, options)
    assert changed == {"inner": wanted, "several": [wanted, {}], "named": {"one": wanted}}
    keys = []
    change_marked(Outer, Outer.model_validate(changed), lambda key, *_: keys.append(key), "judge")
    models = ["judge.inner", "judge.several.0", "judge.several.1", "judge.named.one"]
    assert [key for key in keys if key.endswith(".model")] == [f"{name}.model" for name in models]


@pytest.mark.parametrize(
    ("kind", "name", "options"),
    [
        ("planner", "janus", ["model"]),
        ("planner", "qwen", ["model", "instruction"]),
        ("planner", "file", ["chains"]),
        ("renderer", "sdxl", ["model"]),
        ("renderer", "flow", ["model"]),
        ("judge", "qwen-vl", ["model", "rubrics", "rubric", "font"]),
        ("judge", "internvl", ["model", "rubrics", "rubric", "font"]),
        *(("judge", name, ["model"]) for name in ("detector", "hps", "pickscore", "clip")),
    ],
)
def test_every_component_marks_its_files(registry: Any, kind: Any, name: str, options: list[str]) -> None:
    from gotr1_core.plugins import load

    assert set(marked_options(load(registry.find(kind, name).component.options))) == set(options)


def test_a_rubric_or_version_of_the_package_stays_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the working folder has a file of that name, which would otherwise be read in its place."""
    from gotr1_judges.options import QwenJudgeOptions
    from gotr1_qwen.options import QwenOptions

    monkeypatch.chdir(tmp_path)
    for name in ("v1", "plain", "pi", "pi.txt", "mine.txt"):
        (tmp_path / name).write_text("")
    assert absolute_options(QwenOptions, {"instruction": "plain"}) == {"instruction": "plain"}
    assert absolute_options(QwenOptions, {"instruction": "mine.txt"}) == {"instruction": str(tmp_path / "mine.txt")}
    rubrics = {"rubrics": "v1", "rubric": {"pi": "pi.txt", "sem": "mine.txt"}}
    assert absolute_options(QwenJudgeOptions, rubrics) == {"rubrics": "v1", "rubric": {"pi": "pi.txt", "sem": str(tmp_path / "mine.txt")}}


# -- fingerprints -----------------------------------------------------------------------------------------------------------


def test_a_fingerprint_is_of_content_not_of_place(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "part").mkdir(parents=True)
    (folder / "part" / "a.txt").write_text("a")
    (folder / ".lock").write_text("")
    before = path_fingerprint(folder)
    assert list(before["files"]) == ["part/a.txt"]
    moved = path_fingerprint(folder.rename(tmp_path / "moved"))
    assert changed_inputs({"x": before}, {"x": moved}) == {}
    (tmp_path / "moved" / "part" / "a.txt").write_text("b")
    assert list(changed_inputs({"x": before}, {"x": path_fingerprint(tmp_path / "moved")})) == ["x"]
    assert path_fingerprint(tmp_path / "none")["files"] == {}
    assert list(changed_inputs({"x": before}, {})) == ["x"]
    (tmp_path / "moved" / "config.json").write_text("{}")  # a model: nothing reads below it, and runs may lie there
    assert list(path_fingerprint(tmp_path / "moved")["files"]) == ["config.json"]
    (tmp_path / "moved" / "model_index.json").write_text("{}")  # a pipeline, whose weights are below it
    assert len(path_fingerprint(tmp_path / "moved")["files"]) > 2


def test_the_copy_of_a_hub_has_its_commit(tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--owner--name" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    copy = path_fingerprint(snapshot)
    assert copy == {"name": str(snapshot), "commit": commit}
    not_there_yet = {"name": "owner/name", "commit": None}
    assert changed_inputs({"x": copy}, {"x": not_there_yet}) == changed_inputs({"x": not_there_yet}, {"x": copy}) == {}
    assert list(changed_inputs({"x": copy}, {"x": {"name": "owner/name", "commit": "f" * 40}})) == ["x"]
    assert list(changed_inputs({"x": copy}, {"x": path_fingerprint(tmp_path)})) == ["x"]
    (tmp_path / "snapshots" / "mine").mkdir(parents=True)
    assert path_fingerprint(tmp_path / "snapshots" / "mine")["files"] == {}


def test_a_large_file_is_hashed_in_pieces(tmp_path: Path) -> None:
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(WHOLE + 1)  # takes no room
    before = file_digest(large)
    for place in (0, WHOLE, (WHOLE + 1 - PIECE) // (PIECES - 1) + 5):
        with large.open("r+b") as file:
            file.seek(place)
            file.write(b"x")
        assert file_digest(large) != before
        before = file_digest(large)


# -- runs -------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a run that reads relative paths."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def run(make: Make, here: Path, tiny_janus: Path) -> Path:
    """A run of two steps with checkpoints, of files with relative paths. It may be resumed with steps=3."""
    (here / "p.txt").write_text("\n".join(WORDS))
    shutil.copytree(tiny_janus, here / "janus")
    planner = {"name": "janus", "model": "janus", "instruction": "{prompt}", "attention": "eager"}
    config = make(
        planner=planner, prompts={"file": "p.txt", "held_out": 2}, steps=2, groups=2, plans=2, evaluation={"every": 0, "prompts": 2}
    )
    return start.train(config.model_copy(update={"output": Path("runs"), "name": "run"}), cpu=True).folder.absolute()


def test_a_run_keeps_absolute_paths_and_fingerprints(run: Path, here: Path) -> None:
    config = run_config(run)
    assert (config.prompts.file, config.planner.options["model"]) == (here / "p.txt", str(here / "janus"))
    assert config.renderer.options == {}
    inputs = json.loads((run / "inputs.json").read_text())
    assert list(inputs) == ["plugins.tiny_plugin", "prompts.file", "planner.model"]
    assert inputs["prompts.file"] == {"name": str(here / "p.txt"), "files": {"": file_digest(here / "p.txt")}}
    assert "model.safetensors" in inputs["planner.model"]["files"]


def test_a_run_is_resumed_from_another_folder(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where files of the same names lie, which are not read."""
    (tmp_path / "p.txt").write_text("other\nprompts\nthan\nthose")
    monkeypatch.chdir(tmp_path)
    done = start.resume(run, ["steps=3"], cpu=True)
    assert {text for name in ("before", "after") for _, text in done.records.held_out[name].prompts} == {"five", "six"}


def test_a_moved_run_is_resumed(run: Path, tmp_path: Path) -> None:
    """Its config's paths are of files that did not move, and of one in its own folder, which did."""
    shutil.copy(run_config(run).prompts.file or "", run / "p.txt")
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace(str(run.parent.parent / "p.txt"), "${HERE}/p.txt"))
    moved = run.rename(tmp_path / "elsewhere")
    start.resume(moved, ["steps=3"], cpu=True)
    assert "${HERE}/p.txt" in (moved / "config.yaml").read_text()
    again = moved.rename(tmp_path / "again")
    assert run_config(again).prompts.file == again / "p.txt"
    restore_(again)


def restore_(folder: Path, **more: Any) -> Any:
    from gotr1_core.plugins import Registry

    return restore(Registry(), folder, **more)


def test_edited_prompts_are_refused_or_accepted(run: Path, here: Path, refused: Refused, capsys: pytest.CaptureFixture[str]) -> None:
    before = file_digest(here / "p.txt")
    (here / "p.txt").write_text("\n".join([*WORDS[:5], "seven"]))
    words = ["train", "--resume", str(run), "steps=3", "--cpu"]
    for more in ([], ["--dry-run"]):
        error, hint = refused([*words, *more])
        now = file_digest(here / "p.txt")
        assert before is not None
        assert now is not None
        assert (
            error
            == f"{run} was trained with other inputs: prompts.file: {here / 'p.txt'} was SHA-256 {before[:12]}, now SHA-256 {now[:12]}"
        )
        assert f"gotr1 train --resume {run} --accept-changes" in hint
    assert run_config(run).steps == 2
    restore_(run)  # drawing reads no prompts
    assert call([*words, "--accept-changes"]) == 0
    assert f"accepted: prompts.file: {here / 'p.txt'} was" in capsys.readouterr().err
    (accepted,) = json.loads((run / "environment.json").read_text())["accepted"]
    assert accepted["step"] == 2
    assert [value["files"][""] for value in accepted["changed"]["prompts.file"]] == [before, now]
    held_out = Records(run, main=False).held_out
    assert [text for _, text in held_out["before"].prompts] == ["five", "six"]
    assert [text for _, text in held_out["after"].prompts] == ["five", "seven"]
    assert "change of the 1 prompts in both" in (run / "report.html").read_text()
    assert accept_changes(run) == {}


def test_changes_are_accepted_only_where_there_is_a_run(refused: Refused) -> None:
    assert "needs --resume" in refused(["train", "--accept-changes"])[0]
    assert "needs --checkpoint" in refused(["generate", "x", "--accept-changes"])[0]
    assert "needs --checkpoint" in refused(["evaluate", "--accept-changes"])[0]


def test_fewer_held_out_prompts_are_paired_by_what_they_are(run: Path, here: Path, tmp_path: Path) -> None:
    """Once an error of zip, after the training."""
    (here / "p.txt").write_text("\n".join(["new", *WORDS]))
    accept_changes(run)
    done = start.resume(run, ["steps=3"], cpu=True)
    assert [p for p, _ in done.records.held_out["after"].prompts] == ["p-5", "p-6"]  # a line of text has its number as its id
    assert (run / "report.html").is_file()


def test_a_missing_file_cannot_be_accepted(run: Path, here: Path) -> None:
    (here / "p.txt").unlink()
    for attempt in (lambda: start.resume(run, ["steps=3"], cpu=True), lambda: accept_changes(run)):
        with pytest.raises(UsageError, match=r"prompts.file: .*p.txt was SHA-256 \w+, now missing") as caught:
            attempt()
        assert "config.yaml" in str(caught.value.hint)


def test_missing_weights_are_named(run: Path, here: Path, refused: Refused) -> None:
    shutil.rmtree(here / "janus")
    error, hint = refused(["generate", "x", "--checkpoint", str(run)])
    assert f"planner.model: {here / 'janus' / 'chat_template.jinja'} was SHA-256" in error
    assert "now missing, and so with" in error
    assert "config.yaml" in hint


def test_swapped_weights_are_refused(run: Path, here: Path, refused: Refused) -> None:
    """By everything that draws with them. The new file has the old one's tensors, types and size."""
    weights = here / "janus" / "model.safetensors"
    save_file({name: tensor + (name == "lm_head.weight") for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    message = rf"planner.model: {weights} was SHA-256 \w+, now SHA-256"
    with pytest.raises(UsageError, match=message):
        start.resume(run, ["steps=3"], cpu=True)
    with pytest.raises(UsageError, match=message):
        restore_(run)
    assert "planner.model" in refused(["generate", "x", "--checkpoint", str(run)])[0]
    assert "planner.model" in refused(["evaluate", "--checkpoint", str(run)])[0]
    assert "planner.model" in refused(["export", str(run), "out", "--merge"])[0]
    _, parts, _ = restore_(run, accept_changes=True)
    assert torch.is_tensor(next(parts.planner.module.parameters()))
    accept_changes(run)
    with pytest.raises(UsageError, match="weights that the planner starts from are not those"):  # this no user can accept
        start.resume(run, ["steps=3"], cpu=True)


def test_drawing_goes_on_with_changes_if_it_is_told_to(run: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "janus" / "README.md").write_text("new")
    words = ["generate", "a cat", "--checkpoint", str(run), "sampling.max_chain_tokens=8"]
    assert call(words) == 2
    assert call([*words, "--accept-changes"]) == 0
    assert "warning: other inputs" in capsys.readouterr().err
    assert not json.loads((run / "environment.json").read_text()).get("accepted")


JUDGE = """
from collections.abc import Iterator
from pydantic import BaseModel
from gotr1_core import Component, hookimpl
from gotr1_core.config.paths import InputFile

class RubricOptions(BaseModel):
    rubric: InputFile

class RubricJudge:
    rewards = {"wordy": "plan"}
    def __init__(self, options):
        self.words = options.rubric.read_text().split()
    def score(self, samples, names):
        return {name: [len(s.chain.raw) % len(self.words) / len(self.words) for s in samples] for name in names}

@hookimpl
def gotr1_components() -> Iterator[Component]:
    yield Component("judge", "wordy", f"{__name__}:RubricJudge", f"{__name__}:RubricOptions")
"""


@pytest.mark.parametrize("edited", ["rubric.txt", "wordy_judge.py"])
def test_an_edited_rubric_or_judge_is_refused(make: Make, here: Path, edited: str) -> None:
    (here / "wordy_judge.py").write_text(JUDGE)
    (here / "rubric.txt").write_text("a b c")
    changed = {"plugins": ["wordy_judge.py"], "judge": {"name": "wordy", "rubric": "rubric.txt"}, "reward": "wordy", "steps": 1}
    config = make(**changed, groups=2, plans=2, output="runs", name="run", evaluation={"every": 0, "prompts": 2})
    done = start.train(config, cpu=True).folder
    assert run_config(done).judge[0].options == {"rubric": str(here / "rubric.txt")}
    (here / edited).write_text((here / edited).read_text() + "\n")
    key = "judge.rubric" if edited == "rubric.txt" else "plugins.wordy_judge"
    with pytest.raises(UsageError, match=f"{key}: {here / edited} was SHA-256"):
        start.resume(done, ["steps=2"], cpu=True)
    if edited == "rubric.txt":
        restore_(done)  # no judge is made
    accept_changes(done)
    start.resume(done, ["steps=2"], cpu=True)


def test_a_plan_is_shown_with_absolute_paths(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "p.txt").write_text("a red circle")
    (here / "c.jsonl").write_text('{"prompt": "a red circle", "chain": "one"}')
    words = ["train", "--dry-run", "--preset", "scenes", "--planner", "file", "planner.chains=c.jsonl", "--prompts", "p.txt", "--json"]
    assert call([*words, "prompts.held_out=p.txt", "train=renderer"]) == 0
    shown = json.loads(capsys.readouterr().out)["config"]
    assert (shown["planner"]["chains"], shown["prompts"]["file"]) == (str(here / "c.jsonl"), str(here / "p.txt"))


# -- stage one --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def sft(here: Path, tiny_janus: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    monkeypatch.setattr("gotr1_core.cli.sft.device", lambda: "cpu")
    shutil.copytree(tiny_janus, here / "janus")
    for name, row, colour in (("one", "a cat", "red"), ("two", "a dog", "blue")):
        Image.new("RGB", (12, 12), colour).save(here / f"{name}.png")
        (here / f"{name}.jsonl").write_text(json.dumps({"prompt": row, "chain": row, "image": f"{name}.png"}) + "\n")

    def words(**changed: Any) -> list[str]:
        given: Mapping[str, Any] = {"data": "one.jsonl", "policy.model": "janus", "steps": 1, "batch": 1, "output": "out", **changed}
        instruction = ["policy.instruction='{prompt}'", "policy.attention=eager"]
        return ["sft", "policy=janus", *instruction, *(f"{key}={value}" for key, value in given.items())]

    return words


def test_stage_one_does_not_go_on_with_other_data(sft: Any, here: Path, refused: Refused, capsys: pytest.CaptureFixture[str]) -> None:
    """Once it did nothing in a finished output, with status 0, and in another it went on with the other data."""
    assert call(sft()) == 0
    assert read_yaml(here / "out" / "model" / "config.yaml")["data"] == str(here / "one.jsonl")
    for steps in (1, 2):
        error, hint = refused(sft(data="two.jsonl", steps=steps))
        assert f"{Path('out')} was trained with other inputs: data: {here / 'two.jsonl'} was SHA-256" in error
        assert "--accept-changes" in hint
    assert "data:" in refused(sft(data="scenes"))[0]
    assert call(sft()) == 0
    assert "has done its 1 steps" in capsys.readouterr().err
    assert call([*sft(data="two.jsonl", steps=2), "--accept-changes"]) == 0
    state = json.loads((here / "out" / "model" / "state.json").read_text())
    assert (state["step"], state["accepted"][0]["step"]) == (2, 1)
    assert call(sft(data="two.jsonl", steps=2)) == 0
    (here / "janus" / "generation_config.json").write_text("{}")
    assert "policy.model" in refused(sft(data="two.jsonl", steps=2))[0]


def test_a_file_that_is_edited_while_it_is_read_is_refused(sft: Any, here: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the data stage one records what was there before; the next command notices the edit."""
    from gotr1_core.components import build

    make = build.make_component

    def edited(registry: Any, kind: Any, *given: Any, **more: Any) -> Any:
        made = make(registry, kind, *given, **more)
        (here / name).write_text(text)
        return made

    monkeypatch.setattr(build, "make_component", edited)
    name, text = "janus/generation_config.json", "{} "
    assert "a file changed while it was read: policy.model:" in refused(sft())[0]
    name, text = "one.jsonl", (here / "one.jsonl").read_text() + "\n"
    assert call(sft()) == 0
    assert "out was trained with other inputs: data:" in refused(sft(steps=2))[0]


def test_a_run_whose_files_are_edited_while_they_are_read_is_refused(make: Make, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make(prompts={"file": "p.txt", "held_out": 1}, evaluation={"prompts": 1}, steps=1, output="runs", name="edited")
    prompts = here / "p.txt"
    prompts.write_text("one\ntwo")
    monkeypatch.setattr(start, "count_repeats", lambda *given: pytest.fail("too late"))
    made = start._make_trainer

    def edited(*given: Any) -> Any:
        trainer = made(*given)
        prompts.write_text("three\nfour")
        return trainer

    monkeypatch.setattr(start, "_make_trainer", edited)
    with pytest.raises(UsageError, match=r"a file changed while it was read: prompts.file: .*p.txt was SHA-256"):
        start.train(config, cpu=True)
    assert not (here / "runs" / "edited").exists()


def test_stage_one_keeps_the_pictures_of_its_data(sft: Any, here: Path, refused: Refused) -> None:
    assert call(sft()) == 0
    Image.new("RGB", (12, 12), "green").save(here / "one.png")
    assert "one.jsonl/pictures was SHA-256" in refused(sft())[0]


def test_stage_one_keeps_the_options_of_a_source(registry: Any, tmp_path: Path) -> None:
    policy = {"policy": {"name": "janus", "model": str(tmp_path)}, "output": str(tmp_path / "out")}
    clean, noisy = (validate(SftConfig, {**policy, "data": {"name": "scenes", "clean": clean}}) for clean in (True, False))
    before, now = (sft_inputs(registry, config) for config in (clean, noisy))
    assert record_sft_inputs(clean, before) == {"inputs": before, "accepted": []}
    save = tmp_path / "out" / "model"
    save.mkdir(parents=True)
    (save / "state.json").write_text(json.dumps({"step": 1, "inputs": before}))
    record_sft_inputs(clean, before)
    with pytest.raises(UsageError, match=r"data: source scenes \(.*'clean': True.* is now source scenes \(.*'clean': False"):
        record_sft_inputs(noisy, now)


def test_a_config_reads_back_equal(run: Path) -> None:
    config = run_config(run)
    assert validate(RunConfig, read_yaml(run / "config.yaml")) == config
    assert str(run) not in dump(config)
