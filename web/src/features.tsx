/** The report's page of an SAE's features: a list, and the card of one. It opens from disk, and loads its data as scripts
 * that call `index` and `chunk`. */
import { render } from "preact";
import { Card, type CardContent } from "./card";
import "./features.css";
import { count, number } from "./text";

interface Index {
  title: string; chunk: number; octaves: number[]; lengths: number[]; density: number[]; maximum: number[]; f1: (number | null)[];
  vocabulary: Record<number, string>;
}

const SHOWN = 200;
const loaded: Record<number, CardContent> = {};
const by = <T extends HTMLElement>(id: string) => document.getElementById(id) as T;
let all: Index, order: number[] = [], current = 0;

const KEYS: Record<string, (x: number) => number> = {
  number: (x) => x, density: (x) => -all.density[x]!, rare: (x) => last(all.density[x]!, x), maximum: (x) => -all.maximum[x]!,
  simple: (x) => last(negative(all.f1[x]!), x), hard: (x) => last(all.f1[x]!, x),
};
const negative = (value: number | null) => (value === null ? null : -value);
const last = (value: number | null, x: number) => (value === null || all.density[x] === 0 ? Infinity : value);

function sort(): void {
  const key = all.density.map((_, x) => KEYS[by<HTMLSelectElement>("order").value]!(x));
  order = [...key.keys()].sort((a, b) => (key[a]! < key[b]! ? -1 : key[a]! > key[b]! ? 1 : a - b));
}

function list(): void {
  const place = Math.max(0, order.indexOf(current)), start = Math.max(0, Math.min(place - SHOWN / 2, order.length - SHOWN));
  render(
    <>{order.slice(start, start + SHOWN).map((x) => (
      <tr key={x} class={x === current ? "here" : ""} onClick={() => { location.hash = String(x); }}>
        {[x, number(all.density[x]), number(all.maximum[x]), number(all.f1[x])].map((value, i) => <td key={i}>{value}</td>)}
      </tr>
    ))}</>, by("list"));
  by("list").querySelector(".here")?.scrollIntoView({ block: "nearest" });
}

function draw(x: number): void {
  render(
    <>
      <h2>Latent {x}</h2>
      <Card key={x} card={loaded[x]!} density={all.density[x]!} maximum={all.maximum[x]!} octaves={all.octaves} lengths={all.lengths}
        text={(id) => all.vocabulary[id] ?? `#${id}`}
        page={(edge) => `../../${encodeURIComponent(edge.site)}/page/index.html#${edge.other}`} />
    </>, by("latent"));
  document.body.dataset.latent = String(x);
}

function show(): void {
  const wanted = Number(location.hash.slice(1));
  const x = Number.isInteger(wanted) && wanted >= 0 && wanted < all.density.length ? wanted : 0;
  current = x;
  list();
  if (x in loaded) return draw(x);
  const script = document.createElement("script");
  script.src = `data/${Math.floor(x / all.chunk)}.js`;
  script.onload = () => x === current && draw(x);
  document.head.append(script);
}

Object.assign(globalThis, {
  index(content: Index) {
    all = content;
    document.title = all.title;
    by("title").textContent = all.title;
    by("count").textContent = `${count(all.density.length)} latents, ${count(all.density.filter((x) => x > 0).length)} of them fire`;
    sort();
    show();
  },
  chunk: (content: Record<number, CardContent>) => Object.assign(loaded, content),
});

document.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step || event.altKey || event.ctrlKey || event.metaKey || (event.target as Element).matches("input, select")) return;
  event.preventDefault();
  const next = order[order.indexOf(current) + step];
  if (next !== undefined) location.hash = String(next);
});
by("order").addEventListener("change", () => {
  sort();
  if (order.length) location.hash = String(order[0]);
  list();
});
by("go").addEventListener("change", () => { location.hash = by<HTMLInputElement>("go").value; });
addEventListener("hashchange", show);
