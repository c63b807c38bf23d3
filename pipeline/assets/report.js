// The gallery of a run: decodes the index, filters, sorts, draws the rows in view, shows one pair.
// Text from the run reaches the page as textContent, alt, title or aria-label only: never as markup.
"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  const count = data.rows;
  const number = new Intl.NumberFormat("en");
  const collator = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

  // --- columns ---

  const reader = (column) => {
    if ("one" in column) return () => column.one;
    if ("codes" in column) return (row) => column.words[column.codes[row]];
    return (row) => column.all[row];
  };
  const readers = Object.fromEntries(Object.entries(data.columns).map(([n, c]) => [n, reader(c)]));
  const get = (name, row) => (name in readers ? readers[name](row) : null);
  const thumb = Object.fromEntries(Object.entries(data.thumbs).map(([n, c]) => [n, reader(c)]));
  const contentPath = reader(data.content_paths);
  const stylePaths = reader(data.style_paths);

  const LABELS = {
    row: "manifest order", pair_id: "name", content: "photograph", style: "style",
    status: "status", seconds: "seconds", loss: "loss", finished_at: "finished", size: "size",
  };
  const TIMES = new Set(["started_at", "finished_at"]);
  const SECONDS = new Set(["seconds"]);
  const BYTES = new Set(["output_bytes", "peak_memory"]);

  // --- words and numbers ---

  const stem = (path) => String(path ?? "").trim().split(/[\\/]/).pop().replace(/\.[^.]+$/, "");
  const styleName = (text) => String(text ?? "").split("|").map(stem).join(" + ");
  // The id that the manifest gave; a made one tells nobody anything.
  const title = (row) => {
    const id = String(get("pair_id", row));
    return get("generated_id", row) ? `${stem(get("content", row))} × ${styleName(get("style", row))}` : id;
  };
  const plural = (n, noun) => `${number.format(n)} ${noun}${n === 1 ? "" : "s"}`;

  function duration(seconds) {
    if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
    const whole = Math.round(seconds), minutes = Math.floor(whole / 60) % 60;
    if (whole < 3600) return `${minutes} min${whole % 60 ? ` ${whole % 60} s` : ""}`;
    return `${number.format(Math.floor(whole / 3600))} h ${minutes} min`;
  }

  function figure(value) {
    if (Number.isInteger(value) && Math.abs(value) < 1e7) return String(value);
    const size = Math.abs(value);
    if (size >= 1e5 || size < 1e-3) return value.toExponential(2).replace("e+", "e");
    return String(Number(value.toPrecision(4)));
  }

  const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 2 });
  const tick = (value) => (value >= 1e15 || value < 1e-3 ? value.toExponential(1).replace(".0e", "e").replace("e+", "e") : compact.format(value));

  function shown(name, value) {
    if (value === null || value === undefined || value === "") return "";
    if (typeof value !== "number") return String(value);
    if (TIMES.has(name)) return new Date(value * 1000).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
    if (SECONDS.has(name)) return duration(value);
    if (BYTES.has(name)) return value >= 1e9 ? `${(value / 1e9).toFixed(1)} GB` : value >= 1e6 ? `${(value / 1e6).toFixed(1)} MB` : `${Math.ceil(value / 1e3)} kB`;
    return figure(value);
  }

  // A local path as an address; URIs of other places have none, so that nothing is fetched.
  const address = (path) => {
    if (!path) return "";
    const parts = path.split("/").map(encodeURIComponent).join("/");
    return path.startsWith("/") ? `file://${parts}` : `./${parts}`;
  };
  const thumbAddress = (name) => (name ? `report/thumbs/${name}` : "");

  function make(kind, properties = {}, ...children) {
    const element = document.createElement(kind);
    for (const [name, value] of Object.entries(properties)) {
      if (name in element) element[name] = value;
      else element.setAttribute(name, value);
    }
    element.append(...children.filter((child) => child !== null));
    return element;
  }

  // --- loss curves ---

  const LEVELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
  const level = new Map([...LEVELS].map((letter, at) => [letter, at]));

  // The curves of a large run come in files, each when a row of it is first looked at.
  const files = new Map(); // number -> its curves, or null until they are there
  function losses(row) {
    const { values, files: stamp, in_a_file } = data.curves;
    if (values) return values[row];
    const number = Math.floor(row / in_a_file);
    if (!files.has(number)) {
      files.set(number, null);
      document.head.append(make("script", { src: `report/curves/${stamp}-${number}.js` }));
    }
    return files.get(number)?.[row % in_a_file] || [];
  }

  window.stylizeCurves = (number, values) => {
    files.set(number, values);
    const isThere = (row) => Math.floor(row / data.curves.in_a_file) === number;
    for (const element of drawn.values()) {
      const row = Number(element.dataset.row);
      const drawing = isThere(row) && get("status", row) === "ok" ? spark(row) : null;
      if (drawing) element.querySelector(".facts").append(drawing);
    }
    const open = dialog.open ? order[Number(dialog.dataset.place)] : -1;
    if (isThere(open)) drawPlots(open);
  };

  // {steps, logs}: evaluations, and the logarithm of the loss at each, null where there is none.
  function curve(row, which) {
    const axis = data.curves.axis[row];
    const packed = axis < 0 ? 0 : losses(row)[which];
    if (!packed) return null;
    const [low, high, letters] = packed, logs = [];
    for (let at = 0; at < letters.length; at += 2) {
      const code = level.get(letters[at]) * 64 + level.get(letters[at + 1]);
      logs.push(code === 4095 ? null : low + (code / 4094) * (high - low));
    }
    return { steps: data.curves.axes[axis], logs };
  }

  function spark(row) {
    const found = curve(row, 0);
    if (!found || found.steps.length < 2) return null;
    const logs = found.logs.filter((v) => v !== null);
    const low = Math.min(...logs), high = Math.max(...logs), last = found.steps.at(-1);
    const first = found.steps[0];
    const points = found.logs.map((v, at) => v === null ? null :
      `${(100 * (found.steps[at] - first) / (last - first || 1)).toFixed(1)} ${(28 - 26 * (v - low) / (high - low || 1)).toFixed(1)}`);
    const space = "http://www.w3.org/2000/svg";
    const svg = document.createElementNS(space, "svg"), path = document.createElementNS(space, "path");
    svg.setAttribute("class", "spark");
    svg.setAttribute("viewBox", "0 0 100 30");
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", `Loss from ${figure(10 ** logs[0])} to ${figure(10 ** logs.at(-1))}`);
    path.setAttribute("d", `M${points.filter((p) => p).join("L")}`);
    svg.append(path);
    return svg;
  }

  // --- which rows, in which order ---

  const state = { query: "", status: "", style: "", sort: "row", down: false };
  let order = []; // rows of the index, as they are shown
  const haystack = []; // what the filter searches, of the rows from the first on

  const SEARCHED = ["pair_id", "content", "style", "output", "status", "error_type", "error_message", "notes", "device", "preset", "backbone", "stop_reason"];
  const searched = [...SEARCHED, ...Object.keys(readers).filter((name) => name.startsWith("meta."))];
  const text = (row) => searched.map((name) => get(name, row) ?? "").join("\n").toLowerCase();
  function texts() {
    while (haystack.length < count) haystack.push(text(haystack.length));
    return haystack;
  }

  // So that the first key is answered as quickly as the second.
  function prepare(deadline) {
    while (haystack.length < count && deadline.timeRemaining() > 2) {
      for (const last = Math.min(count, haystack.length + 200); haystack.length < last;) haystack.push(text(haystack.length));
    }
    if (haystack.length < count) requestIdleCallback(prepare);
  }

  // Each row's place by a column, so that sorting compares whole numbers; nothing comes last.
  const ranks = new Map();
  function ranksBy(name) {
    if (!ranks.has(name)) {
      const values = Array.from({ length: count }, (_, row) => get(name, row) ?? "");
      const compare = (a, b) => typeof a === "number" && typeof b === "number" ? a - b
        : typeof a === "number" ? -1 : typeof b === "number" ? 1 : collator.compare(a, b) || (a < b ? -1 : a > b ? 1 : 0);
      const words = [...new Set(values)].filter((v) => v !== "").sort(compare);
      const place = new Map(words.map((word, at) => [word, at]));
      ranks.set(name, values.map((value) => (value === "" ? -1 : place.get(value))));
    }
    return ranks.get(name);
  }

  // Columns by what a condition may call them: in any case, and as written where two differ by that.
  const written = Object.keys(readers);
  const columns = new Map([...written.map((n) => [n.toLowerCase(), n]), ...written.map((n) => [n, n])]);
  const unquoted = (text) => text.replace(/"/g, "");

  // A word of the filter that names a column, like loss<2 or "meta.paper size"=A4, as a test of
  // rows; or null. Within quotes an operator belongs to the name.
  function condition(word) {
    const [, left = "", sign, rest] = /^((?:"[^"]*"|[^"<>=!]|!(?!=))+)(<=|>=|!=|=|<|>)(.+)$/.exec(word) ?? [];
    const name = columns.get(unquoted(left)) ?? columns.get(unquoted(left).toLowerCase());
    if (name === undefined) return null;
    const wanted = unquoted(rest), text = wanted.toLowerCase();
    const when = TIMES.has(name) ? Date.parse(wanted) / 1000 : NaN;
    const bound = Number.isNaN(when) ? Number(wanted) : when;
    return (row) => {
      const value = get(name, row), number = typeof value === "number";
      const same = number ? value === bound : String(value ?? "").toLowerCase().includes(text);
      if (sign === "=" || sign === "!=") return same === (sign === "=");
      return number && ((sign[0] === "<" ? value < bound : value > bound) || (sign[1] === "=" && same));
    };
  }

  function select() {
    const parts = state.query.match(/(?:[^\s"]|"[^"]*"?)+/g) ?? [];
    const conditions = parts.map(condition);
    const words = parts.filter((_, at) => !conditions[at]).map((word) => unquoted(word).toLowerCase());
    const tests = conditions.filter(Boolean);
    const all = words.length ? texts() : null;
    order = [];
    for (let row = 0; row < count; row++) {
      if (state.status && (state.status === "bad" ? get("status", row) === "ok" : get("status", row) !== state.status)) continue;
      if (state.style && get("style", row) !== state.style) continue;
      if (all && !words.every((word) => all[row].includes(word))) continue;
      if (!tests.every((test) => test(row))) continue;
      order.push(row);
    }
    const rank = ranksBy(state.sort), sign = state.down ? -1 : 1;
    order.sort((a, b) => (rank[a] < 0) - (rank[b] < 0) || sign * (rank[a] - rank[b]) || a - b);
  }

  // --- the list: only rows in view are in the page ---

  const list = $("list");
  const drawn = new Map(); // place in `order` -> element
  let current = -1; // place that the keyboard is at
  let height = 260;

  function measure() {
    const width = list.clientWidth;
    const phone = matchMedia("(max-width: 720px)").matches;
    const narrow = matchMedia("(max-width: 980px)").matches;
    const picture = phone ? width * 0.64 : (width - (narrow ? 190 + 48 : 250 + 84)) / 3;
    height = phone ? Math.round(picture * 0.72 + 68 + 8 + 24) : Math.round(Math.max(150, Math.min(picture * 0.7, 330)) + 34);
    list.style.height = `${order.length * height}px`;
  }

  function paint() {
    const top = -list.getBoundingClientRect().top;
    const first = Math.max(0, Math.floor(top / height) - 2);
    const last = Math.min(order.length, Math.ceil((top + innerHeight) / height) + 2);
    for (const [place, element] of drawn) {
      const focused = place === current && element.contains(document.activeElement);
      if ((place < first || place >= last) && !focused) {
        element.remove();
        drawn.delete(place);
      }
    }
    for (let place = first; place < last; place++) {
      if (drawn.has(place)) continue;
      const element = pair(place);
      const after = [...drawn.keys()].filter((p) => p > place).sort((a, b) => a - b)[0];
      list.insertBefore(element, after === undefined ? null : drawn.get(after));
      drawn.set(place, element);
    }
  }

  let waiting = false;
  function repaint() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; paint(); });
  }

  function redraw() {
    for (const element of drawn.values()) element.remove();
    drawn.clear();
    measure();
    paint();
  }

  function picture(name, alt, instead) {
    if (!name) return make("div", { className: "frame", role: "img", "aria-label": `${alt}: ${instead}` }, instead);
    const image = make("img", { alt, decoding: "async", draggable: false });
    image.onerror = () => image.replaceWith(picture("", alt, "no thumbnail"));
    image.src = thumbAddress(name);
    return image;
  }

  function pair(place) {
    const row = order[place], name = title(row), ok = get("status", row) === "ok";
    const styles = String(thumb.style(row)).split("|");
    const photo = picture(thumb.content(row), `Photograph ${stem(get("content", row))}`, "cannot be shown");
    const style = picture(styles[0], `Style ${styleName(get("style", row))}`, "cannot be shown");
    let result;
    if (ok || thumb.result(row)) {
      result = picture(thumb.result(row), `Result of ${name}`, "the picture is gone");
    } else {
      result = make("div", { className: "frame bad" }, make("b", { textContent: get("status", row) }), get("error_type", row) ?? "");
    }
    const facts = make("div", { className: "facts" }, make("h3", { textContent: name }));
    const line = (text, kind = "") => text && facts.append(make("p", { className: kind, textContent: text }));
    const id = String(get("pair_id", row));
    line(id === name ? `${stem(get("content", row))} in the style of ${styleName(get("style", row))}` : id);
    if (!ok) line(`${ok || !thumb.result(row) ? "" : `${get("status", row)}; an earlier picture stands. `}${get("error_message", row) ?? ""}`, "why");
    const seconds = get("seconds", row);
    line([ok && get("width", row) ? `${get("width", row)} × ${get("height", row)}` : "", seconds === null ? "" : duration(seconds), get("device", row)].filter(Boolean).join(", "));
    if (!["row", "pair_id", "content", "style", "status", "seconds", "device", "width", "height"].includes(state.sort)) {
      const value = shown(state.sort, get(state.sort, row));
      line(`${LABELS[state.sort] ?? state.sort}: ${value || "none"}`, "by");
    }
    const drawing = ok ? spark(row) : null;
    if (drawing) facts.append(drawing);
    const more = styles.length > 1 ? make("span", { className: "more", textContent: `+${styles.length - 1}` }) : null;
    const element = make("article", { className: "pair", tabIndex: place === Math.max(current, 0) ? 0 : -1, role: "listitem" },
      make("div", { className: "cell photo" }, photo), make("div", { className: "cell style" }, style, more),
      make("div", { className: "cell painted" }, result), facts);
    element.setAttribute("aria-label", `${name}, ${ok ? "painted" : get("status", row)}; Enter shows it large`);
    element.setAttribute("aria-posinset", place + 1);
    element.setAttribute("aria-setsize", order.length);
    element.dataset.row = row;
    element.style.height = `${height}px`;
    element.style.transform = `translateY(${place * height}px)`;
    element.onclick = () => { current = place; open(place); };
    element.onfocus = () => { mark(place); };
    return element;
  }

  function mark(place) {
    drawn.get(current)?.setAttribute("tabindex", "-1");
    current = place;
    drawn.get(current)?.setAttribute("tabindex", "0");
  }

  function reveal(place) {
    const bar = document.querySelector(".bar").offsetHeight;
    const top = list.getBoundingClientRect().top + place * height;
    if (top < bar) scrollBy({ top: top - bar - 8 });
    else if (top + height > innerHeight) scrollBy({ top: top + height - innerHeight + 8 });
  }

  function move(place) {
    if (!order.length) return;
    place = Math.max(0, Math.min(order.length - 1, place));
    reveal(place);
    paint();
    mark(place);
    drawn.get(place)?.focus({ preventScroll: true });
  }

  function update(keep = false) {
    select();
    current = -1;
    $("count").textContent = order.length === count ? plural(count, "pair") : `${number.format(order.length)} of ${number.format(count)}`;
    $("empty").hidden = order.length > 0;
    for (const chip of $("status").children) chip.setAttribute("aria-pressed", String(chip.dataset.status === state.status));
    $("direction").textContent = state.down ? "↓" : "↑";
    $("direction").title = state.down ? "Descending" : "Ascending";
    $("direction").setAttribute("aria-pressed", String(state.down));
    if (!keep) {
      const top = list.getBoundingClientRect().top + scrollY - document.querySelector(".bar").offsetHeight - 60;
      if (scrollY > top) scrollTo({ top: Math.max(0, top) });
    }
    redraw();
  }

  // --- one pair, large ---

  const dialog = $("detail"), compare = $("compare"), slider = $("slider");
  let plots = [];

  function setSlider(value) {
    slider.value = String(value);
    compare.style.setProperty("--at", `${slider.value}%`);
    compare.querySelector(".left").classList.toggle("faint", slider.value < 14);
    compare.querySelector(".right").classList.toggle("faint", slider.value > 86);
  }

  // The picture itself, and its thumbnail where the browser cannot show that.
  function large(image, path, small, alt) {
    image.alt = alt;
    image.style.background = small ? `center / 100% 100% url(${thumbAddress(small)})` : "";
    const choices = [address(path), thumbAddress(small)].filter(Boolean);
    image.hidden = !choices.length;
    image.onerror = () => { if (choices.length) image.src = choices.shift(); else image.hidden = true; };
    image.onload = () => { image.style.background = ""; };
    if (choices.length) image.src = choices.shift();
    else image.removeAttribute("src");
  }

  function open(place) {
    const row = order[place], name = title(row), ok = get("status", row) === "ok";
    $("d-name").textContent = name;
    $("d-place").textContent = `${number.format(place + 1)} of ${number.format(order.length)}`;
    $("previous").disabled = place === 0;
    $("next").disabled = place === order.length - 1;
    $("failure").hidden = ok;
    $("failure").replaceChildren(make("b", { textContent: [get("status", row), get("error_type", row)].filter(Boolean).join(": ") }), get("error_message", row) ?? "");
    const there = Boolean(thumb.result(row));
    compare.classList.toggle("single", !there);
    large($("d-result"), there ? get("output", row) : "", thumb.result(row), `Result of ${name}`);
    large($("d-photo"), thumb.content(row) ? contentPath(row) : "", thumb.content(row), `Photograph ${stem(get("content", row))}`);
    compare.parentElement.hidden = !there && !thumb.content(row);
    shape(get("width", row), get("height", row));
    drawStyles(row);
    drawFacts(row);
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
    drawPlots(row);
    dialog.dataset.place = place;
    if (there) slider.focus({ preventScroll: true });
    else $("d-name").focus({ preventScroll: true });
  }

  function shape(width, height) {
    const set = (w, h) => { compare.style.setProperty("--w", w); compare.style.setProperty("--h", h); };
    const photo = $("d-photo");
    if (width && height) return set(width, height);
    if (photo.complete && photo.naturalWidth) set(photo.naturalWidth, photo.naturalHeight);
    photo.addEventListener("load", () => set(photo.naturalWidth, photo.naturalHeight), { once: true });
  }

  function drawStyles(row) {
    const paths = String(stylePaths(row)).split("|"), small = String(thumb.style(row)).split("|");
    $("d-styles").replaceChildren(...String(get("style", row) ?? "").split("|").map((written, at) => {
      const image = make("img", {});
      const caption = make("figcaption", { textContent: `Style: ${stem(written)}${small[at] ? "" : " (cannot be shown)"}` });
      if (small[at]) large(image, paths[at], small[at], `Style ${stem(written)}`);
      image.style.background = "";
      return make("figure", {}, small[at] ? image : null, caption);
    }));
  }

  const FIRST = ["pair_id", "status", "content", "style", "output", "width", "height", "loss", "content_loss", "style_loss", "tv_loss", "evaluations", "stop_reason", "seconds", "device", "dtype", "finished_at"];
  function drawFacts(row) {
    const entries = [];
    const add = (name) => {
      const text = shown(name, get(name, row));
      if (text) entries.push(make("dt", { textContent: name.replace(/_/g, " ") }), make("dd", { textContent: text }));
    };
    const rest = Object.keys(readers).filter((name) => !FIRST.includes(name) && !["error_type", "error_message", "generated_id", "steps"].includes(name));
    FIRST.forEach(add);
    entries.push(make("div", { className: "break" }));
    rest.filter((name) => name.startsWith("meta.")).forEach(add);
    rest.filter((name) => !name.startsWith("meta.")).forEach(add);
    $("facts").replaceChildren(...entries);
  }

  function drawPlots(row) {
    for (const plot of plots) plot.destroy();
    plots = [];
    $("plots").replaceChildren();
    ["Loss", "Content loss", "Style loss"].forEach((title, which) => {
      const found = curve(row, which);
      if (!found || found.steps.length < 2) return;
      const value = make("span"), box = make("div", { className: "plot" }, make("h3", { textContent: title }, value));
      $("plots").append(box);
      const kept = get(["loss", "content_loss", "style_loss"][which], row);
      const last = kept > 0 ? Math.log10(kept) : found.logs.filter((v) => v !== null).at(-1);
      const say = (log) => { value.textContent = log === null || log === undefined ? "" : figure(10 ** log); };
      say(last);
      box.setAttribute("role", "img");
      box.setAttribute("aria-label", `${title} over ${found.steps.at(-1)} evaluations, ${figure(10 ** found.logs.find((v) => v !== null))} to ${figure(10 ** last)}`);
      plots.push(plot(box, found, say, last));
    });
  }

  function plot(box, found, say, last) {
    const style = getComputedStyle(document.documentElement);
    const ink = (name) => style.getPropertyValue(name).trim();
    const axis = { stroke: ink("--quiet"), font: "11px system-ui, sans-serif", grid: { show: false }, ticks: { show: false } };
    return new uPlot({
      width: Math.max(160, box.clientWidth), height: 136, legend: { show: false }, padding: [8, 12, 0, 0],
      cursor: { y: false, drag: { x: false, y: false }, points: { size: 7 } },
      scales: { x: { time: false }, y: { range: (_, low, high) => (high - low < 1e-9 ? [low - 0.5, high + 0.5] : [low - (high - low) * 0.06, high + (high - low) * 0.06]) } },
      axes: [{ ...axis, size: 24, space: 60 }, { ...axis, size: 50, space: 34, grid: { stroke: ink("--line"), width: 1 }, values: (_, logs) => logs.map((log) => tick(10 ** log)) }],
      series: [{}, { stroke: ink("--accent"), width: 1.75, points: { show: false } }],
      hooks: { setCursor: [(self) => say(self.cursor.idx === null || self.cursor.idx === undefined ? last : found.logs[self.cursor.idx])] },
    }, [found.steps, found.logs], box);
  }

  function step(by) {
    const place = Number(dialog.dataset.place) + by;
    if (place >= 0 && place < order.length) { current = place; open(place); }
  }

  dialog.addEventListener("close", () => { move(Number(dialog.dataset.place)); save(); });
  $("close").onclick = () => dialog.close();
  $("previous").onclick = () => step(-1);
  $("next").onclick = () => step(1);
  slider.oninput = () => setSlider(slider.value);

  function drag(event) {
    const box = compare.getBoundingClientRect();
    setSlider(Math.round(Math.max(0, Math.min(100, (100 * (event.clientX - box.left)) / box.width))));
  }
  compare.addEventListener("pointerdown", (event) => {
    if (event.button || compare.classList.contains("single")) return;
    event.preventDefault();
    compare.setPointerCapture(event.pointerId);
    slider.focus({ preventScroll: true });
    drag(event);
  });
  compare.addEventListener("pointermove", (event) => { if (compare.hasPointerCapture(event.pointerId)) drag(event); });

  // --- keyboard ---

  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const handled = dialog.open ? dialogKey(event) : listKey(event);
    if (handled) event.preventDefault();
  });

  function dialogKey({ key, shiftKey }) {
    if (key === "ArrowUp" || key === "ArrowDown") step(key === "ArrowUp" ? -1 : 1);
    else if (key === "ArrowLeft" || key === "ArrowRight") setSlider(Number(slider.value) + (key === "ArrowLeft" ? -1 : 1) * (shiftKey ? 10 : 2));
    else return false;
    return true;
  }

  function listKey({ key, target }) {
    const query = $("query"), typing = target === query;
    if (key === "/" && !typing) { query.focus(); query.select(); return true; }
    if (key === "Escape" && typing) {
      if (query.value) { query.value = state.query = ""; update(); } else query.blur();
      return true;
    }
    if (["SELECT", "SUMMARY", "BUTTON", "A"].includes(target.tagName)) return false;
    if (key === "ArrowDown") { move(current < 0 ? firstInView() : current + 1); return true; }
    if (typing) return false;
    if (key === "ArrowUp") { move(current < 0 ? 0 : current - 1); return true; }
    if (key === "Home") { move(0); return true; }
    if (key === "End") { move(order.length - 1); return true; }
    if (key === "Enter" && current >= 0) { open(current); return true; }
    return false;
  }

  function firstInView() {
    return Math.max(0, Math.ceil((document.querySelector(".bar").offsetHeight - list.getBoundingClientRect().top) / height));
  }

  // --- head, filters ---

  function counts(name) {
    const found = new Map();
    for (let row = 0; row < count; row++) found.set(get(name, row), (found.get(get(name, row)) ?? 0) + 1);
    return found;
  }

  function drawHead() {
    const { rows, per_hour, devices, slowest, causes, wall } = data.totals;
    const bad = causes.reduce((sum, [, , n]) => sum + n, 0);
    $("name").textContent = data.name;
    const parts = [make("b", { textContent: `${number.format(rows - bad)} painted` })];
    if (bad) parts.push(make("span", { className: "bad", textContent: `${number.format(bad)} failed` }));
    if (per_hour) parts.push(`${number.format(per_hour < 20 ? per_hour : Math.round(per_hour))} pairs an hour`);
    if (wall) parts.push(`${duration(wall)} in all`);
    if (data.part) parts.push(make("span", { className: "part", textContent: data.part }));
    if (stamp) parts.push(make("span", { className: "live", textContent: "follows the run" }));
    $("summary").replaceChildren(...parts.flatMap((part, at) => (at ? ["  ·  ", part] : [part])));
    const longest = Math.max(...devices.map(([, , seconds]) => seconds), 1e-9);
    $("devices").replaceChildren(...devices.map(([device, n, seconds]) => {
      const bar = make("i");
      bar.style.width = `${(100 * seconds) / longest}%`;
      return make("div", { className: "device" }, make("p", {}, make("span", { textContent: device }), make("span", { textContent: `${duration(seconds)}, ${plural(n, "pair")}` })), bar);
    }));
    $("slowest").replaceChildren(...slowest.map((row) => entry(title(row), duration(get("seconds", row)), () => show(row))));
    $("causes").replaceChildren(...causes.map(([status, kind, n]) => entry(kind ? `${status}: ${kind}` : status, number.format(n), () => {
      Object.assign(state, { status, query: kind, style: "" });
      fill();
      update();
      list.scrollIntoView();
    })));
    if (!causes.length) $("causes").replaceChildren(make("li", { textContent: "none" }));
    if (!devices.length) $("devices").textContent = "nothing painted yet";
  }

  function entry(text, right, action) {
    return make("li", {}, make("button", { type: "button", onclick: action }, make("span", { textContent: text }), make("span", { textContent: right })));
  }

  function show(row) {
    if (!order.includes(row)) { Object.assign(state, { query: "", status: "", style: "" }); fill(); update(); }
    current = order.indexOf(row);
    open(current);
  }

  function drawFilters() {
    const statuses = counts("status"), names = { ok: "Painted", failed: "Failed", timeout: "Timed out", poison: "Poison" };
    const place = (status) => ["ok", "failed", "timeout", "poison"].indexOf(status);
    const chips = [["", "All", count], ...[...statuses].sort(([a], [b]) => place(a) - place(b)).map(([s, n]) => [s, names[s] ?? s, n])];
    $("status").replaceChildren(...chips.map(([status, label, n]) => make("button", { type: "button", "data-status": status,
      textContent: `${label} ${number.format(n)}`, onclick: () => { state.status = status; update(); } })));
    const styles = [...counts("style")].sort(([a], [b]) => collator.compare(styleName(a), styleName(b)));
    $("style").replaceChildren(make("option", { value: "", textContent: "all styles" }),
      ...styles.map(([style, n]) => make("option", { value: style, textContent: `${styleName(style)} (${number.format(n)})`, title: style })));
    const first = Object.keys(LABELS).filter((name) => name in readers);
    const rest = Object.keys(readers).filter((name) => !first.includes(name)).sort(collator.compare);
    const option = (name) => make("option", { value: name, textContent: LABELS[name] ?? name });
    $("sort").replaceChildren(...first.map(option), make("optgroup", { label: "All columns" }, ...rest.map(option)));
    $("query").oninput = () => { state.query = $("query").value; update(); };
    $("style").onchange = () => { state.style = $("style").value; update(); };
    $("sort").onchange = () => { state.sort = $("sort").value; update(); };
    $("direction").onclick = () => { state.down = !state.down; update(); };
    $("clear").onclick = () => { Object.assign(state, { query: "", status: "", style: "" }); fill(); update(); $("query").focus(); };
  }

  function fill() {
    if (state.style && !counts("style").has(state.style)) state.style = "";
    if (!(state.sort in readers)) state.sort = "row";
    $("query").value = state.query;
    $("style").value = state.style;
    $("sort").value = state.sort;
  }

  // --- staying as it was when the page is loaded again; following a run ---

  const stamp = document.querySelector("meta[name=stylize-watch]").content;
  const KEY = `stylize ${location.pathname}`;

  function save() {
    const open = dialog.open ? get("pair_id", order[Number(dialog.dataset.place)]) : "";
    const focus = document.activeElement === $("query") ? $("query").selectionStart : -1;
    try {
      sessionStorage.setItem(KEY, JSON.stringify({ ...state, scroll: scrollY, open, focus, slider: slider.value, totals: $("totals").open }));
    } catch { /* without storage the page begins anew */ }
  }

  function restore() {
    let kept = {};
    try { kept = JSON.parse(sessionStorage.getItem(KEY)) ?? {}; } catch { /* as above */ }
    for (const name of Object.keys(state)) if (typeof kept[name] === typeof state[name]) state[name] = kept[name];
    $("totals").open = Boolean(kept.totals);
    return kept;
  }

  window.stylizeStamp = (found) => {
    if (found === stamp) return;
    save();
    location.reload();
  };

  let busy = 0; // when something was last typed or dragged
  for (const kind of ["keydown", "pointerdown", "pointermove"]) addEventListener(kind, (event) => { if (kind !== "pointermove" || event.buttons) busy = Date.now(); }, true);
  if (stamp) setInterval(() => {
    if (Date.now() - busy < 1500) return;
    const script = make("script", { src: `report/stamp.js?${Date.now()}` });
    script.onload = script.onerror = () => script.remove();
    document.head.append(script);
  }, 2000);

  // --- begin ---

  history.scrollRestoration = "manual";
  drawHead();
  drawFilters();
  const kept = restore();
  setSlider(kept.slider ?? 50);
  fill();
  update(true);
  if (kept.scroll) { scrollTo(0, kept.scroll); paint(); }
  if (kept.focus >= 0) { $("query").focus({ preventScroll: true }); $("query").setSelectionRange(kept.focus, kept.focus); }
  if (kept.open) { const place = order.findIndex((row) => get("pair_id", row) === kept.open); if (place >= 0) { current = place; open(place); } }
  globalThis.requestIdleCallback?.(prepare); // Safari has none
  addEventListener("scroll", repaint, { passive: true });
  addEventListener("resize", () => { redraw(); if (dialog.open) drawPlots(order[Number(dialog.dataset.place)]); });
  addEventListener("pagehide", save);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (dialog.open) drawPlots(order[Number(dialog.dataset.place)]); });
})();
