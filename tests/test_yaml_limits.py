"""YAML made to break its reader: in a file and in a KEY=VALUE word it is a mistake in two lines, at once and in little memory."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from gotr1_core.cli.main import call
from gotr1_core.config.merge import parse_overrides, read_yaml
from gotr1_core.config.messages import shown
from gotr1_core.config.models import RunConfig, SftConfig, validate
from gotr1_core.config.yaml_text import DEEPEST, LARGEST, parse_yaml
from gotr1_core.errors import UsageError
from gotr1_core.plugins import Registry, load, options_of

Captured = pytest.CaptureFixture[str]


def bomb(levels: int) -> str:
    """Nine aliases of nine aliases, and so on. Levels of lists are mappings' values, so that it is one value of a file too."""
    names = "abcdefghij"[:levels]
    lines = [f"{names[0]}: &{names[0]} [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in itertools.pairwise(names)]
    return "\n".join(lines)


MERGE_BOMB = "a: &a {x: 1, y: 2}\n" + "\n".join(
    f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 9)}], {b}1: 1}}" for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)
FLAT_BOMB = "{a: &a [x, x, x, x, x, x, x, x, x], " + ", ".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
BROKEN = {
    "alias bomb": FLAT_BOMB + "}",
    "recursive list": "&a [*a]",
    "recursive mapping": "&a {b: *a}",
    "300 levels of lists": "[" * 300 + "]" * 300,
    "300 levels of mappings": "{a: " * 300 + "1" + "}" * 300,
    "brackets without end": "[" * 100_000,
    "deep by aliases": "{a: &a " + "[" * 20 + "]" * 20 + ", b: " + "[" * 20 + "*a" + "]" * 20 + "}",
    "no such bool": "!!bool x",
    "no such integer": "!!int x",
    "empty integer": "!!int ''",
    "empty number": "!!float ''",
    "no such number": "!!float x",
    "not a date": "!!timestamp x",
    "a date": "!!timestamp 2020-01-01",
    "bytes": "!!binary aGk=",
    "a set": "!!set {a, b}",
    "pairs": "!!pairs [a: b]",
    "Python": "!!python/object/apply:os.system [id]",
    "another tag": "!mine x",
    "a mapping that is a text": "!!map x",
    "a text that is a mapping": "!!str {a: b}",
    "a list as a key": "{[a]: b}",
    "digits without end": "9" * 10_000,
    "long": "x" * (LARGEST + 1),
    "control characters": "\x00\x01",
    "an escaped null character": '"a\\0b"',
    "half of a surrogate pair": '"\\ud800"',
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_yaml_is_refused_at_once(name: str, tmp_path: Path, capsys: Captured) -> None:
    value, file = BROKEN[name], tmp_path / "config.yaml"
    file.write_text(f"steps: {value}\n" if "\n" not in value else value)
    started = time.perf_counter()
    for words in (["config", "validate", str(file)], ["train", "--dry-run", f"steps={value}"]):
        assert call(words) == 2
        error, hint = capsys.readouterr().err.splitlines()
        assert error.startswith("error: ")
        assert hint.startswith("hint: ")
        assert len(error) < 300 + len(str(file))
    assert time.perf_counter() - started < 10


@pytest.mark.parametrize("text", [bomb(9), MERGE_BOMB], ids=["lists", "merge keys"])
def test_a_file_below_a_kilobyte_cannot_take_all_memory(text: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    assert file.stat().st_size < 1000
    with pytest.raises(UsageError, match="its aliases make it too large"):
        read_yaml(file)


def test_anchors_of_ordinary_configs_are_read() -> None:
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]") == {"a": {"x": 1}, "b": {"x": 1, "y": 2}, "c": [{"x": 1}] * 2}
    assert parse_yaml("!!str 1") == "1"
    assert parse_yaml("=") == "="
    deep = parse_yaml("[" * DEEPEST + "]" * DEEPEST)
    for _ in range(DEEPEST - 1):
        (deep,) = deep
    assert deep == []


def test_a_key_with_many_parts_is_refused() -> None:
    with pytest.raises(UsageError, match=f"has more than {DEEPEST} parts"):
        parse_overrides([".".join(["a"] * 1000) + "=1"])


LONG = ["x" * 100_000, "=" * 1000, f"{'k' * 100_000}=[", f"{'k' * 100_000}=1", f"steps=[{'x' * 10_000}]"]


@pytest.mark.parametrize("word", LONG, ids=len)
def test_messages_cut_long_words(word: str, capsys: Captured) -> None:
    assert call(["train", "--dry-run", "steps=1", word]) == 2
    assert len(capsys.readouterr().err) < 600


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a" * 10**7, "'" + "a" * 98 + "…"),
        ({"a": [1, {"b": None}], "c": 1.5}, "{'a': [1, {'b': None}], 'c': 1.5}"),
        ([], "[]"),
        ({}, "{}"),
        (10**10_000, "an integer of 33220 bits"),
        ([[i] for i in range(100)], "[[0], [1], [2], [3], [4], [5], [6], [7], [8], [9], [10], [11], [12], [13], [14], [15], [16], [17], …"),
    ],
    ids=["text", "mapping", "no list", "no mapping", "integer", "list"],
)
def test_a_value_is_cut_before_it_is_formatted(value: Any, text: str) -> None:
    assert shown(value) == text


