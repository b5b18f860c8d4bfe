"""Tiny checkpoints of random weights, in folders like the releases': multimodal LLMs whose answers can be read, detectors, CLIPs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
QWEN_VISION = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
INTERN_VISION = ["<img>", "</img>", "<IMG_CONTEXT>", "<video>"]
SCORES = [f'{{"description": "{word}", "score": {n}}}' for n, word in enumerate(("none", "one", "two", "some", "more", "all"))]
BOXES = {
    "qwen": ['[{"bbox_2d": [32, 5, 64, 37], "label": "x"}]', '[{"bbox_2d": [29, 52, 67, 90]}, {"bbox_2d": [2, 60, 23, 81]}]', "[]"],
    "internvl": ["<ref>x</ref><box>[[340, 60, 660, 380]]</box>", "<box>[[300, 540, 700, 940], [20, 620, 240, 840]]</box>", "<box>[]</box>"],
}
WORDS = ["yes", "no"]
TURN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
    "{% if part.type == 'image' %}PICTURE{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
PROCESSORS: dict[str, dict[str, Any]] = {  # with the keys and class names of the releases
    "qwen2_5_vl": {
        "image_processor_type": "Qwen2VLImageProcessor",
        "min_pixels": 1024,
        "max_pixels": 9216,
        "patch_size": 16,
        "merge_size": 2,
    },
    "qwen3_vl": {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "size": {"shortest_edge": 1024, "longest_edge": 9216},
        "patch_size": 16,
    },
    "internvl": {"image_processor_type": "GotOcr2ImageProcessorFast", "crop_to_patches": True, "max_patches": 12},
}


def make_tokenizer(kind: str) -> Any:
    """A token for each byte, one for each answer that the model may give, and the family's own."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    intern = kind == "internvl"
    special = [PAD, START, END, *(INTERN_VISION if intern else QWEN_VISION)]
    words = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    extra = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"} if intern else {}
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, padding_side="left", extra_special_tokens=extra
    )
    answers = [*SCORES, *BOXES["internvl" if intern else "qwen"], *WORDS]
    wrapped.add_tokens([AddedToken(word, special=False, normalized=False) for word in answers])
    picture = "<IMG_CONTEXT>\n" if intern else "<|vision_start|><|image_pad|><|vision_end|>"
    wrapped.chat_template = TURN.replace("PICTURE", picture)
    return wrapped


def make_config(kind: str, tokenizer: Any) -> Any:
    from transformers import InternVLConfig, Qwen2_5_VLConfig, Qwen3VLConfig

    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
    text: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 2048,
        "initializer_range": 0.2,
        "bos_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": False,
    }
    if kind == "internvl":
        vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "initializer_range": 0.5}
        vision |= {"image_size": [28, 28], "patch_size": [7, 7], "layer_scale_init_value": 1.0}
        image = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
        text |= {"model_type": "qwen2", "rope_parameters": rope}
        return InternVLConfig(text_config=text, vision_config=vision, image_token_id=image, image_seq_length=4, tie_word_embeddings=False)
    vision = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 2, "out_hidden_size": 32, "patch_size": 16}
    vision |= {"initializer_range": 0.5}
    names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    marks = dict(zip(names, tokenizer.convert_tokens_to_ids(QWEN_VISION), strict=True), tie_word_embeddings=False)
    if kind == "qwen2_5_vl":
        text |= {"rope_parameters": {**rope, "mrope_section": [2, 3, 3]}}
        return Qwen2_5_VLConfig(text_config=text, vision_config={**vision, "fullatt_block_indexes": [0], "window_size": 64}, **marks)
    text |= {"head_dim": 16, "rope_parameters": {**rope, "mrope_section": [4, 2, 2], "mrope_interleaved": True}}
    vision |= {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    return Qwen3VLConfig(text_config=text, vision_config=vision, **marks)


def make_model(kind: str, tokenizer: Any) -> Any:
    """A model that writes an answer and the end of its turn. Digits, yes and no are almost as likely; nothing else is."""
    import torch
    import transformers

    from gotr1_judges.families import INTERN, QWEN

    torch.manual_seed(0)
    name = {**QWEN.classes, **INTERN.classes}[kind]
    model = getattr(transformers, name)(make_config(kind, tokenizer)).eval()
    answers = [tokenizer.convert_tokens_to_ids(word) for word in [*SCORES, *BOXES["internvl" if kind == "internvl" else "qwen"], END]]
    with torch.no_grad():
        head = model.lm_head.weight
        head.zero_()
        head[tokenizer.convert_tokens_to_ids([*"0123456789", *WORDS])] = 0.4 * torch.randn(12, head.shape[1])
        head[answers] = 0.6 * torch.randn(len(answers), head.shape[1])
        sharp = ("q_norm", "k_norm") if kind == "qwen3_vl" else ("q_proj", "k_proj")  # so that every letter of a question counts
        for name, parameter in model.model.language_model.named_parameters():
            if any(part in name for part in sharp):
                parameter.mul_(4)
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, key, getattr(model.config.get_text_config(), key))
    model.generation_config.do_sample = True  # as the releases have it; a judge does not
    model.generation_config.repetition_penalty = 1.5
    return model


