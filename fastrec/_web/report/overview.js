// The overview: a row of colours for each site, time from left to right, with marks below; and the tree of the model.

const $ = (id) => document.getElementById(id);

/** An element with properties and children; texts are texts, whatever is in them. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("aria-") || name === "role" || name === "style") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

const RUN_COLOURS = { light: ["#2f6fde", "#e07b1a", "#2a9d60", "#9b4fc9", "#c93c5c"], dark: ["#6ea3ff", "#f2a154", "#5cc98c", "#c38bea", "#f27c96"] };

function runColour(number) {
  const colours = RUN_COLOURS[state.theme];
  return colours[number % colours.length];
}

function phaseColour(number) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--phase-${number % 6}`).trim();
}

const phaseNames = [...new Set(runs.flatMap((run) => Object.keys(run.time.phases)))];
const namedPhases = phaseNames.filter((name) => name !== "").length > 0;

function shownSites() {
  const words = state.query.toLowerCase().split(/\s+/).filter(Boolean);
  const inside = state.module;
  let shown = sites.filter((site) => {
    if (!hasMeasure(site, state.measure)) return false;
    if (inside !== null && !site.modules.some(([address]) => address === inside)) return false;
    return words.every((word) => matches(site, word));
  });
  if (state.sort === "worst") {
    const grade = new Map(shown.map((site) => [site, badness(site, state.measure)]));
    shown = [...shown].sort((a, b) => grade.get(b) - grade.get(a) || a.order - b.order);
  }
  return shown;
}

/** Whether a site has a word in its name or its type; with * and ? the word has to match all of the name. */
function matches(site, word) {
  const name = site.name.toLowerCase();
  const types = site.runs.filter(Boolean).map((own) => own.type.toLowerCase());
  if (word.startsWith("type:")) return types.some((type) => glob(word.slice(5), type));
  if (/[*?]/.test(word)) return glob(word, name);
  return name.includes(word) || types.some((type) => type.includes(word));
}

function glob(pattern, text) {
  const parts = pattern.replace(/[.+^${}()|[\]\\]/g, "\\$&").replace(/\*/g, ".*").replace(/\?/g, ".");
  return new RegExp(`^${parts}$`, "s").test(text);
}

function drawOverview() {
  const measure = measures.get(state.measure);
  const scale = scaleOf(state.measure);
  const ramp = RAMPS[state.theme][scale.ramp];
  const shown = shownSites();
  const longest = Math.max(8, ...shown.map((site) => site.name.length));
  $("overview").style.setProperty("--label", `${Math.min(300, Math.max(104, 14 + 7.7 * longest))}px`);
  $("definition").textContent = measure.definition + (measure.source ? ` ${measure.source}.` : "");
  $("legend").replaceChildren(
    make("span", {}, scale.ends[0]),
    make("i", { style: `background: linear-gradient(90deg, ${ramp.join(", ")})` }),
    make("span", {}, scale.ends[1]),
    ...(scale.word ? [make("span", {}, scale.word)] : []),
  );
  const tall = shown.length <= 6 ? 30 : shown.length <= 14 ? 24 : shown.length <= 40 ? 18 : 14;
  $("overview").style.setProperty("--tall", `${runs.length > 1 ? Math.max(9, tall / 2) * runs.length : tall}px`);
  $("rows").replaceChildren(...shown.map((site) => rowOf(site, ramp)));
  const without = sites.filter((site) => !hasMeasure(site, state.measure)).length;
  const parts = [];
  if (!shown.length) parts.push("No site matches. Esc clears the search.");
  if (without) parts.push(`${without} ${without === 1 ? "site is" : "sites are"} left out: this is not said of ${without === 1 ? "it" : "them"}.`);
  $("absent").textContent = parts.join(" ");
  drawStrips();
  drawAxis();
  for (const leaf of $("tree").querySelectorAll(".leaf")) colourLeaf(leaf, ramp);
  markCurrent();
}

