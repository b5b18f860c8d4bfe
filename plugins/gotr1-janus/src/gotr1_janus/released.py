"""Maps the format in which Janus-Pro and GoT-R1 are released to transformers': tensor names, and a config from tensor shapes.

The rules map names in one direction only, from transformers' to the release's. The other direction inverts this mapping for the names of
a model, so the two directions cannot disagree.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from gotr1_core.errors import UsageError

MODEL_TYPE = "multi_modality"
EMBEDDINGS, HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
Shape: TypeAlias = tuple[int, ...]

_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^lm_head\.", "language_model.lm_head."),
        (r"^model\.language_model\.", "language_model.model."),
        (r"^model\.generation_embeddings\.", "gen_embed."),
        (r"^model\.generation_head\.proj_out\.", "gen_head.output_mlp_projector."),
        (r"^model\.generation_head\.", "gen_head."),
        (r"^model\.generation_aligner\.", "gen_aligner."),
        (r"^model\.aligner\.", "aligner."),
        (r"^((?:gen_)?aligner)\.fc1\.", r"\1.layers.0."),
        (r"^model\.vqmodel\.", "gen_vision_model."),
        (r"^(gen_vision_model\.)(encoder\.)down\.", r"\1\2conv_blocks."),
        (r"^(gen_vision_model\.)(decoder\.)up\.", r"\1\2conv_blocks."),
        (r"^(gen_vision_model\..*conv_blocks\.\d+\.)block\.", r"\1res."),
        (r"^(gen_vision_model\..*\.mid\.)block_1\.", r"\g<1>0."),
        (r"^(gen_vision_model\..*\.mid\.)attn_1\.", r"\g<1>1."),
        (r"^(gen_vision_model\..*\.mid\.)block_2\.", r"\g<1>2."),
        (r"^model\.vision_model\.encoder\.layers\.", "vision_model.vision_tower.blocks."),
        (r"^model\.vision_model\.embeddings\.patch_embedding\.", "vision_model.vision_tower.patch_embed.proj."),
        (r"^model\.vision_model\.embeddings\.position_embedding\.weight$", "vision_model.vision_tower.pos_embed"),
        (r"^model\.vision_model\.post_layernorm\.", "vision_model.vision_tower.norm."),
        (r"^(vision_model\..*\.)layer_norm", r"\1norm"),
        (r"^(vision_model\..*\.)self_attn\.projection_layer\.", r"\1attn.proj."),
    )
)
_HIDDEN_LAYER = re.compile(r"^((?:gen_)?aligner)\.hidden_layers\.(\d+)\.")  # in the release, activations count as layers too
_QKV = re.compile(r"^(vision_model\..*\.)self_attn\.([qkv])_proj\.")  # one tensor in the release
# Tensors that the reference implementation has and whose values change none of its results.
_UNUSED = re.compile(
    r"^vision_model\.vision_tower\.attn_pool\.|^gen_vision_model\.quantize\.codebook_used$|^language_model\..*\.rotary_emb\.inv_freq$"
)


@dataclass(frozen=True)
class Origin:
    """The tensor of the release that a tensor of transformers comes from, and which third of it (0, 1 or 2). None: all of it."""

    name: str
    third: int | None = None


def origin(name: str) -> Origin:
    """The origin, in a release, of the tensor of ``JanusForConditionalGeneration`` with this name."""
    for pattern, replacement in _RULES:
        name = pattern.sub(replacement, name)
    name = _HIDDEN_LAYER.sub(lambda match: f"{match[1]}.layers.{2 * int(match[2]) + 2}.", name)
    qkv = _QKV.match(name)
    return Origin(_QKV.sub(r"\1attn.qkv.", name), None if qkv is None else "qkv".index(qkv[2]))


def is_unused(name: str) -> bool:
    """True if a tensor of the release is one that the reference implementation does not use either."""
    return _UNUSED.search(name) is not None


def released_shape(shape: Shape, source: Origin) -> Shape:
    """The shape that the release's tensor must have. ``shape`` is that of the tensor of transformers that comes from it."""
    if source.third is not None:
        return (3 * shape[0], *shape[1:])
    return (1, *shape) if source.name.endswith(".pos_embed") else shape


# -- the config -------------------------------------------------------------------------------------------------------------

# Settings of the language model that shapes do not show. What a config leaves out has LlamaConfig's default, as in the reference.
_LANGUAGE = (
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "attention_dropout",
    "initializer_range",
)
_VQ, _TOWER, _LAYER = "gen_vision_model", "vision_model.vision_tower", "language_model.model.layers.0"
_NEEDED = (
    EMBEDDINGS,
    f"{_LAYER}.self_attn.q_proj.weight",
    f"{_LAYER}.self_attn.k_proj.weight",
    f"{_LAYER}.mlp.gate_proj.weight",
    "aligner.layers.0.weight",
    "gen_aligner.layers.0.weight",
    "gen_head.output_mlp_projector.weight",
    f"{_TOWER}.patch_embed.proj.weight",
    f"{_TOWER}.pos_embed",
    f"{_TOWER}.blocks.0.mlp.fc1.weight",
    f"{_VQ}.quantize.embedding.weight",
    f"{_VQ}.encoder.conv_in.weight",
    f"{_VQ}.encoder.conv_out.weight",
    f"{_VQ}.decoder.conv_out.weight",
    f"{_VQ}.encoder.conv_blocks.0.res.0.conv1.weight",
)


