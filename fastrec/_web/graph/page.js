// The page: what is open, selected and in view, and everything that changes it.
//
// `opening` says which modules and folds are open (view.js), `camera` where the reader looks. A change of the opening
// makes a new scene; the clicked module stays where it is on the screen, and everything else moves to its new place.

const FEW_NODES = 40; // with fewer nodes in view at the start, the next depth opens too
const MANY_NODES = 120; // unless that were too many
const MOTION = 190; // milliseconds
const MAX_MOVING = 1500; // more nodes than this jump
const MIN_SCALE = 0.004;
const MAX_SCALE = 4;
const READING_SCALE = 0.9;

class Page {
  constructor(graph, elements) {
    this.graph = graph;
    this.elements = elements;
    this.cache = new Map();
    this.painter = new Painter(elements.canvas);
    this.search = new Search(graph);
    this.panel = new Panel(this, elements.panel);
    this.trail = new Trail();
    this.colour = graph.isPreview ? "recorded" : "rule";
    this.selected = null; // the id of a node or frame
    this.hovered = null;
    this.hoveredEdge = null;
    this.matches = [];
    this.match = -1;
    this.motion = null;
    this.camera = {x: 0, y: 0, scale: 1};
    this.opening = this.firstOpening();
    this.isThemeChosen = false;
    const system = window.matchMedia("(prefers-color-scheme: dark)");
    system.addEventListener("change", () => this.isThemeChosen || this.setTheme(system.matches));
    this.isDark = system.matches;
    document.documentElement.dataset.theme = this.isDark ? "dark" : "light";
    this.rebuild();
  }

  /** All modules closed; one more depth is opened for as long as there are few nodes. */
  firstOpening() {
    const {graph} = this;
    let opening = openingAt(graph, 1);
    for (let depth = 2; depth <= graph.depth; depth++) {
      if (viewOf(graph, opening).nodes.length >= FEW_NODES) break;
      const deeper = openingAt(graph, depth);
      if (viewOf(graph, deeper).nodes.length > MANY_NODES) break;
      opening = deeper;
    }
    return opening;
  }

  // What is open

  /** Make the scene anew; what has this id stays where it is on the screen. */
  rebuild(anchor = null) {
    const before = this.scene;
    const places = before && this.currentPlaces();
    this.scene = new Scene(this.graph, this.opening, this.cache);
    this.repaintNodes();
    if (before) {
      this.keepInPlace(before, places, anchor);
      this.move(before, places, anchor);
    }
    this.hovered = null;
    this.hoveredEdge = null;
    this.drawn();
    this.showDepth();
    this.showLegend();
    this.panel.show();
  }

  currentPlaces() {
    const places = new Map();
    for (const thing of [...this.scene.nodes, ...this.scene.frames]) {
      places.set(thing.id, this.motion ? this.motion.place(thing) : thing.place);
    }
    return places;
  }

  keepInPlace(before, places, anchor) {
    let now = this.scene.numbers.get(anchor);
    let old = places.get(anchor);
    if (!now || !old) {
      // What was anchored is gone (or new): hold what stands around it, or else what is in the middle of the screen.
      const {x, y} = this.toScene(this.painter.width / 2, this.painter.height / 2);
      let best = Infinity;
      for (const node of before.nodes) {
        const place = places.get(node.id);
        const distance = Math.hypot(place.x + place.width / 2 - x, place.y + place.height / 2 - y);
        if (distance < best && this.scene.numbers.has(node.id)) {
          best = distance;
          now = this.scene.numbers.get(node.id);
          old = place;
        }
      }
    }
    if (!now || !old) return;
    const {scale} = this.camera;
    this.camera.x += (old.x + old.width / 2 - now.place.x - now.place.width / 2) * scale;
    this.camera.y += (old.y - now.place.y) * scale;
  }

