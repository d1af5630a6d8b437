// The page's own checks. Where its address ends in #test it runs them, and writes what it finds as JSON into an element
// that `chromium --dump-dom` shows; tests/graph/draw/test_page.py compares that with Python's description of the drawing.

const MAX_PROBES = 60;

/** What went wrong while the page was running: errors, and anything that its policy did not let it load. */
const wrong = [];
window.addEventListener("error", (event) => wrong.push(`${event.message} at line ${event.lineno}`));
window.addEventListener("unhandledrejection", (event) => wrong.push(String(event.reason)));
document.addEventListener("securitypolicyviolation", (event) => wrong.push(`${event.violatedDirective}: ${event.blockedURI}`));

function runChecks(page) {
  const checks = {};
  const parts = {
    firstPaint: () => page.firstPaint,
    firstNodes: () => page.scene.nodes.length,
    views: () => viewsOf(page),
    modules: () => checkModules(page),
    folds: () => checkFolds(page),
    reveals: () => checkReveals(page),
    probes: () => checkPixels(page),
    controls: () => checkControls(page),
    states: () => checkStates(page),
    looks: () => checkLooks(page),
    requests: () => performance.getEntriesByType("resource").map((entry) => entry.name),
  };
  for (const [name, check] of Object.entries(parts)) {
    try {
      checks[name] = check();
    } catch (error) {
      wrong.push(`${name}: ${error.stack}`);
    }
  }
  // Errors of the next frames are errors, too.
  window.setTimeout(() => document.body.append(element("pre", {id: "checks"}, JSON.stringify({...checks, errors: wrong}))), 100);
}

/** What is seen at each depth, with folds and laid out whole. */
function viewsOf(page) {
  const views = [];
  for (const isFolded of [true, false]) {
    for (let depth = 1; depth <= page.graph.depth; depth++) {
      page.opening = openingAt(page.graph, depth, isFolded);
      page.rebuild();
      const {nodes, frames, edges} = page.scene;
      views.push({
        depth,
        isFolded,
        nodes: nodes.map((node) => node.id),
        frames: frames.map((frame) => frame.id),
        edges: edges.map((edge) => [nodes[edge.source].id, nodes[edge.target].id, edge.head, edge.tail, edge.isDashed, edge.kind]),
        problems: problemsOf(page.scene),
        crossings: page.scene.layout.crossings,
        svg: page.svg(),
      });
    }
  }
  return views;
}

/** Nodes and frames that overlap or stick out of the frame around them, text that is wider than its node. */
function problemsOf(scene) {
  const problems = [];
  const paper = {place: {x: 0, y: 0, width: scene.width, height: scene.height}, id: "the paper"};
  const things = [...scene.nodes.map((node) => ({...node, around: node.box - 1})), ...scene.frames];
  const inside = new Map();
  for (const thing of things) {
    const around = thing.around < 0 ? paper : scene.frames[thing.around];
    const {place} = thing, outer = around.place;
    if (place.x < outer.x || place.y < outer.y || place.x + place.width > outer.x + outer.width || place.y + place.height > outer.y + outer.height) {
      problems.push(`${thing.id} sticks out of ${around.id}`);
    }
    if (!inside.has(thing.around)) inside.set(thing.around, []);
    inside.get(thing.around).push(thing);
  }
  for (const siblings of inside.values()) {
    siblings.sort((a, b) => a.place.y - b.place.y);
    siblings.forEach((thing, number) => {
      for (const other of siblings.slice(number + 1)) {
        if (other.place.y >= thing.place.y + thing.place.height) break;
        if (thing.place.x < other.place.x + other.place.width && other.place.x < thing.place.x + thing.place.width) {
          problems.push(`${thing.id} overlaps ${other.id}`);
        }
      }
    });
  }
  return problems;
}

/** Open and close each module that can be seen, with what it lies in open. */
function checkModules(page) {
  const problems = [];
  let count = 0;
  for (const module of page.graph.modules) {
    if (module.isSingle || !module.ops.length) continue;
    page.reveal({kind: "module", index: module.index});
    page.opening.modules.delete(module.index);
    page.rebuild();
    const closed = page.scene.numbers.get(module.id);
    page.toggleModule(module.index);
    const opened = page.scene.numbers.get(module.id);
    page.toggleModule(module.index);
    const again = page.scene.numbers.get(module.id);
    if (!closed || closed.frames) problems.push(`${module.id} does not show closed`);
    if (!opened || !opened.frames) problems.push(`${module.id} does not open`);
    if (!again || again.frames) problems.push(`${module.id} does not close`);
    count += 1;
  }
  return {count, problems};
}

