(() => {
  "use strict";
  const every = 2000, slowest = 15000, limit = 8000;
  const state = document.getElementById("state"), live = document.getElementById("live");
  let pause = false, wait = every, timer = 0, process = state.querySelector("[data-process]").dataset.process;

  const keyOf = (node) => (node.nodeType === 1 ? node.dataset.key || node.id : "");

  // Changes `old` into `fresh` in place: what is equal is not touched, so that focus and selection stay.
  function morph(old, fresh) {
    for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name)) old.removeAttribute(name);
    for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    const keyed = new Map([...old.childNodes].filter(keyOf).map((node) => [keyOf(node), node]));
    let place = old.firstChild;
    for (const child of [...fresh.childNodes]) {
      const key = keyOf(child);
      let match = key ? keyed.get(key) : place;
      if (match && (match.nodeName !== child.nodeName || keyOf(match) !== key)) match = null;
      if (!match) {
        old.insertBefore(document.importNode(child, true), place);
        continue;
      }
      if (match === place) place = place.nextSibling;
      else old.insertBefore(match, place);
      if (match.nodeType !== 1) { if (match.data !== child.data) match.data = child.data; }
      else if (!match.isEqualNode(child)) morph(match, child);
    }
    while (place) { const next = place.nextSibling; place.remove(); place = next; }
  }

  function tell(text, isStale) {
    if (live.textContent !== text) live.textContent = text;
    live.classList.toggle("stale", isStale);
    document.body.classList.toggle("stale", isStale);
  }

  async function refresh() {
    clearTimeout(timer);
    try {
      const answer = await fetch("fragment", { credentials: "same-origin", redirect: "manual", signal: AbortSignal.timeout(limit) });
      if (!answer.ok) throw new Error(answer.type === "opaqueredirect" ? "the guard wants a login: load the page again" : `the console answers ${answer.status}`);
      const found = new DOMParser().parseFromString(`<main>${await answer.text()}</main>`, "text/html").querySelector("main");
      const bar = found.querySelector("[data-process]");
      for (const { name, value } of state.attributes) found.setAttribute(name, value);
      const focused = document.activeElement;
      morph(state, found);
      if (focused && focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
      document.title = bar.dataset.title;
      const isOther = bar.dataset.process !== process;
      process = bar.dataset.process;
      wait = every;
      tell(pause ? "Paused" : isOther ? "Another process answers now" : "Live, every 2 s", false);
    } catch (error) {
      wait = Math.min(slowest, wait * 2);
      tell(`Not current: ${error.name === "TimeoutError" ? "no answer" : error.message}`, true);
    }
    if (!pause) timer = setTimeout(refresh, wait);
  }

  document.addEventListener("visibilitychange", () => {
    clearTimeout(timer);
    if (!document.hidden && !pause) refresh();
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, textarea, select")) return;
    if (event.key === "r") refresh();
    else if (event.key === "p") { pause = !pause; pause ? (clearTimeout(timer), tell("Paused", false)) : refresh(); }
    else if (event.key >= "1" && event.key <= "9") {
      const head = state.querySelectorAll("h2")[event.key - 1];
      if (head) { head.focus({ preventScroll: true }); head.scrollIntoView(); }
    }
  });
  tell("Live, every 2 s", false);
  timer = setTimeout(refresh, every);
})();
