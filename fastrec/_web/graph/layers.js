// The inside of one box, laid out in layers: items in ranks, edges as chains between neighbouring ranks.
//
// The same as fastrec/graph/draw/layers.py, step by step and sum by sum, so that the page and a picture made in Python
// have the same coordinates to the last bit; what each step is for is written there.
//
//     arrange({items: [{width, height, heads, tails}], title: [width, height], portsIn, portsOut,
//              nets: [{source, x, mark, targets: [{item, x, mark}]}], ranks})
//     -> {positions: [[x, y]], width, height, portsIn: [x], portsOut: [x],
//         routes: [[[[x, top, bottom]]]], heads: [[side]], tails: [side], crossings}

const MAX_SPAN = 10;
const DUMMIES_PER_ITEM = 3;
const ORDER_SWEEPS = 8;
const PLACE_SWEEPS = 10;
const STRAIGHTENINGS = 3;
const NODE_GAP = 22;
const LINE_GAP = 12;
const RANK_GAP = 20;
const MAX_RANK_GAP = 76;
const PADDING = 14;
const MARK_HEIGHT = 15;
const MARK_PADDING = 9;
const ITEM_WEIGHT = 4096;
const LOOSE_WEIGHT = 4;

/** A piece of an edge between neighbouring ranks; offsets are from the middles of its ends. */
class Link {
  constructor(upper, upperX, lower, lowerX) {
    this.upper = upper;
    this.upperX = upperX;
    this.lower = lower;
    this.lowerX = lowerX;
  }
}

/** The vertices of a level in their ranks: items, ports, and the dummies of chains. */
class Grid {
  constructor(level) {
    this.level = level;
    const count = level.items.length;
    this.firstIn = count;
    this.firstOut = count + level.portsIn;
    this.firstDummy = this.firstOut + level.portsOut;
    const shift = level.portsIn ? 1 : 0;
    const last = Math.max(-1, ...level.ranks) + 1 + shift;
    this.ranks = level.ranks.map((rank) => rank + shift);
    for (let port = 0; port < level.portsIn; port++) this.ranks.push(0);
    for (let port = 0; port < level.portsOut; port++) this.ranks.push(last);
    this.widths = level.items.map((item) => item.width);
    while (this.widths.length < this.firstDummy) this.widths.push(0);
    this.links = [];
    this.chains = [];
    this.starts = [];
    this.ends = [];
    level.nets.forEach((net) => this.add(net));
    this.heads = level.nets.map((net) => net.targets.map(() => 1));
    this.tails = level.nets.map(() => 1);
    let depth = 0;
    for (const rank of this.ranks) depth = Math.max(depth, rank + 1);
    this.layers = Array.from({length: depth}, () => []);
    this.ranks.forEach((rank, vertex) => this.layers[rank].push(vertex));
    this.up = this.ranks.map(() => []);
    this.down = this.ranks.map(() => []);
    this.arriving = this.layers.map(() => []);
    for (const link of this.links) {
      this.up[link.lower].push(link);
      this.down[link.upper].push(link);
      this.arriving[this.ranks[link.lower]].push(link);
    }
  }

  source(net) {
    return net.source >= 0 ? net.source : this.firstIn - 1 - net.source;
  }

  target(target) {
    return target.item >= 0 ? target.item : this.firstOut - 1 - target.item;
  }

  add(net) {
    const source = this.source(net);
    const offset = net.source >= 0 && net.x >= 0 ? net.x - this.widths[source] / 2 : 0;
    const first = this.ranks[source] + 1;
    const chain = [];
    const start = this.links.length;
    const ends = [];
    for (const target of net.targets) {
      const lower = this.target(target);
      for (let rank = first + chain.length; rank < this.ranks[lower]; rank++) {
        const [upper, upperX] = chain.length ? [chain[chain.length - 1], 0] : [source, offset];
        this.links.push(new Link(upper, upperX, this.ranks.length, 0));
        chain.push(this.ranks.length);
        this.ranks.push(rank);
        this.widths.push(0);
      }
      const passed = this.ranks[lower] - first;
      const arrival = target.item >= 0 && target.x >= 0 ? target.x - this.widths[lower] / 2 : 0;
      const link = new Link(passed ? chain[passed - 1] : source, passed ? 0 : offset, lower, arrival);
      this.links.push(link);
      ends.push(link);
    }
    this.chains.push(chain);
    this.starts.push(this.links.slice(start).filter((link) => link.upper === source));
    this.ends.push(ends);
  }

