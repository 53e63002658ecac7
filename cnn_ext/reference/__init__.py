"""The definition of right: every operator in plain float64 numpy.

The functions have the names, the parameters and the meaning of those of
`cnn_ext.functional`, which documents them in full; but nothing here is fast. Each is
the formula of its docstring, written as loops over kernel taps or over windows. The
tests compare the compiled operators with these.

Whatever dtype comes in, the result is float64 (positions of winners are integers).
Images are (N, C, H, W), or (C, H, W) for a single one, which is returned so. What
makes no sense raises ValueError or TypeError.
"""

from cnn_ext.reference.average_pooling import avg_pool2d, avg_pool2d_backward
from cnn_ext.reference.convolution import (
    conv2d,
    conv2d_backward_bias,
    conv2d_backward_input,
    conv2d_backward_weight,
)
from cnn_ext.reference.linear import (
    linear,
    linear_backward_bias,
    linear_backward_input,
    linear_backward_weight,
)
from cnn_ext.reference.max_pooling import max_pool2d, max_pool2d_backward
from cnn_ext.reference.subsampling import subsample2d, subsample2d_backward
from cnn_ext.reference.transposed import (
    conv_transpose2d,
    conv_transpose2d_backward_bias,
    conv_transpose2d_backward_input,
    conv_transpose2d_backward_weight,
)

__all__ = [
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
    "linear",
    "linear_backward_bias",
    "linear_backward_input",
    "linear_backward_weight",
    "max_pool2d",
    "max_pool2d_backward",
    "subsample2d",
    "subsample2d_backward",
]
