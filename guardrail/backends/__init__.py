"""The classifiers, by name. A backend module, and what it imports, is loaded on first use."""

from __future__ import annotations

from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

from guardrail.backends.base import Backend
from guardrail.errors import UsageError

__all__ = ["SCHEMES", "load_backend"]

EMBEDDED = "embedded"

SCHEMES = {
    EMBEDDED: "guardrail.backends.encoder:EncoderBackend",
    "encoder": "guardrail.backends.encoder:EncoderBackend",
    "scripted": "guardrail.backends.scripted:ScriptedBackend",
    "llama": "guardrail.backends.llama:LlamaBackend",
    "gguf": "guardrail.backends.gguf:GgufBackend",
    "classifier": "guardrail.backends.classifier:ClassifierBackend",
    "openai": "guardrail.backends.remote:RemoteBackend",
    "openai-moderation": "guardrail.backends.openai_moderation:OpenAIModerationBackend",
    "perspective": "guardrail.backends.perspective:PerspectiveBackend",
}
"""Scheme of a model name (the part before the first colon) to the class that serves it; each has a `load` method."""

_NAMELESS = (EMBEDDED, "openai-moderation", "perspective")
"""Schemes that need no name behind them, and so no colon."""

_ENCODER_FILE = "model.onnx"
"""Tells the folder of an encoder from that of a Llama checkpoint."""


def load_backend(model: str, **options: Any) -> Backend:
    """The backend for a model name.

    `embedded`, a Llama checkpoint (hub id or folder), an encoder's folder (also as `encoder:FOLDER`),
    `gguf:FILE`, `classifier:CHECKPOINT`, `openai:URL` of a model server, `openai-moderation:MODEL` or `perspective:`.

    Raises `UsageError` for options that the backend does not take, `ModelError` when the model cannot be loaded and
    `MissingExtraError` when its library is not installed.
    """
    scheme, separator, rest = model.partition(":")
    if model in _NAMELESS:
        scheme, name = model, ""
    elif separator and scheme in SCHEMES:
        name = rest
    else:
        scheme, name = "encoder" if (Path(model) / _ENCODER_FILE).is_file() else "llama", model
    if model.startswith("cascade:"):
        raise UsageError(f"the model {model!r} is two classifiers, and one is wanted here", hint="name one of them")
    module, _, attribute = SCHEMES[scheme].partition(":")
    loader = getattr(import_module(module), attribute)
    known = signature(loader.load).parameters
    for option in options:
        if option not in known:
            hint = "leave it out, or name another model"
            raise UsageError(f"the model {model!r} takes no option {option!r}", hint=hint)
    backend: Backend = loader.load(name, **options)
    return backend
