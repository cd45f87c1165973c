"""Small drawings as inline SVG; colours come from the page's style, so that dark mode applies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from paligemma.outputs.html import Html, el

if TYPE_CHECKING:
    from paligemma.eval.calibration import Reliability

_NUM_BINS = 24
_W, _H = 320.0, 220.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 48.0, 8.0, 8.0, 34.0


def interval_chart(value: float, low: float, high: float, published: float | None) -> Html:
    """One figure on a line: its interval, its value, and the published figure as a mark."""
    numbers = [n for n in (value, low, high, published) if n is not None and math.isfinite(n)]
    if not numbers:
        return el("svg", viewBox="0 0 320 4")
    end = scale_end(numbers)
    start = min(0.0, *numbers)
    scale = _W / ((end - start) or 1.0)

    def x(number: float) -> float:
        return (number - start) * scale

    parts = [el("rect", x=0.0, y=9.0, width=_W, height=6.0, rx=3, class_="rail")]
    if math.isfinite(low):
        width = max(x(high) - x(low), 2.0)
        parts.append(el("rect", x=x(low), y=9.0, width=width, height=6.0, rx=3, class_="span"))
    if math.isfinite(value):
        parts.append(el("circle", cx=x(value), cy=12.0, r=5.0, class_="ours"))
    if published is not None:
        parts.append(
            el("rect", x=x(published) - 1.5, y=3.0, width=3.0, height=18.0, rx=1, class_="theirs")
        )
    parts += [
        el("text", f"{start:g}", x=0.0, y=33.0),
        el("text", f"{end:g}", x=_W, y=33.0, text_anchor="end"),
    ]
    return el(
        "svg", *parts, viewBox="0 0 320 36", class_="line", role="img", aria_label=f"{value:.2f}"
    )


def legend(*marks: tuple[str, str]) -> Html:
    """What the marks of a drawing stand for: (class of the page's style, words)."""
    swatch = {"x": 0.0, "y": 0.0, "width": 10.0, "height": 10.0, "rx": 2.0}
    return el(
        "p",
        *(
            el("span", el("svg", el("rect", class_=one, **swatch), viewBox="0 0 10 10"), words)
            for one, words in marks
        ),
        class_="quiet legend",
    )


def bar(value: float, low: float, high: float, top: float) -> Html:
    """A bar for a table cell with its interval as a whisker; values below 0 show as none."""
    scale = 120.0 / top if top > 0 else 0.0

    def x(number: float) -> float:
        return min(max(number * scale, 0.0), 120.0)

    parts = [el("rect", x=0.0, y=3.0, width=120.0, height=8.0, rx=2, class_="rail")]
    if math.isfinite(value):
        parts.append(el("rect", x=0.0, y=3.0, width=x(value), height=8.0, rx=2, class_="span"))
    if math.isfinite(low):
        parts.append(el("line", x1=x(low), x2=x(high), y1=7.0, y2=7.0, class_="whisker"))
    if math.isfinite(value):
        parts.append(el("circle", cx=x(value), cy=7.0, r=3.0, class_="ours"))
    return el("svg", *parts, viewBox="0 0 120 14", aria_hidden="true")


def reliability_diagram(found: Reliability) -> Html:
    """Share that was right over confidence: bars on the dashed line are honest."""
    parts = _frame("confidence", "share that was right")
    for share in (0.0, 0.5, 1.0):
        parts += [
            el("line", x1=_LEFT, x2=_W - _RIGHT, y1=_y(share), y2=_y(share), class_="axis"),
            el("text", f"{share:g}", x=_LEFT - 5, y=_y(share) + 4, text_anchor="end"),
            el("text", f"{share:g}", x=_x(share), y=_y(0) + 14, text_anchor="middle"),
        ]
    for one in found.bins:
        if not one.num:
            continue
        x0, x1 = _x(one.low) + 0.75, _x(one.high) - 0.75
        low, high = sorted((one.accuracy, one.confidence))
        parts += [
            el(
                "rect",
                x=x0,
                y=_y(one.accuracy),
                width=x1 - x0,
                height=_y(0.0) - _y(one.accuracy),
                class_="span",
            ),
            el("rect", x=x0, y=_y(high), width=x1 - x0, height=_y(low) - _y(high), class_="gap"),
            el("rect", x=x0, y=_y(one.accuracy) - 1, width=x1 - x0, height=2.0, class_="ours"),
        ]
    parts.append(el("line", x1=_x(0), y1=_y(0), x2=_x(1), y2=_y(1), class_="even"))
    return _plot(parts, "share right over confidence")


def histogram(values: Sequence[int], label: str) -> Html:
    """How often which whole number occurs; the last bin takes the longest one percent."""
    numbers = np.asarray(values, np.int64)
    end = int(np.quantile(numbers, 0.99, method="higher")) if len(numbers) else 0
    width = end // _NUM_BINS + 1
    num = end // width + 1
    counts = np.bincount(np.minimum(numbers // width, num - 1), minlength=num)
    peak = max(int(counts.max()), 1)
    longest = int(numbers.max()) if len(numbers) else 0
    more = f" (longest {longest:,})" if longest > end else ""
    step = (_W - _LEFT - _RIGHT) / num
    parts = _frame(f"{label} in an answer{more}", "answers")
    for k, count in enumerate(counts.tolist()):
        if count:
            x, y = _LEFT + k * step, _y(0.94 * count / peak)
            size = {"width": max(step - 1.5, 0.5), "height": _y(0.0) - y}
            parts.append(el("rect", x=x + 0.75, y=y, rx=1.0, class_="ours", **size))
            if count == peak:
                parts.append(
                    el("text", f"{count:,}", x=x + step / 2, y=y - 3, text_anchor="middle")
                )
    for k in sorted({0, num // 2, num - 1}):
        text = f"{k * width}" if width == 1 else f"{k * width} to {(k + 1) * width - 1}"
        anchor = "middle" if width == 1 or 0 < k < num - 1 else "start" if k == 0 else "end"
        at = k + {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor]
        parts.append(el("text", text, x=_LEFT + at * step, y=_y(0) + 14, text_anchor=anchor))
    return _plot(parts, label)


def _plot(parts: Sequence[Html], label: str, **place: float) -> Html:
    view = f"0 0 {_W:g} {_H:g}"
    return el("svg", *parts, viewBox=view, class_="plot", role="img", aria_label=label, **place)


def _frame(label: str, upward: str) -> list[Html]:
    """Base line and the names of both axes."""
    middle, height = (_LEFT + _W - _RIGHT) / 2, (_TOP + _H - _BOTTOM) / 2
    turned = f"rotate(-90 11 {height:g})"
    return [
        el("text", upward, x=11.0, y=height, text_anchor="middle", transform=turned),
        el("line", x1=_LEFT, x2=_W - _RIGHT, y1=_y(0), y2=_y(0), class_="axis"),
        el("text", label, x=middle, y=_H - 3, text_anchor="middle"),
    ]


def _x(share: float) -> float:
    return _LEFT + share * (_W - _LEFT - _RIGHT)


def _y(share: float) -> float:
    return _H - _BOTTOM - share * (_H - _TOP - _BOTTOM)


def scale_end(numbers: Sequence[float]) -> float:
    """The end of a scale: 100 for shares, else the next 1, 2 or 5 times a power of ten."""
    number = max((one for one in numbers if math.isfinite(one)), default=0.0)
    if 1.0 < number <= 100:
        return 100.0
    if number <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(number))
    return next(n * power for n in (1, 2, 5, 10) if n * power >= number)


def _short(number: float) -> str:
    """A number of three digits that leaves room for the name of its axis: 2e-4, not 0.0002."""
    plain = f"{float(f'{number:.3g}'):g}"
    if len(plain) < 6:
        return plain
    digits, _, power = f"{number:.1e}".partition("e")
    return f"{float(digits):g}e{int(power)}"


def curves(
    lines: Sequence[tuple[str, Sequence[tuple[float, float]]]],
    label: str,
    upward: str = "",
    **place: float,
) -> Html:
    """Values over steps, each line with a class of the page's style; the axis begins at 0.

    Args:
        lines: (class, points of step and value); points that are not finite are left out.
        label: name of the horizontal axis.
        upward: name of the vertical axis.
        place: attributes x, y, width and height within another drawing.
    """
    known = [
        (class_, [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)])
        for class_, points in lines
    ]
    places = [point for _, points in known for point in points]
    end = max((x for x, _ in places), default=0.0) or 1.0
    top = max((y for _, y in places), default=0.0) or 1.0
    low = min(0.0, *(y for _, y in places)) if places else 0.0
    parts = _frame(label, upward)
    for share in (0.0, 0.5, 1.0):
        parts += [
            el("line", x1=_LEFT, x2=_W - _RIGHT, y1=_y(share), y2=_y(share), class_="axis"),
            el(
                "text",
                _short(low + share * (top - low)),
                x=_LEFT - 5,
                y=_y(share) + 4,
                text_anchor="end",
            ),
            el("text", f"{share * end:.0f}", x=_x(share), y=_y(0) + 14, text_anchor="middle"),
        ]
    for class_, points in known:
        drawn = " ".join(f"{_x(x / end):.1f},{_y((y - low) / (top - low)):.1f}" for x, y in points)
        parts.append(el("polyline", points=drawn, class_=f"curve {class_}"))
        if len(points) <= _NUM_BINS:
            parts += [
                el("circle", cx=_x(x / end), cy=_y((y - low) / (top - low)), r=2.5, class_=class_)
                for x, y in points
            ]
    return _plot(parts, label, **place)
