"""The README's Python is run as it stands, with less data and less time."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


def test_first_example_fits_a_screen() -> None:
    assert len([line for line in blocks()[0].splitlines() if line.strip()]) <= 15


def test_examples_run_and_print_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = "\n".join(blocks())
    for long, short in (("episodes=60", "episodes=6"), ("minutes=3", "minutes=0.03, progress=False")):
        assert long in code
        code = code.replace(long, short)
    exec(compile(code, str(README), "exec"), {"__name__": "readme"})
    printed = capsys.readouterr().out
    numbers = re.findall(r"imagined step: (-?\d+\.\d) nats", printed)
    assert len(numbers) == 10
    assert len(set(numbers)) > 1
    assert re.search(r"above the noise floor: \d+\.\d{3} nats per dimension", printed)
    assert "torch.Size([8, 4, 7, 64, 64, 3])" in printed


def test_its_files_exist() -> None:
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README.read_text()):
        assert (README.parent / target).is_file(), target
