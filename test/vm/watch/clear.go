// SPDX-License-Identifier: Apache-2.0

package watch

// What a stream sends before its first key.

// begin judges what came before the first key, and goes on with that.
func (j *judge) begin() {
	k := j.keys[0]
	if k.at < j.at {
		j.giveUp("what it sent first was not kept")
		return
	}
	clear := j.data[:k.at-j.at]
	_, rest := j.plain(j.fromULP(clear))
	if len(rest) > 0 && !j.over {
		j.violate(Clear, "the write key begins within a record, or behind %d bytes that are none", len(rest))
	}
	if j.over {
		return
	}
	records, _, _ := splitRecords(clear)
	before := j.before(k.key, records)
	if j.over {
		return
	}
	const text = "user space wrote %d records under the key, and it was installed at sequence number %d"
	switch known := !j.incomplete && len(records) > 0; {
	case known && before < k.seq:
		j.violate(Gap, text, before, k.seq)
	case before > k.seq:
		j.violate(Repeat, text, before, k.seq)
	default:
		j.ledger.use(k.digest, j.where, k.seq-before, k.seq)
		j.drop(len(clear))
		j.take()
	}
}

// forget drops what a stream without a key has sent, with the ULP about half of it:
// that must have been records, and what is kept begins with one. Without it, the stream
// is most likely that of a peer in user space.
func (j *judge) forget() {
	j.incomplete = true
	if j.ulpAt < 0 {
		j.drop(len(j.data))
		j.ignored = true
		return
	}
	from := j.fromULP(j.data)
	records, _ := j.plain(from)
	if j.over {
		return
	}
	cut := len(j.data) - len(from)
	for ; len(records) > 0 && len(j.data)-cut > maxPlain/2; records = records[1:] {
		cut += len(records[0])
	}
	j.drop(cut)
}

// fromULP is the part of b, which begins where data does, that was sent with the ULP.
// What was said before a stream turned to TLS is its own affair.
func (j *judge) fromULP(b []byte) []byte {
	return b[min(max(j.ulpAt-j.at, 0), int64(len(b))):]
}

// plain cuts a clear part into records, and complains about what is none.
func (j *judge) plain(b []byte) (records [][]byte, rest []byte) {
	records, rest, ok := splitRecords(b)
	if !ok {
		j.violate(Clear, "byte %d behind the attaching of TLS, before a write key, begins no TLS record", len(b)-len(rest))
	}
	return records, rest
}

// splitRecords cuts b into the records of a handshake, alerts or data. The rest is a
// part of one if ok.
func splitRecords(b []byte) (records [][]byte, rest []byte, ok bool) {
	for len(b) > 0 {
		size, ok := recordSize(b, 0)
		if !ok || b[0] < 20 || b[0] > 23 {
			return records, b, false
		}
		if size == 0 || size > len(b) {
			break
		}
		records, b = append(records, b[:size]), b[size:]
	}
	return records, b, true
}

// before counts the records at the end of the clear part that open under the key from
// number 0 on: user space wrote with it before it was installed.
func (j *judge) before(k *key, records [][]byte) uint64 {
	n := uint64(0)
	for _, r := range records {
		switch {
		case len(r) <= headerSize+k.overhead():
		case k.opens(r, n, &j.scratch):
			n++
			j.opened++
		case n > 0:
			// Counted so far, and now something else: the next number is missing.
			for seq := range n + maxShift {
				if seq != n && k.opens(r, seq, &j.scratch) {
					j.misplaced(seq, n)
					return n
				}
			}
		}
	}
	return n
}
