"""Text in pieces: text that fits is encoded as by diffusers, longer text is cut into pieces and none of it is lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from gotr1_core.chain import Chain, Mention, Region
from gotr1_core.samples import Prompt
from gotr1_diffusers.text import encode_texts, full_text

SHORT, LONG = "a cat", "a red circle above a blue square"  # eight letters are ten ids with their frame, of twelve
CHAIN = Chain.of(["two: ", Region("red cat", (0, 0, 500, 999)), Mention("dog"), " ", Region("a mat of great length", (500, 0, 999, 999))])


def test_prompt_and_chain_are_read_without_boxes() -> None:
    assert full_text(Prompt(" a cat "), CHAIN) == "a cat two: red cat dog a mat of great length"
    assert full_text(Prompt("a cat"), Chain.of([])) == "a cat"


def test_what_fits_is_encoded_as_diffusers_does(sdxl: Callable[..., Any]) -> None:
    policy = sdxl()
    texts = policy.module.texts
    with torch.no_grad():
        states, pooled = encode_texts(
            list(policy.module.text_encoders), torch.stack([texts.first_piece(SHORT), texts.first_piece("a dog")])
        )
        expected, _, expected_pooled, _ = policy.pipeline.encode_prompt([SHORT, "a dog"], do_classifier_free_guidance=False)
    assert torch.equal(states, expected)
    assert torch.equal(pooled, expected_pooled)


def test_what_does_not_fit_is_cut_into_pieces(sdxl: Callable[..., Any]) -> None:
    texts = sdxl().module.texts
    piece_tokenizer = texts.tokenizers[0]
    ids = piece_tokenizer.tokenizer(LONG, add_special_tokens=False).input_ids
    pieces = piece_tokenizer.pieces(LONG)
    assert len(pieces) == -(-len(ids) // 10) > 2
    assert all(len(piece) == 12 for piece in pieces)
    begin, end = piece_tokenizer.tokenizer.bos_token_id, piece_tokenizer.tokenizer.eos_token_id
    inner = [piece[1 : piece.tolist().index(end)] for piece in pieces]
    assert torch.cat(inner).tolist() == ids
    assert {int(piece[0]) for piece in pieces} == {begin}
    assert len(piece_tokenizer.pieces("")) == 1


def test_the_two_tokenizers_pad_in_their_own_ways(sdxl: Callable[..., Any]) -> None:
    texts = sdxl().module.texts
    first, second = texts.first_piece("ab")
    assert first[:4].equal(second[:4])
    assert {int(i) for i in first[4:]} == {texts.tokenizers[0].tokenizer.eos_token_id}
    assert {int(i) for i in second[4:]} == {texts.tokenizers[1].tokenizer.pad_token_id} != {texts.tokenizers[1].tokenizer.eos_token_id}


def test_special_tokens_in_a_text_do_not_end_it(sdxl: Callable[..., Any]) -> None:
    piece_tokenizer = sdxl().module.texts.tokenizers[0]
    end = piece_tokenizer.tokenizer.eos_token_id
    for piece in piece_tokenizer.pieces("a <|endoftext|> cat <|startoftext|>"):
        ids = piece.tolist()
        assert set(ids[ids.index(end) :]) == {end}
        assert piece_tokenizer.tokenizer.bos_token_id not in ids[1:]


def test_letters_of_any_script_are_read(sdxl: Callable[..., Any]) -> None:
    piece_tokenizer = sdxl().module.texts.tokenizers[0]
    (piece,) = piece_tokenizer.pieces("猫é")
    assert piece.tolist().index(piece_tokenizer.tokenizer.eos_token_id) == 1 + 3 + 2  # bytes of UTF-8


def test_regions_are_phrases_with_boxes(sdxl: Callable[..., Any]) -> None:
    policy = sdxl()
    chains = [CHAIN, Chain.of([]), Chain.of([Region("x", (0, 0, 999, 1))])]
    inputs = policy.condition_inputs([Prompt("a"), Prompt("b"), Prompt(LONG)], chains)
    assert inputs["boxes"].shape == (3, 2, 4)
    assert inputs["boxes"][0].tolist() == [pytest.approx([0, 0, 500 / 999, 1]), pytest.approx([500 / 999, 0, 1, 1])]
    assert (inputs["boxes"][1] == 0).all()
    assert inputs["phrases"][0, 0].equal(policy.module.texts.first_piece("red cat"))
    assert inputs["phrases"][0, 1].equal(policy.module.texts.pieces("a mat of great length")[0])  # cut to one piece
    assert inputs["pieces"].tolist()[1] == 1
    without = sdxl(layout="none").condition_inputs([Prompt("a")], [CHAIN])
    assert without["boxes"].shape == (1, 0, 4)
    assert without["phrases"].shape[1] == 0


def test_the_same_pieces_are_encoded_once(sdxl: Callable[..., Any]) -> None:
    policy = sdxl()
    inputs = policy.condition_inputs([Prompt("a cat")] * 6, [CHAIN] * 6)
    rows = []
    encoder = policy.module.text_encoders[0]
    encoder.register_forward_hook(lambda module, inputs, output: rows.append(len(inputs[0])))
    condition = policy.module.condition(inputs)
    assert rows == [len(inputs["text"][0]) + 2]
    assert condition.text[0].equal(condition.text[5])


@pytest.mark.parametrize("zeros", [True, False])
def test_the_unconditional_text_equals_that_of_diffusers(sdxl_in_memory: Callable[..., Any], zeros: bool) -> None:
    from gotr1_diffusers.options import SdxlOptions
    from gotr1_diffusers.sdxl import SdxlPolicy

    pipeline = sdxl_in_memory()
    pipeline.register_to_config(force_zeros_for_empty_prompt=zeros)
    policy = SdxlPolicy.from_pipeline(pipeline, SdxlOptions())
    with torch.no_grad():
        asked = policy.module.condition(policy.condition_inputs([Prompt("a cat"), Prompt(LONG)], [Chain.of([]), CHAIN]))
        nothing = policy.module.unconditional(asked)
        _, expected, _, pooled = pipeline.encode_prompt(["a cat"], do_classifier_free_guidance=True)
    assert nothing.text[:, :12].equal(expected.expand(2, -1, -1))
    assert nothing.pooled.equal(pooled.expand(2, -1))
    assert nothing.text_mask.sum(1).tolist() == [12, 12]
    assert (nothing.boxes == 0).all()
    assert asked.text_mask.sum(1).tolist() == [12, 12 * len(policy.module.texts.pieces(full_text(Prompt(LONG), CHAIN)))]


def test_sd3_encodes_text_as_diffusers_does(flow: Callable[..., Any]) -> None:
    policy = flow(text_tokens=20)
    prompts = [Prompt("a cat"), Prompt("two dogs")]
    with torch.no_grad():
        found = policy.module.condition(policy.condition_inputs(prompts, [Chain.of([])] * 2))
        nothing = policy.module.unconditional(found)
        texts = [p.text for p in prompts]
        expected, negative, pooled, none = policy.pipeline.encode_prompt(texts, texts, texts, max_sequence_length=20)
    torch.testing.assert_close(found.text, expected, rtol=0, atol=1e-6)  # encoded in batches of another shape
    torch.testing.assert_close(found.pooled, pooled, rtol=0, atol=1e-6)
    torch.testing.assert_close(nothing.text, negative, rtol=0, atol=1e-6)
    torch.testing.assert_close(nothing.pooled, none, rtol=0, atol=1e-6)


def test_sd3_does_without_t5_as_diffusers_does(flow_in_memory: Callable[..., Any]) -> None:
    from gotr1_diffusers.flow import FlowPolicy
    from gotr1_diffusers.options import FlowOptions

    pipeline = flow_in_memory(t5=False)
    policy = FlowPolicy.from_pipeline(pipeline, FlowOptions(text_tokens=20))
    with torch.no_grad():
        found = policy.module.condition(policy.condition_inputs([Prompt("a cat")], [Chain.of([])]))
        expected, _, pooled, _ = pipeline.encode_prompt("a cat", "a cat", "a cat", max_sequence_length=20)
    torch.testing.assert_close(found.text, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.pooled, pooled, rtol=0, atol=1e-6)


@pytest.mark.parametrize("word", ["</s>", "<pad>", "<extra_id_0>", "<unk>", "<</s>/s>"])
def test_special_tokens_in_a_prompt_are_text_for_t5(flow: Callable[..., Any], word: str) -> None:
    """T5's vocabulary has its special tokens as ordinary pieces too."""
    from transformers import T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((letter, -3.0) for letter in "▁abcdefghijklmnopqrstuvwxyz0<>/_")]
    module = flow(text_tokens=60).module
    module.t5 = T5Tokenizer(vocab=[*pieces, ("<extra_id_0>", 0.0)], extra_ids=1)

    def special(text: str) -> list[int]:
        ids = module.tokenize([text])["t5"][0].tolist()
        while ids[-1] == module.t5.pad_token_id:
            ids.pop()
        return [i for i in ids if i in module.t5.all_special_ids]

    assert special(f"a dog {word} a red{word}bus") == special("a dog a red bus") == [module.t5.eos_token_id]
    assert special("a 猫犬") == [module.t5.unk_token_id, module.t5.eos_token_id]
