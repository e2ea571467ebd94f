"""Held-out training rows as a file that `guardrail calibrate` reads: `python -m guardrail.training.held_out --help`.

The suites `configs/held-out-prompts.yaml` and `configs/held-out-answers.yaml` describe it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from guardrail.jsonl import encode
from guardrail.taxonomy import Taxonomy
from guardrail.training.embedded_config import read_config
from guardrail.training.encoder_batches import DEFAULT
from guardrail.training.encoder_validation import Validation
from guardrail.training.labels import HazardTable
from guardrail.training.mix import configured_mix
from guardrail.training.rows import Row, targets
from guardrail.training.withheld import withheld_hazards, withhold
from guardrail.types import Role

__all__ = ["CONFIGS", "FILE", "SUITES", "main", "write_rows"]

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FILE = "held-out.jsonl"
SUITES = {Role.USER: CONFIGS / "held-out-prompts.yaml", Role.ASSISTANT: CONFIGS / "held-out-answers.yaml"}

# Shares of voters and the like in between say too little about a row.
_UNSAFE, _SAFE = 0.7, 0.2


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the rows that the configuration holds out of training."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and eval/")
    parser.add_argument("--config", type=Path, default=CONFIGS / "train-embedded-fourth.yaml")
    parser.add_argument("-o", "--output", type=Path, required=True, help=f"folder for {FILE}")
    options = parser.parse_args(arguments)
    config = read_config(options.config)
    mix = configured_mix(options.data, HazardTable.read(CONFIGS / "hazards.yaml"), config)
    mix = withhold(mix, withheld_hazards(config.get("without", ())))
    options.output.mkdir(parents=True, exist_ok=True)
    write_rows(Validation.make(mix.held_out, config["domains"], options.data).rows, options.output / FILE)


def write_rows(rows: Sequence[Row], file: Path) -> None:
    """One line for each row, with its label and those of the default taxonomy's categories; null is unknown."""
    taxonomy = Taxonomy.load(DEFAULT)
    with file.open("wb") as stream:
        for number, row in enumerate(rows, 1):
            stream.write(encode(_line(row, f"{row.source}-{number}", taxonomy)))


def _line(row: Row, identity: str, taxonomy: Taxonomy) -> dict[str, Any]:
    verdict, categories = targets(row, [frozenset(item.hazards) for item in taxonomy])
    return {
        "id": identity,
        "source": row.source,
        "role": row.conversation.role.value,
        "messages": [{"role": turn.role.value, "content": turn.text} for turn in row.conversation.messages],
        "unsafe": _label(verdict),
        "categories": {code: _label(value) for code, value in zip(taxonomy.codes, categories, strict=True)},
    }


def _label(target: float) -> bool | None:
    """Unsafe, safe, or unknown."""
    if target >= _UNSAFE:
        return True
    return False if 0 <= target <= _SAFE else None


if __name__ == "__main__":
    main()
