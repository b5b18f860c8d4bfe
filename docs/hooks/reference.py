"""Makes two pages of the site from the code: command line and configuration. So nothing is written twice. `api.py` makes a third."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from gotr1_core.cli.options import COLUMNS, option_rows, schema_of
from gotr1_core.hookspecs import KINDS, Kind
from gotr1_core.plugins import Provided, Registry, load

ROOT = Path(__file__).parents[2]
ROLE = re.compile(r":(?:class|func|meth|mod):`([^`]+)`")
# Where a component's options are written in a config.
PLACE: Mapping[Kind, str] = {"planner": "planner.", "renderer": "renderer.", "algorithm": "algorithm.", "source": "prompts.source."}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """MkDocs calls it: adds the pages."""
    for name, page in (("cli", cli), ("config", settings)):
        files.append(File.generated(config, f"reference/{name}.md", content=page()))
    return files


def linked(text: str) -> str:
    """Turns Sphinx's roles into Markdown code, and roles with a full name into links to the API page."""
    return ROLE.sub(lambda role: f"[`{role[1]}`](api.md#{role[1]})" if role[1].startswith("gotr1_core.") else f"`{role[1]}`", text)


# -- command line -----------------------------------------------------------------------------------------------------------


def cli() -> str:
    """Every command with its arguments and options, as Typer documents it."""
    import typer
    from typer.cli import get_docs_for_click

    from gotr1_core.cli import common, main

    common.start([])
    group = main.commands()
    for name, plugin in common.registry().commands.items():
        if plugin.partition(":")[0] not in ours():
            del group.commands[name]
    page = get_docs_for_click(obj=group, ctx=typer.Context(group), name="gotr1", title="Command line")
    about = (
        "Results go to stdout, everything else to stderr. The exit status is 0 for success, 1 for a failure, 2 for a wrong command line, "
        "130 after Ctrl-C. "
        "The [configuration](config.md) lists every `KEY=VALUE`."
    )
    return page.replace("**Usage**", f"{about}\n\n**Usage**", 1)


# -- config -----------------------------------------------------------------------------------------------------------------


def settings() -> str:
    """Every key of the configs of a run and of stage one, and every component's options."""
    from gotr1_core.config.models import RunConfig, SftConfig

    parts = [
        "# Configuration",
        "A config is YAML, `KEY=VALUE` words, or both. The order is: a preset, a file, options such as `--judge`, words. Later ones win. "
        "An unknown key is an error that names the nearest one. `${HERE}` in a file is the file's own folder, and "
        "`${PACKAGE:NAME}` the folder of an installed Python package. "
        "`gotr1 config show` prints the complete config, with every default.",
        "A component is written as its name (`renderer: janus`), or with options beside the name (`planner: {name: janus, model: PATH}`, "
        "or the word `planner.model=PATH`).",
        "## A run",
        "For `gotr1 train`.",
        *sections(RunConfig.model_json_schema(), "run"),
        "## Stage one",
        "For `gotr1 sft`.",
        *sections(SftConfig.model_json_schema(), "sft"),
    ]
    return "\n\n".join([*parts, *components(Registry())]) + "\n"


def sections(schema: Mapping[str, Any], page: str) -> Iterator[str]:
    """A table of a model's own keys, then one for each of its sections. ``page`` makes anchors unique: both models have some headings."""
    rows_of = defaultdict(list)
    for row in option_rows(schema):
        rows_of[row[0].rpartition(".")[0]].append(row)
    for section, rows in sorted(rows_of.items(), key=lambda item: item[0] != ""):
        if section:
            yield f"### {section} {{ #{page}-{section.replace('.', '-')} }}"
            yield linked(about(schema, section))
        yield table(rows)


def about(schema: Mapping[str, Any], section: str) -> str:
    """The description of a section's model."""
    model_schema = schema
    for name in section.split("."):
        field = model_schema["properties"][name]
        [model] = [kind["$ref"].rpartition("/")[2] for kind in (field, *field.get("anyOf", ())) if "$ref" in kind]
        model_schema = schema["$defs"][model]
    return str(model_schema.get("description", ""))


def table(rows: Iterable[Sequence[str]]) -> str:
    """Key, type, default and description, as gotr1 itself shows them."""
    cells = []
    for key, kind, default, description in rows:
        cells.append([f"`{key}`", escaped(kind), f"`{escaped(default)}`" if default else "", linked(escaped(description))])
    return "\n".join(f"| {' | '.join(row)} |" for row in [COLUMNS, ["---"] * len(COLUMNS), *cells])


def escaped(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def components(registry: Registry) -> Iterator[str]:
    """A section for every component: what it is, its options, the scores of a judge, the text of a preset."""
    yield "## Components"
    yield "What the first-party plugins provide, with the options of each."
    for provided in first_party(registry):
        component = provided.component
        yield f"### {component.kind} {component.name} {{ #{component.kind}-{component.name} }}"
        yield f"{component.summary[:1].upper()}{component.summary[1:]} (`{provided.distribution}`)."
        if component.kind == "preset":
            yield f"```yaml\n{registry.preset(component.name).read_text(encoding='utf-8').strip()}\n```"
            continue
        if component.kind == "algorithm":
            yield f"[Formula, settings of the segments, metrics](../{component.name}.md)."
        if component.kind == "judge":
            offered: Mapping[str, str] = load(component.target).rewards
            yield f"Scores: {', '.join(f'`{name}` ({stage})' for name, stage in offered.items())}."
        rows = option_rows(schema_of(component) or {}, PLACE.get(component.kind, ""))
        yield table(rows) if rows else "No options."


def first_party(registry: Registry) -> list[Provided]:
    """The components that the plugins of this repository provide, by kind."""
    return [provided for kind in KINDS for provided in registry.of_kind(kind) if provided.distribution in ours()]


def ours() -> set[str]:
    """The distributions of this repository. Other plugins that are installed where the site is built are left out."""
    return {"gotr1", *(path.parent.name for path in (ROOT / "plugins").glob("*/pyproject.toml"))}
