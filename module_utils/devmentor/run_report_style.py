"""Style and script of the HTML report. Nothing is loaded from anywhere: the page's policy forbids it."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --panel: #f6f7f9; --ink: #1b2330; --soft: #5a6575; --line: #dde1e7;
  --bar: #5b84c4; --good: #13693c; --good-bg: #e2f4ea; --note: #85570a; --note-bg: #fdf0d5; --bad: #b3261e;
  --bad-bg: #fce6e4; }
@media (prefers-color-scheme: dark) { :root { --paper: #12161c; --panel: #1a2029; --ink: #e4e8ee; --soft: #9aa6b5;
  --line: #2c3541; --bar: #5f8fd6; --good: #6fd39c; --good-bg: #143324; --note: #f0c274; --note-bg: #3a2d12;
  --bad: #ff9a91; --bad-bg: #441d1a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 14px/1.5 system-ui, -apple-system, "Segoe UI",
  Roboto, "Noto Sans", "Liberation Sans", sans-serif; font-variant-numeric: tabular-nums; }
main { max-width: 1180px; margin: 0 auto; padding: 32px 24px 64px; }
header { display: flex; flex-wrap: wrap; align-items: baseline; gap: 8px 14px; }
h1 { font-size: 24px; line-height: 1.25; margin: 0; font-weight: 650; letter-spacing: -.01em; }
h2 { font-size: 16px; font-weight: 650; margin: 0; }
.sub { color: var(--soft); margin: 6px 0 0; }
.options { display: flex; flex-wrap: wrap; gap: 6px; margin: 12px 0 0; padding: 0; list-style: none; }
.options li { border: 1px solid var(--line); border-radius: 6px; padding: 1px 8px; }
.options b { font-weight: 500; color: var(--soft); margin-right: 6px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(125px, 1fr)); gap: 12px; margin: 22px 0 0; }
.tiles div { background: var(--panel); border: 1px solid var(--line); border-radius: 10px; padding: 10px 14px; }
.tiles dt { color: var(--soft); font-size: 12.5px; }
.tiles dd { margin: 0; font-size: 21px; font-weight: 650; line-height: 1.35; }
.tiles .bad dd { color: var(--bad); } .tiles .note dd { color: var(--note); }
#filter { margin: 22px 0 0; width: 100%; max-width: 340px; padding: 7px 11px; font: inherit; color: inherit;
  background: var(--paper); border: 1px solid var(--line); border-radius: 8px; }
:is(#filter, th button, summary):focus-visible { outline: 2px solid var(--bar); outline-offset: 1px; }
section { margin-top: 34px; }
.head { display: flex; align-items: baseline; gap: 10px; margin-bottom: 8px; }
.head span { color: var(--soft); }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 10px; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: 7px 12px; vertical-align: top; border-bottom: 1px solid var(--line); }
tbody tr:last-child > td { border-bottom: 0; }
thead th { background: var(--panel); font-size: 12.5px; font-weight: 500; color: var(--soft); white-space: nowrap; }
th button { all: unset; cursor: pointer; } th button:hover { color: var(--ink); }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
.n { text-align: right; white-space: nowrap; } .zero { color: var(--soft); }
.text { overflow-wrap: anywhere; min-width: 200px; } .keep { white-space: nowrap; }
code { font: 12.5px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace;
  overflow-wrap: anywhere; }
.tag { display: inline-block; border-radius: 999px; padding: 0 9px; font-size: 12.5px; font-weight: 550;
  white-space: nowrap; background: var(--panel); color: var(--soft); border: 1px solid var(--line); }
.tag.good { background: var(--good-bg); color: var(--good); border-color: transparent; }
.tag.note { background: var(--note-bg); color: var(--note); border-color: transparent; }
.tag.bad { background: var(--bad-bg); color: var(--bad); border-color: transparent; }
svg { display: block; width: 140px; height: 10px; margin-top: 6px; }
svg rect { fill: var(--bar); } svg .rest { fill: var(--line); }
details table { margin: 6px 0 8px; border: 1px solid var(--line); } details th, details td { padding: 4px 9px; }
summary { cursor: pointer; } summary::marker { color: var(--soft); }
h3 { font-size: 12.5px; font-weight: 550; color: var(--soft); margin: 8px 0 0; }
footer { margin-top: 40px; color: var(--soft); font-size: 12.5px; }
@media print { #filter { display: none; } main { max-width: none; padding: 0; } .wide { overflow: visible; } }
"""

# The page is whole without it: it adds a filter over all rows, and tables that sort by a click on a heading.
SCRIPT = """
(() => {
  const rows = [...document.querySelectorAll("table.sorts > tbody > tr")];
  const filter = document.getElementById("filter");
  filter.hidden = false;
  filter.addEventListener("input", () => {
    const wanted = filter.value.toLowerCase();
    for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
  });
  const value = (row, index) => {
    const cell = row.cells[index];
    return "v" in cell.dataset ? Number(cell.dataset.v) : cell.textContent.trim().toLowerCase();
  };
  for (const table of document.querySelectorAll("table.sorts")) {
    [...table.tHead.rows[0].cells].forEach((heading, index) => {
      const button = document.createElement("button");
      button.textContent = heading.textContent;
      heading.replaceChildren(button);
      button.addEventListener("click", () => {
        const up = heading.getAttribute("aria-sort") !== "ascending";
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        heading.setAttribute("aria-sort", up ? "ascending" : "descending");
        const body = table.tBodies[0];
        const order = [...body.rows].sort((a, b) => {
          const [x, y] = [value(a, index), value(b, index)];
          return (x < y ? -1 : x > y ? 1 : 0) * (up ? 1 : -1);
        });
        body.append(...order);
      });
    });
  }
  document.documentElement.dataset.ready = String(rows.length);
})();
"""
