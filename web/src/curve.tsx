/** A slider over edge counts whose track is the curve of what they recover. */
import { area, line } from "d3-shape";
import { useWidth } from "./hooks";
import { count, percent } from "./text";

export interface CurvePoint { edges: number; recovery: number; low?: number | null; high?: number | null }

const HEIGHT = 64, THUMB = 8;

export function Curve({ points, n, onCount, label }: {
  points: CurvePoint[]; n: number; onCount: (edges: number) => void; label: string;
}) {
  const [box, width] = useWidth();
  const at = nearest(points, n);
  const x = (i: number) => THUMB + (i / Math.max(1, points.length - 1)) * (width - 2 * THUMB);
  const y = (value: number) => 4 + (1 - Math.min(1, Math.max(0, value))) * (HEIGHT - 8);
  const number = points.map((_, i) => i);
  const of = (i: number) => points[i]!;
  const whole = line<number>().x(x).y((i) => y(of(i).recovery))(number) ?? "";
  const band = area<number>().x(x).y0((i) => y(of(i).low ?? of(i).recovery)).y1((i) => y(of(i).high ?? of(i).recovery))(number) ?? "";
  const kept = area<number>().x(x).y0(HEIGHT - 4).y1((i) => y(of(i).recovery))(number.slice(0, at + 1)) ?? "";
  const here = points[at];
  return (
    <div class="curve" ref={box}>
      {width > 0 && (
        <svg width={width} height={HEIGHT} aria-hidden="true">
          <path class="grid" d={[0, 0.5, 0.9, 1].map((v) => `M${THUMB},${y(v)}H${width - THUMB}`).join("")} />
          <path class="kept" d={kept} /><path class="band" d={band} /><path class="line" d={whole} />
          {here && <circle cx={x(at)} cy={y(here.recovery)} r={4} />}
        </svg>
      )}
      <input type="range" aria-label={label} min={0} max={points.length - 1} step={1} value={at}
        aria-valuetext={here ? `${count(here.edges)} edges, recovery ${percent(here.recovery)}` : ""}
        onInput={(event) => onCount(of(Number(event.currentTarget.value)).edges)} />
    </div>
  );
}

/** The index of the largest count that is at most n. */
export function nearest(points: { edges: number }[], n: number): number {
  let found = 0;
  points.forEach((point, i) => { if (point.edges <= n) found = i; });
  return found;
}