QUESTIONS = {
    "sem": "score\n\n{prompt}|{plan}",
    "spa": "score\n\n{prompt}",
    "pi": "score\n\n{prompt}",
    "ri": "boxes\n\n{phrase}",
    "sem-expected": "digit\n\n{prompt}|{plan}",
    "spa-expected": "digit\n\n{prompt}",
    "pi-expected": "yes\n\n{prompt}",
    "requirements": "list\n\n{prompt}",
}


@pytest.fixture(scope="session")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of very short rubrics: here a byte is a token."""
    folder = tmp_path_factory.mktemp("rubrics")
    for name, text in QUESTIONS.items():
        (folder / f"{name}.txt").write_text(f"answer: {text}\n")
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny multimodal LLM by its ``model_type``."""
    made: dict[str, Path] = {}

    def of(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("judges") / kind
            tokenizer = make_tokenizer(kind)
            make_model(kind, tokenizer).save_pretrained(made[kind])
            tokenizer.save_pretrained(made[kind])
            own = {"image_mean": CLIP_MEAN, "image_std": CLIP_STD, **PROCESSORS[kind]}
            (made[kind] / "preprocessor_config.json").write_text(json.dumps(own))
        return made[kind]

    return of


def clip_tokenizer(length: int) -> Any:
    """A small CLIP tokenizer: a token for each letter, a beginning and an end. The end has the largest id."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["!", "<unk>", *"abcdefghijklmnopqrstuvwxyz0123456789.,", "<|startoftext|>", "<|endoftext|>"]
    ids = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(" ", "")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    begin, end = ((word, ids[word]) for word in words[-2:])
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{begin[0]} $A {end[0]}", special_tokens=[begin, end])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=begin[0], eos_token=end[0], pad_token="!", unk_token="<unk>", model_max_length=length
    )


def towers(tokenizer: Any, length: int) -> dict[str, Any]:
    """The two towers of a CLIP or an OWLv2."""
    both = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 16}
    both |= {"initializer_factor": 1.0, "hidden_act": "gelu"}
    text = {**both, "vocab_size": len(tokenizer), "max_position_embeddings": length}
    text |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return {"text_config": text, "vision_config": {**both, "image_size": 32, "patch_size": 8}, "projection_dim": 16}


def enlarge(model: Any, std: float) -> Any:
    """Weights so large that inputs change outputs."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=std)
    return model.eval()


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP in transformers' format."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    folder, tokenizer = tmp_path_factory.mktemp("clip") / "tiny", clip_tokenizer(77)
    enlarge(CLIPModel(CLIPConfig(**towers(tokenizer, 77))), 0.2).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    own = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps({**own, "image_mean": CLIP_MEAN, "image_std": CLIP_STD}))
    return folder


@pytest.fixture(scope="session")
def tiny_owl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OWLv2."""
    import torch
    from transformers import Owlv2Config, Owlv2ForObjectDetection

    torch.manual_seed(0)
    folder, tokenizer = tmp_path_factory.mktemp("owlv2") / "tiny", clip_tokenizer(16)
    enlarge(Owlv2ForObjectDetection(Owlv2Config(**towers(tokenizer, 16))), 0.2).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    own = {"image_processor_type": "Owlv2ImageProcessor", "size": {"height": 32, "width": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps({**own, "image_mean": CLIP_MEAN, "image_std": CLIP_STD}))
    return folder


def bert_tokenizer() -> Any:
    """A small BERT tokenizer. The four words that Grounding DINO looks for have the ids that they have in BERT."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}
    ids |= {word: 200 + i for i, word in enumerate(["a", "red", "blue", "green", "circle", "square", "and"])}
    ids |= {f"[unused{i}]": i for i in range(1030) if i not in ids.values()}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 101), ("[SEP]", 102)])
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=32, **names)


@pytest.fixture(scope="session")
def tiny_dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Grounding DINO."""
    import torch
    from transformers import BertConfig, GroundingDinoConfig, GroundingDinoForObjectDetection, SwinConfig

    torch.manual_seed(0)
    folder, tokenizer = tmp_path_factory.mktemp("dino") / "tiny", bert_tokenizer()
    backbone = SwinConfig(image_size=64, embed_dim=8, depths=[1, 1, 1], num_heads=[1, 1, 1], window_size=4, out_indices=[2, 3])
    text = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
    )
    heads = {f"{part}_attention_heads": 2 for part in ("encoder", "decoder")} | {f"{part}_layers": 2 for part in ("encoder", "decoder")}
    heads |= {f"{part}_ffn_dim": 16 for part in ("encoder", "decoder")} | {f"{part}_n_points": 2 for part in ("encoder", "decoder")}
    config = GroundingDinoConfig(
        backbone_config=backbone, text_config=text, d_model=32, num_queries=12, num_feature_levels=3, max_text_len=32, **heads
    )
    GroundingDinoForObjectDetection(config).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    own = {"image_processor_type": "GroundingDinoImageProcessor", "size": {"shortest_edge": 64, "longest_edge": 96}}
    (folder / "preprocessor_config.json").write_text(json.dumps(own))
    return folder
