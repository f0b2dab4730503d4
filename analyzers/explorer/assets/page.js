// The behaviour of the page: which target, run, layer and steps its figures show.
"use strict";
window.startExplorer = (() => {
  let started = false;
  const PIXELS_PER_EPOCH = 26; // above this width of an epoch, single steps are drawn
  const FADED = 0.16;
  const QUANTITIES = ["gamma", "distance", "rsi", "eb", "lolr"];

  const { Extent, onScale, quantile, sorted, stepView } = window.explorerAxes;

  return (doc) => {
    if (started) return;
    started = true;
    const config = JSON.parse(document.getElementById("explorer-config").textContent);
    const cache = new Map();
    const model = (name) => {
      if (!cache.has(name)) cache.set(name, doc.get_model_by_name(name));
      return cache.get(name);
    };
    const $ = (id) => document.getElementById(id);
    const keys = config.runs.map((run) => run.key);
    const shown = new Set(keys);
    const chosen = Object.fromEntries(keys.map((key) => [key, 0]));
    const range = model("epochs");
    const finite = Number.isFinite;

    // ---- which runs are visible -------------------------------------------------------
    const figures = [];
    for (const root of doc.roots()) if (root.type === "Figure") figures.push(root);
    function showRuns() {
      for (const figure of figures) {
        for (const renderer of figure.renderers) {
          const key = /^(r\d+)-/.exec(renderer.name ?? "")?.[1];
          if (key !== undefined) renderer.visible = shown.has(key);
        }
      }
      refresh();
    }
    for (const box of document.querySelectorAll("input[data-run]")) {
      box.addEventListener("change", () => {
        box.checked ? shown.add(box.dataset.run) : shown.delete(box.dataset.run);
        showRuns();
      });
    }

    // ---- the target x* ----------------------------------------------------------------
    const select = $("target");
    function fillTargets() {
      const labels = [...new Set(keys.flatMap((key) => config.targets[key].map((t) => t.label)))];
      const before = select.value;
      select.replaceChildren(...labels.map((label) => new Option(label, label)));
      if (labels.includes(before)) select.value = before;
      select.closest("label").hidden = labels.length === 0;
    }
    function chooseTarget() {
      for (const key of keys) {
        const i = config.targets[key].findIndex((t) => t.label === select.value);
        chosen[key] = i;
        const active = model(`${key}-active`);
        if (i >= 0) active.data = model(`${key}-epochs-${i}`).data;
        else active.data = emptied(active.data);
      }
      refresh();
    }
    function emptied(data) {
      const entries = Object.entries(data).map(([name, column]) => {
        const keep = name === "x" || name === "epoch" || name === "run";
        return [name, keep ? column : new Float32Array(column.length).fill(NaN)];
      });
      return Object.fromEntries(entries);
    }
    select.addEventListener("change", chooseTarget);

    // Says why a run has no curves.
    function tellWhatIsMissing() {
      const texts = [];
      for (const { key, name } of config.runs) {
        if (!shown.has(key)) continue;
        if (chosen[key] < 0 && select.value) texts.push(`${name} has no results relative to ${select.value}.`);
        else if (chosen[key] >= 0 && config.targets[key].length && !Array.from(model(`${key}-active`).data.gamma).some(finite)) {
          texts.push(`No value of ${name} relative to ${select.value} is finite. Choose another target, such as an epoch before the run diverged: traj-analyze explore --reference.`);
        }
      }
      $("geometry-note").textContent = texts.join(" ");
    }

    // ---- single steps, by pixel --------------------------------------------------------
    function stepSource(key, q) {
      if (q === "loss") return model(`${key}-scalar-steps`);
      return chosen[key] >= 0 ? model(`${key}-steps-${chosen[key]}`) : null;
    }

    // ---- panels -------------------------------------------------------------------------
    const scales = Object.fromEntries(config.panels.map((p) => [p.key, p.log ? "log" : "linear"]));
    function frameWidth(figure) {
      return figure.inner_width || 400;
    }
    function refreshPanel(q) {
      const scale = scales[q], figure = model(q);
      const width = frameWidth(figure), span = range.end - range.start;
      const steps = width / span > PIXELS_PER_EPOCH;
      const extent = new Extent(scale === "log");
      for (const key of keys) {
        const data = model(q === "loss" ? `${key}-scalars` : `${key}-active`).data;
        const source = stepSource(key, q), draw = steps && source !== null;
        const view = draw ? stepView(source.data, q, range.start, range.end, width)
          : { x: data.x, low: data[`${q}_min`], high: data[`${q}_max`], value: new Float32Array(data.x.length).fill(NaN), from: [], to: [] };
        const { from: _from, to: _to, ...band } = onScale(view, scale);
        model(`${key}-${q}-view`).data = band;
        if (q !== "loss") model(`${key}-${q}-errors`).data = errorBars(data, q, view, scale);
        if (!shown.has(key)) continue;
        extent.add(data, q, range);
        if (q === "lolr") extent.addColumn(model(`${key}-scalars`).data, "lr", range);
        if (q === "loss") extent.addColumn(data, "validation", range);
        if (draw) extent.addSteps(view, range);
      }
      const ticks = extent.apply(model(`${q}-y`), q !== "loss");
      const wanted = model(`scale-${scale}`);
      if (figure.y_scale.type !== wanted.type) figure.y_scale = wanted;
      if (ticks) model(`${q}-ticks`).ticks = ticks;
    }

    // Error bars of means, and thinner ones of single steps if there are any.
    function errorBars(data, q, view, scale) {
      const n = view.from.length, isSingle = Array.from(view.value).some(finite);
      const joined = (means, steps) => Float64Array.of(...means, ...steps);
      return onScale({
        x: joined(data.x, n ? view.x : []), low: joined(data[`${q}_low`], view.from), high: joined(data[`${q}_high`], view.to),
        width: joined(new Float64Array(data.x.length).fill(1.6), new Float64Array(n).fill(isSingle ? 0.9 : 0.3)),
      }, scale);
    }

    for (const card of document.querySelectorAll("[data-panel]")) {
      const q = card.dataset.panel;
      for (const button of card.querySelectorAll("button[data-scale]")) {
        button.addEventListener("click", () => {
          scales[q] = button.dataset.scale;
          for (const other of card.querySelectorAll("button[data-scale]")) other.classList.toggle("on", other === button);
          refreshPanel(q);
        });
      }
    }

    // ---- comparison ---------------------------------------------------------------------
    function refreshNull() {
      const extent = new Extent(false);
      for (const key of keys) {
        if (!shown.has(key)) continue;
        extent.add(model(`${key}-active`).data, "gamma", range);
        const null_ = model(`${key}-null`);
        if (null_?.data.x.length === 1) for (const end of ["gamma_min", "gamma_max"]) extent.addColumn(null_.data, end, range);
        if (null_) extent.addColumn(null_.data, "gamma", { start: range.start, end: Math.min(range.end, range.start + 0.9 * (range.end - range.start)) });
      }
      extent.bands = [];
      extent.apply(model("null-y"), true);
    }
    function refreshDifference() {
      const figure = model("difference");
      if (!figure) return;
      const q = $("difference-quantity").value, extent = new Extent(false);
      const first = model(`${keys[0]}-active`).data;
      const rows = new Map(Array.from(first.epoch, (epoch, i) => [epoch, i]));
      for (const key of keys.slice(1)) {
        const own = model(`${key}-active`).data;
        const out = { x: [], value: [], low: [], high: [], stderr: [], run: [] };
        for (let i = 0; i < own.x.length; i++) {
          const j = rows.get(own.epoch[i]);
          if (j === undefined) continue;
          const value = own[q][i] - first[q][j];
          const stderr = Math.hypot(own[`${q}_stderr`][i], first[`${q}_stderr`][j]);
          out.x.push(own.x[i]); out.value.push(value); out.stderr.push(stderr);
          out.low.push(value - stderr); out.high.push(value + stderr); out.run.push(own.run[i]);
        }
        model(`${key}-difference`).data = out;
        if (!shown.has(key)) continue;
        const steady = out.value.filter((v, i) => finite(v) && out.x[i] >= range.start && out.x[i] <= range.end);
        extent.lines.push(...sorted(steady).slice(Math.floor(0.02 * steady.length), Math.ceil(0.98 * steady.length)));
      }
      extent.lines.push(0);
      extent.apply(model("difference-y"), false);
    }
    $("difference-quantity")?.addEventListener("change", refreshDifference);

    // ---- layers ------------------------------------------------------------------------
    let row = null;
    const layerRun = $("layer-run"), layerQuantity = $("layer-quantity");
    layerRun.closest("label").hidden = keys.length < 2;
    function fillQuantities() {
      const before = layerQuantity.value;
      const images = config.layers[layerRun.value].images;
      layerQuantity.replaceChildren(...images.map((image, i) => new Option(image.title, String(i))));
      if (images[before]) layerQuantity.value = before;
    }
    function hex(color) { return [1, 3, 5].map((i) => parseInt(color.slice(i, i + 2), 16)); }
    const ramps = { true: config.signed.map(hex), false: config.unsigned.map(hex) };
    function colorAt(signed, share) {
      const ramp = ramps[signed], at = Math.min(0.9999, Math.max(0, share)) * (ramp.length - 1);
      const i = Math.floor(at), f = at - i;
      const mixed = ramp[i].map((c, k) => Math.round(c + f * (ramp[i + 1][k] - c)));
      return "#" + mixed.map((c) => c.toString(16).padStart(2, "0")).join("");
    }
    function palette(signed) { return Array.from({ length: 64 }, (_, i) => colorAt(signed, i / 63)); }
    function drawLayers() {
      const key = layerRun.value, grid = config.layers[key], index = Number(layerQuantity.value);
      const image = grid.images[index], data = model(`${key}-image-${index}`).data;
      const values = data.values[0], errors = data.stderr?.[0];
      const nRows = grid.layers.length, nColumns = grid.edges.length - 1;
      const unsure = (i) => errors !== undefined && image.signed && !(Math.abs(values[i]) >= 2 * errors[i]);
      const sure = [];
      for (let r = 0; r < nRows; r++) for (let c = 0; c < Math.max(1, nColumns - 1); c++) {
        const i = r * nColumns + c;
        if (finite(values[i]) && (!image.signed || !unsure(i)) && (image.signed || values[i] > 0)) sure.push(image.signed ? Math.abs(values[i]) : values[i]);
      }
      const sizes = sorted(sure.length ? sure : [1]);
      const top = quantile(sizes, 0.98), bottom = image.signed ? -top : quantile(sizes, 0.02);
      const logBottom = Math.log(bottom), logSize = Math.log(top) - logBottom || 1;
      const share = (v) => image.signed ? (v + top) / (2 * top) : (Math.log(v) - logBottom) / logSize;
      const n = nRows * nColumns;
      const cells = { left: new Float64Array(n), right: new Float64Array(n), top: new Float64Array(n), bottom: new Float64Array(n),
        alpha: new Float64Array(n), value: new Float64Array(n), stderr: new Float64Array(n), color: [], layer: [], epochs: [] };
      for (let r = 0; r < nRows; r++) for (let c = 0; c < nColumns; c++) {
        const i = r * nColumns + c, known = finite(values[i]) && (image.signed || values[i] > 0);
        cells.left[i] = grid.edges[c]; cells.right[i] = grid.edges[c + 1];
        cells.top[i] = r; cells.bottom[i] = r + 1;
        cells.color.push(known ? colorAt(image.signed, share(values[i])) : "#e6eaee");
        cells.alpha[i] = known ? (unsure(i) ? FADED : 1) : 0.5;
        cells.value[i] = values[i]; cells.stderr[i] = errors ? errors[i] : 0;
        cells.layer.push(grid.layers[r]); cells.epochs.push(label(grid.edges[c], grid.edges[c + 1]));
      }
      model("layer-cells").data = cells;
      const borders = { x0: [], y0: [], x1: [], y1: [] };
      for (const [, start] of grid.modules.slice(1)) {
        borders.x0.push(grid.edges[0]); borders.x1.push(grid.edges[nColumns]); borders.y0.push(start); borders.y1.push(start);
      }
      model("layer-borders").data = borders;
      const mapper = model("layer-colors"), bar = model("layer-color-bar");
      mapper.setv({ palette: palette(image.signed), low: image.signed ? bottom : logBottom / Math.LN10, high: image.signed ? top : Math.log10(top) });
      bar.title = image.signed ? "" : "log10";
      drawRow();
    }
    function label(a, b) {
      const round = (x) => (Number.isInteger(x) ? String(x) : x.toFixed(2));
      return b - a === 1 ? round(a) : `${round(a)} to ${round(b)}`;
    }
    function drawRow() {
      const key = layerRun.value, grid = config.layers[key], index = Number(layerQuantity.value);
      const image = grid.images[index], data = model(`${key}-image-${index}`).data;
      const nColumns = grid.edges.length - 1;
      if (row === null || row >= grid.layers.length) row = 0;
      model("layer-row").data = { left: [grid.edges[0]], right: [grid.edges[nColumns]], top: [row], bottom: [row + 1] };
      $("layer-title").replaceChildren(grid.layers[row], small(image.title));
      const out = { x: [], value: [], low: [], high: [], stderr: [] }, extent = new Extent(false);
      for (let c = 0; c < nColumns; c++) {
        const value = data.values[0][row * nColumns + c], stderr = data.stderr?.[0][row * nColumns + c] ?? 0;
        out.x.push((grid.edges[c] + grid.edges[c + 1]) / 2); out.value.push(value); out.stderr.push(stderr);
        out.low.push(value - stderr); out.high.push(value + stderr);
        if (finite(value) && (c < nColumns - 1 || nColumns < 3)) extent.lines.push(value);
        if (finite(stderr) && (c < nColumns - 1 || nColumns < 3)) extent.bands.push(value - stderr, value + stderr);
      }
      model("layer-curve-data").data = out;
      extent.lines.push(0);
      extent.apply(model("layer-curve-y"), true);
    }
    function small(text) { const node = document.createElement("small"); node.textContent = text; return node; }
    function nameRows() {
      const grid = config.layers[layerRun.value];
      const axis = model("layer-axis"), every = Math.ceil(grid.layers.length / 90);
      if (config.runs.length > 1) {
        const labels = new Map();
        const PlainText = axis.major_label_overrides.values().next().value?.constructor;
        grid.layers.forEach((name, i) => { if (i % every === 0 && PlainText) labels.set(i + 0.5, new PlainText({ text: name })); });
        axis.ticker.ticks = grid.layers.map((_, i) => i + 0.5).filter((_, i) => i % every === 0);
        axis.major_label_overrides = labels;
        model("layer-image-y").setv({ start: grid.layers.length, end: 0 });
      }
    }
    layerRun.addEventListener("change", () => { fillQuantities(); nameRows(); drawLayers(); });
    layerQuantity.addEventListener("change", drawLayers);
    model("layer-image").on_event("tap", (event) => {
      const grid = config.layers[layerRun.value];
      if (event.y >= 0 && event.y < grid.layers.length) { row = Math.floor(event.y); drawRow(); }
    });

    // ---- the map -----------------------------------------------------------------------
    const mapColor = $("map-color");
    function colorMap() {
      const kind = mapColor.value, values = [];
      for (const key of keys) {
        const source = model(`${key}-map`), own = Array.from(source.data[kind]);
        const out = kind === "loss" ? own.map((v) => (v > 0 ? Math.log10(v) : NaN)) : own;
        values.push(...out.filter(finite));
        source.data = { ...source.data, color_by: out };
      }
      const all = sorted(values);
      if (all.length) model("map-colors").setv({ low: quantile(all, kind === "gamma" ? 0.02 : 0), high: quantile(all, kind === "gamma" ? 0.95 : 1) });
      model("map-color-bar").title = { epoch: "epoch", loss: "log10 loss", gamma: "γ" }[kind];
    }
    mapColor?.addEventListener("change", colorMap);

    // ---- one selection for the map and the panels ------------------------------------------
    let selecting = false;
    function link(from, pairs) {
      from.selected.properties.indices.change.connect(() => {
        if (selecting) return;
        selecting = true;
        const xs = from.selected.indices.map((i) => (from.data.epoch ?? from.data.x)[i]).map(Math.floor);
        const none = xs.length === 0, epochs = new Set(xs);
        for (const to of pairs()) {
          if (to === from) continue;
          const column = to.data.epoch ?? to.data.x, indices = [];
          if (!none) for (let i = 0; i < column.length; i++) if (epochs.has(Math.floor(column[i]))) indices.push(i);
          to.selected.indices = indices;
        }
        const note = $("map-selection");
        if (note) note.textContent = none ? "" : `selected: epochs ${Math.min(...xs)} to ${Math.max(...xs)}`;
        selecting = false;
      });
    }
    const linked = () => keys.flatMap((key) => [model(`${key}-active`), model(`${key}-scalars`), ...(config.map ? [model(`${key}-map`)] : [])]);
    for (const source of linked()) link(source, linked);

    // ---- the live section ---------------------------------------------------------------
    function duration(s) {
      if (!finite(s)) return "–";
      if (s < 60) return `${Math.round(s)} s`;
      return s < 3600 ? `${Math.round(s / 60)} min` : `${(s / 3600).toFixed(1)} h`;
    }
    function bytes(n) {
      if (!finite(n)) return "–";
      const units = ["B", "kB", "MB", "GB", "TB"];
      let i = 0;
      while (n >= 1000 && i < 4) { n /= 1000; i++; }
      return `${n.toPrecision(3).replace(/\.?0+$/, "")} ${units[i]}`;
    }
    const count = (n) => Math.round(n).toLocaleString("en").replaceAll(",", "\u202f");
    function startLive() {
      const facts = model("live-facts"), curves = model("live-curves"), alerts = model("live-alerts"), job = model("live-job");
      const loaded = config.runs[0].steps;
      function showFacts() {
        const f = Object.fromEntries(Object.entries(facts.data).map(([k, v]) => [k, v[0]]));
        if (f.step === undefined) return;
        $("live-status").textContent = f.status;
        $("live-step").textContent = count(f.step);
        $("live-total").textContent = f.total ? ` of ${count(f.total)}` : "";
        $("live-epoch").textContent = count(f.epoch);
        $("live-speed").textContent = finite(f.speed) ? Number(f.speed.toPrecision(3)) : "–";
        $("live-left").textContent = f.status === "running" ? duration(f.left) : "–";
        $("live-bytes").textContent = bytes(f.bytes);
        $("live-free").textContent = bytes(f.free);
        $("live-travelled").textContent = Number(f.travelled.toPrecision(4));
        $("live-silent").textContent = f.status === "running" ? `${duration(f.silent)} ago` : "–";
        $("live-behind").textContent = f.step > loaded ? `, after step ${count(loaded)}: reload it to see ${count(f.step - loaded)} more` : "";
      }
      function showAlerts() {
        const { kind, text } = alerts.data;
        $("live-alerts").replaceChildren(...Array.from(kind, (k, i) => {
          const node = document.createElement("div"), name = document.createElement("b");
          node.className = "alert"; name.textContent = k; node.append(name, text[i]);
          return node;
        }));
      }
      const columns = { "live-loss": ["loss"], "live-rate": ["lr", "lolr"], "live-ratio": ["ratio"], "live-cosine": ["cosine"], "live-travelled": ["travelled"] };
      function fitCurves() {
        const data = curves.data, xs = data.x;
        if (!xs || !xs.length) return;
        model("live-x").setv({ start: 0, end: Math.max(1, xs[xs.length - 1] * 1.01) });
        for (const [name, names] of Object.entries(columns)) {
          if (name === "live-cosine") { model(`${name}-y`).setv({ start: -1.05, end: 1.05 }); continue; }
          const extent = new Extent(name !== "live-travelled");
          for (const column of names) for (const v of data[column]) if (extent.ok(v)) extent.lines.push(v);
          const ticks = extent.apply(model(`${name}-y`), true);
          if (ticks) model(`${name}-ticks`).ticks = ticks;
        }
      }
      function showJob() {
        const state = job.data.state[0], text = job.data.text[0], share = job.data.share[0];
        if (state === undefined) return;
        const progress = $("live-progress"), button = document.querySelector("#live-target button");
        progress.hidden = state !== "running"; progress.value = share; button.disabled = state === "running";
        $("live-job").textContent = { running: `computing ${text} …`, done: `computed: ${job.data.target[0]}`, failed: text }[state];
        if (state === "done") {
          const key = keys[0], label = job.data.target[0];
          if (!config.targets[key].some((t) => t.label === label)) config.targets[key].push({ label, note: "" });
          cache.clear();
          fillTargets(); select.value = label; chooseTarget();
        }
      }
      facts.properties.data.change.connect(showFacts);
      alerts.properties.data.change.connect(showAlerts);
      curves.properties.data.change.connect(fitCurves);
      job.properties.data.change.connect(showJob);
      const form = $("live-target");
      const hints = { epoch: "12", step: "4500", mean: "10-20", snapshot: "name", run: "path/of/run.zarr" };
      form.elements.kind.addEventListener("change", () => { form.elements.value.placeholder = hints[form.elements.kind.value]; });
      form.addEventListener("submit", (event) => {
        event.preventDefault();
        model("live-request").data = { kind: [form.elements.kind.value], value: [form.elements.value.value], id: [Math.random()] };
      });
      showFacts(); showAlerts(); fitCurves();
    }

    // ---- start ---------------------------------------------------------------------------
    let pending = false;
    function refresh() {
      if (pending) return;
      pending = true;
      requestAnimationFrame(() => {
        pending = false;
        for (const panel of config.panels) refreshPanel(panel.key);
        tellWhatIsMissing();
        refreshNull();
        refreshDifference();
      });
    }
    if (config.live) startLive();
    range.change.connect(refresh);
    window.addEventListener("resize", refresh);
    fillTargets();
    fillQuantities();
    drawLayers();
    refresh();
    window.explorer = { model, config, range, refresh, fillTargets, chooseTarget };
    document.body.dataset.ready = "true";
  };
})();
