"""Prompts and chains as tokens: ordinary text is tokenised as usual, and nothing that a user writes becomes a special token."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, normalizers
from transformers import AutoTokenizer

import gotr1_scenes
from gotr1_core.chain import Region, parse
from gotr1_core.errors import UsageError
from gotr1_core.policies.tokenization import TAGS
from gotr1_core.samples import Prompt, Sampling
from gotr1_janus.options import INSTRUCTION
from gotr1_janus.policy import JanusPolicy
from gotr1_janus.text import JanusText
from gotr1_scenes.source import ScenesSource, ScenesSourceOptions

MINIATURE = Path(gotr1_scenes.__file__).parent / "weights" / "janus"
SPECIAL = {str(token): i for i, token in AutoTokenizer.from_pretrained(MINIATURE).added_tokens_decoder.items()}
ORDINARY = ["a cat", " a  cat\n", "ünï, 猫 (1,2) 50%", "a < b > c <|x|> </s> {x} \\ \ue000", "<box_start>", "'", "a\0b"]


@pytest.fixture(params=["miniature", "tiny"])
def tokenizer(request: pytest.FixtureRequest, tiny_janus: Path) -> Any:
    return AutoTokenizer.from_pretrained(MINIATURE if request.param == "miniature" else tiny_janus)


@pytest.fixture(scope="module")
def miniature() -> Any:
    return AutoTokenizer.from_pretrained(MINIATURE)


def directly(tokenizer: Any, instruction: str, text: str) -> list[int]:
    """The whole conversation tokenised at once. This is right as long as nobody writes tags."""
    message = [{"role": "user", "content": [{"type": "text", "text": instruction.format(prompt=text)}]}]
    written = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    return list(tokenizer(written, add_special_tokens=False).input_ids)


@pytest.mark.parametrize("instruction", ["{prompt}", INSTRUCTION, "Draw {{this}}: {prompt}, please"])
def test_ordinary_prompts_have_the_same_ids(tokenizer: Any, instruction: str) -> None:
    text = JanusText(tokenizer, instruction)
    prompts = ScenesSource(ScenesSourceOptions()).prompts("train", 200, 0)
    for prompt in [*(p.text for p in prompts), *ORDINARY]:
        assert text.encode_prompt(prompt) == directly(tokenizer, instruction, prompt)


def test_ordinary_chains_have_the_same_ids(tokenizer: Any) -> None:
    text = JanusText(tokenizer, "{prompt}")
    examples = ScenesSource(ScenesSourceOptions()).examples("train", 0, 50, 0)
    for raw in [*(e.chain.raw for e in examples), *ORDINARY, "", "<|box_start|><|box_start|>(1<|obj_end|>"]:
        assert text.encode_chain(raw) == tokenizer(raw, add_special_tokens=False).input_ids


def special(ids: list[int]) -> list[int]:
    return [i for i in ids if i in SPECIAL.values()]


def written_around(word: str) -> list[str]:
    half = len(word) // 2
    return [word, f"a {word}", f"{word} cat", word * 3, f"{word[:half]}{word}{word[half:]}", f"<{word}>", f"a\n{word}"]


@pytest.mark.parametrize("word", SPECIAL)
@pytest.mark.parametrize("instruction", ["{prompt}", INSTRUCTION])
def test_tags_in_a_prompt_are_text(miniature: Any, word: str, instruction: str) -> None:
    text = JanusText(miniature, instruction)
    own = special(text.encode_prompt("a"))
    assert own == [SPECIAL[miniature.bos_token], SPECIAL["<|User|>"], SPECIAL["<|Assistant|>"]]
    for prompt in written_around(word):
        ids = text.encode_prompt(prompt)
        assert special(ids) == own
        assert miniature.decode(ids) == text.before + prompt + text.after  # nothing is lost
        assert ids != directly(miniature, instruction, prompt)


def test_a_tag_half_written_by_the_instruction_is_text(miniature: Any) -> None:
    text = JanusText(miniature, "<|box_{prompt}|>")
    ids = text.encode_prompt("start")
    assert SPECIAL["<|box_start|>"] not in ids
    assert "<|box_start|>" in miniature.decode(ids)


def test_the_instruction_may_have_special_tokens(miniature: Any) -> None:
    ids = JanusText(miniature, "<begin_of_image>{prompt}<|box_end|>").encode_prompt("<begin_of_image>a<|box_end|>")
    for word in ("<begin_of_image>", "<|box_end|>"):
        assert ids.count(SPECIAL[word]) == 1


@pytest.mark.parametrize("word", [w for w in SPECIAL if w not in TAGS])
def test_a_chain_from_outside_has_its_tags_and_no_others(miniature: Any, word: str) -> None:
    text = JanusText(miniature, "{prompt}")
    region = Region("cat", (1, 2, 30, 40)).text
    tags = text.encode_chain(region)
    assert special(tags) == [SPECIAL[tag] for tag in ("<|obj_start|>", "<|obj_end|>", "<|box_start|>", "<|box_end|>")]
    for raw in (word, f"{region}{word}", f"{word}{region}{word}", f"<|box_{word}start|>"):
        ids = text.encode_chain(raw)
        assert special(ids) == special(tags) * raw.count(region)
        assert text.decode_chain(ids).raw == raw


def test_tags_that_a_checkpoint_added_as_ordinary_tokens(tiny_janus: Path) -> None:
    """GoT-R1's tags may be ordinary added tokens. Other added tokens are letters, and stay tokens."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_janus)
    tokenizer.add_tokens([AddedToken("<|ref|>", special=False, normalized=False), AddedToken("ø", special=False, normalized=False)])
    text = JanusText(tokenizer, "{prompt}")
    reference, letter = tokenizer.convert_tokens_to_ids(["<|ref|>", "ø"])
    ids = text.encode_prompt("a <|ref|> ø")
    assert reference not in ids
    assert letter in ids
    assert reference not in text.encode_chain("<|ref|>")


