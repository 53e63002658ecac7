"""Tells which way the stripes of an image run: a small network from start to end."""

import numpy as np
from numpy.typing import NDArray

import cnn_ext
from cnn_ext import functional as F

__all__ = ["draw", "main", "network"]

DIRECTIONS = ("horizontal", "vertical", "diagonal")
Images = NDArray[np.float32]


def draw(
    count: int, rng: np.random.Generator, size: int = 16
) -> tuple[Images, NDArray[np.int64]]:
    """Draw noisy striped images (count, 1, size, size) and their directions."""
    rows, cols = np.mgrid[:size, :size]
    across = np.stack([rows, cols, (rows + cols) / np.sqrt(2)])
    labels = rng.integers(len(DIRECTIONS), size=count)
    width = rng.uniform(3, 8, (count, 1, 1))
    phase = rng.uniform(0, 2 * np.pi, (count, 1, 1))
    images = np.sin(2 * np.pi * across[labels] / width + phase)
    images += rng.normal(0, 0.5, images.shape)
    return images[:, None].astype(np.float32), labels


def network(rng: np.random.Generator) -> cnn_ext.Sequential:
    """Build a network of two convolutions for 16 x 16 images."""
    return cnn_ext.Sequential(
        cnn_ext.Conv2d(1, 8, 5, padding=2, seed=rng),
        cnn_ext.ReLU(),
        cnn_ext.MaxPool2d(2),
        cnn_ext.Conv2d(8, 8, 3, padding=1, seed=rng),
        cnn_ext.ReLU(),
        cnn_ext.AvgPool2d(2),
        cnn_ext.Flatten(),
        cnn_ext.Linear(8 * 4 * 4, len(DIRECTIONS), seed=rng),
    )


def main() -> int:
    """Train, evaluate and predict; 0 if the network has learned."""
    rng = np.random.default_rng(0)
    training, test = draw(1500, rng), draw(500, rng)
    model = network(rng)
    cnn_ext.fit(
        model,
        training,
        loss=cnn_ext.CrossEntropy(),
        optimizer=cnn_ext.SGD(lr=0.05, momentum=0.9),
        epochs=4,
        batch_size=32,
        seed=0,
    )
    loss, accuracy = cnn_ext.evaluate(model, test)
    print(f"cnn_ext {cnn_ext.__version__}: loss {loss:.3f}, accuracy {accuracy:.1%}")

    image = test[0][:1]
    print("the first test image is", DIRECTIONS[int(model(image).argmax())])

    # the operators alone, on numpy arrays: an edge detector of one line
    edges = F.conv2d(image, np.array([[[[-1, 0, 1]]]], np.float32), padding=(0, 1))
    print("its strongest vertical edge:", f"{float(np.abs(edges).max()):.2f}")
    return 0 if accuracy > 0.95 else 1
