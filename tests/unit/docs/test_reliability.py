"""What the page on reliability says was tried is there: every test that it names."""

from __future__ import annotations

import re

from helpers.repository import ROOT

PAGE = ROOT / "docs" / "reliability.md"


def test_every_test_that_the_page_names_is_defined_in_the_file_it_names() -> None:
    text = PAGE.read_text(encoding="utf-8")
    files = set(re.findall(r"`(tests/[\w/]+\.py)`", text))
    assert len(files) > 10
    assert sorted(name for name in files if not (ROOT / name).is_file()) == []
    for row in text.splitlines():
        names = re.findall(r"`(test_\w+)`", row)
        sources = [(ROOT / name).read_text() for name in re.findall(r"`(tests/[\w/]+\.py)`", row)]
        if not sources:  # "the same file": any that the page names
            sources = [(ROOT / name).read_text() for name in files]
        for name in names:
            assert any(f"def {name}(" in source for source in sources), name