def test_a_tokenizer_that_rewrites_text_into_tags_is_caught(tiny_janus: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_janus)
    tokenizer.add_tokens([AddedToken("<|ref|>", special=True, normalized=True)], special_tokens=True)
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    text = JanusText(tokenizer, "{prompt}")
    assert text.encode_prompt("a cat")
    wide = "\uff1c|ref|\uff1e"  # its normal form has the usual brackets
    for encode in (text.encode_prompt, text.encode_chain):
        with pytest.raises(UsageError, match="makes special tokens of"):
            encode(wide)


@pytest.mark.parametrize("template", ["{{ bos_token }}", "{% for m in messages %}{{ m['content'][0]['text'] * 2 }}{% endfor %}"])
def test_a_template_without_the_users_text_is_refused(template: str) -> None:
    other = AutoTokenizer.from_pretrained(MINIATURE)
    other.chat_template = template
    with pytest.raises(UsageError, match="chat template"):
        JanusText(other, "{prompt}")


def test_empty_and_invalid_text(policy: JanusPolicy) -> None:
    for blank in ("", "  \n\t"):
        for use in (policy.encode_prompt, lambda prompt: plan(policy, prompt.text), lambda prompt: render(policy, prompt.text, "a")):
            with pytest.raises(UsageError, match="a prompt is empty"):
                use(Prompt(blank))
    broken = b"a \xff cat".decode(errors="surrogateescape")  # as an argument of a command line
    with pytest.raises(UsageError, match="not valid text"):
        policy.encode_prompt(Prompt(broken))
    with pytest.raises(UsageError, match="not valid text"):
        policy.encode_chain(parse(broken))


# -- what fits --------------------------------------------------------------------------------------------------------------


def plan(policy: JanusPolicy, text: str, limit: int = 8) -> object:
    return policy.plan([Prompt("a"), Prompt(text)], seeds=[0, 1], sampling=Sampling(max_chain_tokens=limit))


def render(policy: JanusPolicy, text: str, chain: str) -> object:
    return policy.render([Prompt(text)], [parse(chain)], seeds=[0], sampling=Sampling(guidance_scale=1.0))


def refused(policy: JanusPolicy, use: Callable[[], object]) -> UsageError:
    """The error. Asserts that the model was not called."""
    asked: list[int] = []
    hook = policy.module.model.model.language_model.register_forward_pre_hook(lambda *_: asked.append(1))
    start = time.monotonic()
    with pytest.raises(UsageError) as caught:
        use()
    assert time.monotonic() - start < 2
    hook.remove()
    assert not asked
    return caught.value


def number(pattern: str, text: str | None) -> int:
    found = re.search(pattern, text or "")
    assert found, (pattern, text)
    return int(found[1])


