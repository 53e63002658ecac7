"""The IDX reader: what it reads, and what it refuses with one clear error."""

import gzip
import os
import struct
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sample_files import CODES, idx_bytes

from cnn_ext.data import DataError, read_idx

FIVE = np.arange(5, dtype=np.uint8)
CUBE = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("compress", [False, True])
def test_reads_every_element_type(tmp_path, code, compress):
    array = (np.arange(24).reshape(2, 3, 4) - 7).astype(code)
    path = tmp_path / "file"
    content = idx_bytes(array)
    path.write_bytes(gzip.compress(content) if compress else content)
    found = read_idx(path)
    assert found.dtype == array.dtype and found.dtype.isnative
    assert found.flags.c_contiguous and found.flags.writeable
    np.testing.assert_array_equal(found, array)


def test_gzip_is_known_by_content_not_by_name(tmp_path):
    path = tmp_path / "plain.gz"
    path.write_bytes(idx_bytes(FIVE))
    np.testing.assert_array_equal(read_idx(path), FIVE)


def test_gzip_of_several_members_is_one_stream(tmp_path):
    content = idx_bytes(CUBE)
    path = tmp_path / "file.gz"
    path.write_bytes(gzip.compress(content[:9]) + gzip.compress(content[9:]))
    np.testing.assert_array_equal(read_idx(path), CUBE)


def with_bad_crc(content):
    packed = bytearray(gzip.compress(content))
    packed[-5] ^= 1
    return bytes(packed)


# name -> (bytes of the file, keywords of read_idx, a part of the message)
HOSTILE = {
    "empty": (b"", {}, "truncated: 0 bytes"),
    "one byte": (b"\0", {}, "truncated: 1 bytes"),
    "two zeros": (b"\0\0", {}, "truncated: 2 bytes"),
    "magic only": (b"\0\0\x08\x01", {}, "ends within its 1 sizes"),
    "half a size": (b"\0\0\x08\x01\0\0", {}, "ends within its 1 sizes"),
    "second size missing": (b"\0\0\x08\x02\0\0\0\x01", {}, "within its 2 sizes"),
    "text": (b"hello world", {}, "wrong magic number 0x68656c6c"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(40), {}, "wrong magic number 0x89504e47"),
    "little-endian magic": (b"\x01\x08\0\0\x05\0\0\0", {}, "wrong magic number"),
    "unknown type 0a": (idx_bytes(FIVE, magic=b"\0\0\x0a\x01"), {}, "0x00000a01"),
    "unknown type ff": (idx_bytes(FIVE, magic=b"\0\0\xff\x01"), {}, "0x0000ff01"),
    "no dimensions": (b"\0\0\x08\0\x05", {}, "0 dimensions"),
    "255 dimensions": (b"\0\0\x08\xff" + bytes(1020), {}, "255 dimensions"),
    "9 dimensions": (idx_bytes(FIVE, shape=(1,) * 8 + (5,)), {}, "9 dimensions"),
    "one element short": (idx_bytes(FIVE)[:-1], {}, "takes 13 bytes, the file has 12"),
    "no elements": (idx_bytes(CUBE)[:16], {}, "takes 40 bytes, the file has 16"),
    "one byte more": (idx_bytes(FIVE) + b"\0", {}, "1 trailing bytes"),
    "twice": (idx_bytes(FIVE) * 2, {}, "13 trailing bytes"),
    "a size of zero": (idx_bytes(FIVE, shape=(0,)), {}, "no size may be zero"),
    "zero and huge": (
        idx_bytes(FIVE[:0], shape=(0, 2**32 - 1, 2**32 - 1)),
        {},
        "no size may be zero",
    ),
    "4 GiB claimed": (idx_bytes(FIVE, shape=(2**32 - 1,)), {}, "the file has 13"),
    "product past 2**64": (
        idx_bytes(FIVE, shape=(2**32 - 1,) * 8),
        {},
        "the file has 41",
    ),
    "product 2**64": (idx_bytes(FIVE, shape=(2**31, 2**31, 4)), {}, "truncated"),
    "wrong type": (idx_bytes(FIVE.astype("i4")), {"dtype": np.uint8}, "must be uint8"),
    "wrong rank": (idx_bytes(FIVE), {"ndim": 3}, "it must have 3"),
    "over the limit": (idx_bytes(CUBE), {"max_bytes": 23}, "the limit is 23"),
    "gzip magic only": (b"\x1f\x8b", {}, "ends before its end mark"),
    "gzip truncated": (gzip.compress(idx_bytes(CUBE))[:-9], {}, "end mark"),
    "gzip end mark cut": (gzip.compress(idx_bytes(CUBE))[:-1], {}, "end mark"),
    "gzip wrong checksum": (with_bad_crc(idx_bytes(CUBE)), {}, "damaged gzip"),
    "gzip wrong method": (b"\x1f\x8b\x07" + bytes(20), {}, "damaged gzip"),
    "gzip damaged": (gzip.compress(idx_bytes(CUBE))[:10] + b"\xff" * 30, {}, "gzip"),
    "gzip of nothing": (gzip.compress(b""), {}, "truncated: 0 bytes"),
    "gzip of text": (gzip.compress(b"hello world"), {}, "wrong magic number"),
    "gzip of short": (gzip.compress(idx_bytes(CUBE)[:-3]), {}, "there are 37"),
    "gzip of long": (gzip.compress(idx_bytes(CUBE) + b"\0"), {}, "trailing bytes"),
    "gzip and garbage": (gzip.compress(idx_bytes(CUBE)) + b"junk", {}, "gzip"),
    "gzip twice": (gzip.compress(gzip.compress(idx_bytes(CUBE))), {}, "wrong magic"),
    "gzip claiming 4 GiB": (
        gzip.compress(idx_bytes(FIVE, shape=(2**32 - 1,))),
        {},
        "its gzip stream at most",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_refuses_with_one_clear_line(tmp_path, name):
    content, keywords, message = HOSTILE[name]
    path = tmp_path / "hostile-idx"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_idx(path, **keywords)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_gzip_bomb_is_neither_unpacked_nor_allocated(tmp_path):
    zeros = bytes(1 << 20)
    path = tmp_path / "bomb.gz"
    with gzip.open(path, "wb") as stream:  # 64 MiB of zeros in about 64 KB
        stream.write(b"\0\0\x08\x01" + struct.pack(">I", 64 << 20))
        for _ in range(64):
            stream.write(zeros)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="the limit is 1048576"):
            read_idx(path, max_bytes=1 << 20)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


def test_a_bomb_behind_a_small_header_is_not_unpacked(tmp_path):
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(idx_bytes(FIVE) + bytes(64 << 20)))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="trailing bytes"):
            read_idx(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


def test_places_that_are_no_files(tmp_path):
    with pytest.raises(DataError, match=r"cannot be opened: .*No such file"):
        read_idx(tmp_path / "absent")
    with pytest.raises(DataError, match="is a folder"):
        read_idx(tmp_path)
    with pytest.raises(DataError, match="cannot be opened"):
        read_idx("a\0b")


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes in folders")
def test_a_pipe_is_refused_and_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="not a regular file"):
        read_idx(tmp_path / "pipe")


