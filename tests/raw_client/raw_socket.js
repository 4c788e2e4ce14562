// A kernel's four ZeroMQ sockets, in the shape of the one websocket that Jupyter's client wants.
"use strict";

const { randomUUID } = require("crypto");
const zmq = require("zeromq");
const wire = require("@nteract/messaging/lib/wire-protocol");

const DEALERS = ["shell", "control", "stdin"];

class RawSocket {
  // There is no heartbeat: nobody listens for it.
  constructor(connection) {
    this.protocol = ""; // messages are objects on both sides of this class
    this.onopen = this.onmessage = this.onclose = this.onerror = () => {};
    this.connection = connection;
    this.isClosed = false;
    this.sockets = {};
    const routingId = randomUUID(); // one for all: what is asked on stdin finds its way by it
    for (const channel of DEALERS) {
      const limits = { sendHighWaterMark: 0, receiveHighWaterMark: 0, maxMessageSize: -1 };
      this.sockets[channel] = new zmq.Dealer({ routingId, ...limits });
    }
    this.sockets.iopub = new zmq.Subscriber({ receiveHighWaterMark: 0, maxMessageSize: -1 });
    for (const [channel, socket] of Object.entries(this.sockets)) {
      socket.connect(`tcp://${connection.ip}:${connection[`${channel}_port`]}`);
      this.listen(channel, socket).catch((error) => console.error(channel, error));
    }
    this.sockets.iopub.subscribe();
  }

  async listen(channel, socket) {
    for await (const frames of socket) {
      if (this.isClosed) return;
      const { key, signature_scheme: scheme } = this.connection;
      const message = wire.decode(frames, key, scheme);
      message.channel = channel;
      try {
        this.onmessage({ data: message, type: "message", target: this });
      } catch (error) {
        console.error("not a good message:", error.message, message.header);
      }
    }
  }

  send(message) {
    const { key, signature_scheme: scheme } = this.connection;
    const frames = wire.encode(message, key, scheme);
    this.sockets[message.channel].send(frames).catch((error) => console.error(error));
  }

  close() {
    if (this.isClosed) return;
    this.isClosed = true;
    for (const socket of Object.values(this.sockets)) socket.close();
  }
}

module.exports = { RawSocket };
