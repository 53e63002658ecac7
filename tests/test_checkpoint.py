"""save and load: what comes back, what a file must not do, what a full disk does."""

from __future__ import annotations

import json
import os
import stat
import struct
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from cnn_ext import zoo
from cnn_ext.checkpoint import CheckpointError, load, save
from cnn_ext.checkpoint._writing import structure_of
from cnn_ext.layers import (
    Add,
    AvgPool2d,
    Concat,
    Conv2d,
    Flatten,
    Input,
    Layer,
    Linear,
    MaxPool2d,
    Parameter,
    ReLU,
    ScaledTanh,
    Sigmoid,
    Softmax,
    Subsample2d,
    Tanh,
)
from cnn_ext.model import Model
from cnn_ext.sequential import Sequential

safetensors = pytest.importorskip("safetensors.numpy")


def everything(dtype=np.float32):
    """Every layer that there is, paths that part and join, a shared layer."""
    own = {"seed": np.random.default_rng(0), "dtype": dtype}
    x = Input((2, 8, 8))
    shared = Conv2d(4, 4, (3, 1), 1, "same", bias=False, name="shared", **own)
    a = Tanh()(Conv2d(2, 4, 3, padding=((1, 1), (0, 2)), **own)(x))
    a = shared(shared(a)) + a
    b = ScaledTanh()(Subsample2d(4, dtype=dtype)(a))
    c = Sigmoid()(AvgPool2d(2, count_include_pad=False)(a))
    d = Add()(MaxPool2d(3, 2, 1)(a), b, c)
    e = Flatten()(Concat()(d, ReLU()(b)))
    return Model(x, Softmax()(Linear(128, 3, **own)(e)))


def same(a, b, shape):
    assert type(a) is type(b)
    assert repr(a) == repr(b)
    assert a.input_shape == b.input_shape
    names = [name for name, _ in a.named_parameters()]
    assert names == [name for name, _ in b.named_parameters()]
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert p.value.dtype == q.value.dtype
        assert p.value.tobytes() == q.value.tobytes()
        assert q.value.flags.writeable
        assert q.value.flags.c_contiguous
    x = np.random.default_rng(1).standard_normal((3, *shape)).astype(a.dtype)
    assert a(x).tobytes() == b(x).tobytes()


# -- there and back ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_layer_comes_back(tmp_path, dtype):
    model = everything(dtype)
    model.metadata = {
        "classes": ["a", "b", "ç"],
        "accuracy": 0.5,
        "nested": {"n": None},
    }
    save(model, tmp_path / "m.safetensors")
    loaded = load(tmp_path / "m.safetensors")
    same(model, loaded, (2, 8, 8))
    assert loaded.metadata == model.metadata
    assert loaded.layers["shared"].name == "shared"
    assert loaded.summary() == model.summary()
    # and once more: the same bytes
    save(loaded, str(tmp_path / "n.safetensors"))
    first, second = (tmp_path / f"{n}.safetensors" for n in "mn")
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("name", zoo.NETS)
def test_the_zoo_comes_back(tmp_path, name):
    model = zoo.build(name, seed=0)
    save(model, tmp_path / "m")
    same(model, load(tmp_path / "m"), model.input_shape)


def test_nested_and_named_models(tmp_path):
    block = Sequential(Linear(3, 3, seed=0), ReLU(), Linear(3, 3, name="last", seed=1))
    model = Sequential(block, block, Linear(3, 2, name="head", seed=2))
    save(model, tmp_path / "m")
    loaded = load(tmp_path / "m")
    same(model, loaded, (3,))
    assert list(loaded.layers) == ["0.0", "0.1", "0.last", "head"]


def test_without_parameters(tmp_path):
    save(Sequential(Flatten(), ReLU()), tmp_path / "m")
    assert repr(load(tmp_path / "m")) == "Sequential(0: Flatten(), 1: ReLU())"


def test_values_in_any_memory_order(tmp_path):
    model = Sequential(Linear(3, 4, seed=0))
    weight = model.layers["0"].weight
    weight.value = np.asfortranarray(weight.value)
    expected = weight.value.copy()
    save(model, tmp_path / "m")
    np.testing.assert_array_equal(
        load(tmp_path / "m").layers["0"].weight.value, expected
    )


def test_training_goes_on_after_loading(tmp_path):
    model = zoo.build("digits", seed=0)
    save(model, tmp_path / "m")
    loaded = load(tmp_path / "m")
    for parameter in loaded.parameters():
        parameter.value += 1


