"use strict";
// Which settings and runs are shown. A row is an estimator with one setting; its place is its rank on validation.

// An estimator without a temperature, say, is not touched by a choice of temperature; nor a cell that has no setting.
function passes(values, filters) {
  return Object.entries(filters).every(
    ([column, wanted]) => !wanted || [wanted, "none", undefined].includes(values[column]),
  );
}

function shownRows(comparison, state) {
  const rows = comparison.rows.filter((row) => !state.hidden.has(row.estimator) && passes(row.values, state.filters));
  if (state.settings === "every") return rows;
  const best = new Map();
  for (const row of rows) {
    if (!best.has(row.estimator) || row.place < best.get(row.estimator).place) best.set(row.estimator, row);
  }
  return rows.filter((row) => best.get(row.estimator) === row);
}

function shownRuns(data, comparison, state) {
  return data.runs.filter(
    (run) =>
      run.task === comparison.task &&
      run.data === comparison.data &&
      !state.hidden.has(run.estimator) &&
      passes(run.values, state.filters) &&
      hasStatus(run, state.status),
  );
}

function hasStatus(run, status) {
  return status === "all" || run.status === status || (status === "lost" && run.status !== "finished");
}
