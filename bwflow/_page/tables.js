// The table of statistics, the failures, and what the numbers mean.

const COLUMNS = [
  { key: "dynamics", name: "dynamics", text: true, sort: (row) => PLACES[row.cell][0], show: (row) => valueOf(row.cell, "dynamics") },
  { key: "depth", name: "N", sort: (row) => valueOf(row.cell, "depth") },
  { key: "bottleneck", name: "width", sort: (row) => valueOf(row.cell, "bottleneck") },
  { key: "tau", name: "tau", sort: (row) => valueOf(row.cell, "tau"), show: (row) => general(valueOf(row.cell, "tau"), 6) },
  { key: "runs", name: "runs", sort: (row) => row.runs },
  { key: "arrived", name: "arrived", sort: (row) => row.arrived / row.runs, show: (row) => `${Math.floor((100 * row.arrived) / row.runs)}%` },
  { key: "failed", name: "failed", sort: (row) => row.failed },
  { key: "hit", name: "median [quartiles]", text: true, sort: (row) => (row.hit === null ? Infinity : row.hit), show: arrivalsText },
  { key: "decay", name: "late decay", text: true, sort: decayOf, show: decayText },
  { key: "steps", name: "steps", sort: (row) => row.steps, show: (row) => (row.steps === null ? "-" : whole(row.steps)) },
  { key: "waiting", name: "waiting", sort: (row) => row.waiting, show: (row) => (row.waiting === null ? "-" : `${whole(100 * row.waiting)}%`) },
];

function arrivalsText(row) {
  const [low, middle, high] = [row.hit_low, row.hit, row.hit_high].map((t) => arrivalText(t, row.end));
  return `${middle} [${low}, ${high}]`;
}

/** Power laws, by their exponent, come before exponentials, by their rate. */
function decayOf(row) {
  const value = row.algebraic ? row.late_slope : row.late_rate;
  return value === null ? null : row.algebraic ? value - 1e9 : value;
}

/** The rows of the combinations that are chosen, in the order that is asked for. */
function tableRows(state) {
  const rows = chosenCells(state).map((cell) => statistics(cell, state));
  const column = COLUMNS.find(({ key }) => key === state.sort);
  if (!column) return rows;
  const key = (row) => {
    const value = row.runs || PLAIN.includes(column.key) ? column.sort(row) : null;
    return value === null || Number.isNaN(value) ? null : value;
  };
  const sign = state.descending ? -1 : 1;
  return rows.sort((a, b) => {
    const [one, other] = [key(a), key(b)];
    // What has no number comes last, whichever way.
    if (one === null || other === null) return (one === null) - (other === null) || a.cell - b.cell;
    return (one === other ? 0 : one < other ? -sign : sign) || a.cell - b.cell;
  });
}

const PLAIN = ["dynamics", "depth", "bottleneck", "tau", "runs"];

function drawTable(state, sortBy) {
  const table = document.getElementById("table");
  const rows = tableRows(state);
  const heads = COLUMNS.map((column) => {
    const button = element("button", { type: "button", "data-sort": column.key }, column.name);
    button.addEventListener("click", () => sortBy(column.key));
    const order = state.sort === column.key ? (state.descending ? "descending" : "ascending") : null;
    return element("th", { scope: "col", class: column.text ? "text" : null, "aria-sort": order }, button);
  });
  const body = rows.slice(0, ROWS).map((row) =>
    element(
      "tr",
      {},
      ...COLUMNS.map((column) => {
        const shown = row.runs || PLAIN.includes(column.key);
        const text = column.show ? column.show : column.sort;
        return element("td", { class: column.text ? "text" : null }, shown ? String(text(row)) : "-");
      }),
    ),
  );
  const focused = table.contains(document.activeElement) ? document.activeElement.dataset.sort : null;
  table.replaceChildren(
    element("thead", {}, element("tr", {}, ...heads)),
    element("tbody", {}, ...body),
  );
  if (focused) table.querySelector(`[data-sort="${focused}"]`).focus();
  const every = state.from === 0 && state.to === data.sampled - 1;
  const seeds = every ? `all ${counted(data.seeds)} seeds` : `seeds ${state.from} to ${state.to}`;
  const cut = rows.length > ROWS ? ` The first ${ROWS} of ${counted(rows.length)} rows are shown.` : "";
  document.getElementById("table-lead").textContent = rows.length
    ? `Of ${seeds} that are done. A heading sorts by its column.${cut}`
    : "No run is chosen.";
}

/** What computes a run again; values of axes need no quotes in a shell. */
function rerunCommand(cell, seed) {
  const words = [];
  if (data.seeds > 1) words.push(`--seed ${seed}`);
  for (const axis of ["tau", "dynamics", "depth", "bottleneck"]) {
    if (data.axes[axis].length > 1) words.push(`--${axis} ${valueOf(cell, axis)}`);
  }
  return [data.rerun, ...words].join(" ");
}

