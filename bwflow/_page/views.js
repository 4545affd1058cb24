// What the page shows of the runs that are chosen: pictures, map, table, failures.

const ROWS = 400; // of the table, and
const LISTED = 20; // combinations with failures, that are shown at first
const HEAT = ["share arrived", "median arrival", "share failed"];

/** The combinations that are chosen. */
function chosenCells(state) {
  return Array.from({ length: CELLS }, (_, cell) => cell).filter((cell) =>
    AXES.every((axis, i) => state[axis].has(PLACES[cell][i])),
  );
}

/** Places of an axis that are chosen, in its order. */
function chosen(state, axis) {
  return [...state[axis]].sort((a, b) => a - b);
}

/** Which axes are pooled by a picture that keeps others apart, as a sentence. */
function pooledText(state, apart, what) {
  const pooled = ["depth", "bottleneck", "tau"].filter(
    (axis) => !apart.includes(axis) && state[axis].size > 1,
  );
  const listed = pooled.map((axis) => {
    const values = chosen(state, axis).map((place) => data.axes[axis][place]);
    const shown = values.length > 8 ? [...values.slice(0, 3), "…", values[values.length - 1]] : values;
    return `${NAMES[axis]} (${shown.join(", ")})`;
  });
  return listed.length ? `${what} pools runs of every ${listed.join(" and ")} that is chosen.` : "";
}

/** The panels of both pictures: of each dynamics a row, in it one for each place of an axis. */
function panelRows(state) {
  const cells = chosenCells(state);
  return chosen(state, "dynamics").map((dynamics) => {
    const places = state.panels === "none" ? [null] : chosen(state, state.panels);
    const panels = places.map((place) => {
      const inside = cells.filter((cell) => {
        const at = (axis) => PLACES[cell][AXES.indexOf(axis)];
        return at("dynamics") === dynamics && (place === null || at(state.panels) === place);
      });
      const colour = AXES.indexOf(state.colour);
      const groups = chosen(state, state.colour).map((own) => ({
        place: own,
        name: label(state.colour, own),
        runs: inside.filter((cell) => PLACES[cell][colour] === own).flatMap((cell) => runsOf(cell, state)),
      }));
      const name = place === null ? TITLES[data.axes.dynamics[dynamics]] : label(state.panels, place);
      return { title: name, groups: groups.filter((group) => group.runs.length) };
    });
    return { dynamics: data.axes.dynamics[dynamics], panels };
  });
}

/** Places for the panels of a row, as many beside each other as there is room for. */
function panelGrid(holder, row) {
  const section = element("div", { class: "row" }, element("h3", {}, TITLES[row.dynamics]));
  const grid = element("div", { class: "panels" });
  section.append(grid);
  holder.append(section);
  const room = Math.max(1, Math.floor((holder.clientWidth + 16) / 276));
  const columns = Math.min(room, Math.max(row.panels.length, Math.min(2, room)));
  grid.style.gridTemplateColumns = `repeat(${columns}, minmax(0, 1fr))`;
  return grid;
}

