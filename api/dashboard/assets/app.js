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
    else plot = charts.draw(stockChart, ["Left", "Sold"], data, { grain: "second", unit: "units" });
  };
  look();
  const opened = document.getElementById("figures").dataset.status;
  document.body.addEventListener("htmx:afterSwap", () => {
    look();
    // The buttons and the settlement belong to the state.
    if (document.getElementById("figures").dataset.status !== opened) window.location.reload();
  });
}

// ---- what moves by itself waits while nobody looks, and while somebody is about to use it
document.body.addEventListener("htmx:beforeRequest", (event) => {
  const place = event.target;
  if (!place.matches("[data-live]")) return;
  if (document.hidden || place.contains(document.activeElement) || place.matches(":hover")) event.preventDefault();
});
document.body.addEventListener("htmx:afterSwap", () => charts.refresh());
