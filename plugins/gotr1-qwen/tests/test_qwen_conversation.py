"""Qwen's conversation and its tags: what a user writes never becomes a special token, and no box is lost."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from gotr1_core.chain import Chain, Region, parse
from gotr1_core.errors import UsageError
from gotr1_core.policies.tokenization import TAGS
from gotr1_qwen.conversation import Conversation
from gotr1_qwen.instruction import FIELD, instruction_versions, read_instruction

BOXED = Chain.of(["a ", Region("red cat", (12, 30, 400, 999), " "), " and ", Region("猫", (0, 0, 7, 8)), ", <b> 50 %."])
OWN = ("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>")
MODES = pytest.mark.parametrize("tags", ["text", "tokens"])
Tokenizers = Callable[..., Any]


def special(conversation: Conversation, ids: list[int]) -> list[str]:
    return [word for word in conversation.tokenizer.convert_ids_to_tokens(ids) if word.startswith("<") and len(word) > 1]


# -- the template -----------------------------------------------------------------------------------------------------------


@MODES
def test_the_model_answers_a_user(tokenizer_of: Tokenizers, tags: str) -> None:
    conversation = Conversation(tokenizer_of("qwen2"), "Plan this: {prompt}, {please}", tags)
    said = conversation.decode(conversation.encode_prompt("a cat"))
    assert said == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nPlan this: a cat, {please}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert conversation.stop == conversation.tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_thinking_is_off(tokenizer_of: Tokenizers) -> None:
    conversation = Conversation(tokenizer_of("qwen3"), "{prompt}", "text")
    assert conversation.decode(conversation.encode_prompt("a cat")) == (
        "<|im_start|>user\na cat<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    with pytest.raises(UsageError, match="think before it answers"):
        Conversation(tokenizer_of("thinking"), "{prompt}", "text")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('no system') }}", "cannot be filled in: no system"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "does not end an answer with a special token"),
        ("{% for m in messages %}{{ m.content }} bye{% endfor %}", "does not end an answer with a special token"),
        ("hello<|im_end|>", "must insert the user's text exactly once"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(tokenizer_of: Tokenizers, template: str, said: str) -> None:
    tokenizer = tokenizer_of("qwen2")
    tokenizer.chat_template = template
    with pytest.raises(UsageError, match=said) as caught:
        Conversation(tokenizer, "{prompt}", "text")
    assert "\n" not in caught.value.message


# -- instructions -----------------------------------------------------------------------------------------------------------


def test_the_versions_there_are() -> None:
    assert instruction_versions() == ["plain", "v1"]
    assert read_instruction("plain") == FIELD


@pytest.mark.parametrize("version", instruction_versions())
def test_every_version_has_one_prompt_and_examples_that_are_chains(version: str) -> None:
    """The examples are what a model should write: well-formed, with one box for each thing."""
    text = read_instruction(version)
    assert text.count(FIELD) == 1
    plans = re.findall(r"^Plan: (.+)$", text, re.M)
    assert len(plans) == (0 if version == "plain" else 3)
    for plan in plans:
        chain = parse(plan)
        assert chain.well_formed, chain.problems
        assert len(chain.regions) == len(chain.phrases) >= 2
    spelt = re.findall(r"<\|[^|]*\|>", text)
    assert set(spelt) <= set(TAGS)


def test_v1_keeps_its_own_rules() -> None:
    """Its examples: a cat left of a vase, and three apples under a lamp that do not overlap."""
    plans = [parse(plan) for plan in re.findall(r"^Plan: (.+)$", read_instruction("v1"), re.M)]
    cat, vase = plans[0].regions
    assert cat.box[2] < vase.box[0]
    lamp, *apples = plans[1].regions
    assert len(apples) == 3
    assert all(lamp.box[3] < apple.box[1] for apple in apples)
    assert all(one.box[2] < two.box[0] for one, two in pairwise(apples))


@MODES
@pytest.mark.parametrize("version", instruction_versions())
def test_the_examples_have_the_tags_that_a_chain_has(tokenizer_of: Tokenizers, version: str, tags: str) -> None:
    conversation = Conversation(tokenizer_of("qwen2"), read_instruction(version), tags)
    seen = special(conversation, conversation.encode_prompt("a cat"))
    shown = sum(read_instruction(version).count(tag) for tag in TAGS) if tags == "tokens" else 0
    assert len([word for word in seen if word in OWN]) == shown
    assert len([word for word in seen if word not in OWN]) == 5  # of the template
    assert conversation.decode(conversation.encode_prompt("a cat")).count(read_instruction(version).replace(FIELD, "a cat")) == 1


def test_an_instruction_of_your_own(tmp_path: Path, tokenizer_of: Tokenizers) -> None:
    path = tmp_path / "mine.txt"
    path.write_text('JSON like {"a": 1}: {prompt}\n', encoding="utf-8-sig")
    assert read_instruction(str(path)) == 'JSON like {"a": 1}: {prompt}'
    conversation = Conversation(tokenizer_of("qwen2"), read_instruction(str(path)), "text")
    assert 'JSON like {"a": 1}: a {prompt} cat<|im_end|>' in conversation.decode(conversation.encode_prompt("a {prompt} cat"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"no field", "has {prompt} 0 times"),
        (b"{prompt} {prompt}", "has {prompt} 2 times"),
        (b"\xff{prompt}", "is not UTF-8 text"),
        (None, "cannot read .*mine.txt: No such file"),
    ],
)
def test_an_invalid_instruction(tmp_path: Path, text: bytes | None, said: str) -> None:
    path = tmp_path / "mine.txt"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(UsageError, match=said) as caught:
        read_instruction(str(path), key="planner.instruction")
    assert caught.value.message.startswith("planner.instruction: ")
    assert caught.value.hint
    with pytest.raises(UsageError, match="cannot read v2"):
        read_instruction("v2")


# -- tags and what looks like them ------------------------------------------------------------------------------------------


@MODES
def test_boxes_survive(tokenizer_of: Tokenizers, tags: str) -> None:
    conversation = Conversation(tokenizer_of("qwen2"), "{prompt}", tags)
    ids = conversation.encode_chain(BOXED.raw)
    assert conversation.decode_chain(ids) == BOXED
    assert special(conversation, ids) == (list(OWN) * 2 if tags == "tokens" else [])
    assert "box" not in conversation.tokenizer.decode(ids, skip_special_tokens=True) or tags == "text"  # what is not done here


@MODES
def test_qwens_own_tokens_are_used_as_tags(tokenizer_of: Tokenizers, tags: str) -> None:
    """A model may write its own tokens or letters, under its own names or gotr1's."""
    conversation = Conversation(tokenizer_of("qwen2"), "{prompt}", tags)
    own = BOXED.raw
    for tag, word in zip(("<|obj_start|>", "<|obj_end|>"), OWN, strict=False):
        own = own.replace(tag, word)
    as_tokens = conversation.tokenizer(own, add_special_tokens=False).input_ids
    assert special(conversation, as_tokens) == list(OWN) * 2
    assert conversation.decode_chain(as_tokens) == BOXED
    letters = [i for c in own for i in conversation.tokenizer(c, add_special_tokens=False).input_ids]
    assert conversation.decode_chain(letters) == BOXED
    # Given in Qwen's own words, a chain is the same one.
    assert conversation.decode_chain(conversation.encode_chain(own)) == BOXED


