// SPDX-License-Identifier: Apache-2.0

package ktls_test

const closeIntroduction = `# How a connection ends

This page is written by a test, which plays every row on each kernel with a peer in user space (crypto/tls):
` + "`TestEveryEndOfAConnectionIsAsTheTableSays`" + `.

- *Idle*: nothing is under way. *Data queued*: we wrote until no more was taken without waiting, and the peer reads only
  afterwards. *Data unread*: the same, and the peer has sent two records, of which a part of one was read. *Blocked writer*: a Write waits for
  the peer to read. *Slow peer*: the peer reads a little now and then, in the middle of a large Write. *Dead peer*: it
  receives nothing any more, as if its cable were cut.
- *Write* is the Write that was under way, else one of a byte afterwards. *Waits*: nothing happened until a deadline.
- *The peer gets* all, a part or nothing of what our writes accepted, and then close_notify, a FIN alone, or a reset.
- Where the peer ends the connection we read until an error, which returns all data that came before. Where we close
  for writing the peer answers, and ends as well. Two words in *Close* are CloseWrite and Close.
- *Or* stands where it is a matter of time.

Whatever Write accepted arrives, unless the peer resets or is dead. Then Close says that it could not hand over what was
accepted (ErrUndelivered), if it could not; what TCP had taken is lost silently, as on every TCP connection.

## A Go program: Conn

`

const plainIntroduction = `
## A program that knows nothing of TLS

It reads, writes, shuts down and closes a blocking socket by plain system calls; what is *queued* was written without
waiting, as with an event loop.

- A record that is no data is EIO, again and again: it asks the daemon what it is. A FIN alone is 0.
- **close and shutdown do not send close_notify**, so the peer cannot tell the end from a cut line. Who cares sends it: the
  two bytes 1 and 0 by one sendmsg, with one byte 21 as control message (SOL_TLS, TLS_SET_RECORD_TYPE).
- **close and shutdown lose what is queued**, if it was written without waiting: a part of what write said was taken is
  missing at the peer. The kernel sends all that is queued before a *blocking* sendmsg of close_notify returns, so that
  loses nothing. With a dead peer it waits for ever without SO_SNDTIMEO.
- **A write after an end says ok, and is lost**: behind a shutdown of our own, and behind a reset that has been told once.
  No write is evidence that the peer is there; the first error is final. Only one call is told it, be it a read or a write.
- **A close with data unread is a reset**, as on every TCP connection, and takes what is on its way with it. Shut down
  for writing, and read to the end before.

`
