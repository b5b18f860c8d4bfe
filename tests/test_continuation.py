"""Rows continued token by token, against the library's own forward over whole sequences.

Tolerance: float32 sums of 64 terms in another order, in three layers: about 1e-6 of states near 1. In bfloat16 a state near 1 is rounded to
2 ** -8, in each of three layers.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gotr1_core.errors import UsageError
from gotr1_core.policies import cache, decoder_step
from gotr1_core.policies.cache import KeyValueCache
from gotr1_core.policies.continuation import Continuation
from gotr1_core.policies.padding import left_pad, mask_and_positions
from gotr1_core.sampling import Tokens, uniforms

FLOAT32, BFLOAT16 = 1e-5, 0.1
SIZES: dict[str, Any] = {
    **{"vocab_size": 40, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.2},
}
STOP, STEPS = 7, 12


def decoder(kind: str, **more: Any) -> Any:
    import transformers

    config, model = {
        "llama": (transformers.LlamaConfig, transformers.LlamaModel),
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2Model),
        "qwen3": (transformers.Qwen3Config, transformers.Qwen3Model),
    }[kind]
    torch.manual_seed(0)
    made = model(config(**{**SIZES, **more})).eval().requires_grad_(False)
    made.set_attn_implementation("eager")
    for name, bias in made.named_parameters():
        if name.endswith("bias"):  # of Qwen2, which begins with 0
            nn.init.normal_(bias, std=0.5)
    return made


def whole(language: Any, rows: list[Tensor]) -> list[Tensor]:
    """The states of each row by itself, ``[L, H]``, without a cache."""
    return [language(input_ids=row.unsqueeze(0), use_cache=False).last_hidden_state[0] for row in rows]


def some_rows() -> list[Tensor]:
    torch.manual_seed(1)
    first, second = torch.randint(8, 40, (5,)), torch.randint(8, 40, (3,))
    return [first, first, second, first[1:], second]


def begin(language: Any, rows: list[Tensor], *, fixed: bool = False, steps: int = STEPS) -> Continuation:
    return Continuation.read(language, language.get_input_embeddings(), *left_pad(rows), steps=steps, fixed=fixed)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("way", ["dynamic", "fixed", "unknown layers"])
@torch.no_grad()
def test_states_are_those_of_the_whole_sequence(kind: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    language = decoder(kind)
    if way == "unknown layers":
        monkeypatch.setattr(decoder_step, "LAYERS", set())
    rows, fed = some_rows(), torch.randint(8, 40, (5, 6))
    continued = begin(language, rows, fixed=way == "fixed")
    assert (continued.decoder is None) == (way == "unknown layers")
    expected = whole(language, [torch.cat([row, more]) for row, more in zip(rows, fed, strict=True)])
    states = [continued.hidden, *(continued.step(language.get_input_embeddings()(fed[:, t])) for t in range(6))]
    for row, states_of_row in enumerate(expected):
        found = torch.stack([state[row] for state in states if state is not None])
        assert (found - states_of_row[len(rows[row]) - 1 :]).abs().max() < FLOAT32


@torch.no_grad()
def test_adapters_take_part() -> None:
    from peft import LoraConfig, inject_adapter_in_model

    language = decoder("llama")
    plain = whole(language, some_rows())
    config = LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    language = inject_adapter_in_model(config, language).eval()
    rows = some_rows()
    continued = begin(language, [row[:-1] for row in rows])
    found = continued.step(language.get_input_embeddings()(torch.stack([row[-1] for row in rows])))
    expected = torch.stack([states[-1] for states in whole(language, rows)])
    assert (found - expected).abs().max() < FLOAT32
    assert (expected - torch.stack([states[-1] for states in plain])).abs().max() > 0.1


@torch.no_grad()
def test_bfloat16() -> None:
    language = decoder("llama").to(torch.bfloat16)
    rows = some_rows()
    continued = begin(language, [row[:-1] for row in rows])
    found = continued.step(language.get_input_embeddings()(torch.stack([row[-1] for row in rows])))
    assert found.dtype == torch.bfloat16
    expected = torch.stack([states[-1] for states in whole(language, rows)])
    assert (found - expected).abs().max() < BFLOAT16


@torch.no_grad()
def test_weights_are_read_when_rows_begin() -> None:
    """A copy of weights is never older than the rows that it continues."""
    language = decoder("llama")
    begin(language, some_rows())
    for parameter in language.parameters():
        parameter.mul_(1.1)
    rows = some_rows()
    continued = begin(language, [row[:-1] for row in rows])
    found = continued.step(language.get_input_embeddings()(torch.stack([row[-1] for row in rows])))
    assert (found - torch.stack([states[-1] for states in whole(language, rows)])).abs().max() < 10 * FLOAT32


# -- sampling ---------------------------------------------------------------------------------------------------------------


def sampled(language: Any, rows: list[Tensor], seeds: list[int], *, fixed: bool = False) -> tuple[Continuation, Tokens]:
    torch.manual_seed(2)
    head = nn.Linear(64, 40).requires_grad_(False)
    head.bias[STOP] += 2  # chains of many lengths
    continued = begin(language, rows, fixed=fixed)
    return continued, continued.generate(head, language.get_input_embeddings(), uniforms(seeds, STEPS), 1.0, STOP)


@pytest.mark.parametrize("fixed", [False, True])
@torch.no_grad()
def test_rows_change_places_and_stay_themselves(fixed: bool) -> None:
    """Chains of many lengths: most rows leave early, and others take their places. Each is sampled as if it were alone."""
    language = decoder("llama")
    rows = [row for row in some_rows() for _ in range(8)]
    _, together = sampled(language, rows, list(range(40)), fixed=fixed)
    assert len(set(together.mask.sum(1).tolist())) > 5
    assert not together.finished.all()
    for row in range(0, 40, 3):
        _, alone = sampled(language, [rows[row]], [row])
        assert torch.equal(alone.tokens[0], together.tokens[row, : alone.tokens.shape[1]])
        assert (alone.log_prob[0] - together.log_prob[row, : alone.tokens.shape[1]]).abs().max() < 1e-5


@pytest.mark.parametrize("fixed", [False, True])
@torch.no_grad()
def test_a_memory_goes_on_where_its_rows_ended(fixed: bool) -> None:
    """Also rows that were cut, rows named twice, and rows left out."""
    language = decoder("llama")
    embed = language.get_input_embeddings()
    rows = [row for row in some_rows() for _ in range(8)]
    continued, tokens = sampled(language, rows, list(range(40)), fixed=fixed)
    memory = continued.remember(embed, tokens)
    chosen = torch.tensor([39, 3, 3, 17, 20, 0, 31])
    length = (tokens.mask.sum(1) - tokens.finished.long()).tolist()
    assert not tokens.finished[chosen].all()
    more = torch.randint(8, 40, (7, 3))
    texts = [torch.cat([rows[r], tokens.tokens[r, : length[r]], fed]) for r, fed in zip(chosen.tolist(), more, strict=True)]
    recalled = Continuation.recall(language, memory.rows(chosen), steps=3, fixed=fixed)
    assert recalled.lengths.tolist() == [len(text) - 3 for text in texts]
    states = torch.stack([recalled.step(embed(more[:, t])) for t in range(3)], 1)
    expected = torch.stack([found[-3:] for found in whole(language, texts)])
    assert (states - expected).abs().max() < FLOAT32
    assert not memory.holds(language)  # used up


@torch.no_grad()
def test_a_memory_holds_for_the_weights_that_made_it() -> None:
    language = decoder("llama")
    continued, tokens = sampled(language, some_rows(), [0, 1, 2, 3, 4])
    memory = continued.remember(language.get_input_embeddings(), tokens)
    assert memory.holds(language)
    language.layers[1].mlp.down_proj.weight.mul_(1.1)
    assert not memory.holds(language)


@pytest.mark.parametrize("fixed", [False, True])
@torch.no_grad()
def test_unconditional_rows_see_as_much_of_one_beginning(fixed: bool) -> None:
    language = decoder("llama")
    embed = language.get_input_embeddings()
    rows, shared = some_rows(), torch.tensor([9, 2, 2, 2, 2])
    continued = begin(language, rows, fixed=fixed)
    continued.add_unconditional(embed, shared)
    fed = torch.randint(8, 40, (5, 4))
    states = torch.stack([continued.step(embed(torch.cat([fed[:, t], fed[:, t]]))) for t in range(4)], 1)
    texts = [torch.cat([row, more]) for row, more in zip(rows, fed, strict=True)]
    texts += [torch.cat([shared[: len(row)], more]) for row, more in zip(rows, fed, strict=True)]
    expected = torch.stack([found[-4:] for found in whole(language, texts)])
    assert (states - expected).abs().max() < FLOAT32


@torch.no_grad()
def test_looking_rarely_for_ended_rows_changes_no_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, which would have to be waited for."""
    from gotr1_core.policies import continuation

    language, rows = decoder("llama"), [row for row in some_rows() for _ in range(4)]
    _, often = sampled(language, rows, list(range(20)))
    monkeypatch.setattr(continuation, "decode", lambda *given, check_every, **more: decode_rarely(*given, **more))
    _, rarely = sampled(language, rows, list(range(20)))
    for name in ("tokens", "mask", "finished"):
        assert torch.equal(getattr(often, name), getattr(rarely, name))


