"use strict";
const SHOWN = 200, loaded = {};
let all = null, order = [], current = null;
const by = (id) => document.getElementById(id);
const number = (x) => x === null ? "–" : x === 0 ? "0" : Math.abs(x) < 1e-3 ? x.toExponential(1) : Number(x.toPrecision(3)).toString();
const text = (token) => all.vocabulary[token] ?? `#${token}`;

function put(into, tag, content, more = {}) {
  const made = document.createElement(tag);
  if (content !== undefined) made.textContent = content;
  Object.assign(made, more);
  into.append(made);
  return made;
}

function index(content) {
  all = content;
  document.title = all.title;
  by("title").textContent = all.title;
  by("count").textContent = `${all.density.length.toLocaleString("en")} latents, ${all.density.filter((x) => x > 0).length.toLocaleString("en")} of them fire`;
  sort();
  show();
}

function chunk(content) { Object.assign(loaded, content); }

function sort() {
  const last = (value, x) => value === null || all.density[x] === 0 ? Infinity : value;
  const keys = { number: (x) => x, density: (x) => -all.density[x], rare: (x) => last(all.density[x], x), maximum: (x) => -all.maximum[x],
    simple: (x) => last(all.f1[x] === null ? null : -all.f1[x], x), hard: (x) => last(all.f1[x], x) };
  const key = all.density.map((_, x) => keys[by("order").value](x));
  order = [...key.keys()].sort((a, b) => key[a] < key[b] ? -1 : key[a] > key[b] ? 1 : a - b);
}

function list() {
  const place = Math.max(0, order.indexOf(current)), start = Math.max(0, Math.min(place - SHOWN / 2, order.length - SHOWN));
  by("list").replaceChildren();
  for (const x of order.slice(start, start + SHOWN)) {
    const row = put(by("list"), "tr", undefined, { className: x === current ? "here" : "", onclick: () => { location.hash = x; } });
    for (const value of [x, number(all.density[x]), number(all.maximum[x]), number(all.f1[x])]) put(row, "td", value);
  }
  by("list").querySelector(".here")?.scrollIntoView({ block: "nearest" });
}

function histogram(into, octaves) {
  put(into, "h3", "Activations, by powers of two");
  const bars = put(into, "div", undefined, { className: "bars" }), most = Math.max(1, ...octaves);
  octaves.forEach((count, i) => { put(bars, "i", undefined, { title: `2^${all.octaves[i]}: ${count}` }).style.height = `${100 * count / most}%`; });
}

function logits(into, title, tokens, by) {
  const box = put(into, "div");
  put(box, "h3", title);
  const table = put(box, "table");
  tokens.forEach((token, i) => { const row = put(table, "tr"); put(put(row, "td"), "code", text(token)); put(row, "td", number(by[i])); });
}

function edges(into, title, some) {
  const box = put(into, "div");
  put(box, "h3", title);
  const table = put(box, "table");
  for (const edge of some) {
    const row = put(table, "tr");
    put(put(row, "td"), "a", `${edge.site} ${edge.other}`, { href: `../../${encodeURIComponent(edge.site)}/page/index.html#${edge.other}` });
    put(row, "td", number(edge.score));
  }
}

function examples(into, title, some, most) {
  put(into, "h3", title);
  for (const example of some) {
    const line = put(into, "pre");
    example.tokens.forEach((token, i) => {
      const act = example.acts[i], made = put(line, "span", text(token), { title: number(act) });
      if (act > 0) made.style.background = `rgba(224, 112, 45, ${0.15 + 0.85 * Math.min(1, act / most)})`;
      if (example.start + i === example.position) made.className = "at";
    });
  }
}

function draw(x) {
  const latent = loaded[x], into = by("latent");
  into.replaceChildren();
  put(into, "h2", `Latent ${x}`);
  put(into, "p", `fires on ${number(100 * all.density[x])} % of the tokens, up to ${number(all.maximum[x])}`);
  const rules = all.lengths.map((n, i) => `${n} token${n > 1 ? "s" : ""}: F1 ${number(latent.rule_f1[i])}, balanced accuracy ${number(latent.rule_accuracy[i])}`);
  const rule = put(into, "p", `A rule of ${rules.join("; ")}. `, { id: "rule" });
  if (latent.rule_tokens.length) rule.append("One token: ");
  for (const token of latent.rule_tokens) { put(rule, "code", text(token)); rule.append(" "); }
  for (const judged of latent.judged)
    put(into, "p", `${judged.judge?.model ?? "A judge"}: ${judged.explanation ?? "too few examples"} (detection ${number(judged.detection)}, fuzzing ${number(judged.fuzzing)})`);
  const side = put(into, "div", undefined, { className: "side" });
  histogram(put(side, "div"), latent.octaves);
  if (latent.promoted.length) {
    logits(side, "Promotes (logits)", latent.promoted, latent.promoted_by);
    logits(side, "Suppresses", latent.suppressed, latent.suppressed_by);
  }
  for (const [key, title] of [["up", "Strongest edges from"], ["down", "Strongest edges to"]]) {
    const some = latent.edges.filter((edge) => edge.side === key);
    if (some.length) edges(side, title, some);
  }
  for (const [kind, title] of [["top", "Strongest"], ["random", "At random"], ["band", "One at random of each power of two, from weak to strong"]])
    examples(into, title, latent.examples.filter((e) => e.kind === kind), all.maximum[x] || 1);
  document.body.dataset.latent = x;
}

function show() {
  const wanted = Number(location.hash.slice(1));
  current = Number.isInteger(wanted) && wanted >= 0 && wanted < all.density.length ? wanted : 0;
  const x = current;
  list();
  if (x in loaded) { draw(x); return; }
  const script = put(document.head, "script", undefined, { src: `data/${Math.floor(x / all.chunk)}.js` });
  script.onload = () => { if (x === current) draw(x); };
}

document.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step || event.altKey || event.ctrlKey || event.metaKey || event.target.matches("input, select")) return;
  event.preventDefault();
  const next = order[order.indexOf(current) + step];
  if (next !== undefined) location.hash = next;
});
by("order").addEventListener("change", () => { sort(); if (order.length) location.hash = order[0]; list(); });
by("go").addEventListener("change", () => { location.hash = by("go").value; });
window.addEventListener("hashchange", show);
