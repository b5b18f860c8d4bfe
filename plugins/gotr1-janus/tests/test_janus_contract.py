"""Janus passes the conformance suite in both roles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from gotr1_core.policies.padding import mask_and_positions
from gotr1_core.samples import IMAGE, PLAN
from gotr1_janus.layout import Sequences
from gotr1_janus.module import JanusModule
from gotr1_janus.options import JanusOptions
from gotr1_janus.policy import JanusPolicy
from gotr1_testing import Case, PlannerContract, RendererContract, Subject
from gotr1_testing.runner import checks_of

INSTRUCTION = "x <pad> {prompt}"  # a padding token that is content: masks come from lengths
QUICK = Case(temperatures=(0.7, 1.3), statistical_samples=96, max_chain_tokens=12)


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


# -- the same mistakes in a real policy -------------------------------------------------------------------------------------


def score_conditionally(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(JanusModule, "_guided", staticmethod(lambda image: False))


def pair_with_neighbours(patch: pytest.MonkeyPatch) -> None:
    score = JanusModule._image_stats
    patch.setattr(JanusModule, "_image_stats", lambda self, image, hidden, other: score(self, image, hidden, other.roll(1, 0)))


def mask_pad_ids(patch: pytest.MonkeyPatch) -> None:
    """Masks pads in the unconditional row and in the instruction, where they are content."""

    def hidden(self: JanusModule, rows: Sequences) -> Tensor:
        mask, positions = mask_and_positions(rows.lengths, rows.ids.shape[1])
        output = self.model.model.language_model(
            inputs_embeds=self.embed(rows.ids, rows.is_image),
            attention_mask=mask & ((rows.ids != self.pad) | rows.is_image),
            position_ids=positions,
            use_cache=False,
        )
        return output.last_hidden_state

    patch.setattr(JanusModule, "hidden", hidden)


@pytest.mark.parametrize("mistake", [score_conditionally, pair_with_neighbours, mask_pad_ids])
def test_a_wrong_scorer_is_caught(tiny_janus: Path, monkeypatch: pytest.MonkeyPatch, mistake: Callable[[pytest.MonkeyPatch], None]) -> None:
    mistake(monkeypatch)
    (check,) = checks_of("renderer", ["log-probs-match-sampler"])
    found = check.run(Subject(made(tiny_janus), IMAGE, Case(guidance=[5.0], temperatures=[1.0], max_chain_tokens=12)))
    assert found.passed is False
    assert found.measured > 0.05  # nats; rounding is below 1e-5


# -- kernels and types ------------------------------------------------------------------------------------------------------

KERNELS = [{"attention": "sdpa"}, {"cache": "static"}, {"dtype": "bfloat16", "attention": "sdpa"}]


@pytest.mark.parametrize("check", ["log-probs-match-sampler", "same-sample-alone-and-in-batch"])
@pytest.mark.parametrize("options", KERNELS[:2], ids=str)
def test_other_kernels_sample_what_is_scored(tiny_janus: Path, options: dict[str, Any], check: str) -> None:
    (chosen,) = checks_of("renderer", [check])
    for segment in (PLAN, IMAGE):
        found = chosen.run(Subject(made(tiny_janus, **options), segment, Case(temperatures=[0.7], max_chain_tokens=12)))
        assert found.passed, found


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
