"""gradcheck passes what is right and names what is wrong."""

import doctest
import sys

import numpy as np
import pytest

from cnn_ext import reference
from cnn_ext.gradcheck import GradientError, GradientReport, gradcheck

module = sys.modules["cnn_ext.gradcheck"]


def draw(*shapes):
    rng = np.random.default_rng(0)
    return tuple(rng.standard_normal(shape) for shape in shapes)


def forward(x, weight):
    return reference.conv2d(x, weight, padding=1)


def backward(grad_y, x, weight):
    return (
        reference.conv2d_backward_input(grad_y, weight, x.shape, padding=1),
        reference.conv2d_backward_weight(grad_y, x, weight.shape, padding=1),
    )


INPUTS = draw((2, 3, 7, 6), (4, 3, 3, 3))


class Parameter:
    def __init__(self, value):
        self.value = value


class Affine:
    """A model of the smallest kind: y = tanh(x @ weight + bias)."""

    def __init__(self, flaw=None):
        self.weight, self.bias = map(Parameter, draw((5, 3), 3))
        self.flaw = flaw

    def named_parameters(self):
        yield "weight", self.weight
        yield "bias", self.bias

    def vjp(self, x):
        y = np.tanh(x @ self.weight.value + self.bias.value)

        def pullback(grad_y):
            delta = grad_y * (1 - y * y)
            grads = {"weight": x.T @ delta, "bias": delta.sum(axis=0)}
            grad_x = delta @ self.weight.value.T
            if self.flaw == "scale":
                grads["bias"] = 1.001 * grads["bias"]
            elif self.flaw == "missing":
                del grads["bias"]
            elif self.flaw == "entry":
                grads["weight"][4, 2] += 1e-3
            elif self.flaw == "list":
                grads = list(grads.values())
            elif self.flaw == "bare":
                return grad_x
            return grad_x, grads

        return y, pullback


class SquareLayer:
    """A layer, with its forward and backward apart."""

    joins = False

    def __init__(self):
        self.gain = Parameter(np.array([1.5, -2.0]))

    @property
    def parameters(self):
        return {"gain": self.gain}

    def forward(self, x, train=False):
        assert train
        return self.gain.value * x * x, x

    def backward(self, grad_y, x):
        grads = {"gain": (grad_y * x * x).sum(axis=0)}
        return 2 * self.gain.value * x * grad_y, grads


def test_a_function_and_its_backward():
    report = gradcheck(forward, INPUTS, vjp=backward, names=["x", "weight"])
    assert isinstance(report, GradientReport)
    assert set(report.discrepancies) == {"x", "weight"}
    assert report.worst in report.discrepancies
    assert max(report.discrepancies.values()) < 1e-7
    assert "weight: " in str(report)


def test_a_function_that_returns_its_pullback():
    report = gradcheck(
        lambda x, w: (forward(x, w), lambda grad_y: backward(grad_y, x, w)), INPUTS
    )
    assert set(report.discrepancies) == {"input 0", "input 1"}
    (x,) = draw((4, 5))
    gradcheck(lambda x: (x**3, lambda grad_y: 3 * x**2 * grad_y), x)
    gradcheck(lambda x: (np.sum(x * x), lambda grad_y: 2 * x * grad_y), [x])


def test_a_model_and_its_parameters():
    model = Affine()
    before = [model.weight.value.copy(), model.bias.value.copy()]
    report = gradcheck(model, draw((4, 5)))
    assert set(report.discrepancies) == {"input 0", "weight", "bias"}
    assert np.array_equal(before[0], model.weight.value)
    assert np.array_equal(before[1], model.bias.value)


def test_a_layer_and_its_parameters():
    report = gradcheck(SquareLayer(), draw((6, 2)), names=["x"])
    assert set(report.discrepancies) == {"x", "gain"}


@pytest.mark.parametrize("flaw", ["scale", "missing"])
def test_the_wrong_parameter_is_named(flaw):
    with pytest.raises(GradientError, match="bias") as error:
        gradcheck(Affine(flaw), draw((4, 5)))
    assert error.value.argument == "bias"
    assert isinstance(error.value, AssertionError)


def test_a_single_wrong_entry_is_found():
    with pytest.raises(GradientError, match="weight") as error:
        gradcheck(Affine("entry"), draw((4, 5)))
    assert error.value.argument == "weight"
    assert (
        error.value.discrepancies["bias"] < 1e-6 < error.value.discrepancies["weight"]
    )


def test_a_wrong_entry_among_many_is_found():
    (x,) = draw(100_000)

    def pullback(grad_y):
        grad_x = np.cos(x) * grad_y
        grad_x[777] *= 1.01
        return grad_x

    with pytest.raises(GradientError):
        gradcheck(np.sin, x, vjp=lambda grad_y, x: pullback(grad_y))


