// The process of a kernel: from its kernelspec until it and its children were told to end.
"use strict";

const { spawn } = require("child_process");
const { randomBytes, randomUUID } = require("crypto");
const { once } = require("events");
const fs = require("fs");
const net = require("net");
const path = require("path");
const pidtree = require("pidtree");
const { waitUntilUsed } = require("tcp-port-used");

const FIRST_PORT = 9000;
const LOOK_EVERY = 200; // ms between two looks at a port
const LAUNCH_WITHIN = 60000; // ms
const CHILDREN_WITHIN = 1000; // ms for ending the children before the process itself
const given = new Set(); // ports

async function isFree(port) {
  const server = net.createServer();
  const outcome = Promise.race([
    once(server, "listening").then(() => true),
    once(server, "error").then(() => false),
  ]).catch(() => false);
  server.listen(port, "127.0.0.1");
  const free = await outcome;
  if (free) await new Promise((done) => server.close(done));
  return free;
}

async function freePorts(count) {
  const ports = [];
  // Two clients at once must not think of the same ports at the same time.
  for (let port = FIRST_PORT + (process.pid % 2000) * 10; ports.length < count; port++) {
    if (!given.has(port) && (await isFree(port))) ports.push(port);
  }
  ports.forEach((port) => given.add(port));
  return ports;
}

class Front {
  constructor(spec, folder) {
    this.spec = spec;
    this.folder = folder; // where it runs: the notebook's folder
    this.said = ""; // on stderr
    this.exited = new Promise((resolve) => (this.resolveExited = resolve));
  }

  async launch() {
    const [hb_port, control_port, shell_port, stdin_port, iopub_port] = await freePorts(5);
    const ports = { hb_port, control_port, shell_port, stdin_port, iopub_port };
    const address = { transport: "tcp", ip: "127.0.0.1", ...ports };
    const secret = { key: randomUUID(), signature_scheme: "hmac-sha256" };
    this.connection = { ...secret, ...address, kernel_name: this.spec.name };
    const name = `kernel-v3${randomBytes(20).toString("hex")}.json`;
    this.file = path.join(process.env.JUPYTER_RUNTIME_DIR, name);
    fs.writeFileSync(this.file, JSON.stringify(this.connection));
    this.spawn();
    const ready = [shell_port, iopub_port].map((port) =>
      waitUntilUsed(port, LOOK_EVERY, LAUNCH_WITHIN)
    );
    const died = this.exited.then((code) => {
      throw new Error(`the kernel ended with ${code}: ${this.said}`);
    });
    died.catch(() => {});
    await Promise.race([Promise.all(ready), died]);
  }

  spawn() {
    const argv = this.spec.argv.map((part) => part.replace("{connection_file}", this.file));
    const isPython = (this.spec.language || "").toLowerCase() === "python";
    const env = { ...process.env, ...this.spec.env, PYTHONUNBUFFERED: "1" };
    if (isPython) env.PYDEVD_IPYTHON_COMPATIBLE_DEBUGGING = "1";
    // stdin, stdout and stderr are pipes that stay open as long as this process lives.
    this.process = spawn(argv[0], argv.slice(1), { cwd: this.folder, env });
    this.process.stdout.resume();
    this.process.stderr.on("data", (data) => (this.said += data));
    this.process.on("error", (error) => this.resolveExited(error.message));
    this.process.on("exit", (code, signal) => this.resolveExited(code ?? signal));
  }

  get pid() {
    return this.process && this.process.pid;
  }

  get hasEnded() {
    return this.process.exitCode !== null || this.process.signalCode !== null;
  }

  // Tell its children, then itself, and do not wait for the end of any.
  async end() {
    if (this.pid && !this.hasEnded) {
      const children = pidtree(this.pid).catch(() => []);
      const late = new Promise((resolve) => setTimeout(resolve, CHILDREN_WITHIN, []).unref());
      for (const child of await Promise.race([children, late])) {
        try {
          process.kill(child);
        } catch {
          // it has ended meanwhile
        }
      }
      this.process.kill();
    }
    fs.rmSync(this.file, { force: true });
  }
}

module.exports = { Front };
