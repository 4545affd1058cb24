// The data of the page, and the estimates that are made anew of the runs that are chosen.

const data = JSON.parse(document.getElementById("data").textContent);
const AXES = ["dynamics", "depth", "bottleneck", "tau"];
const SIZES = AXES.map((axis) => data.axes[axis].length);
const CELLS = SIZES.reduce((a, b) => a * b, 1);
const NAMES = { dynamics: "dynamics", depth: "depth N", bottleneck: "width", tau: "smoothing τ" };
const SIGNS = { dynamics: "", depth: "N = ", bottleneck: "width ", tau: "τ = " };
const CLOCKS = { flow: "time t", descent: "step" };
const TITLES = { flow: "Gradient flow", descent: "Gradient descent" };
const SUCCESSFUL = "0";
const NOT_DONE = ".";

const gaps = (() => {
  const bytes = Uint8Array.from(atob(data.sample.gap), (letter) => letter.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Int16Array.from({ length: bytes.length / 2 }, (_, i) => view.getInt16(2 * i, true));
})();

/** Places along the axes of a combination. */
function placesOf(cell) {
  const places = [];
  for (let i = SIZES.length - 1; i >= 0; i--) {
    places[i] = cell % SIZES[i];
    cell = Math.floor(cell / SIZES[i]);
  }
  return places;
}

const PLACES = Array.from({ length: CELLS }, (_, cell) => placesOf(cell));

function valueOf(cell, axis) {
  const i = AXES.indexOf(axis);
  return data.axes[axis][PLACES[cell][i]];
}

/** Name of a value of an axis, as it stands beside others. */
function label(axis, place) {
  const value = data.axes[axis][place];
  return axis === "dynamics" ? TITLES[value] : SIGNS[axis] + String(value);
}

/** The runs of a combination among the seeds that are chosen, as places in the sample. */
function runsOf(cell, state) {
  const runs = [];
  for (let seed = state.from; seed <= state.to; seed++) {
    const run = cell * data.sampled + seed;
    if (data.sample.state[run] !== NOT_DONE) runs.push(run);
  }
  return runs;
}

const succeeded = (run) => data.sample.state[run] === SUCCESSFUL;
const arrived = (run) => data.sample.hit[run] !== null;

/** Linear interpolation between the order statistics of sorted numbers. */
function quantile(sorted, q) {
  const at = q * (sorted.length - 1);
  const low = Math.floor(at);
  const high = Math.ceil(at);
  return sorted[low] + (at - low) * (sorted[high] - sorted[low]);
}

function median(values) {
  const known = values.filter((value) => value !== null).sort((a, b) => a - b);
  return known.length ? quantile(known, 0.5) : null;
}

/** Quartiles and median of gap / L(0) at a record; null where no run has one. */
function gapQuantiles(runs, record) {
  const values = [];
  for (const run of runs) {
    const level = gaps[run * data.sample.gap_records + record];
    if (level !== data.sample.gap_missing) values.push(10 ** (level / data.sample.gap_per_decade));
  }
  if (!values.length) return null;
  values.sort((a, b) => a - b);
  return [0.25, 0.5, 0.75].map((q) => quantile(values, q));
}

/**
 * The Kaplan-Meier estimate of the share that has not arrived: times, and the share from each on.
 *
 * Runs that did not arrive are censored at the end of their dynamics, where they count as at risk.
 */
function survival(runs, end) {
  const hits = runs.filter(arrived).map((run) => data.sample.hit[run]).sort((a, b) => a - b);
  const steps = [];
  hits.forEach((t, i) => {
    const share = (runs.length - i - 1) / runs.length;
    if (steps.length && steps[steps.length - 1][0] === t) steps[steps.length - 1][1] = share;
    else steps.push([t, share]);
  });
  return { steps, end, runs: runs.length };
}

/** Time by which a share of the runs has arrived; null if that is beyond the end. */
function arrivalQuantile(curve, q) {
  const found = curve.steps.find(([, share]) => 1 - share >= q - 1e-12);
  return found ? found[0] : null;
}

/** What the table says of a combination, over the seeds that are chosen. */
function statistics(cell, state) {
  const end = data.ends[valueOf(cell, "dynamics")];
  const kept = data.cells;
  const common = { cell, end, algebraic: kept.algebraic[cell], waiting: kept.waiting[cell] };
  if (state.from === 0 && state.to === data.sampled - 1) {
    const numbers = Object.keys(kept).map((name) => [name, kept[name][cell]]);
    return { ...common, ...Object.fromEntries(numbers) };
  }
  const runs = runsOf(cell, state);
  const curve = survival(runs, end);
  const medianOf = (name) => median(runs.map((run) => data.sample[name][run]));
  return {
    ...common,
    runs: runs.length,
    arrived: runs.filter(arrived).length,
    failed: runs.filter((run) => !succeeded(run)).length,
    hit_low: arrivalQuantile(curve, 0.25),
    hit: arrivalQuantile(curve, 0.5),
    hit_high: arrivalQuantile(curve, 0.75),
    late_rate: medianOf("late_rate"),
    late_slope: medianOf("late_slope"),
    steps: medianOf("steps"),
  };
}

/** A number as C's %.{digits}g writes it. */
function general(value, digits) {
  if (value === 0) return "0";
  const [mantissa, power] = value.toExponential(digits - 1).split("e");
  const exponent = Number(power);
  const trimmed = (text) => (text.includes(".") ? text.replace(/\.?0+$/, "") : text);
  if (exponent >= -4 && exponent < digits) return trimmed(value.toFixed(digits - 1 - exponent));
  const size = String(Math.abs(exponent)).padStart(2, "0");
  return `${trimmed(mantissa)}e${exponent < 0 ? "-" : "+"}${size}`;
}

/** A time of arrival, or that it is beyond the end. */
function arrivalText(value, end) {
  return value === null ? `>${general(end, 4)}` : general(value, 4);
}

function decayText(row) {
  if (row.algebraic) {
    return row.late_slope === null ? "too few records" : `power law t^${row.late_slope.toFixed(2)}`;
  }
  return row.late_rate === null ? "too few records" : `exp(-${general(row.late_rate, 3)} t)`;
}

/** A whole number, halves to the even one as Python rounds them. */
function whole(value) {
  const low = Math.floor(value);
  const up = value - low > 0.5 || (value - low === 0.5 && low % 2 !== 0);
  return String(up ? low + 1 : low);
}

const counted = (number) => number.toLocaleString("en-US");
