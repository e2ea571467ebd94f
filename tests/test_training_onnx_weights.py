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
from guardrail.training.encoder_model import Layer
from guardrail.training.onnx_graph import write_graph
from guardrail.training.onnx_weights import read_model, read_rounded
from guardrail.training.rounding import round_moved
from guardrail.types import Conversation
from tests.tiny_encoder import CONFIG, tiny_model, tiny_rounded

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
    write_graph(model, tmp_path / "model.onnx")
    found = read_model(tmp_path / "model.onnx")
    assert found.config.positions == CONFIG.positions
    assert (found.config.heads, found.config.category_heads) == (CONFIG.heads, CONFIG.category_heads)
    expected = model.state_dict()
    assert found.state_dict().keys() == expected.keys()
    for name, value in found.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-6 if name == "sharpness" else 0, msg=name)


def test_bytes_come_back_as_what_they_stand_for_and_are_written_alike(tmp_path: Path) -> None:
    model = tiny_model()
    rounded = tiny_rounded(model)
    write_graph(model, tmp_path / "model.onnx", rounded)
    read = read_model(tmp_path / "model.onnx")
    write_graph(read, tmp_path / "again.onnx", round_moved(read, read_rounded(tmp_path / "model.onnx")))
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "model.onnx").read_bytes()
    found = read.state_dict()
    for name, key in (("layer0.qkv.product", "layers.0.qkv.weight"), ("layer1.down", "layers.1.down.weight")):
        small = rounded[name]
        torch.testing.assert_close(found[key], torch.from_numpy(small.matrix()), rtol=0, atol=0)
    words, expected = found["embedder.words.weight"], model.embedder.words.weight
    level = expected.abs().amax(dim=1, keepdim=True) / 127
    assert bool(((words - expected).abs() <= 0.5 * level + 1e-7).all())
    assert bool((words != expected).any())


def test_the_shipped_model_is_read_and_scores_as_it_does(tmp_path: Path) -> None:
    backend = EncoderBackend(folder("model"), threads=1)
    model = read_model(folder("model") / "model.onnx")
    write_graph(model, tmp_path / "again.onnx", round_moved(model, read_rounded(folder("model") / "model.onnx")))
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


def test_only_weights_that_moved_are_rounded_anew(tmp_path: Path) -> None:
    first = tiny_rounded(tiny_model())
    write_graph(tiny_model(), tmp_path / "model.onnx", first)
    model, before = read_model(tmp_path / "model.onnx"), read_rounded(tmp_path / "model.onnx")
    assert before.keys() == first.keys()
    layer = model.layers[1]
    assert isinstance(layer, Layer)
    with torch.no_grad():
        # A training's average of equal numbers is off by their last bits; a tenth of a level is a step.
        layer.up.weight *= 1 + 1e-7
        layer.down.weight[3, 4] += 0.1 * float(before["layer1.down"].scales[3] * before["layer1.down"].factors[4])
    again = round_moved(model, before)
    for name, item in again.items():
        assert np.count_nonzero(item.weights != before[name].weights) <= (name == "layer1.down")
        np.testing.assert_array_equal(item.scales, before[name].scales)
        np.testing.assert_array_equal(item.factors, before[name].factors)


def test_graphs_of_before_there_were_factors_are_read(tmp_path: Path) -> None:
    rounded = tiny_rounded(tiny_model())
    write_graph(tiny_model(), tmp_path / "model.onnx", rounded)
    proto = onnx.load(str(tmp_path / "model.onnx"))
    left = [item for item in proto.graph.initializer if not item.name.endswith(".factors")]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(left)
    onnx.save(proto, str(tmp_path / "old.onnx"))
    small = rounded["layer0.out"]
    found = read_model(tmp_path / "old.onnx").state_dict()["layers.0.out.weight"]
    torch.testing.assert_close(found, torch.from_numpy(small.weights * small.scales[:, None]), rtol=1e-6, atol=0)
