// The console's only script: live parts, parts swapped in place, dialogs, keys. The pages work without it.
// No eval, no inline handlers, Trusted Types throughout.

const policy = window.trustedTypes?.createPolicy("firmament", { createHTML: (text) => text }) ?? { createHTML: (text) => text };
const root = document.documentElement;
root.classList.add("js");
const $ = (selector, from = document) => from.querySelector(selector);
const $$ = (selector, from = document) => [...from.querySelectorAll(selector)];
const parse = (html) => new DOMParser().parseFromString(policy.createHTML(html), "text/html").body;

/** Every top-level element of `html` replaces the one with its id; focus and open details are kept. */
function patch(html) {
  for (const fresh of [...parse(html).children]) {
    const old = fresh.id && document.getElementById(fresh.id);
    if (!old || old.isEqualNode(fresh)) continue;
    const focused = old.contains(document.activeElement) ? document.activeElement.id : "";
    for (const detail of $$("details[id][open]", old)) fresh.querySelector(`#${CSS.escape(detail.id)}`)?.setAttribute("open", "");
    old.replaceWith(document.adoptNode(fresh));
    if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
  }
}

// --- live: one stream per browser, however many tabs ------------------------------------------
// HTTP/1.1 allows six connections to a host. The tab that holds the lock streams for all of them and
// relays by BroadcastChannel. Locks need https or localhost; over anything else each tab streams alone.

const topic = document.body.dataset.live ?? "";
const tab = crypto.randomUUID?.() ?? String(performance.now());
const bus = "BroadcastChannel" in window ? new BroadcastChannel("firmament-live") : null;
const wanted = new Map();
let stream = null;
let leads = false;
let newestAt = performance.now();
const say = (message) => bus?.postMessage(message);
const wish = () => (document.hidden ? "" : topic);

function want(who, what) {
  if (what) wanted.set(who, what);
  else wanted.delete(who);
  if (leads) open();
}

function open() {
  const topics = [...new Set(wanted.values())].sort();
  const address = `/events?${new URLSearchParams(topics.map((name) => ["t", name]))}`;
  if (!topics.length) {
    stream?.close();
    stream = null;
    return;
  }
  if (stream && stream.address === address && stream.readyState !== EventSource.CLOSED) return;
  stream?.close();
  const source = new EventSource(address);
  stream = Object.assign(source, { address });
  const relay = (event) => {
    const [name, ...rest] = event.data.split("\n");
    const message = event.type === "beat" ? { beat: [name, ...rest] } : { name, html: rest.join("\n") };
    say(message);
    receive(message);
  };
  source.addEventListener("patch", relay);
  source.addEventListener("beat", relay);
  source.addEventListener("goodbye", () => {
    source.close();
    say({ goodbye: true });
    location.reload();
  });
  // After an answer that is an error (a proxy's 502) EventSource gives up for good. We do not.
  source.onerror = () => {
    if (source.readyState === EventSource.CLOSED && stream === source) setTimeout(open, 2000 + 2000 * Math.random());
  };
}

function receive(message) {
  if (message.goodbye) location.reload();
  else if (message.beat ? message.beat.includes(topic) : message.name === topic) {
    newestAt = performance.now();
    age();
    if (message.html) patch(message.html);
  }
}

function age() {
  const seconds = Math.round((performance.now() - newestAt) / 1000);
  const isOld = seconds > 8;
  const bar = $("#stale");
  if (bar.hidden === isOld) bar.hidden = !isOld;
  if (isOld) $("#stale-text").textContent = `No update for ${seconds} s. These numbers are old.`;
  for (const mark of $$(".live")) {
    mark.dataset.state = isOld ? "old" : "live";
    mark.lastElementChild.textContent = isOld ? "Not live" : "Live";
  }
}

if (topic) {
  if (bus)
    bus.onmessage = ({ data }) => {
      if (data.tab) want(data.tab, data.what);
      else if (data.who) say({ tab, what: wish() });
      else receive(data);
    };
  want(tab, wish());
  say({ tab, what: wish() });
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) newestAt = performance.now();
    say({ tab, what: wish() });
    want(tab, wish());
  });
  addEventListener("pagehide", () => say({ tab, what: "" }));
  addEventListener("pageshow", (event) => event.persisted && location.reload());
  const lead = () => {
    leads = true;
    say({ who: true });
    open();
    return new Promise(() => {});
  };
  if (navigator.locks && bus) navigator.locks.request("firmament-live", lead);
  else lead();
  setInterval(age, 1000);
}

// --- parts of a page swapped in place ---------------------------------------------------------

let swaps = 0;
async function swap(address, target, push) {
  const turn = ++swaps;
  const place = $(target);
  place?.setAttribute("aria-busy", "true");
  let html = "";
  try {
    const answer = await fetch(address, { headers: { "X-Fragment": "1" } });
    if (answer.redirected || answer.status === 401) return location.assign(address);
    html = await answer.text();
  } catch {
    if (turn === swaps && place) {
      place.removeAttribute("aria-busy");
      const note = $(".swap-failed", place) ?? place.insertBefore(Object.assign(document.createElement("p"), { className: "swap-failed banner bad" }), place.firstChild);
      note.textContent = "The server could not be reached; these rows are the last ones. Try again.";
    }
    return undefined;
  }
  if (turn !== swaps) return undefined;
  patch(html);
  $(target)?.removeAttribute("aria-busy");
  if (push) history.pushState({}, "", address);
  return undefined;
}

