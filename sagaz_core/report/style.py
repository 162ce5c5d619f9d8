"""How the page looks: light and dark as the reader's system says, and on paper. Colours are beside words everywhere."""

from __future__ import annotations

LIGHT = {
    "ink": "#1b1f24",
    "paper": "#ffffff",
    "faint": "#57606a",
    "line": "#d0d7de",
    "panel": "#f6f8fa",
    "proved": "#d3f3db",
    "proved-line": "#1a7f37",
    "partly": "#fff3c4",
    "partly-line": "#9a6700",
    "not": "#eef0f3",
    "not-line": "#6e7781",
    "blind": "#e8e0fb",
    "blind-line": "#6639ba",
    "failing": "#ffdcd9",
    "failing-line": "#cf222e",
}
"""The colours by day and on paper."""

_DARK = {
    "ink": "#e6edf3",
    "paper": "#0d1117",
    "faint": "#9aa4af",
    "line": "#3a424c",
    "panel": "#161b22",
    "proved": "#12361f",
    "proved-line": "#4cc265",
    "partly": "#3b2f0b",
    "partly-line": "#d9a520",
    "not": "#21262d",
    "not-line": "#8b949e",
    "blind": "#2c2150",
    "blind-line": "#b392f0",
    "failing": "#4b1518",
    "failing-line": "#ff7b72",
}

_STEPS = ("proved", "partly", "not", "blind", "failing")


def _root(colours: dict[str, str], scheme: str) -> str:
    return f":root {{ color-scheme: {scheme}; {' '.join(f'--{name}: {c};' for name, c in colours.items())} }}"


def _step(name: str) -> str:
    return f".{name} {{ background: var(--{name}); fill: var(--{name}); stroke: var(--{name}-line); }}"


_REST = """
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto; padding:
  1.5rem;
  max-width: 90rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top:
  1rem; }
h3 { font-size: 1rem; margin: 1rem 0 .3rem; } p { margin: .4rem 0; max-width: 60rem; } .faint { color: var(--faint); }
table { border-collapse: collapse; font-size: .87rem; } caption { text-align: left; color: var(--faint); padding:
  .2rem 0; }
th, td { border: 1px solid var(--line); padding: .2rem .5rem; text-align: center; } th { font-weight: 600; }
th[scope=row], .totals td:first-child { text-align: left; }
.totals td { font-variant-numeric: tabular-nums; white-space: nowrap; }
.pairs thead tr:last-child th { writing-mode: vertical-rl; text-align: left; padding: .4rem
  .1rem; }
.pairs td { min-width: 1.6rem; padding: .2rem; } .wide { overflow-x: auto; }
.both { display: flex; flex-wrap: wrap; gap: 1.5rem; align-items: flex-start; } .both > * { max-width: 100%; }
td.none { color: var(--faint); background: var(--panel); }
.graph rect { stroke-width: 1.5; } .graph .blind rect { stroke-dasharray: 5 3; } .graph .failing rect { stroke-width:
  3; }
.graph text { fill: var(--ink); stroke: none; text-anchor: middle; font: 13px system-ui, sans-serif; }
.graph .name { font-weight: 600; } .graph .said { font-size: 11px; }
.edge { fill: none; stroke: var(--faint); stroke-width: 1.3; } marker path { fill: var(--faint); }
.banner { border: 2px solid var(--failing-line); background: var(--failing); padding: .6rem 1rem; }
.failure { border: 1px solid var(--line); border-left: 4px solid var(--failing-line); background: var(--panel);
  padding: .3rem 1rem .6rem; margin: .8rem 0; }
pre { overflow-x: auto; font: 12.5px/1.45 ui-monospace, monospace; margin: .5rem 0; } code { font-family:
  ui-monospace, monospace; }
.said-only { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space:
  nowrap; }
dl.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin: .5rem 0; } dl.legend div { display: flex; gap:
  .4rem; }
dl.legend dt { min-width: 1.6rem; text-align: center; border: 1px solid var(--line); } dl.legend dd { margin: 0; }
@page { size: landscape; margin: 12mm; }
@media print {
  * { print-color-adjust: exact; }
  .failure, tr, svg { break-inside: avoid; }
  .wide { overflow: visible; } .both { display: block; } table { font-size: 10px; } pre { white-space: pre-wrap; } }
"""

STYLE = "\n".join(
    [
        _root(LIGHT, "light dark"),
        f"@media (prefers-color-scheme: dark) {{ {_root(_DARK, 'dark')} }}",
        f"@media print {{ {_root(LIGHT, 'light')} }}",
        *map(_step, _STEPS),
        _REST,
    ]
)
