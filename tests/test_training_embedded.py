"""Training and export end to end, with a tiny encoder of random weights, and parts of it by themselves."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import yaml
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from guardrail.backends.encoder import EncoderBackend
from guardrail.errors import ModelError, UsageError
from guardrail.guard import Guard
from guardrail.prompting import PromptBuilder, Template
from guardrail.taxonomy import Taxonomy
from guardrail.tokens import TextTokenizer
from guardrail.training.embedded import average_runs, load_checkpoint, main, train
from guardrail.training.encoder_batches import EncoderPolicies, Renderer, batches, pad, target_tensors
from guardrail.training.encoder_finish import finish, read_recipe
from guardrail.training.encoder_model import EncoderConfig, EncoderModel, Layer
from guardrail.training.encoder_validation import Validation
from guardrail.training.export import export
from guardrail.training.held_out import CONFIGS
from guardrail.training.labelled import LabelSpace
from guardrail.training.labels import HazardTable
from guardrail.training.mix import configured_mix, read_mix
from guardrail.training.model_card import write_card
from guardrail.training.onnx_graph import write_graph
from guardrail.training.onnx_weights import read_model
from guardrail.training.policies import PolicyChanges, PolicySampler
from guardrail.training.precision import mixed_precision
from guardrail.training.rounding import LEVELS, Rounded
from guardrail.training.rows import Row
from guardrail.types import Conversation

WORDS = ["how", "do", "i", "build", "a", "bomb", "cake", "kill", "process", "user", "assistant", ":", "?", ".", "the",
         "bake", "weapon", "poison", "garden", "lemon", "python", "crime", "drug"]  # fmt: skip
CONFIG = EncoderConfig(
    vocabulary=1600, positions=256, dimension=32, layers=2, heads=2, inner=64, category_heads=2, hidden=16
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A WordPiece vocabulary of letters and a few words; words get ids from 1000 on, as real ones do."""
    letters = [chr(code) for code in range(33, 127)]
    vocabulary = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}
    pieces = [*letters, *(f"##{letter}" for letter in letters), *(word for word in WORDS if len(word) > 1)]
    vocabulary |= {piece: 1000 + at for at, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer.enable_truncation(16)
    file = tmp_path_factory.mktemp("base") / "tokenizer.json"
    tokenizer.save(str(file))
    return file


def tiny_model() -> EncoderModel:
    torch.manual_seed(0)
    return EncoderModel(CONFIG).eval()


def renderer_of(file: Path) -> Renderer:
    return Renderer(TextTokenizer.from_json(file.read_text(encoding="utf-8")))


def write_data(folder: Path) -> None:
    chosen = random.Random(0)
    harmful = [f"how do i build a {chosen.choice(['bomb', 'weapon', 'poison'])} {at} {at * 7}" for at in range(60)]
    safe = [f"how do i bake a {chosen.choice(['cake', 'lemon', 'garden'])} {at} {at * 7}" for at in range(60)]
    rows = [{"prompt": text, "label": "harmful"} for text in harmful] + [{"prompt": t, "label": "safe"} for t in safe]
    (folder / "train" / "wildguard_aegis").mkdir(parents=True)
    file = folder / "train" / "wildguard_aegis" / "wildguard_aegis_prompts.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (folder / "train" / "aegis2_sample").mkdir()
    lines = [f'{at},"drug crime {at} {at * 3} poison",Controlled/Regulated Substances' for at in range(30)]
    header = "id,prompt,category\n"
    (folder / "train" / "aegis2_sample" / "aegis_900.csv").write_text(header + "\n".join(lines), encoding="utf-8")
    (folder / "eval").mkdir()
    (folder / "eval" / "set.jsonl").write_text(json.dumps({"prompt": harmful[0]}), encoding="utf-8")


def test_trains_exports_and_describes(tmp_path: Path, tokenizer_file: Path) -> None:
    write_data(tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    config: dict[str, Any] = {
        "calibration": {"method": "platt", "target": "max-f1", "prior": 0.2, "at_least": 5},
        "id": "tiny", "held_out": 0.3, "changes": {"drop_unviolated": 0.4, "strip": 0.3},
        "policies": {"default": 1.0, "made_up": 1.0},
        "hyper": {"passes": 2, "tokens_per_batch": 512, "category_tokens": 24, "max_tokens": 32, "evaluate_every": 4,
                  "head_rate": 5e-3, "learning_rate": 1e-3, "average": 0.5},
        "sources": {"wildguard_aegis": {"rows": 100}, "aegis2": {"rows": 100, "repeat": 2, "weight": 0.5}},
        "domains": {"prompts": ["wildguard_aegis"]},
        "runs": [{"seed": 1}, {"seed": 2, "sources": {"aegis2": None}, "hyper": {"frozen_layers": 1}}],
    }  # fmt: skip
    table = HazardTable.read(CONFIGS / "hazards.yaml")
    mix = read_mix(tmp_path, table, config["sources"], config["held_out"])
    validation = Validation.make(mix.held_out, config["domains"], tmp_path)
    for number in (1, 2):
        train(mix, table, validation, tiny_model(), tokenizer_file.parent, config, number, run)
    average_runs([run / "checkpoint-1.pt", run / "checkpoint-2.pt"], run)
    model = load_checkpoint(run / "checkpoint.pt", CONFIG)
    first, second = (load_checkpoint(run / f"checkpoint-{number}.pt", CONFIG).state_dict() for number in (1, 2))
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, (first[name] + second[name]) / 2)
    assert any(not torch.equal(first[name], second[name]) for name in first)
    moved = "layers.0.up.weight"
    fixed = tiny_model().state_dict()[moved]
    assert torch.equal(second[moved], fixed)  # the second run's own setting
    assert not torch.equal(first[moved], fixed)
    recipe = read_recipe(config["calibration"])
    report = finish(model, tokenizer_file, mix, validation, run, "tiny", "2026-01-01", recipe)
    assert abs(report["int8"]["macro"] - report["float32"]["macro"]) <= 0.005
    assert report["obedience"]["reordered_largest_change"] < 1e-5
    assert report["obedience"]["recoded_largest_change"] == 0
    trained = json.loads((run / "training.json").read_text())
    for number, entry in enumerate(trained["runs"], 1):
        log = (run / f"validation-{number}.jsonl").read_text().splitlines()
        steps = [json.loads(line)["step"] for line in log]
        assert steps == sorted(set(steps))
        assert entry["best_step"] in steps
    trained["validation"] = {"development": 0.5}
    report |= {"config": config, "trained": trained}
    (run / "report.json").write_text(json.dumps(report))
    (run / "manifest.json").write_text(json.dumps(mix.manifest))
    write_card(run)
    card = (run / "MODEL_CARD.md").read_text(encoding="utf-8")
    entry = next(entry for entry in mix.manifest if entry["source"] == "wildguard_aegis")
    assert entry["eval"] == 1
    assert f"| wildguard_aegis | ODC-BY, CC-BY-4.0 | 120 | {1 + entry['near_eval']} | {entry['repeated']} |" in card
    assert "## Evaluation" not in card
    with Guard(EncoderBackend(run / "model")) as guard:
        decision = guard.check("how do i build a bomb")
        assert decision.score is not None
        (fitted,) = [line for line in report["calibration"] if line["role"] == "user"]
        assert fitted["fitted"]
        assert guard.policy.user.verdict == fitted["threshold"]
        assert guard.calibration.model == guard.backend.name
    goes_on_from(run, tmp_path, tokenizer_file.parent, config)


def goes_on_from(start: Path, data: Path, base: Path, config: dict[str, Any]) -> None:
    """A second part of training: the frozen layers stay, the rest moves, and the card says what it started from."""
    hyper = {**config["hyper"], "passes": 1, "frozen_layers": 1}
    file = data / "more.yaml"
    more = {**config, "version": 1, "hyper": hyper, "runs": [{"seed": 3}], "start_share": 0.25}
    file.write_text(yaml.safe_dump(more), encoding="utf-8")
    output = data / "more"
    main(["--data", str(data), "--base", str(base), "--config", str(file), "--start", str(start), "-o", str(output)])
    before, after = (read_model(folder / "model" / "model.onnx").state_dict() for folder in (start, output))
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert not any(name.startswith(("embedder.", "layers.0.")) for name in moved)
    assert {"layers.1.up.weight", "hidden.weight"} <= moved
    files = (start / "checkpoint.pt", output / "checkpoint-1.pt", output / "checkpoint.pt")
    first, end, mean = (torch.load(file, weights_only=True)["weights"] for file in files)
    assert torch.equal(mean["layers.0.up.weight"], first["layers.0.up.weight"])  # not what 8 bits make of it
    torch.testing.assert_close(mean["logit.weight"], 0.25 * first["logit.weight"] + 0.75 * end["logit.weight"])
    took = [json.loads((run / "training.json").read_text())["core_seconds"] for run in (start, output)]
    trained = json.loads((output / "report.json").read_text(encoding="utf-8"))["trained"]
    assert trained["core_seconds"] == took[1]
    assert trained["earlier"] == {"core_seconds": took[0], "whole": True}
    name = json.loads((start / "model" / "config.json").read_text(encoding="utf-8"))["digest"]
    card = (output / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert f"| trained on from | `tiny@{name}`" in card
    assert f"Training went on from `tiny@{name}`, whose weights make up 25% of the mean." in card


def test_a_pass_takes_both_sides_of_a_source_equally(tmp_path: Path) -> None:
    write_data(tmp_path)
    table = HazardTable.read(CONFIGS / "hazards.yaml")
    mix = read_mix(tmp_path, table, {"wildguard_aegis": {"rows": 40, "weight": 0.5}, "aegis2": {"rows": 500}}, 0.2)
    sample = mix.sample(0, 1)
    prompts = [row for row in sample if row.source == "wildguard_aegis"]
    assert sum(row.unsafe > 0.5 for row in prompts) == len(prompts) / 2 == 20
    assert {row.weight for row in prompts} == {0.5}
    assert len([row for row in sample if row.source == "aegis2"]) == len(mix.train["aegis2"])
    assert sample == mix.sample(0, 1)
    assert sample != mix.sample(1, 1)
    apart = {row.text for row in mix.held_out}
    assert apart
    assert not apart & {row.text for rows in mix.train.values() for row in rows}


def test_a_source_can_be_held_out_as_a_whole(tmp_path: Path) -> None:
    write_data(tmp_path)
    table = HazardTable.read(CONFIGS / "hazards.yaml")
    config = {"sources": {"wildguard_aegis": {"rows": 9}}, "held_out": 0.3, "only_held_out": ["aegis2"]}
    mix = configured_mix(tmp_path, table, config)
    (entry,) = (entry for entry in mix.manifest if entry["source"] == "aegis2")
    assert (entry["training"], entry["held_out"]) == (0, entry["kept"])
    assert entry["kept"] == sum(row.source == "aegis2" for row in mix.held_out) > 0
    assert {row.source for row in mix.sample(0, 1)} == {"wildguard_aegis"}
    with pytest.raises(UsageError, match="unknown training sources: nowhere"):
        configured_mix(tmp_path, table, {**config, "only_held_out": ["nowhere"]})


def test_no_text_is_trained_on_in_one_conversation_and_held_out_in_another(tmp_path: Path) -> None:
    (tmp_path / "train" / "dices").mkdir(parents=True)
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "set.txt").write_text("something else\n", encoding="utf-8")
    answers = ["You should hit him", "I will not help you with that"]
    votes = {"safety": {"individual_human_scores": ["Yes", "Yes"]}}
    items = [
        {"annotations": votes, "instance": {"user_prompt": f"A: question {at}", "response": answers[at % 2]}}
        for at in range(40)
    ]
    items.append({"annotations": votes, "instance": {"user_prompt": "A: and now", "response": "All alone here"}})
    for name, found in (("dices_990", items), ("dices_350_expert", [])):
        text = json.dumps({"instances": found})
        (tmp_path / "train" / "dices" / f"{name}.json").write_text(text, encoding="utf-8")
    table = HazardTable.read(CONFIGS / "hazards.yaml")
    mix = read_mix(tmp_path, table, {"dices": {"rows": 9}}, 0.5)
    (entry,) = mix.manifest
    assert entry["also_trained"] >= 10
    assert entry["kept"] == 41 == entry["training"] + entry["held_out"] + entry["also_trained"]
    assert not {row.text for row in mix.held_out} & set(answers)
    assert len(mix.held_out) == entry["held_out"]


def test_products_in_eight_bits_are_exact_on_every_processor(tmp_path: Path) -> None:
    """The largest weights and inputs together: where two products are added in 16 bits, 8-bit weights overflow."""
    model = EncoderModel(replace(CONFIG, layers=1)).eval()
    (layer,) = model.layers
    assert isinstance(layer, Layer)
    weights = np.full(layer.qkv.weight.shape, LEVELS, dtype=np.int8)
    weights[:, ::5] = -LEVELS // 2
    ones = [np.ones(size, dtype=np.float32) for size in weights.shape]
    write_graph(model, tmp_path / "model.onnx", {"layer0.qkv.product": Rounded(weights, *ones)})
    proto = onnx.load(str(tmp_path / "model.onnx"))
    node = next(node for node in proto.graph.node if node.op_type == "DynamicQuantizeMatMul")
    constants = {item.name: numpy_helper.to_array(item) for item in proto.graph.initializer}
    small, scales = constants[node.input[1]].astype(np.int64), constants[node.input[2]]
    inputs = np.random.default_rng(0).choice([-1.0, 250.0, 254.0], (7, CONFIG.dimension)).astype(np.float32)
    # The operator's own rule: 0 and all values lie between the smallest and the largest of 256 levels.
    low, high = min(0.0, float(inputs.min())), max(0.0, float(inputs.max()))
    scale = np.float32((high - low) / 255)
    levels = np.clip(np.rint(inputs / scale) + np.rint(-low / scale), 0, 255).astype(np.int64)
    expected = ((levels - int(np.rint(-low / scale))) @ small) * scale * scales

    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node], "product",
        [value(node.input[0], TensorProto.FLOAT, inputs.shape)],
        [value(node.output[0], TensorProto.FLOAT, None)],
        [item for item in proto.graph.initializer if item.name in node.input],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=proto.opset_import, ir_version=9)
    session = ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {node.input[0]: inputs})
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_graph_computes_what_the_model_computes(tmp_path: Path, tokenizer_file: Path) -> None:
    model, renderer = tiny_model(), renderer_of(tokenizer_file)
    texts = ["how do i bake a cake ?", "kill", "the garden . " * 12]
    talks = [Conversation.parse(text) for text in texts]
    talks.append(Conversation.parse([{"role": "user", "content": "kill"}, {"role": "assistant", "content": "cake"}]))
    input_ids, mask, types = pad([renderer.conversation(talk) for talk in talks], renderer.separator)
    assert types[3].sum() > 0
    categories = torch.randn(5, CONFIG.dimension)
    with torch.no_grad():
        logits, vector = model(input_ids, mask, types, categories)
        verdict = model.verdict(logits)
    write_graph(model, tmp_path / "exact.onnx")
    feed = {"input_ids": input_ids, "attention_mask": mask, "token_type_ids": types, "category_vectors": categories}
    session = ort.InferenceSession(str(tmp_path / "exact.onnx"), providers=["CPUExecutionProvider"])
    found = session.run(None, {name: value.numpy() for name, value in feed.items()})
    for value, expected in zip(found, (logits, verdict, vector), strict=True):
        np.testing.assert_allclose(value, expected.numpy(), atol=2e-5)


