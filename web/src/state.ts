/** The one state of the page. All of it is in the address, so that a copied address opens the same page. */
import { opening, type Intervention } from "./api";

export interface Group { name: string; members: string[] }
export interface Tried { changes: Intervention[]; text: string; at: number; kl: number }
export type View = "map" | "journey" | "test";
export type Sort = "edges" | "effect" | "density" | "number";

export interface State {
  pair: string; ranking: string; view: View;
  /** Edges on the map; -1: not chosen yet. */
  n: number;
  query: string; sort: Sort;
  /** What the panel is about: a feature, `u12` (upstream) or `d7`; an edge, `u12-d7`; or a group, `g0`. */
  focus: string;
  text: string;
  /** The token that is looked at. */
  at: number;
  /** Local edges of the journey; -1: not chosen yet. */
  local: number;
  /** Features and edges, such as `u12` and `u12-d7`. */
  pins: string[];
  /** The pins of other pairs. */
  others: Record<string, string[]>;
  groups: Group[];
  names: Record<string, string>;
  changes: Intervention[];
  tried: Tried[];
}

export const EMPTY: State = {
  pair: "", ranking: "", view: "map", n: -1, query: "", sort: "edges", focus: "", text: "", at: -1, local: -1,
  pins: [], others: {}, groups: [], names: {}, changes: [], tried: [],
};

const isText = (x: unknown): x is string => typeof x === "string";
const isNumber = (x: unknown): x is number => typeof x === "number" && Number.isInteger(x);
const isRecord = (x: unknown): x is Record<string, unknown> => typeof x === "object" && x !== null && !Array.isArray(x);
const isList = (x: unknown, of: (one: unknown) => boolean): boolean => Array.isArray(x) && x.every(of);
const isNode = (x: unknown): boolean => isText(x) && /^[ud]\d{1,9}$/.test(x);
const isChange = (x: unknown): boolean =>
  isRecord(x) && typeof x.factor === "number" && Object.keys(x).every((key) => ["up", "down", "factor", "positions"].includes(key)) &&
  [x.up, x.down].every((one) => one === undefined || isNumber(one)) && (x.up !== undefined || x.down !== undefined) &&
  (x.positions === undefined || isList(x.positions, isNumber));

const isPins = (x: unknown): boolean => isList(x, (one) => isText(one) && /^(u\d{1,9}|d\d{1,9}|u\d{1,9}-d\d{1,9})$/.test(one));

/** What each part of an address must be; what is not is left out, since anybody can write an address. */
const CHECKS: { [K in keyof State]: (x: unknown) => boolean } = {
  pair: isText, ranking: isText, view: (x) => x === "map" || x === "journey" || x === "test", n: isNumber, query: isText,
  sort: (x) => ["edges", "effect", "density", "number"].includes(x as string),
  focus: (x) => isText(x) && /^$|^[udg]\d{1,9}$|^u\d{1,9}-d\d{1,9}$/.test(x), text: isText, at: isNumber, local: isNumber,
  pins: isPins, others: (x) => isRecord(x) && Object.values(x).every(isPins),
  groups: (x) => isList(x, (one) => isRecord(one) && isText(one.name) && isList(one.members, isNode)),
  names: (x) => isRecord(x) && Object.entries(x).every(([key, value]) => isNode(key) && isText(value)),
  changes: (x) => isList(x, isChange),
  tried: (x) => isList(x, (one) => isRecord(one) && isText(one.text) && isNumber(one.at) && typeof one.kl === "number" && isList(one.changes, isChange)),
};

/** The address of a state: every part that differs from the empty page. */
export function write(state: State): string {
  const parts = new URLSearchParams();
  for (const [key, value] of Object.entries(state)) {
    const text = typeof value === "string" ? value : JSON.stringify(value);
    const usual = EMPTY[key as keyof State];
    if (text !== (typeof usual === "string" ? usual : JSON.stringify(usual))) parts.set(key, text);
  }
  return parts.toString();
}

/** The state of an address. */
export function read(hash: string): State {
  const found: Record<string, unknown> = { ...EMPTY };
  const parts = new URLSearchParams(hash.replace(/^#/, ""));
  for (const key of Object.keys(EMPTY) as (keyof State)[]) {
    const text = parts.get(key);
    if (text === null) continue;
    try {
      const value: unknown = typeof EMPTY[key] === "string" ? text : JSON.parse(text);
      if (CHECKS[key](value)) found[key] = value;
    } catch {
      continue; // half an address
    }
  }
  return found as unknown as State;
}

let current = read(location.hash || opening);
let listen: (state: State) => void = () => undefined;

export const state = (): State => current;

/** Whether the address will follow once the page is drawn. */
let follows = false;

/** The address of the state as it is now. */
function follow(): void {
  follows = false;
  history.replaceState(null, "", `#${write(current)}`);
}

/** The whole address of the page, with its state. */
export function address(): URL {
  follow();
  return new URL(location.href);
}

/** Change some parts of the state; the page and its address follow. */
export function set(patch: Partial<State>): void {
  current = { ...current, ...patch };
  listen(current);
  if (!follows) requestAnimationFrame(() => setTimeout(follow)); // an address that is written first delays the drawing
  follows = true;
}

/** Call this at every change, also when the address is edited by hand. */
export function onChange(call: (state: State) => void): void {
  listen = call;
  addEventListener("hashchange", () => {
    current = read(location.hash);
    listen(current);
  });
}

export const edgeId = (up: number, down: number): string => `u${up}-d${down}`;

/** Turn to another pair. What was pinned of this one is pinned again when the page comes back to it. */
export function choosePair(pair: string): void {
  const { [pair]: pins = [], ...others } = { ...current.others, ...(current.pins.length ? { [current.pair]: current.pins } : {}) };
  set({ pair, ranking: "", pins, others, groups: [], names: {}, changes: [], focus: "", n: -1, local: -1 });
}

/** Pin what is not pinned, and the other way round. */
export function pin(id: string): void {
  const { pins } = current;
  set({ pins: pins.includes(id) ? pins.filter((other) => other !== id) : [...pins, id] });
}

/** What is pinned, as the engine takes it. */
export function pinned(pins: string[]): { edges: [number, number][]; up: number[]; down: number[] } {
  const edges = pins.flatMap((id) => {
    const match = /^u(\d+)-d(\d+)$/.exec(id);
    return match ? [[Number(match[1]), Number(match[2])] as [number, number]] : [];
  });
  const of = (end: string) => pins.filter((id) => id.startsWith(end) && !id.includes("-")).map((id) => Number(id.slice(1)));
  return { edges, up: of("u"), down: of("d") };
}
