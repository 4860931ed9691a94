/** Features in columns and the edges between them, as one drawing. */
import { linkHorizontal } from "d3-shape";
import { memo } from "preact/compat";
import { useMemo, useRef, useState } from "preact/hooks";
import { useWidth } from "./hooks";

export interface Node { id: string; label: string; detail: string; pinned?: boolean }
export interface Column { title: string; nodes: Node[]; note?: string }
export interface Link { from: string; to: string; weight: number; negative?: boolean }

const ROW = 24, TOP = 34, LEVELS = 4, GAP = 0.34;
const curve = linkHorizontal<unknown, [number, number]>().source((d) => (d as [number, number][])[0]!).target((d) => (d as [number, number][])[1]!);

interface Place { x: number; y: number; width: number }

/** Where every node stands: columns of equal width with room for edges between. */
function layout(columns: Column[], width: number): Map<string, Place> {
  const places = new Map<string, Place>();
  const gap = (GAP * width) / Math.max(1, columns.length - 1) / 1.2;
  const own = (width - gap * (columns.length - 1)) / columns.length;
  columns.forEach((column, c) =>
    column.nodes.forEach((node, row) => places.set(node.id, { x: c * (own + gap), y: TOP + row * ROW, width: own })));
  return places;
}

function path(link: Link, places: Map<string, Place>): string {
  const from = places.get(link.from), to = places.get(link.to);
  if (!from || !to) return "";
  return curve([[from.x + from.width, from.y + ROW / 2], [to.x, to.y + ROW / 2]]) ?? "";
}

/** All edges in a few paths: stronger ones are drawn wider. */
const Links = memo(({ links, places }: { links: Link[]; places: Map<string, Place> }) => {
  const most = Math.max(...links.map((link) => link.weight), 1e-30);
  const parts = new Map<string, string[]>();
  for (const link of links) {
    const level = Math.min(LEVELS - 1, Math.floor(LEVELS * Math.sqrt(link.weight / most)));
    const kind = `${link.negative ? "negative " : ""}level${level}`;
    parts.set(kind, [...(parts.get(kind) ?? []), path(link, places)]);
  }
  return <>{[...parts].map(([kind, d]) => <path key={kind} class={`link ${kind}`} d={d.join("")} />)}</>;
});

export function Columns({ columns, links, focus, label, onFocus, onPin }: {
  columns: Column[]; links: Link[]; focus: string; label: string; onFocus: (id: string) => void; onPin: (id: string) => void;
}) {
  const [box, width] = useWidth();
  const [hot, setHot] = useState("");
  const svg = useRef<SVGSVGElement>(null);
  const places = useMemo(() => layout(columns, width), [columns, width]);
  const base = useMemo(() => <Links links={links} places={places} />, [links, places]);
  const rows = Math.max(1, ...columns.map((column) => column.nodes.length));
  const notes = columns.some((column) => column.note);
  const height = TOP + rows * ROW + (notes ? 44 : 8);
  const ids = columns.map((column) => column.nodes.map((node) => node.id));
  const active = places.has(focus) ? focus : ids.flat()[0] ?? "";
  const lit = hot || (places.has(focus) ? focus : "");
  const near = useMemo(() => {
    const own = links.filter((link) => link.from === lit || link.to === lit);
    return { own, ids: new Set(own.flatMap((link) => [link.from, link.to])) };
  }, [links, lit]);

  function move(from: string, key: string): boolean {
    const c = ids.findIndex((column) => column.includes(from)), r = ids[c]?.indexOf(from) ?? 0;
    const step = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] }[key];
    if (!step) return false;
    const column = ids[c + step[0]!] ?? [];
    const next = step[0] === 0 ? column[r + step[1]!] : column[Math.min(r, column.length - 1)];
    if (next) (svg.current?.querySelector(`[data-id="${CSS.escape(next)}"]`) as SVGGElement | null)?.focus();
    return true;
  }

  function onKeyDown(event: KeyboardEvent) {
    const id = (event.target as Element).closest("[data-id]")?.getAttribute("data-id");
    if (!id || event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === "Enter" || event.key === " ") onFocus(id);
    else if (event.key === "p") onPin(id);
    else if (!move(id, event.key)) return;
    event.preventDefault();
  }

  const enter = (event: Event) => setHot((event.target as Element).closest("[data-id]")?.getAttribute("data-id") ?? "");
  const gap = width ? places.get(ids[0]?.[0] ?? "")?.width ?? 0 : 0;
  return (
    <div class="drawing" ref={box}>
      {width > 0 && (
        <svg ref={svg} class={`columns${lit ? " lit" : ""}`} width={width} height={height} viewBox={`0 0 ${width} ${height}`} role="group"
          aria-label={label} onKeyDown={onKeyDown} onPointerOver={enter} onPointerLeave={() => setHot("")} onFocusIn={enter} onFocusOut={() => setHot("")}>
          <g class="all">{base}</g>
          <g class="near">{near.own.map((link) => <path key={`${link.from} ${link.to}`} class={`link hot${link.negative ? " negative" : ""}`} d={path(link, places)} />)}</g>
          {columns.map((column, c) => {
            const x = places.get(column.nodes[0]?.id ?? "")?.x ?? (c * width) / columns.length;
            return (
              <g key={c}>
                <text class="title" x={x} y={20}>{column.title}</text>
                {column.nodes.map((node) => {
                  const place = places.get(node.id)!;
                  const letters = Math.max(3, Math.floor((place.width - 14) / 6.9));
                  const shown = [...node.label];
                  return (
                    <g key={node.id} class={`node${node.pinned ? " pinned" : ""}${focus === node.id ? " focus" : ""}${near.ids.has(node.id) ? " near" : ""}`}
                      data-id={node.id} role="button" tabIndex={node.id === active ? 0 : -1} aria-label={`${node.label}. ${node.detail}${node.pinned ? " Pinned." : ""}`}
                      aria-pressed={focus === node.id} onClick={() => onFocus(node.id)}>
                      <rect x={place.x} y={place.y + 1} width={place.width} height={ROW - 2} rx={4} />
                      <text x={place.x + 7} y={place.y + 16}>{shown.length > letters ? `${shown.slice(0, letters - 1).join("")}…` : node.label}</text>
                      <title>{`${node.label}\n${node.detail}`}</title>
                    </g>
                  );
                })}
                {column.note && <text class="note" x={x} y={TOP + column.nodes.length * ROW + 18}>{wrapped(column.note, gap).map((line, i) => <tspan key={i} x={x} dy={i ? 15 : 0}>{line}</tspan>)}</text>}
              </g>
            );
          })}
        </svg>
      )}
    </div>
  );
}

/** A note in lines of a width. */
function wrapped(note: string, width: number): string[] {
  const most = Math.max(12, Math.floor(width / 6.2)), lines = [""];
  for (const word of note.split(" ")) {
    const last = lines[lines.length - 1]!;
    if (last && last.length + word.length >= most) lines.push(word);
    else lines[lines.length - 1] = last ? `${last} ${word}` : word;
  }
  return lines;
}
