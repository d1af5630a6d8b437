// What the address keeps after its #, so that a page opens as it was left: o= modules, f= folds, u= unfolded, s= selection,
// c= colour, t= theme, v= camera. `#op=conv2d_1_1` (or any id) opens a page at an operation or a module.

function stateOf(page) {
  const {opening, camera} = page;
  const parts = [`o=${rangesOf([...opening.modules].sort((a, b) => a - b))}`];
  if (opening.folds.size) parts.push(`f=${[...opening.folds].map(([fold, number]) => `${fold}.${number}`).join(",")}`);
  if (opening.unfolded.size) parts.push(`u=${[...opening.unfolded].join(",")}`);
  if (page.selected !== null) parts.push(`s=${encodeURIComponent(page.selected)}`);
  if (MEASURES[page.colour].of) parts.push(`c=${page.colour}`);
  if (page.isThemeChosen) parts.push(`t=${page.isDark ? "dark" : "light"}`);
  parts.push(`v=${Math.round(camera.x)},${Math.round(camera.y)},${camera.scale.toPrecision(3)}`);
  return parts.join("&");
}

/** Take a state over; what is missing or makes no sense is left as it is. Returns whether there was a camera. */
function restoreState(page, hash) {
  const values = new Map();
  for (const part of hash.replace(/^#/, "").split("&")) {
    const at = part.indexOf("=");
    if (at > 0) values.set(part.slice(0, at), part.slice(at + 1));
  }
  const {graph} = page;
  const within = (numbers, things) => numbers.filter((number) => Number.isInteger(number) && number >= 0 && number < things.length);
  if (values.has("o")) {
    const folds = (values.get("f") || "").split(",").map((pair) => pair.split(".").map(Number));
    page.opening = {
      modules: new Set(within(numbersOf(values.get("o")), graph.modules)),
      folds: new Map(folds.filter(([fold, number]) => graph.folds[fold] && number >= 0 && number < graph.folds[fold].count)),
      unfolded: new Set(within(numbersOf(values.get("u") || ""), graph.folds)),
    };
  }
  if (values.has("c") && availableColours(graph).includes(values.get("c"))) page.colour = values.get("c");
  if (values.has("t")) {
    page.isThemeChosen = true;
    page.setTheme(values.get("t") === "dark");
  }
  const id = decoded(values.get("s") ?? values.get("op") ?? "");
  const thing = id ? page.thingOf(id) : null;
  page.selected = thing ? id : null;
  page.rebuild();
  const camera = (values.get("v") || "").split(",").map(Number);
  if (camera.length === 3 && camera.every(Number.isFinite) && camera[2] > 0) {
    page.camera = {x: camera[0], y: camera[1], scale: Math.min(Math.max(camera[2], MIN_SCALE), MAX_SCALE)};
    return true;
  }
  return false;
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch (error) {
    return ""; // a cut-off %
  }
}

function rangesOf(numbers) {
  const runs = [];
  for (const number of numbers) {
    const last = runs[runs.length - 1];
    if (last && last[1] === number - 1) last[1] = number;
    else runs.push([number, number]);
  }
  return runs.map(([first, last]) => (first === last ? first : `${first}-${last}`)).join(",");
}

function numbersOf(text) {
  return text.split(",").filter(Boolean).flatMap((part) => {
    const [first, last = first] = part.split("-").map(Number);
    return last - first >= 0 && last - first < 100000 ? Array.from({length: last - first + 1}, (_, place) => first + place) : [];
  });
}

function availableColours(graph) {
  const hasAny = (of) => graph.ops.some((op) => of(op) > 0);
  return Object.keys(MEASURES).filter((name) => {
    if (name === "recorded" || name === "rule") return graph.isPreview === (name === "recorded");
    return !MEASURES[name].of || hasAny(MEASURES[name].of);
  });
}
