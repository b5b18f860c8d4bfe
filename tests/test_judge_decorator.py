"""``@judge``: a judge made of one function, in a file given with ``--plugin``."""

from __future__ import annotations

import inspect
import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gotr1_core import Gotr1Error, Prompt, Registry, RewardJudge, Sample, UsageError, component, judge, parse
from gotr1_core.cli.main import call

BRIGHTNESS = """from gotr1_core import judge

@judge(rewards={"brightness": "image"})
def brightness(sample):
    return sample.image.convert("L").resize((1, 1)).getpixel((0, 0)) / 255
"""


@pytest.fixture(autouse=True)
def _modules() -> Iterator[None]:
    """Forgets the plugin files of a test."""
    yield
    for name in ("hurry", "other"):
        sys.modules.pop(name, None)


def registered(folder: Path, source: str = BRIGHTNESS, name: str = "hurry.py") -> Registry:
    """A registry with one plugin file."""
    (folder / name).write_text(source, encoding="utf-8")
    registry = Registry([])
    registry.add_file(folder / name)
    return registry


def only_judge(folder: Path, source: str = BRIGHTNESS) -> RewardJudge:
    """The only judge of a file."""
    registry = registered(folder, source)
    [found] = registry.of_kind("judge")
    made: RewardJudge = component("judge", found.component.name, registry=registry)
    return made


def drawn(color: str | None, plan: str = "a circle") -> Sample:
    return Sample(Prompt("a picture"), parse(plan), Image.new("RGB", (4, 4), color) if color else None)


WHITE, BLACK, MISSING = drawn("white"), drawn("black"), drawn(None)


def of_one(answer: Any, **options: Any) -> RewardJudge:
    """A judge with one reward that always gives this answer."""

    def constant(given: Any) -> Any:
        return answer

    return decorated(constant, {"value": "plan"}, **options)


def decorated(function: Callable[..., Any], rewards: Any, **options: Any) -> RewardJudge:
    function.__qualname__ = function.__name__  # as if it stood at the top of a file
    found: RewardJudge = judge(rewards, **options)(function).judge(None)  # type: ignore[attr-defined]
    return found


def nan(value: float) -> Any:
    return pytest.approx(value, nan_ok=True)


# -- what it is -------------------------------------------------------------------------------------------------------------


def test_five_lines_are_a_judge(tmp_path: Path) -> None:
    assert len(BRIGHTNESS.splitlines()) == 5
    found = only_judge(tmp_path)
    assert isinstance(found, RewardJudge)
    assert found.rewards == {"brightness": "image"}
    assert found.score([WHITE, BLACK, MISSING], ["brightness"]) == {"brightness": [1.0, 0.0, nan(math.nan)]}
    assert sys.modules["hurry"].brightness(WHITE) == 1  # the function is as it was


def test_it_passes_the_checks_of_judges(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "hurry.py").write_text(BRIGHTNESS, encoding="utf-8")
    assert call(["check", "judge", "brightness", "--plugin", str(tmp_path / "hurry.py"), "--json"]) == 0
    verdicts = [check["verdict"] for check in json.loads(capsys.readouterr().out)]
    assert "failed" not in verdicts
    assert verdicts.count("ok") >= 6


def test_what_is_registered(tmp_path: Path) -> None:
    two = '''from gotr1_core import judge

@judge(rewards={"bright": "image"})
def bright_or_dark(sample):
    """How bright it is.

    Of no use.
    """
    return 0.5

@judge({"long": "plan"}, name="length_of-plan", batch=True)
def _(samples):
    return [min(1, len(sample.chain.raw) / 100) for sample in samples]

same = bright_or_dark
'''
    registry = registered(tmp_path, two)
    found = {p.component.name: p for p in registry.of_kind("judge")}
    assert list(found) == ["bright-or-dark", "length_of-plan"]
    assert {p.distribution for p in found.values()} == {"hurry.py"}
    assert found["bright-or-dark"].component.summary == "How bright it is."
    assert [p.component.summary for p in found.values()][1] == ""
    long = component("judge", "hurry.py:length_of-plan", registry=registry)
    assert long.score([WHITE, drawn(None, "a" * 50)], ["long"]) == {"long": [0.08, 0.5]}
    with pytest.raises(UsageError, match="'bright-or-dark' has no options"):
        component("judge", "bright-or-dark", registry=registry, full=3)


