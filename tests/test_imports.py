"""What importing costs, and that the public names are what they say."""

from __future__ import annotations

import subprocess
import sys

import pytest

import guardrail

HEAVY = ["torch", "transformers", "onnxruntime", "tokenizers", "numpy", "datasets", "sklearn", "ray", "matplotlib"]
HEAVY += ["fsspec", "pandas", "pyarrow", "rich", "yaml", "jinja2", "scipy", "sqlite3"]


def loaded(code: str) -> set[str]:
    """The modules that are loaded after running the code in a new process."""
    report = f"{code}\nimport sys; sys.stderr.write(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", report], check=True, capture_output=True, text=True)
    return {name.partition(".")[0] for name in done.stderr.split()}


@pytest.mark.parametrize(
    "code",
    [
        "import guardrail",
        "from guardrail.cli import run; run(['--help'])",
        "from guardrail.cli import run; run(['check', '--help'])",
        "from guardrail.cli import run; run(['score', '--help'])",
        "from guardrail.cli import run; run(['taxonomy', '--help'])",
        "from guardrail.cli import run; run(['prompt', '--help'])",
        "from guardrail.cli import run; run(['eval', '--help'])",
        "from guardrail.cli import run; run(['eval', 'run', '--help'])",
        "from guardrail.cli import run; run(['calibrate', '--help'])",
    ],
)
def test_importing_and_help_load_nothing_heavy(code: str) -> None:
    assert loaded(code).isdisjoint(HEAVY)


def test_importing_the_package_loads_only_itself() -> None:
    assert not {name for name in loaded("import guardrail") if name in {"typer", "json"}}


def test_checking_with_the_embedded_model_needs_no_torch() -> None:
    names = loaded("import guardrail; guardrail.load().check('hello')")
    assert "onnxruntime" in names
    assert names.isdisjoint({"torch", "transformers", "rich", "typer"})


def test_public_names_are_sorted_and_exist() -> None:
    assert list(guardrail.__all__) == sorted(guardrail.__all__)
    for name in guardrail.__all__:
        assert getattr(guardrail, name).__name__ == name or name == "load"
    assert set(guardrail.__all__) <= set(dir(guardrail))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'lod'"):
        guardrail.lod  # noqa: B018
