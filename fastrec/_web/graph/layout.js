// Places for everything in a drawing: nodes in nested boxes, and a route for each edge.
//
// The same as fastrec/graph/draw/layout.py, which says why. Each box is laid out for itself (layers.js), and what was
// laid out once is kept, so that to open a module costs that module and the ones around it.
//
//     layoutOf({nodes: [{width, height, box}], boxes: [{parent, title, place}],
//               edges: [{source, target, head, tail, value}]}, cache)
//     -> {nodes: [{x, y, width, height}], boxes: [...], crossings,
//         routes: [{kind, stations: [[x, top, bottom]], isReversed, head, tail}]}

const LOOP_WIDTH = 30;
const MAX_CACHED = 20000;

/**
 * What lies in which box, in which order, and the parts of each edge in the boxes that it passes.
 *
 * A child of a box is a node by its index, or a box as `-1 - index`.
 */
class Nesting {
  constructor(diagram) {
    const {nodes, boxes, edges} = diagram;
    this.diagram = diagram;
    this.depths = [];
    for (const box of boxes) this.depths.push(box.parent < 0 ? 0 : this.depths[box.parent] + 1);
    this.loops = new Set(edges.filter((edge) => edge.source === edge.target).map((edge) => edge.source));
    this.children = boxes.map(() => []);
    const children = boxes.map((box, index) => [box.place, -1 - index]).slice(1);
    nodes.forEach((_, node) => children.push([node, node]));
    children.sort((a, b) => a[0] - b[0]);
    for (const [, child] of children) this.children[this.parent(child)].push(child);

    const spans = edges.map((edge) => (edge.source === edge.target ? null : this.span(edge)));
    const pairs = boxes.map(() => []);
    for (const span of spans) if (span) pairs[span.box].push([span.source, span.target]);
    this.children = this.children.map((level, box) => acyclicOrder(level, pairs[box]));
    this.number = new Map();
    for (const level of this.children) level.forEach((child, number) => this.number.set(child, number));

    this.steps = boxes.map(() => []);
    this.ways = edges.map(() => []);
    this.isReversed = edges.map(() => false);
    this.isFar = edges.map(() => false);
    spans.forEach((span, index) => span && this.add(index, span));
    // One number for what is a tuple in Python: the node, which value of it, and whether the edge points back.
    this.values = edges.map(
      (edge, index) => (edge.source * 4096 + (edge.value || 0)) * 2 + (this.isReversed[index] ? 1 : 0),
    );
    this.ranks = boxes.map((_, box) => this.ranked(box));
  }

  parent(child) {
    return child >= 0 ? this.diagram.nodes[child].box : this.diagram.boxes[-1 - child].parent;
  }

  /** What a node needs on each side for a loop, so that its middle stays in the middle. */
  loopWidth(node) {
    return this.loops.has(node) ? LOOP_WIDTH : 0;
  }

  /** The widths of the marks at the upper and at the lower end of an edge. */
  marks(edge) {
    const {head = 0, tail = 0} = this.diagram.edges[edge];
    return this.isReversed[edge] ? [head, tail] : [tail, head];
  }

  /** An edge in the tree of boxes: those that it leaves and enters, and the innermost one around both ends. */
  span(edge) {
    const {boxes} = this.diagram;
    let {source, target} = edge;
    let above = this.parent(source), below = this.parent(target);
    const leaving = [], entering = [];
    while (above !== below) {
      if (this.depths[above] >= this.depths[below]) {
        leaving.push([above, source]);
        source = -1 - above;
        above = boxes[above].parent;
      } else {
        entering.push([below, target]);
        target = -1 - below;
        below = boxes[below].parent;
      }
    }
    return {box: above, source, target, leaving, entering};
  }

  add(index, span) {
    let first = this.number.get(span.source), last = this.number.get(span.target);
    let {leaving, entering} = span;
    if (first > last) {
      this.isReversed[index] = true;
      [first, last, leaving, entering] = [last, first, entering, leaving];
    }
    for (const [box, child] of leaving) this.steps[box].push({edge: index, source: this.number.get(child), target: -1});
    this.steps[span.box].push({edge: index, source: first, target: last});
    for (const [box, child] of entering) this.steps[box].push({edge: index, source: -1, target: this.number.get(child)});
    this.ways[index] = [...leaving.map(([box]) => box), span.box, ...entering.map(([box]) => box).reverse()];
  }