@pytest.mark.parametrize(
    ("wrong", "argument"),
    [
        (lambda gx, gw: (-gx, gw), "x"),
        (lambda gx, gw: (2 * gx, gw), "x"),
        (lambda gx, gw: (gx, gw[:, :, ::-1]), "weight"),
        (lambda gx, gw: (gx, gw.swapaxes(2, 3)), "weight"),
        (lambda gx, gw: (np.roll(gx, 1, axis=3), gw), "x"),
        (lambda gx, gw: (np.zeros_like(gx), gw), "x"),
        (lambda gx, gw: (gx + 1e-4, gw), "x"),
        (lambda gx, gw: (gx[0], gw), "x"),
        (lambda gx, gw: (gx, gw * np.nan), "weight"),
        (lambda gx, gw: (1.01 * gx, 3 * gw), "weight"),
    ],
)
def test_wrong_gradients_are_named(wrong, argument):
    with pytest.raises(GradientError, match=f"gradient of {argument} ") as error:
        gradcheck(
            forward,
            INPUTS,
            vjp=lambda *args: wrong(*backward(*args)),
            names=["x", "weight"],
        )
    assert error.value.argument == argument


def test_a_gradient_that_is_zero():
    (x,) = draw((3, 4))
    zeros = np.zeros_like(x)
    gradcheck(lambda x: np.ones(3), x, vjp=lambda grad_y, x: zeros)
    # true zero, but only to rounding: a shift that is taken off again
    centred = lambda x: (x - x.mean()) + 100.0  # noqa: E731
    gradcheck(
        lambda x, shift: centred(x + shift),
        (x, np.ones(1)),
        vjp=lambda grad_y, x, shift: (grad_y - grad_y.mean(), np.zeros(1)),
    )


def test_labels_are_constants():
    logits, labels = draw((4, 3))[0], np.array([0, 2, 1, 1])

    def loss(logits, labels):
        exps = np.exp(logits)
        p = exps / exps.sum(axis=1, keepdims=True)
        grad = p - np.eye(3)[labels]
        picked = p[np.arange(4), labels]
        return -np.log(picked).sum(), lambda grad_y: (grad_y * grad, None)

    report = gradcheck(loss, (logits, labels))
    assert set(report.discrepancies) == {"input 0"}


def test_an_argument_may_be_left_out():
    report = gradcheck(forward, INPUTS, vjp=lambda *args: (backward(*args)[0], None))
    assert set(report.discrepancies) == {"input 0"}


def test_a_pass_that_changes_its_input():
    def careless(grad_y, x):
        x *= 2
        return grad_y

    with pytest.raises(GradientError, match="input 0 was changed"):
        gradcheck(lambda x: x + 0, draw(3), vjp=careless)


def test_inputs_are_left_alone():
    inputs = draw((3, 4))
    before = inputs[0].copy()
    inputs[0].flags.writeable = False
    gradcheck(np.sin, inputs, vjp=lambda grad_y, x: np.cos(x) * grad_y)
    assert np.array_equal(inputs[0], before)


def test_the_same_seed_gives_the_same_report():
    first, second, other = (
        gradcheck(Affine(), draw((4, 5)), seed=seed) for seed in (1, 1, 2)
    )
    assert first == second != other


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: gradcheck(np.sin, np.ones(3)), TypeError, "no backward pass"),
        (
            lambda: gradcheck(np.sin, np.ones(3, np.float32), vjp=np.multiply),
            TypeError,
            "input 0 must be float64",
        ),
        (
            lambda: gradcheck(np.sin, np.ones(3), vjp=np.multiply, names=["x", "y"]),
            ValueError,
            "names must name 1 inputs",
        ),
        (
            lambda: gradcheck(lambda x: x, np.ones(3, int), vjp=np.multiply),
            TypeError,
            "nothing to check",
        ),
        (
            lambda: gradcheck(np.log, np.zeros(3), vjp=np.multiply),
            ValueError,
            "not finite",
        ),
        (
            lambda: gradcheck(np.float32, np.ones(3), vjp=np.multiply),
            TypeError,
            "must return float64",
        ),
        (
            lambda: gradcheck(forward, INPUTS, vjp=lambda g, x, w: g),
            TypeError,
            "1 gradients for 2 inputs",
        ),
        (lambda: gradcheck(Affine("list"), draw((4, 5))), TypeError, "a mapping"),
        (
            lambda: gradcheck(Affine("bare"), draw((4, 5))),
            TypeError,
            r"return \(grad_x, grads\)",
        ),
        (
            lambda: gradcheck(np.sin, np.ones(3), vjp=lambda g, x: None),
            TypeError,
            "returned no gradient",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_misuse(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_examples_of_the_documentation():
    flags = doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL
    assert doctest.testmod(module, optionflags=flags).failed == 0