def test_a_function_that_is_imported_is_not_the_importers(tmp_path: Path) -> None:
    registry = registered(tmp_path)
    (tmp_path / "other.py").write_text("from hurry import brightness\n" + BRIGHTNESS.replace("brightness", "other"), encoding="utf-8")
    registry.add_file(tmp_path / "other.py")
    assert [(p.component.name, p.distribution) for p in registry.of_kind("judge")] == [("brightness", "hurry.py"), ("other", "other.py")]


def test_two_files_may_use_one_name(tmp_path: Path) -> None:
    registry = registered(tmp_path)
    (tmp_path / "other.py").write_text(BRIGHTNESS, encoding="utf-8")
    registry.add_file(tmp_path / "other.py")
    with pytest.raises(UsageError, match="more than one plugin provides the judge 'brightness'"):
        registry.find("judge", "brightness")
    assert registry.find("judge", "other.py:brightness").distribution == "other.py"


CLASHES = {
    "two functions": BRIGHTNESS + "\n@judge(rewards={'dark': 'image'}, name='brightness')\ndef dark(sample):\n    return 0\n",
    "a function and a class": BRIGHTNESS
    + "\nfrom gotr1_core import Component, hookimpl\n\n"
    + "@hookimpl\ndef gotr1_components():\n    yield Component('judge', 'brightness', 'a:b')\n",
}


