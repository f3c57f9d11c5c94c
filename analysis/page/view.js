"use strict";
// How the page looks, and the link that keeps what is chosen: theme, hints at hidden columns, state in the address.

const DEFAULTS = {
  settings: "chosen",
  metric: "",
  x: "step",
  log: null,
  singles: false,
  lost: false,
  status: "lost",
  tab: "pairs",
};
const SCHEME = window.matchMedia("(prefers-color-scheme: dark)");

function theme() {
  return document.documentElement.dataset.theme;
}

function variable(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function paper() {
  return variable("--paper");
}

// Light, dark, or as the system has it.
function themeChoice(onChange) {
  let chosen = "automatic";
  const apply = () => {
    document.documentElement.dataset.theme = chosen === "automatic" ? (SCHEME.matches ? "dark" : "light") : chosen;
  };
  apply();
  const set = (value) => {
    chosen = value;
    apply();
    onChange();
  };
  SCHEME.addEventListener("change", () => set(chosen));
  const options = ["automatic", "light", "dark"].map((name) => [name, name]);
  byId("theme-choice").replaceChildren(choice("theme", options, chosen, set));
}

// A table that is cut says so at its edge.
function hintAtMore() {
  for (const box of document.querySelectorAll(".scroll")) {
    const left = box.scrollWidth - box.clientWidth - box.scrollLeft;
    box.dataset.more = left > 1 ? "right" : "";
    box.onscroll = hintAtMore;
  }
}

function toHash(data, state) {
  const words = new URLSearchParams();
  const { task, data: set } = data.comparisons[state.comparison];
  if (state.comparison) words.set("task", `${task}|${set}`);
  for (const name of state.hidden) words.append("hide", name);
  for (const [column, value] of Object.entries(state.filters)) if (value) words.set(`where.${column}`, value);
  for (const [name, value] of Object.entries(DEFAULTS))
    if (state[name] !== value && !(name === "metric" && state[name] === firstMetric(data.comparisons[state.comparison])))
      words.set(name, String(state[name]));
  return `#${words}`;
}

function firstMetric(comparison) {
  return comparison.metrics.length ? comparison.metrics[0].name : "";
}

// What a link says; what it says wrongly, or not at all, is as on a page that is opened without one.
function fromHash(data, hash) {
  const words = new URLSearchParams(hash.slice(1));
  const place = data.comparisons.findIndex((one) => `${one.task}|${one.data}` === words.get("task"));
  const state = { ...DEFAULTS, comparison: Math.max(place, 0), hidden: new Set(), filters: {} };
  const here = data.comparisons[state.comparison];
  for (const name of words.getAll("hide")) if (data.looks[name]) state.hidden.add(name);
  for (const { column, values } of here.filters) {
    const value = words.get(`where.${column}`);
    if (values.includes(value)) state.filters[column] = value;
  }
  const flags = { true: true, false: false };
  const allowed = {
    settings: ["chosen", "every"],
    metric: here.metrics.map((metric) => metric.name),
    x: Object.keys(data.axes),
    status: ["lost", "all", ...data.counts.map(([word]) => word)],
    tab: TABS.map(([key]) => key),
  };
  for (const [name, values] of Object.entries(allowed)) if (values.includes(words.get(name))) state[name] = words.get(name);
  for (const name of ["log", "singles", "lost"]) if (words.get(name) in flags) state[name] = flags[words.get(name)];
  state.metric = state.metric || firstMetric(here);
  return state;
}
