"""Released checkpoints for tests: the reference's fixture with a tokenizer, and one made from the tiny Janus, which is always available."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SHARED = Path(__file__).resolve().parents[4] / "shared" / "fixtures" / "deepseek-janus-tiny"
BOS, EOS, PAD, BOI = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>", "<begin_of_image>"
SPECIAL = [PAD, BOS, EOS, "<image_placeholder>", BOI, "<end_of_image>", "<|User|>", "<|Assistant|>"]


def write_tokenizer(folder: Path, special: list[str] = SPECIAL) -> None:
    """Writes a tokenizer's files as the releases have them, with one token for each byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"bos_token": BOS, "eos_token": EOS, "pad_token": {"content": PAD, "lstrip": False}}
    (folder / "special_tokens_map.json").write_text(json.dumps(named))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizerFast", "model_max_length": 2048}))


@pytest.fixture(scope="session")
def tokenizer_files() -> Callable[..., None]:
    """Writes a release's tokenizer into a folder; ``special`` are its tokens besides 256 bytes."""
    return write_tokenizer


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference's fixture with a tokenizer added: it has none."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not there: the reference's numbers are not compared")
    folder = tmp_path_factory.mktemp("reference") / "checkpoint"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(SHARED / name, folder / name)
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def expected(reference: Path) -> dict[str, Any]:
    """Values that the reference implementation computes, in float32."""
    from safetensors.torch import load_file

    return load_file(SHARED / "expected.safetensors")


@pytest.fixture(scope="session")
def release(tiny_janus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Janus in the format of the release, float32, with two tensors that nothing uses."""
    import torch
    from safetensors.torch import load_file, save_file

    from gotr1_janus.released import origin

    groups: dict[str, dict[int | None, Any]] = {}
    for name, tensor in load_file(tiny_janus / "model.safetensors").items():
        at = origin(name)
        groups.setdefault(at.name, {})[at.third] = tensor
    tensors = {name: torch.cat([parts[i] for i in sorted(parts, key=lambda i: i or 0)]) for name, parts in groups.items()}
    tensors["vision_model.vision_tower.pos_embed"] = tensors["vision_model.vision_tower.pos_embed"].unsqueeze(0)
    tensors["vision_model.vision_tower.attn_pool.latent"] = torch.randn(1, 1, 8)
    tensors["gen_vision_model.quantize.codebook_used"] = torch.zeros(16)
    folder = tmp_path_factory.mktemp("release") / "checkpoint"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    language = {"model_type": "llama", "num_attention_heads": 2, "max_position_embeddings": 512}
    (folder / "config.json").write_text(json.dumps({"model_type": "multi_modality", "language_config": language}))
    tokenizer = json.loads((tiny_janus / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<bos>", "eos_token": "<eos>"}))
    (folder / "processor_config.json").write_text(json.dumps({"pad_tag": "<pad>"}))
    return folder


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for this test only."""
    monkeypatch.setenv("GOTR1_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