/** Open each fold, step through its repetitions, unfold it and fold it again. */
function checkFolds(page) {
  const problems = [];
  for (const fold of page.graph.folds) {
    page.reveal({kind: "fold", index: fold.index});
    page.openFold(fold.index, 0);
    const sizes = new Set();
    for (let step = 0; step < fold.count; step++) {
      sizes.add(page.scene.nodes.length);
      page.stepFold(fold.index, 1);
    }
    if (sizes.size !== 1) problems.push(`the repetitions of ${fold.id} differ`);
    if (page.opening.folds.get(fold.index) !== 0) problems.push(`${fold.id} does not come round`);
    page.unfold(fold.index);
    if (page.scene.numbers.has(fold.id)) problems.push(`${fold.id} does not unfold`);
    page.refold(fold.index);
    if (!page.scene.numbers.has(fold.id)) problems.push(`${fold.id} does not fold`);
  }
  return {count: page.graph.folds.length, problems};
}

/** Reveal each operation from a page that is closed: it is on the screen, selected, and in the panel. */
function checkReveals(page) {
  const problems = [];
  const every = Math.max(Math.floor(page.graph.ops.length / MAX_PROBES), 1);
  let count = 0;
  for (let index = 0; index < page.graph.ops.length; index += every) {
    page.opening = openingAt(page.graph, 1);
    page.rebuild();
    page.follow({kind: "op", index});
    settle(page);
    const {id, label} = page.graph.ops[index];
    const node = page.scene.numbers.get(id);
    const title = page.elements.panel.querySelector("h2");
    if (!node) problems.push(`${id} is not revealed`);
    else if (!isOnScreen(page, node.place)) problems.push(`${id} is not on the screen`);
    if (!title || title.textContent !== (label || id)) problems.push(`the panel does not show ${id}`);
    count += 1;
  }
  return {count, problems};
}

/** Let everything that moves arrive. */
function settle(page) {
  if (page.flight) page.camera = page.flight.target;
  page.flight = page.motion = null;
  page.paint();
}

function isOnScreen(page, place) {
  const {camera, painter} = page;
  const x = place.x * camera.scale + camera.x, y = place.y * camera.scale + camera.y;
  return x >= 0 && y >= 0 && x + place.width * camera.scale <= painter.width && y + place.height * camera.scale <= painter.height;
}

/** Look at the canvas: at its left end, each node has its colour there. */
function checkPixels(page) {
  const problems = [];
  page.opening = openingAt(page.graph, page.graph.depth);
  page.selected = null;
  page.matches = [];
  page.rebuild();
  page.motion = null;
  const {painter, scene} = page;
  const nodes = scene.nodes.slice(0, MAX_PROBES).filter((node) => !node.look.fill_end);
  for (const node of nodes) {
    const {place} = node;
    page.camera = {scale: 1, x: Math.round(painter.width / 2 - place.x), y: Math.round(painter.height / 2 - place.y)};
    page.paint();
    const x = (place.x + 5 + page.camera.x) * painter.ratio, y = (place.y + place.height / 2 + page.camera.y) * painter.ratio;
    const [red, green, blue] = painter.context.getImageData(Math.round(x), Math.round(y), 1, 1).data;
    const wanted = channels(page.paints[node.number].fill);
    if (Math.abs(red - wanted[0]) + Math.abs(green - wanted[1]) + Math.abs(blue - wanted[2]) > 6) {
      problems.push(`${node.id} is ${[red, green, blue]} and not ${wanted}`);
    }
  }
  return {count: nodes.length, problems};
}

