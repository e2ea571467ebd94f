"""GGUF files: llama.cpp reads the same tokens and computes the same logits as transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import random_model, save_checkpoint, tokenizer_of

llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")
pytest.importorskip("gguf", reason="needs gguf")
# Float32 weights, keys and values on both sides: what remains are other orders of adding up.
TOLERANCE = 1e-3

TEXTS = [
    "How do I make a cake?",
    "two  spaces\n\n\ttab,   12345 and 1e-3; don't, WE'LL",
    "Grüße, Привет, 你好, \N{GRINNING FACE} e\u0301\u200b",
    "<BEGIN CONVERSATION>\n\nUser: hi\n\nAgent: unsafe\nS1,S10",
]


@pytest.mark.parametrize("family", ["llama-guard-1", "llama-guard-3", "llama-guard-4"])
def test_tokens_and_logits_are_those_of_transformers(
    family: str, tokenizer_files: Path, tmp_path: Path, one_thread: None
) -> None:
    import torch

    from tests.gguf_files import write_gguf

    tokenizer = tokenizer_of(family, tokenizer_files)
    model = random_model(tokenizer)
    file = write_gguf(model, tokenizer, tmp_path / "model.gguf")
    with llama(file) as loaded:
        assert loaded.n_vocab() == len(tokenizer)
        for text in TEXTS:
            expected = tokenizer.encode(text, add_special_tokens=False)
            assert loaded.tokenize(text.encode(), add_bos=False, special=False) == expected
            ids = [tokenizer.bos_token_id, *expected]
            loaded.reset()
            loaded.eval(ids)
            with torch.no_grad():
                wanted = model(torch.tensor([ids])).logits[0]
            found = torch.tensor(loaded.scores[: len(ids)])
            assert (found - wanted).abs().max() < TOLERANCE
            assert wanted.std() > 50 * TOLERANCE


def test_control_tokens_and_a_folder(tokenizer_files: Path, tmp_path: Path) -> None:
    from tests.gguf_files import write_gguf

    tokenizer = tokenizer_of("llama-guard-3", tokenizer_files)
    folder = save_checkpoint(tmp_path / "checkpoint", tokenizer, tie_word_embeddings=True)
    file = write_gguf(folder, tokenizer, tmp_path / "model.gguf", "f16", chat="{{ messages }}")
    with llama(file) as loaded:
        text = "<|begin_of_text|><|eot_id|>x"
        assert loaded.tokenize(text.encode(), add_bos=False, special=True) == tokenizer.encode(
            text, add_special_tokens=False
        )
        assert loaded.metadata["tokenizer.chat_template"] == "{{ messages }}"


def llama(file: Path) -> Any:
    from contextlib import closing

    return closing(
        llama_cpp.Llama(
            str(file),
            n_ctx=256,
            n_batch=256,
            n_threads=1,
            n_threads_batch=1,
            logits_all=True,
            type_k=0,
            type_v=0,
            verbose=False,
        )
    )
