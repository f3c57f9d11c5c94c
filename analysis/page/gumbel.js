"use strict";
// A Gumbel-Softmax to play with: this page's formula on noise that the library's sampler drew.

const SHOWN = 11;
const WEIGHTS = [24, 40, 8, 16, 12, 20, 6, 30, 10, 14];

// y = softmax((log p + g) / temperature); p, noise [classes].
function relaxed(probabilities, noise, temperature) {
  const scores = probabilities.map((p, k) => (Math.log(p) + noise[k]) / temperature);
  const highest = Math.max(...scores);
  const weights = scores.map((score) => Math.exp(score - highest));
  const total = weights.reduce((a, b) => a + b);
  return weights.map((weight) => weight / total);
}

function gumbelSoftmax(noise) {
  const chosen = { classes: 5, weights: [...WEIGHTS], temperature: 1, first: 0 };

  function draw() {
    const weights = chosen.weights.slice(0, chosen.classes);
    const total = weights.reduce((a, b) => a + b);
    const p = weights.map((weight) => weight / total);
    const samples = noise.map((row) => relaxed(p, row, chosen.temperature));
    const largest = samples.map((sample) => sample.indexOf(Math.max(...sample)));
    byId("temperature-value").textContent = chosen.temperature.toFixed(2);
    p.forEach((probability, k) => {
      fill(`p-${k}`, probability);
      fill(`mean-${k}`, samples.reduce((sum, sample) => sum + sample[k], 0) / samples.length);
      fill(`share-${k}`, largest.filter((one) => one === k).length / samples.length);
    });
    const top = samples.reduce((sum, sample, n) => sum + sample[largest[n]], 0) / samples.length;
    byId("gumbel-summary").textContent =
      `At temperature ${chosen.temperature.toFixed(2)} the largest entry of a sample is ${top.toFixed(2)} on average (1 is one-hot, ${(1 / p.length).toFixed(2)} uniform).`;
    const pictures = Array.from({ length: SHOWN }, (_, n) => {
      const number = (chosen.first + n) % samples.length;
      return bars(samples[number], `sample ${number + 1}`, "sample");
    });
    byId("samples").replaceChildren(bars(p, "exact p", "exact"), ...pictures);
  }

  function fill(id, value) {
    byId(id).textContent = value.toFixed(3);
    byId(id).dataset.value = value;
  }

  function classesTable() {
    const rows = Array.from({ length: chosen.classes }, (_, k) => {
      const slide = (event) => {
        chosen.weights[k] = Number(event.target.value);
        draw();
      };
      const slider = make("input", {
        type: "range",
        min: 1,
        max: 100,
        value: chosen.weights[k],
        id: `weight-${k}`,
        "aria-label": `weight of class ${k + 1}`,
        input: slide,
      });
      const numbers = ["p", "mean", "share"].map((name) => make("td", { class: "number", id: `${name}-${k}` }));
      return make("tr", {}, make("td", { class: "number" }, String(k + 1)), make("td", {}, slider), ...numbers);
    });
    const heads = ["class", "weight", "p", "mean of y", "largest"].map((text) => make("th", { scope: "col" }, text));
    byId("classes-table").replaceChildren(
      make("table", {}, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...rows)),
    );
  }

  for (let k = 3; k <= noise[0].length; k++) byId("classes").append(make("option", { value: k }, String(k)));
  byId("classes").value = chosen.classes;
  byId("classes").addEventListener("change", () => {
    chosen.classes = Number(byId("classes").value);
    classesTable();
    draw();
  });
  byId("temperature").addEventListener("input", () => {
    chosen.temperature = 10 ** Number(byId("temperature").value);
    byId("temperature").setAttribute("aria-valuetext", chosen.temperature.toFixed(2));
    draw();
  });
  byId("resample").addEventListener("click", () => {
    chosen.first = (chosen.first + SHOWN) % noise.length;
    draw();
  });
  classesTable();
  draw();
}

// A small bar chart of one distribution; the exact numbers are in data-values.
function bars(values, caption, kind) {
  const wide = 100 / values.length;
  const shapes = values.map((value, k) =>
    makeSvg("rect", {
      x: k * wide + wide * 0.12,
      width: wide * 0.76,
      y: 100 - 100 * value,
      height: 100 * value,
      class: kind,
    }),
  );
  const text = `${caption}: ${values.map((value) => value.toFixed(2)).join(", ")}`;
  const picture = makeSvg(
    "svg",
    { viewBox: "0 0 100 100", preserveAspectRatio: "none", role: "img", "aria-label": text },
    ...shapes,
  );
  return make("figure", { "data-values": JSON.stringify(values) }, picture, make("figcaption", {}, caption));
}
