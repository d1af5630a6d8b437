// The picture that the page's button saves: the same text as fastrec/graph/draw/svg.py writes, character by character.

const INK = "#0f172a";
const MUTED = "#64748b";
const LINE = "#475569";
const BLACK = "#000000";
const BACKWARD = "#9197F6";
const FAR = "#94a3b8";
const FONTS = "Inter,system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,'DejaVu Sans',sans-serif";
const MARGIN = 16;
const CAPTION_LINE = 17;
const CORNER = 4;
const ROUND_CORNER = 22;
const BOX_CORNER = 9;
const SHEET = 3;
const SHEETS = {op: 0, module: 1, fold: 2};
const ARROW_LENGTH = 7;
const ARROW_WIDTH = 7;
const MAX_CLEAR_ARCS = 12;

const STYLES =
  `text{font-family:${FONTS};font-size:${TEXT.size}px;fill:${MUTED}}` +
  `.t{font-size:${TITLE.size}px;font-weight:600;fill:${INK}}` +
  `.b{font-size:${BOX_TITLE.size}px;font-weight:600;fill:#334155}` +
  `.k{font-size:${MARK.size}px;fill:${LINE}}` +
  `.i{font-weight:700;fill:${INK}}` +
  `.h{font-size:17px;font-weight:600;fill:${INK}}` +
  ".c{text-anchor:middle}" +
  ".u{fill:#1e293b}" +
  ".f{fill:#0f172a;fill-opacity:.025;stroke:#cbd5e1}" +
  `.e{fill:none;stroke:${MUTED};stroke-width:1.2}` +
  `.g{fill:none;stroke:${BACKWARD};stroke-width:1.6}` +
  `.r{fill:none;stroke:${FAR}}` +
  ".s{stroke-opacity:.4;fill-opacity:.4}" +
  ".d{stroke-dasharray:4 3}";

function svgOf(graph, view, layout) {
  const header = graph.caption.map((line, number) => textWidth(line, TITLE) * (number === 0 ? 2 : 1));
  const width = Math.max(layout.boxes[0].width, ...layout.routes.map(reachOf), ...header) + 2 * MARGIN;
  const top = MARGIN + CAPTION_LINE * graph.caption.length + (graph.caption.length ? MARGIN : 0);
  const height = top + layout.boxes[0].height + MARGIN;
  const title = escaped(graph.title);
  const lines = [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" ` +
      `role="img" aria-label="${title}">`,
    `<title>${title}</title><style>${STYLES}</style>`,
    ...gradients(view.nodes),
    `<rect width="${width}" height="${height}" fill="#fff"/>`,
  ];
  graph.caption.forEach((line, number) => {
    const y = MARGIN + CAPTION_LINE * (number + 1);
    lines.push(`<text x="${MARGIN}" y="${y}" class="${number === 0 ? "h" : ""}">${escaped(line)}</text>`);
  });
  lines.push(`<g transform="translate(${MARGIN} ${top})">`);
  view.boxes.forEach((box, number) => lines.push(boxSvg(box, layout.boxes[number + 1])));
  lines.push(...edgesSvg(view, layout));
  view.nodes.forEach((node, number) => lines.push(nodeSvg(node, layout.nodes[number])));
  return [...lines, "</g>", "</svg>", ""].join("\n");
}

const ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#x27;"};

/** Text that is safe in SVG; characters that XML does not allow are left out. */
function escaped(text) {
  let safe = "";
  for (const character of text) {
    const code = character.codePointAt(0);
    if (character !== "\t" && character !== "\n" && (code < 32 || (code >= 0xd800 && code <= 0xdfff))) continue;
    safe += ESCAPES[character] || character;
  }
  return safe;
}

function gradients(nodes) {
  const mixed = new Map();
  for (const {look} of nodes) if (look.fill_end) mixed.set(gradientId(look), look);
  return [...mixed].map(
    ([id, look]) =>
      `<defs><linearGradient id="${id}"><stop offset="0" stop-color="${look.fill}"/>` +
      `<stop offset="1" stop-color="${look.fill_end}"/></linearGradient></defs>`,
  );
}

