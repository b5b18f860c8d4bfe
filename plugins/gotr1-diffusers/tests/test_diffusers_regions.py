"""Regional attention: what a box covers, that a phrase has no influence outside its box, and that the plan changes the picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from gotr1_core.chain import Chain, Region
from gotr1_core.samples import IMAGE, Prompt, Sampling
from gotr1_diffusers.regions import CrossAttention, Keys, Regions, attention_sizes, coverage

LEFT, RIGHT = (0, 0, 499, 999), (500, 0, 999, 999)
QUIET = Sampling(image_temperature=0.0, guidance_scale=1.0, denoising_steps=4)


def test_coverage_is_the_share_of_a_pixel() -> None:
    """Compared with counting a hundred by a hundred points of each pixel."""
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.13, 0.27, 0.71, 0.58], [0.5, 0.5, 0.51, 0.52], [0.0, 0.0, 0.0, 0.0]])
    height, width, fine = 3, 5, 100
    y, x = ((torch.arange(size * fine) + 0.5) / (size * fine) for size in (height, width))
    for box, found in zip(boxes, coverage(boxes, height, width), strict=True):
        inside = ((y >= box[1]) & (y < box[3]))[:, None] & ((x >= box[0]) & (x < box[2]))[None]
        counted = inside.float().unflatten(0, (height, fine)).unflatten(2, (width, fine)).mean((1, 3)).flatten()
        torch.testing.assert_close(found, counted, rtol=0, atol=0.02)  # points on two edges, a hundredth each
    assert coverage(boxes, height, width)[0].eq(1).all()
    assert coverage(boxes, height, width)[3].eq(0).all()


def test_a_tiny_box_counts_at_every_resolution() -> None:
    box = torch.tensor([0.501, 0.501, 0.503, 0.504])
    assert all((coverage(box, n, n) > 0).sum() == 1 for n in (2, 8, 64))


def regions(boxes: Sequence[Sequence[float]], strength: float = 1.0, rows: int = 1) -> Regions:
    torch.manual_seed(3)
    states = torch.randn(1, len(boxes), 12, 16).expand(rows, -1, -1, -1)
    found = Regions.of(states, torch.tensor(boxes).expand(rows, -1, -1), torch.full((rows,), strength), [(8, 8), (4, 4)])
    assert found is not None
    return found


def test_weights_share_a_pixel() -> None:
    """Where boxes overlap they share the strength. Together they never have more than it."""
    found = regions([[0, 0, 0.5, 1], [0, 0, 1, 0.5], [0, 0, 0.25, 0.25]], 0.6)
    for weights in found.weights.values():
        assert weights.sum(1).max() <= 0.6 + 1e-6  # float32
    corner = found.weights[64].view(1, 3, 8, 8)
    assert corner[0, :, 0, 0].tolist() == pytest.approx([0.2, 0.2, 0.2])
    assert corner[0, :, 7, 7].tolist() == [0, 0, 0]
    assert corner[0, :, 0, 7].tolist() == pytest.approx([0, 0.6, 0])


def attention(policy: Any) -> Any:
    """A cross-attention layer of the UNet."""
    return policy.module.model.down_blocks[1].attentions[0].transformer_blocks[0].attn2


@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_a_phrase_has_no_influence_outside_its_box(sdxl: Callable[..., Any], strength: float) -> None:
    """Outside it is exactly zero for any phrase. Inside, at strength 1, the phrase has all of it and the text none."""
    attn = attention(sdxl())
    torch.manual_seed(0)
    pixels, text, other = torch.randn(2, 16, 16), torch.randn(2, 12, 16), torch.randn(2, 12, 16)
    told = regions([[0, 0, 0.5, 1]], strength, rows=2)
    louder = Regions(torch.randn_like(told.states) * 100, told.weights)
    without = CrossAttention()(attn, pixels, text)
    inside = told.weights[16][0, 0] > 0
    assert 0 < inside.sum() < 16
    one, two = (CrossAttention()(attn, pixels, text, regions=r) for r in (told, louder))
    assert torch.equal(one[:, ~inside], two[:, ~inside])
    assert torch.equal(one[:, ~inside], without[:, ~inside])
    assert (one[:, inside] - two[:, inside]).abs().min() > 0
    rest = CrossAttention()(attn, pixels, other, regions=told)
    assert torch.equal(one[:, inside], rest[:, inside]) == (strength == 1)


def test_regional_attention_mixes_two_attentions(sdxl: Callable[..., Any]) -> None:
    """Compared with diffusers' own processor on the text alone and on the phrase alone."""
    from diffusers.models.attention_processor import AttnProcessor2_0

    attn = attention(sdxl())
    torch.manual_seed(0)
    pixels, text = torch.randn(1, 16, 16), torch.randn(1, 12, 16)
    told = regions([[0, 0, 0.6, 1]], 0.7)
    weight = told.weights[16][0, 0][:, None]
    bias = attn.to_out[0].bias
    parts = [AttnProcessor2_0()(attn, pixels, states) - bias for states in (text, told.states[:, 0])]
    expected = (1 - weight) * parts[0] + weight * parts[1] + bias
    torch.testing.assert_close(CrossAttention()(attn, pixels, text, regions=told), expected, rtol=0, atol=1e-5)  # float32


