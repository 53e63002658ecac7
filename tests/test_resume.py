"""Checkpoints of a run: the same bits after an interruption at any moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from sample_files import stripes

import cnn_ext
from cnn_ext import schedules
from cnn_ext.callbacks import (
    BestCheckpoint,
    Callback,
    CSVLog,
    EarlyStopping,
    StopOnNaN,
)
from cnn_ext.checkpoint import CheckpointError, load
from cnn_ext.layers import (
    BatchNorm2d,
    Conv2d,
    Dropout,
    Flatten,
    GlobalAvgPool,
    Linear,
    ReLU,
)
from cnn_ext.optimizers import SGD, Adam, AdamW, RMSprop
from cnn_ext.sequential import Sequential
from cnn_ext.training import fit

pytest.importorskip("safetensors", reason="checkpoints are written with it")


class Killed(Exception):
    pass


class Kill(Callback):
    """Ends the run after a step, as a crash would."""

    def __init__(self, step=None):
        self.step = step

    def after_step(self, run):
        if run.step == self.step:
            raise Killed


def data(seed=0, n=50):
    rng = np.random.default_rng(seed)
    return rng.random((n, 2, 6, 6), np.float32), rng.integers(0, 3, n)


def net():
    rng = np.random.default_rng(0)
    return Sequential(
        Conv2d(2, 4, 3, seed=rng),
        BatchNorm2d(4),
        ReLU(),
        Dropout(0.2),
        GlobalAvgPool(),
        Dropout(0.1, seed=7),
        Linear(4, 3, seed=rng),
    )


def shifted(x, rng):
    return np.roll(x, int(rng.integers(3)), axis=3)


def run(model, optimizer, kill=None, **options):
    options = {
        "epochs": 3, "batch_size": 8, "seed": 1, "verbose": 0,
        "validation": data(1, 20), "augment": shifted,
    } | options  # fmt: skip
    callbacks = [EarlyStopping(50), Kill(kill), *options.pop("callbacks", ())]
    return fit(model, data(), optimizer=optimizer, callbacks=callbacks, **options)


def bits(model):
    held = [*model.named_parameters(), *model.named_buffers()]
    return {name: part.value.tobytes() for name, part in held}


WAYS = {
    "momentum": lambda: (SGD(0.1, 0.9), None),
    "plain": lambda: (SGD(0.1), schedules.Step(2, 0.5)),
    "adam": lambda: (Adam(), schedules.OneCycle(21)),
    "adamw": lambda: (AdamW(), schedules.WarmUp(5, schedules.Cosine(10))),
    "rmsprop": lambda: (RMSprop(1e-3, centered=True), schedules.Plateau(0.5, 0)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kill", [3, 7, 8, 20])
def test_a_resumed_run_ends_in_the_same_bits(way, kill, tmp_path):
    optimizer, schedule = WAYS[way]()
    whole = net()
    history = run(whole, optimizer, schedule=schedule, clip_norm=0.5)
    path = tmp_path / "run"
    saving = {"checkpoint": path, "checkpoint_every": 3, "clip_norm": 0.5}
    optimizer, schedule = WAYS[way]()
    with pytest.raises(Killed):
        run(net(), optimizer, kill, schedule=schedule, **saving)
    if kill == 3:  # before the first checkpoint
        assert not path.exists()
        return
    assert load(path).layers.keys() == net().layers.keys()
    optimizer, schedule = WAYS[way]()
    rate, model = optimizer.lr, net()
    resumed = run(model, optimizer, schedule=schedule, resume=path, **saving)
    assert bits(model) == bits(whole)
    assert resumed.train_loss == history.train_loss
    assert resumed.validation_loss == history.validation_loss
    assert resumed.learning_rate == history.learning_rate
    assert optimizer.lr == rate
    assert model.layers["3"].rng is None
    assert model.layers["5"].rng is not None
    assert os.listdir(tmp_path) == ["run"]


def test_a_finished_run_can_be_extended(tmp_path):
    whole, path = net(), tmp_path / "run"
    run(whole, SGD(0.1, 0.9), epochs=4)
    run(net(), SGD(0.1, 0.9), epochs=2, checkpoint=path)
    again, finished = net(), net()
    assert len(run(finished, SGD(0.1, 0.9), epochs=2, resume=path)) == 2
    assert len(run(again, SGD(0.1, 0.9), epochs=4, resume=path)) == 4
    assert bits(again) == bits(whole)


def test_other_generators_and_rates_of_layers(tmp_path):
    path, models = tmp_path / "run", []
    for kill in (None, 10, None):
        model = net().set_lr_scale({"0": 0.5})
        options = {"seed": np.random.Generator(np.random.MT19937(3))}
        if kill:
            with pytest.raises(Killed):
                run(model, SGD(0.1), kill, checkpoint=path, **options)
        else:
            resume = path if path.exists() else None
            run(model, SGD(0.1), resume=resume, **options)
            models.append(model)
    assert bits(models[0]) == bits(models[1])
    fresh = net()
    run(fresh, SGD(0.1), resume=path, seed=np.random.Generator(np.random.MT19937(3)))
    assert fresh.parameters()[0].lr_scale == 0.5
    with pytest.raises(CheckpointError, match="its training state makes no sense"):
        run(net(), SGD(0.1), resume=path)  # another kind of generator


@pytest.mark.parametrize(
    "change, message",
    [
        ({"optimizer": SGD(0.2)}, r"started with optimizer SGD\(lr=0.1, .*, not SGD"),
        ({"batch_size": 9}, "started with batch_size 8, not 9"),
        ({"schedule": schedules.Step(2)}, "started with schedule None, not Step"),
        ({"clip_norm": 1.0}, "started with clip_norm None, not 1.0"),
        ({"callbacks": [StopOnNaN()]}, "started with 2 callbacks, not 3"),
        ({"model": Sequential(Flatten(), Linear(72, 3))}, "of another model: layers"),
        ({"model": net().astype(np.float32)}, None),
    ],
)
def test_another_run_is_refused(change, message, tmp_path):
    path = tmp_path / "run"
    run(net(), SGD(0.1), epochs=1, checkpoint=path)
    model, optimizer = change.pop("model", net()), change.pop("optimizer", SGD(0.1))
    before = bits(model)
    if message is None:
        run(model, optimizer, resume=path)
        return
    with pytest.raises(CheckpointError, match=message):
        run(model, optimizer, resume=path, **change)
    assert bits(model) == before


def test_files_that_are_no_run(tmp_path):
    cnn_ext.save(net(), tmp_path / "model")
    with pytest.raises(CheckpointError, match="a model, but no training run"):
        run(net(), SGD(0.1), resume=tmp_path / "model")
    with pytest.raises(FileNotFoundError):
        run(net(), SGD(0.1), resume=tmp_path / "nothing")
    with pytest.raises(ValueError, match="checkpoint_every needs a checkpoint"):
        run(net(), SGD(0.1), checkpoint_every=3)
    path = tmp_path / "run"
    run(net(), SGD(0.1), epochs=1, checkpoint=path)
    whole = path.read_bytes()
    for old, new in (
        (b"PCG64", b"PCG65"),
        (b'\\"epoch\\":', b'\\"epohc\\":'),
        (b'\\"callbacks\\":', b'\\"callback_\\":'),
        (b'\\"batch\\": 0', b'\\"batch\\": 5'),
        (b'\\"train_loss\\":', b'\\"train_less\\":'),
        (b'\\"learning_rate\\": [0.1]', b'\\"learning_rate\\": 50.01'),
        (b'\\"learning_rate\\": [0.1]', b'\\"learning_rate\\": []   '),
        (b'\\"stopped\\": null', b'\\"stopped\\": 1234'),
    ):
        assert old in whole
        path.write_bytes(whole.replace(old, new))
        model = net()
        with pytest.raises(CheckpointError, match="makes no sense"):
            run(model, SGD(0.1), resume=path)
        assert bits(model) == bits(net())
    for size in range(0, len(whole), 997):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            run(net(), SGD(0.1), resume=path)


# -- callbacks -----------------------------------------------------------------------


def test_early_stopping_best_and_log(tmp_path):
    best = BestCheckpoint(tmp_path / "best", "train_loss")
    stop = EarlyStopping(2, "validation_loss", min_delta=1e9)
    log = CSVLog(tmp_path / "log.csv")
    model = net()
    history = run(model, SGD(0.05), epochs=9, callbacks=[stop, best, log])
    assert history.stopped == "no better validation_loss in 2 epochs"
    assert len(history) == 3
    lines = (tmp_path / "log.csv").read_text().splitlines()
    assert lines[0] == (
        "epoch,train_loss,validation_loss,validation_accuracy,seconds,learning_rate"
    )
    assert len(lines) == 4
    assert float(lines[3].split(",")[1]) == history.train_loss[2]
    assert load(tmp_path / "best").layers.keys() == model.layers.keys()
    assert best.best == min(history.train_loss)


def test_stop_on_nan():
    x, target = data()
    model = net()
    with pytest.raises(FloatingPointError):
        fit(model, (x, target), optimizer=SGD(1e30), epochs=9, verbose=0, seed=0)
    model = net()
    history = fit(
        model, (x, target), optimizer=SGD(1e30), epochs=9, verbose=0, seed=0,
        callbacks=[StopOnNaN()],
    )  # fmt: skip
    assert history.stopped.startswith("the loss became nan after")


@pytest.mark.parametrize(
    "options, kind, message",
    [
        ({"optimizer": 0.1}, TypeError, "optimizer must be an Optimizer, got float"),
        ({"schedule": 3}, TypeError, "schedule must be a Schedule, got int"),
        ({"callbacks": [3]}, TypeError, "callbacks must be Callback objects, got int"),
        ({"clip_norm": 0}, ValueError, "max_norm must be above 0"),
        ({"clip_value": -1}, ValueError, "limit must be above 0"),
        ({"augment": lambda x, rng: x[1:]}, TypeError, "must return 8 samples of flo"),
        ({"callbacks": [EarlyStopping()], "validation": None}, ValueError, "give vali"),
    ],
)
def test_bad_arguments(options, kind, message):
    model = net()
    with pytest.raises(kind, match=message):
        run(model, options.pop("optimizer", SGD(0.1)), **options)


def test_bad_callbacks():
    with pytest.raises(ValueError, match="monitor must be one of"):
        EarlyStopping(monitor="loss")
    with pytest.raises(ValueError, match="patience must be at least 1"):
        EarlyStopping(0)
    with pytest.raises(ValueError, match="not the state of EarlyStopping"):
        EarlyStopping().load_state_dict({"best": []})
    with pytest.raises(ValueError, match="remembers nothing"):
        StopOnNaN().load_state_dict({"best": 1})


# -- the command ---------------------------------------------------------------------


def test_kill_9_and_resume(tmp_path):
    """A process killed at several moments; its file is always whole."""
    x, y = stripes(200, 8, 4)
    np.savez(tmp_path / "toy.npz", x=x, y=y)
    environment = os.environ | {"CNN_EXT_NUM_THREADS": "1"}

    def command(*arguments):
        return [sys.executable, "-m", "cnn_ext.cli", "train", *arguments]

    def finish(*arguments):
        done = subprocess.run(
            command(*arguments), cwd=tmp_path, env=environment, capture_output=True,
            text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done

    options = ["toy.npz", "--epochs", "12", "--seed", "3", "--batch-size", "4"]
    finish(*options, "--out", "whole")
    path = tmp_path / "run"
    options += ["--out", "parts", "--checkpoint", "run", "--checkpoint-every", "1"]
    arguments, seen = options, set()
    for delay in (0.0, 0.05, 0.2):
        process = subprocess.Popen(
            command(*arguments), cwd=tmp_path, env=environment,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        before = path.stat().st_mtime_ns if path.exists() else None
        end = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < end:
            if path.exists() and path.stat().st_mtime_ns != before:
                break
            time.sleep(0.002)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL if os.name == "posix" else signal.SIGTERM)
        process.wait()
        load(path)  # readable, whenever it was
        seen.add(path.read_bytes())
        arguments = ["--resume", "run"]
    assert len(seen) > 1
    finish("--resume", "run", "--threads", "2")
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    from cnn_ext import cli

    monkeypatch.chdir(tmp_path)
    x, y = stripes(60, 8, 3)
    np.savez("toy.npz", x=x, y=y)

    def call(*arguments):
        status = cli.main(["train", *map(str, arguments)])
        return status, capsys.readouterr().err

    return call


def test_what_resume_takes(command):
    options = ("toy.npz", "--epochs", 2, "--out", "net")
    assert command(*options, "--checkpoint", "run") == (0, "")
    assert command("--resume", "run", "--out", "again") == (0, "")
    assert Path("again").read_bytes() == Path("net").read_bytes()
    for arguments, message in (
        (("--resume", "net"), "net is no checkpoint of a training run"),
        (("--resume", "nothing"), "No such file"),
        (("--resume", "run", "--lr", 1), "--lr is 1.0, but the run in run was started"),
        (("--resume", "run", "digits"), "DATA is digits, but the run"),
        (("toy.npz", "--checkpoint-every", 3), "--checkpoint-every needs --checkpoint"),
        ((*options, "--checkpoint", "net"), "--checkpoint is net, where the network"),
        ((*options, "--checkpoint", "no/run"), "--checkpoint is no/run, but there is"),
        ((*options, "--plot", "curve.txt"), "must end in .svg, .png or .pdf"),
        ((*options, "--plot", "no/curve.svg"), "there is no such folder"),
    ):
        status, err = command(*arguments)
        assert status == 2 and message in err and err.count("\n") == 1, err


def test_plot(command):
    pytest.importorskip("matplotlib")
    options = ("toy.npz", "--epochs", 2, "--out", "net")
    assert command(*options, "--plot", "curve.svg") == (0, "")
    assert "<svg" in Path("curve.svg").read_text(encoding="utf-8")