  /** Let everything glide from where it was; what is new grows out of what was opened. */
  move(before, places, anchor) {
    const isStill = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
    if (isStill || this.scene.nodes.length > MAX_MOVING || document.hidden) {
      this.motion = null;
      return;
    }
    const now = this.scene.numbers.get(anchor);
    const origin = places.get(anchor);
    // Places of the old scene, moved as the camera was, so that the anchor stands still on the screen.
    const shift = now && origin
      ? {x: now.place.x + now.place.width / 2 - origin.x - origin.width / 2, y: now.place.y - origin.y}
      : {x: 0, y: 0};
    const from = new Map();
    for (const thing of [...this.scene.nodes, ...this.scene.frames]) {
      const old = places.get(thing.id);
      if (old) from.set(thing.id, {...old, x: old.x + shift.x, y: old.y + shift.y});
      else if (now && origin) from.set(thing.id, {...shrunk(thing.place, now.place, origin)});
      else from.set(thing.id, thing.place);
    }
    this.motion = new Motion(from);
    this.frame();
  }

  isOpen(thing) {
    if (thing.kind === "module") return this.opening.modules.has(thing.index);
    return thing.kind === "fold" && this.opening.folds.has(thing.index);
  }

  /** Open or close a module; deep: with all that is below. */
  toggleModule(index, {isDeep = false} = {}) {
    const {modules, folds} = this.opening;
    const isOpening = !modules.has(index);
    const below = isDeep ? this.graph.below(index) : [index];
    for (const module of below) {
      if (isOpening) modules.add(module);
      else modules.delete(module);
    }
    if (isDeep) {
      const inside = new Set(below.slice(1));
      for (const fold of this.graph.folds) {
        if (!inside.has(fold.modules[0])) continue;
        if (!isOpening) folds.delete(fold.index);
        else if (!folds.has(fold.index)) folds.set(fold.index, 0);
      }
    }
    this.changed(this.graph.modules[index].id);
  }

  /** Open a module and what it lies in, and close everything else. */
  openOnly(index) {
    const around = [...this.graph.around(index), index];
    const folds = new Map();
    for (const module of around) {
      const member = this.graph.foldOf.get(module);
      if (member) folds.set(...member);
    }
    const unfolded = new Set([...this.opening.unfolded].filter((fold) => folds.has(fold)));
    this.opening = {modules: new Set(around), folds, unfolded};
    this.changed(this.graph.modules[index].id);
  }

  /** Show one repetition of a fold, and open it. */
  openFold(index, number, {isDeep = false} = {}) {
    const fold = this.graph.folds[index];
    this.opening.unfolded.delete(index);
    this.opening.folds.set(index, number);
    for (const module of this.graph.repetition(fold, number)) {
      for (const below of isDeep ? this.graph.below(module) : [module]) this.opening.modules.add(below);
    }
    this.changed(fold.id);
  }

  closeFold(index) {
    this.opening.folds.delete(index);
    this.changed(this.graph.folds[index].id);
  }

  /** Show another repetition of a fold, with the same modules open in it. */
  stepFold(index, step) {
    const fold = this.graph.folds[index];
    const shown = this.opening.folds.get(index) ?? 0;
    const next = (shown + step + fold.count) % fold.count;
    const [before, after] = [shown, next].map((number) =>
      this.graph.repetition(fold, number).flatMap((module) => this.graph.below(module)));
    before.forEach((module, place) => {
      if (this.opening.modules.has(module)) this.opening.modules.add(after[place]);
      else this.opening.modules.delete(after[place]);
    });
    this.opening.folds.set(index, next);
    this.changed(fold.id);
  }

  /** Lay all repetitions out. */
  unfold(index) {
    const fold = this.graph.folds[index];
    this.opening.unfolded.add(index);
    this.opening.folds.delete(index);
    const first = this.graph.modules[fold.modules[0]];
    if (this.selected === fold.id) this.selected = first.isSingle ? this.graph.ops[first.ops[0]].id : first.id;
    this.changed(fold.id);
  }

