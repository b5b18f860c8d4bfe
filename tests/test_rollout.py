"""The tree of samples: what is drawn, in which order and with which seeds; pruning; batches cut and joined."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from gotr1_core.batch import Batch, join_batches
from gotr1_core.errors import UsageError
from gotr1_core.evaluation import draw_samples, evaluate
from gotr1_core.judges import Judges
from gotr1_core.reward import Expression
from gotr1_core.rollout import RolloutSettings, roll_out
from gotr1_core.samples import IMAGE, PLAN, Prompt, Sample, Sampling, SegmentName, join

PROMPTS = [Prompt(text, str(i)) for i, text in enumerate(["a", "a red cat on a mat", "dogs", "b c d"])]
SAMPLING = Sampling(guidance_scale=3.0, max_chain_tokens=8)
N, M = 4, 2


class Broken:
    """A judge that fails for one chain in four."""

    rewards: Mapping[str, SegmentName] = {"broken": PLAN}

    def score(self, samples: Sequence[Sample], names: Sequence[str]) -> Mapping[str, Sequence[float]]:
        return {"broken": [math.nan if len(s.chain.raw) % 4 == 1 else 1.0 for s in samples]}


def tree(
    policy: Any,
    judge: Any,
    reward: str = "letters * bright",
    prompts: Sequence[Prompt] = PROMPTS,
    first: int = 20,
    renderer_learns: bool = True,
    **changed: Any,
) -> Batch:
    """Draws the samples of some prompts, the pictures as the loop asks for them."""
    judges = Judges({"letters": judge, "broken": Broken()}, Expression.parse(reward))
    pictures_unused = judges.blind and not renderer_learns
    settings = RolloutSettings(SAMPLING, **{"seed": (0, 3), "plans": N, "images": M, "pictures_unused": pictures_unused, **changed})
    return roll_out(policy, policy, judges, prompts, settings, first=first)


ROUNDING = 1e-4
"""Of brightness: decoding in batches of another shape may round a pixel of 432 to the next of 255 levels, so 1e-5 each."""


def same_image(a: Sample, b: Sample) -> None:
    assert (a.image is None) == (b.image is None)
    if a.image is not None:
        assert np.abs(np.asarray(a.image).astype(int) - np.asarray(b.image).astype(int)).max() <= 1


def same_samples(one: Sequence[Sample], other: Sequence[Sample]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert (a.prompt, a.chain, a.lineage) == (b.prompt, b.chain, b.lineage)
        same_image(a, b)
        assert a.scores == pytest.approx(b.scores, abs=ROUNDING)
        assert a.reward == pytest.approx(b.reward, abs=ROUNDING, nan_ok=True)


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_chunks_do_not_change_the_samples(policy: Any, letters_judge: Any, chunk: int) -> None:
    """Logits are equal up to rounding of matrix products. With these seeds no u is within 1e-6 of the boundary between two tokens."""
    whole, parts = tree(policy, letters_judge, chunk=4), tree(policy, letters_judge, chunk=chunk)
    same_samples(whole.samples, parts.samples)
    assert torch.equal(whole.place, parts.place)
    assert whole.images is not None
    assert parts.images is not None
    assert torch.equal(whole.images.tensors["parent"], parts.images.tensors["parent"])
    assert torch.equal(whole.images.tensors["tokens"], parts.images.tensors["tokens"])


def test_some_of_the_prompts_draw_their_own_samples(policy: Any, letters_judge: Any) -> None:
    """As two processes do: ``first`` is the number of a process's first prompt."""
    whole = tree(policy, letters_judge)
    shares = [tree(policy, letters_judge, prompts=PROMPTS[:2]), tree(policy, letters_judge, prompts=PROMPTS[2:], first=22)]
    same_samples(whole.samples, [s for share in shares for s in share.samples])


def test_lineage_order(policy: Any, letters_judge: Any) -> None:
    batch = tree(policy, letters_judge)
    assert [s.lineage for s in batch.samples] == [(20 + i, j, k) for i in range(4) for j in range(N) for k in range(M)]
    assert [s.prompt for s in batch.samples] == [p for p in PROMPTS for _ in range(N * M)]
    assert batch.rewards.flatten().tolist() == [s.reward for s in batch.samples]
    assert batch.images is not None
    parent = batch.images.tensors["parent"]
    for row, at in enumerate(batch.place.tolist()):
        sample = batch.samples[at]
        assert batch.images.images[row] is sample.image
        assert batch.plans.chains[parent[row]] == sample.chain
        assert parent[row] == at // M
    assert len({s.chain.raw for s in batch.samples}) > 6  # plans have seeds of their own
    drawn = {s.lineage: s.image.tobytes() for s in batch.samples if s.image is not None}
    assert sum(drawn[(i, j, 0)] != drawn[(i, j, 1)] for i, j, k in drawn if k == 0) > len(drawn) // 4  # and images too


