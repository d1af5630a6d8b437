// What is shown now, kept in the address; the keyboard; and the page around overview and site.

function firstMeasure() {
  const alarming = (name) => sites.some((site) => runs.some((_, number) => (curve(site, number, name) || []).some((value) => value > 0)));
  return ["dormant_0.025", "dead_units", "zeros"].find((name) => available.includes(name) && alarming(name)) || available.find((name) => name === "std") || available[0];
}

const state = {
  measure: firstMeasure(),
  sort: "worst",
  axis: runs.length && runs.every(hasSteps) ? "step" : "pass",
  theme: matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light",
  query: "",
  module: null,
  site: null,
  extremes: false,
};

/** The state as the address tells it; what it does not know stays as it is. */
function readAddress() {
  const told = new URLSearchParams(location.hash.slice(1));
  const known = { measure: available, sort: ["worst", "model"], axis: axes(), theme: ["light", "dark"] };
  for (const [name, allowed] of Object.entries(known)) if (allowed.includes(told.get(name))) state[name] = told.get(name);
  state.query = told.get("query") || "";
  state.module = told.get("module");
  state.site = sites.some((site) => site.name === told.get("site")) ? told.get("site") : null;
}

function writeAddress() {
  const told = new URLSearchParams();
  for (const name of ["measure", "sort", "axis", "theme"]) if (state[name]) told.set(name, state[name]);
  if (state.query) told.set("query", state.query);
  if (state.module !== null) told.set("module", state.module);
  if (state.site !== null) told.set("site", state.site);
  history.replaceState(null, "", `#${told}`);
}

function axes() {
  return Object.keys(AXES).filter((name) => name !== "step" || runs.some(hasSteps));
}

function change(changes) {
  Object.assign(state, changes);
  writeAddress();
  document.documentElement.dataset.theme = state.theme;
  for (const [id, name] of [["measure", "measure"], ["sort", "sort"], ["axis-choice", "axis"]]) $(id).value = state[name];
  $("search").value = state.query;
  if (available.length) drawOverview();
  if (available.length && ["site", "axis", "theme"].some((name) => name in changes)) drawSite();
}

function openSite(name) {
  change({ site: name });
  if (name !== null) $("site").scrollIntoView({ block: "nearest", behavior: "auto" });
}

/** Go to the row above or below; where a site is open, it is shown in its place. */
function move(by) {
  const rows = [...$("rows").children];
  if (!rows.length) return;
  const focused = rows.indexOf(document.activeElement);
  const at = focused >= 0 ? focused : rows.findIndex((row) => row.dataset.site === state.site);
  const next = rows[Math.min(rows.length - 1, Math.max(0, at < 0 ? 0 : at + by))];
  if (state.site !== null) change({ site: next.dataset.site });
  const row = [...$("rows").children].find((other) => other.dataset.site === next.dataset.site);
  row.focus();
}

function cycle(name, names, by) {
  change({ [name]: names[(names.indexOf(state[name]) + by + names.length) % names.length] });
}

const KEYS = [
  ["/", "search", "search by name, by glob (actor.*) or by type:relu", () => $("search").focus()],
  ["ArrowDown", "↓ j", "the next site", () => move(1)],
  ["ArrowUp", "↑ k", "the site before", () => move(-1)],
  ["Enter", "Enter", "open a site", null],
  ["Escape", "Esc", "close the site, then clear the search", () => change(state.site !== null ? { site: null } : { query: "", module: null })],
  ["]", "] [", "the next measure, the one before", () => cycle("measure", available, 1)],
  ["s", "s", "sort by the worst, or as in the model", () => cycle("sort", ["worst", "model"], 1)],
  ["x", "x", "count by step, pass or time", () => cycle("axis", axes(), 1)],
  ["t", "t", "light or dark", () => cycle("theme", ["light", "dark"], 1)],
  ["?", "?", "this list", () => $("help").showModal()],
];
const ACTIONS = Object.fromEntries(KEYS.filter(([, , , action]) => action).map(([key, , , action]) => [key, action]));
Object.assign(ACTIONS, { j: ACTIONS.ArrowDown, k: ACTIONS.ArrowUp, "[": () => cycle("measure", available, -1) });

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
  const typing = event.target.matches("input, select");
  if (typing && event.key !== "Escape") return;
  if (typing) event.target.blur();
  const action = ACTIONS[event.key];
  if (action) {
    event.preventDefault();
    action();
  }
}

