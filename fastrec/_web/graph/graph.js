// The data of the page, read into objects: operations, edges, modules and folds, each knowing its own index.
//
// What the columns mean is written in fastrec/graph/draw/data.py.

const KINDS = ["op", "input", "output", "buffer", "orphan", "failed"];
const VERDICTS = ["", "kept", "rejected", "unreachable", "failed"];
const OP_TEXTS = ["id", "label", "layer", "type", "fn", "site", "shape", "dtype", "params", "args", "line"];
const OP_NUMBERS = ["pass", "bytes", "us"];

class Graph {
  constructor(data) {
    const {strings, looks, ops, edges, modules, folds, marks} = data;
    const text = (number) => strings[number] ?? "";
    const texts = (numbers) => numbers.map(text);
    const pieces = (number) => (text(number) ? text(number).split("\n") : []);
    Object.assign(this, {
      title: data.title,
      caption: data.caption,
      about: data.about,
      options: data.options,
      conditions: data.conditions,
      isPreview: Boolean(marks),
    });

    this.ops = ops.id.map((_, index) => {
      const op = {
        index,
        kind: KINDS[ops.kind[index]],
        lines: texts(ops.lines[index]),
        look: looks[ops.look[index]],
        module: ops.module[index],
        verdict: marks ? VERDICTS[marks.ops[index]] : "",
        keptBytes: marks ? marks.ops_bytes[index] : 0,
        parents: [],
        children: [],
      };
      for (const name of OP_TEXTS) op[name] = ops[name] ? text(ops[name][index]) : "";
      for (const name of OP_NUMBERS) op[name] = ops[name] ? ops[name][index] : 0;
      op.weights = countedWeights(op.params);
      return op;
    });

    this.edges = edges.from.map((source, index) => ({
      index,
      source,
      target: edges.to[index],
      head: pieces(edges.head[index]),
      tail: pieces(edges.tail[index]),
      isDashed: edges.kind[index] === 1,
      kind: edges.kind[index] === 2 ? "backward" : "value",
    }));
    for (const edge of this.edges) {
      if (edge.kind === "backward") continue;
      this.ops[edge.source].children.push(edge);
      this.ops[edge.target].parents.push(edge);
    }

    this.modules = modules.id.map((id, index) => ({
      index,
      id: text(id),
      address: text(modules.address[index]),
      className: text(modules.class[index]),
      parent: modules.parent[index],
      pass: modules.pass[index],
      passes: modules.passes[index],
      title: texts(modules.title[index]),
      lines: texts(modules.lines[index]),
      look: looks[modules.look[index]],
      isSingle: modules.single[index] === 1,
      verdict: marks ? VERDICTS[marks.modules[index]] : "",
      keptBytes: marks ? marks.modules_bytes[index] : 0,
      modules: [],
      ops: [],
    }));
    for (const module of this.modules) {
      module.depth = module.parent < 0 ? 1 : this.modules[module.parent].depth + 1;
      if (module.parent >= 0) this.modules[module.parent].modules.push(module.index);
    }
    for (const op of this.ops) {
      for (let module = op.module; module >= 0; module = this.modules[module].parent) this.modules[module].ops.push(op.index);
    }

    this.folds = folds.id.map((id, index) => ({
      index,
      id: text(id),
      parent: folds.parent[index],
      period: folds.period[index],
      count: folds.count[index],
      modules: folds.modules[index],
      title: texts(folds.title[index]),
      lines: texts(folds.lines[index]),
      look: looks[folds.look[index]],
    }));
    this.foldOf = new Map();
    for (const fold of this.folds) {
      fold.modules.forEach((module, place) => this.foldOf.set(module, [fold.index, Math.floor(place / fold.period)]));
    }
    this.depth = this.modules.reduce((most, module) => (module.isSingle ? most : Math.max(most, module.depth)), 0) + 1;
  }

  /** The modules of one repetition of a fold. */
  repetition(fold, number) {
    return fold.modules.slice(number * fold.period, (number + 1) * fold.period);
  }

  /** The modules around a module, outermost first, without itself. */
  around(module) {
    const path = [];
    for (let above = this.modules[module].parent; above >= 0; above = this.modules[above].parent) path.unshift(above);
    return path;
  }

  /** A module and all modules in it, each behind the one that it lies in. */
  below(module) {
    const found = [module];
    for (let place = 0; place < found.length; place++) found.push(...this.modules[found[place]].modules);
    return found;
  }
}

/** How many numbers the parameters of an operation hold, read from their shapes: "weight 64x3x7x7, bias 64". */
function countedWeights(params) {
  if (!params) return 0;
  let total = 0;
  for (const part of params.split(", ")) {
    const shape = part.slice(part.lastIndexOf(" ") + 1);
    total += shape === "scalar" ? 1 : shape.split("x").reduce((product, size) => product * Number(size), 1) || 0;
  }
  return total;
}