  isDummy(vertex) {
    return vertex >= this.firstDummy;
  }

  /** How much an item counts that has this vertex above or below it: a line little, a loose end more. */
  pull(vertex, upper) {
    if (this.isDummy(vertex)) return 0;
    const isPort = vertex >= this.firstIn;
    return isPort || (upper ? this.up[vertex] : this.down[vertex]).length ? 2 : 1;
  }

  separation(left, right) {
    const gap = this.widths[left] && this.widths[right] ? NODE_GAP : LINE_GAP;
    return (this.widths[left] + this.widths[right]) / 2 + gap;
  }
}

/** The rank of each item: one below the lowest that it reads; what does not come from above moves to its reader. */
function ranksOf(count, edges, fed) {
  const above = Array.from({length: count}, () => []);
  const below = Array.from({length: count}, () => []);
  for (const [upper, lower] of edges) {
    above[lower].push(upper);
    below[upper].push(lower);
  }
  const ranks = new Array(count).fill(0);
  const anchored = fed.slice();
  if (count && !anchored.some(Boolean)) anchored[0] = true;
  for (let item = 0; item < count; item++) {
    for (const parent of above[item]) {
      ranks[item] = Math.max(ranks[item], ranks[parent] + 1);
      anchored[item] = anchored[item] || anchored[parent];
    }
  }
  for (let item = count - 1; item >= 0; item--) {
    if (!anchored[item] && below[item].length) {
      let least = Infinity;
      for (const child of below[item]) least = Math.min(least, ranks[child]);
      ranks[item] = least - 1;
    }
  }
  return ranks;
}

/** Lay out one box. */
function arrange(level) {
  const grid = new Grid(level);
  const crossings = orderRanks(grid);
  spreadMarks(grid);
  return assembleBox(grid, placesOf(grid), crossings);
}

function orderRanks(grid) {
  const position = new Array(grid.ranks.length).fill(0);
  grid.layers.forEach((layer) => numberLayer(layer, position));
  const depth = grid.layers.length;
  let fewest = -1;
  let kept = grid.layers;
  for (let sweep = 0; sweep < ORDER_SWEEPS; sweep++) {
    const downwards = sweep % 2 === 0;
    if (downwards) for (let index = 1; index < depth; index++) sortLayer(grid, index, position, downwards);
    else for (let index = depth - 2; index >= 0; index--) sortLayer(grid, index, position, downwards);
    const crossings = crossingsOf(grid, position);
    if (fewest < 0 || crossings < fewest) {
      fewest = crossings;
      kept = grid.layers.map((layer) => layer.slice());
    }
    if (fewest === 0) break;
  }
  grid.layers = kept;
  return fewest;
}

function numberLayer(layer, position) {
  for (let place = 0; place < layer.length; place++) position[layer[place]] = place;
}

function sortLayer(grid, index, position, downwards) {
  const layer = grid.layers[index];
  const keys = new Map();
  for (const vertex of layer) {
    const links = downwards ? grid.up[vertex] : grid.down[vertex];
    let total = 0;
    for (const link of links) total += downwards ? upperPlace(grid, link, position) : lowerPlace(grid, link, position);
    keys.set(vertex, links.length ? total / links.length : position[vertex]);
  }
  layer.sort((a, b) => keys.get(a) - keys.get(b) || position[a] - position[b]);
  numberLayer(layer, position);
}

function upperPlace(grid, link, position) {
  return position[link.upper] + link.upperX / (grid.widths[link.upper] + 1);
}

function lowerPlace(grid, link, position) {
  return position[link.lower] + link.lowerX / (grid.widths[link.lower] + 1);
}

/** How many pairs of links cross: sorted by their upper ends, the inversions of their lower ends (Fenwick's tree). */
function crossingsOf(grid, position) {
  let count = 0;
  for (const links of grid.arriving) {
    if (links.length < 2) continue;
    const pairs = links.map((link) => [upperPlace(grid, link, position), lowerPlace(grid, link, position)]);
    pairs.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
    const ends = [...new Set(pairs.map((pair) => pair[1]))].sort((a, b) => a - b);
    const number = new Map(ends.map((end, place) => [end, place + 1]));
    const tree = new Array(ends.length + 1).fill(0);
    for (let seen = 0; seen < pairs.length; seen++) {
      let left = 0;
      for (let place = number.get(pairs[seen][1]); place > 0; place -= place & -place) left += tree[place];
      count += seen - left;
      for (let place = number.get(pairs[seen][1]); place <= ends.length; place += place & -place) tree[place] += 1;
    }
  }
  return count;
}

