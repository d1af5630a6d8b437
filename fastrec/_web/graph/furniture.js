// What stands around the graph: the toolbar of the module under the pointer, the legend, the sheet of keys and signs.

/** The toolbar at the upper right corner of the frame that is under the pointer or selected. */
function placeTools(page, tools) {
  const frame = [page.hovered, page.selected].map((id) => page.scene.numbers.get(id)).find((thing) => thing && thing.frames);
  const isShown = frame && !page.motion && frame.place.width * page.camera.scale > 150 && frame.place.height * page.camera.scale > 60;
  tools.hidden = !isShown;
  if (!isShown) return;
  const {camera} = page;
  const right = Math.min((frame.place.x + frame.place.width) * camera.scale + camera.x, page.painter.width - 12);
  const top = Math.max(frame.place.y * camera.scale + camera.y, 26);
  tools.style.left = `${right - 10}px`;
  tools.style.top = `${top}px`;
  const shown = frame.kind === "fold" ? page.opening.folds.get(frame.index) : 0;
  const key = `${frame.id}/${shown}`;
  if (tools.dataset.key === key) return;
  tools.dataset.key = key;
  const button = (text, title, action) => element("button", {title, onclick: action}, text);
  const small = (name, title, action) => element("button", {class: "only-icon", title, "aria-label": title, onclick: action}, icon(name));
  if (frame.kind === "fold") {
    const {count} = page.graph.folds[frame.index];
    tools.replaceChildren(
      small("back", "The repetition before", () => page.stepFold(frame.index, -1)),
      element("span", {class: "value"}, `${shown + 1} / ${count}`),
      small("forward", "The next repetition", () => page.stepFold(frame.index, 1)),
      button("Unfold", "Lay all repetitions out", () => page.unfold(frame.index)),
      small("collapse", "Close", () => page.closeFold(frame.index)),
    );
  } else {
    tools.replaceChildren(
      button("Only this", "Open only this module  ( double click )", () => page.openOnly(frame.index)),
      small("collapse", "Close", () => page.toggleModule(frame.index)),
    );
  }
}

/** The frames around the middle of the screen whose titles are above it, as links. */
function placePath(page, path) {
  const {camera, painter, scene} = page;
  const {x, y} = page.toScene(painter.width / 2, painter.height / 3);
  const frames = camera.scale * BOX_TITLE.size < 7.5 ? [] : scene.frames.filter(({place}) =>
    x >= place.x && x <= place.x + place.width && y >= place.y && y <= place.y + place.height &&
    place.y * camera.scale + camera.y < -8);
  const key = frames.map((frame) => frame.id).join("\n");
  if (path.dataset.key === key) return;
  path.dataset.key = key;
  path.hidden = !frames.length;
  path.replaceChildren(...frames.flatMap((frame, place) => [
    place ? element("span", {}, "›") : "",
    element("button", {title: `${frame.title.join(" · ")}: to its upper end`, onclick: () => page.centre({...frame.place, height: 1e6}, camera.scale)},
      frame.kind === "module" ? ownName(page.graph, page.graph.modules[frame.index]) : frame.texts[0]),
  ].filter(Boolean)));
}

const SIGNS = [
  ["#98FB98", "Input", {isRound: true}],
  ["#FF9999", "Output", {isRound: true}],
  ["#D9D9D9", "With trainable parameters", {}],
  ["#B0B0B0", "With frozen parameters", {}],
  ["#F4F4F4", "Buffer", {isRound: true, isDashed: true}],
  ["#F7D460", "Tested by Python", {isRound: true}],
  ["#FFFFFF", "Operation of its own", {isRound: true}],
  ["#FFFFFF", "Only operation of a module", {}],
  ["#FFFFFF", "Does not come from an input", {isRound: true, isDashed: true}],
];

