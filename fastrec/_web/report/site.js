// One site: a plot for each group of measures, made when it scrolls into view, with the definitions beside it.

/** What each plot draws: lines, and bands between two measures. The first line is drawn on top. */
const DRAWN = {
  values: { lines: [["median", 1], ["min", 0.35], ["max", 0.35]], bands: [["q05", "q95", 0.14], ["q25", "q75", 0.24]], wide: true },
  zeros: { lines: [["zeros", 1], ["dead_units", 1]], bands: [] },
  dormant: { lines: [["dormant_0.025", 1], ["dormant_0", 0.75], ["dormant_0.1", 0.75]], bands: [] },
  saturated: { lines: [["saturated", 1]], bands: [] },
  norm: { lines: [["norm", 1]], bands: [["norm_q05", "norm_q95", 0.2]] },
  rank: { lines: [["rank", 1]], bands: [] },
  bad: { lines: [["nan", 1], ["inf", 1]], bands: [] },
  drift: { lines: [["drift", 1]], bands: [] },
};
const DASHES = [[], [6, 4], [2, 3]];
const LINE_COLOURS = { light: ["#2f6fde", "#d9480f", "#2a9d60"], dark: ["#6ea3ff", "#ff9a5c", "#5cc98c"] };

let charts = [];
let observer = null;

function closeCharts() {
  if (observer) observer.disconnect();
  for (const chart of charts) chart.destroy();
  charts = [];
}

function drawSite() {
  closeCharts();
  const site = sites.find((other) => other.name === state.site);
  $("site").hidden = !site;
  if (!site) return;
  $("site-name").textContent = site.name;
  $("site-path").replaceChildren(...pathOf(site));
  $("notes").replaceChildren(...notesOf(site));
  const cards = Object.keys(DRAWN).filter((plot) => isDrawn(site, plot)).map((plot) => cardOf(site, plot));
  $("plots").replaceChildren(...cards);
  observer = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      observer.unobserve(entry.target);
      drawChart(site, entry.target);
    }
  }, { rootMargin: "250px" });
  for (const card of cards) observer.observe(card);
}

function isDrawn(site, plot) {
  if (plot === "bad") return site.runs.some((own) => own && own.bad);
  return DRAWN[plot].lines.some(([name]) => hasMeasure(site, name));
}

function pathOf(site) {
  const own = site.runs.find(Boolean);
  const modules = site.modules.map(([address, type]) => `${address || "model"} (${type})`).join(" › ");
  const axis = own.axis === null ? "" : ` on axis ${own.axis}`;
  const facts = [modules, own.type, `${own.records.toLocaleString("en")} records`];
  if (own.units !== null) facts.push(`${own.units.toLocaleString("en")} ${own.units === 1 ? "unit" : "units"}${axis}`);
  return [facts.filter(Boolean).join(" · ")];
}

function notesOf(site) {
  const notes = [];
  for (const [number, own] of site.runs.entries()) {
    const of = runs.length > 1 ? `${runs[number].name}: ` : "";
    if (!own) notes.push(make("li", {}, `${of}nothing was recorded here`));
    for (const note of own ? own.notes : []) notes.push(make("li", { className: own.bad && note === own.bad.text ? "bad" : "" }, of + note));
  }
  return notes;
}

function cardOf(site, plot) {
  const card = make("section", { className: `plot${DRAWN[plot].wide ? " wide" : ""}` });
  card.dataset.plot = plot;
  const drawn = drawnMeasures(site, plot);
  const terms = drawn.filter((name) => !(plot === "values" || plot === "norm") || ["median", "norm"].includes(name));
  const shown = (plot === "dormant" ? terms.slice(0, 1) : terms).map((name) => {
    const measure = measures.get(name);
    return make("div", {}, make("dt", {}, measure.title), make("dd", {}, measure.definition + (measure.source ? ` ${measure.source}.` : "")));
  });
  const heading = make("h3", {}, page.plots[plot]);
  if (plot === "values" && hidesExtremes(site)) heading.append(extremesButton());
  card.append(
    heading,
    make("div", { className: "keys" }),
    make("div", { className: "chart" }),
    make("dl", {}, ...shown),
  );
  return card;
}

/** From the lowest 5 % to the highest 95 % of all bins and runs. */
function bandOf(site) {
  let [low, high] = [Infinity, -Infinity];
  for (const number of runs.keys()) {
    for (const value of curve(site, number, "q05") || []) if (value !== null) low = Math.min(low, value);
    for (const value of curve(site, number, "q95") || []) if (value !== null) high = Math.max(high, value);
  }
  return [low, high];
}

