"use strict";
/* The report page: fills the table (DataTables), the plot (Plotly), comparisons and records from the data
   block. Texts from records are only ever set as text, or escaped where a library takes HTML. */
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const escaped = (text) => String(text).replace(/[&<>"'`]/g, (c) => `&#${c.charCodeAt(0)};`);
  /** As in leaderboard.md: halves are rounded to the even digit. */
  function fixed(value, digits) {
    const text = value.toFixed(digits), last = text.slice(-1);
    const isHalf = (Math.abs(value) * 2 ** (digits + 1)) % 2 === 1;
    return isHalf && last % 2 ? text.slice(0, -1) + (last - 1) : text;
  }
  const percent = (value) => fixed(100 * value, 1);
  const signed = (value) => `${value < 0 ? "−" : "+"}${percent(Math.abs(value))}`;
  const counted = (n, name) => `${n.toLocaleString("en")} ${name}${n === 1 ? "" : "s"}`;
  const round = (value) => (value >= 1000 ? fixed(value, 0) : value >= 1 ? fixed(value, 1) : value.toPrecision(2));
  const COLOURS = ["#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#777777"];
  const WHISKERS = 200; // points; of more, intervals would hide them, and take long to draw
  const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "triangle-down", "pentagon", "x", "star"];
  const COSTS = [["params_m", "Params (M)"], ["gmacs", "FLOPs (G)"], ["images_per_s", "Images/s"],
    ["peak_memory_mb", "Memory (MB)"]];
  const FIRST = 2 + COSTS.length; // columns of the table before the scores

  function element(name, attributes, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  function fill(select, options, chosen) {
    select.replaceChildren(...options.map(([value, text]) => element("option", { value }, text)));
    if (chosen !== undefined) select.value = chosen;
  }

  const rowName = (row) => [row.model, row.weights, row.variant].filter(Boolean).join(" · ");

  /* -- theme, kept where the browser allows it ---------------------------------------------------- */

  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const THEMES = ["system", "light", "dark"];
  let theme = "system";
  try { theme = THEMES.includes(localStorage.getItem("theme")) ? localStorage.getItem("theme") : theme; } catch { /* no storage */ }

  function showTheme() {
    const isDark = theme === "dark" || (theme === "system" && dark.matches);
    document.documentElement.dataset.theme = isDark ? "dark" : "light";
    document.documentElement.classList.toggle("dark", isDark); // as DataTables calls it
    at("theme").textContent = `Theme: ${theme}`;
  }
  at("theme").addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    try { localStorage.setItem("theme", theme); } catch { /* no storage */ }
    showTheme();
    draw(true);
  });
  dark.addEventListener("change", () => { showTheme(); draw(true); });
  showTheme();

  /* -- table --------------------------------------------------------------------------------------- */

  const isFurther = (column) => !["ranked", "mean"].includes(column.kind);

  function shownScore(cell, type, { kind, lower }) {
    if (!cell) return type === "display" ? (kind === "mean" ? "incomplete" : "-") : type === "filter" ? "" : lower ? Infinity : -Infinity;
    if (type === "sort" || type === "type") return cell.value;
    let text = kind === "rank" ? fixed(cell.value, 2) : percent(cell.value);
    if (type !== "display" || cell.low === undefined) return text;
    if (cell.mark === "best") text = `<strong>${text}</strong>`;
    if (cell.mark === "second") text = `<u>${text}</u>`;
    if (cell.mark === "tied") text += "=";
    const about = cell.seeds > 1 ? `± ${percent(cell.high - cell.value)} (${cell.seeds} seeds)`
      : `${percent(cell.low)} to ${percent(cell.high)}`;
    const shown = `${text}<span class="interval">${about}</span>`;
    return cell.runs.length ? `<button type="button" class="score" data-runs="${cell.runs.map(escaped).join(" ")}">${shown}</button>` : shown;
  }

  function costColumn([name, title]) {
    return { title, data: null, className: "number", orderSequence: ["desc", "asc"],
      render: (row, type) => {
        const value = row.cost[name];
        if (type === "sort" || type === "type") return value === null ? -Infinity : value;
        return value === null ? "" : round(value) + (name === "gmacs" && row.uncounted ? " †" : "");
      } };
  }

  const table = new DataTable("#board", {
    data: data.rows,
    autoWidth: false,
    deferRender: true,
    order: [],
    pageLength: 25,
    lengthMenu: [10, 25, 100, { label: "all", value: -1 }],
    language: { search: "Search", emptyTable: "No run is finished yet." },
    columns: [
      { title: "Model", data: null, render: (row, type) => type === "display" ? escaped(row.model) : row.model },
      { title: "Weights", data: null, render: (row, type) => {
        const text = [row.weights, row.variant].filter(Boolean).join(" · ");
        return type !== "display" ? text : row.random ? `<strong>${escaped(text)}</strong>` : escaped(text);
      } },
      ...COSTS.map(costColumn),
      ...data.columns.map((column, place) => ({ title: escaped(column.name), data: null, className: "number",
        visible: !isFurther(column), orderSequence: column.lower ? ["asc", "desc"] : ["desc", "asc"], type: "num",
        render: (row, type) => shownScore(row.cells[place], type, column) })),
    ],
  });

  function limit(id) {
    const value = parseFloat(at(id).value);
    return Number.isFinite(value) && value > 0 ? value : Infinity;
  }
  const within = (cost, most) => most === Infinity || (cost !== null && cost <= most);
  const affordable = (_, row) => within(row.cost.params_m, limit("most-params")) &&
    within(row.cost.gmacs, limit("most-flops"));
  table.search.fixed("cost", affordable);

  function isChosen(column) {
    const protocol = at("protocol").value, suite = at("suite").value;
    return (!protocol || column.protocol === protocol) && (!suite || column.suites.includes(suite));
  }

  function setVisible(shown, first, wanted) { // in two calls, since each rebuilds the head
    for (const visible of [true, false]) {
      const changed = wanted.flatMap((each, place) =>
        (each === visible && shown.column(first + place).visible() !== visible ? [first + place] : []));
      if (changed.length) shown.columns(changed).visible(visible, false);
    }
    shown.draw(false);
  }

  function showColumns() {
    setVisible(table, FIRST, data.columns.map((column) =>
      (!isFurther(column) || at("further").checked) && isChosen(column)));
    if (others) setVisible(others, FIRST_OTHER, data.published.columns.map((place) => isChosen(data.columns[place])));
  }

  /* -- published by others, apart from the measured rows ------------------------------------------ */

  const FIRST_OTHER = 4; // model, pretraining and two costs

  function link(cell, text) {
    if (!/^https?:\/\//.test(cell.link)) return escaped(text);
    return `<a href="${escaped(cell.link)}" target="_blank" rel="noopener noreferrer">${escaped(text)}</a>`;
  }

  function othersTable() {
    at("others-choice").hidden = at("others-note").hidden = at("others").hidden = false;
    const made = new DataTable("#others-board", {
      data: data.published.rows, autoWidth: false, deferRender: true, order: [], pageLength: 10,
      language: { search: "Search published", lengthMenu: "_MENU_ published rows per page" },
      columns: [
        ...[["Model", "model"], ["Pretraining", "pretraining"]].map(([title, key]) => ({ title, data: null,
          render: (row, type) => (type === "display" ? escaped(row[key]) : row[key]) })),
        ...COSTS.slice(0, 2).map(costColumn),
        ...data.published.columns.map((column, place) => ({ title: escaped(data.columns[column].name), data: null,
          className: "number", orderSequence: ["desc", "asc"], type: "num",
          render: (row, type) => {
            const cell = row.cells[place];
            if (type === "sort" || type === "type") return cell ? cell.value : -Infinity;
            if (!cell) return "";
            return type === "display" ? link(cell, percent(cell.value)) : percent(cell.value);
          } })),
      ],
    });
    made.search.fixed("cost", affordable);
    made.table().container().querySelector("nav")?.setAttribute("aria-label", "pagination of published results");
    made.on("draw", () => draw());
    at("others-shown").addEventListener("change", () => {
      at("others").hidden = !at("others-shown").checked;
      draw();
    });
    return made;
  }

  /** The published results of a column that pass the filters. */
  function publishedOf(column, axis) {
    const place = others && at("others-shown").checked ? data.published.columns.indexOf(column) : -1;
    if (place < 0) return [];
    return others.rows({ search: "applied" }).data().toArray().filter((row) => row.cells[place]?.x[axis])
      .map((row) => ({ row, cell: row.cells[place], x: row.cells[place].x[axis], y: 100 * row.cells[place].value }));
  }

  const distinct = (values) => [...new Set(values)].sort();
  const choices = (values) => [["", "all"], ...distinct(values).map((value) => [value, value])];
  fill(at("protocol"), choices(data.columns.map((column) => column.protocol)));
  fill(at("suite"), choices(data.columns.flatMap((column) => column.suites)));
  for (const id of ["protocol", "suite", "further"]) at(id).addEventListener("change", showColumns);
  for (const id of ["most-params", "most-flops"]) at(id).addEventListener("input", () => {
    table.draw();
    if (others) others.draw();
  });
  at("intervals").addEventListener("change", () => at("board").classList.toggle("short", !at("intervals").checked));
  at("board").addEventListener("click", (event) => {
    const button = event.target.closest("button.score");
    if (button) open(button.dataset.runs.split(" "));
  });
  table.on("draw", () => draw());
  const others = data.published && othersTable();

  /* -- plot ---------------------------------------------------------------------------------------- */

  const drawable = data.columns.map((column, place) => [String(place), column.name])
    .filter(([place]) => data.rows.some((row) => row.cells[place]?.low !== undefined));
  fill(at("plot-column"), drawable);
  fill(at("plot-axis"), Object.entries(data.axes).map(([name, axis]) => [name, axis.title]));
  for (const id of ["plot-column", "plot-axis"]) at(id).addEventListener("change", () => draw());

  /** more: of x is better; lower: scores are. */
  function front(points, more, lower) {
    const better = (a, b) => (lower ? b.y - a.y : a.y - b.y);
    const sorted = [...points].sort((a, b) => (more ? b.x - a.x : a.x - b.x) || better(b, a));
    const kept = [];
    for (const point of sorted) if (!kept.length || better(point, kept[kept.length - 1]) > 0) kept.push(point);
    return kept;
  }

  function ticks(values) {
    const [low, high] = [Math.min(...values) / 1.5, Math.max(...values) * 1.5];
    const found = [];
    const steps = high > 200 * low ? [1] : [1, 2, 5];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
      for (const step of steps) if (step * 10 ** power >= low && step * 10 ** power <= high) found.push(step * 10 ** power);
    }
    return found;
  }

  const kinds = new Map(distinct(data.rows.map((row) => row.model)).map((model, kind) => [model, kind]));

  /** Draw the points of the rows that pass the filters, unless they are drawn; restyled: in other colours. */
  function draw(restyled = false) {
    const place = at("plot-column").value, axis = at("plot-axis").value;
    const column = data.columns[place];
    if (!column) {
      at("plot").textContent = "Nothing to draw yet.";
      return;
    }
    const points = table.rows({ search: "applied", order: "index" }).data().toArray().flatMap((row) => {
      const cell = row.cells[place];
      if (!cell || row.settings || !cell.x[axis]) return [];
      const kind = kinds.get(row.model);
      return [{ row, cell, x: cell.x[axis], y: 100 * cell.value, colour: COLOURS[kind % COLOURS.length],
        symbol: SYMBOLS[Math.floor(kind / COLOURS.length) % SYMBOLS.length] + (row.random ? "-open" : "") }];
    });
    const published = publishedOf(Number(place), axis);
    const shown = [axis, ...points, ...published].map((each) => each.cell ?? each);
    if (!restyled && draw.shown?.length === shown.length && shown.every((each, n) => each === draw.shown[n])) return;
    draw.shown = shown;
    const more = data.axes[axis].more;
    const best = front(points, more, column.lower);
    const room = at("plot").clientWidth / 90; // labels that fit beside each other
    const named = new Set(points.length <= room ? points : best.length <= room ? best
      : best.length ? [best[0], best[best.length - 1]] : []);
    const style = getComputedStyle(document.documentElement);
    const ink = style.getPropertyValue("--ink").trim(), line = style.getPropertyValue("--line").trim();
    const named_points = points.filter((point) => named.has(point));
    const hover = (point) => `${escaped(rowName(point.row))}<br>${escaped(column.metric)} ${percent(point.cell.value)} % ` +
      `(${percent(point.cell.low)} to ${percent(point.cell.high)})<br>${round(point.x)} ${escaped(data.axes[axis].title)}`;
    const traces = [
      { x: best.map((p) => p.x), y: best.map((p) => p.y), mode: "lines", hoverinfo: "skip",
        line: { color: ink, width: 1, dash: "dash" }, opacity: 0.6 },
      { x: points.map((p) => p.x), y: points.map((p) => p.y), mode: "markers", hoverinfo: "text",
        cliponaxis: false, hovertext: points.map(hover), customdata: points.map((p) => p.cell.runs),
        marker: { size: 10, color: points.map((p) => p.colour), symbol: points.map((p) => p.symbol), line: { width: 1.5 } },
        error_y: { visible: points.length <= WHISKERS, type: "data", symmetric: false, thickness: 1, width: 3, color: line,
          array: points.map((p) => 100 * (p.cell.high - p.cell.value)),
          arrayminus: points.map((p) => 100 * (p.cell.value - p.cell.low)) } },
      { x: named_points.map((p) => p.x), y: named_points.map((p) => p.y), mode: "text", hoverinfo: "skip", cliponaxis: false,
        text: named_points.map((p) => escaped(p.row.label)), textposition: "top center", textfont: { size: 11, color: ink } },
    ];
    if (published.length) {
      const about = (point) => `${escaped(point.row.model)}, ${escaped(point.row.pretraining)} (published)<br>` +
        `${escaped(column.metric)} ${percent(point.cell.value)} %<br>${round(point.x)} ${escaped(data.axes[axis].title)}`;
      traces.push({ x: published.map((p) => p.x), y: published.map((p) => p.y), mode: "markers", hoverinfo: "text", zorder: -1,
        hovertext: published.map(about), customdata: published.map((_, n) => n), name: "published",
        marker: { size: 6, color: "#9A9A9A" } });
    }
    draw.published = published;
    const at_ticks = points.length ? ticks([...points, ...published].map((p) => p.x)) : [];
    const layout = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink, size: 13 }, showlegend: false,
      margin: { l: 60, r: 20, t: 20, b: 55 }, hovermode: "closest", hoverlabel: { align: "left" },
      xaxis: { type: "log", title: { text: escaped(data.axes[axis].title) }, gridcolor: line, zeroline: false,
        tickmode: "array", tickvals: at_ticks, ticktext: at_ticks.map((value) => Number(value.toPrecision(3)).toString()) },
      yaxis: { title: { text: `${escaped(column.metric)} (%)` }, gridcolor: line, zeroline: false },
    };
    at("plot").setAttribute("aria-label", `${column.name} against ${data.axes[axis].title}: ` +
      counted(points.length, "model") + (published.length ? ` and ${published.length} published by others` : ""));
    Plotly.react("plot", traces, layout, { responsive: true, displaylogo: false });
    if (!draw.listening) {
      at("plot").on("plotly_click", (event) => {
        const { customdata, data: trace } = event.points[0];
        if (trace.name === "published") openPublished(draw.published[customdata], data.columns[at("plot-column").value]);
        else if (customdata && customdata.length) open(customdata);
      });
      draw.listening = true;
    }
  }

  /* -- comparison ---------------------------------------------------------------------------------- */

  const comparable = data.rows.map((row, place) => [String(place), rowName(row)])
    .filter(([place]) => !data.rows[place].settings);
  fill(at("first"), comparable, "0");
  fill(at("second"), comparable, comparable.length > 1 ? comparable[1][0] : undefined);
  for (const id of ["first", "second"]) at(id).addEventListener("change", compare);

  function pair(a, b, column) {
    const kept = data.pairs[`${a}-${b}-${column}`];
    if (kept) return kept;
    const other = data.pairs[`${b}-${a}-${column}`];
    return other && [-other[0], -other[2], -other[1], other[3], other[4]];
  }

  function compare() {
    const a = at("first").value, b = at("second").value;
    if (a === "" || b === "" || a === b) {
      at("compared").textContent = comparable.length > 1 ? "Choose two different rows." : "There is only one row.";
      return;
    }
    const [first, second] = [data.rows[a], data.rows[b]];
    const lines = [];
    let untested = false;
    data.columns.forEach((column, place) => {
      const [x, y] = [first.cells[place], second.cells[place]];
      if (isFurther(column) || !x || !y) return;
      const tested = pair(a, b, place);
      untested = untested || (!tested && column.kind === "ranked");
      const verdict = !tested ? (column.kind === "mean" ? "" : "not tested")
        : tested[4] >= 0.05 ? "no difference shown" : `${tested[0] > 0 ? "first" : "second"} is better`;
      const cells = [percent(x.value), percent(y.value), signed(tested ? tested[0] : x.value - y.value),
        tested ? `${signed(tested[1])} to ${signed(tested[2])}` : "", tested ? tested[4].toPrecision(2) : ""];
      lines.push(element("tr", {}, element("th", { scope: "row" }, column.name),
        ...cells.map((text) => element("td", { class: "number" }, text)), element("td", {}, verdict)));
    });
    if (!lines.length) {
      at("compared").textContent = "The two share no task and protocol.";
      return;
    }
    const titles = ["Column", "First (%)", "Second (%)", "Difference", "95 % interval", "p (Holm)", "Paired test"];
    const head = element("tr", {}, ...titles.map((title) => element("th", { scope: "col" }, title)));
    const shown = element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Comparison" },
      element("table", { class: "plain" }, element("thead", {}, head), element("tbody", {}, ...lines)));
    const note = untested ? [element("p", { class: "note" }, "“not tested”: predictions are missing, or there are " +
      "too many rows to compare every two; mixmim-bench compare tests any two.")] : [];
    at("compared").replaceChildren(shown, ...note);
  }

  /* -- records ------------------------------------------------------------------------------------- */

  function text(value) {
    if (value === null) return "none";
    return typeof value === "object" ? JSON.stringify(value) : String(value);
  }

  function listed(values) {
    return element("dl", {}, ...Object.entries(values).flatMap(([key, value]) =>
      [element("dt", {}, key), element("dd", {}, text(value))]));
  }

  function scored(score, onTrain) {
    const about = [`${percent(score.value)} % (${percent(score.low)} to ${percent(score.high)})`];
    if (score.interval) about.push(`${score.interval} interval`);
    if (score.n !== undefined) about.push(`n ${score.n}`);
    if (score.draws > 1) about.push(`${score.draws} draws`);
    if (score.guess !== undefined) about.push(`a guess scores ${percent(score.guess)}`);
    if (onTrain !== undefined) about.push(`on train ${percent(onTrain)} %`);
    return about.join("; ");
  }

  function described(id) {
    const record = data.records[id];
    const parts = [element("h3", {}, `${record.task}, ${record.protocol}`), element("p", { class: "note" }, `run ${id}`)];
    if (record.error) parts.push(element("p", { class: "error" }, record.error));
    const train = record.train;
    parts.push(listed({
      ...Object.fromEntries(Object.entries(record.scores).map(([name, score]) => [name, scored(score, train[name])])),
      ...(train.loss === undefined ? {} : { "loss on train": Number(train.loss.toPrecision(4)) }),
      ...(train.n === undefined ? {} : { "train images scored": train.n }),
    }));
    if (record.notes.length) parts.push(element("ul", {}, ...record.notes.map((note) => element("li", {}, note))));
    if (record.picture) parts.push(element("img", { src: record.picture, loading: "lazy",
      alt: "Test images with their labels and predictions" }));
    for (const [name, [steps, losses]] of Object.entries(record.curves)) {
      const box = element("div", { role: "img", "aria-label": `Training loss of ${name}` });
      parts.push(element("h3", {}, `Training loss: ${name}`), box);
      setTimeout(() => {
        const ink = getComputedStyle(document.documentElement).getPropertyValue("--ink").trim();
        Plotly.newPlot(box, [{ x: steps, y: losses, mode: "lines", line: { color: COLOURS[1] } }],
          { height: 240, margin: { l: 50, r: 10, t: 10, b: 40 }, paper_bgcolor: "rgba(0,0,0,0)",
            plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink }, xaxis: { title: { text: "step" } },
            yaxis: { title: { text: "loss" } } }, { responsive: true, displaylogo: false });
      });
    }
    for (const [title, values] of record.sections) {
      if (Object.keys(values).length) parts.push(element("h3", {}, title), listed(values));
    }
    return parts;
  }

  function open(runs) {
    const known = runs.filter((id) => data.records[id]);
    if (!known.length) return;
    at("record-title").textContent = data.records[known[0]].title;
    at("record-body").replaceChildren(...known.flatMap(described));
    at("record").showModal();
    at("record").scrollTop = 0;
  }
  function openPublished({ row, cell }, column) {
    at("record-title").textContent = row.model;
    const source = element("dd", {}, cell.source);
    if (/^https?:\/\//.test(cell.link)) {
      source.replaceChildren(element("a", { href: cell.link, target: "_blank", rel: "noopener noreferrer" }, cell.source));
    }
    const values = listed({ [column.metric]: `${percent(cell.value)} %`, pretraining: row.pretraining, note: cell.note || "none" });
    values.append(element("dt", {}, "source"), source);
    at("record-body").replaceChildren(element("h3", {}, column.name),
      element("p", { class: "note" }, "Published by others, not measured here."), values);
    at("record").showModal();
  }
  at("close").addEventListener("click", () => at("record").close());

  /* -- controls ------------------------------------------------------------------------------------ */

  if (data.controls.rows.length) {
    const heads = data.controls.titles.map((title) => element("th", { scope: "col" }, title));
    at("controls-head").replaceChildren(element("tr", {}, ...heads));
    at("controls-rows").replaceChildren(...data.controls.rows.map((row) =>
      element("tr", {}, ...row.map((text) => element("td", {}, text)))));
    at("controls-notes").textContent = data.controls.notes.join(" ");
    at("controls").hidden = false;
  }

  /* -- the rest ------------------------------------------------------------------------------------ */

  const problems = data.failed.map((id) => {
    const record = data.records[id];
    const button = element("button", { type: "button" }, "record");
    button.addEventListener("click", () => open([id]));
    return element("li", {}, `${record.title}, ${record.task}, ${record.protocol} failed: ${record.error} `, button);
  });
  problems.push(...data.broken.map((reason) => element("li", {}, reason)));
  if (data.older) problems.push(element("li", {}, `${counted(data.older, "result")} of older versions of task, metric, ` +
    "protocol or architecture"));
  if (data.smoke) problems.push(element("li", {}, `${counted(data.smoke, "row")} of smoke runs (--limit), in limited.md`));
  at("problem-list").replaceChildren(...problems);
  at("problems").hidden = !problems.length;

  const tasks = distinct(data.columns.filter((column) => column.kind === "ranked").map((column) => column.task));
  at("summary").textContent = `${counted(data.rows.length, "row")}, ${counted(tasks.length, "task")}, ` +
    `${counted(Object.keys(data.records).length - data.failed.length, "finished run")}`;
  at("notes").textContent = data.notes.join(" ");
  showColumns();
  compare();

  if (location.protocol === "http:") { // `report --serve`: show what has changed
    let version;
    setInterval(async () => {
      try {
        const now = await (await fetch("version")).text();
        if (version !== undefined && now !== version && !at("record").open) location.reload();
        version = now;
      } catch { /* the server has ended: the page stays as it is */ }
    }, 3000);
  }
})();
