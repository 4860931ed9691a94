import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { defineConfig } from "vite";

/** The files of this folder that the page is built from, by their paths, sorted. */
function sources(folder = ".") {
  return readdirSync(folder, { withFileTypes: true })
    .filter((entry) => entry.name !== "node_modules")
    .flatMap((entry) => {
      const path = folder === "." ? entry.name : `${folder}/${entry.name}`;
      return entry.isDirectory() ? sources(path) : [path];
    })
    .sort();
}

/** Writes the digest of the sources beside the page, so that a test can tell a page that is older than they are; and
 * the licenses of the libraries in it. */
function provenance() {
  return {
    name: "provenance",
    generateBundle() {
      const digest = createHash("sha256");
      for (const path of sources())
        digest.update(`${path} ${createHash("sha256").update(readFileSync(path)).digest("hex")}\n`);
      this.emitFile({ type: "asset", fileName: "sources.sha256", source: `${digest.digest("hex")}\n` });
      const libraries = readdirSync("node_modules").filter((name) => name === "preact" || /^(d3-|internmap)/.test(name));
      const texts = libraries.sort().map((name) => `${name}\n\n${readFileSync(join("node_modules", name, "LICENSE"), "utf8").trim()}\n`);
      this.emitFile({ type: "asset", fileName: "licenses.txt", source: texts.join("\n\n") });
    },
  };
}

const NOTICE = "/*! Holds Preact (MIT, Copyright 2015-present Jason Miller) and parts of d3 (ISC, Copyright 2010-2023 Mike Bostock). */";

/** Puts the notice in front of a script. */
function notice() {
  return {
    name: "notice",
    generateBundle(_, bundle) {
      for (const part of Object.values(bundle)) if (part.type === "chunk") part.code = `${NOTICE}\n${part.code}`;
    },
  };
}

/** Two pages of one script each: the explorer, and with `--mode features` the report's page of an SAE's features. */
const PAGES = {
  production: { outDir: "../src/scalar_sae/explorer/static", entry: "src/main.tsx", name: "page" },
  features: { outDir: "../src/scalar_sae/report/templates", entry: "src/features.tsx", name: "features" },
};

export default defineConfig(({ mode }) => {
  const { outDir, entry, name } = PAGES[mode];
  const own = mode === "production";
  return {
    plugins: own ? [notice(), provenance()] : [notice()],
    publicDir: own && "public",
    define: { "process.env.NODE_ENV": '"production"' },
    oxc: { jsx: { runtime: "automatic", importSource: "preact" } },
    build: {
      outDir, emptyOutDir: own,
      lib: { entry, formats: ["iife"], name: `${name}Page`, fileName: () => `${name}.js`, cssFileName: name },
    },
  };
});
