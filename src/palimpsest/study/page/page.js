// Opens the cells of the matrix. All it knows stands in the page; it asks nothing of anybody.
(() => {
  "use strict";
  const dialog = document.getElementById("cell");
  const body = document.getElementById("cell-body");
  let data = null;

  const load = () => (data ??= JSON.parse(document.getElementById("details").textContent));
  const of = (place) => load().pool[place];
  const text = (place) => (place === null ? "" : of(place));

  function el(tag, properties, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(properties || {})) {
      if (name in made) made[name] = value; else made.setAttribute(name, value);
    }
    made.append(...children.filter((child) => child !== null && child !== ""));
    return made;
  }

  function scroll(label, table) {
    return el("div", { className: "scroll", role: "region", "aria-label": `${label}, scrolls sideways`, tabIndex: 0 }, table);
  }

  function value(cell, control) {
    const made = el("td", { className: control ? "control" : "" }, cell[0]);
    if (cell.length > 1) for (const part of cell[1].split(" · ")) made.append(el("small", {}, part));
    return made;
  }

  function stages(seed, lines, corner) {
    const head = el("tr", {}, el("th", { scope: "col" }, corner));
    const columns = of(seed.columns);
    for (const [title, control] of columns) {
      const made = el("th", { scope: "col", className: control ? "control" : "" });
      if (control) made.append(el("small", {}, "control"));
      made.append(title);
      head.append(made);
    }
    const rows = lines.map(([name, ...values]) => {
      const [title, note] = of(name);
      return el("tr", {}, el("th", { scope: "row" }, title, note ? el("small", {}, note) : ""),
        ...values.map((cell, place) => value(of(cell), columns[place][1])));
    });
    return scroll(corner, el("table", { className: "wide" }, el("thead", {}, head), el("tbody", {}, ...rows)));
  }

  function keys(seed, [column, table]) {
    const title = of(seed.columns)[column][0];
    const [numbers, ranks, forms] = of(table);
    const [number, rank] = [numbers.split(" "), ranks.split(" ")];
    const asked = forms.map(([form, hits, logs]) => [form, hits, logs.split(" ")]);
    const head = el("tr", {}, ...["key", "rank", ...asked.map((a) => a[0])].map((h) => el("th", { scope: "col" }, h)));
    const rows = number.map((name, i) => {
      const row = el("tr", {}, el("th", { scope: "row" }, name),
        el("td", {}, rank[i] === "." ? "–" : Number(rank[i]).toLocaleString("en")));
      for (const [, hits, logs] of asked) {
        const hit = hits[i] === "1";
        const log = logs[i] === "." ? "" : ` ${logs[i] === "0.00" ? "" : "−"}${logs[i]}`;
        row.append(hits[i] === "." ? el("td", {}, "–") : el("td", { className: hit ? "" : "miss" }, (hit ? "hit" : "miss") + log));
      }
      return row;
    });
    return el("details", {}, el("summary", {}, `Keys, ${title}`),
      scroll(`Keys, ${title}`, el("table", { className: "keys" }, el("thead", {}, head), el("tbody", {}, ...rows))));
  }

  function answers(seed) {
    const rows = seed.answers.map(([number, before, after]) =>
      el("tr", {}, el("th", { scope: "row" }, `prompt ${number + 1}`), el("td", { className: "said" }, text(before)),
        el("td", { className: "said" }, text(after))));
    const head = el("tr", {}, ...["", "marked model", "after the removal"].map((h) => el("th", { scope: "col" }, h)));
    return el("details", {}, el("summary", {}, "Answers to ordinary prompts"),
      el("p", { className: "soft" }, "Those that changed first; none that shares text with a key is shown."),
      scroll("Answers", el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows))));
  }

  function ofSeed(seed, many) {
    const made = el("section", {});
    if (many) made.append(el("h3", {}, `Seed ${seed.name}`));
    if (seed.word !== null) {
      made.append(el("p", {}, el("span", { className: "word" }, text(seed.word))), el("p", { className: "reason" }, text(seed.why)));
    }
    if (seed.facts !== null && text(seed.facts)) made.append(el("p", { className: "soft facts" }, text(seed.facts)));
    if (seed.searched !== null) made.append(el("p", { className: "soft" }, `Strength of erasing, found by auto: ${text(seed.searched)}.`));
    if (seed.lines.length) made.append(stages(seed, seed.lines, "stage by stage"));
    if (seed.claims.length) {
      made.append(el("ul", { className: "notes" }, ...seed.claims.map(of).map(([what, word, why]) =>
        el("li", {}, `${what}: `, el("b", {}, word), `. ${why}`))));
    }
    if (seed.tasks.length) made.append(el("details", {}, el("summary", {}, "Accuracy by task"), stages(seed, seed.tasks, "task")));
    for (const table of seed.keys) made.append(keys(seed, table));
    if (seed.answers.length) made.append(answers(seed));
    return made;
  }

  function contents(number, titled) {
    const cell = load().cells[number];
    const made = el("div", {}, titled ? el("h3", { className: "title" }, text(cell.title)) : "");
    if (text(cell.about)) made.append(el("p", { className: "soft" }, text(cell.about)));
    for (const seed of cell.seeds) made.append(ofSeed(seed, cell.seeds.length > 1));
    if (cell.repeat.length) {
      made.append(el("h3", {}, "To repeat it"), el("pre", {}, el("code", {}, cell.repeat.map(text).join("\n"))));
    }
    return made;
  }

  function open(number) {
    if (!(number in load().cells)) return;
    document.getElementById("cell-title").textContent = text(load().cells[number].title);
    body.replaceChildren(contents(number, false));
    dialog.showModal();
    dialog.scrollTop = 0;
    document.getElementById("cell-close").focus();
  }

  document.addEventListener("click", (event) => {
    const target = event.target.closest("[data-cell]");
    if (target) open(Number(target.dataset.cell));
    else if (event.target === dialog || event.target.closest("#cell-close")) dialog.close();
  });

  // arrow keys go from cell to cell
  document.addEventListener("keydown", (event) => {
    const cell = event.target.closest("table.matrix td");
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
    if (!cell || !step || dialog.open) return;
    const rows = [...cell.closest("table").rows];
    let [row, column] = [rows.indexOf(cell.parentElement), cell.cellIndex];
    for (;;) {
      [row, column] = [row + step[0], column + step[1]];
      if (!rows[row] || column < 1 || column >= rows[row].cells.length && step[1]) return;
      const button = rows[row].cells[column]?.querySelector("button");
      if (button) { event.preventDefault(); button.focus(); return; }
    }
  });

  // on paper everything is open
  const printed = document.getElementById("printed");
  const shut = [];
  addEventListener("beforeprint", () => {
    if (printed) printed.replaceChildren(...load().cells.map((_, number) => contents(number, true)));
    for (const one of document.querySelectorAll("details:not([open])")) { one.open = true; shut.push(one); }
  });
  addEventListener("afterprint", () => {
    if (printed) printed.replaceChildren();
    for (const one of shut.splice(0)) one.open = false;
  });

  const asked = /^#cell-(\d+)$/.exec(location.hash);
  if (asked && dialog) open(Number(asked[1]));
})();
