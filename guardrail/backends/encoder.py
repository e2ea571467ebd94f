"""The embedded classifier: a small encoder that is given the taxonomy, run by ONNX Runtime on the CPU.

The graph has the inputs `input_ids`, `attention_mask`, `token_type_ids` (B, T) and `category_vectors` (C, 384), and
the outputs `category_logits` (B, C), `verdict_logit` (B,) and `vector` (B, 384). A taxonomy is encoded once: each
category's text goes through the same graph, and its `vector` is the category's row in `category_vectors`. Few-shot
examples are added to what the graph gives (`encoder_examples`).

Every text is run by itself (B = 1), several at a time on threads of their own. The int8 graph takes the range of its
activations from the whole batch, so in a batch a text's score would depend on its neighbours; alone it cannot, nothing
is padded. Beside a batch of 32 equally long texts on two threads this took 1.8 times as long with 16 tokens, 1.1 times
with 64, and 0.7 times with 200.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from guardrail.backends.encoder_examples import EncodedPolicy, ExampleShift
from guardrail.calibration import Calibration
from guardrail.errors import BackendError, ModelError, UnreadableError, UsageError
from guardrail.prompting import Prompt, PromptBuilder, Template
from guardrail.resources import digest, folder
from guardrail.scoring import Logits
from guardrail.taxonomy import Category, Taxonomy
from guardrail.tokens import TextTokenizer
from guardrail.types import Conversation
from guardrail.workers import Workers

__all__ = ["TAXONOMY_FILE", "EncoderBackend"]

T = TypeVar("T")
R = TypeVar("R")
Vectors = NDArray[np.float32]

_FORMAT = 1
TAXONOMY_FILE = "taxonomy.yaml"
"""The default taxonomy of a model whose default is no shipped one."""
_TAXONOMIES = 16
# The share of a text's letters that must be known: what is left of a text with fewer says something else.
_READABLE = 0.5
_NONE: Vectors = np.empty(0, dtype=np.float32)


class EncoderBackend:
    """A taxonomy-conditioned encoder in a folder.

    The folder holds model.onnx, tokenizer.json and config.json, and may hold taxonomy.yaml, calibration.json and
    vectors.npy.
    """

    labels = None
    numerics = "int8"

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        self._path = path
        config = _config(path)
        self.max_tokens = int(config["max_tokens"])
        self.dimension = int(config["dimension"])
        self._template_id = str(config["template"])
        self._taxonomy_id = str(config["taxonomy"])
        self._sharpness = config.get("sharpness")
        self._digests = (config.get("taxonomy_digest"), config.get("template_digest"))
        self._session: ort.InferenceSession | None = _session(path / "model.onnx")
        self._threads = threads or os.cpu_count() or 1
        self._workers = Workers(self._threads, "guardrail-encoder")
        self.name = f"{config['id']}@{config['digest']}"
        self._policies: dict[str, EncodedPolicy] = {}

    @classmethod
    def load(cls, name: str = "", *, threads: int | None = None, template: str | None = None) -> EncoderBackend:
        """Open the folder `name`, or the model inside the package; `threads` of the CPU, by default all cores."""
        if template is not None:
            raise UsageError(f"template {template!r}: an encoder has a prompt template of its own", hint="leave it out")
        if not name:
            return cls(folder("model"), threads=threads)
        path = Path(name)
        backend = cls(path, threads=threads)
        found = digest((path / "model.onnx").read_bytes())
        if not backend.name.endswith(f"@{found}"):
            # Judgements and calibrations go by that name.
            raise ModelError(f"{path}: model.onnx has the digest {found}, config.json has another one")
        return backend

    @cached_property
    def template(self) -> Template:
        """The prompt format that the weights were trained on."""
        return Template.load(self._template_id)

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """Encodes prompts for these weights."""
        return TextTokenizer.read(self._path / "tokenizer.json")

    @cached_property
    def default_taxonomy(self) -> Taxonomy:
        """The taxonomy that most of the training used: the one beside the weights, or a shipped one."""
        file = self._path / TAXONOMY_FILE
        if file.is_file():
            return Taxonomy.load(file)
        return Taxonomy.load(self._taxonomy_id)

    @cached_property
    def calibration(self) -> Calibration:
        """Temperature and thresholds, fitted on held-out training data."""
        file = self._path / "calibration.json"
        return Calibration.read(file) if file.is_file() else Calibration()

    def logits(self, prompts: Sequence[Prompt], categories: bool = True) -> list[Logits | BackendError]:
        """One answer per prompt."""
        # Encoded here, not on the workers: encoding a taxonomy waits for workers itself.
        policies = {prompt.taxonomy.digest: self._policy(prompt.taxonomy) for prompt in prompts}

        def answer(prompt: Prompt) -> Logits | BackendError:
            ids = self.tokenizer.encode(prompt)
            if len(ids) > self.max_tokens:
                return BackendError(f"the prompt has {len(ids)} tokens, the model reads {self.max_tokens}")
            unread = self._unread(prompt, ids)
            if unread is not None:
                return UnreadableError(f"the model cannot read the text: {unread} unknown to it")
            verdict, values, _ = self._judged(ids, policies[prompt.taxonomy.digest], categories=categories)
            return Logits(0.0, verdict, tuple(values.tolist()))

        return self._each(answer, prompts)

    def verdicts_and_vectors(self, prompts: Sequence[Prompt]) -> tuple[Vectors, Vectors]:
        """The verdicts' logits (N,), and the mean of each text's token states (N, `dimension`), in which the taxonomy
        has no part. No prompt has more than `max_tokens`."""
        found = [
            self._judged(self.tokenizer.encode(prompt), self._policy(prompt.taxonomy), categories=False, vector=True)
            for prompt in prompts
        ]
        return np.array([each[0] for each in found], dtype=np.float32), np.stack([each[2] for each in found])

    def _judged(
        self, ids: Sequence[int], policy: EncodedPolicy, *, categories: bool, vector: bool = False
    ) -> tuple[float, Vectors, Vectors]:
        """The verdict's logit, and where they are wanted the category logits (C,) and the text's vector (D,)."""
        examples = policy.examples
        wanted = {"verdict_logit": examples is None, "category_logits": categories or examples is not None,
                  "vector": vector or examples is not None}  # fmt: skip
        names = [name for name, needed in wanted.items() if needed]
        found = dict(zip(names, self._run(names, self._feed(ids, policy.vectors)), strict=True))
        logits, states = (found[name][0] if name in found else _NONE for name in ("category_logits", "vector"))
        if examples is None:
            return float(found["verdict_logit"][0]), logits, states
        verdict, logits = examples.judged(logits, states)
        return verdict, logits if categories else _NONE, states

    def close(self) -> None:
        """Stop the threads and let go of the model."""
        self._workers.close()
        self._session = None
        self._policies = {}

    def _unread(self, prompt: Prompt, ids: Sequence[int]) -> str | None:
        """What the vocabulary lacks of the judged text, when too little is left to judge; it knows few scripts."""
        label, colon, text = prompt.segments[1].text.partition(":")
        start = 1 + len(self.tokenizer.encode_text(label + colon))
        judged = ids[start : ids.index(self._separator)]
        known = [token for token in judged if token != self.tokenizer.unknown]
        if not known:
            return "all of it is"
        if len(known) < len(judged) and _letters(self.tokenizer.decode(known)) < _READABLE * _letters(text):
            return "most of its letters are"
        return None

    def _run(self, outputs: list[str], feed: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        session = self._session
        if session is None:
            raise BackendError("the model was closed", hint="load a new guard")
        found: list[NDArray[Any]] = session.run(outputs, feed)
        return found

    def _each(self, run: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """`run` on every item, in parallel where there is more than one."""
        if len(items) < 2 or self._threads < 2:
            return [run(item) for item in items]
        return list(self._workers.pool.map(run, items))

    def _feed(self, ids: Sequence[int], vectors: Vectors) -> dict[str, NDArray[Any]]:
        row = np.array([ids], dtype=np.int64)
        # What follows the first separator is context: the second segment of the encoder's pre-training.
        types = np.zeros_like(row)
        types[0, ids.index(self._separator) + 1 :] = 1
        mask = np.ones_like(row)
        return {"input_ids": row, "attention_mask": mask, "token_type_ids": types, "category_vectors": vectors}

    @cached_property
    def _separator(self) -> int:
        return self.tokenizer.control_id("[SEP]")

    def _policy(self, taxonomy: Taxonomy) -> EncodedPolicy:
        """Encoded once per taxonomy, or by each of the threads that are the first to ask."""
        found = self._policies.get(taxonomy.digest)
        if found is None:
            vectors = self._shipped_vectors(taxonomy)
            vectors = self.encode_taxonomy(taxonomy) if vectors is None else vectors
            found = EncodedPolicy(vectors, self._encode_examples(taxonomy, vectors))
            # A new dictionary instead of a lock, which a forked child would inherit as it was held at the fork.
            kept = list(self._policies.items())[1 - _TAXONOMIES :]
            self._policies = dict([*kept, (taxonomy.digest, found)])
        return found

    def _shipped_vectors(self, taxonomy: Taxonomy) -> Vectors | None:
        """What `encode_taxonomy` gave at export, if it was for this very taxonomy and template: a quicker start."""
        file = self._path / "vectors.npy"
        if self._digests != (taxonomy.digest, self.template.digest) or not file.is_file():
            return None
        return np.asarray(np.load(file, allow_pickle=False), dtype=np.float32)

    def encode_taxonomy(self, taxonomy: Taxonomy) -> Vectors:
        """One vector per category (C, 384): the mean over its text, without examples."""
        start, end = self.tokenizer.control_id("[CLS]"), self._separator
        texts = PromptBuilder(self.template, taxonomy).policy_texts
        return self._whole([[start, *self.tokenizer.encode_text(text), end] for text in texts])

    def _encode_examples(self, taxonomy: Taxonomy, texts: Vectors) -> ExampleShift | None:
        """What the taxonomy's examples say, encoded as conversations; ModelError where the folder cannot use them."""
        if not any(category.examples for category in taxonomy):
            return None
        if not isinstance(self._sharpness, float):
            file = self._path / "config.json"
            raise ModelError(f"{file}: sharpness: is missing, so examples cannot be used", hint="export the model anew")
        builder = PromptBuilder(self.template, taxonomy)

        def vectors(category: Category, label: str) -> Vectors:
            given = (example for example in category.examples if example.label == label)
            return self._whole(
                [self.tokenizer.encode(builder.build(Conversation(example.messages))) for example in given]
            )

        unsafe = [vectors(category, "unsafe") for category in taxonomy]
        safe = np.concatenate([vectors(category, "safe") for category in taxonomy])
        return ExampleShift.of(texts, unsafe, safe, self._sharpness)

    def _whole(self, texts: Sequence[list[int]]) -> Vectors:
        """One vector per text (N, 384), of a long one the mean over its pieces."""
        pieces = [list(self._chunks(ids)) for ids in texts]
        vectors = iter(self._encode([piece for each in pieces for piece in each]) if texts else ())
        means = [np.mean([next(vectors) for _ in each], axis=0) for each in pieces]
        return np.array(means, dtype=np.float32).reshape(-1, self.dimension)

    def _chunks(self, ids: list[int]) -> Iterator[list[int]]:
        """Long policy text is read whole, in pieces that fit, each between the control tokens."""
        if len(ids) <= self.max_tokens:
            yield ids
            return
        inner, size = ids[1:-1], self.max_tokens - 2
        for at in range(0, len(inner), size):
            yield [ids[0], *inner[at : at + size], ids[-1]]

    def _encode(self, rows: Sequence[Sequence[int]]) -> Vectors:
        """One vector per text (N, 384)."""
        nothing = np.zeros((1, self.dimension), dtype=np.float32)

        def vector(ids: Sequence[int]) -> Vectors:
            (values,) = self._run(["vector"], self._feed(ids, nothing))
            return np.asarray(values[0], dtype=np.float32)

        return np.stack(self._each(vector, rows))


def _letters(text: str) -> int:
    return sum(map(str.isalnum, text))


def _config(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"cannot open the model in {path}: {error}", hint="a model folder holds model.onnx and config.json"
        ) from None
    if not isinstance(config, dict) or config.get("format") != _FORMAT:
        raise ModelError(f"{file}: format: expected {_FORMAT}", hint="the model was made for another version")
    return config


def _session(file: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        # ONNX Runtime would make one operator of sum and normalisation again, which is many times slower.
        return ort.InferenceSession(
            str(file), options, providers=["CPUExecutionProvider"], disabled_optimizers=["SkipLayerNormFusion"]
        )
    except Exception as error:  # onnxruntime raises classes of its own that share no base
        raise ModelError(f"cannot open {file}: {error}") from None
