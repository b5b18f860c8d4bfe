"""The benchmark of full sizes runs. The released sampling loop that it compares with draws what the policy draws."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from gotr1_core.samples import Prompt, Sampling
from gotr1_janus.options import JanusOptions
from gotr1_janus.policy import JanusPolicy

FILE = Path(__file__).resolve().parents[3] / "benchmarks" / "full_size.py"
SMALL = ["full_size.py", "--size", "tiny", "--pixels", "32", "--chain", "4", "--plans", "2", "--prompts", "1", "--repeat", "1"]


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("full_size", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_measures(benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [*SMALL, "--device", "cpu", "--out", str(tmp_path / "found.json")])
    benchmark.main()
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["image_tokens"] == 4
    assert all(value > 0 for value in [*found["images_per_second"].values(), *found["ratio"].values()])
    assert {"rollout", "step", "released, 1 image of a chain", "released, 2 images of a chain"} <= found["measured"].keys()
    assert found["step"]["seconds.update"] > 0
    assert "images_per_second" in capsys.readouterr().out


@pytest.mark.parametrize(("size", "billions"), [("1b", 2.08), ("7b", 7.41)])
def test_it_counts(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], size: str, billions: float
) -> None:
    monkeypatch.setattr(sys, "argv", ["full_size.py", "--size", size, "--arithmetic"])
    benchmark.main()
    assert f"weights, billions: {billions}" in capsys.readouterr().out


def test_its_released_loop_draws_what_the_policy_draws(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes the most likely token instead of a draw."""
    monkeypatch.setattr(torch, "multinomial", lambda probabilities, count: probabilities.argmax(-1, keepdim=True))
    model, tokenizer = benchmark.make_model("tiny", 64, torch.float32, "cpu"), benchmark.make_tokenizer()
    for part in (model.model.language_model.layers, model.model.generation_aligner, model.model.generation_head, model.lm_head):
        for parameter in part.parameters():
            if parameter.dim() > 1:
                parameter.data.mul_(10)  # as made, logits are so flat that rounding would choose, and the same everywhere
    policy = JanusPolicy.from_model(model, tokenizer, JanusOptions(model="random", instruction="{prompt}"))
    sampling = Sampling(temperature=0.0, image_temperature=0.0, guidance_scale=5.0, max_chain_tokens=5)
    plans = policy.plan([Prompt("a cat")], seeds=[0], sampling=sampling)
    images = policy.render([Prompt("a cat")], plans.chains, seeds=[0], sampling=sampling, plans=plans)
    asked = policy.text.encode_prompt("a cat")
    pixels = benchmark.released_loop(model, asked, boi=policy.module.boi, pad=policy.module.pad, chain=5, images=2)
    drawn = model.model.vqmodel.decode(images.tensors["tokens"]).detach()
    assert len(images.tensors["tokens"].unique()) > 4
    for one in pixels:
        assert torch.allclose(one, drawn[0], atol=1e-4)  # float32 convolutions, in another batch