/** The range of what is drawn, at least a decade, the same for all panels. */
function gapRange(rows) {
  let [low, high] = [-1, 0.3];
  for (const { series } of rows.flatMap(({ panels }) => panels)) {
    for (const [, value] of series.flatMap(({ band }) => band.flatMap((piece) => [...piece.low, ...piece.high]))) {
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
  }
  return { low: low - 0.35, high };
}

function gapSeries(group, times) {
  const runs = group.runs.filter(succeeded);
  const found = times.map((_, record) => gapQuantiles(runs, record));
  const at = (index, q) => [Math.log10(times[index]), Math.log10(found[index][q])];
  const points = found.map((quantiles, index) => quantiles && at(index, 1));
  const pieces = [];
  let piece = null;
  found.forEach((quantiles, index) => {
    if (!quantiles) piece = null;
    else {
      if (!piece) pieces.push((piece = { low: [], high: [] }));
      piece.low.push(at(index, 0));
      piece.high.push(at(index, 2));
    }
  });
  const read = (index) => {
    if (!found[index]) return null;
    const [low, middle, high] = found[index].map((value) => general(value, 3));
    return `${middle} [${low}, ${high}]`;
  };
  return { ...group, points, band: pieces, read };
}

function drawGaps(state) {
  const holder = document.getElementById("gap");
  holder.replaceChildren();
  const rows = panelRows(state).map(({ dynamics, panels }) => ({
    dynamics,
    panels: panels.map(({ title, groups }) => {
      const series = groups.map((group) => gapSeries(group, data.records[dynamics]));
      return { title, series: series.filter(({ points }) => points.some(Boolean)) };
    }),
  }));
  const range = gapRange(rows);
  const y = { ...range, ticks: logTicks(range.low, range.high, 7) };
  for (const row of rows) {
    const grid = panelGrid(holder, row);
    const times = data.records[row.dynamics];
    const ends = [times[0], times[times.length - 1]].map(Math.log10);
    const x = { low: ends[0], high: ends[1], title: CLOCKS[row.dynamics] };
    const guide = data.tolerance > 0 ? Math.log10(data.tolerance) : null;
    for (const { title, series } of row.panels) {
      drawPanel(grid, { title, x, y, series, guide, stops: times, empty: "no run without failure" });
    }
  }
  if (!rows.length) holder.append(element("p", { class: "empty" }, "No run is chosen."));
}

function survivalSeries(group, stops, low) {
  const end = stops[stops.length - 1];
  const curve = survival(group.runs, end);
  const points = [[low, 1]];
  for (const [t, share] of curve.steps) points.push([Math.max(low, Math.log10(t)), share]);
  points.push([Math.log10(end), points[points.length - 1][1]]);
  const read = (index) => {
    const past = curve.steps.filter(([t]) => t <= stops[index] * (1 + 1e-9));
    const share = past.length ? past[past.length - 1][1] : 1;
    return `${general(100 * share, 3)} % of ${counted(curve.runs)}`;
  };
  return { ...group, points, read };
}

function drawSurvival(state) {
  const holder = document.getElementById("survival");
  holder.replaceChildren();
  const ticks = [0, 0.25, 0.5, 0.75, 1].map((at) => ({ at, text: `${100 * at} %` }));
  const y = { low: 0, high: 1.04, ticks };
  for (const row of panelRows(state)) {
    const grid = panelGrid(holder, row);
    const all = row.panels.flatMap(({ groups }) => groups.flatMap(({ runs }) => runs));
    const end = data.ends[row.dynamics];
    let first = end;
    for (const run of all) if (data.sample.hit[run] > 0) first = Math.min(first, data.sample.hit[run]);
    const low = Math.min(Math.log10(first) - 0.15, Math.log10(end) - 1);
    const times = data.records[row.dynamics].filter((t) => t >= 10 ** low);
    const stops = times.length > 1 ? times : data.records[row.dynamics];
    const x = { low, high: Math.log10(end), title: CLOCKS[row.dynamics] };
    for (const { title, groups } of row.panels) {
      const series = groups.map((group) => survivalSeries(group, stops, low));
      const shown = { title, x, y, series, stepped: true, guide: null, stops };
      drawPanel(grid, { ...shown, empty: "no run" });
    }
  }
  if (!holder.children.length) holder.append(element("p", { class: "empty" }, "No run is chosen."));
}

/** What the map says of the runs of a place: a number, null beyond the end, or nothing. */
function heatValue(runs, state, dynamics) {
  if (!runs.length) return undefined;
  if (state.shown === HEAT[0]) return runs.filter(arrived).length / runs.length;
  if (state.shown === HEAT[2]) return runs.filter((run) => !succeeded(run)).length / runs.length;
  return arrivalQuantile(survival(runs, data.ends[dynamics]), 0.5);
}

function drawMaps(state) {
  const holder = document.getElementById("map");
  const cells = chosenCells(state);
  const maps = chosen(state, "dynamics").map((place) => {
    const dynamics = data.axes.dynamics[place];
    const inside = cells.filter((cell) => PLACES[cell][0] === place);
    const value = (across, up) => {
      const own = inside.filter((cell) => {
        const at = (axis) => PLACES[cell][AXES.indexOf(axis)];
        return at(state.across) === across && at(state.up) === up;
      });
      return heatValue(own.flatMap((cell) => runsOf(cell, state)), state, dynamics);
    };
    const columns = chosen(state, state.across);
    const rows = chosen(state, state.up).reverse();
    return heatTable(dynamics, columns, rows, rows.map((up) => columns.map((a) => value(a, up))), state);
  });
  holder.replaceChildren(element("div", { class: "maps" }, ...maps));
  if (!cells.length) holder.replaceChildren(element("p", { class: "empty" }, "No run is chosen."));
}

function heatTable(dynamics, columns, rows, values, state) {
  const share = state.shown !== HEAT[1];
  const known = values.flat().filter((value) => typeof value === "number" && value > 0);
  const [low, high] = [Math.log10(Math.min(...known)), Math.log10(Math.max(...known))];
  const weight = (value) => {
    if (share) return value;
    return value > 0 && high > low ? (Math.log10(value) - low) / (high - low) : 0;
  };
  const cell = (value) => {
    if (value === undefined) return element("td", { class: "none" }, "–");
    if (value === null) return element("td", { class: "none" }, `>${general(data.ends[dynamics], 4)}`);
    const amount = Math.round(100 * (0.06 + 0.9 * weight(value)));
    const text = share ? `${Math.round(100 * value)} %` : general(value, 3);
    const made = element("td", { class: amount > 84 ? "strong" : null }, text);
    made.style.background = `color-mix(in oklab, var(--warm) ${amount}%, var(--card))`;
    return made;
  };
  const table = element("table", { class: "heat" });
  table.append(element("caption", {}, `${TITLES[dynamics]}: ${state.shown}`));
  const body = element("tbody");
  rows.forEach((up, i) => {
    const head = element("th", { scope: "row" }, label(state.up, up));
    body.append(element("tr", {}, head, ...values[i].map(cell)));
  });
  const heads = columns.map((place) => element("th", { scope: "col" }, label(state.across, place)));
  table.append(body, element("tfoot", {}, element("tr", {}, element("td"), ...heads)));
  const attributes = { class: "scroll", tabindex: 0, role: "region" };
  return element("div", { ...attributes, "aria-label": `Map, ${TITLES[dynamics]}` }, table);
}
