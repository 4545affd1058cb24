// Filters, the address of the page, and the redrawing of what hangs on them.

const LISTS = ["depth", "bottleneck", "tau"];

/** What the page shows when it is opened. */
function initial() {
  const many = LISTS.filter((axis) => data.axes[axis].length > 1);
  const colour = ["tau", "depth", "bottleneck"].find((axis) => many.includes(axis)) || "tau";
  const across = ["tau", "bottleneck", "depth"].find((axis) => many.includes(axis)) || "tau";
  const others = (used) => ["depth", "bottleneck", "tau"].filter((axis) => axis !== used);
  return {
    ...Object.fromEntries(AXES.map((axis) => [axis, new Set(data.axes[axis].keys())])),
    from: 0,
    to: data.sampled - 1,
    colour,
    panels: others(colour).find((axis) => many.includes(axis)) || "none",
    across,
    up: others(across).find((axis) => many.includes(axis)) || others(across)[0],
    shown: HEAT[0],
    sort: "",
    descending: false,
  };
}

let state = initial();

/** The part of the address that keeps what differs from the first view. */
function toHash() {
  const parts = [];
  const first = initial();
  for (const axis of AXES) {
    if (state[axis].size < data.axes[axis].length) {
      parts.push(`${axis}=${chosen(state, axis).map((place) => data.axes[axis][place]).join(",")}`);
    }
  }
  if (state.from !== first.from || state.to !== first.to) parts.push(`seed=${state.from}-${state.to}`);
  for (const key of ["colour", "panels", "shown", "across", "up", "sort"]) {
    if (state[key] !== first[key]) parts.push(`${key}=${encodeURIComponent(state[key])}`);
  }
  if (state.descending) parts.push("descending=1");
  return parts.join("&");
}

