"""Does a trained guard obey its policy? `python -m guardrail.training.obeys --help`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from guardrail.guard import Guard
from guardrail.loading import load
from guardrail.taxonomy import Taxonomy
from guardrail.training import model_card_behaviour
from guardrail.training.config import read_config
from guardrail.training.data import load_data
from guardrail.training.obedience import obedience

__all__ = ["main"]

_BY_DEFINITION = ("definitions_only", "names_only")


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints what changes of the policy do to the scores of a run's validation rows, as the model card has it."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("model", help="folder of the model")
    parser.add_argument("--config", type=Path, required=True, help="the configuration that it was trained with")
    parser.add_argument("--most", type=int, default=25, help="rows of each category (25)")
    options = parser.parse_args(arguments)
    config = read_config(options.config)
    rows = load_data(config).validation
    with load(options.model) as guard:
        shown = guard.policy_text

        def make(taxonomy: Taxonomy) -> Guard:
            # Definitions are shown or not under every taxonomy, or that would be measured too.
            return Guard(guard.backend, taxonomy=taxonomy, policy_text=None if guard.template.header.encoder else shown)

        found = obedience(make, config.result, rows, options.most)
    if not shown:
        found = {name: value for name, value in found.items() if not name.startswith(_BY_DEFINITION)}
    print(model_card_behaviour.obedience({"obedience": found}).strip())


if __name__ == "__main__":
    main()
