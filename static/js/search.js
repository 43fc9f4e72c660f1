// "/" takes the cursor into the search box, unless somebody is typing already. The box works without this script.
"use strict";

(() => {
  const typing = (element) => element.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(element.tagName);

  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || typing(event.target)) return;
    const box = document.getElementById("search-box");
    if (!box) return;
    event.preventDefault();
    box.focus();
    box.select();
  });
})();
