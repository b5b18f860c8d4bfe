"""Pages that mkdocs makes of the code when it builds, so that nothing is written twice: command line, config, Python API."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from gotr1_core.cli.options import COLUMNS, option_rows, schema_of
from gotr1_core.hookspecs import KINDS, Kind
from gotr1_core.plugins import Provided, Registry, load

ROOT = Path(__file__).parents[2]
ROLE = re.compile(r":(?:class|func|meth|mod):`([^`]+)`")
# Modules told in full, beside the public names of all others.
IN_FULL = (
    *("chain", "samples", "protocols", "hookspecs", "reward", "advantages", "sampling", "rollout"),
    *("loop", "session", "checkpoint", "evaluation"),
)
# Where a component's options are written in a config.
PLACE: Mapping[Kind, str] = {"planner": "planner.", "renderer": "renderer.", "algorithm": "algorithm.", "source": "prompts.source."}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Mkdocs's hook: adds the pages."""
    for name, page in (("cli", cli), ("config", settings), ("api", api)):
        files.append(File.generated(config, f"reference/{name}.md", content=page()))
    return files


def linked(text: str) -> str:
    """Sphinx's roles, which Markdown does not know, as code; full names as links into the API page."""
    return ROLE.sub(lambda role: f"[`{role[1]}`][]" if role[1].startswith("gotr1_core.") else f"`{role[1]}`", text)


class Docstrings(griffe.Extension):
    """Docstrings in Markdown: roles become links, and the ``::`` before a drawing goes."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Griffe's hook, once for every object."""
        if obj.docstring:
            obj.docstring.value = linked(obj.docstring.value).replace("\n::\n", "\n")


# -- command line -----------------------------------------------------------------------------------------------------------


def cli() -> str:
    """Every command with its arguments and options, as Typer tells it."""
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
        "Results go to stdout, everything else to stderr. The exit status is 0, 1 where something failed, 2 where the line was wrong, "
        "130 after Ctrl-C. "
        "What `KEY=VALUE` may say is in the [configuration](config.md)."
    )
    return page.replace("**Usage**", f"{about}\n\n**Usage**", 1)


# -- config -----------------------------------------------------------------------------------------------------------------


def settings() -> str:
    """Every key of a run's and of stage one's config, and every component's options."""
    from gotr1_core.config.models import RunConfig, SftConfig

    parts = [
        "# Configuration",
        "A config is YAML, `KEY=VALUE` words, or both: a preset, then a file, then options such as `--judge`, then words, each over "
        "what comes before. An unknown key is an error that names the nearest one. `${HERE}` in a file is the file's own folder. "
        "`gotr1 config show` prints what comes of it all, with every default.",
        "A component is written by its name (`renderer: janus`), or with options beside it (`planner: {name: janus, model: PATH}`, "
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
    """A table of a model's own keys, then one for each section in it. ``page`` sets apart headings that both models have."""
    found = defaultdict(list)
    for row in option_rows(schema):
        found[row[0].rpartition(".")[0]].append(row)
    for section, rows in sorted(found.items(), key=lambda item: item[0] != ""):
        if section:
            yield f"### {section} {{ #{page}-{section.replace('.', '-')} }}"
            yield linked(about(schema, section))
        yield table(rows)


def about(schema: Mapping[str, Any], section: str) -> str:
    """What the model of a section says of itself."""
    part = schema
    for name in section.split("."):
        field = part["properties"][name]
        [model] = [kind["$ref"].rpartition("/")[2] for kind in (field, *field.get("anyOf", ())) if "$ref" in kind]
        part = schema["$defs"][model]
    return str(part.get("description", ""))


def table(rows: Iterable[Sequence[str]]) -> str:
    """Key, type, default and description, as gotr1 itself shows them."""
    cells = []
    for key, kind, default, said in rows:
        cells.append([f"`{key}`", escaped(kind), f"`{escaped(default)}`" if default else "", linked(escaped(said))])
    return "\n".join(f"| {' | '.join(row)} |" for row in [COLUMNS, ["---"] * len(COLUMNS), *cells])


def escaped(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def components(registry: Registry) -> Iterator[str]:
    """A section for every component: what it is, its options, and what a judge can score or a preset says."""
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
    """What the plugins of this repository provide, by kind."""
    return [provided for kind in KINDS for provided in registry.of_kind(kind) if provided.distribution in ours()]


def ours() -> set[str]:
    """The distributions of this repository; other plugins of who builds the site are not told."""
    return {"gotr1", *(path.parent.name for path in (ROOT / "plugins").glob("*/pyproject.toml"))}


# -- Python API -------------------------------------------------------------------------------------------------------------


def api() -> str:
    """The public names, and the modules they are from, for mkdocstrings to fill in."""
    import gotr1_core

    public = defaultdict(list)
    for name, module in sorted(gotr1_core._MODULE.items()):
        public[module].append(name)
    rows = [f"| [`{name}`][gotr1_core.{module}.{name}] | `gotr1_core.{module}` |" for name, module in sorted(gotr1_core._MODULE.items())]
    parts = [
        "# Python API",
        "Everything that the command line does can be called. `import gotr1_core` costs nothing: a name is imported when it is first used.",
        "\n".join(["| name of `gotr1_core` | from |", "|---|---|", *rows]),
        "What follows tells these names, and in full the modules that writers of plugins and readers of the code meet.",
    ]
    for module in sorted({*public, *IN_FULL}):
        chosen = "" if module in IN_FULL else f"\n    options:\n      members: {json.dumps(public[module])}"
        parts.append(f"::: gotr1_core.{module}{chosen}")
    return "\n\n".join(parts) + "\n"
