"""Data sets: digits, MNIST's four files, npz files."""

import hashlib
import http.server
import io
import struct
import threading
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sample_files import (
    check_whole,
    idx_bytes,
    real_mnist,
    refused,
    stripes,
    write_mnist,
)

from cnn_ext import data
from cnn_ext.data import DataError, Dataset, _mnist

IMAGES, LABELS = stripes(40, 8, 4)
BOUNDED = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


# Dataset and split


def make(**changes):
    fields = {
        "name": "toy",
        "x_train": np.zeros((3, 1, 2, 2), np.float32),
        "y_train": np.array([0, 1, 1]),
        "x_test": np.zeros((1, 1, 2, 2), np.float32),
        "y_test": np.array([1]),
        "class_names": ("a", "b"),
    }
    return Dataset(**(fields | changes))


def test_dataset_knows_its_shape():
    assert make().input_shape == (1, 2, 2)
    assert repr(make()) == (
        "Dataset('toy', 3 training and 1 test images of (1, 2, 2), 2 classes)"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": np.zeros((3, 1, 2, 2))}, "x_train is float64"),
        ({"x_train": np.zeros((3, 2, 2), np.float32)}, "must be float32 of shape"),
        ({"class_names": ("a",)}, "has 1 classes; a classifier needs at least two"),
        ({"y_train": np.array([0, 1])}, r"labels must be int64 of shape \(3,\)"),
        ({"y_train": np.array([0.0, 1.0, 1.0])}, "y_train is float64"),
        ({"y_train": np.array([0, 1, 2])}, r"must lie in 0\.\.1"),
        ({"y_train": np.array([0, 1, -1])}, "from -1 to 1"),
        ({"x_test": np.zeros((1, 1, 2, 3), np.float32)}, "they must agree"),
        (
            {"x_test": np.zeros((0, 1, 2, 2), np.float32), "y_test": np.zeros(0, int)},
            "at least one image",
        ),
    ],
)
def test_dataset_refuses_what_does_not_fit(changes, message):
    refused(message, make, **changes)


def test_split_is_stratified_seeded_and_complete(tmp_path):
    labels = np.repeat([0, 1, 2, 3], [50, 10, 2, 1])
    images = np.arange(63, dtype=np.float32).reshape(63, 1, 1)
    np.savez(tmp_path / "f.npz", x=images, y=labels)
    found = data.npz(tmp_path / "f.npz")
    assert list(np.bincount(found.y_test, minlength=4)) == [10, 2, 1, 0]
    together = np.concatenate([found.x_train, found.x_test]).ravel()
    np.testing.assert_array_equal(np.sort(together), np.arange(63))
    again = data.npz(tmp_path / "f.npz")
    np.testing.assert_array_equal(found.x_test, again.x_test)
    other = data.npz(tmp_path / "f.npz", seed=1)
    assert not np.array_equal(found.x_test, other.x_test)
    half = data.npz(tmp_path / "f.npz", test_fraction=0.5)
    assert list(np.bincount(half.y_test, minlength=4)) == [25, 5, 1, 0]
    for fraction in (0, 1, -1, float("nan")):
        refused("test_fraction", data.npz, tmp_path / "f.npz", test_fraction=fraction)


# digits


def test_digits_are_real_and_split():
    pytest.importorskip("sklearn")
    found = data.digits()
    check_whole(found)
    assert found.input_shape == (1, 8, 8) and found.class_names == tuple("0123456789")
    assert len(found.x_train) + len(found.x_test) == 1797
    assert found.x_train.max() == 1 and found.x_train.min() == 0
    counts = np.bincount(found.y_test, minlength=10)
    assert counts.min() >= 34 and counts.max() <= 37
    # 17 grey levels, exactly
    np.testing.assert_array_equal(found.x_train * 16 % 1, 0)