def check_released(config: Mapping[str, Any], where: str) -> None:
    """Checks that a ``config.json`` is that of a released Janus. ``where`` names it in messages.

    Raises:
        UsageError: the model is another one, or the config has no ``language_config`` or ties the head to the embeddings.
    """
    kind = config.get("model_type")
    if kind != MODEL_TYPE:
        what = f"a {kind} model" if kind else "a model of unknown type"
        hint = "it is in transformers' format already: do not import it" if kind == "janus" else "give a released Janus-Pro or GoT-R1"
        raise UsageError(f"{where} is {what}, not {MODEL_TYPE}", hint=hint)
    language = config.get("language_config")
    if not isinstance(language, Mapping):
        raise UsageError(f"{where} has no language_config", hint="give a released Janus-Pro or GoT-R1, its own config.json included")
    if language.get("tie_word_embeddings"):
        raise UsageError(
            f"{where} ties lm_head to the embeddings, which no released Janus does", hint="give one with its own, separate head"
        )


def read_config(config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Arguments of ``LlamaConfig``, ``JanusVisionConfig`` and ``JanusVQVAEConfig`` under ``text_config``, ``vision_config``, ``vq_config``.

    Args:
        config: a released checkpoint's ``config.json``.
        shapes: the shapes of its tensors by name. Every size is read from them.

    Raises:
        UsageError: a tensor whose shape is needed is missing, or the number of attention heads does not fit.
    """
    missing = [name for name in _NEEDED if name not in shapes]
    if missing:
        raise UsageError(f"not a Janus: {list_names(missing, 'missing')}", hint="give a complete checkpoint: a shard may be missing")
    return {
        "text_config": _text_config(config["language_config"], shapes),
        "vision_config": _vision_config(shapes),
        "vq_config": _vq_config(shapes),
    }


def _text_config(language: Mapping[str, Any], shapes: Mapping[str, Shape]) -> dict[str, Any]:
    rows, hidden = shapes[EMBEDDINGS]
    heads = int(language.get("num_attention_heads") or 32)  # LlamaConfig's default, which Janus-Pro-7B relies on
    queries, keys = (shapes[f"{_LAYER}.self_attn.{name}_proj.weight"][0] for name in "qk")
    head_dim = queries // heads
    if head_dim * heads != queries or keys % head_dim:
        raise UsageError(
            f"language_config has {heads} attention heads, but q_proj has {queries} rows and k_proj {keys}",
            hint="give the checkpoint its own config.json",
        )
    return {
        **{key: language[key] for key in _LANGUAGE if language.get(key) is not None},
        "vocab_size": rows,
        "hidden_size": hidden,
        "intermediate_size": shapes[f"{_LAYER}.mlp.gate_proj.weight"][0],
        "num_hidden_layers": _count(shapes, "language_model.model.layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": keys // head_dim,
        "head_dim": head_dim,
        "attention_bias": f"{_LAYER}.self_attn.q_proj.bias" in shapes,
        "mlp_bias": f"{_LAYER}.mlp.gate_proj.bias" in shapes,
        "tie_word_embeddings": False,
    }


def _vision_config(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    width, channels, patch, _ = shapes[f"{_TOWER}.patch_embed.proj.weight"]
    patches = shapes[f"{_TOWER}.pos_embed"][1]
    return {
        "hidden_size": width,
        "num_hidden_layers": _count(shapes, f"{_TOWER}.blocks"),
        # Neither config nor tensors have this number. The reference's towers have 16 heads; a head is at least 16 wide.
        "num_attention_heads": max(1, min(16, width // 16)),
        "num_channels": channels,
        "patch_size": patch,
        "image_size": patch * round(patches**0.5),
        "mlp_ratio": shapes[f"{_TOWER}.blocks.0.mlp.fc1.weight"][0] / width,
        "attention_bias": f"{_TOWER}.blocks.0.attn.qkv.bias" in shapes,
        "projection_dim": shapes["aligner.layers.0.weight"][0],
        "depth": _linears(shapes, "aligner"),
        "num_image_tokens": patches,
    }


def _vq_config(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    codes, dim = shapes[f"{_VQ}.quantize.embedding.weight"]
    blocks = f"{_VQ}.encoder.conv_blocks"
    base, channels = shapes[f"{_VQ}.encoder.conv_in.weight"][:2]
    widths = [shapes.get(f"{blocks}.{i}.res.0.conv1.weight", (0,))[0] for i in range(_count(shapes, blocks))]
    return {
        "embed_dim": dim,
        "num_embeddings": codes,
        "latent_channels": shapes[f"{_VQ}.encoder.conv_out.weight"][0],
        "in_channels": channels,
        "out_channels": shapes[f"{_VQ}.decoder.conv_out.weight"][0],
        "base_channels": base,
        "channel_multiplier": [width // base for width in widths],
        "num_res_blocks": _count(shapes, f"{blocks}.0.res"),
        "projection_dim": shapes["gen_aligner.layers.0.weight"][0],
        "num_hidden_layers": _linears(shapes, "gen_aligner"),
        "image_token_embed_dim": shapes["gen_head.output_mlp_projector.weight"][1],
    }


def _count(shapes: Mapping[str, Shape], prefix: str) -> int:
    """How many of ``prefix.0``, ``prefix.1``, … there are. A gap counts too: the missing tensors are reported by name later."""
    numbered = re.compile(rf"^{re.escape(prefix)}\.(\d+)\.")
    return 1 + max((int(match[1]) for name in shapes if (match := numbered.match(name))), default=-1)


def _linears(shapes: Mapping[str, Shape], aligner: str) -> int:
    """How many linear layers an aligner has. An activation lies between each two."""
    return (_count(shapes, f"{aligner}.layers") + 1) // 2


def list_names(names: Sequence[str], what: str, limit: int = 20) -> str:
    """``what`` and names, for a message: all of them, or the first ``limit`` and how many more."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"{what}: {', '.join(names[:limit])}{more}"