function option(value, text) {
  return make("option", { value }, text);
}

function alarmsOf() {
  const found = [];
  for (const [number, run] of runs.entries()) {
    for (const site of run.sites) if (site.bad) found.push([site.bad.pass, site, run, number]);
  }
  return found.sort((a, b) => a[0] - b[0]);
}

function drawAlarms() {
  const alarms = alarmsOf();
  $("alarms").hidden = !alarms.length;
  if (!alarms.length) return;
  const [, site, run] = alarms[0];
  const button = make("button", { type: "button" }, site.name);
  button.onclick = () => openSite(site.name);
  const more = alarms.length - 1;
  const others = more ? `, and in ${more} more ${more === 1 ? "site" : "sites"} then or later` : "";
  $("alarms").replaceChildren(button, ` ${runs.length > 1 ? `(${run.name}) ` : ""}${site.bad.text}${others}`);
}

function factsOf(run) {
  const time = run.time;
  if (!time.first_pass.length) return "no passes";
  const number = (value) => value.toLocaleString("en");
  const ends = time.episode_ends.reduce((sum, count) => sum + count, 0);
  const records = run.sites.reduce((sum, site) => sum + site.records, 0);
  const facts = [`${number(run.sites.length)} sites`, `${number(records)} records`, `passes ${number(time.first_pass[0])} to ${number(lastOf(time.last_pass))}`];
  if (hasSteps(run)) facts.push(`steps ${number(time.first_mark[0])} to ${number(lastOf(time.last_mark))}`);
  if (ends) facts.push(`${number(ends)} episodes`);
  facts.push(formatSeconds(lastOf(time.ended) - time.started[0]), `${time.first_pass.length} time bins`);
  return facts.join(" · ");
}

function bind() {
  for (const [id, name] of [["measure", "measure"], ["sort", "sort"], ["axis-choice", "axis"]]) $(id).onchange = (event) => change({ [name]: event.target.value });
  $("search").oninput = (event) => change({ query: event.target.value });
  $("theme-button").onclick = ACTIONS.t;
  $("help-button").onclick = ACTIONS["?"];
  $("previous").onclick = () => move(-1);
  $("next").onclick = () => move(1);
  $("close").onclick = () => change({ site: null });
  document.addEventListener("keydown", onKey);
  window.addEventListener("hashchange", () => { readAddress(); change({ site: state.site }); });
  let waiting = 0;
  window.addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(() => change({ site: state.site }), 150); });
}

function start() {
  readAddress();
  document.title = $("title").textContent = page.title;
  $("facts").textContent = runs.length === 1 ? factsOf(runs[0]) : `${runs.length} runs`;
  $("runs").hidden = runs.length < 2;
  $("runs").replaceChildren(
    ...runs.map((run, number) =>
      make("span", {}, make("i", { className: "swatch", style: `background: ${RUN_COLOURS.light[number % 5]}` }), make("strong", {}, run.name), make("span", { className: "muted" }, factsOf(run))),
    ),
  );
  drawAlarms();
  $("measure").replaceChildren(...available.map((name) => option(name, measures.get(name).title)));
  $("sort").replaceChildren(option("worst", "the worst first"), option("model", "as in the model"));
  $("axis-choice").replaceChildren(...axes().map((name) => option(name, AXES[name])));
  $("help-keys").replaceChildren(...KEYS.flatMap(([, keys, text]) => [make("dt", {}, make("kbd", {}, keys)), make("dd", {}, text)]));
  // Records may hold contexts alone, or values without elements.
  $("empty").hidden = available.length > 0;
  $("content").hidden = !available.length;
  if (available.length) buildTree();
  bind();
  change({ site: state.site });
}