/** Whether the extremes are so far out that all else would be a line. */
function hidesExtremes(site) {
  const [low, high] = bandOf(site);
  let [least, most] = [low, high];
  for (const number of runs.keys()) {
    for (const value of curve(site, number, "min") || []) if (value !== null) least = Math.min(least, value);
    for (const value of curve(site, number, "max") || []) if (value !== null) most = Math.max(most, value);
  }
  return high > low && most - least > 3 * (high - low);
}

function extremesButton() {
  const button = make("button", { type: "button", className: "toggle", "aria-pressed": String(state.extremes) }, "show extremes");
  button.onclick = () => {
    state.extremes = !state.extremes;
    drawSite();
  };
  return button;
}

function drawnMeasures(site, plot) {
  const { lines, bands } = DRAWN[plot];
  const names = [...lines.map(([name]) => name), ...bands.flatMap(([low, high]) => [low, high])];
  return names.filter((name) => hasMeasure(site, name));
}

/** The lines of a plot; where runs are compared, or extremes would hide all else, only those that say most. */
function linesOf(site, plot) {
  const { lines } = DRAWN[plot];
  if (plot === "values" && !state.extremes && hidesExtremes(site)) return lines.slice(0, 1);
  return plot === "dormant" && runs.length > 1 ? lines.slice(0, 1) : lines;
}

/** The points of all runs on one axis, in order, and for each run where its bins are among them. */
function joined(axis) {
  const each = runs.map((run) => middles(run, axis));
  const xs = [...new Set(each.flat())].sort((a, b) => a - b);
  const at = new Map(xs.map((x, i) => [x, i]));
  return { xs, places: each.map((own) => own.map((x) => at.get(x))) };
}

function spread(values, places, count) {
  const found = new Array(count).fill(null);
  if (values) values.forEach((value, bin) => { if (value !== null) found[places[bin]] = value; });
  return found;
}

function drawChart(site, card) {
  const plot = card.dataset.plot;
  const { lines, bands } = DRAWN[plot];
  const { xs, places } = joined(state.axis);
  const data = [xs];
  const series = [{}];
  const areas = [];
  const keys = [];
  const style = getComputedStyle(document.documentElement);
  const colourOf = (number, line) => (runs.length > 1 ? runColour(number) : LINE_COLOURS[state.theme][line % 3]);
  const add = (number, name, options) => {
    data.push(spread(curve(site, number, name), places[number], xs.length));
    series.push({ spanGaps: true, points: { show: data[data.length - 1].filter((v) => v !== null).length === 1 }, ...options });
    return series.length - 1;
  };
  for (const number of runs.keys()) {
    for (const [low, high, alpha] of bands) {
      if (!curve(site, number, low)) continue;
      const bottom = add(number, low, { stroke: "transparent", width: 0 });
      const top = add(number, high, { stroke: "transparent", width: 0 });
      const colour = fade(colourOf(number, 0), alpha);
      areas.push({ series: [top, bottom], fill: colour });
      if (runs.length === 1) keys.push({ text: bandTitle(low, high), colour, area: true, at: [bottom, top], name: low });
    }
    linesOf(site, plot).forEach(([name, alpha], line) => {
      if (!curve(site, number, name)) return;
      const colour = colourOf(number, plot === "values" ? 0 : line);
      const faint = alpha < 0.5;
      const at = add(number, name, {
        stroke: faint ? fade(colour, 0.55) : colour,
        width: faint ? 1 : 1.8,
        dash: faint ? [2, 3] : runs.length > 1 ? DASHES[line % 3] : DASHES[plot === "dormant" ? line % 3 : 0],
      });
      keys.push({ text: measures.get(name).title, colour, at: [at], name });
    });
  }
  const share = lines.some(([name]) => ["share", "cosine"].includes(measures.get(name).scale));
  const options = {
    width: card.clientWidth - 26,
    height: DRAWN[plot].wide ? 240 : 190,
    series,
    bands: areas,
    legend: { show: false },
    cursor: { sync: { key: "bins" }, points: { size: 6 }, drag: { x: true, y: false } },
    scales: { x: { time: false }, y: { range: (chart, low, high) => rangeOf(site, plot, low, high) } },
    axes: [
      { stroke: style.getPropertyValue("--muted"), grid: { stroke: style.getPropertyValue("--line"), width: 1 }, ticks: { show: false }, size: 30,
        values: (chart, ticks) => ticks.map((tick) => (Number.isInteger(tick) || state.axis === "time" ? formatX(state.axis, tick) : "")) },
      { stroke: style.getPropertyValue("--muted"), grid: { stroke: style.getPropertyValue("--line"), width: 1 }, ticks: { show: false }, size: 54,
        values: (chart, ticks) => ticks.map((tick) => (share && plot !== "drift" ? `${Math.round(100 * tick)} %` : formatNumber(tick))) },
    ],
    hooks: { draw: [drawMarks], setCursor: [(chart) => showKeys(card, keys, chart)] },
  };
  const chart = new uPlot(options, data, card.querySelector(".chart"));
  charts.push(chart);
  showKeys(card, keys, chart);
}

