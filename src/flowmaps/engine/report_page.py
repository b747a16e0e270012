"""The report of a run: one page, no server, no network."""

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..describe import citations
from .evaluate import COLUMNS
from .run_folder import CONFIG, EVALUATION, REPORT, RunFolder

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
:root {{ --ink: #1c2733; --soft: #5c6b7a; --line: #dbe2e8; --accent: #1f4e79; }}
body {{ font: 15px/1.5 system-ui, sans-serif; color: var(--ink); }}
body {{ max-width: 1060px; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.5rem; margin-bottom: 0; }} h2 {{ font-size: 1.1rem; margin: 2rem 0 .5rem; }}
p.lead {{ color: var(--soft); margin-top: .2rem; }} .wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .25rem .8rem; border-bottom: 1px solid var(--line); text-align: right; }}
th {{ color: var(--soft); font-weight: 600; }} td:first-child, th:first-child {{ text-align: left; }}
tr.floor td {{ color: var(--soft); font-style: italic; }}
#grid {{ max-width: 100%; border: 1px solid var(--line); image-rendering: pixelated; }}
input[type=range] {{ width: min(560px, 100%); accent-color: var(--accent); }}
.charts {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(400px, 1fr)); gap: 1rem; }}
.charts svg {{ width: 100%; height: auto; }}
pre {{ background: #f5f7f9; padding: .8rem; overflow-x: auto; font-size: 13px; }} li {{ margin: .3rem 0; }}
</style></head><body>
<h1>{title}</h1><p class="lead">{lead}</p>
<section{hidden}><h2>Samples over time</h2>
<p>Columns: number of steps, and the many-step solution of the ODE. Every row starts from the same noise.</p>
<label>images seen: <output id="when"></output><br>
<input id="slider" type="range" min="0" max="{last}" value="{last}" aria-label="images seen"></label>
<div class="wide"><img id="grid" alt="samples"></div></section>
{evaluation}
<h2>Over the run</h2><div class="charts">{charts}</div>
<h2>Configuration</h2><pre>{config}</pre>
<h2>Environment</h2><pre>{environment}</pre>
<h2>Please cite</h2><ul>{citations}</ul>
<script>
const frames = {frames};
const slider = document.getElementById("slider");
function show() {{
  const frame = frames[slider.value];
  if (!frame) return;
  document.getElementById("grid").src = frame[1];
  document.getElementById("when").textContent = frame[0].toLocaleString("en");
}}
slider.addEventListener("input", show); show();
</script></body></html>
"""


def write_report(run: RunFolder) -> None:
    """Write report.html from what lies in the run folder; may be called at any time."""
    config, rows = run.config(), run.rows()
    frames = [
        [int(f.stem), "data:image/png;base64," + base64.b64encode(f.read_bytes()).decode()]
        for f in sorted(run.samples.glob("*.png"))
    ]
    seen = max((row["images"] for row in rows), default=0)
    took = max((row.get("seconds", 0) for row in rows), default=0)
    result = json.loads((run.path / EVALUATION).read_text("utf-8")) if (run.path / EVALUATION).is_file() else None
    loss, data, net = (config[k]["name"] for k in ("loss", "data", "net"))
    page = _PAGE.format(
        title=html.escape(f"{loss} on {config['data'].get('kind', data)}"),
        lead=html.escape(
            f"{net}, {seen:,} of {config['images']:,} images, {took:,.0f} seconds of training; {run.path.name}"
        ),
        hidden="" if frames else " hidden",
        last=max(0, len(frames) - 1),
        evaluation=_evaluation(result),
        charts="".join(_charts(rows, result)),
        config=html.escape((run.path / CONFIG).read_text("utf-8")),
        environment=html.escape((run.path / "environment.json").read_text("utf-8")),
        citations="".join(f"<li><b>{html.escape(k)}</b> {html.escape(v)}</li>" for k, v in citations(config).items()),
        frames=json.dumps(frames),
    )
    run.write(REPORT, page)


def _evaluation(result: Mapping[str, Any] | None) -> str:
    if result is None:
        return ""
    rows = result["rows"]
    columns = [c for c in COLUMNS if c in rows[0]]
    head = "".join(f"<th>{COLUMNS[c]}</th>" for c in columns)
    body = "".join("<tr>" + "".join(f"<td>{_figure(row[c])}</td>" for c in columns) + "</tr>" for row in rows)
    floor = {"steps": "floor", "energy_over_floor": 1.0} | result["floor"]
    body += '<tr class="floor">' + "".join(f"<td>{_figure(floor.get(c, ''))}</td>" for c in columns) + "</tr>"
    accuracy = rows[0].get("classifier_accuracy")
    note = f"; the classifier's own accuracy on unseen data is {accuracy:.3f}" if accuracy is not None else ""
    return (
        f'<h2>Quality against number of evaluations</h2><div class="wide"><table><tr>{head}</tr>{body}</table></div>'
        f"<p class='lead'>{html.escape(result['protocol'] + note)}.</p>"
    )


def _charts(rows: Sequence[Mapping[str, Any]], result: Mapping[str, Any] | None) -> list[str]:
    known = {"images", "seconds", "learning_rate", "skipped", "gradient_norm", "bad_batch"}
    logged = [row for row in rows if "loss" in row]
    terms = sorted({k for row in logged for k in row} - known)
    watched = [row for row in rows if any(k.startswith("energy_over_floor_") for k in row)]
    charts = []
    if logged:
        charts.append(_chart("loss terms", "images", {k: _series(logged, "images", k) for k in terms}))
        charts.append(_chart("norm of the gradient", "images", {"": _series(logged, "images", "gradient_norm")}))
    if watched:
        keys = sorted({k for row in watched for k in row if k != "images"}, key=lambda k: int(k.rpartition("_")[2]))
        lines = {f"{k.rpartition('_')[2]} steps": _series(watched, "images", k) for k in keys}
        charts.append(_chart("energy distance over its floor", "images", lines))
    if result is not None:
        line = {"": [(r["evaluations"], r["energy_over_floor"]) for r in result["rows"]]}
        charts.append(_chart("energy distance over its floor", "evaluations", line, log_x=True))
        kinds = ("lagrangian", "eulerian", "semigroup")
        spans = {k: [((r["from"] + r["to"]) / 2, r[k]) for r in result["residuals"]] for k in kinds}
        charts.append(_chart("residuals of the three identities", "span t - s", spans))
        if "trajectories" in result:
            by_time = result["trajectories"]["by_time"]
            turning = list(zip(by_time["time"], by_time["turning"], strict=True))
            charts.append(_chart("turning of trajectories, radians per unit of time", "time", {"": turning}))
    return charts


def _series(rows: Sequence[Mapping[str, Any]], x: str, y: str) -> list[tuple[float, float]]:
    return [(row[x], row[y]) for row in rows if y in row]


def _chart(title: str, x: str, lines: Mapping[str, Sequence[tuple[float, float]]], log_x: bool = False) -> str:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(5, 3))
    for name, points in lines.items():
        axis.plot(*zip(*points, strict=True), label=name, marker="o" if len(points) < 20 else "", markersize=3)
    axis.set(title=title, xlabel=x)
    values = [v for points in lines.values() for _, v in points]
    if min(values, default=0) > 0:
        axis.set_yscale("log")
    if log_x:
        axis.set_xscale("log", base=2)
    if any(lines):
        axis.legend(fontsize=8)
    axis.grid(alpha=0.25)
    figure.tight_layout()
    content = io.StringIO()
    figure.savefig(content, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    text = content.getvalue()
    return text[text.index("<svg") :]


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else html.escape(str(value))
