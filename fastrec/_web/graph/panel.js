// The panel: all that is known of what is selected, with links to its neighbours; without a selection, of the whole.

const MAX_LINKS = 12;
const MAX_COSTLY = 6;

class Panel {
  constructor(page, place) {
    this.page = page;
    this.place = place;
    this.isLong = new Set(); // the lists that were opened to their whole length
  }

  show() {
    const {page} = this;
    const thing = page.selectedThing();
    this.thing = thing;
    if (thing !== this.last) this.isLong.clear();
    this.last = thing;
    this.place.replaceChildren(this.navigation(thing), ...(thing ? this.sections(thing) : this.overview()));
    this.place.scrollTop = 0;
  }

  navigation(thing) {
    const {page} = this;
    return element("nav", {},
      element("button", {title: "Back  ( Alt ← )", "aria-label": "Back", disabled: !page.trail.canGo(-1), onclick: () => page.goAlong(-1)}, icon("back")),
      element("button", {title: "Forward  ( Alt → )", "aria-label": "Forward", disabled: !page.trail.canGo(1), onclick: () => page.goAlong(1)}, icon("forward")),
      element("span", {class: "space"}),
      thing ? element("button", {title: "Show it in the graph  ( . )", "aria-label": "Show it in the graph", onclick: () => page.reveal(thing)}, icon("target")) : null,
      thing ? element("button", {title: "Close  ( Esc )", "aria-label": "Close", onclick: () => page.select(null)}, icon("close")) : null,
    );
  }

  sections(thing) {
    if (thing.kind === "op") return this.op(this.page.graph.ops[thing.index]);
    if (thing.kind === "module") return this.module(this.page.graph.modules[thing.index]);
    return this.fold(this.page.graph.folds[thing.index]);
  }

  heading(title, kind, around, verdict = "", keptBytes = 0) {
    const {graph} = this.page;
    const path = around.map((index) => graph.modules[index]).filter((module) => !module.isSingle);
    const steps = path.flatMap((module, place) => [
      place ? element("span", {}, "›") : null,
      this.inline(ownName(graph, module), {kind: "module", index: module.index}, `${module.id} · ${module.className}`),
    ]);
    const said = verdict && element("span", {class: `chip ${verdict}`}, verdict + (keptBytes ? `, ${formatBytes(keptBytes)} per pass` : ""));
    return element("section", {},
      element("h2", {}, title),
      kind ? element("p", {class: "kind"}, kind) : null,
      steps.length ? element("div", {class: "path"}, steps) : null,
      said,
    );
  }

  op(op) {
    const {graph} = this.page;
    const own = op.module >= 0 ? graph.modules[op.module] : null;
    const around = own ? [...graph.around(own.index), own.index] : [];
    const kind = {op: own && own.isSingle ? own.className : "Operation", input: "Input", output: "Output", buffer: "Buffer", orphan: "Operation that nothing reads", failed: "The operation that raised"}[op.kind];
    const passes = op.layer && op.layer !== op.label ? `pass ${op.pass} of ${op.layer}` : "";
    const facts = [
      ["Shape", op.shape], ["Type", op.dtype], ["Memory", op.bytes ? formatBytes(op.bytes) : ""],
      ["Time", op.us ? formatTime(op.us) : ""], ["Function", op.fn, "code"], ["Operation", op.type],
      ["Arguments", op.args, "code"], ["Parameters", op.params, "code"],
      ["Count", op.weights ? `${formatCount(op.weights)} parameters` : ""], ["Site", op.site, "code"],
      ["Module", own && own.isSingle ? own.id : ""], ["Pass", passes],
    ];
    return [
      this.heading(op.label || op.id, kind, around, op.verdict, op.keptBytes),
      element("section", {}, this.facts(facts), this.source(op.line)),
      ...this.conditions(op),
      this.links("Reads", op.parents.map((edge) => [graph.ops[edge.source], edge])),
      this.links("Read by", op.children.map((edge) => [graph.ops[edge.target], edge])),
    ];
  }