def test_pruning_changes_no_reward_and_no_other_sample(policy: Any, letters_judge: Any) -> None:
    pruned, full = tree(policy, letters_judge), tree(policy, letters_judge, prune=False)
    assert torch.allclose(pruned.rewards, full.rewards, atol=ROUNDING, rtol=0)
    assert pruned.images is not None
    assert full.images is not None
    assert 0 < len(pruned.images) < len(full.images) == len(full.samples)
    for a, b in zip(pruned.samples, full.samples, strict=True):
        if a.image is None:
            assert a.reward == 0
            assert a.scores == {"letters": 0.0}
        else:
            same_image(a, b)
            assert a.scores == pytest.approx(b.scores, abs=ROUNDING)
    # An image's seed does not count what was drawn before it.
    assert torch.equal(pruned.images.tensors["tokens"], full.images.tensors["tokens"][pruned.place])


def test_nothing_left_to_draw(policy: Any, letters_judge: Any) -> None:
    batch = tree(policy, letters_judge, reward="0 * bright")
    assert batch.images is None
    assert batch.rewards.eq(0).all()
    assert all(s.image is None for s in batch.samples)
    assert batch.segments(torch.tensor([1, 2]))[0].keys() == {PLAN}
    kept = batch.keep([2])
    assert kept.images is None
    assert len(kept.samples) == N * M
    both = join_batches([tree(policy, letters_judge, prompts=PROMPTS[:1]), tree(policy, letters_judge, reward="0 * bright")])
    assert both.images is not None
    assert both.place.max() < N * M


def test_pictures_that_no_score_needs_are_drawn_for_a_renderer_that_learns(policy: Any, letters_judge: Any) -> None:
    learning, idle, unpruned = (
        tree(policy, letters_judge, reward="letters", **how)
        for how in ({}, {"renderer_learns": False}, {"renderer_learns": False, "prune": False})
    )
    assert idle.images is None
    assert learning.images is not None
    assert unpruned.images is not None
    assert torch.equal(idle.rewards, learning.rewards)
    assert idle.rewards.unique().numel() > 1
    seen = tree(policy, letters_judge, renderer_learns=False)  # here a score does
    assert seen.images is not None


def test_missing_scores_make_missing_rewards(policy: Any, letters_judge: Any) -> None:
    batch = tree(policy, letters_judge, reward="letters * broken * bright")
    kinds = set()
    for sample in batch.samples:
        failed = len(sample.chain.raw) % 4 == 1
        if sample.scores["letters"] == 0:
            assert sample.reward == 0  # 0 whatever the missing score is
            assert sample.image is None
        else:
            assert math.isnan(sample.reward) == failed
            assert sample.image is not None
        kinds.add((failed, sample.scores["letters"] == 0))
    assert {(True, False), (False, False), (False, True)} <= kinds


def test_a_reward_without_names(policy: Any, letters_judge: Any) -> None:
    assert tree(policy, letters_judge, reward="0.5").rewards.eq(0.5).all()


def test_only_wanted_scores_are_computed(policy: Any, letters_judge: Any) -> None:
    batch = tree(policy, letters_judge, reward="letters")
    assert all(s.scores.keys() == {"letters"} for s in batch.samples)
    assert letters_judge.seen == [4 * N]  # asked once a plan, not once an image
    judges = Judges({"letters": letters_judge}, Expression.parse("letters"), also=frozenset({"bright"}))
    wider = roll_out(policy, policy, judges, PROMPTS[:1], RolloutSettings(SAMPLING, seed=(0,), plans=2))
    assert all(s.scores.keys() == {"letters", "bright"} for s in wider.samples)
    with pytest.raises(UsageError, match="sparkle"):
        Judges({"letters": letters_judge}, Expression.parse("letters"), also=frozenset({"sparkle"}))


