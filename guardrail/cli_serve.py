"""`guardrail serve`: the server."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guardrail.cli_options import (
    CalibrationOption,
    Device,
    Dtype,
    Model,
    Prompts,
    QuantizeOption,
    Served,
    TaxonomyOption,
    Threshold,
    TokenizerOption,
)
from guardrail.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from guardrail.server.settings import Settings

__all__ = ["serve"]

_DRAIN = 30
_EXTRA = {
    "starlette": "starlette",
    "uvicorn": "uvicorn",
    "httpx2": "httpx2",
    "orjson": "orjson",
    "prometheus_client": "prometheus-client",
}


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=0, max=65535)] = 8080,
    model: Model = "embedded",
    taxonomy: TaxonomyOption = None,
    threshold: Threshold = None,
    calibration: CalibrationOption = None,
    served_model: Served = None,
    tokenizer: TokenizerOption = None,
    prompts: Prompts = None,
    device: Device = None,
    dtype: Dtype = None,
    quantize: QuantizeOption = None,
    upstream: Annotated[
        str | None, typer.Option(help="URL of a model server: the chat APIs are handed on to it, guarded.")
    ] = None,
    action: Annotated[str, typer.Option(help="When a chat is unsafe: block, answer, annotate or shadow.")] = "block",
    mode: Annotated[str, typer.Option(help="Of streams: withhold, rewind or end.")] = "withhold",
    workers: Annotated[int, typer.Option(help="Processes, each with a model of its own.", min=1)] = 1,
    timeout: Annotated[float, typer.Option(help="Seconds for a judgement.")] = 10.0,
    queue: Annotated[int, typer.Option(help="Texts that may wait; more are refused with 503.", min=1)] = 256,
    keys: Annotated[Path | None, typer.Option(help="File with the hashes of API keys.")] = None,
    new_key: Annotated[
        str | None, typer.Option(metavar="NAME", help="Add a key of this name to --keys, print it, and stop.")
    ] = None,
    cors: Annotated[list[str] | None, typer.Option(help="Web origin that may call the API; may be repeated.")] = None,
    audit: Annotated[Path | None, typer.Option(help="File for one line per judgement, without texts.")] = None,
    log_text: Annotated[bool, typer.Option("--log-text", help="Also log the judged texts.")] = False,
    page: Annotated[bool, typer.Option("--page/--no-page", help="Whether there is a page at /.")] = True,
) -> None:
    """Serve moderation over HTTP: OpenAI's schema, a page to try it on, and a guarded way to a model server."""
    if new_key is not None:
        _add_key(keys, new_key)
        return
    uvicorn = _uvicorn()
    from guardrail.server.settings import Settings
    from guardrail.serving.judge import Limits

    given = {"device": device, "dtype": dtype, "quantize": quantize}
    given |= {"served": served_model, "tokenizer": tokenizer, "prompts": prompts}
    settings = Settings(
        model=model,
        taxonomy=taxonomy,
        threshold=threshold,
        calibration=None if calibration is None else str(calibration),
        options={name: value for name, value in given.items() if value is not None},
        upstream=upstream,
        action=action,
        mode=mode,
        keys=None if keys is None else str(keys),
        origins=tuple(cors or ()),
        audit=None if audit is None else str(audit),
        log_text=log_text,
        limits=Limits(timeout=timeout, queue=queue),
        page=page,
    )
    settings.check()
    print(f"guardrail serves on http://{host}:{port}", file=sys.stderr)
    uvicorn.run(
        _application(settings, workers),
        factory=workers > 1,
        host=host,
        port=port,
        workers=workers,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=_DRAIN,
        server_header=False,
    )


def _application(settings: Settings, workers: int) -> Any:
    """The application itself, or for several processes its name; a wrong model is told before anything is served."""
    from guardrail.server.app import create_app
    from guardrail.server.settings import to_environment
    from guardrail.server.telemetry import log_to_stderr

    log_to_stderr()
    if workers == 1:
        return create_app(settings)
    import tempfile  # slow to import, and only needed here

    settings.guard().close()
    to_environment(settings)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="guardrail-metrics-")
    return "guardrail.server.app:from_settings"


def _add_key(file: Path | None, name: str) -> None:
    if file is None:
        raise UsageError("--new-key needs --keys FILE", hint="the file that the server is started with")
    _uvicorn()
    from guardrail.server.keys import new_key

    print(new_key(file, name))
    print(f"its hash was added to {file}; the key itself is shown only here", file=sys.stderr)


def _uvicorn() -> Any:
    from importlib.util import find_spec

    for module, package in _EXTRA.items():
        if find_spec(module) is None:
            raise MissingExtraError(package, "serve")
    import uvicorn

    return uvicorn
