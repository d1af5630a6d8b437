// A view with the places of everything in it, ready to be painted and asked what lies where.
//
//     const scene = new Scene(graph, opening, cache);
//     scene.nodes[3].place, scene.frames[0].place, scene.edges[5].route
//     scene.nodeAt(x, y), scene.frameAt(x, y), scene.edgeAt(x, y, 4)

class Scene {
  constructor(graph, opening, cache) {
    this.graph = graph;
    this.view = viewOf(graph, opening);
    this.layout = layoutOf(diagramOf(this.view), cache);
    const {nodes, boxes, edges} = this.view;
    this.width = this.layout.boxes[0].width;
    this.height = this.layout.boxes[0].height;
    this.nodes = nodes.map((node, number) => ({...node, number, place: this.layout.nodes[number], edges: [], texts: node.lines.map(shortened)}));
    this.frames = boxes.map((box, number) => {
      const around = box.box - 1;
      return {...box, number, around, frames: [], place: this.layout.boxes[number + 1], texts: box.title.map(shortened)};
    });
    this.top = [];
    for (const frame of this.frames) (frame.around < 0 ? this.top : this.frames[frame.around].frames).push(frame.number);
    this.edges = edges.map((edge, number) => {
      const route = this.layout.routes[number];
      const drawn = {...edge, number, route, marks: marksOf(edge, route), bounds: boundsOf(route)};
      this.nodes[edge.source].edges.push(number);
      if (edge.target !== edge.source) this.nodes[edge.target].edges.push(number);
      return drawn;
    });
    this.numbers = new Map();
    for (const node of this.nodes) this.numbers.set(node.id, node);
    for (const frame of this.frames) this.numbers.set(frame.id, frame);
    this.isFaint = this.edges.filter((edge) => edge.route.kind === "far").length > MAX_CLEAR_ARCS;
    this.pieces = piecesByLook(this.edges);
    this.right = this.edges.reduce((right, edge) => Math.max(right, edge.bounds[2]), this.width);
  }

  /** The node under a point. */
  nodeAt(x, y) {
    return this.nodes.find(({place}) => x >= place.x && y >= place.y && x <= place.x + place.width && y <= place.y + place.height) || null;
  }

  /** The innermost frame under a point. */
  frameAt(x, y) {
    let found = null;
    for (const frame of this.frames) {
      const {place} = frame;
      if (x >= place.x && y >= place.y && x <= place.x + place.width && y <= place.y + place.height) found = frame;
    }
    return found;
  }

  /** The edge that is nearest to a point, if it is near enough. */
  edgeAt(x, y, distance) {
    let best = null;
    for (const edge of this.edges) {
      const [left, top, right, bottom] = edge.bounds;
      if (x < left - distance || y < top - distance || x > right + distance || y > bottom + distance) continue;
      const far = edge.route.kind === "near" ? distanceToPieces(edge.route, x, y) : distanceToCurve(arcOf(edge.route), x, y);
      if (far <= distance) {
        distance = far;
        best = edge;
      }
    }
    return best;
  }

  /** The operations that a node or a frame stands for. */
  opsOf(thing) {
    const {graph} = this;
    if (thing.kind === "op") return [thing.index];
    if (thing.kind === "module") return graph.modules[thing.index].ops;
    return graph.folds[thing.index].modules.flatMap((module) => graph.modules[module].ops);
  }
}

/** The straight and bent pieces of all near edges, by how they look. */
function piecesByLook(edges) {
  const looks = {plain: [], dashed: [], backward: []};
  for (const edge of edges) {
    if (edge.route.kind !== "near") continue;
    const look = edge.kind === "backward" ? "backward" : edge.isDashed ? "dashed" : "plain";
    for (const piece of piecesAsNumbers(edge.route)) looks[look].push(piece);
  }
  return looks;
}

/** Each piece as its two ends; it is straight where both stand at the same x, and bends with upright ends elsewhere. */
function piecesAsNumbers({stations}) {
  const pieces = [];
  stations.forEach(([x, top, bottom], number) => {
    if (number) pieces.push([stations[number - 1][0], stations[number - 1][2], x, top]);
    if (bottom > top) pieces.push([x, top, x, bottom]);
  });
  return pieces;
}

/** The four points of a far edge or a loop. */
function arcOf(route) {
  const [x, y] = route.stations[0];
  const [endX, endY] = route.stations[route.stations.length - 1];
  if (route.kind === "loop") return [x, y - 6, x + 26, y - 16, x + 26, y + 16, x, y + 6];
  const reach = reachOf(route);
  return [x, y, reach, y, reach, endY, endX, endY];
}

function boundsOf(route) {
  if (route.kind !== "near") {
    const arc = arcOf(route);
    const xs = arc.filter((_, place) => place % 2 === 0), ys = arc.filter((_, place) => place % 2 === 1);
    return [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)];
  }
  let left = Infinity, right = -Infinity;
  for (const [x] of route.stations) {
    left = Math.min(left, x);
    right = Math.max(right, x);
  }
  return [left, route.stations[0][1], right, route.stations[route.stations.length - 1][2]];
}

function distanceToPieces(route, x, y) {
  let best = Infinity;
  for (const [x0, y0, x1, y1] of piecesAsNumbers(route)) {
    const middle = (y0 + y1) / 2;
    best = Math.min(best, x0 === x1 ? distanceToSegment(x, y, x0, y0, x1, y1) : distanceToCurve([x0, y0, x0, middle, x1, middle, x1, y1], x, y));
  }
  return best;
}

function distanceToCurve([x0, y0, x1, y1, x2, y2, x3, y3], x, y) {
  let best = Infinity, lastX = x0, lastY = y0;
  for (let step = 1; step <= 16; step++) {
    const t = step / 16, s = 1 - t;
    const nextX = s * s * s * x0 + 3 * s * s * t * x1 + 3 * s * t * t * x2 + t * t * t * x3;
    const nextY = s * s * s * y0 + 3 * s * s * t * y1 + 3 * s * t * t * y2 + t * t * t * y3;
    best = Math.min(best, distanceToSegment(x, y, lastX, lastY, nextX, nextY));
    lastX = nextX;
    lastY = nextY;
  }
  return best;
}

function distanceToSegment(x, y, x0, y0, x1, y1) {
  const width = x1 - x0, height = y1 - y0;
  const length = width * width + height * height;
  const along = length ? Math.min(Math.max(((x - x0) * width + (y - y0) * height) / length, 0), 1) : 0;
  return Math.hypot(x - x0 - along * width, y - y0 - along * height);
}