  refold(index) {
    const fold = this.graph.folds[index];
    this.opening.unfolded.delete(index);
    this.opening.folds.delete(index);
    this.selected = fold.id;
    this.changed(fold.id);
  }

  /** Open everything down to a depth. */
  openTo(depth) {
    const unfolded = this.opening.unfolded;
    this.opening = openingAt(this.graph, Math.min(Math.max(depth, 1), this.graph.depth));
    this.opening.unfolded = unfolded;
    this.changed(null);
  }

  openEverything() {
    this.opening = openingAt(this.graph, null, false);
    this.changed(null);
  }

  /** The depth that is open everywhere that it can be. */
  depth() {
    const {modules} = this.opening;
    const {graph} = this;
    const isSeen = (module) => graph.around(module.index).every((above) => modules.has(above));
    const closed = graph.modules.filter((module) => !module.isSingle && !modules.has(module.index) && !this.isFoldedAway(module.index) && isSeen(module));
    return closed.reduce((least, module) => Math.min(least, module.depth), graph.depth);
  }

  /** Whether a module lies in a fold, in a repetition that is not the one shown. */
  isFoldedAway(index) {
    return [...this.graph.around(index), index].some((module) => {
      const member = this.graph.foldOf.get(module);
      if (!member || this.opening.unfolded.has(member[0])) return false;
      return (this.opening.folds.get(member[0]) ?? 0) !== member[1];
    });
  }

  changed(anchor) {
    this.rebuild(anchor);
    this.saveState();
  }

  // What is selected

  selectedThing() {
    return this.selected === null ? null : this.thingOf(this.selected);
  }

  /** What has this id: {kind, index}. */
  thingOf(id) {
    this.things = this.things || new Map([
      ...this.graph.folds.map(({id: name, index}) => [name, {kind: "fold", index, id: name}]),
      ...this.graph.modules.map(({id: name, index}) => [name, {kind: "module", index, id: name}]),
      ...this.graph.ops.map(({id: name, index}) => [name, {kind: "op", index, id: name}]),
    ]);
    return this.things.get(id) || null;
  }

  idOf(thing) {
    const {graph} = this;
    return {op: graph.ops, module: graph.modules, fold: graph.folds}[thing.kind][thing.index].id;
  }

  select(thing, {isRemembered = true} = {}) {
    this.selected = thing ? this.idOf(thing) : null;
    if (isRemembered) this.trail.add(this.selected);
    this.panel.show();
    this.announce();
    this.drawn();
    this.saveState();
  }

  /** Select something, and bring it into view: what it lies in is opened. */
  follow(thing, options) {
    this.reveal(thing);
    this.select(thing, options);
  }

  goAlong(step) {
    const id = this.trail.go(step);
    if (id === undefined) return;
    const thing = id === null ? null : this.thingOf(id);
    if (thing) this.follow(thing, {isRemembered: false});
    else this.select(null, {isRemembered: false});
  }

  /** Open what hides something, and move it into the middle. */
  reveal(thing) {
    const {graph, opening} = this;
    const id = this.idOf(thing);
    const own = thing.kind === "op" ? graph.ops[thing.index].module : thing.kind === "module" ? thing.index : graph.folds[thing.index].parent;
    let isChanged = false;
    const path = own >= 0 ? [...graph.around(own), own] : [];
    for (const module of path) {
      const member = graph.foldOf.get(module);
      if (member && !opening.unfolded.has(member[0]) && opening.folds.get(member[0]) !== member[1]) {
        opening.folds.set(...member);
        isChanged = true;
      }
      const isItself = thing.kind === "module" && module === thing.index;
      if (!isItself && !opening.modules.has(module)) {
        opening.modules.add(module);
        isChanged = true;
      }
    }
    if (thing.kind === "fold" && opening.unfolded.has(thing.index)) {
      opening.unfolded.delete(thing.index);
      isChanged = true;
    }
    if (isChanged) this.rebuild(null);
    const found = this.scene.numbers.get(id);
    if (found) this.centre(found.place, this.camera.scale < 0.55 ? READING_SCALE : this.camera.scale);
  }

