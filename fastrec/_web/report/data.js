// What the page shows: runs, sites and measures, as they stand in the document, and how their numbers are said and coloured.

const page = JSON.parse(document.getElementById("data").textContent);
const runs = page.runs;
const measures = new Map(page.measures.map((measure) => [measure.name, measure]));

/** The sites of all runs in the order of the first run that has them. */
const sites = [];
for (const [number, run] of runs.entries()) {
  for (const site of run.sites) {
    let entry = sites.find((other) => other.name === site.name);
    if (!entry) {
      entry = { name: site.name, order: sites.length, modules: site.modules, runs: runs.map(() => null) };
      sites.push(entry);
    }
    entry.runs[number] = site;
  }
}

const HEATED = [
  "dormant_0.025", "dormant_0", "dormant_0.1", "dead_units", "zeros", "saturated", "norm", "rank", "drift", "nan", "inf",
  "mean", "std", "median",
];

/** The values of a measure at a site of a run, one for each time bin; null where there are none. */
function curve(site, number, measure) {
  const own = site.runs[number];
  return own ? own.curves[measure] || null : null;
}

function hasMeasure(site, measure) {
  return site.runs.some((own, number) => curve(site, number, measure));
}

const available = HEATED.filter((name) => sites.some((site) => hasMeasure(site, name)));

function lastOf(values) {
  for (let i = values ? values.length - 1 : -1; i >= 0; i--) if (values[i] !== null) return values[i];
  return null;
}

function formatNumber(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-3) return value.toExponential(1).replace("e+", "e");
  return String(Number(value.toPrecision(3)));
}

/** A number of a measure; a share is 0 % or 100 % only where it is none or all. */
function formatValue(measure, value) {
  if (value === null || value === undefined) return "–";
  const scale = measures.get(measure).scale;
  if (scale === "share") {
    if (value === 0 || value === 1) return `${100 * value} %`;
    const percent = Math.min(99.9, Math.max(0.1, 100 * value));
    return `${percent < 10 || percent > 99 ? percent.toFixed(1) : Math.round(percent)} %`;
  }
  if (measure === "nan" || measure === "inf") return value.toLocaleString("en");
  return formatNumber(value);
}

function formatSeconds(seconds) {
  if (seconds < 120) return `${formatNumber(seconds)} s`;
  if (seconds < 7200) return `${formatNumber(seconds / 60)} min`;
  return `${formatNumber(seconds / 3600)} h`;
}

const AXES = { step: "step", pass: "pass", time: "time" };

function hasSteps(run) {
  return lastOf(run.time.last_mark) > 0;
}

/** Where the bins of a run begin and end on an axis. */
function extent(run, axis) {
  const time = run.time;
  if (axis === "time") return [time.started, time.ended];
  if (axis === "step") return [time.first_mark, time.last_mark];
  return [time.first_pass, time.last_pass];
}

function middles(run, axis) {
  const [first, last] = extent(run, axis);
  return first.map((start, i) => (start + last[i]) / 2);
}

function formatX(axis, value) {
  return axis === "time" ? formatSeconds(value) : Math.round(value).toLocaleString("en");
}

function formatExtent(run, axis, bin) {
  const [first, last] = extent(run, axis);
  if (axis === "time") return `${formatSeconds(first[bin])} to ${formatSeconds(last[bin])}`;
  const [from, to] = [formatX(axis, first[bin]), formatX(axis, last[bin])];
  return from === to ? `${axis} ${from}` : `${axis === "pass" ? "passes" : "steps"} ${from} to ${to}`;
}

/** Colours from calm to bad, of measures of which one end is bad; and of those that are only more or less. */
const RAMPS = {
  light: {
    alarm: ["#eef2f7", "#fbe3b4", "#f7b267", "#ec6b4a", "#b3203b", "#5f0f2e"],
    plain: ["#eef4fb", "#bfd9f2", "#7fb2e5", "#3f83cf", "#1f559e", "#0f2f63"],
    signed: ["#9c4a12", "#dd9a5c", "#f6dcc0", "#f1f3f6", "#c3d9f2", "#6b9fdc", "#1f4f99"],
  },
  dark: {
    alarm: ["#1e2530", "#4a2a4a", "#8f2f58", "#d14f4d", "#f59a4b", "#fde6a0"],
    plain: ["#1b2430", "#1f3f66", "#2b66a6", "#4a93d9", "#8dbff0", "#dcecfb"],
    signed: ["#f0b47c", "#b8763a", "#5b4230", "#222932", "#2c4566", "#4a86c8", "#b5d6f7"],
  },
};

function parseColour(text) {
  return [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16));
}

function rampAt(ramp, share) {
  const at = Math.min(1, Math.max(0, share)) * (ramp.length - 1);
  const low = Math.min(ramp.length - 2, Math.floor(at));
  const [a, b] = [parseColour(ramp[low]), parseColour(ramp[low + 1])];
  return a.map((value, i) => Math.round(value + (b[i] - value) * (at - low)));
}

const SIGNED = new Set(["mean", "median"]);

/** How the numbers of a measure become shares of a ramp, and what the legend says of its ends. */
function scaleOf(measure) {
  const { scale, alarm } = measures.get(measure);
  if (SIGNED.has(measure)) {
    return { ramp: "signed", ends: ["−", "+"], word: "relative to each site's largest", own: (value, most) => 0.5 + (0.5 * value) / most };
  }
  if (scale === "share") return { ramp: "alarm", ends: ["0 %", "100 %"], word: "", own: (value) => Math.pow(value, 0.7) };
  if (measure === "rank") {
    return { ramp: "alarm", ends: ["all units", "0"], word: "of the units", own: (value, most, site) => 1 - value / (site.units || most) };
  }
  if (measure === "drift") return { ramp: "alarm", ends: ["1", "0"], word: "cosine", own: (value) => 1 - Math.max(0, value) };
  if (measure === "nan" || measure === "inf") return { ramp: "alarm", ends: ["0", "some"], word: "", own: (value) => (value > 0 ? 0.8 : 0) };
  return { ramp: "plain", ends: ["0", "max"], word: "relative to each site's largest", own: (value, most) => value / most };
}

/** How bad a site is lately, from 0 to 1, by the shares of the ramp that its last quarter has; sites are sorted by it. */
function badness(site, measure) {
  let worst = -1;
  for (const number of runs.keys()) {
    const shares = sharesOf(site, number, measure);
    if (!shares) continue;
    const known = shares.filter((share) => share !== null);
    const late = known.slice(-Math.max(1, Math.ceil(known.length / 4)));
    if (!late.length) continue;
    const mean = late.reduce((sum, share) => sum + share, 0) / late.length;
    worst = Math.max(worst, SIGNED.has(measure) ? Math.abs(mean - 0.5) : mean);
    if (measure === "nan" || measure === "inf") worst = Math.max(worst, Math.max(...known));
  }
  return worst;
}

function sharesOf(site, number, measure) {
  const values = curve(site, number, measure);
  if (!values) return null;
  const scale = scaleOf(measure);
  let most = 0;
  for (const other of runs.keys()) {
    for (const value of curve(site, other, measure) || []) if (value !== null) most = Math.max(most, Math.abs(value));
  }
  return values.map((value) => (value === null ? null : scale.own(value, most || 1, site.runs[number])));
}
