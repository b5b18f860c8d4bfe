"""docs/plugins.md is right: every hook and every kind with its signatures, and its code runs."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import re
import shlex
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml
from PIL import Image
from typer.testing import CliRunner

from gotr1_core import hookspecs, protocols
from gotr1_core.chain import parse
from gotr1_core.cli.main import call
from gotr1_core.config.models import SegmentConfig
from gotr1_core.config.paths import absolute_options
from gotr1_core.hookspecs import KINDS
from gotr1_core.plugins import Registry, load, options_of
from gotr1_core.protocols import Loss, RewardJudge, Stateful
from gotr1_core.samples import ActionStats, Prompt, Rollout, Sample, Sampling, join
from gotr1_testing.new_plugin import KINDS as NEW_KINDS

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "gotr1-example-judge"
PAGE = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^#{2,3} (.+?)\n(.*?)(?=^#{2,3} |\Z)", PAGE, re.M | re.S))
ELSEWHERE = (
    *("Begin with a command", "A judge in five lines", "The smallest components"),
    *("The smallest planner", "The smallest renderer", "The smallest algorithm"),
)
"""Sections whose code test_docs.py, test_judge_decorator.py and test_examples_smallest.py run."""
HOOKS = [name for name in vars(hookspecs) if name.startswith("gotr1_")]
PROTOCOLS = {name: p for name, p in vars(protocols).items() if getattr(p, "_is_protocol", False) and p.__module__ == protocols.__name__}
OF_KIND = {
    "planner": "Planner",
    "renderer": "Renderer",
    "judge": "RewardJudge",
    "algorithm": "RLAlgorithm",
    "source": "PromptSource",
    "benchmark": "Benchmark",
}


def blocks(language: str, text: str = PAGE) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def signature(function: Callable[..., Any]) -> str:
    """As a reader would write it: annotations without quotes, no self."""
    shown = str(inspect.signature(function)).replace("'", "")
    return function.__name__ + re.sub(r"^\(self(, )?", "(", shown)


def members(protocol: type) -> list[str]:
    """What a protocol requires: names of attributes with their types, methods with their signatures."""
    attributes = [f"{name}: {kind}".replace("'", "") for name, kind in vars(protocol).get("__annotations__", {}).items()]
    methods = [getattr(protocol, name) for name in vars(protocol) if not name.startswith("_") and callable(getattr(protocol, name))]
    return attributes + [signature(method) for method in methods]


# -- nothing is missing -----------------------------------------------------------------------------------------------------


def test_every_hook_is_documented_and_nothing_else() -> None:
    assert len(HOOKS) >= 7
    assert [name for name in SECTIONS if name.startswith("gotr1_")] == HOOKS


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_has_its_exact_signature(name: str) -> None:
    assert f"`{signature(getattr(hookspecs, name))}`" in SECTIONS[name]


def unlisted(protocol: type, text: str) -> list[str]:
    """What a protocol requires but the text does not list."""
    # A policy's attributes have types that say little, and are described instead.
    described = {"module: nn.Module": "module", "lora_prefix: str": "lora_prefix"}
    wanted = members(protocol)
    assert wanted
    return [member for member in wanted if f"- `{described.get(member, member)}`" not in text]


def test_every_kind_is_documented() -> None:
    assert set(KINDS) == OF_KIND.keys() | {"preset"}
    assert [kind for kind, name in OF_KIND.items() if unlisted(PROTOCOLS[name], SECTIONS[kind])] == []
    assert "package:path" in SECTIONS["preset"]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_what_a_component_may_have_is_said_exactly(name: str) -> None:
    assert unlisted(PROTOCOLS[name], PAGE) == []


def rows(section: str) -> dict[str, list[str]]:
    """The cells of the tables of a section by the first cell, without its backticks. The cells below a heading are all filled in."""
    cells = [line.strip("| ").split(" | ") for line in SECTIONS[section].splitlines() if line.startswith("| ")]
    assert all(len(row) == len(cells[0]) and all(row) for row in cells)
    return {name: row[1:] for row in cells for name in re.findall(r"`(\w+)`", row[0]) or [row[0]]}


@pytest.mark.parametrize("data", [Sampling, Rollout, ActionStats, Loss, SegmentConfig], ids=lambda data: data.__name__)
def test_every_field_that_authors_meet_has_a_row(data: type) -> None:
    fields = getattr(data, "model_fields", None) or [field.name for field in dataclasses.fields(data)]
    table = rows(data.__name__)
    assert [name for name in fields if name not in table] == []
    if data is SegmentConfig:
        assert {name: float(table[name][1]) for name in fields} == SegmentConfig().model_dump()
    assert {"set by", "read by"} <= set(table["field"])


def test_the_tensors_of_a_rollout_are_those_that_the_core_reads() -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "gotr1_core").rglob("*.py") if path.parent.name != "policies")
    read = {*re.findall(r"""tensors(?:\[|\.get\()["'](\w+)["']""", sources)}
    assert {"mask", "log_prob", "truncated", "parent", "step"} <= read
    assert read <= rows("Rollout").keys()


def test_padding_of_joined_rollouts_is_as_described() -> None:
    def drawn(width: int) -> Rollout:
        tensors = {"mask": torch.ones(1, width, dtype=torch.bool), "x": torch.full((1, width, 2), 7.0), "length": torch.tensor([width])}
        return Rollout("plan", Sampling(), tensors)

    joined = join([drawn(1), drawn(3)])
    assert joined.tensors["mask"].tolist() == [[True, False, False], [True] * 3]
    assert joined.tensors["x"][0].tolist() == [[7, 7], [0, 0], [0, 0]]
    assert joined.tensors["length"].tolist() == [1, 3]


def test_what_the_core_looks_for_in_a_policy_is_listed() -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "gotr1_core").rglob("*.py"))
    asked = set(re.findall(r"""(?:getattr|hasattr)\((?:make|policy|planner|renderer), "(\w+)\"""", sources))
    assert {"lora_prefix", "features", "trainable", "preflight", "preflight_training", "check_prompts", "base"} <= asked
    of_judges = {"rewards", "can_score"}
    assert asked - of_judges <= rows("Attributes of a policy").keys()


def test_the_package_of_the_command_is_as_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = SECTIONS["Begin with a command"]
    command, following = blocks("sh", text)
    assert call(shlex.split(command)[1:]) == 0
    assert capsys.readouterr().out == following
    top, *files = [line.split()[0] for line in blocks("text", text)[0].splitlines()]
    assert sorted(files) == sorted(str(path.relative_to(top)) for path in Path(top).rglob("*") if path.is_file())
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.M)) == set(NEW_KINDS)
    assert set(re.findall(r"`(examples/smallest_\w+\.py)`", SECTIONS["The smallest components"])) == {
        f"examples/smallest_{kind}.py" for kind in NEW_KINDS
    }


