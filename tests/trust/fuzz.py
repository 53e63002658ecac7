"""Random and mutated input for operators, readers and the command line.

Usage, from the folder tests: python -m trust.fuzz TARGET COUNT [SEED]
with TARGET one of operators, augment, idx, npz, model, run, cli, or all;
or, guided by coverage, where atheris is installed:
                              python -m trust.fuzz --atheris TARGET COUNT [SEED]

Each input must end in a result or in the one error that is documented, of one line,
within seconds, and without memory beyond a few times the input's size.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gzip
import io
import json
import os
import random
import resource
import struct
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
from trust import fuzz_training

import cnn_ext
from cnn_ext import cli, data
from cnn_ext import functional as F

#: seconds that one input may take; memory that all may: the address space is limited
PATIENCE = 20
MEMORY = 3 << 30

WORK = Path(tempfile.mkdtemp(prefix="cnn_ext-fuzz-"))


class Source:
    """Choices read from bytes: what the fuzzer mutates decides what is drawn."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def byte(self) -> int:
        if self.at >= len(self.data):
            return 0
        self.at += 1
        return self.data[self.at - 1]

    def below(self, count: int) -> int:
        value = self.byte()
        return (value << 8 | self.byte()) % count if count > 256 else value % count

    def pick(self, choices: Any) -> Any:
        return choices[self.below(len(choices))]


# -- operators -----------------------------------------------------------------------

ODD = (
    0, -1, 2**31, 2**63, -(2**63), 2**70, 1.5, None, True, "same", "x", (), (1,),
    (1, 2, 3), (2, -1), [1, 2], [[1]], float("nan"), np.int64(2), np.float32(1),
    np.array([1, 2]), np.array(3), b"1", {}, object, 10**30,
)  # fmt: skip
ODD_ARRAYS = (
    None, 3, "x", [[1.0]], np.zeros(3, "i4"), np.zeros((1, 1, 3, 3), "i8"),
    np.zeros((1, 1, 3, 3), ">f4"), np.zeros((1, 1, 3, 3), "f2"),
    np.zeros((0, 1, 3, 3), "f"), np.zeros((1, 0, 3, 3), "f"),
    np.zeros((1, 1, 0, 3), "f"), np.zeros((1, 1, 3, 3), "c8"),
    np.zeros((1, 1, 3, 3), object), np.zeros((), "f"), np.zeros((1, 1, 1, 1, 1), "f"),
    np.broadcast_to(np.float32(1), (2**20, 2**10, 2**10, 2**10)),
    np.ma.masked_all((1, 1, 3, 3), "f"), np.zeros((1, 1, 3, 3), "U3"),
)  # fmt: skip


def _size(s: Source) -> int:
    return s.pick((1, 1, 1, 2, 2, 3, 3, 4, 5, 7, 8, 9, 16, 17, 20, 33))


def _option(s: Source, least: int) -> Any:
    kind = s.below(16)
    if kind == 0:
        return s.pick(ODD)
    if kind < 9:
        return least + s.below(3)
    if kind < 13:
        return least + s.below(4), least + s.below(4)
    return least


def _array(s: Source, shape: tuple[int, ...]) -> Any:
    kind = s.below(24)
    if kind == 0:
        return s.pick(ODD_ARRAYS)
    dtype = s.pick("ffffffdddd") if kind > 1 else s.pick("fd")
    values = np.resize(np.arange(-4, 5, dtype=dtype), shape)
    if kind == 2:
        values = np.full(shape, s.pick((np.nan, np.inf, -np.inf, 1e-42)), dtype)
    order = s.below(8)
    if order == 1 and len(shape) == 4:
        values = np.ascontiguousarray(values.transpose(0, 2, 3, 1)).transpose(
            0, 3, 1, 2
        )
    elif order == 2:
        values = np.asfortranarray(values)
    elif order == 3:
        values = values[..., ::-1]
    elif order == 4:
        values = np.repeat(values, 2, -1)[..., ::2]
    elif order == 5:
        values.flags.writeable = False
    elif order == 6:
        packed = np.empty(values.size * values.itemsize + 1, "u1")[1:]
        packed = packed.view(values.dtype).reshape(shape)
        packed[...] = values
        values = packed
    elif order == 7:
        values = np.broadcast_to(values[:1], shape)
    return values