@pytest.mark.parametrize("options", [{"layout": "none"}, {"strength": 0.0}, {"regional_share": 0.0}, {}])
def test_without_regions_the_unet_is_diffusers(
    sdxl: Callable[..., Any], sdxl_in_memory: Callable[..., Any], options: dict[str, Any]
) -> None:
    """The last case is a plan without boxes."""
    policy = sdxl(**options)
    chain = Chain.of(["a ", Region("cat", LEFT)] if options else ["a cat"])
    inputs = policy.condition_inputs([Prompt("a")], [chain])
    torch.manual_seed(0)
    latents, t = torch.randn(1, 4, 8, 8), torch.tensor([600])
    unet = sdxl_in_memory().unet
    with torch.no_grad():
        condition = policy.module.condition(inputs)
        found = policy.module.output(latents, t, condition, None)
        more = {"text_embeds": condition.pooled, "time_ids": torch.tensor([[16.0, 16.0, 0.0, 0.0, 16.0, 16.0]])}
        expected = unet(latents, t, encoder_hidden_states=condition.text, added_cond_kwargs=more, return_dict=False)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)  # float32, by another order of the same sums


def test_regions_are_used_only_in_the_first_steps(sdxl: Callable[..., Any]) -> None:
    policy, plain = sdxl(regional_share=0.5), sdxl(layout="none")
    inputs = [p.condition_inputs([Prompt("a")], [Chain.of([Region("cat", LEFT)])]) for p in (policy, plain)]
    twice = torch.zeros(2, dtype=torch.long)
    told = [p.module.condition(i).take(twice) for p, i in zip((policy, plain), inputs, strict=True)]
    torch.manual_seed(0)
    latents, t = torch.randn(1, 4, 8, 8).expand(2, -1, -1, -1), torch.tensor([500, 499])
    with torch.no_grad():
        one, two = (p.module.output(latents, t, c, None) for p, c in zip((policy, plain), told, strict=True))
    assert (one[0] - two[0]).abs().max() > 1e-3
    torch.testing.assert_close(one[1], two[1], rtol=0, atol=2e-6)  # float32


def pictures(policy: Any, chains: Sequence[Chain]) -> NDArray[np.float64]:
    drawn = policy.render([Prompt("a")] * len(chains), chains, seeds=[7] * len(chains), sampling=QUIET)
    return np.stack([np.asarray(image, np.float64) for image in drawn.images])


def test_boxes_steer_the_picture(sdxl: Callable[..., Any]) -> None:
    """The same words in the same order with other boxes give another picture. With `none` they give the same one."""
    plans = [Chain.of([Region("red cat", a), " and ", Region("dog", b)]) for a, b in ((LEFT, RIGHT), (RIGHT, LEFT))]
    assert plans[0].without_boxes() == plans[1].without_boxes()
    one, two = pictures(sdxl(strength=1.0, regional_share=1.0), plans)
    assert np.abs(one - two).mean() > 0.5  # of 255 levels
    same = pictures(sdxl(layout="none"), plans)
    assert np.abs(same[0] - same[1]).max() == 0


def test_a_box_changes_its_own_side_most(sdxl: Callable[..., Any]) -> None:
    """Through convolutions and self-attention it also changes the other side, but less."""
    phrases = ["red cat", "ocean", "zzz", "Q", "blue square"]
    chains = [Chain.of([Region(phrase, LEFT)]) for phrase in phrases]
    policy = sdxl(strength=1.0, regional_share=1.0)
    told = [policy.condition_inputs([Prompt("a")], [chain]) for chain in chains]
    with torch.no_grad():
        base = policy.module.condition(told[0])
        torch.manual_seed(0)
        latents, t = torch.randn(1, 4, 8, 8), torch.tensor([600])
        outputs = []
        for inputs in told:
            other = policy.module.condition({**told[0], "phrases": inputs["phrases"]})
            outputs.append(policy.module.output(latents, t, other, None))
    change = torch.stack([(output - outputs[0]).abs() for output in outputs[1:]]).mean((0, 1, 2, 3))
    assert base.boxes.shape == (1, 1, 4)
    assert change[:4].mean() > 1.5 * change[4:].mean()


