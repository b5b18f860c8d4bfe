"""Janus passes the conformance suite in both roles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gotr1_core.testing import Case, PlannerContract, RendererContract
from gotr1_janus.options import JanusOptions
from gotr1_janus.policy import JanusPolicy

INSTRUCTION = "x <pad> {prompt}"  # a padding token that is content: masks come from lengths
QUICK = Case(temperatures=(0.7, 1.3), many=96)


def made(folder: Path, **options: Any) -> JanusPolicy:
    return JanusPolicy(JanusOptions.model_validate({"model": str(folder), "instruction": INSTRUCTION, "attention": "eager"} | options))


class TestPlanner(PlannerContract):
    case = QUICK

    @pytest.fixture
    def planner(self, tiny_janus: Path) -> JanusPolicy:
        return made(tiny_janus)


class TestRenderer(RendererContract):
    case = QUICK

    @pytest.fixture
    def renderer(self, tiny_janus: Path) -> JanusPolicy:
        return made(tiny_janus)


KERNELS = [{"attention": "sdpa"}, {"cache": "static"}, {"dtype": "bfloat16", "attention": "sdpa"}]


@pytest.mark.slow
class TestPlannerInFull(PlannerContract):
    @pytest.fixture(params=[{}, *KERNELS], ids=str)
    def planner(self, tiny_janus: Path, request: Any) -> JanusPolicy:
        return made(tiny_janus, **request.param)


@pytest.mark.slow
class TestRendererInFull(RendererContract):
    @pytest.fixture(params=[{}, *KERNELS], ids=str)
    def renderer(self, tiny_janus: Path, request: Any) -> JanusPolicy:
        return made(tiny_janus, **request.param)