def scored(policy: Any, batch: Batch, rows: list[int]) -> list[list[float]]:
    """Log-probabilities of some plans and their images, one list per action sequence, without padding."""
    segments, _ = batch.segments(torch.tensor(rows))
    with torch.no_grad():
        found = policy.module(segments)
    return [s.log_prob[k][segments[n].tensors["mask"][k]].tolist() for n, s in found.items() for k in range(len(segments[n]))]


def close(one: list[list[float]], other: list[list[float]]) -> bool:
    return all(a == pytest.approx(b, abs=2e-5) for a, b in zip(one, other, strict=True))  # float32, batches of other shapes


def test_segments_take_plans_with_their_images(policy: Any, letters_judge: Any) -> None:
    batch = tree(policy, letters_judge)
    rows = [1, 5, 6, 14]
    segments, images = batch.segments(torch.tensor(rows))
    assert segments[PLAN].chains == tuple(batch.plans.chains[r] for r in rows)
    wanted = [k for k, at in enumerate(batch.place.tolist()) if at // M in rows]
    assert images.tolist() == wanted
    local = segments[IMAGE].tensors["parent"].tolist()
    assert [rows[p] for p in local] == [batch.place[k].item() // M for k in wanted]
    with torch.no_grad():
        found = policy.module(segments)
    for name, rollout in segments.items():
        mask = rollout.tensors["mask"]
        assert (found[name].log_prob - rollout.tensors["log_prob"])[mask].abs().max() <= 1e-4  # the right rows meet


def test_keep_is_the_batch_of_those_prompts(policy: Any, letters_judge: Any) -> None:
    batch = tree(policy, letters_judge)
    kept = batch.keep([0, 2])
    alone = join_batches([tree(policy, letters_judge, prompts=[PROMPTS[i]], first=20 + i) for i in (0, 2)])
    assert kept.prompts == alone.prompts == (PROMPTS[0], PROMPTS[2])
    same_samples(kept.samples, alone.samples)
    assert torch.equal(kept.place, alone.place)
    assert close(scored(policy, kept, [0, 3, 6]), scored(policy, alone, [0, 3, 6]))
    assert close(scored(policy, kept, [0, 3, 6]), scored(policy, batch, [0, 3, 10]))


def test_joined_batches_score_as_their_parts(policy: Any, letters_judge: Any) -> None:
    parts = [tree(policy, letters_judge, prompts=[p], first=20 + i) for i, p in enumerate(PROMPTS)]
    whole = join_batches(parts)
    apart = [values for part in parts for values in scored(policy, part, list(range(N)))]
    together = scored(policy, whole, list(range(4 * N)))
    assert sorted(map(len, apart)) == sorted(map(len, together))
    plans = [v for part in parts for v in scored(policy, part, list(range(N)))[:N]]
    assert close(together[: 4 * N], plans)
    assert close(together[4 * N :], [v for part in parts for v in scored(policy, part, list(range(N)))[N:]])


def test_join_pads_at_the_right(policy: Any) -> None:
    short = policy.plan([Prompt("a")], seeds=[0], sampling=Sampling(max_chain_tokens=2))
    long = policy.plan([Prompt("a much longer prompt")] * 3, seeds=[1, 2, 3], sampling=Sampling(max_chain_tokens=9))
    both = join([short, long])
    assert len(both) == 4
    assert both.tensors["tokens"].shape == (4, long.tensors["tokens"].shape[1])
    assert not both.tensors["mask"][0, short.tensors["mask"].shape[1] :].any()
    assert both.chains == short.chains + long.chains
    assert join([short]) is short


def test_evaluation_draws_what_draw_draws(policy: Any, letters_judge: Any) -> None:
    judges = Judges({"letters": letters_judge}, Expression.parse("letters"))
    judged = evaluate(policy, policy, judges, PROMPTS, RolloutSettings(SAMPLING, seed=(5,), chunk=3))
    drawn = draw_samples(policy, policy, PROMPTS, sampling=SAMPLING, seed=5, batch=2)
    for a, b in zip(judged, drawn, strict=True):
        assert (a.chain, a.lineage) == (b.chain, b.lineage)
        same_image(a, b)
    best = evaluate(policy, policy, judges, PROMPTS, RolloutSettings(SAMPLING, seed=(5,), plans=3, chunk=64))
    assert all(b.reward >= a.reward for a, b in zip(judged, best, strict=True))
    assert [s.prompt for s in best] == PROMPTS
