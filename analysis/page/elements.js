"use strict";
// Elements of the page. Text goes in as text, never as HTML: names and errors come from outside.

function make(tag, attributes = {}, ...children) {
  return dress(document.createElement(tag), attributes, children);
}

function makeSvg(tag, attributes = {}, ...children) {
  return dress(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function dress(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== false && value != null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

function byId(id) {
  return document.getElementById(id);
}

// A labelled <select>; options are [value, text].
function choice(label, options, value, onChange) {
  const id = `choice-${label.replaceAll(/[^a-zA-Z0-9]/g, "-")}`;
  const select = make("select", { id, change: () => onChange(select.value) });
  for (const [key, text] of options) select.append(make("option", { value: key }, text));
  select.value = value;
  return make("div", { class: "choice" }, make("label", { for: id }, label), select);
}

// Radio buttons under a legend; options are [value, text].
function radios(legend, name, options, value, onChange) {
  const buttons = options.map(([key, text]) =>
    make(
      "label",
      {},
      make("input", { type: "radio", name, value: key, checked: key === value, change: () => onChange(key) }),
      text,
    ),
  );
  return make("fieldset", {}, make("legend", {}, legend), make("div", { class: "options" }, ...buttons));
}

function checkbox(label, checked, onChange) {
  const box = make("input", { type: "checkbox", checked, change: () => onChange(box.checked) });
  return make("label", { class: "check" }, box, label);
}

const POLYGONS = {
  circle: [20, 0],
  square: [4, 45],
  diamond: [4, 0],
  pentagon: [5, -90],
  hexagon: [6, 30],
  hexagon2: [6, 0],
  octagon: [8, 22.5],
  "triangle-up": [3, -90],
  "triangle-down": [3, 90],
  "triangle-left": [3, 180],
  "triangle-right": [3, 0],
};
const SHAPES = {
  "diamond-tall": "0,-5 3,0 0,5 -3,0",
  cross: "-1.4,-4 1.4,-4 1.4,-1.4 4,-1.4 4,1.4 1.4,1.4 1.4,4 -1.4,4 -1.4,1.4 -4,1.4 -4,-1.4 -1.4,-1.4",
  x: "-4,-2.2 -2.2,-4 0,-1.8 2.2,-4 4,-2.2 1.8,0 4,2.2 2.2,4 0,1.8 -2.2,4 -4,2.2 -1.8,0",
  star: "0,-5 1.3,-1.6 4.8,-1.5 2,0.7 2.9,4 0,2 -2.9,4 -2,0.7 -4.8,-1.5 -1.3,-1.6",
};

// The line of an estimator as it is in the curves, for lists and tables.
function swatch(look) {
  const [corners, turn] = POLYGONS[look.symbol] || [0, 0];
  const radius = look.size > 5 ? 4 : 2.4;
  const round = Array.from({ length: corners }, (_, k) => {
    const angle = ((turn + (360 * k) / corners) * Math.PI) / 180;
    return `${radius * Math.cos(angle)},${radius * Math.sin(angle)}`;
  });
  const dashes = look.dash === "solid" ? null : look.dash.replaceAll("px", "");
  return makeSvg(
    "svg",
    { class: "swatch", width: 34, height: 12, viewBox: "-17 -6 34 12", "aria-hidden": "true" },
    makeSvg("line", {
      x1: -17,
      x2: 17,
      y1: 0,
      y2: 0,
      stroke: look.color,
      "stroke-width": 2,
      "stroke-dasharray": dashes,
    }),
    makeSvg("polygon", {
      points: SHAPES[look.symbol] || round.join(" "),
      stroke: look.color,
      fill: look.hollow ? paper() : look.color,
    }),
  );
}
