// How large a text is, and a node that holds it; the same as fastrec/graph/draw/metrics.py.
//
// WIDTHS is the table in widths.json, which page.py puts in front of the scripts.

const MAX_LENGTH = 46;
const NODE_PADDING_X = 12;
const NODE_PADDING_Y = 7;
const ROUND_PADDING = 18;
const MIN_NODE_WIDTH = 64;
const TITLE_PADDING_X = 14;
const TITLE_PADDING_Y = 9;
const TITLE = {size: 12, line: 15, isBold: true};
const TEXT = {size: 10.5, line: 13, isBold: false};
const BOX_TITLE = {size: 12, line: 15, isBold: true};
const MARK = {size: 9.5, line: 12, isBold: false};

/** The width of a line in pixels, rounded up. */
function textWidth(text, font) {
  const known = font.isBold ? WIDTHS.bold : WIDTHS.regular;
  let total = 0;
  for (const character of text) {
    const code = character.codePointAt(0);
    if (code >= 32 && code < 127) total += known[code - 32];
    else total += code < 0x1100 ? WIDTHS.other : WIDTHS.wide;
  }
  return Math.ceil((total * font.size) / 1000);
}

/** A text with its middle left out where it is long. */
function shortened(text) {
  if (text.length <= MAX_LENGTH) return text;
  const letters = Array.from(text);
  if (letters.length <= MAX_LENGTH) return text;
  const half = MAX_LENGTH / 2;
  return letters.slice(0, half).join("") + "…" + letters.slice(letters.length - half).join("");
}

function even(number) {
  return number + (number % 2);
}

/** The width and height of a node with some lines of text. */
function nodeSize(lines, shape) {
  let width = 0;
  lines.forEach((line, number) => (width = Math.max(width, textWidth(line, number ? TEXT : TITLE))));
  width = Math.max(width + 2 * (shape === "ellipse" ? ROUND_PADDING : NODE_PADDING_X), MIN_NODE_WIDTH);
  const height = 2 * NODE_PADDING_Y + TITLE.line + TEXT.line * Math.max(lines.length - 1, 0);
  return [even(width), even(height)];
}

/** The width and height of the title of an open box. */
function titleSize(lines) {
  let width = 0;
  lines.forEach((line, number) => (width = Math.max(width, textWidth(line, number ? TEXT : BOX_TITLE))));
  return [TITLE_PADDING_X + width, TITLE_PADDING_Y + BOX_TITLE.line + TEXT.line * Math.max(lines.length - 1, 0)];
}
