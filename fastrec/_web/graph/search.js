// Search: words and globs over operations and modules.
//
//     const search = new Search(graph);
//     search.find("type:conv* 64")  -> {hits: [{kind: "op", index}], error: ""}
//
// A word is found in labels, sites, addresses and classes. `type:`, `site:`, `module:`, `class:`, `dtype:` and `fn:` take
// a glob for the whole of one of them, as predicates do: `*` stays within one level of an address, `**` crosses levels,
// `?` is one letter. `shape:?x64` names sizes one by one, `?` for any size and `*` for any number of them. All have to fit.

const FIELDS = ["type", "site", "module", "class", "shape", "dtype", "fn"];

class Search {
  constructor(graph) {
    this.graph = graph;
    this.things = [];
    for (const module of graph.modules) {
      if (module.isSingle) continue;
      const words = `${module.id} ${module.address} ${module.className}`.toLowerCase();
      this.things.push({kind: "module", index: module.index, words, module: module.address, class: module.className});
    }
    for (const op of graph.ops) {
      const module = op.module >= 0 ? graph.modules[op.module] : null;
      const address = module ? module.address : "";
      const className = module && module.isSingle ? module.className : "";
      const words = `${op.id} ${op.label} ${op.site} ${op.type} ${className} ${op.fn}`.toLowerCase();
      this.things.push({
        kind: "op", index: op.index, words, module: address, class: className,
        type: op.type, site: op.site, shape: op.shape, dtype: op.dtype, fn: op.fn,
      });
    }
  }

  find(query) {
    const tests = query.trim().split(/\s+/).filter(Boolean).map(testOf);
    const wrong = tests.find((test) => test.error);
    if (wrong) return {hits: [], error: wrong.error};
    if (!tests.length) return {hits: [], error: ""};
    return {hits: this.things.filter((thing) => tests.every((test) => test.fits(thing))), error: ""};
  }
}

function testOf(word) {
  const colon = word.indexOf(":");
  const field = colon > 0 ? word.slice(0, colon).toLowerCase() : "";
  if (colon > 0 && /^[a-z]+$/.test(field)) {
    const pattern = word.slice(colon + 1);
    if (!FIELDS.includes(field)) {
      return {error: `There is no field “${field}”. There are ${FIELDS.map((name) => `${name}:`).join(", ")}.`};
    }
    if (!pattern) return {fits: () => true};
    const glob = field === "shape" ? shapeGlob(pattern) : globOf(pattern);
    return {fits: (thing) => thing[field] !== undefined && glob.test(thing[field])};
  }
  if (/[*?]/.test(word)) {
    const glob = globOf(word);
    return {fits: (thing) => [thing.site, thing.module, thing.type, thing.class].some((text) => text && glob.test(text))};
  }
  const text = word.toLowerCase();
  return {fits: (thing) => thing.words.includes(text)};
}

function globOf(pattern) {
  const parts = pattern.split(/(\*\*|\*|\?)/).map((part) => {
    if (part === "**") return ".*";
    if (part === "*") return "[^.]*";
    if (part === "?") return "[^.]";
    return part.replace(/[.+^${}()|[\]\\/]/g, "\\$&");
  });
  return new RegExp(`^${parts.join("")}$`, "i");
}

function shapeGlob(pattern) {
  const sizes = pattern.toLowerCase().replace(/×/g, "x").split("x");
  const parts = sizes.map((size, place) => {
    const before = place ? "x" : "";
    if (size === "?") return `${before}\\d+`;
    if (size === "*" || size === "...") return place ? "(x\\d+)*" : "(\\d+(x\\d+)*)?";
    return before + size.replace(/[.+^${}()|[\]\\/*?]/g, "\\$&");
  });
  return new RegExp(`^${parts.join("").replace("(\\d+(x\\d+)*)?x", "(\\d+x)*")}$`);
}