  module(module) {
    const {page} = this;
    const {graph} = page;
    const ops = module.ops.map((index) => graph.ops[index]);
    const isOpen = page.opening.modules.has(module.index);
    const member = graph.foldOf.get(module.index);
    const facts = [
      ["Class", module.className], ["Address", module.address, "code"],
      ["Pass", module.passes > 1 ? (module.pass ? `${module.pass} of ${module.passes}` : `all ${module.passes}`) : ""],
      ["Operations", formatCount(ops.filter((op) => op.kind === "op").length)],
      ["Parameters", formatCount(sum(ops, (op) => op.weights)) ], ["Memory", formatBytes(sum(ops, (op) => op.bytes))],
      ["Time", timeOf(ops)],
    ];
    const inside = new Set(module.ops);
    const entering = ops.flatMap((op) => op.parents.filter((edge) => !inside.has(edge.source)).map((edge) => [graph.ops[edge.source], edge]));
    const leaving = ops.flatMap((op) => op.children.filter((edge) => !inside.has(edge.target)).map((edge) => [graph.ops[edge.target], edge]));
    return [
      this.heading(module.id, module.className, graph.around(module.index), module.verdict, module.keptBytes),
      element("section", {}, this.facts(facts), this.buttons([
        [isOpen ? "Close" : "Open", () => page.toggleModule(module.index)],
        [isOpen ? "Close all below" : "Open all below", () => page.toggleModule(module.index, {isDeep: true})],
        ["Only this", () => page.openOnly(module.index)],
        ...(member && page.opening.unfolded.has(member[0]) ? [["Fold repeats", () => page.refold(member[0])]] : []),
      ])),
      this.costly(ops),
      this.moduleList(module.modules),
      this.links("Reads", unique(entering)),
      this.links("Read by", unique(leaving)),
    ];
  }

  fold(fold) {
    const {page} = this;
    const {graph} = page;
    const shown = page.opening.folds.get(fold.index);
    const ops = fold.modules.flatMap((index) => graph.modules[index].ops.map((op) => graph.ops[op]));
    const classes = fold.title[1] || "";
    return [
      this.heading(`${fold.count} × ${classes}`, fold.title[0], fold.parent >= 0 ? [...graph.around(fold.parent), fold.parent] : []),
      element("section", {}, this.facts([
        ["Repetitions", String(fold.count)], ["Operations", formatCount(ops.filter((op) => op.kind === "op").length)],
        ["Parameters", formatCount(sum(ops, (op) => op.weights))], ["Memory", formatBytes(sum(ops, (op) => op.bytes))],
        ["Time", timeOf(ops)],
      ]), this.buttons([
        ...(shown === undefined ? [["Open", () => page.openFold(fold.index, 0)]] : [
          ["‹", () => page.stepFold(fold.index, -1)], [`${shown + 1} of ${fold.count}`, null], ["›", () => page.stepFold(fold.index, 1)],
          ["Close", () => page.closeFold(fold.index)],
        ]),
        ["Unfold all", () => page.unfold(fold.index)],
      ])),
      this.costly(ops),
      this.moduleList(fold.modules),
    ];
  }

  overview() {
    const {graph} = this.page;
    const {about} = graph;
    const {ops} = graph;
    return [
      element("section", {}, element("h2", {}, graph.title), graph.caption.slice(1).map((line) => element("p", {class: "kind"}, line))),
      element("section", {}, this.facts([
        ["Operations", formatCount(ops.filter((op) => op.kind === "op").length)],
        ["Modules", formatCount(graph.modules.length)],
        ["Repeats", graph.folds.length ? graph.folds.map((fold) => `${fold.count} × ${fold.title[1]}`).join(", ") : ""],
        ["Functions", timeOf(ops)],
        ["Logged in", about.seconds ? formatTime(about.seconds * 1e6) : ""],
        ["Seed", about.seed === undefined ? "" : String(about.seed)],
        ["PyTorch", about.torch || ""],
      ])),
      this.costly(ops.filter((op) => op.kind === "op")),
      graph.conditions.length ? element("section", {}, element("h3", {}, "Conditions"), element("ul", {class: "links"}, graph.conditions.map((condition) => this.condition(condition)))) : "",
      element("section", {},
        element("p", {class: "kind"}, "Click a module to open it, and an operation to read about it. ", this.hint("Shift"), " opens all below, a double click only this one. ", this.hint("?"), " lists all keys."),
      ),
    ].filter(Boolean);
  }

  hint(key) {
    return element("kbd", {}, key);
  }

  conditions(op) {
    const found = this.page.graph.conditions.filter((condition) => condition.label === op.label || condition.label === op.layer);
    if (!found.length) return [];
    return [element("section", {}, element("h3", {}, "Tested by Python"), element("ul", {class: "links"}, found.map((condition) => this.condition(condition))))];
  }

