"""A run seen from outside: lifecycle hooks, listeners that fail, judges that cannot be combined, and what ends a run at once."""

from __future__ import annotations

import inspect
import json
import math
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gotr1_core.border.contract import ContractError
from gotr1_core.cli.main import call
from gotr1_core.components.build import build
from gotr1_core.config.models import RunConfig, dump
from gotr1_core.engine.interrupts import Interrupted
from gotr1_core.errors import Gotr1Error, UsageError
from gotr1_core.hookspecs import Component, hookimpl
from gotr1_core.plugins import Registry
from gotr1_core.runs import start
from gotr1_core.runs.checkpoint import complete_checkpoints, find_damage
from gotr1_core.samples import IMAGE, PLAN, Sample, SegmentName
from gotr1_janus.policy import JanusPolicy

Make = Callable[..., RunConfig]
SMALL: dict[str, Any] = {"groups": 2, "plans": 2, "prompts": {"source": "scenes", "held_out": 3}, "save_samples": 0}
SMALL |= {"evaluation": {"every": 2, "prompts": 2, "greedy": True}, "checkpoint": {"every": 1}}


@pytest.fixture
def config(make: Make, tmp_path: Path) -> RunConfig:
    return make(**SMALL, output=str(tmp_path), name="run")


class Heard:
    """A listener that records every hook, and may fail in one of them."""

    def __init__(self, fails: str = "", error: BaseException | Callable[[], None] | None = None) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.evaluating: list[tuple[int, str, int, list[str]]] = []
        self.fails, self.error = fails, error or ValueError("no\nroom")

    def _hear(self, hook: str, **given: Any) -> None:
        self.events.append((hook, given))
        if hook == self.fails:
            if not isinstance(self.error, BaseException):
                return self.error()
            raise self.error

    @property
    def names(self) -> list[str]:
        return [hook for hook, _ in self.events]

    @hookimpl
    def gotr1_run_started(self, run: Path, config: Mapping[str, Any], step: int) -> None:
        self._hear("started", run=run, config=config, step=step)

    @hookimpl
    def gotr1_step_finished(self, run: Path, step: int, metrics: Mapping[str, float], samples: Sequence[Sample]) -> None:
        self._hear("step", run=run, step=step, metrics=metrics, samples=samples)

    @hookimpl
    def gotr1_evaluating(self, run: Path, step: int, name: str, total: int, samples: Sequence[Sample]) -> None:
        self.evaluating.append((step, name, total, [sample.prompt.text for sample in samples]))

    @hookimpl
    def gotr1_evaluated(self, run: Path, step: int, name: str, samples: Sequence[Sample]) -> None:
        self._hear("evaluated", run=run, step=step, name=name, samples=samples)

    @hookimpl
    def gotr1_checkpoint_saved(self, run: Path, step: int, checkpoint: Path) -> None:
        assert find_damage(checkpoint) is None  # whole
        self._hear("saved", run=run, step=step, checkpoint=checkpoint)

    @hookimpl
    def gotr1_run_finished(self, run: Path, outcome: str, summary: Mapping[str, Mapping[str, float]]) -> None:
        self._hear("finished", run=run, outcome=outcome, summary=summary)


EVERYTHING = ["started", "evaluated", "evaluated", "step", "saved", "step", "evaluated", "saved", "step", "evaluated", "saved", "finished"]


def test_hooks_come_in_their_order_with_what_they_promise(config: RunConfig) -> None:
    heard = Heard()
    run = start.train(config, listeners=[heard], cpu=True)
    assert heard.names == EVERYTHING
    assert {given["run"] for _, given in heard.events} == {run.folder}
    started, finished = heard.events[0][1], heard.events[-1][1]
    assert started["step"] == 0
    assert started["config"] == config.model_dump(mode="json")
    assert json.dumps(started["config"])
    steps = [given for hook, given in heard.events if hook == "step"]
    rows = [row for row in run.records.rows if "evaluation" not in row]
    assert [{"step": given["step"], **given["metrics"]} for given in steps] == rows
    assert [len(given["samples"]) for given in steps] == [4, 4, 4]
    evaluated = [(given["step"], given["name"], len(given["samples"])) for hook, given in heard.events if hook == "evaluated"]
    assert evaluated == [(0, "before", 3), (0, "before, greedy", 3), (2, "held-out", 2), (3, "after", 3)]
    saved = [(given["step"], given["checkpoint"]) for hook, given in heard.events if hook == "saved"]
    assert saved == [(step, run.folder / "checkpoints" / f"step-{step:06d}") for step in (1, 2, 3)]
    assert finished["outcome"] == "finished"
    means = {name: {score: sum(values) / 3 for score, values in row.items()} for name, row in run.records.held_out.items()}
    assert finished["summary"].keys() == {"before", "before, greedy", "after"}
    for name, row in means.items():
        assert finished["summary"][name] == pytest.approx(row)