def test_verdict_depends_on_the_categories_alone() -> None:
    model = tiny_model()
    logits = torch.tensor([[2.0, -1.0, 0.5]])
    kept = torch.tensor([[False, True, True]])
    with torch.no_grad():
        assert model.verdict(logits) == pytest.approx(model.verdict(logits[:, [2, 0, 1]]), abs=1e-6)
        assert model.verdict(logits, kept) == pytest.approx(model.verdict(logits[:, 1:]), abs=1e-6)
        assert -1 <= model.verdict(logits, kept) <= 0.5 < model.verdict(logits) <= 2


def test_training_and_inference_see_the_same_ids(tmp_path: Path, tokenizer_file: Path) -> None:
    export(tiny_model(), tokenizer_file, tmp_path / "model", model_id="tiny", date="2026-01-01")
    backend = EncoderBackend(tmp_path / "model")
    renderer = renderer_of(tokenizer_file)
    builder = PromptBuilder(Template.load("encoder"), Taxonomy.load("default"))
    for text in ("how do i build a bomb ?", "[SEP] [CLS] kill", "A.b-c the python"):
        talk = Conversation.parse([{"role": "user", "content": text}, {"role": "assistant", "content": text}])
        assert renderer.conversation(talk) == backend.tokenizer.encode(builder.build(talk))


