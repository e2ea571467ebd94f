"""The folder of a trained causal language model: a checkpoint as transformers has them, and what makes it a guard.

config.json, model.safetensors, tokenizer.json, …   transformers opens it
chat_template.jinja                                 the prompt with the default taxonomy
guardrail.json, taxonomy.yaml, TEMPLATE.jinja       `guardrail.load` opens it, see backends.llama_folder
adapter/                                            after LoRA: the adapter alone
calibration.json, MODEL_CARD.md                     written when the run is over
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from guardrail.backends.llama_folder import Facts, write_facts
from guardrail.batch_output import failures
from guardrail.training.chat_template import chat_template

__all__ = ["replaced", "write_folder"]

_SHARD = "5GB"


def write_folder(model: Any, tokenizer: Any, facts: Facts, folder: Path, *, adapter: Path | None = None) -> None:
    """Write everything but calibration and card; a folder that is there is replaced when all of it is written.

    `model` and `tokenizer` are of transformers; the model is written in the number format that it has. `adapter` is
    the folder of an adapter that was merged into it.
    """
    tokenizer.chat_template = chat_template(facts.template, facts.taxonomy)

    def write(new: Path) -> None:
        model.save_pretrained(new, max_shard_size=_SHARD)
        tokenizer.save_pretrained(new)
        write_facts(facts, new)
        if adapter is not None:
            shutil.copytree(adapter, new / "adapter")
            write_facts(facts, new / "adapter")

    replaced(folder, write)


def replaced(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a new folder, and put that in the place of `folder`: killed, it leaves no half of one.

    Both folders lie for a while in a hidden one beside `folder`, of a name that nothing else has; a killed process
    leaves that one behind, which disturbs nobody.
    """
    with failures(str(folder)):
        folder.parent.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        new, old = place / "new", place / "old"
        try:
            new.mkdir()
            write(new)
            if folder.is_dir():
                folder.replace(old)
            new.replace(folder)
        finally:
            # Whatever went wrong between the two steps: the folder that was there comes back.
            if os.path.lexists(old) and not folder.exists():
                old.replace(folder)
            shutil.rmtree(place, ignore_errors=True)
