"""Model servers for tests: llama-cpp-python's own, and a small one that answers in other servers' shapes."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.fake_services import Received, Reply

__all__ = ["ServedModel", "llama_cpp_server"]


@contextmanager
def llama_cpp_server(model: Path, log: Path, **options: Any) -> Iterator[str]:
    """`python -m llama_cpp.server` with a GGUF file on a port of its own; gives the address, up to `/v1`.

    It computes with one thread, and keeps keys and values as float32.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = {"model": model, "port": port, "n_ctx": 2048, "n_threads": 1, "n_threads_batch": 1}
    settings.update(type_k=0, type_v=0, **options)
    arguments = [str(part) for name, value in settings.items() for part in (f"--{name}", value)]
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, "-m", "llama_cpp.server", *arguments], stdout=out, stderr=out)
    try:
        _wait(f"http://127.0.0.1:{port}/v1/models", process, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(30)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 300
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise RuntimeError(f"the server did not start: {log.read_text(errors='replace')[-2000:]}")


class ServedModel:
    """A transformers model that answers `/models` and `/completions`, for `FakeService.respond`.

    `shape` is `vllm` (ids as `token_id:7`), `llama.cpp` (ids beside texts) or `texts` (SGLang: texts only). With
    `biased` the listed logprobs have the bias in them. Without `ids` it takes texts only, in which it parses control
    tokens and before which it puts the first one.
    """

    def __init__(self, folder: Path, shape: str = "vllm", *, biased: bool = False, ids: bool = True) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.shape = shape
        self.biased = biased
        self.ids = ids
        self.obeys = True
        """Whether it chooses by the bias."""
        self.prompts: list[list[int]] = []
        self.under_way = 0
        self.most_under_way = 0
        self._count = threading.Lock()
        self._compute = threading.Lock()

    def __call__(self, received: Received) -> Reply:
        with self._count:
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            return self._answer(received)
        finally:
            with self._count:
                self.under_way -= 1

    def _answer(self, received: Received) -> Reply:
        if received.path.endswith("/models"):
            return Reply({"object": "list", "data": [{"id": "served", "object": "model", "max_model_len": 4096}]})
        prompt = received.payload["prompt"]
        if isinstance(prompt, str):
            prompt = [self.tokenizer.bos_token_id, *self.tokenizer.encode(prompt, add_special_tokens=False)]
        elif not self.ids:
            return Reply({"error": {"message": "prompt: expected a string"}}, 400)
        self.prompts.append(prompt)
        logprobs = self._logprobs(prompt, received.payload["logit_bias"], received.payload["logprobs"])
        usage = {"prompt_tokens": len(prompt), "completion_tokens": 1, "total_tokens": len(prompt) + 1}
        return Reply({"choices": [{"index": 0, "text": "x", "logprobs": logprobs}], "usage": usage})

    def _logprobs(self, prompt: Sequence[int], bias: Mapping[str, float], top: int) -> dict[str, Any]:
        import torch

        with self._compute, torch.no_grad():
            logits = self.model(torch.tensor([prompt]), logits_to_keep=1).logits[0, -1]
        moved = logits.clone()
        for token, value in bias.items():
            moved[int(token)] += value
        values = torch.log_softmax(moved if self.biased else logits, -1)
        chosen = int((moved if self.obeys else logits).argmax())
        ranked = values.topk(top).indices.tolist()
        return self._shaped({token: float(values[token]) for token in [*ranked, chosen]}, chosen, ranked)

    def _shaped(self, values: dict[int, float], chosen: int, ranked: list[int]) -> dict[str, Any]:
        texts = {token: self.tokenizer.decode([token]) for token in values}
        if self.shape == "llama.cpp":

            def entry(token: int) -> dict[str, Any]:
                data = list(texts[token].encode())
                return {"id": token, "token": texts[token], "bytes": data, "logprob": values[token]}

            return {"content": [{**entry(chosen), "top_logprobs": [entry(token) for token in ranked]}]}
        if self.shape == "vllm":
            texts = {token: f"token_id:{token}" for token in values}
        named: dict[str, float] = {}
        for token, value in values.items():
            named.setdefault(texts[token], value)
        return {
            "tokens": [texts[chosen]],
            "token_logprobs": [values[chosen]],
            "top_logprobs": [named],
            "text_offset": [0],
        }