  announce() {
    const thing = this.selectedThing();
    if (!thing) return;
    const {graph} = this;
    const text = thing.kind === "op"
      ? `${graph.ops[thing.index].label}, ${graph.ops[thing.index].shape}, reads ${graph.ops[thing.index].parents.length}, read by ${graph.ops[thing.index].children.length}`
      : thing.kind === "module"
        ? `Module ${graph.modules[thing.index].id}, ${graph.modules[thing.index].className}, ${this.isOpen(thing) ? "open" : "closed"}`
        : `${graph.folds[thing.index].count} repetitions`;
    this.elements.status.textContent = text;
  }

  /** The neighbour of what is selected in a direction: along an edge up or down, else beside it. */
  neighbour(direction) {
    const node = this.scene.numbers.get(this.selected);
    if (!node || node.frames) return this.nearest();
    const middle = (thing) => thing.place.x + thing.place.width / 2;
    const by = (key) => (best, other) => (best === null || key(other) < key(best) ? other : best);
    if (direction === "up" || direction === "down") {
      const ends = node.edges.map((number) => this.scene.edges[number])
        .filter((edge) => edge.kind === "value" && (direction === "down" ? edge.source : edge.target) === node.number)
        .map((edge) => this.scene.nodes[direction === "down" ? edge.target : edge.source])
        .filter((other) => other !== node);
      return ends.reduce(by((other) => Math.abs(middle(other) - middle(node)) + Math.abs(other.place.y - node.place.y) / 8), null);
    }
    const sign = direction === "right" ? 1 : -1;
    return this.scene.nodes
      .filter((other) => sign * (middle(other) - middle(node)) > 1)
      .filter((other) => other.place.y < node.place.y + node.place.height && node.place.y < other.place.y + other.place.height)
      .reduce(by((other) => Math.abs(middle(other) - middle(node))), null);
  }

  /** The node that is nearest to the middle of the screen. */
  nearest() {
    const {x, y} = this.toScene(this.painter.width / 2, Math.min(this.painter.height / 2, 240));
    return this.scene.nodes.reduce((best, node) => {
      const distance = Math.hypot(node.place.x + node.place.width / 2 - x, node.place.y - y);
      return best === null || distance < best.distance ? {node, distance} : best;
    }, null)?.node || null;
  }

  // What is in view

  toScene(x, y) {
    const {camera} = this;
    return {x: (x - camera.x) / camera.scale, y: (y - camera.y) / camera.scale};
  }

  pan(x, y) {
    this.camera.x += x;
    this.camera.y += y;
    this.confine();
    this.drawn();
    this.saveState();
  }

  /** Zoom about a point of the screen. */
  zoom(factor, x = this.painter.width / 2, y = this.painter.height / 2) {
    const {camera} = this;
    const scale = Math.min(Math.max(camera.scale * factor, MIN_SCALE), MAX_SCALE);
    camera.x = x - ((x - camera.x) * scale) / camera.scale;
    camera.y = y - ((y - camera.y) * scale) / camera.scale;
    camera.scale = scale;
    this.confine();
    this.drawn();
    this.saveState();
  }

  /** Some of the graph always stays on the screen. */
  confine() {
    const {camera, scene, painter} = this;
    const keep = 60;
    camera.x = Math.min(Math.max(camera.x, keep - scene.width * camera.scale), painter.width - keep);
    camera.y = Math.min(Math.max(camera.y, keep - scene.height * camera.scale), painter.height - keep);
  }

  centre(place, scale) {
    const {painter} = this;
    const target = {
      scale,
      x: painter.width / 2 - (place.x + place.width / 2) * scale,
      y: Math.min(painter.height / 2 - (place.y + place.height / 2) * scale, 60 - place.y * scale + painter.height * 0.3),
    };
    if (place.height * scale > painter.height * 0.8) target.y = 50 - place.y * scale;
    this.glide(target);
  }

