/** Taking the page elsewhere: its address, pictures of what is drawn, the graph as JSON, a folder that opens from disk. */
import { useState } from "preact/hooks";
import { ask, asked, live } from "./api";
import { address, type State } from "./state";

const STYLES = ["fill", "stroke", "stroke-width", "stroke-opacity", "stroke-dasharray", "fill-opacity", "font-family", "font-size", "font-weight"];

/** The drawing as an SVG file: styles stand in its elements. */
export function svgText(): string | null {
  const drawn = document.querySelector<SVGSVGElement>("svg.columns");
  if (!drawn) return null;
  const copy = drawn.cloneNode(true) as SVGSVGElement;
  const [own, copied] = [drawn, copy].map((one) => [one, ...one.querySelectorAll<SVGElement>("*")]) as [SVGElement[], SVGElement[]];
  own.forEach((element, i) => {
    const style = getComputedStyle(element);
    for (const name of STYLES) copied[i]!.setAttribute(name, style.getPropertyValue(name));
    for (const name of ["class", "role", "tabindex", "aria-pressed", "aria-label"]) copied[i]!.removeAttribute(name);
  });
  copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  const back = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  for (const [name, value] of [["width", "100%"], ["height", "100%"], ["fill", getComputedStyle(document.body).backgroundColor]] as const) back.setAttribute(name, value);
  copy.prepend(back);
  return new XMLSerializer().serializeToString(copy);
}

/** The drawing as a picture, two pixels a point. */
export async function pngOf(svg: string): Promise<Blob> {
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(svg)}`;
  await image.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [2 * image.width, 2 * image.height];
  canvas.getContext("2d")!.drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve, reject) => canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("The picture is too large."))), "image/png"));
}

function save(content: Blob, name: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

async function exported(state: string): Promise<Blob> {
  const reply = await fetch("export", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ asked: asked(), state }) });
  if (!reply.ok) throw new Error(((await reply.json()) as { error: string }).error);
  return reply.blob();
}

export function Share({ state, drawn }: { state: State; drawn?: [number, number, number][] }) {
  const [note, setNote] = useState("");
  const name = `${state.pair}-${state.view}`.replace(/[^\w.-]+/g, "-");
  const tell = (work: () => Promise<string>) => () => {
    setNote("");
    work().then(setNote).catch((error: Error) => setNote(error.message));
  };
  const drawing = () => {
    const svg = svgText();
    if (svg === null) throw new Error("There is no drawing here.");
    return svg;
  };
  return (
    <div class="share row" role="group" aria-label="Share">
      <button type="button" id="copy" onClick={tell(async () => {
        await navigator.clipboard.writeText(address().href);
        return live ? "Copied. The address works while this server runs." : "Copied.";
      })}>Copy link</button>
      <button type="button" id="svg" onClick={tell(async () => {
        save(new Blob([drawing()], { type: "image/svg+xml" }), `${name}.svg`);
        return "";
      })}>SVG</button>
      <button type="button" id="png" onClick={tell(async () => {
        save(await pngOf(drawing()), `${name}.png`);
        return "";
      })}>PNG</button>
      {live && drawn && <button type="button" id="graph" onClick={tell(async () => {
        const body = { pair: state.pair, ranking: state.ranking, text: state.text, position: state.at, shown: drawn, pins: state.pins, groups: state.groups, names: state.names };
        const graph = await ask("graph", body);
        save(new Blob([JSON.stringify(graph)], { type: "application/json" }), `${graph.metadata.slug}.json`);
        return "";
      })}>Graph JSON</button>}
      {live && <button type="button" id="export" onClick={tell(async () => {
        save(await exported(address().hash), `${name}.zip`);
        return "A folder in a ZIP file: unpack it and open index.html.";
      })}>Export</button>}
      <span role="status">{note}</span>
    </div>
  );
}
