"""The suite's own policy passes the suite, in both roles."""

from __future__ import annotations

import pytest

from gotr1_testing import Case, PlannerContract, RendererContract, TinyPolicy

pytestmark = pytest.mark.unmeasured


class TestTinyPlanner(PlannerContract):
    case = Case(max_chain_tokens=2)

    @pytest.fixture
    def planner(self) -> TinyPolicy:
        return TinyPolicy()


class TestTinyRenderer(RendererContract):
    case = Case(max_chain_tokens=2)

    @pytest.fixture
    def renderer(self) -> TinyPolicy:
        return TinyPolicy()