def test_signatures_are_read_as_written() -> None:
    assert signature(protocols.PromptSource.examples) == "examples(split: str, start: int, count: int, seed: int) -> Sequence[Example]"
    assert members(protocols.RewardJudge)[0] == "rewards: Mapping[str, SegmentName]"


# -- the code runs ----------------------------------------------------------------------------------------------------------


def loaded(block: str, folder: Path) -> Registry:
    """A block as a plugin of one file, found as `--plugin` finds it."""
    path = folder / "my_plugin.py"
    path.write_text(block, encoding="utf-8")
    registry = Registry([])
    registry.add_file(path)
    assert registry.broken == []
    return registry


def drawn(color: str | None, reward: float = math.nan) -> Sample:
    picture = Image.new("RGB", (4, 4), color) if color else None
    return Sample(Prompt("a picture"), parse("a picture"), picture, reward=reward)


def test_the_single_file_is_a_judge(tmp_path: Path) -> None:
    registry = loaded(blocks("python", SECTIONS["One file"])[0], tmp_path)
    [found] = registry.of_kind("judge")
    judge = load(found.component.target)(options_of(found.component, {"full": 200}))
    assert isinstance(judge, RewardJudge)
    red, grey, missing = judge.score([drawn("red"), drawn("grey"), drawn(None)], ["colorful"])["colorful"]
    assert red == pytest.approx(0.3 * math.hypot(255, 127.5) / 200)
    assert grey == 0
    assert math.isnan(missing)


def classes(source: str) -> list[str]:
    return [ast.unparse(node) for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]