function rowOf(site, ramp) {
  const canvas = make("canvas", { width: Math.max(1, binCount()), height: runs.length });
  const pen = canvas.getContext("2d");
  const lasts = [];
  for (const number of runs.keys()) {
    paint(pen, canvas.width, number, sharesOf(site, number, state.measure), ramp);
    lasts.push(formatValue(state.measure, lastOf(curve(site, number, state.measure))));
  }
  const name = make("span", { className: "name", title: site.name }, make("bdi", {}, site.name));
  const last = make("span", { className: "last", title: "the last time bin" }, lasts.join(" · "));
  const row = make("button", { className: "row", type: "button" }, name, canvas, last);
  row.dataset.site = site.name;
  row.onclick = () => openSite(site.name);
  row.onmousemove = (event) => showTip(event, canvas, site);
  row.onmouseleave = hideTip;
  return row;
}

function binCount() {
  return Math.max(0, ...runs.map((run) => run.time.first_pass.length));
}

/** A line of colours; a run with fewer bins than another is stretched to the same width. */
function paint(pen, width, line, shares, ramp) {
  if (!shares || !shares.length) return;
  const image = pen.createImageData(width, 1);
  for (let x = 0; x < width; x++) {
    const share = shares[Math.floor((x * shares.length) / width)];
    if (share === null) continue;
    const [r, g, b] = rampAt(ramp, share);
    image.data.set([r, g, b, 255], 4 * x);
  }
  pen.putImageData(image, 0, line);
}

function stripOf(label, draw, height) {
  const canvas = make("canvas", {});
  canvas.style.height = `${height}px`;
  const strip = make("div", { className: "row strip" }, make("span", { className: "name" }, label), canvas, make("span", {}));
  draw(canvas, height);
  return strip;
}

/** Below the rows: how many episodes ended in each bin, and to which phases its passes belong. */
function drawStrips() {
  const strips = [];
  for (const [number, run] of runs.entries()) {
    const suffix = runs.length > 1 ? ` ${run.name}` : "";
    if (run.time.episode_ends.some(Boolean)) {
      strips.push(stripOf(`episode ends${suffix}`, (canvas, height) => drawEnds(canvas, height, run, number), 16));
    }
    if (namedPhases) strips.push(stripOf(`phases${suffix}`, (canvas) => drawPhases(canvas, run), 10));
  }
  $("strips").replaceChildren(...strips);
  const names = namedPhases ? phaseNames : [];
  $("phases").replaceChildren(
    ...names.map((name, number) =>
      make("span", {}, make("i", { className: "swatch", style: `background: var(--phase-${number % 6})` }), name || "no phase"),
    ),
  );
}

function drawEnds(canvas, height, run, number) {
  const ends = run.time.episode_ends;
  const most = Math.max(...ends);
  canvas.width = 4 * ends.length;
  canvas.height = 4 * height;
  const pen = canvas.getContext("2d");
  pen.fillStyle = runs.length > 1 ? runColour(number) : getComputedStyle(document.documentElement).getPropertyValue("--muted").trim();
  ends.forEach((count, bin) => {
    const tall = count ? Math.max(4, (canvas.height * count) / most) : 0;
    pen.fillRect(4 * bin, canvas.height - tall, 3, tall);
  });
}

function drawPhases(canvas, run) {
  const bins = run.time.passes.length;
  canvas.width = Math.max(1, bins);
  canvas.height = 40;
  const pen = canvas.getContext("2d");
  for (let bin = 0; bin < bins; bin++) {
    let top = 0;
    phaseNames.forEach((name, number) => {
      const share = (run.time.phases[name] || [])[bin] / run.time.passes[bin] || 0;
      pen.fillStyle = phaseColour(number);
      pen.fillRect(bin, Math.round(top * 40), 1, Math.ceil(share * 40));
      top += share;
    });
  }
}

/** Numbers of the chosen axis below the overview, of the first run. */
function drawAxis() {
  const run = runs[0];
  const bins = run.time.first_pass.length;
  const [first, last] = extent(run, state.axis);
  const count = Math.min(bins, Math.max(2, Math.floor($("axis").clientWidth / 110)));
  const ticks = [];
  for (let i = 0; i <= count && bins; i++) {
    const at = (i * bins) / count;
    const bin = Math.min(bins - 1, Math.floor(at));
    const value = i === count ? last[bins - 1] : first[bin];
    const tick = make("span", { style: `left: ${(100 * at) / bins}%` }, (i === 0 ? `${AXES[state.axis]} ` : "") + formatX(state.axis, value));
    if (i === 0) tick.className = "first";
    if (i === count) tick.className = "final";
    ticks.push(tick);
  }
  $("axis").replaceChildren(...ticks);
}

