"""Targets of trust/fuzz.py that belong to training: its checkpoints, augmentation."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from typing import Any

import numpy as np

import cnn_ext
from cnn_ext import layers, optimizers, schedules
from cnn_ext.callbacks import EarlyStopping
from cnn_ext.data import augment


@functools.cache
def _data() -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).random((12, 1, 4, 4), np.float32)
    return x, np.arange(12) % 2


class _Stop(EarlyStopping):
    """Ends a run in the middle of an epoch; for the file it is early stopping."""

    def after_step(self, run: Any) -> None:
        if run.step == 5:
            raise KeyboardInterrupt


def _fit(stopping: EarlyStopping, **options: Any) -> None:
    """Two epochs, by whatever the file says; refused, the model is as it was."""
    rng = np.random.default_rng(0)
    model = cnn_ext.Sequential(
        layers.Conv2d(1, 2, 3, seed=rng),
        layers.BatchNorm2d(2),
        layers.Dropout(0.2, seed=1),
        layers.Flatten(),
        layers.Linear(8, 2, seed=rng),
    )
    held = [*model.parameters(), *(b for _, b in model.named_buffers())]
    before = [part.value.tobytes() for part in held]
    try:
        cnn_ext.fit(
            model, _data(), optimizer=optimizers.Adam(), batch_size=4, epochs=2,
            schedule=schedules.Plateau(0.5, 1, monitor="train_loss"), seed=0, verbose=0,
            callbacks=[stopping], **options,
        )  # fmt: skip
    except cnn_ext.CheckpointError:
        assert [part.value.tobytes() for part in held] == before
        raise


def runs(folder: Path) -> list[bytes]:
    """Checkpoints at an epoch's end and in the middle of one."""
    path = folder / "run"
    _fit(EarlyStopping(9, "train_loss"), checkpoint=path)
    found = [path.read_bytes()]
    with contextlib.suppress(KeyboardInterrupt):
        _fit(_Stop(9, "train_loss"), checkpoint=path, checkpoint_every=1)
    return [*found, path.read_bytes()]


def resume(path: Path) -> None:
    _fit(EarlyStopping(9, "train_loss"), resume=path)


KINDS = {
    "Shift": 2, "Crop": 3, "Flip": 2, "Affine": 5, "Cutout": 2, "Compose": 2
}  # fmt: skip


def augmentation(s: Any, odd: tuple, array: Any) -> None:
    """One augmentation with arguments of all kinds, on a batch of any kind."""

    def number() -> Any:
        kind = s.below(12)
        if kind == 0:
            return s.pick(odd)
        if kind < 4:
            return s.below(9), s.below(9)
        return s.pick((0, 1, 2, 3, 8, 40, 0.0, 0.5, 1.0, 1.5, 90, 180, 1e30, 1e-30))

    def built(name: str) -> Any:
        if name == "Compose":
            return augment.Compose(*(built(s.pick(list(KINDS)[:5])) for _ in range(2)))
        arguments = [number() for _ in range(s.below(KINDS[name] + 1))]
        if name == "Affine" and len(arguments) > 1 and s.below(4):
            arguments[1] = (0.5 + s.below(2), 2.0)
        return getattr(augment, name)(*arguments)

    change = built(s.pick(list(KINDS)))
    x = array(s, (s.below(4), 1 + s.below(3), 1 + s.below(9), 1 + s.below(9)))
    before = x.tobytes() if isinstance(x, np.ndarray) and x.size < 10**6 else None
    y = change(x, s.pick((None, 3)) if s.below(20) == 0 else np.random.default_rng(0))
    assert y.dtype == x.dtype and len(y) == len(x) and y.flags.c_contiguous
    assert before is None or x.tobytes() == before
