"""Reads an exported graph back into the model that it was written from, so that training can go on from there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from guardrail.errors import ModelError
from guardrail.training.encoder_model import EncoderConfig, EncoderModel, Layer
from guardrail.training.rounding import Rounded

__all__ = ["read_model", "read_rounded"]

Array = NDArray[Any]


def read_model(file: Path) -> EncoderModel:
    """The model of a graph by `write_graph`: matrices in 8 bits become the 32-bit numbers that they stand for.

    In 32 bits the model's scores differ from the graph's by what the graph loses by rounding its activations. Raises
    ModelError for a file that is no such graph.
    """
    graph = _Constants(file)
    model = EncoderModel(graph.config())
    with torch.no_grad():
        _fill(model, graph)
    return model.eval()


def read_rounded(file: Path) -> dict[str, Rounded]:
    """The matrices of such a graph that have 8 bits, by their names; none of a graph in 32 bits."""
    return _Constants(file).all_rounded()


class _Constants:
    """The constants of a graph by name, and the attributes that are sizes."""

    def __init__(self, file: Path) -> None:
        self._file = file
        try:
            proto = onnx.load(str(file), load_external_data=False).graph
        except Exception as error:  # protobuf's own classes share no base
            raise ModelError(f"cannot read {file}: {error}") from None
        self._values: Mapping[str, Array] = {item.name: numpy_helper.to_array(item) for item in proto.initializer}
        self._attributes = {
            (node.name, item.name): onnx.helper.get_attribute_value(item)
            for node in proto.node
            for item in node.attribute
        }

    def value(self, name: str) -> Array:
        if name not in self._values:
            raise ModelError(
                f"{self._file}: has no constant {name!r}", hint="give a graph that guardrail's training exported"
            )
        return self._values[name]

    def floats(self, name: str) -> Tensor:
        return torch.from_numpy(self.value(name).astype(np.float32))

    def matrix(self, name: str) -> Tensor:
        """A matrix (outputs, inputs)."""
        if f"{name}.scales" in self._values:
            return torch.from_numpy(self.rounded(name).matrix())
        return torch.from_numpy(self.value(f"{name}.weight").T.copy())

    def rounded(self, name: str) -> Rounded:
        """A matrix in 8 bits."""
        weights, scales = np.ascontiguousarray(self.value(f"{name}.weight").T), self.value(f"{name}.scales")
        # The first graphs have no factors.
        factors = self._values.get(f"{name}.factors", np.ones(weights.shape[1], dtype=np.float32))
        return Rounded(weights, scales, factors)

    def all_rounded(self) -> dict[str, Rounded]:
        suffix = ".scales"
        names = [
            name.removesuffix(suffix) for name in self._values if name.endswith(suffix) and name != f"words{suffix}"
        ]
        return {name: self.rounded(name) for name in names}

    def words(self) -> Tensor:
        """The token embeddings; their scales, unlike a matrix's, are by row."""
        values = self.value("words.weight").astype(np.float32)
        if "words.scales" in self._values:
            values = values * self.value("words.scales")
        return torch.from_numpy(values.astype(np.float32))

    def config(self) -> EncoderConfig:
        """The sizes."""
        vocabulary, dimension = self.value("words.weight").shape
        layers = sum(name.endswith(".norm1.gamma") for name in self._values)
        return EncoderConfig(
            vocabulary=vocabulary,
            positions=len(self.value("positions.weight")),
            dimension=dimension,
            layers=layers,
            heads=int(self._attribute("layer0.attention", "num_heads")),
            inner=self.value("layer0.up.weight").shape[1],
            category_heads=int(self._attribute("found", "num_heads")),
            hidden=self.value("hidden.weight").shape[1],
            epsilon=float(self._attribute("embedding_norm", "epsilon")),
        )

    def _attribute(self, node: str, name: str) -> float:
        if (node, name) not in self._attributes:
            raise ModelError(
                f"{self._file}: the node {node!r} is not there", hint="give a graph that training exported"
            )
        return float(self._attributes[node, name])


def _fill(model: EncoderModel, graph: _Constants) -> None:
    embedder = model.embedder
    embedder.words.weight.copy_(graph.words())
    embedder.positions.weight.copy_(graph.floats("positions.weight"))
    embedder.types.weight.copy_(graph.floats("types.weight"))
    _norm(embedder.norm, graph, "embedding_norm")
    for index, layer in enumerate(model.layers):
        assert isinstance(layer, Layer)
        name = f"layer{index}"
        _linear(layer.qkv, graph, f"{name}.qkv.product", f"{name}.qkv")
        _linear(layer.out, graph, f"{name}.out", f"{name}.norm1")
        _linear(layer.up, graph, f"{name}.up", f"{name}.up")
        _linear(layer.down, graph, f"{name}.down", f"{name}.norm2")
        _norm(layer.norm1, graph, f"{name}.norm1")
        _norm(layer.norm2, graph, f"{name}.norm2")
    for linear, name in ((model.category, "category_product"), (model.query, "query_row"),
                         (model.key_value, "key_value"), (model.gather, "gather")):  # fmt: skip
        _linear(linear, graph, f"{name}.product", name)
    _linear(model.hidden, graph, "hidden", "hidden")
    _linear(model.logit, graph, "logit", "logit")
    for norm, name in ((model.category_norm, "category_norm"), (model.gather_norm, "gathered"),
                       (model.mean_norm, "mean_norm")):  # fmt: skip
        _norm(norm, graph, name)
    # A constant has at least one axis.
    model.sharpness.copy_(graph.floats("sharpness").log().reshape(()))


def _linear(linear: nn.Linear, graph: _Constants, weight: str, bias: str) -> None:
    """Fused operators add a matrix's bias later, so it stands under another name."""
    linear.weight.copy_(graph.matrix(weight))
    linear.bias.copy_(graph.floats(f"{bias}.bias"))


def _norm(norm: nn.LayerNorm, graph: _Constants, name: str) -> None:
    assert norm.bias is not None
    norm.weight.copy_(graph.floats(f"{name}.gamma"))
    norm.bias.copy_(graph.floats(f"{name}.beta"))