def decode_rarely(*given: Any, **more: Any) -> Tokens:
    from gotr1_core.sampling import decode

    return decode(*given, check_every=5, **more)


# -- the cache --------------------------------------------------------------------------------------------------------------


def test_a_cache_grows_as_its_rows_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "GROWTH", 2)
    made, written = KeyValueCache(9), []
    for count in (1, 1, 3, 4):
        pair = torch.randn(2, 3, 2, count, 4)
        written.append(pair)
        keys, values = made.write(0, pair[0], pair[1])
        assert torch.equal(keys, torch.cat([p[0] for p in written], 2))
        assert torch.equal(values, torch.cat([p[1] for p in written], 2))
        assert made.layers[0].shape[3] <= 9
    assert made.length == made.get_seq_length() == 9
    assert made.get_mask_sizes(1, 0) == (10, 0)


def test_columns_that_nobody_wrote_are_no_numbers_that_spread() -> None:
    """A row that no longer goes on has such columns. A masked NaN would still be NaN times 0 in the sum."""
    torch.use_deterministic_algorithms(True)  # with it torch fills what nobody has written with NaN
    try:
        made = KeyValueCache(cache.GROWTH + 2)
        assert torch.empty(3).isnan().all()
        for count in (4, cache.GROWTH - 2):  # the second makes more room
            made.write(0, torch.ones(2, 1, count, 4), torch.ones(2, 1, count, 4))
            assert made.layers[0].isfinite().all()
        assert made.empty_like(3, 9).layers[0].isfinite().all()
    finally:
        torch.use_deterministic_algorithms(False)


@torch.no_grad()
def test_static_needs_layers_that_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_step, "LAYERS", set())
    with pytest.raises(UsageError, match="cache=static: the decoder LlamaModel is not known"):
        begin(decoder("llama"), some_rows(), fixed=True)
    with pytest.raises(ValueError, match=r"where DecoderStep.supports"):
        begin(decoder("llama"), some_rows()).add_unconditional(nn.Embedding(40, 64), torch.tensor([1]))


def test_windows_and_changing_positions_are_not_known() -> None:
    assert decoder_step.DecoderStep.supports(decoder("llama"))
    assert not decoder_step.DecoderStep.supports(decoder("qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=0))
    scaled = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    assert not decoder_step.DecoderStep.supports(decoder("llama", rope_parameters=scaled))


def test_positions_of_padding_are_those_of_lengths() -> None:
    mask, positions = mask_and_positions(torch.tensor([1, 3]), 3)
    assert mask.tolist() == [[False, False, True], [True, True, True]]
    assert positions.tolist() == [[0, 0, 0], [0, 1, 2]]
