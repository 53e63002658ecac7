"""The README's Python examples run, and say what it says."""

import doctest
import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"
if not README.exists():
    pytest.skip("README.md does not lie beside the tests", allow_module_level=True)
TEXT = README.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def test_the_examples_run_in_their_order(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn", reason="an example trains on scikit-learn's digits")
    pytest.importorskip("safetensors", reason="an example saves a model")
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in BLOCKS:
        if not block.startswith(">>>"):
            exec(compile(block, str(README), "exec"), names)
    assert names["grad_x"].shape == names["x"].shape
    assert names["grad_weight"].shape == names["weight"].shape
    assert names["accuracy"] > 0.9
    assert (names["labels"] == names["digits"].y_test).mean() == names["accuracy"]


def test_the_sessions_print_what_is_shown(capsys):
    sessions = [block for block in BLOCKS if block.startswith(">>>")]
    assert len(sessions) >= 3
    test = doctest.DocTestParser().get_doctest(
        "\n".join(sessions), {}, "README.md", str(README), 0
    )
    runner = doctest.DocTestRunner()
    failed, tried = runner.run(test)
    assert tried >= 10
    assert not failed, capsys.readouterr().out


def test_the_map_shows_what_is_there():
    top = README.parent
    if not (top / "src").is_dir():
        pytest.skip("the tests run without the sources")
    drawn = TEXT.split("## Map of the house")[1].split("```")[1]
    for line in drawn.strip().splitlines():
        if not line.startswith(" "):
            folder = line.split()[0]
            assert (top / folder).exists(), folder
            continue
        for name in re.findall(r"[\w*]+(?:\.(?:pyx|pxd|py|h|c)\b|/)", line):
            assert list((top / folder).rglob(name.rstrip("/"))), f"{folder}{name}"


def test_the_session_of_docs_graph(capsys):
    page = README.parent / "docs" / "graph.md"
    if not page.exists():
        pytest.skip("the tests run without the documents")
    text = page.read_text(encoding="utf-8")
    test = doctest.DocTestParser().get_doctest(text, {}, page.name, str(page), 0)
    runner = doctest.DocTestRunner()
    failed, tried = runner.run(test)
    assert tried >= 10
    assert not failed, capsys.readouterr().out
