// Paints a scene on a canvas: only what is in view, and only as much of it as can be seen at its scale.
//
//     const painter = new Painter(canvas);
//     painter.paint(scene, camera, {theme, isDark, paints, selected, hovered, matches, motion});
//
// `camera` is {x, y, scale}: a point of the scene at (a, b) stands at (a * scale + x, b * scale + y) on the screen. Nodes
// that look alike are one path, and all edges of a kind are one path, which is what makes thousands of them quick.

const MIN_TEXT = 4.5; // pixels: smaller letters are not painted
const SMALL_NAME = 9; // pixels: what names of nodes grow to where they would be smaller
const MIN_LABEL_HEIGHT = 22;
const HIGH_FRAME = 140; // pixels: from here on a label stands in the upper left corner
const FONT_STACK = 'Inter, system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif';

class Painter {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.fontScale = this.measuredScale();
    this.count = 0; // the nodes that were painted last
    this.resize();
  }

  /** 1 where the font that is drawn is at most as wide as the table says, else what letters are to be shrunk by. */
  measuredScale() {
    const sample = "conv2d_1_1 scaleddotproductattention 1x64x112x112 (3.1 MB) @features.denseblock3 BasicBlock";
    let scale = 1;
    for (const font of [TITLE, TEXT]) {
      this.context.font = `${font.isBold ? 600 : 400} 100px ${FONT_STACK}`;
      scale = Math.min(scale, textWidth(sample, {...font, size: 100}) / this.context.measureText(sample).width);
    }
    return Math.min(scale, 1);
  }

  resize() {
    const {clientWidth, clientHeight} = this.canvas;
    this.ratio = window.devicePixelRatio || 1;
    this.width = clientWidth;
    this.height = clientHeight;
    this.canvas.width = Math.max(Math.round(clientWidth * this.ratio), 1);
    this.canvas.height = Math.max(Math.round(clientHeight * this.ratio), 1);
  }

  font(font) {
    return `${font.isBold ? 600 : 400} ${font.size * this.fontScale}px ${FONT_STACK}`;
  }

  paint(scene, camera, options) {
    const {context, ratio} = this;
    const {scale} = camera;
    const {theme, motion} = options;
    this.options = options;
    this.scale = scale;
    this.left = -camera.x / scale;
    this.top = -camera.y / scale;
    this.right = this.left + this.width / scale;
    this.bottom = this.top + this.height / scale;
    this.line = Math.max(1, 0.7 / scale); // never thinner than 0.7 pixels
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = theme.paper;
    context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    context.setTransform(ratio * scale, 0, 0, ratio * scale, ratio * camera.x, ratio * camera.y);

    this.frames(scene);
    context.globalAlpha = motion ? motion.edges : 1;
    this.edges(scene);
    this.connected(scene);
    context.globalAlpha = 1;
    this.nodes(scene);
    this.rings(scene);
    context.globalAlpha = motion ? motion.edges : 1;
    this.marks(scene);
    context.globalAlpha = 1;
    this.labels(scene, camera);
  }

  sees(x, y, width, height) {
    return x <= this.right && y <= this.bottom && x + width >= this.left && y + height >= this.top;
  }

  place(thing) {
    const {motion} = this.options;
    return motion ? motion.place(thing) : thing.place;
  }

  frames(scene) {
    const {context, options, scale} = this;
    const {theme} = options;
    context.lineWidth = this.line;
    const seen = scene.frames.filter((frame) => {
      const {x, y, width, height} = this.place(frame);
      return this.sees(x, y, width, height);
    });
    for (const frame of seen) {
      const {x, y, width, height} = this.place(frame);
      context.beginPath();
      if (scale > 0.06) context.roundRect(x, y, width, height, BOX_CORNER);
      else context.rect(x, y, width, height);
      context.fillStyle = theme.frame;
      context.fill();
      const isChosen = options.selected === frame.id;
      context.strokeStyle = isChosen ? theme.accent : frame.id === options.hovered ? theme.muted : theme.frameLine;
      context.lineWidth = isChosen ? Math.max(1.6, 1.4 / scale) : this.line;
      context.stroke();
    }
    if (scale * BOX_TITLE.size < MIN_TEXT) return;
    context.textAlign = "left";
    context.textBaseline = "alphabetic";
    for (const isTitle of [true, false]) {
      context.font = this.font(isTitle ? BOX_TITLE : TEXT);
      context.fillStyle = isTitle ? theme.frameInk : theme.muted;
      for (const frame of seen) {
        const {x, y} = this.place(frame);
        frame.texts.forEach((text, number) => {
          if ((number === 0) !== isTitle) return;
          context.fillText(text, x + TITLE_PADDING_X, y + TITLE_PADDING_Y - 3 + BOX_TITLE.line + number * TEXT.line);
        });
      }
    }
  }

  edges(scene) {
    const {context, options, scale} = this;
    const {theme} = options;
    context.lineCap = "butt";
    context.strokeStyle = theme.far;
    context.lineWidth = this.line;
    const alpha = context.globalAlpha;
    context.globalAlpha = alpha * (scene.isFaint ? 0.4 : 0.85);
    context.beginPath();
    for (const edge of scene.edges) if (edge.route.kind !== "near" && this.seesEdge(edge)) this.arc(edge.route);
    context.stroke();
    context.globalAlpha = alpha;
    for (const [look, pieces] of Object.entries(scene.pieces)) {
      context.strokeStyle = look === "backward" ? theme.backward : theme.edge;
      context.lineWidth = look === "backward" ? Math.max(1.6, this.line) : Math.max(1.2, this.line);
      context.setLineDash(look === "dashed" && scale > 0.3 ? [4, 3] : []);
      context.beginPath();
      for (const piece of pieces) this.piece(piece);
      context.stroke();
    }
    context.setLineDash([]);
    if (scale < 0.2) return;
    for (const isBackward of [false, true]) {
      context.fillStyle = isBackward ? theme.backward : theme.edge;
      context.beginPath();
      for (const edge of scene.edges) {
        if ((edge.kind === "backward") === isBackward && (edge.route.kind !== "far" || !scene.isFaint)) this.arrow(edge.route);
      }
      context.fill();
    }
  }

  seesEdge({bounds}) {
    return this.sees(bounds[0], bounds[1], bounds[2] - bounds[0], bounds[3] - bounds[1]);
  }

  piece([x0, y0, x1, y1]) {
    if (y1 < this.top || y0 > this.bottom || Math.max(x0, x1) < this.left || Math.min(x0, x1) > this.right) return;
    const {context} = this;
    context.moveTo(x0, y0);
    if (x0 === x1) context.lineTo(x1, y1);
    else context.bezierCurveTo(x0, (y0 + y1) / 2, x1, (y0 + y1) / 2, x1, y1);
  }

  arc(route) {
    const [x, y, ...rest] = arcOf(route);
    this.context.moveTo(x, y);
    this.context.bezierCurveTo(...rest);
  }

  arrow(route) {
    const [x, y, direction] = tipOf(route);
    if (!this.sees(x - 8, y - 8, 16, 16)) return;
    const {context} = this;
    const half = ARROW_WIDTH / 2;
    context.moveTo(x, y);
    if (direction === "left") {
      context.lineTo(x + ARROW_LENGTH, y - half);
      context.lineTo(x + ARROW_LENGTH, y + half);
    } else {
      const back = direction === "up" ? ARROW_LENGTH : -ARROW_LENGTH;
      context.lineTo(x - half, y + back);
      context.lineTo(x + half, y + back);
    }
    context.closePath();
  }

  /** The edges of what is selected or under the pointer, once more and clearer. */
  connected(scene) {
    const {context, options} = this;
    const {selected, hovered, edge: hoveredEdge} = options;
    const chosen = new Set();
    for (const id of [selected, hovered]) {
      const thing = scene.numbers.get(id);
      if (thing && thing.edges) thing.edges.forEach((number) => chosen.add(number));
    }
    if (hoveredEdge !== null && hoveredEdge < scene.edges.length) chosen.add(hoveredEdge);
    if (!chosen.size) return;
    context.strokeStyle = context.fillStyle = options.theme.accent;
    context.lineWidth = Math.max(1.8, 1.2 / this.scale);
    context.beginPath();
    for (const number of chosen) {
      const {route} = scene.edges[number];
      if (route.kind !== "near") this.arc(route);
      else for (const piece of piecesAsNumbers(route)) this.piece(piece);
    }
    context.stroke();
    context.beginPath();
    for (const number of chosen) this.arrow(scene.edges[number].route);
    context.fill();
  }

  nodes(scene) {
    const {context, options, scale} = this;
    const groups = new Map();
    this.count = 0;
    for (const node of scene.nodes) {
      const {x, y, width, height} = this.place(node);
      if (!this.sees(x, y, width + 2 * SHEET, height + 2 * SHEET)) continue;
      this.count += 1;
      const paint = options.paints[node.number];
      if (!groups.has(paint.key)) groups.set(paint.key, {paint, nodes: []});
      groups.get(paint.key).nodes.push(node);
    }
    for (const {paint, nodes} of groups.values()) {
      context.setLineDash(paint.isDashed && scale > 0.3 ? [4, 3] : []);
      context.strokeStyle = paint.line;
      context.fillStyle = paint.fill;
      context.lineWidth = this.line;
      for (let sheet = scale > 0.15 ? 2 : 0; sheet >= 0; sheet--) {
        context.beginPath();
        for (const node of nodes) if (SHEETS[node.kind] >= sheet) this.shape(node, sheet);
        context.fill();
        if (scale > 0.06) context.stroke();
      }
      if (paint.fillEnd) this.mixtures(nodes, paint);
    }
    context.setLineDash([]);
    this.texts(groups);
  }

  shape(node, sheet) {
    const {x, y, width, height} = this.place(node);
    const corner = this.scale > 0.1 ? Math.min(cornerOf(node.look, node.place), height / 2, width / 2) : 0;
    if (corner > 0) this.context.roundRect(x + SHEET * sheet, y + SHEET * sheet, width, height, corner);
    else this.context.rect(x + SHEET * sheet, y + SHEET * sheet, width, height);
  }

  /** Nodes with trainable and frozen parameters: half of each colour. */
  mixtures(nodes, paint) {
    const {context} = this;
    for (const node of nodes) {
      const {x, width} = this.place(node);
      context.fillStyle = context.createLinearGradient(x, 0, x + width, 0);
      context.fillStyle.addColorStop(0, paint.fill);
      context.fillStyle.addColorStop(1, paint.fillEnd);
      context.beginPath();
      this.shape(node, 0);
      context.fill();
      context.stroke();
    }
  }

  texts(groups) {
    const {context, scale} = this;
    context.textAlign = "center";
    context.textBaseline = "alphabetic";
    const isWhole = TEXT.size * scale >= MIN_TEXT + 1;
    for (const {paint, nodes} of groups.values()) {
      const grown = nodes.filter((node) => this.place(node).width >= node.place.width - 1 && this.place(node).height >= node.place.height - 1);
      context.fillStyle = paint.title;
      if (!isWhole) {
        this.names(grown);
        continue;
      }
      context.font = this.font(TITLE);
      for (const node of grown) {
        const {x, y, width} = this.place(node);
        context.fillText(node.texts[0], x + width / 2, y + firstLine(node, node.place) + TITLE.line);
      }
      context.fillStyle = paint.text;
      context.font = this.font(TEXT);
      for (const node of grown) {
        const {x, y, width} = this.place(node);
        const first = y + firstLine(node, node.place) + TITLE.line;
        for (let line = 1; line < node.texts.length; line++) context.fillText(node.texts[line], x + width / 2, first + line * TEXT.line);
      }
    }
  }

  /** From afar the name alone, in the middle of its node and as large as it can be read well there. */
  names(nodes) {
    const {context, scale} = this;
    const wanted = Math.max(SMALL_NAME / (TITLE.size * scale), 1);
    context.textBaseline = "middle";
    for (const node of nodes) {
      node.nameWidth = node.nameWidth || textWidth(node.texts[0], TITLE);
      const {x, y, width, height} = this.place(node);
      const growth = Math.min(wanted, (width - 14) / node.nameWidth, (height - 6) / TITLE.line);
      if (growth * TITLE.size * scale < MIN_TEXT) continue;
      context.font = this.font({...TITLE, size: Math.round(TITLE.size * growth)});
      context.fillText(node.texts[0], x + width / 2, y + height / 2);
    }
    context.textBaseline = "alphabetic";
  }

  /** Around what is selected, under the pointer, or found. */
  rings(scene) {
    const {context, options, scale} = this;
    const ring = (id, colour, width, distance) => {
      const node = scene.numbers.get(id);
      if (!node || !node.texts || node.frames) return;
      const {x, y, width: nodeWidth, height} = this.place(node);
      const away = distance / Math.min(scale, 1);
      context.strokeStyle = colour;
      context.lineWidth = width / Math.min(scale, 1);
      context.beginPath();
      context.roundRect(x - away, y - away, nodeWidth + 2 * away, height + 2 * away, Math.min(cornerOf(node.look, node.place) + away, height / 2 + away));
      context.stroke();
    };
    for (const id of options.matches) ring(id, options.theme.match, 2, 2.5);
    if (options.hovered !== options.selected) ring(options.hovered, options.theme.muted, 1.2, 0);
    ring(options.selected, options.theme.accent, 2.2, 2.5);
  }

  marks(scene) {
    const {context, options, scale} = this;
    if (MARK.size * scale < MIN_TEXT) return;
    context.textBaseline = "alphabetic";
    for (const edge of scene.edges) {
      for (const {texts, x, y, side} of edge.marks) {
        if (!this.sees(x - 120, y - 12, 240, 14)) continue;
        const isIf = texts.includes("IF");
        context.font = this.font({...MARK, isBold: isIf});
        context.fillStyle = isIf ? options.theme.ink : options.theme.soft;
        context.textAlign = side < 0 ? "right" : "left";
        context.fillText(markText(texts), x + 5 * side, y);
      }
    }
  }

  /** Where titles are too small to read: the names of modules at reading size, as on a map, the outer ones first. */
  labels(scene, camera) {
    const {context, ratio, options, scale} = this;
    if (BOX_TITLE.size * scale >= 7.5) return;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.lineJoin = "round";
    context.font = `600 12px ${FONT_STACK}`;
    const visit = (number) => {
      const frame = scene.frames[number];
      const {x, y, width, height} = this.place(frame);
      const left = Math.max(x * scale + camera.x, 0), right = Math.min((x + width) * scale + camera.x, this.width);
      const top = Math.max(y * scale + camera.y, 0), bottom = Math.min((y + height) * scale + camera.y, this.height);
      if (right <= left || bottom <= top) return;
      const text = frame.texts[0];
      const isLarge = bottom - top > this.height * 0.55 && frame.frames.length > 1;
      if (isLarge || bottom - top < MIN_LABEL_HEIGHT) {
        frame.frames.forEach(visit);
        return;
      }
      const isWide = context.measureText(text).width + 16 <= right - left;
      const isHigh = isWide && bottom - top > HIGH_FRAME;
      context.textAlign = isWide && !isHigh ? "center" : "left"; // beside a narrow one
      const labelX = isHigh ? left + 10 : isWide ? (left + right) / 2 : right + 8;
      const labelY = isHigh ? top + 14 : (top + bottom) / 2;
      context.lineWidth = 4;
      context.strokeStyle = options.theme.paper;
      context.strokeText(text, labelX, labelY);
      context.fillStyle = options.theme.ink;
      context.fillText(text, labelX, labelY);
    };
    scene.top.forEach(visit);
  }
}
