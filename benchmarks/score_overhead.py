"""`guardrail score` from file to file beside the bare classifier on the same rows, in the same batches, in one process.

    python benchmarks/score_overhead.py --rows 2000

The bare classifier gets prompts that are built already; scoring reads and checks rows, builds prompts, decides, and
writes. The target is less than 10 % on top.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.comparing import Contestant, compare, save
from benchmarks.embedded import some_texts
from guardrail import load
from guardrail.batch import Options, score_file
from guardrail.prompting import PromptBuilder
from guardrail.scoring import Logits
from guardrail.types import Conversation


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    texts = some_texts(None, options.rows)
    settings = Options(overwrite=True)
    with load() as guard, tempfile.TemporaryDirectory() as name:
        source, target = Path(name) / "in.jsonl", Path(name) / "out.jsonl"
        lines = (json.dumps({"id": index, "text": text}) for index, text in enumerate(texts))
        source.write_text("\n".join(lines) + "\n", encoding="utf-8")
        builder = PromptBuilder(guard.template, guard.taxonomy)
        prompts = [builder.build(Conversation.parse(text)) for text in texts]

        def bare() -> None:
            for start in range(0, len(prompts), settings.batch_size):
                answers = guard.backend.logits(prompts[start : start + settings.batch_size])
                assert all(isinstance(answer, Logits) for answer in answers)

        def score() -> None:
            assert score_file(guard, source, target, settings).tally.errors == 0

        contestants = {
            "the bare classifier": Contestant(bare, len(texts)),
            "guardrail score": Contestant(score, len(texts)),
        }
        found = compare("score end to end", contestants, options.rounds, {"rows": len(texts)})
    print(found.table())
    print(f"on top of the bare classifier: {found.ratios['guardrail score'] - 1:+.1%}")
    save(options.json, [found])


if __name__ == "__main__":
    main()
