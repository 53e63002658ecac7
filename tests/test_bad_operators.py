"""Bad input to operators: one clear error each, nothing written, nothing crashing.

Each kind names the operator, what is wrong with the call, the type of the error and a
pattern of its message: the argument, its value, the rule.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

from cnn_ext import functional as F

X = np.ones((2, 4, 6, 7), np.float32)
W = np.ones((6, 4, 3, 3), np.float32)
B = np.ones(6, np.float32)
GY = np.ones((2, 6, 4, 5), np.float32)  # of conv2d(X, W)
GP = np.ones((2, 4, 3, 3), np.float32)  # of a 2x2 pooling of X
ARGMAX = np.zeros((2, 4, 3, 3), np.uint8)
INDICES = np.zeros((2, 4, 3, 3), np.int64)
GAIN = np.ones(4, np.float32)
M = np.ones((3, 4), np.float32)  # images of linear
V = np.ones((5, 4), np.float32)  # its weight
HUGE = 2**40
BIG_ENDIAN = X.astype(X.dtype.newbyteorder())


class Bad(NamedTuple):
    kind: str
    operator: str
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    error: type[Exception]
    message: str


def bad(kind, operator, *arguments, error=ValueError, message, **options):
    return Bad(kind, operator, arguments, options, error, message)


def conv(kind, *arguments, **rest):
    return bad(kind, "conv2d", *(arguments or (X, W, B)), **rest)


def pool(kind, *arguments, operator="max_pool2d", **rest):
    return bad(kind, operator, *arguments, **rest)


KINDS = [
    # types of arrays
    conv("x is a list", X.tolist(), W, error=TypeError,
         message=r"x must be a numpy array, got list"),
    conv("x is None", None, W, error=TypeError, message=r"x must be .*NoneType"),
    conv("x is a number", 3.0, W, error=TypeError, message=r"x must be .*float"),
    conv("weight is a list", X, W.tolist(), error=TypeError, message="weight must be"),
    conv("bias is a list", X, W, B.tolist(), error=TypeError, message="bias must be"),
    conv("bytes as image", X.astype(np.uint8), W, error=TypeError,
         message=r"x must be float32 or float64, got uint8; convert .*astype"),
    conv("ints as image", X.astype(np.int64), W, error=TypeError,
         message=r"x .*got int64; convert"),
    conv("bools as image", X.astype(bool), W, error=TypeError,
         message=r"x .*got bool; convert"),
    conv("float16 image", X.astype(np.float16), W, error=TypeError,
         message=r"x .*got float16"),
    conv("complex image", X.astype(np.complex64), W, error=TypeError,
         message=r"x .*got complex64"),
    conv("object image", X.astype(object), W, error=TypeError,
         message=r"x .*got object"),
    conv("text as image", np.array("image"), W, error=TypeError, message=r"x .*<U5"),
    conv("foreign byte order", BIG_ENDIAN, W, error=TypeError,
         message=r"x must be .*got >f4; convert .*astype"),
    conv("int weight", X, W.astype(int), error=TypeError, message=r"weight .*int64"),
    conv("mixed dtypes of weight", X, W.astype(float), error=TypeError,
         message=r"weight is float64 but x is float32"),
    conv("mixed dtypes of bias", X, W, B.astype(float), error=TypeError,
         message=r"bias is float64 but x is float32"),
    bad("mixed dtypes of grad_y", "conv2d_backward_input", GY.astype(float), W, X.shape,
        error=TypeError, message=r"weight is float32 but grad_y is float64"),
    bad("mixed dtypes of x", "conv2d_backward_weight", GY, X.astype(float), W.shape,
        error=TypeError, message=r"x is float64 but grad_y is float32"),
    # ranks and shapes
    conv("x of two axes", X[0, 0], W, message=r"x must have axes .*got shape \(6, 7\)"),
    conv("x of five axes", X[None], W, message=r"x must have axes"),
    conv("x of no axes", np.ones((), np.float32), W,
         message=r"x must have axes .*got shape \(\)"),
    conv("weight of three axes", X, W[0], message=r"weight must have axes"),
    conv("bias of two axes", X, W, B[None], message=r"bias must have axes"),
    conv("bias of another length", X, W, B[:5], message=r"bias has 5 .*6 filters"),
    conv("channels do not fit", X, W[:, :3],
         message=r"weight has 3 input channels, x has 4 with groups=1"),
    conv("channels do not fit groups", X, W, groups=2,
         message=r"weight has 4 input channels, x has 4 with groups=2"),
    conv("no channels", X[:, :0], W[:, :0], message=r"at least 1, got 0"),
    conv("no rows", X[:, :, :0], W, message=r"at least 1, got 0"),
    conv("no columns", X[..., :0], W, message=r"at least 1, got 0"),
    conv("no filters", X, W[:0], message=r"at least 1, got 0"),
    conv("empty filters", X, W[..., :0], message=r"at least 1, got 0"),
    conv("kernel larger than image", X[:, :, :2], W,
         message=r"kernel covers 3x3 pixels, more than the padded image of 2x7"),
    conv("dilated kernel larger than image", X, W, dilation=4,
         message=r"kernel covers 9x9 pixels"),
    # options
    conv("groups do not divide channels", X, W, groups=3,
         message=r"groups=3 must divide the 4 input"),
    conv("groups do not divide filters", X, W[:, :1], groups=4,
         message=r"groups=4 must divide .*6 output"),
    conv("groups of zero", groups=0, message=r"groups must be at least 1, got 0"),
    conv("groups of 1.5", groups=1.5, error=TypeError,
         message=r"groups must be an integer, got 1.5"),
    conv("groups of None", groups=None, error=TypeError, message=r"groups .*got None"),
    conv("stride of zero", stride=0, message=r"stride must be at least 1, got 0"),
    conv("stride below zero", stride=-2, message=r"stride must be at least 1, got -2"),
    conv("stride of 2.0", stride=2.0, error=TypeError,
         message=r"stride must be an integer, got 2.0"),
    conv("stride True", stride=True, error=TypeError,
         message=r"stride must be an integer, got True"),
    conv("stride of three", stride=(1, 1, 1), message=r"stride must be .* a pair"),
    conv("stride in words", stride="two", error=TypeError, message=r"stride .*'two'"),
    conv("half of a stride", stride=(1, None), error=TypeError,
         message=r"stride\[1\] must be an integer, got None"),
    conv("huge stride", stride=2**70, message=r"stride is too large"),
    conv("dilation of zero", dilation=0, message=r"dilation must be at least 1, got 0"),
    conv("dilation below zero", dilation=(1, -1),
         message=r"dilation\[1\] must be at least 1, got -1"),
    conv("huge dilation", dilation=2**62, message=r"dilation is too large"),
    conv("large dilation", dilation=2**58, message=r"kernel covers|too large"),
    conv("padding below zero", padding=-1, message=r"padding must be .*0, got -1"),
    conv("unknown padding", padding="full", message=r"padding must be .*got 'full'"),
    conv("padding None", padding=None, error=TypeError, message=r"padding .*None"),
    conv("padding of three", padding=(1, 2, 3), message=r"padding .*\(1, 2, 3\)"),
    conv("padding of halves", padding=(0.5, 1), error=TypeError,
         message=r"padding\[0\] must be an integer, got 0.5"),
    conv("padding of the wrong nesting", padding=((1, 2, 3), (1, 2)),
         message=r"padding\[0\] must be .*pair"),
    conv("padding in a dict", padding={"h": 1}, error=TypeError, message=r"padding"),
    conv("padding as an array", padding=np.array([[1, 1], [1, 1]]), error=TypeError,
         message=r"padding"),
    conv("huge padding", padding=2**61, message=r"padding is too large"),
    conv("output beyond memory's size", padding=HUGE,
         message=r"(output|padded image) is too large"),
    conv("unknown option", strides=2, error=TypeError, message=r"strides"),
    # shapes that backward passes are told
    bad("grad_y of another shape", "conv2d_backward_input", GY[..., :4], W, X.shape,
        message=r"grad_y must have shape \(2, 6, 4, 5\), got \(2, 6, 4, 4\)"),
    bad("grad_y of another batch", "conv2d_backward_input", GY[:1], W, X.shape,
        message=r"grad_y must have shape \(2, 6, 4, 5\)"),
    bad("grad_y of another stride", "conv2d_backward_weight", GY, X, W.shape, stride=2,
        message=r"grad_y must have shape"),
    bad("x_shape of three sizes", "conv2d_backward_input", GY, W, X.shape[1:],
        message=r"x_shape must have 4 axes"),
    bad("x_shape of a batch for one image", "conv2d_backward_input", GY[0], W, X.shape,
        message=r"x_shape must be \(C, H, W\) as grad_y is"),
    bad("x_shape is a number", "conv2d_backward_input", GY, W, 7, error=TypeError,
        message=r"x_shape must be .*got 7"),
    bad("x_shape below zero", "conv2d_backward_input", GY, W, (2, 4, -6, 7),
        message=r"x_shape\[2\] must be at least 1, got -6"),
    bad("x_shape of halves", "conv2d_backward_input", GY, W, (2, 4, 6.5, 7),
        error=TypeError, message=r"x_shape\[2\] must be an integer, got 6.5"),
    bad("huge x_shape", "conv2d_backward_input", GY, W, (HUGE, 4, HUGE, 7),
        message=r"x_shape is too large"),
    bad("weight_shape of three sizes", "conv2d_backward_weight", GY, X, (6, 4, 3),
        message=r"weight_shape must have 4 axes"),
    bad("weight_shape with no filters", "conv2d_backward_weight", GY, X, (0, 4, 3, 3),
        message=r"weight_shape\[0\] must be at least 1, got 0"),
    bad("batch and single image", "conv2d_backward_weight", GY, X[0], W.shape,
        message=r"x and grad_y must both be batches or both single"),
    bad("empty axes of grad_y", "conv2d_backward_bias", GY[:, :0],
        message=r"grad_y must not have an empty axis"),
    # poolings
    pool("kernel of zero", X, 0, message=r"kernel_size must be at least 1, got 0"),
    pool("kernel below zero", X, (2, -2), message=r"kernel_size\[1\] .*got -2"),
    pool("kernel of 2.5", X, 2.5, error=TypeError, message=r"kernel_size .*got 2.5"),
    pool("kernel None", X, None, error=TypeError, message=r"kernel_size .*None"),
    pool("window larger than image", X, 8, message=r"kernel covers 8x8 pixels"),
    pool("window larger than image, averaged", X, 8, operator="avg_pool2d",
         message=r"kernel covers 8x8 pixels, more than the padded image of 6x7"),
    pool("huge window", X, 2**62, message=r"kernel_size is too large"),
    pool("padding beyond half of the window", X, 3, padding=2,
         message=r"padding must be at most half of the kernel.*\(\(2, 2\), \(2, 2\)\)"),
    pool("one side beyond half", X, 2, padding=((0, 2), (0, 0)), operator="avg_pool2d",
         message=r"padding must be at most half of the kernel"),
    pool("padding of a subsampling", X, GAIN, GAIN, 2, padding=2,
         operator="subsample2d", message=r"padding must be at most half"),
    pool("a window without a pixel", X[:, :, :2, :2], 2, stride=1, padding=1,
         dilation=3, message=r"padding"),
    pool("a window without a pixel, same", X[:, :, :2, :2], 2, stride=1, padding="same",
         dilation=3, message=r"padding"),
    pool("stride of zero in a pooling", X, 2, stride=0, message=r"stride .*got 0"),
    pool("int image to a pooling", X.astype(int), 2, error=TypeError,
         message=r"x .*got int64; convert"),
    pool("matrix to a pooling", X[0, 0], 2, message=r"x must have axes"),
    pool("empty image to a pooling", X[..., :0], 2, message=r"at least 1, got 0"),
    pool("both kinds of position", X, 2, return_argmax=True, return_indices=True,
         message=r"return_argmax and return_indices exclude each other"),
    pool("dilation of an average", X, 2, dilation=2, operator="avg_pool2d",
         error=TypeError, message=r"dilation"),
    pool("divisor of zero", X, 2, divisor_override=0, operator="avg_pool2d",
         message=r"divisor_override"),
    pool("divisor in words", X, 2, divisor_override="4", operator="avg_pool2d",
         error=TypeError, message=r"divisor_override .*'4'"),
    pool("divisor of zero, backward", GP, X.shape, 2, divisor_override=0,
         operator="avg_pool2d_backward", message=r"divisor_override"),
    pool("grad_y of another pooling", GP, X.shape, 3, operator="avg_pool2d_backward",
         message=r"grad_y must have shape \(2, 4, 2, 2\)"),
    pool("argmax of another shape", GP, ARGMAX[:1], X.shape, 2,
         operator="max_pool2d_backward", message=r"argmax must have .*shape"),
    pool("argmax of floats", GP, GP, X.shape, 2, operator="max_pool2d_backward",
         error=TypeError, message=r"argmax must be uint8 .*got float32"),
    pool("argmax of int32", GP, ARGMAX.astype(np.int32), X.shape, 2,
         operator="max_pool2d_backward", error=TypeError, message=r"argmax .*int32"),
    pool("argmax is a list", GP, ARGMAX.tolist(), X.shape, 2,
         operator="max_pool2d_backward", error=TypeError, message=r"argmax .*list"),
    pool("position beyond the window", GP, ARGMAX + np.uint8(4), X.shape, 2,
         operator="max_pool2d_backward", message=r"argmax has position 4, outside"),
    pool("position beyond the plane", GP, INDICES + 42, X.shape, 2,
         operator="max_pool2d_backward", message=r"argmax has position 42, outside"),
    pool("position below zero", GP, INDICES - 1, X.shape, 2,
         operator="max_pool2d_backward", message=r"argmax has position -1, outside"),
    pool("huge position", GP, INDICES + 2**62, X.shape, 2,
         operator="max_pool2d_backward", message=r"argmax has position \d+, outside"),
    pool("neither floor nor ceil", GP[..., :2], ARGMAX[..., :2], X.shape, 2,
         operator="max_pool2d_backward", message=r"grad_y must have shape"),
    # subsampling
    pool("gain of another length", X, GAIN[:3], GAIN, 2, operator="subsample2d",
         message=r"gain has 3 values, x has 4 channels"),
    pool("bias of another length, subsampling", X, GAIN, GAIN[:3], 2,
         operator="subsample2d", message=r"bias has 3 values, x has 4 channels"),
    pool("mixed dtypes of gain", X, GAIN.astype(float), GAIN, 2, error=TypeError,
         operator="subsample2d", message=r"gain is float64 but x is float32"),
    pool("gain is a number", X, 1.0, GAIN, 2, operator="subsample2d", error=TypeError,
         message=r"gain must be"),
    pool("grad_y of another subsampling", GP[..., :2], X, GAIN, 2,
         operator="subsample2d_backward", message=r"grad_y must have shape"),
    pool("batch and single image, subsampling", GP, X[0], GAIN, 2,
         operator="subsample2d_backward", message=r"grad_y must|both be batches"),
    pool("single image and batch of one, subsampling", GP[0], X[:1], GAIN, 2,
         operator="subsample2d_backward", message=r"grad_y must|both be batches"),
    # linear
    bad("image to linear", "linear", X, V, message=r"x must have axes \(N, C\)"),
    bad("inputs do not fit", "linear", M, V[:, :3],
        message=r"weight has 3 inputs, x has 4"),
    bad("bias does not fit", "linear", M, V, B, message=r"bias has 6 .*5"),
    bad("outputs do not fit", "linear_backward_input", M, V,
        message=r"weight has 5 outputs, grad_y has 4"),
    bad("batches do not fit", "linear_backward_weight", M[:2], M, message=r"2.*3|3.*2"),
    bad("ints to linear", "linear", M.astype(int), V, error=TypeError,
        message=r"x .*got int64; convert"),
    bad("mixed dtypes of linear", "linear", M, V.astype(float), error=TypeError,
        message=r"weight is float64 but x is float32"),
]  # fmt: skip

OUT_SHAPES = {
    "conv2d": (2, 6, 4, 5),
    "conv2d_backward_input": X.shape,
    "conv2d_backward_weight": W.shape,
    "conv2d_backward_bias": (6,),
    "max_pool2d": (2, 4, 3, 3),
    "max_pool2d_backward": X.shape,
    "avg_pool2d": (2, 4, 3, 3),
    "avg_pool2d_backward": X.shape,
}


def test_there_are_enough_kinds():
    names = [kind.kind for kind in KINDS]
    assert len(set(names)) == len(names) >= 40


@pytest.mark.parametrize("case", KINDS, ids=lambda case: case.kind)
def test_bad_input(case):
    options = dict(case.options)
    out = None
    if case.operator in OUT_SHAPES:
        out = options["out"] = np.full(OUT_SHAPES[case.operator], 1e30, np.float32)
    arrays = [a for a in case.arguments if isinstance(a, np.ndarray)]
    before = [array.tobytes() for array in arrays]
    with pytest.raises(case.error, match=case.message) as caught:
        getattr(F, case.operator)(*case.arguments, **options)
    assert type(caught.value) is case.error
    assert "\n" not in str(caught.value)
    assert out is None or (out == 1e30).all()
    assert [array.tobytes() for array in arrays] == before


# -- out ----------------------------------------------------------------------------


def calls_with_out():
    """Return, by name, a call of every operator that takes out, its shape, inputs."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    x, weight, bias, grad_y = (
        draw(2, 4, 6, 7),
        draw(6, 4, 3, 3),
        draw(6),
        draw(*GY.shape),
    )
    y, argmax = F.max_pool2d(x, 2, return_argmax=True)
    return {
        "conv2d": (
            lambda out: F.conv2d(x, weight, bias, out=out),
            OUT_SHAPES["conv2d"],
            {"x": x, "weight": weight, "bias": bias},
        ),
        "conv2d_backward_input": (
            lambda out: F.conv2d_backward_input(grad_y, weight, x.shape, out=out),
            x.shape,
            {"grad_y": grad_y, "weight": weight},
        ),
        "conv2d_backward_weight": (
            lambda out: F.conv2d_backward_weight(grad_y, x, weight.shape, out=out),
            weight.shape,
            {"grad_y": grad_y, "x": x},
        ),
        "conv2d_backward_bias": (
            lambda out: F.conv2d_backward_bias(grad_y, out=out),
            (6,),
            {"grad_y": grad_y},
        ),
        "max_pool2d": (lambda out: F.max_pool2d(x, 2, out=out), y.shape, {"x": x}),
        "max_pool2d_backward": (
            lambda out: F.max_pool2d_backward(y, argmax, x.shape, 2, out=out),
            x.shape,
            {"grad_y": y, "argmax": argmax},
        ),
        "avg_pool2d": (lambda out: F.avg_pool2d(x, 2, out=out), y.shape, {"x": x}),
        "avg_pool2d_backward": (
            lambda out: F.avg_pool2d_backward(y, x.shape, 2, out=out),
            x.shape,
            {"grad_y": y},
        ),
    }


