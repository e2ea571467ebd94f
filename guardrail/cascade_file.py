"""`cascade.yaml`: which two models a cascade has, and in which band the second is asked, for each role.

    format: 1
    first: {model: embedded, weights: id@digest, calibration: ./first.json}
    second: {model: ./my-guard, calibration: ./second.json, options: {dtype: bfloat16}}
    taxonomy: default
    band:
      user: [0.12, 0.81]
      assistant: [0.2, 0.7]
    chosen: {…}

A model may also have `threshold`, `template` and `category_scores`. With `weights`, other ones are refused. Paths are
relative to the file; that of a model, and of an option, begins with `./`, `../` or `/`, which tells it from a name.
`taxonomy` is a name, a path, or a taxonomy as in a file of its own. `chosen` says what the band was chosen on and is
carried along unread.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guardrail import taxonomy_yaml
from guardrail.cascade import SCHEME, Band
from guardrail.errors import TaxonomyError, UsageError
from guardrail.taxonomy import Taxonomy
from guardrail.taxonomy_yaml import Document, Field
from guardrail.types import Role

__all__ = ["CascadeFile", "Model", "relative"]

_FORMAT = 1
_SCALARS = (str, int, float, bool)


@dataclass(frozen=True, slots=True)
class Model:
    """One of the two, as `guardrail.load` takes it."""

    model: str
    weights: str | None = None
    """`id@digest` that the band holds for; None: any."""
    calibration: Path | None = None
    threshold: float | None = None
    template: str | None = None
    category_scores: str = "first"
    options: Mapping[str, Any] = field(default_factory=dict)
    """For the classifier: `device`, `dtype` and others."""

    def check(self, weights: str, file: Path) -> None:
        """Refuse weights that the band was not chosen for."""
        if self.weights not in (None, weights):
            hint = "choose a band for these: guardrail cascade"
            raise UsageError(f"{file}: the band was chosen for {self.weights}, the model is {weights}", hint=hint)

    def to_dict(self, folder: Path) -> dict[str, Any]:
        """As in a file in the folder."""
        found: dict[str, Any] = {"model": self.model, "weights": self.weights}
        found["calibration"] = None if self.calibration is None else relative(self.calibration, folder)
        found |= {"threshold": self.threshold, "template": self.template}
        found["category_scores"] = None if self.category_scores == "first" else self.category_scores
        found["options"] = dict(self.options) or None
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True, slots=True)
class CascadeFile:
    """The content of the file."""

    first: Model
    second: Model
    bands: Mapping[Role, Band]
    taxonomy: Taxonomy | None = None
    """None: the first model's own."""
    chosen: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> CascadeFile:
        """Read the file; TaxonomyError (an InputError) with file, line and field for what cannot be used."""
        root = taxonomy_yaml.read(path).root
        fields = root.fields(("format", "first", "second", "band"), ("taxonomy", "chosen"))
        if fields["format"].value != _FORMAT or isinstance(fields["format"].value, bool):
            raise fields["format"].error(
                f"the format is {fields['format'].value!r}", f"this release reads format {_FORMAT}"
            )
        first, second = (_model(fields[name], path.parent) for name in ("first", "second"))
        bands = fields["band"].fields((), tuple(Role))
        chosen = fields.get("chosen")
        if chosen is not None and not isinstance(chosen.value, Mapping):
            raise chosen.error("expected a mapping")
        return cls(
            first,
            second,
            {Role(role): _band(band) for role, band in bands.items()},
            _taxonomy(fields["taxonomy"], path.parent) if "taxonomy" in fields else None,
            chosen.value if chosen else {},
        )

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        plain: dict[str, Any] = {
            "format": _FORMAT,
            "first": self.first.to_dict(path.parent),
            "second": self.second.to_dict(path.parent),
        }
        if self.taxonomy is not None:
            plain["taxonomy"] = _named(self.taxonomy) or self.taxonomy.to_dict()
        plain["band"] = {role.value: [band.low, band.high] for role, band in sorted(self.bands.items())}
        plain["chosen"] = dict(self.chosen)
        new = path.with_name(f"{path.name}.new")
        new.write_text(taxonomy_yaml.dump(plain), encoding="utf-8")
        new.replace(path)


def relative(path: Path, folder: Path) -> str:
    """A path as a file in the folder has it."""
    found = Path(os.path.relpath(path, folder)).as_posix()
    return found if found.startswith("../") else f"./{found}"


def _model(place: Field, folder: Path) -> Model:
    optional = ("weights", "calibration", "threshold", "template", "category_scores", "options")
    fields = place.fields(("model",), optional)
    texts = {name: fields[name].text() for name in fields if name not in ("threshold", "options", "calibration")}
    scheme, separator, rest = texts["model"].partition(":")
    if scheme == SCHEME and separator:
        raise fields["model"].error("a cascade cannot be part of a cascade")
    texts["model"] = f"{scheme}:{_resolved(rest, folder)}" if separator else _resolved(scheme, folder)
    if "template" in texts:
        texts["template"] = _file_or_name(texts["template"], folder, ".jinja")
    return Model(
        **texts,
        calibration=folder / fields["calibration"].text() if "calibration" in fields else None,
        threshold=_probability(fields["threshold"]) if "threshold" in fields else None,
        options=_options(fields["options"], folder) if "options" in fields else {},
    )


def _resolved(text: str, folder: Path) -> str:
    """A text that begins as a path does, relative to the folder; any other as it is."""
    return str(folder / text) if text.startswith(("./", "../", "/")) else text


def _file_or_name(text: str, folder: Path, *endings: str) -> str:
    return str(folder / text) if "/" in text or text.endswith(endings) else text


def _options(place: Field, folder: Path) -> dict[str, Any]:
    if not isinstance(place.value, Mapping):
        raise place.error("expected a mapping")
    for name, value in place.value.items():
        if not isinstance(value, _SCALARS):
            raise place.error("expected text, a number, or true or false", inside=name)
    return {k: _resolved(v, folder) if isinstance(v, str) else v for k, v in place.value.items()}


def _band(place: Field) -> Band:
    ends = place.items()
    if len(ends) != 2:
        raise place.error(f"expected two numbers, got {len(ends)}", "give [low, high]")
    low, high = map(_probability, ends)
    if low > high:
        raise place.error(f"{low:g} is above {high:g}", "give the lower one first")
    return Band(low, high)


def _probability(place: Field) -> float:
    value = place.value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise place.error(f"expected a number from 0 to 1, got {value!r}")
    return float(value)


def _taxonomy(place: Field, folder: Path) -> Taxonomy:
    if isinstance(place.value, Mapping):
        lines = {path[1:]: line for path, line in place.document.lines.items() if path[:1] == place.path}
        return Taxonomy.from_dict(place.value, place.document.file, Document(place.value, place.document.file, lines))
    return Taxonomy.load(_file_or_name(place.text(), folder, ".yaml", ".yml"))


def _named(taxonomy: Taxonomy) -> str | None:
    """The name of the shipped taxonomy that it is, or None."""
    try:
        return taxonomy.id if Taxonomy.load(taxonomy.id) == taxonomy else None
    except (UsageError, TaxonomyError):
        return None
