"""``gotr1 check``"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gotr1_core.cli.common import Json, kind_of, kinds, names, registry

if TYPE_CHECKING:
    from gotr1_core.config.models import ComponentConfig, RunConfig
    from gotr1_core.hookspecs import Kind
    from gotr1_core.protocols import RewardJudge
    from gotr1_core.samples import Sample
    from gotr1_testing.finding import Finding

COMPARED, APART = 16, (0, 6, 12)
"""Prompts of a source on which judges are compared, each with examples that stand so far on: a source may have six categories in turn."""


def _names(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    return names(kind_of(ctx.params["kind"]))(incomplete)


def command(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="planner, renderer, judge or algorithm.", autocompletion=kinds)],
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `gotr1 list` shows it.", autocompletion=_names)],
    options: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="The component's options, such as model=PATH.")] = None,
    preset: Annotated[
        str | None, typer.Option(help="Take the component's options from this preset.", autocompletion=names("preset"))
    ] = None,
    only: Annotated[list[str] | None, typer.Option(metavar="CHECK", help="Run this check alone; may be given again.")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="Also check with this prompt; may be given again.")] = None,
    chain_tokens: Annotated[int, typer.Option(min=1, help="Cut chains that have not ended by then.")] = 96,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="JUDGE", help="Compare a judge with this one; if not given, with another of the preset.", autocompletion=names("judge")
        ),
    ] = None,
    samples: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Compare on these samples: a folder with samples.jsonl, as generate and a run write them; several of a prompt.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Checks that a component does what training relies on, such as scoring what it samples. Exits with 1 if a check fails."""
    import json

    from gotr1_core.cli.common import device
    from gotr1_core.cli.progress import progress
    from gotr1_core.components.build import make_component, make_judge
    from gotr1_core.config.merge import merge, overrides
    from gotr1_core.config.models import ComponentConfig
    from gotr1_core.samples import Prompt
    from gotr1_testing.examine import checks_of, examine
    from gotr1_testing.subject import PROMPTS, Case

    what = kind_of(kind)
    checks = checks_of(what, only or [])
    registry().find(what, name)
    settings = merge(_preset_options(what, name, preset) if preset else {}, overrides(options or []))
    config = ComponentConfig(name=name, **settings)
    more: dict[str, Any] = {"device": device()} if what in ("planner", "renderer") else {}
    case = Case(prompts=(*PROMPTS, *map(Prompt, prompt or [])), max_chain_tokens=chain_tokens)
    against, compared = _comparison(what, name, preset, reference, samples)

    def make() -> Any:
        return make_judge(registry(), config, device=device()) if what == "judge" else make_component(registry(), what, config, **more)

    found: list[Finding] = []
    with progress("checking", len(checks)) as done:
        for finding in examine(what, make, case, only or [], reference=against, compared=compared):
            found.append(finding)
            done(len(found))
    shows = {check.name: check.shows for check in checks}
    if as_json:
        print(json.dumps([_facts(f, shows[f.name]) for f in found], ensure_ascii=False))
    else:
        _print(found, shows)
    if any(f.passed is False for f in found):
        raise typer.Exit(1)


def _preset_options(kind: Kind, name: str, preset: str) -> dict[str, Any]:
    """The options that a preset, or a variant of it, has for a component; a renderer that is the planner as well has the planner's."""
    from gotr1_core.config.merge import VARIANTS, layered, read_yaml
    from gotr1_core.config.models import RunConfig, validate
    from gotr1_core.errors import UsageError

    data = read_yaml(registry().preset(preset))
    asked: dict[str, Any] = {kind: name} if name in data.get(VARIANTS, {}).get(kind, {}) else {}
    config = validate(RunConfig, layered(data, asked))
    parts: dict[str, Sequence[ComponentConfig]] = {
        "planner": [config.planner],
        "renderer": [config.renderer],
        "judge": config.judge,
        "algorithm": [config.algorithm],
    }
    for part in parts[kind]:
        if part.name == name:
            same = kind == "renderer" and not part.options and config.planner.name == name
            return config.planner.options if same else part.options
    if kind == "judge":
        return {}  # one that is compared with the preset's own
    raise UsageError(f"the preset {preset} has no {kind} {name!r}", hint=f"it has {', '.join(part.name for part in parts[kind])}")


def _comparison(
    kind: Kind, name: str, preset: str | None, reference: str | None, folder: Path | None
) -> tuple[RewardJudge | None, list[Sample]]:
    """The judge that a judge is compared with, and on what: samples of a folder, or examples of the preset's source."""
    from gotr1_core.cli.common import device
    from gotr1_core.components.build import make_judge
    from gotr1_core.config.merge import layered, read_yaml
    from gotr1_core.config.models import ComponentConfig, RunConfig, validate
    from gotr1_core.errors import UsageError

    if kind != "judge":
        if reference or folder:
            raise UsageError(f"--{'reference' if reference else 'samples'} has no meaning for a {kind}", hint="judges are compared")
        return None, []
    config = validate(RunConfig, layered(read_yaml(registry().preset(preset)))) if preset else None
    others = [judge for judge in config.judge if judge.name != name] if config else []
    chosen = ComponentConfig(name=reference) if reference else others[0] if others else None
    if chosen is None:
        if folder:
            raise UsageError("--samples has no meaning without a judge to compare with", hint="give --reference JUDGE, or --preset NAME")
        return None, []
    judge = make_judge(registry(), chosen, device=device())
    return judge, _pictures(folder) if folder else _examples(config)


def _pictures(folder: Path) -> list[Sample]:
    from gotr1_core.chain import parse
    from gotr1_core.pictures.sample_files import find_pictures, read_picture
    from gotr1_core.samples import Sample

    found = find_pictures([folder])
    return [Sample(p.prompt, p.chain or parse(""), None if p.path is None else read_picture(p.path)) for p in found]


def _examples(config: RunConfig | None) -> list[Sample]:
    """Prompts of a source that has examples, each with its own example and with what belongs to other prompts of its category."""
    from gotr1_core.components.build import make_component
    from gotr1_core.samples import Sample

    if config is None or config.prompts.source is None:
        return []
    made = make_component(registry(), "source", config.prompts.source).examples("validation", 0, COMPARED + max(APART), config.prompts.seed)
    return [Sample(made[i].prompt, made[i + k].chain, made[i + k].image, (i, j, 0)) for i in range(COMPARED) for j, k in enumerate(APART)]


def _verdict(finding: Finding) -> str:
    return {True: "ok", False: "FAILED", None: "not run"}[finding.passed]


def _print(found: Sequence[Finding], shows: dict[str, str]) -> None:
    from gotr1_core.cli.tables import table

    rows = [(_verdict(f), f.name, *_numbers(f), shows[f.name], f.note) for f in found]
    print(table(("", "check", "measured", "limit", "what must hold", "what was found"), rows), end="")


def _numbers(finding: Finding) -> tuple[str, str]:
    """Measured and limit; nothing where a check measured nothing."""
    if finding.limit != finding.limit:
        return "", ""
    return f"{finding.measured:.3g}", f"{'≥' if finding.at_least else '≤'} {finding.limit:.3g}"


def _facts(finding: Finding, shows: str) -> dict[str, Any]:
    """Numbers that JSON has none for are null."""
    import math

    return {
        "check": finding.name,
        "verdict": _verdict(finding).lower(),
        "measured": finding.measured if math.isfinite(finding.measured) else None,
        "limit": finding.limit if math.isfinite(finding.limit) else None,
        "at_least": finding.at_least,
        "shows": shows,
        "note": finding.note,
    }
