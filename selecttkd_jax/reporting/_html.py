"""Pieces of a page: escaped text, tables, figures, and its style in light and dark."""

import html
import re
from collections.abc import Iterable, Sequence

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")

STYLE = """
:root { color-scheme: light dark;
  --page: #fbfbfa; --card: #fff; --text: #1d2127; --soft: #5c6570; --line: #dcdfe3; --grid: #e8eaed;
  --reject: #ffd9d2; --reject-text: #8f1d0c; --note: #f1f4f8;
  --c0: #1f5fa8; --c1: #c4570a; --c2: #2b7f5f; --c3: #8a4fa3; --c4: #9a7b00;
  --c5: #b03a6b; --c6: #3b7f94; --c7: #6b6b6b; }
@media (prefers-color-scheme: dark) { :root {
  --page: #14171b; --card: #1c2026; --text: #e6e8eb; --soft: #a2abb6; --line: #343a42; --grid: #2a2f36;
  --reject: #57231b; --reject-text: #ffb8aa; --note: #222831;
  --c0: #6fb0f2; --c1: #f2a35e; --c2: #6cc7a0; --c3: #c79be0; --c4: #dcc25a;
  --c5: #ee8fb6; --c6: #7cc4d8; --c7: #b4b4b4; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem; max-width: 78rem; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .7rem; }
h3 { font-size: .9rem; font-weight: 600; margin: 0 0 .3rem; }
p { margin: .3rem 0; } .soft { color: var(--soft); }
code, pre, td { font-variant-numeric: tabular-nums; }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .85em; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: .7rem; margin: 1rem 0; }
.tile, figure, .sample { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: .7rem .9rem; }
.tile b { display: block; font-size: 1.15rem; font-weight: 600; white-space: nowrap; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); gap: .8rem; }
figure { margin: 0; min-width: 0; } svg { display: block; width: 100%; height: auto; }
svg .grid { stroke: var(--grid); } svg .axis { fill: var(--soft); font-size: 11px; }
svg .line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem .9rem; margin: 0 0 .3rem; padding: 0; list-style: none;
  font-size: .82rem; }
.legend i { display: inline-block; width: .9rem; height: 3px; margin-right: .35rem; vertical-align: middle;
  border-radius: 2px; }
.legend .dashed { background: none !important; border-top: 3px dashed; height: 0; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .88rem; min-width: 40%; }
th, td { text-align: left; vertical-align: top; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line);
  overflow-wrap: break-word; max-width: 34rem; }
thead th { color: var(--soft); font-weight: 600; min-width: 5.5rem; } td:first-child { white-space: nowrap; }
details { margin: .7rem 0; } summary { cursor: pointer; color: var(--soft); }
.sample { margin: .7rem 0; } .sample pre { margin: .3rem 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.prompt { color: var(--soft); }
mark { background: var(--reject); color: var(--reject-text); border-radius: 3px; text-decoration: underline dotted; }
"""


def escape(text: object) -> str:
    """Text for HTML: nothing of it is markup, and what HTML cannot hold is a replacement character."""
    return html.escape(_CONTROLS.sub("�", str(text)))


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table of texts; empty without rows."""
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    if not body:
        return ""
    head = f"<thead><tr>{''.join(f'<th>{escape(one)}</th>' for one in heads)}</tr></thead>" if any(heads) else ""
    return f'<div class="wide"><table>{head}<tbody>{body}</tbody></table></div>'


def figure(title: str, chart: str, named: str = "") -> str:
    """A chart with its heading and legend; empty without a chart."""
    return f"<figure><h3>{escape(title)}</h3>{named}{chart}</figure>" if chart else ""


def legend(entries: Sequence[tuple[str, int]], colors: int = 8) -> str:
    """Which colour is what; empty for a single one."""
    if len(entries) < 2:
        return ""
    items = []
    for name, color in entries:
        shown = f"--c{color % colors}"
        style = f"background:var({shown});border-color:var({shown})"
        items.append(
            f'<li><i class="{"dashed" if color >= colors else "plain"}" style="{style}"></i>{escape(name)}</li>'
        )
    return f'<ul class="legend">{"".join(items)}</ul>'


def details(summary: str, content: str) -> str:
    """What is shown when it is asked for; empty without content."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>" if content else ""


def section(title: str, content: str) -> str:
    """A part of the page; empty without content."""
    return f"<section><h2>{escape(title)}</h2>{content}</section>" if content else ""


def page(title: str, content: str, generator: str) -> str:
    """The whole of it, which loads nothing from anywhere."""
    return (
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f'<meta name="generator" content="{escape(generator)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>{content}</body></html>\n"
    )
