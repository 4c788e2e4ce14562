// A notebook and its kernel: started, made ready, asked, interrupted, started anew, ended.
"use strict";

const fs = require("fs");
const path = require("path");
const { randomUUID } = require("crypto");
const { KernelMessage, ServerConnection } = require("@jupyterlab/services");
const { KernelConnection } = require("@jupyterlab/services/lib/kernel/default");
const { Front } = require("./front");
const { RawSocket } = require("./raw_socket");

const ASK_EVERY = 500; // ms between two questions whether the kernel is there
const READY_WITHIN = 60000; // ms
const END_WITHIN = 1000; // ms
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

const WIDGETS = `try:
    import ipywidgets as _VSCODE_ipywidgets
    print("widgets " + _VSCODE_ipywidgets.__version__)
    del _VSCODE_ipywidgets
except Exception:
    pass
`;
// The line that names the notebook stands in the midst of other code.
const startUp = (notebook) => `
def _client_prepares():
    import sys, types
    sys.modules["_client_words"] = types.ModuleType("_client_words")


_client_prepares()
del _client_prepares

__vsc_ipynb_file__ = "${notebook.replace(/\\/g, "\\\\")}"
%config Completer.use_jedi = False`;

class Notebook {
  // `tell` takes what happens, one object at a time.
  constructor(specFile, file, tell) {
    this.spec = JSON.parse(fs.readFileSync(specFile, "utf8"));
    this.spec.name = path.basename(path.dirname(specFile));
    this.file = file;
    this.tell = tell;
    this.clientId = randomUUID();
    this.userName = randomUUID();
    this.comms = new Map();
  }

  async start() {
    const began = Date.now();
    this.front = new Front(this.spec, path.dirname(this.file));
    await this.front.launch();
    this.connect();
    await this.untilItAnswers();
    const answered = Date.now();
    const said = (this.spec.language || "").toLowerCase() === "python" ? await this.prepare() : [];
    const info = (await this.kernel.requestKernelInfo()).content;
    const { pid } = this.front;
    const ready = Date.now() - began;
    return { pid, said, info, answered_ms: answered - began, ready_ms: ready };
  }

  connect() {
    const { connection } = this.front;
    let socket;
    const WebSocket = class extends RawSocket {
      constructor() {
        super(connection);
        socket = this;
      }
    };
    const asItIs = { serialize: (message) => message, deserialize: (message) => message };
    const wishes = { WebSocket, wsUrl: "RAW", serializer: asItIs };
    const front = this.front;
    this.kernel = new KernelConnection({
      serverSettings: ServerConnection.makeSettings(wishes),
      clientId: this.clientId,
      username: this.userName,
      handleComms: true,
      model: { name: this.spec.name, id: randomUUID() },
    });
    this.socket = socket;
    this.socket.onopen({ target: this.socket });
    this.kernel.registerCommTarget("jupyter.widget", (comm) => this.comms.set(comm.commId, comm));
    this.kernel.statusChanged.connect((_, state) => {
      if (!["busy", "idle"].includes(state)) this.tell({ event: "state", state });
    });
    front.exited.then((code) => {
      if (front === this.front) this.tell({ event: "died", code });
    });
  }

  // Ask on both channels until there is an answer and a word on iopub.
  async untilItAnswers() {
    const facts = {};
    const heard = () => (facts.heard = true);
    this.kernel.iopubMessage.connect(heard);
    const until = Date.now() + READY_WITHIN;
    while (!(facts.heard && facts.answered)) {
      if (Date.now() > until) throw new Error("the kernel does not answer");
      const answered = () => (facts.answered = true);
      this.kernel.sendControlMessage(this.message("kernel_info_request"), true, true).done.then(
        answered,
        () => {}
      );
      this.kernel.requestKernelInfo().then(answered, () => {});
      const done = async () => {
        while (!(facts.heard && facts.answered)) await sleep(5);
      };
      await Promise.race([done(), sleep(ASK_EVERY)]);
    }
    this.kernel.iopubMessage.disconnect(heard);
  }

  message(msgType) {
    const who = { username: this.userName, session: this.clientId };
    return KernelMessage.createMessage({ msgType, channel: "control", ...who, content: {} });
  }

  // Run what the client itself wants to run; the person's first cell waits for the replies.
  async prepare() {
    return [await this.runQuietly(WIDGETS), await this.runQuietly(startUp(this.file))];
  }

  // It is no silent request: it shows nothing because nobody looks, and nobody could answer.
  async runQuietly(code) {
    const wishes = { silent: false, store_history: false, allow_stdin: true, stop_on_error: false };
    const future = this.kernel.requestExecute({ code, ...wishes }, true);
    let text = "";
    let asked = 0;
    future.onIOPub = (message) => {
      text += message.content.text || (message.content.traceback || []).join("\n");
    };
    future.onStdin = () => (asked += 1);
    const { content } = await future.done;
    return { status: content.status, text, asked };
  }

  // Run a person's cell; what comes of it is told as it comes, and its reply returned.
  async run({ key, code, cell = 0 }) {
    const wishes = { silent: false, store_history: true, allow_stdin: true, stop_on_error: false };
    const fragment = `W${cell}sZmlsZQ%3D%3D`;
    const metadata = { cellId: `vscode-notebook-cell:${encodeURI(this.file)}#${fragment}` };
    const future = this.kernel.requestExecute({ code, ...wishes }, false, metadata);
    const tell = (message) => {
      const { header, content, buffers } = message;
      this.tell({ event: header.msg_type, key, content, buffers: (buffers || []).length });
    };
    future.onIOPub = tell;
    future.onStdin = (message) => {
      this.asked = message;
      tell(message);
    };
    const { content } = await future.done;
    return content;
  }

  answer({ value }) {
    this.kernel.sendInputReply({ value, status: "ok" }, this.asked.header);
    this.asked = undefined;
  }

  async complete({ code }) {
    return (await this.kernel.requestComplete({ code, cursor_pos: code.length })).content;
  }

  // What a person does to a widget.
  async change({ comm, state }) {
    const data = { method: "update", state, buffer_paths: [] };
    await this.comms.get(comm).send(data).done;
  }

  async interrupt() {
    const message = this.message("interrupt_request");
    return (await this.kernel.sendControlMessage(message, true, true).done).content;
  }

  // The next process does not wait for the end of the last one.
  async restart() {
    this.leave(this.front);
    return this.start();
  }

  async close() {
    const front = this.front;
    await Promise.race([this.leave(front), sleep(END_WITHIN)]);
    return { code: await front.exited };
  }

  leave(front) {
    this.front = undefined;
    const ended = front.end().catch((error) => this.tell({ event: "bug", text: String(error) }));
    this.socket.close();
    this.kernel.dispose();
    return ended;
  }
}

module.exports = { Notebook };
