#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A file server over TLS that knows nothing of TLS: the protocol of PROTOCOL.md in Python.

    python3 fileserver.py /run/offloadd/web.sock /srv/files

A peer sends one line, "GET NAME" or "PUT NAME". GET is answered by "OK SIZE" and the file;
what follows PUT, to the end of the stream, becomes the file.
"""
import array
import collections
import errno
import os
import select
import socket
import struct
import sys

CONNECTION, ASKED, ANSWER = 7, 11, 12  # types of messages
MET, QUIET = 1, 8  # flags of a question
GO_ON, END, ALERT, ENDED = range(4)  # verdicts of an answer
OWED = 1  # a flag of an answer
SO_COOKIE, SOL_TLS, TLS_SET_RECORD_TYPE = 57, 282, 1  # asm-generic/socket.h, linux/tls.h
RECORD_ALERT, CLOSE_NOTIFY = b"\x15", b"\x01\x00"
HEAD = struct.Struct(">BBQHHII")  # version, type, cookie, sizes of the blobs, the facts and the body


def cookie_of(sock):
    return struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8))[0]


class Daemon:
    """The channel to the daemon."""

    def __init__(self, path):
        self.waiting = collections.deque()  # connections that came before an answer
        self.channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.channel.connect(path)
        self.pid = struct.unpack("3i", self.channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]

    def receive(self):
        """Returns type, cookie and body of the next message, and the socket that came with it."""
        room = socket.CMSG_SPACE(12) + socket.CMSG_SPACE(4)
        data, control, flags, _ = self.channel.recvmsg(131072, room)
        if not data:
            raise SystemExit("the daemon is gone")
        sock = sender = None
        for _, kind, value in control:
            if kind == socket.SCM_RIGHTS:
                sock = socket.socket(fileno=array.array("i", value)[0])
            elif kind == socket.SCM_CREDENTIALS:
                sender = struct.unpack("3i", value)[0]
        version, kind, cookie, read, write, facts, _ = HEAD.unpack_from(data)
        if version != 1 or sender != self.pid or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or (
                sock and cookie_of(sock) != cookie):
            raise SystemExit("not a message of the daemon")
        return kind, cookie, data[HEAD.size + read + write + facts:], sock

    def accept(self):
        while not self.waiting:
            kind, _, _, sock = self.receive()
            if kind == CONNECTION:
                self.waiting.append(sock)
        return self.waiting.popleft()

    def ask(self, sock):
        """Tells what made a read fail, when the daemon has seen to it. Nobody else uses the connection meanwhile."""
        answer, owed = self.question(sock, MET | QUIET)
        while owed:  # before the next write, and there was no room for it
            if not select.select([], [sock], [], 60)[1]:
                raise TimeoutError("the peer does not read")
            now, owed = self.question(sock, QUIET)
            if now[0] != GO_ON:
                return now
        return answer

    def question(self, sock, flags):
        """Asks once."""
        cookie = cookie_of(sock)
        question = HEAD.pack(1, ASKED, cookie, 0, 0, 0, 1) + bytes([flags])
        self.channel.sendmsg([question], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [sock.fileno()]))])
        while True:
            if not select.select([self.channel], [], [], 10)[0]:
                raise SystemExit("the daemon does not answer")
            kind, about, body, other = self.receive()
            if kind == CONNECTION:
                self.waiting.append(other)
            elif kind == ANSWER and about == cookie:
                return (body[0], body[2], body[3:].decode()), body[1] & OWED


class Stream:
    """A connection."""

    def __init__(self, daemon, sock):
        self.daemon, self.sock = daemon, sock
        # It comes non-blocking, and what a non-blocking sender has queued may be lost at the close. A peer that stands
        # still for a minute is left.
        sock.setblocking(True)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 60, 0))

    def read(self, size):
        """Returns what has arrived, b"" only at the end of the stream."""
        while True:
            try:
                data = self.sock.recv(size)
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
            else:
                if data:
                    return data
                raise ConnectionError("cut off: the peer did not say that this is the end")
            verdict, alert, reason = self.daemon.ask(self.sock)
            if verdict == END:
                return b""
            if verdict != GO_ON:
                raise ConnectionError(f"{'alert' if verdict == ALERT else 'ended'} {alert} {reason}")

    def finish(self):
        """Says that nothing more comes."""
        self.sock.sendmsg([CLOSE_NOTIFY], [(SOL_TLS, TLS_SET_RECORD_TYPE, RECORD_ALERT)])
        self.sock.shutdown(socket.SHUT_WR)


def get(stream, name):
    with open(name, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        stream.sock.sendall(b"OK %d\n" % size)
        stream.sock.sendfile(file)
    stream.finish()
    print(f"sent {size} bytes", flush=True)
    while stream.read(4096):  # what is unread at the close would cut what we sent
        pass


def put(stream, name):
    size = 0
    part = f".{name}.part"
    with open(part, "wb") as file:
        try:
            while data := stream.read(1 << 16):
                size += file.write(data)
        except OSError:
            print(f"refused {name} after {size} bytes", flush=True)
            raise
    os.rename(part, name)
    print(f"stored {name}, {size} bytes", flush=True)
    stream.sock.sendall(b"OK %d\n" % size)
    stream.finish()


def serve(stream):
    line = b""
    while not line.endswith(b"\n") and len(line) < 256:
        byte = stream.read(1)
        if not byte:
            return
        line += byte
    verb, _, name = line.decode().strip().partition(" ")
    if name and name[0] != "." and "/" not in name and verb in ("GET", "PUT"):
        (get if verb == "GET" else put)(stream, name)


def main(path, directory):
    daemon = Daemon(path)
    os.chdir(directory)
    while True:
        with daemon.accept() as sock:
            try:
                serve(Stream(daemon, sock))
            except OSError as error:  # of this connection
                print(error, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
