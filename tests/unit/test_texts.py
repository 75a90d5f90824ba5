"""Texts that the LLM has no room for are refused; what has not changed is not looked at again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.model_factory import tiny_tokenizer
from signfuse_dist.errors import UserError
from signfuse_dist.model.text_tokenizer import TextTokenizer
from signfuse_dist.texts import refuse_long_texts

TEXTS = [f"{'i see ' * number}".strip() for number in range(4)]


class Job:
    """A split of little, an LLM with room for so many tokens, and how often texts were read."""

    def __init__(self, folder: Path, room: int = 10) -> None:
        self.folder, self.texts, self.content = folder, list(TEXTS), "texts as they are"
        self.tokenizer = TextTokenizer(tiny_tokenizer(), "sign")
        self.room, self.reads = room, 0
        self.said: list[str] = []

    def _entries(self) -> Any:
        self.reads += 1
        return iter(
            [SimpleNamespace(id=f"clip{i}", text=text) for i, text in enumerate(self.texts)]
        )

    def look(self) -> None:
        language_model = SimpleNamespace(room=lambda num_sign_tokens: self.room)
        built_from = SimpleNamespace(num_sign_tokens=4)
        model: Any = SimpleNamespace(language_model=language_model, built_from=built_from)
        content = SimpleNamespace(clips="ids", texts=self.content)
        split: Any = SimpleNamespace(folder=self.folder, content=content, entries=self._entries)
        refuse_long_texts(model, self.tokenizer, split, self.said.append)

    @property
    def stamps(self) -> list[Path]:
        return sorted(self.folder.glob("texts-*.json"))


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def test_a_restart_reads_no_text_again(job: Job) -> None:
    job.look()
    job.look()
    assert job.reads == 1
    assert len(job.stamps) == 1


def test_texts_beyond_the_context_are_refused_by_name_at_every_start(job: Job) -> None:
    job.room = 4
    for _ in range(2):
        with pytest.raises(UserError, match=r"2 texts are too long") as error:
            job.look()
        assert "clip2: 5 tokens, and there is room for 4" in str(error.value)
        assert "clip3: 7 tokens, and there is room for 4" in str(error.value)


def test_less_room_than_before_is_seen_without_a_text_changed(job: Job) -> None:
    job.look()
    job.room = 6
    with pytest.raises(UserError, match="1 texts are too long"):
        job.look()
    job.room = 7
    job.look()
    assert job.reads == 2


def test_letters_that_are_not_known_are_said_at_every_start(job: Job) -> None:
    job.texts.append("zebra")
    job.look()
    job.look()
    assert job.reads == 1
    assert job.said == 2 * [
        "1 of 5 texts hold letters that the LLM's tokenizer does not know, and are learned without "
        "them: clip4"
    ]


def test_other_texts_and_another_tokenizer_are_looked_at(job: Job) -> None:
    job.look()
    job.content = "other texts"
    job.look()
    known = tiny_tokenizer()
    known.add_tokens(["zebra"])
    job.tokenizer = TextTokenizer(known, "sign")
    job.look()
    assert job.reads == 3
    assert len(job.stamps) == 3


def _change(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    said = json.loads(path.read_text(encoding="utf-8"))
    change(said)
    path.write_text(json.dumps(said), encoding="utf-8")


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\xff" * 100),
        lambda path: path.write_text("[" * 60_000),
        lambda path: path.write_text("7" * 70_000),
        lambda path: path.write_text("[]"),
        lambda path: _change(path, lambda said: said.pop("seen")),
        lambda path: _change(path, lambda said: said["seen"].update(longest=3)),
        lambda path: _change(path, lambda said: said["seen"].update(longest="3")),
        lambda path: _change(path, lambda said: said["seen"].update(key="another")),
    ],
)
def test_a_damaged_answer_is_not_believed_and_written_anew(
    job: Job, damage: Callable[[Path], None]
) -> None:
    job.look()
    (stamp,) = job.stamps
    whole = stamp.read_bytes()
    damage(stamp)
    job.look()
    assert job.reads == 2
    assert stamp.read_bytes() == whole


def test_a_pipe_in_the_place_of_an_answer_is_not_waited_for(job: Job) -> None:
    job.look()
    [stamp] = job.stamps
    stamp.unlink()
    os.mkfifo(stamp)
    before = job.reads
    job.look()
    assert job.reads == before + 1
    assert stamp.is_file()


def test_the_answer_to_another_question_is_not_believed(job: Job) -> None:
    job.look()
    (mine,) = job.stamps
    job.content = "other texts"
    job.look()
    (other,) = {*job.stamps} - {mine}
    other.write_bytes(mine.read_bytes())
    job.look()
    assert job.reads == 3


def test_a_folder_of_somebody_elses_is_looked_at_each_time(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, text: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("signfuse_dist.texts.write_text", refuse)
    job.look()
    job.look()
    assert job.reads == 2
    assert not job.stamps


def test_a_tokenizer_in_python_code_is_asked_each_time(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TextTokenizer, "fingerprint", None)
    job.look()
    job.look()
    assert job.reads == 2
