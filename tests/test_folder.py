"""Image folders and single images: what is read, and what is refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sample_files import check_whole, refused, stripes, write_images

from cnn_ext import data
from cnn_ext.data import DataError

BOUNDED = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture
def pillow():
    return pytest.importorskip("PIL.Image")


def test_folder_reads_one_class_a_sub_folder(tmp_path, pillow):
    write_images(tmp_path, classes=("cat", "dog", "eel"))
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / ".hidden").mkdir()
    found = data.folder(tmp_path)
    check_whole(found)
    assert found.class_names == ("cat", "dog", "eel")
    assert found.input_shape == (1, 8, 8)
    assert (len(found.x_train), len(found.x_test)) == (15, 3)
    again = data.folder(tmp_path)
    np.testing.assert_array_equal(found.x_test, again.x_test)
    images, _ = stripes(18, 8, 3)
    pixels = {image.tobytes() for image in images}
    for image in np.concatenate([found.x_train, found.x_test]):
        assert np.rint(image[0] * 255).astype(np.uint8).tobytes() in pixels


def test_folder_with_train_and_test(tmp_path, pillow):
    write_images(tmp_path / "train", per_class=4)
    write_images(tmp_path / "test", per_class=2)
    found = data.folder(tmp_path)
    assert (len(found.x_train), len(found.x_test)) == (8, 4)
    (tmp_path / "test" / "dog").rename(tmp_path / "test" / "fox")
    refused("train has the classes cat, dog, test has cat, fox", data.folder, tmp_path)


def test_folder_is_colour_where_one_image_is(tmp_path, pillow):
    write_images(tmp_path)
    pillow.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "cat" / "red.png")
    found = data.folder(tmp_path, test_fraction=0.01)
    assert found.input_shape == (3, 8, 8)
    red = np.zeros((3, 8, 8), np.float32)
    red[0] = 1
    assert any(np.array_equal(image, red) for image in found.x_train)


def test_folder_sizes_must_agree_or_are_given(tmp_path, pillow):
    write_images(tmp_path)
    pillow.new("L", (9, 8), 255).save(tmp_path / "dog" / "wide.png")
    refused(r"has 8x9 pixels .*--size H W", data.folder, tmp_path)
    assert data.folder(tmp_path, size=(6, 5)).input_shape == (1, 6, 5)
    for size in ((0, 5), (5, -1), (5, 9000), (5,), (5.0, 5)):
        refused("size is", data.folder, tmp_path, size=size)


def png(width, height, *chunks):
    """A PNG file whose header claims width x height."""

    def chunk(kind, content):
        crc = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", head) + b"".join(chunk(*pair) for pair in chunks)
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


BAD_IMAGES = {
    "empty": (b"", "is no image that can be read"),
    "text": (b"hello", "is no image that can be read"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "is no image"),
    "bomb": (png(65535, 65535), "too many pixels|the limit is"),
    "large": (png(10000, 10000), "10000x10000 pixels; the limit"),
    "zero width": (png(0, 8), "image"),
    "no pixels": (png(8, 8), "damaged image"),
    "few pixels": (png(8, 8, (b"IDAT", zlib.compress(bytes(20)))), "damaged image"),
    "no zlib": (png(8, 8, (b"IDAT", b"\xff" * 40)), "damaged image"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_folder_refuses_bad_images(tmp_path, pillow, name):
    content, message = BAD_IMAGES[name]
    write_images(tmp_path)
    path = tmp_path / "cat" / "002.png"
    path.write_bytes(content)
    assert str(path) in refused(message, data.folder, tmp_path)
    refused(message, data.read_image, path)


def test_folder_refuses_truncated_images_of_every_format(tmp_path, pillow):
    write_images(tmp_path)
    path = tmp_path / "dog" / "bad.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    for kind in ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"):
        good = io.BytesIO()
        pillow.fromarray(noise).save(good, kind)
        path.write_bytes(good.getvalue())
        data.folder(tmp_path)
        for cut in (10, len(good.getvalue()) // 2):
            path.write_bytes(good.getvalue()[:cut])
            assert str(path) in refused("image", data.folder, tmp_path), (kind, cut)


def test_folder_refuses_sixteen_bits(tmp_path, pillow):
    write_images(tmp_path)
    deep = pillow.fromarray(np.full((8, 8), 40000, np.uint16))
    deep.save(tmp_path / "cat" / "002.png")
    refused("pixel mode I;16; convert it to 8 bits", data.folder, tmp_path)


def test_folder_refuses_what_is_no_folder_of_classes(tmp_path, pillow):
    refused("cannot be listed: No such file", data.folder, tmp_path / "absent")
    refused("has 0 sub-folders with images", data.folder, tmp_path)
    write_images(tmp_path / "one", classes=("cat",))
    refused("has 1 sub-folders", data.folder, tmp_path / "one")
    (tmp_path / "one" / "void").mkdir()
    refused("void: has no image", data.folder, tmp_path / "one")
    file = tmp_path / "file"
    file.write_bytes(b"")
    refused("cannot be listed", data.folder, file)


def test_images_say_which_extra_they_need(tmp_path, pillow, monkeypatch):
    write_images(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    refused(r"Pillow.*pip install 'cnn_ext\[demo\]'", data.folder, tmp_path)


def test_read_image_converts_and_resizes(tmp_path, pillow):
    path = tmp_path / "image.png"
    pillow.new("RGB", (6, 4), (255, 255, 255)).save(path)
    assert data.read_image(path).shape == (3, 4, 6)
    grey = data.read_image(path, channels=1, size=(2, 3))
    assert grey.shape == (1, 2, 3) and grey.dtype == np.float32
    np.testing.assert_array_equal(grey, 1)
    refused("channels is 2", data.read_image, path, channels=2)


@BOUNDED
@given(changes=st.data())
def test_any_damage_to_an_image_gives_pixels_or_one_error(tmp_path, changes):
    image = pytest.importorskip("PIL.Image")
    kind = changes.draw(st.sampled_from(["BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF"]))
    good = io.BytesIO()
    image.fromarray(stripes(1, 8, 4)[0][0]).save(good, kind)
    content = bytearray(good.getvalue())
    for _ in range(changes.draw(st.integers(1, 4))):
        position = changes.draw(st.integers(0, len(content) - 1))
        content[position] = changes.draw(st.integers(0, 255))
    path = tmp_path / "image"
    path.write_bytes(content)
    try:
        found = data.read_image(path, channels=1, size=(4, 4))
        assert found.shape == (1, 4, 4)
    except DataError as error:
        assert "\n" not in str(error)
