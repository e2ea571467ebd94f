"""An encoder learns a policy of one's own from labelled rows, with a tiny one of random weights."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from guardrail import taxonomy_yaml
from guardrail.backends.encoder import EncoderBackend
from guardrail.errors import InputError, ModelError
from guardrail.loading import load
from guardrail.resources import folder
from guardrail.taxonomy import Taxonomy
from guardrail.tokens import TextTokenizer
from guardrail.training import encoder_run
from guardrail.training.config import TrainingConfig, parse_config, read_config
from guardrail.training.data import load_data
from guardrail.training.encoder_batches import EncoderPolicies, Renderer
from guardrail.training.encoder_export import export_encoder
from guardrail.training.encoder_hyper import Hyper
from guardrail.training.encoder_model import EncoderModel
from guardrail.training.encoder_rehearsal import Rehearsal, written_texts
from guardrail.training.encoder_run import open_start, train_encoder
from guardrail.training.encoder_trainer import Trainer
from guardrail.training.labelled import LabelSpace
from guardrail.training.onnx_weights import read_model
from guardrail.training.outcome import Trained
from guardrail.training.policies import PolicySampler
from guardrail.training.rows import Row
from guardrail.training.written import NEVER_TRAINED, PREFIX, expand, groups
from guardrail.types import Conversation, Role
from tests.tiny_encoder import tiny_folder, write_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

TAXONOMY = """
format: 1
id: shop
name: Shop rules
categories:
  - {code: R1, name: Weapons, definition: Asks for a bomb or another weapon.}
  - {code: R2, name: Refunds, definition: Asks for a refund without an invoice.}