  condition(condition) {
    const op = this.page.graph.ops.find((other) => other.label === condition.label || other.layer === condition.label);
    const said = `${condition.kind} → ${condition.value}${condition.branch ? `, ${condition.branch} branch` : ""}`;
    return element("li", {},
      element("button", {class: "link", title: condition.line, onclick: () => op && this.page.follow({kind: "op", index: op.index})},
        element("b", {}, condition.label), element("span", {}, said)),
      condition.line ? element("pre", {class: "source"}, condition.line) : null,
    );
  }

  facts(facts) {
    return element("dl", {}, facts.filter(([, value]) => value).flatMap(([name, value, look]) => [element("dt", {}, name), element("dd", {class: look}, value)]));
  }

  source(line) {
    if (!line) return null;
    const [place, ...code] = line.split("  ");
    return element("pre", {class: "source"}, element("small", {}, place), code.join("  "));
  }

  buttons(buttons) {
    return element("div", {class: "row"}, buttons.map(([text, action]) =>
      action ? element("button", {onclick: action}, text) : element("span", {class: "value"}, text)));
  }

  /** Where most of the time goes, or of what the graph is coloured by. */
  costly(ops) {
    const {page} = this;
    const measure = MEASURES[page.colour].of ? MEASURES[page.colour] : MEASURES.time;
    const costly = ops.filter((op) => measure.of(op) > 0).sort((a, b) => measure.of(b) - measure.of(a));
    if (costly.length < 2) return "";
    const most = measure.of(costly[0]);
    return element("section", {}, element("h3", {}, `Most ${measure.name.toLowerCase()}`), element("ul", {class: "links"}, costly.slice(0, MAX_COSTLY).map((op) =>
      element("li", {}, element("button", {class: "link", title: op.site, onclick: () => page.follow({kind: "op", index: op.index})},
        element("b", {}, op.label),
        element("span", {class: "meter"}, meter(measure.of(op) / most)),
        element("span", {}, measure.format(measure.of(op))))))));
  }

  moduleList(modules) {
    const {graph} = this.page;
    const entries = modules.map((index) => {
      const module = graph.modules[index];
      const thing = module.isSingle ? {kind: "op", index: module.ops[0]} : {kind: "module", index};
      return [module.id, module.className, thing];
    });
    return this.list("Modules", entries.map(([name, text, thing]) => ({name, text, thing})));
  }

  links(title, pairs) {
    return this.list(title, pairs.map(([op, edge]) => ({
      name: op.label || op.id, mark: [...edge.head, ...edge.tail].join(", "), text: op.shape, thing: {kind: "op", index: op.index}, edge: edge.index,
    })));
  }

  list(title, entries) {
    if (!entries.length) return "";
    const shown = this.isLong.has(title) ? entries : entries.slice(0, MAX_LINKS);
    const more = entries.length > shown.length && element("button", {class: "more", onclick: () => {
      this.isLong.add(title);
      const {scrollTop} = this.place;
      this.show();
      this.place.scrollTop = scrollTop;
    }}, `${entries.length - shown.length} more`);
    return element("section", {}, element("h3", {}, entries.length > 1 ? `${title} · ${entries.length}` : title),
      element("ul", {class: "links"}, shown.map(({name, mark, text, thing}) =>
        element("li", {}, element("button", {class: "link", title: name, onclick: () => this.page.follow(thing)},
          element("b", {}, name), mark ? element("em", {}, mark) : null, element("span", {}, text))))),
      more || null);
  }

  inline(text, thing, title) {
    return element("button", {class: "link is-inline", title, onclick: () => this.page.follow(thing)}, text);
  }
}

/** The part of a module's address that the one around it does not have. */
function ownName(graph, module) {
  const above = module.parent >= 0 ? `${graph.modules[module.parent].address}.` : "";
  const address = module.address.startsWith(above) ? module.address.slice(above.length) : module.address;
  return module.pass && module.passes > 1 ? `${address}:${module.pass}` : address;
}

function meter(share) {
  const bar = document.createElement("i");
  bar.style.width = `${Math.max(share * 100, 3)}%`;
  return bar;
}

/** The time of some operations, nothing where none was measured. */
function timeOf(ops) {
  const total = sum(ops, (op) => op.us);
  return total ? formatTime(total) : "";
}

function sum(things, of) {
  return things.reduce((total, thing) => total + of(thing), 0);
}

function unique(pairs) {
  return [...new Map(pairs.map(([op, edge]) => [op.index, [op, edge]])).values()];
}