@pytest.mark.parametrize("source", CLASHES.values(), ids=CLASHES)
def test_one_file_may_not_use_a_name_twice(source: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is broken: registers the judge 'brightness' twice"):
        registered(tmp_path, source)


# -- what it may return -----------------------------------------------------------------------------------------------------

NUMBERS = {"int": 1, "float": 0.25, "bool": True, "numpy": np.float32(0.25), "tensor": torch.tensor(0.25), "nan": math.nan}


@pytest.mark.parametrize("value", NUMBERS.values(), ids=NUMBERS)
def test_any_number_is_a_score(value: Any) -> None:
    for answer, options in ((value, {}), ({"value": value}, {}), ([value], {"batch": True}), ({"value": (value,)}, {"batch": True})):
        [score] = of_one(answer, **options).score([WHITE], ["value"])["value"]
        assert type(score) is float
        assert score == nan(float(value))
    assert of_one(np.full(2, 0.25), batch=True).score([WHITE, BLACK], ["value"]) == {"value": [0.25, 0.25]}
    assert of_one(torch.full((2,), 0.25), batch=True).score([WHITE, BLACK], ["value"]) == {"value": [0.25, 0.25]}


def test_a_list_is_for_all_samples_with_a_picture() -> None:
    seen: list[int] = []

    def bright(samples: Any) -> list[float]:
        seen.append(len(samples))
        return [sample.image.getpixel((0, 0))[0] / 255 for sample in samples]

    found = decorated(bright, {"bright": "image"}, batch=True)
    assert found.score([MISSING, WHITE, BLACK], ["bright"]) == {"bright": [nan(math.nan), 1.0, 0.0]}
    assert found.score([MISSING], ["bright"]) == {"bright": [nan(math.nan)]}
    assert found.score([], ["bright"]) == {"bright": []}
    assert seen == [2]


def test_several_rewards() -> None:
    def both(sample: Any) -> dict[str, float]:
        scores = {"long": len(sample.chain.raw) / 10}
        return scores if sample.image is None else {**scores, "bright": sample.image.getpixel((0, 0))[0] / 255}

    found = decorated(both, {"long": "plan", "bright": "image"})
    samples = [drawn("white", "four"), drawn(None, "sixsix")]
    assert found.score(samples, ["long", "bright"]) == {"long": [0.4, 0.6], "bright": [1.0, nan(math.nan)]}
    assert found.score(samples, ["bright"]) == {"bright": [1.0, nan(math.nan)]}
    assert found.score(samples, ["long"]) == {"long": [0.4, 0.6]}


def test_several_rewards_of_a_list() -> None:
    found = decorated(lists, {"left": "image", "right": "image"}, batch=True)
    assert found.score([WHITE, BLACK], ["right", "left"]) == {"right": [0.5, 0.5], "left": [0.0, 1.0]}
    assert found.score([WHITE, BLACK], ["left"]) == {"left": [0.0, 1.0]}


def lists(samples: Any) -> dict[str, list[float]]:
    return {"left": [k / max(1, len(samples) - 1) for k in range(len(samples))], "right": [0.5] * len(samples)}


ONE, TWO = "; expected a number in [0,1], or NaN", "; expected 2, each a number"
WRONG: dict[str, tuple[Any, dict[str, Any], str]] = {
    "too large": (1.5, {}, f"1.5 as ['value'][0]{ONE}"),
    "negative": (-0.25, {}, f"-0.25 as ['value'][0]{ONE}"),
    "infinite": (math.inf, {}, f"inf as ['value'][0]{ONE}"),
    "none": (None, {}, f"None as ['value'][0]{ONE}"),
    "text": ("0.5", {}, f"'0.5' as ['value'][0]{ONE}"),
    "a list": ([0.5], {}, f"list of 1 as ['value'][0]{ONE}"),
    "a tensor": (torch.zeros(2), {}, f"float32 [2] as ['value'][0]{ONE}"),
    "long": ("x" * 100, {}, f"'{'x' * 58}… as ['value'][0]{ONE}"),
    "another reward": ({"valeu": 0.5}, {}, "dict with the names valeu; expected a mapping with its rewards: value"),
    "no reward": ({}, {}, "dict of 0; expected a mapping with its rewards: value"),
    "one number": (0.5, {"batch": True}, f"0.5 as ['value']{TWO}"),
    "text for a list": ("0.5", {"batch": True}, f"'0.5' as ['value']{TWO}"),
    "too few": ([0.5], {"batch": True}, f"list of 1 as ['value']{TWO}"),
    "one of them": ([0.5, 2], {"batch": True}, f"2 as ['value'][1]{ONE}"),
}


@pytest.mark.parametrize(("answer", "options", "message"), WRONG.values(), ids=WRONG)
def test_what_is_no_score_is_an_error(answer: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(Gotr1Error) as caught:
        of_one(answer, **options).score([WHITE, BLACK], ["value"])
    assert caught.value.message == f"the judge constant of {__name__}: score() returned {message}"
    line = inspect.getsourcelines(of_one)[1] + 3
    assert caught.value.hint == f"see {__file__}:{line}; docs/plugins.md says what it must be"
    assert caught.value.code == 1


def test_several_rewards_need_a_mapping() -> None:
    def number(sample: Any) -> float:
        return 0.5

    with pytest.raises(Gotr1Error, match=r"returned 0.5; expected a mapping with its rewards: one$"):
        decorated(number, {"one": "plan", "two": "plan"}).score([WHITE], ["one"])


def test_an_exception_is_not_swallowed() -> None:
    def broken(sample: Any) -> float:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        decorated(broken, {"value": "plan"}).score([WHITE], ["value"])


# -- what it may stand above ------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[str, str]] = {
    "no rewards": ("@judge({})\ndef f(sample):\n    return 0\n", "@judge does not say what the function scores"),
    "no parentheses": ("@judge\ndef f(sample):\n    return 0\n", "@judge does not say what the function scores"),
    "a stage": ("@judge({'f': 'picture'})\ndef f(sample):\n    return 0\n", "the reward 'f' needs 'picture'"),
    "a lambda": ("f = judge({'f': 'plan'})(lambda sample: 0)\n", "@judge needs a function at the top of the file"),
    "a method": ("class A:\n    @judge({'f': 'plan'})\n    def f(self, sample):\n        return 0\n", "@judge needs a function at the top"),
    "a class": ("@judge({'f': 'plan'})\nclass A:\n    pass\n", "@judge needs a function at the top of the file"),
}


@pytest.mark.parametrize(("source", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_a_judge_is_refused(source: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        registered(tmp_path, "from gotr1_core import judge\n" + source)
    assert message in caught.value.message


# -- on the command line ----------------------------------------------------------------------------------------------------


def test_it_scores_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "hurry.py").write_text(BRIGHTNESS, encoding="utf-8")
    Image.new("RGB", (8, 8), "white").save(tmp_path / "white.png")
    words = ["--plugin", str(tmp_path / "hurry.py"), "--judge", "brightness", "--prompt", "a picture", "--json"]
    assert call(["score", str(tmp_path / "white.png"), *words]) == 0
    assert '"brightness": 1.0' in capsys.readouterr().out
    assert call(["show", "judge", "brightness", "--plugin", str(tmp_path / "hurry.py")]) == 0
    assert "brightness" in capsys.readouterr().out


def test_a_wrong_score_is_two_lines(tmp_path: Path, refused: Callable[..., tuple[str, str]]) -> None:
    (tmp_path / "hurry.py").write_text(BRIGHTNESS.replace(" / 255", ""), encoding="utf-8")
    Image.new("RGB", (8, 8), "white").save(tmp_path / "white.png")
    words = ["--plugin", str(tmp_path / "hurry.py"), "--judge", "brightness", "--prompt", "a picture"]
    error, hint = refused(["score", str(tmp_path / "white.png"), *words], status=1)
    assert error == f"the judge 'brightness' of hurry.py: score() returned 255 as ['brightness'][0]{ONE}"
    assert hint.startswith(f"see {tmp_path / 'hurry.py'}:3; ")


def test_an_exception_names_the_line_of_the_function(tmp_path: Path, refused: Callable[..., tuple[str, str]]) -> None:
    (tmp_path / "hurry.py").write_text(BRIGHTNESS.replace("return", "return 1 / 0 +"), encoding="utf-8")
    Image.new("RGB", (8, 8), "white").save(tmp_path / "white.png")
    words = ["--plugin", str(tmp_path / "hurry.py"), "--judge", "brightness", "--prompt", "a picture"]
    error, hint = refused(["score", str(tmp_path / "white.png"), *words], status=1)
    assert error == "the judge 'brightness' of hurry.py failed in score(): ZeroDivisionError: division by zero"
    assert hint.startswith(f"see {tmp_path / 'hurry.py'}:5; ")


def test_it_trains(tmp_path: Path) -> None:
    (tmp_path / "hurry.py").write_text(BRIGHTNESS, encoding="utf-8")
    small = [
        "steps=1",
        "groups=2",
        "plans=2",
        "prompts.held_out=2",
        "evaluation.every=0",
        "evaluation.greedy=false",
        "evaluation.best_of=0",
    ]
    words = ["--plugin", str(tmp_path / "hurry.py"), "--preset", "scenes", "--judge", "scenes", "--judge", "brightness"]
    assert call(["train", *words, "reward=pi * brightness", f"output={tmp_path}", "name=run", *small]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < row["reward.brightness"] <= 1 for row in rows if row.get("step") == 1 and "reward.brightness" in row)
    assert any("reward.brightness" in row for row in rows)
    parts = json.loads((tmp_path / "run" / "environment.json").read_text())["components"]
    assert parts["judge brightness"]["distribution"] == "hurry.py"


def test_the_functions_of_the_docs(tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "docs" / "plugins.md").read_text(encoding="utf-8")
    one, two = re.findall(r"^```python\n(.*?)^```", page.partition("## A judge in five lines")[2].partition("\n## ")[0], re.M | re.S)
    assert one == BRIGHTNESS
    registry = registered(tmp_path, two)
    words, darkness = (component("judge", name, registry=registry) for name in ("words", "darkness"))
    assert words.score([drawn(None, "two words!")], ["short", "calm"]) == {"short": [0.5], "calm": [0.0]}
    assert darkness.score([WHITE, MISSING, BLACK], ["darkness"]) == {"darkness": [0.0, nan(math.nan), 1.0]}
