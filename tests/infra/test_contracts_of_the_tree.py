"""Laws of the source tree itself: who may import whom, and what nobody may call."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BOXES = ("infra", "stream", "trainer", "serving")
FORBIDDEN_IMPORTS = {
    "infra": {"stream", "trainer", "serving"},
    "stream": {"trainer", "serving", "torch"},
    "trainer": {"serving"},
    "serving": {"trainer", "torch"},
}
UNSAFE_CALLS = {"eval", "exec", "yaml.load", "torch.load", "np.load", "joblib.load"}
UNSAFE_IMPORTS = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve"}


def violations(box: str, source: str) -> list[str]:
    """What a module of `box` does that the contract forbids."""
    tree = ast.parse(source)
    found = []
    for node in ast.walk(tree):
        for module in _imported(node):
            if module.split(".")[0] in FORBIDDEN_IMPORTS[box] | UNSAFE_IMPORTS:
                found.append(f"line {node.lineno}: imports {module}")  # type: ignore[attr-defined]
        if isinstance(node, ast.Call) and ast.unparse(node.func) in UNSAFE_CALLS:
            found.append(f"line {node.lineno}: calls {ast.unparse(node.func)}")
    return found


def _imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        yield node.module


@pytest.mark.parametrize("box", BOXES)
def test_a_box_keeps_the_import_contract_and_deserializes_nothing_unsafe(box: str) -> None:
    for path in sorted((ROOT / box).rglob("*.py")):
        assert not violations(box, path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize(
    ("box", "source"),
    [
        ("infra", "import stream.events"),
        ("stream", "def f():\n    from trainer import net"),
        ("trainer", "from serving.replica import Replica"),
        ("serving", "import torch"),
        ("stream", "import pickle"),
        ("serving", "eval('1')"),
        ("trainer", "import torch\ntorch.load('x')"),
    ],
)
def test_a_planted_violation_is_caught(box: str, source: str) -> None:
    assert violations(box, source)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['ouzel', '--help']\n"
        "import infra.cli\n"
        "try:\n    infra.cli.main()\n"
        "except SystemExit:\n    pass\n"
        "heavy = {'numba', 'numpy', 'pyarrow', 'torch', 'onnxruntime'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
