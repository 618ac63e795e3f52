"use strict";
// What the pages cannot do by themselves. All of them can be read without it.

// Answers of ours are the only text that ever becomes HTML, and nothing that comes becomes code.
const refuse = () => { throw new Error("no code is made of text here"); };
const policy = window.trustedTypes
  ? trustedTypes.createPolicy("htmx", { createHTML: (text) => text })
  : { createHTML: (text) => text, createScript: refuse };
window.htmx?.registerExtension("threadmill", {
  init: (htmx) => htmx.initSecurity(policy, refuse, refuse),
});

const isField = (element) => element.closest("input, textarea, select, [contenteditable]");
const rows = () => [...document.querySelectorAll("a.row")];
let pressedG = 0;

function move(step) {
  const links = rows();
  const at = links.indexOf(document.activeElement);
  const next = links[at === -1 ? (step > 0 ? 0 : links.length - 1) : at + step];
  next?.focus();
}

const keys = {
  "/": () => (document.querySelector("[data-search]") ?? document.querySelector(".jump input"))?.focus(),
  "?": () => document.getElementById("help")?.togglePopover(),
  j: () => move(1),
  k: () => move(-1),
  g: () => { pressedG = Date.now(); },
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (isField(event.target)) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (Date.now() - pressedG < 1000) {
    pressedG = 0;
    const link = [...document.querySelectorAll("[data-go]")].find((one) => one.dataset.go === event.key);
    if (link) { event.preventDefault(); link.click(); return; }
  }
  if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
});

// The passage behind a citation: opened by a click or Enter, shown while it is pointed at or focused.
const card = document.createElement("div");
card.className = "card";
card.popover = "manual";
card.setAttribute("role", "tooltip");
(document.querySelector("main") ?? document.body).append(card);

function chunkOf(mark) {
  return document.getElementById(mark.dataset.chunk);
}

function show(event) {
  const mark = event.target.closest?.(".mark");
  const passage = mark && chunkOf(mark)?.querySelector("details");
  if (!passage) return;
  const title = document.createElement("b");
  title.textContent = passage.querySelector("summary").textContent;
  const text = document.createElement("p");
  text.textContent = passage.querySelector("blockquote").textContent.slice(0, 1200);
  card.replaceChildren(title, text);
  card.showPopover();
  const place = mark.getBoundingClientRect();
  card.style.left = `${Math.max(8, Math.min(place.left, innerWidth - card.offsetWidth - 8))}px`;
  const below = place.bottom + 6;
  const fits = below + card.offsetHeight < innerHeight;
  card.style.top = `${fits ? below : Math.max(8, place.top - card.offsetHeight - 6)}px`;
}

function hide(event) {
  if (event.target.closest?.(".mark")) card.hidePopover();
}

for (const name of ["mouseover", "focusin"]) document.addEventListener(name, show);
for (const name of ["mouseout", "focusout"]) document.addEventListener(name, hide);
document.addEventListener("click", (event) => {
  const mark = event.target.closest(".mark");
  const passage = mark && chunkOf(mark)?.querySelector("details");
  if (passage) passage.open = true;
  const copy = event.target.closest("[data-copy]");
  if (copy) {
    navigator.clipboard.writeText(document.getElementById(copy.dataset.copy).textContent);
    copy.textContent = "Copied";
  }
});

document.addEventListener("change", ({ target }) => {
  for (const one of document.getElementsByName(target.dataset.all)) one.checked = target.checked;
});

// Hidden pages let go of their streams; so must those that were opened hidden.
document.addEventListener("htmx:after:sse:connection", ({ detail }) => {
  detail.connection.abortController = null; // or closing it makes an error
  setTimeout(() => document.hidden && document.dispatchEvent(new Event("visibilitychange")), 99);
});

// In a small window the sections are one row, of which a part is seen.
document.querySelector(".side [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
