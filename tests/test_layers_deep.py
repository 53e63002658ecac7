"""Layers of deeper nets: gradients, agreement with PyTorch, modes, bad arguments."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cnn_ext.checkpoint import CheckpointError, load, save
from cnn_ext.gradcheck import gradcheck
from cnn_ext.layers import (
    ELU,
    GELU,
    AdaptiveAvgPool2d,
    AdaptiveMaxPool2d,
    BatchNorm2d,
    ConvTranspose2d,
    DepthwiseConv2d,
    Dropout,
    Dropout2d,
    Flatten,
    GlobalAvgPool,
    HardSwish,
    Input,
    LeakyReLU,
    Linear,
    LocalResponseNorm,
    ReLU6,
    SeparableConv2d,
    SiLU,
    Upsample,
)
from cnn_ext.sequential import Sequential

F64 = {"dtype": np.float64, "seed": 1}
DRAWN = {"weight_init": "default", "bias_init": "default"}

# layer in float64, shape of a batch, the same in PyTorch (None: it has no such layer)
LAYERS = [
    (BatchNorm2d(4, **F64, **DRAWN), (3, 4, 5, 6), "BatchNorm2d(4)"),
    (
        BatchNorm2d(4, 1e-3, 0.3, False, **F64),
        (3, 4, 5, 6),
        "BatchNorm2d(4, 1e-3, 0.3, False)",
    ),
    (
        GlobalAvgPool(),
        (2, 3, 5, 6),
        "Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())",
    ),
    (AdaptiveAvgPool2d(3), (2, 3, 6, 9), "AdaptiveAvgPool2d(3)"),
    (AdaptiveAvgPool2d((3, 4)), (2, 3, 7, 10), "AdaptiveAvgPool2d((3, 4))"),
    (AdaptiveAvgPool2d((None, 8)), (2, 3, 7, 5), "AdaptiveAvgPool2d((None, 8))"),
    (AdaptiveMaxPool2d(3), (2, 3, 6, 9), "AdaptiveMaxPool2d(3)"),
    (AdaptiveMaxPool2d((3, 4)), (2, 3, 7, 10), "AdaptiveMaxPool2d((3, 4))"),
    (AdaptiveMaxPool2d((5, None)), (2, 3, 3, 4), "AdaptiveMaxPool2d((5, None))"),
    (ReLU6(), (2, 3, 4, 5), "ReLU6()"),
    (LeakyReLU(), (2, 3, 4, 5), "LeakyReLU()"),
    (LeakyReLU(0.3), (2, 3, 4, 5), "LeakyReLU(0.3)"),
    (ELU(), (2, 3, 4, 5), "ELU()"),
    (ELU(0.4), (2, 3, 4, 5), "ELU(0.4)"),
    (SiLU(), (2, 3, 4, 5), "SiLU()"),
    (HardSwish(), (2, 3, 4, 5), "Hardswish()"),
    (GELU(), (2, 3, 4, 5), "GELU()"),
    (LocalResponseNorm(5), (2, 7, 3, 4), "LocalResponseNorm(5)"),
    (
        LocalResponseNorm(4, 0.5, 0.6, 2.0),
        (2, 7, 3, 4),
        "LocalResponseNorm(4, 0.5, 0.6, 2.0)",
    ),
    (LocalResponseNorm(9, 0.5), (2, 3, 3, 4), "LocalResponseNorm(9, 0.5)"),
    (Upsample(2), (2, 3, 4, 5), "Upsample(scale_factor=2)"),
    (Upsample((3, 1)), (2, 3, 4, 5), "Upsample(scale_factor=(3., 1.))"),
    (Upsample(1.6), (2, 3, 5, 7), "Upsample(scale_factor=1.6)"),
    (Upsample(size=(3, 9)), (2, 3, 4, 5), "Upsample((3, 9))"),
    (
        Upsample(2, mode="bilinear"),
        (2, 3, 4, 5),
        "Upsample(scale_factor=2, mode='bilinear')",
    ),
    (
        Upsample(2.5, mode="bilinear", align_corners=True),
        (2, 3, 4, 5),
        "Upsample(scale_factor=2.5, mode='bilinear', align_corners=True)",
    ),
    (
        Upsample(size=(3, 9), mode="bilinear"),
        (2, 3, 4, 5),
        "Upsample((3, 9), mode='bilinear')",
    ),
    (
        Upsample(size=(1, 7), mode="bilinear", align_corners=True),
        (2, 3, 4, 1),
        "Upsample((1, 7), mode='bilinear', align_corners=True)",
    ),
    (ConvTranspose2d(3, 4, 3, **F64), (2, 3, 5, 4), "ConvTranspose2d(3, 4, 3)"),
    (
        ConvTranspose2d(4, 6, (3, 2), (2, 3), 1, (1, 2), 2, False, **F64),
        (2, 4, 5, 4),
        "ConvTranspose2d(4, 6, (3, 2), (2, 3), 1, (1, 2), 2, False)",
    ),
    (
        # output_padding beyond padding and stride: rows that no filter reaches
        ConvTranspose2d(2, 3, 3, 1, 0, 2, 1, True, 3, **F64),
        (2, 2, 4, 5),
        "ConvTranspose2d(2, 3, 3, 1, 0, 2, 1, True, 3)",
    ),
    (
        ConvTranspose2d(2, 2, 4, 2, 5, 1, **F64),  # more padding than kernel
        (1, 2, 7, 8),
        "ConvTranspose2d(2, 2, 4, 2, 5, 1)",
    ),
    (ConvTranspose2d(2, 3, 3, 2, ((1, 0), (0, 2)), **F64), (2, 2, 4, 5), None),
    (
        DepthwiseConv2d(3, 3, 2, 1, **F64),
        (2, 3, 6, 7),
        "Conv2d(3, 3, 3, 2, 1, groups=3)",
    ),
    (
        DepthwiseConv2d(3, (3, 2), multiplier=2, bias=False, **F64),
        (2, 3, 6, 7),
        "Conv2d(3, 6, (3, 2), groups=3, bias=False)",
    ),
    (SeparableConv2d(3, 5, 3, 1, "same", **F64), (2, 3, 6, 7), None),
    (SeparableConv2d(3, 5, 3, 2, 1, 2, 2, False, **F64), (2, 3, 8, 7), None),
]
IDS = [repr(layer) for layer, _, _ in LAYERS]
CASES = pytest.mark.parametrize("layer, shape, theirs", LAYERS, ids=IDS)


def _x(shape, spread=3.0):
    return spread * np.random.default_rng(0).standard_normal(shape)


@CASES
def test_gradients_shape_and_config(layer, shape, theirs):
    x = _x(shape)
    gradcheck(layer, x)
    y, saved = layer.forward(x, train=True)
    assert y.shape[1:] == layer.output_shape(shape[1:])
    assert y.dtype == np.float64
    grad_y = np.random.default_rng(1).standard_normal(y.shape)
    _, grads = layer.backward(grad_y, saved)
    alone = layer.backward_parameters(grad_y, saved)
    assert list(grads) == list(alone) == list(layer.parameters)
    for name, grad in grads.items():
        np.testing.assert_array_equal(grad, alone[name])
        assert grad.shape == layer.parameters[name].shape
    if not isinstance(layer, BatchNorm2d):
        np.testing.assert_array_equal(layer(x), y)
    again = type(layer)(**layer.config())
    assert repr(again) == repr(layer)
    assert layer.multiply_adds(shape[1:]) >= 0


@CASES
def test_float32_and_nothing_is_changed(layer, shape, theirs):
    model = Sequential(layer).astype(np.float32)
    layer = model.layers["0"]
    x = _x(shape).astype(np.float32)
    before = x.copy()
    y, pullback = layer.vjp(x)
    grad_y = np.ones_like(y)
    first, second = pullback(grad_y), pullback(grad_y)
    np.testing.assert_array_equal(grad_y, 1)
    np.testing.assert_array_equal(x, before)
    assert y.dtype == first[0].dtype == np.float32
    for a, b in zip(
        [first[0], *first[1].values()], [second[0], *second[1].values()], strict=True
    ):
        assert a.dtype == np.float32
        np.testing.assert_array_equal(a, b)


@CASES
def test_memory_order_is_kept(layer, shape, theirs):
    x = _x(shape)
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    y, pullback = layer.vjp(x)
    y_last, pullback_last = layer.vjp(last)
    np.testing.assert_allclose(y_last, y, rtol=1e-12, atol=1e-12)
    grad_y = np.random.default_rng(1).standard_normal(y.shape)
    grad_y_last = grad_y
    if y.ndim == 4:
        assert y_last.transpose(0, 2, 3, 1).flags.c_contiguous
        grad_y_last = np.empty_like(y_last)
        grad_y_last[...] = grad_y
    grad_x, grad_x_last = pullback(grad_y)[0], pullback_last(grad_y_last)[0]
    np.testing.assert_allclose(grad_x_last, grad_x, rtol=1e-12, atol=1e-12)
    if y.ndim == 4:
        assert grad_x_last.transpose(0, 2, 3, 1).flags.c_contiguous


@CASES
def test_empty_batch(layer, shape, theirs):
    y, pullback = layer.vjp(np.empty((0, *shape[1:])))
    assert y.shape == (0, *layer.output_shape(shape[1:]))
    grad_x, grads = pullback(np.empty_like(y))
    assert grad_x.shape == (0, *shape[1:])
    for grad in grads.values():
        np.testing.assert_array_equal(grad, 0)


@CASES
def test_against_pytorch(layer, shape, theirs):
    torch = pytest.importorskip("torch")
    if theirs is None:
        pytest.skip("PyTorch has no such layer")
    other = eval(f"nn.{theirs}", {"nn": torch.nn}).double()
    for name, parameter in layer.parameters.items():
        with torch.no_grad():
            getattr(other, name).copy_(torch.from_numpy(parameter.value.copy()))
    # whole sixths among them: the corners of hard activations, ties of pooling
    x = np.round(_x(shape) * 6) / 6
    tx = torch.from_numpy(x.copy()).requires_grad_()
    ty = other(tx)
    y, pullback = layer.vjp(x)
    grad_y = np.random.default_rng(2).standard_normal(y.shape)
    ty.backward(torch.from_numpy(grad_y))
    grad_x, grads = pullback(grad_y)
    close = {"rtol": 1e-10, "atol": 1e-12}
    np.testing.assert_allclose(y, ty.detach().numpy(), **close)
    np.testing.assert_allclose(grad_x, tx.grad.numpy(), **close)
    for name, grad in grads.items():
        np.testing.assert_allclose(grad, getattr(other, name).grad.numpy(), **close)


@CASES
def test_there_and_back(layer, shape, theirs, tmp_path):
    pytest.importorskip("safetensors")
    layer.vjp(_x(shape))  # moves running statistics
    model = Sequential(layer, input_shape=shape[1:])
    save(model, tmp_path / "m.safetensors")
    loaded = load(tmp_path / "m.safetensors")
    assert repr(loaded) == repr(model)
    assert loaded(_x(shape)).tobytes() == model(_x(shape)).tobytes()
    held = [*layer.parameters.values(), *layer.buffers.values()]
    again = loaded.layers["0"]
    for a, b in zip(
        held, [*again.parameters.values(), *again.buffers.values()], strict=True
    ):
        assert a.value.tobytes() == b.value.tobytes()
        assert b.value.flags.writeable


def test_a_file_does_not_decide_on_memory(tmp_path):
    pytest.importorskip("safetensors")
    save(Sequential(BatchNorm2d(7777, affine=False)), tmp_path / "m")
    data = (tmp_path / "m").read_bytes().replace(b"7777", b"9999", 1)
    assert data.count(b"9999") == 1
    (tmp_path / "m").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"'0.running_mean' has shape"):
        load(tmp_path / "m")


# -- batch normalisation -------------------------------------------------------------


def test_running_statistics_and_inference():
    layer = BatchNorm2d(2, **F64)
    mean, variance = np.zeros(2), np.ones(2)
    for i in range(4):
        x = np.random.default_rng(i).normal(3, 2, (3, 2, 4, 5))
        layer.forward(x, train=True)
        mean = 0.9 * mean + 0.1 * x.mean(axis=(0, 2, 3))
        variance = 0.9 * variance + 0.1 * x.var(axis=(0, 2, 3), ddof=1)
    np.testing.assert_allclose(layer.running_mean.value, mean, rtol=1e-12)
    np.testing.assert_allclose(layer.running_var.value, variance, rtol=1e-12)
    expected = (x - mean.reshape(2, 1, 1)) / np.sqrt(variance.reshape(2, 1, 1) + 1e-5)
    np.testing.assert_allclose(layer(x), expected, rtol=1e-12)
    before = layer.running_mean.value.copy()
    layer(x)  # inference changes nothing
    layer.vjp(np.empty((0, 2, 4, 5)))  # neither does an empty batch
    np.testing.assert_array_equal(layer.running_mean.value, before)


def test_batch_normalisation_against_pytorch_over_steps():
    torch = pytest.importorskip("torch")
    ours, theirs = BatchNorm2d(3), torch.nn.BatchNorm2d(3)
    for i in range(5):
        x = np.random.default_rng(i).normal(1, 3, (4, 3, 5, 6)).astype(np.float32)
        y, _ = ours.forward(x, train=True)
        np.testing.assert_allclose(
            y, theirs(torch.from_numpy(x)).detach().numpy(), rtol=1e-4, atol=1e-5
        )
    theirs.eval()
    for name in ("running_mean", "running_var"):
        np.testing.assert_allclose(
            ours.buffers[name].value, getattr(theirs, name).numpy(), rtol=1e-5
        )
    np.testing.assert_allclose(
        ours(x), theirs(torch.from_numpy(x)).detach().numpy(), rtol=1e-4, atol=1e-5
    )


def test_statistics_of_large_offsets_do_not_cancel():
    x = np.random.default_rng(0).normal(1e4, 1, (16, 1, 16, 16)).astype(np.float32)
    y, _ = BatchNorm2d(1).forward(x, train=True)
    wide = x.astype(np.float64)
    expected = (wide - wide.mean()) / np.sqrt(wide.var() + 1e-5)
    np.testing.assert_allclose(y, expected, atol=2e-3)


def test_buffers_in_models():
    model = Sequential(BatchNorm2d(2), BatchNorm2d(2, name="bn"))
    assert [name for name, _ in model.named_buffers()] == [
        "0.running_mean",
        "0.running_var",
        "bn.running_mean",
        "bn.running_var",
    ]
    wide = model.astype(np.float64)
    assert all(b.value.dtype == np.float64 for _, b in wide.named_buffers())
    wide.vjp(np.ones((2, 2, 3, 3)))
    assert model.layers["bn"].running_mean.value.sum() == 0  # a copy of its own
    assert repr(model.layers["bn"].running_mean) == "Buffer(float32, shape (2,))"
    assert model.layers["bn"].running_mean.shape == (2,)


# -- dropout -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Dropout, Dropout2d])
def test_dropout(kind):
    x = np.ones((40, 30, 4, 5))
    layer = kind(0.3, seed=0)
    assert layer(x) is x
    y, pullback = layer.vjp(x)
    np.testing.assert_allclose(np.unique(y), [0, 1 / 0.7])
    assert (y == 0).mean() == pytest.approx(0.3, abs=0.05)
    grad_x, _ = pullback(np.full_like(x, 2))
    np.testing.assert_array_equal(grad_x, 2 * y)
    per_map = y.reshape(40, 30, 20)
    assert (per_map == per_map[..., :1]).all() == (kind is Dropout2d)
    assert not np.array_equal(layer.vjp(x)[0], y)  # drawn anew
    np.testing.assert_array_equal(kind(0.3, seed=0).vjp(x)[0], y)
    np.testing.assert_array_equal(
        kind(0.3, seed=0).vjp(np.ones_like(x, np.float32))[0] == 0, y == 0
    )
    assert layer.output_shape((30, 4, 5)) == (30, 4, 5)
    assert repr(layer) == f"{kind.__name__}(p=0.3)"


def test_dropout_extremes_and_gradient():
    x = _x((3, 4, 5, 6))
    np.testing.assert_array_equal(Dropout(0, seed=0).vjp(x)[0], x)
    y, pullback = Dropout(1, seed=0).vjp(x)
    np.testing.assert_array_equal(y, 0)
    np.testing.assert_array_equal(pullback(x)[0], 0)
    unseeded = Dropout()
    assert unseeded.rng is None
    assert not np.array_equal(unseeded.vjp(x)[0], unseeded.vjp(x)[0])


def test_layers_may_share_one_generator():
    rng = np.random.default_rng(5)
    first, second = Dropout(seed=rng), Dropout(seed=rng)
    x = np.ones((4, 50))
    a, b = first.vjp(x)[0], second.vjp(x)[0]
    assert not np.array_equal(a, b)
    rng = np.random.default_rng(5)
    alone = Dropout(seed=rng)
    np.testing.assert_array_equal(alone.vjp(x)[0], a)
    np.testing.assert_array_equal(alone.vjp(x)[0], b)


# -- meaning -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_activations_at_special_values(dtype):
    x = np.array([[-np.inf, -1e4, -6, 0, 6, 1e4, np.inf, np.nan]], dtype)
    big = 1e4
    for layer, expected in (
        (ReLU6(), [0, 0, 0, 0, 6, 6, 6]),
        (LeakyReLU(0.5), [-np.inf, -5e3, -3, 0, 6, big, np.inf]),
        (ELU(2), [-2, -2, 2 * math.expm1(-6), 0, 6, big, np.inf]),
        (SiLU(), [np.nan, 0, -6 / (1 + math.exp(6)), 0, None, big, np.inf]),
        (HardSwish(), [np.nan, 0, 0, 0, 6, big, np.inf]),
        (GELU(), [np.nan, 0, -3 * math.erfc(6 / 2**0.5), 0, None, big, np.inf]),
    ):
        with np.errstate(all="raise", under="ignore"):
            y, pullback = layer.vjp(x)
        for got, wanted in zip(y[0], [*expected, np.nan], strict=True):
            if wanted is not None:
                np.testing.assert_allclose(got, wanted, rtol=1e-5, err_msg=repr(layer))
        with np.errstate(invalid="ignore", over="ignore"):
            grad_x, _ = pullback(np.ones_like(y))
        assert grad_x[0, 5] == (0 if isinstance(layer, ReLU6) else 1), layer
        assert y.dtype == grad_x.dtype == dtype


def test_conv_transpose_starts_as_in_pytorch():
    weight = ConvTranspose2d(64, 8, 3, seed=0).weight.value
    bound = 1 / math.sqrt(8 * 9)
    assert 0.95 * bound < abs(weight).max() <= bound


def test_deep_layers_in_a_graph():
    x = Input((3, 8, 8))
    h = BatchNorm2d(3)(x)
    y = Linear(3, 2, seed=0)(GlobalAvgPool()(Upsample(2)(h)))
    assert y.shape == (2,)
    assert Flatten()(GlobalAvgPool()(x)).shape == (3,)


# -- bad arguments -------------------------------------------------------------------

ONES = np.ones((2, 3, 4, 4), np.float32)
BAD = [
    (lambda: BatchNorm2d(0), ValueError, "channels must be at least 1"),
    (lambda: BatchNorm2d(3, eps=-1), ValueError, "eps must be at least 0 and finite"),
    (lambda: BatchNorm2d(3, momentum=2), ValueError, "momentum must be at least 0 and"),
    (lambda: BatchNorm2d(3, momentum=None), TypeError, "momentum must be a number"),
    (lambda: BatchNorm2d(4)(ONES), ValueError, "running_mean has 4 channels, x has sh"),
    (lambda: BatchNorm2d(3)(ONES[0]), ValueError, r"x must have axes \(N, C, H, W\)"),
    (lambda: BatchNorm2d(3)(ONES.astype(float)), TypeError, "x is float64, the layer"),
    (
        lambda: BatchNorm2d(3).vjp(ONES[:1, :, :1, :1]),
        ValueError,
        "more than one value per channel",
    ),
    (lambda: BatchNorm2d(4)(Input((3, 8, 8))), ValueError, "BatchNorm2d.*4 channels"),
    (lambda: Dropout(1.5), ValueError, "p must be at least 0 and at most 1, got 1.5"),
    (lambda: Dropout("x"), TypeError, "p must be a number, got 'x'"),
    (lambda: Dropout(seed=-1), ValueError, "seed must not be negative"),
    (lambda: Dropout2d().vjp(ONES[0]), ValueError, r"x must have axes \(N, C, H, W\)"),
    (lambda: Dropout()(np.arange(3)), TypeError, "float32 or float64"),
    (lambda: LocalResponseNorm(0), ValueError, "size must be at least 1"),
    (lambda: LocalResponseNorm(3, alpha=-1), ValueError, "alpha must be at least 0"),
    (lambda: LocalResponseNorm(3)(np.ones(3)), ValueError, "x must have channels"),
    (lambda: GlobalAvgPool()(ONES[0]), ValueError, r"x must have axes \(N, C, H, W\)"),
    (lambda: GlobalAvgPool()(Input((3, 8))), ValueError, r"axes \(N, C, H, W\), got"),
    (lambda: AdaptiveAvgPool2d(0), ValueError, "output_size must be at least 1, got 0"),
    (lambda: AdaptiveAvgPool2d((1, 2, 3)), ValueError, "an int or a pair"),
    (lambda: AdaptiveMaxPool2d((2, -1)), ValueError, r"output_size\[1\] must be at le"),
    (lambda: AdaptiveMaxPool2d(2.0), TypeError, "output_size must be an integer"),
    (lambda: AdaptiveMaxPool2d(2)(ONES[0]), ValueError, r"x must have axes"),
    (lambda: LeakyReLU(-0.1), ValueError, "negative_slope must be at least 0"),
    (lambda: ELU(float("nan")), ValueError, "alpha must be at least 0 and finite"),
    (lambda: GELU()([1.0]), TypeError, "float32 or float64 array, got list"),
    (lambda: Upsample(), ValueError, "give either scale_factor or size"),
    (lambda: Upsample(2, size=4), ValueError, "give either scale_factor or size"),
    (lambda: Upsample(0), ValueError, "scale_factor must be above 0 and finite"),
    (lambda: Upsample(size=0), ValueError, "size must be at least 1, got 0"),
    (lambda: Upsample(size=(1, 2, 3)), ValueError, "size must be one number or two"),
    (lambda: Upsample(2, mode="cubic"), ValueError, "'nearest' or 'bilinear', got 'cu"),
    (lambda: Upsample(2, align_corners=True), ValueError, "goes with mode 'bilinear'"),
    (lambda: Upsample(0.1)(ONES), ValueError, "leaves nothing of 4x4 pixels"),
    (lambda: ConvTranspose2d(3, 4, 3, groups=2), ValueError, "must divide the 3 input"),
    (lambda: ConvTranspose2d(4, 3, 3, groups=2), ValueError, "must divide the 3 outp"),
    (
        lambda: ConvTranspose2d(3, 4, 3, 2, output_padding=2),
        ValueError,
        "output_padding must be smaller than stride or dilation, got 2",
    ),
    (lambda: ConvTranspose2d(3, 4, 3, padding="same"), ValueError, "must be an int"),
    (lambda: ConvTranspose2d(3, 4, 3, padding=-1), ValueError, "padding must be at le"),
    (lambda: ConvTranspose2d(3, 4, 3, stride=0), ValueError, "stride must be at least"),
    (lambda: ConvTranspose2d(4, 4, 3)(ONES), ValueError, "4 input channels, x has 3"),
    (
        lambda: ConvTranspose2d(3, 4, 3, padding=9)(Input((3, 4, 4))),
        ValueError,
        "leaves nothing of 6 pixels",
    ),
    (lambda: ConvTranspose2d(3, 4, 3)(Input((3, 4))), ValueError, "x must have axes"),
    (lambda: DepthwiseConv2d(0, 3), ValueError, "channels must be at least 1"),
    (lambda: DepthwiseConv2d(3, 3, multiplier=0), ValueError, "multiplier must be at"),
    (lambda: SeparableConv2d(3, 0, 3), ValueError, "out_channels must be at least 1"),
    (lambda: SeparableConv2d(4, 5, 3)(Input((3, 8, 8))), ValueError, "channels"),
]


@pytest.mark.parametrize("make, kind, message", BAD)
def test_bad_arguments(make, kind, message):
    with pytest.raises(kind, match=message):
        make()
