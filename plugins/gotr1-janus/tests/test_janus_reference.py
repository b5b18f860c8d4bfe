"""Numbers of the reference implementation, compared with the imported model's and with those of the policy's sampler and scorer.

Tolerances. The fixture's numbers are float32, and so are ours; they differ by the order of sums. A language model of width 64 adds 64 to
128 terms per output, in three layers: about 1e-6 of logits up to 4. The image head's logits are up to 30 and off by about 1e-5. Guidance
makes of them u + 5 (c - u), up to 150, off by up to 11 times as much. In such a distribution all but one token are near 0, so
log-probabilities are compared at a temperature of 20, too. The decoder adds 1152 terms, in thirty layers: about 1e-5 of values up to 4.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from gotr1_core.chain import parse
from gotr1_core.config.merge import read_yaml
from gotr1_core.config.models import RunConfig, validate
from gotr1_core.plugins import Registry
from gotr1_core.policies.padding import left_pad
from gotr1_core.samples import IMAGE, PLAN, Prompt, Rollout, Sampling
from gotr1_core.sampling import uniforms
from gotr1_janus.convert import import_checkpoint
from gotr1_janus.layout import unconditional
from gotr1_janus.module import contexts_of
from gotr1_janus.options import INSTRUCTION, JanusOptions
from gotr1_janus.policy import JanusPolicy
from gotr1_janus.sampler import sample_image, sample_text

LOGITS, GUIDED, PIXELS = 1e-5, 1e-3, 2e-4
GREEDY = Sampling(temperature=0.0, image_temperature=0.0, guidance_scale=5.0)
PROMPT = 9  # of the 17 ids the first nine are taken as the prompt, the last one is begin-of-image, the others the chain


@pytest.fixture(scope="module")
def folder(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("imported") / "janus"
    import_checkpoint(reference, out, lambda line: None)
    return out


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def policy(folder: Path, request: pytest.FixtureRequest) -> JanusPolicy:
    made = JanusPolicy(JanusOptions(model=str(folder), attention=request.param))
    assert made.module.pad == 0  # as in the fixture
    return made


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    from transformers import JanusForConditionalGeneration

    return JanusForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()


def gap(found: Tensor, wanted: Tensor) -> float:
    assert found.shape == wanted.shape
    return float((found - wanted).abs().max())


# -- the imported model -----------------------------------------------------------------------------------------------------


def test_text_logits(model: Any, expected: dict[str, Tensor]) -> None:
    with torch.no_grad():
        assert gap(model(input_ids=expected["input_ids"]).logits, expected["text_logits"]) < LOGITS


def test_pixels_of_image_tokens(model: Any, expected: dict[str, Tensor]) -> None:
    with torch.no_grad():
        assert gap(model.model.vqmodel.decode(expected["image_tokens"]), expected["decoded"]) < PIXELS


def test_the_understanding_path(model: Any, expected: dict[str, Tensor]) -> None:
    with torch.no_grad():
        found = model.model.get_image_features(expected["pixel_values"]).pooler_output
    assert gap(found, expected["vision_embeds"]) < LOGITS


def guided(model: Any, ids: Tensor, fed: Tensor) -> Tensor:
    """Guided logits ``[T + 1, 16384]`` after a context ``[C]`` and each of ``fed [T]``, one row at a time and without masks or caches."""
    rows = []
    for row in (ids, unconditional(ids, 0)):
        embeds = torch.cat([model.get_input_embeddings()(row), model.prepare_embeddings_for_image_generation(fed)])
        hidden = model.model.language_model(inputs_embeds=embeds.unsqueeze(0)).last_hidden_state[0]
        rows.append(model.model.generation_head(hidden[len(ids) - 1 :]))
    return rows[1] + 5 * (rows[0] - rows[1])


def test_guided_logits_and_greedy_tokens(model: Any, expected: dict[str, Tensor]) -> None:
    for row, ids in enumerate(expected["input_ids"]):
        tokens = expected["image_tokens"][row]
        with torch.no_grad():
            logits = guided(model, ids, tokens[:-1])
        assert gap(logits[0], expected["guided_first_logits"][row]) < GUIDED
        assert torch.equal(logits.argmax(-1), tokens)


# -- the policy's own sampler and scorer ------------------------------------------------------------------------------------


def written(policy: JanusPolicy, ids: Tensor, sampling: Sampling) -> Rollout:
    """The fixture's ids ``[17]`` as a prompt and a chain that ends by itself. From now on the policy's begin-of-image token is theirs."""
    policy.module.boi = int(ids[-1])
    chain = ids[PROMPT:].unsqueeze(0)
    mask = torch.ones_like(chain, dtype=torch.bool)
    tensors = {"prompt": ids[:PROMPT].unsqueeze(0), "prompt_length": torch.tensor([PROMPT]), "tokens": chain, "mask": mask}
    tensors |= {"length": torch.tensor([chain.shape[1] - 1]), "log_prob": torch.zeros(mask.shape), "truncated": torch.tensor([False])}
    return Rollout(PLAN, sampling, tensors, chains=(parse(""),))


def drawn(policy: JanusPolicy, plans: Rollout, sampling: Sampling) -> Rollout:
    return policy.render([Prompt("")], plans.chains, seeds=[0], sampling=sampling, plans=plans)


def test_the_sampler_draws_the_references_tokens(policy: JanusPolicy, expected: dict[str, Tensor]) -> None:
    for row, ids in enumerate(expected["input_ids"]):
        images = drawn(policy, written(policy, ids, GREEDY), GREEDY)
        assert images.tensors["tokens"][0].tolist() == expected["image_tokens"][row].tolist()
        pixels = torch.tensor(list(images.images[0].tobytes())).view(96, 96, 3).permute(2, 0, 1)
        wanted = (expected["decoded"][row].clamp(-1, 1) + 1) * 127.5
        assert (pixels - wanted).abs().max() < 0.51  # rounded to whole numbers


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("begin", [0, 5])
def test_the_sampler_draws_them_in_a_batch(policy: JanusPolicy, expected: dict[str, Tensor], fixed: bool, begin: int) -> None:
    """Both rows together with a shorter one, so that there is padding. Where rows begin differently, so do their unconditional ones."""
    contexts = [*expected["input_ids"], torch.cat([expected["input_ids"][0][begin : begin + 1], expected["input_ids"][0][6:]])]
    with torch.no_grad():
        found = sample_image(policy.module, contexts, uniforms([0, 1, 2], 36), 0.0, 5.0, fixed=fixed)
    assert torch.equal(found.tokens[:2], expected["image_tokens"])


def test_the_sampler_writes_from_the_references_logits(policy: JanusPolicy, expected: dict[str, Tensor]) -> None:
    """At every position of both rows, in one left-padded batch: greedy tokens, and the log-probabilities of sampled ones."""
    wanted = expected["text_logits"].flatten(0, 1)
    ids, lengths = left_pad([row[:n] for row in expected["input_ids"] for n in range(1, 18)])
    for temperature in (0.0, 1.0, 0.7):
        with torch.no_grad():
            found, _ = sample_text(policy.module, ids, lengths, uniforms(range(34), 1), temperature)
        if temperature == 0:
            assert torch.equal(found.tokens[:, 0], wanted.argmax(-1))
        else:
            log_probs = F.log_softmax(wanted / temperature, -1)
            assert gap(found.log_prob, log_probs.gather(1, found.tokens)) < 2 * LOGITS / temperature


@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_the_sampler_draws_from_the_references_guided_logits(policy: JanusPolicy, expected: dict[str, Tensor], temperature: float) -> None:
    sampling = replace(GREEDY, image_temperature=temperature)
    for row, ids in enumerate(expected["input_ids"]):
        images = drawn(policy, written(policy, ids, sampling), sampling)
        log_probs = F.log_softmax(expected["guided_first_logits"][row] / temperature, -1)
        first = images.tensors["tokens"][0, 0]
        assert abs(images.tensors["log_prob"][0, 0] - log_probs[first]) < 2 * GUIDED / temperature
        assert temperature == 1 or log_probs[first] < -1  # one of many


@pytest.mark.parametrize("temperature", [0.0, 1.0, 20.0])
def test_the_scorer_gives_the_references_log_probs(
    policy: JanusPolicy, model: Any, expected: dict[str, Tensor], temperature: float
) -> None:
    """The chain's under ``text_logits``, the first image token's under ``guided_first_logits``, and all of them under one plain pass."""
    sampling = replace(GREEDY, image_temperature=temperature)
    scored_at = temperature or 1.0
    for row, ids in enumerate(expected["input_ids"]):
        plans = written(policy, ids, sampling)
        images = drawn(policy, plans, sampling)
        tokens = images.tensors["tokens"][0]
        with torch.no_grad():
            scored = policy.module({PLAN: plans, IMAGE: images})
            by_hand = F.log_softmax(guided(model, ids, tokens[:-1]) / scored_at, -1)
        text = F.log_softmax(expected["text_logits"][row, PROMPT - 1 : -1], -1)
        assert gap(scored[PLAN].log_prob[0], text.gather(1, ids[PROMPT:, None])[:, 0]) < 2 * LOGITS
        first = F.log_softmax(expected["guided_first_logits"][row] / scored_at, -1)[tokens[0]]
        assert abs(scored[IMAGE].log_prob[0, 0] - first) < 2 * GUIDED / scored_at
        assert gap(scored[IMAGE].log_prob[0], by_hand.gather(1, tokens[:, None])[:, 0]) < 2 * GUIDED / scored_at
        if temperature == 0:
            assert tokens.tolist() == expected["image_tokens"][row].tolist()
            assert gap(scored[IMAGE].log_prob[0], by_hand.amax(-1)) < 2 * GUIDED  # none is likelier


# -- pictures to tokens -----------------------------------------------------------------------------------------------------


def test_pictures_become_the_tokens_of_the_released_rule(policy: JanusPolicy, expected: dict[str, Tensor]) -> None:
    """The normalised code that is nearest to the normalised latent. transformers' ``encode`` normalises neither and finds others."""
    pixels = ((expected["decoded"].clamp(-1, 1) + 1) * 127.5).round().byte()
    pictures = [Image.fromarray(p.permute(1, 2, 0).numpy()) for p in pixels]
    vq = policy.module.model.model.vqmodel
    with torch.no_grad():
        latents = vq.quant_conv(vq.encoder(pixels.float() / 127.5 - 1)).permute(0, 2, 3, 1).reshape(2, 36, 1, 8)
        codes = vq.quantize.embedding.weight
        distances = (F.normalize(latents, dim=-1).double() - F.normalize(codes, dim=-1).double()).pow(2).sum(-1)
        theirs = vq.encode(pixels.float() / 127.5 - 1).image_tokens.view(2, 36)
    found = policy.encode_images(pictures)
    chosen = distances.gather(-1, found.unsqueeze(-1))[..., 0]
    assert (chosen - distances.amin(-1)).abs().max() < 1e-6  # of two codes as near either will do
    assert (found == distances.argmin(-1)).float().mean() > 0.97
    assert (theirs != found).float().mean() > 0.5


