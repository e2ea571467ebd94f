"""The prompts of one policy begin with the same tokens: their attention states are computed once and kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from guardrail.backends.causal_rows import common_length
from guardrail.backends.llama_forward import Forward, Prefix

__all__ = ["PrefixCache"]

_SHORTEST = 32  # tokens; below this a cached prefix saves less than its upkeep costs
_SLACK = 32  # tokens; a cached prefix this much shorter than what the prompts share is replaced
_ENTRIES = 1024


@dataclass(slots=True)
class _Entry:
    recent: tuple[int, ...] = ()
    prefix: Prefix | None = None

    @property
    def nbytes(self) -> int:
        return self.prefix.nbytes if self.prefix else 0


class PrefixCache:
    """Prefixes by key, the least recently used ones dropped beyond `max_bytes` of device memory. Not thread-safe.

    Where a prefix ends is read off the prompts themselves: it is what the prompts of one key share. A prompt that
    shares less than an earlier one shortens the entry; when later prompts share more, the entry is computed again.
    """

    def __init__(self, forward: Forward, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._forward = forward
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()

    def __len__(self) -> int:
        return sum(entry.prefix is not None for entry in self._entries.values())

    @property
    def nbytes(self) -> int:
        """Device memory that all prefixes take together."""
        return sum(entry.nbytes for entry in self._entries.values())

    def find(self, key: Hashable, prompts: Sequence[tuple[int, ...]]) -> Prefix | None:
        """The prefix to use for `prompts`, which all begin with it and have at least one token more.

        None when they share too little. A single prompt is compared with the one that came before it under its key,
        so the first prompt of all gets None.
        """
        if not self._forward.shares_prefix:
            return None
        entry = self._entries.pop(key, None) or _Entry()
        self._entries[key] = entry
        shared = self._shared(entry, prompts)
        entry.recent = prompts[-1]
        self._fit(entry, prompts[0][:shared])
        self._evict()
        return entry.prefix

    def clear(self) -> None:
        """Drop everything."""
        self._entries.clear()

    def _shared(self, entry: _Entry, prompts: Sequence[tuple[int, ...]]) -> int:
        others = [entry.recent] if len(prompts) == 1 else []
        longest = min(map(len, prompts)) - 1
        affordable = self.max_bytes // self._forward.bytes_per_token
        return min(common_length([*prompts, *others]), longest, affordable)

    def _fit(self, entry: _Entry, shared: tuple[int, ...]) -> None:
        """Make the entry's prefix one that `shared` begins with."""
        usable = common_length([entry.prefix.ids, shared]) if entry.prefix else 0
        if entry.prefix and usable < len(entry.prefix.ids):
            entry.prefix = entry.prefix.cut(usable) if usable >= _SHORTEST else None
        if len(shared) >= max(_SHORTEST, usable + _SLACK):
            entry.prefix = self._forward.prefix(shared, entry.prefix)

    def _evict(self) -> None:
        while self.nbytes > self.max_bytes or len(self._entries) > _ENTRIES:
            self._entries.popitem(last=False)
