"""What is printed of names and texts that are anybody's."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from helpers.little_clips import write_table
from signfuse_dist.cli import main
from signfuse_dist.errors import printable
from signfuse_dist.files import special_kind


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("grüße 今天 😀 é", "grüße 今天 😀 é"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("a\x9b31mb", "a\\x9b31mb"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("a\u2028b\u200bc", "a\\u2028b\\u200bc"),
        ("\ud800", "\\ud800"),
        ("a\nb\tc\0", "a\\nb\\tc\\x00"),
        ("C:\\new", "C:\\new"),
    ],
)
def test_what_steers_a_terminal_is_printed_as_an_escape(text, shown):
    assert printable(text) == shown


def test_an_error_keeps_its_lines_and_nothing_else_that_steers(tmp_path, capsys):
    columns = ("id", "hypothesis", "reference")
    rows = [("a\x1b[31m", "x", "y"), ("a\x1b[31m", "x", "y"), ("b", "x")]
    table = write_table(tmp_path / "h\x1b[2J.tsv", rows, columns)
    assert main(["score", "--hypotheses", str(table), "--preset", "sacrebleu"]) == 2
    shown = capsys.readouterr().err
    assert "\x1b" not in shown
    assert "h\\x1b[2J.tsv: cannot be scored (2)\n  - line 3: the id" in shown


def test_a_fifo_a_socket_and_a_device_are_named_and_nothing_else_is(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(tmp_path / "fifo")
    (tmp_path / "round").symlink_to(tmp_path / "round")
    (tmp_path / "file").touch()
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(tmp_path)  # the name of a socket has at most 107 bytes
        try:
            server.bind("socket")
        finally:
            os.chdir(here)
        kinds = {name: special_kind(tmp_path / name) for name in os.listdir(tmp_path)}
    assert kinds == {
        "fifo": "a FIFO",
        "link": "a FIFO",
        "socket": "a socket",
        "file": None,
        "round": None,
    }
    assert special_kind(Path("/dev/null")) == "a device"
    assert special_kind(tmp_path / "none") is None
