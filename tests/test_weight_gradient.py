"""The gradient of the weights where blocks of channels, tiles and taps meet."""

import numpy as np
import pytest
from cases import KERNEL_SETS, machine

from cnn_ext import functional as F
from cnn_ext import reference


@pytest.mark.parametrize("kernel_set", KERNEL_SETS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "channels, filters, size, options",
    [
        (1, 17, (5, 5), {}),  # a row of taps is all that lies side by side
        (3, 33, (3, 3), {"padding": 1}),  # an odd number of rows
        (58, 20, (3, 2), {"padding": 1, "stride": 2}),  # whole blocks and two more
        (57, 40, (1, 3), {"padding": (0, 2), "dilation": 2}),
        (60, 35, (1, 1), {}),  # one tap of even channels is read where it lies
        (61, 35, (1, 1), {"stride": 2}),
        (130, 48, (1, 1), {}),
        (20, 70, (1, 1), {}),  # planes: the operands exchange
        (130, 270, (1, 1), {"stride": 2, "padding": 6}),  # parts share the errors
        (66, 264, (2, 2), {"padding": 1}),
    ],
)
def test_blocks_of_channels(
    channels, filters, size, options, channels_last, dtype, kernel_set
):
    rng = np.random.default_rng(3)
    shape = (filters, channels, *size)
    x = rng.integers(-3, 4, (3, channels, 11, 12)).astype(dtype)
    y = reference.conv2d(x, np.zeros(shape), **options)
    grad_y = rng.integers(-3, 4, y.shape).astype(dtype)
    expected = reference.conv2d_backward_weight(grad_y, x, shape, **options)
    if channels_last:
        x, grad_y = (
            np.ascontiguousarray(a.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
            for a in (x, grad_y)
        )
    with machine(kernel_set, strict=True):
        out = np.full(shape, np.nan, dtype)
        F.conv2d_backward_weight(grad_y, x, shape, **options, out=out)
    np.testing.assert_array_equal(out, expected)
