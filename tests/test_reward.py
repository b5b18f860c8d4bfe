"""Reward expressions, compared with plain Python, and the expressions that are refused."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from gotr1_core.errors import Gotr1Error, UsageError
from gotr1_core.reward import MAX_DEPTH, MAX_LENGTH, Expression

NAN = math.nan
NAMES = ("pi", "sem", "spa", "qwen2.5-vl.ri")
Values = dict[str, float]


def finite(value: float | complex) -> float:
    return value if isinstance(value, float) and math.isfinite(value) else NAN


def times(a: float, b: float) -> float:
    return 0.0 if a == 0 or b == 0 else finite(a * b)


def over(a: float, b: float) -> float:
    if a == 0:
        return 0.0
    return NAN if b == 0 else finite(a / b)


def power(a: float, b: float) -> float:
    if math.isnan(a) or math.isnan(b):
        return NAN
    try:
        return finite(float(a) ** float(b))
    except (OverflowError, ZeroDivisionError):
        return NAN


def strict(function: Callable[..., float]) -> Callable[..., float]:
    """Returns NaN if any argument is NaN."""
    return lambda *values: NAN if any(map(math.isnan, values)) else finite(function(*values))


def mean(*values: float) -> float:
    return sum(values) / len(values)


def clip(x: float, low: float, high: float) -> float:
    return min(max(x, low), high)


BINARY: dict[str, tuple[int, Callable[[float, float], float]]] = {
    "+": (1, strict(lambda a, b: a + b)),
    "-": (1, strict(lambda a, b: a - b)),
    "*": (2, times),
    "/": (2, over),
    "**": (4, power),
}
FUNCTIONS: dict[str, Callable[..., float]] = {
    "min": strict(lambda *values: min(list(values))),
    "max": strict(lambda *values: max(list(values))),
    "mean": strict(mean),
    "clip": strict(clip),
}


@dataclass(frozen=True)
class Oracle:
    """An expression as text with its precedence, and its value in plain Python."""

    text: str
    level: int
    value: Callable[[Values], float]

    def at(self, level: int) -> str:
        """The text, in parentheses only where precedence needs them."""
        return self.text if self.level >= level else f"({self.text})"


def leaf(item: str | float) -> Oracle:
    if isinstance(item, str):
        return Oracle(item, 5, lambda values: values[item])
    return Oracle(repr(item), 5, lambda values: item)


def negated(inner: Oracle) -> Oracle:
    return Oracle(f"-{inner.at(3)}", 3, lambda values: -inner.value(values))


def binary(sign: str, left: Oracle, right: Oracle) -> Oracle:
    level, function = BINARY[sign]
    # ** groups to the right and takes a minus on its right; the others group to the left.
    texts = (left.at(5), right.at(3)) if sign == "**" else (left.at(level), right.at(level + 1))
    return Oracle(f"{texts[0]} {sign} {texts[1]}", level, lambda values: function(left.value(values), right.value(values)))


def called(name: str, *arguments: Oracle) -> Oracle:
    text = f"{name}({', '.join(argument.text for argument in arguments)})"
    return Oracle(text, 5, lambda values: FUNCTIONS[name](*(argument.value(values) for argument in arguments)))


def grow(inner: st.SearchStrategy[Oracle]) -> st.SearchStrategy[Oracle]:
    several = st.lists(inner, min_size=1, max_size=3)
    return (
        st.builds(negated, inner)
        | st.builds(binary, st.sampled_from(sorted(BINARY)), inner, inner)
        | st.builds(lambda name, items: called(name, *items), st.sampled_from(["min", "max", "mean"]), several)
        | st.builds(lambda *items: called("clip", *items), inner, inner, inner)
    )


numbers = st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0, 1e-3, 1e200])
oracles = st.recursive((st.sampled_from(NAMES) | numbers).map(leaf), grow, max_leaves=8)
scores = st.sampled_from([0.0, 1.0, 0.25, 0.5]) | st.floats(0, 1, allow_subnormal=False)
tables = st.lists(st.fixed_dictionaries(dict.fromkeys(NAMES, scores)), min_size=1, max_size=4)
tables_with_nan = st.lists(st.fixed_dictionaries(dict.fromkeys(NAMES, scores | st.just(NAN))), min_size=1, max_size=4)


def columns(table: list[Values]) -> dict[str, Tensor]:
    return {name: torch.tensor([row[name] for row in table], dtype=torch.float64) for name in NAMES}


def run(text: str, **values: float) -> float:
    return float(Expression.parse(text).evaluate({name: torch.tensor(value) for name, value in values.items()}))


def same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))


def assert_agrees(oracle: Oracle, table: list[Values]) -> None:
    rewards = Expression.parse(oracle.text).evaluate(columns(table))
    assert rewards.shape == (len(table),) and rewards.dtype == torch.float64
    assert not rewards.isinf().any()
    for total, row in zip(rewards.tolist(), table, strict=True):
        want = oracle.value(row)
        assert same(total, want) or total == pytest.approx(want, rel=1e-9, abs=1e-300), (oracle.text, row)


@settings(deadline=None)
@given(oracles, tables)
def test_plain_python_agrees(oracle: Oracle, table: list[Values]) -> None:
    assert_agrees(oracle, table)


@settings(deadline=None)
@given(oracles, tables_with_nan)
def test_plain_python_agrees_on_missing_scores(oracle: Oracle, table: list[Values]) -> None:
    assert_agrees(oracle, table)


@settings(deadline=None)
@given(oracles, tables_with_nan, tables_with_nan, st.sets(st.sampled_from(NAMES)))
def test_settled_is_zero_whatever_comes(oracle: Oracle, table: list[Values], later: list[Values], have: set[str]) -> None:
    expression = Expression.parse(oracle.text)
    size = min(len(table), len(later))
    now, then = columns(table[:size]), columns(later[:size])
    known = {name: now[name] for name in have}
    settled = expression.settled(known, (size,))
    assert settled.dtype == torch.bool and settled.shape == (size,)
    rewards = expression.evaluate({name: known.get(name, then[name]) for name in NAMES})
    assert (rewards[settled] == 0).all()
    # And it is as sharp as evaluation on NaN.
    blank = torch.full((size,), NAN)
    assert torch.equal(settled, expression.evaluate({name: known.get(name, blank) for name in NAMES}) == 0)


def test_the_reward_of_the_method() -> None:
    expression = Expression.parse("pi * (sem + spa) / 2 * ri")
    assert expression.names == {"pi", "sem", "spa", "ri"}
    assert expression.text == "pi * (sem + spa) / 2 * ri"
    values = {name: torch.rand(2, 3, 4) for name in expression.names}
    want = values["pi"].double() * (values["sem"].double() + values["spa"].double()) / 2 * values["ri"].double()
    torch.testing.assert_close(expression.evaluate(values), want)
    plan_only = {"sem": torch.tensor([0.0, 0.0, 0.5]), "spa": torch.tensor([0.0, 0.5, 0.0])}
    assert expression.settled(plan_only, (3,)).tolist() == [True, False, False]
    assert expression.settled({"ri": torch.tensor([0.0, 1.0])}, (2,)).tolist() == [True, False]
    assert expression.settled({}, (2,)).tolist() == [False, False]


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("1 + 2 * 3", 7),
        ("(1 + 2) * 3", 9),
        ("8 / 4 / 2", 1),
        ("8 - 4 - 2", 2),
        ("2 ** 3 ** 2", 512),
        ("-2 ** 2", -4),
        ("2 ** -1", 0.5),
        ("--2", 2),
        ("2 * -3", -6),
        ("min(3, 1, 2) + max(3, 1, 2) * 10 + mean(1, 2, 6) * 100", 331),
        ("clip(5, 0, 1) + clip(-5, 0, 1) + clip(0.5, 0, 1)", 1.5),
        ("1e-1 + .5 + 2.", 2.6),
        ("\n1\t+ 2 ", 3),
        ("0 ** 0", 1),
    ],
)
def test_arithmetic(text: str, want: float) -> None:
    assert run(text) == pytest.approx(want)


def test_names() -> None:
    assert Expression.parse("qwen-vl.pi * internvl.pi2 - gpt-4o.x_1 + qwen2.5-vl.pi").names == {
        "qwen-vl.pi",
        "internvl.pi2",
        "gpt-4o.x_1",
        "qwen2.5-vl.pi",
    }
    assert Expression.parse("pi-sem").names == {"pi", "sem"}  # no dot: a minus
    assert Expression.parse("a - b.c").names == {"a", "b.c"}
    assert Expression.parse("minimum * min(clips, 1)").names == {"minimum", "clips"}
    assert Expression.parse("a-1.5").names == {"a"}


@pytest.mark.parametrize(
    ("text", "values", "want"),
    [
        ("a * b", {"a": NAN, "b": 1.0}, NAN),
        ("a + b", {"a": NAN, "b": 0.0}, NAN),
        ("a - a", {"a": NAN}, NAN),
        ("-a", {"a": NAN}, NAN),
        ("a * b", {"a": 0.0, "b": NAN}, 0),
        ("a * b", {"a": NAN, "b": 0.0}, 0),
        ("(b - b) * a", {"a": NAN, "b": 0.5}, 0),
        ("a * b + a", {"a": NAN, "b": 0.0}, NAN),
        ("a / b", {"a": 0.0, "b": NAN}, 0),
        ("a / b", {"a": NAN, "b": 0.0}, NAN),
        ("a / b", {"a": 1.0, "b": 0.0}, NAN),
        ("a / b", {"a": -1.0, "b": 0.0}, NAN),
        ("a / b", {"a": 0.0, "b": 0.0}, 0),  # else 0 / nan could not be 0 either
        ("b / (a / b)", {"a": 1.0, "b": 0.0}, 0),
        ("a ** 2", {"a": 0.0}, 0),
        ("a ** 2 * b", {"a": 0.0, "b": NAN}, 0),
        ("a ** b", {"a": 0.0, "b": NAN}, NAN),
        ("a ** 0", {"a": NAN}, NAN),
        ("1 ** a", {"a": NAN}, NAN),
        ("a ** -1", {"a": 0.0}, NAN),
        ("(-1) ** 0.5", {}, NAN),
        ("1e300 * 1e300", {}, NAN),
        ("1e300 * 1e300 * 0", {}, 0),
        ("min(a, b)", {"a": NAN, "b": 0.0}, NAN),
        ("max(a, b)", {"a": 1.0, "b": NAN}, NAN),
        ("mean(a, b)", {"a": 1.0, "b": NAN}, NAN),
        ("min(a)", {"a": NAN}, NAN),
        ("clip(a, 0, 1)", {"a": NAN}, NAN),
        ("clip(1, a, 1)", {"a": NAN}, NAN),
        ("clip(1, 0, a)", {"a": NAN}, NAN),
        ("a * 1", {"a": math.inf}, NAN),
        ("a * 0", {"a": math.inf}, 0),
    ],
)
def test_nan_policy(text: str, values: dict[str, float], want: float) -> None:
    assert same(run(text, **values), want)


MALFORMED = {
    "": 1,
    "   ": 4,
    "pi *": 5,
    "* pi": 1,
    "+pi": 1,
    "pi sem": 4,
    "2pi": 2,
    "(pi": 4,
    "pi)": 3,
    "()": 2,
    "pi ** * 2": 7,
    "pi // 2": 5,
    "pi % 2": 4,
    "pi, sem": 3,
    "pi = 2": 4,
    "pi\n\n+ * sem": 7,
    "min": 4,
    "min()": 5,
    "min(1,)": 7,
    "min(1": 6,
    "clip(1, 2)": 1,
    "1 + clip(1, 2, 3, 4)": 5,
    "1e999": 1,
    "1.2.3": 4,
    "a.": 2,
    "a..b": 2,
    "a.-b": 2,
    "é": 1,
    "pi²": 3,
    "٣": 1,
    "_a": 1,
    "pi(1)": 1,
    "1(2)": 2,
    "(pi)(1)": 5,
    "pi.__class__": 3,
    "pi.x()": 1,
    "__import__('os')": 1,
    "[].x": 1,
    "lambda: 1": 7,
    "pi if pi else 1": 4,
    "'a'": 1,
    "min(*pi)": 5,
    "\x00": 1,
}


@pytest.mark.parametrize("text", MALFORMED)
def test_malformed(text: str) -> None:
    with pytest.raises(UsageError, match="malformed") as caught:
        Expression.parse(text)
    assert str(caught.value).endswith(f"at position {MALFORMED[text]}")
    shown, caret = (caught.value.hint or "").split("\n")
    assert caret.index("^") == MALFORMED[text] - 1
    assert shown.isprintable()


def test_the_caret_of_a_long_expression() -> None:
    text = "pi + " * 50 + "! + " + "pi + " * 50 + "pi"
    with pytest.raises(UsageError) as caught:
        Expression.parse(text)
    shown, caret = (caught.value.hint or "").split("\n")
    assert shown[caret.index("^")] == "!" and len(shown) < 100


@settings(deadline=None)
@given(st.text(alphabet="abpi019.e+-*/(), _min", max_size=30) | st.text(max_size=20))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        expression = Expression.parse(text)
    except UsageError:
        return
    assert not any(part.startswith("_") for name in expression.names for part in name.split("."))
    total = expression.evaluate({name: torch.tensor(0.5) for name in expression.names})
    assert not total.isinf().any()


@pytest.mark.parametrize("pattern", ["({})", "-{}", "2**{}", "min({})", "1*(1+{})"])
def test_depth_is_limited(pattern: str) -> None:
    def nest(levels: int) -> str:
        text = "a"
        for _ in range(levels):
            text = pattern.format(text)
        return text

    assert Expression.parse(nest(MAX_DEPTH - 1)).names == {"a"}
    with pytest.raises(UsageError, match="nested deeper"):
        Expression.parse(nest(MAX_DEPTH))
    with pytest.raises(UsageError):
        Expression.parse(nest(100_000))


def test_length_is_limited_but_a_long_sum_is_not_deep() -> None:
    assert run("+".join(["1"] * (MAX_LENGTH // 2))) == MAX_LENGTH // 2
    with pytest.raises(UsageError, match="too long"):
        Expression.parse("1" * (MAX_LENGTH + 1))


def test_check_lists_what_is_offered_and_the_nearest() -> None:
    expression = Expression.parse("pi * semm * zzz")
    expression.check(["pi", "semm", "zzz", "more"])
    with pytest.raises(UsageError) as caught:
        expression.check(["spa", "sem", "pi"])
    assert "'semm'" in caught.value.message and "'zzz'" in caught.value.message and "'pi'," not in caught.value.message
    hint = caught.value.hint or ""
    assert "did you mean 'sem' for 'semm'?" in hint and "offered: pi, sem, spa" in hint
    with pytest.raises(UsageError) as caught:
        Expression.parse("pi").check([])
    assert "nothing" in (caught.value.hint or "")
    with pytest.raises(UsageError) as caught:
        Expression.parse("pi-vl.sem").check(["pi", "spa"])
    assert "spaces around '-'" in (caught.value.hint or "")


def test_evaluate_refuses_missing_names_and_mixed_shapes() -> None:
    with pytest.raises(UsageError, match="'b'"):
        Expression.parse("a + b").evaluate({"a": torch.zeros(2)})
    with pytest.raises(ValueError, match="shapes"):
        Expression.parse("a + b").evaluate({"a": torch.zeros(2), "b": torch.zeros(1)})
    with pytest.raises(ValueError, match="shape"):
        Expression.parse("a").settled({"a": torch.zeros(2)}, (3,))


def test_shapes_and_gradients() -> None:
    score = torch.rand(2, 3, requires_grad=True)
    for text in ("a", "a * 2", "1", "min(1, a)", "2 ** a"):
        total = Expression.parse(text).evaluate({"a": score, "unused": torch.zeros(2, 3)})
        assert total.shape == (2, 3) and not total.requires_grad
        total += 1  # the caller's own: no shared memory
    assert Expression.parse("a").evaluate({"a": torch.zeros(0, 3)}).shape == (0, 3)
    assert Expression.parse("1").evaluate({}).shape == ()
    assert Expression.parse("0").settled({}, (2, 2)).all()
    own = torch.ones(2, dtype=torch.float64)
    Expression.parse("a").evaluate({"a": own}).add_(1)
    assert own.tolist() == [1, 1]


def test_expressions_compare_and_pickle() -> None:
    expression = Expression.parse("pi * 2")
    assert pickle.loads(pickle.dumps(expression)) == expression == Expression.parse("pi * 2")


def test_parsing_does_not_import_torch() -> None:
    code = "import sys; from gotr1_core.reward import Expression; Expression.parse('a*2').check(['a']); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_errors_carry_message_hint_and_code() -> None:
    error = UsageError("no", hint="try")
    assert (str(error), error.message, error.hint, error.code, Gotr1Error("no").code) == ("no", "no", "try", 2, 1)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is UsageError and (again.message, again.hint) == ("no", "try")
