"""What all benchmarks share: contestants in turn, ratios of medians, a table, figures as JSON, and a plot.

Absolute times on a shared machine mean nothing. Contestants take turns in every round, in one process tree, so that
whatever else the machine does slows all of them; a ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Comparison", "Contestant", "compare", "exponent", "plot_bars", "plot_lines", "save"]


@dataclass(frozen=True, slots=True)
class Contestant:
    """Something that does `items` of the work each time it is called."""

    run: Callable[[], object]
    items: int = 1


@dataclass(frozen=True, slots=True)
class Comparison:
    """Seconds per item by contestant, one per round, and how much longer each takes than the first."""

    title: str
    seconds: dict[str, list[float]]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def ratios(self) -> dict[str, float]:
        """Of each contestant, the median over the rounds of its time over the first one's."""
        base, *_ = self.seconds.values()
        return {
            name: statistics.median(value / mine for value, mine in zip(values, base, strict=True))
            for name, values in self.seconds.items()
        }

    def table(self) -> str:
        """For people."""
        lines = [self.title, "  " + ", ".join(f"{name} {value}" for name, value in self.facts.items())]
        for name, ratio in self.ratios.items():
            milliseconds = statistics.median(self.seconds[name]) * 1000
            lines.append(f"  {name:44} {ratio:7.2f}x   ({milliseconds:.2f} ms per item in this run)")
        return "\n".join(lines)


def compare(
    title: str, contestants: Mapping[str, Contestant], rounds: int, facts: Mapping[str, Any] | None = None
) -> Comparison:
    """Measure `rounds` rounds after one that warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for round_ in range(rounds + 1):
        for name, contestant in contestants.items():
            started = time.perf_counter()
            contestant.run()
            if round_:
                seconds[name].append((time.perf_counter() - started) / contestant.items)
    return Comparison(title, seconds, dict(facts or {}))


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """b in seconds ~ size^b: the slope of the least-squares line through the logarithms."""
    import math

    x, y = ([math.log(value) for value in values] for values in (sizes, seconds))
    return statistics.linear_regression(x, y).slope


def save(path: Path | None, comparisons: Sequence[Comparison]) -> None:
    """Write all figures, if asked to."""
    if path is not None:
        found = [{**asdict(comparison), "ratios": comparison.ratios} for comparison in comparisons]
        path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def plot_bars(path: Path | None, comparisons: Sequence[Comparison], label: str) -> None:
    """How much longer each takes than the first, side by side, if asked to."""
    if path is None:
        return
    plt = _plotting()
    rows = [(c.title, name, ratio) for c in comparisons for name, ratio in c.ratios.items()]
    figure, axes = plt.subplots(figsize=(9, 0.34 * len(rows) + 0.6 * len(comparisons) + 1))
    place, ticks, names = 0.0, [], []
    for comparison in comparisons:
        axes.text(
            0, place - 0.75, comparison.title, fontweight="bold", fontsize=9, transform=axes.get_yaxis_transform()
        )
        for index, (name, ratio) in enumerate(comparison.ratios.items()):
            axes.barh(place, ratio, color="#1f6f5c" if not index else "#b9c4cc")
            axes.text(ratio, place, f" {ratio:.2f}x", va="center", fontsize=8)
            ticks.append(place)
            names.append(name)
            place += 1
        place += 1.4
    axes.set_yticks(ticks, names, fontsize=8)
    axes.set_ylim(place - 1.6, -1.3)
    axes.set_xlabel(label)
    axes.set_xlim(0, max(ratio for *_, ratio in rows) * 1.12)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, bbox_inches="tight", dpi=110)


def plot_lines(path: Path | None, curves: Mapping[str, tuple[Sequence[float], Sequence[float], float]]) -> None:
    """Seconds by size, with the exponent above, one panel per curve, if asked to; both axes are logarithmic."""
    if path is None:
        return
    plt = _plotting()
    figure, panels = plt.subplots(1, len(curves), figsize=(4 * len(curves), 3.4), squeeze=False)
    for axes, (name, (sizes, seconds, slope)) in zip(panels[0], curves.items(), strict=True):
        axes.loglog(sizes, seconds, marker="o", color="#1f6f5c")
        # At least a decade, or a flat line looks like mountains.
        middle = (min(seconds) * max(seconds)) ** 0.5
        axes.set_ylim(min(min(seconds) / 1.5, middle / 3.2), max(max(seconds) * 1.5, middle * 3.2))
        axes.set_title(f"exponent {slope:.2f}", fontsize=9)
        axes.set_xlabel(name)
        axes.set_ylabel("seconds")
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def _plotting() -> Any:
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise SystemExit("error: a plot needs matplotlib\nhint: pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