def test_listeners_hear_how_far_an_evaluation_is(make: Make, tmp_path: Path) -> None:
    """At its start, and after each two prompts, in their order."""
    heard = Heard()
    evaluation = {"every": 0, "prompts": 2, "batch": 2}
    run = start.train(make(**{**SMALL, "evaluation": evaluation}, steps=1, output=str(tmp_path), name="run"), listeners=[heard], cpu=True)
    texts = [text for _, text in run.records.held_out["after"].prompts]
    expected = [(step, name, 3, texts[:done]) for step, name in ((0, "before"), (1, "after")) for done in (0, 2, 3)]
    assert heard.evaluating == expected


class PowerFailure(GeneratorExit):
    """Ends a run as a power failure does: nothing handles it. Of a listener's errors, only this kind is told of by nobody."""


def press_ctrl_c() -> None:
    """Twice: the first lets the step finish, the second stops at once."""
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(("error", "outcome"), [(PowerFailure(), "failed"), (press_ctrl_c, "interrupted")])
def test_the_outcome_of_a_run_that_ends_early(config: RunConfig, error: BaseException | Callable[[], None], outcome: str) -> None:
    """Hooks get the outcome and the step from which the run can be resumed."""
    heard = Heard("step", error)
    other = Heard()
    with pytest.raises((PowerFailure, Interrupted)):
        start.train(config, listeners=[other, heard], cpu=True)
    assert heard.events[-1][1]["outcome"] == other.events[-1][1]["outcome"] == outcome
    again = Heard()
    start.resume(config.output / "run", listeners=[again], cpu=True)
    assert again.events[0][1]["step"] == 0
    assert again.names == ["started", *EVERYTHING[3:]]


