// Stands where VS Code's extension host stands: takes commands as lines of JSON on stdin, answers
// with lines of JSON on stdout, is the parent of all fronts, and ends with its stdin.
"use strict";

const readline = require("readline");
const { Notebook } = require("./notebook");

for (const level of ["log", "debug", "info", "warn"]) console[level] = () => {};
const notebooks = new Map();

function tell(words) {
  process.stdout.write(`${JSON.stringify(words)}\n`);
}

const verbs = {
  async start({ notebook, spec }) {
    if (!notebooks.has(notebook)) {
      const about = (words) => tell({ notebook, ...words });
      notebooks.set(notebook, new Notebook(spec, notebook, about));
    }
    return notebooks.get(notebook).start();
  },
  async close({ notebook }) {
    const closed = notebooks.get(notebook);
    notebooks.delete(notebook);
    return closed.close();
  },
};
for (const verb of ["run", "answer", "complete", "change", "interrupt", "restart"]) {
  verbs[verb] = ({ notebook, ...words }) => notebooks.get(notebook)[verb](words);
}

async function obey({ id, verb, ...words }) {
  try {
    tell({ answer: id, ok: (await verbs[verb](words)) ?? {} });
  } catch (error) {
    tell({ answer: id, error: String(error && error.stack ? error.stack : error) });
  }
}

async function leave() {
  const all = [...notebooks.values()].filter((notebook) => notebook.front);
  await Promise.all(all.map((notebook) => notebook.close().catch(() => {})));
  process.exit(0);
}

process.on("unhandledRejection", (error) => console.error("unhandled:", error));
const lines = readline.createInterface({ input: process.stdin });
lines.on("line", (line) => obey(JSON.parse(line)));
lines.on("close", leave);