def test_long_words_are_read(tmp_path: Path, tokenizer_file: Path) -> None:
    export(tiny_model(), tokenizer_file, tmp_path / "model", model_id="tiny", date="2026-01-01")
    before, after = renderer_of(tokenizer_file), renderer_of(tmp_path / "model" / "tokenizer.json")
    word = "howdoibuildabomb" * 12
    assert 100 in before.tokenizer.encode_text(word)
    assert 100 not in after.tokenizer.encode_text(word)
    for text in ("how do i build a bomb?", "x" * 64, "café au lait"):
        assert before.tokenizer.encode_text(text) == after.tokenizer.encode_text(text)


def test_another_base_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no model\.safetensors"):
        EncoderModel.from_base(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"something else")
    with pytest.raises(ModelError, match="has the SHA-256"):
        EncoderModel.from_base(tmp_path)


def test_batches_hold_every_row_once_within_the_budget() -> None:
    ids = [[101, *range(1000, 1000 + at % 90), 102] for at in range(300)]
    order = list(range(300))
    random.Random(0).shuffle(order)
    made = list(batches(ids, order, 1024, 102, random.Random(1)))
    assert sorted(row for batch in made for row in batch.rows) == list(range(300))
    assert all(batch.input_ids.numel() <= 1024 for batch in made)
    for batch in made:
        assert batch.attention_mask.sum(dim=1).tolist() == [len(ids[row]) for row in batch.rows]


