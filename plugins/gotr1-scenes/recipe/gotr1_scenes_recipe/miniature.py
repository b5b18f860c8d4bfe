"""Makes an untrained miniature: tokenizer, small Janus, and the trained VQ model. ``gotr1 sft`` then trains its language model.

python -m gotr1_scenes_recipe.miniature --vq build/vq --out build/untrained
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import JanusConfig, JanusForConditionalGeneration, JanusVisionConfig, JanusVQVAE, LlamaConfig, PreTrainedTokenizerFast

from gotr1_core.chain import BOX_END, BOX_START, OBJ_END, OBJ_START
from gotr1_core.policies.pretrained import load_pretrained
from gotr1_scenes.annotate import Annotated, annotated
from gotr1_scenes.world import CANVAS, CELL

HIDDEN = 256
BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
USER, ASSISTANT = "<|User|>", "<|Assistant|>"
EXTRA = {"image_token": "<image_placeholder>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"}
# A coordinate with its bracket is one token, so a box costs five tokens and not eleven.
SPLIT = r"\(\d+,|\d+\)|\s?[\p{L}]+|\s?\d|\s?[^\s\p{L}\d]|\s+"
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|User|>' if message['role'] == 'user' else '<|Assistant|>' }}"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|>{% endif %}"
)


def make_tokenizer(examples: int = 20_000) -> PreTrainedTokenizerFast:
    """Returns a byte-level BPE tokenizer learnt from the world's texts, with the special tokens of the released models."""
    special = [PAD, BOS, EOS, USER, ASSISTANT, *EXTRA.values(), BOX_START, BOX_END, OBJ_START, OBJ_END]
    tokenizer = learn_bpe((text for e in world_examples(examples) for text in (e.phrase.text, e.chain.raw)), special)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, extra_special_tokens=EXTRA, padding_side="left"
    )
    wrapped.chat_template = TEMPLATE
    return wrapped


def world_examples(examples: int) -> Iterator[Annotated]:
    """Returns the first ``examples`` examples of the training split."""
    return (annotated("train", 0, i) for i in range(examples))


def learn_bpe(texts: Iterable[str], special: list[str], split: str = SPLIT) -> Tokenizer:
    """Learns a byte-level BPE in which coordinates are single tokens.

    ``special`` tokens come first, in this order. No token crosses a piece of ``split``, a regular expression.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(split), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=640, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def make_model(tokenizer: PreTrainedTokenizerFast, vq: JanusVQVAE, seed: int) -> JanusForConditionalGeneration:
    """Returns a Janus of six million parameters, with a trained VQ model and otherwise random weights."""
    torch.manual_seed(seed)
    vq.config.projection_dim = vq.config.image_token_embed_dim = HIDDEN
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},  # sequences are about a hundred tokens long
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    vision = JanusVisionConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=CANVAS,
        patch_size=CELL,
        projection_dim=HIDDEN,
        num_image_tokens=(CANVAS // CELL) ** 2,
    )
    config = JanusConfig(
        text_config=text,
        vision_config=vision,
        vq_config=vq.config,
        image_token_id=tokenizer.convert_tokens_to_ids(EXTRA["image_token"]),
        tie_word_embeddings=False,
    )
    model = JanusForConditionalGeneration(config)
    model.model.vqmodel.load_state_dict(vq.state_dict())
    codebook = torch.nn.functional.normalize(vq.quantize.embedding.weight.detach(), dim=-1)
    model.model.generation_embeddings.weight.data.copy_(codebook * 8**0.5)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vq", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, load_pretrained(JanusVQVAE, args.vq), args.seed)
    shutil.rmtree(args.out, ignore_errors=True)
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    print(f"{args.out}: {sum(p.numel() for p in model.parameters()) / 1e6:.2f} million parameters, {len(tokenizer)} text tokens")


if __name__ == "__main__":
    main()
