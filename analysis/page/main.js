"use strict";
// What is chosen on the page, the controls that choose it, and what has to be drawn anew.

const data = JSON.parse(byId("data").textContent);
const state = {
  comparison: 0,
  hidden: new Set(),
  filters: {},
  settings: "chosen",
  metric: "",
  x: "step",
  singles: false,
  lost: false,
  status: "lost",
};

function comparison() {
  return data.comparisons[state.comparison];
}

function change(name) {
  return (value) => {
    state[name] = value;
    update();
  };
}

function update() {
  const rows = shownRows(comparison(), state);
  const names = new Set(comparison().rows.map((row) => row.estimator));
  const whole = rows.length === names.size && rows.every((row) => row.place === 0);
  drawResults(data, comparison(), rows, whole);
  const runs = shownRuns(data, comparison(), state);
  const elsewhere = data.runs.filter((run) => hasStatus(run, state.status)).length - runs.length;
  drawRuns(data, runs);
  byId("runs-note").textContent =
    `${runs.length} of the task and the filters above` + (elsewhere ? `; ${elsewhere} more outside of them.` : ".");
  byId("shown").textContent =
    `${rows.length} of ${comparison().rows.length} settings shown.` +
    (Object.values(state.filters).some(Boolean)
      ? " What an estimator does not have (a temperature) does not hide it."
      : "") +
    (whole
      ? ""
      : " Best and ties are marked only when the chosen setting of every estimator is shown, and nothing else.");
  return drawCurves(data, comparison(), rows, state);
}

// The controls of a task and data set: estimators, filters, metrics and statuses that it has.
function choose(number) {
  state.comparison = Number(number);
  state.filters = {};
  const { filters, metrics, title, caption, notes, rows } = comparison();
  if (!metrics.some((metric) => metric.name === state.metric)) state.metric = metrics.length ? metrics[0].name : "";
  const tasks = data.comparisons.map((one, k) => [
    String(k),
    one.data === "none" ? one.task : `${one.task} on ${one.data}`,
  ]);
  byId("choices").replaceChildren(
    choice("task", tasks, String(state.comparison), choose),
    ...filters.map(({ column, label, values }) => {
      const options = [["", "any"], ...values.map((value) => [value, value])];
      return choice(label, options, "", (value) => {
        state.filters[column] = value;
        update();
      });
    }),
    radios(
      "settings",
      "settings",
      [
        ["chosen", "best on validation"],
        ["every", "every one"],
      ],
      state.settings,
      change("settings"),
    ),
  );
  byId("curve-choices").replaceChildren(
    choice(
      "curve",
      metrics.map(({ name, label }) => [name, label]),
      state.metric,
      change("metric"),
    ),
    radios("against", "x", Object.entries(data.axes), state.x, change("x")),
    checkbox("each seed", state.singles, change("singles")),
    checkbox("runs that did not finish", state.lost, change("lost")),
  );
  byId("estimators").replaceChildren(
    ...Object.keys(data.looks)
      .filter((name) => rows.some((row) => row.estimator === name))
      .map(estimatorChip),
  );
  byId("table-caption").textContent = `${title}. ${caption[0]}`;
  byId("table-notes").replaceChildren(...[...caption.slice(1), ...notes].map((line) => make("li", {}, line)));
  const statuses = [["lost", "not finished"], ["all", "all"], ...data.counts.map(([word]) => [word, word])];
  byId("run-choices").replaceChildren(choice("status", statuses, state.status, change("status")));
  return update();
}

function estimatorChip(name) {
  const toggle = () => {
    if (box.checked) state.hidden.delete(name);
    else state.hidden.add(name);
    update();
  };
  const box = make("input", {
    type: "checkbox",
    name: "estimator",
    value: name,
    checked: !state.hidden.has(name),
    change: toggle,
  });
  return make("label", {}, box, swatch(data.looks[name]), data.looks[name].label);
}

function setAll(shown) {
  state.hidden = new Set(shown ? [] : Object.keys(data.looks));
  for (const box of byId("estimators").querySelectorAll("input")) box.checked = shown;
  update();
}

function start() {
  const counts = data.counts.map(([word, n]) => `${n} ${word}`).join(", ");
  const repeated = data.repeated ? ` ${data.repeated} runs stand in more than one sweep and count once.` : "";
  byId("counts").textContent = `${data.runs.length} runs: ${counts}.${repeated}`;
  if (data.damaged.length) {
    const list = make("ul", {}, ...data.damaged.map((line) => make("li", {}, line)));
    byId("counts").after(
      make("details", { class: "note" }, make("summary", {}, `${data.damaged.length} damaged records, left out`), list),
    );
  }
  state.lost = !data.runs.some((run) => run.status === "finished");
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("all-estimators").addEventListener("click", () => setAll(true));
  byId("no-estimators").addEventListener("click", () => setAll(false));
  gumbelSoftmax(JSON.parse(byId("noise").textContent).noise);
  choose(0).then(() => {
    document.body.dataset.ready = "true";
  });
}

start();
