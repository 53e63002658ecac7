"""Operators on numpy arrays: check, geometry, kernel, array.

Logical order is always (N, C, H, W), or (C, H, W) for one image; memory may be
C-contiguous, channels-last (``nhwc.transpose(0, 3, 1, 2)``) or any other strides.
The result has the memory order of the first argument. All functions take float32
or float64, one dtype a call. ``out=`` takes the result if it has the right shape
and dtype and overlaps no input.

Each forward stands beside its backward; a backward's name says the gradient of what.
"""

from .convolution import (
    conv2d,
    conv2d_backward_bias,
    conv2d_backward_input,
    conv2d_backward_weight,
    explain_conv2d,
)
from .linear import (
    linear,
    linear_backward_bias,
    linear_backward_input,
    linear_backward_weight,
)
from .pooling import (
    avg_pool2d,
    avg_pool2d_backward,
    max_pool2d,
    max_pool2d_backward,
)
from .prepared import PreparedConv2d, prepare_conv2d
from .subsampling import subsample2d, subsample2d_backward
from .transposed import (
    conv_transpose2d,
    conv_transpose2d_backward_bias,
    conv_transpose2d_backward_input,
    conv_transpose2d_backward_weight,
)

__all__ = [
    "PreparedConv2d",
    "avg_pool2d",
    "avg_pool2d_backward",
    "conv2d",
    "conv2d_backward_bias",
    "conv2d_backward_input",
    "conv2d_backward_weight",
    "conv_transpose2d",
    "conv_transpose2d_backward_bias",
    "conv_transpose2d_backward_input",
    "conv_transpose2d_backward_weight",
    "explain_conv2d",
    "linear",
    "linear_backward_bias",
    "linear_backward_input",
    "linear_backward_weight",
    "max_pool2d",
    "max_pool2d_backward",
    "prepare_conv2d",
    "subsample2d",
    "subsample2d_backward",
]
