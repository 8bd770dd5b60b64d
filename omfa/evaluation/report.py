"""What an evaluation looks like: Markdown and LaTeX tables, and one HTML page that needs nothing but itself.

The page holds the table with intervals, a histogram per metric, and pictures side by side (given | truth | each model),
best, worst or random by any metric, searchable by id.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from omfa.components import Category, TaskKind
from omfa.evaluation.protocols import METRICS, Metric
from omfa.evaluation.results import Results, comparable, compare, formatted
from omfa.evaluation.scoring import read_prediction
from omfa.images import ImageError, read_image
from omfa.records.prepared import Record, RecordError, read_records, resolve
from omfa.records.worn import clothes

COLOURS = ("#0b62a8", "#d1541b", "#2a8a4a", "#8a4fb0", "#b08900", "#c22f6b")
THUMB = 320  # pixels high: sharp on a phone, small in the page
EXTREMES = 6  # best and worst records of each metric that are always among the pictures


# ---------------------------------------------------------------------------------------------------------- tables
def table_rows(results: Sequence[Results]) -> list[tuple[Metric, list[tuple[str, str]], int | None]]:
    """Metrics that any model has, each model's value and interval, and which is best.

    None is where there is one model, a tie, or means over different records.
    """
    rows = []
    for name, metric in METRICS.items():
        found = [r.summary["metrics"].get(name) for r in results]
        if not any(found):
            continue
        values = [math.nan if f is None or f["value"] is None else f["value"] for f in found]
        sign = 1 if metric.better == "higher" else -1
        best = max((sign * v for v in values if math.isfinite(v)), default=math.nan)
        winners = [i for i, v in enumerate(values) if sign * v == best]
        only = winners[0] if len(winners) == 1 and len(results) > 1 and _same_records(metric, results) else None
        rows.append((metric, [formatted(metric, f) for f in found], only))
    return rows


def _same_records(metric: Metric, results: Sequence[Results]) -> bool:
    """Whether all models that have the metric have it on the same records."""
    has = [r for r in results if metric.name in r.summary["metrics"]]
    scored = {frozenset(k for k, v in r.lines.items() if metric.of_set or metric.name in v["values"]) for r in has}
    return len(scored) < 2


def _head(results: Sequence[Results]) -> str:
    s = results[0].summary
    size = s["protocol"]["size"]
    at = "the truth's own size" if size is None else f"{size[0]}x{size[1]}"
    return f"{s['pairing']} {s['task'].replace('_', '-')}, protocol {s['protocol']['name']}, compared at {at}"


def markdown(results: Sequence[Results]) -> str:
    """The table for a README."""
    lines = [f"{_head(results)}. Better: ↑ higher, ↓ lower. Intervals: see the notes.", ""]
    lines += ["| | " + " | ".join(_plain(r.name) for r in results) + " |", "|---|" + "---|" * len(results)]
    for metric, cells, best in table_rows(results):
        texts = []
        for i, (value, sure) in enumerate(cells):
            texts.append((f"**{value}**" if i == best else value) + (f" {sure}" if sure else ""))
        lines.append(f"| {metric.label} {_arrow(metric)} | " + " | ".join(texts) + " |")
    for label, said in speed_rows(results):
        lines.append(f"| {label} | " + " | ".join(said) + " |")
    notes = [f"scored: {', '.join(_scored(r) for r in results)}", *_notes(results)]
    return "\n".join([*lines, "", *(f"- {n}" for n in notes)]) + "\n"


def _plain(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")


def _arrow(metric: Metric) -> str:
    return "↑" if metric.better == "higher" else "↓"


def _scored(result: Results) -> str:
    return f"{result.name} {result.summary['scored']} of {result.summary['predictions']}"


def _notes(results: Sequence[Results]) -> list[str]:
    s = results[0].summary
    used = {row["interval"] for r in results for row in r.summary["metrics"].values()}
    notes = [f"protocol: {s['protocol']['source']}"]
    notes += [f"{kind}: {text}" for kind, text in s["intervals"].items() if kind in used]
    uneven = [m.label for m in METRICS.values() if not _same_records(m, results)]
    if uneven:
        notes.append(f"no best one marked, for the models were scored on different records: {', '.join(uneven)}")
    absent = {METRICS[m].label: why for r in results for m, why in r.summary["absent"].items()}
    notes += [f"absent: {label}: {why}" for label, why in absent.items()]
    return notes + [f"not done: {why}" for why in s["deliberately_absent"].values()]


def latex(results: Sequence[Results]) -> str:
    """The table for a paper (booktabs)."""
    lines = [f"% {_head(results)}", r"\begin{tabular}{l" + "c" * len(results) + "}", r"\toprule"]
    lines += [" & ".join(["", *(_tex(r.name) for r in results)]) + r" \\", r"\midrule"]
    for metric, cells, best in table_rows(results):
        texts = [rf"\textbf{{{value}}}" if i == best else value for i, (value, _) in enumerate(cells)]
        arrow = r"$\uparrow$" if metric.better == "higher" else r"$\downarrow$"
        lines.append(" & ".join([f"{_tex(metric.label)} {arrow}", *texts]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _tex(text: str) -> str:
    special = {c: "\\" + c for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\^{}"}
    return "".join(special.get(c, c) for c in text)


def speed_rows(results: Sequence[Results]) -> list[tuple[str, list[str]]]:
    """Seconds, memory, operations and steps as the predictions tell them; rows nobody tells are left out."""

    def cell(r: Results, key: str) -> str:
        value = r.summary["speed"].get(key)
        if isinstance(value, dict):
            value = value.get("median")
        if not isinstance(value, int | float):
            return "-" if value is None else str(value)
        return f"{value / 1e9:,.1f}" if key == "flops" else f"{value:,.4g}"

    labels = {
        "seconds": "seconds a picture (median)", "peak_memory_mb": "peak memory, MB", "flops": "GFLOPs a picture",
        "steps": "steps", "guidance": "guidance", "seed": "seed", "device": "device",
    }  # fmt: skip
    rows = [(label, [cell(r, key) for r in results]) for key, label in labels.items()]
    return [(label, cells) for label, cells in rows if set(cells) != {"-"}]


def comparison_text(found: Mapping[str, Any]) -> str:
    """A comparison for a terminal or a Markdown file."""
    lines = []
    for pair in found["pairs"]:
        lines.append(f"{pair['b']} against {pair['a']} on the {found['n']} predictions both have; difference b - a")
        for name, row in pair["metrics"].items():
            metric = METRICS[name]
            value, sure = formatted(metric, row, "difference")
            wins = "" if row["wins"] is None else f"b wins {100 * row['wins']:.0f} %"
            most = ", ".join(m["key"] for m in row["most"][:3])
            most = f"; most: {most}" if most else ""
            lines.append(f"  {metric.label:44} {value} {sure:22} {wins}{most}")
    return "\n".join(lines)


# -------------------------------------------------------------------------------------------------------- the page
def histogram(metric: Metric, series: Sequence[np.ndarray], width: int = 260, height: int = 110, bins: int = 24) -> str:
    """Distributions of one metric, one colour a model, as SVG."""
    every = np.concatenate(series)
    low, high = float(every.min()), float(every.max())
    if high <= low:
        low, high = low - 0.5, high + 0.5
    counts = [np.histogram(s, bins, (low, high))[0] / max(1, len(s)) for s in series]
    top = max(float(c.max()) for c in counts) or 1.0
    step, floor = width / bins, height - 16
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(metric.label)}">']
    for index, share in enumerate(counts):
        colour = COLOURS[index % len(COLOURS)]
        corners = [f"0,{floor}"]
        for i, v in enumerate(share):
            y = floor - v / top * (floor - 4)
            corners += [f"{i * step:.1f},{y:.1f}", f"{(i + 1) * step:.1f},{y:.1f}"]
        line = " ".join([*corners, f"{width},{floor}"])
        parts.append(
            f'<polygon points="{line}" fill="{colour}" fill-opacity=".25" stroke="{colour}" stroke-width="1.2"/>'
        )
    for x, anchor, value in ((0, "start", low), (width, "end", high)):
        text = metric.text(value)
        parts.append(f'<text x="{x}" y="{height - 3}" text-anchor="{anchor}" font-size="11" fill="gray">{text}</text>')
    return "".join([*parts, "</svg>"])


def thumbnail(picture: Image.Image, height: int = THUMB) -> str:
    """A picture as a data URL, JPEG, at most ``height`` pixels high."""
    if picture.height > height:
        size = max(1, round(picture.width * height / picture.height)), height
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def pictured(results: Sequence[Results], keys: Sequence[str], limit: int) -> tuple[set[str], set[str]]:
    """Which records get pictures, at most ``limit``, and which of them are a fixed random choice.

    Half the places are the random choice's; the others are for the best and worst of every metric and model, and what
    those leave over is the random choice's again.
    """
    chosen: dict[str, None] = {}
    names = [n for n in METRICS if not METRICS[n].of_set]
    for rank in range(EXTREMES):
        for r in results:
            for name in names:
                has = sorted((r.lines[k]["values"][name], k) for k in keys if name in r.lines[k]["values"])
                if rank < len(has):
                    chosen |= {has[rank][1]: None, has[-1 - rank][1]: None}
    order = [keys[i] for i in np.random.RandomState(0).permutation(len(keys))]
    extremes, drawn = set(list(chosen)[: limit // 2]), set(order[: limit - limit // 2])
    for key in order:
        if len(extremes | drawn) >= limit:
            break
        drawn.add(key)
    return extremes | drawn, drawn


def _thumb_of(path: Path | None) -> str | None:
    try:
        return None if path is None else thumbnail(read_image(path))
    except ImageError:
        return None


def pictures_of(record: Record, key: str, results: Sequence[Results], records: Path) -> dict[str, Any]:
    """Given, true and generated pictures of a prediction as data URLs; None where a file is gone."""
    task = results[0].summary["task"]
    donor = results[0].lines[key].get("donor")
    given: list[tuple[str, str | None]] = []
    truth: str | None
    if task == TaskKind.TRY_OFF:
        category = Category(key.rsplit(".", 1)[1])
        given.append(("person", _thumb_of(resolve(records, record.file_name))))
        truth = _thumb_of(next(resolve(records, g.path) for g in clothes(record) if g.category == category))
    else:
        garments = donor["garments"] if donor else [[str(g.category), g.path] for g in clothes(record)]
        given += [(c, _thumb_of(resolve(records, path))) for c, path in garments]
        if record.face is not None:
            given.append(("face", _thumb_of(resolve(records, record.face.path))))
        if record.pose is not None and record.pose.map is not None:
            given.append(("pose", _thumb_of(resolve(records, record.pose.map))))
        truth = _thumb_of(resolve(records, record.file_name))
    made: list[str | None] = []
    for r in results:
        try:
            made.append(thumbnail(read_prediction(Path(r.run["predictions"]), key)))
        except (ImageError, LookupError):
            made.append(None)
    return {"given": [g for g in given if g[1] is not None], "truth": truth, "models": made}


def page(results: Sequence[Results], pictures: int = 200) -> str:
    """The whole page as one string of HTML."""
    keys = list(results[0].lines) if len(results) == 1 else comparable(results)
    records = Path(results[0].run["records"])
    try:
        by_id = {r.id: r for r in read_records(records)}
    except (RecordError, OSError):  # moved or deleted since: the numbers still stand
        by_id = {}
    shown, drawn = pictured(results, keys, pictures)
    items: list[dict[str, Any]] = []
    for key in keys:
        lines = [r.lines[key] for r in results]
        record = by_id.get(lines[0]["record_id"])
        values = [{n: round(v * METRICS[n].scale, 5) for n, v in line["values"].items()} for line in lines]
        found = pictures_of(record, key, results, records) if record is not None and key in shown else None
        items.append({"key": key, "values": values, "pictures": found, "random": key in drawn})
    names = [n for n in METRICS if any(n in v for item in items for v in item["values"])]
    data = {
        "models": [r.name for r in results],
        "metrics": [
            {"name": n, "label": METRICS[n].label, "better": METRICS[n].better, "digits": METRICS[n].digits}
            for n in names
        ],
        "truth": "truth" if results[0].summary["pairing"] == "paired" else "the person, own clothes",
        "items": items,
    }
    text = (files("omfa") / "assets" / "report.html").read_text(encoding="utf-8")
    embedded = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")  # no tag can end the script
    title = html.escape("Evaluation: " + ", ".join(r.name for r in results))
    return text.replace("@TITLE@", title).replace("@BODY@", _body(results, keys, names)).replace("@DATA@", embedded)


def _body(results: Sequence[Results], keys: Sequence[str], names: Sequence[str]) -> str:
    e = html.escape
    parts = [f"<h1>{e(', '.join(r.name for r in results))}</h1>", f"<p>{e(_head(results))}</p>"]
    parts.append(f"<p>scored: {e(', '.join(_scored(r) for r in results))}</p>")
    parts.append('<h2>Numbers</h2><div class="wide"><table><tr><th></th>')
    parts += [f"<th>{e(r.name)}</th>" for r in results] + ["</tr>"]
    for metric, cells, best in table_rows(results):
        parts.append(f"<tr><td>{e(metric.label)}&nbsp;{_arrow(metric)}</td>")
        for i, (value, sure) in enumerate(cells):
            bold = f"<b>{value}</b>" if i == best else value
            parts.append(f"<td>{bold} <small>{e(sure)}</small></td>")
        parts.append("</tr>")
    for label, texts in speed_rows(results):
        parts.append(f"<tr><td>{e(label)}</td>" + "".join(f"<td>{e(t)}</td>" for t in texts) + "</tr>")
    parts.append("</table></div>")
    if len(results) > 1:
        parts += ["<h2>Differences</h2>", *(_difference_table(pair) for pair in compare(results)["pairs"])]
    parts.append("<h2>Distributions</h2>" + _key(results) + '<div class="plots">')
    for name in names:
        series = [np.array([r.lines[k]["values"][name] for k in keys if name in r.lines[k]["values"]]) for r in results]
        if all(len(s) for s in series):
            parts.append(f"<figure><figcaption>{e(METRICS[name].label)}&nbsp;{_arrow(METRICS[name])}</figcaption>")
            parts.append(histogram(METRICS[name], series) + "</figure>")
    parts.append("</div><h2>Pictures</h2>")
    parts.append(
        '<div class="bar"><select id="order" aria-label="order"><option value="worst">worst first</option>'
        '<option value="best">best first</option><option value="random">random</option></select>'
        '<select id="metric" aria-label="by metric"></select><select id="model" aria-label="of model"></select>'
        '<input id="search" type="search" placeholder="search by id" aria-label="search by id"></div>'
        '<p id="count" class="note"></p><div id="gallery"></div><button id="more">show more</button>'
    )
    problems = [(r.name, p) for r in results for p in r.summary["problems"]]
    if problems:
        parts.append("<h2>Not scored</h2>")
        parts += [f'<p class="note">{e(name)}: {e(p["problem"])}</p>' for name, p in problems[:200]]
    parts.append("<h2>Notes</h2>" + "".join(f'<p class="note">{e(n)}</p>' for n in _notes(results)))
    return "\n".join(parts)


def _difference_table(pair: Mapping[str, Any]) -> str:
    """One pair of models as an HTML table."""
    e = html.escape
    parts = [
        f"<p>{e(pair['b'])} against {e(pair['a'])}, the same records</p>",
        '<div class="wide"><table><tr><th></th>',
    ]
    parts.append(f"<th>difference</th><th>{e(pair['b'])} wins</th><th>differ most</th></tr>")
    for name, row in pair["metrics"].items():
        metric = METRICS[name]
        value, sure = formatted(metric, row, "difference")
        wins = "" if row["wins"] is None else f"{100 * row['wins']:.0f} %"
        most = ", ".join(m["key"] for m in row["most"][:3])
        parts.append(f"<tr><td>{e(metric.label)}&nbsp;{_arrow(metric)}</td><td>{value} <small>{sure}</small></td>")
        parts.append(f"<td>{wins}</td><td><small>{e(most)}</small></td></tr>")
    return "".join([*parts, "</table></div>"])


def _key(results: Sequence[Results]) -> str:
    marks = (
        f'<i style="background:{COLOURS[i % len(COLOURS)]}"></i>{html.escape(r.name)}' for i, r in enumerate(results)
    )
    return f'<p class="key">{"".join(marks)}</p>'


def write_report(results: Sequence[Results], out: Path, pictures: int = 200) -> list[Path]:
    """Write ``table.md``, ``table.tex`` and ``index.html``, each at once.

    Args:
        results: one model or several of the same protocol, task and pairing.
        out: folder.
        pictures: records shown with pictures at most.

    Returns:
        The paths written.

    Raises:
        ValueError: results that can't stand in one table.
    """
    if len(results) > 1:
        comparable(results)
    out.mkdir(parents=True, exist_ok=True)
    texts = {"table.md": markdown(results), "table.tex": latex(results), "index.html": page(results, pictures)}
    if len(results) > 1:
        texts["comparison.txt"] = comparison_text(compare(results)) + "\n"
    written = []
    for name, text in texts.items():
        part = out / f"{name}.part"
        part.write_text(text, encoding="utf-8")
        os.replace(part, out / name)
        written.append(out / name)
    return written