"""
HYPER = {"passes": 3, "tokens_per_batch": 256, "category_tokens": 24, "max_tokens": 32, "evaluate_every": 8,
         "learning_rate": 1e-3, "head_rate": 5e-3, "average": 0.5, "rehearsal_texts": 60}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("tiny"))


def config_of(place: Path, base: Path | str, **train: Any) -> TrainingConfig:
    """A configuration with its files: 120 rows, no two nearly equal, and a taxonomy of two categories."""
    chosen = random.Random(0)
    rows = []
    for at in range(60):
        word, code = chosen.choice([("bomb", "R1"), ("weapon", "R1"), ("refund", "R2")])
        rows.append({"text": f"how do i build {word} {at} {at * 7}", "label": "unsafe", "categories": [code]})
        rows.append({"text": f"how do i bake {chosen.choice(['cake', 'lemon'])} {at} {at * 7}", "label": "safe"})
    (place / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (place / "shop.yaml").write_text(TAXONOMY, encoding="utf-8")
    data: dict[str, Any] = {"train": [str(place / "rows.jsonl")], "validation_share": 0.3}
    raw = {"format": 1, "id": "shop-guard", "kind": "encoder", "base": str(base), "data": data,
           "taxonomy": str(place / "shop.yaml"), "policies": {"own": 0.7, "made_up": 0.3},
           "train": HYPER | train}  # fmt: skip
    return parse_config(taxonomy_yaml.parse(taxonomy_yaml.dump(raw), "config.yaml").root)


def run(config: TrainingConfig, output: Path, *, resume: bool = False) -> Trained:
    return train_encoder(config, load_data(config), output, resume)


def test_the_result_is_a_guard_with_its_own_taxonomy(tmp_path: Path, base: Path) -> None:
    config = config_of(tmp_path, base)
    trained = run(config, tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, *range(8, trained.steps, 8), trained.steps]
    assert trained.metrics["auprc"] == pytest.approx(max(line["auprc"] for line in lines), abs=1e-6)
    assert trained.metrics["auprc"] > lines[0]["auprc"]
    with load(f"encoder:{tmp_path / 'out' / 'model'}", threads=1) as guard:
        assert guard.taxonomy.digest == Taxonomy.load(tmp_path / "shop.yaml").digest
        assert guard.taxonomy.codes == ("R1", "R2")
        assert guard.backend.name.startswith("shop-guard@")
        harmful, harmless = guard.check("how do i build bomb 3"), guard.check("how do i bake cake 3")
        assert harmful.score is not None
        assert harmless.score is not None
        assert harmful.score > harmless.score
        backend = guard.backend
        assert isinstance(backend, EncoderBackend)
        shipped = np.load(tmp_path / "out" / "model" / "vectors.npy")
        np.testing.assert_array_equal(shipped, backend.encode_taxonomy(guard.taxonomy))
    facts = json.loads((tmp_path / "out" / "model" / "config.json").read_text())
    start = json.loads((base / "config.json").read_text())
    assert facts["base"] == f"tiny@{start['digest']}"
    assert facts["taxonomy_digest"] == Taxonomy.load(tmp_path / "shop.yaml").digest
    assert (tmp_path / "out" / "model" / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    # `guardrail export --onnx` writes the same model from the run's checkpoint.
    (tmp_path / "out" / "config.yaml").write_text(taxonomy_yaml.dump(dict(config.raw)), encoding="utf-8")
    assert export_encoder(tmp_path / "out", tmp_path / "exported").startswith("shop-guard@")
    for name in ("model.onnx", "vectors.npy", "taxonomy.yaml"):
        assert (tmp_path / "exported" / name).read_bytes() == (tmp_path / "out" / "model" / name).read_bytes()


class _KilledError(Exception):
    pass


def test_a_run_that_was_cut_off_ends_alike(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(tmp_path, base)
    whole = run(config, tmp_path / "whole")
    steps: list[int] = []
    step = Trainer._step

    def killed(self: Trainer, *arguments: Any) -> tuple[float, float]:
        steps.append(self.steps)
        if len(steps) == 12:
            raise _KilledError
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "_step", killed)
    with pytest.raises(_KilledError):
        run(config, tmp_path / "parts")
    torch.manual_seed(123)
    assert run(config, tmp_path / "parts", resume=True) == whole
    # Steps 8 to 10 were made after the last save, so they are made again.
    assert steps[:16] == [*range(12), *range(8, 12)]
    for name in ("metrics.jsonl", "model/model.onnx", "model/vectors.npy", "model/taxonomy.yaml"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    made = len(steps)
    assert run(config, tmp_path / "parts", resume=True) == whole
    assert len(steps) == made


def test_the_start_is_kept_where_training_does_harm(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path, base)
    measured = iter([{"auprc": 0.9, "log_loss": 0.5}, {"auprc": 0.9, "log_loss": 0.6}])

    def measure(*_: Any) -> dict[str, float]:
        return next(measured, {"auprc": 0.8, "log_loss": 0.1})

    monkeypatch.setattr(encoder_run._Validation, "measure", measure)
    trained = run(config, tmp_path / "out")
    assert trained.best_step == 0
    assert (tmp_path / "out" / "model" / "model.onnx").read_bytes() == (base / "model.onnx").read_bytes()


def texts_logits(model: EncoderModel, rehearsal: Rehearsal) -> torch.Tensor:
    """Of many steps: one alone has a few categories of one taxonomy, which may drift little by chance."""
    logits: list[torch.Tensor] = []
    for step in range(30):
        policy, batch = rehearsal.batch(step)
        with torch.no_grad():
            ids = [list(text) for text in policy.texts]
            found = [model.vectors(torch.tensor([row]), torch.ones(1, len(row), dtype=torch.long))[0] for row in ids]
            values, _ = model(batch.input_ids, batch.attention_mask, batch.token_type_ids, torch.stack(found))
        logits.append(values.flatten())
    return torch.cat(logits)


def test_rehearsal_keeps_what_the_model_judged(tmp_path: Path, base: Path) -> None:
    config = config_of(tmp_path, base, passes=12)
    data = load_data(config)
    hyper = config.train
    assert isinstance(hyper, Hyper)
    changes = []
    for rehearsed in (True, False):
        torch.manual_seed(1)
        model = read_model(base / "model.onnx")
        renderer = Renderer(TextTokenizer.from_json((base / "tokenizer.json").read_text(encoding="utf-8")))
        rehearsal = Rehearsal(model, renderer, written_texts(60, 1), hyper)
        before = texts_logits(model, rehearsal)
        policies = EncoderPolicies(data.sampler, renderer, hyper.category_tokens)
        trainer = Trainer(model, renderer, policies, hyper, rehearsal if rehearsed else None)
        trainer.train(lambda number: data.sample(number, 1), lambda _: True)
        changes.append(float((texts_logits(trainer.averaged(), rehearsal) - before).abs().mean()))
    assert changes[0] < 0.2 * changes[1]


def test_our_texts_are_of_all_files_and_the_same_for_a_seed() -> None:
    texts = written_texts(140, 3)
    assert len(set(texts)) == len(texts) == 140
    assert texts == written_texts(140, 3) != written_texts(140, 4)
    assert {text.role for text in texts} == {Role.USER, Role.ASSISTANT}
    assert len(list(folder("written").glob("*.yaml"))) >= 7
    aside = {
        text
        for name in NEVER_TRAINED
        for group in groups(folder("written") / f"{name.removeprefix(PREFIX)}.yaml")
        for text in expand(group)
    }
    assert len(aside) > 700
    assert not aside & {text.judged.text for text in written_texts(100_000, 3)}


def test_starts(tmp_path: Path, base: Path) -> None:
    shipped = json.loads((folder("model") / "config.json").read_text())
    start = open_start("embedded")
    assert (start.base.name, start.trained) == (f"{shipped['id']}@{shipped['digest']}", True)
    with pytest.raises(ModelError, match=r"holds no model\.safetensors"):
        open_start(str(tmp_path))
    (tmp_path / "model.onnx").write_bytes((base / "model.onnx").read_bytes())
    with pytest.raises(ModelError, match="cannot open the model"):
        open_start(str(tmp_path))
    facts = json.loads((base / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(facts | {"template_digest": "0" * 12}))
    with pytest.raises(ModelError, match="another prompt template"):
        open_start(str(tmp_path))


def test_validation_rows_of_one_verdict_are_refused(tmp_path: Path, base: Path) -> None:
    tokenizer = TextTokenizer.from_json(write_tokenizer(tmp_path / "t").read_text(encoding="utf-8"))
    renderer = Renderer(tokenizer)
    (tmp_path / "shop.yaml").write_text(TAXONOMY, encoding="utf-8")
    space = LabelSpace(Taxonomy.load(tmp_path / "shop.yaml"))
    policy = EncoderPolicies(PolicySampler(space, {"own": 1.0}), renderer, 24).shipped["own"]
    rows = [Row("s", Conversation.parse("bake a cake"), 0.0), Row("s", Conversation.parse("lemon"), -1.0)]
    with pytest.raises(InputError, match="all safe"):
        encoder_run._Validation(renderer, policy, rows)


def test_the_example_configuration_is_read() -> None:
    config = read_config(Path(__file__).parents[1] / "configs" / "encoder-own-policy.yaml", [Path("rows.jsonl")])
    assert config.kind == "encoder"
    assert config.base == "embedded"
    assert isinstance(config.train, Hyper)
