"""The operators in PyTorch, where it is installed, with this package's signatures.

Only what PyTorch has is defined for it: asymmetric padding is added by hand, and
average pooling refuses what it cannot express (None is returned).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from checks import torch

from cnn_ext._geometry import ConvGeometry, PoolGeometry


def _tensor(array: np.ndarray | None) -> Any:
    if array is None:
        return None
    return torch.from_numpy(np.array(array, order="C"))


def _pad(x: Any, g: Any, value: float) -> Any:
    sides = g.left, g.right, g.top, g.bottom
    return torch.nn.functional.pad(x, sides, value=value) if any(sides) else x


def conv2d_and_gradients(x, weight, bias, grad_y, **options: Any) -> Any:
    """Return y, grad_x, grad_weight, grad_bias for (N, C, H, W)."""
    g = ConvGeometry.of(x.shape, weight.shape, **options)
    leaves = [_tensor(x), _tensor(weight), _tensor(bias)]
    for leaf in leaves:
        if leaf is not None:
            leaf.requires_grad_()
    y = torch.nn.functional.conv2d(
        _pad(leaves[0], g, 0.0),
        *leaves[1:],
        stride=(g.stride_h, g.stride_w),
        dilation=(g.dilation_h, g.dilation_w),
        groups=g.groups,
    )
    y.backward(_tensor(grad_y))
    return [y.detach().numpy()] + [
        None if leaf is None else leaf.grad.numpy() for leaf in leaves
    ]


def max_pool2d_and_gradient(x, kernel_size, grad_y, **options: Any) -> Any:
    """Return y, indices, grad_x for (N, C, H, W); None where PyTorch has no way."""
    g = PoolGeometry.of(x.shape, kernel_size, **options)
    if g.top != g.bottom or g.left != g.right or 2 * g.top > g.r or 2 * g.left > g.s:
        return None
    leaf = _tensor(x).requires_grad_()
    y, indices = torch.nn.functional.max_pool2d(
        leaf,
        (g.r, g.s),
        stride=(g.stride_h, g.stride_w),
        padding=(g.top, g.left),
        dilation=(g.dilation_h, g.dilation_w),
        ceil_mode=options.get("ceil_mode", False),
        return_indices=True,
    )
    y.backward(_tensor(grad_y))
    return y.detach().numpy(), indices.numpy(), leaf.grad.numpy()


def avg_pool2d_and_gradient(x, kernel_size, grad_y, **options: Any) -> Any:
    """Return y, grad_x for (N, C, H, W); None where PyTorch has no way."""
    where = {name: options.get(name) for name in ("stride", "padding", "ceil_mode")}
    g = PoolGeometry.of(x.shape, kernel_size, **where)
    if g.top != g.bottom or g.left != g.right:
        return None
    leaf = _tensor(x).requires_grad_()
    y = torch.nn.functional.avg_pool2d(
        leaf,
        (g.r, g.s),
        stride=(g.stride_h, g.stride_w),
        padding=(g.top, g.left),
        ceil_mode=options["ceil_mode"],
        count_include_pad=options["count_include_pad"],
        divisor_override=options["divisor_override"],
    )
    y.backward(_tensor(grad_y))
    return y.detach().numpy(), leaf.grad.numpy()