def test_other_readers_find_the_parameters(tmp_path):
    model = Sequential(Linear(3, 4, seed=0), ReLU(), Linear(4, 2, seed=1))
    save(model, tmp_path / "m.safetensors")
    tensors = safetensors.load_file(tmp_path / "m.safetensors")
    assert sorted(tensors) == ["0.bias", "0.weight", "2.bias", "2.weight"]
    np.testing.assert_array_equal(tensors["2.bias"], model.layers["2"].bias.value)


class Scale(Layer):
    """A layer of the user's own, without the arguments that ours have."""

    def __init__(self, size):
        super().__init__()
        self.size = size
        self.gain = Parameter(np.ones(size, np.float32))

    def forward(self, x, train=False):
        return x * self.gain.value, x

    def backward(self, grad_y, saved):
        return grad_y * self.gain.value, {"gain": (grad_y * saved).sum(axis=0)}

    def output_shape(self, input_shape):
        return input_shape


def test_own_layers(tmp_path):
    model = Sequential(Linear(3, 3, seed=0), Scale(3))
    model.layers["1"].gain.value[:] = [1, 2, 3]
    save(model, tmp_path / "m")
    with pytest.raises(
        CheckpointError, match=r"layer 1 is of unknown type 'Scale'; give"
    ):
        load(tmp_path / "m")
    same(model, load(tmp_path / "m", layers=[Scale]), (3,))
    with pytest.raises(TypeError, match="layers must be Layer classes, got 'Scale'"):
        load(tmp_path / "m", layers=["Scale"])


# -- hostile and damaged files -------------------------------------------------------


def parts(model=None):
    """The parts of a good file: header as a dict, structure as a dict, buffer."""
    model = model or Sequential(
        Conv2d(1, 2, 3, seed=0), ReLU(), Flatten(), Linear(8, 3, seed=1),
        input_shape=(1, 4, 4),
    )  # fmt: skip
    tensors = {k: np.ascontiguousarray(p.value) for k, p in model.named_parameters()}
    metadata = {"cnn_ext": structure_of(model)}
    data = safetensors.save(tensors, metadata=metadata)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    structure = json.loads(header["__metadata__"]["cnn_ext"])
    return header, structure, data[8 + length :]


def joined(header, structure, buffer):
    """The bytes of a file of these parts; header and structure may be text."""
    if isinstance(header, dict):
        if header.get("__metadata__"):
            text = structure if isinstance(structure, str) else json.dumps(structure)
            header["__metadata__"]["cnn_ext"] = text
        header = json.dumps(header).encode()
    return struct.pack("<Q", len(header)) + header + buffer


def changed(change):
    """A file after `change(header, structure)`, which may return another buffer."""
    header, structure, buffer = parts()
    other = change(header, structure)
    return joined(header, structure, buffer if other is None else other)


def in_header(path, value):
    def change(header, structure):
        place = header
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return lambda: changed(change)


def in_structure(path, value):
    def change(header, structure):
        place = structure
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return lambda: changed(change)


def in_config(layer, **config):
    def change(header, structure):
        structure["layers"][layer]["config"].update(config)

    return lambda: changed(change)


def good():
    return joined(*parts())


def without(key):
    def change(header, structure):
        del header[key]

    return lambda: changed(change)


def twice(old, new):
    def make():
        data = good()
        length = int.from_bytes(data[:8], "little") + len(new) - len(old)
        return struct.pack("<Q", length) + data[8:].replace(old, new, 1)

    return make


def structure_text(text):
    def make():
        header, _, buffer = parts()
        return joined(header, text, buffer)

    return make


def one_more_tensor(header, structure):
    place = [BUFFER, BUFFER + 4]
    header["9.weight"] = {"dtype": "F32", "shape": [1], "data_offsets": place}
    return parts()[2] + b"\0" * 4


def missing_tensor(header, structure):
    start, _ = header.pop("3.weight")["data_offsets"]  # the last one
    return parts()[2][:start]


