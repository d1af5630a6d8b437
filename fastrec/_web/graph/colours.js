// The colours of the page: those of the rules, light and dark, and ramps for time, memory and parameters.
//
// In the light the nodes look as in pictures (fastrec/graph/draw/rules.py); in the dark each colour has a counterpart.

const DARK = {
  "#FFFFFF": {fill: "#1a2438", line: "#4a5a74"},
  "#98FB98": {fill: "#14412b", line: "#3fae6f"},
  "#FF9999": {fill: "#4f1f24", line: "#d9696c"},
  "#D9D9D9": {fill: "#2e3b53", line: "#5a6b87"},
  "#B0B0B0": {fill: "#3a4049", line: "#6b7280"},
  "#E6E6E6": {fill: "#273349", line: "#566680"},
  "#F7D460": {fill: "#4d3c0d", line: "#d9a821"},
  "#F4F4F4": {fill: "#121a2b", line: "#4a5a74"},
  "#56B4E9": {fill: "#12507a", line: "#56b4e9"},
  "#EFEFEF": {fill: "#111828", line: "#3a475e"},
  "#D55E00": {fill: "#9a4300", line: "#ff8a3d"},
};

const THEMES = {
  light: {
    paper: "#fbfcfe", ink: "#0f172a", soft: "#475569", muted: "#64748b", edge: "#64748b", far: "#94a3b8",
    frame: "rgba(15,23,42,.025)", frameLine: "#cbd5e1", frameInk: "#334155", nodeLine: "#475569",
    accent: "#4f46e5", match: "#d97706", backward: "#6366f1", ramp: ["#fffaf0", "#fde2b3", "#fbb65c", "#ea7a1e", "#9a3b10"],
  },
  dark: {
    paper: "#0b1120", ink: "#e8edf5", soft: "#b6c2d4", muted: "#8b9bb2", edge: "#7486a1", far: "#566680",
    frame: "rgba(148,170,210,.045)", frameLine: "#2b3850", frameInk: "#c3cddd", nodeLine: "#5d6d85",
    accent: "#8b93ff", match: "#fbbf24", backward: "#9197f6", ramp: ["#1a2438", "#4a3522", "#8a5320", "#d98324", "#ffd08a"],
  },
};

/** The colours of a preview, which its nodes have from the start. */
const VERDICT_FILLS = {kept: "#56B4E9", rejected: "#FFFFFF", unreachable: "#EFEFEF", failed: "#D55E00"};

/** The ways to colour nodes: how each measures an operation, and how its numbers are written. */
const MEASURES = {
  rule: {name: "Rule"},
  time: {name: "Time", of: (op) => op.us, format: formatTime},
  memory: {name: "Memory", of: (op) => op.bytes, format: formatBytes},
  parameters: {name: "Parameters", of: (op) => op.weights, format: formatCount},
  recorded: {name: "Recorded"},
};

/** How a node is painted: fill, the other end of a gradient, line, title and text. */
function paintOf(look, theme, isDark) {
  const onDark = look.font.toUpperCase() === "#FFFFFF";
  if (!isDark) {
    return {
      fill: look.fill,
      fillEnd: look.fill_end,
      line: look.line === BLACK ? theme.nodeLine : look.line,
      title: look.font === BLACK ? theme.ink : look.font,
      text: look.font !== BLACK ? look.font : luminance(look.fill) < 0.75 ? theme.frameInk : theme.muted,
      isDashed: look.dashed,
    };
  }
  const dark = DARK[look.fill.toUpperCase()];
  if (!dark) return {...paintOf(look, THEMES.light, false), isDashed: look.dashed};
  return {
    fill: dark.fill,
    fillEnd: look.fill_end ? (DARK[look.fill_end.toUpperCase()] || {fill: look.fill_end}).fill : "",
    line: dark.line,
    title: look.font === BLACK || onDark ? theme.ink : theme.muted,
    text: onDark ? theme.ink : look.font === BLACK ? theme.soft : theme.muted,
    isDashed: look.dashed,
  };
}

const RAMP_STEPS = 24;

/** How a node is painted whose measure is this share (0 to 1) of the largest one. */
function heatPaint(share, theme) {
  const step = Math.round(Math.sqrt(share) * RAMP_STEPS) / RAMP_STEPS;
  const fill = mixedRamp(theme.ramp, step);
  const isLight = luminance(fill) > 0.42;
  return {
    fill,
    fillEnd: "",
    line: mixed(fill, isLight ? "#000000" : "#ffffff", 0.35),
    title: isLight ? "#0f172a" : "#ffffff",
    text: isLight ? "#475569" : "#e2e8f0",
    isDashed: false,
  };
}

function mixedRamp(ramp, share) {
  const place = Math.min(share, 0.9999) * (ramp.length - 1);
  return mixed(ramp[Math.floor(place)], ramp[Math.floor(place) + 1], place % 1);
}

function channels(colour) {
  return [1, 3, 5].map((start) => parseInt(colour.slice(start, start + 2), 16));
}

function mixed(colour, other, share) {
  const [from, to] = [channels(colour), channels(other)];
  return "#" + from.map((value, place) => Math.round(value + (to[place] - value) * share).toString(16).padStart(2, "0")).join("");
}

function luminance(colour) {
  const [red, green, blue] = channels(colour);
  return (0.2126 * red + 0.7152 * green + 0.0722 * blue) / 255;
}

function formatBytes(bytes) {
  let size = bytes;
  for (const unit of ["B", "KB", "MB", "GB"]) {
    if (size < 1024 || unit === "GB") return unit === "B" ? `${size} B` : `${size.toFixed(1)} ${unit}`;
    size /= 1024;
  }
  return "";
}

function formatTime(us) {
  if (us < 1000) return `${us < 100 ? Number(us.toFixed(1)) : Math.round(us)} µs`;
  if (us < 1e6) return `${(us / 1000).toPrecision(3)} ms`;
  return `${(us / 1e6).toPrecision(3)} s`;
}

function formatCount(number) {
  return number.toLocaleString("en-US");
}
