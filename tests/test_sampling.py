"""Sampling of tokens by the inverse CDF, and their log-probabilities: the sampler and the scorer use one distribution."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gotr1_core.sampling import apply_guidance, decode, sample_token, seed_for, token_stats, uniforms

ALMOST_ONE = math.nextafter(1.0, 0.0)


def logits_of(*probabilities: float) -> Tensor:
    return torch.tensor([probabilities]).log()


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
def test_frequencies_follow_the_softmax(temperature: float) -> None:
    torch.manual_seed(0)
    logits, draws = torch.randn(1, 12) * 2, 40_000
    token, _ = sample_token(logits.expand(draws, -1), uniforms([5], draws)[0], temperature)
    expected = torch.softmax(logits[0].double() / temperature, -1) * draws
    chi = ((torch.bincount(token, minlength=12) - expected) ** 2 / expected).sum().item()
    # Chi-square with 11 degrees of freedom exceeds 38 once in ten thousand; the seed is fixed. At another temperature it is > 1000.
    assert chi < 38
    elsewhere = torch.softmax(logits[0].double() / (temperature + 0.3), -1) * draws
    assert ((torch.bincount(token, minlength=12) - elsewhere) ** 2 / elsewhere).sum().item() > 300


def test_log_probability_is_that_of_the_tempered_softmax() -> None:
    torch.manual_seed(0)
    logits = torch.randn(50, 9)
    token, chosen = sample_token(logits, uniforms([1], 50)[0], 0.7)
    expected = torch.log_softmax(logits / 0.7, -1)[torch.arange(50), token]
    assert torch.equal(chosen, expected)


@pytest.mark.parametrize("uniform", [0.0, 0.25, 0.5, ALMOST_ONE])
@pytest.mark.parametrize("probabilities", [(0.0, 0.5, 0.5, 0.0), (0.0, 1.0, 0.0, 0.0), (0.3, 0.0, 0.7, 0.0)])
def test_impossible_tokens_are_never_picked(uniform: float, probabilities: tuple[float, ...]) -> None:
    token, chosen = sample_token(logits_of(*probabilities), torch.tensor([uniform], dtype=torch.float64), 1.0)
    assert probabilities[token.item()] > 0
    assert chosen.isfinite().all()


def test_a_uniform_number_near_one_picks_the_last_possible_token() -> None:
    """Sums of 4096 rounded probabilities lie on both sides of 1. Without scaling, or in float32, u would pass the last of them."""
    torch.manual_seed(0)
    logits = torch.randn(400, 4096) * 3
    logits[:, -96:] = -math.inf
    token, chosen = sample_token(logits, torch.full((400,), ALMOST_ONE, dtype=torch.float64), 1.0)
    assert chosen.isfinite().all()
    assert (token < 4000).all()


def test_greedy_takes_the_mode() -> None:
    token, chosen = sample_token(torch.tensor([[0.0, 3.0, 1.0]]), torch.tensor([0.99], dtype=torch.float64), 0.0)
    assert token.item() == 1
    assert chosen.item() == 0


def test_seeds_are_reproducible_and_every_row_has_its_own_stream() -> None:
    both = uniforms([7, 8], 20)
    assert torch.equal(uniforms([8], 20)[0], both[1])
    assert torch.equal(uniforms([8], 5)[0], both[1, :5])  # a shorter limit does not change what comes before it
    assert not torch.equal(both[0], both[1])
    assert both.dtype == torch.float64
    assert both.min() >= 0
    assert both.max() < 1
    assert uniforms([], 4).shape == (0, 4)


def test_seed_for_tells_lineages_apart() -> None:
    lineages = [(0, 1, 2), (0, 12), (0, 1, 2, "plan"), (0, 1, 2, "image"), (0, 2, 1), (1, 1, 2)]
    seeds = [seed_for(*lineage) for lineage in lineages]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_for("evaluation", 1, 0) == seed_for("evaluation", 1, 0)


def test_guidance_formula() -> None:
    c, u = torch.tensor([2.0, -1.0]), torch.tensor([1.0, 3.0])
    assert torch.equal(apply_guidance(c, u, 5.0), torch.tensor([6.0, -17.0]))
    assert torch.equal(apply_guidance(c, u, 1.0), c)
    assert torch.equal(apply_guidance(c, u, 0.0), u)
    assert apply_guidance(c, None, 5.0) is c


def chain_model(table: Tensor, rows: int) -> Callable[[Tensor | None], Tensor]:
    """A Markov chain: the next logits depend on the last token. ``table[-1]`` gives the first logits."""

    def advance(tokens: Tensor | None) -> Tensor:
        return table[-1].expand(rows, -1) if tokens is None else table[tokens]

    return advance


def test_tokens_do_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    table, seeds = torch.randn(7, 6), [3, 1, 4, 15, 9]
    together = decode(chain_model(table, 5), uniforms(seeds, 10), 1.0)
    for row, seed in enumerate(seeds):
        alone = decode(chain_model(table, 1), uniforms([seed], 10), 1.0)
        assert torch.equal(alone.tokens[0], together.tokens[row])
        assert torch.equal(alone.log_prob[0], together.log_prob[row])


def test_stop_token_ends_a_row_and_masks_the_rest() -> None:
    torch.manual_seed(0)
    table, stop = torch.randn(5, 4), 2
    uniform = uniforms(range(30), 8)
    free = decode(chain_model(table, 30), uniform, 1.0)
    found = decode(chain_model(table, 30), uniform, 1.0, stop=stop)
    ends = set()
    for row in range(30):
        places = (free.tokens[row] == stop).nonzero().flatten().tolist()
        end = places[0] + 1 if places else 8  # the stop token is an action of its own
        ends.add(end)
        assert found.mask[row].tolist() == [True] * end + [False] * (found.mask.shape[1] - end)
        assert found.tokens[row, :end].tolist() == free.tokens[row, :end].tolist()
        assert found.tokens[row, end:].eq(stop).all()
        assert torch.equal(found.log_prob[row, :end], free.log_prob[row, :end])
        assert found.log_prob[row, end:].eq(0).all()
        assert found.finished[row].item() == bool(places)
    assert {1, 8} <= ends  # otherwise the cases above were not all there
    assert free.mask.all()


def test_rows_that_have_stopped_are_left_out() -> None:
    """Each row is a different chain, so that rows which changed places would be noticed."""
    torch.manual_seed(0)
    tables, stop, uniform = torch.randn(30, 5, 4), 2, uniforms(range(30), 12)
    everything = decode(lambda tokens: tables[torch.arange(30), -1 if tokens is None else tokens], uniform, 1.0, stop=stop)
    rows, fed = torch.arange(30), []

    def advance(tokens: Tensor | None) -> Tensor:
        fed.append(len(rows))
        return tables[rows, -1 if tokens is None else tokens]

    def keep(places: Tensor) -> Tensor:
        nonlocal rows
        places = places.flip(0)  # a model may put the rows that go on in another order
        rows = rows[places]
        return places

    found = decode(advance, uniform, 1.0, stop=stop, keep=keep)
    assert torch.equal(found.tokens, everything.tokens)
    assert torch.equal(found.log_prob, everything.log_prob)
    assert torch.equal(found.mask, everything.mask)
    assert torch.equal(found.finished, everything.finished)
    alive = everything.mask.sum(0).tolist()
    assert fed[0] == 30
    assert sum(fed) < 0.75 * 30 * len(fed)  # of a quarter and more nothing is fed again
    assert all(0.75 * before < now <= before for before, now in zip(fed, alive, strict=True))


def test_decoding_ends_with_its_last_row() -> None:
    table = torch.full((5, 4), -20.0)
    table[:, 2] = 20.0
    found = decode(chain_model(table, 3), uniforms([0, 1, 2], 50), 1.0, stop=2)
    assert found.tokens.shape == (3, 1)
    assert found.finished.all()


def head_and_hidden() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 11))
    return head, torch.randn(23, 6, requires_grad=True), torch.randn(23, 6, requires_grad=True), torch.randint(0, 11, (23,))


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
@pytest.mark.parametrize("scale", [1.0, 3.0, 5.0])
def test_log_probabilities_equal_those_of_the_sampler(temperature: float, scale: float) -> None:
    head, hidden, other, _ = head_and_hidden()
    with torch.no_grad():
        tokens, said = sample_token(apply_guidance(head(hidden), head(other), scale), uniforms([0], 23)[0], temperature)
    log_prob, entropy = token_stats(head, hidden, tokens, temperature=temperature, unconditional=other, guidance_scale=scale)
    assert torch.equal(log_prob, said)  # the same operations on the same shapes
    log_probs = torch.log_softmax(apply_guidance(head(hidden), head(other), scale).double() / temperature, -1)
    # float32 rounding of a sum of eleven terms below 3 nats
    assert torch.allclose(entropy.double(), -(log_probs.exp() * log_probs).sum(-1), atol=1e-5)


def test_temperature_zero_is_scored_at_one() -> None:
    head, hidden, _, tokens = head_and_hidden()
    assert torch.equal(token_stats(head, hidden, tokens, temperature=0.0)[0], token_stats(head, hidden, tokens, temperature=1.0)[0])


@pytest.mark.parametrize("chunk", [1, 5, 22])
def test_chunks_change_neither_value_nor_gradient(chunk: int) -> None:
    results = []
    for size in (chunk, 4096):
        head, hidden, other, tokens = head_and_hidden()
        log_prob, entropy = token_stats(head, hidden, tokens, temperature=0.9, unconditional=other, guidance_scale=3.0, chunk=size)
        (log_prob.sum() + 0.3 * entropy.sum()).backward()
        gradients = [hidden.grad, other.grad, *(p.grad for p in head.parameters())]
        assert all(g is not None and g.abs().max() > 0 for g in gradients)
        results.append([log_prob.detach(), entropy.detach(), *gradients])
    # Matrix products of other shapes round differently: some 1e-7 of numbers of order 10 (guided logits, sums over 23 rows).
    for one, whole in zip(*results, strict=True):
        assert torch.allclose(one, whole, atol=2e-5, rtol=1e-5)


def test_nothing_to_score() -> None:
    head, hidden, _, tokens = head_and_hidden()
    log_prob, entropy = token_stats(head, hidden[:0], tokens[:0], temperature=1.0)
    assert log_prob.shape == entropy.shape == (0,)
    assert log_prob.dtype == torch.float32
