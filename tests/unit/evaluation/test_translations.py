"""Files of translations: three formats in, one out, and every fault named."""

from __future__ import annotations

import csv
import json
import os
import unicodedata
import zipfile

import numpy as np
import openpyxl
import pytest

from signfuse_dist.errors import UserError
from signfuse_dist.evaluation.compare import compare, format_comparison, read_systems
from signfuse_dist.evaluation.protocols import find_preset
from signfuse_dist.evaluation.scores import score, score_files
from signfuse_dist.evaluation.significance import Resampling
from signfuse_dist.evaluation.translations import (
    read_array,
    read_hypotheses,
    read_pairs,
    write_arrays,
    write_hypotheses,
)

IDS = {"-b/1": ('Grüße\u2028an "alle"', "Gruß an alle"), "a": ("", "today rain")}
HYPOTHESES = {i: pair[0] for i, pair in IDS.items()}
REFERENCES = {i: pair[1] for i, pair in IDS.items()}


def write(path, text):
    path.write_bytes(text.encode("utf-8"))
    return path


def test_what_is_written_is_read_again_and_sorted(tmp_path):
    path = tmp_path / "hypotheses.jsonl"
    write_hypotheses(path, HYPOTHESES, REFERENCES)
    assert read_pairs(path, None) == (HYPOTHESES, REFERENCES)
    lines = path.read_text(encoding="utf-8").split("\n")
    assert [json.loads(line)["id"] for line in lines[:-1]] == ["-b/1", "a"]
    assert "Grüße" in lines[0]


def test_the_bytes_do_not_depend_on_the_order_of_the_samples(tmp_path):
    for name, flip in (("one", False), ("two", True)):
        ids = sorted(IDS, reverse=flip)
        write_hypotheses(
            tmp_path / name, {i: HYPOTHESES[i] for i in ids}, {i: REFERENCES[i] for i in ids}
        )
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "two"]


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "hypotheses.jsonl"
    write_hypotheses(path, HYPOTHESES, REFERENCES)
    before = path.read_bytes()
    with pytest.raises(UserError, match="lack a hypothesis"):
        write_hypotheses(path, HYPOTHESES, {**REFERENCES, "more": "x"})
    with pytest.raises(UnicodeEncodeError):
        write_hypotheses(path, {"a": "\ud800"}, {"a": "x"})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_table_with_a_bom_crlf_quotes_and_other_column_names_is_read(tmp_path):
    header = "\ufeffname\treference\tsigner\thypothesis\r\n"
    text = header + 'a\tone\ts1\t"say ""one"", two"\r\nb\tx\t\t\r\n'
    path = write(tmp_path / "t.tsv", text)
    ours, theirs = read_pairs(path, None)
    assert ours == {"a": 'say "one", two', "b": ""}
    assert theirs == {"a": "one", "b": "x"}


def test_a_packing_table_serves_as_references(tmp_path):
    references = write(tmp_path / "r.tsv", "id\tvideo\ttext\na\tv.mp4\tone\n")
    hypotheses = write(tmp_path / "h.jsonl", '{"id": "a", "hypothesis": "two"}\n')
    assert read_pairs(hypotheses, references) == ({"a": "two"}, {"a": "one"})


def test_two_text_files_are_matched_by_line(tmp_path):
    hypotheses = write(tmp_path / "h.txt", "one\n\nthree\u2028more\n")
    references = write(tmp_path / "r.txt", "eins\nzwei\ndrei")
    ours, theirs = read_pairs(hypotheses, references)
    assert ours == {"1": "one", "2": "", "3": "three\u2028more"}
    assert theirs["3"] == "drei"
    with pytest.raises(UserError, match=r"h\.txt: 1 hypotheses are empty: '2'.*--allow-empty"):
        score_files(hypotheses, [references], "sacrebleu")
    assert score_files(hypotheses, [references], "sacrebleu", allow_empty=True).empty == ("2",)


