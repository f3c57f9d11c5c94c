"use strict";
// Curves: the mean over seeds with its interval. Every number comes from Python; nothing is averaged here.

const EARLY = 0.2; // losses of this share of the steps may lie above the visible range: they fall by hundreds of nats

// Plotly reads a few HTML tags in its texts.
function plain(text) {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

function curveTraces(data, comparison, rows, state) {
  const bands = [],
    singles = [],
    means = [];
  for (const row of rows) {
    const curves = row.curves[state.metric];
    if (!curves) continue;
    const look = data.looks[row.estimator];
    const strength = row.place === 0 || state.settings !== "every" ? 1 : 0.5;
    const line = { color: look.color, width: 2, dash: look.dash };
    const meta = { estimator: row.estimator, setting: row.setting };
    const mean = curves.mean;
    if (mean) {
      const x = comparison.grids[mean.grid][state.x];
      if (mean.low) {
        bands.push({
          x: [...x, ...x.slice().reverse()],
          y: [...mean.high, ...mean.low.slice().reverse()],
          meta: { ...meta, kind: "band" },
          mode: "lines",
          line: { width: 0 },
          fill: "toself",
          fillcolor: look.color,
          opacity: (rows.length > 8 ? 0.09 : 0.17) * strength,
          hoverinfo: "skip",
        });
      }
      const about = mean.low
        ? mean.low.map((low, k) => `[${low}, ${mean.high[k]}], ${mean.n} seeds`)
        : x.map(() => "one seed");
      means.push({
        x,
        y: mean.values,
        customdata: about,
        meta: { ...meta, kind: "mean" },
        mode: "lines+markers",
        opacity: strength,
        line,
        marker: {
          symbol: look.symbol,
          size: look.size,
          maxdisplayed: 9,
          color: look.hollow ? "#fff" : look.color,
          line: { color: look.color, width: 1.3 },
        },
        hovertemplate: `<b>${plain(look.label)}</b> ${plain(row.setting)}<br>%{x}: %{y}<br>%{customdata}<extra></extra>`,
      });
      for (const [number, values] of state.singles ? Object.entries(curves.runs) : []) {
        singles.push(singleTrace(data.runs[number], x, values, { ...line, width: 1 }, 0.55, meta));
      }
    }
    for (const [number, other] of state.lost ? Object.entries(curves.others) : []) {
      const x = comparison.grids[other.grid][state.x];
      singles.push(singleTrace(data.runs[number], x, other.values, { ...line, width: 1 }, 0.9, meta));
    }
  }
  return [...bands, ...singles, ...means];
}

function singleTrace(run, x, y, line, opacity, meta) {
  return {
    x,
    y,
    line,
    opacity,
    meta: { ...meta, kind: "run", run: run.run },
    mode: y.length > 1 ? "lines" : "markers",
    marker: { color: line.color, size: 4 },
    hovertemplate: `${plain(run.run)}, ${run.status}<br>%{x}: %{y}<extra></extra>`,
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

function drawCurves(data, comparison, rows, state) {
  const metric = comparison.metrics.find((one) => one.name === state.metric);
  const traces = metric ? curveTraces(data, comparison, rows, state) : [];
  const optimum = metric && metric.name === "valid_value" ? comparison.optimum : [];
  const range = !metric || metric.log ? null : lateRange(traces, optimum);
  const axis = {
    gridcolor: "#eceff1",
    linecolor: "#9aa3ab",
    zeroline: false,
    automargin: true,
    ticks: "outside",
    tickcolor: "#9aa3ab",
  };
  const layout = {
    margin: { l: 8, r: 12, t: 10, b: 8 },
    showlegend: false,
    hovermode: "closest",
    paper_bgcolor: "#fff",
    plot_bgcolor: "#fff",
    font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: "#1d2329" },
    xaxis: { ...axis, title: { text: data.axes[state.x], standoff: 8 }, rangemode: "tozero" },
    yaxis: {
      ...axis,
      title: { text: metric ? plain(metric.label) : "", standoff: 8 },
      type: metric && metric.log ? "log" : "linear",
      exponentformat: "power",
    },
    shapes: optimum.map((y) => ({
      type: "line",
      xref: "paper",
      x0: 0,
      x1: 1,
      y0: y,
      y1: y,
      line: { color: "#888", width: 1 },
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
      font: { size: 11, color: "#666" },
    })),
  };
  if (range) layout.yaxis.range = range;
  if (!traces.length)
    layout.annotations = [{ text: "no curve to show", xref: "paper", yref: "paper", x: 0.5, y: 0.5, showarrow: false }];
  const config = {
    displaylogo: false,
    responsive: true,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
  };
  const drawn = Plotly.react("plot", traces, layout, config);
  const means = traces.filter((trace) => trace.meta.kind === "mean").length;
  byId("plot").setAttribute(
    "aria-label",
    `${metric ? metric.label : "no metric"} against ${data.axes[state.x]}, ${means} curves; the table has the final numbers`,
  );
  byId("curve-note").textContent = curveNote(comparison, rows, state, metric);
  return drawn;
}

function curveNote(comparison, rows, state, metric) {
  if (!metric) return "";
  const words = [
    `${metric.log ? "Geometric mean" : "Mean"} over the seeds that finished, with its pointwise 95 % interval (Student's t); settings are never averaged together.`,
  ];
  const grids = rows
    .map((row) => row.curves[state.metric])
    .filter((curves) => curves && curves.mean)
    .map((curves) => comparison.grids[curves.mean.grid]);
  const thinned = grids.filter((grid) => grid.steps > grid.step.length);
  if (thinned.length)
    words.push(
      `Of up to ${Math.max(...thinned.map((grid) => grid.steps))} recorded steps ${thinned[0].step.length} are drawn, first and last included; each is exact.`,
    );
  if (!metric.log) words.push("Shown is the range of the later steps; a double click shows all.");
  if (state.x === "seconds")
    words.push("Seconds: training time of the pack that a run was part of, evaluations left out, averaged over seeds.");
  if (state.metric === "gradient_variance")
    words.push("Estimators that rescale their gradient (variance normalisation) cannot be compared with the others.");
  return words.join(" ");
}
