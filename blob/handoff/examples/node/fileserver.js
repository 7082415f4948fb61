#!/usr/bin/env node
// SPDX-License-Identifier: Apache-2.0
'use strict';
/* A file server over TLS that knows nothing of TLS, for "offloadd inetd", which starts it for each connection:
 *
 *     cd /srv/files && offloadd inetd --application /run/offloadd/web.sock -- node fileserver.js
 *
 * The connection is descriptors 0 and 1. What a failed read met is asked on descriptor 4 and answered on 3. When this
 * ends, inetd says to the peer that nothing more comes; or, if the exit status is not 0, resets the connection.
 *
 * A peer sends one line, "GET NAME" or "PUT NAME". GET is answered by "OK SIZE" and the file; what follows PUT, to the
 * end of the stream, becomes the file.
 */
const fs = require('node:fs');

const PEER_IN = 0, PEER_OUT = 1, ANSWERS = 3, QUESTIONS = 4;

// ask returns the line that answers what a read met, when the daemon has seen to it.
function ask() {
  fs.writeSync(QUESTIONS, 'met\n');
  let line = '';
  for (const byte = Buffer.alloc(1); !line.endsWith('\n'); line += byte.toString()) {
    if (fs.readSync(ANSWERS, byte) === 0) throw new Error('inetd is gone');
  }
  return line.trim();
}

// read returns what has arrived, and nothing only at the end of the stream.
function read(buffer) {
  for (;;) {
    try {
      const n = fs.readSync(PEER_IN, buffer);
      if (n > 0) return buffer.subarray(0, n);
    } catch (error) {
      if (error.code !== 'EIO') throw error;
      const answer = ask();
      if (answer === 'go on') continue;
      if (answer === 'end') return buffer.subarray(0, 0);
      throw new Error(answer);
    }
    throw new Error('cut off: the peer did not say that this is the end');
  }
}

function write(fd, data) {
  for (let at = 0; at < data.length;) at += fs.writeSync(fd, data, at);
}

function get(name, buffer) {
  const file = fs.openSync(name);
  write(PEER_OUT, Buffer.from(`OK ${fs.fstatSync(file).size}\n`));
  for (let n; (n = fs.readSync(file, buffer)) > 0;) write(PEER_OUT, buffer.subarray(0, n));
  console.error(`sent ${name}`);
}

function put(name, buffer) {
  const part = `.${name}.part`;
  const file = fs.openSync(part, 'w', 0o600);
  let size = 0;
  try {
    for (let data; (data = read(buffer)).length > 0; size += data.length) write(file, data);
  } catch (error) {
    console.error(`refused ${name} after ${size} bytes: ${error.message}`);
    process.exit(1);
  }
  fs.closeSync(file);
  fs.renameSync(part, name);
  console.error(`stored ${name}, ${size} bytes`);
  write(PEER_OUT, Buffer.from(`OK ${size}\n`));
}

let line = '';
for (const byte = Buffer.alloc(1); !line.endsWith('\n') && line.length < 256; line += byte.toString()) {
  if (read(byte).length === 0) process.exit(0);
}
const [, verb, name] = line.trim().match(/^(GET|PUT) ([^./][^/]*)$/) ?? [];
const buffer = Buffer.alloc(1 << 16);
if (verb === 'GET') get(name, buffer);
else if (verb === 'PUT') put(name, buffer);
else process.exit(1);