function gradientId(look) {
  return `mixed-${look.fill.slice(1)}-${look.fill_end.slice(1)}`;
}

function boxSvg(box, place) {
  const parts = [
    `<g class="x"><rect x="${place.x}" y="${place.y}" width="${place.width}" height="${place.height}" ` +
      `rx="${BOX_CORNER}" class="f"/>`,
  ];
  let y = place.y + TITLE_PADDING_Y - 3;
  box.title.forEach((line, number) => {
    y += number ? TEXT.line : BOX_TITLE.line;
    const look = number ? "" : "b";
    parts.push(`<text x="${place.x + TITLE_PADDING_X}" y="${y}" class="${look}">${escaped(shortened(line))}</text>`);
  });
  return parts.join("") + "</g>";
}

function nodeSvg(node, place) {
  const {look} = node;
  const fill = look.fill_end ? `url(#${gradientId(look)})` : look.fill;
  const stroke = look.line === BLACK ? LINE : look.line;
  const corner = cornerOf(look, place);
  const style = `rx="${corner}" fill="${fill}" stroke="${stroke}"` + (look.dashed ? ' class="d"' : "");
  const parts = [`<g class="n"><title>${escaped(node.lines.join("\n"))}</title>`];
  for (let sheet = SHEETS[node.kind]; sheet >= 0; sheet--) {
    const x = place.x + SHEET * sheet, y = place.y + SHEET * sheet;
    parts.push(`<rect x="${x}" y="${y}" width="${place.width}" height="${place.height}" ${style}/>`);
  }
  const x = place.x + place.width / 2;
  let y = place.y + firstLine(node, place);
  const colour = look.font === BLACK ? "" : ` style="fill:${look.font}"`;
  const plain = look.fill === "#FFFFFF" ? "c" : "c u"; // light letters can't be read on a colour
  node.lines.forEach((line, number) => {
    y += number ? TEXT.line : TITLE.line;
    parts.push(`<text x="${x}" y="${y}" class="${number ? plain : "c t"}"${colour}>${escaped(shortened(line))}</text>`);
  });
  return parts.join("") + "</g>";
}

function cornerOf(look, place) {
  return look.shape === "ellipse" ? Math.min(Math.floor(place.height / 2), ROUND_CORNER) : CORNER;
}

/** How far below the upper side of a node its text begins. */
function firstLine(node, place) {
  return Math.floor((place.height - TITLE.line - TEXT.line * (node.lines.length - 1)) / 2) - 3;
}

function edgesSvg(view, layout) {
  const names = view.nodes.map((node) => shortened(node.lines[0]));
  const {routes} = layout;
  const isFaint = routes.filter((route) => route.kind === "far").length > MAX_CLEAR_ARCS;
  const drawn = new Set();
  const order = routes.map((_, number) => number);
  order.sort((a, b) => Number(routes[a].kind !== "far") - Number(routes[b].kind !== "far"));
  return order.map((number) => {
    const edge = view.edges[number], route = routes[number];
    const isFar = route.kind === "far", isBackward = edge.kind === "backward";
    let look = isBackward ? "g" : isFar ? "r" : "e";
    look += (isFar && isFaint ? " s" : "") + (edge.isDashed ? " d" : "");
    const marks = edge.head.length ? ` (${markText(edge.head)})` : "";
    const title = escaped(`${names[edge.source]} → ${names[edge.target]}${marks}`);
    const path = pathOf(route, drawn, look);
    const line = path ? `<path d="${path}" class="${look}"/>` : "";
    const colour = isBackward ? BACKWARD : isFar ? FAR : MUTED;
    const head = `<path d="${arrowOf(route)}" fill="${colour}"${isFar && isFaint ? ' class="s"' : ""}/>`;
    return `<g class="y"><title>${title}</title>${line}${head}${marksSvg(edge, route)}</g>`;
  });
}

