"""The documents name only what exists: commands, flags, files, objects, configuration keys."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import re
import shlex
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import yaml

from helpers.paper_map import find, tree
from helpers.repository import ROOT
from signfuse_dist import cli
from signfuse_dist.corpora import CORPORA, csl_daily, how2sign, phoenix14t
from signfuse_dist.data.manifest import PackConfig, Packing
from signfuse_dist.data.shard import EncodedClip, write_shard
from signfuse_dist.evaluation.protocols import PRESETS
from signfuse_dist.experiment import load_run
from signfuse_dist.sections import SECTIONS
from signfuse_dist.skeleton import JOINT_LAYOUT, NUM_JOINTS

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")),
             *sorted((ROOT / "shards").glob("*.md"))]  # fmt: skip
each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_PATH = re.compile(
    r"(?<![\w/.-])(?:configs|launch|ds_configs|slurm|docs|shards|tests|benchmarks|signfuse_dist)"
    r"/[\w./*<>{}-]+"
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
    lines = [line for block in blocks(document) for line in block.replace("\\\n", " ").split("\n")]
    return [*lines, *spans(document)]


def flags(words: str) -> list[str]:
    return re.findall(r"(?<!\S)--[\w-]+", words)


@cache
def subcommands() -> dict[str, set[str]]:
    """The flags of each subcommand; those of a group stand as `bench attention`."""
    return _below(cli.build_parser(), "")


def _below(parser: argparse.ArgumentParser, before: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                found[before + name] = set(sub._option_string_actions)
                found.update(_below(sub, f"{before}{name} "))
    return found


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
            if any(known.startswith(f"{name} ") for known in subcommands()) and rest.split():
                what, *others = rest.split()
                name, rest = f"{name} {what}", " ".join(others)
            assert name in subcommands(), f"no `signfuse {name}`: {line}"
            unknown = set(flags(rest)) - subcommands()[name]
            assert not unknown, f"`signfuse {name}` has no {unknown}: {line}"


def command_words(line: str) -> list[str] | None:
    """The words of `signfuse` that a line of a block runs, itself or through a launcher.

    None where a line runs another command, or leaves a part of itself out.
    """
    if line.split("#")[0].split()[:1] not in (["signfuse"], ["accelerate"], ["sbatch"]):
        return None
    words = shlex.split(line, comments=True)
    if words[0] == "sbatch":
        (script,) = [word for word in words if word.startswith("slurm/")]
        assert (ROOT / script).is_file(), line
        commands = {"slurm/pack.sh": "pack", **{f"slurm/stage{n}.sh": "train" for n in (1, 2, 3)}}
        if script not in commands:
            return None
        words = [commands[script], *words[words.index(script) + 1 :]]
    elif words[0] == "accelerate":
        assert words[1:3] == ["launch", "--config_file"], line
        assert (ROOT / words[3]).is_file(), line
        module = words.index("-m") + 1
        as_train = words[module] == "signfuse_dist.train"
        words = [*(["train"] if as_train else []), *words[module + 1 :]]
    else:
        words = words[1:]
    return None if "..." in words else ["1" if word == "N" else word for word in words]


@each_document
def test_every_line_of_a_block_that_runs_signfuse_is_taken_by_its_parser(
    document: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for block in blocks(document, ""):
        for line in block.replace("\\\n", " ").splitlines():
            words = command_words(line)
            try:
                options = cli.parse(cli.build_parser(), words) if words else None
            except SystemExit:
                pytest.fail(f"{document.name}: {line}\n{capsys.readouterr().err}")
            if getattr(options, "launch", None) is not None:
                assert (ROOT / options.launch).is_file(), line


@pytest.mark.parametrize(
    "line",
    [
        "signfuse pack table --root a --split b",
        "sbatch slurm/pack.sh table --rot a",
        "accelerate launch --config_file launch/node_zero2.yaml -m signfuse_dist.cli evaluate",
    ],
)
def test_a_command_that_the_parser_refuses_would_be_found(line: str) -> None:
    with pytest.raises(SystemExit):
        cli.parse(cli.build_parser(), command_words(line))


@each_document
def test_every_module_that_a_document_runs_exists_with_its_flags(document: Path) -> None:
    for line in commands(document):
        for module, rest in re.findall(r"-m (signfuse_dist[.\w]*)(.*)", line):
            place = ROOT / Path(*module.split("."))
            path = place / "__main__.py" if place.is_dir() else place.with_suffix(".py")
            assert path.is_file(), f"no module {module}: {line}"
            if module != "signfuse_dist.cli":
                unknown = [f for f in flags(rest) if f'"{f}"' not in path.read_text()]
                assert not unknown, f"{module} has no {unknown}: {line}"


@each_document
def test_every_file_that_a_document_names_exists(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    written = set(re.findall(r"^```\w+\n# (\S+)$", text, re.MULTILINE))  # by the page itself
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    for word in _PATH.findall(text):
        name = word.rstrip(".")
        made_by_a_run = (name.startswith("shards/") and not name.endswith(".md")) or name in written
        if f"/{name}" in ignored:  # a file of the user's own
            continue
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
        if not anchor:
            continue
        if re.fullmatch(r"L\d+", anchor):  # a line of code
            assert int(anchor[1:]) <= len(path.read_text(encoding="utf-8").splitlines()), target
            continue
        titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        slugs = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
        assert anchor in slugs, f"{document.name} links to {target}"


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
            if section in keys and key not in ("py", "yaml", "json", "safetensors", "tsv"):
                assert key in keys[section], f"no {section}.{key}: {line}"


@each_document
def test_every_object_that_a_document_names_by_its_full_name_exists(document: Path) -> None:
    for name in spans(document):
        if re.fullmatch(r"signfuse_dist(\.\w+)+", name):
            assert resolve(name) is not None, f"{document.name} names {name}"


def test_the_table_of_departures_is_exactly_the_docstrings_that_state_one() -> None:
    text = (ROOT / "docs" / "departures.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"\| `(signfuse_dist\.[\w.]+)` \|$", text, re.MULTILINE))
    stated = set()
    for path in sorted((ROOT / "signfuse_dist").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        stated |= {f"{module}{name}" for name in _departures(tree(path), "")}
    # A method's own departure may stand in the table under its class.
    missing = {s for s in stated if s not in listed and s.rpartition(".")[0] not in listed}
    assert not missing, f"not in the table of docs/departures.md: {missing}"
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


def _first_cells(text: str) -> list[str]:
    """Names in the first column of the tables of ``text``."""
    rows = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row)]


def _packing_sources() -> str:
    folders = (ROOT / "signfuse_dist" / name for name in ("corpora", "data"))
    return "".join(p.read_text() for folder in folders for p in sorted(folder.rglob("*.py")))


def test_every_reason_for_dropping_a_row_is_one_that_the_packer_gives() -> None:
    table = (ROOT / "shards" / "table.md").read_text(encoding="utf-8")
    csl = (ROOT / "shards" / "csl_daily.md").read_text(encoding="utf-8")
    reasons = _first_cells(table[table.index("## Rows that are dropped") : table.index("## Orph")])
    own = _first_cells(csl[csl.index("| reason |") : csl.index("## Counts")])
    assert len(reasons) > 10
    assert "no annotation" in own
    for reason in (*reasons, *own):
        assert re.search(rf'f?"{reason}[:" ]', _packing_sources()), f"nothing gives {reason!r}"


def test_the_kinds_of_orphans_that_are_described_are_those_that_are_listed() -> None:
    text = (ROOT / "shards" / "table.md").read_text(encoding="utf-8")
    listed = set(re.findall(r'Orphan\(f?"([a-z ]+):', _packing_sources()))
    table = text[text.index("## Orphans") : text.index("## Clips that are flagged")]
    assert set(_first_cells(table)) == listed


@pytest.mark.parametrize("corpus", ["phoenix14t", "csl_daily", "how2sign"])
def test_the_page_of_a_corpus_packs_what_its_configuration_reads(corpus: str) -> None:
    page = ROOT / "shards" / f"{corpus}.md"
    data = load_run(str(ROOT / f"configs/experiment/{corpus}.yaml"), "finetune").data
    assert (data.corpus, data.shards) == (corpus, f"shards/{corpus}")
    assert data.frame_size == PackConfig().frame_size
    packed = {}
    for line in blocks(page)[1].splitlines():
        if line.startswith("signfuse pack"):
            options = cli.parse(cli.build_parser(), line.split()[1:])
            assert options.corpus == corpus
            packed[options.split] = (str(options.out), options.fps)
    splits = (data.train_split, data.dev_split, data.test_split)
    assert packed == {s: (f"{data.shards}/{s}", data.fps) for s in splits}


def test_every_corpus_has_a_page_and_its_published_counts() -> None:
    for corpus in CORPORA:
        page = ROOT / "shards" / f"{corpus.removesuffix('_precut')}.md"
        assert f"`{corpus}`" in page.read_text(encoding="utf-8")
    for module in (phoenix14t, csl_daily, how2sign):
        text = (ROOT / "shards" / f"{module.NAME}.md").read_text(encoding="utf-8")
        counts = re.findall(r"^\| (\w+) \| ([\d,]+) \|", text[text.index("## Counts") :], re.M)
        found = {split: int(count.replace(",", "")) for split, count in counts}
        assert found == {split: count for split, count in module.ROWS.items() if count}


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
