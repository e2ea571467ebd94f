"""`calibration.json`: how log-odds become probabilities, and at which of them something is flagged, for each role.

    {"format": 2, "model": "id@digest", "taxonomy": "id@digest",
     "user": {"curve": {"temperature": 0.7}, "threshold": 0.64,
              "categories": {"G1": {"curve": {"slope": 1.1, "intercept": -0.3}, "threshold": 0.5}}},
     "assistant": {…}, "fitted": {…}}

A curve is `temperature`, `slope` and `intercept` (Platt), or `points` and `slope` (isotonic). `fitted` says on what it
was fitted and is carried along unread, but for `texts` (see `evaluation.overlap`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from guardrail.errors import InputError, RowError, UsageError, suggestion
from guardrail.jsonl import Line, parse
from guardrail.policy import Thresholds
from guardrail.resources import digest
from guardrail.scoring import Curve, Margins, Scores, sigmoid
from guardrail.taxonomy import Taxonomy
from guardrail.types import Role

__all__ = ["Calibration", "Side"]

_FORMAT = 2
_IDENTITY = Curve()
_HALF = Thresholds()
_MODEL = re.compile(r".+@.+")
_TAXONOMY = re.compile(r"\S+@[0-9a-f]{12}")
_LINES = ({"temperature"}, {"slope", "intercept"}, {"points", "slope"})


@dataclass(frozen=True, slots=True)
class Side:
    """The calibration for one judged role."""

    curve: Curve = _IDENTITY
    """For the verdict, and for every category without a curve of its own."""
    thresholds: Thresholds = _HALF
    categories: Mapping[str, Curve] = field(default_factory=dict)
    """By code."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "categories", MappingProxyType(dict(self.categories)))

    def scores(self, margins: Margins, taxonomy: Taxonomy) -> Scores:
        """The probabilities; `margins.categories` follows the taxonomy, or is empty."""
        codes = taxonomy.codes if margins.categories else ()
        curves = [self.categories.get(code, self.curve) for code in codes]
        values = tuple(sigmoid(curve(m)) for curve, m in zip(curves, margins.categories, strict=True))
        return Scores(sigmoid(self.curve(margins.unsafe)), values, margins.own)

    def to_dict(self) -> dict[str, Any]:
        """As in the file."""
        own = self.thresholds.categories
        codes = sorted({*self.categories, *own})
        categories = {
            code: {
                **({"curve": _curve_to_dict(self.categories[code])} if code in self.categories else {}),
                **({"threshold": own[code]} if code in own else {}),
            }
            for code in codes
        }
        whole = {"curve": _curve_to_dict(self.curve), "threshold": self.thresholds.verdict}
        return {
            **whole,
            **({"own": True} if self.thresholds.own else {}),
            **({"categories": categories} if codes else {}),
        }


@dataclass(frozen=True, slots=True)
class Calibration:
    """Both roles, and which model and taxonomy they were fitted for."""

    user: Side = Side()
    assistant: Side = Side()
    model: str | None = None
    """`id@digest`; None fits any."""
    taxonomy: str | None = None
    """`id@digest` of the taxonomy that the category entries hold for; None: the model's default."""
    fitted: Mapping[str, Any] = field(default_factory=dict, compare=False)
    file: str | None = field(default=None, init=False, compare=False)
    """Where it was read from, for errors."""

    def side(self, role: Role) -> Side:
        """The part for a judged role."""
        return self.user if role is Role.USER else self.assistant

    def under(self, taxonomy: Taxonomy, default: str) -> Calibration:
        """What holds under a taxonomy: without the category entries when they were fitted under another one.

        `default` is the digest of the model's default taxonomy, for which a calibration that names none was fitted.
        Raises InputError for an entry of a category that the taxonomy it was fitted under does not have.
        """
        fitted = default if self.taxonomy is None else self.taxonomy.rpartition("@")[2]
        if taxonomy.digest == fitted:
            self._check_codes(taxonomy)
            return self
        return replace(self, user=_verdict_only(self.user), assistant=_verdict_only(self.assistant))

    def _check_codes(self, taxonomy: Taxonomy) -> None:
        for role in Role:
            side = self.side(role)
            for code in (*side.categories, *side.thresholds.categories):
                if code not in taxonomy.codes:
                    raise InputError(
                        f"{taxonomy.ref} has no category {code!r}",
                        file=self.file,
                        field=f"{role.value}.categories.{code}",
                        hint=suggestion(code, taxonomy.codes, f"its codes: {', '.join(taxonomy.codes)}"),
                    )

    @property
    def digest(self) -> str:
        """Names the curves and thresholds in a log; where they came from plays no part."""
        return digest(json.dumps([self.user.to_dict(), self.assistant.to_dict()]))

    def to_dict(self) -> dict[str, Any]:
        """The file's content."""
        known = {"model": self.model, "taxonomy": self.taxonomy}
        named = {key: value for key, value in known.items() if value is not None}
        sides = {"user": self.user.to_dict(), "assistant": self.assistant.to_dict()}
        return {"format": _FORMAT, **named, **sides, **({"fitted": dict(self.fitted)} if self.fitted else {})}

    @classmethod
    def read(cls, path: Path) -> Calibration:
        """Read the file; unknown keys and a wrong format number are errors that name them."""
        try:
            raw = parse(Line(1, path.read_bytes()))
        except RowError as error:
            raise InputError(f"cannot read the calibration: {error.reason}", file=str(path)) from None
        except OSError as error:
            raise InputError(f"cannot read the calibration: {error.strerror}", file=str(path)) from None
        return cls.from_dict(raw, path)

    @classmethod
    def from_dict(cls, raw: Any, path: Path) -> Calibration:
        """Read the content of a file that is named in errors."""
        _only(raw, ("format", "model", "taxonomy", "user", "assistant", "fitted"), path, "")
        if raw.get("format") != _FORMAT:
            raise InputError(f"expected {_FORMAT}, got {raw.get('format')!r}", file=str(path), field="format")
        for name, kind in (("model", str), ("taxonomy", str), ("fitted", dict)):
            if not isinstance(raw.get(name, kind()), kind):
                raise InputError(f"expected {kind.__name__}, got {raw[name]!r}", file=str(path), field=name)
        for name, form in (("model", _MODEL), ("taxonomy", _TAXONOMY)):
            if name in raw and not form.fullmatch(raw[name]):
                hint = f"write the whole name that decisions give as their {name}, digest included"
                raise InputError(f"{raw[name]!r} is no id@digest", file=str(path), field=name, hint=hint)
        user, assistant = (_side(raw.get(role.value, {}), path, role.value) for role in (Role.USER, Role.ASSISTANT))
        found = cls(user, assistant, raw.get("model"), raw.get("taxonomy"), raw.get("fitted", {}))
        object.__setattr__(found, "file", str(path))
        return found


