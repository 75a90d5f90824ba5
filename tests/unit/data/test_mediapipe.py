"""What MediaPipe always says is held back by name; what it says besides is passed on."""

from __future__ import annotations

import os

import pytest

from signfuse_dist.data.mediapipe import _known_lines_dropped

NOISE = b"""INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
WARNING: All log messages before absl::InitializeLog() is called are written to STDERR
I0000 00:00:1795939854.170951   14896 gl_context.cc:357] GL version: 3.2
W0000 00:00:1795939854.170951   14896 inference_feedback_manager.cc:114] Feedback manager requires
W0000 00:00:1795939854.170951   14896 landmark_projection_calculator.cc:186] Using NORM_RECT
"""
NEWS = (
    b"E0000 00:00:1795939854.170951 14896 tensor.cc:9] no memory\nW0000 00:00:1.1 1 other.cc:1] x\n"
)


def test_lines_that_always_come_are_dropped_and_others_are_not(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with _known_lines_dropped():
        os.write(2, NOISE + NEWS)
    assert capfd.readouterr().err == NEWS.decode()
    with _known_lines_dropped(wanted=False):
        os.write(2, NOISE)
    assert capfd.readouterr().err == NOISE.decode()


def test_what_was_said_before_a_failure_is_not_lost(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        os.write(2, NEWS)
        raise RuntimeError

    with pytest.raises(RuntimeError), _known_lines_dropped():
        fail()
    assert capfd.readouterr().err == NEWS.decode()