SIZE = len(joined(*parts()))
BUFFER = len(parts()[2])
HOSTILE = {
    "empty": (lambda: b"", "too short for a model: 0 bytes"),
    "seven bytes": (lambda: b"\0" * 7, "too short for a model: 7 bytes"),
    "no header": (lambda: b"\0" * 8, "header is not JSON"),
    "huge header": (lambda: b"\xff" * 8 + b"{}", "truncated or no safetensors file"),
    "2**63 header": (lambda: struct.pack("<Q", 2**63) + b"{}", "truncated or no safe"),
    "header too long": (lambda: struct.pack("<Q", 3) + b"{}", "should have 3 bytes"),
    "header over the limit": (
        lambda: struct.pack("<Q", 9 << 20) + b" " * (9 << 20),
        "header of 9437184 bytes; at most 8388608 are read",
    ),
    "some other file": (
        lambda: b"%PDF-1.7 and so on, and so on",
        "no safetensors file",
    ),
    "a pickle": (
        lambda: b"\x80\x04\x95\0\0\0\0\0\0\0\0cos\nsystem\n.",
        "no safetensors",
    ),
    "bad JSON": (lambda: joined(b"{'a': 1}", None, b""), "header is not JSON"),
    "JSON list": (lambda: joined(b"[1, 2]", None, b""), "header is not a JSON object"),
    "not UTF-8": (lambda: joined(b'{"\xff": 1}', None, b""), "header is not JSON"),
    "deep JSON": (
        lambda: joined(b'{"a":' * 100000 + b"1" + b"}" * 100000, None, b""),
        "header is not JSON",
    ),
    "NaN in JSON": (lambda: joined(b'{"a": NaN}', None, b""), "header is not JSON"),
    "empty header": (lambda: joined({}, None, b""), "is not a model of cnn_ext"),
    "truncated by one": (lambda: good()[:-1], rf"should have {SIZE} bytes, it has"),
    "truncated buffer": (lambda: good()[:-BUFFER], "truncated or damaged"),
    "truncated header": (lambda: good()[:100], "truncated or no safetensors"),
    "one byte more": (lambda: good() + b"\0", rf"should have {SIZE} bytes, it has"),
    "tensor twice": (twice(b'"0.bias"', b'"0.weight"'), "has the key '0.weight' twice"),
    "metadata twice": (
        twice(b'"cnn_ext":', b'"cnn_ext": "{}", "cnn_ext":'),
        "has the key 'cnn_ext' twice",
    ),
    "bad dtype": (in_header(["0.bias", "dtype"], "F33"), "dtype 'F33'; known are F32"),
    "integer dtype": (in_header(["0.bias", "dtype"], "I32"), "dtype 'I32'; known are"),
    "dtype of no text": (in_header(["0.bias", "dtype"], [1]), "known are F32 and F64"),
    "mixed dtypes": (in_header(["0.bias", "dtype"], "F64"), "mixes tensors of dtypes"),
    "offsets overlap": (in_header(["0.bias", "data_offsets"], [4, 12]), "is damaged"),
    "offsets beyond": (
        in_header(["0.bias", "data_offsets"], [0, 10**12]),
        "should have 1000000000",
    ),
    "offsets backwards": (in_header(["0.bias", "data_offsets"], [8, 0]), "is damaged"),
    "offsets negative": (
        in_header(["0.bias", "data_offsets"], [-8, 0]),
        "no sound data_offsets",
    ),
    "offsets fractional": (
        in_header(["0.bias", "data_offsets"], [0.0, 8.0]),
        "no sound data_offsets",
    ),
    "offsets missing": (
        in_header(["0.bias"], {"dtype": "F32"}),
        "no sound data_offsets",
    ),
    "tensor of no object": (in_header(["0.bias"], 5), "no sound data_offsets: None"),
    "shape too large": (in_header(["0.bias", "shape"], [2**40]), "is damaged"),
    "shape overflows": (in_header(["0.bias", "shape"], [2**40] * 4), "is damaged"),
    "shape negative": (in_header(["0.bias", "shape"], [-2]), "is damaged"),
    "shape disagrees": (
        in_header(["3.weight", "shape"], [8, 3]),
        r"tensor '3.weight' has shape \(8, 3\), the layer needs \(3, 8\)",
    ),
    "no metadata": (without("__metadata__"), "is not a model of cnn_ext"),
    "metadata of numbers": (
        lambda: joined(b'{"__metadata__": {"cnn_ext": 1}}', None, b""),
        "is not a model of cnn_ext",
    ),
    "metadata a list": (in_header(["__metadata__"], []), "not a model of cnn_ext"),
    "metadata of others": (
        lambda: joined(b'{"__metadata__": {"format": "pt"}}', None, b""),
        "is not a model of cnn_ext",
    ),
    "later version": (
        in_structure(["format_version"], 2),
        "has format version 2, this cnn_ext reads 1",
    ),
    "no version": (in_structure(["format_version"], True), "format version True"),
    "structure no JSON": (structure_text("{"), "structure is not JSON"),
    "structure a list": (structure_text("[]"), "structure is not a JSON object"),
    "structure empty": (structure_text("{}"), "has format version None"),
    "structure twice": (structure_text('{"a": 1, "a": 2}'), "has the key 'a' twice"),
    "unknown class": (
        in_structure(["class"], "os.system"),
        "unknown class 'os.system'",
    ),
    "class a list": (in_structure(["class"], ["Model"]), "unknown class"),
    "unknown layer": (
        in_structure(["layers", "1", "type"], "Popen"),
        "layer 1 is of unknown type 'Popen'",
    ),
    "abstract layer": (
        in_structure(["layers", "1", "type"], "Layer"),
        "layer 1 is of unknown type 'Layer'",
    ),
    "no layer at all": (
        in_structure(["layers", "1", "type"], "Parameter"),
        "unknown type 'Parameter'",
    ),
    "type a dict": (in_structure(["layers", "1", "type"], {}), "unknown type {}"),
    "layers a list": (in_structure(["layers"], [1]), "has no layers"),
    "layers empty": (in_structure(["layers"], {}), "has no layers"),
    "layer a number": (
        in_structure(["layers", "1"], 7),
        "layer 1 has no type and config",
    ),
    "layer name": (in_structure(["layers", "../x"], {}), "layer with the name '../x'"),
    "own name": (in_structure(["layers", "1", "name"], "a b"), "name must consist of"),
    "config a list": (
        in_structure(["layers", "1", "config"], []),
        "no type and config",
    ),
    "unknown argument": (in_config("1", inplace=True), r"arguments \['inplace'\]"),
    "initialiser given": (in_config("0", weight_init="zeros"), "unknown arguments"),
    "seed given": (in_config("0", seed=1), r"unknown arguments \['seed'\]"),
    "argument missing": (
        in_structure(["layers", "0", "config"], {"in_channels": 1}),
        "layer 0, Conv2d, cannot be built: .*missing",
    ),
    "huge layer": (
        in_config("3", in_features=10**6, out_features=10**6),
        r"tensor '3.weight' has shape \(3, 8\), the layer needs \(1000000, 1000000\)",
    ),
    "layer beyond any size": (
        in_config("3", in_features=10**30),
        "cannot be built: in_",
    ),
    "negative size": (
        in_config("0", out_channels=-2),
        "out_channels must be at least 1",
    ),
    "size as text": (
        in_config("0", out_channels="2"),
        "out_channels must be an integer",
    ),
    "huge padding": (in_config("0", padding=10**17), "is too large"),
    "stride nested": (in_config("0", stride=[[1, 1], 1]), "cannot be built: stride"),
    "no bias in config": (
        in_config("3", bias=False),
        r"tensors of no layer: \['3.bias'\]",
    ),
    "tensor too many": (lambda: changed(one_more_tensor), r"no layer: \['9.weight'\]"),
    "tensor missing": (lambda: changed(missing_tensor), "tensor '3.weight' is missing"),
    "steps missing": (in_structure(["steps"], None), "has no steps"),
    "steps of text": (
        in_structure(["steps"], ["0", "1"]),
        "step 0 is not a layer with",
    ),
    "step of no layer": (
        in_structure(["steps", 1], ["7", [1]]),
        "step 1 is not a layer",
    ),
    "step from the future": (
        in_structure(["steps", 1], ["1", [2]]),
        "step 1 takes values that do not stand before it",
    ),
    "step from before": (
        in_structure(["steps", 1], ["1", [-1]]),
        "step 1 takes values",
    ),
    "step of a bool": (
        in_structure(["steps", 1], ["1", [True]]),
        "step 1 takes values",
    ),
    "step of two": (in_structure(["steps", 1], ["1", [0, 1]]), "cannot take 2 inputs"),
    "step of none": (in_structure(["steps", 1], ["1", []]), "cannot take 0 inputs"),
    "unused result": (
        in_structure(["steps", 2], ["2", [0]]),
        "steps whose results are not used",
    ),
    "unused layer": (
        in_structure(["steps"], [["0", [0]], ["1", [1]], ["2", [2]], ["2", [3]]]),
        "layers that no step uses",
    ),
    "layers do not fit": (
        in_structure(["input_shape"], [1, 9, 9]),
        r"layers that do not fit: layer 3, Linear\(8, 3\)",
    ),
    "huge input": (in_structure(["input_shape"], [1, 10**12, 10**12]), "do not fit"),
    "input of no shape": (in_structure(["input_shape"], "abc"), "do not fit"),
    "input empty": (in_structure(["input_shape"], []), "do not fit"),
    "metadata no object": (in_structure(["metadata"], 3), "metadata that are no JSON"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files(tmp_path, kind):
    make, message = HOSTILE[kind]
    path = tmp_path / "hostile.safetensors"
    data = make()
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=message) as caught:
            load(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    assert len(text) < len(str(path)) + 500
    assert isinstance(caught.value, ValueError)
    assert peak < 1_000_000 + 30 * len(data)
    assert os.listdir(tmp_path) == ["hostile.safetensors"]


def test_the_good_file_is_good(tmp_path):
    (tmp_path / "m").write_bytes(good())
    assert isinstance(load(tmp_path / "m"), Sequential)


def test_every_truncation_is_refused(tmp_path):
    data, path = good(), tmp_path / "m"
    for size in range(0, len(data), 7):
        path.write_bytes(data[:size])
        with pytest.raises(CheckpointError):
            load(path)


def test_flipped_bits_load_or_are_refused(tmp_path):
    data, path = good(), tmp_path / "m"
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(data) - BUFFER, 400):
        damaged = bytearray(data)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            model = load(path)
        except CheckpointError:
            continue
        assert isinstance(model, Sequential)


def test_not_a_file(tmp_path):
    with pytest.raises(CheckpointError, match="is a folder"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nothing")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes")
def test_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="is not a regular file"):
        load(tmp_path / "pipe")