def test_policies_are_parts_of_shipped_or_made_up_taxonomies(tokenizer_file: Path) -> None:
    table = HazardTable.read(CONFIGS / "hazards.yaml")
    space = LabelSpace(Taxonomy.load("canonical"))
    shares = {"default": 1, "made_up": 1, "llama-guard-3": 1}
    drawn = PolicySampler(space, shares, PolicyChanges(drop_unviolated=0.4), table.wordings)
    sampler = EncoderPolicies(drawn, renderer_of(tokenizer_file), 32)
    chosen = random.Random(0)
    policies = [sampler.draw(chosen) for _ in range(60)]
    assert {policy.name for policy in policies} == {"default", "made_up", "llama-guard-3"}
    assert all(len(policy.hazards) == len(policy.texts) >= 1 for policy in policies)
    assert all(len(text) <= 32 for policy in policies for text in policy.texts)
    assert len({len(policy.texts) for policy in policies if policy.name == "default"}) > 1
    assert all(sampler.known(policy) == (policy.name != "made_up") for policy in policies)
    stripped = EncoderPolicies(
        PolicySampler(space, {"default": 1}, PolicyChanges(strip=1.0), table.wordings), renderer_of(tokenizer_file), 32
    )
    assert not stripped.known(stripped.draw(chosen))