def test_digits_say_which_extra_they_need(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    refused(r"scikit-learn.*pip install 'cnn_ext\[demo\]'", data.digits)


# MNIST


@pytest.mark.parametrize("compress", [False, True])
def test_mnist_reads_four_files(tmp_path, compress):
    found = data.mnist(write_mnist(tmp_path, compress=compress))
    check_whole(found)
    assert found.input_shape == (1, 8, 8) and found.class_names == tuple("0123")
    images, labels = stripes(40, 8, 4)
    np.testing.assert_array_equal(
        found.x_train[:, 0], (images / np.float32(255)).astype(np.float32)
    )
    np.testing.assert_array_equal(found.y_train, labels)


def test_mnist_finds_the_folder_by_environment(tmp_path, monkeypatch):
    write_mnist(tmp_path / "mnist")
    monkeypatch.setenv("CNN_EXT_DATA", str(tmp_path))
    assert len(data.mnist().x_train) == 40
    monkeypatch.setenv("CNN_EXT_DATA", str(tmp_path / "absent"))
    refused("CNN_EXT_DATA: .*absent: no such folder; pass --data DIR", data.mnist)


def test_mnist_refuses_files_that_do_not_fit(tmp_path):
    write_mnist(tmp_path)
    labels = tmp_path / "t10k-labels-idx1-ubyte"
    images = tmp_path / "t10k-images-idx3-ubyte"
    labels.write_bytes(idx_bytes(np.zeros(19, np.uint8)))
    refused("has 19 labels, t10k-images.* has 20 images", data.mnist, tmp_path)
    labels.write_bytes(idx_bytes(np.zeros((20, 1), np.uint8)))
    refused("t10k-labels.*has 2 dimensions; it must have 1", data.mnist, tmp_path)
    labels.write_bytes(idx_bytes(np.zeros(20, np.int32)))
    refused("elements are int32; they must be uint8", data.mnist, tmp_path)
    labels.write_bytes(idx_bytes(np.zeros(20, np.uint8)))
    images.write_bytes(idx_bytes(np.zeros((20, 8, 7), np.uint8)))
    refused(r"\(1, 8, 8\), test images \(1, 8, 7\)", data.mnist, tmp_path)
    images.unlink()
    message = refused("has no t10k-images-idx3-ubyte", data.mnist, tmp_path)
    assert all(name in message for name in data.MNIST_FILES)


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A local server of a small set; pooch's cache in a folder of the test."""
    pooch = pytest.importorskip("pooch")
    served = write_mnist(tmp_path / "served", compress=True)
    requests = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=served)

        def do_GET(self):
            requests.append(self.path)
            super().do_GET()

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    host = f"127.0.0.1:{server.server_port}"
    # The first mirror answers nothing, so that the second one is asked.
    dead = "http://127.0.0.1:1/"
    monkeypatch.setattr(_mnist, "MIRRORS", (dead, f"http://{host}/"))
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache" / name)
    monkeypatch.delenv("CNN_EXT_DATA", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield served, requests
    server.shutdown()
    server.server_close()
    thread.join()


def test_mnist_downloads_once_and_checks_sha256(mirror, monkeypatch):
    served, requests = mirror
    hashes = {
        name: hashlib.sha256((served / f"{name}.gz").read_bytes()).hexdigest()
        for name in data.MNIST_FILES
    }
    with monkeypatch.context() as patch:
        patch.setattr(_mnist, "MNIST_FILES", hashes)
        assert len(data.mnist().x_train) == 40
        assert len(requests) == 4
        data.mnist()
        assert len(requests) == 4
    # These are not the real files, and the known hashes say so.
    refused("its SHA-256 is not the known one.*pass --data DIR", data.mnist)


def test_mnist_offline_says_what_to_do(mirror, monkeypatch):
    monkeypatch.setattr(_mnist, "MIRRORS", ("http://127.0.0.1:1/",))
    message = refused("could not be downloaded .*pass --data DIR", data.mnist)
    assert all(name in message for name in data.MNIST_FILES)
    monkeypatch.setitem(__import__("sys").modules, "pooch", None)
    refused(r"pass --data DIR.*pip install 'cnn_ext\[demo\]'", data.mnist)


def test_real_mnist():
    folder = real_mnist()
    if folder is None:
        pytest.skip("the real MNIST files are not here; set CNN_EXT_DATA to them")
    found = data.mnist(folder)
    check_whole(found)
    assert found.x_train.shape == (60000, 1, 28, 28)
    assert found.x_test.shape == (10000, 1, 28, 28)
    digest = hashlib.sha256()
    pixels = np.rint(found.x_train * 255).astype(np.uint8)
    assert hashlib.md5(idx_bytes(pixels[:, 0])).hexdigest() == (
        "6bbc9ace898e44ae57da46a324031adb"  # of train-images-idx3-ubyte
    )
    digest.update(idx_bytes(found.y_test.astype(np.uint8)))
    assert digest.hexdigest() == (
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
    )


# npz


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_npz_scales_uint8(tmp_path, write):
    write(tmp_path / "f.npz", x=IMAGES, y=LABELS)
    found = data.npz(tmp_path / "f.npz")
    check_whole(found)
    assert found.input_shape == (1, 8, 8) and found.class_names == tuple("0123")
    assert found.x_train.max() == np.float32(IMAGES.max()) / np.float32(255)


def test_npz_takes_its_own_test_part(tmp_path):
    path = save(
        tmp_path / "f.npz", x=IMAGES, y=LABELS, x_test=IMAGES[:6], y_test=LABELS[:6]
    )
    found = data.npz(path)
    assert (len(found.x_train), len(found.x_test)) == (40, 6)


@pytest.mark.parametrize("dtype", ["f4", "f8", ">f4", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npz_takes_floats_as_they_are(tmp_path, dtype, order):
    x = np.linspace(-3, 5, 10 * 2 * 3 * 4).reshape(10, 2, 3, 4)
    x = np.asarray(x, dtype=dtype, order=order)
    y = np.arange(10, dtype=">u2") % 2
    path = save(tmp_path / "f.npz", x=x, y=y, x_test=x, y_test=y)
    found = data.npz(path)
    np.testing.assert_array_equal(found.x_train, x.astype(np.float32))
    assert found.x_train.flags.c_contiguous
    np.testing.assert_array_equal(found.y_train, y)


def test_npz_channels_last_only_if_told(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (10, 8, 9, 3), dtype=np.uint8)
    path = save(tmp_path / "f.npz", x=x, y=np.arange(10) % 2)
    refused(r"looks like \(N, H, W, C\)", data.npz, path)
    assert data.npz(path, channels_last=True).input_shape == (3, 8, 9)
    assert data.npz(path, channels_last=False).input_shape == (8, 9, 3)


OBJECTS = np.array([{}, None, 1, 2], dtype=object)
BAD_NPZ = {
    "no y": ({"x": IMAGES}, "has no key 'y'"),
    "no x": ({"y": LABELS}, "has no key 'x'"),
    "other keys": ({"images": IMAGES, "labels": LABELS}, "images, labels"),
    "one test key": ({"x": IMAGES, "y": LABELS, "x_test": IMAGES}, "only one of"),
    "flat": ({"x": IMAGES.reshape(40, 64), "y": LABELS}, r"\(N, H, W\) or"),
    "five": ({"x": IMAGES.reshape(5, 8, 2, 4, 8), "y": LABELS[:5]}, "1 to 4"),
    "int32": ({"x": IMAGES.astype("i4"), "y": LABELS}, "x is int32; images must be"),
    "bool": ({"x": IMAGES > 5, "y": LABELS}, "x is bool"),
    "float16": ({"x": IMAGES.astype("f2"), "y": LABELS}, "x is float16"),
    "complex": ({"x": IMAGES.astype("c8"), "y": LABELS}, "array of numbers"),
    "strings": ({"x": IMAGES, "y": LABELS.astype("U1")}, "array of numbers"),
    "struct": ({"x": np.zeros(4, "u1,u1"), "y": LABELS}, "array of numbers"),
    "pickle x": ({"x": OBJECTS, "y": LABELS}, "never unpickled"),
    "pickle y": ({"x": IMAGES[:4], "y": OBJECTS}, "never unpickled"),
    "NaN": ({"x": np.full((4, 2, 2), np.nan), "y": [0, 0, 1, 1]}, "NaN or inf"),
    "too large": ({"x": np.full((4, 2, 2), 1e39), "y": [0, 0, 1, 1]}, "NaN or inf"),
    "float labels": ({"x": IMAGES, "y": LABELS / 1.0}, "labels must be integers"),
    "bool labels": ({"x": IMAGES, "y": LABELS > 1}, "labels must be integers"),
    "one-hot": ({"x": IMAGES, "y": np.eye(40, dtype=int)}, r"must be \(40,\)"),
    "few labels": ({"x": IMAGES, "y": LABELS[:39]}, "one label for each"),
    "negative": ({"x": IMAGES, "y": LABELS.astype(int) - 1}, "from -1 to 2"),
    "huge label": (
        {"x": IMAGES, "y": LABELS + np.int64(1 << 40)},
        r"lie in 0\.\.65535",
    ),
    "largest": ({"x": IMAGES, "y": LABELS + np.uint64(2**64 - 9)}, r"0\.\.65535"),
    "no images": ({"x": IMAGES[:0], "y": LABELS[:0]}, "none of them zero"),
    "scalar": ({"x": np.float32(1), "y": LABELS}, "1 to 4 dimensions"),
    "one of each": ({"x": IMAGES[:4], "y": LABELS[:4]}, "no class has two images"),
}


@pytest.mark.parametrize("name", BAD_NPZ)
def test_npz_refuses(tmp_path, name):
    arrays, message = BAD_NPZ[name]
    path = save(tmp_path / "bad.npz", **arrays)
    assert str(path) in refused(message, data.npz, path)


def npy_bytes(header, body=b"", version=b"\x01\x00"):
    text = header.encode("latin1")
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + body


def zip_of(path, members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def header(shape, descr="'|u1'"):
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n"


BAD_HEADERS = {
    "huge": (npy_bytes(header("(1099511627776,)")), "more than the file holds"),
    "overflow": (npy_bytes(header(f"({2**62}, {2**62}, 4)")), "more than the file"),
    "bomb": (npy_bytes(header(f"({1 << 26},)"), bytes(1 << 26)), "the limit is"),
    "negative": (npy_bytes(header("(-4, 2, 2)")), "none of them zero"),
    "short": (npy_bytes(header("(4, 2, 2)"), bytes(15)), "more than the file holds"),
    "long": (npy_bytes(header("(4, 2, 2)"), bytes(17)), "after its last element"),
    "no dict": (npy_bytes("[1, 2]\n"), "damaged .npy header"),
    "call": (npy_bytes(header("(__import__('os').getpid(),)")), "damaged .npy header"),
    "nested": (npy_bytes("(" * 9000), "damaged .npy header"),
    "long header": (npy_bytes(header("(4,)") + " " * 20000), "damaged .npy header"),
    "text": (b"hello", "damaged .npy header"),
    "empty": (b"", "damaged .npy header"),
    "version 9": (npy_bytes(header("(4,)"), version=b"\x09\x00"), "damaged .npy"),
    "object": (npy_bytes(header("(4,)", "'|O'"), b"cos\nsystem\n"), "never unpickled"),
    "void": (npy_bytes(header("(4,)", "'|V0'")), "array of numbers"),
}


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_npz_headers_are_checked_before_allocating(tmp_path, name):
    content, message = BAD_HEADERS[name]
    path = zip_of(tmp_path / "bad.npz", {"x": content, "y": b""})
    tracemalloc.start()
    try:
        refused(message, data.npz, path, max_bytes=1 << 20)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


def test_npz_refuses_damaged_archives(tmp_path):
    path = tmp_path / "bad.npz"
    for content in (b"", b"PK\x03\x04", b"hello", bytes(100), b"\x93NUMPY\x01\0"):
        path.write_bytes(content)
        refused("not an .npz file", data.npz, path)
    good = io.BytesIO()
    np.savez(good, x=IMAGES, y=LABELS)
    damaged = bytearray(good.getvalue())
    damaged[300] ^= 1  # a pixel: the archive's checksum knows
    path.write_bytes(damaged)
    refused("x cannot be read: Bad CRC", data.npz, path)
    zip_of(path, {"x": b"", "y": b""}, zipfile.ZIP_BZIP2)
    refused("zip compression 12", data.npz, path)
    refused("cannot be opened", data.npz, tmp_path / "absent.npz")
    refused("is a folder", data.npz, tmp_path)


@BOUNDED
@given(changes=st.data())
def test_npz_any_damage_gives_data_or_one_error(tmp_path, changes):
    good = io.BytesIO()
    np.savez_compressed(good, x=IMAGES[:8, :3, :3], y=LABELS[:8])
    content = bytearray(good.getvalue())
    for _ in range(changes.draw(st.integers(1, 4))):
        position = changes.draw(st.integers(0, len(content) - 1))
        content[position] = changes.draw(st.integers(0, 255))
    cut = changes.draw(st.integers(0, len(content)) | st.just(len(content)))
    path = tmp_path / "f.npz"
    path.write_bytes(content[:cut])
    try:
        check_whole(data.npz(path, max_bytes=1 << 20))
    except DataError as error:
        assert "\n" not in str(error)
