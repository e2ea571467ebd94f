"""The category codes as paths of tokens: log P(code | unsafe) from one row of logits per branching point."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from guardrail.errors import ModelError

__all__ = ["CodeEdge", "CodeNode", "CodeTrie", "build_trie", "code_logprobs", "logsumexp"]


@dataclass(frozen=True, slots=True)
class CodeEdge:
    """One way to go on from a node; either `code` or `node` is set."""

    ids: tuple[int, ...]
    """The tokens that take this way: one, or at the end of a code whatever may follow it (a comma, the end)."""
    code: int | None = None
    """Index of the code that this way settles."""
    node: int | None = None
    """Index of the node that this way leads to."""


@dataclass(frozen=True, slots=True)
class CodeNode:
    """A point where codes part."""

    path: tuple[int, ...]
    """The tokens to append to the prompt, from its end, to stand at this node: answer prefix, `unsafe`, newline, ..."""
    edges: tuple[CodeEdge, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        """The tokens of all edges, in edge order: the positions of the logits that `code_logprobs` takes."""
        return tuple(token for edge in self.edges for token in edge.ids)


@dataclass(frozen=True, slots=True)
class CodeTrie:
    """All codes of a prompt; `nodes[0]` is the root."""

    codes: tuple[str, ...]
    nodes: tuple[CodeNode, ...]


def build_trie(
    codes: Sequence[str], paths: Sequence[tuple[int, ...]], start: tuple[int, ...], ends: Mapping[int, tuple[int, ...]]
) -> CodeTrie:
    """`paths[i]` are the tokens of `codes[i]` behind `start`; `ends[i]` are the tokens that may follow that code."""
    seen: dict[tuple[int, ...], str] = {}
    for code, path in zip(codes, paths, strict=True):
        if not path or path in seen:
            raise ModelError(f"the codes {seen.get(path, '')!r} and {code!r} have the same tokens")
        seen[path] = code
    nodes: list[CodeNode] = []
    _grow(nodes, list(enumerate(paths)), 0, start, ends)
    return CodeTrie(tuple(codes), tuple(nodes))


def _grow(
    nodes: list[CodeNode],
    members: list[tuple[int, tuple[int, ...]]],
    depth: int,
    start: tuple[int, ...],
    ends: Mapping[int, tuple[int, ...]],
) -> int:
    """Add the node at which these codes part, and everything below it; returns its index."""
    shortest = min(len(path) for _, path in members)
    while len(members) > 1 and depth < shortest and len({path[depth] for _, path in members}) == 1:
        depth += 1
    index = len(nodes)
    path = start + members[0][1][:depth]
    nodes.append(CodeNode(path, ()))
    branches: dict[int, list[tuple[int, tuple[int, ...]]]] = {}
    edges: list[CodeEdge] = []
    for code, tokens in members:
        if len(tokens) == depth:
            edges.append(CodeEdge(ends[code], code=code))
        else:
            branches.setdefault(tokens[depth], []).append((code, tokens))
    for token, below in branches.items():
        if len(below) == 1:
            edges.append(CodeEdge((token,), code=below[0][0]))
        else:
            edges.append(CodeEdge((token,), node=_grow(nodes, below, depth + 1, start, ends)))
    nodes[index] = CodeNode(path, tuple(edges))
    return index


def code_logprobs(trie: CodeTrie, logits: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """log P(code | unsafe) for every code, natural logarithm; their exponentials sum to one.

    `logits[n]` are the logits of `trie.nodes[n].ids` at that node. Along a code's path the log-softmaxes over the
    ways at each node add up; what the model might have written instead of any code is left out of the softmax.
    """
    result = [-math.inf] * len(trie.codes)
    reached = [-math.inf] * len(trie.nodes)
    reached[0] = 0.0
    # A node's children come after it, so one pass suffices.
    for at, (node, values) in enumerate(zip(trie.nodes, logits, strict=True)):
        if len(values) != len(node.ids):
            raise ValueError(f"node {at} has {len(node.ids)} tokens, got {len(values)} logits")
        ways = []
        first = 0
        for edge in node.edges:
            ways.append(logsumexp(values[first : first + len(edge.ids)]))
            first += len(edge.ids)
        total = logsumexp(ways)
        for edge, way in zip(node.edges, ways, strict=True):
            if edge.code is not None:
                result[edge.code] = reached[at] + way - total
            elif edge.node is not None:
                reached[edge.node] = reached[at] + way - total
    return tuple(result)


def logsumexp(values: Sequence[float]) -> float:
    """log Σ exp(value), without overflow; infinite where the highest value is."""
    highest = max(values)
    if math.isinf(highest):
        return highest
    return highest + math.log(sum(math.exp(value - highest) for value in values))
