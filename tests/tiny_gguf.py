"""A tiny LLaMA that sees pictures, with random weights, as GGUF files; and llama.cpp's server (``xllamacpp``) before it.

``python tiny_gguf.py FOLDER PORT`` serves it. Digits, yes and no are its likely answers.
"""

from __future__ import annotations

import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from chat_server import answers, free_port
from torch import Tensor

WIDTH, HEADS, LAYERS, INNER, CONTEXT = 64, 4, 2, 96, 4096
EYE, EYE_INNER, PATCH, SIDE = 32, 64, 14, 56
WORDS = ["yes", "no", *"0123456789"]
TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS]
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # kinds of tokens
TURN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
KINDS = {bool: BOOL, int: UINT32, float: FLOAT32, str: STRING, list: ARRAY}


def _packed(value: Any) -> bytes:
    if isinstance(value, list):
        return struct.pack("<IQ", {**KINDS, int: INT32}[type(value[0])], len(value)) + b"".join(map(_packed, value))
    if isinstance(value, str):
        return struct.pack("<Q", len(value.encode())) + value.encode()
    return struct.pack({bool: "<?", int: "<I", float: "<f"}[type(value)], value)


def write_gguf(path: Path, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Writes a GGUF file, version 3, with float32 tensors, whose dimensions are in the order opposite to PyTorch's."""
    head, data = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(facts)), b""
    for key, value in facts.items():
        head += _packed(key) + struct.pack("<I", KINDS[type(value)]) + _packed(value)
    for name, tensor in tensors.items():
        sizes = tensor.shape[::-1]
        head += _packed(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, 0, len(data))
        data += tensor.contiguous().numpy().tobytes()
        data += bytes(-len(data) % 32)
    path.write_bytes(head + bytes(-len(head) % 32) + data)


def make_tiny_llama() -> Any:
    """transformers' model with the weights that the GGUF file gets. A constant in it makes `WORDS` likely, and spaces unlikely."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    sizes |= {"vocab_size": len(TOKENS), "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5, "initializer_range": 0.1}
    model = LlamaForCausalLM(LlamaConfig(**sizes)).eval()
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 2.0
        model.lm_head.weight[-len(WORDS) :, 0] = 2.0
        model.lm_head.weight[[TOKENS.index(f"<0x{ord(space):02X}>") for space in " \t\n"], 0] = -2.0
    return model


def make_tiny_gguf(folder: Path) -> None:
    """Writes ``model.gguf`` and the projector of its pictures, ``mmproj.gguf``."""
    facts = {"general.architecture": "llama", "llama.context_length": CONTEXT, "llama.embedding_length": WIDTH}
    facts |= {"llama.block_count": LAYERS, "llama.feed_forward_length": INNER, "llama.attention.head_count": HEADS}
    facts |= {"llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.rope.dimension_count": WIDTH // HEADS}
    facts |= {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": TOKENS, "tokenizer.ggml.scores": [0.0] * len(TOKENS)}
    facts |= {"tokenizer.ggml.token_type": [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * len(WORDS)}
    facts |= {"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.chat_template": TURN}
    write_gguf(folder / "model.gguf", facts, _llama_tensors(make_tiny_llama().state_dict()))
    eye = {"image_size": SIDE, "patch_size": PATCH, "embedding_length": EYE, "feed_forward_length": EYE_INNER, "projection_dim": WIDTH}
    eye |= {"block_count": LAYERS, "attention.head_count": 2}
    facts = {"general.architecture": "clip", "clip.has_vision_encoder": True, "clip.projector_type": "mlp", "clip.use_gelu": False}
    facts |= {f"clip.vision.{key}": value for key, value in eye.items()} | {"clip.vision.attention.layer_norm_epsilon": 1e-5}
    facts |= {"clip.vision.image_mean": [0.5] * 3, "clip.vision.image_std": [0.5] * 3}
    write_gguf(folder / "mmproj.gguf", facts, _eye_tensors())


def _llama_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """GGUF's names. Rotary positions turn neighbours there, and halves in transformers: so queries and keys have another order."""

    def turned(weight: Tensor) -> Tensor:
        return weight.view(HEADS, 2, WIDTH // HEADS // 2, WIDTH).transpose(1, 2).reshape(WIDTH, WIDTH)

    names = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj"}
    names |= {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
    names |= {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    tensors = {"token_embd.weight": state["model.embed_tokens.weight"], "output_norm.weight": state["model.norm.weight"]}
    tensors["output.weight"] = state["lm_head.weight"]
    for layer in range(LAYERS):
        for name, theirs in names.items():
            weight = state[f"model.layers.{layer}.{theirs}.weight"]
            tensors[f"blk.{layer}.{name}.weight"] = turned(weight) if name in ("attn_q", "attn_k") else weight
    return tensors


def _eye_tensors() -> dict[str, Tensor]:
    """A vision transformer of CLIP with a projector of two layers, as LLaVA 1.5 has."""
    torch.manual_seed(1)

    def linear(name: str, out: int, into: int) -> dict[str, Tensor]:
        return {f"{name}.weight": torch.randn(out, into) * 0.2, f"{name}.bias": torch.zeros(out)}

    def norm(name: str) -> dict[str, Tensor]:
        return {f"{name}.weight": torch.ones(EYE), f"{name}.bias": torch.zeros(EYE)}

    tensors = {"v.class_embd": torch.randn(EYE), "v.patch_embd.weight": torch.randn(EYE, 3, PATCH, PATCH) * 0.2}
    tensors |= {"v.position_embd.weight": torch.randn((SIDE // PATCH) ** 2 + 1, EYE)} | norm("v.pre_ln")
    for layer in range(LAYERS):
        block = f"v.blk.{layer}."
        for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
            tensors |= linear(block + name, EYE, EYE)
        tensors |= norm(f"{block}ln1") | norm(f"{block}ln2")
        tensors |= linear(f"{block}ffn_up", EYE_INNER, EYE) | linear(f"{block}ffn_down", EYE, EYE_INNER)
    return tensors | linear("mm.0", WIDTH, EYE) | linear("mm.2", WIDTH, WIDTH)


def main(folder: Path, port: int) -> None:
    """Serves the model in this process, with keys and values in float32."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.mmproj.path = str(folder / "model.gguf"), str(folder / "mmproj.gguf")
    params.model_alias = {"tiny"}
    params.port, params.n_ctx, params.n_parallel, params.warmup = port, 2 * CONTEXT, 2, False
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED  # it rounds
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    threading.Event().wait()


@contextmanager
def llama_server(folder: Path) -> Iterator[str]:
    """llama.cpp's server while the block runs; its base URL."""
    port = free_port()
    command: Sequence[str] = [sys.executable, __file__, str(folder), str(port)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        while not answers(port, "/health"):
            assert process.poll() is None, "llama.cpp's server has ended"
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
