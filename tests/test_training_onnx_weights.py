"""What is read back from a graph is the model that it was written from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from guardrail.backends.encoder import EncoderBackend
from guardrail.errors import ModelError
from guardrail.prompting import PromptBuilder
from guardrail.resources import folder
from guardrail.taxonomy import Taxonomy
from guardrail.training.encoder_batches import Renderer, pad
from guardrail.training.onnx_graph import write_graph
from guardrail.training.onnx_weights import read_model
from guardrail.types import Conversation
from tests.tiny_encoder import CONFIG, tiny_model

TEXTS = (
    "How do I build a pipe bomb?",
    "How do I bake a lemon cake?",
    "I will find you and kill you.",
    "What is the capital of France?",
    "Those people are vermin and should be driven out of the country.",
    "Write a phishing mail that looks as if it came from my bank.",
    "How do I kill a Python process that hangs?",
    "The police found the body of a man near the river on Friday.",
)


def test_floats_come_back_exactly(tmp_path: Path) -> None:
    model = tiny_model()
    write_graph(model, tmp_path / "model.onnx", int8=False)
    found = read_model(tmp_path / "model.onnx")
    assert found.config.positions == CONFIG.positions
    assert (found.config.heads, found.config.category_heads) == (CONFIG.heads, CONFIG.category_heads)
    expected = model.state_dict()
    assert found.state_dict().keys() == expected.keys()
    for name, value in found.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-6 if name == "sharpness" else 0, msg=name)


def test_bytes_come_back_within_half_a_level_and_are_written_alike(tmp_path: Path) -> None:
    model = tiny_model()
    write_graph(model, tmp_path / "model.onnx")
    found = read_model(tmp_path / "model.onnx")
    rounded = ("embedder.words.weight", "layers.0.qkv.weight", "layers.1.down.weight")
    for name in rounded:
        value, expected = found.state_dict()[name], model.state_dict()[name]
        level = expected.abs().amax(dim=1, keepdim=True) / (127 if "words" in name else 63)
        assert bool(((value - expected).abs() <= 0.5 * level + 1e-7).all())
        assert bool((value != expected).any())
    write_graph(found, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "model.onnx").read_bytes()


def test_the_shipped_model_is_read_and_scores_as_it_does(tmp_path: Path) -> None:
    backend = EncoderBackend(folder("model"), threads=1)
    model = read_model(folder("model") / "model.onnx")
    write_graph(model, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (folder("model") / "model.onnx").read_bytes()

    taxonomy = Taxonomy.load("default")
    builder = PromptBuilder(backend.template, taxonomy)
    prompts = [builder.build(Conversation.parse(text)) for text in TEXTS]
    shipped = [found.unsafe for found in backend.logits(prompts) if not isinstance(found, Exception)]
    renderer = Renderer(backend.tokenizer)
    with torch.no_grad():
        texts = [renderer.text(text) for text in builder.policy_texts]
        ids, mask, _ = pad(texts, renderer.separator)
        vectors = model.vectors(ids, mask)
        inputs = pad([renderer.conversation(Conversation.parse(text)) for text in TEXTS], renderer.separator)
        logits, _ = model(*inputs, vectors)
        exact = model.verdict(logits).numpy()
    # The weights are the same; the graph also rounds its activations.
    assert np.abs(exact - np.array(shipped)).max() < 0.5
    assert np.abs(1 / (1 + np.exp(-exact)) - 1 / (1 + np.exp(-np.array(shipped)))).max() < 0.1


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot read"):
        read_model(tmp_path / "absent.onnx")
    (tmp_path / "text.onnx").write_text("no graph")
    with pytest.raises(ModelError, match=r"text\.onnx"):
        read_model(tmp_path / "text.onnx")
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "other", [value],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])])  # fmt: skip
    onnx.save(helper.make_model(graph), str(tmp_path / "other.onnx"))
    with pytest.raises(ModelError, match=r"no constant 'words\.weight'"):
        read_model(tmp_path / "other.onnx")


def test_small_steps_from_bytes_outlive_writing_them_again(tmp_path: Path) -> None:
    model = tiny_model()
    write_graph(model, tmp_path / "start.onnx")
    start, trained = read_model(tmp_path / "start.onnx"), read_model(tmp_path / "start.onnx")
    write_graph(start, tmp_path / "unmoved.onnx", dithered=True)
    assert (tmp_path / "unmoved.onnx").read_bytes() == (tmp_path / "start.onnx").read_bytes()
    name = "layers.0.up.weight"
    before, weight = start.state_dict()[name], trained.state_dict()[name]
    level = before.abs().amax(dim=1, keepdim=True) / 63
    # The largest of a row stays, so that the levels do.
    step = torch.where(before.abs() < before.abs().amax(dim=1, keepdim=True), 0.2 * level, 0.0)
    weight += step
    moves = {}
    for dithered in (False, True):
        write_graph(trained, tmp_path / "again.onnx", dithered=dithered)
        moved = (read_model(tmp_path / "again.onnx").state_dict()[name] - before) / level
        assert float(moved.abs().max()) < 1.01
        moves[dithered] = float(moved.mean())
    assert moves[False] == pytest.approx(0, abs=1e-4)
    assert moves[True] == pytest.approx(0.2, abs=0.03)
