"""Tiny Qwens of random weights with tokenizers: two layers of 32, one token for each byte, shortened templates of the releases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
OWN = ["<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>"]
VISION = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
SPECIAL = [PAD, START, END, *OWN, *VISION]
TURNS = "{% for m in messages %}<|im_start|>{{ m.role + '\\n' + m.content }}<|im_end|>\n{% endfor %}"
SYSTEM = "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
ANSWER = "{% if add_generation_prompt %}<|im_start|>assistant\n"
TEMPLATES = {
    "qwen2": SYSTEM + TURNS + ANSWER + "{% endif %}",
    # Thinks unless it is told not to; "not to" is an empty thought.
    "qwen3": TURNS + ANSWER + "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
    # The checkpoints called Thinking do so whatever they are told.
    "thinking": TURNS + ANSWER + "<think>\n{% endif %}",
}


def make_tokenizer(template: str, special: Sequence[str] = SPECIAL) -> Any:
    """Special tokens as in Qwen. Some of them, such as ``<think>``, are added tokens without being special."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, padding_side="left")
    wrapped.add_tokens([AddedToken(word, special=False, normalized=False) for word in ("<think>", "</think>", "<tool_call>")])
    wrapped.chat_template = TEMPLATES[template]
    return wrapped


def make_config(kind: str, tokenizer: Any, **changed: Any) -> Any:
    """The config of a family, with its own rotary positions and the smallest vision tower that its class takes."""
    from transformers import Qwen2_5_VLConfig, Qwen2Config, Qwen3Config, Qwen3VLConfig

    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
    text: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "bos_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": False,
        **changed,
    }
    if kind == "qwen2":
        return Qwen2Config(**text, rope_parameters=rope)
    if kind == "qwen3":
        return Qwen3Config(**text, rope_parameters=rope, head_dim=16)
    vision: dict[str, Any] = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 2, "out_hidden_size": 32, "patch_size": 4}
    names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    marks = dict(zip(names, tokenizer.convert_tokens_to_ids(VISION), strict=True), tie_word_embeddings=text["tie_word_embeddings"])
    if kind == "qwen2_5_vl":
        text |= {"rope_parameters": {**rope, "mrope_section": [2, 3, 3]}}
        return Qwen2_5_VLConfig(text_config=text, vision_config={**vision, "fullatt_block_indexes": [0], "window_size": 16}, **marks)
    text |= {"head_dim": 16, "rope_parameters": {**rope, "mrope_section": [4, 2, 2], "mrope_interleaved": True}}
    vision |= {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    return Qwen3VLConfig(text_config=text, vision_config=vision, **marks)


def make_model(kind: str, tokenizer: Any, **changed: Any) -> Any:
    """Weights ten times as large as usual, so that distributions are not flat; a chain ends after about ten tokens."""
    import torch
    import transformers

    from gotr1_qwen.checkpoint import CLASSES

    torch.manual_seed(0)
    model = getattr(transformers, CLASSES[kind])(make_config(kind, tokenizer, **changed)).eval()
    with torch.no_grad():
        # transformers begins with zeros here, where a norm has the slope of a cliff; the releases have learnt what it stands for.
        model.get_input_embeddings().weight[tokenizer.pad_token_id].normal_(std=0.2)
        if not changed.get("tie_word_embeddings"):
            model.lm_head.weight.normal_(std=0.3)
            seen = getattr(model.model, "language_model", model.model)(input_ids=torch.randint(11, 267, (16, 24))).last_hidden_state
            mean = seen.flatten(0, 1).mean(0)
            model.lm_head.weight[tokenizer.eos_token_id] = 5 * mean / mean.norm() ** 2  # on average as much above the others
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, name, getattr(model.config.get_text_config(), name))
    return model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a tiny checkpoint, by ``model_type`` and by changes of its text config."""
    made: dict[str, Path] = {}

    def of(kind: str, **changed: Any) -> Path:
        name = "-".join([kind, *(f"{key}-{value}" for key, value in changed.items())])
        if name not in made:
            made[name] = tmp_path_factory.mktemp("qwen") / name
            tokenizer = make_tokenizer("qwen3" if kind.startswith("qwen3") else "qwen2")
            make_model(kind, tokenizer, **changed).save_pretrained(made[name])
            tokenizer.save_pretrained(made[name])
        return made[name]

    return of


@pytest.fixture(scope="session")
def tokenizer_of() -> Callable[..., Any]:
    """A tokenizer with the template of a generation: qwen2, qwen3 or thinking. It may have other special tokens."""
    return make_tokenizer


@pytest.fixture
def planner(tiny: Callable[..., Path]) -> Any:
    """A new planner around a tiny Qwen2.5-VL. Its instruction is only the prompt."""
    from gotr1_qwen.options import QwenOptions
    from gotr1_qwen.planner import QwenPlanner

    return QwenPlanner(QwenOptions(model=str(tiny("qwen2_5_vl")), instruction="plain", attention="eager"))
