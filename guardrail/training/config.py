"""The configuration of a training run: one YAML file, read strictly."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from guardrail import taxonomy_yaml
from guardrail.errors import GuardrailError, InputError
from guardrail.evaluation.calibrate import Recipe
from guardrail.evaluation.calibration_fit import Target
from guardrail.prompting import Template
from guardrail.taxonomy import Taxonomy
from guardrail.taxonomy_yaml import Field
from guardrail.training.amounts import Amount
from guardrail.training.config_fields import build, choice, number
from guardrail.training.encoder_hyper import Hyper
from guardrail.training.labelled import LabelSpace
from guardrail.training.llama_hyper import LlamaHyper
from guardrail.training.policies import MADE_UP, OWN, PolicyChanges, PolicySampler, TrainingPolicy
from guardrail.training.scratch_spec import ScratchSpec

__all__ = ["EMBEDDED", "FORMAT", "DataConfig", "TrainingConfig", "parse_config", "read_config"]

FORMAT = 1
EMBEDDED = "embedded"
"""The base of an encoder that is the shipped model."""

T = TypeVar("T")
Kind = Literal["llama", "encoder"]
Explanation = Literal["none", "before", "after"]

_SHARE = 0.05
_UNCHANGED = PolicyChanges()
_RECIPE = Recipe()
_LLAMA_ONLY = ("scratch", "template", "answer")
# The encoder's trainer has these as flip_rate, noise_rate and example_rate; its categories have no order.
_ENCODER_CHANGES = ("drop_unviolated", "rephrase", "strip", "unname")


@dataclass(frozen=True, slots=True)
class DataConfig:
    """The labelled rows; relative paths start from the current folder."""

    train: tuple[Path, ...]
    validation: tuple[Path, ...] = ()
    """Files of validation rows; none: `validation_share` of the training rows."""
    validation_share: float = _SHARE
    validation_rows: int | None = None
    """Judge at most so many of the validation rows, chosen at random; None: all."""
    keep_out: tuple[Path, ...] = ()
    """Files and folders with evaluation texts, which are left out of the training rows."""
    sources: Mapping[str, Amount] | None = None
    """What a pass sees of each source; None: every row once."""
    related: Path | None = None
    """A file of related labels and of their wordings, such as configs/hazards.yaml."""


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """Everything that decides a run besides the data and the code."""

    id: str
    kind: Kind
    taxonomy: Taxonomy
    """Whose codes the rows use."""
    data: DataConfig
    train: LlamaHyper | Hyper
    base: str | None = None
    """Folder or hub name of a checkpoint, or `embedded`; None with `scratch`."""
    scratch: ScratchSpec | None = None
    template: str | None = None
    """Name or file of the prompt template; None: the checkpoint's."""
    policies: Mapping[str, float] = field(default_factory=lambda: {OWN: 1.0})
    """Weight of `own`, `made_up` and shipped taxonomies."""
    changes: PolicyChanges = _UNCHANGED
    noise: float = 0.0
    """How likely a noisy copy takes the place of a text."""
    explanation: Explanation = "none"
    """Where an answer has the row's explanation."""
    result_taxonomy: Taxonomy | None = None
    """The default taxonomy of the result; None: `taxonomy`."""
    calibration: Recipe = _RECIPE
    raw: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """The file as plain data, with the rows' files that were given instead; to be kept with the result."""

    @property
    def space(self) -> LabelSpace:
        """The labels of the taxonomy."""
        return LabelSpace(self.taxonomy)

    @property
    def result(self) -> TrainingPolicy:
        """The policy that the result shows by default, and that it is validated and calibrated under."""
        return _result(self.space, self.result_taxonomy)


def read_config(file: Path, data: Sequence[Path] = ()) -> TrainingConfig:
    """The configuration in a file; `data` takes the place of `data.train`.

    Raises TaxonomyError (an InputError) with file, line and field for what cannot be used.
    """
    return parse_config(taxonomy_yaml.read(file).root, data)


def parse_config(root: Field, data: Sequence[Path] = ()) -> TrainingConfig:
    """The configuration in a parsed document; see `read_config`."""
    optional = (
        "result_taxonomy",
        "base",
        "scratch",
        "template",
        "policies",
        "augment",
        "answer",
        "train",
        "calibration",
    )
    values = root.fields(("format", "id", "kind", "taxonomy", "data"), optional)
    version = values["format"]
    if version.value != FORMAT or isinstance(version.value, bool):
        raise version.error(f"the format is {version.value!r}", f"this release reads format {FORMAT}")
    kind: Kind = choice(values["kind"], get_args(Kind))
    _check_start(root, values, kind)
    taxonomy = _at(values["taxonomy"], lambda: Taxonomy.load(values["taxonomy"].text()))
    changes, noise = _augment(values.get("augment"), kind)
    scratch = build(values["scratch"], ScratchSpec) if "scratch" in values else None
    return TrainingConfig(
        id=values["id"].text(),
        kind=kind,
        taxonomy=taxonomy,
        data=_data(values["data"], data),
        train=_hyper(values.get("train"), kind, scratch),
        base=values["base"].text() if "base" in values else None,
        scratch=scratch,
        template=_template(values.get("template")),
        policies=_policies(values["policies"], taxonomy) if "policies" in values else {OWN: 1.0},
        changes=changes,
        noise=noise,
        explanation=_explanation(values.get("answer")),
        result_taxonomy=_result_taxonomy(values.get("result_taxonomy"), taxonomy),
        calibration=build(values["calibration"], Recipe, target=Target.parse) if "calibration" in values else _RECIPE,
        raw=_with_rows(root.value, data),
    )


