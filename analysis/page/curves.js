"use strict";
// Curves: the mean over seeds with its interval. Every number comes from Python; nothing is averaged here.

const EARLY = 0.2; // losses of this share of the steps may lie above the visible range: they fall by hundreds of nats
const DASHES = ["solid", "8px,3px", "2px,2px", "10px,3px,2px,3px", "14px,4px", "10px,2px,2px,2px,2px,2px"];
// Nothing here sends the plot anywhere, and no button leads to a service.
const PLOT = {
  displaylogo: false,
  responsive: true,
  showLink: false,
  plotlyServerURL: "",
  modeBarButtons: [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
};

// Plotly reads a few HTML tags in its texts.
function plain(text) {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

// Rounded as in the table: to its decimals, or to three digits.
function rounded(value, digits) {
  if (value === null) return "-";
  const text = digits === null ? String(Number(value.toPrecision(3))) : value.toFixed(digits);
  return Number(text) === 0 ? text.replace("-", "") : text;
}

// Each row its line: of several settings of one estimator the best on validation has its colour, the others fade.
function lines(data, rows) {
  const several = new Map();
  for (const row of rows) several.set(row.estimator, [...(several.get(row.estimator) || []), row]);
  const found = new Map();
  for (const [estimator, own] of several) {
    const look = data.looks[estimator];
    const color = look.colors[theme()];
    const ordered = [...own].sort((a, b) => a.place - b.place);
    ordered.forEach((row, k) => {
      const share = k / Math.max(own.length - 1, 1);
      const dash = own.length > 1 ? DASHES[k % DASHES.length] : look.dash;
      found.set(row, { ...look, dash, color: mixed(color, paper(), 0.6 * share), hollow: dash !== "solid" });
    });
  }
  return found;
}

function mixed(one, two, share) {
  const part = (color, k) => parseInt(color.slice(2 * k + 1, 2 * k + 3), 16);
  const mean = (k) => Math.round((1 - share) * part(one, k) + share * part(two, k));
  return `#${[0, 1, 2].map((k) => mean(k).toString(16).padStart(2, "0")).join("")}`;
}

function isLog(metric, state) {
  return state.log === null ? metric.log : state.log;
}

function curveTraces(data, comparison, rows, state, looks, metric) {
  const bands = [],
    singles = [],
    means = [];
  for (const row of rows) {
    const curves = row.curves[state.metric];
    if (!curves) continue;
    const look = looks.get(row);
    const line = { color: look.color, width: 2, dash: look.dash };
    const meta = { estimator: row.estimator, setting: row.setting };
    const mean = curves.mean;
    if (mean) {
      const x = comparison.grids[mean.grid][state.x];
      if (mean.low)
        bands.push({
          x: [...x, ...x.slice().reverse()],
          y: [...mean.high, ...mean.low.slice().reverse()],
          meta: { ...meta, kind: "band" },
          mode: "lines",
          line: { width: 0 },
          fill: "toself",
          fillcolor: look.color,
          opacity: rows.length > 8 ? 0.09 : 0.17,
          hoverinfo: "skip",
        });
      means.push(meanTrace(data, row, mean, x, look, line, { ...meta, kind: "mean" }, metric));
      for (const [number, values] of state.singles ? Object.entries(curves.runs) : [])
        singles.push(singleTrace(data.runs[number], x, values, { ...line, width: 1 }, 0.55, meta, metric));
    }
    for (const [number, other] of state.lost ? Object.entries(curves.others) : []) {
      const x = comparison.grids[other.grid][state.x];
      singles.push(singleTrace(data.runs[number], x, other.values, { ...line, width: 1 }, 0.9, meta, metric));
    }
  }
  return [...bands, ...singles, ...means];
}

function meanTrace(data, row, mean, x, look, line, meta, { digits }) {
  const about = mean.values.map((value, k) => {
    const text = rounded(value, digits);
    if (!mean.low) return `${text}, one seed`;
    return `${text} [${rounded(mean.low[k], digits)}, ${rounded(mean.high[k], digits)}], ${mean.n} seeds`;
  });
  return {
    x,
    y: mean.values,
    customdata: about,
    meta,
    mode: "lines+markers",
    line,
    marker: {
      symbol: look.symbol,
      size: look.size,
      maxdisplayed: 9,
      color: look.hollow ? paper() : look.color,
      line: { color: look.color, width: 1.3 },
    },
    hovertemplate: `<b>${plain(look.label)}</b> ${plain(row.short)}<br>%{x}: %{customdata}<extra></extra>`,
  };
}

function singleTrace(run, x, y, line, opacity, meta, { digits }) {
  return {
    x,
    y,
    line,
    opacity,
    customdata: y.map((value) => rounded(value, digits)),
    meta: { ...meta, kind: "run", run: run.run },
    mode: y.length > 1 ? "lines" : "markers",
    marker: { color: line.color, size: 4 },
    hovertemplate: `${plain(run.run)}, ${run.status}<br>%{x}: %{customdata}<extra></extra>`,
  };
}

// The range of what is late in training, so that the first steps do not flatten the rest; none on a log scale.
function lateRange(traces, optimum) {
  const values = [...optimum];
  for (const trace of traces) {
    if (trace.meta.kind === "band") continue;
    const from = EARLY * trace.x[trace.x.length - 1];
    values.push(...trace.y.filter((value, k) => value !== null && trace.x[k] >= from));
  }
  if (!values.length) return null;
  const low = values.reduce((a, b) => Math.min(a, b)),
    high = values.reduce((a, b) => Math.max(a, b));
  return high > low ? [low - 0.08 * (high - low), high + 0.06 * (high - low)] : null;
}

function plotLayout(data, state, metric, optimum) {
  const axis = {
    gridcolor: variable("--line"),
    linecolor: variable("--axis"),
    zeroline: false,
    automargin: true,
    ticks: "outside",
    tickcolor: variable("--axis"),
  };
  const color = variable("--ink");
  const hover = { bgcolor: variable("--wash"), bordercolor: variable("--axis"), font: { color } };
  return {
    margin: { l: 8, r: 12, t: 10, b: 8 },
    showlegend: false,
    hovermode: "closest",
    hoverlabel: hover,
    paper_bgcolor: paper(),
    plot_bgcolor: paper(),
    modebar: { bgcolor: "rgba(0,0,0,0)", color: variable("--axis"), activecolor: color },
    font: { family: getComputedStyle(document.body).fontFamily, size: 13, color },
    xaxis: { ...axis, title: { text: data.axes[state.x], standoff: 8 }, rangemode: "tozero" },
    yaxis: {
      ...axis,
      title: { text: metric ? plain(metric.label) : "", standoff: 8 },
      type: metric && isLog(metric, state) ? "log" : "linear",
      exponentformat: "power",
    },
    shapes: optimum.map((y) => ({
      type: "line",
      xref: "paper",
      x0: 0,
      x1: 1,
      y0: y,
      y1: y,
      line: { color: variable("--axis"), width: 1 },
      layer: "below",
    })),
    annotations: optimum.map((y) => ({
      text: "optimum",
      xref: "paper",
      x: 1,
      y,
      showarrow: false,
      xanchor: "right",
      yanchor: "top",
      font: { size: 11, color: variable("--quiet") },
    })),
  };
}

function drawCurves(data, comparison, rows, state) {
  const metric = comparison.metrics.find((one) => one.name === state.metric);
  const looks = lines(data, rows);
  const traces = metric ? curveTraces(data, comparison, rows, state, looks, metric) : [];
  const optimum = metric && metric.name === "valid_value" ? comparison.optimum : [];
  const layout = plotLayout(data, state, metric, optimum);
  const range = metric && !isLog(metric, state) ? lateRange(traces, optimum) : null;
  if (range) layout.yaxis.range = range;
  if (!traces.length) {
    const middle = { xref: "paper", yref: "paper", x: 0.5, y: 0.5, showarrow: false };
    layout.annotations = [{ ...middle, text: whyNoCurve(comparison, rows, metric) }];
  }
  const drawn = Plotly.react("plot", traces, layout, PLOT);
  const means = traces.filter((trace) => trace.meta.kind === "mean").length;
  byId("plot").setAttribute(
    "aria-label",
    `${metric ? metric.label : "no metric"} against ${data.axes[state.x]}, ${means} curves; the table has the final numbers`,
  );
  byId("curve-note").textContent = curveNote(comparison, rows, state, metric);
  drawLegend(data, rows, looks);
  return drawn;
}

// Where the window is wide, the list of estimators says it unless one of them has several settings.
function drawLegend(data, rows, looks) {
  const one = new Set(rows.map((row) => row.estimator)).size === rows.length;
  byId("legend").className = one ? "legend said" : "legend";
  byId("legend").replaceChildren(
    ...rows.map((row) => {
      const label = data.looks[row.estimator].label;
      return make("li", {}, swatch(looks.get(row)), one ? label : `${label}, ${row.short || "the only one"}`);
    }),
  );
}

function whyNoCurve(comparison, rows, metric) {
  if (!metric) return "no run has recorded a curve yet";
  if (!comparison.rows.length) return "no run yet";
  return rows.length ? "no finished run has this curve" : "no setting passes the filters";
}

function curveNote(comparison, rows, state, metric) {
  if (!metric) return "";
  const words = [
    `${metric.log ? "Geometric mean" : "Mean"} over the seeds that finished, with its pointwise 95 % interval (Student's t); settings are never averaged together.`,
  ];
  if (metric.about) words.push(metric.about);
  const grids = rows
    .map((row) => row.curves[state.metric])
    .filter((curves) => curves && curves.mean)
    .map((curves) => comparison.grids[curves.mean.grid]);
  const thinned = grids.filter((grid) => grid.steps > grid.step.length);
  if (thinned.length)
    words.push(
      `Of up to ${Math.max(...thinned.map((grid) => grid.steps))} recorded steps ${thinned[0].step.length} are drawn, first and last included; each is exact.`,
    );
  if (!isLog(metric, state)) words.push("Shown is the range of the later steps; a double click shows all.");
  else if (!metric.log) words.push("What is not positive has no place on a logarithmic scale.");
  if (state.x === "seconds")
    words.push("Seconds: training time of the pack that a run was part of, evaluations left out, averaged over seeds.");
  if (state.metric === "gradient_variance")
    words.push("Estimators that rescale their gradient (variance normalisation) cannot be compared with the others.");
  return words.join(" ");
}
