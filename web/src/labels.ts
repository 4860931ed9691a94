/** What a feature is called. */
import type { Labels } from "./api";
import type { State } from "./state";
import { number, short, token } from "./text";

const side = (id: string) => (id.startsWith("u") ? "up" : "down");

/** The name that somebody gave it, or the tokens at which it is strongest. */
export function nameOf(id: string, state: State, labels?: Labels): string {
  const group = /^g(\d+)/.exec(id);
  if (group) return `▣ ${short(state.groups[Number(group[1])]?.name ?? "", 60)}`;
  const given = state.names[id];
  if (given) return `${id.slice(1)} ${short(given, 60)}`;
  const tokens = labels?.[side(id)][Number(id.slice(1))]?.tokens ?? [];
  return [id.slice(1), ...tokens.map((text) => short(token(text), 16))].join(" ");
}

/** More about it, in words. */
export function detailOf(id: string, labels?: Labels): string {
  const label = labels?.[side(id)][Number(id.slice(1))];
  const where = id.startsWith("u") ? "Upstream" : "Downstream";
  if (!label) return `${where} feature ${id.slice(1)}.`;
  const promotes = label.promotes.length ? ` Promotes ${label.promotes.map((text) => short(token(text), 16)).join(", ")}.` : "";
  return `${where} feature ${id.slice(1)}, active at ${number(100 * label.density)} % of tokens.${promotes}`;
}
