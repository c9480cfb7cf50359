"use strict";
const PLOT_OPTIONS = {displaylogo: false, responsive: true, scrollZoom: false, showTips: false,
  modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"]};
function draw(place, figure) {
  return Plotly.react(place, figure.data, figure.layout, PLOT_OPTIONS);
}
function sortBy(table, column) {
  const head = table.tHead.rows[0].cells[column];
  const up = head.getAttribute("aria-sort") !== "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const value = (row) => row.cells[column].dataset.key;
  const rows = [...table.tBodies[0].rows];
  rows.sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    // Cells without a number come last in either order.
    if ((x === undefined) !== (y === undefined)) return x === undefined ? 1 : -1;
    const order = x !== undefined ? Number(x) - Number(y)
      : a.cells[column].textContent.localeCompare(b.cells[column].textContent, "en", {numeric: true});
    return up ? order : -order;
  });
  table.tBodies[0].append(...rows);
}
document.addEventListener("click", (event) => {
  const button = event.target.closest("table.sortable th button");
  if (button) sortBy(button.closest("table"), button.closest("th").cellIndex);
});
// A printed page is narrower than a window: charts are fitted to it and back.
const PRINT_WIDTH_PX = 700;
function fit(width) {
  for (const place of document.querySelectorAll(".plot.js-plotly-plot")) {
    if (place.offsetParent !== null) Plotly.relayout(place, {width, autosize: width === undefined});
  }
}
addEventListener("beforeprint", () => fit(PRINT_WIDTH_PX));
addEventListener("afterprint", () => fit(undefined));
