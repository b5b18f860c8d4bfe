"""The options of components: as rows, and after the --help of a command that names them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from typer.core import TyperCommand

from gotr1_core.cli.common import registry
from gotr1_core.cli.tables import table
from gotr1_core.errors import Gotr1Error
from gotr1_core.hookspecs import Component, Kind

COLUMNS = ("key", "type", "default", "description")
_GIVEN = "gotr1_core.cli.options"


class ComponentCommand(TyperCommand):
    """A command whose help goes on with the options of the components that its line names."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keeps what was given, which --help otherwise does not wait for."""
        ctx.meta[_GIVEN], _, _ = self.make_parser(ctx).parse_args(args=list(args))
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The command's own help, then a table for each component."""
        shown = [_help(kind, name, key) for kind, name, key in _named(ctx.meta.get(_GIVEN, {}))]  # first: a wrong name shows no help
        super().format_help(ctx, formatter)
        formatter.write("\n".join(shown))


def _named(given: Mapping[str, Any]) -> Iterator[tuple[Kind, str, str]]:
    """Kind, name and key in the config of every component that options or KEY=VALUE words name."""
    words = [word for word in (given.get("config"), *(given.get("override") or ())) if word and "=" in word]
    said = {key: value for key, value in given.items() if value}
    if words:
        from gotr1_core.config.merge import merge, overrides

        said = merge(said, overrides(words))
    source = said["prompts"].get("source") if isinstance(said.get("prompts"), Mapping) else None
    policy: Kind = "renderer" if said.get("kind") == "renderer" else "planner"
    places: list[tuple[str, Kind, Any]] = [
        ("planner", "planner", said.get("planner")),
        ("renderer", "renderer", said.get("renderer")),
        ("judge", "judge", said.get("judge")),
        ("algorithm", "algorithm", said.get("algorithm")),
        ("policy", policy, said.get("policy")),
        ("data", "source", said.get("data")),
        ("prompts.source", "source", source),
    ]
    for key, kind, value in places:
        for part in value if isinstance(value, list | tuple) else [value]:
            name = part.get("name") if isinstance(part, Mapping) else part
            if isinstance(name, str) and not name.endswith(".jsonl"):
                yield kind, name, key


def _help(kind: Kind, name: str, key: str) -> str:
    found = registry().find(kind, name)
    title = f"options of {kind} {name} ({found.distribution} {found.version})"
    schema = schema_of(found.component)
    rows = option_rows(schema, f"{key}.") if schema else []
    return table(COLUMNS, rows, title) if rows else f"{kind} {name} ({found.distribution} {found.version}) has no options\n"


def schema_of(component: Component) -> dict[str, Any] | None:
    """The JSON Schema of a component's options; None where it has none."""
    if component.options is None:
        return None
    from pydantic.errors import PydanticInvalidForJsonSchema

    from gotr1_core.plugins import load

    try:
        schema: dict[str, Any] = load(component.options).model_json_schema()
    except (AttributeError, PydanticInvalidForJsonSchema) as error:
        raise Gotr1Error(
            f"the options of {component.kind} {component.name!r} have no JSON Schema: {error}", hint="tell the plugin's author"
        ) from error
    return schema


def option_rows(schema: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str, str, str]]:
    """Key, type, default and description of every option; a nested model's have dotted keys."""
    return list(_rows(schema, prefix, schema.get("$defs", {}), {}))


def _rows(
    schema: Mapping[str, Any], prefix: str, known: Mapping[str, Any], defaults: Mapping[str, Any]
) -> Iterator[tuple[str, str, str, str]]:
    for name, part in schema.get("properties", {}).items():
        own = defaults.get(name, part.get("default", ...))
        inner = _inner(part, known)
        if inner is None or own is None:
            missing = "required" if name in schema.get("required", ()) else ""
            yield f"{prefix}{name}", _type(part, known), missing if own is ... else _shown(own), part.get("description", "")
        if inner is not None:
            yield from _rows(inner, f"{prefix}{name}.", known, own if isinstance(own, Mapping) else {})


def _inner(part: Mapping[str, Any], known: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The model that an option is, or may be."""
    for kind in (part, *part.get("allOf", ()), *part.get("anyOf", ())):
        found = known.get(kind.get("$ref", "").rpartition("/")[2], {})
        if "properties" in found:
            return found  # type: ignore[no-any-return]
    return None


_LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def _type(part: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    """A JSON Schema in a few words."""
    if "$ref" in part:
        return _type(known.get(part["$ref"].rpartition("/")[2], {}), known)
    if "enum" in part or "const" in part:
        return " | ".join(_shown(value) for value in part.get("enum", [part.get("const")]))
    several: Sequence[Mapping[str, Any]] = part.get("anyOf") or part.get("oneOf") or part.get("allOf") or ()
    if several:
        return " | ".join(dict.fromkeys(_type(kind, known) for kind in several))
    kind = part.get("type", "anything")
    if kind == "array":
        items = part.get("prefixItems") or ([part["items"]] if part.get("items") else [])
        return f"list of {', '.join(_type(item, known) for item in items)}" if items else "list"
    if kind == "object":
        return "mapping"
    limits = ", ".join(f"{sign} {_shown(part[limit])}" for limit, sign in _LIMITS.items() if limit in part)
    return f"{part.get('format', kind)} {limits}".rstrip()


def _shown(value: Any) -> str:
    """A value as a config says it."""
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
