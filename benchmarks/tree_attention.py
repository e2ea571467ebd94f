"""Training steps on packs: attention in blocks against one masked square, in turn, in one process; prints the ratio.

    python benchmarks/tree_attention.py --rounds 5

A Llama of 13 million random weights as in configs/llama-scratch.yaml, and packs of about 1,800 tokens: a policy of 120
and 17 rows of 100 behind it.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from guardrail.training.answers import Answer, Step
from guardrail.training.packing import Branch, Pack, collate, pack
from guardrail.training.tree_attention import tree_attention, tree_mask

_POLICY, _ROWS, _TOKENS, _VOCABULARY = 120, 17, 100, 12000


def main() -> None:
    """Measure, and print the medians' ratio."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=_VOCABULARY, hidden_size=384, intermediate_size=1024, num_hidden_layers=5,
                         num_attention_heads=6, num_key_value_heads=6, tie_word_embeddings=True)  # fmt: skip
    model = LlamaForCausalLM(config).train()
    packs = [_pack(random.Random(number)) for number in range(options.rounds + 1)]
    times: dict[str, list[float]] = {"square": [], "blocks": []}
    for number, one in enumerate(packs):
        for way, found in times.items():
            seconds = _step(model, one, way)
            if number:  # the first round warms up
                found.append(seconds)
    square, blocks = (statistics.median(times[way]) for way in ("square", "blocks"))
    print(f"forward and backward over {len(packs[0])} tokens, {options.rounds} rounds, {options.threads} thread(s)")
    print(f"a masked square takes {square / blocks:.2f}x the time of blocks")


def _pack(chosen: random.Random) -> Pack:
    policy = tuple(chosen.randrange(_VOCABULARY) for _ in range(_POLICY))
    answer = Answer((Step((1,), verdict=True), Step((2,))))
    rows = [(*policy, *(chosen.randrange(_VOCABULARY) for _ in range(_TOKENS))) for _ in range(_ROWS)]
    return pack([Branch(row, (answer,)) for row in rows])


def _step(model: LlamaForCausalLM, one: Pack, way: str) -> float:
    batch = collate([one])
    started = time.perf_counter()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        if way == "blocks":
            with tree_attention(model):
                loss = _loss(model, batch, tree_mask(batch["ends"]))
        else:
            loss = _loss(model, batch, _square(batch["ends"]))
    loss.backward()  # type: ignore[no-untyped-call]
    model.zero_grad()
    return time.perf_counter() - started


def _loss(model: LlamaForCausalLM, batch: dict[str, torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], attention_mask=mask,
                                 logits_to_keep=batch["keep"][0], use_cache=False).logits  # fmt: skip
    return logits.float().logsumexp(dim=-1).mean()


def _square(ends: torch.Tensor) -> torch.Tensor:
    place = torch.arange(ends.shape[1])
    seen = (place <= place[:, None]) & (place[:, None] < ends[:, None, :])
    mask = torch.zeros(seen.shape, dtype=torch.bfloat16)
    return mask.masked_fill_(~seen, torch.finfo(torch.bfloat16).min)[:, None]


if __name__ == "__main__":
    main()
