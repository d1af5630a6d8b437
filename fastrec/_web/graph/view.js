// What is seen of a graph when some of its modules and folds are open; the same as fastrec/graph/draw/view.py.
//
//     const view = viewOf(graph, {modules: new Set([0]), folds: new Map([[0, 2]]), unfolded: new Set()});
//     view.nodes[0]  -> {id, kind: "op" | "module" | "fold", index, lines, look, box}
//     view.boxes[0]  -> {id, kind, index, title, box}
//     view.edges[0]  -> {source, target, head, tail, isDashed, kind, edges: [index]}
//
// `folds` holds the repetition that is shown of each open fold. `box` is the number of the frame around, counted from 1,
// 0 on the paper; ends of edges are numbers of nodes.

/** Everything open down to a depth (null for all), folds by their first repetition, or laid out whole. */
function openingAt(graph, depth, isFolded = true) {
  const modules = new Set();
  for (const module of graph.modules) if (depth === null || module.depth < depth) modules.add(module.index);
  if (!isFolded) return {modules, folds: new Map(), unfolded: new Set(graph.folds.map((fold) => fold.index))};
  const folds = new Map();
  for (const fold of graph.folds) if (modules.has(fold.modules[0])) folds.set(fold.index, 0);
  return {modules, folds, unfolded: new Set()};
}

function viewOf(graph, opening) {
  return new Viewer(graph, opening).view();
}

const AT_TOP = {hiddenIn: "", frame: "", repetitions: []};

class Viewer {
  constructor(graph, opening) {
    this.graph = graph;
    this.opening = opening;
    this.seen = [];
    this.places = [];
    for (const module of graph.modules) this.places.push(this.placeOf(module));
  }

  /** Where a module and what is in it are seen; notes the node or the frame that stands for it. */
  placeOf(module) {
    const {graph, opening} = this;
    let place = module.parent >= 0 ? this.places[module.parent] : AT_TOP;
    const member = graph.foldOf.get(module.index);
    if (member && !opening.unfolded.has(member[0])) {
      const fold = graph.folds[member[0]];
      if (!place.hiddenIn) {
        const isOpen = opening.folds.has(fold.index);
        if (module.index === fold.modules[0] && !this.isLeftOut(place)) {
          this.seen.push({kind: "fold", thing: fold, frame: place.frame, isOpen});
        }
        place = isOpen ? {...place, frame: fold.id} : {...place, hiddenIn: fold.id};
      }
      place = {...place, repetitions: [...place.repetitions, member]};
    }
    if (!place.hiddenIn && !module.isSingle) {
      const isOpen = opening.modules.has(module.index);
      if (!this.isLeftOut(place)) this.seen.push({kind: "module", thing: module, frame: place.frame, isOpen});
      place = isOpen ? {...place, frame: module.id} : {...place, hiddenIn: module.id};
    }
    return place;
  }

  /** Whether something lies in a repetition of an open fold that is not the one shown. */
  isLeftOut(place) {
    const shown = this.opening.folds;
    return place.repetitions.some(([fold, repetition]) => shown.has(fold) && shown.get(fold) !== repetition);
  }

  around(op) {
    return op.module >= 0 ? this.places[op.module] : AT_TOP;
  }

  view() {
    const {graph} = this;
    const placed = [];
    for (const op of graph.ops) {
      const place = this.around(op);
      if (place.hiddenIn || this.isLeftOut(place)) continue;
      placed.push({first: op.index, id: op.id, kind: "op", index: op.index, lines: op.lines, look: op.look, frame: place.frame});
    }
    for (const {kind, thing, frame, isOpen} of this.seen) {
      if (isOpen) continue;
      const first = graph.modules[kind === "fold" ? thing.modules[0] : thing.index].ops[0];
      placed.push({first, id: thing.id, kind, index: thing.index, lines: thing.lines, look: thing.look, frame});
    }
    placed.sort((a, b) => a.first - b.first);
    const frames = new Map([["", 0]]);
    const boxes = [];
    for (const {kind, thing, frame, isOpen} of this.seen) {
      if (!isOpen) continue;
      boxes.push({id: thing.id, kind, index: thing.index, title: thing.title, box: frames.get(frame)});
      frames.set(thing.id, boxes.length);
    }
    const nodes = placed.map(({frame, first, ...node}) => ({...node, box: frames.get(frame)}));
    return {nodes, boxes, edges: this.edges(nodes)};
  }

