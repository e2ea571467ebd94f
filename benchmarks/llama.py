"""Judging with a Llama: our path beside what people run today, on the same random weights, in one process.

    python benchmarks/llama.py --tokenizers FOLDER --sizes 20M,200M --dtypes float32,bfloat16 --plot llama.png

All prompts begin with the same policy, of about 560 tokens; `--tokens` follow, conversation and closing instructions.
Beside ours: `model.generate` for each item as the model cards show it (one new token is the least there is, five are
`unsafe`, newline, a code and the end), the whole prompts in padded batches through transformers, and llama.cpp on the
same weights with its prompt cache on, through llama-cpp-python.

`matrix` is how long `torch.nn.functional.linear` alone takes for the tokens that are not cached, with the shapes of
this model: its share of our time says how near the processor's own rate the path is.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from benchmarks.comparing import Comparison, Contestant, compare, plot_bars, save
from guardrail.backends.causal_rows import common_length
from guardrail.backends.llama import LlamaBackend
from guardrail.backends.llama_int8 import to_int8
from guardrail.backends.llama_loading import DTYPES, Checkpoint
from guardrail.prompting import Prompt, PromptBuilder
from guardrail.scoring import Logits
from guardrail.types import Conversation

FAMILY = "llama-guard-1"
TEXT = "how do you bake a good loaf of bread when the oven is old and there is no scale in the kitchen"
SIZES = {
    "20M": {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 6,
            "num_key_value_heads": 2},
    "200M": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 12, "num_attention_heads": 16,
             "num_key_value_heads": 4},
    "1B": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
           "num_key_value_heads": 4},
}  # fmt: skip


def real_tokenizer(folder: Path) -> Any:
    """Llama 2's, from the published file."""
    with tempfile.TemporaryDirectory() as name:
        shutil.copy(folder / "llama2" / "tokenizer.model", name)
        settings = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": True}
        (Path(name) / "tokenizer_config.json").write_text(json.dumps(settings))
        return AutoTokenizer.from_pretrained(name)