# -- the released inference, whole ------------------------------------------------------------------------------------------


def preset(name: str) -> RunConfig:
    return validate(RunConfig, {"judge": [], **read_yaml(Registry().preset(name))})


def released_inference(policy: JanusPolicy, text: str, limit: int) -> tuple[list[int], list[int], list[int]]:
    """Prompt, chain with begin-of-image, and image tokens, greedily, by the loops of the released code."""
    tokenizer, model = policy.tokenizer, policy.module.model
    boi = tokenizer.convert_tokens_to_ids("<begin_of_image>")
    conversation = f"<|User|>: {INSTRUCTION.format(prompt=text)}\n\n<|Assistant|>:"
    prompt = [tokenizer.bos_token_id, *tokenizer(conversation, add_special_tokens=False).input_ids]
    chain: list[int] = []
    while len(chain) < limit and chain[-1:] != [boi]:
        chain.append(int(model(input_ids=torch.tensor([prompt + chain])).logits[0, -1].argmax()))
    if chain[-1] != boi:
        chain.append(boi)
    ids = torch.tensor(prompt + chain)
    tokens: list[int] = []
    for _ in range(36):
        tokens.append(int(guided(model, ids, torch.tensor(tokens, dtype=torch.long))[-1].argmax()))
    return prompt, chain, tokens


