"""Reward expressions: `pi * (sem + spa) / 2 * ri`, a line of a config that makes a reward of named scores.

    expression = term (("+" | "-") term)*           power = atom ("**" unary)?
    term       = unary (("*" | "/") unary)*         atom  = number | name | "(" expression ")"
    unary      = "-" unary | power                          | function "(" expression ("," expression)* ")"

Precedence is Python's. Functions are min, max, mean (of one or more) and clip(x, low, high). A name is letters, digits and `_`, beginning
with a letter; a judge's name may stand before it with a dot, and may contain `-` and `.`: `qwen2.5-vl.pi`. (So write spaces around a minus
before a dotted name.) Text is parsed here and run by a small stack machine: it is never Python, and cannot call or reach anything.

Missing scores are NaN, and so is a reward that needs one, with one exception: a factor of 0 (also a numerator of 0) makes the product 0
whatever the rest. Nothing is ever infinite: a division by 0, an overflow or a root of a negative number is NaN, a reward that could not be
had. 0/0 is 0, because the numerator already decides.
"""

from __future__ import annotations

import difflib
import functools
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn

from gotr1_core.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

MAX_LENGTH: Final = 2000
MAX_DEPTH: Final = 50
FUNCTIONS: Final[Mapping[str, int | None]] = {"min": None, "max": None, "mean": None, "clip": 3}
"""The functions and how many arguments each takes; None: one or more."""

_TOKEN: Final = re.compile(
    r"""(?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)
      | (?P<name>[A-Za-z]\w*(?:(?:[.-][A-Za-z0-9]\w*)*\.[A-Za-z]\w*)?)
      | (?P<sign>\*\*|[-+*/(),])""",
    re.ASCII | re.VERBOSE,
)


@dataclass(frozen=True)
class _Token:
    kind: str  # "number", "name", "sign" or "end"
    text: str
    at: int


@dataclass(frozen=True)
class _Step:
    """One step of the stack machine: push a number or a score, or replace the top `arity` values by a result."""

    kind: str  # "number", "name", an operator, "negate" or a function
    value: float = 0.0
    name: str = ""
    arity: int = 0


