"""Janus's log-probabilities, compared with a computation by hand and with transformers. test_janus_contract.py compares its sampler with
them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gotr1_core.policies.padding import left_pad, mask_and_positions
from gotr1_core.samples import IMAGE, PLAN, Prompt, Rollout, Sampling
from gotr1_core.sampling import apply_guidance
from gotr1_janus.layout import unconditional
from gotr1_janus.module import contexts_of
from gotr1_janus.options import JanusOptions
from gotr1_janus.policy import JanusPolicy

TEXTS = ["a", "a red cat", "two dogs, and a bird on a roof", "a b", "x, y"]
SETTINGS = Sampling(guidance_scale=3.0, max_chain_tokens=10)
SAME = 2e-5
"""Log-probabilities of one action computed in batches of other shapes: float32 rounding of logits of order 10, times guidance 5."""


def make(folder: Path, **options: object) -> JanusPolicy:
    return JanusPolicy(JanusOptions.model_validate({"model": str(folder), "instruction": "{prompt}", "attention": "eager"} | options))


def draw(policy: JanusPolicy, sampling: Sampling = SETTINGS, *, each: int = 4, images: int = 1) -> tuple[Rollout, Rollout]:
    """Draws ``each`` plans for every text and ``images`` pictures for every plan."""
    prompts = [Prompt(text) for text in TEXTS for _ in range(each)]
    plans = policy.plan(prompts, seeds=range(len(prompts)), sampling=sampling)
    rows = torch.arange(len(prompts)).repeat_interleave(images)
    drawn = policy.render(
        [prompts[r] for r in rows], [plans.chains[r] for r in rows], seeds=range(len(rows)), sampling=sampling, plans=plans.rows(rows)
    )
    return plans, replace(drawn, tensors={**drawn.tensors, "parent": rows})


def gap(scored: Tensor, rollout: Rollout) -> float:
    return (scored - rollout.tensors["log_prob"])[rollout.tensors["mask"]].abs().max().item()


def forward(policy: JanusPolicy, embeds: Tensor, keep: Tensor | None = None) -> Tensor:
    """Hidden states of one sequence. ``keep`` hides positions from attention."""
    mask = None if keep is None else keep.unsqueeze(0)
    positions = torch.arange(len(embeds)).unsqueeze(0)
    return policy.module.model.model.language_model(
        inputs_embeds=embeds.unsqueeze(0), attention_mask=mask, position_ids=positions, use_cache=False
    ).last_hidden_state[0]


def plan_by_hand(policy: JanusPolicy, plans: Rollout, row: int) -> Tensor:
    """Log-probabilities of a plan's actions: one sequence, no padding, no mask, float64 softmax."""
    model, t = policy.module.model, plans.tensors
    prompt = t["prompt"][row, : t["prompt_length"][row]]
    actions = t["tokens"][row][t["mask"][row]]
    hidden = forward(policy, model.get_input_embeddings()(torch.cat([prompt, actions])))
    logits = model.lm_head(hidden[len(prompt) - 1 : -1]).double() / plans.sampling.temperature
    return F.log_softmax(logits, -1).gather(-1, actions.unsqueeze(-1)).squeeze(-1)


