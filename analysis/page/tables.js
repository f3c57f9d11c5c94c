"use strict";
// Tables that sort by a click on a head, with a row of details under each row that has some.

const sorting = new Map(); // table -> { column, descending }
const opened = new Set(); // keys of rows whose details are open
const MOST = 200; // rows of a table that are made before somebody asks for all
const whole = new Set(); // tables of which all rows were asked for

// rows: { key, cells, keys, classes, details }; keys are what a column is sorted by, details() makes the node to unfold.
function sortableTable(place, name, header, rows) {
  const order = sorting.get(name);
  const sorted = order
    ? [...rows].sort((a, b) => compare(a.keys[order.column], b.keys[order.column], order.descending))
    : rows;
  const heads = header.map((text, column) => {
    const here = order && order.column === column;
    const click = () => {
      sorting.set(name, { column, descending: here && !order.descending });
      sortableTable(place, name, header, rows);
      place.querySelectorAll("th button")[column].focus();
    };
    const button = make("button", { type: "button", click }, text);
    return make(
      "th",
      { scope: "col", "aria-sort": here ? (order.descending ? "descending" : "ascending") : "none" },
      button,
    );
  });
  const body = make("tbody");
  const shown = whole.has(name) ? sorted : sorted.slice(0, MOST);
  for (const row of shown) addRow(body, row, header.length + 1);
  place.replaceChildren(
    make("table", {}, make("thead", {}, make("tr", {}, ...heads, make("th", { scope: "col" }, "about"))), body),
  );
  if (shown.length < sorted.length) {
    const all = () => {
      whole.add(name);
      sortableTable(place, name, header, rows);
    };
    const text = `show all ${sorted.length}: the first ${MOST} are shown`;
    place.append(make("p", { class: "all" }, make("button", { type: "button", click: all }, text)));
  }
  hintAtMore();
}

function addRow(body, row, width) {
  const cells = row.cells.map((cell, k) => make("td", { class: row.classes[k] }, cell));
  const line = make("tr", { class: row.mark }, ...cells);
  body.append(line);
  if (!row.details) return void line.append(make("td"));
  const toggle = (open) => {
    button.setAttribute("aria-expanded", open);
    button.textContent = open ? "less" : "more";
    if (open) line.after(make("tr", { class: "details" }, make("td", { colspan: width }, row.details())));
    else if (line.nextSibling && line.nextSibling.className === "details") line.nextSibling.remove();
  };
  const button = make("button", {
    type: "button",
    class: "expand",
    "aria-label": `about ${row.label}`,
    click: () => {
      if (!opened.delete(row.key)) opened.add(row.key);
      toggle(opened.has(row.key));
    },
  });
  line.append(make("td", {}, button));
  toggle(opened.has(row.key));
}

// Numbers by size, texts as people sort them; what is missing stands last in both directions.
function compare(a, b, descending) {
  if (a === null || b === null) return (a === null) - (b === null);
  const difference =
    typeof a === "number" && typeof b === "number"
      ? a - b
      : String(a).localeCompare(String(b), "en", { numeric: true });
  return descending ? -difference : difference;
}

function ownLook(data, estimator) {
  const look = data.looks[estimator];
  return { ...look, color: look.colors[theme()] };
}

function estimatorName(data, estimator, look = ownLook(data, estimator)) {
  const name = make("span", { title: estimator }, look.label);
  return make("span", {}, swatch(look), name);
}

const MARKS = { best: " *", tie: " ~", "": "" };

function drawResults(data, comparison, rows, marked) {
  const header = [...comparison.header, "setting"];
  const looks = lines(data, rows);
  const made = rows.map((row) => ({
    key: `${comparison.task} ${comparison.data} ${row.estimator} ${row.setting}`,
    label: data.looks[row.estimator].label,
    mark: marked ? row.mark : "",
    cells: [
      estimatorName(data, row.estimator, looks.get(row)),
      row.cells[1] + (marked ? MARKS[row.mark] : ""),
      ...row.cells.slice(2),
      settingText(row),
    ],
    keys: [...row.keys, row.setting],
    classes: ["name", "number first", ...row.cells.slice(2).map(() => "number"), "text"],
    details: () => resultDetails(data, comparison, row),
  }));
  if (made.length) return sortableTable(byId("results"), "results", header, made);
  const text = comparison.rows.length ? "No setting passes the filters." : "No run of this task yet.";
  byId("results").replaceChildren(make("p", { class: "empty" }, text));
}

function settingText(row) {
  return row.setting === "none" ? `none of ${row.settings} finished` : row.short || "the only one";
}

function resultDetails(data, comparison, row) {
  const chosen =
    row.place === 0
      ? `the best of ${row.settings} on validation`
      : `number ${row.place + 1} of ${row.settings} on validation`;
  const facts = [["setting", `${settingText(row)}${row.settings > 1 ? ` (${chosen})` : ""}`]];
  facts.push(
    ["interval", row.n > 1 ? `95 % over ${row.n} seeds, ${row.interval}` : "none: fewer than two seeds"],
    ...row.protocol,
  );
  if (row.published) facts.push(["published", row.published]);
  const links = row.runs
    .map((number) => data.runs[number])
    .map((run) => make("a", { href: run.href }, `seed ${run.seed} (${run.status})`));
  return make(
    "div",
    {},
    make("p", {}, comparison.title),
    make("dl", {}, ...facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)))),
    make("p", { class: "links" }, ...links),
  );
}

function drawRuns(data, runs, state) {
  if (!runs.length) {
    byId("run-table").replaceChildren(make("p", { class: "empty" }, whyNoRun(data, state)));
    return;
  }
  const header = ["run", "estimator", "setting", "seed", "status", "step", "reason"];
  const made = runs.map((run) => ({
    key: run.href,
    label: run.run,
    cells: [
      make("a", { href: run.href }, run.run),
      estimatorName(data, run.estimator),
      run.setting,
      run.seed,
      make("span", { class: `status ${run.status}` }, run.status),
      run.step === null ? "-" : String(run.step),
      run.reason,
    ],
    keys: [run.run, data.looks[run.estimator].label, run.setting, Number(run.seed), run.status, run.step, run.reason],
    classes: ["text", "name", "text", "number", "", "number", "text"],
    details: run.details ? () => make("pre", {}, run.details) : null,
  }));
  sortableTable(byId("run-table"), "runs", header, made);
}

function whyNoRun(data, state) {
  const finished = data.runs.filter((run) => run.status === "finished").length;
  if (state.status === "lost" && finished === data.runs.length)
    return `All ${finished} runs finished: none failed, diverged or is under way.`;
  return `No run of this task and these filters is ${{ lost: "unfinished", all: "recorded" }[state.status] || state.status}.`;
}