@dataclass(frozen=True)
class Expression:
    """A parsed reward expression. `text` is as written, `names` the scores it needs. Only evaluating it needs torch."""

    text: str
    names: frozenset[str]
    _steps: tuple[_Step, ...]

    @classmethod
    def parse(cls, text: str) -> Expression:
        """Reads an expression.

        Raises:
            UsageError: it is malformed, longer than `MAX_LENGTH` or nested deeper than `MAX_DEPTH`. The hint points at the place.
        """
        steps = _Parser(text).steps()
        return cls(text, frozenset(step.name for step in steps if step.kind == "name"), steps)

    def check(self, offered: Iterable[str]) -> None:
        """Checks that every name is offered.

        Raises:
            UsageError: some are not. The message lists them, the hint the nearest names and all that is offered.
        """
        known = sorted(set(offered))
        unknown = sorted(self.names.difference(known))
        if not unknown:
            return
        hints = [hint for name in unknown if (hint := _nearest(name, known))]
        hints.append(f"offered: {', '.join(known) or 'nothing'}")
        noun = "score" if len(unknown) == 1 else "scores"
        raise UsageError(f"unknown {noun} {', '.join(map(repr, unknown))} in reward {self.text!r}", hint="; ".join(hints))

    def evaluate(self, scores: Mapping[str, Tensor]) -> Tensor:
        """The rewards, elementwise, float64 ``[*S]`` and without gradient, each finite or NaN.

        ``scores`` are tensors of one shape ``[*S]``, for every name of the expression; others are ignored. One that could not be had is NaN
        (an infinite one counts as NaN). Without names in the expression, the result has the first score's shape, or is a scalar.

        Raises:
            UsageError: a name without scores.
            ValueError: scores of different shapes.
        """
        self.check(scores)
        needed = {name: scores[name] for name in sorted(self.names)} or dict(list(scores.items())[:1])
        shapes = {tuple(score.shape) for score in needed.values()}
        if len(shapes) > 1:
            raise ValueError(f"scores of different shapes: { {name: tuple(score.shape) for name, score in needed.items()} }")
        return _run(self._steps, needed, shapes.pop() if shapes else ())

    def settled(self, scores: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
        """True where a sample's reward is exactly 0 whatever the missing scores turn out to be.

        Why this is sound: missing scores are set to NaN, and every step but two gives NaN if it sees one. The two are a product with a
        factor 0 and a quotient with a numerator 0, which are 0 for *every* other operand (finite, NaN, even 0). So a reward of 0 here
        depends on no missing score.

        ``scores`` are what is known so far, NaN where it could not be had; names may be missing. They have the shape ``[*S]``, and so has
        the result, bool. False does not mean that the reward is not 0.

        Raises:
            ValueError: scores of another shape.
        """
        import torch

        known = {name: scores[name] for name in sorted(self.names) if name in scores}
        for name, score in known.items():
            if tuple(score.shape) != tuple(shape):
                raise ValueError(f"score {name!r} has shape {tuple(score.shape)}, not {tuple(shape)}")
        device = next((score.device for score in (known or scores).values()), None)
        missing = torch.full(shape, torch.nan, dtype=torch.float64, device=device)
        return _run(self._steps, {name: known.get(name, missing) for name in self.names}, tuple(shape)) == 0


class _Parser:
    """A recursive-descent parser that writes the steps of the stack machine in order."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = self._tokenize()
        self._index = 0
        self._depth = 0
        self._steps: list[_Step] = []

    def steps(self) -> tuple[_Step, ...]:
        """The whole text as steps of the stack machine."""
        self._expression()
        if self._token.kind != "end":
            self._fail("expected an operator or the end")
        return tuple(self._steps)

    def _tokenize(self) -> list[_Token]:
        if len(self._text) > MAX_LENGTH:
            raise UsageError(f"a reward expression of {len(self._text)} characters is too long", hint=f"at most {MAX_LENGTH}")
        tokens: list[_Token] = []
        at = 0
        while at < len(self._text):
            if self._text[at].isspace():
                at += 1
                continue
            match = _TOKEN.match(self._text, at)
            if match is None:
                self._fail(f"unexpected character {self._text[at]!r}", at)
            tokens.append(_Token(match.lastgroup or "", match.group(), at))
            at = match.end()
        return [*tokens, _Token("end", "", len(self._text))]

    @property
    def _token(self) -> _Token:
        return self._tokens[self._index]

    def _accept(self, *signs: str) -> str | None:
        """Steps over one of these signs if it comes next."""
        token = self._token
        if token.kind != "sign" or token.text not in signs:
            return None
        self._index += 1
        return token.text

    def _expect(self, sign: str, what: str) -> None:
        if not self._accept(sign):
            self._fail(what)

    def _expression(self) -> None:
        self._term()
        while sign := self._accept("+", "-"):
            self._term()
            self._steps.append(_Step(sign, arity=2))

    def _term(self) -> None:
        self._unary()
        while sign := self._accept("*", "/"):
            self._unary()
            self._steps.append(_Step(sign, arity=2))

    def _unary(self) -> None:
        # Every recursion comes through here, so this is where depth is counted.
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._fail(f"nested deeper than {MAX_DEPTH}")
        if self._accept("-"):
            self._unary()
            self._steps.append(_Step("negate", arity=1))
        else:
            self._power()
        self._depth -= 1

    def _power(self) -> None:
        self._atom()
        if self._accept("**"):
            self._unary()
            self._steps.append(_Step("**", arity=2))

    def _atom(self) -> None:
        token = self._token
        if token.kind == "number":
            self._index += 1
            value = float(token.text)
            if not math.isfinite(value):
                self._fail("number too large", token.at)
            self._steps.append(_Step("number", value=value))
        elif token.kind == "name":
            self._index += 1
            self._name(token)
        elif self._accept("("):
            self._expression()
            self._expect(")", f"expected ')' for the '(' at position {token.at + 1}")
        else:
            self._fail("expected a name, a number or '('")

    def _name(self, token: _Token) -> None:
        if token.text in FUNCTIONS:
            self._call(token)
        elif self._token.text == "(":
            self._fail(f"{token.text!r} is not a function (those are {', '.join(FUNCTIONS)})", token.at)
        else:
            self._steps.append(_Step("name", name=token.text))

    def _call(self, token: _Token) -> None:
        self._expect("(", f"expected '(' after the function {token.text!r}")
        self._expression()
        count = 1
        while self._accept(","):
            self._expression()
            count += 1
        self._expect(")", f"expected ',' or ')' in the arguments of {token.text!r}")
        arity = FUNCTIONS[token.text]
        if arity is not None and count != arity:
            self._fail(f"{token.text!r} takes {arity} arguments, not {count}", token.at)
        self._steps.append(_Step(token.text, arity=count))

    def _fail(self, problem: str, at: int | None = None) -> NoReturn:
        at = self._token.at if at is None else at
        # A window keeps the caret under its character on narrow terminals; odd whitespace would shift it.
        start = max(0, at - 60)
        window = "".join(letter if letter.isprintable() else " " for letter in self._text[start : at + 20])
        raise UsageError(f"malformed reward expression: {problem} at position {at + 1}", hint=f"{window}\n{' ' * (at - start)}^")


def _nearest(name: str, known: list[str]) -> str:
    """A hint about one unknown name; empty if nothing is near."""
    if near := difflib.get_close_matches(name, known, n=1):
        return f"did you mean {near[0]!r} for {name!r}?"
    return f"write spaces around '-' in {name!r} to subtract" if "-" in name else ""


def _run(steps: Iterable[_Step], scores: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
    """Runs the stack machine; constants are scalars that broadcast."""
    import torch

    device = next((score.device for score in scores.values()), None)
    stack: list[Tensor] = []
    for step in steps:
        if step.kind == "number":
            stack.append(torch.tensor(step.value, dtype=torch.float64, device=device))
        elif step.kind == "name":
            stack.append(_finite(scores[step.name].detach().to(torch.float64)))
        else:
            operands = stack[-step.arity :]
            del stack[-step.arity :]
            stack.append(_finite(_apply(step.kind, operands)))
    return stack.pop().expand(shape).clone()


def _finite(values: Tensor) -> Tensor:
    return values.where(values.isfinite(), math.nan)


def _apply(kind: str, operands: list[Tensor]) -> Tensor:
    """Applies one operator or function. Operands are finite or NaN; the caller turns infinities into NaN."""
    import torch

    a, b = operands[0], operands[-1]
    if kind == "negate":
        return -a
    if kind == "+":
        return a + b
    if kind == "-":
        return a - b
    if kind == "*":
        return (a * b).where((a != 0) & (b != 0), 0.0)
    if kind == "/":
        return (a / b).where(a != 0, 0.0)
    if kind == "**":  # IEEE has nan ** 0 = 1 and 1 ** nan = 1; here a reward that needs a missing score is missing
        return (a**b).masked_fill(a.isnan() | b.isnan(), math.nan)
    if kind == "clip":  # not torch.clamp: its treatment of NaN bounds is not documented
        return torch.minimum(torch.maximum(a, operands[1]), b)
    if kind == "mean":
        return functools.reduce(torch.add, operands) / len(operands)
    return functools.reduce(torch.minimum if kind == "min" else torch.maximum, operands)  # both keep NaN
