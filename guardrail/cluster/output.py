"""Where a run on a cluster writes: a folder of parts, which are joined to one file when a file was asked for.

A file `OUT` has its parts in `OUT.parts/` until they are joined, and `OUT.run.json` beside it afterwards, which says
what it was made from. An output that ends with a slash, or an address, is the folder itself.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from guardrail.batch_output import failures, locked, member, sync_folder
from guardrail.batch_run import Tally, check_target, is_stream, partial_of, real_path
from guardrail.cluster.records import MANIFEST, PLAN, Manifest, Record, part_name, record_name
from guardrail.cluster.shards import Shard
from guardrail.cluster.storage import Folder, is_url
from guardrail.errors import GuardrailError, ResumeError, UsageError

__all__ = ["Output"]

_DONE = "_run/done.json"
_AGAIN = "start again with --overwrite"
_PIECE = 1 << 20


class Output:
    """The output of one run, or of one that goes on."""

    def __init__(self, target: str, *, resume: bool, overwrite: bool) -> None:
        """Errors as for the local engine: `UsageError` when the output is there and neither flag was given."""
        self.name = target
        self.file = None if target.endswith("/") or is_url(target) else real_path(target)
        self._overwrite = overwrite
        if resume and overwrite:
            raise UsageError("--resume and --overwrite exclude each other")
        if self.file is None:
            _check_folder(target)
            self.folder = Folder(target.rstrip("/"))
        else:
            if is_stream(target):
                raise UsageError("-o: the ray engine writes files", hint="name a file, or a folder: -o OUT/")
            check_target(target, resume=resume, overwrite=overwrite)
            self.folder = Folder(f"{self.file}.parts")
        self.suffix = ".jsonl.gz" if target.endswith(".gz") else ".jsonl"
        self._sizes = self.folder.sizes()
        if not resume and not overwrite:
            self._refuse_existing()
        elif self.file is None:
            self._check_ours()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Refuse a second process on this machine."""
        if not self.folder.local:
            yield
            return
        path = Path(self.folder.url, "_run", "lock")
        with failures(str(path)):
            path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path, new=True):
            yield

    def earlier(self, manifest: Manifest) -> list[Shard] | None:
        """The plan of the run that goes on; None when there is none. `ResumeError` when it was another run."""
        found = self.folder.read(MANIFEST)
        if found is None:
            return None
        manifest.check(Manifest.from_json(found, self.folder.path(MANIFEST)), self.name)
        plan = self.folder.read(PLAN) or b""
        return [Shard.from_json(line) for line in plan.splitlines()]

    def finished(self, manifest: Manifest) -> Tally | None:
        """How the rows of an output that is whole came out; None when it is not. `ResumeError` as above."""
        found = self._finished()
        if found is None:
            return None
        manifest.check(Manifest.from_json(json.dumps(found["manifest"]), self.name), self.name)
        return Tally(**found["tally"])

    def begin(self, manifest: Manifest, plan: Sequence[Shard]) -> None:
        """Write what a run that goes on has to know; the manifest last, because it vouches for the plan."""
        self.folder.remove([MANIFEST] if MANIFEST in self._sizes else [])
        self.folder.remove([name for name in self._sizes if name not in {MANIFEST, "_run/lock"}])
        self.folder.write(PLAN, b"".join(shard.to_json().encode() + b"\n" for shard in plan))
        self.folder.write(MANIFEST, manifest.to_json().encode())

    def records(self, plan: Sequence[Shard]) -> dict[int, Record]:
        """The parts that are whole, by their shards' indices; other records are deleted, so that none trusts them."""
        sizes = self.folder.sizes()
        names = {record_name(shard.index): shard for shard in plan if record_name(shard.index) in sizes}
        found: dict[int, Record] = {}
        for name, data in self.folder.read_many(list(names)).items():
            record, shard = Record.from_json(data), names[name]
            part = part_name(shard.index, self.suffix)
            if record and record.shard == shard and sizes.get(part) == record.size:
                found[shard.index] = record
        self.folder.remove([name for name, shard in names.items() if shard.index not in found])
        return found

    def check_written(self, record: Record) -> None:
        """A `GuardrailError` when a worker on another machine has written its part to a disk of its own."""
        path = Path(self.folder.path(part_name(record.shard.index, self.suffix)))
        if self.folder.local and not path.exists():
            raise GuardrailError(
                f"{path}: {record.worker} has written it, but it is not here",
                hint="workers on other machines need an output on a disk that all share, or an address such as s3://",
            )

    def finish(self, manifest: Manifest, records: Sequence[Record]) -> None:
        """Join the parts, when a file was asked for, and say that it is whole. `records` are in the plan's order."""
        tally = sum((record.tally for record in records), Tally())
        done: dict[str, Any] = {
            "manifest": json.loads(manifest.to_json()),
            "guard": records[0].guard if records else None,
            "parts": len(records),
            "tally": asdict(tally),
            "done": True,
        }
        if self.file is None:
            self.folder.write(_DONE, _document(done))
            kept = {part_name(record.shard.index, self.suffix) for record in records}
            kept |= {_DONE, MANIFEST, PLAN, "_run/lock", *(record_name(record.shard.index) for record in records)}
            self.folder.remove([name for name in self.folder.sizes() if name not in kept])
            return
        self._join(self.file, records)
        Folder(str(self.file.parent)).write(
            _record(self.file).name, _document({**done, "output_bytes": self.file.stat().st_size})
        )
        # Without its manifest the folder is no run any more, should the process end now.
        self.folder.remove([MANIFEST])
        self.folder.remove_all()

    def _join(self, file: Path, records: Sequence[Record]) -> None:
        partial = partial_of(file)
        with failures(str(partial), "the parts are kept: when there is room again, go on with --resume"):
            with partial.open("wb") as joined:
                for record in records:
                    self._append(joined, record)
                if not joined.tell() and self.suffix.endswith(".gz"):
                    joined.write(member(b""))
                joined.flush()
                os.fsync(joined.fileno())
            partial.replace(file)
            sync_folder(file.parent)

    def _append(self, joined: IO[bytes], record: Record) -> None:
        path = Path(self.folder.path(part_name(record.shard.index, self.suffix)))
        digest = hashlib.sha256()
        with path.open("rb") as part:
            while data := part.read(_PIECE):
                digest.update(data)
                joined.write(data)
        if digest.hexdigest() != record.sha256:
            self.folder.remove([record_name(record.shard.index)])
            raise ResumeError(f"{path}: not what its record says", hint="--resume scores that part again")

    def _refuse_existing(self) -> None:
        if MANIFEST in self._sizes and not (self.file is None and _DONE in self._sizes):
            raise UsageError(
                f"-o: {self.folder.url} is there: an earlier run did not come to its end",
                hint="go on with --resume, or start again with --overwrite",
            )
        if self.file is None and self._sizes:
            raise UsageError(
                f"-o: {self.name} is there already", hint="name another folder, or replace it with --overwrite"
            )

    def _check_ours(self) -> None:
        """Nothing is deleted from a folder, or counted as its parts, that another program put there."""
        other = next((n for n in self._sizes if not n.startswith("_run/") and not n.startswith("part-")), None)
        if other is not None:
            raise UsageError(f"-o: {self.name} holds {other}, which no run wrote", hint="name a folder of its own")

    def _finished(self) -> dict[str, Any] | None:
        if self.file is None:
            data = self.folder.read(_DONE)
            return None if data is None else dict(json.loads(data))
        if not self.file.exists():
            return None
        record = _record(self.file)
        with suppress(OSError, ValueError):
            raw = json.loads(record.read_bytes())
            if raw.get("manifest") and raw.get("output_bytes") == self.file.stat().st_size:
                return dict(raw)
        raise ResumeError(f"{self.file}: there is no record of the run that wrote it", hint=_AGAIN)


def _check_folder(target: str) -> None:
    if is_url(target) and target.endswith((".jsonl", ".gz", ".json")):
        raise UsageError(f"-o: {target} would be a folder of parts", hint="end it with a slash")
    if not is_url(target) and not os.path.isdir(Path(target).parent):
        raise UsageError(f"-o: there is no folder {Path(target).parent}")
    if os.path.isfile(target.rstrip("/")):
        raise UsageError(f"-o: {target} is a file", hint="leave the slash out, or name another folder")


def _record(file: Path) -> Path:
    return file.with_name(f"{file.name}.run.json")


def _document(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=2).encode() + b"\n"
