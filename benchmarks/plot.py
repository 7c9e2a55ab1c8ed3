"""Draws rates as bars, in SVG.

By own code: a bar is a rectangle and a text, and what draws it better (matplotlib with numpy, pillow and fonts, some
60 MB) would be the largest dependency of the project for one picture.
"""

from collections.abc import Sequence
from html import escape
from statistics import median
from typing import NamedTuple

WIDTH, LABELS, NUMBERS = 860, 330, 130
"""Pixels: of all, of the labels on the left, of the numbers on the right."""
ROW, BAR, HEADING = 26, 16, 40
COLOURS = {"ours": "#2563a8", "yardstick": "#8a939c", "tutorial": "#c2763a"}
STYLE = (
    "text { font: 13px system-ui, sans-serif; fill: #222 } .heading { font-weight: bold } .range { stroke: #222 }"
    " @media (prefers-color-scheme: dark) { text { fill: #ddd } .range { stroke: #ddd } }"
)


class Bar(NamedTuple):
    """A figure a round of one way of doing a thing; `kind` is whose way it is."""

    label: str
    kind: str
    rates: Sequence[float]


def draw(groups: Sequence[tuple[str, Sequence[Bar]]]) -> str:
    """Return a picture: bars of the medians, longer is faster, with a line from the least to the most."""
    parts: list[str] = []
    y = 0
    for heading, bars in groups:
        y += HEADING
        parts.append(f'<text class="heading" x="8" y="{y - 12}">{escape(heading)}</text>')
        scale = (WIDTH - LABELS - NUMBERS) / max(rate for bar in bars for rate in bar.rates)
        for bar in bars:
            parts.append(_bar(bar, y, scale))
            y += ROW
    size = f'width="{WIDTH}" height="{y + 8}" viewBox="0 0 {WIDTH} {y + 8}"'
    return "\n".join(
        [f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">', f"<style>{STYLE}</style>", *parts, "</svg>\n"]
    )


def _bar(bar: Bar, y: int, scale: float) -> str:
    middle, least, most = (LABELS + scale * of(bar.rates) for of in (median, min, max))
    text = y + BAR - 3
    return (
        f'<text x="{LABELS - 8}" y="{text}" text-anchor="end">{escape(bar.label)}</text>'
        f'<rect x="{LABELS}" y="{y}" width="{middle - LABELS:.1f}" height="{BAR}" fill="{COLOURS[bar.kind]}"/>'
        f'<path class="range" d="M{least:.1f} {y + BAR / 2:g}H{most:.1f}"/>'
        f'<text x="{max(middle, most) + 8:.1f}" y="{text}">{median(bar.rates):,.0f}/s</text>'
    )