def _with_rows(raw: Any, given: Sequence[Path]) -> dict[str, Any]:
    return {**raw, "data": {**raw["data"], "train": list(map(str, given))}} if given else raw


def _result(space: LabelSpace, taxonomy: Taxonomy | None) -> TrainingPolicy:
    if taxonomy is None or taxonomy == space.taxonomy:
        return TrainingPolicy(OWN, space.taxonomy, space.labels)
    return TrainingPolicy(taxonomy.id, taxonomy, space.covered(taxonomy))


def _result_taxonomy(field: Field | None, labels: Taxonomy) -> Taxonomy | None:
    """The taxonomy, of which every category must be reached by a label: nothing would be learnt about any other."""
    if field is None:
        return None
    taxonomy = _at(field, lambda: Taxonomy.load(field.text()))
    policy = _at(field, lambda: _result(LabelSpace(labels), taxonomy))
    for code, covered in zip(taxonomy.codes, policy.labels, strict=True):
        if not covered:
            raise field.error(f"no label of {labels.id!r} reaches the category {code}", "leave that category out")
    return taxonomy


def _check_start(root: Field, values: Mapping[str, Field], kind: Kind) -> None:
    for name in _LLAMA_ONLY:
        if kind == "encoder" and name in values:
            raise values[name].error("is for the kind llama", "leave the key out")
    if ("base" in values) == ("scratch" in values):
        reason = "base and scratch are both given" if "base" in values else "there is no base"
        either = "" if kind == "encoder" else ", or scratch for a new one"
        raise root.error(reason, f"give base, the model to start from{either}", inside="base")


def _hyper(field: Field | None, kind: Kind, scratch: ScratchSpec | None) -> LlamaHyper | Hyper:
    """How the kind is trained, without what nothing would read."""
    hyper: type[LlamaHyper] | type[Hyper] = LlamaHyper if kind == "llama" else Hyper
    if field is None:
        return hyper()
    train = build(field, hyper)
    for name in ("teacher_share", "vector_weight"):
        if getattr(train, name, 0) and (scratch is None or scratch.vectors_from is None):
            reason = f"is {getattr(train, name):g}, but there is no scratch.vectors_from"
            raise field.error(reason, "name the teacher there, or leave this out", name)
    if isinstance(train, LlamaHyper) and train.method == "full" and "lora" in field.value:
        reason = "is given, but with the method full nothing reads it"
        raise field.error(reason, "give train.method: lora or qlora, or leave this out", "lora")
    return train


def _data(field: Field, given: Sequence[Path]) -> DataConfig:
    keys = ("validation", "validation_share", "validation_rows", "keep_out", "sources", "related")
    values = field.fields(() if given else ("train",), (*keys, "train"))
    if "validation" in values and "validation_share" in values:
        raise values["validation_share"].error("validation is given too", "leave one of the two out")
    share = number(values["validation_share"]) if "validation_share" in values else _SHARE
    if not 0 < share < 1:
        raise values["validation_share"].error(f"cannot be {share:g}", "give a share between 0 and 1")
    most = int(number(values["validation_rows"], whole=True)) if "validation_rows" in values else None
    if most is not None and most < 1:
        raise values["validation_rows"].error(f"cannot be {most}", "give a number from 1")
    paths = {key: tuple(map(Path, values[key].texts())) for key in ("validation", "keep_out") if key in values}
    train = tuple(given) or tuple(map(Path, values["train"].texts()))
    if not train:
        raise values["train"].error("names no file")
    related = Path(values["related"].text()) if "related" in values else None
    sources = {name: build(item, Amount) for name, item in _mapping(values["sources"])} if "sources" in values else None
    return DataConfig(train, validation_share=share, validation_rows=most, sources=sources, related=related, **paths)


def _policies(field: Field, taxonomy: Taxonomy) -> dict[str, float]:
    space = LabelSpace(taxonomy)
    shares = {}
    for name, item in _mapping(field):
        shares[name] = number(item)
        if shares[name] < 0:
            raise item.error(f"cannot be {shares[name]:g}", "give a weight from 0")
        if name not in (OWN, MADE_UP):
            _at(item, lambda name=name: PolicySampler(space, {name: 1.0}))  # type: ignore[misc]  # bound early
    if not any(shares.values()):
        raise field.error("no policy has a weight above 0", f"known: {OWN}, {MADE_UP}, and shipped taxonomies")
    return shares


def _augment(field: Field | None, kind: Kind) -> tuple[PolicyChanges, float]:
    if field is None:
        return _UNCHANGED, 0.0
    known = _ENCODER_CHANGES if kind == "encoder" else (*PolicyChanges.__dataclass_fields__, "noise")
    values = {key: number(value) for key, value in field.fields((), known).items()}
    for key, value in values.items():
        if not 0 <= value <= 1:
            raise field.error(f"cannot be {value:g}", "give a probability, from 0 to 1", inside=key)
    noise = values.pop("noise", 0.0)
    return PolicyChanges(**values), noise


def _explanation(field: Field | None) -> Explanation:
    return "none" if field is None else choice(field.fields(("explanation",))["explanation"], get_args(Explanation))


def _template(field: Field | None) -> str | None:
    if field is None:
        return None
    _at(field, lambda: Template.load(field.text()))
    return field.text()


def _mapping(field: Field) -> Sequence[tuple[str, Field]]:
    """The items of a mapping whose keys are names that the author chose."""
    names = tuple(field.value) if isinstance(field.value, Mapping) else ()
    return tuple(field.fields((), names).items())


def _at(field: Field, action: Callable[[], T]) -> T:
    """The action's result; an error that names no place of its own gets the field's."""
    try:
        return action()
    except InputError:
        raise
    except GuardrailError as error:
        raise field.error(str(error), error.hint) from None
