"""Encodes text with CLIP encoders, longer text in pieces.

A CLIP text encoder reads 77 tokens: a start token, up to 75 of the text, an end token, and padding, which it attends to. A longer text is
cut into pieces of 75 tokens. Each is framed and padded like a text of its own. The states of the pieces are joined, and the pooled state is
that of the first piece. So nothing is lost, and a text that fits is encoded as in diffusers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gotr1_core.chain import Chain
from gotr1_core.samples import Prompt


def full_text(prompt: Prompt, chain: Chain) -> str:
    """Prompt and plan as one text, without boxes."""
    return " ".join(text for text in (prompt.text.strip(), chain.without_boxes()) if text)


def spell_out(tokenizer: Any, text: str) -> str:
    """Returns a text with a space within each word that a tokenizer would read as a special token.

    It is for tokenizers such as T5's, whose own vocabulary has its special tokens: ``split_special_tokens`` does not change these.
    """
    special, unknown = set(tokenizer.all_special_ids), tokenizer.unk_token_id
    while True:
        encoded = tokenizer(text, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
        for token, (start, end) in zip(encoded.input_ids, encoded.offset_mapping, strict=True):
            word = text[start:end].strip()
            if token in special and len(word) > 1 and (token != unknown or word == tokenizer.unk_token):
                at = start + text[start:end].index(word) + 1
                text = f"{text[:at]} {text[at:]}"
                break
        else:
            return text


@dataclass(frozen=True)
class PieceTokenizer:
    """Cuts texts into pieces of ``length`` token ids with a CLIP tokenizer."""

    tokenizer: Any
    length: int

    @property
    def room(self) -> int:
        """How many tokens of the text fit into a piece, without start and end token."""
        return self.length - 2

    def pieces(self, text: str) -> list[Tensor]:
        """Token ids ``[length]`` of each of a text's pieces, at least one."""
        # split_special_tokens: a user's text never becomes special tokens. verbose: long texts are cut here, so no warning is due.
        ids = self.tokenizer(text, add_special_tokens=False, truncation=False, verbose=False, split_special_tokens=True).input_ids
        return [self.frame(ids[start : start + self.room]) for start in range(0, max(1, len(ids)), self.room)]

    def frame(self, ids: Sequence[int]) -> Tensor:
        """Start token, ``ids``, end token and padding, as a tensor ``[length]``."""
        t = self.tokenizer
        framed = [t.bos_token_id, *ids, t.eos_token_id]
        return torch.tensor(framed + [t.pad_token_id] * (self.length - len(framed)))


class ClipTexts:
    """Tokenizes texts for several CLIP encoders at once; SDXL has two."""

    def __init__(self, tokenizers: Sequence[Any], encoders: Sequence[nn.Module]) -> None:
        lengths = [min(t.model_max_length, e.config.max_position_embeddings) for t, e in zip(tokenizers, encoders, strict=True)]  # type: ignore[union-attr]
        self.tokenizers = [PieceTokenizer(tokenizer, min(lengths)) for tokenizer in tokenizers]
        self.length = min(lengths)

    def pieces(self, text: str) -> Tensor:
        """Token ids ``[P, tokenizers, length]`` of a text's pieces. A tokenizer that needs fewer pieces has empty ones at the end."""
        per_tokenizer = [tokenizer.pieces(text) for tokenizer in self.tokenizers]
        count = max(len(pieces) for pieces in per_tokenizer)
        padded = [
            pieces + [tokenizer.frame([])] * (count - len(pieces)) for tokenizer, pieces in zip(self.tokenizers, per_tokenizer, strict=True)
        ]
        return torch.stack([torch.stack(piece) for piece in zip(*padded, strict=True)])

    def first_piece(self, text: str) -> Tensor:
        """Token ids ``[tokenizers, length]`` of a text's first piece."""
        return self.pieces(text)[0]

    def stack(self, rows: Sequence[Sequence[Tensor]]) -> tuple[Tensor, Tensor]:
        """Rows of pieces ``[tokenizers, length]`` as ids ``[B, N, tokenizers, length]``, padded with zeros; and their counts ``[B]``."""
        counts = torch.tensor([len(row) for row in rows])
        ids = torch.zeros(len(rows), max([0, *counts.tolist()]), len(self.tokenizers), self.length, dtype=torch.long)
        for row, pieces in enumerate(rows):
            for column, piece in enumerate(pieces):
                ids[row, column] = piece
        return ids, counts


def encode_texts(encoders: Sequence[nn.Module], ids: Tensor) -> tuple[Tensor, Tensor]:
    """States ``[N, length, D]`` and pooled states ``[N, D']`` of pieces ``[N, tokenizers, length]``.

    As in diffusers, states come from the last layer but one, and pooled states from the encoders that have a projection. Those of several
    encoders are joined along the last dimension. Equal pieces are encoded once.
    """
    unique, index = torch.unique(ids, dim=0, return_inverse=True)
    outputs = [encoder(unique[:, number], output_hidden_states=True) for number, encoder in enumerate(encoders)]
    states = torch.cat([output.hidden_states[-2] for output in outputs], -1)
    pooled = torch.cat([output[0] for output in outputs if output[0].dim() == 2], -1)
    return states[index], pooled[index]
