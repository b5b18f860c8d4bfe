"""``gotr1 check``: its output, its exit status, and that no check sees what another check changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from saboteurs import HonestJudge

from gotr1_core.cli.main import call
from gotr1_testing import Case, NotRun, TinyPolicy
from gotr1_testing.check import Check, CheckResult, Measured, worst
from gotr1_testing.runner import CHECKS, run_checks

Captured = pytest.CaptureFixture[str]

PLUGIN = """
from gotr1_core.hookspecs import Component, hookimpl
from gotr1_testing import TinyPolicy
from saboteurs import ZeroOnFailure

class Tiny(TinyPolicy):
    def __init__(self, options, *, device):
        super().__init__()

class Zero(ZeroOnFailure):
    def __init__(self, options):
        pass

class Down(Zero):
    def score(self, samples, names):
        raise ConnectionError("the server\\nis down")

@hookimpl
def gotr1_components():
    yield Component("planner", "tiny", "check_plugin:Tiny")
    yield Component("judge", "zero", "check_plugin:Zero")
    yield Component("judge", "down", "check_plugin:Down")
"""


@pytest.fixture
def plugin(tmp_path: Path) -> str:
    file = tmp_path / "check_plugin.py"
    file.write_text(PLUGIN)
    return f"--plugin={file}"


def table(out: str) -> dict[str, list[str]]:
    """Rows of the printed table, by check."""
    rows = [line.replace("not run", "not-run").split(maxsplit=2) for line in out.splitlines()[1:]]
    return {row[1]: row for row in rows}


def test_a_sound_component(capsys: Captured) -> None:
    assert call(["check", "judge", "scenes"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    rows = table(out)
    assert list(rows) == [check.name for check in CHECKS["judge"]]
    assert {name: row[0] for name, row in rows.items() if row[0] != "ok"} == {"agrees-with-reference": "not-run"}
    assert "≤ 0.02" in rows["same-in-any-batch"][2]


def test_a_check_that_fails(plugin: str, capsys: Captured) -> None:
    assert call(["check", "judge", "zero", plugin]) == 1
    rows = table(capsys.readouterr().out)
    assert [name for name, row in rows.items() if row[0] == "FAILED"] == ["unknown-is-nan"]
    assert "what cannot be scored is NaN, not 0" in rows["unknown-is-nan"][2]
    assert "dark was 0" in rows["unknown-is-nan"][2]


def test_a_component_that_raises(plugin: str, capsys: Captured) -> None:
    assert call(["check", "judge", "down", plugin]) == 1
    out, err = capsys.readouterr()
    assert err == ""
    rows = table(out)
    assert rows.pop("agrees-with-reference")[0] == "not-run"  # it has nothing to be compared with
    assert {row[0] for row in rows.values()} == {"FAILED"}
    assert all("ConnectionError: the server is down" in row[2] for row in rows.values())


def test_what_is_not_run_says_why(capsys: Captured) -> None:
    assert call(["check", "algorithm", "grpo", "ratio=sequence", "--only", "expected-gradient-uneven"]) == 0
    (row,) = table(capsys.readouterr().out).values()
    assert row[0] == "not-run"
    assert "weighs sequences" in row[2]


def test_json(plugin: str, capsys: Captured) -> None:
    arguments = ["check", "planner", "tiny", plugin, "--chain-tokens", "2", "--prompt", "a pink hexagon", "--json"]
    assert call([*arguments, "--only", "both-endings", "--only", "log-probs-match-sampler"]) == 0
    scored, endings = json.loads(capsys.readouterr().out)
    assert scored["check"] == "log-probs-match-sampler"
    assert scored["verdict"] == "ok"
    assert 0 < scored["measured"] < scored["limit"]
    assert endings["at_least"] is True
    assert "of 72 chains" in endings["note"]  # six prompts, two samples, six settings
    assert call(["check", "algorithm", "grpo", "ratio=sequence", "--only", "expected-gradient-uneven", "--json"]) == 0
    (absent,) = json.loads(capsys.readouterr().out)
    assert absent["measured"] is absent["limit"] is None


def test_options_of_a_preset(capsys: Captured) -> None:
    """The preset turns off division by the standard deviation, which makes the estimate exact. Options on the command line override it."""
    arguments = ["check", "algorithm", "grpo", "--preset", "scenes", "--only", "expected-gradient"]
    assert call(arguments) == 0
    assert "1 - cosine" in capsys.readouterr().out
    assert call([*arguments, "scale=true"]) == 0
    assert "by design" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["source", "scenes", "--only", "range"], "there is no check 'range' of kind source"),
        (["benchmark", "scenes", "--preset", "scenes"], "--preset cannot be used for a check of kind benchmark"),
        (["preset", "scens"], "there is no preset 'scens'"),
        (["jugde", "scenes"], "there is no kind 'jugde'"),
        (["judge", "scens"], "there is no judge 'scens'"),
        (["judge", "scenes", "strict=true"], "judge 'scenes' has no options"),
        (["judge", "scenes", "--only", "range"], "there is no check 'range' of kind judge"),
        (["algorithm", "rloo", "--preset", "scenes"], "the preset scenes has no algorithm 'rloo'"),
        (["planner", "janus", "model=/nowhere"], "/nowhere"),
    ],
)
def test_what_cannot_be_checked(arguments: list[str], message: str, capsys: Captured) -> None:
    assert call(["check", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err.splitlines()[0]
    assert err.splitlines()[1].startswith("hint: ")


# -- running checks ---------------------------------------------------------------------------------------------------------


def test_checks_share_a_component_until_one_changes_it() -> None:
    made: list[TinyPolicy] = []

    def make() -> TinyPolicy:
        made.append(TinyPolicy())
        return made[-1]

    only = ["same-log-probs-twice", "actions-are-marked", "frozen-stays", "frozen-stays-lora", "mean-log-prob-gradient-is-zero"]
    found = list(run_checks("planner", make, Case(max_chain_tokens=2), only))
    assert [f.name for f in found] == [check.name for check in CHECKS["planner"] if check.name in only]
    assert all(f.passed for f in found)
    assert len(made) == 2  # the first one that changes its component is the last to get the one that is shared


def test_a_large_component_is_not_checked_in_silence() -> None:
    found = list(run_checks("planner", TinyPolicy, Case(max_chain_tokens=2, max_parameters=1000)))
    absent = {f.name: f.note for f in found if f.passed is None}
    assert {name for name, note in absent.items() if "too many" in note} == {
        "surprise-is-entropy",
        "mean-log-prob-gradient-is-zero",
        "surrogate-gradient-is-the-slope",
        "surrogate-gradient-is-the-slope-lora",
        "kl-gradient-is-the-slope",
    }


def test_too_little_memory_gives_no_verdict() -> None:
    class Large(HonestJudge):
        def score(self, samples: Any, names: Any) -> Any:
            raise MemoryError("of 80 GB")

    found = list(run_checks("judge", Large))
    assert {f.passed for f in found} == {None}
    assert "80 GB" in str(found[0])


def test_numbers_and_limits() -> None:
    nan, inf = float("nan"), float("inf")
    assert Measured(1.0, 1.0).within
    assert not Measured(nan, 1.0).within
    assert Measured(2.0, 1.0, at_least=True).within
    assert not Measured(nan, 1.0, at_least=True).within
    assert worst([Measured(1.0, 2.0), Measured(3.0, 10.0), Measured(0.0, 0.0)]).limit == 2
    assert worst([Measured(1.0, 2.0), Measured(1e-9, 0.0)]).limit == 0
    assert worst([Measured(inf, 2.0), Measured(1.0, 2.0)]).value == inf

    def absent(subject: None) -> Measured:
        raise NotRun("nothing of the kind")

    assert str(Check("one", "it holds", absent).run(None)) == "one: not run: nothing of the kind"
    assert str(CheckResult("two", False, 0.5, 0.25, "too far")) == "two: 0.5, must be <= 0.25. too far"