  ranked(box) {
    const steps = this.steps[box];
    const count = this.children[box].length;
    const fed = new Array(count).fill(false);
    for (const step of steps) if (step.source < 0) fed[step.target] = true;
    const inner = steps.filter((step) => step.source >= 0 && step.target >= 0);
    const ranks = ranksOf(count, inner.map((step) => [step.source, step.target]), fed);
    let depth = 0;
    for (const rank of ranks) depth = Math.max(depth, rank + 1);
    const spanned = steps.map((step) => {
      const upper = step.source >= 0 ? ranks[step.source] : -1;
      return {step, span: (step.target >= 0 ? ranks[step.target] : depth) - upper};
    });
    spanned.sort((a, b) => a.span - b.span || a.step.edge - b.step.edge);
    let dummies = 0;
    const lengths = new Map();
    for (const {step, span} of spanned) {
      if (this.isFar[step.edge]) continue;
      const chain = bundleOf(step, this.values[step.edge]);
      const length = lengths.get(chain) || 0;
      const more = Math.max(span - 1 - length, 0);
      if (span > MAX_SPAN || dummies + more > DUMMIES_PER_ITEM * count) {
        this.isFar[step.edge] = true;
      } else {
        dummies += more;
        lengths.set(chain, Math.max(length, span - 1));
      }
    }
    return ranks;
  }
}

/** Children of a box in an order that as few edges as possible point back in; without cycles, none does. */
function acyclicOrder(children, pairs) {
  const place = new Map(children.map((child, number) => [child, number]));
  if (pairs.every(([source, target]) => place.get(source) < place.get(target))) return children;
  const unique = [...new Map(pairs.map((pair) => [pair.join(), pair])).values()];
  const backward = unique.filter(([source, target]) => place.get(source) > place.get(target));
  const below = new Map(children.map((child) => [child, []]));
  for (const [source, target] of unique) if (place.get(source) < place.get(target)) below.get(source).push(target);
  for (const [source, target] of backward) if (!reaches(below, target, source)) below.get(source).push(target);
  const waiting = new Map(children.map((child) => [child, 0]));
  for (const targets of below.values()) for (const target of targets) waiting.set(target, waiting.get(target) + 1);
  const order = [];
  const free = new Set(children.filter((child) => !waiting.get(child)).map((child) => place.get(child)));
  while (free.size) {
    let least = Infinity;
    for (const number of free) least = Math.min(least, number);
    free.delete(least);
    const child = children[least];
    order.push(child);
    for (const target of below.get(child)) {
      waiting.set(target, waiting.get(target) - 1);
      if (!waiting.get(target)) free.add(place.get(target));
    }
  }
  return order;
}

function reaches(below, start, end) {
  const seen = new Set([start]);
  const todo = [start];
  while (todo.length) {
    for (const child of below.get(todo.pop())) {
      if (child === end) return true;
      if (!seen.has(child)) {
        seen.add(child);
        todo.push(child);
      }
    }
  }
  return false;
}

/** One number for an item and a value that leaves it. */
function bundleOf(step, value) {
  return (step.source + 1) * 2 ** 31 + value;
}

/** Lay out a diagram; a cache (a Map) holds the boxes that were laid out before. */
function layoutOf(diagram, cache = new Map()) {
  if (cache.size > MAX_CACHED) cache.clear();
  const nesting = new Nesting(diagram);
  const insides = new Array(diagram.boxes.length);
  for (let box = diagram.boxes.length - 1; box >= 0; box--) insides[box] = insideOf(nesting, box, insides, cache);
  return assembleLayout(nesting, insides);
}

