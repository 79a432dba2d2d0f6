"""Renders infra/docs/configuration.md from the comments beside the fields in `infra/config.py`.

`python -m infra.config_reference` prints it; a test holds the page to what this prints.
"""

import ast
from pathlib import Path
from typing import Any

import msgspec

from infra.config import Config

SOURCE = Path(__file__).with_name("config.py")
HEAD = """# Configuration

One TOML file: defaults < file (`--config FILE`) < environment (`OUZEL_TIME__TICK_S=10`) < flags (`--set
time.tick_s=10`).
An unknown key is refused with its path and the nearest name. A run folder keeps the configuration it was started with.

`NUMBA_CACHE_DIR` says where compiled kernels are kept (some 100 files, 10 MB). Without it they lie beside the source;
where that cannot be written, in `ouzel/kernels` of the user's cache (`XDG_CACHE_HOME`, `~/.cache`), and without a
writable home in the temporary folder, which is said.
"""


def reference() -> str:
    """The whole page."""
    source = SOURCE.read_text(encoding="utf-8")
    comments = _comments(source)
    defaults: dict[str, Any] = msgspec.to_builtins(Config())
    parts = [HEAD]
    for section, values in defaults.items():
        owner = f"{section.capitalize()}Config"
        parts.append(f"\n## [{section}]\n\n{_table(values, comments[owner])}")
        for name, inner in values.items():
            if isinstance(inner, dict) and (inside := comments.get(f"{name.capitalize()}Config")):
                parts.append(f"\n## [{section}.{name}]\n\n{_table(inner, inside)}")
        if section == "model":
            first = next(iter(values["slots"].values()))
            parts.append(
                f"\n## [model.slots.NAME]\n\nSlots: {', '.join(f'`{name}`' for name in values['slots'])}. "
                f"Defaults of the first; the others' are in `infra/config.py`.\n\n"
                f"{_table(first, comments['SlotConfig'])}"
            )
    return "".join(parts)


def _table(values: dict[str, Any], comments: dict[str, str]) -> str:
    rows = [f"| `{k}` | `{_shown(v)}` | {comments[k]} |" for k, v in values.items() if not (isinstance(v, dict) and v)]
    return "\n".join(["| key | default | |", "| --- | --- | --- |", *rows]) + "\n"


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _comments(source: str) -> dict[str, dict[str, str]]:
    """Class -> field -> the comment lines above it."""
    lines = source.splitlines()
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(source).body:
        if not isinstance(node, ast.ClassDef):
            continue
        fields = found.setdefault(node.name, {})
        for field in node.body:
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                fields[field.target.id] = _above(lines, field.lineno - 1)
    return found


def _above(lines: list[str], at: int) -> str:
    first = at
    while first > 0 and lines[first - 1].strip().startswith("#"):
        first -= 1
    return " ".join(line.strip().removeprefix("#").strip() for line in lines[first:at])


if __name__ == "__main__":
    print(reference(), end="")