def test_text_files_with_different_numbers_of_lines_are_refused(tmp_path):
    hypotheses = write(tmp_path / "h.txt", "one\ntwo\n")
    references = write(tmp_path / "r.txt", "eins\nzwei\ndrei\n")
    with pytest.raises(UserError, match=r"h\.txt has 2 lines and .*r\.txt has 3"):
        read_pairs(hypotheses, references)


def test_one_text_file_alone_asks_for_the_other(tmp_path):
    with pytest.raises(UserError, match="--references"):
        read_pairs(write(tmp_path / "h.txt", "one\n"), None)


def test_line_numbers_are_not_matched_with_names(tmp_path):
    references = write(tmp_path / "r.tsv", "id\treference\n1\tone\n")
    with pytest.raises(UserError, match="one is plain text"):
        read_pairs(write(tmp_path / "h.txt", "one\n"), references)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("d.jsonl", '{"id":"a","hypothesis":"x"}\n' * 2, "line 2: the id 'a' is already on line 1"),
        ("j.jsonl", '{"id":"a"', "line 1: not JSON"),
        ("n.jsonl", '{"id":"a","hypothesis":"x"}\n\n', "line 2: not JSON"),
        ("l.jsonl", "[1]\n", r"line 1: expected a mapping of id, hypothesis, got \[1\]"),
        ("u.jsonl", "null\n", "line 1: expected a mapping of id, hypothesis, got None"),
        ("k.jsonl", '{"id":"a"}\n', "line 1: hypothesis: missing"),
        ("m.jsonl", '{"hypothesis":"x"}\n', "line 1: id or name: missing"),
        ("b.jsonl", "{}\n", "line 1: id or name: missing; hypothesis: missing"),
        ("i.jsonl", '{"id":3,"hypothesis":"x"}\n', "line 1: id: 3 is not a str"),
        ("a.jsonl", '{"name":7,"hypothesis":"x"}\n', "line 1: name: 7 is not a str"),
        ("t.jsonl", '{"id":"a","hypothesis":null}\n', "line 1: hypothesis: None is not a str"),
        (
            "s.jsonl",
            '{"id":"a","hypothesis":"\\ud800"}\n',
            r"line 1: hypothesis: '\\ud800' holds half",
        ),
        ("o.jsonl", '{"id":"\\udfff","hypothesis":"x"}\n', "line 1: id: .* holds half"),
        ("deep.jsonl", "[" * 100_000, "line 1: not JSON"),
        ("d.tsv", "id\thypothesis\na\tx\na\ty\n", "line 3: the id 'a' is already on line 2"),
        ("c.tsv", "id\thypothesis\na\tx\ty\n", "line 2: 3 columns where the header has 2"),
        ("q.tsv", 'id\thypothesis\na\t"x\nb\ty\n', "line 2: .*double quote"),
        ("h.tsv", "id\ttranslation\na\tx\n", "(?s)first line names.*column hypothesis: missing"),
        ("n.tsv", "nr\thypothesis\na\tx\n", "(?s)first line names.*column id or name: missing"),
        ("e.tsv", "", "empty; the first line must name the columns"),
    ],
)
def test_a_malformed_line_is_named_with_its_number(tmp_path, name, text, message):
    references = write(tmp_path / "references.tsv", "id\treference\na\tone\n")
    with pytest.raises(UserError, match=message):
        read_pairs(write(tmp_path / name, text), references)


def test_other_columns_are_ignored_and_the_usual_name_comes_first(tmp_path):
    row = '{"name": 3, "id": "a", "hypothesis": "x", "text": 4, "reference": "y", "signer": 5}\n'
    assert read_pairs(write(tmp_path / "h.jsonl", row), None) == ({"a": "x"}, {"a": "y"})
    row = '{"name": "a", "hypothesis": "x", "text": "y"}\n'
    assert read_pairs(write(tmp_path / "h.jsonl", row), None) == ({"a": "x"}, {"a": "y"})
    table = "id\thypothesis\treference\tid\na\tx\ty\tb\n"
    assert read_pairs(write(tmp_path / "h.tsv", table), None) == ({"a": "x"}, {"a": "y"})