function insideOf(nesting, box, insides, cache) {
  const steps = nesting.steps[box].filter((step) => !nesting.isFar[step.edge]);
  const portsOf = (some) => {
    const values = [...new Set(some.map((step) => nesting.values[step.edge]))].sort((a, b) => a - b);
    return new Map(values.map((value, port) => [value, port]));
  };
  const entering = portsOf(steps.filter((step) => step.source < 0));
  const leaving = portsOf(steps.filter((step) => step.target < 0));
  const children = nesting.children[box];
  const nets = [];
  const numbers = new Map();
  const places = new Map();
  for (const step of steps) {
    const value = nesting.values[step.edge];
    const [tail, head] = nesting.marks(step.edge);
    const key = bundleOf(step, value);
    if (!numbers.has(key)) {
      numbers.set(key, nets.length);
      const child = children[step.source];
      if (step.source < 0) nets.push({source: -1 - entering.get(value), x: 0, mark: 0, targets: []});
      else if (child < 0) nets.push({source: step.source, x: portOut(insides[-1 - child], value), mark: 0, targets: []});
      else nets.push({source: step.source, x: -1, mark: tail, targets: []});
    }
    const {targets} = nets[numbers.get(key)];
    const child = children[step.target];
    let target;
    if (step.target < 0) target = {item: -1 - leaving.get(value), x: 0, mark: 0};
    else if (child < 0) target = {item: step.target, x: portIn(insides[-1 - child], value), mark: 0};
    else target = {item: step.target, x: -1, mark: head};
    let place = target.x < 0 ? -1 : targets.findIndex((other) => other.item === target.item && other.x === target.x);
    if (place < 0) place = targets.push(target) - 1;
    places.set(step.edge, [numbers.get(key), place]);
  }
  const level = {
    items: itemsOf(nesting, box, nets, insides),
    title: nesting.diagram.boxes[box].title,
    portsIn: entering.size,
    portsOut: leaving.size,
    nets,
    ranks: nesting.ranks[box],
  };
  const text = JSON.stringify(level);
  let arranged = cache.get(text);
  if (!arranged) cache.set(text, (arranged = arrange(level)));
  return {items: level.items, arranged, entering, leaving, places};
}

function portIn(inside, value) {
  return inside.arranged.portsIn[inside.entering.get(value)];
}

function portOut(inside, value) {
  return inside.arranged.portsOut[inside.leaving.get(value)];
}

/** What lies in a box, as rectangles; a node is as wide as its text and the marks of its edges need. */
function itemsOf(nesting, box, nets, insides) {
  const heads = new Map();
  const tails = new Map();
  const add = (marks, item, mark) => (marks.has(item) ? marks.get(item).push(mark) : marks.set(item, [mark]));
  for (const net of nets) {
    add(tails, net.source, net.mark);
    for (const target of net.targets) add(heads, target.item, target.mark);
  }
  return nesting.children[box].map((child, number) => {
    if (child < 0) {
      const {width, height} = insides[-1 - child].arranged;
      return {width, height, heads: false, tails: false};
    }
    const node = nesting.diagram.nodes[child];
    const head = marksWidth(heads.get(number) || []);
    const tail = marksWidth(tails.get(number) || []);
    const width = Math.max(node.width, head, tail) + 2 * nesting.loopWidth(child);
    return {width, height: node.height, heads: head > 0, tails: tail > 0};
  });
}

function assembleLayout(nesting, insides) {
  const {diagram} = nesting;
  const nodes = new Array(diagram.nodes.length);
  const boxes = insides.map(({arranged}) => ({x: 0, y: 0, width: arranged.width, height: arranged.height}));
  insides.forEach(({items, arranged}, index) => {
    nesting.children[index].forEach((child, number) => {
      const x = boxes[index].x + arranged.positions[number][0];
      const y = boxes[index].y + arranged.positions[number][1];
      if (child < 0) {
        boxes[-1 - child].x = x;
        boxes[-1 - child].y = y;
      } else {
        const loop = nesting.loopWidth(child);
        const {width, height} = items[number];
        nodes[child] = {x: x + loop, y, width: width - 2 * loop, height};
      }
    });
  });
  const routes = diagram.edges.map((_, edge) => routeOf(nesting, edge, insides, nodes, boxes));
  return {nodes, boxes, routes, crossings: insides.reduce((sum, inside) => sum + inside.arranged.crossings, 0)};
}

function routeOf(nesting, edge, insides, nodes, boxes) {
  const {source, target} = nesting.diagram.edges[edge];
  if (source === target || nesting.isFar[edge]) {
    const stations = [nodes[source], nodes[target]].map((place) => {
      const y = place.y + Math.floor(place.height / 2);
      return [place.x + place.width, y, y];
    });
    return {kind: source === target ? "loop" : "far", stations, isReversed: false, head: 1, tail: 1};
  }
  const stations = [];
  let head = 1, tail = 1;
  nesting.ways[edge].forEach((box, number) => {
    const {x, y} = boxes[box];
    const {arranged, places} = insides[box];
    const [net, place] = places.get(edge);
    for (const [stationX, top, bottom] of arranged.routes[net][place]) {
      const last = stations[stations.length - 1];
      if (last && last[0] === x + stationX && last[2] === y + top) last[2] = y + bottom;
      else stations.push([x + stationX, y + top, y + bottom]);
    }
    if (number === 0) tail = arranged.tails[net];
    head = arranged.heads[net][place];
  });
  const isReversed = nesting.isReversed[edge];
  return {kind: "near", stations, isReversed, head: isReversed ? tail : head, tail: isReversed ? head : tail};
}
