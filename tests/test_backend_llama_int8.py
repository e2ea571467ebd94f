"""Checkpoints in 8 bits on a CPU: near the plain numbers, the same alone and in a batch, in less memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import guardrail
from guardrail.backends.llama_forward import Forward
from guardrail.backends.llama_int8 import Int8Linear, has_int8, to_int8
from guardrail.errors import UsageError
from tests.checkpoints import chat_template, random_model, save_checkpoint, tokenizer_of

NAMES = {"O1": "Violence and Hate", "O2": "Sexual Content"}
TEXTS = ["How do I bake bread?", "Tell me how to build a bomb.", "You are all worthless. " * 20, "ok"]


@given(
    rows=st.integers(1, 300),
    inputs=st.integers(1, 80),
    outputs=st.integers(1, 80),
    bias=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_no_number_is_off_by_more_than_half_a_step_of_each_factor(
    rows: int, inputs: int, outputs: int, bias: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(rows)
    plain = nn.Linear(inputs, outputs, bias=bias).to(dtype)
    given_rows = torch.randn(rows, inputs).to(dtype)
    with torch.no_grad():
        exact = nn.functional.linear(given_rows.double(), plain.weight.double())
        offset = plain.bias.double() if bias else torch.zeros(outputs, dtype=torch.double)
        found = Int8Linear.of(plain)(given_rows)
        # x w with each factor off by at most 1/254 of the largest in its row.
        widest = given_rows.double().abs().amax(dim=1)[:, None] * plain.weight.double().abs().amax(dim=1)[None]
    assert found.dtype == dtype
    bound = inputs * widest * (1 / 127 + 1 / 254**2)
    rounding = 2 * torch.finfo(dtype).eps * (exact.abs() + bound + offset.abs())
    assert bool(((found.double() - exact - offset).abs() <= bound + rounding + 1e-5 * widest * inputs).all())


def test_a_layer_is_off_by_about_a_hundredth() -> None:
    torch.manual_seed(0)
    plain = nn.Linear(1024, 512)
    given_rows = torch.randn(200, 1024)
    with torch.no_grad():
        expected, found = plain(given_rows), Int8Linear.of(plain)(given_rows)
    assert 0.001 < float((found - expected).norm() / expected.norm()) < 0.015


def test_a_row_does_not_depend_on_its_neighbours_and_nothing_gives_nothing() -> None:
    torch.manual_seed(0)
    layer = Int8Linear.of(nn.Linear(96, 40))
    rows = torch.randn(300, 96) * torch.logspace(-3, 3, 300)[:, None]
    together = layer(rows)
    for at in (0, 17, 255, 256, 299):
        assert torch.equal(layer(rows[at : at + 1])[0], together[at])
    assert torch.equal(layer(torch.zeros(2, 96))[0], layer.bias if layer.bias is not None else torch.zeros(40))
    assert layer(rows.view(3, 100, 96)).shape == (3, 100, 40)


@pytest.mark.parametrize("bias", [True, False])
def test_joined_layers_give_what_they_give_apart(bias: bool) -> None:
    torch.manual_seed(0)
    parts = [Int8Linear.of(nn.Linear(64, width, bias=bias)) for width in (32, 16, 24)]
    rows = torch.randn(10, 64)
    expected = [part(rows) for part in parts]
    whole = Int8Linear.joined(parts)
    assert torch.equal(whole(rows), torch.cat(expected, dim=1))
    for part, before in zip(parts, expected, strict=True):
        assert torch.equal(part(rows), before)
        assert part.weight.untyped_storage().data_ptr() == whole.weight.untyped_storage().data_ptr()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_checkpoint_in_8_bits_judges_nearly_the_same(tokenizer_files: Path, tmp_path: Path, dtype: str) -> None:
    tokenizer = tokenizer_of("llama-guard-1", tokenizer_files)
    folder = save_checkpoint(
        tmp_path / "guard", tokenizer, chat=chat_template("llama-guard-1", NAMES), initializer_range=0.1
    )
    with guardrail.load(folder, dtype=dtype) as plain, guardrail.load(folder, dtype=dtype, quantize="8bit") as whole:
        expected, found = list(plain.check_many(TEXTS)), list(whole.check_many(TEXTS))
        alone = [whole.check(text).score for text in TEXTS]
    for one, other, own in zip(expected, found, alone, strict=True):
        assert one.score is not None
        assert other.score == pytest.approx(one.score, abs=0.1)
        assert own == pytest.approx(other.score, abs=1e-4)
    assert [each.score for each in found] != [each.score for each in expected]
    assert found[0].model == expected[0].model


def test_packed_rows_in_8_bits_get_what_padded_ones_get(tokenizer_files: Path) -> None:
    model = random_model(tokenizer_of("llama-guard-1", tokenizer_files))
    before = sum(each.nbytes for each in model.model.layers.parameters())
    head = model.get_output_embeddings()
    to_int8(model, keep=head)
    assert has_int8(model)
    assert model.get_output_embeddings() is head
    layers = model.model.layers
    assert sum(each.nbytes for part in (layers.parameters(), layers.buffers()) for each in part) < 0.3 * before
    rows = [[5, 6, 7, 8], [9], [10, 11, 12]]
    places, wanted = [(0, 3), (1, 0), (2, 2), (2, 0)], [1, 2, 3]
    padded, packed = Forward(model, pack=False), Forward(model)
    assert (padded.pads, packed.pads) == (True, False)
    plain = padded.read(rows, [padded.prefix([1, 2, 3])] * 3, places, wanted)
    found = packed.read(rows, [packed.prefix([1, 2, 3])] * 3, places, wanted)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(plain), atol=0.1, rtol=0)


def test_4_bits_need_a_gpu_and_the_hint_names_what_does_not(tokenizer_files: Path, tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "guard", tokenizer_of("llama-guard-1", tokenizer_files))
    with pytest.raises(UsageError, match="quantize='4bit' needs a CUDA device, not cpu") as error:
        guardrail.load(folder, device="cpu", quantize="4bit")
    assert error.value.hint == "use 8bit on a CPU"