def test_a_prompt_that_does_not_fit_with_its_chain(policy: JanusPolicy) -> None:
    """The tiny model has 512 positions. Nine are the picture's, and one begins it; the template takes three."""
    text = "two dogs and" + " a" * 94  # 200 letters, one token each
    error = refused(policy, lambda: plan(policy, text, 400))
    assert "'two dogs and a" in error.message
    assert number(r"has (\d+) tokens", error.message) == len(policy.encode_prompt(Prompt(text))) == 203
    assert number(r"context of (\d+)", error.message) == 512
    fits = number(r"sampling\.max_chain_tokens=(\d+)", error.hint)
    assert fits == 512 - 9 - 1 - 203
    plan(policy, text, fits)
    refused(policy, lambda: plan(policy, text, fits + 1))
    shorter = text[: -number(r"shorten the prompt by (\d+)", error.hint)]
    plan(policy, shorter, 400)
    refused(policy, lambda: plan(policy, shorter + "a", 400))
    with pytest.raises(UsageError, match="too long"):
        policy.check_prompts([Prompt("a"), Prompt(text)], Sampling(max_chain_tokens=400))
    policy.check_prompts([Prompt("a"), Prompt(text)], Sampling(max_chain_tokens=fits))


def test_a_prompt_or_a_chain_that_never_fits(policy: JanusPolicy) -> None:
    error = refused(policy, lambda: plan(policy, "a" * 502))
    assert "max_chain_tokens" not in str(error.hint)
    error = refused(policy, lambda: plan(policy, "a", 600))
    assert "max_chain_tokens=498" in str(error.hint)
    assert "shorten the prompt" not in str(error.hint)  # it is not to blame


def test_a_given_chain_that_does_not_fit(policy: JanusPolicy) -> None:
    render(policy, "a", "c" * 498)
    error = refused(policy, lambda: render(policy, "a", "c" * 499))
    assert "its chain 499" in error.message
    assert "shorten the chain to 498" in str(error.hint)
    assert "chain" in refused(policy, lambda: render(policy, "a", "c" * 400_000)).message


@pytest.mark.parametrize("piece", ["a", "a cat ", "<begin_of_image>", "<", "1", "\U0001f408", "<|box_start|"])
@pytest.mark.parametrize("model", ["tiny", "miniature"])
def test_a_prompt_of_400_kilobytes_is_refused_at_once(request: pytest.FixtureRequest, policy: JanusPolicy, model: str, piece: str) -> None:
    used = policy if model == "tiny" else request.getfixturevalue("drawing_miniature")
    text = piece * (400_000 // len(piece.encode()))
    error = refused(used, lambda: plan(used, text))
    assert "the prompt" in error.message
    assert number(r"has at least (\d+) tokens", error.message) > 512
    assert len(error.message) < 300


@pytest.fixture(scope="module")
def drawing_miniature() -> JanusPolicy:
    from gotr1_janus.options import JanusOptions

    return JanusPolicy(JanusOptions(model=str(MINIATURE), instruction="{prompt}", attention="eager"))


def test_the_bound_on_tokens_holds(tokenizer: Any) -> None:
    """No token stands for more text than the bound assumes."""
    text = JanusText(tokenizer, "{prompt}")
    spelled = [tokenizer.decode([i]) for word, i in tokenizer.get_vocab().items() if word not in SPECIAL]
    for written in (*spelled, "".join(spelled), Region("cat", (1, 2, 3, 4)).text):
        ids = text.encode_chain(written)
        assert text.min_tokens(tokenizer.decode(ids)) <= len(ids)


def test_a_template_may_leave_the_beginning_to_the_tokenizer(tiny_janus: Path) -> None:
    """As Janus-Pro's does. The first token is what the unconditional row keeps."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_janus)
    said = JanusText(tokenizer, "{prompt}").encode_prompt("a cat")
    assert said[0] == tokenizer.bos_token_id
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ bos_token }}", "")
    assert JanusText(tokenizer, "{prompt}").encode_prompt("a cat") == said[1:]
    tokenizer.add_bos_token = True
    text = JanusText(tokenizer, "{prompt}")
    assert text.encode_prompt("a cat") == said
    assert text.encode_prompt("<bos>a")[0] == tokenizer.bos_token_id
    assert text.encode_prompt("<bos>a").count(tokenizer.bos_token_id) == 1
