"""Draws what stands side by side in one run as an SVG of bars: no dependency, and the same bytes for the same figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final

_ROW, _GROUP, _LEFT, _BAR, _RIGHT = 22, 30, 250, 420, 90
_COLOURS: Final = ("#2a6f97", "#9aa5b1")


@dataclass(frozen=True, slots=True)
class _Row:
    label: str
    value: float
    ours: bool


def draw(figures: Mapping[str, Any]) -> str:
    """Return an SVG of the throughput by connections and of the ratios; what was not measured is left out."""
    groups = [(title, rows) for title, rows in (_throughput(figures), _ratios(figures)) if rows]
    parts: list[str] = []
    top = 16
    for title, rows in groups:
        parts.append(f'<text x="12" y="{top}" font-weight="bold">{escape(title)}</text>')
        most = max(row.value for row in rows) or 1.0
        for row in rows:
            top += _ROW
            width = max(1, round(row.value / most * _BAR))
            parts += (
                f'<text x="{_LEFT - 8}" y="{top}" text-anchor="end">{escape(row.label)}</text>',
                f'<rect x="{_LEFT}" y="{top - 12}" width="{width}" height="15" fill="{_COLOURS[not row.ours]}"/>',
                f'<text x="{_LEFT + width + 6}" y="{top}">{row.value:g}</text>',
            )
        top += _GROUP
    size = f'width="{_LEFT + _BAR + _RIGHT}" height="{top}"'
    style = 'font-family="sans-serif" font-size="13"'
    return "\n".join((f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>', *parts, "</svg>", ""))


def _throughput(figures: Mapping[str, Any]) -> tuple[str, Sequence[_Row]]:
    rows: list[_Row] = []
    theirs = figures.get("wasmtime_serve_js_rps_by_connections", {})
    for connections, value in figures.get("execute_js_rps_by_connections", {}).items():
        rows.append(_Row(f"Execute, {connections} connections", value, ours=True))
        if connections in theirs:
            rows.append(_Row(f"wasmtime serve, {connections} connections", theirs[connections], ours=False))
    if "ceiling_js_rps" in figures:
        rows.append(_Row("engine alone, a process for each CPU", figures["ceiling_js_rps"], ours=False))
    return "calls a second, JavaScript hello", rows


def _ratios(figures: Mapping[str, Any]) -> tuple[str, Sequence[_Row]]:
    names = {
        "ratio_vs_wasmtime_serve": "Execute ÷ wasmtime serve",
        "ratio_to_ceiling": "Execute ÷ engine alone",
        "victim_p99_ratio": "victim's p99 beside a noisy neighbour ÷ alone",
    }
    return "ratios", [_Row(label, figures[name], ours=True) for name, label in names.items() if isinstance(figures.get(name), int | float)]