@pytest.fixture(params=OUT_SHAPES)
def call(request):
    return calls_with_out()[request.param]


def test_good_out(call):
    function, shape, _ = call
    out = np.full(shape, 1e30, np.float32)
    assert np.shares_memory(function(out), out)
    assert (out != 1e30).all()


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("list", TypeError, "out must be a numpy array, got list"),
        ("shape", ValueError, "out must have shape"),
        ("rank", ValueError, "out must have shape"),
        ("broadcast", ValueError, "out must"),
        ("dtype", TypeError, "out must be float32 as the inputs, got float64"),
        ("int", TypeError, "out must be float32 as the inputs, got int32"),
        ("readonly", ValueError, "out must be writeable"),
        ("self-overlap", ValueError, "out must not overlap itself"),
        ("misaligned", ValueError, "out must be aligned"),
    ],
)
def test_bad_out(call, kind, error, message):
    function, shape, _ = call
    wrong = np.full((*shape[:-1], shape[-1] + 1), 1e30, np.float32)
    packed = np.zeros(int(np.prod(shape)) * 4 + 1, np.uint8)
    readonly = np.full(shape, 1e30, np.float32)
    readonly.flags.writeable = False
    memory = np.full(int(np.prod(shape)) + 1, 1e30, np.float32)
    out = {
        "list": [1.0],
        "shape": wrong,
        "rank": np.full((*shape, 1), 1e30, np.float32),
        "broadcast": np.broadcast_to(np.float32(1e30), shape),
        "dtype": np.full(shape, 1e30, np.float64),
        "int": np.full(shape, 7, np.int32),
        "readonly": readonly,
        # steps of one element in the last axes: rows lie on each other
        "self-overlap": np.lib.stride_tricks.as_strided(
            memory, shape, [4] * len(shape) if len(shape) > 1 else [0]
        ),
        "misaligned": packed[1:].view(np.float32).reshape(shape),
    }[kind]
    before = np.array(out).tobytes()
    with pytest.raises(error, match=message):
        function(out)
    assert np.array(out).tobytes() == before


