"""Exports a trained model to the folder that the encoder backend opens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from guardrail.backends.encoder import TAXONOMY_FILE, EncoderBackend
from guardrail.errors import ModelError
from guardrail.prompting import PromptBuilder, Template
from guardrail.resources import digest
from guardrail.taxonomy import Taxonomy
from guardrail.tokens import TextTokenizer
from guardrail.training.encoder_batches import DEFAULT, Renderer
from guardrail.training.encoder_model import BASE_SHA256, EncoderModel
from guardrail.training.encoder_rehearsal import TAXONOMIES, written_texts
from guardrail.training.encoder_validation import WINDOW
from guardrail.training.onnx_graph import write_graph
from guardrail.training.rounding import Rounded, round_matrices, round_moved

__all__ = ["MINILM", "Base", "export"]

_FORMAT = 1
_LARGEST = 30_000_000
_ROUNDING_TEXTS = 300
_FOLDED = {"type": "NFKC"}


@dataclass(frozen=True, slots=True)
class Base:
    """The weights that training started from."""

    name: str
    sha256: str

    @classmethod
    def of(cls, name: str, file: Path) -> Base:
        """The weights in a file."""
        return cls(name, hashlib.sha256(file.read_bytes()).hexdigest())


MINILM = Base("all-MiniLM-L6-v2", BASE_SHA256)
"""The pretrained encoder, with a new head."""


def export(
    model: EncoderModel, tokenizer: Path, output: Path, *, model_id: str, date: str,
    taxonomy: Taxonomy | None = None, base: Base = MINILM, before: Mapping[str, Rounded] | None = None,
) -> None:  # fmt: skip
    """Write model.onnx (8-bit), tokenizer.json, config.json, and vectors.npy (default taxonomy); no calibration.

    With `taxonomy`, that one is the folder's default, and is written beside the weights; without, it is the shipped
    default, and ModelError is raised when the files are too large to ship. `before` has the matrices as they were when
    training began, if they had 8 bits.
    """
    shown = taxonomy or Taxonomy.load(DEFAULT)
    output.mkdir(parents=True, exist_ok=True)
    graph = output / "model.onnx"
    plain = _plain_tokenizer(tokenizer)
    write_graph(model, graph, round_moved(model, before) if before else _rounded(model, plain, shown))
    (output / "tokenizer.json").write_text(plain, encoding="utf-8")
    config = {
        "format": _FORMAT,
        "id": model_id,
        "digest": digest(graph.read_bytes()),
        "date": date,
        "template": Template.load("encoder").id,
        "template_digest": Template.load("encoder").digest,
        "taxonomy": shown.id,
        "taxonomy_digest": shown.digest,
        "max_tokens": WINDOW,
        "dimension": model.config.dimension,
        # Of the verdict, for logits that few-shot examples have moved.
        "sharpness": float(model.sharpness.detach().exp()),
        "base": base.name,
        "base_sha256": base.sha256,
    }
    _write(output / "config.json", config)
    (output / TAXONOMY_FILE).unlink(missing_ok=True)
    if taxonomy is not None:
        (output / TAXONOMY_FILE).write_text(taxonomy.to_yaml(), encoding="utf-8")
    (output / "calibration.json").unlink(missing_ok=True)
    (output / "vectors.npy").unlink(missing_ok=True)
    np.save(output / "vectors.npy", EncoderBackend(output).encode_taxonomy(shown))
    size = sum(file.stat().st_size for file in output.iterdir())
    if taxonomy is None and size > _LARGEST:
        raise ModelError(f"the exported model takes {size:,} bytes", hint=f"at most {_LARGEST:,} fit the wheel")


def _rounded(model: EncoderModel, tokenizer: str, taxonomy: Taxonomy) -> dict[str, Rounded]:
    """For what it will read: texts of our own that it may have been trained on, and categories."""
    renderer = Renderer(TextTokenizer.from_json(tokenizer))
    conversations = [renderer.conversation(text) for text in written_texts(_ROUNDING_TEXTS, seed=0)]
    policies = [taxonomy, *map(Taxonomy.load, TAXONOMIES)]
    categories = {text for policy in policies for text in PromptBuilder(renderer.template, policy).policy_texts}
    texts = [*conversations, *map(renderer.text, sorted(categories))]
    return round_matrices(model, [renderer.shortened(text, WINDOW) for text in texts], renderer.separator)


def _plain_tokenizer(file: Path) -> str:
    """The tokenizer.json without truncation and padding, in which no word is too long to be read.

    WordPiece makes one unknown token of a word of more than a hundred characters, so text without spaces would hide
    what it says; here such a word is cut. The ids of ordinary text stay the same. An exported model's tokenizer is
    so already.
    """
    text = file.read_text(encoding="utf-8")
    config = json.loads(text)
    if (config["normalizer"] or {}).get("normalizers", [None])[0] == _FOLDED:
        return text
    cut = {"type": "Split", "pattern": {"Regex": ".{1,64}"}, "behavior": "Isolated", "invert": False}
    # Full-width and other compatibility letters read like the plain ones, so they are the plain ones here.
    config["normalizer"] = {"type": "Sequence", "normalizers": [_FOLDED, config["normalizer"]]}
    config["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [config["pre_tokenizer"], cut]}
    config["truncation"] = None
    config["padding"] = None
    return json.dumps(config, ensure_ascii=False, separators=(",", ":"))


def _write(file: Path, value: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