def random_llama(size: str, dtype: str) -> Any:
    """A Llama of that size with random weights, which never ends what it writes."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=32000, max_position_embeddings=4096, tie_word_embeddings=True, **SIZES[size])
    model = LlamaForCausalLM(config).eval().to(DTYPES[dtype])
    model.generation_config.eos_token_id = None
    return model


def conversations(backend: LlamaBackend, lengths: Sequence[int]) -> list[Prompt]:
    """Prompts of which so many tokens follow what all of them begin with, the closing instructions included."""
    builder = PromptBuilder(backend.template, backend.default_taxonomy)
    short, other = (backend.tokenizer.encode(builder.build(Conversation.parse(text))) for text in ("bread", "oven"))
    closing = len(short) - common_length([tuple(short), tuple(other)]) - 1
    chance = random.Random(0)
    prompts = []
    for length in lengths:
        words = " ".join(chance.choices(TEXT.split(), k=length))
        starts = [start for start, _ in backend.tokenizer.offsets(words)]
        prompts.append(builder.build(Conversation.parse(words[: starts[max(1, length - closing)]])))
    return prompts


def generating(model: Any, ids: Sequence[list[int]], tokens: int) -> Callable[[], object]:
    """Greedy generation of so many tokens, one item after the other."""

    def run() -> None:
        for one in ids:
            row = torch.tensor([one])
            with torch.inference_mode():
                model.generate(
                    row, attention_mask=torch.ones_like(row), max_new_tokens=tokens, do_sample=False, pad_token_id=0
                )

    return run


def batched(model: Any, ids: Sequence[list[int]], size: int) -> Callable[[], object]:
    """The whole prompts through transformers, in padded batches by length, logits at the last position only."""
    by_length = sorted(ids, key=len)

    def run() -> None:
        for start in range(0, len(ids), size):
            part = by_length[start : start + size]
            longest = max(map(len, part))
            rows = torch.tensor([[0] * (longest - len(one)) + one for one in part])
            mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in part])
            with torch.inference_mode():
                model(rows, attention_mask=mask, logits_to_keep=1)

    return run


def matrix(model: Any, tokens: int) -> Callable[[], object]:
    """The products with the weights alone, for so many tokens."""
    config = model.config
    narrow = torch.randn(tokens, config.hidden_size, dtype=model.dtype)
    wide = torch.randn(tokens, config.intermediate_size, dtype=model.dtype)

    def run() -> None:
        with torch.inference_mode():
            for layer in model.model.layers:
                attention, mlp = layer.self_attn, layer.mlp
                for part in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj):
                    torch.nn.functional.linear(narrow, part.weight)
                torch.nn.functional.linear(narrow, mlp.gate_proj.weight)
                torch.nn.functional.linear(narrow, mlp.up_proj.weight)
                torch.nn.functional.linear(wide, mlp.down_proj.weight)

    return run


def llama_cpp(model: Any, tokenizer: Any, ids: Sequence[list[int]], threads: int, folder: Path) -> Any:
    """llama.cpp on the same weights: what a prompt has in common with the one before is not computed again."""
    import llama_cpp

    from tests.gguf_files import write_gguf

    kind: Literal["f32", "f16"] = "f32" if model.dtype == torch.float32 else "f16"
    path = write_gguf(model.float() if kind == "f32" else model, tokenizer, folder / f"{kind}.gguf", kind)
    found = llama_cpp.Llama(
        str(path), n_ctx=4096, n_batch=1024, n_threads=threads, n_threads_batch=threads, verbose=False
    )

    def run() -> None:
        for one in ids:
            found.n_tokens = min(common_length([tuple(found._input_ids.tolist()), tuple(one)]), len(one) - 1)
            found.eval(one[found.n_tokens :])

    return run


def measure(size: str, dtype: str, options: argparse.Namespace, tokenizer: Any) -> Comparison:
    """One size in one number format."""
    model = random_llama(size, dtype)
    checkpoint = Checkpoint(model, tokenizer, "random@0", Path(), 4096, 32000)
    plain = LlamaBackend(checkpoint, template=FAMILY, token_budget=options.budget)
    eighths = random_llama(size, dtype)
    to_int8(eighths, keep=eighths.get_output_embeddings())
    small = LlamaBackend(replace(checkpoint, model=eighths), template=FAMILY, token_budget=options.budget)
    prompts = conversations(plain, options.lengths)
    ids = [plain.tokenizer.encode(prompt) for prompt in prompts]
    few, whole = ids[: options.few], ids[: options.whole]
    shared = common_length([tuple(one) for one in ids])
    new = sum(len(one) - shared for one in ids)
    facts = {
        "parameters": f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.0f}M",
        "dtype": dtype, "threads": options.threads, "shared_tokens": shared,
        "new_tokens": round(new / len(ids)), "torch": torch.__version__,
    }  # fmt: skip
    contestants = {
        "guardrail": Contestant(lambda: _checked(plain.logits(prompts, categories=False)), len(ids)),
        "guardrail, with category scores": Contestant(lambda: _checked(plain.logits(prompts)), len(ids)),
        "guardrail, quantize 8bit": Contestant(lambda: _checked(small.logits(prompts, categories=False)), len(ids)),
        "guardrail, one by one": Contestant(
            lambda: _checked([plain.logits([one], categories=False)[0] for one in prompts[: options.few]]), len(few)
        ),
        "generate per item, 1 token": Contestant(generating(model, few, 1), len(few)),
        "generate per item, 5 tokens": Contestant(generating(model, few, 5), len(few)),
        f"whole prompts in batches of {options.batch}": Contestant(batched(model, whole, options.batch), len(whole)),
        "matrix products alone": Contestant(matrix(model, new), len(ids)),
    }
    if options.profile:
        print(profiled(contestants["guardrail"].run))
    with tempfile.TemporaryDirectory() as name:
        if not options.without_llama_cpp:
            run = llama_cpp(random_llama(size, dtype), tokenizer, few, options.threads, Path(name))
            contestants["llama.cpp with its prompt cache"] = Contestant(run, len(few))
        return compare(f"{size}, {dtype}", contestants, options.rounds, facts)


def measure_each(size: str, dtype: str, options: argparse.Namespace, tokenizer: Any) -> Comparison:
    """Texts, one by one, under a policy of each category: the rows of all policies at once, or policy after policy."""
    checkpoint = Checkpoint(random_llama(size, dtype), tokenizer, "random@0", Path(), 4096, 32000)
    backend = LlamaBackend(checkpoint, template=FAMILY, token_budget=options.budget)
    policy = backend.default_taxonomy
    builders = [PromptBuilder(backend.template, policy.select([code])) for code in policy.codes]
    # None begins like the one before it, which would be taken for a part of the policy.
    texts = [Conversation.parse(f"{word}: {TEXT}") for word in TEXT.split()[: max(2, options.few)]]
    prompts = [[builder.build(text) for builder in builders] for text in texts]

    def at_once() -> None:
        for same in prompts:
            _checked(backend.logits(same, categories=False))

    def one_by_one() -> None:
        for same in prompts:
            _checked([backend.logits([prompt], categories=False)[0] for prompt in same])

    contestants = {
        "guardrail": Contestant(at_once, len(texts)),
        "policy after policy": Contestant(one_by_one, len(texts)),
    }
    ids = [backend.tokenizer.encode(prompt) for prompt in prompts[0]]
    facts = {"policies": len(ids), "tokens": round(sum(map(len, ids)) / len(ids)), "threads": options.threads}
    return compare(f"{size}, {dtype}, one text under each category", contestants, options.rounds, facts)


def profiled(run: Callable[[], object]) -> str:
    """The operators that take most of the time, by torch's profiler."""
    run()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        run()
    table: str = found.key_averages().table(sort_by="self_cpu_time_total", row_limit=10)
    return table


