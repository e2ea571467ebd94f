"""Writes the embedded model as one ONNX graph, with ONNX Runtime's fused operators and 8-bit weights.

The encoder's matrices have 8-bit weights with one scale per output (`rounding`); their inputs are quantized when they
are known, over all tokens of a run. A weight uses 7 of its bits: CPUs without an instruction for it (VNNI on x86) add
the products of two inputs and weights in 16 bits, which larger weights would overflow, and a text would have another
score there. A text has the same score alone and among others only when each run holds one text, which is how the
backend runs it. The head stays in 32 bits: it is small, and its scores are what is compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from guardrail.training.encoder_model import EncoderModel, Layer
from guardrail.training.rounding import Rounded

__all__ = ["write_graph"]

_OPSET = 17
_MICROSOFT = "com.microsoft"
_WORD_LEVELS = 127
"""The largest number in a word's vector, which is looked up, not multiplied."""


def write_graph(
    model: EncoderModel, file: Path, rounded: Mapping[str, Rounded] | None = None, *, longest: int = 256
) -> None:
    """Write the model; with `rounded` (by `round_matrices`), matrices and embeddings take 8 bits, else 32."""
    graph = _Graph(rounded, longest)
    _body(graph, model)
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"])
              for name in ("input_ids", "attention_mask", "token_type_ids")]  # fmt: skip
    width = model.config.dimension
    inputs.append(helper.make_tensor_value_info("category_vectors", TensorProto.FLOAT, ["categories", width]))
    outputs = [
        helper.make_tensor_value_info("category_logits", TensorProto.FLOAT, ["batch", "categories"]),
        helper.make_tensor_value_info("verdict_logit", TensorProto.FLOAT, ["batch"]),
        helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["batch", width]),
    ]
    made = helper.make_graph(graph.nodes, "guardrail", inputs, outputs, graph.weights)
    opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(_MICROSOFT, 1)]
    proto = helper.make_model(made, opset_imports=opsets, ir_version=9, producer_name="guardrail")
    onnx.save(proto, str(file))


class _Graph:
    """Nodes and weights in the order in which they are added."""

    def __init__(self, rounded: Mapping[str, Rounded] | None, longest: int) -> None:
        self.rounded = rounded
        self.longest = longest
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def constant(self, name: str, value: Any) -> str:
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def floats(self, name: str, value: Tensor) -> str:
        return self.constant(name, value.detach().float().numpy())

    def add(self, operator: str, inputs: list[str], name: str, *, domain: str = "", **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, domain=domain, **attributes))
        return name

    def fused(self, operator: str, inputs: list[str], name: str, **attributes: Any) -> str:
        return self.add(operator, inputs, name, domain=_MICROSOFT, **attributes)

    def matrix(self, value: str, linear: nn.Linear, name: str) -> str:
        """value · weightᵀ, without the bias; in 8 bits when it was rounded."""
        if self.rounded is None or name not in self.rounded:
            return self.add("MatMul", [value, self.floats(f"{name}.weight", linear.weight.T)], name)
        small = self.rounded[name]
        even = self.add("Mul", [value, self.constant(f"{name}.factors", small.factors)], f"{name}.even")
        weight = self.constant(f"{name}.weight", small.weights.T)
        return self.fused("DynamicQuantizeMatMul", [even, weight, self.constant(f"{name}.scales", small.scales)], name)

    def linear(self, value: str, linear: nn.Linear, name: str) -> str:
        bias = self.floats(f"{name}.bias", linear.bias)
        return self.add("Add", [self.matrix(value, linear, f"{name}.product"), bias], name)

    def norm(self, value: str, norm: nn.LayerNorm, name: str) -> str:
        assert norm.bias is not None
        inputs = [value, self.floats(f"{name}.gamma", norm.weight), self.floats(f"{name}.beta", norm.bias)]
        return self.add("LayerNormalization", inputs, name, axis=-1, epsilon=norm.eps)

    def skip_norm(self, value: str, skip: str, linear: nn.Linear, norm: nn.LayerNorm, name: str) -> str:
        """norm(value + skip + linear.bias), in three steps: the one operator for it is many times slower on a CPU."""
        biased = self.add("Add", [value, self.floats(f"{name}.bias", linear.bias)], f"{name}.biased")
        return self.norm(self.add("Add", [biased, skip], f"{name}.sum"), norm, name)