  /** Everything on the screen; at the start, at least so large that it can be read, from the top. */
  fit({isFirst = false} = {}) {
    const {painter, scene} = this;
    const width = Math.max(scene.right, 1), height = Math.max(scene.height, 1);
    const across = (painter.width - 48) / width, down = (painter.height - 48) / height;
    let scale = Math.min(across, down, 1.25);
    if (isFirst && scale < READING_SCALE) scale = Math.max(scale, Math.min(across, READING_SCALE));
    scale = Math.max(scale, MIN_SCALE);
    const y = height * scale < painter.height - 40 ? (painter.height - height * scale) / 2 : 20;
    const target = {scale, x: (painter.width - scene.width * scale) / 2, y};
    if (isFirst) {
      this.camera = target;
      this.drawn();
    } else {
      this.glide(target);
    }
  }

  /** Move the camera there. */
  glide(target) {
    if (window.matchMedia("(prefers-reduced-motion: reduce)").matches || document.hidden) {
      this.camera = target;
      this.drawn();
      this.saveState();
      return;
    }
    const from = {...this.camera};
    const start = performance.now();
    this.flight = {from, target, start};
    this.frame();
  }

  fly(now) {
    const {from, target, start} = this.flight;
    const share = Math.min((now - start) / (MOTION * 1.3), 1);
    const eased = easing(share);
    const scale = from.scale * (target.scale / from.scale) ** eased;
    // The middle of the screen moves evenly in the scene while the scale changes.
    const {width, height} = this.painter;
    const middle = (camera) => ({x: (width / 2 - camera.x) / camera.scale, y: (height / 2 - camera.y) / camera.scale});
    const [a, b] = [middle(from), middle(target)];
    this.camera = {
      scale,
      x: width / 2 - (a.x + (b.x - a.x) * eased) * scale,
      y: height / 2 - (a.y + (b.y - a.y) * eased) * scale,
    };
    if (share >= 1) {
      this.camera = target;
      this.flight = null;
      this.saveState();
    }
  }

  // What is painted

  setColour(name) {
    this.colour = name;
    this.repaintNodes();
    this.showLegend();
    this.panel.show();
    this.drawn();
    this.saveState();
  }

  /** Take the other theme than the system's; the address keeps that. */
  chooseTheme(isDark) {
    this.isThemeChosen = true;
    this.setTheme(isDark);
    this.saveState();
  }

  setTheme(isDark) {
    this.isDark = isDark;
    document.documentElement.dataset.theme = isDark ? "dark" : "light";
    this.repaintNodes();
    this.showLegend();
    this.drawn();
  }

  get theme() {
    return this.isDark ? THEMES.dark : THEMES.light;
  }

  /** How each node of the scene is painted: as in pictures, or by a measure. */
  repaintNodes() {
    const {scene, theme, isDark} = this;
    const keyed = (paint) => ({...paint, key: Object.values(paint).join()});
    const byRule = new Map();
    const rulePaint = (look) => {
      const key = JSON.stringify(look);
      if (!byRule.has(key)) byRule.set(key, keyed(paintOf(look, theme, isDark)));
      return byRule.get(key);
    };
    const measure = MEASURES[this.colour];
    if (measure.of) {
      const values = scene.nodes.map((node) => sum(scene.opsOf(node), (index) => measure.of(this.graph.ops[index])));
      this.most = Math.max(...values, 0);
      this.paints = values.map((value) => keyed(heatPaint(this.most ? value / this.most : 0, theme)));
    } else {
      this.paints = scene.nodes.map((node) => rulePaint(node.look));
    }
  }

  /** Paint before the next frame is shown. */
  drawn() {
    this.isStale = true;
    this.frame();
  }

  frame() {
    if (this.request) return;
    this.request = requestAnimationFrame((now) => {
      this.request = 0;
      if (this.flight) this.fly(now);
      if (this.motion && !this.motion.advance(now)) this.motion = null;
      this.paint();
      if (this.flight || this.motion) this.frame();
    });
  }

