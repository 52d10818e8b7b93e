/* The page of `cni-py show --html` and --serve. Texts of the model become text nodes, never markup. */
"use strict";

const byId = (id) => document.getElementById(id);
const QUIET = new Set(["routes", "rules", "neighbours", "fdb", "flows", "nftables", "iptables", "sysctls", "operations"]);
const TIMES = new Set(["since", "taken"]);
const LONG = 300; // characters from which on a text is folded
const MANY = 60; // objects of a kind from which on its list is folded

let state = JSON.parse(byId("data").textContent);
let objects = new Map();
let selected = "";

/* Control characters and those that turn the direction of a text, as escapes. */
function visible(text) {
  return String(text).replace(/[\p{C}\p{Zl}\p{Zp}]/gu, (one) => "\\u{" + one.codePointAt(0).toString(16) + "}");
}

function make(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children.filter((one) => one !== null));
  return made;
}

const words = (text) => make("bdi", { textContent: visible(text) });

function plural(number, noun) {
  return number === 1 ? `1 ${noun}` : `${number} ${noun}s`;
}

// What is searched

function* texts(value, key = "") {
  if (QUIET.has(key)) return;
  if (value !== null && typeof value === "object") {
    for (const [name, part] of Object.entries(value)) yield* texts(part, name);
  } else if (value !== "" && typeof value !== "boolean") {
    yield String(value).toLowerCase();
  }
}

function index() {
  objects = new Map(state.objects.map((one) => [one.id, one]));
  for (const one of state.objects) {
    one.text = [one.title.toLowerCase(), one.sub.toLowerCase(), ...texts(one.fields)].join("\n");
  }
}

function asked() {
  return byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
}

/* The ids that the search finds; null when nothing is searched. */
function found() {
  const parts = asked();
  if (!parts.length) return null;
  return new Set(state.objects.filter((one) => parts.every((part) => one.text.includes(part))).map((one) => one.id));
}

// Drawing

function showDrawing(markup) {
  const parsed = new DOMParser().parseFromString(markup, "image/svg+xml");
  if (parsed.documentElement.localName === "svg") {
    byId("picture").replaceChildren(document.importNode(parsed.documentElement, true));
  }
}

function groups() {
  return byId("picture").querySelectorAll("[data-id]");
}

function prepareDrawing() {
  const seen = new Set();
  for (const one of groups()) {
    const known = objects.get(one.dataset.id);
    if (!known || one.classList.contains("wire") || seen.has(known.id)) continue;
    seen.add(known.id);
    one.setAttribute("tabindex", "0");
    one.setAttribute("role", "button");
    one.setAttribute("aria-label", visible(`${known.kind} ${known.title}, ${known.sub}`));
  }
}

function paint() {
  const matches = found();
  const near = new Set(matches);
  for (const id of matches ?? []) {
    for (const other of objects.get(id).kind === "host" ? [] : objects.get(id).related) near.add(other);
  }
  byId("picture").classList.toggle("searching", matches !== null);
  for (const one of groups()) {
    one.classList.toggle("selected", one.dataset.id === selected && one.dataset.id !== "host");
    one.classList.toggle("match", matches !== null && near.has(one.dataset.id));
  }
}

// Findings

function showFindings() {
  const counts = { error: 0, warning: 0, note: 0 };
  for (const one of state.findings) counts[one.level] += 1;
  const parts = Object.entries(counts).filter(([, number]) => number).map(([level, number]) => plural(number, level));
  const list = make("ul", {}, ...state.findings.map((one) => make("li", {}, finding(one))));
  const fine = counts.error + counts.warning === 0;
  const title = fine ? "No errors and no warnings" : `What is wrong: ${parts.join(", ")}`;
  const body = fine && state.findings.length > 3
    ? make("details", {}, make("summary", { textContent: plural(counts.note, "note") }), list) : list;
  byId("findings").replaceChildren(make("h2", { textContent: title }), body);
}

function finding(one) {
  const target = one.objects[0];
  const shown = make(target ? "button" : "div", { className: `finding ${one.level}` },
    make("b", { className: one.level, textContent: `${one.level} ` }), make("b", {}, words(one.subject)), ": ", words(one.what));
  if (one.why) shown.append(make("div", { className: "dim" }, words(one.why)));
  if (one.do) shown.append(make("div", {}, "Do: ", make("code", {}, words(one.do))));
  if (target) {
    shown.type = "button";
    shown.addEventListener("click", () => select(target));
  }
  return shown;
}

// Lists

function button(one) {
  const made = make("button", { type: "button", className: one.id === selected ? "selected" : "" },
    one.level === "error" || one.level === "warning" ? make("b", { className: one.level, textContent: one.level === "error" ? "✗ " : "⚠ " }) : null,
    words(one.title || "(no name)"), " ", make("span", { className: "dim" }, words(one.sub)));
  made.dataset.object = one.id;
  made.addEventListener("click", () => select(one.id));
  return made;
}

function showLists() {
  const matches = found();
  const kinds = new Map();
  let total = 0;
  for (const one of state.objects) {
    if (matches ? !matches.has(one.id) : !one.listed) continue;
    total += 1;
    if (!kinds.has(one.kind)) kinds.set(one.kind, []);
    kinds.get(one.kind).push(one);
  }
  byId("count").textContent = matches ? `${total} found` : "";
  byId("lists").replaceChildren(...[...kinds].map(([kind, members]) => make("details", { open: matches !== null || members.length < MANY },
    make("summary", { textContent: `${kind} (${members.length})` }), make("ul", {}, ...members.map((one) => make("li", {}, button(one)))))));
}

// Details

