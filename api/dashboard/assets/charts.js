// Charts of what tables on the page say: axes, units, a reading under the pointer and for the arrow
// keys, in the page's colours. The tables stay.
"use strict";

const charts = (() => {
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const STROKES = ["--accent", "--calm", "--warn"];
  const HEIGHT = 220;
  const drawn = new Set();

  // Times are the project's clock written as if it were UTC.
  function clock(at, grain) {
    const when = new Date(at * 1000);
    if (grain === "second") return when.toLocaleTimeString("en-GB");
    if (grain === "hour") return when.toLocaleTimeString("en-GB", { timeZone: "UTC", hour: "2-digit", minute: "2-digit" });
    return when.toLocaleDateString("en-GB", { day: "numeric", month: "short", timeZone: "UTC" });
  }

  function number(value, symbol) {
    if (value == null) return "–";
    const decimals = symbol && !Number.isInteger(value) ? 2 : 0;
    const text = Math.abs(value).toLocaleString("en", { minimumFractionDigits: decimals, maximumFractionDigits: 2 });
    return `${value < 0 ? "−" : ""}${symbol || ""}${text}`;
  }

  // place: where it goes; names: of the lines; data: times, then a list a line.
  function draw(place, names, data, { kind = "lines", grain = "second", symbol = "", unit = "", height = HEIGHT } = {}) {
    if (!window.uPlot || data[0].length === 0) return null;
    place.hidden = false;
    const axis = {
      stroke: () => colour("--ink-soft"), ticks: { show: false }, font: "12px system-ui, sans-serif",
      grid: { stroke: () => colour("--line"), width: 1 },
    };
    const isBars = kind === "bars";
    const line = (name, index) => ({
      label: name,
      width: isBars ? 0 : 2,
      stroke: () => colour(STROKES[index % 3]),
      fill: isBars ? () => colour(STROKES[index % 3]) : undefined,
      dash: index === 1 && !isBars ? [5, 4] : undefined,
      points: { show: false },
      paths: isBars ? uPlot.paths.bars({ size: [0.7, 48], radius: 0.15 }) : undefined,
      value: (_, value) => number(value, symbol),
    });
    const apart = data[0].length > 1 ? data[0][1] - data[0][0] : 60;
    const plot = new uPlot({
      width: place.clientWidth, height, padding: [12, 24, 0, 0], legend: { live: true },
      cursor: { points: { size: 7 }, drag: { x: false, y: false } },
      series: [{ label: grain === "hour" || grain === "second" ? "Time" : "Day", value: (_, at) => (at == null ? "–" : clock(at, grain)) }, ...names.map(line)],
      axes: [
        { ...axis, space: 64, size: 34, values: (_, marks) => marks.map((at) => clock(at, grain)) },
        { ...axis, size: 62, values: (_, marks) => marks.map((mark) => (symbol || Number.isInteger(mark) ? number(mark, symbol) : "")) },
      ],
      scales: {
        x: { time: true, range: (_, least, most) => (isBars ? [least - apart / 2, most + apart / 2] : [least, most]) },
        y: { range: (_, least, most) => [Math.min(0, least), most > 0 ? most * 1.08 : 1] },
      },
      tzDate: (at) => (grain === "second" ? new Date(at * 1000) : uPlot.tzDate(new Date(at * 1000), "Etc/UTC")),
    }, data, place);
    drawn.add(plot);
    new ResizeObserver(() => plot.setSize({ width: place.clientWidth, height })).observe(place);
    readable(place, plot, names, grain, symbol, unit);
    return plot;
  }

  // A point is read by arrow keys and told to whoever cannot see it.
  function readable(place, plot, names, grain, symbol, unit) {
    const said = document.createElement("output");
    said.className = "visually-hidden";
    place.append(said);
    place.tabIndex = 0;
    place.setAttribute("role", "group");
    let at = -1;
    place.addEventListener("keydown", (event) => {
      const last = plot.data[0].length - 1;
      const to = { ArrowRight: at + 1, ArrowLeft: at < 0 ? last : at - 1, Home: 0, End: last }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      at = Math.max(0, Math.min(last, to));
      const first = plot.data.slice(1).map((list) => list[at]).find((value) => value != null) ?? 0;
      plot.setCursor({ left: plot.valToPos(plot.data[0][at], "x"), top: plot.valToPos(first, "y") });
      const values = names.map((name, index) => `${name} ${number(plot.data[index + 1][at], symbol)}`);
      said.textContent = `${clock(plot.data[0][at], grain)}: ${values.join(", ")}${symbol || !unit ? "" : ` ${unit}`}`;
    });
  }

  function fromTable(place) {
    const table = document.getElementById(place.dataset.charts);
    const rows = [...table.tBodies[0].rows].filter((row) => row.dataset.at).reverse();
    // One point is no line; the table says it all.
    if (rows.length < 2) return;
    const columns = place.dataset.columns
      ? place.dataset.columns.split(",").map(Number)
      : [...table.tHead.rows[0].cells].map((_, index) => index).slice(1);
    const value = (row, column) => {
      const text = row.cells[column].dataset.value;
      return text === "" ? null : Number(text);
    };
    const data = [rows.map((row) => Number(row.dataset.at)), ...columns.map((column) => rows.map((row) => value(row, column)))];
    const heads = table.tHead.rows[0].cells;
    const names = columns.map((column) => heads[column].textContent.replace(/ \(.*\)$/, ""));
    const { kind = "lines", grain = "day", symbol = "", unit = "" } = place.dataset;
    const title = place.closest(".card").querySelector("h2");
    place.setAttribute("aria-label", `${title.textContent}: a chart of ${symbol ? `amounts in ${unit}` : unit || "amounts"}. Arrow keys read its points; the table has the same.`);
    draw(place, names, data, { kind, grain, symbol, unit });
  }

  const redraw = () => { for (const plot of drawn) plot.redraw(false, true); };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  // What came later draws its charts as well; what has gone is forgotten.
  function refresh() {
    for (const plot of drawn) if (!plot.root.isConnected) { plot.destroy(); drawn.delete(plot); }
    for (const place of document.querySelectorAll("[data-charts]:not(:has(.uplot))")) fromTable(place);
  }
  refresh();
  return { draw, refresh };
})();
