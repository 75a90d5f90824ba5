"""The documents name only what exists: commands, flags, files, objects, configuration keys."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import re
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import yaml

from signfuse_dist import cli
from signfuse_dist.config_load import SECTIONS, load_run
from signfuse_dist.data.manifest import PackConfig, Packing
from signfuse_dist.data.shard import EncodedClip, write_shard
from signfuse_dist.evaluation.presets import PRESETS
from signfuse_dist.skeleton import JOINT_LAYOUT, NUM_JOINTS

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")),
             *sorted((ROOT / "shards").glob("*.md"))]  # fmt: skip
each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_PATH = re.compile(
    r"(?<![\w/.-])(?:configs|launch|ds_configs|slurm|docs|shards|tests|signfuse_dist)/[\w./*<>{}-]+"
)
_PLACEHOLDER = re.compile(r"[A-Z]{3,}|[*<>{}]|\.\.\.")


def blocks(document: Path, language: str | None = None) -> list[str]:
    found = _FENCE.findall(document.read_text(encoding="utf-8"))
    return [text for kind, text in found if language in (None, kind)]


def spans(document: Path) -> list[str]:
    """Inline code, on one line each."""
    rest = _FENCE.sub("", document.read_text(encoding="utf-8"))
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", rest)]


def commands(document: Path) -> list[str]:
    """Lines of code, those that a backslash continues joined."""
    lines = [line for block in blocks(document) for line in
             block.replace("\\\n", " ").split("\n")]  # fmt: skip
    return [*lines, *spans(document)]


def flags(words: str) -> list[str]:
    return re.findall(r"(?<!\S)--[\w-]+", words)


@cache
def subcommands() -> dict[str, set[str]]:
    parser = cli._parser()
    (action,) = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return {name: options_of(sub) for name, sub in action.choices.items()}


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    """The options of a subcommand, and of those that stand below it."""
    nested = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    below = [options_of(sub) for action in nested for sub in action.choices.values()]
    return set(parser._option_string_actions).union(*below)


@cache
def tree(module: Path) -> ast.Module:
    return ast.parse(module.read_text(encoding="utf-8"))


def find(node: ast.AST, names: list[str]) -> ast.AST | None:
    """The class, function, variable or field that ``names`` lead to, from a module."""
    for name in names:
        found = None
        for child in ast.iter_child_nodes(node):
            targets = child.targets if isinstance(child, ast.Assign) else [
                getattr(child, "target", None)
            ]  # fmt: skip
            assigned = [t.id for t in targets if isinstance(t, ast.Name)]
            if getattr(child, "name", None) == name or name in assigned:
                found = child
        if found is None:
            return None
        node = found
    return node


def resolve(dotted: str) -> ast.AST | None:
    """The object of a dotted name that begins with ``signfuse_dist``."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        for path in (Path(*parts[:end]).with_suffix(".py"), Path(*parts[:end]) / "__init__.py"):
            if (ROOT / path).is_file():
                return find(tree(ROOT / path), parts[end:])
    return None


@each_document
def test_every_subcommand_and_flag_that_a_document_shows_exists(document: Path) -> None:
    for line in commands(document):
        for found in re.finditer(r"(?<![\w/])(?:signfuse|signfuse_dist\.cli) ([a-z]+)(.*)", line):
            name, rest = found.groups()
            assert name in subcommands(), f"no `signfuse {name}`: {line}"
            unknown = set(flags(rest)) - subcommands()[name]
            assert not unknown, f"`signfuse {name}` has no {unknown}: {line}"


@each_document
def test_every_module_that_a_document_runs_exists_with_its_flags(document: Path) -> None:
    for line in commands(document):
        for module, rest in re.findall(r"-m (signfuse_dist[.\w]*)(.*)", line):
            path = ROOT / Path(*module.split(".")).with_suffix(".py")
            assert path.is_file(), f"no module {module}: {line}"
            if module != "signfuse_dist.cli":
                unknown = [f for f in flags(rest) if f'"{f}"' not in path.read_text()]
                assert not unknown, f"{module} has no {unknown}: {line}"


@each_document
def test_every_file_that_a_document_names_exists(document: Path) -> None:
    for word in _PATH.findall(document.read_text(encoding="utf-8")):
        name = word.rstrip(".")
        made_by_a_run = name.startswith("shards/") and not name.endswith(".md")
        if not _PLACEHOLDER.search(name) and not made_by_a_run:
            assert (ROOT / name).exists(), f"{document.name} names {name}, which does not exist"


@each_document
def test_every_link_leads_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", document.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        path = document.parent / name if name else document
        assert path.exists(), f"{document.name} links to {target}"
        titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        slugs = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
        assert not anchor or anchor in slugs, f"{document.name} links to {target}"


