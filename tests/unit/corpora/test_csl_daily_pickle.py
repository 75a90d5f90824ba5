"""Pickles as data: what the standard library writes comes back, and nothing else is carried out."""

from __future__ import annotations

import contextlib
import os
import pickle
import struct
from collections import OrderedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from signfuse_dist.corpora.csl_daily import PickleError, load_plain

NUMBERS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False)
KEYS = st.text(max_size=20) | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.none()


def plain(scalars: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.recursive(
        scalars,
        lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner) | st.lists(inner).map(tuple),
        max_leaves=30,
    )


TEXTS = NUMBERS | st.text(max_size=300)
# The protocols before 3 write bytes as a call, which is refused.
WRITTEN = st.tuples(plain(TEXTS), st.integers(0, pickle.HIGHEST_PROTOCOL)) | st.tuples(
    plain(TEXTS | st.binary(max_size=300)), st.integers(3, pickle.HIGHEST_PROTOCOL)
)


@settings(max_examples=300, deadline=None)
@given(WRITTEN)
def test_plain_data_comes_back_as_it_was_from_every_protocol(written):
    value, protocol = written
    loaded = load_plain(pickle.dumps(value, protocol))
    assert loaded == value
    assert repr(loaded) == repr(value), "types too: 1 is not True"


def test_shared_and_circular_values_stay_shared():
    inner: list[object] = ["x"]
    value = [inner, inner, {"again": inner}]
    inner.append(inner)
    loaded = load_plain(pickle.dumps(value))
    assert loaded[0] is loaded[1] is loaded[2]["again"] is loaded[0][1]


class Command:
    def __reduce__(self):
        return os.system, ("touch ran",)


class Thing:
    pass


def code(*parts: bytes) -> bytes:
    return b"".join(parts)


TOUCH = b"cos\nsystem\n"
HOSTILE = {
    "reduce": pickle.dumps(Command()),
    "reduce, protocol 0": pickle.dumps(Command(), 0),
    "reduce inside data": pickle.dumps({"info": [{"name": Command()}]}),
    "an object": pickle.dumps(Thing()),
    "a class": pickle.dumps(Thing),
    "a plain class of the standard library": pickle.dumps(OrderedDict(a=1)),
    "a set": pickle.dumps({1}, 2),
    "bytes as a call": pickle.dumps(b"x", 2),
    "global": TOUCH + b".",
    "stack global": code(b"\x80\x04\x8c\x02os\x8c\x06system\x93."),
    "inst": b"(S'touch ran'\nios\nsystem\n.",
    "obj": code(b"(", TOUCH, b"S'touch ran'\no."),
    "newobj": code(TOUCH, b")\x81."),
    "newobj_ex": code(b"\x80\x04", TOUCH, b")}\x92."),
    "build": b"}}b.",
    "extension": b"\x82\x01.",
    "persistent id": b"Pfile:///etc/passwd\n.",
    "binary persistent id": b"S'x'\nQ.",
    "out-of-band buffer": b"\x80\x05\x97.",
    "bytearray": pickle.dumps(bytearray(b"x"), 5),
    "tuples without number": pickle.dumps([(number,) for number in range(1001)]),
    "a long key": pickle.dumps({"x" * 10_001: 3}),
    "a huge number as a key": pickle.dumps({2**80: 3}),
    "a memo of two thousand million places": b"]r\xff\xff\xff\x7f.",
    "a memo of many places by its decimal": b"]p4000000000\n.",
    "a nest of tuples": b")" + b"\x85" * 100_000 + b".",
    "a nest of tuples as a key": b"})" + b"\x85" * 1_000_000 + b"Ns.",
    "a nest of tuples by way of the memo": b"})" + b"\x85\x94h\x00" * 100_000 + b"Ns.",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_what_is_more_than_plain_data_is_refused_and_not_run(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PickleError, match="more than plain data"):
        load_plain(content)
    assert list(tmp_path.iterdir()) == []


DEEP = 100_000
HEAVY = {
    "a nest of lists": (b"(" * DEEP + b"l" * DEEP + b".", list),
    "a thousand tuples, one in the other, as a key": (b"})" + b"\x85" * 1000 + b"Ns.", dict),
    "a nest of dicts": (b"}N" * DEEP + b"N" + b"s" * DEEP + b".", dict),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("content", "kind"), HEAVY.values(), ids=HEAVY.keys())
def test_what_is_heavy_costs_no_more_than_its_bytes(content, kind):
    assert type(load_plain(content)) is kind


@pytest.mark.parametrize(
    "opcode", [b"\x8d", b"\x8e", b"\x96", b"\x95"], ids=["text", "bytes", "bytearray", "frame"]
)
def test_a_length_beyond_the_end_is_damage_and_allocates_nothing(opcode):
    with pytest.raises(PickleError):
        load_plain(b"\x80\x05" + opcode + struct.pack("<Q", 2**50) + b"x.")


def test_every_beginning_of_a_pickle_is_damaged():
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        content = pickle.dumps({"info": [{"name": "a", "label_char": ["你", "好"]}]}, protocol)
        for end in range(len(content)):
            with pytest.raises(PickleError):
                load_plain(content[:end])


@pytest.mark.parametrize(
    "content",
    [
        b".",
        b"}]Ns.",
        b"(.",
        b"0.",
        b"1.",
        b"2.",
        b"(a.",
        b"NNa.",
        b"]Ns.",
        b"}(Nu.",
        b"]e.",
        b"e.",
        b"q\x00.",
        b"(q\x00.",
        b"h\x00.",
        b"\x94.",
        b"\x86.",
        b"N\x86.",
        b"(N\x86.",
        b"(Nd.",
        b"t.",
        b"S'\\xe9'\n.",
        b"I12x\n.",
        b"\xff",
        b"U\x01\xe9.",
    ],
)
def test_a_program_that_makes_no_value_is_damaged(content):
    with pytest.raises(PickleError):
        load_plain(content)


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_data_or_an_error_by_name(content):
    with contextlib.suppress(PickleError):
        load_plain(content)