function shown(value, key = "") {
  if (value === null || value === "" || (Array.isArray(value) && !value.length)) return make("span", { className: "dim", textContent: "–" });
  if (typeof value === "boolean") return document.createTextNode(value ? "yes" : "no");
  if (TIMES.has(key) && typeof value === "number") return document.createTextNode(value ? new Date(value * 1000).toLocaleString() : "–");
  if (Array.isArray(value)) return value.every((one) => one !== null && typeof one === "object" && !Array.isArray(one)) ? table(value) : rows(value);
  if (typeof value === "object") return fields(value);
  if (String(value).length > LONG) {
    const lines = String(value).split("\n").map(visible).join("\n");
    return make("details", {}, make("summary", { textContent: plural(String(value).length, "character") }), make("pre", { textContent: lines }));
  }
  return make("span", { className: "value" }, words(value));
}

function rows(values) {
  return make("div", {}, ...values.map((one) => make("div", {}, ...(Array.isArray(one) ? one.flatMap((part) => [shown(part), " "]) : [shown(one)]))));
}

function table(values) {
  const empty = (value) => value === "" || value === 0 || value === false || value === null || (Array.isArray(value) && !value.length);
  const columns = [...new Set(values.flatMap(Object.keys))].filter((name) => values.some((one) => !empty(one[name])));
  const head = make("tr", {}, ...columns.map((name) => make("th", { textContent: name })));
  const body = values.map((one) => make("tr", {}, ...columns.map((name) => make("td", {}, shown(one[name], name)))));
  const made = make("table", {}, head, ...body);
  return values.length > 8 ? make("details", {}, make("summary", { textContent: plural(values.length, "entry").replace("entrys", "entries") }), made) : made;
}

function fields(value) {
  return make("table", {}, ...Object.entries(value).map(([name, part]) => {
    const label = words(name.replaceAll("_", " "));
    if (Array.isArray(part) && part.length && typeof part[0] === "object" && !Array.isArray(part[0])) {
      return make("tr", {}, make("td", { colSpan: 2, className: "wide" }, make("div", { className: "dim" }, label), shown(part, name)));
    }
    return make("tr", {}, make("th", { scope: "row" }, label), make("td", {}, shown(part, name)));
  }));
}

function showDetails() {
  const one = objects.get(selected);
  if (!one) {
    byId("details").replaceChildren();
    return;
  }
  const close = make("button", { type: "button", textContent: "Close", ariaLabel: "Close the details" });
  close.addEventListener("click", () => select(""));
  const mine = state.findings.filter((about) => about.objects.includes(one.id));
  const others = one.related.map((id) => objects.get(id)).filter(Boolean);
  byId("details").replaceChildren(
    make("div", { className: "top" }, make("h2", {}, make("span", { className: "dim", textContent: `${one.kind} ` }), words(one.title)), close),
    ...mine.map((about) => make("p", {}, make("b", { className: about.level, textContent: `${about.level}: ` }), words(about.what), about.do ? make("div", {}, "Do: ", make("code", {}, words(about.do))) : null)),
    ...(others.length ? [make("h2", { textContent: "Belongs to it" }), related(others)] : []),
    make("h2", { textContent: "Fields" }),
    fields(one.fields),
  );
}

function related(others) {
  const list = make("ul", { className: "related" }, ...others.map((one) => {
    const made = button(one);
    made.prepend(make("span", { className: "dim", textContent: `${one.kind} ` }));
    return make("li", {}, made);
  }));
  return others.length > MANY ? make("details", {}, make("summary", { textContent: plural(others.length, "object") }), list) : list;
}

let before = null; // what had the keyboard when the details were opened

function select(id) {
  if (id && !selected) before = document.activeElement;
  const closed = selected && !id;
  selected = objects.has(id) ? id : "";
  showDetails();
  paint();
  for (const one of byId("lists").querySelectorAll("button")) one.classList.toggle("selected", one.dataset.object === selected);
  byId("details").scrollTop = 0;
  if (closed && before?.isConnected) before.focus();
}

// All of it

function show() {
  index();
  byId("title").replaceChildren(words(state.title));
  const when = new Date(state.taken * 1000);
  byId("taken").textContent = `as it was ${when.toLocaleString()}, cni-py ${state.version}`;
  prepareDrawing();
  showFindings();
  showLists();
  showDetails();
  paint();
}

function follow() {
  const live = byId("live");
  live.hidden = false;
  live.textContent = "live";
  const source = new EventSource(`events?since=${state.live}`);
  source.addEventListener("open", () => { live.textContent = "live"; });
  source.addEventListener("error", () => { live.textContent = "connection lost, trying again"; });
  source.addEventListener("message", (event) => {
    state = JSON.parse(event.data);
    showDrawing(state.drawing);
    show();
  });
}

function remember(theme) {
  const names = { "": "system", dark: "dark", light: "light" };
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  byId("theme").textContent = `Theme: ${names[theme]}`;
}

byId("theme").addEventListener("click", () => {
  const order = ["", "dark", "light"];
  remember(order[(order.indexOf(document.documentElement.dataset.theme ?? "") + 1) % order.length]);
});
byId("search").addEventListener("input", () => { showLists(); paint(); });
byId("search").addEventListener("keydown", (event) => {
  if (event.key === "Enter") select([...(found() ?? [])][0] ?? "");
});
byId("picture").addEventListener("click", (event) => {
  const group = event.target.closest("[data-id]");
  if (group && objects.has(group.dataset.id)) select(group.dataset.id);
});
byId("picture").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" && event.key !== " ") return;
  const group = event.target.closest("[data-id]");
  if (!group) return;
  event.preventDefault();
  select(group.dataset.id);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") select("");
  if (event.key === "/" && event.target.localName !== "input") {
    event.preventDefault();
    byId("search").focus();
  }
});
show();
if (state.live) follow();