def test_a_listener_that_fails_is_not_called_again(config: RunConfig, registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    """A listener that fails is not called again in this run, even if its plugin is installed. Others are, and the run continues. In the
    next run it is called again."""
    broken, other, plugin = Heard("evaluated"), Heard(), Heard()
    registry.add(plugin, "gotr1-heard")
    start.train(config, registry=registry, listeners=[broken, other], cpu=True)
    assert broken.names == ["started", "evaluated"]
    assert other.names == plugin.names == EVERYTHING
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: Heard")]
    line = inspect.getsourcelines(Heard._hear)[1] + 5
    what = "failed in gotr1_evaluated and gets no more events of this run: ValueError: no room"
    assert warnings == [f"warning: Heard {what} ({__file__}:{line})"]
    plugin.fails = "started"
    start.resume(config.output / "run", ["steps=4"], registry=registry, listeners=[broken], cpu=True)
    assert broken.names == ["started", "evaluated", "started", "step", "evaluated"]
    assert plugin.names == [*EVERYTHING, "started"]
    assert plugin.events[-1][1]["step"] == 3
    assert "warning: gotr1-heard:gotr1-heard failed in gotr1_run_started" in capsys.readouterr().err


@pytest.mark.parametrize("error", [SystemExit(0), KeyboardInterrupt()])
def test_a_listener_cannot_end_a_run_without_a_word(config: RunConfig, capsys: pytest.CaptureFixture[str], error: BaseException) -> None:
    run = start.train(config, listeners=[Heard("step", error)], cpu=True)
    assert "after" in run.records.held_out
    assert f"Heard failed in gotr1_step_finished and gets no more events of this run: {type(error).__name__}" in capsys.readouterr().err


class Lazy:
    """A listener whose body never runs: a call only makes a generator."""

    @hookimpl
    def gotr1_run_started(self, step: int) -> Any:
        yield step


class Misspelt:
    @hookimpl
    def gotr1_step_finishd(self, step: int) -> None:
        """It would never be called."""


def test_what_a_listener_returns_is_checked(config: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    start.train(config, listeners=[Lazy()], cpu=True)
    assert "gotr1_run_started() returned generator; expected None" in capsys.readouterr().err
    with pytest.raises(UsageError, match="there is no hook gotr1_step_finishd; did you mean 'gotr1_step_finished'"):
        start.train(config.model_copy(update={"name": "other"}), listeners=[Misspelt()], cpu=True)


def test_strict_plugins_stop_the_run(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOTR1_STRICT_PLUGINS", "1")
    other = Heard()
    with pytest.raises(ContractError, match=r"failed in gotr1_checkpoint_saved\(\): ValueError: no room"):
        start.train(config, listeners=[other, Heard("saved")], cpu=True)
    assert other.events[-1][1]["outcome"] == "failed"
    assert list(complete_checkpoints(config.output / "run")) == [1]


# -- judges -----------------------------------------------------------------------------------------------------------------


class Rival:
    """Offers for the picture what another judge offers for the plan."""

    rewards: Mapping[str, SegmentName] = {"value": IMAGE}

    def __init__(self, options: None) -> None:
        pytest.fail("it was made")


class Late:
    """Says what it offers only when it is made."""

    def __init__(self, options: None) -> None:
        self.rewards: Mapping[str, SegmentName] = {"late": PLAN}

    def score(self, samples: Sequence[Sample], names: Sequence[str]) -> Mapping[str, Sequence[float]]:
        return {"late": [1.0] * len(samples)}


class Lost:
    """Has no score for any sample."""

    rewards: Mapping[str, SegmentName] = {"lost": PLAN}

    def __init__(self, options: None) -> None:
        pass

    def score(self, samples: Sequence[Sample], names: Sequence[str]) -> Mapping[str, Sequence[float]]:
        return {"lost": [math.nan] * len(samples)}


class Frozen(JanusPolicy):
    """A policy that cannot train."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.module.requires_grad_(False)


def no_weights(*_: Any, **__: Any) -> None:
    pytest.fail("weights were loaded")


@pytest.fixture
def more(registry: Registry) -> Registry:
    """Adds the judges above, and a planner and a renderer that cannot train."""
    judges = [Component("judge", kind.__name__.lower(), f"{__name__}:{kind.__name__}") for kind in (Rival, Late, Lost)]
    policies = [Component(kind, "frozen", f"{__name__}:Frozen", "gotr1_janus.options:JanusOptions") for kind in ("planner", "renderer")]
    registry.add(SimpleNamespace(gotr1_components=lambda: [*judges, *policies]), "tests")
    return registry


@pytest.mark.parametrize(
    ("changed", "message", "hint"),
    [
        ({"judge": ["values", "rival"]}, "the judges 'values' and 'rival' both offer the reward 'value'", "use one of them"),
        ({"judge": ["values", "values"]}, "the judge 'values' is named twice", "once"),
        ({"judge": ["lost"], "reward": "lost * value"}, "value", "lost"),
        ({"judge": ["late"], "reward": "value"}, "value", "late"),
        (
            {"judge": ["values"], "evaluation": {"prompts": 3, "metric": "lost"}},
            "evaluation.metric: no judge scores 'lost'",
            "value, letters",
        ),
        (
            {"judge": ["late"], "reward": "late", "evaluation": {"prompts": 3, "metric": "lost"}},
            "no judge scores 'lost'",
            "known: reward, late",
        ),
    ],
)
def test_judges_that_do_not_go_together_cost_no_weights(
    make: Make, more: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: Any, message: str, hint: str
) -> None:
    monkeypatch.setattr(JanusPolicy, "__init__", no_weights)
    with pytest.raises(UsageError) as caught:
        start.train(make(**{**SMALL, **changed, "output": str(tmp_path), "name": "run"}), registry=more, cpu=True)
    assert message in caught.value.message
    assert hint in str(caught.value.hint)
    assert list(tmp_path.iterdir()) == []


def test_rewards_that_nobody_knows_stop_a_run_before_it_trains(make: Make, more: Registry, tmp_path: Path) -> None:
    heard = Heard()
    with pytest.raises(Gotr1Error, match="lost") as caught:
        start.train(
            make(**{**SMALL, "judge": ["lost"], "reward": "lost", "output": str(tmp_path), "name": "run"}),
            registry=more,
            listeners=[heard],
            cpu=True,
        )
    assert caught.value.code == 1
    assert caught.value.hint
    assert "step" not in heard.names
    assert heard.events[-1][1]["outcome"] == "failed"
    assert complete_checkpoints(tmp_path / "run") == {}


def test_the_command_line_exits_with_1(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The judge has no score for any of the prompts."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("missing one\nmissing two\nmissing three\n")
    file = tmp_path / "config.yaml"
    own = {"prompts": {"file": str(prompts), "held_out": 2}, "output": str(tmp_path / "runs")}
    file.write_text(dump(make(**{**SMALL, **own})))
    assert call(["train", str(file), "--cpu"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.partition(":")[0] for line in err.splitlines()[-2:]] == ["error", "hint"]
    assert "Traceback" not in err


@pytest.mark.parametrize(("train", "hint"), [("planner", "train=renderer"), ("renderer", "train=planner"), ("both", "train=renderer")])
def test_what_cannot_train_is_refused(make: Make, more: Registry, train: str, hint: str) -> None:
    frozen = {**make().planner.model_dump(), "name": "frozen"}
    config = make(train=train, planner=frozen, renderer={**frozen, "attention": "sdpa"})
    with pytest.raises(UsageError, match=f"train: the {'renderer' if train == 'renderer' else 'planner'} has nothing to train") as caught:
        build(more, config)
    assert hint in str(caught.value.hint)


def test_one_that_can_train_may_stand_beside_one_that_cannot(make: Make, more: Registry) -> None:
    frozen = {**make().planner.model_dump(), "name": "frozen"}
    parts = build(more, make(train="planner", renderer=frozen, lora={"rank": 1}))
    assert not parts.unified
    assert any(p.requires_grad for p in parts.planner.module.parameters())
    assert not any(p.requires_grad for p in parts.renderer.module.parameters())
