"""The programs that lie beside graphs and packages."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from paligemma.export import aoti_example, onnx_example


@pytest.mark.parametrize("example", [onnx_example, aoti_example], ids=["onnx", "aoti"])
def test_the_help_of_an_example_shows_its_commands_line_by_line(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["example.py", "--help"])
    with pytest.raises(SystemExit):
        example.main()
    assert '\n    python example.py photo.jpg "caption en"\n' in capsys.readouterr().out