  edges(nodes) {
    const {graph} = this;
    const likes = this.likes();
    const numbers = new Map(nodes.map((node, number) => [node.id, number]));
    const merged = new Map();
    for (const edge of graph.edges) {
      if (isAcross(this.around(graph.ops[edge.source]), this.around(graph.ops[edge.target]))) continue;
      const source = graph.ops[likes[edge.source]], target = graph.ops[likes[edge.target]];
      const sourceHidden = this.around(source).hiddenIn, targetHidden = this.around(target).hiddenIn;
      if (sourceHidden && sourceHidden === targetHidden) continue;
      const from = numbers.get(sourceHidden || source.id), to = numbers.get(targetHidden || target.id);
      const key = (from * nodes.length + to) * 2 + (edge.kind === "backward" ? 1 : 0);
      let seen = merged.get(key);
      if (!seen) {
        seen = {source: from, target: to, head: [], tail: [], isDashed: true, kind: edge.kind, edges: []};
        merged.set(key, seen);
      }
      seen.edges.push(edge.index);
      seen.isDashed = seen.isDashed && edge.isDashed;
      if (!targetHidden) seen.head.push(...edge.head.filter((text) => !seen.head.includes(text)));
      if (!sourceHidden) seen.tail.push(...edge.tail.filter((text) => !seen.tail.includes(text)));
    }
    return [...merged.values()];
  }

  /** For each operation, itself, or its like in the repetition that is shown. */
  likes() {
    const {graph, opening} = this;
    const likes = graph.ops.map((op) => op.index);
    const opsOf = (fold, number) => graph.repetition(fold, number).flatMap((module) => graph.modules[module].ops);
    for (const fold of graph.folds) {
      if (!opening.folds.has(fold.index) || opening.unfolded.has(fold.index)) continue;
      const shown = opening.folds.get(fold.index);
      const ops = opsOf(fold, shown);
      for (let number = 0; number < fold.count; number++) {
        if (number !== shown) opsOf(fold, number).forEach((op, place) => (likes[op] = ops[place]));
      }
    }
    return likes.map((like) => {
      while (likes[like] !== like) like = likes[like];
      return like;
    });
  }
}

/** Whether two places lie in different repetitions of one fold. */
function isAcross(source, target) {
  if (source === target || !source.repetitions.length) return false;
  return source.repetitions.some(([fold, repetition]) =>
    target.repetitions.some(([other, number]) => other === fold && number !== repetition),
  );
}

/** The sizes of all that is seen, to be laid out; the same as fastrec/graph/draw/diagram.py. */
function diagramOf(view) {
  const nodes = view.nodes.map((node) => {
    const [width, height] = nodeSize(node.lines.map(shortened), node.look.shape);
    return {width, height, box: node.box};
  });
  const parents = [-1, ...view.boxes.map((box) => box.box)];
  const places = parents.map(() => nodes.length);
  for (let place = nodes.length - 1; place >= 0; place--) {
    for (let frame = nodes[place].box; frame >= 0; frame = parents[frame]) places[frame] = place;
  }
  const titles = [[0, 0], ...view.boxes.map((box) => titleSize(box.title.map(shortened)))];
  const boxes = parents.map((parent, index) => ({parent, title: titles[index], place: places[index]}));
  const tails = new Map();
  const edges = view.edges.map((edge) => {
    const tail = markText(edge.tail);
    if (!tails.has(edge.source)) tails.set(edge.source, new Map([["", 0]]));
    const texts = tails.get(edge.source);
    if (!texts.has(tail)) texts.set(tail, texts.size);
    const value = 2 * texts.get(tail) + (edge.kind === "backward" ? 1 : 0);
    const head = textWidth(markText(edge.head), MARK);
    return {source: edge.source, target: edge.target, head, tail: textWidth(tail, MARK), value};
  });
  return {nodes, boxes, edges};
}

/** What is written at one end of an edge. */
function markText(texts) {
  return shortened(texts.join(", "));
}