SENTENCES = {
    "clip_0": "the weather is fine today, over the sea",
    "clip_1": "tomorrow it will rain in the north",
    "clip_2": 'she said "no" to\nboth of us',
}


def save(path, column, texts):
    rows = [("id", column), *texts.items()]
    if path.suffix == ".xlsx":
        book = openpyxl.Workbook()
        for row in rows:
            book.active.append(row)
        book.save(path)
    elif path.suffix.lower() == ".csv":
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            csv.writer(file, delimiter=";").writerows(rows)
    else:
        lines = [json.dumps({"id": i, column: text}) for i, text in texts.items()]
        path.write_text("".join(f"{line}\n" for line in lines))
    return path


@pytest.mark.parametrize("ours", ["h.csv", "h.xlsx", "h.CSV", "h.jsonl"])
@pytest.mark.parametrize("theirs", ["r.csv", "r.xlsx"])
def test_tables_of_spreadsheets_are_matched_by_their_ids(tmp_path, ours, theirs):
    shuffled = dict(reversed(SENTENCES.items()))
    references = save(tmp_path / theirs, "text", shuffled)
    alike = save(tmp_path / ours, "hypothesis", SENTENCES)
    assert score_files(alike, [references], "sacrebleu")["BLEU-4"].value == pytest.approx(100)
    other = save(tmp_path / ours, "hypothesis", dict.fromkeys(SENTENCES, "cats sleep often"))
    assert score_files(other, [references], "sacrebleu")["BLEU-4"].value == 0, "no word is right"


@pytest.mark.parametrize("name", ["h.xls", "h.hyp", "hypotheses", "h.yaml", "h.txt.gz"])
def test_an_ending_that_is_not_known_is_refused(tmp_path, name):
    known = write(tmp_path / "r.txt", "one\n")
    for pair in ((tmp_path / name, known), (known, tmp_path / name)):
        write(tmp_path / name, "one\n")
        with pytest.raises(UserError, match=r"files of the ending .* are not read; a table is"):
            read_pairs(*pair)


def test_decomposed_letters_are_compared_in_nfc_and_it_is_said(tmp_path):
    lines = "morgen wird es schön über der küste\nspäter löst sich der nebel überall auf\n"
    hypotheses = write(tmp_path / "h.txt", unicodedata.normalize("NFD", lines))
    references = write(tmp_path / "r.txt", lines)
    scores = score_files(hypotheses, [references], "sacrebleu")
    assert scores["BLEU-4"].value == pytest.approx(100)
    (note,) = scores.notes
    assert note == (
        f"{hypotheses}, hypothesis: 2 texts are not in Unicode's form NFC and are compared in it"
    )
    ours = {"a": unicodedata.normalize("NFD", "schöne grüße aus köln"), "b": "ja"}
    scores = score(ours, {"a": "schöne grüße aus köln", "b": "ja"}, "sacrebleu")
    assert scores["chrF"].value == pytest.approx(100)
    assert scores.notes[0].startswith("hypotheses: 1 texts are not in Unicode's form NFC")


def test_systems_whose_references_differ_in_their_form_alone_are_compared(tmp_path):
    texts = {"a": "schöne grüße", "b": "über köln"}
    other = {i: unicodedata.normalize("NFD", text) for i, text in texts.items()}
    paths = []
    for name, references in (("one", texts), ("two", other)):
        paths.append(tmp_path / f"{name}.jsonl")
        write_hypotheses(paths[-1], texts, references)
    systems = read_systems(paths, None, [], allow_empty=False)
    comparison = compare(systems, find_preset("sacrebleu"), Resampling(num_samples=100))
    assert "two.jsonl, reference: 2 texts are not in" in format_comparison(comparison)


