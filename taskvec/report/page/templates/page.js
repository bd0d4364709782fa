"use strict";
(() => {
  const $ = (selector, root = document) => root.querySelector(selector);
  const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
  const LIMIT = 30; // lines that a chart can show
  const ABOUT = ["method", "merge", "backbone", "suite", "protocol", "row"];
  const DEFAULTS = { metric: "accuracy", sort: "", dir: "descending" };
  let data = JSON.parse($("#data").textContent);
  let pictures = null; // read when they are first asked for
  let state = {};
  let shown = [];

  // State, kept in the address

  function readAddress() {
    state = { ...DEFAULTS, ...Object.fromEntries(new URLSearchParams(location.hash.slice(1))) };
  }

  function writeAddress() {
    const said = new URLSearchParams();
    for (const [key, value] of Object.entries(state)) {
      if (value && value !== DEFAULTS[key]) said.set(key, value);
    }
    history.replaceState(null, "", `#${said}`);
  }

  function set(changes) {
    Object.assign(state, changes);
    writeAddress();
    show();
  }

  // The table

  function matches(line) {
    const words = (state.q || "").toLowerCase().split(/\s+/).filter(Boolean);
    const text = [line.name, ...Object.values(line.about)].join(" ").toLowerCase();
    const chosen = ABOUT.every((key) => !state[key] || line.about[key] === state[key]);
    return chosen && words.every((word) => text.includes(word));
  }

  function filterRows() {
    const rows = $$("#table tbody tr");
    for (const row of rows) row.hidden = !matches(data.lines[row.dataset.line]);
    const left = rows.filter((row) => !row.hidden);
    shown = left.map((row) => data.lines[row.dataset.line]);
    $("#count").textContent = `${left.length} of ${rows.length} lines`;
    hideEmptyColumns(rows, left);
  }

  function hideEmptyColumns(rows, left) {
    // On a narrow screen also those that say the same of every line
    for (const head of $$("#table thead th").slice(1)) {
      const place = head.cellIndex;
      const said = new Set(left.map((row) => row.cells[place].dataset.value));
      const number = head.classList.contains("number");
      const hidden = number ? [...said].every((text) => text === "") : narrow() && said.size < 2;
      for (const row of [head.parentElement, ...rows]) row.cells[place].hidden = hidden;
    }
  }

  function sortRows() {
    const heads = $$("#table thead th");
    const place = heads.findIndex((head) => $("button", head).dataset.sort === state.sort);
    heads.forEach((head, index) => head.setAttribute("aria-sort", index === place ? state.dir : "none"));
    const body = $("#table tbody");
    const rows = $$("tr", body);
    const numeric = place >= 0 && heads[place].classList.contains("number");
    const sign = state.dir === "descending" ? -1 : 1;
    const key = (row) => row.children[place].dataset.value;
    const compare = (one, other) => {
      if (place < 0) return one.dataset.line - other.dataset.line;
      const [a, b] = [key(one), key(other)];
      if (a === "" || b === "") return (a === "") - (b === ""); // what is not there comes last
      return sign * (numeric ? a - b : a.localeCompare(b));
    };
    body.append(...rows.sort(compare));
  }

  // Charts

  // Plotly reads some markup, and formulas between dollars
  const ENTITIES = { "&": "&amp;", "<": "&lt;", ">": "&gt;", $: "&#36;" };
  const escaped = (text) => String(text).replace(/[&<>$]/g, (character) => ENTITIES[character]);
  const narrow = () => innerWidth < 720;

  function short(text, length = 44) {
    // The end tells as much as the beginning
    const limit = narrow() ? Math.min(length, 26) : length;
    const half = Math.floor((limit - 1) / 2);
    return text.length > limit ? `${text.slice(0, half)}…${text.slice(text.length - half)}` : text;
  }

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function markOf(name) {
    return data.marks[name] || { colour: undefined, marker: "circle", dash: "solid" };
  }

  function labels(lines) {
    // What differs between the lines is what they are called by
    const varying = ABOUT.slice(2).filter((key) => new Set(lines.map((line) => line.about[key])).size > 1);
    const titled = lines.map((line) => [line.name, ...varying.map((key) => line.about[key])].join(" · "));
    return titled.map((text, place) => (titled.indexOf(text) === place ? text : `${text} (${place + 1})`));
  }

  function errors(mean, low, high) {
    const up = high.map((value, place) => (value === null ? null : value - mean[place]));
    const down = low.map((value, place) => (value === null ? null : mean[place] - value));
    return { type: "data", symmetric: false, array: up, arrayminus: down, thickness: 1.4, color: colour("--text") };
  }

  function axis(title, more = {}) {
    const line = colour("--line");
    return { title: { text: escaped(title) }, automargin: true, gridcolor: line, zerolinecolor: line, ...more };
  }

  function categories(names, length, more = {}) {
    // Places by number: two names that are shortened to the same text stay apart
    const ticktext = names.map((name) => escaped(short(name, length)));
    return { tickvals: names.map((name, place) => place), ticktext, ...more };
  }

  function draw(place, traces, layout) {
    const text = colour("--text");
    const base = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: text, size: 12 },
      margin: { t: 36, r: 16, b: 48, l: 48 }, hoverlabel: { align: "left" }, showlegend: false,
      legend: { orientation: "h", y: -0.2 },
    };
    const config = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d"] };
    place.classList.remove("none");
    if (!place.classList.contains("js-plotly-plot")) place.textContent = "";
    place.setAttribute("role", "img");
    Plotly.react(place, traces, { ...base, ...layout }, config);
  }

  function nothing(place, text) {
    Plotly.purge(place);
    place.textContent = text;
    place.classList.add("none");
  }

  function usualUnit(metric) {
    // Numbers in another unit than that of most lines do not share their axis
    const counts = new Map();
    for (const line of data.lines) {
      const unit = line.units[metric];
      if (unit) counts.set(unit, (counts.get(unit) || 0) + 1);
    }
    return [...counts].sort((one, other) => other[1] - one[1]).map(([unit]) => unit)[0];
  }

  function measured(metric) {
    const unit = usualUnit(metric);
    return shown.filter((line) => line.means[metric] && line.units[metric] === unit);
  }

  function unitTitle(metric) {
    const unit = usualUnit(metric);
    if (unit === "fraction") return `${metric}, %`;
    return unit && unit !== "number" ? `${metric}, ${unit}` : metric;
  }

  const few = (lines) => lines.slice(0, LIMIT);
  const more = (lines) => (lines.length > LIMIT ? `the first ${LIMIT} of ${lines.length} lines; filter to see others` : "");

  function drawBars(place, metric) {
    const having = measured(metric);
    if (!having.length) return nothing(place, `no line has ${metric}`);
    const lines = few(having);
    const names = labels(lines);
    const columns = [0, 1, 2].map((end) => lines.map((line) => line.means[metric][end]));
    const trace = {
      type: "bar", orientation: "h", y: names.map((name, place) => place), x: columns[0], error_x: errors(...columns),
      customdata: names.map(escaped),
      marker: { color: lines.map((line) => markOf(line.name).colour), line: { color: colour("--text"), width: 0.6 } },
      hovertemplate: "%{customdata}<br>%{x:.4g}<extra></extra>",
    };
    const title = { text: more(having), font: { size: 12 } };
    draw(place, [trace], {
      title, height: 110 + 24 * lines.length, xaxis: axis(unitTitle(metric)),
      yaxis: axis("", categories(names, 64, { autorange: "reversed", ticklen: 4 })),
    });
  }

  function drawCurves(place) {
    const having = shown.filter((line) => line.curve.length > 1);
    if (!having.length) return nothing(place, "no line here was searched over coefficients");
    const lines = few(having);
    const names = labels(lines);
    const traces = lines.map((line, index) => {
      const columns = [0, 1, 2, 3].map((end) => line.curve.map((point) => point[end]));
      const mark = markOf(line.name);
      return {
        type: "scatter", mode: "lines+markers", name: escaped(short(names[index])), x: columns[0], y: columns[1],
        error_y: errors(columns[1], columns[2], columns[3]), line: { color: mark.colour, dash: mark.dash },
        marker: { symbol: mark.marker, size: 8, color: mark.colour },
      };
    });
    const title = { text: more(having), font: { size: 12 } };
    draw(place, traces, {
      title, showlegend: true, height: 460 + 12 * lines.length, xaxis: axis("coefficient α"),
      yaxis: axis("mean accuracy on validation, %"),
    });
  }

  function drawTasks(place, metric) {
    const having = measured(metric).filter((line) => line.tasks[metric]);
    if (!having.length) return nothing(place, `no line has ${metric} by task`);
    const lines = few(having);
    const tasks = [...new Set(lines.flatMap((line) => Object.keys(line.tasks[metric])))];
    const cell = (line, task) => line.tasks[metric][task] || [null, null, null];
    const values = lines.map((line) => tasks.map((task) => cell(line, task)[0]));
    const picture = {
      rows: labels(lines), columns: tasks, values, title: more(having), x: "", y: "", diagonal: false,
      unit: unitTitle(metric),
    };
    const said = lines.map((line) => tasks.map((task) => {
      const [, low, high] = cell(line, task);
      return low === high ? "no interval" : `95 % interval ${low} to ${high}`;
    }));
    drawHeat(place, picture, said);
  }

  function drawCost(place, key, title, metric) {
    const lines = measured(metric).filter((line) => line[key] !== null);
    if (!lines.length) return nothing(place, `no line has ${metric} and ${title}`);
    const titles = labels(lines);
    const traces = [...new Set(lines.map((line) => line.name))].map((name) => {
      const own = lines.filter((line) => line.name === name);
      const columns = [0, 1, 2].map((end) => own.map((line) => line.means[metric][end]));
      const mark = markOf(name);
      return {
        type: "scatter", mode: "markers", name: escaped(short(name)), x: own.map((line) => line[key]), y: columns[0],
        error_y: errors(...columns), text: own.map((line) => escaped(short(titles[lines.indexOf(line)], 90))),
        hovertemplate: "%{text}<br>%{x:.4g}, %{y:.4g}<extra></extra>",
        marker: { size: 11, color: mark.colour, symbol: mark.marker, line: { color: colour("--text"), width: 0.7 } },
      };
    });
    const low = key === "seconds" ? { type: "log" } : { rangemode: "tozero" };
    const height = 400 + 10 * Math.min(traces.length, LIMIT);
    const showlegend = traces.length <= LIMIT;
    draw(place, traces, { xaxis: axis(title, low), yaxis: axis(unitTitle(metric)), height, showlegend });
  }

  // Pictures of runs: what stages and protocols describe as data

  function drawHeat(place, picture, said = null) {
    const count = picture.rows.length * picture.columns.length;
    const square = picture.diagonal;
    const off = picture.values.flatMap((row, i) => row.filter((value, j) => value !== null && !(square && i === j)));
    const title = { text: escaped(picture.title), font: { size: 13 } };
    const number = (value) => (value === null ? "" : String(+value.toPrecision(3)));
    const about = picture.rows.map((row, i) => picture.columns.map((column, j) =>
      escaped(`${row}, ${column}`) + (said ? `<br>${said[i][j]}` : "")));
    const trace = {
      type: "heatmap", z: picture.values, colorscale: "Cividis", customdata: about,
      text: picture.values.map((row) => row.map(number)), texttemplate: count <= 400 ? "%{text}" : undefined,
      zmin: Math.min(0, ...off), zmax: Math.max(...off, 1e-12), colorbar: { thickness: 10, title: { text: picture.unit === "number" ? "" : escaped(picture.unit || "") } },
      hovertemplate: "%{customdata}<br>%{z:.4g}<extra></extra>",
    };
    draw(place, [trace], {
      title, height: Math.max(320, 150 + 24 * picture.rows.length),
      xaxis: axis(picture.x, every(categories(picture.columns, 44))),
      yaxis: axis(picture.y, every(categories(picture.rows, 60, { autorange: "reversed" }))),
    });
  }

  function every(ticks, most = 60) {
    // Of very many names only every few
    const step = Math.ceil(ticks.tickvals.length / most);
    const kept = (values) => values.filter((value, place) => place % step === 0);
    return { ...ticks, tickvals: kept(ticks.tickvals), ticktext: kept(ticks.ticktext) };
  }

  function drawSurface(place, picture) {
    const order = picture.grid.map((value, index) => [value, index]).sort((a, b) => a[0] - b[0]);
    const upwards = order.map(([, second]) => order.map(([, first]) => picture.values[first][second]));
    const grid = order.map(([value]) => value);
    const trace = {
      type: "heatmap", x: grid, y: grid, z: upwards, colorscale: "Viridis", zmin: 0, zmax: picture.high || 1,
      colorbar: { thickness: 10 },
    };
    const box = { type: "rect", x0: 0, y0: 0, x1: 1, y1: 1, line: { color: "white", dash: "dash", width: 2 } };
    draw(place, [trace], {
      title: { text: escaped(picture.title), font: { size: 13 } }, shapes: [box], height: 400,
      xaxis: axis(picture.x), yaxis: axis(picture.y, { scaleanchor: "x" }),
    });
  }

  function curveTraces(picture, series, name) {
    return Object.entries(series).map(([label, points]) => ({
      type: "scatter", mode: picture.figure === "points" ? "markers" : "lines", name: escaped(short(label)), yaxis: name,
      x: points.map(([x]) => x), y: points.map(([, y]) => y),
      line: {
        width: (picture.strong || []).includes(label) ? 3.5 : 1.6,
        dash: (picture.dotted || []).includes(label) ? "dot" : "solid",
      },
    }));
  }

  function drawLines(place, picture) {
    const traces = curveTraces(picture, picture.series, "y").concat(curveTraces(picture, picture.beside || {}, "y2"));
    const chosen = typeof picture.chosen !== "number" ? [] : [{
      type: "line", x0: picture.chosen, x1: picture.chosen, yref: "paper", y0: 0, y1: 1,
      line: { color: colour("--faint"), dash: "dash", width: 1 },
    }];
    const right = axis(picture.beside_y || "", { overlaying: "y", side: "right", showgrid: false });
    draw(place, traces, {
      title: { text: escaped(picture.title), font: { size: 13 } }, shapes: chosen, showlegend: true, height: 400,
      xaxis: axis(picture.x), yaxis: axis(picture.y, { type: picture.scale }),
      ...(Object.keys(picture.beside || {}).length ? { yaxis2: right } : {}),
    });
  }

  function drawGroups(place, picture) {
    const traces = Object.entries(picture.series).map(([label, values]) => ({
      type: "bar", name: escaped(short(label)), x: values.map((value, place) => place), y: values,
      error_y: picture.low[label] ? errors(values, picture.low[label], picture.high[label]) : undefined,
    }));
    draw(place, traces, {
      title: { text: escaped(picture.title), font: { size: 13 } }, showlegend: traces.length > 1, height: 400,
      xaxis: axis(picture.x, every(categories(picture.labels, 44))), yaxis: axis(picture.y),
    });
  }

  function drawRadar(place, picture) {
    const spokes = picture.labels.map((name) => escaped(short(name)));
    const traces = Object.entries(picture.series).map(([label, values]) => ({
      type: "scatterpolar", name: escaped(short(label)), theta: [...spokes, spokes[0]], r: [...values, values[0]],
    }));
    draw(place, traces, {
      title: { text: escaped(picture.title), font: { size: 13 } }, showlegend: true, height: 420,
      polar: { bgcolor: "rgba(0,0,0,0)", radialaxis: { gridcolor: colour("--line") } },
    });
  }

  const PAINTERS = { radar: drawRadar, heat: drawHeat, surface: drawSurface, lines: drawLines, points: drawLines, bars: drawGroups };

  function drawPictures(room, found) {
    // All places first: how wide one is depends on how many there are
    const places = found.map(() => document.createElement("div"));
    for (const place of places) place.className = "chart";
    room.replaceChildren(...places);
    found.forEach((picture, index) => PAINTERS[picture.figure](places[index], picture));
  }

  function allPictures() {
    if (pictures === null) pictures = JSON.parse($("#pictures").textContent);
    return pictures;
  }

  function picturesOf(run) {
    return Object.values(allPictures()[run] || {}).flat();
  }

  function drawMaps() {
    const curves = (picture) => picture.figure === "lines" && picture.x === "α";
    const runs = Object.keys(allPictures()).filter((run) => picturesOf(run).some((picture) => !curves(picture)));
    const chosen = runs.includes(state.maps) ? state.maps : runs[0];
    options($('[data-state="maps"]'), runs.map((run) => [run, run]), chosen);
    const room = $('[data-charts="maps"]');
    if (!runs.length) return nothing(room, "no run here reports maps or spectra");
    room.classList.remove("none");
    drawPictures(room, picturesOf(chosen));
    const square = (picture) => picture.figure === "heat" && picture.diagonal;
    const source = [chosen, ...runs].find((run) => picturesOf(run).some(square));
    const titled = (picture) => ({ ...picture, title: `${picture.title}, ${source}` });
    drawPictures($('[data-charts="square"]'), source ? picturesOf(source).filter(square).map(titled) : []);
  }

  const CHARTS = new Map([
    ["bars", (place) => drawBars(place, state.metric)],
    ["curves", (place) => drawCurves(place)],
    ["tasks", (place) => drawTasks(place, state.metric)],
    ["seconds", (place) => drawCost(place, "seconds", "seconds if nothing is there yet", state.metric)],
    ["memory", (place) => drawCost(place, "memory", "peak memory, GiB", state.metric)],
    ["maps", () => drawMaps()],
  ]);
  const stale = new Set(); // charts that no longer show what they should
  const visible = new Set();

  function drawChart(name) {
    stale.delete(name);
    CHARTS.get(name)($(`[data-chart="${name}"]`));
  }

  function drawVisible() {
    [...visible].filter((name) => stale.has(name)).forEach(drawChart);
    document.body.dataset.drawn = String(Number(document.body.dataset.drawn || 0) + 1);
  }

  function redraw() {
    for (const name of CHARTS.keys()) stale.add(name);
    cancelAnimationFrame(redraw.frame);
    redraw.frame = requestAnimationFrame(() => setTimeout(drawVisible));
  }

  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const { chart, charts } = entry.target.dataset;
      const name = chart || "maps";
      if (entry.isIntersecting) visible.add(name);
      else if (charts !== "square") visible.delete(name);
    }
    drawVisible();
  }, { rootMargin: "200px" });

  // Runs

  function fill(details) {
    if (details.children.length > 1) return;
    const list = document.createElement("dl");
    for (const [title, texts] of Object.entries(data.runs[details.dataset.run].said)) {
      const head = document.createElement("dt");
      head.textContent = title;
      list.append(head);
      for (const text of texts) {
        const body = document.createElement("dd");
        body.dir = "auto";
        body.textContent = text;
        list.append(body);
      }
    }
    details.append(list);
  }

  function openRun() {
    if (!state.run) return;
    const found = $$("#runlist details").find((details) => details.dataset.run === state.run);
    if (found && !found.open) {
      fill(found);
      found.open = true;
    }
  }

  function printed() {
    document.documentElement.dataset.theme = "light";
    for (const name of CHARTS.keys()) drawChart(name);
  }

  // Everything

  function options(select, pairs, chosen) {
    const made = pairs.map(([value, text]) => new Option(text, value, false, value === chosen));
    select.replaceChildren(...made);
  }

  function show() {
    if (state.theme) document.documentElement.dataset.theme = state.theme;
    else delete document.documentElement.dataset.theme;
    if (!data.metrics.includes(state.metric)) state.metric = data.metrics[0] || "";
    options($('[data-state="metric"]'), data.metrics.map((name) => [name, name]), state.metric);
    for (const field of $$("[data-filter]")) field.value = state[field.dataset.filter] || "";
    $('[data-state="theme"]').value = state.theme || "";
    sortRows();
    filterRows();
    openRun();
    redraw();
  }

  function sortBy(key) {
    const again = state.sort === key;
    const first = key.startsWith("m:") ? "descending" : "ascending";
    const other = state.dir === "descending" ? "ascending" : "descending";
    set({ sort: key, dir: again ? other : first });
  }

  function listen() {
    document.addEventListener("click", (event) => {
      const sort = event.target.closest("[data-sort]");
      if (sort) sortBy(sort.dataset.sort);
      const link = event.target.closest("[data-to]");
      if (link) document.getElementById(link.dataset.to).scrollIntoView();
    });
    $("#controls").addEventListener("input", (event) => {
      const key = event.target.dataset.filter || event.target.dataset.state;
      if (key) set({ [key]: event.target.value });
    });
    $("#controls").addEventListener("submit", (event) => event.preventDefault());
    $('[data-state="maps"]').addEventListener("input", (event) => set({ maps: event.target.value }));
    $("#reset").addEventListener("click", () => {
      state = { ...DEFAULTS, theme: state.theme };
      set({});
    });
    $("#runlist").addEventListener("toggle", (event) => {
      const details = event.target;
      fill(details);
      if (details.open) state.run = details.dataset.run;
      else if (state.run === details.dataset.run) state.run = "";
      writeAddress();
    }, true);
    for (const link of $$("[data-to]")) {
      link.tabIndex = 0;
      link.setAttribute("role", "link");
      link.addEventListener("keydown", (event) => event.key === "Enter" && link.click());
    }
    window.addEventListener("hashchange", () => { readAddress(); show(); });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => show());
    window.addEventListener("beforeprint", () => { printed(); });
    window.addEventListener("afterprint", () => show());
  }

  // A page that a server keeps up to date

  let version = "";

  async function follow() {
    try {
      const progress = await (await fetch("progress")).json();
      $("#progress").innerHTML = progress.html; // escaped by the server's templates
      if (progress.version !== version) {
        const found = await (await fetch("content")).json();
        version = progress.version;
        data = found.data;
        pictures = found.pictures;
        $("#filters").innerHTML = found.fragments.filters;
        $("#leaderboard .wide").innerHTML = found.fragments.leaderboard;
        $("#runlist").innerHTML = found.fragments.runs;
        show();
      }
    } catch (error) {
      $("#progress").textContent = "the server does not answer; the page shows what it last said";
    }
    setTimeout(follow, 1000);
  }

  readAddress();
  listen();
  for (const place of $$("[data-chart], [data-charts]")) watcher.observe(place);
  show();
  if ("live" in document.body.dataset) follow();
})();