BOUNDED = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def reads_or_refuses(path, content):
    path.write_bytes(content)
    try:
        found = read_idx(path, max_bytes=1 << 20)
    except DataError as error:
        assert "\n" not in str(error)
        return None
    # What is accepted is a whole IDX file: writing it again gives its bytes.
    plain = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    assert idx_bytes(found) == plain
    return found


@BOUNDED
@given(
    code=st.sampled_from([*sorted(CODES.values()), 0, 10, 255]),
    shape=st.lists(
        st.one_of(st.integers(0, 5), st.sampled_from([2**31, 2**32 - 1])), max_size=9
    ),
    body=st.binary(max_size=400),
    compress=st.booleans(),
)
def test_any_header_and_body(tmp_path, code, shape, body, compress):
    magic = bytes([0, 0, code, len(shape)])
    content = magic + struct.pack(f">{len(shape)}I", *shape) + body
    reads_or_refuses(tmp_path / "f", gzip.compress(content) if compress else content)


@BOUNDED
@given(data=st.data(), compress=st.booleans())
def test_any_damage_to_a_good_file(tmp_path, data, compress):
    content = idx_bytes(CUBE)
    content = bytearray(gzip.compress(content, mtime=0) if compress else content)
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(
            st.integers(0, 255)
        )
    cut = data.draw(st.integers(0, len(content)))
    reads_or_refuses(tmp_path / "f", bytes(content[:cut]))


@BOUNDED
@given(content=st.binary(max_size=200), packed=st.booleans())
def test_any_bytes(tmp_path, content, packed):
    reads_or_refuses(tmp_path / "f", b"\x1f\x8b\x08" + content if packed else content)