def _word_bytes(table: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """The words' vectors (N, D) as bytes, and one scale per word (N, 1)."""
    scales = np.abs(table).max(axis=1, keepdims=True) / _WORD_LEVELS
    scales[scales == 0] = 1.0
    return np.rint(table / scales).astype(np.int8), scales.astype(np.float32)


def _body(graph: _Graph, model: EncoderModel) -> None:
    mask = graph.add("Cast", ["attention_mask"], "mask_int", to=TensorProto.INT32)
    states = _embeddings(graph, model)
    for index, layer in enumerate(model.layers):
        assert isinstance(layer, Layer)
        states = _layer(graph, layer, states, mask, f"layer{index}")
    vector = _mean(graph, states)
    logits = _head(graph, model, states, mask, vector)
    _verdict(graph, model, logits)


def _embeddings(graph: _Graph, model: EncoderModel) -> str:
    embedder = model.embedder
    table = embedder.words.weight.detach().float().numpy()
    if graph.rounded is not None:
        small, scales = _word_bytes(table)
        picked = graph.add("Gather", [graph.constant("words.weight", small), "input_ids"], "words.int8")
        picked = graph.add("Cast", [picked], "words.float", to=TensorProto.FLOAT)
        scale = graph.add("Gather", [graph.constant("words.scales", scales), "input_ids"], "words.scale")
        words = graph.add("Mul", [picked, scale], "words")
    else:
        words = graph.add("Gather", [graph.constant("words.weight", table), "input_ids"], "words")
    shape = graph.add("Shape", ["input_ids"], "shape")
    length = graph.add("Gather", [shape, graph.constant("second_axis", np.array([1], dtype=np.int64))], "length")
    rows = graph.floats("positions.weight", embedder.positions.weight[: graph.longest])
    first, axis = (graph.constant(name, np.array([0], dtype=np.int64)) for name in ("first_place", "first_axis"))
    positions = graph.add("Slice", [rows, first, length, axis], "positions")
    types = graph.add("Gather", [graph.floats("types.weight", embedder.types.weight), "token_type_ids"], "types")
    total = graph.add("Add", [graph.add("Add", [words, types], "words_types"), positions], "embedded")
    return graph.norm(total, embedder.norm, "embedding_norm")


def _layer(graph: _Graph, layer: Layer, states: str, mask: str, name: str) -> str:
    width = layer.out.in_features
    joined = graph.linear(states, layer.qkv, f"{name}.qkv")
    sizes = graph.constant(f"{name}.sizes", np.array([width] * 3, dtype=np.int64))
    parts = [f"{name}.{part}" for part in ("query", "key", "value")]
    graph.nodes.append(helper.make_node("Split", [joined, sizes], parts, name=f"{name}.split", axis=-1))
    found = graph.fused("MultiHeadAttention", [*parts, "", mask], f"{name}.attention", num_heads=layer.heads)
    product = graph.matrix(found, layer.out, f"{name}.out")
    states = graph.skip_norm(product, states, layer.out, layer.norm1, f"{name}.norm1")
    wide = graph.matrix(states, layer.up, f"{name}.up")
    wide = graph.fused("BiasGelu", [wide, graph.floats(f"{name}.up.bias", layer.up.bias)], f"{name}.gelu")
    product = graph.matrix(wide, layer.down, f"{name}.down")
    return graph.skip_norm(product, states, layer.down, layer.norm2, f"{name}.norm2")


def _mean(graph: _Graph, states: str) -> str:
    floats = graph.add("Cast", ["attention_mask"], "mask_float", to=TensorProto.FLOAT)
    last = graph.constant("last", np.array([-1], dtype=np.int64))
    column = graph.add("Unsqueeze", [floats, last], "mask_column")
    second = graph.constant("second", np.array([1], dtype=np.int64))
    total = graph.add("ReduceSum", [graph.add("Mul", [states, column], "masked"), second], "total", keepdims=0)
    tokens = graph.add("ReduceSum", [floats, second], "tokens", keepdims=1)
    return graph.add("Div", [total, tokens], "vector")


def _head(graph: _Graph, model: EncoderModel, states: str, mask: str, vector: str) -> str:
    width = model.config.dimension
    batch = graph.add("Gather", ["shape", "first_axis"], "batch")
    count = graph.add("Shape", ["category_vectors"], "count")
    target = graph.add("Concat", [batch, count], "category_shape", axis=0)
    projected = graph.linear("category_vectors", model.category, "category_product")
    categories = graph.norm(projected, model.category_norm, "category_norm")
    shared = graph.add("Expand", [categories, target], "categories")
    query = graph.add("Expand", [graph.linear(categories, model.query, "query_row"), target], "query")
    joined = graph.linear(states, model.key_value, "key_value")
    sizes = graph.constant("key_value.sizes", np.array([width] * 2, dtype=np.int64))
    graph.nodes.append(helper.make_node("Split", [joined, sizes], ["key", "value"], name="key_value.split", axis=-1))
    heads = model.config.category_heads
    found = graph.fused("MultiHeadAttention", [query, "key", "value", "", mask], "found", num_heads=heads)
    gathered = graph.norm(graph.linear(found, model.gather, "gather"), model.gather_norm, "gathered")
    middle = graph.constant("middle", np.array([1], dtype=np.int64))
    row = graph.add("Unsqueeze", [graph.norm(vector, model.mean_norm, "mean_norm"), middle], "vector_row")
    products = [graph.add("Mul", [gathered, shared], "match"), graph.add("Mul", [row, shared], "match_mean")]
    features = graph.add("Concat", [gathered, shared, *products], "features", axis=-1)
    hidden = graph.matrix(features, model.hidden, "hidden")
    hidden = graph.fused("BiasGelu", [hidden, graph.floats("hidden.bias", model.hidden.bias)], "hidden_gelu")
    weight = graph.floats("logit.weight", model.logit.weight.T)
    product = graph.add("MatMul", [hidden, weight], "logit_product")
    logit = graph.add("Add", [product, graph.floats("logit.bias", model.logit.bias)], "logit_column")
    end = graph.constant("end", np.array([-1], dtype=np.int64))
    return graph.add("Squeeze", [logit, end], "category_logits")


def _verdict(graph: _Graph, model: EncoderModel, logits: str) -> None:
    scaled = graph.add("Mul", [logits, graph.floats("sharpness", model.sharpness.exp())], "sharpened")
    shares = graph.add("Softmax", [scaled], "shares", axis=-1)
    weighted = graph.add("Mul", [shares, logits], "weighted")
    axis = graph.constant("verdict_axis", np.array([-1], dtype=np.int64))
    graph.add("ReduceSum", [weighted, axis], "verdict_logit", keepdims=0)
