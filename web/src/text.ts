/** Text from people, models and links: every character is seen, and none acts on the others. */

const UNSEEN =
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]|\udb40[\udc00-\udc7f]/g;

function symbol(found: string): string {
  const code = found.codePointAt(0) ?? 0;
  if (code < 0x20) return String.fromCharCode(0x2400 + code);
  return code === 0x7f ? "\u2421" : `[U+${code.toString(16).toUpperCase().padStart(4, "0")}]`;
}

/** A text with symbols or code points in place of the characters that are not seen. */
export const visible = (text: string): string => text.replace(UNSEEN, symbol);

/** A name in one line; of a long one the beginning. */
export function short(text: string, most = 40): string {
  const line = visible(text).replace(/\n/g, "↵");
  const letters = [...line];
  return letters.length <= most ? line : `${letters.slice(0, most - 1).join("")}…`;
}

/** A token as it is shown: an empty one is said to be empty. */
export const token = (text: string): string => (text === "" ? "∅" : text.replace(/ /g, "␣"));

const plain = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });

/** A number in at most four digits. */
export function number(x: number | null | undefined): string {
  if (x === null || x === undefined) return "–";
  if (x !== 0 && Math.abs(x) < 1e-3) return x.toExponential(2);
  return plain.format(x);
}

/** A count. */
export const count = (n: number): string => n.toLocaleString("en");

/** A share in percent. */
export const percent = (x: number): string => `${(100 * x).toFixed(Math.abs(x) < 0.1 ? 2 : 1)} %`;

/** A count with its noun. */
export const some = (n: number, noun: string): string => `${count(n)} ${noun}${n === 1 ? "" : "s"}`;
