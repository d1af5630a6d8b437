// Pointer, keys, search box and buttons: what the reader does, and what the page does then.

const LINE_HEIGHT = 32; // pixels of a line for wheels that count lines
const CLICK_DISTANCE = 4;
const MAX_RESULTS = 60;

class Controls {
  constructor(page, elements) {
    this.page = page;
    this.elements = elements;
    this.pointers = new Map();
    this.pointer();
    this.keys();
    this.searchBox();
    this.buttons();
    window.addEventListener("resize", () => this.resize());
    new ResizeObserver(() => this.resize()).observe(elements.canvas);
  }

  resize() {
    const {painter} = this.page;
    if (painter.width === this.elements.canvas.clientWidth && painter.height === this.elements.canvas.clientHeight && painter.ratio === window.devicePixelRatio) return;
    painter.resize();
    this.page.paint();
  }

  // The pointer

  pointer() {
    const {canvas} = this.elements;
    canvas.addEventListener("pointerdown", (event) => {
      if (event.isTrusted) canvas.setPointerCapture(event.pointerId); // the page's own checks send events, too
      this.pointers.set(event.pointerId, {x: event.offsetX, y: event.offsetY});
      this.start = {x: event.offsetX, y: event.offsetY, isMoved: this.pointers.size > 1};
      this.page.flight = null;
    });
    canvas.addEventListener("pointermove", (event) => this.moved(event));
    canvas.addEventListener("pointerup", (event) => this.released(event));
    canvas.addEventListener("pointercancel", (event) => this.pointers.delete(event.pointerId));
    canvas.addEventListener("pointerleave", () => this.hover(null));
    canvas.addEventListener("wheel", (event) => this.wheel(event), {passive: false});
  }

  moved(event) {
    const pointer = this.pointers.get(event.pointerId);
    const point = {x: event.offsetX, y: event.offsetY};
    if (!pointer) return this.hover(point);
    if (this.pointers.size === 2) {
      const [other] = [...this.pointers].filter(([id]) => id !== event.pointerId).map(([, place]) => place);
      const before = Math.hypot(pointer.x - other.x, pointer.y - other.y), now = Math.hypot(point.x - other.x, point.y - other.y);
      this.page.pan((point.x - pointer.x) / 2, (point.y - pointer.y) / 2);
      if (before > 0) this.page.zoom(now / before, (point.x + other.x) / 2, (point.y + other.y) / 2);
    } else {
      if (!this.start.isMoved && Math.hypot(point.x - this.start.x, point.y - this.start.y) < CLICK_DISTANCE) return undefined;
      this.start.isMoved = true;
      this.elements.canvas.classList.add("is-moving");
      this.page.pan(point.x - pointer.x, point.y - pointer.y);
    }
    this.pointers.set(event.pointerId, point);
    return undefined;
  }

  released(event) {
    this.pointers.delete(event.pointerId);
    this.elements.canvas.classList.remove("is-moving");
    if (this.start && !this.start.isMoved) this.click(event);
  }

  /** A module opens or closes, an operation is selected; shift: all below; a double click: only this one. */
  click(event) {
    const {page} = this;
    const thing = this.thingAt(event.offsetX, event.offsetY);
    if (!thing) {
      page.select(null);
      return;
    }
    const isDouble = event.detail === 2 || (this.lastClick && this.lastClick.id === thing.id && event.timeStamp - this.lastClick.time < 350);
    this.lastClick = isDouble ? null : {id: thing.id, time: event.timeStamp};
    page.select(thing);
    if (thing.kind === "op" || thing.isBody) return;
    if (isDouble) {
      if (thing.kind === "module") page.openOnly(thing.index);
    } else {
      this.toggle(thing, event.shiftKey);
    }
  }

  toggle(thing, isDeep) {
    const {page} = this;
    if (thing.kind === "module") page.toggleModule(thing.index, {isDeep});
    else if (page.opening.folds.has(thing.index)) page.closeFold(thing.index);
    else page.openFold(thing.index, 0, {isDeep});
  }