def test_out_must_not_overlap_an_input():
    memory = np.arange(2 * 4 * 6 * 7 + 500, dtype=np.float32)
    x = memory[:336].reshape(2, 4, 6, 7)
    zeros = np.zeros(2 * 4 * 6 * 7, np.float32)
    argmax = zeros.view(np.uint8)[:72].reshape(2, 4, 3, 3)
    grad_y = memory[100:172].reshape(2, 4, 3, 3)
    weight = memory[100:316].reshape(6, 4, 3, 3)
    bias = memory[:6]
    before = memory.tobytes()
    y, grad_x = memory[96:336].reshape(2, 6, 4, 5), memory[90:426].reshape(2, 4, 6, 7)
    for name, call in {
        "x": lambda: F.conv2d(x, W, out=y),
        "weight": lambda: F.conv2d(X, weight, out=y),
        "bias": lambda: F.conv2d(X, W, memory[100:106], out=y),
        "bias ": lambda: F.conv2d(X, W, bias, out=memory[5:245].reshape(2, 6, 4, 5)),
        "grad_y": lambda: F.conv2d_backward_input(
            memory[:240].reshape(2, 6, 4, 5), W, X.shape, out=grad_x
        ),
        "weight ": lambda: F.conv2d_backward_input(GY, weight, X.shape, out=grad_x),
        "x ": lambda: F.conv2d_backward_weight(GY, x, W.shape, out=weight),
        "grad_y ": lambda: F.conv2d_backward_weight(y, X, W.shape, out=weight),
        "x  ": lambda: F.max_pool2d(x, 2, out=grad_y),
        "x   ": lambda: F.avg_pool2d(x, 2, out=grad_y),
        "grad_y  ": lambda: F.avg_pool2d_backward(grad_y, X.shape, 2, out=grad_x),
        "grad_y   ": lambda: F.max_pool2d_backward(
            grad_y, ARGMAX, X.shape, 2, out=grad_x
        ),
        "argmax": lambda: F.max_pool2d_backward(
            GP, argmax, X.shape, 2, out=zeros.reshape(X.shape)
        ),
        "grad_y    ": lambda: F.conv2d_backward_bias(y, out=memory[100:106]),
    }.items():
        with pytest.raises(ValueError, match=f"out must not overlap {name.strip()}$"):
            call()
        assert memory.tobytes() == before, name