const addressOf = (form) => {
  const fields = [...new FormData(form)].filter(([, value]) => value !== "");
  return `${form.getAttribute("action")}?${new URLSearchParams(fields)}`;
};
let typing;
document.addEventListener("input", (event) => {
  const form = event.target.closest("form[data-swap]");
  if (!form) return;
  clearTimeout(typing);
  typing = setTimeout(() => swap(addressOf(form), form.dataset.swap, form.dataset.push !== undefined), 220);
});
document.addEventListener("submit", (event) => {
  const form = event.target.closest("form[data-swap]");
  if (form && !event.submitter?.hasAttribute("formaction") && !event.submitter?.dataset.send) {
    event.preventDefault();
    clearTimeout(typing);
    swap(addressOf(form), form.dataset.swap, form.dataset.push !== undefined);
  }
});
addEventListener("popstate", () => location.reload());

// --- dialogs: the same pages that work without this script ---------------------------------------

const dialog = $("#dialog");
async function ask(link) {
  try {
    const answer = await fetch(link.href, { headers: { "X-Fragment": "1" } });
    if (answer.redirected || !answer.ok) return location.assign(link.href);
    dialog.replaceChildren(...parse(await answer.text()).childNodes);
  } catch {
    return location.assign(link.href);
  }
  dialog.showModal();
  $("[autofocus], [data-focus]", dialog)?.focus();
  dialog.onclose = () => link.isConnected && link.focus();
  return undefined;
}

document.addEventListener("click", (event) => {
  if (event.metaKey || event.ctrlKey || event.shiftKey || event.button) return;
  const target = event.target;
  const swapLink = target.closest("a[data-swap]");
  const askLink = target.closest("a[data-ask]");
  const copy = target.closest("[data-copy]");
  const closing = target.closest("[data-close]");
  if (swapLink) {
    event.preventDefault();
    swap(swapLink.href, swapLink.dataset.swap, true);
  } else if (askLink) {
    event.preventDefault();
    ask(askLink);
  } else if (copy) {
    copyText(copy);
  } else if (closing) {
    event.preventDefault();
    closing.closest("dialog")?.close();
  } else if (target.closest("[data-palette]")) openPalette();
});

async function copyText(button) {
  const source = document.getElementById(button.dataset.copy);
  const text = source.value ?? source.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(source);
    button.textContent = "Press Ctrl-C";
  }
  setTimeout(() => (button.textContent = button.dataset.label ?? "Copy"), 2000);
}

// --- keys -------------------------------------------------------------------------------------

const palette = $("#palette");
function openPalette() {
  if (!palette) return;
  palette.showModal();
  const box = $("input", palette);
  box.value = "";
  filter();
  box.focus();
}
function filter() {
  const text = $("input", palette).value.trim().toLowerCase();
  const search = $("[data-search]", palette);
  search.hidden = !text;
  search.firstElementChild.href = `/devices?${new URLSearchParams({ q: text })}`;
  $("span", search).textContent = `Search devices for “${text}”`;
  let first = true;
  for (const row of $$("li", palette)) {
    if (row !== search) row.hidden = !row.textContent.toLowerCase().includes(text);
    row.setAttribute("aria-selected", String(!row.hidden && first));
    if (!row.hidden) first = false;
  }
}
palette?.addEventListener("input", filter);
palette?.addEventListener("keydown", (event) => {
  const rows = $$("li:not([hidden])", palette);
  const at = rows.findIndex((row) => row.getAttribute("aria-selected") === "true");
  if (event.key === "Enter") {
    event.preventDefault();
    rows[at]?.firstElementChild.click();
  } else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    event.preventDefault();
    rows[at]?.setAttribute("aria-selected", "false");
    const next = rows[Math.max(0, Math.min(rows.length - 1, at + (event.key === "ArrowDown" ? 1 : -1)))];
    next?.setAttribute("aria-selected", "true");
    next?.scrollIntoView({ block: "nearest" });
  }
});

const PLACES = { o: "/", d: "/devices", r: "/rollouts", l: "/releases", k: "/keys", a: "/audit" };
let going = 0;
document.addEventListener("keydown", (event) => {
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "k") {
    event.preventDefault();
    openPalette();
    return;
  }
  if (document.body.dataset.keys === "off" || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches("input, select, textarea") || $("dialog[open]")) return;
  if (going && performance.now() - going < 1500 && PLACES[event.key]) {
    location.assign(PLACES[event.key]);
    return;
  }
  going = event.key === "g" ? performance.now() : 0;
  if (event.key === "/") {
    event.preventDefault();
    const box = $("[data-slash]");
    if (box) box.focus();
    else openPalette();
  } else if (event.key === "?") {
    $("#shortcuts")?.showModal();
  } else if (event.key === "j" || event.key === "k") {
    const links = $$("[data-rows] tbody tr").map((row) => $("a", row)).filter(Boolean);
    const at = links.indexOf(document.activeElement);
    links[Math.max(0, Math.min(links.length - 1, at + (event.key === "j" ? 1 : -1)))]?.focus();
  }
});
