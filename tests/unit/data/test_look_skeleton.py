from __future__ import annotations

import numpy as np
import pytest

from signfuse_dist.data.look import COLOURS, contact_sheet, draw_skeleton
from signfuse_dist.skeleton import JOINT_INDEX, NUM_JOINTS

FRAME = np.zeros((64, 64, 3), dtype=np.uint8)


def joints(*names: str) -> tuple[np.ndarray, np.ndarray]:
    pose = np.zeros((NUM_JOINTS, 2), dtype=np.float32)
    mask = np.zeros(NUM_JOINTS, dtype=bool)
    for i, name in enumerate(names):
        pose[JOINT_INDEX[name]] = (0.25 + 0.5 * i, 0.5)
        mask[JOINT_INDEX[name]] = True
    return pose, mask


def test_a_joint_is_drawn_in_the_colour_of_its_part_where_it_is():
    for name in ("left_hand_wrist", "right_hand_wrist", "nose", "face_chin"):
        drawn = draw_skeleton(FRAME, *joints(name))
        assert tuple(drawn[32, 16]) == COLOURS[name]
        assert not drawn[:, 20:].any()
        assert not FRAME.any(), "the frame itself is left alone"


def test_bones_join_joints_that_are_both_there():
    drawn = draw_skeleton(FRAME, *joints("left_shoulder", "right_shoulder"))
    assert drawn[32, 32].any()
    pose, mask = joints("left_shoulder", "right_shoulder")
    mask[JOINT_INDEX["right_shoulder"]] = False
    assert not draw_skeleton(FRAME, pose, mask)[:, 20:].any()


def test_joints_outside_the_frame_are_no_error():
    pose, mask = joints("nose")
    pose[JOINT_INDEX["nose"]] = (-3.0, 9.0)
    assert not draw_skeleton(FRAME, pose, mask).any()


def test_a_contact_sheet_is_a_grid():
    pose, mask = joints("nose")
    stack = [np.stack([one] * 5) for one in (FRAME, pose, mask)]
    sheet = contact_sheet(*stack, columns=3)
    assert sheet.size == (3 * 68 + 4, 2 * 68 + 4)
    pixels = np.asarray(sheet)
    assert tuple(pixels[4 + 32, 4 + 16]) == tuple(pixels[72 + 32, 72 + 16]) == COLOURS["nose"]
    assert (pixels[-30, -30] == 255).all(), "no sixth picture"
    with pytest.raises(ValueError, match="make no sheet"):
        contact_sheet(FRAME[None][:0], pose[None][:0], mask[None][:0], columns=3)
