"use strict";
// The tabs of comparisons, made when they are opened, and the block that says how to train it again.

const TABS = [
  ["pairs", "Pairs", pairsTab],
  ["tasks", "All tasks", tasksTab],
  ["images", "Samples and reconstructions", imagesTab],
  ["variance", "Gradient variance", varianceTab],
  ["leaderboard", "Leaderboard", leaderboardTab],
];

function drawTabs(data, comparison, state, onChange) {
  const buttons = TABS.map(([key, label]) =>
    make(
      "button",
      {
        type: "button",
        role: "tab",
        id: `tab-${key}`,
        "aria-selected": String(key === state.tab),
        "aria-controls": "panel",
        tabindex: key === state.tab ? 0 : -1,
        click: () => onChange(key),
        keydown: (event) => turn(event, key, onChange),
      },
      label,
    ),
  );
  byId("tabs").replaceChildren(...buttons);
  const [, , tab] = TABS.find(([key]) => key === state.tab);
  byId("panel").setAttribute("aria-labelledby", `tab-${state.tab}`);
  byId("panel").replaceChildren(...tab(data, comparison));
}

// The arrow keys go from tab to tab.
function turn(event, key, onChange) {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  const place = TABS.findIndex(([own]) => own === key);
  const [next] = TABS[(place + step + TABS.length) % TABS.length];
  onChange(next);
  byId(`tab-${next}`).focus();
}

function empty(text) {
  return [make("p", { class: "empty" }, text)];
}

function pairsTab(data, comparison) {
  if (!comparison.pairs) return empty("No pair to compare: it takes two estimators with finished runs.");
  return plainTable(comparison.pairs, "Of the settings chosen on validation, whatever the filters show.");
}

function tasksTab(data) {
  if (!data.together) return empty("One number over all tasks takes an estimator with finished runs on two tasks.");
  return plainTable(data.together);
}

function imagesTab(data, comparison) {
  if (!comparison.images.length) return empty("No pictures: no finished run has recorded any.");
  const kinds = { originals: "original", reconstructions: "reconstruction", samples: "sample from the prior" };
  const blocks = comparison.images.map(({ estimator, strips }) =>
    make(
      "section",
      { class: "pictures" },
      make("h3", {}, estimatorName(data, estimator)),
      ...Object.entries(strips).map(([kind, src]) =>
        make(
          "figure",
          {},
          make("img", { src, alt: `${kind} of ${data.looks[estimator].label}` }),
          make("figcaption", {}, kinds[kind]),
        ),
      ),
    ),
  );
  return [make("p", { class: "note" }, "Of the first finished seed of the chosen setting."), ...blocks];
}

function varianceTab(data, comparison) {
  if (!comparison.variance.length)
    return empty("No gradients were measured: a run with basket=... measures several estimators at its parameters.");
  return comparison.variance.flatMap((table) => plainTable(table));
}

function leaderboardTab(data, comparison) {
  if (!comparison.leaderboard.length) return empty("No committed result is of this task and data set.");
  return comparison.leaderboard.flatMap((table) => plainTable(table, "Committed results, whatever the filters show."));
}

function plainTable({ title, header, rows, notes, labels }, about = "") {
  const cell = (tag) => (text, k) => make(tag, { class: k < labels ? "name" : "number" }, text);
  const table = make(
    "table",
    {},
    make("thead", {}, make("tr", {}, ...header.map(cell("th")))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map(cell("td"))))),
  );
  return [
    make("p", {}, [title, about].filter(Boolean).join(". ")),
    make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": title }, table),
    make("ul", { class: "note" }, ...notes.map((line) => make("li", {}, line))),
  ];
}

function drawReproduce({ commands, commits, versions, sentences }) {
  const facts = [
    [commits.length > 1 ? "commits" : "commit", commits.join(", ") || "not recorded"],
    ["versions", Object.entries(versions).map((pair) => pair.join(" ")).join(", ") || "not recorded"],
  ];
  byId("reproduce-content").replaceChildren(
    make("p", {}, "The settings in the table, each chosen on validation, are trained again by"),
    ...(commands.length
      ? commands.map((line) => make("pre", { class: "command" }, line))
      : empty("No command: the records do not have the overrides.")),
    make("dl", {}, ...facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)))),
    make("ul", { class: "note" }, ...sentences.map((line) => make("li", {}, line))),
  );
}
