"""Every benchmark is a script that explains itself, and its example is taken by its parser."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

from helpers.repository import ROOT

SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))
DOCUMENT = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_benchmark_explains_itself_and_documents_name_its_options(
    script: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"benchmarks.{script.stem}").main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: python benchmarks/{script.name}")
    (example,) = re.findall(r"Example: (.*?)\. Figures: docs/benchmarks.md", " ".join(text.split()))
    pattern = rf"python benchmarks/{script.name}(?:[^\n`\\]|\\\n)*"
    documented = re.findall(pattern, DOCUMENT)
    assert documented, f"docs/benchmarks.md does not run {script.name}"
    for line in (example, *documented):
        flags = [word for word in shlex.split(line.replace("\\\n", " ")) if word.startswith("--")]
        assert [flag for flag in flags if not re.search(rf"^  {flag}\b", text, re.M)] == [], line
