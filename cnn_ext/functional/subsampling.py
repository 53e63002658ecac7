"""LeCun's subsampling: pooling with a trainable gain and bias."""

from __future__ import annotations

from typing import Any

from .._arrays import images, same_dtype, vector
from ._checks import Array, Padding, Size, check_both, check_shape
from .convolution import conv2d_backward_bias
from .pooling import avg_pool2d, avg_pool2d_backward

__all__ = ["subsample2d", "subsample2d_backward"]


def subsample2d(
    x: Array,
    gain: Array,
    bias: Array,
    kernel_size: Size,
    *,
    stride: Size | None = None,
    padding: Padding = 0,
) -> Array:
    """LeCun's subsampling: ``gain_c * sum(window) + bias_c``, both trainable.

    The transfer function of LeNet's S layers, a sigmoid, follows as its own layer.
    Source: LeCun et al., Gradient-based learning applied to document recognition,
    Proc. IEEE 86(11), 1998, section II.B.

    Parameters
    ----------
    x : ndarray, (N, C, H, W) or (C, H, W)
        Images, float32 or float64.
    gain, bias : ndarray, (C,)
        One gain and one bias a map.
    kernel_size, stride, padding
        As in `max_pool2d`.

    Returns
    -------
    ndarray, (N, C, H_out, W_out) or (C, H_out, W_out)

    Raises
    ------
    TypeError, ValueError
        A dtype, type or size is not as above.

    See Also
    --------
    subsample2d_backward
    """
    x, single = images(x, "x")
    gain, bias = _gain(gain, "gain", x), _gain(bias, "bias", x)
    y = avg_pool2d(x, kernel_size, stride=stride, padding=padding, divisor_override=1)
    y *= gain[:, None, None]
    y += bias[:, None, None]
    return y[0] if single else y


def subsample2d_backward(
    grad_y: Array,
    x: Array,
    gain: Array,
    kernel_size: Size,
    *,
    stride: Size | None = None,
    padding: Padding = 0,
) -> tuple[Array, Array, Array]:
    """Gradients of `subsample2d` in its input, its gain and its bias.

    Parameters
    ----------
    grad_y : ndarray, (N, C, H_out, W_out) or (C, H_out, W_out)
        Gradient of the loss in the result of `subsample2d`.
    x : ndarray, (N, C, H, W) or (C, H, W)
        The images of the forward pass.
    gain : ndarray, (C,)
        The gains of the forward pass.
    kernel_size, stride, padding
        As in `subsample2d`.

    Returns
    -------
    grad_x : ndarray of x's shape
        Every pixel of a window gets the window's error times the gain.
    grad_gain : ndarray, (C,)
        Sum over images and windows of the error times the window's sum.
    grad_bias : ndarray, (C,)
        Sum over images and windows of the error.

    Raises
    ------
    TypeError, ValueError
        As `subsample2d`.
    """
    grad_y, single = images(grad_y, "grad_y")
    x, single_x = images(x, "x")
    check_both(x, single_x, grad_y, single)
    gain = _gain(gain, "gain", x)
    same_dtype(grad_y, "grad_y", x=x)
    where: dict[str, Any] = {"stride": stride, "padding": padding}
    sums = avg_pool2d(x, kernel_size, divisor_override=1, **where)
    check_shape(grad_y, "grad_y", sums.shape)
    sums *= grad_y
    error = grad_y * gain[:, None, None]
    grad_x = avg_pool2d_backward(
        error, x.shape, kernel_size, divisor_override=1, **where
    )
    return (
        grad_x[0] if single else grad_x,
        conv2d_backward_bias(sums),
        conv2d_backward_bias(grad_y),
    )


def _gain(values: Any, name: str, x: Array) -> Array:
    values = vector(values, name, x.shape[1], f"x has {x.shape[1]} channels")
    same_dtype(x, "x", **{name: values})
    return values
