"""Take the explorer's pictures of a finished run, and measure the page.

    python docs/make_explorer.py runs/quickstart
    python docs/make_explorer.py runs/smollm2-table --name explorer-smollm2 --position 13 \\
        --prompt "open the file with open(path, 'r', encoding='utf"

RUN has results and, for the words on features, the tables of `scalar features`. Headless Chromium shows the page. The
pictures go to docs/NAME.png (a map with pinned edges) and docs/NAME-journey.png (a prompt at a token). The figures are
printed. For the run as it is, and again when nothing is kept for the page: seconds from the command to the address, to
a map, to a card and to the loaded model. Then: milliseconds of a pin and of a hover, the recovery of fifty pinned
edges, and the megabytes that the server holds beyond a process with nothing but the model and the SAEs. What the
explorer keeps in RUN (docs/explorer.md) is removed between the two starts.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

from selenium import webdriver

HERE = Path(__file__).parent
ALONE = """
import sys
from scalar_sae.explore.run import load_run
from scalar_sae.explorer import answers
from scalar_sae.explorer.subject import Subject
subject = Subject.of_run(load_run(sys.argv[1]))
print("loaded", flush=True)
sys.stdin.read()
"""
PROMPT = "def __init__(self, name):\n        self."


def chromium(profile: str) -> webdriver.Chrome:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    for flag in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "hide-scrollbars",
        "window-size=1400,1060",
        f"user-data-dir={profile}",
    ):
        options.add_argument(f"--{flag}")
    return webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))


def until(found: Any) -> float:
    """Seconds until something is there."""
    start = time.perf_counter()
    while not found():
        if time.perf_counter() - start > 600:
            raise TimeoutError
        time.sleep(0.005)
    return time.perf_counter() - start


def memory(process: int) -> float:
    """Megabytes that a process holds."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]


def alone(run: str) -> float:
    """Megabytes of a process that has loaded the model and the SAEs, and nothing else."""
    with subprocess.Popen([sys.executable, "-c", ALONE, run], stdout=subprocess.PIPE, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        return memory(process.pid)


def opened(command: list[str], browser: webdriver.Chrome, start: str) -> tuple["subprocess.Popen[str]", str]:
    """A server with its page, and its address."""
    began = time.perf_counter()
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    url = re.search(r"http\S+", server.stdout.readline())[0]  # type: ignore[index]
    seconds = {"address": time.perf_counter() - began}

    def there(what: str, css: str) -> None:
        until(lambda: browser.find_elements("css selector", css))
        seconds[what] = time.perf_counter() - began

    browser.get(url)
    there("map", "svg.columns .node")
    enter = "document.querySelector('svg.columns .node').dispatchEvent(new MouseEvent('click', {bubbles: true}))"
    browser.execute_script(enter)
    there("card", "#feature .card")
    there("model", "#example option:nth-of-type(2)")
    print(f"{start}: " + ", ".join(f"{what} after {found:.2f} s" for what, found in seconds.items()))
    return server, url


def main(run: str, name: str, prompt: str, position: int) -> None:
    command = [sys.executable, "-m", "scalar_sae", "explore", run, "--port", "0"]
    with tempfile.TemporaryDirectory() as profile:
        browser = chromium(profile)
        server = None
        try:
            server, _ = opened(command, browser, "the run as it is")
            server.send_signal(2)
            server.wait()
            shutil.rmtree(Path(run) / "explorer", ignore_errors=True)
            server, url = opened(command, browser, "nothing kept")

            def all_of(css: str) -> list[Any]:
                return browser.find_elements("css selector", css)

            browser.get(url)
            print(f"map again after {until(lambda: all_of('svg.columns .node')):.2f} s, {memory(server.pid):.0f} MB")
            state = dict(pair.split("=", 1) for pair in browser.current_url.split("#")[1].split("&"))
            about = {name: state[name] for name in ("pair", "ranking")}
            edges = browser.execute_async_script(
                "const done = arguments[1], headers = {'Content-Type': 'application/json'};"
                "fetch('ask/map', {method: 'POST', headers, body: arguments[0]}).then((r) => r.text())"
                ".then((t) => done(JSON.parse(t.trim().split('\\n').pop()).answer.edges))",
                json.dumps({name: value.replace("%2F", "/") for name, value in about.items()}),
            )
            text = quote(prompt)
            shared = f"#pair={about['pair']}&ranking={about['ranking']}&text={text}&n=64"

            def show(more: str) -> None:
                browser.get("about:blank")
                browser.get(url + shared + more)

            fifty = quote(json.dumps([f"u{i}-d{j}" for i, j, _ in edges[:50]]))
            show(f"&pins={fifty}")
            until(lambda: all_of("#recovery"))
            script = (
                "const done = arguments[0], button = [...document.querySelectorAll('#pins li button')].pop();"
                "const recovery = () => document.querySelector('#recovery')?.dataset.edges;"
                "const start = performance.now(); let drawn; const watch = new MutationObserver(() => {"
                " if (recovery() === '49') { watch.disconnect(); done([drawn, performance.now() - start]); } });"
                "watch.observe(document.body, {subtree: true, childList: true, attributes: true, characterData: true});"
                "button.click();"
                "requestAnimationFrame(() => setTimeout(() => { drawn = performance.now() - start; }));"
            )
            drawn, recovered = browser.execute_async_script(script)
            print(f"a pin is drawn after {drawn:.0f} ms, the recovery of 49 edges is there after {recovered:.0f} ms")
            hover = browser.execute_async_script(
                "const done = arguments[0], node = document.querySelectorAll('svg.columns .node')[3];"
                "const start = performance.now();"
                "node.dispatchEvent(new PointerEvent('pointerover', {bubbles: true}));"
                "requestAnimationFrame(() => setTimeout(() => done(performance.now() - start)))"
            )
            print(f"a hover is drawn after {hover:.0f} ms")

            strongest = [f"u{i}-d{j}" for i, j, _ in edges[:12]]
            show(f"&pins={quote(json.dumps(strongest[:5]))}&focus=u{edges[0][0]}")
            until(lambda: all_of("#recovery") and all_of("#feature .card"))
            browser.save_screenshot(str(HERE / f"{name}.png"))
            show(f"&view=journey&at={position}&pins={quote(json.dumps(strongest[:5]))}")
            print(f"journey at a token after {until(lambda: all_of('#n-local')):.2f} s")
            time.sleep(0.5)
            browser.save_screenshot(str(HERE / f"{name}-journey.png"))
            print(f"{memory(server.pid) - alone(run):.0f} MB beside the model at the end")
        finally:
            browser.quit()
            if server is not None:
                server.send_signal(2)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Pictures and figures of the explorer.")
    parser.add_argument("run")
    parser.add_argument("--name", default="explorer")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--position", type=int, default=20)
    given = parser.parse_args()
    main(given.run, given.name, given.prompt, given.position)
