"""transformers' training loop over packs: the loss at the answers' tokens, and evaluation by P(unsafe)."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object  # type: ignore[import-untyped,unused-ignore]
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from guardrail.errors import UsageError
from guardrail.tokens import VerdictTokens
from guardrail.training.llama_average import Average, AverageCallback
from guardrail.training.llama_feed import Feed
from guardrail.training.llama_hyper import LlamaHyper
from guardrail.training.llama_validation import GOAL, Validation
from guardrail.training.packing import Pack, collate, distances, log_likelihoods
from guardrail.training.tree_attention import tree_mask

__all__ = ["GuardTrainer"]


class GuardTrainer(Trainer):  # type: ignore[misc]  # transformers is not typed
    """The loss is the weighted mean over the picks of all packs of a step, on all devices together."""

    def __init__(
        self,
        model: Any,
        arguments: TrainingArguments,
        feed: Callable[[int, int], Feed],
        verdict: VerdictTokens,
        validation: Validation,
        hyper: LlamaHyper,
    ) -> None:
        """`feed(rank, processes)` gives a process its packs."""
        super().__init__(model=model, args=arguments, eval_dataset=list(validation.packs) or None)
        self.hyper = hyper
        self.average = Average(model, hyper.average) if hyper.average is not None else None
        # The loss is divided by the weights of the whole step already: see get_batch_samples.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        self._validation = validation
        self._verdict = verdict
        self._verdict_ids = torch.tensor([*verdict.safe, *verdict.unsafe], device=self.args.device)
        self.feed = feed(self.accelerator.process_index, self.accelerator.num_processes)
        if self.average is not None:
            if self.is_fsdp_enabled:
                raise UsageError("weights in shards cannot be averaged", hint="leave train.average out under FSDP")
            self.add_callback(AverageCallback(self.average))

    def get_train_dataloader(self) -> DataLoader[Pack]:
        """The packs of this process; the accelerator has no part in sharing them out."""
        # A generator of its own: the loader takes one number, which would put dropout in a resumed run out of step.
        return DataLoader(
            self.feed,
            batch_size=self.hyper.packs_per_device,
            collate_fn=self._collate,
            drop_last=True,
            generator=torch.Generator(),
        )

    def _collate(self, packs: list[Pack]) -> Any:
        return collate(packs, self.hyper.verdict_weight)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """The batches of one step, and the sum of their picks' weights over all processes."""
        samples = list(islice(epoch_iterator, num_batches))
        total = torch.stack([batch["weights"].sum() for batch in samples]).sum().to(device)
        if self.accelerator.num_processes > 1:
            total = self.accelerator.reduce(total, "sum")
        return samples, total

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The negative log-likelihoods by weight; devices average their gradients, so each counts its number times."""
        outputs = self._forward(model, inputs, output_hidden_states="vectors" in inputs)
        logits = outputs.logits
        loss = -(log_likelihoods(logits, inputs, self._verdict_ids) * inputs["weights"]).sum()
        if "vectors" in inputs:
            # Behind the last normalisation, as the output layer has them: (B, L, D), of which the kept places.
            states = outputs.hidden_states[-1].take_along_dim(inputs["keep"][..., None], dim=1).flatten(0, 1)
            loss = loss + self.hyper.vector_weight * distances(states[inputs["vector_picks"]], inputs["vectors"]).sum()
        loss = loss / num_items_in_batch * self.accelerator.num_processes
        return (loss, logits) if return_outputs else loss

    def _forward(self, model: Any, batch: Any, **options: Any) -> Any:
        """What the model gives, with the logits (B, P, V) of the kept places."""
        keep = batch["keep"]
        return model(
            input_ids=batch["input_ids"],
            position_ids=batch["position_ids"],
            attention_mask=tree_mask(batch["ends"]),
            logits_to_keep=keep[0] if len(keep) == 1 else keep,
            use_cache=False,
            **options,
        )

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """AUPRC and log loss of the validation rows under the default policy."""
        if self.average is None:
            margins = self._margins()
        else:
            with self.average.applied():
                margins = self._margins()
        metrics = self._validation.metrics(margins)
        self.log({name: value for name, value in metrics.items() if name != GOAL})
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _margins(self) -> dict[int, float]:
        """Log-odds of unsafe by row, the highest of its windows; each process computes a part."""
        model = self.model_wrapped.eval()
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        packs = self._validation.packs
        found: list[tuple[int, float]] = []
        # Every process makes as many forward passes, since the weights may be in shards; surplus ones repeat.
        for turn in range(-(-len(packs) // processes)):
            pack, rows = packs[(turn * processes + rank) % len(packs)]
            found += zip(rows, self._pack_margins(model, pack), strict=True)
        model.train()
        if processes > 1:
            found = gather_object(found)
        margins: dict[int, float] = {}
        for row, margin in found:
            margins[row] = max(margin, margins.get(row, -math.inf))
        return margins

    def _pack_margins(self, model: Any, pack: Pack) -> list[float]:
        batch = self._prepare_inputs(collate([pack]))
        with torch.no_grad(), self.accelerator.autocast():
            logits = self._forward(model, batch).logits.flatten(0, 1)[batch["picks"]].float()
        safe, unsafe = (logits[:, list(ids)].logsumexp(dim=-1) for ids in (self._verdict.safe, self._verdict.unsafe))
        margins: list[float] = (unsafe - safe).tolist()
        return margins

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted."""
        return 0

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Also the average; the state, written last, tells that a checkpoint is whole."""
        super()._save_optimizer_and_scheduler(output_dir)
        if self.average is not None and self.args.should_save:
            self.average.save(Path(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.average is not None and checkpoint is not None:
            self.average.load(Path(checkpoint))

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.average is not None:
            self.average.load(Path(self.state.best_model_checkpoint))