/** Lay the ends of edges with marks side by side along their node, in the order of their other ends. */
function spreadMarks(grid) {
  const position = new Array(grid.ranks.length).fill(0);
  grid.layers.forEach((layer) => numberLayer(layer, position));
  const arriving = new Map();
  grid.level.nets.forEach((net, number) => {
    net.targets.forEach((target, end) => {
      if (target.item < 0 || target.x >= 0) return;
      const place = upperPlace(grid, grid.ends[number][end], position);
      addEnd(arriving, target.item, {place, number, end, mark: target.mark});
    });
  });
  for (const [{number, end}, offset, side] of spreadEnds(arriving)) {
    grid.ends[number][end].lowerX = offset;
    grid.heads[number][end] = side;
  }
  const leaving = new Map();
  grid.level.nets.forEach((net, number) => {
    if (net.source < 0 || net.x >= 0) return;
    const place = Math.min(...grid.starts[number].map((link) => lowerPlace(grid, link, position)));
    addEnd(leaving, net.source, {place, number, end: 0, mark: net.mark});
  });
  for (const [{number}, offset, side] of spreadEnds(leaving)) {
    for (const link of grid.starts[number]) link.upperX = offset;
    grid.tails[number] = side;
  }
}

function addEnd(byItem, item, end) {
  if (byItem.has(item)) byItem.get(item).push(end);
  else byItem.set(item, [end]);
}

function* spreadEnds(byItem) {
  for (const ends of byItem.values()) {
    ends.sort((a, b) => a.place - b.place || a.number - b.number || a.end - b.end);
    const slots = slotsOf(ends.map((end) => end.mark));
    for (let place = 0; place < ends.length; place++) yield [ends[place], ...slots[place]];
  }
}

/** How wide a side of a node must be for edges side by side with marks of some widths, 0 for none; even. */
function marksWidth(marks) {
  if (!marks.some(Boolean)) return 0;
  const width = marks.length === 1 ? 2 * (marks[0] + MARK_PADDING) : marks.reduce((sum, mark) => sum + slotOf(mark), 0);
  return width + (width % 2);
}

function slotOf(mark) {
  return mark ? mark + 2 * MARK_PADDING : LINE_GAP;
}

/** For each of some lines side by side: how far it is from the middle, and on which side of it its mark stands. */
function slotsOf(marks) {
  if (!marks.some(Boolean) || marks.length === 1) return marks.map(() => [0, 1]);
  let left = -marks.reduce((sum, mark) => sum + slotOf(mark), 0) / 2;
  return marks.map((mark, place) => {
    const side = place < Math.floor(marks.length / 2) ? -1 : 1;
    const inset = mark ? MARK_PADDING / 2 : LINE_GAP / 2;
    const offset = side < 0 ? left + slotOf(mark) - inset : left + inset;
    left += slotOf(mark);
    return [offset, side];
  });
}

/** The middles of the vertices: each rank in turn as near as possible to its neighbours, down and up again. */
function placesOf(grid) {
  const places = new Array(grid.ranks.length).fill(0);
  for (const layer of grid.layers) {
    let left = 0;
    layer.forEach((vertex, place) => {
      if (place) left += grid.separation(layer[place - 1], vertex);
      places[vertex] = left;
    });
    for (const vertex of layer) places[vertex] -= left / 2;
  }
  const depth = grid.layers.length;
  for (let sweep = 0; sweep <= PLACE_SWEEPS; sweep++) {
    const downwards = sweep % 2 === 0;
    for (let step = 0; step < depth; step++) {
      settleLayer(grid, grid.layers[downwards ? step : depth - 1 - step], places, downwards);
    }
  }
  const columns = columnsOf(grid);
  for (let round = 0; round < STRAIGHTENINGS; round++) straighten(grid, columns, places);
  return places;
}

function settleLayer(grid, layer, places, downwards) {
  const starts = [];
  const pools = [];
  let start = 0;
  layer.forEach((vertex, place) => {
    if (place) start += grid.separation(layer[place - 1], vertex);
    starts.push(start);
    const [wish, weight] = wishOf(grid, vertex, places, downwards);
    let pool = [weight, weight * (wish - start), 1];
    while (pools.length && pools[pools.length - 1][1] / pools[pools.length - 1][0] > pool[1] / pool[0]) {
      const before = pools.pop();
      pool = [before[0] + pool[0], before[1] + pool[1], before[2] + pool[2]];
    }
    pools.push(pool);
  });
  let number = 0;
  for (const [weight, total, count] of pools) {
    for (let step = 0; step < count; step++, number++) places[layer[number]] = total / weight + starts[number];
  }
}