/** The combinations with failures by reason: how many runs, and the seeds that are listed. */
function failuresOf(state) {
  const cells = new Set(chosenCells(state));
  const every = state.from === 0 && state.to === data.sampled - 1;
  const found = new Map();
  for (const [cell, reason, number] of data.failures) {
    if (!cells.has(cell)) continue;
    const failed = (run) => data.sample.state[run] === String(reason);
    const own = every ? number : runsOf(cell, state).filter(failed).length;
    if (!own) continue;
    const inside = (seed) => every || (seed >= state.from && seed <= state.to);
    const listed = data.failed.filter(([at, why, seed]) => at === cell && why === reason && inside(seed));
    if (!found.has(reason)) found.set(reason, []);
    found.get(reason).push({ cell, number: own, seeds: listed.map(([, , seed]) => seed) });
  }
  return [...found].sort(([a], [b]) => a - b);
}

function drawFailures(state) {
  const holder = document.getElementById("failures");
  const found = failuresOf(state);
  if (!found.length) {
    const none = data.failures.length ? "None of the runs that are chosen failed." : "No run failed.";
    holder.replaceChildren(element("p", {}, none));
    return;
  }
  const how = data.rerun
    ? "The commands compute a run again, alone, and keep its layers along the way."
    : "This store was written whole; its runs cannot be computed again one by one.";
  holder.replaceChildren(element("p", { class: "lead" }, how), ...found.flatMap(failureList));
}

const runsText = (number) => (number === 1 ? "1 run" : `${counted(number)} runs`);

function failureList([reason, combinations]) {
  const [name, advice] = data.outcomes[reason];
  const total = combinations.reduce((sum, { number }) => sum + number, 0);
  const parts = [
    element("h3", {}, `${name.replaceAll("_", " ")}: ${runsText(total)}`),
    element("p", { class: "lead" }, ...advice.split("`").map((text, i) => (i % 2 ? element("code", {}, text) : text))),
  ];
  const list = element("div", { "data-reason": name });
  list.append(...combinations.slice(0, LISTED).map(combinationList));
  if (combinations.length) list.firstChild.open = true;
  parts.push(list);
  if (combinations.length > LISTED) {
    const text = `Show all ${counted(combinations.length)} combinations`;
    const more = element("button", { type: "button", class: "more" }, text);
    more.addEventListener("click", () => {
      list.append(...combinations.slice(LISTED).map(combinationList));
      list.children[LISTED].firstChild.focus();
      more.remove();
    });
    parts.push(more);
  }
  return parts;
}

function combinationList({ cell, number, seeds }) {
  const where = AXES.filter((axis) => data.axes[axis].length > 1).map((axis) =>
    axis === "dynamics" ? valueOf(cell, axis) : label(axis, PLACES[cell][AXES.indexOf(axis)]),
  );
  const name = `${where.length ? where.join(", ") : "all"}: ${runsText(number)}`;
  const folded = element("details", { class: "combination" }, element("summary", {}, name));
  if (data.rerun) {
    const commands = seeds.map((seed) => rerunCommand(cell, seed));
    const item = (command) =>
      element("li", {}, element("code", { tabindex: 0 }, command), copyButton(() => command, command));
    folded.append(element("ul", { class: "commands" }, ...commands.map(item)));
  }
  if (seeds.length < number) {
    const text = `${counted(seeds.length)} of ${counted(number)} are listed.`;
    folded.append(element("p", { class: "lead" }, text));
  }
  return folded;
}

function copyButton(text, what) {
  const button = element("button", { type: "button", class: "copy", "aria-label": `Copy ${what}` }, "Copy");
  button.addEventListener("click", () => copy(text(), button));
  return button;
}

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = element("textarea", { readonly: "" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    button.focus();
  }
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = "Copy"), 1500);
}

function drawLegend() {
  const tolerance = general(data.tolerance, 6);
  const told = [
    ["gap", "L − L*, where the optimum L* is known in closed form. Pictures show it over the loss at the start, L(0)."],
    [
      "arrived",
      data.tolerance > 0
        ? `The gap fell below ${tolerance} L(0), at which a run stops. Runs that did not arrive are censored at the end of their time: they count in every quantile (Kaplan–Meier).`
        : "None, since the tolerance is 0 and runs go to the end.",
    ],
    ["failed", "The run ended early; the reason is given under Failures. It counts as one that did not arrive."],
    ["median [quartiles]", "Time (flow) or step (descent) of arrival; > means beyond the end."],
    [
      "late decay",
      "Of the gap at the end, median over runs, t the time of a flow or the step of a descent: a power law where tau is not below an eigenvalue to be learnt and N ≥ 2, fitted to the last two octaves of time (where tau is above, the exponent tends to −N / (N − 1)); else the exponential over the last three decades of the gap.",
    ],
    ["steps", "Median of the steps taken: those that the solver attempted (flow), or updates (descent)."],
    ["waiting", "Share of the steps computed in which runs only waited for the slowest of those that advance together, over all tau and seeds; group_size in the spec makes it smaller."],
    ["records", recordsText()],
  ];
  const parts = told.flatMap(([term, text]) => [element("dt", {}, term), element("dd", {}, text)]);
  document.getElementById("legend").replaceChildren(...parts);
}

function recordsText() {
  const listed = data.axes.dynamics.map(
    (name) => `${data.records[name].length} of ${data.all_records[name]} records of a ${name}`,
  );
  return `The gap is drawn at ${listed.join(" and ")} after the start, kept to 0.12 %; other numbers of single runs are kept to six digits.`;
}
