"""The Janus policy besides log-probabilities: chains and pictures as tokens, stage one, saving."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from gotr1_core.chain import Chain, Region, parse
from gotr1_core.config.models import LoraConfig
from gotr1_core.policies.lora import add_lora
from gotr1_core.protocols import Planner, Renderer
from gotr1_core.samples import IMAGE, PLAN, Example, Prompt, Sampling
from gotr1_janus.options import JanusOptions
from gotr1_janus.policy import JanusPolicy

BOXED = Chain.of(["a ", Region("red cat", (12, 30, 400, 999)), " and ", Region("dog", (0, 0, 7, 8)), "."])


def pictures(count: int) -> list[Image.Image]:
    noise = np.random.default_rng(0).integers(0, 256, (count, 12, 12, 3), dtype=np.uint8)
    return [Image.fromarray(pixels) for pixels in noise]


def examples(count: int) -> list[Example]:
    return [Example(Prompt(f"cat {i % 3}"), replace_text(i), image) for i, image in enumerate(pictures(count))]


def replace_text(i: int) -> Chain:
    return Chain.of([f"{i % 3} ", Region("cat", (i, 2, 50, 60))])


def test_it_has_both_roles(policy: JanusPolicy) -> None:
    assert isinstance(policy, Planner)
    assert isinstance(policy, Renderer)
    assert policy.image_tokens == 9


def test_chains_keep_their_boxes(policy: JanusPolicy) -> None:
    again = policy.decode_chain(policy.encode_chain(BOXED))
    assert again == BOXED
    assert again.regions == BOXED.regions
    assert policy.decode_chain(policy.encode_chain(parse(""))).raw == ""


def test_rendering_given_chains_equals_rendering_own_ones(policy: JanusPolicy) -> None:
    """Another planner passes chains as text. The picture depends on the same tokens."""
    sampling = Sampling(guidance_scale=3.0, max_chain_tokens=60)
    prompts = [Prompt("a"), Prompt("two dogs")]
    chains = [BOXED, parse("a dog")]
    taught = policy._encode_plans(prompts, chains, sampling)
    one = policy.render(prompts, chains, seeds=[1, 2], sampling=sampling)
    other = policy.render(prompts, chains, seeds=[1, 2], sampling=sampling, plans=taught)
    assert torch.equal(one.tensors["tokens"], other.tensors["tokens"])
    assert [image.tobytes() for image in one.images] == [image.tobytes() for image in other.images]
    with torch.no_grad():
        scored = policy.module({IMAGE: one})[IMAGE]
    assert (scored.log_prob - one.tensors["log_prob"]).abs().max() <= 1e-4


def test_codes_are_nearest_by_cosine(policy: JanusPolicy) -> None:
    """transformers' own ``encode`` takes the nearest code without normalising, but ``decode`` looks codes up normalised."""
    vq = policy.module.model.model.vqmodel
    with torch.no_grad():
        vq.quantize.embedding.weight *= torch.logspace(-1, 1, len(vq.quantize.embedding.weight)).unsqueeze(1)
        pixels = torch.from_numpy(np.stack([np.asarray(p) for p in pictures(6)])).permute(0, 3, 1, 2).float() / 127.5 - 1
        latents = F.normalize(vq.quant_conv(vq.encoder(pixels)), dim=1)
        tokens = policy.encode_images(pictures(6))
        theirs = vq.encode(pixels).image_tokens.view_as(tokens)
        entries = vq.quantize.get_codebook_entry(torch.arange(24).unsqueeze(1).expand(-1, 9))[:, :, 0, 0]  # as decode looks them up
    distance = (latents.flatten(2).transpose(1, 2).unsqueeze(2) - entries).norm(dim=-1)
    assert torch.equal(tokens, distance.argmin(-1))
    assert not torch.equal(tokens, theirs)
    assert len(tokens.unique()) > 3


def test_pictures_of_codes(policy: JanusPolicy) -> None:
    tokens = torch.randint(0, 24, (40, 9), generator=torch.Generator().manual_seed(0))
    images = policy.decode_images(tokens)  # more than are decoded at a time
    with torch.no_grad():
        pixels = policy.module.model.model.vqmodel.decode(tokens)
    assert len(images) == 40
    assert images[0].size == (12, 12)
    for image, raw in zip(images, pixels, strict=True):
        exact = (raw.clamp(-1, 1).permute(1, 2, 0).numpy() + 1) * 127.5
        assert np.abs(np.asarray(image) - exact).max() <= 0.501  # rounding to bytes, and of float32
    assert policy.decode_images(tokens[:0]) == ()


def test_supervised_loss_is_minus_log_p(policy: JanusPolicy) -> None:
    policy.options = policy.options.model_copy(update={"drop_conditions": 0.0})
    given = examples(3)
    with torch.no_grad():
        loss = policy.supervised_loss(policy.module, given, seed=0)
        plans = policy._encode_plans([e.prompt for e in given], [e.chain for e in given], Sampling())
        scored = policy.module({PLAN: plans})[PLAN]
    # Chain and begin-of-image are learnt: as many actions as tokens.
    assert loss.counts[PLAN].item() == sum(len(policy.encode_chain(e.chain)) + 1 for e in given)
    assert loss.counts[IMAGE].item() == 3 * 9
    assert loss.sums[PLAN].item() == pytest.approx(-scored.log_prob.sum().item(), rel=1e-5)  # float32, batches of other shapes


