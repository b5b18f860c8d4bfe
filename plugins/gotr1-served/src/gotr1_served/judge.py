"""Judges ``openai`` and ``gpt-4o``: a model behind a server answers the rubrics of gotr1-judges about plan and picture."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from gotr1_core.engine.console import print
from gotr1_core.errors import UsageError
from gotr1_core.pictures.draw_chain import check_font
from gotr1_judges.rubric import RubricJudge
from gotr1_judges.rubrics import WORDS, Rubric, read_rubrics
from gotr1_served.answerer import ServedAnswerer, Style
from gotr1_served.client import Client
from gotr1_served.connect import close_checked, count_checks, make_client
from gotr1_served.options import OpenAIJudgeOptions, ServerOptions, is_openai
from gotr1_served.pictures import FAMILIES, PictureFormat, family_of
from gotr1_served.probe import Abilities, find_model, probe


class OpenAIJudge(RubricJudge):
    """The judge ``openai``. What the server does is found out when the judge is made; nothing changes in a run after that.

    Raises:
        UsageError: the key is not set, the server does not answer, sees no pictures, or gives no probabilities for ``scoring=expected``.
    """

    cached = True
    need = "required"
    thread_safe = True

    def __init__(self, options: OpenAIJudgeOptions, *, processes: tuple[int, int] = (0, 1)) -> None:
        self.options, self.processes = options, processes
        client, style, rubrics, scoring = connect_judge(options, "judge", processes)
        count_checks(client, style.model, processes[0])
        self.client = client
        self.settings = {"scoring": scoring, "source": style.source, "model": style.model}
        answerer = ServedAnswerer(client, style)
        super().__init__(answerer, rubrics, canvas=options.canvas, font=options.font, least_mass=options.least_mass)

    @staticmethod
    def preflight(options: OpenAIJudgeOptions, *, key: str = "judge") -> dict[str, int]:
        """Checks options, rubrics and key, and asks the server for its models and one question with one picture. Returns no sizes.

        Raises:
            UsageError: as the class; or a rubric or the font is wrong.
        """
        check_font(options.font, options.canvas, f"{key}.font")
        client, style, *_ = connect_judge(options, key)
        close_checked(client, style.model)
        return {}

    def counts(self) -> Mapping[str, float]:
        """Returns what the run has spent so far, by unit, and its requests without a reply."""
        return spent_counts(self.client)

    def join_run(self, folder: Path, *, name: str) -> None:
        """Keeps the account in a run's folder, and refuses to go on with other settings than the run began with.

        Raises:
            UsageError: the server gives scores in another way than when the run began.
        """
        self.client.key, ledger = f"judge.{name}", self.client.ledger
        ledger.join(folder, name, *self.processes)
        for setting, value in self.settings.items():
            if (before := ledger.facts.setdefault(setting, value)) != value:
                hint = "start the server as it was, or a new run: two ways of scoring in one run cannot be compared"
                raise UsageError(f"{name}: {setting} was {before} when the run began, and is {value} now", hint=hint)
        ledger.save()


class Gpt4oJudge(OpenAIJudge):
    """The judge ``gpt-4o``."""


def connect_judge(
    options: OpenAIJudgeOptions, key: str, processes: tuple[int, int] = (0, 1)
) -> tuple[Client, Style, dict[str, Rubric], str]:
    """Connects to a judge's server. Returns client, what to send, the rubrics and the scoring that fit what the server does.

    Raises:
        UsageError: see :class:`OpenAIJudge`.
    """
    client = make_client(options, key, processes)
    model = find_model(client, options.model, key)
    family = FAMILIES[options.family or family_of(model)]
    rubrics = _rubrics(options, family.rubrics, options.scoring, key)
    style = make_style(options, model, PictureFormat(options.side, family, options.detail))
    weighed = [name for name, rubric in rubrics.items() if rubric.kind in WORDS]
    abilities = probe(client, style, key, probabilities=bool(weighed))
    _check_abilities(client, options, abilities, key)
    scoring: str = options.scoring
    if weighed and not abilities.sources:
        scoring = _fall_back(client, options, abilities, weighed, key)
        rubrics = _rubrics(options, family.rubrics, scoring, key)
    source = abilities.sources[0] if weighed and abilities.sources else None
    style = make_style(options, model, style.pictures, abilities, source)
    return client, style, rubrics, scoring


def make_style(
    options: ServerOptions, model: str, pictures: PictureFormat, abilities: Abilities | None = None, source: str | None = None
) -> Style:
    """Returns what is sent with every question, as options and a server's abilities say."""
    abilities = abilities or Abilities()
    limit = options.limit_key or ("max_completion_tokens" if is_openai(options.base_url) else "max_tokens")
    return Style(
        model,
        pictures,
        answer_tokens=getattr(options, "answer_tokens", 512),
        limit_key=limit,
        temperature=options.temperature,
        use_schema=abilities.use_schema,
        source=source,  # type: ignore[arg-type]
        token_ids=abilities.token_ids,
        extra=options.extra,
    )


def spent_counts(client: Client) -> dict[str, float]:
    """Returns what a client has spent, by unit, and ``unanswered`` requests. Units without a number so far are left out."""
    spent = {unit: amount for unit, amount in client.ledger.spent.items() if amount or unit == "requests"}
    return {**spent, "unanswered": float(client.failures.total())}


def _rubrics(options: OpenAIJudgeOptions, family: str, scoring: str, key: str) -> dict[str, Rubric]:
    single = {str(name): file for name, file in options.rubric.items()}
    return read_rubrics(options.rubrics, single, scoring=scoring, family=family, key=key)


def _check_abilities(client: Client, options: ServerOptions, abilities: Abilities, key: str) -> None:
    url = client.connection.base_url
    if not abilities.sees:
        raise UsageError(f"{key}: {url} does not take a picture: {abilities.picture}", hint="serve a model that sees pictures")
    if not abilities.counts and (options.tokens or options.dollars):
        hint = "set a budget in requests instead"
        raise UsageError(f"{key}: {url} does not say how many tokens it read, so a budget in tokens or dollars cannot be kept", hint=hint)


def _fall_back(client: Client, options: OpenAIJudgeOptions, abilities: Abilities, weighed: list[str], key: str) -> str:
    """Returns the scoring without probabilities, or stops, as configured. Says so once."""
    tried = "; ".join(abilities.notes[1:])
    message = f"{client.connection.base_url} gives no probabilities of answers ({tried})"
    single = [name for name in weighed if name in options.rubric]
    if options.without_probabilities == "stop" or single:
        hint = f"set {key}.without_probabilities=text, or {key}.scoring=text"
        hint = f"choose another {key}.rubric.{single[0]}, which needs no probabilities" if single else hint
        raise UsageError(f"{key}: {message}", hint=hint)
    print(f"note: {key}: {message}: the whole run scores written verdicts (scoring=text)", file=sys.stderr)
    return "text"