function rangeOf(site, plot, low, high) {
  if (plot === "values" && !state.extremes && hidesExtremes(site)) [low, high] = bandOf(site);
  if (["zeros", "dormant", "saturated"].includes(plot)) return [0, Math.max(1, high || 0)];
  if (plot === "drift") return [Math.min(0, low || 0), 1];
  if (low === null || low === undefined) return [0, 1];
  if (["norm", "rank", "bad"].includes(plot)) return [0, (high || 1) * 1.08];
  const room = (high - low || Math.abs(high) || 1) * 0.06;
  return [low - room, high + room];
}

function bandTitle(low, high) {
  return low.includes("05") || high.includes("95") ? "5 to 95 %" : "25 to 75 %";
}

function fade(colour, alpha) {
  return `rgb(${parseColour(colour).join(" ")} / ${alpha})`;
}

/** Names and numbers above a plot: where the cursor is, else at the end. */
function showKeys(card, keys, chart) {
  const cursor = chart.cursor.idx;
  const valueAt = (series) => {
    const values = chart.data[series];
    if (cursor === null || cursor === undefined) return lastOf(values);
    for (let i = cursor; i >= 0; i--) if (values[i] !== null && values[i] !== undefined) return values[i];
    return null;
  };
  const titles = [...new Set(keys.map((key) => key.text))];
  const items = titles.map((title) => {
    const own = keys.filter((key) => key.text === title);
    const item = make("span", {});
    for (const [number, key] of own.entries()) {
      item.append(
        make("i", { className: key.area ? "area" : "", style: `background: ${key.colour}` }),
        ...(number ? [] : [title]),
        make("b", {}, key.at.map((series) => formatValue(key.name, valueAt(series))).join(" to ")),
      );
    }
    return item;
  });
  const x = cursor === null || cursor === undefined ? null : chart.data[0][cursor];
  if (x !== null && x !== undefined) items.push(make("span", {}, `${AXES[state.axis]} ${formatX(state.axis, x)}`));
  card.querySelector(".keys").replaceChildren(...items);
}

/** Episode ends as ticks at the bottom, changes of phase as lines, the first value that is not finite as a red one. */
function drawMarks(chart) {
  const pen = chart.ctx;
  const { left, top, width, height } = chart.bbox;
  const style = getComputedStyle(document.documentElement);
  const site = sites.find((other) => other.name === state.site);
  pen.save();
  pen.beginPath();
  pen.rect(left, top, width, height);
  pen.clip();
  for (const [number, run] of runs.entries()) {
    const xs = middles(run, state.axis);
    const ends = run.time.episode_ends;
    const most = Math.max(1, ...ends);
    pen.fillStyle = runs.length > 1 ? runColour(number) : style.getPropertyValue("--muted").trim();
    ends.forEach((count, bin) => {
      if (!count) return;
      pen.globalAlpha = 0.25 + (0.65 * count) / most;
      pen.fillRect(chart.valToPos(xs[bin], "x", true) - 1, top + height - 7 * devicePixelRatio, 2, 7 * devicePixelRatio);
    });
    pen.globalAlpha = 1;
    const changes = phaseChanges(run);
    pen.setLineDash([4, 4]);
    pen.lineWidth = devicePixelRatio;
    pen.strokeStyle = style.getPropertyValue("--faint").trim();
    for (const bin of changes.length <= 24 ? changes : []) line(pen, chart.valToPos(extent(run, state.axis)[0][bin], "x", true), top, height);
    const bad = site && site.runs[number] && site.runs[number].bad;
    if (bad) {
      const bin = run.time.last_pass.findIndex((last) => last >= bad.pass);
      pen.setLineDash([]);
      pen.strokeStyle = style.getPropertyValue("--bad").trim();
      pen.lineWidth = 1.5 * devicePixelRatio;
      if (bin >= 0) line(pen, chart.valToPos(xs[bin], "x", true), top, height);
    }
  }
  pen.restore();
}

function line(pen, x, top, height) {
  pen.beginPath();
  pen.moveTo(x, top);
  pen.lineTo(x, top + height);
  pen.stroke();
}

/** The bins in which most passes belong to another phase than in the bin before. */
function phaseChanges(run) {
  if (!namedPhases) return [];
  const main = run.time.passes.map((_, bin) => {
    const counts = Object.entries(run.time.phases).map(([name, own]) => [own[bin], name]);
    return counts.sort((a, b) => b[0] - a[0])[0][1];
  });
  return main.map((name, bin) => (bin && name !== main[bin - 1] ? bin : -1)).filter((bin) => bin >= 0);
}