function showTip(event, canvas, site) {
  const box = canvas.getBoundingClientRect();
  const share = (event.clientX - box.left) / box.width;
  if (share < 0 || share >= 1) return hideTip();
  const line = Math.min(runs.length - 1, Math.max(0, Math.floor(((event.clientY - box.top) / box.height) * runs.length)));
  const run = runs[line];
  const bin = Math.floor(share * run.time.first_pass.length);
  const values = curve(site, line, state.measure);
  const lines = [
    make("b", {}, site.name),
    make("div", {}, `${measures.get(state.measure).title}: ${values ? formatValue(state.measure, values[bin]) : "–"}`),
    make("div", {}, [runs.length > 1 ? run.name : "", formatExtent(run, state.axis, bin)].filter(Boolean).join(", ")),
  ];
  const ends = run.time.episode_ends[bin];
  if (ends) lines.push(make("div", {}, `${ends} ${ends === 1 ? "episode" : "episodes"} ended`));
  const tip = $("tip");
  tip.replaceChildren(...lines);
  tip.style.display = "block";
  tip.style.left = `${Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 8)}px`;
  tip.style.top = `${Math.min(event.clientY + 16, window.innerHeight - tip.offsetHeight - 8)}px`;
  const hair = $("crosshair");
  hair.style.display = "block";
  hair.style.left = `${event.clientX - $("overview").getBoundingClientRect().left}px`;
  return undefined;
}

function hideTip() {
  $("tip").style.display = $("crosshair").style.display = "none";
}

/** The modules that the sites lie in, as they are nested. */
function buildTree() {
  const root = { children: new Map(), leaves: [] };
  for (const site of sites) {
    let node = root;
    for (const [address, type] of site.modules) {
      if (!node.children.has(address)) node.children.set(address, { address, type, children: new Map(), leaves: [] });
      node = node.children.get(address);
    }
    node.leaves.push(site);
  }
  $("tree").replaceChildren(...branchesOf(root, ""));
}

function branchesOf(node, above) {
  const leaves = node.leaves.map((site) => {
    const text = site.name.startsWith(`${node.address}/`) ? site.name.slice(node.address.length + 1) : site.name;
    const leaf = make("button", { className: "leaf", type: "button", title: site.name }, make("i", { className: "dot" }), text);
    leaf.dataset.site = site.name;
    leaf.onclick = () => openSite(site.name);
    return leaf;
  });
  const folders = [...node.children.values()].map((child) => {
    const short = above && child.address.startsWith(`${above}.`) ? child.address.slice(above.length + 1) : child.address;
    const only = make("button", { className: "only", type: "button", title: "show only what is in it", "aria-pressed": "false" }, "only");
    only.dataset.module = child.address;
    only.onclick = (event) => {
      event.preventDefault();
      change({ module: state.module === child.address ? null : child.address });
    };
    const summary = make("summary", {}, make("span", {}, short || "model"), make("span", { className: "type" }, child.type), only);
    return make("details", { open: true }, summary, make("div", {}, ...branchesOf(child, child.address)));
  });
  return [...leaves, ...folders];
}

function colourLeaf(leaf, ramp) {
  const site = sites.find((other) => other.name === leaf.dataset.site);
  const shares = site && sharesOf(site, site.runs.findIndex(Boolean), state.measure);
  const share = lastOf(shares);
  leaf.firstChild.style.background = share === null ? "" : `rgb(${rampAt(ramp, share).join(" ")})`;
}

function markCurrent() {
  for (const element of document.querySelectorAll("[data-site]")) {
    element.setAttribute("aria-current", String(element.dataset.site === state.site));
  }
  for (const element of document.querySelectorAll("[data-module]")) {
    element.setAttribute("aria-pressed", String(element.dataset.module === state.module));
  }
}
