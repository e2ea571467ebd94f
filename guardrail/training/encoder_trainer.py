"""The training loop of the embedded model."""

from __future__ import annotations

import random
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from guardrail.training.augment import augment
from guardrail.training.encoder_batches import (
    Batch,
    EncoderPolicies,
    Policy,
    Renderer,
    batches,
    flip,
    pad,
    target_tensors,
)
from guardrail.training.encoder_hyper import Hyper
from guardrail.training.encoder_model import EncoderModel, mean_pool
from guardrail.training.encoder_rehearsal import Rehearsal
from guardrail.training.precision import mixed_precision
from guardrail.training.rows import Row

__all__ = ["Hyper", "Trainer"]

_FROZEN = "embedder.words"


class Trainer:
    """Trains a model on rows; keeps an exponential average of the weights, which is what is evaluated and exported."""

    def __init__(
        self,
        model: EncoderModel,
        renderer: Renderer,
        sampler: EncoderPolicies,
        hyper: Hyper,
        rehearsal: Rehearsal | None = None,
    ) -> None:
        self.model = model
        self.renderer = renderer
        self.sampler = sampler
        self.hyper = hyper
        self.rehearsal = rehearsal
        self.random = random.Random(hyper.seed)
        self.average = {name: value.detach().clone() for name, value in model.state_dict().items()}
        _freeze(model, hyper.frozen_layers)
        self.optimizer = torch.optim.AdamW(_groups(model, hyper), weight_decay=hyper.weight_decay, fused=True)
        self._rates = [group["lr"] for group in self.optimizer.param_groups]
        self._cache: dict[tuple[int, ...], tuple[int, Tensor]] = {}
        self._examples: dict[str, list[list[int]]] = {}
        self._steps = 0
        self._restored: Mapping[str, Any] | None = None

    @property
    def steps(self) -> int:
        """How many steps were made."""
        return self._steps

    def state(self) -> dict[str, Any]:
        """All that `restore` needs to go on from this step; the frozen token embeddings are left out."""
        # What was cached is lost when a run is cut off, so it is let go of here: both runs go on alike.
        self._cache.clear()
        return {
            "step": self._steps,
            "model": _trained(self.model.state_dict()),
            "average": _trained(self.average),
            "optimizer": self.optimizer.state_dict(),
            "random": self.random.getstate(),
            "torch": torch.get_rng_state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state: `train` then skips the steps that were done."""
        self.model.load_state_dict(state["model"], strict=False)
        self.average |= {name: value.clone() for name, value in state["average"].items()}
        self.optimizer.load_state_dict(state["optimizer"])
        self._steps = state["step"]
        self._restored = state

    def train(self, sample: Callable[[int], list[Row]], evaluate: Callable[[int], bool]) -> None:
        """All passes; `sample(n)` gives the rows of pass n, `evaluate(step)` says whether to go on."""
        plans = [self._plan(sample(number)) for number in range(self.hyper.passes)]
        total = sum(len(plan) for _, plan in plans)
        if self._restored is not None:
            self.random.setstate(self._restored["random"])
            torch.set_rng_state(self._restored["torch"])
        started, tokens, losses = time.monotonic(), 0, [0.0, 0.0]
        for rows, plan in _left(plans, self._steps):
            for batch in plan:
                self._schedule(total)
                parts = self._step(batch, rows)
                losses = [old + new for old, new in zip(losses, parts, strict=True)]
                tokens += batch.input_ids.numel()
                self._steps += 1
                if self._steps % 50 == 0:
                    rate = tokens / (time.monotonic() - started)
                    text = " ".join(f"{value / 50:.4f}" for value in losses)
                    print(f"step {self._steps}/{total} loss {text} {rate:.0f} tokens/s", file=sys.stderr, flush=True)
                    losses = [0.0, 0.0]
                if (self._steps % self.hyper.evaluate_every == 0 or self._steps == total) and not evaluate(self._steps):
                    return

    def _plan(self, rows: list[Row]) -> tuple[list[Row], list[Batch]]:
        """One pass: noisy copies of the rows, in batches."""
        noisy = [augment(row, self.random, self.hyper.noise_rate) for row in rows]
        ids = [self._ids(row) for row in noisy]
        self._collect_examples(noisy, ids)
        order = list(range(len(rows)))
        self.random.shuffle(order)
        hyper = self.hyper
        return noisy, list(batches(ids, order, hyper.tokens_per_batch, self.renderer.separator, self.random))

    def _ids(self, row: Row) -> list[int]:
        ids = self.renderer.conversation(row.conversation)
        spare = len(ids) - self.hyper.max_tokens
        # Where a harmless text is cut does not matter; a harmful one is cut at its start or its end.
        offset = 0
        if spare > 0 and self.random.random() < 0.4:
            offset = self.random.randrange(spare + 1) if 0 <= row.unsafe <= 0.05 else 0
        return self.renderer.shortened(ids, self.hyper.max_tokens, offset)

    def _collect_examples(self, rows: Sequence[Row], ids: Sequence[list[int]]) -> None:
        pools: defaultdict[str, list[list[int]]] = defaultdict(list)
        for row, values in zip(rows, ids, strict=True):
            if row.unsafe >= 0.85 and len(values) <= 64:
                for hazard in row.violated:
                    pools[hazard].append(values)
        self._examples = dict(pools)

    def _step(self, batch: Batch, rows: Sequence[Row]) -> tuple[float, float]:
        hyper, model = self.hyper, self.model
        model.train()
        policy = self.sampler.draw(self.random)
        chosen = [rows[at] for at in batch.rows]
        kept = [flip(row, policy.hazards, self.random, hyper.flip_rate) for row in chosen]
        verdicts, categories = target_tensors(chosen, policy.hazards, kept)
        weights = torch.tensor([row.weight for row in chosen])
        with mixed_precision():
            vectors = self._vectors(policy)
            ids = self._word_dropout(batch.input_ids)
            logits, _ = model(ids, batch.attention_mask, batch.token_type_ids, vectors)
        verdict = model.verdict(logits, torch.tensor(kept))
        verdict_loss = _masked(functional.binary_cross_entropy_with_logits(
            verdict, verdicts.clamp(min=0), reduction="none"), (verdicts >= 0) * weights)  # fmt: skip
        emphasis = torch.where(categories >= 0.5, hyper.positive_weight, 1.0)
        each = functional.binary_cross_entropy_with_logits(logits, categories.clamp(min=0), reduction="none")
        category_loss = _masked(each, (categories >= 0) * emphasis * weights[:, None])
        loss = verdict_loss + hyper.category_loss * category_loss
        if self.rehearsal is not None:
            loss = loss + hyper.rehearsal * self.rehearsal.loss(model, *self.rehearsal.batch(self._steps))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._update_average()
        return float(verdict_loss.detach()), float(category_loss.detach())

    def _vectors(self, policy: Policy) -> Tensor:
        """Category vectors (C, D), sometimes with texts averaged into them."""
        vectors = self._text_vectors(policy)
        if self.random.random() < self.hyper.example_rate:
            vectors = self._with_texts(policy, vectors)
        return vectors

    def _text_vectors(self, policy: Policy) -> Tensor:
        """Category vectors (C, D): sometimes with a gradient, else from a cache that is a few steps old."""
        if not self.sampler.known(policy) or self.random.random() < self.hyper.category_gradient:
            input_ids, mask, _ = pad(policy.texts, self.renderer.separator)
            return self.model.vectors(input_ids, mask)
        return torch.stack([self._cached(text) for text in policy.texts])

    @torch.no_grad()
    def _cached(self, text: tuple[int, ...]) -> Tensor:
        made, vector = self._cache.get(text, (-1000, torch.empty(0)))
        if self._steps - made > 10:
            ids, mask, _ = pad([text], self.renderer.separator)
            vector = self.model.vectors(ids, mask)[0]
            self._cache[text] = (self._steps, vector)
        return vector

    def _with_texts(self, policy: Policy, vectors: Tensor) -> Tensor:
        """The vectors with a few unsafe texts averaged into some of them: a category is more than its wording."""
        rows = list(vectors.unbind())
        for at in self.random.sample(range(len(rows)), min(3, len(rows))):
            pool = self._examples.get(self.random.choice(sorted(policy.hazards[at])), [])
            texts = self.random.sample(pool, min(len(pool), self.random.randint(1, 4)))
            if texts:
                ids, mask, types = pad(texts, self.renderer.separator)
                with torch.no_grad():
                    found = mean_pool(self.model.encode(ids, mask, types).float(), mask)
                rows[at] = torch.cat([rows[at][None], found]).mean(dim=0)
        return torch.stack(rows)

    def _word_dropout(self, ids: Tensor) -> Tensor:
        mask_token = self.renderer.tokenizer.control_id("[MASK]")
        drop = (torch.rand(ids.shape) < self.hyper.word_dropout) & (ids >= 1000)
        return ids.masked_fill(drop, mask_token)

    def _schedule(self, total: int) -> None:
        done = self._steps / total
        factor = min(
            (self._steps + 1) / (self.hyper.warmup * total + 1), (1.02 - done) / (1.02 - self.hyper.warmup), 1.0
        )
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor

    @torch.no_grad()
    def _update_average(self) -> None:
        keep = min(self.hyper.average, (1 + self._steps) / (10 + self._steps))
        for name, value in self.model.state_dict().items():
            if not name.startswith(_FROZEN):
                self.average[name].lerp_(value, 1 - keep)

    def averaged(self) -> EncoderModel:
        """A model with the averaged weights."""
        model = EncoderModel(self.model.config)
        model.load_state_dict(self.average)
        return model.eval()


def _freeze(model: EncoderModel, layers: int) -> None:
    """Word vectors are never learnt: their dense gradient would take much of a step."""
    model.embedder.words.weight.requires_grad_(False)
    if layers:
        model.embedder.requires_grad_(False)
        for layer in list(model.layers)[:layers]:
            layer.requires_grad_(False)


def _trained(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in weights.items() if not name.startswith(_FROZEN)}


def _left(plans: Sequence[tuple[list[Row], list[Batch]]], done: int) -> Iterator[tuple[list[Row], list[Batch]]]:
    """The plans without their first `done` batches."""
    for rows, plan in plans:
        yield rows, plan[done:]
        done = max(0, done - len(plan))


def _masked(losses: Tensor, weights: Tensor) -> Tensor:
    return (losses * weights).sum() / weights.sum().clamp(min=1.0)


def _groups(model: EncoderModel, hyper: Hyper) -> list[dict[str, object]]:
    """Parameter groups: lower layers learn more slowly, the head fastest."""
    count = model.config.layers
    groups: defaultdict[float, list[Tensor]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.startswith("layers."):
            rate = hyper.learning_rate * hyper.layer_decay ** (count - 1 - int(name.split(".")[1]))
        elif name.startswith("embedder."):
            rate = hyper.learning_rate * hyper.layer_decay**count
        else:
            rate = hyper.head_rate
        groups[rate].append(parameter)
    return [{"params": parameters, "lr": rate} for rate, parameters in groups.items()]
