// Copies a command. The buttons are hidden where this script does not run, or where the browser offers no clipboard.
// data-copy names the element whose text it is; data-text is the text; data-lookup and data-revoke are two, the second with Shift.
"use strict";

(() => {
  const BUTTONS = "button[data-copy], button[data-text], button[data-lookup]";
  let silence = 0;

  function arm() {
    if (!navigator.clipboard) return;
    for (const button of document.querySelectorAll(BUTTONS)) button.hidden = false;
  }

  function text_of(button, shifted) {
    if (button.dataset.copy) return document.getElementById(button.dataset.copy).textContent;
    return (shifted && button.dataset.revoke) || (button.dataset.text ?? button.dataset.lookup);
  }

  function say(text) {
    const place = document.getElementById("said");
    if (!place) return;
    place.textContent = text;
    clearTimeout(silence);
    silence = setTimeout(() => { place.textContent = ""; }, 2500);
  }

  document.addEventListener("click", async (event) => {
    const button = event.target.closest(BUTTONS);
    if (!button) return;
    const text = text_of(button, event.shiftKey);
    try {
      await navigator.clipboard.writeText(text);
      say(`Copied: ${text}`);
    } catch {
      say(`The browser did not let it be copied. Copy it by hand: ${text}`);
    }
  });
  document.addEventListener("htmx:afterSettle", arm);
  arm();
})();
