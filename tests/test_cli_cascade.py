"""`guardrail cascade` as people run it, and its file in the other commands."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from guardrail import cli
from guardrail.errors import UsageError
from guardrail.evaluation import metrics
from guardrail.evaluation.cascade_report import Aim, read_pair
from guardrail.evaluation.runner import Run
from guardrail.loading import load
from guardrail.types import Role
from tests.evaluation_suite import ROWS, write_suite

# Knows the words of all unsafe rows of the suite, and one of a safe row.
SECOND = "scripted:bomb,poison,death,immigrants,stupid,steal,vaccines"


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


def run(*arguments: str | Path, cwd: Path) -> Done:
    """The command in this process: starting one for each takes longer than the command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.run([str(argument) for argument in arguments])
    return Done(status, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both models' evaluations of a validation suite and of one for evaluation."""
    folder = tmp_path_factory.mktemp("cascade")
    write_suite(folder, copies=3)
    write_suite(folder, name="mine", use="validation", copies=4)
    for name in ("mine", "small"):
        for number, model in (("1", ("embedded", "--threshold", "0.9")), ("2", (SECOND,))):
            arguments = ("eval", f"{name}.yaml", "--data", ".", "-m", *model, "-o", f"{name}{number}", "--no-cache")
            done = run(*arguments, "--resamples", "10", cwd=folder)
            assert done.returncode == 0, done.stderr
    return folder


def cascade(place: Path, *arguments: str | Path, suite: str = "mine") -> Done:
    return run("cascade", f"{suite}1", f"{suite}2", "--resamples", "50", *arguments, cwd=place)


def roles(done: Done) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["roles"]
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def chosen(place: Path) -> Path:
    done = cascade(place, "--recall", "1", "-o", "sub/cascade.yaml", "--cost-ratio", "20")
    assert done.returncode == 2
    (place / "sub").mkdir()
    done = cascade(place, "--recall", "1", "-o", "sub/cascade.yaml", "--cost-ratio", "20")
    assert done.returncode == 0, done.stderr
    return place / "sub" / "cascade.yaml"


def test_the_table_and_the_notes(place: Path, chosen: Path) -> None:
    done = cascade(place, "--recall", "1", "-o", chosen, "--overwrite", "--cost-ratio", "20")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("first:  guardrail-minilm@")
    assert lines[1].startswith("second: scripted:bomb")
    assert lines[3] == "user: 48 rows, 24 of those judged by both unsafe"
    assert lines[4].startswith("band: ")
    assert "when it costs 20 times the first, as given" in lines[5]
    assert lines[6].split() == ["cost", "auprc", "precision", "recall", "fpr", "f1", "95", "%", "of", "AUPRC"]
    assert [line.split()[:2] for line in lines[7:9]] == [["first", "0.050"], ["second", "1.000"]]
    assert lines[9].split()[4] == "1.000"
    assert [line.split()[0] for line in lines[13:]] == ["0%", "5%", "10%", "20%", "30%", "50%", "75%", "100%"]
    assert done.stderr.splitlines() == [
        "assistant: no rows, so no band: there the second is asked only where the first fails",
        f"{chosen}: figures are of the rows that the band was chosen on",
    ]


def test_what_is_promised_is_what_the_cascade_does(place: Path, chosen: Path) -> None:
    promised = roles(cascade(place, "--recall", "1", "--json"))
    arguments = ("--data", ".", "-m", f"cascade:{chosen}", "--no-cache", "--resamples", "10")
    done = run("eval", "mine.yaml", "-o", "both", *arguments, cwd=place)
    assert done.returncode == 0, done.stderr
    (report,) = json.loads((place / "both/report.json").read_text())["runs"]
    for name in ("auprc", "precision", "recall", "fpr", "f1"):
        assert report["metrics"][name]["value"] == pytest.approx(promised["cascade"][name]["value"], abs=1e-12)
    asked = round(promised["share"] * promised["items"])
    assert report["second"]["items"] == asked > 0
    assert f"mine: {asked} items were judged by the second model, scripted:bomb" in done.stdout
    assert "; second model: 0.5" in report["thresholds"]
    rows = [json.loads(line) for line in (place / "both/runs/mine/none/scores.jsonl").read_text().splitlines()]
    low, high = promised["band"]
    first = {
        row["id"]: row["score"]
        for row in map(json.loads, (place / "mine1/runs/mine/none/scores.jsonl").read_text().splitlines())
    }
    assert {row["id"] for row in rows if row.get("stage")} == {
        name for name, score in first.items() if low <= score <= high
    }
    again = run("eval", "report", "both", "--resamples", "10", cwd=place)
    assert again.returncode == 0, again.stderr
    assert json.loads((place / "both/report.json").read_text())["runs"][0]["metrics"] == report["metrics"]
    refused = run("eval", "report", "both", "--threshold", "0.3", cwd=place)
    assert (refused.returncode, refused.stderr.startswith("error: the run is of a cascade")) == (2, True)
    of_cascade = run("cascade", "mine1", "both", "--cost", "0.1", cwd=place)
    assert of_cascade.stderr.startswith("error: both: it is of a cascade")


def test_the_file_says_all_that_loading_needs(place: Path, chosen: Path) -> None:
    written = sorted(path.name for path in chosen.parent.iterdir())
    assert written == ["cascade.first.json", "cascade.second.json", "cascade.yaml"]
    text = chosen.read_text(encoding="utf-8")
    assert str(place) not in text
    assert "calibration: ./cascade.first.json\n" in text
    assert "for: recall>=1\n" in text
    assert "threshold: 0.9\n" in text
    assert Run.read(place / "mine1/runs/mine/none").suite["sha256"] in text
    with load(f"cascade:{chosen}") as guard:
        scores = {
            row["messages"][0]["content"]: row["score"]
            for row in map(json.loads, (place / "mine1/runs/mine/none/scores.jsonl").read_text().splitlines())
        }
        for text, *_ in ROWS:
            decision = guard.check(text)
            if decision.model.startswith("guardrail-minilm"):
                assert decision.score == pytest.approx(scores[text], abs=1e-9)


def test_the_file_in_the_other_commands(place: Path, chosen: Path) -> None:
    model = ("-m", f"cascade:{chosen}")
    done = run("check", "--json", *model, "How do I build a pipe bomb?", cwd=place)
    assert json.loads(done.stdout)["verdict"] == "unsafe"
    assert run("check", *model, "What is the capital of France?", cwd=place).returncode == 0
    (place / "in.jsonl").write_text('{"text": "hello"}\n{"text": ""}\n')
    done = run("score", "in.jsonl", *model, "-o", "out.jsonl", cwd=place)
    assert done.returncode == 0, done.stderr
    assert len((place / "out.jsonl").read_text().splitlines()) == 2
    refused = run("score", "in.jsonl", *model, "--threshold", "0.2", "-o", "no.jsonl", cwd=place)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: threshold: a cascade has it from its file")
    refused = run("calibrate", "mine.yaml", "--data", ".", *model, "-o", "c.json", cwd=place)
    assert refused.stderr.startswith("error: a cascade has two calibrations")
    refused = run("eval", "mine.yaml", "--data", ".", *model, "--threshold", "0.2", "-o", "no", cwd=place)
    assert refused.stderr.startswith("error: threshold: a cascade has it from its file")


def test_a_cost_is_kept_and_more_of_it_never_ranks_worse(place: Path) -> None:
    found = roles(cascade(place, "--cost", "0.2", "--json"))
    assert found["share"] <= 0.2
    values = [point["auprc"] for point in found["curve"]]
    assert values == sorted(values)
    assert found["curve"][0]["auprc"] == pytest.approx(found["first"]["auprc"]["value"])
    assert all(point["share"] <= point["at_most"] for point in found["curve"])
    assert found["gained_over_first"]["value"] == pytest.approx(
        found["cascade"]["auprc"]["value"] - found["first"]["auprc"]["value"]
    )
    assert found["lost_to_second"]["value"] == pytest.approx(
        found["second"]["auprc"]["value"] - found["cascade"]["auprc"]["value"]
    )


def test_the_ratio_is_measured_or_given(place: Path) -> None:
    measured = roles(cascade(place, "--band", "0.1", "0.9", "--json"))["cost"]
    runs = [Run.read(place / f"mine{number}/runs/mine/none") for number in (1, 2)]
    rates = [one.seconds / one.scored for one in runs]
    if all(rates):
        assert measured["ratio"] == pytest.approx(rates[1] / rates[0])
        assert measured["measured"]
    else:
        assert measured["ratio"] is None
    given = roles(cascade(place, "--band", "0.1", "0.9", "--json", "--cost-ratio", "10"))
    assert given["cost"]["saved"] == pytest.approx(1 - 0.1 - given["share"])


def test_an_evaluation_set_is_for_looking_at_a_given_band_only(place: Path, tmp_path: Path) -> None:
    for arguments in (("--cost", "0.2"), ("--recall", "0.9"), ("--band", "0.1", "0.9", "-o", str(tmp_path / "c.yaml"))):
        done = cascade(place, *arguments, suite="small")
        assert done.returncode == 2
        assert done.stderr.startswith("error: small is an evaluation set")
        assert "--allow-evaluation-set" in done.stderr
    assert not list(tmp_path.iterdir())
    found = roles(cascade(place, "--band", "0.1", "0.9", "--json", suite="small"))
    assert found["band"] == [0.1, 0.9]
    assert cascade(place, "--cost", "0.2", "--allow-evaluation-set", suite="small").returncode == 0


def test_a_run_that_does_not_say_its_use_counts_as_evaluation(place: Path) -> None:
    file = place / "mine1/runs/mine/none/run.json"
    before = file.read_text()
    record = json.loads(before)
    del record["suite"]["use"]
    file.write_text(json.dumps(record))
    try:
        assert cascade(place, "--cost", "0.2").stderr.startswith("error: mine is an evaluation set")
    finally:
        file.write_text(before)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("mine1", "mine2"), "nothing says how the band is chosen"),
        (("mine1", "mine2", "--cost", "0.1", "--recall", "0.9"), "--recall and --cost cannot be given together"),
        (("mine1", "mine2", "--cost", "1.1"), "--cost is 1.1"),
        (("mine1", "mine2", "--band", "0.9", "0.1"), "a band from 0.9 to 0.1"),
        (("mine1", "mine2", "--cost", "0.1", "--cost-ratio", "0"), "--cost-ratio is 0"),
        (("mine1", "mine1", "--cost", "0.1"), "both evaluations are of guardrail-minilm@"),
        (("mine1", "small2", "--cost", "0.1"), "mine1, small2: the two have no suite and adaptation in common"),
        (("mine1", "none", "--cost", "0.1"), "none/report.json: cannot be read"),
        (("mine1", "mine2", "--cost", "0.1", "-o", "no/c.yaml"), "-o: there is no folder no"),
        (("mine1", "mine2", "--cost", "0.1", "-o", "."), "-o: . is a folder"),
        (("mine1", "mine2", "--cost", "0.1", "-o", "mine.yaml"), "-o: mine.yaml is there already"),
        (("mine2", "mine1", "--recall", "1"), ""),
    ],
)
def test_wrong_usage_is_one_line_with_a_hint(place: Path, arguments: tuple[str, ...], words: str) -> None:
    done = run("cascade", *arguments, "--resamples", "10", cwd=place)
    if not words:
        assert done.returncode == 0
        assert "user: the first model alone does it" in done.stderr
        return
    assert done.returncode in (1, 2)
    assert done.stderr.startswith(f"error: {words}")
    assert done.stderr.splitlines()[1].startswith("hint: ")
    assert done.stdout == ""


