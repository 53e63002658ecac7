"""The command cnn-ext: in process, and as a program of its own."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from sample_files import real_mnist, stripes, write_images, write_mnist

import cnn_ext
from cnn_ext import cli, data

pytest.importorskip("safetensors", reason="train saves the network with it")


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CNN_EXT_DATA", raising=False)
    threads = cnn_ext.get_num_threads()
    yield
    cnn_ext.set_num_threads(threads)


@pytest.fixture
def run(capsys):
    """Run the command; return its status, output and errors."""

    def call(*arguments):
        status = cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return call


@pytest.fixture
def refuses(run, tmp_path):
    """The command ends with status 2, one line, and no new file."""

    def call(*arguments):
        before = sorted(tmp_path.rglob("*"))
        status, _, err = run(*arguments)
        assert status == 2
        assert err.startswith("cnn-ext: ") and err.count("\n") == 1, err
        assert err.endswith("\n")
        assert sorted(tmp_path.rglob("*")) == before
        return err

    return call


@pytest.fixture
def toy(tmp_path):
    """A small .npz file of four classes that are easy to tell apart."""
    x, y = stripes(200, 8, 4)
    np.savez(tmp_path / "toy.npz", x=x, y=y)
    return "toy.npz"


@pytest.fixture
def trained(run, toy):
    """The toy, and a network trained on it."""
    status, _, err = run("train", toy, "--epochs", 4, "--out", "net.safetensors")
    assert (status, err) == (0, "")
    return toy, "net.safetensors"


# train


def test_train_prints_a_curve_and_saves(run, toy):
    status, out, err = run("train", toy, "--epochs", 4, "--threads", 1)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert [line.split()[:2] for line in lines if line.startswith("epoch")] == [
        ["epoch", f"{epoch}/4"] for epoch in range(1, 5)
    ]
    assert lines[-2] == "test accuracy 100.00 % (40 of 40 held-out images)"
    assert lines[-1] == "saved as digits-toy.safetensors"
    model = cnn_ext.load("digits-toy.safetensors")
    assert model.input_shape == (1, 8, 8)
    assert model.metadata["class_names"] == ["0", "1", "2", "3"]
    assert sorted(os.listdir()) == ["digits-toy.safetensors", "toy.npz"]


def test_the_same_seed_gives_the_same_file(run, toy):
    files = []
    for seed, threads in ((3, 1), (3, 2), (4, 1)):
        out = f"{len(files)}.safetensors"
        options = ("--epochs", 1, "--seed", seed, "--threads", threads)
        assert run("train", toy, *options, "--out", out)[0] == 0
        files.append(Path(out).read_bytes())
    assert files[0] == files[1] != files[2]


def test_train_takes_its_options(run, toy, monkeypatch):
    seen = {}

    def fit(model, train, **options):
        seen.update(options)

    monkeypatch.setattr(cli.train, "fit", fit)
    options = ("--lr", "0.25", "--batch-size", 7, "--epochs", 3, "--seed", 5)
    assert run("train", toy, *options)[0] == 0
    assert seen["optimizer"].lr == 0.25
    assert (seen["batch_size"], seen["epochs"], seen["seed"]) == (7, 3, 5)


def test_train_evaluate_and_predict_on_digits(run):
    pytest.importorskip("sklearn")
    image = pytest.importorskip("PIL.Image")
    status, out, _ = run("train", "--epochs", 6, "--threads", 1)
    assert status == 0
    accuracy = next(line for line in out.splitlines() if line.startswith("test "))
    assert float(accuracy.split()[2]) > 95
    assert run("evaluate", "digits.safetensors")[:2] == (0, accuracy + "\n")
    digits = data.digits()
    pixels = np.rint(digits.x_test[:20, 0] * 255).astype(np.uint8)
    names = [f"{number:02}.png" for number in range(20)]
    for name, picture in zip(names, pixels, strict=True):
        image.fromarray(picture).save(name)
    status, out, _ = run("predict", "digits.safetensors", *names)
    rows = [line.split("\t") for line in out.splitlines()]
    assert status == 0 and [row[0] for row in rows] == names
    assert all(0.1 <= float(row[2]) <= 1 for row in rows)
    right = sum(int(row[1]) == y for row, y in zip(rows, digits.y_test, strict=False))
    assert right >= 18


def test_train_and_evaluate_on_four_idx_files(run, monkeypatch):
    write_mnist("files", train=200, test=40, size=16, compress=True)
    status, out, err = run("train", "mnist", "--data", "files", "--epochs", 25)
    assert (status, err) == (0, "")
    assert "(40 of 40 held-out images)" in out
    assert "saved as lenet5-mnist.safetensors" in out
    monkeypatch.setenv("CNN_EXT_DATA", "files")
    assert "40 of 40" in run("evaluate", "lenet5-mnist.safetensors")[1]


def test_train_and_predict_on_a_folder(run):
    image = pytest.importorskip("PIL.Image")
    write_images("pets", per_class=40, mode="RGB")
    status, out, err = run("train", "pets", "--epochs", 6)
    assert (status, err) == (0, "")
    assert "(16 of 16 held-out images)" in out
    net = "digits-pets.safetensors"
    assert "16 of 16" in run("evaluate", net, "pets")[1]
    status, out, _ = run("predict", net, "pets/cat/000.png", "pets/dog/001.png")
    assert [line.split("\t")[1] for line in out.splitlines()] == ["cat", "dog"]
    # inverted twice is as it was, whatever the size
    dark = 255 - np.asarray(image.open("pets/dog/001.png"))
    image.fromarray(dark).resize((16, 16), image.Resampling.NEAREST).save("dark.png")
    assert run("predict", net, "dark.png", "--invert")[1].split("\t")[1] == "dog"
    write_images("resized", per_class=10, size=12)
    assert run("train", "resized", "--size", 8, 6, "--epochs", 1)[0] == 0
    assert cnn_ext.load("digits-resized.safetensors").input_shape == (1, 8, 6)


def test_channels_last(run, refuses):
    x, y = stripes(40, 8, 4)
    np.savez("rgb.npz", x=np.stack([x, x, x], axis=-1), y=y)
    assert "--channels-last" in refuses("train", "rgb.npz")
    assert run("train", "rgb.npz", "--channels-last", "--epochs", 1)[0] == 0
    assert cnn_ext.load("digits-rgb.safetensors").input_shape == (3, 8, 8)


def test_squared_error_gives_probabilities_too(run):
    image = pytest.importorskip("PIL.Image")
    x, y = stripes(200, 16, 4)
    np.savez("toy.npz", x=x, y=y)
    options = ("--model", "lenet5-1998", "--epochs", 10, "--out", "net")
    assert run("train", "toy.npz", *options)[0] == 0
    image.fromarray(x[1]).save("one.png")
    status, out, _ = run("predict", "net", "one.png")
    assert status == 0
    _, name, probability = out.split("\t")
    assert name == "1" and 0.5 < float(probability) <= 1


def test_real_mnist_trains(run):
    folder = real_mnist()
    if folder is None:
        pytest.skip("the real MNIST files are not here; set CNN_EXT_DATA to them")
    status, out, _ = run("train", "mnist", "--data", folder, "--epochs", 1)
    accuracy = next(line for line in out.splitlines() if line.startswith("test "))
    assert status == 0 and float(accuracy.split()[2]) > 95


# what is wrong is said in one line


WRONG = {
    "": "COMMAND",
    "fly": "invalid choice: 'fly'",
    "train --fly": "unrecognized arguments: --fly",
    "train absent": "DATA is 'absent', which is not there",
    "train absent.npz": "'absent.npz': cannot be opened",
    "train text": "'text', a file that does not end in .npz",
    "train text.npz": "text.npz: not an .npz file",
    "train void": "void: has 0 sub-folders",
    "train files": "give mnist --data files",
    "train mnist --data absent": "absent: no such folder; pass --data DIR",
    "train mnist --data void": "has no train-images-idx3-ubyte",
    "train toy.npz --data void": "--data goes with mnist, not with an .npz file",
    "train toy.npz --size 8 8": "--size goes with a folder",
    "train mnist --channels-last": "--channels-last goes with an .npz file",
    "train toy.npz --model alexnet": "invalid choice: 'alexnet'",
    "train toy.npz --model lenet5": "lenet5 cannot take images of (1, 8, 8)",
    "train toy.npz --epochs 0": "from 1 to 1000000, got '0'",
    "train toy.npz --epochs many": "--epochs: must be an integer",
    "train toy.npz --epochs 9999999999999999999999": "--epochs: must be an integer",
    "train toy.npz --batch-size -1": "--batch-size: must be an integer",
    "train toy.npz --lr 0": "--lr: must be a number above 0",
    "train toy.npz --lr nan": "--lr: must be a number above 0",
    "train toy.npz --lr inf": "--lr: must be a number above 0",
    "train toy.npz --lr fast": "--lr: must be a number above 0",
    "train toy.npz --lr 1e30 --epochs 2": "the loss became",
    "train toy.npz --seed -1": "--seed: must be an integer from 0",
    "train toy.npz --seed 9223372036854775808": "--seed: must be an integer",
    "train toy.npz --threads 0": "--threads: must be an integer from 1 to 1024",
    "train toy.npz --out void": "void, a folder",
    "train toy.npz --out absent/net": "there is no folder",
    "train toy.npz --out toy.npz": "the data to train on",
    "evaluate": "required: MODEL",
    "evaluate absent": "absent: No such file",
    "evaluate void": "void: is a folder",
    "evaluate text": "text: is t",
    "evaluate net": "does not say what it was trained on",
    "evaluate net large.npz": "net takes images of (1, 8, 8), large.npz has",
    "evaluate net more.npz": "net knows the classes 0, 1, 2, 3, more.npz has 0, 1",
    "predict net": "required: IMAGE",
    "predict net absent.png": "absent.png'",
    "predict net text": "text: is no image",
    "predict text text": "text: is t",
    "bench --seconds 0": "--seconds: must be a number above 0",
    "info --threads 2": "unrecognized arguments",
}


@pytest.mark.parametrize("line", WRONG)
def test_one_line_says_what_is_wrong(refuses, trained, line):
    if "is no image" in WRONG[line]:
        pytest.importorskip("PIL")
    os.rename("net.safetensors", "net")
    os.mkdir("void")
    write_mnist("files")
    with open("text", "w") as file, open("text.npz", "w") as other:
        file.write("this is no model")
        other.write("nor data")
    x, y = stripes(40, 9, 4)
    np.savez("large.npz", x=x, y=y)
    x, y = stripes(40, 8, 8)
    np.savez("more.npz", x=x, y=y)
    assert WRONG[line] in refuses(*line.split())


def test_labels_and_names_of_a_hostile_model_are_checked(refuses, run, toy):
    image = pytest.importorskip("PIL.Image")
    image.new("L", (8, 8)).save("x.png")
    model = cnn_ext.zoo.build("digits", classes=4, seed=0)
    for names, message in (
        ("abcd", "class_names are not a list"),
        ([1, 2, 3, 4], "class_names are not a list"),
        (["a", "b"], "not one for each class of 2"),
    ):
        model.metadata["class_names"] = names
        cnn_ext.save(model, "net")
        assert message in refuses("predict", "net", "x.png")
    model.metadata["class_names"] = ["\x1b[31m", "\n", "\udcff", "e"]
    cnn_ext.save(model, "net")
    status, out, _ = run("predict", "net", "x.png")
    assert status == 0 and "\x1b" not in out and out.count("\n") == 1
    for targets in ([0, 0], ["a", "b"], [0, None], [0, 1e300], [0, float("inf")]):
        model.metadata = {"targets": targets}
        try:
            cnn_ext.save(model, "net")
        except TypeError:  # infinity is not JSON
            continue
        assert "targets" in refuses("predict", "net", "x.png")
    model = cnn_ext.Sequential(cnn_ext.Flatten(), cnn_ext.Linear(64, 4, seed=0))
    cnn_ext.save(model, "net")
    assert "built with input_shape=" in refuses("predict", "net", "x.png")


def test_missing_libraries_are_named(refuses, toy, monkeypatch):
    found = importlib.util.find_spec
    with monkeypatch.context() as patch:
        hidden = {"safetensors": None}
        patch.setattr(importlib.util, "find_spec", lambda name: hidden.get(name, name))
        assert "pip install 'cnn_ext[demo]'" in refuses("train", toy)
    assert importlib.util.find_spec is found
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert "pip install 'cnn_ext[demo]'" in refuses("train")


def test_a_failing_save_leaves_the_old_file(refuses, trained, monkeypatch):
    toy, net = trained
    before = Path(net).read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device", net)

    monkeypatch.setattr("os.replace", full)
    message = refuses("train", toy, "--epochs", 1, "--out", net)
    assert message == "cnn-ext: net.safetensors: No space left on device\n"
    assert Path(net).read_bytes() == before


def test_no_memory_is_one_line(refuses, toy, monkeypatch):
    def fit(*_, **__):
        raise MemoryError

    monkeypatch.setattr(cli.train, "fit", fit)
    assert "not enough memory" in refuses("train", toy)


# Ctrl-C


def test_ctrl_c_during_training_saves(run, toy, monkeypatch):
    def fit(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.train, "fit", fit)
    status, _, err = run("train", toy, "--out", "net")
    assert status == 130
    assert err == "cnn-ext: interrupted; the network as it was is saved as net\n"
    assert cnn_ext.load("net").input_shape == (1, 8, 8)


def test_ctrl_c_before_training_says_so(run, toy, monkeypatch):
    def npz(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(data, "npz", npz)
    assert run("train", toy) == (130, "", "cnn-ext: interrupted; nothing was written\n")


PROGRAM = (sys.executable, "-P", "-m", "cnn_ext.cli")


@pytest.fixture(autouse=True)
def children_find_the_package_under_test(monkeypatch):
    place = str(Path(cnn_ext.__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", place, prepend=os.pathsep)


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT for one process")
def test_ctrl_c_in_a_process(toy):
    process = subprocess.Popen(
        [*PROGRAM, "train", toy, "--epochs", "100000", "--out", "net"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("epoch"):
            break
    process.send_signal(signal.SIGINT)
    begin = time.monotonic()
    # read on: a full pipe would block the program
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert time.monotonic() - begin < 30
    assert err == "cnn-ext: interrupted; the network as it was is saved as net\n"
    assert cnn_ext.load("net").input_shape == (1, 8, 8)
    assert sorted(os.listdir()) == ["net", "toy.npz"]


# as a program


def program(*arguments, **options):
    return subprocess.run(
        [*PROGRAM, *arguments], capture_output=True, text=True, timeout=120, **options
    )


def test_as_a_program(toy):
    done = program("train", toy, "--epochs", "2", "--threads", "1")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "saved as digits-toy.safetensors"
    done = program("evaluate", "digits-toy.safetensors", toy)
    assert done.returncode == 0 and "of 40 held-out images" in done.stdout
    done = program("train", "absent")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("cnn-ext: ") and done.stderr.count("\n") == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_output_that_cannot_be_written_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*PROGRAM, "info"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    assert done.stderr == "cnn-ext: No space left on device\n"


@pytest.mark.skipif(sys.platform == "win32", reason="pipes close otherwise there")
def test_a_closed_pipe_is_one_line():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [*PROGRAM, "info"], stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    assert done.returncode == 2
    assert done.stderr == "cnn-ext: standard output was closed before the end\n"


# info, help, bench


def test_info_shows_the_configuration(run):
    assert run("info") == (0, cnn_ext.show_config() + "\n", "")


@pytest.mark.parametrize("command", ["", "train", "evaluate", "predict", "bench"])
def test_help(run, command):
    status, out, err = run(*command.split(), "--help")
    assert (status, err) == (0, "")
    assert out.startswith(f"usage: cnn-ext {command}".rstrip())


def test_version(run):
    assert run("--version") == (0, f"cnn-ext {cnn_ext.__version__}\n", "")


def test_bench_checks_and_times(run, refuses, monkeypatch):
    from cnn_ext import _bench

    monkeypatch.setattr(_bench, "_CONVS", _bench._CONVS[:2])
    monkeypatch.setattr(_bench, "_POOLS", _bench._POOLS[::2])
    status, out, err = run("bench", "--seconds", "0.001", "--threads", 1)
    assert (status, err) == (0, "")
    rows = [line.split() for line in out.splitlines() if line.startswith("LeNet-5")]
    assert len(rows) == 2 * 3 + 2 * 2
    assert {row[-1] for row in rows} == {"GFLOP/s", "GB/s"}
    assert all(float(row[-2]) >= 0 for row in rows)
    # an operator that is wrong is not timed
    right = _bench.F.conv2d
    monkeypatch.setattr(_bench.F, "conv2d", lambda *a, **o: right(*a, **o) + 1)
    message = refuses("bench", "--seconds", "0.001")
    assert "conv2d of LeNet-5 C1 5x5 is off by 1 from the reference" in message
