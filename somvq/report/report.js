"use strict";
const find = (selector, inside = document) => inside.querySelector(selector);
const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
for (const form of all("form.filters")) {
  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
}

// Theme: the system's, until the button says otherwise

const root = document.documentElement;
const systemIsDark = matchMedia("(prefers-color-scheme: dark)");
let printing = false; // on white paper
const isDark = () => !printing && (root.dataset.theme ?? (systemIsDark.matches ? "dark" : "light")) === "dark";
const themeButton = find("#theme");

function nameTheme() {
  root.dataset.theme ??= "";
  if (root.dataset.theme === "") delete root.dataset.theme;
  themeButton.textContent = isDark() ? "Light" : "Dark";
  themeButton.setAttribute("aria-label", `Change to the ${isDark() ? "light" : "dark"} theme`);
}

themeButton.hidden = false;
themeButton.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  nameTheme();
  redraw();
});
systemIsDark.addEventListener("change", () => { nameTheme(); redraw(); });
nameTheme();

function colour(name) { // resolved, for plotly.js knows no variables
  const probe = document.body.appendChild(document.createElement("i"));
  probe.style.colorScheme = isDark() ? "dark" : "light";
  probe.style.color = `var(--${name})`;
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

// Leaderboard: sorted by a heading, filtered by words, a range and chips

const table = find("#trials");
const body = table.tBodies[0];
const rows = [...body.rows];
const columns = Object.fromEntries(all("thead th", table).map((th) => [th.dataset.column, th.cellIndex]));
const valueOf = (row, index) => row.cells[index].dataset.value;

function compare(one, other) {
  if (one === "" || other === "") return (one === "") - (other === ""); // nothing comes last, both ways
  const [a, b] = [Number(one), Number(other)];
  return Number.isNaN(a) || Number.isNaN(b) ? one.localeCompare(other, "en", { numeric: true }) : a - b;
}

function sortBy(th) {
  const down = th.ariaSort ? th.ariaSort === "ascending" : th.classList.contains("number") && th.dataset.column !== "trial";
  for (const each of all("thead th", table)) each.ariaSort = null;
  th.ariaSort = down ? "descending" : "ascending";
  const sign = (a, b) => (down && a !== "" && b !== "" ? -1 : 1);
  const key = (row) => valueOf(row, th.cellIndex);
  body.append(...rows.toSorted((a, b) => sign(key(a), key(b)) * compare(key(a), key(b))));
}

for (const th of all("thead th", table)) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...th.childNodes);
  th.append(button);
  button.addEventListener("click", () => sortBy(th));
}

function filterRows() {
  const words = find("#search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const [low, high] = [find("#low"), find("#high")];
  const chosen = all(".chips").map((chips) => [
    columns[chips.dataset.column],
    all("[aria-pressed=true]", chips).map((chip) => chip.value),
  ]);
  const noun = rows.length === 1 ? "trial" : "trials";
  let count = 0;
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    const value = valueOf(row, columns[low.dataset.column]);
    const fits = words.every((word) => text.includes(word))
      && (low.value === "" || (value !== "" && Number(value) >= Number(low.value)))
      && (high.value === "" || (value !== "" && Number(value) <= Number(high.value)))
      && chosen.every(([index, values]) => index === undefined || !values.length || values.includes(valueOf(row, index)));
    row.hidden = !fits;
    count += fits;
  }
  find("#count").textContent = count === rows.length ? `${count} ${noun}` : `${count} of ${rows.length} ${noun}`;
}

for (const input of all("#search, #low, #high")) input.addEventListener("input", filterRows);
for (const chip of all(".chips button")) {
  chip.addEventListener("click", () => {
    chip.ariaPressed = chip.ariaPressed === "true" ? "false" : "true";
    filterRows();
  });
}
filterRows();

// Figures: one kind of all trials, or all of one trial; enlarged in a dialog

const pictures = all(".gallery li");
const dialog = find("dialog");
let enlarged = 0;
const visible = () => pictures.filter((picture) => !picture.hidden);

function choosePictures() {
  const [kind, trial] = [find("#kind").value, find("#trial").value];
  for (const picture of pictures) {
    picture.hidden = (kind && picture.dataset.kind !== kind) || (trial && picture.dataset.trial !== trial);
  }
  find(".gallery").classList.toggle("one-kind", Boolean(kind));
  find("#shown").textContent = `${visible().length} figures`;
}

function enlarge(place) {
  const shown = visible();
  enlarged = (place + shown.length) % shown.length;
  const image = find("img", shown[enlarged]);
  find("#enlarged").src = image.src;
  find("#enlarged").alt = image.alt;
  find("#caption").textContent = find("figcaption", shown[enlarged]).textContent;
  if (!dialog.open) dialog.showModal();
}

if (pictures.length) {
  for (const select of all("#kind, #trial")) select.addEventListener("change", choosePictures);
  for (const picture of pictures) {
    find("button", picture).addEventListener("click", () => enlarge(visible().indexOf(picture)));
  }
  find("#before").addEventListener("click", () => enlarge(enlarged - 1));
  find("#after").addEventListener("click", () => enlarge(enlarged + 1));
  find("#close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) enlarge(enlarged + step);
  });
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  choosePictures();
}