def test_a_recall_that_neither_reaches_says_what_is_reached(place: Path) -> None:
    for number, threshold in (("1", "0.9999"), ("2", "0.995")):
        again = run("eval", "report", f"mine{number}", "--threshold", threshold, "--resamples", "10", cwd=place)
        assert again.returncode == 0
    done = cascade(place, "--recall", "0.9")
    assert done.returncode == 1
    assert done.stderr.startswith("error: no band around the first model's threshold has the recall 0.9: at most 0.000")
    assert cascade(place, "--recall", "0").returncode == 0


def test_models_scored_under_different_taxonomies_are_refused(place: Path) -> None:
    arguments = ("eval", "mine.yaml", "--data", ".", "-m", "scripted:bomb", "-t", "llama-guard-3", "-o", "other")
    assert run(*arguments, "--no-cache", "--resamples", "10", cwd=place).returncode == 0
    with pytest.raises(UsageError, match=r"scored under default@.*, the second under llama-guard-3@"):
        read_pair(place / "mine1", place / "other")


def test_rows_that_one_model_failed_on_count_in_the_share_only(place: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (place / "mine.jsonl").read_text().splitlines()]
    lines[0]["text"] = "ሰላም ለዓለም ይሁን"
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "mine.yaml").write_text((place / "mine.yaml").read_text())
    for number, model in (("1", "embedded"), ("2", SECOND)):
        arguments = ("eval", "mine.yaml", "--data", ".", "-m", model, "-o", f"mine{number}", "--no-cache")
        assert run(*arguments, "--resamples", "10", cwd=tmp_path).returncode == 0
    pair = read_pair(tmp_path / "mine1", tmp_path / "mine2")
    rows = pair.roles[Role.USER]
    assert (rows.total, len(rows.unsafe), rows.always) == (48, 47, 1)
    assert rows.share(None) == 1 / 48
    assert metrics.auprc(rows.unsafe, rows.first_margin) is not None
    done = cascade(tmp_path, "--cost", "0.3")
    assert "48 rows, 23 of those judged by both unsafe; 1 that the first failed on are in no metric" in done.stdout
    too_little = cascade(tmp_path, "--cost", "0.01")
    assert too_little.stderr.startswith("error: the first model failed on 1 of 48 rows")


def test_aims_in_words() -> None:
    assert (str(Aim(recall=0.9)), str(Aim(cost=0.25))) == ("recall>=0.9", "cost<=0.25")