def test_what_is_shown_of_a_value_takes_no_time() -> None:
    shared: list[Any] = ["x"]
    for _ in range(60):  # 2**60 texts
        shared = [shared, shared]
    started = time.perf_counter()
    assert len(shown(shared)) == 100
    assert time.perf_counter() - started < 1


# -- numbers ----------------------------------------------------------------------------------------------------------------

OF_RUNS = {"planner": "janus", "renderer": "janus", "judge": "scenes"}
MAY_BE_INFINITE = {"max_grad_norm", "clip_high", "sampler_gap_limit", "value_max_grad_norm"}


def numbers(model: type[BaseModel], kind: type, prefix: str = "") -> Iterator[str]:
    """The dotted keys of a model's numbers of a kind, also of those inside of ``| None`` and of nested models."""
    for name, field in model.model_fields.items():
        types = [field.annotation, *get_args(field.annotation)]
        types += [inner for each in types for inner in get_args(each)]
        if kind in types:
            yield prefix + name
        for nested in types:
            if isinstance(nested, type) and issubclass(nested, BaseModel) and nested.model_config.get("extra") != "allow":
                yield from numbers(nested, kind, f"{prefix}{name}.")


@pytest.mark.parametrize("key", [key for key in numbers(RunConfig, int) if key != "lora.targets"])
@pytest.mark.parametrize("value", ["9223372036854775808", "'9223372036854775808'", f"0x{'f' * 5000}"], ids=len)
def test_integers_that_no_tensor_can_count_are_refused(key: str, value: str) -> None:
    if key == "prompts.held_out" and value.startswith("'"):
        pytest.skip("a text is the name of a file there")
    data = {**OF_RUNS, **parse_overrides([f"{key}={value}"])}
    with pytest.raises(UsageError, match=rf"^{key}(\.|: Input should be)") as caught:
        validate(RunConfig, data)
    assert len(caught.value.message) < 200


@pytest.mark.parametrize("key", sorted({*numbers(RunConfig, float), *numbers(SftConfig, float)} - {"optimizer.betas"}))
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_settings_must_be_finite(key: str, value: float) -> None:
    model, least = (RunConfig, OF_RUNS) if key in set(numbers(RunConfig, float)) else (SftConfig, {"policy": "janus", "data": "scenes"})
    *path, last = key.split(".")
    data: Any = {last: {"plan": value} if key == "weights" else value}
    for name in reversed(path):
        data = {name: data}
    if value == math.inf and last in MAY_BE_INFINITE:
        validate(model, {**least, **data})
        return
    with pytest.raises(UsageError, match=f"^{key}"):
        validate(model, {**least, **data})


def test_the_options_of_components_must_be_finite_and_countable() -> None:
    registry = Registry()
    looked_at = 0
    for provided in registry.provided:
        component = provided.component
        if component.options is None or provided.distribution == "gotr1-toy":
            continue
        model = load(component.options)
        for key in numbers(model, float):
            if key in MAY_BE_INFINITE:
                continue
            with pytest.raises(ValidationError) as caught:
                model.model_validate({key: math.inf})
            assert (key,) in [error["loc"][:1] for error in caught.value.errors()], (component.name, key)
            looked_at += 1
    assert looked_at > 10
    with pytest.raises(UsageError, match=r"^source\.hard_share: "):
        options_of(registry.find("source", "scenes").component, {"hard_share": 10**400})
    with pytest.raises(UsageError, match=r"^algorithm\.value_width: Input should be at most"):
        options_of(registry.find("algorithm", "ppo").component, {"value_width": 2**63})
