"""Damaged and hostile annotations of every corpus: an error by name, and nothing else happens."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from helpers.little_clips import write_table
from helpers.published_trees import (
    PHOENIX,
    Still,
    csl_entry,
    how2sign_row,
    how2sign_table,
    phoenix_row,
    write_csl,
    write_how2sign,
    write_phoenix,
)
from signfuse_dist.corpora import Corpus, CorpusError, key_of, read_corpus
from signfuse_dist.data.pack import PackConfig, pack
from signfuse_dist.errors import UserError

ENTRIES = [csl_entry(f"S{i}_P0001_T00", [*"你好", "，", str(i)]) for i in range(4)]


def table(root: Path) -> Path:
    root.mkdir()
    rows = [(f"clip{i}", f"v/{i}.mp4", f'text "{i}"', i, i + 1) for i in range(4)]
    return write_table(root / "t.tsv", rows, ("id", "video", "text", "start", "end"))


def phoenix(root: Path) -> Path:
    rows = [phoenix_row(f"clip{i}", f'text "{i}') for i in range(4)]
    write_phoenix(root, "dev", rows, {})
    return root / PHOENIX / "annotations/manual/PHOENIX-2014-T.dev.corpus.csv"


def how2sign(root: Path) -> Path:
    rows = [how2sign_row(f"-v_{i}", i, i, i + 1, f'"a ""{i}"""') for i in range(4)]
    write_how2sign(root, "val", rows, {})
    return how2sign_table(root, "val")


def csl_splits(root: Path) -> Path:
    return csl(root) / "split_1.txt"


def csl_map(root: Path) -> Path:
    labels = csl(root)
    (labels / "csl2020ct_v2.pkl").unlink()
    return labels / "video_map.txt"


def csl_pickle(root: Path) -> Path:
    return csl(root) / "csl2020ct_v2.pkl"


def csl(root: Path) -> Path:
    return write_csl(root, {str(e["name"]): "dev" for e in ENTRIES}, ENTRIES, {})


CORPORA: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "table": (table, "table", "dev"),
    "phoenix14t": (phoenix, "phoenix14t", "dev"),
    "how2sign": (how2sign, "how2sign", "val"),
    "how2sign_precut": (how2sign, "how2sign_precut", "val"),
    "csl_daily splits": (csl_splits, "csl_daily", "dev"),
    "csl_daily map": (csl_map, "csl_daily", "dev"),
    "csl_daily pickle": (csl_pickle, "csl_daily", "dev"),
}
every_corpus = pytest.mark.parametrize("case", CORPORA.values(), ids=CORPORA.keys())

_PIECES = st.sampled_from(
    [
        b"|",
        b"\t",
        b",",
        b";",
        b'"',
        b'""',
        b"\n",
        b"\r",
        b"\r\n",
        b"\0",
        b"..",
        b"../../x",
        b"/",
        b"/etc/passwd",
        b"\\",
        b"\xff",
        b"\xef\xbb\xbf",
        b"-1",
        b"nan",
        b"inf",
        b"1e400",
        b"-",
        "\u2028".encode(),
        "\u202e".encode(),
        b"\x1b[2J",
        b"x" * 300,
        b"train",
        b"dev",
        b" ",
    ]
)
_EDITS = st.lists(
    st.tuples(st.integers(0, 10**6), st.integers(0, 8), _PIECES | st.binary(max_size=6)),
    min_size=1,
    max_size=12,
)


