"""The benchmarks run, check what they time, and name what they leave out."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cnn_ext import reference

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
if not FOLDER.is_dir():
    pytest.skip("no benchmarks/ beside the tests", allow_module_level=True)

TINY = """\
# kind,name,N,C,H,W,K,R,S,stride,pad_h,pad_w,dilation,groups,source
conv,plain,2,4,9,11,6,3,3,2,1,0,1,2,a test
conv,dilated,1,3,10,9,5,3,2,1,2,1,2,1,a test
max,winners,2,3,9,8,3,3,3,2,1,1,1,1,a test
avg,means,2,3,9,8,3,3,2,2,1,0,1,1,a test
"""


@pytest.fixture(scope="module")
def bench():
    """The package `benchmarks`, imported without the sources of cnn_ext beside it."""
    spec = importlib.util.spec_from_file_location(
        "benchmarks",
        FOLDER / "__init__.py",
        submodule_search_locations=[str(FOLDER)],
    )
    package = importlib.util.module_from_spec(spec)
    path = sys.path[:]
    sys.modules["benchmarks"] = package
    spec.loader.exec_module(package)
    sys.path[:] = path
    for name in ("ops", "exact", "peers", "shapes", "memory"):
        importlib.import_module(f"benchmarks.{name}")
    yield package
    for name in [n for n in sys.modules if n.partition(".")[0] == "benchmarks"]:
        del sys.modules[name]


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.csv"
    path.write_text(TINY)
    return path


def test_public_shapes(bench):
    shapes = bench.shapes.read_shapes()
    assert len(shapes) == len({shape.name for shape in shapes}) == 42
    assert sum(shape.is_conv for shape in shapes) == 34


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("conv,a,1,2", "line 1"),
        ("sum,a,1,1,4,4,1,2,2,1,0,0,1,1,x", "kind must be conv, max or avg"),
        ("conv,a,1,1,4,4,1,9,9,1,0,0,1,1,x", "more than the padded image"),
    ],
)
def test_bad_shapes(bench, tmp_path, text, message):
    path = tmp_path / "bad.csv"
    path.write_text(text + "\n")
    with pytest.raises(ValueError, match=message):
        bench.shapes.read_shapes(path)


@pytest.mark.parametrize("order", ["nchw", "channels_last"])
def test_exact_agrees_with_the_reference(bench, tiny, order):
    for shape in bench.shapes.read_shapes(tiny):
        data = bench.shapes.Data.of(shape, "float64").ordered(order)
        for pass_ in shape.passes:
            task = bench.shapes.Task(shape, pass_, order, "float64")
            right = _reference(task, data)
            assert bench.exact.sampled_error(task, data, right, 200) < 1e-13
            wrong = right.copy()
            wrong[0, 0, 0, 0] += 1  # a corner is always in the sample
            assert bench.exact.sampled_error(task, data, wrong, 200) > 1e-4
            assert bench.exact.difference(wrong, right) > 1e-4


def _reference(task, data):
    s = task.shape
    if s.is_conv:
        where = {
            "stride": s.stride,
            "padding": s.padding,
            "dilation": s.dilation,
            "groups": s.groups,
        }
        if task.pass_ == "forward":
            return reference.conv2d(data.x, data.weight, **where)
        if task.pass_ == "grad_x":
            return reference.conv2d_backward_input(
                data.grad_y, data.weight, s.x_shape, **where
            )
        return reference.conv2d_backward_weight(
            data.grad_y, data.x, s.weight_shape, **where
        )
    where = {"stride": s.stride, "padding": s.padding}
    size = s.r, s.s
    if s.kind == "avg":
        if task.pass_ == "forward":
            return reference.avg_pool2d(data.x, size, **where)
        return reference.avg_pool2d_backward(data.grad_y, s.x_shape, size, **where)
    y, argmax = reference.max_pool2d(data.x, size, return_argmax=True, **where)
    if task.pass_ != "grad_x":
        return y
    return reference.max_pool2d_backward(data.grad_y, argmax, s.x_shape, size, **where)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_ops_against_nobody(bench, tiny, tmp_path, capsys, dtype):
    record = tmp_path / "record.json"
    arguments = ["--against", "", "--shapes", str(tiny), "--rounds", "1"]
    arguments += ["--seconds", "0.0001", "--dtype", dtype, "--json", str(record)]
    assert bench.ops.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "FMA peak, same run" in printed
    rows = json.loads(record.read_text())["rows"]
    # two convolutions of 3 passes, max of 3, avg of 2, in both memory orders
    assert len(rows) == 2 * (3 + 3 + 3 + 2)
    limit = 1e-6 if dtype == "float32" else 1e-14
    assert all(row["errors"]["cnn_ext"] < limit for row in rows)
    assert all(row["seconds"]["cnn_ext"]["best"] > 0 for row in rows)


def test_a_missing_peer_is_named(bench, tiny, monkeypatch, capsys):
    def missing(name, threads):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(bench.ops, "load", missing)
    arguments = ["--against", "torch", "--shapes", str(tiny), "--only", "plain"]
    arguments += ["--rounds", "1", "--seconds", "0", "--passes", "forward"]
    assert bench.ops.main(arguments) == 0
    assert "not installed (No module named 'torch')" in capsys.readouterr().out


def test_a_wrong_result_is_not_timed(bench, tiny, monkeypatch, capsys):
    peer = bench.peers.base.Prepared
    ours = bench.ops.Ours

    def off(self, task, data):
        run = prepare(self, task, data).run
        return peer(run, lambda: run() + np.float32(1))

    prepare = ours.prepare
    monkeypatch.setattr(ours, "prepare", off)
    arguments = ["--against", "", "--shapes", str(tiny), "--only", "plain"]
    assert bench.ops.main([*arguments, "--passes", "forward"]) == 1
    assert "our result is wrong" in capsys.readouterr().err


def test_unknown_shape(bench, tiny, capsys):
    assert bench.ops.main(["--shapes", str(tiny), "--only", "nothing"]) == 2
    assert "has no shape named nothing" in capsys.readouterr().err


def test_memory_shapes_are_distinct(bench):
    shapes = list(bench.memory.random_shapes(50))
    assert len(set(shapes)) == 50
    assert {shape.kind for shape in shapes} == {"conv", "max", "avg"}


def test_nets_against_nobody(bench, tmp_path, capsys):
    train = importlib.import_module("benchmarks.train")
    record = tmp_path / "record.json"
    arguments = ["--against", "", "--only", "lenet5", "--rounds", "1"]
    arguments += ["--seconds", "0.0001", "--json", str(record)]
    assert train.main(arguments) == 0
    assert "lenet5 b64" in capsys.readouterr().out
    rows = json.loads(record.read_text())["rows"]
    assert [(row["batch"], row["train"]) for row in rows] == [
        (64, True), (1, True), (1, False), (32, False)
    ]  # fmt: skip
    assert all(row["seconds"]["cnn_ext"]["best"] > 0 for row in rows)
    assert train.main(["--only", "nothing"]) == 2
    assert "no net 'nothing'" in capsys.readouterr().err


@pytest.mark.parametrize("net", ["lenet5", "cifar-quick", "resnet20", "mobilenet-v2"])
def test_pytorch_runs_the_same_net(bench, net):
    pytest.importorskip("torch")
    train = importlib.import_module("benchmarks.train")
    ours, torch = (train.load(name, 1) for name in ("cnn_ext", "torch eager"))
    errors = train.check_gradients(net, ours, torch)
    assert all(errors[what] <= train.EXACT[what] for what in errors), errors
    if net == "lenet5":  # no ReLU: nothing hangs on a sign
        runners = {"cnn_ext": ours, "torch eager": torch}
        assert max(train.check_rounding(net, runners).values()) < 1e-5
    case = train.Case(net, 2, False)
    outputs = [
        runner.inference(case.model(), case.data()[0]).result()
        for runner in (ours, torch, train.load("torch channels-last", 1))
    ]
    for y in outputs[1:]:
        assert train.compare(outputs[0], y)["outputs"] < 1e-5


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_engines_run_the_same_net(bench, engine):
    pytest.importorskip("onnx")
    pytest.importorskip(engine)
    train = importlib.import_module("benchmarks.train")
    for net in ("lenet5", "cifar-quick", "resnet20", "mobilenet-v2"):
        case = train.Case(net, 2, False)
        outputs = [
            train.load(name, 1).inference(case.model(), case.data()[0]).result()
            for name in ("cnn_ext", engine)
        ]
        assert train.compare(*outputs)["outputs"] < 1e-4, net


def test_who_computes_another_net_is_not_timed(bench, monkeypatch, capsys):
    train = importlib.import_module("benchmarks.train")
    ours = importlib.import_module("benchmarks.nets.ours").Ours

    class Other(ours):
        name = "torch eager"

        def inference(self, model, x):
            return super().inference(model, x + np.float32(1))

    def load(name, threads):
        if name == "torch eager":
            return Other(threads)
        if name != "cnn_ext":
            raise ImportError(f"No module named {name!r}")
        return ours(threads)

    monkeypatch.setattr(train, "load", load)
    arguments = ["--only", "lenet5 b1", "--passes", "infer", "--rounds", "1"]
    assert train.main([*arguments, "--seconds", "0"]) == 1
    printed = capsys.readouterr().out
    assert "torch eager WRONG" in printed and "skipped openvino" in printed


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not say")
def test_peak_memory_of_a_net(bench):
    train = importlib.import_module("benchmarks.train")
    peak = train.peak_memory("cnn_ext", train.Case("lenet5", 64, True), 1)
    assert 1e6 < peak["steps"] < peak["process"] < 1e9


@pytest.mark.parametrize("name", ["ops", "train", "small", "neighbour", "memory"])
def test_help(name):
    command = [sys.executable, "-m", f"benchmarks.{name}", "--help"]
    # found in the folder where it is started, as by a user
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
    done = subprocess.run(
        command, cwd=FOLDER.parent, env=environment, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "--json" in done.stdout
