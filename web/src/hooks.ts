import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { ask, here, keyOf, type Answers, type Name } from "./api";

export interface Asked<T> { answer?: T; error?: string; progress?: number; stop: () => void; again: () => void }

/** An answer to a question that may change; null: nothing is asked. The answer before stays until the next is there. */
export function useAnswer<N extends Name>(name: N, body: object | null): Asked<Answers[N]> {
  type T = Answers[N];
  const key = body && keyOf(name, body);
  const [found, setFound] = useState<{ key?: string; answer?: T; error?: string; progress?: number }>({});
  const [turn, setTurn] = useState(0);
  const aborter = useRef<AbortController>();
  useEffect(() => {
    if (key === null || body === null || here(name, body) !== undefined) return undefined;
    const own = new AbortController();
    aborter.current = own;
    setFound((before) => ({ key, answer: before.answer, progress: 0 }));
    const settle = (more: object) => own.signal.aborted || setFound((before) => ({ ...before, key, progress: undefined, ...more }));
    ask(name, body, own.signal, (progress) => settle({ progress }))
      .then((answer) => settle({ answer, error: undefined }))
      .catch((error: Error) => settle({ error: error.message }));
    return () => own.abort();
  }, [key, turn]);
  const stop = () => {
    aborter.current?.abort();
    setFound((before) => ({ ...before, progress: undefined, error: "Stopped." }));
  };
  const again = () => setTurn(turn + 1);
  if (body === null) return { stop, again };
  const now = here(name, body);
  if (now !== undefined) return { answer: now, stop, again };
  return found.key === key ? { ...found, stop, again } : { answer: found.answer, progress: 0, stop, again };
}

/** The width of an element, as the window changes. */
export function useWidth(): [{ current: HTMLDivElement | null }, number] {
  const ref = useRef<HTMLDivElement>(null);
  const [width, setWidth] = useState(0);
  useLayoutEffect(() => {
    if (!ref.current) return undefined;
    const observer = new ResizeObserver(([entry]) => entry && setWidth(Math.floor(entry.contentRect.width)));
    observer.observe(ref.current);
    setWidth(Math.floor(ref.current.getBoundingClientRect().width));
    return () => observer.disconnect();
  }, []);
  return [ref, width];
}