/** What pointer, keys and search box do, by the events that a browser sends. */
function checkControls(page) {
  const problems = [];
  const {canvas, query, sheet} = page.elements;
  const expect = (isSo, problem) => isSo || problems.push(problem);
  const restart = () => {
    page.opening = openingAt(page.graph, 1);
    page.select(null);
    page.rebuild();
    page.fit();
    settle(page);
  };
  const click = (thing, options = {}) => {
    const {place} = page.scene.numbers.get(thing);
    const isFrame = Boolean(page.scene.numbers.get(thing).frames);
    const {camera} = page;
    const x = (place.x + (isFrame ? TITLE_PADDING_X + 2 : place.width / 2)) * camera.scale + camera.x;
    const y = (place.y + (isFrame ? TITLE_PADDING_Y + 4 : place.height / 2)) * camera.scale + camera.y;
    const box = canvas.getBoundingClientRect();
    const at = {clientX: box.left + x, clientY: box.top + y, bubbles: true, pointerId: 1, ...options};
    canvas.dispatchEvent(new PointerEvent("pointerdown", at));
    canvas.dispatchEvent(new PointerEvent("pointerup", at));
    settle(page);
  };
  const press = (key, options = {}, target = canvas) => {
    target.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true, ...options}));
    settle(page);
  };

  restart();
  const closed = page.scene.nodes.find((node) => node.kind === "module");
  if (closed) {
    click(closed.id);
    expect(page.opening.modules.has(closed.index), "a click does not open a module");
    expect(page.selected === closed.id, "a click does not select a module");
    page.controls.lastClick = null;
    click(closed.id);
    expect(!page.opening.modules.has(closed.index), "a click on its title does not close a module");
    page.controls.lastClick = null;
    click(closed.id, {shiftKey: true});
    expect(page.graph.below(closed.index).every((module) => page.opening.modules.has(module)), "shift does not open all below");
    page.controls.lastClick = null;
    page.openTo(page.graph.depth);
    settle(page);
    page.reveal({kind: "module", index: closed.index});
    settle(page);
    click(closed.id);
    click(closed.id, {detail: 2});
    expect([...page.opening.modules].join() === String(closed.index), "a double click does not open only this module");
    press("Enter");
    expect(!page.opening.modules.has(closed.index), "Enter does not close the selected module");
  }

  restart();
  press("f");
  expect(isOnScreen(page, {x: 0, y: 0, width: page.scene.width, height: page.scene.height}), "f does not fit everything");
  const first = page.scene.nodes[0];
  page.select({kind: first.kind, index: first.index});
  press("ArrowDown");
  const below = first.edges.map((number) => page.scene.edges[number]).filter((edge) => edge.source === 0).map((edge) => page.scene.nodes[edge.target].id);
  expect(!below.length || below.includes(page.selected), "ArrowDown does not walk along an edge");
  if (below.length) {
    press("ArrowLeft", {altKey: true});
    expect(page.selected === first.id, "Alt and ArrowLeft does not go back");
    press("ArrowRight", {altKey: true});
    expect(below.includes(page.selected), "Alt and ArrowRight does not go forward");
  }
  press("Escape");
  expect(page.selected === null, "Escape does not let go");
  press("?");
  expect(!sheet.hidden, "? does not show the keys");
  press("Escape");
  expect(sheet.hidden, "Escape does not close the sheet");

  restart();
  press("/");
  expect(document.activeElement === query, "/ does not go to the search");
  const last = page.graph.ops[page.graph.ops.length - 1];
  query.value = `site:${last.site}`;
  query.dispatchEvent(new Event("input"));
  const hits = page.matches.length;
  press("Enter", {}, query);
  expect(hits > 0, "the search does not find a site");
  expect(hits !== 1 || page.selected === last.id, "Enter does not reveal what was found");
  query.value = "nothing:x";
  query.dispatchEvent(new Event("input"));
  expect(page.elements.results.textContent.includes("There is no field"), "a wrong field is not told");
  press("Escape", {}, query);
  expect(query.value === "" && !page.matches.length, "Escape does not clear the search");
  query.blur();
  return {count: 15, problems};
}

/** A state that was written into the address is the same when it is read again. */
function checkStates(page) {
  const problems = [];
  const some = page.graph.ops[Math.floor(page.graph.ops.length / 2)];
  page.opening = openingAt(page.graph, 1);
  page.follow({kind: "op", index: some.index});
  settle(page);
  const before = stateOf(page);
  const ids = page.scene.nodes.map((node) => node.id).join();
  page.opening = openingAt(page.graph, 1);
  page.select(null);
  page.rebuild();
  restoreState(page, `#${before}`);
  if (page.scene.nodes.map((node) => node.id).join() !== ids) problems.push("other nodes are seen");
  if (page.selected !== some.id) problems.push("the selection is lost");
  if (stateOf(page) !== before) problems.push(`${stateOf(page)} is not ${before}`);
  for (const broken of ["#", "#o=", "#o=999999999&f=7.9&s=%", "#o=a-b&v=1,2&c=none", `#op=${encodeURIComponent(some.id)}`]) restoreState(page, broken);
  if (page.selected !== some.id) problems.push("#op= does not select");
  return {count: 5, problems};
}

/** Every colouring and both themes are painted, and their legends say what is seen. */
function checkLooks(page) {
  const problems = [];
  const colours = availableColours(page.graph);
  for (const isDark of [true, false]) {
    page.setTheme(isDark);
    for (const colour of colours) {
      page.setColour(colour);
      page.paint();
      const wanted = channels(page.theme.paper);
      const corner = page.painter.context.getImageData(0, page.painter.canvas.height - 1, 1, 1).data;
      if (wanted.some((value, place) => Math.abs(value - corner[place]) > 3)) problems.push(`the paper is not ${page.theme.paper}`);
      if (page.paints.length !== page.scene.nodes.length) problems.push(`${colour} does not paint all nodes`);
    }
  }
  page.setColour(colours[0]);
  return {count: colours.length, problems};
}