def _verdict_only(side: Side) -> Side:
    verdict = side.thresholds.verdict
    return Side(side.curve, Thresholds(0.5 if verdict is None else verdict, own=side.thresholds.own))


def _side(raw: Any, path: Path, place: str) -> Side:
    _only(raw, ("curve", "threshold", "own", "categories"), path, place)
    categories = raw.get("categories", {})
    _only(categories, None, path, f"{place}.categories")
    curves, thresholds = {}, {}
    for code, entry in categories.items():
        inside = f"{place}.categories.{code}"
        _only(entry, ("curve", "threshold"), path, inside)
        if "curve" in entry:
            curves[code] = _curve(entry["curve"], path, f"{inside}.curve")
        if "threshold" in entry:
            thresholds[code] = entry["threshold"]
    try:
        chosen = Thresholds(raw.get("threshold", 0.5), thresholds, own=raw.get("own", False))
    except (UsageError, TypeError) as error:
        raise InputError(str(error), file=str(path), field=place) from None
    return Side(_curve(raw.get("curve", {"temperature": 1}), path, f"{place}.curve"), chosen, curves)


def _curve(raw: Any, path: Path, place: str) -> Curve:
    _only(raw, ("temperature", "slope", "intercept", "points"), path, place)
    if set(raw) not in _LINES:
        hint = "give temperature, or slope and intercept, or points and slope"
        raise InputError(
            f"cannot be read from the keys {', '.join(raw) or 'none'}", file=str(path), field=place, hint=hint
        )
    try:
        if "temperature" in raw:
            if not raw["temperature"] > 0:
                raise ValueError(f"expected a temperature above 0, got {raw['temperature']!r}")
            return Curve.line(1 / raw["temperature"])
        if "intercept" in raw:
            return Curve.line(raw["slope"], raw["intercept"])
        return Curve(tuple((float(x), float(y)) for x, y in raw["points"]), raw["slope"])
    except (ValueError, TypeError) as error:
        raise InputError(str(error), file=str(path), field=place) from None


def _curve_to_dict(curve: Curve) -> dict[str, Any]:
    if len(curve.points) > 1:
        return {"points": [list(point) for point in curve.points], "slope": curve.slope}
    ((x, y),) = curve.points
    intercept = y - curve.slope * x
    return {"slope": curve.slope, "intercept": intercept} if intercept else {"temperature": 1 / curve.slope}


def _only(raw: Any, known: tuple[str, ...] | None, path: Path, place: str) -> None:
    if not isinstance(raw, dict):
        raise InputError(f"expected an object, got {type(raw).__name__}", file=str(path), field=place or None)
    for key in raw if known is not None else ():
        if key not in (known or ()):
            name = f"{place}.{key}" if place else key
            raise InputError("unknown key", file=str(path), field=name, hint=f"known: {', '.join(known or ())}")
