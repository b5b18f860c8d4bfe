"""Loads a CLIP whose tensors have open_clip's names into transformers' ``CLIPModel``. HPS v2.1 is such a CLIP.

The folder has the safetensors. Beside them it has the config, the tokenizer and the image processor of the same architecture in
transformers' format. For HPS v2.1 these are the files of laion/CLIP-ViT-H-14-laion2B-s32B-b79K.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from gotr1_core.errors import UsageError
from gotr1_core.policies.pretrained import load_pretrained

_OPEN_CLIP_TENSOR = "visual.conv1.weight"
_NAMES = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
_TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
"""open_clip computes ``x @ W`` with these. transformers has linear layers, which compute ``x @ W.T``."""
_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)\.(\w+)")
_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_BUFFERS = frozenset({"attn_mask"})


def is_open_clip(folder: Path) -> bool:
    """Returns true if a folder's tensors have open_clip's names."""
    from safetensors import safe_open

    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            if _OPEN_CLIP_TENSOR in tensors.keys():  # noqa: SIM118
                return True
    return False


def load_open_clip(folder: Path) -> Any:
    """Loads the ``CLIPModel`` of a folder, on the CPU. No weight may be missing.

    Raises:
        UsageError: the tensors do not fit the architecture that ``config.json`` describes.
    """
    from safetensors.torch import load_file
    from transformers import CLIPConfig, CLIPModel

    state = {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}
    model = CLIPModel(load_pretrained(CLIPConfig, folder))
    try:
        model.load_state_dict(to_transformers_names(state))
    except (RuntimeError, KeyError) as error:
        first = " ".join(str(error).split())[:200]
        raise UsageError(
            f"{folder}: the tensors do not fit the CLIP in config.json: {first}", hint="copy config.json of the same architecture into it"
        ) from error
    return model


def to_transformers_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns open_clip's tensors under transformers' names.

    Projections are transposed. The joint projection ``[3D, ...]`` of queries, keys and values becomes three tensors ``[D, ...]``.

    Raises:
        KeyError: no CLIP has a tensor of this name.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name in _NAMES:
            renamed[_NAMES[name]] = tensor
        elif name in _TRANSPOSED:
            renamed[_TRANSPOSED[name]] = tensor.T.contiguous()
        elif block := _BLOCK.fullmatch(name):
            tower, number, part, kind = block.groups()
            layer = f"{'vision' if tower else 'text'}_model.encoder.layers.{number}"
            if part == "attn" and kind.startswith("in_proj_"):  # one tensor for queries, keys and values
                for role, projection in zip("qkv", tensor.chunk(3), strict=True):
                    renamed[f"{layer}.self_attn.{role}_proj.{kind.removeprefix('in_proj_')}"] = projection.contiguous()
            else:
                renamed[f"{layer}.{_LAYER[part]}.{kind}"] = tensor
        elif name not in _BUFFERS:
            raise KeyError(name)
    return renamed
