// Counts down, keeps relative times right, and says when the server is gone. Time is the server's: each part that it
// sends carries data-now, so a wrong clock in the browser does no harm.
"use strict";

(() => {
  let offset = null;

  function learn() {
    let latest = null;
    for (const part of document.querySelectorAll("[data-now]")) {
      const at = Date.parse(part.dataset.now);
      if (latest === null || at > latest) latest = at;
    }
    if (latest === null) return;
    const sample = latest - Date.now();
    // the way from the server only makes a sample smaller, so the largest is the best, unless a clock was set
    if (offset === null || sample > offset || offset - sample > 2000) offset = sample;
  }

  const now = () => Date.now() + (offset ?? 0);
  const two = (number) => String(number).padStart(2, "0");

  // the same words as the filters in dashboard/templatetags/leasehold.py
  function span(milliseconds) {
    const left = Math.max(0, Math.trunc(milliseconds / 1000));
    if (left < 60) return `${left} s`;
    if (left < 3600) return `${Math.trunc(left / 60)} m ${two(left % 60)} s`;
    if (left < 86400) return `${Math.trunc(left / 3600)} h ${two(Math.trunc((left % 3600) / 60))} m`;
    return `${Math.trunc(left / 86400)} d ${two(Math.trunc((left % 86400) / 3600))} h`;
  }

  function unit(seconds) {
    for (const [size, name] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
      if (seconds >= size) return `${Math.trunc(seconds / size)} ${name}`;
    }
    return `${seconds} s`;
  }

  function ago(at) {
    const seconds = Math.trunc((now() - at) / 1000);
    if (seconds < 0) return `in ${unit(-seconds)}`;
    return seconds >= 1 ? `${unit(seconds)} ago` : "now";
  }

  function write(element, text) {
    if (element.textContent !== text) element.textContent = text;
  }

  function tick() {
    if (document.hidden) return;
    for (const element of document.querySelectorAll("[data-expires-at]")) {
      const left = Date.parse(element.dataset.expiresAt) - now();
      write(element, left > 0 ? span(left) : `${span(-left)} over`);
      element.parentElement.classList.toggle("over", left <= 0);
      const meter = element.nextElementSibling;
      if (meter) meter.value = Math.max(0, left / 1000);
    }
    for (const element of document.querySelectorAll("[data-at]")) write(element, ago(Date.parse(element.dataset.at)));
    for (const element of document.querySelectorAll("[data-clock]")) write(element, clock(now()));
  }

  const local = (at) => `${at.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "long" })} here`;

  const clock = (at) => new Date(at).toISOString().slice(11, 19);

  function lost() {
    const banner = document.getElementById("connection");
    if (!banner || !banner.hidden) return;
    write(banner.querySelector("[data-lost]"), `${clock(now())} UTC`);
    banner.hidden = false;
  }

  function found() {
    const banner = document.getElementById("connection");
    if (banner) banner.hidden = true;
  }

  const reading = () => {
    const selection = document.getSelection();
    return selection !== null && !selection.isCollapsed;
  };

  // what was opened or ticked would be as before once the part is sent again; select.js ticks its own again
  const at_work = (part) =>
    [...part.querySelectorAll("input:checked, details[open]")].some((element) => !element.closest("[data-select]"));

  document.addEventListener("htmx:beforeRequest", (event) => {
    const part = event.target;
    if (!part.matches("[data-poll]")) return;
    const held = at_work(part);
    const note = document.getElementById("held");
    if (note) note.hidden = !held;
    // nobody looks, or somebody is selecting text to copy, or rows: leave the page as it is
    if (document.hidden || held || reading()) event.preventDefault();
  });
  document.addEventListener("htmx:sendError", lost);
  document.addEventListener("htmx:timeout", lost);
  document.addEventListener("htmx:responseError", (event) => {
    // the rights of this user changed: the whole page has to say so
    if (event.detail.xhr.status === 403) location.reload();
    else lost();
  });
  document.addEventListener("htmx:afterRequest", (event) => { if (event.detail.successful) found(); });
  document.addEventListener("htmx:afterSettle", () => { learn(); tick(); });
  // a time in UTC says on hover what that is where the reader sits
  document.addEventListener("mouseover", (event) => {
    const element = event.target.closest?.("time[datetime]");
    if (!element || element.dataset.utc !== undefined) return;
    const at = new Date(element.dateTime);
    if (Number.isNaN(at.getTime())) return;
    element.dataset.utc = element.title || `${at.toISOString().slice(0, 19).replace("T", " ")} UTC`;
    element.title = `${element.dataset.utc}\n${local(at)}`;
  });
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) return;
    tick();
    for (const part of document.querySelectorAll("[data-poll]")) part.dispatchEvent(new Event("wake"));
  });

  learn();
  tick();
  setInterval(tick, 250);
})();