  /** The node under a point of the screen, or the frame; `isBody` where that is not its title. */
  thingAt(screenX, screenY) {
    const {page} = this;
    const {x, y} = page.toScene(screenX, screenY);
    const node = page.scene.nodeAt(x, y);
    if (node) return {kind: node.kind, index: node.index, id: node.id};
    const frame = page.scene.frameAt(x, y);
    if (!frame) return null;
    const [titleWidth, titleHeight] = titleSize(frame.texts);
    const isTitle = x <= frame.place.x + titleWidth + 8 && y <= frame.place.y + titleHeight;
    return {kind: frame.kind, index: frame.index, id: frame.id, isBody: !isTitle};
  }

  hover(point) {
    const {page, elements} = this;
    const thing = point && this.thingAt(point.x, point.y);
    const isNode = thing && page.scene.numbers.get(thing.id)?.edges;
    const {x, y} = point ? page.toScene(point.x, point.y) : {x: 0, y: 0};
    const edge = point && !isNode ? page.scene.edgeAt(x, y, 5 / page.camera.scale) : null;
    const id = thing && (isNode || !edge) ? thing.id : null;
    elements.canvas.classList.toggle("is-over", Boolean(thing && !thing.isBody) || Boolean(edge));
    this.tip(point, isNode ? thing : null, edge);
    if (id === page.hovered && (edge ? edge.number : null) === page.hoveredEdge) return;
    page.hovered = id;
    page.hoveredEdge = edge ? edge.number : null;
    page.drawn();
  }

  tip(point, node, edge) {
    const {tip} = this.elements;
    const lines = edge ? edgeTip(this.page, edge) : node ? nodeTip(this.page, node) : [];
    tip.hidden = !lines.length;
    if (!lines.length) return;
    tip.replaceChildren(...lines.map((line, number) => element("div", {}, number ? line : element("b", {}, line))));
    const {width, height} = this.page.painter;
    tip.style.left = `${Math.min(point.x + 14, width - tip.offsetWidth - 8)}px`;
    tip.style.top = `${point.y + 18 + tip.offsetHeight > height ? point.y - tip.offsetHeight - 10 : point.y + 18}px`;
  }

  wheel(event) {
    event.preventDefault();
    this.page.flight = null;
    const unit = event.deltaMode === 1 ? LINE_HEIGHT : event.deltaMode === 2 ? this.page.painter.height : 1;
    if (event.ctrlKey || event.metaKey) {
      const speed = Math.abs(event.deltaY) < 40 ? 0.01 : 0.0022; // pinching comes in small steps
      this.page.zoom(Math.exp(-event.deltaY * unit * speed), event.offsetX, event.offsetY);
    } else if (event.shiftKey && !event.deltaX) {
      this.page.pan(-event.deltaY * unit, 0);
    } else {
      this.page.pan(-event.deltaX * unit, -event.deltaY * unit);
    }
  }

  // The keys

  keys() {
    document.addEventListener("keydown", (event) => {
      if (!this.elements.sheet.hidden) {
        if (event.key === "Escape" || event.key === "?") this.sheet(false);
        return;
      }
      if (event.target.closest("input, select, textarea")) return;
      if (event.key === "Enter" && event.target.closest("button")) return;
      if (event.altKey && (event.key === "ArrowLeft" || event.key === "ArrowRight")) {
        event.preventDefault();
        this.page.goAlong(event.key === "ArrowLeft" ? -1 : 1);
        return;
      }
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const action = this.actions()[event.key];
      if (!action) return;
      event.preventDefault();
      action(event);
    });
  }

