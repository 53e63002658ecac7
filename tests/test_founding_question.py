"""The question the project began with: how does an error go back through pooling?

A pooling layer has no weights; it is a transfer function. Max pooling passes the
error to the winner of each window alone. Average pooling shares it. LeCun's
subsampling has a gain and a bias a map, which learn, and is followed by a sigmoid.
"""

import numpy as np
import pytest

import cnn_ext
from cnn_ext import functional as F
from cnn_ext import reference

OPERATORS = [F, reference]


@pytest.fixture(params=OPERATORS, ids=lambda module: module.__name__.split(".")[-1])
def operators(request):
    return request.param


@pytest.mark.parametrize("kind", ["return_argmax", "return_indices"])
def test_the_winner_of_a_max_pool_gets_the_whole_error(operators, kind):
    x = np.array([[0.1, 0.2, 0.3], [0.4, 0.0, 0.1], [0.5, 0.6, 0.9]])
    x = x.reshape(1, 1, 3, 3)
    y, position = operators.max_pool2d(x, 3, **{kind: True})
    assert y.tolist() == [[[[0.9]]]]
    assert position.tolist() == [[[[8]]]]  # (2, 2), row by row
    error = np.full((1, 1, 1, 1), 0.75)
    grad_x = operators.max_pool2d_backward(error, position, x.shape, 3)
    expected = np.zeros((3, 3))
    expected[2, 2] = 0.75
    np.testing.assert_array_equal(grad_x[0, 0], expected)


def test_an_average_pool_shares_the_error(operators):
    error = np.full((1, 1, 1, 1), 0.75)
    grad_x = operators.avg_pool2d_backward(error, (1, 1, 3, 3), 3)
    np.testing.assert_allclose(grad_x[0, 0], np.full((3, 3), 0.75 / 9), rtol=1e-15)
    # all of it arrives
    assert grad_x.sum() == pytest.approx(0.75, rel=1e-15)


def test_a_winner_of_several_windows_gets_all_their_errors(operators):
    x = np.zeros((1, 1, 3, 3))
    x[0, 0, 1, 1] = 1
    _, argmax = operators.max_pool2d(x, 2, stride=1, return_argmax=True)
    assert argmax.tolist() == [[[[3, 2], [1, 0]]]]
    errors = np.array([[[[1.0, 2.0], [4.0, 8.0]]]])
    grad_x = operators.max_pool2d_backward(errors, argmax, x.shape, 2, stride=1)
    assert grad_x[0, 0, 1, 1] == 15
    assert np.count_nonzero(grad_x) == 1


def test_subsampling_learns_a_gain_and_a_bias_a_map(operators):
    x = np.array([[1.0, 2.0], [3.0, 4.0]])
    x = np.stack([x, 10 * x])[None]  # two maps, one window each
    gain, bias = np.array([0.5, 0.25]), np.array([1.0, -1.0])
    y = operators.subsample2d(x, gain, bias, 2)
    assert y[0, :, 0, 0].tolist() == [0.5 * 10 + 1, 0.25 * 100 - 1]
    error = np.array([2.0, -4.0]).reshape(1, 2, 1, 1)
    grad_x, grad_gain, grad_bias = operators.subsample2d_backward(error, x, gain, 2)
    # the gain's gradient is the error times the sum of the window, the bias's the
    # error; every pixel of a window gets the error times the gain
    assert grad_gain.tolist() == [2.0 * 10, -4.0 * 100]
    assert grad_bias.tolist() == [2.0, -4.0]
    assert (grad_x[0, 0] == 0.5 * 2).all()
    assert (grad_x[0, 1] == 0.25 * -4).all()


def test_a_shared_gain_collects_from_all_windows_and_images(operators):
    x = np.arange(32.0).reshape(2, 1, 4, 4)
    gain = np.array([2.0])
    error = np.arange(8.0).reshape(2, 1, 2, 2)
    _, grad_gain, grad_bias = operators.subsample2d_backward(error, x, gain, 2)
    sums = x.reshape(2, 1, 2, 2, 2, 2).sum(axis=(3, 5))
    assert grad_gain.tolist() == [(error * sums).sum()]
    assert grad_bias.tolist() == [error.sum()]


def test_delta_of_a_sigmoid_unit():
    """delta = out * (1 - out) * error."""
    x = np.linspace(-4, 4, 9).reshape(1, 1, 3, 3)
    model = cnn_ext.Sequential(cnn_ext.Sigmoid())
    out = model.forward(x, train=True)
    np.testing.assert_allclose(out, 1 / (1 + np.exp(-x)), rtol=1e-14)
    error = np.linspace(1, 2, 9).reshape(x.shape)
    delta = model.backward(error)
    np.testing.assert_allclose(delta, out * (1 - out) * error, rtol=1e-14)
