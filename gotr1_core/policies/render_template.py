"""A program that fills in one chat template, within limits of time, memory and output. :mod:`gotr1_core.policies.chat_template` starts it.

It reads a JSON object with ``template``, ``variables`` and ``limits`` from standard input, and writes one with ``text`` or ``error``.
The template is a program by whoever made the checkpoint. Its sandbox keeps it from files and from Python, but not from loops or from
texts of gigabytes. So it runs in a process of its own, which imports only Jinja. It means the same as in transformers.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from datetime import datetime
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Scope
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace


class GenerationBlocks(Extension):
    """``{% generation %}`` marks what a model writes. It changes no text."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Scope:
        """Returns what stands inside the block, with variables of its own."""
        line = next(parser.stream).lineno
        return Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class PublicNamespace(Namespace):
    """A namespace whose names do not begin with an underscore."""

    def __init__(self, **values: Any) -> None:
        super().__init__()
        for name, value in values.items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise jinja2.TemplateError(f"a namespace has no name {name!r}")
        super().__setitem__(name, value)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def render(template: str, variables: dict[str, Any], longest: int) -> str:
    """Returns the filled-in template.

    Raises:
        jinja2.TemplateError: the template is wrong, raises an error, or writes more than ``longest`` characters.
    """
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlocks, loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": lambda pattern: datetime.now().strftime(pattern),
        "namespace": PublicNamespace,
    }
    text = ""
    for piece in environment.from_string(template).generate(**variables):
        text += piece
        if len(text) > longest:
            raise jinja2.TemplateError(f"it writes more than {longest} characters")
    return text


def limit(seconds: int, memory: int) -> None:
    """Limits this process to ``seconds`` of processor time and ``memory`` bytes, as far as the system can."""
    with suppress(ImportError):  # Windows has no such limits; there only the caller's deadline holds
        import resource

        for kind, most in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, memory)):
            with suppress(OSError, ValueError):  # macOS refuses some
                resource.setrlimit(kind, (most, resource.getrlimit(kind)[1]))


def main() -> None:
    """Reads, fills in, and writes the result or what is wrong."""
    asked = json.load(sys.stdin)
    limit(asked["limits"]["seconds"], asked["limits"]["memory"])
    try:
        answer = {"text": render(asked["template"], asked["variables"], asked["limits"]["characters"])}
    except MemoryError:
        answer = {"error": "it takes too much memory"}
    except Exception as error:  # Jinja's, and whatever the template's own expressions raise
        answer = {"error": (str(error).strip().splitlines() or [type(error).__name__])[0][:200]}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
