"""docs/reference/api.md is what ``python docs/hooks/api.py`` writes, and has what authors look up."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

import gotr1_core
from gotr1_core import hookspecs, protocols

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "reference" / "api.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def api() -> ModuleType:
    spec = importlib.util.spec_from_file_location("api", ROOT / "docs" / "hooks" / "api.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(api: ModuleType) -> None:
    assert api.page() == PAGE, "docs/reference/api.md is older than the code; write it again with: python docs/hooks/api.py"


def test_it_has_every_public_name_hook_and_protocol() -> None:
    wanted = {f"{module}.{name}" for name, module in gotr1_core._MODULE.items()}
    wanted |= {f"hookspecs.{name}" for name in vars(hookspecs) if name.startswith("gotr1_")}
    wanted |= {f"protocols.{name}" for name, kind in vars(protocols).items() if getattr(kind, "__module__", "") == protocols.__name__}
    assert len(wanted) > 60
    assert [name for name in sorted(wanted) if f'<a id="gotr1_core.{name}"></a>' not in PAGE] == []


def test_its_links_lead_to_its_own_anchors_and_no_role_is_left() -> None:
    anchors = re.findall(r'<a id="(.+?)"></a>', PAGE)
    assert len(anchors) == len(set(anchors))
    assert set(re.findall(r"\]\(#(.+?)\)", PAGE)) <= set(anchors)
    assert not re.search(r":(class|func|meth|mod|data|attr|exc):`|(?<!`)``[^`]|^(Args|Raises|Returns|Attributes):", PAGE, re.M)


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("def f(a, *, b: int = 1, **more) -> str: ...", "def f(a, *, b: int = 1, **more) -> str"),
        ("def f(self, a=1, /, *rest): ...", "def f(a=1, *rest)"),
        ("@staticmethod\ndef f(): ...", "@staticmethod\ndef f()"),
        ("@cache\ndef f(): ...", "def f()"),
        ("class A:\n    x: int\n    _y: int = 2\n    z: str = ''", "class A(x: int, z: str = '')"),
        ("class A:\n    def __init__(self, x): ...", "class A(x)"),
        ("class P(Protocol):\n    x: int", "class P(Protocol):\n    x: int"),
        ("class P(Protocol):\n    def f(self): ...", "class P(Protocol)"),
        ("X: int = 3", "X: int = 3"),
        (f"def f({'a' * 60}, {'b' * 60}): ...", f"def f(\n    {'a' * 60},\n    {'b' * 60},\n)"),
    ],
)
def test_signatures_are_read_as_written(source: str, shown: str, api: ModuleType) -> None:
    assert api.signature(ast.parse(source).body[0]) == shown


def test_a_docstring_becomes_markdown(api: ModuleType) -> None:
    docstring = """Returns ``x`` as :class:`Loss`, see :func:`other` and :class:`~gotr1_core.a.Far`.

Args:
    a, b: first
        and more.

Raises:
    UsageError: a wrong name: this one.
"""
    anchors = {"Loss": "gotr1_core.protocols.Loss"}
    assert api.plain(docstring, anchors) == (
        "Returns `x` as [`Loss`](#gotr1_core.protocols.Loss), see `other` and `gotr1_core.a.Far`.\n\n"
        "**Arguments:**\n\n- `a`, `b`: first\n  and more.\n\n**Raises:**\n\n- `UsageError`: a wrong name: this one."
    )