def edited(content: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    """Replace a few bytes at each place by others."""
    for place, count, new in edits:
        start = place % (len(content) + 1)
        content = content[:start] + new + content[start + count :]
    return content


@contextmanager
def tree(write: Callable[[Path], Path], content: bytes | None, edits: object) -> Iterator[Path]:
    """A corpus in a folder of its own, its annotation damaged, beside a folder named x."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "corpus"
        (Path(folder) / "x").mkdir()
        file = write(root)
        file.write_bytes(edited(file.read_bytes(), edits) if content is None else content)
        yield root


def listing(root: Path) -> list[str]:
    return sorted(str(path) for path in root.parent.rglob("*") if "out" not in path.parts)


def check(corpus: Corpus, root: Path) -> None:
    """Every row has a safe name and a path inside the corpus; every other has a reason."""
    for row in corpus.rows:
        assert row.text.strip()
        assert row.video.resolve().is_relative_to(root.resolve())
        assert not set(key_of(row.id)) & set("./\\\n\0")
        assert row.end is None or 0 <= (row.start or 0.0) < row.end
    assert len({row.id for row in corpus.rows}) == len(corpus.rows)
    assert all(rejected.reason for rejected in corpus.rejected)
    numbers = [r.row for r in (*corpus.rows, *corpus.rejected)]
    assert len(set(numbers)) == len(numbers), "no row is counted twice"


def read(case: tuple[Callable[[Path], Path], str, str], root: Path) -> Corpus | None:
    _, name, split = case
    try:
        corpus = read_corpus(name, root / "t.tsv" if name == "table" else root, split)
    except CorpusError:
        return None
    check(corpus, root)
    return corpus


@every_corpus
@pytest.mark.timeout(120)
@settings(max_examples=50, deadline=None)
@given(edits=_EDITS)
def test_a_damaged_annotation_is_read_or_refused_by_name(case, edits):
    with tree(case[0], None, edits) as root:
        before = listing(root)
        read(case, root)
        assert listing(root) == before


@every_corpus
@pytest.mark.timeout(120)
@settings(max_examples=30, deadline=None)
@given(content=st.binary(max_size=300))
@example(content=b"")
@example(content="id\tvideo\ttext\n".encode("utf-16"))
@example(content=b"\n" * 1000)
def test_any_bytes_in_place_of_an_annotation_are_refused_by_name(case, content):
    with tree(case[0], content, None) as root:
        read(case, root)


@pytest.mark.parametrize("name", ["table", "phoenix14t", "how2sign"])
@pytest.mark.timeout(120)
@settings(max_examples=50, deadline=None)
@given(edits=_EDITS)
def test_every_line_of_a_damaged_table_is_planned_or_dropped(name, edits):
    case = CORPORA[name]
    with tree(case[0], None, edits) as root:
        corpus = read(case, root)
        file = next(root.rglob({"table": "*.tsv", "phoenix14t": "*.dev.*"}.get(name, "*.csv")))
        _, *lines = file.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
        numbers = [n for n, line in enumerate(lines, start=2) if line.removesuffix(b"\r")]
    if corpus is not None:
        assert sorted(r.row for r in (*corpus.rows, *corpus.rejected)) == numbers


_LABELS = st.recursive(
    st.none() | st.integers() | st.text(max_size=5) | st.just("\ud800") | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=10,
)
_ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from([e["name"] for e in ENTRIES]) | _LABELS,
        "label_char": st.lists(st.text(max_size=2)) | _LABELS,
        "signer": _LABELS,
    },
)


@pytest.mark.timeout(120)
@settings(max_examples=80, deadline=None)
@given(st.lists(_ENTRY | _LABELS, max_size=6) | _LABELS)
def test_a_pickle_of_other_data_is_read_or_refused_by_name(info):
    content = pickle.dumps({"info": info})
    with tree(csl_pickle, content, None) as root:
        corpus = read(CORPORA["csl_daily pickle"], root)
        if corpus is not None:
            assert len(corpus.rows) + len(corpus.rejected) == len(ENTRIES)


@every_corpus
@pytest.mark.timeout(120)
@settings(max_examples=25, deadline=None)
@given(edits=_EDITS)
def test_packing_a_damaged_corpus_writes_into_the_output_folder_only(case, edits):
    write, name, split = case
    with tree(write, None, edits) as root:
        before = listing(root)
        place = root / "t.tsv" if name == "table" else root
        config, out = PackConfig(frame_size=16), root.parent / "out"
        with pytest.raises(UserError, match=r".") as error:  # no video is there to be packed
            pack(name, place, split, out, config, workers=0, extractor=Still())
        assert listing(root) == before
        if "none of the" in str(error.value):
            names = {path.name for path in out.iterdir()}
            assert {"dropped.tsv", "orphans.tsv"} <= names
            assert (out / "orphans.tsv").read_text("utf-8").startswith("id\treason\n")