@pytest.mark.parametrize("stops", [False, True])
def test_the_preset_draws_what_the_released_inference_draws(folder: Path, stops: bool) -> None:
    config = preset("got-r1")
    assert config.sampling.model_dump(exclude={"denoising_steps"}) == {
        "temperature": 1.0, "image_temperature": 1.0, "guidance_scale": 5.0, "max_chain_tokens": 600, "log_prob": "guided",
    }  # fmt: skip
    made = JanusPolicy(JanusOptions(**{**config.planner.options, "model": str(folder)}))
    if stops:  # the model of the fixture never ends a chain by itself
        with torch.no_grad():
            made.module.model.lm_head.weight[made.module.boi] *= 40
    sampling = replace(GREEDY, max_chain_tokens=12)
    prompt = "A red cube, left of a  cat"
    plans = made.plan([Prompt(prompt)], seeds=[0], sampling=sampling)
    images = made.render([Prompt(prompt)], plans.chains, seeds=[0], sampling=sampling, plans=plans)
    with torch.no_grad():
        asked, chain, tokens = released_inference(made, prompt, 12)
    assert contexts_of(plans, made.module.boi)[0].tolist() == asked + chain
    assert images.tensors["tokens"][0].tolist() == tokens
    assert bool(plans.tensors["truncated"][0]) is not stops
    assert len(chain) == 13 if not stops else len(chain) <= 12
    row = unconditional(torch.tensor(asked + chain), made.module.pad).tolist()
    assert row == [made.tokenizer.bos_token_id, *[made.tokenizer.pad_token_id] * (len(row) - 2), made.module.boi]
