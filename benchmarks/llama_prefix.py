"""Judging with a small Llama: our path beside `model.generate` per item, and beside batches without a cached prefix.

One random checkpoint, one policy of about 600 tokens, conversations of about 100 tokens. The contestants take turns
in every round, so whatever else the machine does slows all of them; a ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from guardrail.backends.llama import LlamaBackend
from guardrail.backends.llama_loading import Checkpoint
from guardrail.prompting import Prompt, PromptBuilder, Template
from guardrail.scoring import Logits
from guardrail.taxonomy import Taxonomy
from guardrail.types import Conversation

FAMILY = "llama-guard-1"
TEXT = "how do you bake a good loaf of bread when the oven is old and there is no scale in the kitchen"
VOCABULARY = 32000
CONVERSATION = 100  # tokens


def real_tokenizer(folder: Path) -> Any:
    """Llama 2's, from the published file."""
    with tempfile.TemporaryDirectory() as name:
        shutil.copy(folder / "llama2" / "tokenizer.model", name)
        settings = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": True}
        (Path(name) / "tokenizer_config.json").write_text(json.dumps(settings))
        return AutoTokenizer.from_pretrained(name)


def small_tokenizer() -> Any:
    """A byte-level tokenizer trained on the policy, in which the policy has about as many tokens as in Llama 2's."""
    taxonomy = Taxonomy.load(FAMILY)
    builder = PromptBuilder(Template.load(FAMILY), taxonomy)
    text = builder.build(Conversation.parse(TEXT)).text
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=800,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text, " safe unsafe" * 100], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def small_checkpoint(tokenizer: Any) -> Checkpoint:
    """A random Llama of 20 million parameters."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
    )
    model = LlamaForCausalLM(config).eval()
    model.generation_config.eos_token_id = None  # a random model would stop at random places
    return Checkpoint(model, tokenizer, "random@0", Path(), config.max_position_embeddings, VOCABULARY)


def conversations(backend: LlamaBackend, count: int) -> list[Prompt]:
    """Prompts whose conversations are of 50 to 150 tokens."""
    chance = random.Random(0)
    builder = PromptBuilder(backend.template, backend.default_taxonomy)
    prompts = []
    for _ in range(count):
        wanted = chance.randint(CONVERSATION // 2, CONVERSATION * 3 // 2)
        words: list[str] = []
        while len(backend.tokenizer.encode_text(" ".join(words))) < wanted:
            words.append(chance.choice(TEXT.split()))
        prompts.append(builder.build(Conversation.parse(" ".join(words))))
    return prompts


def generate(checkpoint: Checkpoint, backend: LlamaBackend, tokens: int) -> Callable[[Sequence[Prompt]], object]:
    """Greedy generation, one item after the other, as the model cards show it."""

    def run(prompts: Sequence[Prompt]) -> list[Any]:
        answers = []
        for prompt in prompts:
            ids = torch.tensor([backend.tokenizer.encode(prompt)])
            with torch.inference_mode():
                answers.append(
                    checkpoint.model.generate(
                        ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, pad_token_id=0
                    )
                )
        return answers

    return run


def measure(
    contestants: Mapping[str, tuple[Callable[[Sequence[Prompt]], object], Sequence[Prompt]]], rounds: int
) -> dict[str, list[float]]:
    """Seconds per item of every contestant in every round; a round before them warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for round_ in range(rounds + 1):
        for name, (run, prompts) in contestants.items():
            start = time.perf_counter()
            run(prompts)
            if round_:
                seconds[name].append((time.perf_counter() - start) / len(prompts))
    return seconds


def agree(one: LlamaBackend, other: LlamaBackend, prompts: Sequence[Prompt]) -> float:
    """The largest difference in a verdict logit."""
    pairs = zip(one.logits(prompts), other.logits(prompts), strict=True)
    both = [(a, b) for a, b in pairs if isinstance(a, Logits) and isinstance(b, Logits)]
    assert len(both) == len(prompts)
    return max(max(abs(a.safe - b.safe), abs(a.unsafe - b.unsafe)) for a, b in both)


def main() -> None:
    """Measure, print a table, and write the figures when asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizers", type=Path, help="folder with llama2/tokenizer.model")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--items", type=int, default=32)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tokenizer = real_tokenizer(arguments.tokenizers) if arguments.tokenizers else small_tokenizer()
    checkpoint = small_checkpoint(tokenizer)
    ours = LlamaBackend(checkpoint, template=FAMILY)
    plain = LlamaBackend(checkpoint, template=FAMILY, cache_bytes=0)
    prompts = conversations(ours, arguments.items)
    few = prompts[: max(1, arguments.items // 8)]
    lengths = [len(ours.tokenizer.encode(prompt)) for prompt in prompts]
    contestants = {
        "shared prefix, batched": (lambda p: ours.logits(p, categories=False), prompts),
        "the same with category scores": (lambda p: ours.logits(p), prompts),
        "shared prefix, one by one": (lambda p: [ours.logits([one], categories=False) for one in p], few),
        "batched, no shared prefix": (lambda p: plain.logits(p, categories=False), prompts),
        "generate, 1 token": (generate(checkpoint, ours, 1), few),
        "generate, 10 tokens": (generate(checkpoint, ours, 10), few),
    }
    difference = agree(ours, plain, prompts)
    seconds = measure(contestants, arguments.rounds)
    parameters = sum(parameter.numel() for parameter in checkpoint.model.parameters())
    report(
        seconds,
        arguments,
        {
            "parameters": parameters,
            "prompt_tokens": round(statistics.mean(lengths)),
            "largest_difference": difference,
            "threads": arguments.threads,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    )


def report(seconds: dict[str, list[float]], arguments: argparse.Namespace, facts: dict[str, Any]) -> None:
    """Throughput of the first contestant over that of each."""
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    base, *_ = seconds
    ratios = {
        name: statistics.median(value / mine for value, mine in zip(values, seconds[base], strict=True))
        for name, values in seconds.items()
    }
    for name, values in seconds.items():
        print(f"{name:32} {statistics.median(values) * 1000:8.1f} ms per item   {ratios[name]:6.2f}x the time of ours")
    if arguments.json:
        arguments.json.write_text(json.dumps({**facts, "rounds": arguments.rounds, "ratios": ratios}, indent=2) + "\n")


if __name__ == "__main__":
    main()