  paint() {
    this.isStale = false;
    this.painter.paint(this.scene, this.camera, {
      theme: this.theme,
      isDark: this.isDark,
      paints: this.paints,
      selected: this.selected,
      hovered: this.hovered,
      edge: this.hoveredEdge,
      matches: this.matchedIds,
      motion: this.motion,
    });
    this.elements.scale.textContent = this.camera.scale < 0.1 ? `${(this.camera.scale * 100).toFixed(1)} %` : `${Math.round(this.camera.scale * 100)} %`;
    placeTools(this, this.elements.tools);
    placePath(this, this.elements.path);
  }

  /** What stands in the scene for the things that were found. */
  get matchedIds() {
    if (!this.matches.length) return [];
    if (this.matchedScene !== this.scene || this.matchedFor !== this.matches) {
      const shown = new Map();
      for (const node of this.scene.nodes) for (const op of this.scene.opsOf(node)) shown.set(op, node.id);
      const ids = new Set();
      for (const {kind, index} of this.matches) {
        if (kind === "op") ids.add(shown.get(index));
        else if (this.scene.numbers.has(this.graph.modules[index].id)) ids.add(this.graph.modules[index].id);
      }
      ids.delete(undefined);
      this.matched = [...ids];
      this.matchedScene = this.scene;
      this.matchedFor = this.matches;
    }
    return this.matched;
  }

  showDepth() {
    const {elements, graph} = this;
    const depth = this.depth();
    elements.depth.textContent = `${depth} / ${graph.depth}`;
    elements.shallower.disabled = depth <= 1 && !this.opening.modules.size;
    elements.deeper.disabled = depth >= graph.depth;
  }

  showLegend() {
    this.elements.legend.replaceChildren(...legendOf(this));
  }

  svg() {
    return svgOf(this.graph, this.scene.view, this.scene.layout);
  }

  // The state in the address

  saveState() {
    if (this.saving || window.location.protocol === "about:") return;
    this.saving = window.setTimeout(() => {
      this.saving = 0;
      window.history.replaceState(null, "", `#${stateOf(this)}`);
    }, 250);
  }
}

/** Where something new begins to grow: inside of what was opened, at the same part of it. */
function shrunk(place, into, origin) {
  const across = into.width ? origin.width / into.width : 0, down = into.height ? origin.height / into.height : 0;
  return {
    x: into.x + into.width / 2 - origin.width / 2 + (place.x - into.x) * across,
    y: into.y + (place.y - into.y) * down,
    width: place.width * across,
    height: place.height * down,
  };
}

function easing(share) {
  return 1 - (1 - share) ** 3;
}

/** Things on their way from where they were. */
class Motion {
  constructor(from) {
    this.from = from;
    this.share = 0;
    this.start = 0;
  }

  advance(now) {
    this.start = this.start || now;
    this.share = easing(Math.min((now - this.start) / MOTION, 1));
    return now - this.start < MOTION;
  }

  get edges() {
    return Math.max((this.share - 0.4) / 0.6, 0);
  }

  place(thing) {
    const from = this.from.get(thing.id);
    if (!from) return thing.place;
    const {share} = this;
    const between = (name) => from[name] + (thing.place[name] - from[name]) * share;
    return {x: between("x"), y: between("y"), width: between("width"), height: between("height")};
  }
}

/** What was selected, to go back and forward. */
class Trail {
  constructor() {
    this.ids = [null];
    this.place = 0;
  }

  add(id) {
    if (this.ids[this.place] === id) return;
    this.ids = [...this.ids.slice(0, this.place + 1), id].slice(-100);
    this.place = this.ids.length - 1;
  }

  canGo(step) {
    return this.ids[this.place + step] !== undefined;
  }

  go(step) {
    if (!this.canGo(step)) return undefined;
    this.place += step;
    return this.ids[this.place];
  }
}
