"""The Python examples in the documentation run, and what it links to exists."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Examples that load a Llama checkpoint cannot run here; test_backend_llama*.py run the same calls on small ones.
CHECKPOINTS = ("meta-llama/", "./my-guard")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```(python|yaml)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    for file in (ROOT / "examples").glob("*.jsonl"):
        shutil.copy(file, tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for kind, code in blocks:
        if kind == "yaml" and (identity := re.search(r"^id: (\S+)$", code, re.MULTILINE)):
            Path(f"{identity[1]}.yaml").write_text(code, encoding="utf-8")
        elif kind == "python" and not any(name in code for name in CHECKPOINTS):
            exec(compile(code, f"{page.name}", "exec"), names)
    assert page.stat().st_size > 500


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "MODEL_CARD.md"], ids=lambda page: page.name)
def test_the_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if not (page.parent / link).exists()]
    assert missing == []
