"""The options of components: as rows of a table, and in the --help of a command whose line names components."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from typer.core import TyperCommand

from gotr1_core.cli.common import registry
from gotr1_core.cli.tables import format_table
from gotr1_core.errors import Gotr1Error
from gotr1_core.hookspecs import Component, Kind

COLUMNS = ("key", "type", "default", "description")
_PARAMS = "gotr1_core.cli.options"  # the key of a line's parsed parameters in Typer's context


class ComponentCommand(TyperCommand):
    """A command whose help also shows the options of the components that its line names."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keeps the line's parameters for :meth:`format_help`, because Typer prints the help before it parses the rest."""
        ctx.meta[_PARAMS], _, _ = self.make_parser(ctx).parse_args(args=list(args))
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Writes the command's own help, then a table for each component."""
        # Tables first: a wrong name is an error, and no help is printed.
        tables = [_options_table(kind, name, key) for kind, name, key in _named_components(ctx.meta.get(_PARAMS, {}))]
        super().format_help(ctx, formatter)
        formatter.write("\n".join(tables))


def _named_components(params: Mapping[str, Any]) -> Iterator[tuple[Kind, str, str]]:
    """Yields kind, name and config key of every component that options or KEY=VALUE words name."""
    words = [word for word in (params.get("config"), *(params.get("override") or ())) if word and "=" in word]
    settings = {key: value for key, value in params.items() if value}
    if words:
        from gotr1_core.config.merge import merge, parse_overrides

        settings = merge(settings, parse_overrides(words))
    source = settings["prompts"].get("source") if isinstance(settings.get("prompts"), Mapping) else None
    policy: Kind = "renderer" if settings.get("kind") == "renderer" else "planner"
    places: list[tuple[str, Kind, Any]] = [
        ("planner", "planner", settings.get("planner")),
        ("renderer", "renderer", settings.get("renderer")),
        ("judge", "judge", settings.get("judge")),
        ("algorithm", "algorithm", settings.get("algorithm")),
        ("policy", policy, settings.get("policy")),
        ("data", "source", settings.get("data")),
        ("prompts.source", "source", source),
    ]
    for key, kind, value in places:
        for component in value if isinstance(value, list | tuple) else [value]:
            name = component.get("name") if isinstance(component, Mapping) else component
            if isinstance(name, str) and not {".", "/"} & {*name}:
                yield kind, name, key


def _options_table(kind: Kind, name: str, key: str) -> str:
    provided = registry().find(kind, name)
    title = f"options of {kind} {name} ({provided.distribution} {provided.version})"
    schema = schema_of(provided.component)
    rows = option_rows(schema, f"{key}.") if schema else []
    return format_table(COLUMNS, rows, title) if rows else f"{kind} {name} ({provided.distribution} {provided.version}) has no options\n"


def schema_of(component: Component) -> dict[str, Any] | None:
    """Returns the JSON Schema of a component's options; None if it has no options.

    Raises:
        Gotr1Error: the class of the options cannot be described as JSON Schema.
    """
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
    """Returns key, type, default and description of every option. Options of a nested model have dotted keys."""
    return list(_rows(schema, prefix, schema.get("$defs", {}), {}))


def _rows(
    schema: Mapping[str, Any], prefix: str, definitions: Mapping[str, Any], defaults: Mapping[str, Any]
) -> Iterator[tuple[str, str, str, str]]:
    for name, option in schema.get("properties", {}).items():
        default = defaults.get(name, option.get("default", ...))
        model = _nested_model(option, definitions)
        if model is None or default is None:
            if_missing = "required" if name in schema.get("required", ()) else ""
            default_text = if_missing if default is ... else _as_in_config(default)
            yield f"{prefix}{name}", _type(option, definitions), default_text, option.get("description", "")
        if model is not None:
            yield from _rows(model, f"{prefix}{name}.", definitions, default if isinstance(default, Mapping) else {})


def _nested_model(option: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Returns the schema of the model that an option is, or may be; None if it is no model."""
    for schema in (option, *option.get("allOf", ()), *option.get("anyOf", ())):
        definition = definitions.get(schema.get("$ref", "").rpartition("/")[2], {})
        if "properties" in definition:
            return definition  # type: ignore[no-any-return]
    return None


_LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def _type(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """Describes the type in a JSON Schema in a few words."""
    if "$ref" in schema:
        return _type(definitions.get(schema["$ref"].rpartition("/")[2], {}), definitions)
    if "enum" in schema or "const" in schema:
        return " | ".join(_as_in_config(value) for value in schema.get("enum", [schema.get("const")]))
    alternatives: Sequence[Mapping[str, Any]] = schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf") or ()
    if alternatives:
        return " | ".join(dict.fromkeys(_type(alternative, definitions) for alternative in alternatives))
    kind = schema.get("type", "anything")
    if kind == "array":
        items = schema.get("prefixItems") or ([schema["items"]] if schema.get("items") else [])
        return f"list of {', '.join(_type(item, definitions) for item in items)}" if items else "list"
    if kind == "object":
        return "mapping"
    limits = ", ".join(f"{sign} {_as_in_config(schema[limit])}" for limit, sign in _LIMITS.items() if limit in schema)
    return f"{schema.get('format', kind)} {limits}".rstrip()


def _as_in_config(value: Any) -> str:
    """Writes a value as a config file does."""
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
