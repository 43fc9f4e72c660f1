// Keeps what was ticked in a list that is sent again and again, and says on the button how many that is. Without this script the
// ticks work all the same, until the list is sent again, which then does not happen.
"use strict";

(() => {
  const ticked = new Set();

  function show() {
    const form = document.querySelector("form[data-select]");
    if (!form) return;
    const boxes = [...form.querySelectorAll("input[name=lease]")];
    const there = new Set(boxes.map((box) => box.value));
    // what has ended cannot be ended any more
    for (const value of [...ticked]) if (!there.has(value)) ticked.delete(value);
    for (const box of boxes) box.checked = ticked.has(box.value);
    const all = form.querySelector("[data-select-all]");
    if (all) {
      all.hidden = boxes.length === 0;
      all.checked = boxes.length > 0 && ticked.size === boxes.length;
      all.indeterminate = ticked.size > 0 && ticked.size < boxes.length;
    }
    const button = form.querySelector("[data-select-button]");
    if (button) {
      button.disabled = ticked.size === 0;
      button.textContent = ticked.size ? `Revoke ${ticked.size} selected…` : "Revoke selected…";
    }
  }

  document.addEventListener("change", (event) => {
    const form = event.target.closest("form[data-select]");
    if (!form) return;
    if (event.target.matches("[data-select-all]")) {
      for (const box of form.querySelectorAll("input[name=lease]")) {
        if (event.target.checked) ticked.add(box.value);
        else ticked.delete(box.value);
      }
    } else if (event.target.name === "lease") {
      if (event.target.checked) ticked.add(event.target.value);
      else ticked.delete(event.target.value);
    }
    show();
  });
  document.addEventListener("htmx:afterSettle", show);
  // Back shows the ticks that the browser kept
  window.addEventListener("pageshow", () => {
    for (const box of document.querySelectorAll("form[data-select] input[name=lease]:checked")) ticked.add(box.value);
    show();
  });
  show();
})();
