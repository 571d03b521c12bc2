// What pages gain by scripts: a question before what cannot be undone, charts, copying. Every page works without.
"use strict";

document.addEventListener("submit", (event) => {
  const question = event.target.dataset.confirm;
  if (question && !window.confirm(question)) {
    event.preventDefault();
    return;
  }
  const button = event.target.querySelector("button:not([type=button])");
  // After the form was read: a disabled button would not be sent.
  if (button && event.target.method === "post") setTimeout(() => { button.disabled = true; }, 0);
});
window.addEventListener("pageshow", () => {
  for (const button of document.querySelectorAll("button:disabled")) button.disabled = false;
});

document.addEventListener("change", (event) => {
  if (event.target.matches("[data-submits]")) event.target.form.requestSubmit();
});

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-copies]");
  if (!button) return;
  const text = document.getElementById(button.dataset.copies).textContent;
  navigator.clipboard.writeText(text).then(() => { button.textContent = "Copied"; });
});

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function clock(at, isDays) {
  const when = new Date(at * 1000);
  if (isDays) return when.toLocaleDateString("en-GB", { day: "numeric", month: "short", timeZone: "UTC" });
  return when.toLocaleTimeString("en-GB");
}

function chart(place, series, data, height = 240) {
  const points = data[0].length;
  if (!window.uPlot || points === 0) return null;
  const isDays = place.hasAttribute("data-charts");
  const axis = { stroke: colour("--ink-soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false } };
  const plot = new uPlot({
    width: place.clientWidth, height, padding: [8, 40, 0, 0], cursor: { points: { size: 6 } },
    series: [{ label: "Time", value: (_, at) => (at == null ? "–" : clock(at, isDays)) }, ...series.map((one, place_) => ({
      width: 2, points: { show: false }, ...one,
      stroke: colour(["--accent", "--calm", "--warn"][place_ % 3]),
    }))],
    axes: [{ ...axis, space: 90, values: (_, marks) => marks.map((at) => clock(at, isDays)) }, { ...axis, size: 64 }],
    scales: { y: { range: (_, least, most) => [Math.min(0, least), most > 0 ? most * 1.05 : 1] } },
  }, data, place);
  new ResizeObserver(() => plot.setSize({ width: place.clientWidth, height })).observe(place);
  return plot;
}

// ---- a sale as it sells: one point for each look at it
const stockChart = document.getElementById("stock-chart");
if (stockChart) {
  const KEPT_MAX = 900; // a quarter of an hour of seconds
  const seen = { at: [], left: [], sold: [], lag: [] };
  let plot = null;
  let peak = 0;
  const look = () => {
    const now = document.getElementById("figures").dataset;
    const last = seen.at.length - 1;
    const at = Number(now.at);
    const sold = Number(now.claimed);
    const rate = last < 0 ? null : Math.max(0, (sold - seen.sold[last]) / (at - seen.at[last]));
    for (const [list, value] of [[seen.at, at], [seen.left, Number(now.remaining)], [seen.sold, sold], [seen.lag, Number(now.lag)]]) {
      list.push(value);
      if (list.length > KEPT_MAX) list.shift();
    }
    if (rate !== null) {
      peak = Math.max(peak, rate);
      document.getElementById("rate").textContent = Math.round(rate).toLocaleString("en");
      document.getElementById("peak").textContent = `peak ${Math.round(peak).toLocaleString("en")}`;
    }
    const row = document.createElement("tr");
    for (const text of [new Date(at * 1000).toLocaleTimeString("en-GB"), now.remaining, now.claimed, rate === null ? "–" : Math.round(rate), now.lag]) {
      const cell = document.createElement("td");
      cell.textContent = text;
      if (row.children.length) cell.className = "n";
      row.append(cell);
    }
    const rows = document.getElementById("stock-rows");
    rows.prepend(row);
    while (rows.children.length > 60) rows.lastChild.remove();
    const data = [seen.at, seen.left, seen.sold];
    if (plot) plot.setData(data);
    else plot = chart(stockChart, [{ label: "Left" }, { label: "Sold" }], data);
  };
  look();
  const opened = document.getElementById("figures").dataset.status;
  document.body.addEventListener("htmx:afterSwap", () => {
    look();
    // The buttons and the settlement belong to the state.
    if (document.getElementById("figures").dataset.status !== opened) window.location.reload();
  });
}

// ---- charts of what a table on the page says: its columns, times first
for (const place of document.querySelectorAll("[data-charts]")) {
  const table = document.getElementById(place.dataset.charts);
  const rows = [...table.tBodies[0].rows].filter((row) => row.dataset.at).reverse();
  // One day is no line; the table says it all.
  if (rows.length < 2) { place.parentElement.hidden = true; continue; }
  const columns = place.dataset.columns.split(",").map(Number);
  const data = [rows.map((row) => Number(row.dataset.at))];
  for (const column of columns) data.push(rows.map((row) => Number(row.cells[column].dataset.value)));
  const names = [...table.tHead.rows[0].cells];
  chart(place, columns.map((column) => ({ label: names[column].textContent })), data);
}
