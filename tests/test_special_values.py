"""NaN, infinities, ties, signed zeros and subnormals, to the bit where it matters."""

import cases
import numpy as np
import pytest
from cases import lay_out, machine
from checks import assert_same_bits, torch

from cnn_ext import functional as F
from cnn_ext import reference

DTYPES = ("float32", "float64")
INF, NAN = np.inf, np.nan


@pytest.fixture(params=DTYPES)
def dtype(request):
    return request.param


@pytest.fixture(params=["contiguous", "channels_last", "negative"])
def order(request):
    return request.param


def window_of(values, dtype, order, copies=19):
    """Return `values`, one window, in so many channels that all lanes are used."""
    window = np.array(values, dtype)
    return lay_out(np.broadcast_to(window, (1, copies, *window.shape)).copy(), order)


@pytest.mark.parametrize(
    ("window", "winner"),
    [
        ([[1, 3], [3, 2]], 1),  # the first of equals
        ([[5, 5], [5, 5]], 0),
        ([[0.0, -0.0], [0.0, -0.0]], 0),  # zeros are equal, whatever their sign
        ([[-0.0, 0.0], [0.0, -0.0]], 0),
        ([[-1, -0.0], [0.0, -1]], 1),
        ([[-INF, -INF], [-INF, -INF]], 0),
        ([[-INF, -INF], [-INF, -1e30]], 3),
        ([[INF, 1], [INF, INF]], 0),
        ([[NAN, INF], [9, 9]], 0),  # NaN wins over numbers, before them and after
        ([[INF, 9], [9, NAN]], 3),
        ([[NAN, 1], [NAN, INF]], 2),  # the last NaN
        ([[NAN, NAN], [NAN, NAN]], 3),
        ([[-INF, NAN], [-INF, -INF]], 1),
    ],
)
def test_winners(window, winner, dtype, order, kernel_set):
    x = window_of(window, dtype, order)
    y, argmax = F.max_pool2d(x, 2, return_argmax=True)
    _, indices = F.max_pool2d(x, 2, return_indices=True)
    assert (argmax == winner).all()
    assert (indices == winner).all()
    assert_same_bits(y[..., 0, 0], x[..., winner // 2, winner % 2])
    expected = np.zeros(x.shape, dtype)
    expected[..., winner // 2, winner % 2] = 7
    for position in (argmax, indices):
        grad_x = F.max_pool2d_backward(np.full_like(y, 7), position, x.shape, 2)
        assert_same_bits(grad_x, expected)


def test_a_window_of_minus_infinity_credits_its_first_pixel(dtype, order, kernel_set):
    """Not its first position, which may lie in the padding."""
    x = window_of(np.full((3, 3), -INF), dtype, order)
    options = {"stride": 2, "padding": 1}
    y, argmax = F.max_pool2d(x, 3, return_argmax=True, **options)
    _, indices = F.max_pool2d(x, 3, return_indices=True, **options)
    assert np.isneginf(y).all()
    assert (argmax == [[4, 3], [1, 0]]).all()
    assert (indices == [[0, 1], [3, 4]]).all()
    for position in (argmax, indices):
        grad_x = F.max_pool2d_backward(np.ones_like(y), position, x.shape, 3, **options)
        assert (grad_x == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]).all()


def test_padding_never_wins(dtype, order, kernel_set):
    x = window_of(np.full((4, 5), -3.0), dtype, order)
    for options in (
        {"padding": 1},
        {"padding": ((1, 0), (0, 1))},
        {"padding": "same", "stride": 1},
        {"padding": 1, "ceil_mode": True},
    ):
        assert (F.max_pool2d(x, 3, **options) == -3).all()


def test_bits_of_nan_pass_through(dtype, order, kernel_set):
    """The winner is copied: sign and payload of a quiet NaN stay."""
    words = {"float32": np.uint32, "float64": np.uint64}[dtype]
    quiet = {"float32": 0xFFC12345, "float64": 0xFFF8123456789ABC}[dtype]
    x = window_of([[1, 2], [3, 4]], dtype, "contiguous")
    x.view(words)[..., 1, 0] = quiet
    y = F.max_pool2d(lay_out(x, order), 2)
    assert (np.ascontiguousarray(y).view(words) == quiet).all()


@pytest.mark.parametrize("error", [NAN, INF, -INF, -0.0])
def test_only_the_winner_gets_a_special_error(error, dtype, order, kernel_set):
    """A weight of zero is no product with zero: the losers get 0, not NaN."""
    x = window_of([[1, 2], [4, 3]], dtype, order)
    y, argmax = F.max_pool2d(x, 2, return_argmax=True)
    _, indices = F.max_pool2d(x, 2, return_indices=True)
    grad_y = np.full_like(y, error)
    for position in (argmax, indices):
        grad_x = F.max_pool2d_backward(grad_y, position, x.shape, 2)
        winners = grad_x[..., 1, 0]
        assert np.array_equal(winners, grad_y[..., 0, 0], equal_nan=True)
        losers = grad_x.copy()
        losers[..., 1, 0] = 0
        assert not losers.any()


def special_images(dtype, seed, shape=(2, 19, 11, 13)):
    return cases.specials(np.random.default_rng(seed), shape, dtype)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 2},
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": (2, 5), "stride": (1, 3), "padding": (1, 2), "ceil_mode": True},
        {"kernel_size": 3, "stride": 1, "padding": 1, "dilation": 2},
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_max_of_specials_has_pytorchs_bits(options, seed, dtype, order, kernel_set):
    if torch is None:
        pytest.skip("torch is not installed")
    x = special_images(dtype, seed)
    y, indices = torch.nn.functional.max_pool2d(
        torch.from_numpy(x), return_indices=True, **options
    )
    ours, our_indices = F.max_pool2d(lay_out(x, order), return_indices=True, **options)
    assert_same_bits(ours, y.numpy())
    np.testing.assert_array_equal(our_indices, indices.numpy())


@pytest.mark.parametrize("seed", range(3))
def test_average_of_specials(seed, dtype, order, kernel_set):
    """NaN and infinities of the sum: -inf + inf is NaN, and padding adds nothing."""
    rng = np.random.default_rng(seed)
    choices = np.array([NAN, INF, -INF, 1, 2, 3, -1, 0, 4, 5, 6, 7], dtype)
    x = rng.choice(choices, (2, 19, 11, 13))
    options = {"stride": 2, "padding": 1, "ceil_mode": True}
    with np.errstate(invalid="ignore"):
        expected = reference.avg_pool2d(x, 3, **options)
        y = F.avg_pool2d(lay_out(x, order), 3, **options)
    np.testing.assert_allclose(y, expected, rtol=20 * np.finfo(dtype).eps)
    if torch is not None:
        theirs = torch.nn.functional.avg_pool2d(torch.from_numpy(x), 3, **options)
        np.testing.assert_allclose(y, theirs, rtol=20 * np.finfo(dtype).eps)


def conv_with(value, dtype, order, strict, channels=20, size=13):
    """Return conv2d of an image with one special pixel at (5, 6) of channel 3."""
    rng = np.random.default_rng(0)
    x = cases.integers(rng, (1, channels, size, size), dtype)
    weight = cases.integers(rng, (33, channels, 3, 3), dtype)
    weight[weight == 0] = 1
    clean = x.copy()
    x[0, 3, 5, 6] = value
    clean[0, 3, 5, 6] = 0
    with machine(strict=strict):
        return (
            F.conv2d(lay_out(x, order), weight, padding=1),
            reference.conv2d(clean, weight, padding=1),
            weight,
        )


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_direct_convolution_spreads_specials_as_far_as_the_filter(
    value, dtype, order, kernel_set
):
    y, clean, weight = conv_with(value, dtype, order, strict=True)
    near = np.zeros(y.shape, bool)
    near[:, :, 4:7, 5:8] = True
    np.testing.assert_array_equal(y[~near], clean[~near])
    expected = value * weight[:, 3, ::-1, ::-1]
    np.testing.assert_array_equal(y[0, :, 4:7, 5:8], expected)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_no_convolution_hides_specials(value, dtype, order, kernel_set):
    """Minimal filtering spreads them over its patch, but never drops one."""
    y, clean, _ = conv_with(value, dtype, order, strict=False)
    assert not np.isfinite(y[:, :, 4:7, 5:8]).any()
    # a patch makes at most 4x4 outputs
    far = np.ones(y.shape, bool)
    far[:, :, 1:10, 2:11] = False
    bound = 1e3 * np.finfo(dtype).eps * np.abs(clean).max()
    np.testing.assert_allclose(y[far], clean[far], rtol=0, atol=bound)


def test_specials_stay_in_their_image_and_group(dtype, order, kernel_set):
    rng = np.random.default_rng(0)
    x = cases.integers(rng, (3, 8, 9, 9), dtype)
    weight = cases.integers(rng, (8, 2, 3, 3), dtype)
    x[1, 2:4] = NAN
    y = F.conv2d(lay_out(x, order), weight, padding=1, groups=4)
    assert np.isnan(y[1, 2:4]).all()
    y[1, 2:4] = 0
    assert np.isfinite(y).all()


def test_subnormals_are_not_flushed(dtype, order, kernel_set):
    """Neither here nor in numpy afterwards: no mode of the CPU is changed."""
    tiny = np.finfo(dtype).smallest_subnormal
    x = window_of(np.full((6, 6), 4 * tiny, dtype), dtype, order)
    one = np.ones((1, 19, 1, 1), dtype)
    one[:, 1:] = 0
    for threads in (1, 2):
        with machine(threads=threads):
            assert (F.max_pool2d(x, 2) == 4 * tiny).all()
            assert (F.avg_pool2d(x, 2) == 4 * tiny).all()
            assert (F.conv2d(x, one) == 4 * tiny).all()
            shares = F.avg_pool2d_backward(x, (1, 19, 12, 12), 2)
            assert (shares == tiny).all()
    assert tiny / 1 == tiny
    assert np.array([tiny]).sum() == tiny


def test_signs_of_zero_are_those_of_the_sum(dtype, kernel_set):
    """-0 + -0 is -0, as a maximum -0 stays -0."""
    x = window_of(np.full((2, 2), -0.0), dtype, "contiguous")
    assert np.signbit(F.max_pool2d(x, 2)).all()
    assert (F.avg_pool2d(x, 2) == 0).all()


def test_largest_numbers_overflow_only_where_their_sum_does(dtype, order, kernel_set):
    largest = np.finfo(dtype).max
    x = window_of([[largest, -largest], [largest, -largest]], dtype, order)
    assert (F.max_pool2d(x, 2) == largest).all()
    with np.errstate(over="ignore"):
        y = F.avg_pool2d(window_of(np.full((2, 2), largest), dtype, order), 2)
    assert np.isposinf(y).all()