def test_invisible_characters_are_removed_before_scoring_and_it_is_said(tmp_path):
    hypotheses = write(tmp_path / "h.txt", "\u200bhe\u00adllo\nyou\n")
    references = write(tmp_path / "r.txt", "hello\nyou\n")
    notes = []
    assert read_pairs(hypotheses, references, notes)[0] == {"1": "hello", "2": "you"}
    assert notes == [f"{hypotheses}, hypothesis: invisible characters were removed from 1 texts"]
    with pytest.raises(UserError, match="1 hypotheses are empty: '1'"):
        score_files(write(tmp_path / "e.txt", "\u200b\nyou\n"), [references], "sacrebleu")


def test_quotes_of_a_table_are_read_and_said(tmp_path):
    path = write(tmp_path / "t.tsv", 'id\thypothesis\treference\na\t"x ""y"""\tx "y"\n')
    notes = []
    assert read_pairs(path, None, notes) == ({"a": 'x "y"'}, {"a": 'x "y"'})
    assert notes == [
        "1 cells of t.tsv stand in double quotes, as csv writes them; they are read without"
    ]


def test_a_fifo_is_refused_without_being_opened(tmp_path):
    for name in ("h.txt", "h.jsonl", "h.tsv"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(UserError, match="is a FIFO and no file; it is not opened"):
            read_hypotheses(tmp_path / name, [])


def test_all_faults_of_a_file_are_reported_together(tmp_path):
    path = write(tmp_path / "h.jsonl", "x\n" * 30)
    with pytest.raises(UserError) as caught:
        read_pairs(path, None)
    assert "line 20:" in str(caught.value)
    assert "and 10 more" in str(caught.value)


def test_missing_files_and_other_encodings_are_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.tsv: cannot be read"):
        read_pairs(tmp_path / "none.tsv", None)
    latin = tmp_path / "latin.tsv"
    latin.write_bytes("id\thypothesis\na\tGrüße\n".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        read_pairs(latin, latin)


def test_ids_are_checked_before_anything_is_scored(tmp_path):
    hypotheses = write(tmp_path / "h.tsv", "id\thypothesis\na\tx\nz\ty\n")
    references = write(tmp_path / "r.tsv", "id\treference\na\tx\nb\ty\n")
    with pytest.raises(UserError, match=r"(?s)no hypothesis: 'b'.*no reference: 'z'"):
        score_files(hypotheses, [references], "sacrebleu")


def test_gates_are_read_by_any_id_and_by_numpy(tmp_path):
    ids = ["file", "../up", "x", "x.npy", "a.b", "-0"]
    gates = {name: np.full(3, i, np.float32) for i, name in enumerate(ids)}
    write_arrays(tmp_path / "gates.npz", gates)
    with zipfile.ZipFile(tmp_path / "gates.npz") as archive:
        for name in ids:
            assert np.array_equal(read_array(archive, name, 1), gates[name])
        with pytest.raises(KeyError):
            read_array(archive, "absent", 1)
    with np.load(tmp_path / "gates.npz", allow_pickle=False) as loaded:
        assert np.array_equal(loaded["a.b"], gates["a.b"])
    first = (tmp_path / "gates.npz").read_bytes()
    write_arrays(tmp_path / "gates.npz", dict(reversed(gates.items())))
    assert (tmp_path / "gates.npz").read_bytes() == first


@pytest.mark.parametrize(
    "array", [np.zeros((2, 2), np.float32), np.zeros(3), np.array([{}], dtype=object)]
)
def test_a_gate_that_is_no_row_of_float32_is_refused(tmp_path, array):
    np.savez(tmp_path / "gates.npz", a=array)
    with zipfile.ZipFile(tmp_path / "gates.npz") as archive, pytest.raises(UserError, match="'a'"):
        read_array(archive, "a", 1)