function swatch(fill, page, {isRound = false, isDashed = false} = {}) {
  const paint = paintOf({fill, fill_end: "", line: BLACK, font: BLACK, dashed: isDashed, shape: "box"}, page.theme, page.isDark);
  const made = element("i", {class: `swatch${isRound ? " is-round" : ""}${isDashed ? " is-dashed" : ""}`});
  made.style.background = paint.fill;
  made.style.borderColor = paint.line;
  return made;
}

function legendOf(page) {
  const measure = MEASURES[page.colour];
  if (measure.of) {
    const ramp = element("i", {class: "ramp"});
    const stops = Array.from({length: 9}, (_, place) => heatPaint((place / 8) ** 2, page.theme).fill);
    ramp.style.background = `linear-gradient(90deg, ${stops.join(", ")})`;
    return [element("span", {}, measure.name, " 0", ramp, measure.format(page.most))];
  }
  if (page.colour === "recorded") {
    return Object.entries(VERDICT_FILLS).map(([verdict, fill]) => element("span", {}, swatch(fill, page), verdict));
  }
  const shown = new Set(page.scene.nodes.map((node) => node.look.fill.toUpperCase()));
  const names = {"#98FB98": "input", "#FF9999": "output", "#D9D9D9": "trainable", "#B0B0B0": "frozen", "#E6E6E6": "parameters", "#F7D460": "tested", "#F4F4F4": "buffer"};
  return Object.entries(names).filter(([fill]) => shown.has(fill)).map(([fill, name]) => element("span", {}, swatch(fill, page, {isRound: name !== "trainable" && name !== "frozen"}), name));
}

const KEYS = [
  [["↑", "↓", "←", "→"], "walk along edges and ranks"], [["Enter"], "open or close the selected module"],
  [["Shift", "Enter"], "with all below"], [["Esc"], "let go"], [["/"], "search"], [["Enter"], "in the search: next match"],
  [["["], ["]"], "one level less, one more"], [["f"], "fit everything"], [["1"], "actual size"], [["+"], ["−"], "zoom"],
  [["."], "show the selection"], [["Alt", "←"], "back"], [["Alt", "→"], "forward"], [["c"], "next colouring"],
  [["t"], "light or dark"], [["p"], "panel"], [["s"], "save as SVG"],
];

const SEARCHES = [
  ["attn proj", "both words, anywhere"], ["type:conv*", "the type of an operation"], ["site:features.*/relu", "* stays in one level"],
  ["module:encoder.**", "** crosses levels"], ["shape:?x64", "? is any size"], ["shape:*x7x7", "* any number of sizes"],
];

function sheetOf(page, close) {
  const row = (sign, text) => element("p", {}, element("span", {}, sign), element("span", {}, text));
  return element("div", {},
    element("h2", {}, "Keys and signs"),
    element("div", {class: "columns"},
      row("Click", "opens or closes a module; selects an operation"), row("Shift click", "opens or closes all below"),
      row("Double click", "opens only this one"), row("Wheel", "moves; with Ctrl zooms"),
      KEYS.map((entry) => {
        const keys = entry.slice(0, -1).flat();
        return row(keys.map((key) => element("kbd", {}, key)), entry[entry.length - 1]);
      })),
    element("h3", {}, "Search"),
    element("div", {class: "columns is-wide"}, SEARCHES.map(([query, text]) => row(element("code", {}, query), text))),
    element("h3", {}, "Signs"),
    element("div", {class: "columns"}, SIGNS.map(([fill, text, look]) => row(swatch(fill, page, look), text))),
    element("div", {class: "row"}, element("button", {onclick: close}, "Close")),
  );
}

function searchHelp(query, error) {
  if (error) return [element("p", {}, error)];
  if (query) return [element("p", {}, "Nothing is called that.")];
  return [element("p", {}, "Words, or ", ...SEARCHES.slice(1, 5).flatMap(([example], place) => [place ? ", " : "", element("code", {}, example)]), ". Enter shows what is found.")];
}
