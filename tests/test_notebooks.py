"""Notebooks are committed as they ran: whole, in order, without noise, and without code that belongs in the library."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted(Path(__file__).parents[1].joinpath("notebooks").glob("*.ipynb"))
MAX_BYTES = 1_500_000
ABSOLUTE_PATH = re.compile(r"(?:^|[\s'\"(=])/\w[\w.-]*/\w", re.MULTILINE)


def code_cells(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]


def source(cell: dict[str, Any]) -> str:
    lines = "".join(cell["source"]).splitlines()
    return "\n".join(line for line in lines if not line.startswith("%"))  # magics are not Python


def shown_text(path: Path) -> str:
    parts = []
    for output in (output for cell in code_cells(path) for output in cell["outputs"]):
        texts = [output.get("text", "")]
        texts += [value for kind, value in output.get("data", {}).items() if kind.startswith("text/")]
        parts += ["".join(text) for text in texts]
    return "\n".join(parts)


def test_there_is_a_quickstart() -> None:
    assert "quickstart.ipynb" in [path.name for path in NOTEBOOKS]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestNotebook:
    def test_ran_from_top_to_bottom(self, path: Path) -> None:
        cells = code_cells(path)
        assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
        kinds = [output["output_type"] for cell in cells for output in cell["outputs"]]
        assert "display_data" in kinds or "execute_result" in kinds
        assert "error" not in kinds

    def test_shows_no_warnings_and_no_progress(self, path: Path) -> None:
        streams = [o["name"] for cell in code_cells(path) for o in cell["outputs"] if o["output_type"] == "stream"]
        assert set(streams) <= {"stdout"}

    def test_names_no_path_of_the_machine_that_ran_it(self, path: Path) -> None:
        assert ABSOLUTE_PATH.findall(shown_text(path)) == []

    def test_is_small(self, path: Path) -> None:
        assert path.stat().st_size < MAX_BYTES

    def test_holds_no_library_code(self, path: Path) -> None:
        nodes = [node for cell in code_cells(path) for node in ast.walk(ast.parse(source(cell)))]
        defined = [n for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
        assert defined == []