/** Where a vertex would like to be, and how much: lines give way to items, loose ends to what leads on. */
function wishOf(grid, vertex, places, downwards) {
  const above = grid.up[vertex], below = grid.down[vertex];
  const isDummy = grid.isDummy(vertex);
  const [near, far] = downwards ? [above, below] : [below, above];
  const sides = isDummy ? [above, below] : [near.length ? near : far];
  let best = -1, total = 0, weight = 0;
  for (const links of sides) {
    for (const link of links) {
      const isLower = link.lower === vertex;
      const other = isLower ? link.upper : link.lower;
      const wish = isLower
        ? places[other] + link.upperX - link.lowerX
        : places[other] + link.lowerX - link.upperX;
      let share = 1;
      if (isDummy) {
        if (grid.isDummy(other)) share = 8;
      } else {
        const pull = grid.pull(other, isLower);
        if (pull < best) continue;
        if (pull > best) {
          best = pull;
          total = 0;
          weight = 0;
        }
      }
      total += wish * share;
      weight += share;
    }
  }
  if (!weight) return [places[vertex], 1];
  if (isDummy) return [total / weight, 1];
  const isHeld = (above.length && below.length) || vertex >= grid.firstIn;
  return [total / weight, isHeld ? ITEM_WEIGHT : LOOSE_WEIGHT];
}

/** Chains of vertices that should stand below each other, each with its offset from the first. */
function columnsOf(grid) {
  const follows = new Map();
  const lowerEnds = new Set();
  for (let vertex = 0; vertex < grid.ranks.length; vertex++) {
    const below = onlyLink(grid, grid.down[vertex], false, grid.isDummy(vertex));
    if (!below || grid.isDummy(below.lower) !== grid.isDummy(vertex)) continue;
    if (onlyLink(grid, grid.up[below.lower], true, grid.isDummy(vertex)) !== below) continue;
    follows.set(vertex, below);
    lowerEnds.add(below.lower);
  }
  const columns = [];
  for (let vertex = 0; vertex < grid.ranks.length; vertex++) {
    if (!follows.has(vertex) || lowerEnds.has(vertex)) continue;
    const column = [[vertex, 0]];
    let offset = 0;
    for (let link = follows.get(vertex); link; link = follows.get(link.lower)) {
      offset += link.upperX - link.lowerX;
      column.push([link.lower, offset]);
    }
    columns.push(column);
  }
  return columns;
}

/** The one link on a side of a vertex that counts most, null where several do. */
function onlyLink(grid, links, upper, isDummy) {
  let best = -1, only = null;
  for (const link of links) {
    const other = upper ? link.upper : link.lower;
    const rank = isDummy ? Number(grid.isDummy(other)) : grid.pull(other, upper);
    if (rank > best) {
      best = rank;
      only = link;
    } else if (rank === best) {
      only = null;
    }
  }
  return only;
}

/** Make each column straight where there is a place that is free in all of its ranks. */
function straighten(grid, columns, places) {
  const beside = new Map();
  for (const layer of grid.layers) {
    layer.forEach((vertex, place) => beside.set(vertex, [layer[place - 1] ?? -1, layer[place + 1] ?? -1]));
  }
  for (const column of columns) {
    let low = -Infinity, high = Infinity;
    for (const [vertex, offset] of column) {
      const [left, right] = beside.get(vertex);
      if (left >= 0) low = Math.max(low, places[left] + grid.separation(left, vertex) - offset);
      if (right >= 0) high = Math.min(high, places[right] - grid.separation(vertex, right) - offset);
    }
    if (low > high) continue;
    const place = Math.min(Math.max(columnWish(grid, column, places), low), high);
    for (const [vertex, offset] of column) places[vertex] = place + offset;
  }
}

/** Items stay near where they are, lines as near as they can to their ends. */
function columnWish(grid, column, places) {
  let total = 0, count = 0;
  for (const [vertex, offset] of column) {
    if (!grid.isDummy(vertex)) {
      total += places[vertex] - offset;
      count += 1;
      continue;
    }
    for (const links of [grid.up[vertex], grid.down[vertex]]) {
      for (const link of links) {
        const isLower = link.lower === vertex;
        const other = isLower ? link.upper : link.lower;
        if (grid.isDummy(other)) continue;
        total += places[other] + (isLower ? link.upperX : link.lowerX);
        count += 1;
      }
    }
  }
  return total / count;
}

