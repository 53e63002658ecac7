"""Augmentation: what may change and what may not, seeds, bad arguments."""

from __future__ import annotations

import numpy as np
import pytest

from cnn_ext.data import augment
from cnn_ext.data.augment import Affine, Compose, Crop, Cutout, Flip, Shift

ALL = [
    Shift(2),
    Shift((1, 3), fill=0.5),
    Crop(8),
    Crop((7, 5), 2),
    Flip(),
    Flip(vertical=True),
    Affine(30, (0.8, 1.2), 10, 2),
    Cutout(3),
    Compose(Crop(8, 2), Flip(), Cutout(4)),
]


def images(n=20, dtype=np.float32):
    return 1 + np.random.default_rng(0).random((n, 3, 10, 9)).astype(dtype)


def rng(seed=1):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("change", ALL, ids=repr)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_seeded_and_pure(change, dtype):
    x = images(dtype=dtype)
    kept = x.copy()
    y = change(x, rng())
    np.testing.assert_array_equal(x, kept)
    assert y.dtype == dtype
    assert y.flags.c_contiguous
    assert not np.shares_memory(x, y)
    np.testing.assert_array_equal(change(x, rng()), y)
    assert not np.array_equal(change(x, rng(2)), y)
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(change(last, rng()), y)
    assert change(x[:0], rng()).shape == (0, *y.shape[1:])
    assert type(change).__name__ in repr(change)


def test_shift_moves_whole_images():
    x = images(300)
    y = Shift((1, 2))(x, rng())
    seen = set()
    for before, after in zip(x, y, strict=True):
        for down in (-1, 0, 1):
            for right in (-2, -1, 0, 1, 2):
                moved = np.zeros_like(before)
                moved[
                    :,
                    max(down, 0) : 10 + min(down, 0),
                    max(right, 0) : 9 + min(right, 0),
                ] = before[
                    :,
                    max(-down, 0) : 10 + min(-down, 0),
                    max(-right, 0) : 9 + min(-right, 0),
                ]
                if np.array_equal(moved, after):
                    seen.add((down, right))
                    break
            else:
                continue
            break
        else:
            pytest.fail("no shift of the image")
    assert len(seen) == 15  # every one of them
    far = Shift(50, fill=7)(images(5), rng())
    assert (far == 7).mean() > 0.5


def test_crop_finds_every_place():
    x = images(400)
    y = Crop((9, 8), 1)(x, rng())
    assert y.shape == (400, 3, 9, 8)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    places = set()
    for i in range(400):
        for top in range(4):
            for left in range(4):
                window = padded[i, :, top : top + 9, left : left + 8]
                if np.array_equal(window, y[i]):
                    places.add((top, left))
    assert len(places) == 16
    np.testing.assert_array_equal(Crop((10, 9))(x, rng()), x)


def test_flip():
    x = images(500)
    for vertical, turned in ((False, x[..., ::-1]), (True, x[:, :, ::-1])):
        y = Flip(0.3, vertical)(x, rng())
        flipped = (y == turned).all(axis=(1, 2, 3))
        np.testing.assert_array_equal(y[~flipped], x[~flipped])
        assert flipped.mean() == pytest.approx(0.3, abs=0.06)
    np.testing.assert_array_equal(Flip(0)(x, rng()), x)
    np.testing.assert_array_equal(Flip(1)(x, rng()), x[..., ::-1])


def test_affine():
    x = images(3, np.float64)
    np.testing.assert_allclose(Affine()(x, rng()), x, rtol=1e-12)
    square = x[:, :, :9]

    class Fixed(np.random.Generator):
        """Draws the upper end of every range."""

        def uniform(self, low=0.0, high=1.0, size=None):
            return np.full(size, high)

    upper = Fixed(np.random.PCG64(0))
    quarter = Affine(90)(square, upper)
    np.testing.assert_allclose(
        np.sort(quarter.ravel()), np.sort(square.ravel()), rtol=1e-9
    )
    assert any(
        np.allclose(quarter, np.rot90(square, k, axes=(2, 3)), rtol=1e-9)
        for k in (1, -1)
    )
    moved = Affine(shift=2)(x, upper)
    np.testing.assert_allclose(moved[:, :, 2:, 2:], x[:, :, :-2, :-2], rtol=1e-12)
    np.testing.assert_array_equal(moved[:, :, :2], 0)
    larger = Affine(scale=(1, 2))(square, upper)
    np.testing.assert_allclose(
        larger[:, :, ::2, ::2], square[:, :, 2:7, 2:7], rtol=1e-12
    )
    assert (Affine(45, fill=5)(x, upper) >= 1).all()


def test_cutout():
    x = images(300)
    y = Cutout(4)(x, rng())
    holes = (y == 0).all(axis=1)
    np.testing.assert_array_equal((y == 0).any(axis=1), holes)
    sizes = holes.sum(axis=(1, 2))
    assert sizes.max() == 16
    assert sizes.min() >= 4  # at a corner: half by half
    np.testing.assert_array_equal(np.where(y == 0, x, y), x)
    assert holes.any(axis=0).all()  # anywhere


@pytest.mark.parametrize(
    "make, kind, message",
    [
        (lambda: Shift(-1), ValueError, "reach must be at least 0"),
        (lambda: Crop(0), ValueError, "size must be at least 1"),
        (lambda: Crop(12)(images(), rng()), ValueError, "12x12 is too high for images"),
        (lambda: Crop((4, 12), 1)(images(), rng()), ValueError, "is too wide for imag"),
        (lambda: Flip(2), ValueError, "p must be at least 0 and at most 1"),
        (lambda: Affine(-1), ValueError, "degrees must be at least 0"),
        (lambda: Affine(scale=2), ValueError, "scale must be two numbers"),
        (lambda: Affine(scale=(2, 1)), ValueError, r"scale\[1\] must be at least 2"),
        (lambda: Affine(shear=90), ValueError, "shear must be at least 0 and at most"),
        (lambda: Cutout(1.5), TypeError, "size must be an integer"),
        (lambda: Compose(3), TypeError, "parts must be callable, got int"),
        (lambda: Compose(), ValueError, "number of parts must be at least 1"),
        (lambda: Flip()(images()[0], rng()), ValueError, r"axes \(N, C, H, W\)"),
        (lambda: Flip()(images().astype(int), rng()), TypeError, "got int64"),
        (lambda: Flip()(images(), 3), TypeError, "rng must be a numpy.random.Genera"),
    ],
)
def test_bad_arguments(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


def test_training_with_it_is_seeded():
    from cnn_ext.layers import Flatten, Linear
    from cnn_ext.optimizers import SGD
    from cnn_ext.sequential import Sequential
    from cnn_ext.training import fit

    results = []
    for change in (ALL[0], ALL[0], None):
        model = Sequential(Flatten(), Linear(270, 3, seed=0))
        labels = np.random.default_rng(0).integers(0, 3, 20)
        fit(
            model, (images(), labels), optimizer=SGD(0.1), epochs=2, seed=0, verbose=0,
            augment=change,
        )  # fmt: skip
        results.append(model.parameters()[0].value.tobytes())
    assert results[0] == results[1] != results[2]
    assert set(augment.__all__) >= {"Affine", "Crop", "Cutout", "Flip", "Shift"}