  actions() {
    const {page, elements} = this;
    const walk = (direction) => () => {
      const node = page.neighbour(direction);
      if (!node) return;
      page.select({kind: node.kind, index: node.index});
      this.bringIntoView(node.place);
    };
    return {
      ArrowUp: walk("up"), ArrowDown: walk("down"), ArrowLeft: walk("left"), ArrowRight: walk("right"),
      Enter: (event) => {
        const thing = page.selectedThing();
        if (thing && thing.kind !== "op") this.toggle(thing, event.shiftKey);
      },
      Escape: () => this.escape(),
      "/": () => elements.query.focus(),
      f: () => page.fit(),
      s: () => this.save(),
      t: () => page.chooseTheme(!page.isDark),
      p: () => elements.fold.click(),
      c: () => this.nextColour(),
      ".": () => page.selectedThing() && page.reveal(page.selectedThing()),
      "[": () => this.deepen(-1), "]": () => this.deepen(1),
      "+": () => page.zoom(1.25), "=": () => page.zoom(1.25), "-": () => page.zoom(0.8),
      1: () => page.zoom(1 / page.camera.scale),
      "?": () => this.sheet(true),
    };
  }

  /** Let go of what was found, then of what is selected. */
  escape() {
    const {page, elements} = this;
    if (page.matches.length || elements.query.value) {
      elements.query.value = "";
      this.find();
    } else {
      page.select(null);
    }
  }

  bringIntoView(place) {
    const {page} = this;
    const {camera, painter} = page;
    const left = place.x * camera.scale + camera.x, top = place.y * camera.scale + camera.y;
    const right = left + place.width * camera.scale, bottom = top + place.height * camera.scale;
    if (left < 20 || top < 20 || right > painter.width - 20 || bottom > painter.height - 60) page.centre(place, camera.scale);
  }

  nextColour() {
    const colours = availableColours(this.page.graph);
    this.setColour(colours[(colours.indexOf(this.page.colour) + 1) % colours.length]);
  }

  setColour(name) {
    this.elements.colour.value = name;
    this.page.setColour(name);
  }

  deepen(step) {
    this.page.openTo(this.page.depth() + step);
  }

  // Search

  searchBox() {
    const {query, results} = this.elements;
    query.addEventListener("input", () => this.find());
    query.addEventListener("focus", () => this.showResults());
    query.addEventListener("blur", () => {
      results.hidden = true;
      query.setAttribute("aria-expanded", "false");
    });
    query.addEventListener("keydown", (event) => {
      const {page} = this;
      if (event.key === "Enter") this.goToMatch(event.shiftKey ? -1 : page.match < 0 || this.isFresh ? 0 : 1);
      else if (event.key === "ArrowDown" || event.key === "ArrowUp") this.goToMatch(event.key === "ArrowDown" ? 1 : -1, {isStill: true});
      else if (event.key === "Escape") {
        if (query.value) {
          query.value = "";
          this.find();
        } else {
          query.blur();
          this.elements.canvas.focus();
        }
      } else return;
      event.preventDefault();
    });
  }

  find() {
    const {page, elements} = this;
    const {hits, error} = page.search.find(elements.query.value);
    page.matches = hits;
    page.match = hits.length ? 0 : -1;
    this.isFresh = true;
    this.error = error;
    this.showResults();
    page.drawn();
  }

  /** Go to the next thing that was found, and show it unless it is only looked up in the list. */
  goToMatch(step, {isStill = false} = {}) {
    const {page} = this;
    if (!page.matches.length) return;
    page.match = (page.match + step + page.matches.length) % page.matches.length;
    this.isFresh = isStill;
    if (!isStill) page.follow(page.matches[page.match]);
    this.showResults();
  }

  showResults() {
    const {page, elements} = this;
    const {query, results, count} = elements;
    const {matches, match} = page;
    count.textContent = query.value ? (matches.length ? `${match + 1} of ${matches.length}` : "none") : "";
    const isShown = document.activeElement === query;
    results.hidden = !isShown;
    query.setAttribute("aria-expanded", String(isShown));
    if (!isShown) return;
    if (!query.value || !matches.length) {
      results.replaceChildren(...searchHelp(query.value, this.error));
      return;
    }
    const first = Math.max(Math.min(match - 8, matches.length - MAX_RESULTS), 0);
    results.replaceChildren(...matches.slice(first, first + MAX_RESULTS).map((thing, place) => this.result(thing, first + place)));
    if (matches.length > MAX_RESULTS) results.append(element("p", {}, `${matches.length} found`));
    results.querySelector('[aria-selected="true"]')?.scrollIntoView({block: "nearest"});
  }

