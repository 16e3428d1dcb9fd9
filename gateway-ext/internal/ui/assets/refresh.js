// Keeps the tables fresh while the page is looked at. Without it the page is
// complete, and as old as its last load.
"use strict";
const every = 3000; // milliseconds

async function refresh() {
  const live = document.getElementById("live");
  const focused = live.contains(document.activeElement) ? document.activeElement : null;
  const busy = focused && focused.tagName !== "SUMMARY" || !getSelection().isCollapsed;
  if (!document.hidden && !busy) {
    try {
      const response = await fetch(location.href, { signal: AbortSignal.timeout(every * 3) });
      if (response.ok) {
        const page = new DOMParser().parseFromString(await response.text(), "text/html");
        const next = document.adoptNode(page.getElementById("live"));
        const open = new Set(Array.from(live.querySelectorAll("details[open]"), (d) => d.id));
        for (const d of next.querySelectorAll("details")) d.open = open.has(d.id);
        const id = focused?.parentElement.id;
        live.replaceWith(next);
        if (id) document.getElementById(id)?.querySelector("summary").focus({ preventScroll: true });
        document.title = page.title;
        document.body.classList.remove("lost");
      } else {
        document.body.classList.add("lost");
      }
    } catch {
      document.body.classList.add("lost"); // the gateway is gone; it may come back
    }
  }
  setTimeout(refresh, every);
}
setTimeout(refresh, every);
