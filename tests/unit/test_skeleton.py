"""The 75 joints, their graph, and Eq. 4's normalisation by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from signfuse_dist.skeleton import (
    BODY,
    BONES,
    FACE,
    FACE_MESH,
    JOINT_INDEX,
    JOINTS,
    LEFT_HAND,
    NUM_JOINTS,
    PARTITIONS,
    RIGHT_HAND,
    ROOT,
    choose_joints,
    hops_from_root,
    normalized_adjacency,
    partitioned_adjacency,
)

SELF, INWARD, OUTWARD = range(3)


def test_there_are_75_joints_with_names_of_their_own() -> None:
    assert (len(LEFT_HAND), len(RIGHT_HAND), len(BODY), len(FACE)) == (21, 21, 23, 10)
    assert NUM_JOINTS == len(set(JOINTS)) == 75
    assert [JOINT_INDEX[name] for name in JOINTS] == list(range(75))


def test_the_face_landmarks_are_those_of_the_design() -> None:
    assert set(FACE_MESH.values()) == {61, 291, 13, 14, 105, 334, 33, 263, 1, 152}
    assert FACE_MESH["face_nose_tip"] == 1
    assert FACE_MESH["face_chin"] == 152


def test_body_joints_are_in_mediapipes_order() -> None:
    mediapipe = {
        0: "nose",
        11: "left_shoulder",
        12: "right_shoulder",
        13: "left_elbow",
        15: "left_wrist",
        16: "right_wrist",
        19: "left_index",
        22: "right_thumb",
    }
    for index, name in mediapipe.items():
        assert BODY[index] == name


def test_every_bone_joins_two_known_joints_once() -> None:
    assert all(a in JOINT_INDEX and b in JOINT_INDEX and a != b for a, b in BONES)
    assert len({frozenset(bone) for bone in BONES}) == len(BONES)


def test_the_graph_is_connected() -> None:
    assert set(hops_from_root()) == set(JOINTS)


def test_left_and_right_are_mirror_images() -> None:
    def mirror(name: str) -> str:
        sides = {"left": "right", "right": "left"}
        return "_".join(sides.get(word, word) for word in name.split("_"))

    bones = {frozenset(bone) for bone in BONES}
    assert {frozenset(map(mirror, bone)) for bone in bones} == bones
    hops = hops_from_root()
    assert all(hops[name] == hops[mirror(name)] for name in JOINTS)


def test_hops_count_bones() -> None:
    hops = hops_from_root()
    assert hops[ROOT] == 0
    assert hops["left_shoulder"] == 1
    assert hops["left_wrist"] == 3
    assert hops["left_hand_wrist"] == 4
    assert hops["left_hand_index_4"] == 8


def test_partitions_divide_every_bone_by_its_distance_from_the_root() -> None:
    assert PARTITIONS == ("self", "inward", "outward")
    adjacency, hops = partitioned_adjacency(), hops_from_root()
    assert adjacency.shape == (3, 75, 75)
    everything = adjacency.sum(axis=0)
    assert everything.sum() == 2 * len(BONES)
    assert np.array_equal(everything, everything.T)
    for a, b in BONES:
        for row, column in ((a, b), (b, a)):
            found = adjacency[:, JOINT_INDEX[row], JOINT_INDEX[column]]
            nearer = hops[column] - hops[row]  # row i collects from column j
            expected = SELF if nearer == 0 else INWARD if nearer < 0 else OUTWARD
            assert found.tolist() == [float(k == expected) for k in range(3)]
    assert np.array_equal(adjacency[INWARD], adjacency[OUTWARD].T)
    assert np.array_equal(adjacency[SELF], adjacency[SELF].T)


def _entry(partition: int, row: str, column: str) -> float:
    return float(normalized_adjacency()[partition, JOINT_INDEX[row], JOINT_INDEX[column]])


def test_the_normalisation_of_equation_4_by_hand() -> None:
    """D^-1/2 (A + I) D^-1/2 with D the row sums of A + I, in each partition by itself."""
    # Self: the shoulders are as far from the nose as each other; degree 2 each.
    assert _entry(SELF, "left_shoulder", "right_shoulder") == pytest.approx(1 / 2)
    assert _entry(SELF, "left_shoulder", "left_shoulder") == pytest.approx(1 / 2)
    assert _entry(SELF, "left_elbow", "left_elbow") == 1
    # Inward: a fingertip collects from one joint, as does that joint: degrees 2 and 2.
    assert _entry(INWARD, "left_hand_index_4", "left_hand_index_3") == pytest.approx(1 / 2)
    assert _entry(INWARD, "left_hand_index_3", "left_hand_index_4") == 0
    # Inward from the root nothing is left: degree 1.
    assert _entry(INWARD, "nose", "nose") == 1
    assert _entry(INWARD, "left_shoulder", "nose") == pytest.approx(1 / math.sqrt(2 * 1))
    # Outward: the hand's wrist collects from 5 fingers (degree 6), a fingertip from none (1).
    assert _entry(OUTWARD, "left_hand_wrist", "left_hand_wrist") == pytest.approx(1 / 6)
    assert _entry(OUTWARD, "left_hand_wrist", "left_hand_index_1") == pytest.approx(
        1 / math.sqrt(6 * 2)
    )
    assert _entry(OUTWARD, "left_hand_index_3", "left_hand_index_4") == pytest.approx(
        1 / math.sqrt(2 * 1)
    )
    # Outward from the pose wrist: pinky, index, thumb and the hand's wrist: degree 5.
    assert _entry(OUTWARD, "left_wrist", "left_pinky") == pytest.approx(1 / math.sqrt(5 * 1))


def test_every_joint_keeps_itself_in_every_partition() -> None:
    normalized = normalized_adjacency()
    assert np.isfinite(normalized).all()
    assert (normalized >= 0).all()
    assert (np.diagonal(normalized, axis1=1, axis2=2) > 0).all()
    assert np.array_equal(normalized > 0, partitioned_adjacency() + np.eye(75) > 0)


def test_joints_are_chosen_by_names_and_groups_in_the_order_of_all() -> None:
    assert choose_joints(None) == JOINTS
    assert choose_joints(["nose", "left_hand", "left_hand_wrist"]) == (*LEFT_HAND, "nose")
    assert choose_joints(["face", "body", "right_hand", "left_hand"]) == JOINTS
    with pytest.raises(ValueError, match=r"'nos' is neither .* did you mean 'nose'"):
        choose_joints(["left_hand", "nos"])


def test_joints_that_are_left_out_are_skipped_along_the_bones() -> None:
    chosen = choose_joints(["nose", "left_hand_wrist", "right_hand_wrist", "left_hand_thumb_4"])
    left, tip, right, nose = range(4)
    assert [chosen.index(name) for name in ("left_hand_wrist", "nose")] == [left, nose]
    joined = {(k, i, j) for k, i, j in np.argwhere(partitioned_adjacency(chosen)).tolist()}
    assert joined == {
        (SELF, left, right), (SELF, right, left),
        (INWARD, left, nose), (OUTWARD, nose, left),
        (INWARD, right, nose), (OUTWARD, nose, right),
        (INWARD, tip, left), (OUTWARD, left, tip),
    }  # fmt: skip


def test_a_group_by_itself_keeps_its_own_bones() -> None:
    rows = [JOINT_INDEX[name] for name in RIGHT_HAND]
    whole = partitioned_adjacency()[:, rows][:, :, rows]
    assert np.array_equal(partitioned_adjacency(RIGHT_HAND), whole)
