"""Registers what gotr1-janus provides: one policy in two roles."""

from collections.abc import Iterator

from gotr1_core.hookspecs import Component, hookimpl

TARGET, OPTIONS = "gotr1_janus.policy:JanusPolicy", "gotr1_janus.options:JanusOptions"


@hookimpl
def gotr1_components() -> Iterator[Component]:
    yield Component("planner", "janus", TARGET, OPTIONS, "Janus-Pro and GoT-R1 write the chain")
    yield Component("renderer", "janus", TARGET, OPTIONS, "Janus-Pro and GoT-R1 draw it, in the same sequence")
