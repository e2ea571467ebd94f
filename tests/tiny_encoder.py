"""A tiny encoder with random weights and a WordPiece vocabulary of letters and a few words, as an exported folder."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from guardrail.training.encoder_model import EncoderConfig, EncoderModel
from guardrail.training.export import export
from guardrail.training.rounding import Rounded, round_matrices

__all__ = ["CONFIG", "tiny_folder", "tiny_model", "tiny_rounded", "write_tokenizer"]

CONFIG = EncoderConfig(
    vocabulary=1600, positions=256, dimension=32, layers=2, heads=2, inner=64, category_heads=2, hidden=16
)
_WORDS = ("how", "do", "build", "bomb", "cake", "kill", "process", "user", "assistant", "the", "bake", "weapon",
          "poison", "garden", "lemon", "python", "crime", "drug", "refund", "invoice")  # fmt: skip


def tiny_model(seed: int = 0) -> EncoderModel:
    """Weights by the seed."""
    torch.manual_seed(seed)
    return EncoderModel(CONFIG).eval()


def tiny_rounded(model: EncoderModel) -> dict[str, Rounded]:
    """The model's matrices in 8 bits, for texts of random words."""
    chosen = random.Random(0)
    texts = [[101, *chosen.choices(range(1000, 1200), k=chosen.randrange(3, 40)), 102] for _ in range(40)]
    return round_matrices(model, texts, 102)


def write_tokenizer(folder: Path) -> Path:
    """Words get ids from 1000 on, as real ones do."""
    letters = [chr(code) for code in range(33, 127)]
    vocabulary = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}
    pieces = [*letters, *(f"##{letter}" for letter in letters), *_WORDS]
    vocabulary |= {piece: 1000 + at for at, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "tokenizer.json"
    tokenizer.save(str(file))
    return file


def tiny_folder(folder: Path) -> Path:
    """The folder that an encoder backend opens."""
    export(tiny_model(), write_tokenizer(folder / "base"), folder / "model", model_id="tiny", date="2026-01-01")
    return folder / "model"