# -- saving fails --------------------------------------------------------------------


def test_what_cannot_be_saved(tmp_path):
    path = tmp_path / "m"
    model = Sequential(Linear(2, 2))
    model.metadata["array"] = np.zeros(2)
    with pytest.raises(TypeError, match=r"model.metadata cannot be saved as JSON"):
        save(model, path)
    model.metadata = {"accuracy": float("nan")}
    with pytest.raises(TypeError, match=r"model.metadata cannot be saved as JSON"):
        save(model, path)
    own = Sequential(Scale(2))
    own.layers["0"].size = {1, 2}
    with pytest.raises(TypeError, match=r"layer 0, Scale\(\{1, 2\}\), cannot be saved"):
        save(own, path)
    with pytest.raises(TypeError, match="model must be a Model, got Linear"):
        save(Linear(2, 2), path)
    assert os.listdir(tmp_path) == []


def test_a_folder_in_the_way(tmp_path):
    with pytest.raises(IsADirectoryError, match="is a folder; the name of a file"):
        save(Sequential(ReLU()), tmp_path)
    with pytest.raises(FileNotFoundError):
        save(Sequential(ReLU()), tmp_path / "no" / "m")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("failing", ["os.fsync", "os.replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file(tmp_path, monkeypatch, failing, error):
    path = tmp_path / "m.safetensors"
    save(Sequential(Linear(2, 2, seed=0)), path)
    before = path.read_bytes()

    def fail(*arguments):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(failing, fail)
        with pytest.raises(type(error)):
            save(Sequential(Linear(200, 200, seed=1)), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["m.safetensors"]
    load(path)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_FSIZE")
def test_a_limit_of_the_system_leaves_the_old_file(tmp_path):
    """A real failure in the midst of writing: the file may not grow beyond 4 kB."""
    import resource
    import signal

    path = tmp_path / "m.safetensors"
    save(Sequential(Linear(2, 2, seed=0)), path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match="large"):
            save(Sequential(Linear(200, 200)), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["m.safetensors"]


@pytest.mark.skipif(
    os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere"
)
def test_a_read_only_folder(tmp_path):
    path = tmp_path / "m"
    save(Sequential(Linear(2, 2)), path)
    before = path.read_bytes()
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError):
            save(Sequential(Linear(3, 3)), path)
    finally:
        tmp_path.chmod(0o700)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["m"]


@pytest.mark.skipif(os.name != "posix", reason="links and modes")
def test_links_and_modes_stay(tmp_path):
    path, link = tmp_path / "m", tmp_path / "link"
    save(Sequential(Linear(2, 2)), path)
    path.chmod(0o640)
    link.symlink_to(path)
    save(Sequential(Linear(3, 3)), link)
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert repr(load(path)) == "Sequential(0: Linear(3, 3))"


def test_the_missing_library_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    for call in (lambda: save(Sequential(ReLU()), tmp_path / "m"), lambda: load("m")):
        with pytest.raises(ImportError, match=r"pip install 'cnn_ext\[models\]'"):
            call()
    assert list(Path(tmp_path).iterdir()) == []