for (const link of all("th a[data-trial]")) {
  const there = pictures.some((picture) => picture.dataset.trial === link.dataset.trial);
  if (!there) link.replaceWith(link.textContent);
  else link.addEventListener("click", () => {
    find("#trial").value = link.dataset.trial;
    find("#kind").value = "";
    choosePictures();
  });
}

// Charts: plotly.js and what it draws are unpacked once, and drawn as they come into view

const PALETTE = ["#2a9db0", "#d9730d", "#8a63d2", "#5b8c3a", "#c2417c", "#9a7b2f"];
const PRINTED = { width: 960, height: 380 }; // pixels, of an A4 page on its side
const CONFIG = { displaylogo: false, responsive: true, displayModeBar: false };
const drawn = new Map();
let drawings;

async function unpack(id) {
  const bytes = Uint8Array.from(atob(find(`#${id}`).textContent.trim()), (letter) => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

function theme() {
  const [ink, soft, line, paper] = ["ink", "soft", "line", "paper"].map(colour);
  const axis = { gridcolor: line, linecolor: line, zerolinecolor: line, tickcolor: line, automargin: true, tickfont: { color: soft } };
  return { layout: {
    paper_bgcolor: paper,
    plot_bgcolor: paper,
    font: { family: "system-ui, sans-serif", size: 12, color: ink },
    xaxis: axis,
    yaxis: axis,
    colorway: PALETTE,
    annotationdefaults: { font: { color: soft } },
    hoverlabel: { align: "left" },
    margin: { l: 56, r: 24, t: 28, b: 48 },
  } };
}

// Optuna's blues end in white and in black, of which one is the paper: ours are seen on both.
const SCALES = { light: [[190, 220, 227], [5, 70, 84]], dark: [[52, 82, 91], [165, 238, 249]] };
const BLUE = /^rgb\((\d+\.\d+), \d+\.\d+, \d+\.\d+\)$/; // between two of its blues, as Optuna writes it

function recolour(value) {
  const [from, to] = SCALES[isDark() ? "dark" : "light"];
  if (typeof value === "string" && BLUE.test(value)) {
    const share = (247 - Number(BLUE.exec(value)[1])) / 239; // reds go from 247 to 8
    return `rgb(${from.map((start, channel) => Math.round(start + share * (to[channel] - start)))})`;
  }
  if (Array.isArray(value)) {
    const isScale = value.length > 2 && /247, ?251, ?255/.test(value[0]?.[1]);
    return isScale ? [[0, `rgb(${from})`], [1, `rgb(${to})`]] : value.map(recolour);
  }
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, recolour(inner)]));
}

function draw(plot) {
  const { data, layout } = plot.id === "curve" ? curveFigure() : drawings.charts[plot.dataset.chart];
  drawn.set(plot, true);
  return Plotly.react(plot, recolour(data), { ...layout, template: theme(), autosize: !printing, ...(printing && PRINTED) }, CONFIG);
}

function curveFigure() {
  const metric = find("#metric").value;
  const runs = Object.entries(drawings.curves[metric]).reverse(); // the best last, on top
  const studies = [...new Set(runs.map(([, run]) => run.study))].sort();
  const named = new Set();
  const data = runs.map(([label, run]) => {
    const ink = PALETTE[studies.indexOf(run.study) % PALETTE.length];
    const showlegend = studies.length > 1 && !named.has(run.study) && named.add(run.study) !== undefined;
    return {
      type: "scatter", mode: "lines", name: showlegend ? run.study : label, x: run.x, y: run.y,
      line: { color: ink, width: run.best ? 3 : 1.25 }, opacity: run.best ? 1 : 0.55,
      legendgroup: run.study, showlegend,
      hovertemplate: `${label.replaceAll("<", "&lt;")}${run.best ? " ★" : ""}<br>epoch %{x}: %{y:.4g}<extra></extra>`,
    };
  });
  const layout = { xaxis: { title: { text: "epoch" } }, yaxis: { title: { text: metric } }, hovermode: "closest" };
  return { data, layout };
}

function redraw() {
  for (const plot of drawn.keys()) draw(plot);
}

async function drawCharts() {
  const code = document.createElement("script");
  code.textContent = await unpack("plotly");
  document.head.append(code);
  drawings = JSON.parse(await unpack("drawings"));
  const watcher = new IntersectionObserver((seen) => {
    for (const { target, isIntersecting } of seen) {
      if (isIntersecting) { watcher.unobserve(target); draw(target); }
    }
  }, { rootMargin: "800px" });
  const plots = all(".plot");
  for (const plot of plots) watcher.observe(plot);
  addEventListener("beforeprint", () => {
    printing = true;
    for (const plot of plots) draw(plot);
    for (const each of all("details")) each.open = true;
  });
  addEventListener("afterprint", () => { printing = false; redraw(); });
  if (find("#metric")) {
    const meanings = Object.fromEntries(all(".definitions div").map((each) => [find("dt", each).textContent, find("dd", each)]));
    const say = () => find("#meaning").replaceChildren(...(meanings[find("#metric").value]?.cloneNode(true).childNodes ?? []));
    find("#metric").addEventListener("change", () => { say(); draw(find("#curve")); });
    say();
  }
}

if (find("#plotly").textContent.trim()) {
  if ("DecompressionStream" in window) drawCharts();
  else for (const note of all(".old")) note.hidden = false;
}
