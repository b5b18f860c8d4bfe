"""The planner `qwen` passes the conformance suite with each model family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gotr1_core.policies.padding import left_pad
from gotr1_core.samples import PLAN, ActionStats, Prompt, Rollout
from gotr1_qwen.module import QwenModule
from gotr1_qwen.options import QwenOptions
from gotr1_qwen.planner import QwenPlanner
from gotr1_testing import Case, PlannerContract, Subject
from gotr1_testing.runner import checks_of
from gotr1_testing.subject import PROMPTS

# A padding token that is content, in what the model is told and, as text, in a prompt: masks come from lengths.
CASE = Case(prompts=(*PROMPTS[:3], Prompt("a <|endoftext|>")), temperatures=(0.7, 1.3), statistical_samples=96, max_chain_tokens=12)


@pytest.fixture(scope="module")
def instruction(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("instruction") / "pads.txt"
    path.write_text("x <|endoftext|> {prompt}")
    return path


def made(folder: Path, instruction: Path, **options: Any) -> QwenPlanner:
    return QwenPlanner(QwenOptions.model_validate({"model": str(folder), "instruction": str(instruction), "attention": "eager"} | options))


class TestQwen25VL(PlannerContract):
    case = CASE

    @pytest.fixture
    def planner(self, tiny: Callable[..., Path], instruction: Path) -> QwenPlanner:
        return made(tiny("qwen2_5_vl"), instruction)


class TestQwen3VL(PlannerContract):
    case = CASE

    @pytest.fixture
    def planner(self, tiny: Callable[..., Path], instruction: Path) -> QwenPlanner:
        return made(tiny("qwen3_vl"), instruction, tags="tokens")


class TestQwen3(PlannerContract):
    case = CASE

    @pytest.fixture
    def planner(self, tiny: Callable[..., Path], instruction: Path) -> QwenPlanner:
        return made(tiny("qwen3"), instruction)


# -- a wrong scorer is caught here too --------------------------------------------------------------------------------------


def test_positions_that_count_padding_are_caught(tiny: Callable[..., Path], instruction: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers counts them from the beginning of the batch's row if nobody passes positions."""

    def hidden(language: Any, embeds: Tensor, lengths: Tensor, *, checkpointing: bool) -> Tensor:
        mask = torch.arange(embeds.shape[1]) >= embeds.shape[1] - lengths.unsqueeze(1)
        far = 40 * torch.arange(len(lengths)).unsqueeze(1) * torch.arange(embeds.shape[1])  # relative ones are what counts
        return language(inputs_embeds=embeds, attention_mask=mask, position_ids=far).last_hidden_state

    monkeypatch.setattr("gotr1_qwen.module.hidden_states", hidden)
    found = _sampled_is_scored(made(tiny("qwen2_5_vl"), instruction))
    assert found.passed is False
    assert found.measured > 0.01  # nats; rounding is below 1e-5


def test_a_shift_by_one_is_caught(tiny: Callable[..., Path], instruction: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = QwenModule.forward

    def shifted(self: QwenModule, segments: dict[str, Rollout]) -> dict[str, ActionStats]:
        states = forward.__globals__["states_that_predict"]
        monkeypatch.setitem(forward.__globals__, "states_that_predict", lambda hidden, start, count: states(hidden, start - 1, count))
        scored = forward(self, segments)  # type: ignore[arg-type]
        monkeypatch.setitem(forward.__globals__, "states_that_predict", states)
        return scored  # type: ignore[return-value]

    monkeypatch.setattr(QwenModule, "forward", shifted)
    assert _sampled_is_scored(made(tiny("qwen2_5_vl"), instruction)).measured > 0.01


def _sampled_is_scored(planner: QwenPlanner) -> Any:
    (check,) = checks_of("planner", ["log-probs-match-sampler"])
    return check.run(Subject(planner, PLAN, Case(temperatures=[1.0], max_chain_tokens=12)))


# -- kernels and types ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"attention": "sdpa"}, {"dtype": "bfloat16", "attention": "sdpa"}], ids=str)
@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl", "qwen2"])
def test_other_kernels_sample_what_is_scored(tiny: Callable[..., Path], instruction: Path, kind: str, options: dict[str, Any]) -> None:
    found = _sampled_is_scored(made(tiny(kind), instruction, **options))
    assert found.passed, found


def test_rows_in_a_batch_equal_rows_alone(tiny: Callable[..., Path], instruction: Path) -> None:
    """Left padding changes nothing. 2-D positions are exact for all kinds of rotary positions."""
    for kind in ("qwen2_5_vl", "qwen3_vl", "qwen2", "qwen3"):
        module = made(tiny(kind), instruction).module
        rows = [torch.randint(11, 267, (n,), generator=torch.Generator().manual_seed(n)) for n in (3, 17, 8)]
        ids, lengths = left_pad(rows)
        mask = torch.arange(ids.shape[1]) >= ids.shape[1] - lengths.unsqueeze(1)
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        with torch.no_grad():
            together = module.language(input_ids=ids, attention_mask=mask, position_ids=positions).last_hidden_state
            for row, hidden in zip(rows, together, strict=True):
                alone = module.model.model(input_ids=row.unsqueeze(0)).last_hidden_state[0]  # the whole model's own positions
                assert (hidden[-len(row) :] - alone).abs().max() < 1e-4  # float32 products of another shape, states of order 1