/** The path of an edge, less the pieces that were drawn before in the same look, which are added to. */
function pathOf(route, drawn, look) {
  const first = route.stations[0], last = route.stations[route.stations.length - 1];
  if (route.kind === "loop") {
    const [x, y] = first;
    return `M${x} ${y - 6}C${x + 26} ${y - 16} ${x + 26} ${y + 16} ${x} ${y + 6}`;
  }
  if (route.kind === "far") {
    const reach = reachOf(route);
    return `M${first[0]} ${first[1]}C${reach} ${first[1]} ${reach} ${last[1]} ${last[0]} ${last[1]}`;
  }
  let path = "", isDown = false;
  for (const [start, piece] of piecesOf(route)) {
    const key = `${look} ${start}${piece}`;
    if (drawn.has(key)) {
      isDown = false;
      continue;
    }
    drawn.add(key);
    path += isDown ? piece : start + piece;
    isDown = true;
  }
  return path;
}

/** The pieces of a near edge, each with where it starts: straight through ranks, bent between them. */
function piecesOf(route) {
  const pieces = [];
  route.stations.forEach(([x, top, bottom], number) => {
    if (number) {
      const [fromX, , fromY] = route.stations[number - 1];
      const middle = (fromY + top) / 2;
      pieces.push([`M${fromX} ${fromY}`, fromX === x ? `V${top}` : `C${fromX} ${middle} ${x} ${middle} ${x} ${top}`]);
    }
    if (bottom > top) pieces.push([`M${x} ${top}`, `V${bottom}`]);
  });
  return pieces;
}

/** How far to the right an edge bends, 0 where it is as wide as the layout. */
function reachOf(route) {
  if (route.kind === "near") return 0;
  const first = route.stations[0], last = route.stations[route.stations.length - 1];
  return Math.max(first[0], last[0]) + 30 + Math.min(Math.floor(Math.abs(last[1] - first[1]) / 8), 160);
}

/** The head of an arrow, as a path. */
function arrowOf(route) {
  const [tipX, tipY, direction] = tipOf(route);
  const half = ARROW_WIDTH / 2;
  if (direction === "left") return `M${tipX} ${tipY}l${ARROW_LENGTH} -${half}v${ARROW_WIDTH}z`;
  const sign = direction === "up" ? "" : "-";
  return `M${tipX} ${tipY}l-${half} ${sign}${ARROW_LENGTH}h${ARROW_WIDTH}z`;
}

/** The point of an arrow's head, and which way it points. */
function tipOf(route) {
  const first = route.stations[0], last = route.stations[route.stations.length - 1];
  if (route.kind !== "near") return [last[0], last[1] + (route.kind === "loop" ? 6 : 0), "left"];
  return route.isReversed ? [first[0], first[1], "up"] : [last[0], last[2], "down"];
}

/** The marks of an edge: texts, where they stand, and on which side of that. */
function marksOf(edge, route) {
  if (route.kind === "far") return [];
  const first = route.stations[0], last = route.stations[route.stations.length - 1];
  let head = [last[0], last[2] - 6], tail = [first[0], first[1] + 12];
  if (route.kind === "loop") {
    head = [last[0] + 4, last[1] + 20];
    tail = [first[0] + 4, first[1] - 13];
  } else if (route.isReversed) {
    [head, tail] = [tail, head];
  }
  const marks = [];
  if (edge.head.length) marks.push({texts: edge.head, x: head[0], y: head[1], side: route.kind === "loop" ? 1 : route.head});
  if (edge.tail.length) marks.push({texts: edge.tail, x: tail[0], y: tail[1], side: route.kind === "loop" ? 1 : route.tail});
  return marks;
}

function marksSvg(edge, route) {
  return marksOf(edge, route)
    .map(({texts, x, y, side}) => {
      const look = texts.includes("IF") ? "k i" : "k";
      const anchor = side < 0 ? ' text-anchor="end"' : "";
      return `<text x="${x + 5 * side}" y="${y}" class="${look}"${anchor}>${escaped(markText(texts))}</text>`;
    })
    .join("");
}