def test_interleaved_memory_is_no_overlap():
    """Even and odd elements of one buffer share no memory."""
    memory = np.zeros((2, 4, 6, 14), np.float32)
    memory[..., ::2] = X
    out = memory[:, :, :3, 1:7:2]
    result = F.max_pool2d(memory[..., ::2], 2, out=out)
    assert (result == 1).all()
    assert (memory[..., ::2] == 1).all()


def test_views_with_odd_strides_are_fine():
    """A field of packed records has strides that are no multiple of its size."""
    records = np.zeros((2, 4, 6, 7), np.dtype([("tag", "u1"), ("pixel", "f4")]))
    records["pixel"] = np.random.default_rng(0).standard_normal(X.shape)
    x = records["pixel"]
    assert not x.flags.aligned
    np.testing.assert_array_equal(F.max_pool2d(x, 2), F.max_pool2d(x.copy(), 2))
    np.testing.assert_array_equal(F.conv2d(x, W), F.conv2d(x.copy(), W))


def test_a_memmap_is_fine(tmp_path):
    X.tofile(tmp_path / "x")
    x = np.memmap(tmp_path / "x", np.float32, "r", shape=X.shape)
    np.testing.assert_array_equal(F.conv2d(x, W), F.conv2d(X, W))
    assert type(F.max_pool2d(x, 2)) is np.ndarray


def test_a_result_that_memory_cannot_hold_is_a_memory_error():
    """Sizes that are possible in principle fail as numpy's do, without a crash."""
    one = np.ones((1, 1, 1, 1), np.float32)
    with pytest.raises((MemoryError, ValueError)):
        F.conv2d(one, one, padding=2**22)