def test_the_package_is_the_example_and_has_the_single_files_judge() -> None:
    package = EXAMPLE / "src" / "gotr1_example_judge"
    assert blocks("toml") == [(EXAMPLE / "pyproject.toml").read_text(encoding="utf-8")]
    plugin, test = blocks("python", SECTIONS["A package"])  # run by the example's own tests
    assert plugin == (package / "plugin.py").read_text(encoding="utf-8")
    assert (EXAMPLE / "tests" / "test_judge.py").read_text(encoding="utf-8").startswith(test)
    version = tomllib.loads(blocks("toml")[0])["project"]["version"]
    assert f'"distribution": "gotr1-example-judge", "version": "{version}"' in SECTIONS["What a run records"]
    single = classes(blocks("python", SECTIONS["One file"])[0])
    assert len(single) == 2
    assert single == classes((package / "judge.py").read_text(encoding="utf-8"))


def commands() -> list[str]:
    """The `gotr1` lines of the page, in shell blocks and in the table of commands."""
    shell = [block for title, text in SECTIONS.items() if title not in ELSEWHERE for block in blocks("sh", text)]
    lines = [line for block in shell for line in block.splitlines()] + re.findall(r"^\| `(.+?)` \|", SECTIONS["Commands"], re.M)
    return [line for line in lines if line.startswith("gotr1 ")]