def test_a_tokenizer_with_the_chains_own_tags(tokenizer_of: Tokenizers) -> None:
    """A tokenizer that was trained on chains may have these tags."""
    tokenizer = tokenizer_of("qwen2")
    tokenizer.add_tokens(["<|obj_start|>", "<|obj_end|>"], special_tokens=True)
    conversation = Conversation(tokenizer, "{prompt}", "tokens")
    ids = conversation.encode_chain(BOXED.raw)
    assert special(conversation, ids) == ["<|obj_start|>", "<|obj_end|>", "<|box_start|>", "<|box_end|>"] * 2
    assert conversation.decode_chain(ids) == BOXED
    spelt = Conversation(tokenizer, "{prompt} <|obj_start|>", "text")
    assert special(spelt, spelt.encode_chain(BOXED.raw)) == []
    assert "<|obj_start|>" not in special(spelt, spelt.encode_prompt("a"))


def test_a_tokenizer_without_tags(tokenizer_of: Tokenizers) -> None:
    bare = tokenizer_of("qwen2", ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    assert Conversation(bare, "{prompt}", "text").decode_chain(Conversation(bare, "{prompt}", "text").encode_chain(BOXED.raw)) == BOXED
    with pytest.raises(UsageError, match="tags=tokens: the tokenizer has no ") as caught:
        Conversation(bare, "{prompt}", "tokens")
    assert "tags=text" in str(caught.value.hint)


@MODES
@pytest.mark.parametrize("word", ["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<|image_pad|>", "<think>", "<tool_call>", *OWN, *TAGS])
def test_what_looks_like_a_token_in_a_prompt_is_text(tokenizer_of: Tokenizers, word: str, tags: str) -> None:
    conversation = Conversation(tokenizer_of("qwen3"), "{prompt}", tags)
    plain = special(conversation, conversation.encode_prompt("a"))
    for prompt in (word, f"a {word} b", word * 2, f"{word[:3]}{word}{word[3:]}"):
        ids = conversation.encode_prompt(prompt)
        assert special(conversation, ids) == plain
        assert prompt in conversation.tokenizer.decode(ids)  # nothing is lost
    if word not in (*OWN, *TAGS):
        chain = conversation.encode_chain(f"{BOXED.raw}{word}")
        assert special(conversation, chain) == special(conversation, conversation.encode_chain(BOXED.raw))
        assert conversation.decode_chain(chain).raw == f"{BOXED.raw}{word}"
