// Axes and curves of panels: what is in view, ranges, ticks, and single steps by pixel.
"use strict";
window.explorerAxes = (() => {
  const finite = Number.isFinite;
  function lowerBound(xs, value) {
    let a = 0, b = xs.length;
    while (a < b) { const m = (a + b) >> 1; xs[m] < value ? (a = m + 1) : (b = m); }
    return a;
  }
  function stepView(data, q, start, end, width) {
    const xs = data.x, low = data[`${q}_min`], high = data[`${q}_max`] ?? low, stderr = data[`${q}_stderr`];
    if (!low) return { x: [], low: [], high: [], value: [], from: [], to: [] };
    const a = Math.max(0, lowerBound(xs, start) - 1), b = Math.min(xs.length, lowerBound(xs, end) + 1);
    const size = Math.max(1, Math.ceil((b - a) / Math.max(50, width)));
    const n = Math.ceil((b - a) / size);
    const out = Object.fromEntries(["x", "low", "high", "value", "from", "to"].map((name) => [name, new Float64Array(n)]));
    for (let i = 0; i < n; i++) {
      let lo = Infinity, hi = -Infinity, from = Infinity, to = -Infinity;
      for (let j = a + i * size; j < Math.min(b, a + (i + 1) * size); j++) {
        if (low[j] < lo) lo = low[j];
        if (high[j] > hi) hi = high[j];
        if (low[j] - stderr?.[j] < from) from = low[j] - stderr[j];
        if (high[j] + stderr?.[j] > to) to = high[j] + stderr[j];
      }
      out.x[i] = xs[a + i * size];
      out.low[i] = finite(lo) ? lo : NaN;
      out.high[i] = finite(hi) ? hi : NaN;
      // Error bars of single steps; those of a group reach over its range.
      out.from[i] = finite(from) ? from : NaN;
      out.to[i] = finite(to) ? to : NaN;
      // A line through single steps; a group of several steps has only a range.
      out.value[i] = size === 1 && lo === hi ? lo : NaN;
    }
    return out;
  }
  // A logarithmic axis has no place for a lower end that is not positive: it lies far below.
  function onScale(view, scale) {
    if (scale === "linear") return view;
    const low = Float64Array.from(view.low, (v, i) => (v > 0 ? v : view.high[i] > 0 ? view.high[i] * 1e-12 : NaN));
    const high = Float64Array.from(view.high, (v) => (v > 0 ? v : NaN));
    return { ...view, low, high };
  }
  // The range of an axis that shows the curves in view, and most of their bands.
  class Extent {
    constructor(log) { this.log = log; this.lines = []; this.bands = []; this.hasSteps = false; }
    ok(value) { return finite(value) && (!this.log || value > 0); }
    add(data, q, view) {
      const n = data.x.length;
      // Next to x* itself most quantities blow up, so the nearest epoch sets no limits.
      const skip = q === "distance" || q === "loss" || n < 3 ? -1 : nearest(data.distance_min ?? []);
      for (let i = 0; i < n; i++) {
        if (data.x[i] < view.start - 0.5 || data.x[i] > view.end + 0.5 || i === skip) continue;
        for (const name of [q, `${q}_low`, `${q}_high`]) if (this.ok(data[name]?.[i])) this.lines.push(data[name][i]);
        for (const name of [`${q}_min`, `${q}_max`]) if (this.ok(data[name]?.[i])) this.bands.push(data[name][i]);
      }
    }
    addColumn(data, name, view) {
      for (let i = 0; i < data.x.length; i++) {
        if (data.x[i] >= view.start - 0.5 && data.x[i] <= view.end + 0.5 && this.ok(data[name]?.[i])) this.lines.push(data[name][i]);
      }
    }
    addSteps(data, view) {
      this.hasSteps = true;
      for (let i = 0; i < data.x.length; i++) {
        if (data.x[i] < view.start || data.x[i] > view.end) continue;
        for (const name of ["low", "high"]) if (this.ok(data[name][i])) this.bands.push(data[name][i]);
      }
    }
    apply(axis, withZero) {
      const lines = sorted(this.lines.length ? this.lines : this.bands);
      if (!lines.length) return;
      const bands = sorted([...this.bands, ...lines]);
      let low = lines[0], high = lines[lines.length - 1];
      if (this.log) {
        low = Math.max(quantile(bands, 0.01), low / 30); high = Math.min(quantile(bands, 0.99), high * 30);
        low = Math.min(low, lines[0]); high = Math.max(high, lines[lines.length - 1]);
        const pad = Math.max(Math.log(high / low) * 0.06, 0.02);
        axis.setv({ start: low / Math.exp(pad), end: high * Math.exp(pad) });
        return logTicks(axis.start, axis.end);
      }
      // Means of few epochs say little about the range of single steps.
      const size = this.hasSteps ? Infinity : high - low || Math.abs(high) || 1;
      low = Math.max(quantile(bands, 0.01), low - size); high = Math.min(quantile(bands, 0.99), high + size);
      low = Math.min(low, lines[0]); high = Math.max(high, lines[lines.length - 1]);
      if (withZero && low > 0 && low < 0.6 * high) low = 0;
      const pad = (high - low || Math.abs(high) || 1) * 0.05;
      axis.setv({ start: low === 0 ? 0 : low - pad, end: high + pad });
      return linearTicks(axis.start, axis.end);
    }
  }
  function linearTicks(low, high) {
    const rough = (high - low) / 5, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough), ticks = [];
    for (let i = Math.ceil(low / step); i * step <= high * (1 + 1e-12); i++) ticks.push(i * step);
    return ticks;
  }
  // Powers of ten, and 1, 2, 5 between them where there is room.
  function logTicks(low, high) {
    const decades = Math.log10(high / low), ticks = [];
    const mantissas = decades < 0.5 ? [1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8] : decades < 1.2 ? [1, 2, 3, 5] : decades < 2.5 ? [1, 3] : [1];
    const every = Math.max(1, Math.ceil(decades / 6));
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
      if (power % every !== 0) continue;
      for (const m of mantissas) { const t = m * 10 ** power; if (t >= low && t <= high) ticks.push(t); }
    }
    return ticks;
  }
  function sorted(values) { return Float64Array.from(values).sort(); }
  function quantile(values, share) { return values[Math.min(values.length - 1, Math.floor(share * values.length))]; }
  function nearest(distances) {
    let best = -1;
    for (let i = 0; i < distances.length; i++) if (finite(distances[i]) && (best < 0 || distances[i] < distances[best])) best = i;
    return best;
  }
  return { Extent, onScale, quantile, sorted, stepView };
})();