  result(thing, place) {
    const {page} = this;
    const {graph} = page;
    const op = thing.kind === "op" ? graph.ops[thing.index] : null;
    const module = op ? null : graph.modules[thing.index];
    const entry = element("div", {class: "result", role: "option", "aria-selected": String(place === page.match)},
      element("b", {}, op ? op.label || op.id : module.id),
      element("span", {}, op ? op.shape : module.className),
      element("small", {}, op ? op.site : `${module.ops.length} operations`));
    entry.addEventListener("pointerdown", (event) => {
      event.preventDefault(); // the box keeps the focus
      page.match = place;
      this.isFresh = false;
      page.follow(thing);
      this.showResults();
    });
    return entry;
  }

  // The buttons

  buttons() {
    const {page, elements} = this;
    elements.colour.replaceChildren(...availableColours(page.graph).map((name) => element("option", {value: name}, MEASURES[name].name)));
    elements.colour.value = page.colour;
    elements.colour.addEventListener("change", () => page.setColour(elements.colour.value));
    const clicks = {
      shallower: () => this.deepen(-1), deeper: () => this.deepen(1), save: () => this.save(),
      theme: () => page.chooseTheme(!page.isDark), help: () => this.sheet(true),
      fold: () => elements.panel.classList.toggle("is-hidden"),
      out: () => page.zoom(0.8), in: () => page.zoom(1.25), scale: () => page.zoom(1 / page.camera.scale), fit: () => page.fit(),
    };
    for (const [name, action] of Object.entries(clicks)) elements[name].addEventListener("click", action);
    elements.sheet.addEventListener("click", (event) => event.target === elements.sheet && this.sheet(false));
  }

  save() {
    const {page} = this;
    const url = URL.createObjectURL(new Blob([page.svg()], {type: "image/svg+xml"}));
    const name = `${page.graph.title.replace(/[^\w.-]+/g, "_") || "model"}.svg`;
    element("a", {href: url, download: name}).click();
    window.setTimeout(() => URL.revokeObjectURL(url), 1000);
  }

  sheet(isShown) {
    const {sheet} = this.elements;
    if (isShown) sheet.replaceChildren(sheetOf(this.page, () => this.sheet(false)));
    sheet.hidden = !isShown;
    if (isShown) sheet.querySelector("button").focus();
    else this.elements.canvas.focus();
  }
}

function edgeTip(page, edge) {
  const {graph} = page;
  const first = graph.edges[edge.edges[0]];
  const [source, target] = [graph.ops[first.source], graph.ops[first.target]];
  const lines = [`${source.label || source.id} → ${target.label || target.id}`];
  if (edge.kind === "backward") lines.push("A gradient came back this way");
  lines.push([source.shape, source.dtype, source.bytes ? formatBytes(source.bytes) : ""].filter(Boolean).join(" · "));
  const marks = [...edge.tail, ...edge.head].join(", ");
  if (marks) lines.push(marks);
  if (edge.edges.length > 1) lines.push(`and ${edge.edges.length - 1} more like it`);
  return lines;
}

/** What can't be read at the scale, or was shortened. */
function nodeTip(page, thing) {
  const node = page.scene.numbers.get(thing.id);
  const isSmall = TEXT.size * page.camera.scale < 7.5;
  const measure = MEASURES[page.colour];
  const value = measure.of ? measure.format(sum(page.scene.opsOf(node), (index) => measure.of(page.graph.ops[index]))) : "";
  const isShort = node.lines.some((line, number) => line !== node.texts[number]);
  if (!isSmall && !isShort && !value) return [];
  const lines = isSmall || isShort ? [...node.lines] : [node.lines[0]];
  if (value) lines.push(`${measure.name}: ${value}`);
  return lines;
}
