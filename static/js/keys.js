// Single keys: to a section, along the rows of a list, the sheet of all keys. Never while somebody types, and not at all for
// whoever has switched them off in the sheet. Rows are gone through by moving the focus, so that Enter, Tab and what a screen
// reader says are the browser's own.
"use strict";

(() => {
  const OFF = "leasehold-keys-off";
  const WAIT = 1500;
  let pressed_g_at = 0;
  let last_row = -1;

  const sheet = () => document.getElementById("keys");

  function is_off() {
    try { return localStorage.getItem(OFF) === "1"; } catch { return false; }
  }

  function switch_off(off) {
    // a browser that keeps nothing forgets it with the page
    try { localStorage.setItem(OFF, off ? "1" : "0"); } catch { /* nothing to keep it in */ }
  }

  function typing(element) {
    return element.isContentEditable || element.matches("input:not([type=checkbox]):not([type=radio]), select, textarea");
  }

  function rows() {
    return [...document.querySelectorAll("main tbody tr")].filter((row) => link(row) && row.getClientRects().length);
  }

  // the link that names the row keeps its focus when the list is sent again
  const link = (row) => row.querySelector("a[id][href]") ?? row.querySelector("a[href]");
  const here = () => document.activeElement?.closest("main tbody tr") ?? null;

  function step(by) {
    const all = rows();
    if (!all.length) return;
    const at = all.indexOf(here());
    const next = at >= 0 ? at + by : last_row >= 0 ? last_row : 0;
    last_row = Math.min(Math.max(next, 0), all.length - 1);
    link(all[last_row]).focus();
    all[last_row].scrollIntoView({ block: "nearest" });
  }

  function search() {
    const box = document.querySelector("[data-search], input[type=search]")
      ?? document.querySelector("main .filters input, main .filters select");
    if (!box) return false;
    box.focus();
    box.select?.();
    return true;
  }

  function go(key) {
    const target = sheet()?.querySelector(`a[data-go="${CSS.escape(key)}"]`);
    if (target) target.click();
    return Boolean(target);
  }

  function press(selector, where = document, how = {}) {
    const target = where?.querySelector(selector);
    target?.dispatchEvent(new MouseEvent("click", { bubbles: true, cancelable: true, ...how }));
    return Boolean(target);
  }

  const KEYS = {
    "/": search,
    "?": () => sheet()?.showModal() ?? true,
    g: () => { pressed_g_at = Date.now(); },
    j: () => step(1),
    k: () => step(-1),
    x: () => press("input[type=checkbox]", here()),
    // copy.js copies the other command of the two where Shift is held
    c: () => press("button[data-lookup], button[data-text]", here() ?? document),
    C: () => press("button[data-revoke]", here() ?? document, { shiftKey: true }),
    n: () => press("main a[rel=next]"),
    r: () => press("main .headline .danger"),
  };

  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    if (typing(event.target) || sheet()?.open || is_off()) return;
    const after_g = Date.now() - pressed_g_at < WAIT;
    pressed_g_at = 0;
    const done = after_g ? go(event.key) : Object.hasOwn(KEYS, event.key) && KEYS[event.key]() !== false;
    if (done) event.preventDefault();
  });

  document.addEventListener("click", (event) => {
    if (event.target.closest("[data-keys]")) sheet()?.showModal();
    // beside the sheet
    else if (event.target === sheet()) sheet().close();
  });

  for (const button of document.querySelectorAll("[data-keys]")) button.hidden = false;
  const box = document.getElementById("keys-on");
  if (box) {
    box.checked = !is_off();
    box.addEventListener("change", () => switch_off(!box.checked));
  }
})();