/** The view that an address asks for; what it asks for in vain is as at first. */
function fromHash(text) {
  const asked = new URLSearchParams(text.replace(/^#/, ""));
  const found = initial();
  for (const axis of AXES) {
    if (!asked.has(axis)) continue;
    const values = asked.get(axis).split(",");
    const places = [...data.axes[axis].keys()].filter((i) => values.includes(String(data.axes[axis][i])));
    if (places.length || asked.get(axis) === "") found[axis] = new Set(places);
  }
  const range = /^(\d+)-(\d+)$/.exec(asked.get("seed") || "");
  if (range) [found.from, found.to] = inRange(Number(range[1]), Number(range[2]));
  const allowed = {
    colour: LISTS,
    panels: ["none", ...LISTS],
    across: LISTS,
    up: LISTS,
    shown: HEAT,
    sort: COLUMNS.map(({ key }) => key),
  };
  for (const [key, values] of Object.entries(allowed)) {
    if (values.includes(asked.get(key))) found[key] = asked.get(key);
  }
  found.descending = asked.get("descending") === "1";
  return found;
}

function inRange(from, to) {
  const last = data.sampled - 1;
  const low = Math.min(Math.max(0, from), last);
  return [low, Math.min(Math.max(low, to), last)];
}

function drawFilters() {
  const holder = document.getElementById("axes");
  const parts = AXES.filter((axis) => data.axes[axis].length > 1).map(axisFilter);
  if (data.sampled > 1) parts.push(seedFilter());
  const fixed = AXES.filter((axis) => data.axes[axis].length === 1);
  if (fixed.length) {
    const listed = fixed.map((axis) => label(axis, 0)).join(", ");
    parts.push(element("p", { class: "fixed" }, `The same for all: ${listed}`));
  }
  holder.replaceChildren(...parts);
}

function axisFilter(axis) {
  const boxes = data.axes[axis].map((value, place) => {
    const box = element("input", { type: "checkbox", name: axis, value });
    box.addEventListener("change", () => {
      state[axis][box.checked ? "add" : "delete"](place);
      changed();
    });
    return element("label", {}, box, String(value));
  });
  const parts = [element("legend", {}, NAMES[axis]), element("div", { class: "boxes" }, ...boxes)];
  if (boxes.length > 6) parts.push(endButtons(axis));
  return element("fieldset", { "data-axis": axis }, ...parts);
}

/** All values of a long axis at once, or none. */
function endButtons(axis) {
  const button = (text, places) => {
    const made = element("button", { type: "button", "aria-label": `${text} of ${NAMES[axis]}` }, text);
    made.addEventListener("click", () => {
      state[axis] = new Set(places);
      changed();
    });
    return made;
  };
  const every = [...data.axes[axis].keys()];
  return element("div", { class: "ends" }, button("All", every), button("None", []));
}

function seedFilter() {
  const field = (key, text) => {
    const range = { type: "number", min: 0, max: data.sampled - 1, step: 1, id: `seed-${key}` };
    const input = element("input", range);
    input.addEventListener("change", () => {
      const [from, to] = ["from", "to"].map((end) => Number(document.getElementById(`seed-${end}`).value) || 0);
      [state.from, state.to] = inRange(from, to);
      changed();
    });
    return element("label", {}, text, input);
  };
  return element(
    "fieldset",
    { "data-axis": "seed" },
    element("legend", {}, "seed"),
    element("div", { class: "range" }, field("from", "from"), field("to", "to")),
  );
}

function drawSelects() {
  const options = (id, values, named) => {
    const select = document.getElementById(id);
    select.replaceChildren(...values.map((value) => element("option", { value }, named(value))));
    select.addEventListener("change", () => {
      const before = state[id];
      state[id] = select.value;
      // Two choices that exclude each other change places.
      const pair = { colour: "panels", panels: "colour", across: "up", up: "across" }[id];
      if (pair && state[pair] === state[id]) state[pair] = before === "none" ? otherThan(state[id]) : before;
      changed();
    });
  };
  const name = (axis) => (axis === "none" ? "dynamics alone" : NAMES[axis]);
  options("colour", LISTS, name);
  options("panels", [...LISTS, "none"], name);
  options("shown", HEAT, (value) => value);
  options("across", LISTS, name);
  options("up", LISTS, name);
}

function otherThan(axis) {
  return LISTS.find((other) => other !== axis);
}

/** Brings the controls to the state, which an address may have set. */
function showState() {
  for (const box of document.querySelectorAll("#axes input[type=checkbox]")) {
    const place = data.axes[box.name].findIndex((value) => String(value) === box.value);
    box.checked = state[box.name].has(place);
  }
  for (const end of ["from", "to"]) {
    const input = document.getElementById(`seed-${end}`);
    if (input) input.value = state[end];
  }
  for (const id of ["colour", "panels", "shown", "across", "up"]) {
    document.getElementById(id).value = state[id];
  }
}

function sortBy(key) {
  state.descending = state.sort === key && !state.descending;
  state.sort = key;
  keepAddress();
  drawTable(state, sortBy);
}

function drawSummary() {
  const rows = chosenCells(state).map((cell) => statistics(cell, state));
  const total = (name) => rows.reduce((sum, row) => sum + row[name], 0);
  const done = data.cells.runs.reduce((a, b) => a + b, 0);
  document.getElementById("summary").textContent =
    `Chosen: ${counted(total("runs"))} of ${counted(done)} runs; ` +
    `${counted(total("arrived"))} arrived, ${counted(total("failed"))} failed.`;
}

function drawPictures() {
  for (const id of ["gap-key", "survival-key"]) {
    drawKey(document.getElementById(id), state.colour, chosen(state, state.colour));
  }
  document.getElementById("gap-pooled").textContent = pooledText(
    state,
    [state.colour, state.panels],
    "A line",
  );
  document.getElementById("map-pooled").textContent = pooledText(
    state,
    [state.across, state.up],
    "A field of the map",
  );
  drawGaps(state);
  drawSurvival(state);
  drawMaps(state);
}

function draw() {
  showState();
  drawSummary();
  drawPictures();
  drawTable(state, sortBy);
  drawFailures(state);
}

function keepAddress() {
  const hash = toHash();
  history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
}

function changed() {
  keepAddress();
  draw();
}

function start() {
  if (data.sampled < data.seeds) {
    const note = document.getElementById("sampling");
    note.hidden = false;
    note.textContent =
      `This study has ${counted(data.seeds)} seeds. The table and the counts of failures are of all ` +
      `of them; pictures, map and the choice of seeds are of the first ${counted(data.sampled)} of ` +
      "each combination. Seeds are drawn independently, so these are a sample of all.";
  }
  if (matchMedia("(max-width: 52rem)").matches) document.getElementById("drawer").open = false;
  drawFilters();
  drawSelects();
  drawLegend();
  for (const button of document.querySelectorAll("[data-from]")) {
    const text = () => document.getElementById(button.dataset.from).textContent;
    button.addEventListener("click", () => copy(text(), button));
  }
  document.getElementById("reset").addEventListener("click", () => {
    state = initial();
    changed();
  });
  addEventListener("hashchange", () => {
    state = fromHash(location.hash);
    draw();
  });
  state = fromHash(location.hash);
  draw();
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    requestAnimationFrame(drawPictures);
  });
}

start();
