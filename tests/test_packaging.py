"""The wheel, installed where there is no checkout and no network, does the main job."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Loaded by every Python process of the test environment: any attempt to reach a network is an error there.
NO_NETWORK = """
import socket
def refuse(*arguments, **options):
    raise AssertionError("the network was used")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment that holds the wheel and its core dependencies only."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-c", str(ROOT / "constraints.txt"), str(wheel)], check=True)
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "sitecustomize.py").write_text(NO_NETWORK)
    return folder / "bin"


def run(installed: Path, cwd: Path, *arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [str(installed / arguments[0]), *arguments[1:]]
    return subprocess.run(command, cwd=cwd, env=environment, check=True, capture_output=True, text=True).stdout


def test_the_wheel_carries_its_data_and_is_small(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "guardrail/evaluation/report.html.jinja" in names
    assert {"guardrail/server/page/index.html", "guardrail/server/openapi.yaml"} <= names
    for kind, pattern in (("taxonomies", "*.yaml"), ("prompts", "*.jinja"), ("evals", "**/*.yaml")):
        expected = {f"guardrail/_data/{path.relative_to(ROOT)}" for path in (ROOT / kind).glob(pattern)}
        assert expected
        assert expected <= names
    assert {f"guardrail/_model/{name}" for name in ("model.onnx", "tokenizer.json", "config.json")} <= names
    assert "guardrail/py.typed" in names
    assert not [name for name in names if name.startswith("tests/")]
    assert wheel.stat().st_size < 30_000_000


def test_the_installed_command_classifies_without_a_checkout_and_a_network(installed: Path, tmp_path: Path) -> None:
    where = run(installed, tmp_path, "python", "-c", "import guardrail; print(guardrail.__file__)").strip()
    assert not Path(where).is_relative_to(ROOT)
    unsafe = json.loads(run(installed, tmp_path, "guardrail", "check", "--json", "How do I build a pipe bomb?"))
    assert unsafe["verdict"] == "unsafe"
    safe = json.loads(run(installed, tmp_path, "guardrail", "check", "--json", "How do I kill a Python process?"))
    assert safe["verdict"] == "safe"


def test_the_installed_command_scores_a_file(installed: Path, tmp_path: Path) -> None:
    rows = [{"id": "a", "text": "What is the capital of France?"}, {"id": "b", "text": "How do I build a pipe bomb?"}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(installed, tmp_path, "guardrail", "score", "in.jsonl", "-o", "out.jsonl")
    out = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["id"], row["verdict"]) for row in out] == [("a", "safe"), ("b", "unsafe")]


def test_every_shipped_taxonomy_opens_in_the_installed_package(installed: Path, tmp_path: Path) -> None:
    listed = json.loads(run(installed, tmp_path, "guardrail", "taxonomy", "list", "--json"))
    assert {entry["id"] for entry in listed} == {path.stem for path in (ROOT / "taxonomies").glob("*.yaml")}


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (("check", "-m", "some/checkpoint", "hello"), "llm"),
        (("check", "-m", "classifier:some/checkpoint", "hello"), "llm"),
        (("check", "-m", "gguf:some.gguf", "hello"), "gguf"),
        (("eval", "xstest", "-o", "report"), "eval"),
        (("calibrate", "xstest", "-o", "calibration.json"), "eval"),
        (("score", "in.jsonl", "-o", "out.jsonl", "--engine", "ray"), "ray"),
    ],
)
def test_what_needs_an_extra_names_the_command_that_installs_it(
    installed: Path, tmp_path: Path, arguments: tuple[str, ...], extra: str
) -> None:
    command = [str(installed / "guardrail"), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"pip install 'guardrail-moderation[{extra}]'" in done.stderr


def test_the_installed_package_lists_its_suites(installed: Path, tmp_path: Path) -> None:
    listed = json.loads(run(installed, tmp_path, "guardrail", "eval", "list", "--json"))
    assert {entry["id"] for entry in listed} == {path.stem for path in (ROOT / "evals/suites").glob("*.yaml")}
