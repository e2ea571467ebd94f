"""pytest-xdist runs nothing where its workers collect different names, and the workers start at different moments."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

LATER = "import time\n_now = time.time\ntime.time = lambda: _now() + 100_000\n"


def test_names_depend_neither_on_the_clock_nor_on_hashes(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    (tmp_path / "later.py").write_text(LATER, encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-n0", "-p", "later", "-p", "no:cacheprovider"],
        cwd=request.config.rootpath,
        env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "1", "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    # Files may have been named in another order; within a file the order must be the same.
    here = sorted((item.nodeid for item in request.session.items), key=_file)
    assert sorted((name for name in done.stdout.splitlines() if name in set(here)), key=_file) == here


def _file(name: str) -> str:
    return name.split("::")[0]
