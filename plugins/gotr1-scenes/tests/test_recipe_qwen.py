"""The recipe of the small Qwen planner: what the model is made of. The recipe's log shows that it learns to plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import gotr1_scenes_recipe as recipe
from gotr1_core.components.build import make_component
from gotr1_core.config.merge import read_yaml
from gotr1_core.config.models import SftConfig, validate
from gotr1_core.plugins import Registry
from gotr1_core.samples import PLAN, Sampling
from gotr1_scenes.source import ScenesSource, ScenesSourceOptions
from gotr1_scenes_recipe.qwen import TAGS, make_model, make_tokenizer

CONFIG = Path(recipe.__file__).with_name("sft-qwen.yaml")


@pytest.fixture(scope="module")
def planner(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A planner as the recipe trains it, with a tokenizer of fewer texts."""
    folder = tmp_path_factory.mktemp("recipe") / "untrained"
    tokenizer = make_tokenizer(300)
    make_model(tokenizer, 0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = validate(SftConfig, read_yaml(CONFIG))
    return make_component(Registry(), "planner", settings.policy.model_copy(update={"model": str(folder)}))


def test_it_is_small(planner: Any) -> None:
    """Of eight megabytes, 0.4 are left for the log and the tokenizer."""
    model = planner.module.model
    assert type(model).__name__ == "Qwen2_5_VLForConditionalGeneration"
    assert 2 * sum(p.numel() for p in model.parameters()) < 7_600_000
    assert sum(p.numel() for p in model.model.visual.parameters()) < 0.01 * sum(p.numel() for p in model.parameters())


def test_texts_of_the_world_are_few_tokens(planner: Any) -> None:
    examples = ScenesSource(ScenesSourceOptions()).examples("train", 0, 60, 0)
    for example in examples:
        ids = planner.text.encode_chain(example.chain.raw)
        assert planner.text.decode_chain(ids) == example.chain
        words = planner.tokenizer.convert_ids_to_tokens(ids)
        assert [words.count(tag) for tag in TAGS] == [len(example.chain.regions)] * 4
        assert len(ids) < 79  # with the end of the turn no more than the preset's sampling.max_chain_tokens
        region = example.chain.regions[0]
        box = region.text[region.text.index("<|box_start|>") :]
        assert len(planner.text.encode_chain(box)) == 2 + 5  # tags; four coordinates and a comma
        assert len(planner.text.encode_prompt(example.prompt.text)) < 50


def test_it_learns_from_the_source(planner: Any) -> None:
    examples = ScenesSource(ScenesSourceOptions()).examples("train", 0, 8, 0)
    optimizer = torch.optim.AdamW([p for p in planner.module.parameters() if p.requires_grad], lr=2e-3)
    losses = []
    for step in range(4):
        loss = planner.supervised_loss(planner.module, examples, seed=step)
        mean = loss.sums[PLAN] / loss.counts[PLAN]
        mean.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(mean.item())
    assert losses[-1] < losses[0] - 0.5  # nats per token
    plans = planner.plan([examples[0].prompt] * 2, seeds=[0, 1], sampling=Sampling(max_chain_tokens=8))
    assert plans.tensors["mask"].sum() > 2
