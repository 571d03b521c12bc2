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
const stockRows = document.getElementById("stock-rows");
if (document.getElementById("figures")) {
  const KEPT_MAX = 900; // a quarter of an hour of seconds
  const ROWS_MAX = 60;
  // What was seen outlives the page's being loaded anew when the sale changes its state.
  const kept = JSON.parse(sessionStorage.getItem(location.pathname) || "null");
  sessionStorage.removeItem(location.pathname);
  const seen = kept?.seen ?? { at: [], left: [], sold: [], wins: [], refused: [] };
  const lines = kept?.lines ?? [];
  // JSON has no infinity.
  const bounds = (text) => JSON.parse(text.replaceAll("Infinity", "1e999"));
  let before = kept ? { ...kept.before, within: bounds(kept.before.within) } : null;
  let peak = kept?.peak ?? 0;
  let plots = null;
  const whole = (value) => Math.round(value).toLocaleString("en");
  const tell = (id, text) => { const place = document.getElementById(id); if (place) place.textContent = text; };

  // How long 99 of 100 requests since the look before took at most, of what is counted by bounds.
  function quickness(now, then) {
    const counts = now.map(([bound, count], index) => [bound, count - (then[index]?.[1] ?? 0)]);
    const all = counts.length ? counts[counts.length - 1][1] : 0;
    if (all <= 0) return "–";
    const [bound] = counts.find(([, count]) => count >= 0.99 * all);
    return Number.isFinite(bound) ? `${bound * 1000} ms` : "more than 5 s";
  }

  function row(texts) {
    const line = document.createElement("tr");
    for (const text of texts) {
      const cell = document.createElement("td");
      cell.textContent = text;
      if (line.children.length) cell.className = "n";
      line.append(cell);
    }
    return line;
  }

  function look() {
    const { at, claimed, remaining, lag, refused, within } = document.getElementById("figures").dataset;
    const now = { at: Number(at), sold: Number(claimed), left: Number(remaining), refused: Number(refused), within: bounds(within) };
    const rate = (name) => (before ? Math.max(0, (now[name] - before[name]) / (now.at - before.at)) : null);
    const wins = rate("sold");
    const refusals = rate("refused");
    const quick = before ? quickness(now.within, before.within) : "–";
    const point = { at: now.at, left: now.left, sold: now.sold, wins, refused: refusals };
    for (const [name, list] of Object.entries(seen)) { list.push(point[name]); if (list.length > KEPT_MAX) list.shift(); }
    if (before) {
      peak = Math.max(peak, wins);
      tell("rate", whole(wins));
      tell("peak", `peak ${whole(peak)}`);
      tell("refusals", whole(refusals));
      tell("quick", quick);
    }
    before = now;
    if (!stockRows) return;
    lines.push([new Date(now.at * 1000).toLocaleTimeString("en-GB"), whole(now.left), whole(now.sold), wins === null ? "–" : whole(wins), refusals === null ? "–" : whole(refusals), whole(Number(lag)), quick]);
    if (lines.length > ROWS_MAX) lines.shift();
    stockRows.replaceChildren(...lines.map(row).reverse());
    const left = [seen.at, seen.left];
    const rates = [seen.at, seen.wins, seen.refused];
    if (plots) { plots[0].setData(left); plots[1].setData(rates); }
    else if (window.uPlot) plots = [
      charts.draw(document.getElementById("stock-chart"), ["Left"], left, { unit: "units" }),
      charts.draw(document.getElementById("rate-chart"), ["Sold a second", "Refused a second"], rates, {}),
    ];
  }
  look();
  const opened = document.getElementById("figures").dataset.state;
  document.body.addEventListener("htmx:afterSwap", () => {
    look();
    // The buttons, the charts and the settlement belong to the state.
    const { state, within } = document.getElementById("figures").dataset;
    if (state === opened) return;
    sessionStorage.setItem(location.pathname, JSON.stringify({ seen, lines, peak, before: { ...before, within } }));
    window.location.reload();
  });
}

// ---- what moves by itself waits while nobody looks, and while somebody is about to use it
document.body.addEventListener("htmx:beforeRequest", (event) => {
  const place = event.target;
  if (!place.matches("[data-live]")) return;
  if (document.hidden || place.contains(document.activeElement) || place.matches(":hover")) event.preventDefault();
});
document.body.addEventListener("htmx:afterSwap", () => charts.refresh());