def test_supervised_loss_falls(policy: JanusPolicy) -> None:
    optimizer = torch.optim.AdamW([p for p in policy.module.parameters() if p.requires_grad], lr=3e-3)
    means: dict[str, list[float]] = {PLAN: [], IMAGE: []}
    for step in range(25):
        loss = policy.supervised_loss(policy.module, examples(8), seed=step)
        for name in means:
            means[name].append((loss.sums[name] / loss.counts[name]).item())
        torch.stack([loss.sums[n] / loss.counts[n] for n in loss.sums]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert sum(means[PLAN][-3:]) < 0.5 * sum(means[PLAN][:3])
    assert sum(means[IMAGE][-3:]) < 0.8 * sum(means[IMAGE][:3])  # noise can only be learnt by heart


def test_dropped_conditions(policy: JanusPolicy) -> None:
    policy.options = policy.options.model_copy(update={"drop_conditions": 1.0})
    given = examples(3)
    loss = policy.supervised_loss(policy.module, given, seed=0)
    assert loss.counts[PLAN].item() == loss.sums[PLAN].item() == 0
    assert loss.counts[IMAGE].item() == 27
    same_length = [replace(e, prompt=Prompt("dog 7")) for e in given]
    other = policy.supervised_loss(policy.module, same_length, seed=0)
    assert torch.equal(loss.sums[IMAGE], other.sums[IMAGE])  # the prompt is gone
    policy.options = policy.options.model_copy(update={"drop_conditions": 0.5})
    some = [policy.supervised_loss(policy.module, examples(8), seed=s).counts[PLAN].item() for s in range(4)]
    whole = sum(len(policy.encode_chain(e.chain)) + 1 for e in examples(8))
    assert all(0 < count < whole for count in some)
    assert some[0] == policy.supervised_loss(policy.module, examples(8), seed=0).counts[PLAN].item()


def test_an_example_without_a_picture_is_refused(policy: JanusPolicy) -> None:
    with pytest.raises(ValueError, match="picture"):
        policy.supervised_loss(policy.module, [Example(Prompt("a"), BOXED)], seed=0)


@pytest.mark.parametrize("lora", [False, True])
def test_saved_models_load_and_answer_alike(policy: JanusPolicy, tmp_path: Path, lora: bool) -> None:
    if lora:
        add_lora(policy, LoraConfig(rank=2))
        with torch.no_grad():
            for name, parameter in policy.module.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.2)
    policy.save(tmp_path / "saved")
    assert not [name for name in load_file(tmp_path / "saved" / "model.safetensors") if "lora" in name or "base_layer" in name]
    again = JanusPolicy(JanusOptions(model=str(tmp_path / "saved"), instruction="{prompt}", attention="eager"))
    plans = policy.plan([Prompt("a red cat")] * 6, seeds=range(6), sampling=Sampling(max_chain_tokens=10))
    with torch.no_grad():
        before, after = policy.module({PLAN: plans})[PLAN], again.module({PLAN: plans})[PLAN]
    # Exact without adapters; with them x(W + BA) instead of xW + xBA, in float32.
    assert (before.log_prob - after.log_prob).abs().max() <= (1e-4 if lora else 0)


def test_gradient_checkpointing_is_refused_with_dropout(policy: JanusPolicy) -> None:
    from gotr1_core.errors import UsageError

    policy.module.model.model.language_model.config.attention_dropout = 0.1
    with pytest.raises(UsageError, match="dropout"):
        policy.enable_gradient_checkpointing()


def test_what_is_not_finite_is_neither_plan_nor_picture(policy: JanusPolicy) -> None:
    """Weights that are NaN: in the text's head, in the pictures' head, in the decoder of pictures. A plan given as text can be drawn."""
    sampling, prompts = Sampling(guidance_scale=3.0, max_chain_tokens=6), [Prompt("a"), Prompt("two dogs")]
    model = policy.module.model
    for temperature in (0.0, 1.0):
        cold = replace(sampling, temperature=temperature, image_temperature=temperature)
        for part, plan_is_finite in ((model.lm_head, False), (model.model.generation_head, True), (model.model.vqmodel.decoder, True)):
            weight = next(part.parameters())
            kept = weight.detach().clone()
            with torch.no_grad():
                weight.fill_(torch.nan)
            plans = policy.plan(prompts, seeds=[1, 2], sampling=cold)
            images = policy.render(prompts, [BOXED, BOXED], seeds=[1, 2], sampling=cold)
            with torch.no_grad():
                weight.copy_(kept)
            assert plans.finite() == [plan_is_finite] * 2
            assert [image is None for image in images.images] == [plan_is_finite] * 2
            assert images.finite() == [not plan_is_finite] * 2