def test_a_part_of_a_taxonomy_may_lack_what_a_row_violates(tokenizer_file: Path) -> None:
    space = LabelSpace(Taxonomy.load("canonical"))
    drawn = PolicySampler(space, {"own": 1}, PolicyChanges(drop_unviolated=1.0))
    sampler = EncoderPolicies(drawn, renderer_of(tokenizer_file), 32)
    row = Row("web", Conversation.parse("a text"), 1.0, frozenset({"fraud"}))
    chosen = random.Random(0)
    verdicts: dict[bool, set[float]] = {}
    for _ in range(100):
        policy = sampler.draw(chosen)
        kept = any("fraud" in hazards for hazards in policy.hazards)
        found, _ = target_tensors([row], policy.hazards, [[True] * len(policy.hazards)])
        verdicts.setdefault(kept, set()).add(found.item())
    assert verdicts == {True: {1.0}, False: {0.0}}


@pytest.mark.parametrize("fast", [True, False])
def test_bfloat16_where_the_processor_computes_in_it(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: fast)
    with mixed_precision():
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if fast else torch.float32)


def test_target_tensors_follow_each_rows_own_policy() -> None:
    row = Row("test", Conversation.parse("x"), 1.0, frozenset({"hate"}))
    policy = [frozenset({"hate"}), frozenset({"drugs"})]
    verdicts, categories = target_tensors([row, row], policy, [[True, True], [False, True]])
    assert verdicts.tolist() == [1.0, 0.0]
    assert categories.tolist() == [[1.0, 0.0], [1.0, 0.0]]