function rounded(number) {
  return Math.floor(number + 0.5);
}

function assembleBox(grid, places, crossings) {
  const {level, ranks, widths} = grid;
  const [titleWidth, titleHeight] = level.title;
  let left = places.length ? Infinity : 0;
  places.forEach((place, vertex) => (left = Math.min(left, place - widths[vertex] / 2)));
  let shift = PADDING - left;
  if (level.portsIn && titleWidth) {
    let first = Infinity;
    for (let port = 0; port < level.portsIn; port++) first = Math.min(first, places[grid.firstIn + port]);
    shift = Math.max(shift, titleWidth + LINE_GAP - first);
  }
  const middles = places.map((place) => place + shift);
  let right = middles.length ? -Infinity : 0;
  middles.forEach((middle, vertex) => (right = Math.max(right, middle + widths[vertex] / 2)));
  const width = Math.max(rounded(right) + PADDING, titleWidth + PADDING);
  const {tops, bottoms, height} = bandsOf(grid, middles, titleHeight);

  const positions = level.items.map((item, vertex) => {
    const rank = ranks[vertex];
    const head = item.heads ? MARK_HEIGHT : 0;
    const tail = item.tails ? MARK_HEIGHT : 0;
    const free = bottoms[rank] - tops[rank] - head - item.height - tail;
    return [rounded(middles[vertex] - item.width / 2), tops[rank] + head + Math.floor(free / 2)];
  });
  const upperEnd = (number, net) => {
    const source = grid.source(net);
    if (net.source < 0) return [rounded(middles[source]), 0, titleHeight];
    const [x, y] = positions[source];
    const start = net.x >= 0 ? x + net.x : rounded(middles[source] + grid.starts[number][0].upperX);
    return [start, y + level.items[source].height, bottoms[ranks[source]]];
  };
  const lowerEnd = (target, link) => {
    if (target.item < 0) return [rounded(middles[link.lower]), height, height];
    const [x, y] = positions[target.item];
    const end = target.x >= 0 ? x + target.x : rounded(middles[link.lower] + link.lowerX);
    return [end, tops[ranks[link.lower]], y];
  };
  const routes = level.nets.map((net, number) => {
    const start = upperEnd(number, net);
    const passed = grid.chains[number].map((dummy) => [
      rounded(middles[dummy]), tops[ranks[dummy]], bottoms[ranks[dummy]],
    ]);
    const first = ranks[grid.source(net)] + 1;
    return net.targets.map((target, end) => {
      const link = grid.ends[number][end];
      return [start, ...passed.slice(0, ranks[link.lower] - first), lowerEnd(target, link)];
    });
  });
  const ports = (from, count) => Array.from({length: count}, (_, port) => rounded(middles[from + port]));
  return {
    positions, width, height, crossings, routes,
    portsIn: ports(grid.firstIn, level.portsIn),
    portsOut: ports(grid.firstOut, level.portsOut),
    heads: grid.heads,
    tails: grid.tails,
  };
}

/** Upper and lower ends of the ranks, and the height of the box; ranks that edges bend far between stand apart. */
function bandsOf(grid, middles, titleHeight) {
  const {level} = grid;
  const heights = grid.layers.map(() => 0);
  level.items.forEach((item, vertex) => {
    const marks = MARK_HEIGHT * ((item.heads ? 1 : 0) + (item.tails ? 1 : 0));
    heights[grid.ranks[vertex]] = Math.max(heights[grid.ranks[vertex]], item.height + marks);
  });
  const tops = [];
  const bottoms = [];
  let y = 0;
  heights.forEach((height, rank) => {
    const isFirst = rank === 0 && level.portsIn > 0;
    const isLast = rank === heights.length - 1 && level.portsOut > 0;
    if (rank) {
      let bend = 0;
      for (const link of grid.arriving[rank]) {
        bend = Math.max(bend, Math.abs(middles[link.lower] + link.lowerX - middles[link.upper] - link.upperX));
      }
      y += Math.min(RANK_GAP + rounded(bend / 10), MAX_RANK_GAP);
    } else if (!isFirst && !isLast) {
      y = titleHeight || PADDING;
    }
    tops.push(y);
    if (isFirst) y += titleHeight;
    else if (!isLast) y += height;
    bottoms.push(y);
  });
  if (!heights.length) return {tops, bottoms, height: titleHeight + PADDING};
  return {tops, bottoms, height: level.portsOut ? y : y + PADDING};
}
