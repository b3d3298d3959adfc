"use strict";
// Draws the charts of the page from the JSON in it. A chart shows the rows of its site, or of the one that is chosen.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const trainings = data.trainings.flatMap(({ trial, site, kind, tokens, ...columns }) =>
    tokens.map((count, n) => {
      const row = { trial, site, kind, tokens: count };
      for (const name of Object.keys(columns)) row[name] = columns[name][n];
      return row;
    }));
  const rows = { saes: data.saes, snapshots: data.snapshots, grid: data.grid, trainings };
  const text = { labelColor: "currentColor", titleColor: "currentColor" };
  const config = {
    aria: false, // the page gives each chart its name, and the table its numbers
    autosize: { type: "fit", contains: "padding", resize: true },
    background: "transparent",
    font: "system-ui, sans-serif",
    view: { stroke: null },
    axis: {
      ...text, domainColor: "currentColor", tickColor: "currentColor", gridColor: "currentColor", gridOpacity: 0.13,
      domainOpacity: 0.5, tickOpacity: 0.5, labelFontSize: 11, titleFontSize: 12, titleFontWeight: "normal",
    },
    legend: { ...text, titleFontWeight: "normal" },
    title: { color: "currentColor" },
  };
  const options = { renderer: "svg", actions: false, loader: { target: "_blank" } };
  const drawn = new Map();
  const chosen = document.getElementById("site");

  async function draw(chart) {
    const where = { site: chosen.value, ...chart.where };
    const values = rows[chart.data].filter(
      (row) => row[chart.needs] !== null && Object.keys(where).every((name) => row[name] === where[name]));
    const place = document.getElementById(chart.id);
    place.closest("figure").hidden = values.length === 0;
    drawn.get(chart.id)?.finalize();
    drawn.delete(chart.id);
    if (values.length) drawn.set(chart.id, await vegaEmbed(place, { ...chart.spec, data: { values }, config }, options));
  }

  const all = (charts) => Promise.all(charts.map(draw));
  chosen.addEventListener("change", () => all(data.charts.filter((chart) => !("site" in chart.where))));
  // For whoever waits for the page, as its tests do.
  window.drawn = all(data.charts).then(() => { document.body.dataset.drawn = "true"; });
})();