@pytest.mark.parametrize("line", dict.fromkeys(commands()))
def test_commands_run(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With the single file wherever the page has the package installed. Commands that train are only resolved and checked."""
    monkeypatch.chdir(tmp_path)
    Path("my_judge.py").write_text(blocks("python", SECTIONS["One file"])[0], encoding="utf-8")
    words = [*shlex.split(line)[1:], *([] if "--plugin" in line else ["--plugin", "my_judge.py"])]
    verb = words[0]
    assert call([*words, "--dry-run"] if verb == "train" and "--dry-run" not in words else words) == 0
    shown = capsys.readouterr()
    assert [line for line in shown.err.splitlines() if not line.startswith("note: ")] == []
    assert "my_judge" in shown.out
    if verb == "train":
        config = yaml.safe_load(shown.out)
        assert config["reward"] == "pi * ri * colorful"
        wanted = {"name": "colorfulness", **({"full": 60} if "full" in line else {})}
        assert config["judge"] == [{"name": "scenes"}, wanted]


def test_the_preset_with_a_miniature_can_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_judge.py").write_text(blocks("python", SECTIONS["One file"])[0], encoding="utf-8")
    Path("miniature.yaml").write_text(blocks("yaml", SECTIONS["preset"])[-1], encoding="utf-8")
    small = ["groups=2", "plans=2", "steps=1", "prompts.held_out=2", "evaluation={every: 0, greedy: false, best_of: 0}"]
    assert call(["train", "miniature.yaml", "--plugin", "my_judge.py", *small]) == 0


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "first"
    (folder / "checkpoints" / "step-000010").mkdir(parents=True)
    (folder / "checkpoints" / "step-000010" / "state.json").write_text("{}")
    (folder / "metrics.jsonl").write_text('{"step": 1, "seconds": 2.0}\n{"step": 1, "evaluation": "after"}\n{"step": 2, "seconds": 2.0}\n')
    return folder


def hook(name: str, folder: Path) -> Any:
    """Calls the hook as the core does, with the example of its section as the listener."""
    [block] = blocks("python", SECTIONS[name])
    return getattr(loaded(block, folder).manager.hook, name)


def test_example_of_components(tmp_path: Path) -> None:
    registry = loaded(blocks("python", SECTIONS["gotr1_components"])[0], tmp_path)
    assert [(p.component.kind, p.component.name) for p in registry.provided] == [("source", "captions"), ("preset", "photographs")]


def test_example_of_commands(tmp_path: Path, run: Path) -> None:
    app = typer.Typer()
    app.command("other")(lambda: None)  # one command alone would need no name
    hook("gotr1_commands", tmp_path)(app=app)
    assert CliRunner().invoke(app, ["steps", str(run)]).stdout == "2\n"
    assert "is not a run" in str(CliRunner().invoke(app, ["steps", str(tmp_path)]).exception)


def test_example_of_wrap_judge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Silent:
        rewards: Mapping[str, str] = {"pi": "image"}

        def score(self, samples: Sequence[Sample], names: Sequence[str]) -> Mapping[str, Sequence[float]]:
            return {name: [] for name in names}

    called, judge = hook("gotr1_wrap_judge", tmp_path), Silent()
    wrapped = called(judge=judge, cache=None, facts=lambda: {"name": "my-judge"})
    assert wrapped.judge is judge
    assert wrapped.score([], ["pi"]) == {"pi": []}
    assert capsys.readouterr().out == "0 samples are scored\n"
    assert called(judge=judge, cache=None, facts=lambda: {"name": "other"}) is None


def test_example_of_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called = hook("gotr1_checks", tmp_path)
    monkeypatch.delenv("MY_JUDGE_KEY", raising=False)
    [[missing]] = map(list, called())
    assert (missing.healthy, missing.found, "MY_JUDGE_KEY" in missing.hint) == (False, "not set", True)
    monkeypatch.setenv("MY_JUDGE_KEY", "a secret")
    [[found]] = map(list, called())
    assert (found.healthy, found.found, found.hint) == (True, "set", "")


def test_example_of_run_started(tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hook("gotr1_run_started", tmp_path)(run=run, config={"steps": 12, "reward": "pi * ri"}, step=2)
    assert capsys.readouterr().err == "first: 10 steps for pi * ri\n"


def test_example_of_step_finished(tmp_path: Path, run: Path) -> None:
    called = hook("gotr1_step_finished", tmp_path)
    for step in (1, 2):
        called(run=run, step=step, metrics={"reward": step / 4}, samples=[])
    assert (run / "reward.csv").read_text() == "1,0.25\n2,0.5\n"


def test_example_of_evaluating(tmp_path: Path, run: Path) -> None:
    hook("gotr1_evaluating", tmp_path)(run=run, step=2, name="after", total=300, samples=[drawn(None)])
    assert (run / "evaluating.txt").read_text() == "after: 1 of 300"


def test_example_of_evaluated(tmp_path: Path, run: Path) -> None:
    called = hook("gotr1_evaluated", tmp_path)
    called(run=run, step=3, name="held-out", samples=[drawn(None, 0), drawn("red", 0.5), drawn("lime", 0.25), drawn("blue")])
    assert Image.open(run / "worst, held-out, 3.png").getpixel((0, 0)) == (0, 255, 0)
    called(run=run, step=6, name="after", samples=[drawn(None)])
    assert not (run / "worst, after, 6.png").exists()


def test_example_of_checkpoint_saved(tmp_path: Path, run: Path) -> None:
    hook("gotr1_checkpoint_saved", tmp_path)(run=run, step=10, checkpoint=run / "checkpoints" / "step-000010")
    assert (run.parent / "kept" / "first" / "step-000010" / "state.json").is_file()


def test_example_of_run_finished(tmp_path: Path, run: Path) -> None:
    called = hook("gotr1_run_finished", tmp_path)
    called(run=run, outcome="failed", summary={})
    called(run=run, outcome="finished", summary={"before": {"reward": 0.5, "pi": 1.0}, "after": {"reward": 0.75, "pi": 1.0}})
    assert (run.parent / "notebook.md").read_text() == "- first failed: \n- first finished: before 0.500, after 0.750\n"


def test_example_of_options_that_name_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [block] = blocks("python", SECTIONS["Options that name files"])
    names: dict[str, Any] = {}
    exec(compile(block, "options.py", "exec", dont_inherit=True), names)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain").write_text("")
    given = {"captions": "c.jsonl", "model": "plain", "style": "plain"}
    assert absolute_options(names["CaptionsOptions"], given) == {
        "captions": f"{tmp_path}/c.jsonl",
        "model": f"{tmp_path}/plain",
        "style": "plain",
    }


def test_example_of_an_algorithm_with_state() -> None:
    [block] = blocks("python", SECTIONS["algorithm"])
    names: dict[str, Any] = {}
    exec(compile(block, "algorithm.py", "exec", dont_inherit=True), names)
    kept, resumed = names["RunningMean"](), names["RunningMean"]()
    assert isinstance(kept, Stateful)
    kept.mean, kept.seen = 0.25, 8
    resumed.load_state_dict(kept.state_dict())
    assert vars(resumed) == vars(kept)


def test_every_python_block_is_run() -> None:
    """By a test above, or as the example's own file."""
    assert all(f"def test_example_of_{name.removeprefix('gotr1_')}(" in Path(__file__).read_text() for name in HOOKS)
    counted = {title: len(blocks("python", text)) for title, text in SECTIONS.items() if title not in ELSEWHERE}
    assert {title: count for title, count in counted.items() if count} == {
        "One file": 1,
        "A package": 2,
        "Options that name files": 1,
        "algorithm": 1,
        **dict.fromkeys(HOOKS, 1),
    }
