"""Reads YAML that anybody may have written: a config's values and nothing else, of a size that can be handled.

A text of one kilobyte may stand for gigabytes, by aliases of aliases. So size and depth are counted while the text is read, as if every
alias were written out, before anything is built.
"""

from __future__ import annotations

import re
from copy import deepcopy
from functools import lru_cache
from typing import Any

import yaml

from gotr1_core.errors import first_line

LARGEST = 250_000
"""Most characters of a text and, with every alias written out, of its values."""
DEEPEST = 32
"""Most levels of mappings and lists inside each other."""
NO_TEXT = re.compile(r"[\0\ud800-\udfff]")
"""Characters that an escape may write, and that no path and no UTF-8 file can hold: null, and half of a surrogate pair."""
_KINDS = ("null", "bool", "int", "float", "str", "seq", "map")


class NotYaml(ValueError):
    """A text is not YAML of a config. The message says why in one short line."""


def parse_yaml(text: str) -> Any:
    """Returns the value of a YAML text: mappings, lists, texts, numbers, booleans and None.

    It is YAML 1.1 with four changes: 1e-4 is a number without a dot; dates stay text; "no" and "off" stay text; a repeated key is an error.

    Raises:
        NotYaml: it is no such text, or is larger than `LARGEST` or deeper than `DEEPEST`.
    """
    if len(text) > LARGEST:
        raise NotYaml(f"it is longer than {LARGEST} characters")
    return deepcopy(_parse(text))


@lru_cache(maxsize=64)  # a process that runs many commands reads the same preset for each
def _parse(text: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise NotYaml(f"{_cut(error.problem or first_line(error))}{mark}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise NotYaml(_cut(first_line(error))) from None


def _cut(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:119]}…"


class _Loader(yaml.SafeLoader):
    """Builds the values of `_KINDS` alone, and counts before it builds."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = 0
        self.measures: dict[int, tuple[int, int]] = {}  # by node: its characters and its levels, with aliases written out

    def compose_node(self, parent: Any, index: Any) -> Any:
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self.check_event(yaml.AliasEvent):
            earlier = super().compose_node(parent, index)
            if id(earlier) not in self.measures:  # it is still being read
                raise _problem("an alias stands inside of what it stands for", mark)
            return earlier
        self.depth += 1
        if self.depth > DEEPEST:
            raise _problem(f"it is nested deeper than {DEEPEST} levels", mark)
        node: Any = super().compose_node(parent, index)
        self.depth -= 1
        if isinstance(node, yaml.ScalarNode) and NO_TEXT.search(node.value):
            raise _problem("a text has a null character, or half of a surrogate pair", mark)
        children = [] if isinstance(node, yaml.ScalarNode) else node.value
        if isinstance(node, yaml.MappingNode):
            children = [each for pair in children for each in pair]
        measures = [self.measures[id(child)] for child in children]
        characters = 1 + (len(node.value) if isinstance(node, yaml.ScalarNode) else sum(size for size, _ in measures))
        levels = 1 + max((level for _, level in measures), default=0)
        if characters > LARGEST or levels > DEEPEST:
            raise _problem("its aliases make it too large or too deep", mark)
        self.measures[id(node)] = characters, levels
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise _problem(f"the key {_cut(key.value)!r} is there twice", key.start_mark)
            seen.add(key.value)
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, IndexError, AttributeError, OverflowError):  # scalars that look like numbers, `!!bool x`
            raise _problem(f"{_cut(node.value)!r} is not a value of {node.tag.rpartition(':')[2]}", node.start_mark) from None


def _problem(what: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=what, problem_mark=mark)


_TAG = "tag:yaml.org,2002:"
_Loader.yaml_constructors = {
    tag: build for tag, build in yaml.SafeLoader.yaml_constructors.items() if tag is None or tag.removeprefix(_TAG) in _KINDS
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.removeprefix(_TAG) not in ("timestamp", "bool", "value")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(f"{_TAG}bool", re.compile("^(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(f"{_TAG}float", re.compile(r"^[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"), list("-+.0123456789"))
