"""Speed and growth as a drawing: tokens a second, and seconds beside the line through them."""

from __future__ import annotations

from pathlib import Path

from paligemma.bench.linear import Points
from paligemma.bench.measure import Figures
from paligemma.errors import ConfigError
from paligemma.eval.charts import curves
from paligemma.outputs.html import Html, el
from paligemma.whole_file import DRAWING_MARK, require_free, require_writable, write_whole

_W, _H = 320, 220
_TOP = 18  # the line above the drawings
_STYLE = (
    "svg{background:#fff;overflow:visible}text{font:9px sans-serif;fill:#444}.axis{stroke:#ccc}"
    "circle{fill:#1f6f8b}polyline{fill:none;stroke:#1f6f8b}"
    "polyline.line{stroke:#c0542d;stroke-dasharray:4 3}circle.line{fill:none}"
)


def require_place(path: Path, *, overwrite: bool) -> None:
    """Raise ConfigError unless an SVG can be written there, see `require_free`."""
    if path.suffix.lower() != ".svg":
        raise ConfigError(f"a plot is written as SVG, got {str(path)!r:.200}; name a .svg file")
    require_free(path, overwrite=overwrite)
    if path.is_dir():
        raise ConfigError(f"a plot is a file, {str(path)!r:.200} is a folder; name another")
    require_writable(path.parent)


def write_plot(figures: Figures, path: Path, *, heading: str) -> None:
    """Write the drawing under a line that says of what it is, whole or not at all.

    Raises:
        ConfigError: the file cannot be written.
    """
    speeds = [(batch, figures.tokens_per_s(batch)) for batch in figures.options.batches]
    charts: list[tuple[list[tuple[str, Points]], str]] = [
        ([("speed", speeds)], "tokens a second, over rows")
    ]
    fitted = figures.lines()
    for name, points in figures.growth().items():
        if len(points) < 2:
            continue
        lines: list[tuple[str, Points]]
        lines, label = [("seconds", points)], f"seconds to {name}"
        if line := fitted.get(name):
            end = max(x for x, _ in points)
            lines.append(("line", [(0, line.start), (end, line.start + line.slope * end)]))
            label += f" (line: farthest {line.departure:.1%})"
        charts.append((lines, label))
    drawn = [
        curves(lines, label, x=_W * place, y=_TOP, width=_W, height=_H)
        for place, (lines, label) in enumerate(charts)
    ]
    view = f"-12 0 {_W * len(charts) + 12} {_H + _TOP}"
    start = [Html(f"{DRAWING_MARK}<style>{_STYLE}</style>"), el("text", heading, x=0, y=11)]
    write_whole(path, [el("svg", *start, *drawn, xmlns="http://www.w3.org/2000/svg", viewBox=view)])
