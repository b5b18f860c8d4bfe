"""Registers the judge by name only, so that listing plugins imports nothing heavy."""

from collections.abc import Iterator

from gotr1_core import Component, hookimpl


@hookimpl
def gotr1_components() -> Iterator[Component]:
    module = "gotr1_example_judge.judge"
    yield Component("judge", "colorfulness", f"{module}:ColorfulnessJudge", f"{module}:ColorfulnessOptions", "how colourful a picture is")