def operators(raw: bytes) -> None:
    """One call of one operator."""
    s = Source(raw)
    which, bad = s.below(11), s.below(12)
    n, c, h, w = s.below(4), _size(s), _size(s), _size(s)
    group = s.pick((1, 1, 1, 2, 3))
    k, r, t = group * s.pick((1, 2, 3, 8, 17)), 1 + s.below(5), 1 + s.below(5)
    c *= group
    shape, kernel = (n, c, h, w), (k, c // group, r, t)
    if bad == 0:
        kernel = (_size(s), _size(s), r, t)
    if s.below(9) == 0:
        shape = shape[1:]
    convolution = {
        "stride": _option(s, 1), "padding": _option(s, 0), "dilation": _option(s, 1),
        "groups": s.pick(ODD) if bad == 1 else group,
    }  # fmt: skip
    window = {"stride": s.pick((None, _option(s, 1))), "padding": _option(s, 0)}
    size = _option(s, 1)
    x = _array(s, shape)

    def shape_like() -> Any:
        return s.pick(ODD) if bad == 2 else shape

    def error_for(call: Callable[[], Any]) -> Any:
        """The gradient that fits, where there is one, but now and then another."""
        y = call()
        return _array(s, (y[0] if isinstance(y, tuple) else y).shape)

    weight = _array(s, kernel)
    if which == 0:
        bias = _array(s, (k,)) if s.below(2) else None
        out = _array(s, (1, k, h, w)) if s.below(8) == 0 else None
        F.conv2d(x, weight, bias, out=out, **convolution)
    elif which == 1:
        error = error_for(lambda: F.conv2d(x, weight, **convolution))
        F.conv2d_backward_input(error, weight, shape_like(), **convolution)
    elif which == 2:
        error = error_for(lambda: F.conv2d(x, weight, **convolution))
        wanted = s.pick(ODD) if bad == 3 else kernel
        F.conv2d_backward_weight(error, x, wanted, **convolution)
    elif which == 3:
        if getattr(x, "size", 0) < 2**40:  # it would rightly take hours
            F.conv2d_backward_bias(x)
    elif which == 4:
        window |= {"dilation": _option(s, 1), "ceil_mode": s.pick((False, True, None))}
        F.max_pool2d(x, size, return_argmax=bool(s.below(2)), **window)
    elif which == 5:
        window["dilation"] = _option(s, 1)
        kind = s.pick(("return_argmax", "return_indices"))
        y, position = F.max_pool2d(
            x, size, ceil_mode=bool(s.below(2)), **{kind: True}, **window
        )
        if s.below(3) == 0:  # positions that no forward pass gave
            position = position.copy()
            top = s.pick((4, 9, 16, 256, 2**15, 2**31))
            position[...] = np.resize(
                np.frombuffer(raw, "u1").astype("i8") * s.below(300) % top,
                position.shape,
            )
        F.max_pool2d_backward(
            _array(s, y.shape), position, shape_like(), size, **window
        )
    elif which in (6, 7):
        window |= {
            "ceil_mode": bool(s.below(2)), "count_include_pad": bool(s.below(2)),
            "divisor_override": s.pick(ODD) if bad == 4 else s.pick((None, 3)),
        }  # fmt: skip
        if which == 6:
            F.avg_pool2d(x, size, **window)
        else:
            error = error_for(lambda: F.avg_pool2d(x, size, **window))
            F.avg_pool2d_backward(error, shape_like(), size, **window)
    elif which == 8:
        gain, bias = _array(s, (c,)), _array(s, (c,))
        F.subsample2d(x, gain, bias, size, **window)
        error = error_for(lambda: F.avg_pool2d(x, size, **window))
        F.subsample2d_backward(error, x, gain, size, **window)
    elif which == 9:
        x, weight = _array(s, (n, c)), _array(s, (k, c if s.below(9) else k))
        F.linear(x, weight, _array(s, (k,)) if s.below(2) else None)
        F.linear_backward_weight(_array(s, (n, k)), x)
        F.linear_backward_input(_array(s, (n, k)), weight)
        F.linear_backward_bias(_array(s, (n, k)))
    else:
        F.explain_conv2d(shape, kernel, **convolution)


# -- files ---------------------------------------------------------------------------


def _npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    save = np.savez_compressed if arrays.pop("packed", False) else np.savez
    save(file, **arrays)
    return file.getvalue()


def _seeds(target: str) -> list[bytes]:
    """Sound files to start from."""
    x, y = np.arange(6 * 16, dtype="u1").reshape(6, 4, 4), np.arange(6) % 3
    if target == "idx":
        plain = struct.pack(">HBBIII", 0, 8, 3, 6, 4, 4) + x.tobytes()
        floats = struct.pack(">HBBII", 0, 0x0D, 2, 6, 16) + x.astype(">f4").tobytes()
        return [plain, floats, gzip.compress(plain, mtime=0)]
    if target == "npz":
        return [
            _npz(x=x, y=y), _npz(x=x, y=y, packed=True),
            _npz(x=x.astype("f"), y=y, x_test=x.astype("d"), y_test=y),
            _npz(x=np.asfortranarray(x[:, None]), y=y.astype("u1")),
            _npz(x=np.array([{}]), y=y),
        ]  # fmt: skip
    if target == "model":
        found = []
        a = cnn_ext.Input((2, 6, 6))
        b = cnn_ext.Conv2d(2, 2, 3, padding=1, seed=0)(a)
        for model in (
            cnn_ext.Sequential(cnn_ext.Flatten(), cnn_ext.Linear(4, 2, seed=0)),
            cnn_ext.Sequential(cnn_ext.Subsample2d(2, 2), cnn_ext.MaxPool2d(2)),
            cnn_ext.Model(a, cnn_ext.ReLU()(b) + a),
        ):
            cnn_ext.save(model, WORK / "seed")
            found.append((WORK / "seed").read_bytes())
        return found
    if target == "run":
        return fuzz_training.runs(WORK)
    return [b""]


TOKENS = (
    b"\0", b"\xff", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\1", b"[]",
    b"{}", b"null", b"-1", b"1e999", b"99999999999999999999", b'"', b"\\u0000",
    b"NaN", b"true", b"1.5", b"((((((((", b"[[[[[[[[", b"dtype", b"F32", b"F64",
    b"BF16", b"data_offsets", b"x.npy", b"y.npy", b"PK\1\2", b"PK\5\6",
    b"'descr': '|O'", b"Conv2d", b"Linear",
)  # fmt: skip


def mutated(rng: random.Random, raw: bytes) -> bytes:
    """`raw` with a few changes of the usual kinds."""
    b = bytearray(raw)
    for _ in range(1 + rng.randrange(4)):
        at = rng.randrange(len(b) + 1)
        kind = rng.randrange(7)
        if kind == 0 and b:
            b[at % len(b)] ^= 1 << rng.randrange(8)
        elif kind == 1 and b:
            b[at % len(b)] = rng.choice((0, 1, 2, 127, 128, 255, rng.randrange(256)))
        elif kind == 2:
            b[at:at] = rng.choice(TOKENS)
        elif kind == 3:
            del b[at : at + 1 + rng.randrange(9)]
        elif kind == 4:
            end = at + 1 + rng.randrange(9)
            b[at:end] = rng.randbytes(max(0, min(end, len(b)) - at))
        elif kind == 5:
            token = rng.choice(TOKENS)
            b[at : at + len(token)] = token
        elif rng.randrange(4) == 0:
            del b[at:]
    return bytes(b)


def _mutated_model(rng: random.Random, raw: bytes) -> bytes:
    """A model whose header is sound JSON, with other values in it."""
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    inside = json.loads(header["__metadata__"]["cnn_ext"])
    for _ in range(1 + rng.randrange(3)):
        training = inside.get("training", inside)
        _change(rng, rng.choice((header, inside, training, training)))
    if isinstance(header.get("__metadata__"), dict):
        header["__metadata__"]["cnn_ext"] = json.dumps(inside)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + raw[8 + length :]


def _change(rng: random.Random, node: Any) -> None:
    """Change one value somewhere below a JSON container."""
    while isinstance(node, (dict, list)) and node:
        key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        child = node[key]
        if isinstance(child, (dict, list)) and child and rng.random() < 0.8:
            node = child
            continue
        kind = rng.randrange(5)
        if kind == 0:
            del node[key]
        elif kind == 1 and isinstance(child, int):
            node[key] = child + rng.choice((-1, 1, 2**31, -(2**40)))
        else:
            values = (0, -1, 1, 2**62, 2**70, 1.5, 1e308, None, True, "", "x", [], {})
            node[key] = rng.choice(
                (*values, [[]], [1, 1], [0, 2**40], "Softmax", "1/0")
            )
        return


def _file(target: str, raw: bytes) -> Path:
    path = WORK / f"input.{target}"
    path.write_bytes(raw)
    return path


def idx(raw: bytes) -> None:
    data.read_idx(_file("idx", raw))


def npz(raw: bytes) -> None:
    data.npz(_file("npz", raw))


def run(raw: bytes) -> None:
    fuzz_training.resume(_file("run", raw))


def augment(raw: bytes) -> None:
    fuzz_training.augmentation(Source(raw), ODD, _array)


def model(raw: bytes) -> None:
    """A model that is read also runs, on an input that fits if there is one."""
    loaded = cnn_ext.load(_file("model", raw))
    shape = loaded.input_shape
    if shape is not None and np.prod(shape, dtype=object) < 10**5:
        loaded(np.zeros((1, *shape), loaded.dtype or "f"))


WORDS = (
    "train", "evaluate", "predict", "bench", "info", "digits", "mnist", "--data",
    "--out", "--epochs", "--batch-size", "--lr", "--seed", "--threads", "--model",
    "lenet5", "1", "0", "-1", "1e9", "nan", "inf", "", " ", "--", "-h", "--help",
    "--version", "--size", "--invert", "--channels-last", "\udcff", "a\0b",
    "x" * 5000, "/dev/null", "/dev/zero", ".", "/", "--seconds", "%s", "\n", "é", "=",
    "--epochs=2", "9" * 5000,
)  # fmt: skip


def command(raw: bytes) -> None:
    """A command line; what would train or time for long is left out."""
    s = Source(raw)
    files = [str(WORK / f"input.{kind}") for kind in ("idx", "npz", "model")]
    words = [s.pick((*WORDS, *files)) for _ in range(s.below(7))]
    # the little file of this folder is trained on; the real digits would take long
    if "bench" in words or ("train" in words and words[1:2] != files[1:2]):
        words.append("--no-such-option")
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main(words)
    said = err.getvalue()
    assert status in (0, 2), (words, status)
    assert status == 0 or (said.count("\n") == 1 and said.startswith("cnn-ext: ")), (
        words,
        said,
    )


TARGETS: dict[str, tuple[Callable[[bytes], None], tuple[type[Exception], ...]]] = {
    "operators": (operators, (TypeError, ValueError, MemoryError)),
    "augment": (augment, (TypeError, ValueError, MemoryError)),
    "idx": (idx, (data.DataError,)),
    "npz": (npz, (data.DataError,)),
    # what loads may still not run: its layers are asked with an input of their shape
    "model": (model, (cnn_ext.CheckpointError,)),
    # a rate or a state that was changed, but is sound, may make a run diverge
    "run": (run, (cnn_ext.CheckpointError, FloatingPointError)),
    "cli": (command, ()),
}


def check(target: str, raw: bytes) -> str:
    """Feed one input; return how it ended, or raise what should not have come."""
    call, expected = TARGETS[target]
    faulthandler.dump_traceback_later(PATIENCE, exit=True)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            call(raw)
        return "fine"
    except expected as error:
        text = str(error)
        assert text.strip() and "\n" not in text, f"not one line: {text!r}"
        assert len(text) < 1000, f"too long: {text!r}"
        return type(error).__name__
    finally:
        faulthandler.cancel_dump_traceback_later()


def inputs(target: str, count: int, seed: int) -> Any:
    rng, seeds = random.Random(seed), _seeds(target)
    yield from seeds
    for _ in range(count - len(seeds)):
        if target in ("operators", "augment", "cli"):
            yield rng.randbytes(64)
        elif target in ("model", "run") and rng.random() < 0.7:
            yield _mutated_model(rng, rng.choice(seeds))
        else:
            yield mutated(rng, rng.choice(seeds))


def fuzz(target: str, count: int, seed: int = 0) -> Counter[str]:
    """Feed so many inputs; stop at the first that ends otherwise than it should."""
    ends: Counter[str] = Counter()
    for raw in inputs(target, count, seed):
        try:
            ends[check(target, raw)] += 1
        except BaseException:
            print(f"{target}: input {raw!r}", file=sys.stderr, flush=True)
            raise
    return ends


def _guided(target: str, count: int, seed: int) -> None:
    """The same inputs as starting points, mutated where they reach new code."""
    import atheris

    corpus = WORK / "corpus"
    corpus.mkdir()
    for i, raw in enumerate(inputs(target, 200, seed)):
        (corpus / f"{i:03}").write_bytes(raw)
    for name, module in sys.modules.items():
        if name.startswith("cnn_ext"):
            for function in list(vars(module).values()):
                if isinstance(function, FunctionType) and function.__module__ == name:
                    atheris.instrument_func(function)
    options = [
        f"-runs={count}",
        f"-seed={seed + 1}",
        "-max_len=4096",
        "-rss_limit_mb=4096",
    ]
    atheris.Setup(
        [
            sys.argv[0],
            *options,
            f"-timeout={PATIENCE}",
            "-rss_limit_mb=4096",
            str(corpus),
        ],
        lambda raw: check(target, raw) and None,
    )
    atheris.Fuzz()


def main(arguments: list[str]) -> None:
    guided = arguments[:1] == ["--atheris"]
    target, count, *seed = arguments[guided:]
    cnn_ext.set_num_threads(1)
    faulthandler.enable()
    os.chdir(WORK)
    for other in ("idx", "npz", "model"):
        _file(other, _seeds(other)[0])
    if guided:
        _guided(target, int(count), int(*seed or [0]))
        return
    if "asan" not in os.environ.get("LD_PRELOAD", ""):  # its shadow is larger
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.RLIM_INFINITY))
    for name in TARGETS if target == "all" else [target]:
        start = time.monotonic()
        ends = fuzz(name, int(count), int(*seed or [0]))
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        took = time.monotonic() - start
        print(f"{name}: {dict(ends)}, {took:.0f} s, {most} MiB at most", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
