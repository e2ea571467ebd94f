"""What the training of a causal language model starts from: a checkpoint, or a small model made from the rows."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from transformers import AutoModelForCausalLM, AutoTokenizer

from guardrail.backends.llama_family import detect_family
from guardrail.backends.llama_folder import read_facts
from guardrail.errors import UsageError
from guardrail.jsonl import encode
from guardrail.prompting import PromptBuilder, Template
from guardrail.tokens import TextTokenizer
from guardrail.training import processes
from guardrail.training.config import TrainingConfig
from guardrail.training.data import Training
from guardrail.training.llama_hyper import LlamaHyper
from guardrail.training.llama_model import base_model, prepared
from guardrail.training.llama_view import Format, View
from guardrail.training.model_folder import replaced
from guardrail.training.outcome import Say
from guardrail.training.rows import targets
from guardrail.training.scratch import new_model
from guardrail.training.scratch_language import language_phase
from guardrail.training.scratch_spec import ScratchSpec
from guardrail.training.scratch_tokenizer import train_tokenizer
from guardrail.training.scratch_vectors import vector_phase
from guardrail.training.teacher import Teacher

__all__ = ["SCRATCH", "Start", "open_start", "teacher_of"]

SCRATCH: Final = Path("checkpoints") / "scratch"
"""Below a run's folder: the new model before it learns to judge."""

_TEMPLATE: Final = "llama-guard-3"
# Prompts among the texts that a tokenizer is learnt on: this share of the rows, within bounds.
_PROMPT_SHARE = 0.02
_FEWEST_PROMPTS, _MOST_PROMPTS = 100, 2000
# Answers per prompt: so often that also a small vocabulary has each of their words as a whole.
_ANSWERS = 20


@dataclass(frozen=True, slots=True)
class Start:
    """A model ready to be trained."""

    model: Any
    tokenizer: Any
    """Of transformers."""
    template: Template
    teacher: Teacher | None = None
    """Of a new model, whose vectors it has learnt."""


def open_start(config: TrainingConfig, data: Training, output: Path, say: Say) -> Start:
    """The configuration's base or new model.

    The prompt format is the one that is named, else the base's: that of a model trained here, or the shipped one of its
    family. A new model that OUT has already is loaded from there, so that a resumed run does not make it again.
    """
    hyper = config.train
    if not isinstance(hyper, LlamaHyper):
        raise UsageError(f"the configuration {config.id!r} is not one of a causal language model")
    if config.scratch is not None:
        return _scratch(config, config.scratch, hyper, data, output, say)
    if config.base is None:
        raise UsageError("there is no base")
    model, tokenizer = base_model(config.base, hyper)
    return Start(model, tokenizer, _template(config.base, config.template, tokenizer))


def _template(base: str, name: str | None, tokenizer: Any) -> Template:
    if name is not None:
        return Template.load(name)
    facts = read_facts(Path(base).expanduser())
    if facts is not None:
        return facts.template
    chat_template = tokenizer.chat_template
    if isinstance(chat_template, dict):
        chat_template = chat_template.get("default")
    return Template.load(detect_family(tokenizer.get_added_vocab(), chat_template))


def _scratch(
    config: TrainingConfig, spec: ScratchSpec, hyper: LlamaHyper, data: Training, output: Path, say: Say
) -> Start:
    if hyper.method != "full":
        raise UsageError(f"train.method is {hyper.method}, but nothing is trained yet", hint="use full, or give a base")
    template = Template.load(config.template or _TEMPLATE)
    folder = output / SCRATCH
    # The main process has by now deleted what an earlier run left.
    processes.wait()
    teacher = teacher_of(spec, data)
    if not folder.is_dir():
        _make(config, spec, data, template, teacher, folder, say)
    processes.wait()
    # Also a new model is loaded from its file: a resumed run then starts from the very same numbers.
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return Start(*prepared(model, tokenizer, hyper), template, teacher)


def teacher_of(spec: ScratchSpec, data: Training) -> Teacher | None:
    """The teacher of a new model, if it has one; what all vectors share is taken from rows as a pass shows them.

    Of all rows, a large source that a pass sees little of would move the centre away from the others.
    """
    return None if spec.vectors_from is None else Teacher(spec.vectors_from, data.sample(0, spec.seed))


def _make(
    config: TrainingConfig, spec: ScratchSpec, data: Training, template: Template, teacher: Teacher | None,
    folder: Path, say: Say,
) -> None:  # fmt: skip
    """Every process makes the same model, since all of them take part in its lessons; the main one writes it."""
    if not processes.is_main():
        say = _nothing
    texts = [message.text for row in data.rows for message in row.conversation.messages]
    tokenizer = train_tokenizer(texts, _prompts(config, data, template, spec.seed), spec.vocabulary, template)
    model = new_model(spec, tokenizer)
    say(f"a new model: {model.num_parameters() / 1e6:.1f} million weights, {len(tokenizer)} tokens")
    found: dict[str, float] = {}
    if spec.language_steps:
        say(f"language: {spec.language_steps} steps on {len(texts)} texts")
        found |= language_phase(model, tokenizer, texts, spec, folder.with_name("language"))
    if teacher is not None:
        say(f"vectors: {spec.vector_steps} steps with {spec.vectors_from}")
        format = Format(TextTokenizer.from_transformers(tokenizer), template, spec.positions, spec.positions)
        found |= vector_phase(
            model, View(format, config.result), data.sample, teacher, spec, folder.with_name("vectors")
        )
    if found:
        say("before judging: " + ", ".join(f"{name} {value:g}" for name, value in found.items()))

    def write(new: Path) -> None:
        model.save_pretrained(new)
        tokenizer.save_pretrained(new)
        (new / "language.json").write_bytes(encode(found))

    if processes.is_main():
        replaced(folder, write)


def _nothing(_: str) -> None:
    """Said by one process is enough."""


def _prompts(config: TrainingConfig, data: Training, template: Template, seed: int) -> Iterator[str]:
    """Prompts with answers, under policies as training shows them."""
    chosen = random.Random(f"prompts {seed}")
    count = min(_MOST_PROMPTS, max(_FEWEST_PROMPTS, round(_PROMPT_SHARE * len(data.rows))))
    for row in chosen.choices(data.rows, k=count):
        policy = data.sampler.draw(chosen, [row])
        builder = PromptBuilder(template, policy.taxonomy)
        _, values = targets(row, policy.labels)
        codes = [code for code, value in zip(builder.codes, values, strict=True) if value > 0]
        verdict = f"{template.unsafe[0]}\n{','.join(codes or builder.codes[:1])}"
        yield builder.build(row.conversation).text
        for answer in (verdict, *template.safe):
            yield f"{template.answer_prefix}{answer}" * _ANSWERS
