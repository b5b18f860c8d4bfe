"""Docstrings of public functions: every one has one, with the shapes of tensors and with the errors it raises.

A function is public if its name, and its class's name, does not begin with an underscore. The core and the plugins' sources count.
tests/structure.py has the rules: what gives a shape, what raises, and which docstrings may be missing.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from structure import ROOT, assert_none, gives_shape, public, raised, raises_section, without_docstring, without_raises, without_shape


def test_every_public_function_has_a_docstring() -> None:
    """Or implements a hook, a protocol's method or a base class's method that has one (``documented_elsewhere``)."""
    assert_none(one.where for one in without_docstring(ROOT))


def test_every_public_function_gives_the_shapes_of_its_tensors() -> None:
    assert_none(one.where for one in without_shape(ROOT))


def test_every_public_function_says_which_errors_it_raises_and_when() -> None:
    """Commands aside: their docstring is the text of ``--help``."""
    assert_none(without_raises(ROOT))


# --- the measures themselves --------------------------------------------------------------------------------------

ERRORS = "class Gotr1Error(Exception): ...\nclass UsageError(Gotr1Error): ...\n"
PROTOCOLS = 'class Planner:\n    def plan(self):\n        """Plans."""\n    def silent(self): ...\n'
HOOKS = 'def gotr1_started():\n    """A run starts."""\n'


def _checkout(root: Path, source: str) -> Path:
    folder = root / "gotr1_core"
    folder.mkdir()
    for name, text in {"errors": ERRORS, "protocols": PROTOCOLS, "hookspecs": HOOKS, "mine": source}.items():
        (folder / f"{name}.py").write_text(text)
    return root


def test_what_is_documented_elsewhere_needs_no_docstring(tmp_path: Path) -> None:
    source = """
def plain(): ...
def gotr1_started(): ...
def main(): ...
class Base:
    def draw(self):
        '''Draws.'''
class Mine(Base):
    def plan(self): ...
    def silent(self): ...
    def draw(self): ...
    def _hidden(self): ...
    def gotr1_started(self): ...
class _Hidden:
    def plain(self): ...
"""
    found = without_docstring(_checkout(tmp_path, source), "gotr1_core.mine")
    assert [one.name for one in found] == ["plain", "main", "Mine.silent"]


@pytest.mark.parametrize(
    "text",
    [
        "Scores ``[B, T]``.",
        "logits [..., V]",
        "[P, N, M], NaN where unknown",
        "float64 [B, length]",
        "ids [T - 1]",
        "[len(plans) ** size, size]",
        "a scalar",
        "tensors of any shape",
        "shaped like ``x``",
    ],
)
def test_shapes_are_seen(text: str) -> None:
    assert gives_shape(text)


@pytest.mark.parametrize("text", ["numbers in [0, 1]", "The loss.", "``scores[i]``", 'words ``["steps=20"]``', "see [the page](x.md)"])
def test_what_is_no_shape_is_not_taken_for_one(text: str) -> None:
    assert not gives_shape(text)


def test_errors_that_a_function_raises_itself_are_found(tmp_path: Path) -> None:
    source = """
def _damaged() -> UsageError: ...
class Own(UsageError): ...
def direct():
    if 1:
        raise errors.UsageError("x") from None
def made():
    raise _damaged()
def own():
    raise Own
def foreign():
    raise ValueError("x")
def inner():
    def f():
        raise UsageError("x")
    return f
def again():
    try: ...
    except UsageError:
        raise
"""
    root = _checkout(tmp_path, source)
    found = {one.name: raised(root, one) for one in public(root, "gotr1_core.mine") if raised(root, one)}
    assert found == {"direct": ["UsageError"], "made": ["UsageError"], "own": ["Own"]}


def test_a_raises_section_is_read() -> None:
    docstring = """Does it.

    Raises:
        UsageError: a wrong name,
            or a wrong value: both.
        errors.Interrupted: the user
            stops it.
        Gotr1Error:

    Returns: nothing.
    """
    assert raises_section(docstring) == {
        "UsageError": "a wrong name, or a wrong value: both.",
        "Interrupted": "the user stops it.",
        "Gotr1Error": "",
    }
    assert raises_section("Refuses what is wrong with a `UsageError`.") == {}