def image_by_hand(policy: JanusPolicy, images: Rollout, row: int, *, hide_pads: bool = False, scale: float | None = None) -> Tensor:
    """Log-probabilities of a picture's tokens: two sequences, logits mixed as in released inference."""
    model, t = policy.module.model, images.tensors
    parts = [t["prompt"][row, : t["prompt_length"][row]], t["plan"][row, : t["plan_length"][row]], torch.tensor([policy.module.boi])]
    context, tokens = torch.cat(parts), t["tokens"][row]
    other = torch.cat([context[:1], torch.full((len(context) - 2,), policy.module.pad), context[-1:]])
    keep = torch.ones(len(context) + len(tokens) - 1, dtype=torch.bool)
    if hide_pads:
        keep[1 : len(context) - 1] = False
    logits = []
    for ids, visible in ((context, None), (other, keep)):
        embeds = torch.cat([model.get_input_embeddings()(ids), model.prepare_embeddings_for_image_generation(tokens[:-1])])
        logits.append(model.model.generation_head(forward(policy, embeds, visible)[len(context) - 1 :]).double())
    mixed = apply_guidance(logits[0], logits[1], images.sampling.guidance_scale if scale is None else scale)
    return F.log_softmax(mixed / images.sampling.image_temperature, -1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


# -- sampler and scorer -----------------------------------------------------------------------------------------------------


def test_scorer_agrees_with_a_computation_by_hand(policy: JanusPolicy) -> None:
    sampling = Sampling(0.9, 1.2, 5.0, max_chain_tokens=10)
    plans, images = draw(policy, sampling, each=2, images=2)
    with torch.no_grad():
        scored = policy.module({PLAN: plans, IMAGE: images})
        for row in range(len(plans)):
            mine = scored[PLAN].log_prob[row][plans.tensors["mask"][row]].double()
            assert torch.allclose(mine, plan_by_hand(policy, plans, row), atol=SAME)
        for row in range(len(images)):
            assert torch.allclose(scored[IMAGE].log_prob[row].double(), image_by_hand(policy, images, row), atol=SAME)


def test_a_sampled_begin_of_image_is_an_action_and_an_appended_one_is_not(policy: JanusPolicy) -> None:
    plans, _ = draw(policy)
    t, boi = plans.tensors, policy.module.boi
    with torch.no_grad():
        scored = policy.module({PLAN: plans})[PLAN]
    for row, context in enumerate(contexts_of(plans, boi)):
        length, limit = int(t["length"][row]), t["tokens"].shape[1]
        prompt = int(t["prompt_length"][row])
        assert context.tolist() == [*t["prompt"][row, :prompt], *t["tokens"][row, :length], boi]
        assert boi not in t["tokens"][row, :length]
        if t["truncated"][row]:
            assert length == limit == SETTINGS.max_chain_tokens
            assert t["mask"][row].all()
        else:
            assert t["tokens"][row, length] == boi
            assert t["mask"][row].tolist() == [True] * (length + 1) + [False] * (limit - length - 1)
            assert scored.log_prob[row, length] < 0
        assert scored.log_prob[row][~t["mask"][row]].eq(0).all()
        assert scored.entropy[row][~t["mask"][row]].eq(0).all()
    assert t["truncated"].any()
    assert not t["truncated"].all()


# -- the fused forward ------------------------------------------------------------------------------------------------------


def test_a_plan_is_scored_once_however_many_images_it_has(policy: JanusPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans with 0, 3 and 1 images. Those without images run alone, the others in the sequence of their first image."""
    plans, images = draw(policy, each=1, images=3)
    kept = images.rows(torch.tensor([3, 4, 5, 6, 9, 10, 11]))  # plan 1 with three, plan 2 with one, plan 3 with three; 0 and 4 pruned
    sequences: list[int] = []
    original = policy.module.hidden
    monkeypatch.setattr(policy.module, "hidden", lambda rows: sequences.append(len(rows.ids)) or original(rows))
    with torch.no_grad():
        fused = policy.module({PLAN: plans, IMAGE: kept})
        alone = policy.module({PLAN: plans})[PLAN]
    assert sequences == [2 * 7 + 2, 5]
    assert fused[PLAN].log_prob.shape == plans.tensors["tokens"].shape
    assert torch.allclose(fused[PLAN].log_prob, alone.log_prob, atol=SAME)
    assert gap(fused[IMAGE].log_prob, kept) <= 1e-4


def test_images_of_pruned_siblings_do_not_matter(policy: JanusPolicy) -> None:
    plans, images = draw(policy, each=1, images=2)
    none = images.rows(torch.arange(0))
    with torch.no_grad():
        empty = policy.module({PLAN: plans, IMAGE: none})
        alone = policy.module({PLAN: plans})
    assert torch.equal(empty[PLAN].log_prob, alone[PLAN].log_prob)
    assert empty[IMAGE].log_prob.shape == (0, 9)


# -- the unconditional row and the masks ------------------------------------------------------------------------------------


def test_unconditional_keeps_first_and_last_token() -> None:
    assert unconditional(torch.tensor([5, 6, 0, 7, 8]), 9).tolist() == [5, 9, 9, 9, 8]


def test_masks_come_from_lengths() -> None:
    ids, lengths = left_pad([torch.tensor([0, 0, 4]), torch.tensor([0, 5])], 0)
    mask, positions = mask_and_positions(lengths, 3)
    assert ids.tolist() == [[0, 0, 4], [0, 0, 5]]
    assert mask.tolist() == [[True, True, True], [False, True, True]]
    assert positions.tolist() == [[0, 1, 2], [0, 0, 1]]


def test_pads_of_the_unconditional_row_are_attended_to(policy: JanusPolicy) -> None:
    _, images = draw(policy, each=1)
    with torch.no_grad():
        scored = policy.module({IMAGE: images})[IMAGE].log_prob.double()
        for row in range(len(images)):
            assert torch.allclose(scored[row], image_by_hand(policy, images, row), atol=SAME)
            assert (scored[row] - image_by_hand(policy, images, row, hide_pads=True)).abs().max() > 0.01


def test_a_pad_id_in_a_prompt_is_content(tiny_janus: Path) -> None:
    policy = make(tiny_janus, instruction="x <pad> {prompt}")  # an instruction may say it, a prompt cannot
    ids = policy.encode_prompt(Prompt("y"))
    assert policy.module.pad in ids
    prompts = [Prompt("y"), Prompt("a very much longer prompt")]  # so that the first is padded too
    plans = policy.plan(prompts, seeds=[0, 1], sampling=SETTINGS)
    with torch.no_grad():
        by_hand = plan_by_hand(policy, plans, 0)
        assert torch.allclose(plans.tensors["log_prob"][0][plans.tensors["mask"][0]].double(), by_hand, atol=SAME)
        without = replace(plans, tensors={**plans.tensors, "prompt": plans.tensors["prompt"].clone()})
        without.tensors["prompt"][0][without.tensors["prompt"][0] == policy.module.pad] = ids[-1]
        assert (plan_by_hand(policy, without, 0) - by_hand).abs().max() > 0.01


# -- which distribution -----------------------------------------------------------------------------------------------------


def test_conditional_mode_scores_the_conditional_distribution(policy: JanusPolicy) -> None:
    sampling = replace(SETTINGS, log_prob="conditional")
    _, images = draw(policy, sampling, each=1)
    with torch.no_grad():
        scored = policy.module({IMAGE: images})[IMAGE].log_prob.double()
        for row in range(len(images)):
            assert torch.allclose(scored[row], image_by_hand(policy, images, row, scale=1.0), atol=SAME)
    assert gap(scored, images) > 0.1  # it is not what was sampled from


def _chain(text: str):  # type: ignore[no-untyped-def]
    from gotr1_core.chain import parse

    return parse(text)


@pytest.mark.parametrize("chunk", [7])
def test_chunks_of_logits_change_nothing(tiny_janus: Path, chunk: int) -> None:
    results = []
    for size in (chunk, 4096):
        policy = make(tiny_janus, chunk=size)
        plans, images = draw(policy, each=1)
        scored = policy.module({PLAN: plans, IMAGE: images})
        (scored[PLAN].log_prob.sum() + scored[IMAGE].log_prob.sum()).backward()
        gradients = {n: p.grad for n, p in policy.module.named_parameters() if p.grad is not None}
        results.append((scored[PLAN].log_prob.detach(), scored[IMAGE].log_prob.detach(), gradients))
    assert torch.allclose(results[0][0], results[1][0], atol=SAME)
    assert torch.allclose(results[0][1], results[1][1], atol=SAME)
    for name, gradient in results[0][2].items():
        scale = gradient.abs().max().item()
        assert torch.allclose(gradient, results[1][2][name], atol=1e-4 * max(scale, 1.0)), name  # sums over the same terms in other orders


def test_gradient_checkpointing_gives_the_same_gradients(tiny_janus: Path) -> None:
    results: list[dict[str, Tensor]] = []
    calls: list[int] = []
    for checkpointing in (False, True):
        policy = make(tiny_janus)
        if checkpointing:
            policy.enable_gradient_checkpointing()
        plans, images = draw(policy, each=1)
        run: list[int] = []
        layer = policy.module.model.model.language_model.layers[0].input_layernorm
        layer.register_forward_hook(lambda *_, run=run: run.append(1))
        scored = policy.module({PLAN: plans, IMAGE: images})
        (scored[PLAN].log_prob.sum() + scored[IMAGE].log_prob.sum()).backward()
        calls.append(len(run))
        results.append({n: p.grad for n, p in policy.module.named_parameters() if p.grad is not None})
    assert calls == [1, 2]  # computed again in the backward pass
    assert results[0].keys() == results[1].keys()
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


# -- against transformers ---------------------------------------------------------------------------------------------------


def test_greedy_pictures_are_those_of_transformers(policy: JanusPolicy) -> None:
    """Its ``generate`` masks the unconditional row by token id. These contexts have begin tokens only at their ends."""
    sampling = Sampling(image_temperature=0.0, guidance_scale=5.0, max_chain_tokens=10)
    prompts = [Prompt(t) for t in ("a red cat", "two birds", "q")]
    plans = policy._encode_plans(prompts, [_chain("here"), _chain("a dog at (1,2)"), _chain("z")], sampling)
    images = policy.render(prompts, plans.chains, seeds=[0, 1, 2], sampling=sampling, plans=plans)
    ids, lengths = left_pad(contexts_of(plans, policy.module.boi), policy.module.pad)
    mask, _ = mask_and_positions(lengths, ids.shape[1])
    settings = policy.module.model.generation_config
    settings.generation_kwargs = {"boi_token_id": policy.module.boi}
    theirs = policy.module.model.generate(
        input_ids=ids, attention_mask=mask.long(), generation_mode="image", do_sample=False, guidance_scale=5.0, max_new_tokens=9
    )
    assert torch.equal(theirs, images.tensors["tokens"])
    assert len({tuple(row) for row in theirs.tolist()}) > 1
    weaker = policy.render(prompts, plans.chains, seeds=[0, 1, 2], sampling=replace(sampling, guidance_scale=1.0), plans=plans)
    assert not torch.equal(weaker.tensors["tokens"], images.tensors["tokens"])