def gradients(policy: Any, rollouts: Sequence[Any]) -> list[dict[str, Tensor]]:
    """Gradients of log-probabilities of rollouts. All forward passes come first, then all backward passes."""
    scored = [policy.module({IMAGE: rollout})[IMAGE].log_prob.sum() for rollout in rollouts]
    found = []
    for value in scored:
        policy.module.zero_grad()
        value.backward()
        found.append({name: p.grad.clone() for name, p in policy.module.named_parameters() if p.grad is not None})
    return found


def test_a_checkpointed_block_sees_its_own_regions_again(sdxl: Callable[..., Any]) -> None:
    """Two rollouts with different plans have their forward passes before either has its backward pass. Regions are arguments, so they
    are not mixed up."""
    policy = sdxl(strength=1.0, regional_share=1.0)
    sampling = Sampling(guidance_scale=3.0, denoising_steps=4)
    plans = [Chain.of([Region("cat", LEFT)]), Chain.of([Region("blue dog", RIGHT), Region("x", LEFT)])]
    rollouts = [policy.render([Prompt("a")], [plan], seeds=[1], sampling=sampling) for plan in plans]
    plain = gradients(policy, rollouts)
    policy.enable_gradient_checkpointing()
    again = gradients(policy, rollouts)
    for one, other in zip(plain, again, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            torch.testing.assert_close(other[name], one[name], rtol=1e-5, atol=1e-6)  # float32


def test_sizes_are_those_of_the_unet(sdxl: Callable[..., Any]) -> None:
    """Also of pictures whose sides are not even at every level."""
    policy = sdxl(height=20, width=28)
    assert attention_sizes(policy.module.model, 10, 14) == [(10, 14), (5, 7)]
    odd = sdxl(height=18, width=22)  # latents of 9 x 11
    chain = Chain.of([Region("cat", LEFT)])
    drawn = odd.render([Prompt("a")], [chain], seeds=[1], sampling=QUIET)
    assert drawn.images[0].size == (22, 18)


def test_keys_are_computed_once_for_a_drawing_and_change_nothing(sdxl: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The second call with the same :class:`Keys` has no product of a text any more. Without room for them nothing is kept."""
    policy = sdxl(strength=1.0, regional_share=1.0)
    chains = [Chain.of([Region("cat", LEFT)]), Chain.of([Region("dog", LEFT), Region("x", RIGHT)])]
    module, t, keys = policy.module, torch.tensor([600, 600]), Keys()
    projected: list[Tensor] = []
    attention(policy).to_k.register_forward_hook(lambda _module, inputs, _output: projected.append(inputs[0]))
    with torch.no_grad():
        condition = module.condition(policy.condition_inputs([Prompt("a")] * 2, chains))
        latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        plain = module.output(latents, t, condition, None)
        assert [len(states) for states in projected] == [2, 3]  # two texts; three phrases, not four with the padding
        kept = [module.output(latents, t, condition, None, keys) for _ in range(2)]
        assert len(projected) == 4
        assert all(torch.equal(output, plain) for output in kept)
        monkeypatch.setattr("gotr1_diffusers.regions.KEPT_BYTES", 0)
        assert torch.equal(module.output(latents, t, condition, None, full := Keys()), plain)
    assert not full.kept


def test_regions_with_and_without_padding_are_mixed_alike(sdxl: Callable[..., Any]) -> None:
    """Rows of a batch have different numbers of regions. Each gets what it would get alone."""
    policy = sdxl(strength=0.7, regional_share=1.0)
    chains = [Chain.of(["a"]), Chain.of([Region("cat", LEFT)]), Chain.of([Region("dog", LEFT), Region("x", (0, 0, 999, 499))])]
    latents, t = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([600])
    with torch.no_grad():
        together = policy.module.condition(policy.condition_inputs([Prompt("a")] * 3, chains))
        batch = policy.module.output(latents, t.expand(3), together, None)
        for row, chain in enumerate(chains):
            alone = policy.module.condition(policy.condition_inputs([Prompt("a")], [chain]))
            torch.testing.assert_close(
                batch[row : row + 1], policy.module.output(latents[row : row + 1], t, alone, None), rtol=0, atol=1e-5
            )
