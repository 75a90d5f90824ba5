"""The paper-to-code map: it leaves out nothing of the paper, and every link meets its object."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from helpers.paper_map import COMMAND, PAGE, files, find_line, objects, rewritten, rows
from helpers.repository import ROOT

TEXT = PAGE.read_text(encoding="utf-8")
EQUATIONS, TABLES, FIGURES = range(1, 24), range(1, 5), range(1, 4)
# Those that ask for something: 1 and 2 introduce, 6.3 and 7 look ahead.
SECTIONS = [*(f"3.{n}" for n in range(1, 8)), *(f"4.{n}" for n in range(1, 4)),
            *(f"5.{n}" for n in range(1, 6)), "6.1", "6.2"]  # fmt: skip


def covered(kind: str) -> set[int]:
    """The numbers that the first column names, as in `Eq. 6-9` or `Table 4`."""
    found = set()
    for cells in rows(TEXT):
        for first, last in re.findall(rf"{kind} (\d+)(?:-(\d+))?", cells[0]):
            found |= set(range(int(first), int(last or first) + 1))
    return found


def test_every_equation_table_figure_and_section_has_a_row() -> None:
    assert covered(r"Eq\.") == set(EQUATIONS)
    assert covered("Table") == set(TABLES)
    assert covered("Figure") == set(FIGURES)
    named = {number for cells in rows(TEXT) for number in re.findall(r"\b\d\.\d\b", cells[0])}
    assert named == set(SECTIONS)


def test_the_equations_tables_figures_and_sections_are_those_of_the_paper(shared: Path) -> None:
    papers = sorted((shared / "paper").glob("*.txt"))
    if not papers:
        pytest.skip("the paper's text is absent")
    paper = papers[0].read_text(encoding="utf-8")
    assert {int(n) for n in re.findall(r"\((\d+)\)\$\$$", paper, re.M)} == set(EQUATIONS)
    assert {int(n) for n in re.findall(r"^Table (\d)\.", paper, re.M)} == set(TABLES)
    assert {int(n) for n in re.findall(r"^Figure (\d)\.", paper, re.M)} == set(FIGURES)
    headings = re.findall(r"^([3-6]\.\d)\. [A-Z]", paper, re.M)
    assert headings == [*SECTIONS, "6.3"]


def test_every_link_leads_to_the_line_where_its_object_is_defined() -> None:
    assert rewritten(TEXT) == TEXT, f"lines have moved; `{COMMAND}` puts docs/paper.md right"


def test_every_row_of_code_names_an_object_and_a_test_that_exists() -> None:
    for cells in rows(TEXT):
        assert all(list(ROOT.glob(file)) for file in files(cells)), cells
        assert objects(cells) or not files(cells)[0].endswith(".py"), f"names no object: {cells}"
        for test in re.findall(r"`([^`]+)`", cells[4]):
            assert (ROOT / test).is_file(), cells
    assert len(rows(TEXT)) > 60


def test_a_line_that_has_moved_is_put_right_and_a_file_by_hand_becomes_a_link() -> None:
    file = "signfuse_dist/model/losses.py"
    line = find_line(file, "distance")
    right = f"| Eq. 22 | a | [model/losses.py:{line}](../{file}#L{line}) | `distance` | |"
    assert rewritten(right.replace(str(line), str(line + 7))) == right
    assert rewritten(f"| Eq. 22 | a | `{file}` | `distance` | |") == right
    assert (ROOT / file).read_text().split("\n")[line - 1].startswith("def distance(")


def test_two_objects_of_a_row_are_two_links_and_other_lines_stay() -> None:
    row = "| s | w | `signfuse_dist/objective.py` | `prepare`, `set_mode` | |"
    text = f"# Title\n\n| a | b |\n|---|---|\n{row}"
    *before, row = rewritten(text).split("\n")
    assert before == text.split("\n")[:-1]
    assert len(re.findall(r"\[[^]]*:\d+\]\(\.\./signfuse_dist/objective\.py#L\d+\)", row)) == 2


def test_a_key_of_a_configuration_file_is_found_where_it_stands() -> None:
    file = "configs/experiment/phoenix14t.yaml"
    line = find_line(file, "train.gradient_clipping")
    assert (ROOT / file).read_text().split("\n")[line - 1].strip() == "gradient_clipping: 1.0"


def test_clipping_and_gpus_of_table_2_are_those_of_the_files_that_the_map_names() -> None:
    for corpus in ("phoenix14t", "csl_daily", "how2sign"):
        experiment = yaml.safe_load((ROOT / f"configs/experiment/{corpus}.yaml").read_text())
        assert experiment["train"]["gradient_clipping"] == 1.0
    assert yaml.safe_load((ROOT / "launch/node_zero2.yaml").read_text())["num_processes"] == 4


@pytest.mark.parametrize(
    "row",
    [
        "| a | b | `signfuse_dist/model/losses.py` | `no_such_loss` | |",
        "| a | b | `configs/stage/finetune.yaml` | `no_such_key` | |",
    ],
)
def test_an_object_that_is_gone_is_named(row: str) -> None:
    with pytest.raises(LookupError, match="no_such"):
        rewritten(row)
