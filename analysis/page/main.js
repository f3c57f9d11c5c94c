"use strict";
// What is chosen on the page, the controls that choose it, and what has to be drawn anew.

const data = JSON.parse(byId("data").textContent);
let state = {};

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
  updateRuns();
  byId("shown").textContent =
    `${rows.length} of ${comparison().rows.length} settings shown.` +
    (Object.values(state.filters).some(Boolean)
      ? " What an estimator does not have (a temperature) does not hide it."
      : "") +
    (whole
      ? ""
      : " Best and ties are marked only when the chosen setting of every estimator is shown, and nothing else.");
  const drawn = drawCurves(data, comparison(), rows, state);
  keep();
  return drawn;
}

function updateRuns() {
  const runs = shownRuns(data, comparison(), state);
  const elsewhere = data.runs.filter((run) => hasStatus(run, state.status)).length - runs.length;
  drawRuns(data, runs, state);
  byId("runs-note").textContent =
    `${runs.length} of the task and the filters above` + (elsewhere ? `; ${elsewhere} more outside of them.` : ".");
}

// The address keeps what is chosen.
function keep() {
  const hash = toHash(data, state);
  byId("link").setAttribute("href", hash);
  history.replaceState(null, "", hash);
  hintAtMore();
}

function showTab(key) {
  state.tab = key;
  drawTabs(data, comparison(), state, showTab);
  keep();
}

// Everything of the state, controls included.
function show() {
  const { title, caption, notes, reproduce } = comparison();
  taskChoices();
  curveChoices();
  estimatorChips();
  byId("table-caption").textContent = `${title}. ${caption[0]}`;
  byId("table-notes").replaceChildren(...[...caption.slice(1), ...notes].map((line) => make("li", {}, line)));
  const statuses = [["lost", "not finished"], ["all", "all"], ...data.counts.map(([word]) => [word, word])];
  byId("run-choices").replaceChildren(choice("status", statuses, state.status, change("status")));
  drawTabs(data, comparison(), state, showTab);
  drawReproduce(reproduce);
  return update();
}

// Another task and data set, with filters of its own.
function choose(number) {
  const metric = state.metric;
  state = { ...state, comparison: Number(number), filters: {} };
  if (!comparison().metrics.some((one) => one.name === metric)) state.metric = firstMetric(comparison());
  return show();
}

function taskChoices() {
  const tasks = data.comparisons.map((one, k) => [
    String(k),
    one.data === "none" ? one.task : `${one.task} on ${one.data}`,
  ]);
  const settings = [
    ["chosen", "best on validation"],
    ["every", "every one"],
  ];
  byId("choices").replaceChildren(
    choice("task", tasks, String(state.comparison), choose),
    ...comparison().filters.map(({ column, label, values }) => {
      const options = [["", "any"], ...values.map((value) => [value, value])];
      return choice(label, options, state.filters[column] || "", (value) => {
        state.filters[column] = value;
        update();
      });
    }),
    radios("settings", "settings", settings, state.settings, change("settings")),
  );
}

function curveChoices() {
  const { metrics } = comparison();
  const here = metrics.find((metric) => metric.name === state.metric);
  const choose = (name) => {
    state.log = null;
    state.metric = name;
    curveChoices();
    update();
  };
  byId("curve-choices").replaceChildren(
    choice(
      "curve",
      metrics.map(({ name, label }) => [name, label]),
      state.metric,
      choose,
    ),
    radios("against", "x", Object.entries(data.axes), state.x, change("x")),
    checkbox("log scale", Boolean(here && isLog(here, state)), change("log")),
    checkbox("each seed", state.singles, change("singles")),
    checkbox("runs that did not finish", state.lost, change("lost")),
  );
}

function estimatorChips() {
  const names = Object.keys(data.looks).filter((name) => comparison().rows.some((row) => row.estimator === name));
  byId("estimators").replaceChildren(...names.map(estimatorChip));
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
  return make("label", {}, box, swatch(ownLook(data, name)), data.looks[name].label);
}

function setAll(shown) {
  state.hidden = new Set(shown ? [] : Object.keys(data.looks));
  for (const box of byId("estimators").querySelectorAll("input")) box.checked = shown;
  update();
}

function counts() {
  const words = data.counts.map(([word, n]) => `${n} ${word}`).join(", ");
  const repeated = data.repeated ? ` ${data.repeated} runs stand in more than one sweep and count once.` : "";
  byId("counts").textContent = `${data.runs.length} runs: ${words}.${repeated}`;
  if (data.damaged.length) {
    const list = make("ul", {}, ...data.damaged.map((line) => make("li", {}, line)));
    byId("counts").after(
      make("details", { class: "note" }, make("summary", {}, `${data.damaged.length} damaged records, left out`), list),
    );
  }
}

function open() {
  state = fromHash(data, location.hash);
  if (!data.runs.some((run) => run.status === "finished")) state.lost = true;
  return show();
}

// Links to sections scroll there and leave the address, which has the state, alone.
function goTo(event) {
  const section = byId(event.target.getAttribute("href").slice(1));
  event.preventDefault();
  section.scrollIntoView();
  section.focus({ preventScroll: true });
}

function start() {
  counts();
  byId("filter-box").open = window.matchMedia("(min-width: 1000px)").matches;
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("all-estimators").addEventListener("click", () => setAll(true));
  byId("no-estimators").addEventListener("click", () => setAll(false));
  for (const link of document.querySelectorAll("nav a, .skip")) link.addEventListener("click", goTo);
  themeChoice(() => show());
  window.addEventListener("resize", hintAtMore);
  window.addEventListener("hashchange", () => open());
  gumbelSoftmax(JSON.parse(byId("noise").textContent).noise);
  open().then(() => {
    document.body.dataset.ready = "true";
  });
}

start();
