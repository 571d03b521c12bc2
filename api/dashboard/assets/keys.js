// Keys instead of the mouse: / searches, n makes, g and a letter goes, ? tells. None of them counts
// where somebody types, or together with another key.
"use strict";

const GO_MS = 1500; // how long a g waits for its letter
let goneAt = -Infinity;

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, textarea, select")) return;
  const sheet = document.getElementById("shortcuts");
  if (!sheet) return;
  if (event.timeStamp - goneAt < GO_MS) {
    goneAt = -Infinity;
    const link = sheet.querySelector(`[data-go="${CSS.escape(event.key)}"]`);
    if (link) { event.preventDefault(); window.location.assign(link.href); }
    return;
  }
  if (event.key === "g") goneAt = event.timeStamp;
  if (event.key === "?") { event.preventDefault(); if (!sheet.open) sheet.showModal(); }
  if (event.key === "n") {
    const link = document.querySelector(".head a.main-act");
    if (link) { event.preventDefault(); link.click(); }
  }
  if (event.key === "/") {
    const search = document.querySelector("[data-shortcut='/'], .tools input, .tools select");
    if (search) { event.preventDefault(); search.focus(); }
  }
});

// ---- choosing all rows of a list
for (const all of document.querySelectorAll("[data-chooses]")) {
  all.hidden = false;
  const own = () => [...document.querySelectorAll(`input[form="${CSS.escape(all.dataset.chooses)}"][type="checkbox"]`)];
  all.addEventListener("change", () => { for (const one of own()) one.checked = all.checked; });
}
