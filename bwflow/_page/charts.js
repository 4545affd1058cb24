// Panels with lines, drawn as SVG, and how they are read by pointer and by keyboard.

// The name of SVG is a URL in scripts; taken from the document, none stands in this file.
const SVG = document.getElementById("namespace").namespaceURI;
const DASHES = ["", "7 3", "2 3", "9 3 2 3", "12 4"];
const MARKS = ["circle", "square", "triangle", "diamond", "cross"];
const MARGIN = { left: 52, right: 12, top: 8, bottom: 42 };

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  return filled(made, attributes, children);
}

function drawn(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  return filled(made, attributes, children);
}

function filled(made, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

/** Colour, dash and mark of a place along an axis; they stay with it whatever is chosen. */
function styleOf(place) {
  return {
    colour: `var(--c${place % 7})`,
    dash: DASHES[place % 5],
    mark: MARKS[place % 5],
  };
}

function markShape(kind, x, y, size = 3.4) {
  const paths = {
    circle: `M${x - size},${y}a${size},${size} 0 1,0 ${2 * size},0a${size},${size} 0 1,0 ${-2 * size},0z`,
    square: `M${x - size},${y - size}h${2 * size}v${2 * size}h${-2 * size}z`,
    triangle: `M${x},${y - size * 1.2}L${x + size * 1.1},${y + size}H${x - size * 1.1}z`,
    diamond: `M${x},${y - size * 1.3}L${x + size * 1.3},${y}L${x},${y + size * 1.3}L${x - size * 1.3},${y}z`,
    cross: `M${x - size},${y - size}L${x + size},${y + size}M${x - size},${y + size}L${x + size},${y - size}`,
  };
  return paths[kind];
}

function markOf(style, x, y) {
  const path = drawn("path", { class: "mark", d: markShape(style.mark, x, y) });
  path.style.stroke = style.colour;
  return path;
}

/** The key of a picture: a sample of each line and its name. */
function drawKey(list, axis, places) {
  list.replaceChildren(
    ...places.map((place) => {
      const style = styleOf(place);
      const line = drawn("path", { d: "M1,8H41", "stroke-width": 2, "stroke-dasharray": style.dash });
      line.style.stroke = style.colour;
      const picture = drawn("svg", { width: 42, height: 16, "aria-hidden": "true" });
      picture.append(line, markOf(style, 21, 8));
      return element("li", {}, picture, label(axis, place));
    }),
  );
}

/** Ticks of a logarithmic axis, from the log of its ends: numbers with labels, and some without. */
function logTicks(low, high, most) {
  const first = Math.ceil(low - 1e-9);
  const last = Math.floor(high + 1e-9);
  if (high - low < 2) {
    const narrow = high - low < 0.7 ? [[1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9]] : [];
    const found = [...narrow, [1, 2, 5], [1, 3], [1]].map((digits) => digitTicks(low, high, digits));
    return found.find((ticks) => ticks.length <= most) || found[found.length - 1];
  }
  const stride = Math.max(1, Math.ceil((last - first + 1) / most));
  return Array.from({ length: last - first + 1 }, (_, i) => {
    const power = first + i;
    return power % stride === 0 ? { at: power, power } : { at: power };
  });
}

function digitTicks(low, high, digits) {
  const ticks = [];
  for (let power = Math.floor(low); power <= high; power++) {
    for (const digit of digits) {
      const at = power + Math.log10(digit);
      const text = general(digit * 10 ** power, 6);
      if (at >= low - 1e-9 && at <= high + 1e-9) ticks.push({ at, text });
    }
  }
  return ticks;
}

function tickLabel(tick, attributes) {
  const text = drawn("text", attributes);
  if (tick.power === undefined) text.append(tick.text);
  else {
    text.append("10");
    const raised = drawn("tspan", { dy: "-5", "font-size": "9.5" });
    raised.append(String(tick.power).replace("-", "−"));
    text.append(raised);
  }
  return text;
}

/** Axes and grid of a panel, and its scales from data to pixels; x is the log of time. */
function frame(svg, width, height, x, y) {
  const right = width - MARGIN.right;
  const bottom = height - MARGIN.bottom;
  const toX = (value) =>
    MARGIN.left + ((value - x.low) / (x.high - x.low || 1)) * (right - MARGIN.left);
  const toY = (value) => bottom - ((value - y.low) / (y.high - y.low || 1)) * (bottom - MARGIN.top);
  for (const tick of logTicks(x.low, x.high, Math.floor((right - MARGIN.left) / 44))) {
    const at = toX(tick.at).toFixed(1);
    svg.append(drawn("line", { class: "grid", x1: at, x2: at, y1: MARGIN.top, y2: bottom }));
    if (tick.power !== undefined || tick.text) {
      svg.append(tickLabel(tick, { x: at, y: bottom + 17, "text-anchor": "middle" }));
    }
  }
  for (const tick of y.ticks) {
    const at = toY(tick.at);
    svg.append(
      drawn("line", { class: "grid", x1: MARGIN.left, x2: right, y1: at.toFixed(1), y2: at.toFixed(1) }),
    );
    if (tick.power !== undefined || tick.text) {
      svg.append(tickLabel(tick, { x: MARGIN.left - 7, y: (at + 4).toFixed(1), "text-anchor": "end" }));
    }
  }
  const size = { width: right - MARGIN.left, height: bottom - MARGIN.top };
  svg.append(drawn("rect", { class: "frame", x: MARGIN.left, y: MARGIN.top, ...size }));
  const title = { class: "title", x: (MARGIN.left + right) / 2, y: height - 6, "text-anchor": "middle" };
  svg.append(drawn("text", title, x.title));
  return { toX, toY, right, bottom };
}

/** A path through points, broken where one is missing; as steps if so asked. */
function pathThrough(points, stepped) {
  let path = "";
  let pen = "M";
  points.forEach((point, i) => {
    if (!point) {
      pen = "M";
      return;
    }
    const [x, y] = point.map((value) => value.toFixed(1));
    path += stepped && pen === "L" ? `H${x}V${y}` : `${pen}${x},${y}`;
    pen = "L";
  });
  return path;
}

/**
 * A panel. `series` have a place (which gives the style), points of the line in data coordinates,
 * perhaps the band around it, and `read(x)`: what they say at a time, as text.
 */
function drawPanel(holder, { title, x, y, series, stepped, guide, stops, empty }) {
  const figure = element("figure", { class: "panel" });
  figure.append(element("figcaption", {}, title));
  holder.append(figure);
  const width = Math.max(220, Math.round(figure.clientWidth || 300));
  const height = Math.round(Math.min(330, Math.max(210, 0.7 * width)));
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}` });
  figure.append(svg);
  const { toX, toY, right, bottom } = frame(svg, width, height, x, y);
  if (guide !== null && guide >= y.low) {
    const at = toY(guide).toFixed(1);
    svg.append(drawn("line", { class: "guide", x1: MARGIN.left, x2: right, y1: at, y2: at }));
  }
  const placed = (points) => points.map((point) => point && [toX(point[0]), toY(point[1])]);
  for (const { place, band } of series) {
    for (const piece of band || []) {
      const edge = [...placed(piece.low), ...placed(piece.high).reverse()];
      const area = drawn("path", { class: "band", d: `${pathThrough(edge)}Z` });
      area.style.fill = styleOf(place).colour;
      svg.append(area);
    }
  }
  const floor = guide === null ? bottom : toY(guide);
  series.forEach(({ place, points }, i) => drawLine(svg, placed(points), place, stepped, i, floor));
  if (!series.length) {
    const middle = { x: (MARGIN.left + right) / 2, y: (MARGIN.top + bottom) / 2, "text-anchor": "middle" };
    svg.append(drawn("text", { ...middle, class: "title" }, empty));
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", `${title}: ${empty}`);
    return;
  }
  makeReadable(figure, svg, { title, x, series, stops, toX, bottom, width });
}

function drawLine(svg, points, place, stepped, index, floor) {
  const style = styleOf(place);
  const attributes = { class: "line", "data-place": place, "stroke-dasharray": style.dash };
  const line = drawn("path", { ...attributes, d: pathThrough(points, stepped) });
  line.style.stroke = style.colour;
  svg.append(line);
  // Where lines have come down to the tolerance they lie on each other, and marks would too.
  const above = points.filter((point) => point && point[1] < floor - 1);
  const known = above.length > 1 ? above : points.filter(Boolean);
  const marks = 4;
  for (let i = 0; i < marks; i++) {
    // Staggered, so that marks of lines that run together lie beside each other.
    const at = Math.floor(((i + 0.25 + 0.15 * (index % 5)) / marks) * known.length);
    const point = known[at];
    if (point) svg.append(markOf(style, point[0], point[1]));
  }
}

/** A cursor that pointer and arrow keys move along the times, and what the lines say there. */
function makeReadable(figure, svg, { title, x, series, stops, toX, bottom, width }) {
  const cursor = drawn("line", { class: "cursor", y1: MARGIN.top, y2: bottom, visibility: "hidden" });
  const box = element("div", { class: "readout", "aria-hidden": "true" });
  box.hidden = true;
  svg.append(cursor);
  figure.append(box);
  let at = stops.length - 1;
  const describe = () =>
    series.map(({ name, read }) => [name, read(at)]).filter(([, text]) => text !== null);
  const slider = {
    role: "slider",
    tabindex: 0,
    "aria-label": `${title}; arrow keys move along the ${x.title}`,
    "aria-valuemin": stops[0],
    "aria-valuemax": stops[stops.length - 1],
  };
  filled(svg, slider, []);
  const say = () => {
    const told = describe().map(([name, text]) => `${name}: ${text}`);
    svg.setAttribute("aria-valuenow", stops[at]);
    svg.setAttribute("aria-valuetext", `${x.title} ${general(stops[at], 4)}. ${told.join(". ")}`);
  };
  const show = (index) => {
    at = Math.min(stops.length - 1, Math.max(0, index));
    const position = toX(Math.log10(stops[at]));
    cursor.setAttribute("x1", position);
    cursor.setAttribute("x2", position);
    cursor.setAttribute("visibility", "visible");
    const lines = describe().map(([name, text]) => element("span", {}, `${name}: ${text}`));
    const head = element("span", {}, element("b", {}, `${x.title} ${general(stops[at], 4)}`));
    box.replaceChildren(head, ...lines);
    box.hidden = false;
    const left = position < width / 2;
    box.style.left = left ? `${(100 * (position + 10)) / width}%` : "auto";
    box.style.right = left ? "auto" : `${100 - (100 * (position - 10)) / width}%`;
    say();
  };
  const hide = () => {
    box.hidden = true;
    cursor.setAttribute("visibility", "hidden");
  };
  say();
  svg.addEventListener("pointermove", (event) => {
    const bounds = svg.getBoundingClientRect();
    const position = ((event.clientX - bounds.left) / bounds.width) * width;
    show(nearest(stops.map((stop) => toX(Math.log10(stop))), position));
  });
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("focus", () => svg.matches(":focus-visible") && show(at));
  svg.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: at - 1, ArrowDown: at - 1, ArrowRight: at + 1, ArrowUp: at + 1 };
    const jumps = { Home: 0, End: stops.length - 1, PageUp: at + 10, PageDown: at - 10 };
    const wanted = { ...moves, ...jumps }[event.key];
    if (event.key === "Escape") hide();
    if (wanted === undefined) return;
    event.preventDefault();
    show(wanted);
  });
}

function nearest(values, wanted) {
  let best = 0;
  values.forEach((value, i) => {
    if (Math.abs(value - wanted) < Math.abs(values[best] - wanted)) best = i;
  });
  return best;
}
