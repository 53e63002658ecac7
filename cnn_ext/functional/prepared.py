"""A convolution whose weights are packed once, for inference."""

from __future__ import annotations

from typing import Literal

import numpy as np

from .. import _conv
from .._arrays import checked_out, floats, images, lines, new_like, same_dtype, vector
from .._geometry import ConvGeometry
from ._checks import Array, Padding, Size, activation_code, check_shape

__all__ = ["PreparedConv2d", "prepare_conv2d"]


def packed(
    geometry: ConvGeometry,
    weight: Array,
    bias: Array | None,
    x_last: bool,
    y_last: bool,
) -> Array | None:
    """Weights in the order in which the chosen algorithm reads them.

    None where it reads them as they lie. `x_last`, `y_last`: whether x and y will lie
    channels-last.
    """
    nbytes = _conv.prepare_conv2d(geometry, weight, bias, x_last, y_last)
    if not nbytes:
        return None
    room = lines((nbytes,), np.uint8, 0)
    _conv.prepare_conv2d(geometry, weight, bias, x_last, y_last, room)
    return room


class PreparedConv2d:
    """What `prepare_conv2d` returns: a function from x to y.

    Attributes
    ----------
    x_shape, y_shape : tuple of int
        Shapes that it takes and returns.
    nbytes : int
        Memory of the packed weights; 0 where they are used as they lie.
    """

    def __init__(
        self,
        geometry: ConvGeometry,
        weight: Array,
        bias: Array | None,
        activation: int,
        channels_last: bool,
    ) -> None:
        self._geometry = geometry
        self._weight, self._bias = weight, bias
        self._activation = activation
        self._packed = packed(geometry, weight, bias, channels_last, channels_last)
        self.nbytes = 0 if self._packed is None else self._packed.nbytes

    @property
    def x_shape(self) -> tuple[int, ...]:
        return self._geometry.x_shape

    @property
    def y_shape(self) -> tuple[int, ...]:
        return self._geometry.y_shape

    def __call__(self, x: Array, *, out: Array | None = None) -> Array:
        """Return ``conv2d(x, weight, bias, ...)``, within its precision.

        Parameters
        ----------
        x : ndarray of shape `x_shape`
            Of the weights' dtype. An x in another memory order than prepared for, or
            another kernel set or precision than at that time, is served too: then
            the weights are packed for the call.
        out : ndarray, optional
            Where to put the result.

        Raises
        ------
        TypeError, ValueError
            As `conv2d`.
        """
        x, single = images(x, "x")
        check_shape(x, "x", self._geometry.x_shape)
        if x.dtype is not self._weight.dtype:
            same_dtype(self._weight, "weight", x=x)
        shape = self._geometry.y_shape
        if out is None:
            y = new_like(x, shape)
        else:
            y = checked_out(out, shape, x, single, x=x)
        _conv.conv2d(
            self._geometry,
            x,
            self._weight,
            self._bias,
            y,
            self._activation,
            self._packed,
        )
        return y[0] if single else y

    def __repr__(self) -> str:
        return (
            f"PreparedConv2d({self.x_shape} -> {self.y_shape}, {self._weight.dtype}, "
            f"{self.nbytes} bytes)"
        )


def prepare_conv2d(
    weight: Array,
    bias: Array | None,
    x_shape: tuple[int, ...],
    *,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
    activation: Literal["relu", "relu6"] | None = None,
    channels_last: bool = False,
) -> PreparedConv2d:
    """Pack the weights of a convolution that will run many times.

    `conv2d` packs, or transforms, the weights at every call. That is little work for
    large images, and most of it for small ones with many channels. Weights prepared for
    small images may be transformed where `conv2d` would not: then results differ from
    its by rounding, and weights take up to 7 times their memory.

    Parameters
    ----------
    weight : ndarray, (K, C // groups, R, S)
        Filters. They and the bias are copied: later changes do not show.
    bias : ndarray, (K,), or None
    x_shape : tuple of int, (N, C, H, W)
        Shape of the images to come.
    stride, padding, dilation, groups, activation
        As in `conv2d`.
    channels_last : bool
        Memory order of the images to come.

    Returns
    -------
    PreparedConv2d

    Raises
    ------
    TypeError, ValueError
        As `conv2d`.

    Examples
    --------
    >>> convolve = prepare_conv2d(weight, bias, (1, 64, 56, 56), padding=1)
    >>> y = convolve(x)
    """
    weight = np.array(floats(weight, "weight", (4,), "(K, C/groups, R, S)"), order="C")
    g = ConvGeometry.of(x_shape, weight.shape, stride, padding, dilation, groups)
    if bias is not None:
        bias = vector(bias, "bias", g.k, f"weight has {g.k} filters").copy()
        same_dtype(weight, "weight", bias=bias)
    end = activation_code(activation)
    return PreparedConv2d(g, weight, bias, end, bool(channels_last))