def _checked(answers: Sequence[object]) -> None:
    assert all(isinstance(answer, Logits) for answer in answers)


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizers", type=Path, required=True, help="folder with llama2/tokenizer.model")
    parser.add_argument("--sizes", default="20M,200M", help=f"of {', '.join(SIZES)}")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--tokens", type=int, default=160, help="tokens of each prompt that are not shared")
    parser.add_argument("--texts", type=Path, help="draw the lengths from JSON lines with user_input, as ToxicChat")
    parser.add_argument("--items", type=int, default=16)
    parser.add_argument("--few", type=int, default=3, help="items of what runs one by one")
    parser.add_argument("--batch", type=int, default=8, help="whole prompts of a padded batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--budget", type=int, help="tokens of our batches")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--profile", action="store_true", help="also print where our time goes")
    parser.add_argument("--each", action="store_true", help="instead: one text under a policy of each category")
    parser.add_argument("--without-llama-cpp", action="store_true")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--plot", type=Path, help="also draw them")
    options = parser.parse_args()
    if options.few < 2 and not (options.without_llama_cpp or options.each):
        # The same prompt again is in llama.cpp's cache as a whole.
        parser.error(f"--few is {options.few}: llama.cpp needs 2 prompts that take turns, or --without-llama-cpp")
    torch.set_num_threads(options.threads)
    tokenizer = real_tokenizer(options.tokenizers)
    options.lengths, options.whole = [options.tokens] * options.items, options.batch
    if options.texts:
        # Where lengths differ, a few items would not cost what the others do.
        options.lengths = drawn(options.texts, tokenizer, options.items)
        options.few = options.whole = options.items
    found = []
    for size in options.sizes.split(","):
        for dtype in options.dtypes.split(","):
            found.append((measure_each if options.each else measure)(size, dtype, options, tokenizer))
            print(found[-1].table(), flush=True)
    save(options.json, found)
    plot_bars(options.plot, found, "times as long as guardrail")


def drawn(path: Path, tokenizer: Any, count: int) -> list[int]:
    """Token counts of texts drawn at random from a file of JSON lines such as ToxicChat's, each from 2 to 1,500."""
    with path.open(encoding="utf-8") as file:
        texts = [json.loads(line)["user_input"] for line in file]
    chosen = random.Random(0).sample(texts, count)
    return [min(1500, max(2, len(tokenizer.encode(text, add_special_tokens=False)))) for text in chosen]


if __name__ == "__main__":
    main()
