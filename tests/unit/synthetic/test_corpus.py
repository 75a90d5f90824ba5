"""The synthetic corpus: its language, its two exclusive channels, and how it is written."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from signfuse_dist.errors import UserError
from signfuse_dist.skeleton import JOINT_INDEX, LEFT_HAND, NUM_JOINTS, RIGHT_HAND
from signfuse_dist.synthetic import corpus as synthetic
from signfuse_dist.synthetic.language import (
    COLOURS,
    JOINTS_ONLY,
    PICTURE_ONLY,
    SUBJECTS,
    Sentence,
    SplitSizes,
    all_sentences,
    channel_of,
    draw_splits,
    vocabulary,
    words_of,
)
from signfuse_dist.synthetic.signer import SIGNERS
from signfuse_dist.synthetic.signs import SIGNS, SIGNS_OF

SENTENCE = Sentence("yesterday", "teacher", "sell", "gate", "red", "statement")
SMALL = SplitSizes(train=16, dev=2, test=2)


def test_the_text_order_differs_from_the_signed_order() -> None:
    assert SENTENCE.text == "yesterday the teacher sold the red gate"
    assert SENTENCE.glosses == ("yesterday", "gate", "red", "teacher", "sell")


def test_the_second_language_has_the_signs_of_the_first_for_other_words_in_another_order() -> None:
    second = SIGNS_OF["second"]
    assert second.keys() == SIGNS.keys()
    assert sorted(map(repr, second.values())) == sorted(map(repr, SIGNS.values()))
    assert not [word for word in SIGNS if second[word] == SIGNS[word]]
    assert SENTENCE.glosses_in("second") == ("teacher", "sell", "red", "gate", "yesterday")
    assert {sign.card for word, sign in second.items() if word in COLOURS} == {*COLOURS}
    for one, other in JOINTS_ONLY:
        assert second[one].right == second[other].right
        assert second[one].hidden
        assert second[other].hidden


def test_a_folder_of_one_sign_language_is_not_taken_for_the_other(tmp_path: Path) -> None:
    description = synthetic._describe(synthetic.DEFAULT_SEED, SMALL, 32, "second")
    (tmp_path / "corpus.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match="sign_language is second, not first"):
        synthetic.write_corpus(tmp_path, sizes=SMALL, frame_size=32)
    del description["sign_language"]  # of a version that knew the first alone
    (tmp_path / "corpus.json").write_text(json.dumps(description))
    synthetic.write_corpus(tmp_path, sizes=SMALL, frame_size=32)
    with pytest.raises(UserError, match="sign_language is first, not second"):
        synthetic.write_corpus(tmp_path, sizes=SMALL, frame_size=32, language="second")


@pytest.mark.parametrize(
    ("mode", "time", "text"),
    [
        ("negation", "yesterday", "yesterday the teacher did not sell the red gate"),
        ("negation", "tomorrow", "tomorrow the teacher will not sell the red gate"),
        ("question", "today", "does the teacher sell the red gate today"),
        ("statement", "today", "today the teacher sells the red gate"),
        ("statement", "tomorrow", "tomorrow the teacher will sell the red gate"),
    ],
)
def test_tense_and_mode_shape_the_text(mode: str, time: str, text: str) -> None:
    assert replace(SENTENCE, mode=mode, time=time).text == text


def test_no_two_meanings_share_a_text() -> None:
    texts = [sentence.text for sentence in all_sentences()]
    assert len(set(texts)) == len(texts)
    assert {len(text.split()) for text in texts} <= set(range(6, 11))


@pytest.mark.parametrize("seed", [0, synthetic.DEFAULT_SEED])
def test_held_out_sentences_are_new_and_made_of_training_words(seed: int) -> None:
    splits = draw_splits(seed, synthetic.DEFAULT_SIZES)
    texts = {split: {s.text for s in sentences} for split, sentences in splits.items()}
    assert {split: len(t) for split, t in texts.items()} == {"train": 480, "dev": 40, "test": 60}
    assert not texts["train"] & texts["dev"]
    assert not (texts["train"] | texts["dev"]) & texts["test"]
    assert words_of([*splits["dev"], *splits["test"]]) <= words_of(splits["train"])


def test_a_training_split_too_small_for_the_held_out_words_is_refused() -> None:
    with pytest.raises(UserError, match="ask for a smaller dev and test"):
        draw_splits(0, SplitSizes(train=1, dev=40, test=60))


def test_every_word_has_a_channel_and_an_unknown_word_is_refused() -> None:
    assert {channel_of(word) for word in vocabulary()} == {"picture", "joints", "both"}
    assert channel_of("opened") == channel_of("close") == channel_of("mother") == "joints"
    assert channel_of("green") == "picture"
    assert channel_of("not") == channel_of("painted") == "both"
    with pytest.raises(UserError, match="no word 'boat'"):
        channel_of("boat")


def _with(word: str, sentence: Sentence) -> Sentence:
    if word in COLOURS:
        return replace(sentence, adjective=word)
    return replace(sentence, **{"subject" if word in SUBJECTS else "verb": word})


# "gate" raises the left hand just before the subject, "door" and "sell" around it.
AROUND = (
    SENTENCE,
    replace(SENTENCE, adjective=None, verb="sell"),
    replace(SENTENCE, object="door", mode="negation"),
    replace(SENTENCE, subject="baker", mode="question"),
)


@pytest.mark.parametrize("number", range(len(AROUND)))
@pytest.mark.parametrize("group", JOINTS_ONLY)
def test_a_joints_only_contrast_leaves_every_pixel_alike(
    group: tuple[str, ...], number: int
) -> None:
    clips = [
        synthetic.render_clip(_with(word, AROUND[number]), SIGNERS[number], number)
        for word in group
    ]
    first = clips[0]
    for other in clips[1:]:
        assert np.array_equal(first.frames, other.frames)
        seen = first.mask & other.mask
        apart = np.linalg.norm(first.pose - other.pose, axis=-1) * seen
        # At least two frames with a fingertip a tenth of the frame away.
        assert (apart.max(axis=1) > 0.1).sum() >= 2


@pytest.mark.parametrize("group", PICTURE_ONLY)
def test_a_picture_only_contrast_leaves_every_joint_alike(group: tuple[str, ...]) -> None:
    clips = [synthetic.render_clip(_with(word, SENTENCE), SIGNERS[0], 3) for word in group]
    for i, one in enumerate(clips):
        for other in clips[:i]:
            assert np.array_equal(one.pose, other.pose)
            assert np.array_equal(one.mask, other.mask)
            differing = np.abs(one.frames.astype(int) - other.frames).max(axis=-1) > 80
            assert differing.any(axis=(1, 2)).sum() >= 3
            assert differing.sum(axis=(1, 2)).max() >= 20


def test_other_words_differ_in_both_channels() -> None:
    one = synthetic.render_clip(SENTENCE, SIGNERS[1], 5)
    other = synthetic.render_clip(replace(SENTENCE, subject="baker"), SIGNERS[1], 5)
    assert not np.array_equal(one.frames, other.frames)
    assert not np.array_equal(one.pose, other.pose)


def test_all_joints_are_near_the_frame_and_hands_sit_on_their_wrists() -> None:
    for number, sentence in enumerate(all_sentences()[:: len(all_sentences()) // 12]):
        clip = synthetic.render_clip(sentence, SIGNERS[number % len(SIGNERS)], number)
        assert clip.pose.shape == (len(clip.frames), NUM_JOINTS, 2)
        assert clip.pose.dtype == np.float32
        assert clip.mask.dtype == bool
        assert 15 <= len(clip.frames) <= 30
        assert not clip.pose[~clip.mask].any()
        assert clip.pose.min() > -0.1
        assert clip.pose.max() < 1.05
        for side in ("left", "right"):
            hand, arm = JOINT_INDEX[f"{side}_hand_wrist"], JOINT_INDEX[f"{side}_wrist"]
            seen = clip.mask[:, hand]
            gap = np.abs(clip.pose[seen, hand] - clip.pose[seen, arm])
            assert gap.max() < 0.03
        right, left = JOINT_INDEX["right_shoulder"], JOINT_INDEX["left_shoulder"]
        assert (clip.pose[:, right, 0] < clip.pose[:, left, 0]).all()


def test_a_question_raises_the_brows_and_a_negation_shakes_the_head() -> None:
    clips = {
        mode: synthetic.render_clip(replace(SENTENCE, mode=mode), SIGNERS[0], 9).pose
        for mode in ("statement", "question", "negation")
    }
    brow, eye = JOINT_INDEX["face_brow_left"], JOINT_INDEX["left_eye"]
    raised = {m: float((p[:, eye, 1] - p[:, brow, 1]).mean()) for m, p in clips.items()}
    assert raised["negation"] < raised["statement"] < raised["question"]
    nose = JOINT_INDEX["face_nose_tip"]
    ears = [JOINT_INDEX["left_ear"], JOINT_INDEX["right_ear"]]
    sway = {m: float((p[:, nose, 0] - p[:, ears, 0].mean(axis=1)).std()) for m, p in clips.items()}
    assert sway["negation"] > 2 * sway["statement"]


def test_every_word_with_a_sign_is_performed() -> None:
    signed = {gloss for sentence in all_sentences() for gloss in sentence.glosses}
    assert signed == set(SIGNS)
    assert len(SIGNS) == 19


def test_a_lost_hand_is_masked_whole_and_zero() -> None:
    clips = [synthetic.render_clip(SENTENCE, SIGNERS[0], seed) for seed in range(8)]
    masks = np.concatenate([clip.mask for clip in clips])
    for hand in (LEFT_HAND, RIGHT_HAND):
        columns = masks[:, [JOINT_INDEX[name] for name in hand]]
        assert (columns.all(axis=1) | ~columns.any(axis=1)).all()
    assert 0 < (~masks).any(axis=1).sum() < 0.2 * len(masks)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("synthetic")
    synthetic.write_corpus(root, 3, SMALL, frame_size=32)
    return root


def test_a_written_corpus_has_a_table_clips_and_joints_that_agree(corpus: Path) -> None:
    rows = list(synthetic.read_rows(corpus))
    assert synthetic.is_written(corpus)
    assert len(rows) == 20
    assert tuple(rows[0]) == synthetic.COLUMNS
    assert not list(corpus.rglob("*.tmp"))
    for row in rows[::6]:
        with np.load(corpus / row["joints"], allow_pickle=False) as joints:
            num_frames = len(joints["pose"])
            assert joints["mask"].shape == (num_frames, NUM_JOINTS)
        with av.open(str(corpus / row["video"])) as video:
            frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
            assert video.streams.video[0].average_rate == synthetic.FPS
        assert len(frames) == num_frames
        assert frames[0].shape == (32, 32, 3)


def test_a_corpus_that_several_draw_at_once_is_the_same(corpus: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        drawn = [
            pool.submit(synthetic.write_corpus, tmp_path, 3, SMALL, frame_size=32) for _ in range(3)
        ]
        assert [future.result() for future in drawn] == [None] * 3
    assert synthetic.is_written(tmp_path)
    files = {p.relative_to(corpus) for p in corpus.rglob("*") if p.is_file()}
    assert {p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file()} == files
    assert all((corpus / f).read_bytes() == (tmp_path / f).read_bytes() for f in files)


def test_a_clip_survives_its_compression(corpus: Path) -> None:
    planned = synthetic.plan_corpus(3, SMALL)[0]
    drawn = synthetic.render_clip(planned.sentence, planned.signer, planned.seed, frame_size=32)
    with av.open(str(corpus / planned.row()["video"])) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert np.abs(np.stack(frames).astype(int) - drawn.frames).mean() < 6


def _content(root: Path) -> dict[str, bytes]:
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def test_an_interrupted_corpus_is_carried_on_to_the_same_files(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    write = synthetic._write_clip

    def stop_after_five(root: Path, planned: synthetic.PlannedClip, *rest: object) -> None:
        if len(written) == 5:
            raise KeyboardInterrupt
        written.append(planned.id)
        write(root, planned, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(synthetic, "_write_clip", stop_after_five)
    with pytest.raises(KeyboardInterrupt):
        synthetic.write_corpus(tmp_path, 3, SMALL, frame_size=32)
    assert not synthetic.is_written(tmp_path)
    monkeypatch.undo()
    before = (tmp_path / "clips" / f"{written[0]}.mp4").stat().st_mtime_ns
    synthetic.write_corpus(tmp_path, 3, SMALL, frame_size=32)
    assert (tmp_path / "clips" / f"{written[0]}.mp4").stat().st_mtime_ns == before
    assert _content(tmp_path) == _content(corpus)


def test_a_finished_corpus_is_left_alone(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a finished corpus was written again")

    monkeypatch.setattr(synthetic, "_write_clip", refuse)
    synthetic.write_corpus(corpus, 3, SMALL, frame_size=32)


def _run(*arguments: object) -> int:
    return synthetic.main([str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (lambda root: (root, "--seed", 4, "--train", 16, "--dev", 2, "--test", 2), "seed is 3"),
        (lambda root: (root / "synthetic.tsv",), "is a file"),
        (lambda root: (root.parent / "new", "--train", 0), "at least 1"),
        (lambda root: (root.parent / "new", "--frame-size", 31), "must be even"),
        (lambda root: (root.parent / "new", "--seed", -1), "seed is -1"),
    ],
)
def test_a_wrong_request_is_named_and_writes_nothing(
    corpus: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: Callable[[Path], tuple[object, ...]],
    named: str,
) -> None:
    assert _run(*arguments(corpus)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert named in error
    assert not (corpus.parent / "new").exists()


def test_a_damaged_description_is_named(tmp_path: Path) -> None:
    (tmp_path / "corpus.json").write_text("{")
    with pytest.raises(UserError, match=r"corpus\.json is not a description"):
        synthetic.is_written(tmp_path)


def test_the_corpus_is_written_without_torch() -> None:
    code = "import sys, signfuse_dist.synthetic.corpus; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