@each_document
def test_every_make_target_that_a_document_names_exists(document: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in commands(document):
        for name in re.findall(r"^make (?:PYTHON=\S+ )?([a-z-]+)", line):
            assert name in targets, f"no `make {name}`: {line}"


@each_document
def test_every_configuration_key_that_a_document_names_exists(document: Path) -> None:
    keys = {name: {f.name for f in dataclasses.fields(cls)} for name, cls in SECTIONS.items()}
    for line in commands(document):
        for section, key in re.findall(r"(?<![\w./])([a-z]+)\.([a-z_]+)(?![\w./(])", line):
            if section in keys and key not in ("py", "yaml", "json"):
                assert key in keys[section], f"no {section}.{key}: {line}"


@each_document
def test_every_object_that_a_document_names_by_its_full_name_exists(document: Path) -> None:
    for name in spans(document):
        if re.fullmatch(r"signfuse_dist(\.\w+)+", name):
            assert resolve(name) is not None, f"{document.name} names {name}"


def test_every_object_of_the_paper_map_is_in_its_file() -> None:
    rows = 0
    for line in (ROOT / "docs" / "paper.md").read_text(encoding="utf-8").split("\n"):
        cells = [re.findall(r"`([^`]+)`", cell) for cell in line.split("|")[1:-1]]
        if len(cells) == 5 and cells[2] and cells[2][0].endswith(".py"):
            rows += 1
            assert cells[3], f"names no object: {line}"
            for name in cells[3]:
                assert find(tree(ROOT / cells[2][0]), name.split(".")), f"no {name}: {line}"
    assert rows > 30


def test_the_table_of_departures_is_exactly_the_docstrings_that_state_one() -> None:
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"\| `(signfuse_dist\.[\w.]+)` \|$", text, re.MULTILINE))
    stated = set()
    for path in sorted((ROOT / "signfuse_dist").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        stated |= {f"{module}{name}" for name in _departures(tree(path), "")}
    # A method's own departure may stand in the table under its class.
    missing = {s for s in stated if s not in listed and s.rpartition(".")[0] not in listed}
    assert not missing, f"not in the table of docs/training.md: {missing}"
    assert not listed - stated, f"no docstring states a departure: {listed - stated}"


def _departures(node: ast.AST, name: str) -> list[str]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    own = [name] if isinstance(node, kinds) and "Paper:" in (ast.get_docstring(node) or "") else []
    inside = [child for child in ast.iter_child_nodes(node) if isinstance(child, kinds)]
    return own + [n for child in inside for n in _departures(child, f"{name}.{child.name}")]


def test_the_configuration_files_of_the_readme_are_accepted(tmp_path: Path) -> None:
    for part in ("model", "stage"):
        shutil.copytree(ROOT / "configs" / part, tmp_path / "configs" / part)
    data, experiment = [text.replace("NAME", "mine") for text in blocks(DOCUMENTS[0], "yaml")]
    assert "shards" in yaml.safe_load(data)
    for part, text in (("data", data), ("experiment", experiment)):
        (tmp_path / "configs" / part).mkdir()
        (tmp_path / "configs" / part / "mine.yaml").write_text(text, encoding="utf-8")
    run = load_run(str(tmp_path / "configs" / "experiment" / "mine.yaml"), "finetune")
    assert (run.name, run.data.frame_size) == ("mine", PackConfig().frame_size)


def test_every_metric_preset_is_described() -> None:
    text = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    table = text[text.index("## Presets") : text.index("## Signatures")]
    assert set(re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE)) == set(PRESETS)


def test_every_reason_for_dropping_a_row_is_one_that_the_packer_gives() -> None:
    text = (ROOT / "shards" / "table.md").read_text(encoding="utf-8")
    table = text[text.index("## Rows that are dropped") : text.index("## Clips that are flagged")]
    reasons = [r for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
               for r in re.findall(r"`([^`]+)`", row)]  # fmt: skip
    source = "".join(p.read_text() for p in (ROOT / "signfuse_dist" / "data").glob("*.py"))
    assert len(reasons) > 10
    for reason in reasons:
        assert re.search(rf'f?"{reason}[:" ]', source), f"nothing drops a row for {reason!r}"


def test_the_example_reads_a_shard_with_stock_webdataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = blocks(ROOT / "docs" / "shards.md", "python")
    (named,) = re.findall(r'"(shards/.*\.tar)"', example)
    shard = tmp_path / named
    shard.parent.mkdir(parents=True)
    packing = Packing("table", "t.tsv", "dev", JOINT_LAYOUT, "synthetic", "1", PackConfig(), "")
    black = simplejpeg.encode_jpeg(np.zeros((16, 16, 3), dtype=np.uint8))
    record = {"id": "a.b", "text": "a", "num_frames": 3, "signer": None, "flags": []}
    record["failed_frames"] = 0
    pose, mask = np.zeros((3, NUM_JOINTS, 2), np.float32), np.ones((3, NUM_JOINTS), bool)
    write_shard(shard, [EncodedClip(record, [black] * 3, pose, mask)], packing)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "docs/shards.md", "exec"), {})
    assert capsys.readouterr().out == "a%2Eb 3 (16, 16, 3) (3, 75, 2) 1.0\n"
