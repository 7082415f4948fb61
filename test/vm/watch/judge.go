// SPDX-License-Identifier: Apache-2.0

package watch

// Bounds of the work, in bytes and records.
const (
	fullyOpened = 256 << 10 // of each direction every record is opened up to here,
	smallRecord = 2 << 10   // every record up to this size,
	sampleEvery = 16        // and every so manieth of the others.

	maxPlain = 128 << 10 // what is kept of a stream that has no key yet
	maxIdle  = 256 << 10 // how large an empty buffer may stay
	maxShift = 16        // how far from the expected number a record is tried, to name what is wrong
)

// A judge follows what one end of one connection sends.
type judge struct {
	where  ports
	ledger *ledger

	at     int64 // place in the stream of data's first byte
	data   []byte
	buffer []byte // holds data under a key, between two feeds

	ulpAt      int64 // where the ULP was attached, or -1
	incomplete bool  // what came before at is not all known
	ignored    bool  // too much came without TLS
	keys       []placedKey

	current *key // nil before the first
	first   uint64
	seq     uint64 // of the next record
	nonce   uint64 // the next explicit one
	updated bool   // a KeyUpdate ended the current key

	keyed    int64 // bytes under keys
	last     []byte
	unknown  bool // last was not opened
	borrowed bool // last lies in other memory than kept
	kept     []byte
	scratch  []byte

	over   bool   // judged to the end, or to the first violation
	reason string // why it cannot be judged; empty if it can
	cut    bool   // ended within a record
	opened int
	framed int
}

// A placedKey begins at a place in the stream, and not before.
type placedKey struct {
	*key
	at int64
}

func newJudge(where ports, l *ledger) *judge { return &judge{where: where, ledger: l, ulpAt: -1} }

// attach notes that the socket has the ULP from here on.
func (j *judge) attach(at int64) {
	if j.ulpAt < 0 {
		j.ulpAt = at
	}
	if at < j.at {
		j.giveUp("what it sent first was not kept")
	}
	j.ignored = false
}

// install notes that the socket has a write key from here on.
func (j *judge) install(k *key, at int64) {
	if len(j.keys) > 0 || j.current != nil {
		if k.version == version13 && k.seq != 0 {
			j.violate(Gap, "a rekey begins at sequence number %d (RFC 8446, Section 5.3: at 0)", k.seq)
		}
	}
	j.keys = append(j.keys, placedKey{k, at})
}

// giveUp ends judging for a reason that is nobody's fault.
func (j *judge) giveUp(reason string) {
	if !j.over && j.reason == "" {
		j.reason = reason
		j.close()
	}
}

func (j *judge) violate(kind Kind, format string, args ...any) {
	j.ledger.violate(kind, j.where, format, args...)
	j.close()
}

// close settles the account of the current key.
func (j *judge) close() {
	j.settle()
	j.over, j.data, j.buffer, j.last, j.kept, j.unknown, j.borrowed = true, nil, nil, nil, nil, false, false
}

func (j *judge) settle() {
	if j.current != nil {
		j.ledger.use(j.current.digest, j.where, j.first, j.seq)
		j.first = j.seq
	}
}

// direct reports whether what comes next need not be kept until all calls are known.
func (j *judge) direct() bool { return j.current != nil || j.ignored || j.over }

// feed takes what comes next in the stream. Keys that begin in it have been told. It
// copies as little as it can: there may be gigabytes.
func (j *judge) feed(b []byte) {
	switch {
	case j.over:
	case j.ignored:
		j.at += int64(len(b))
	case j.current == nil:
		j.data = append(j.data, b...)
		whole := j.data
		j.judge()
		if cap(whole) > maxIdle {
			whole = nil
		}
		j.data = append(whole[:0], j.data...)
	default:
		if b = j.complete(b); !j.over && len(b) > 0 {
			j.data = b
			j.judge()
			j.buffer = append(j.buffer[:0], j.data...)
			j.data = j.buffer
		}
	}
}

// complete takes from b what is missing of a record that has begun.
func (j *judge) complete(b []byte) []byte {
	for !j.over && len(j.data) > 0 && len(b) > 0 {
		missing := headerSize - len(j.data)
		if missing <= 0 {
			size, _ := j.header(j.data)
			missing = size - len(j.data)
		}
		n := min(missing, len(b))
		j.buffer = append(j.data, b[:n]...)
		j.data, b = j.buffer, b[n:]
		j.judge()
	}
	return b
}

// judge judges what there is. Of the memory that records lie in the last one is kept.
func (j *judge) judge() {
	j.advance()
	if j.borrowed {
		j.kept = append(j.kept[:0], j.last...)
		j.last, j.borrowed = j.kept, false
	}
}

func (j *judge) advance() {
	for !j.over && j.step() {
	}
	if !j.over && j.current == nil && len(j.keys) == 0 && len(j.data) > maxPlain {
		j.forget()
	}
}

// step judges one thing more, if all of it is there.
func (j *judge) step() bool {
	if j.current != nil {
		return j.record()
	}
	if len(j.keys) == 0 || j.at+int64(len(j.data)) < j.keys[0].at {
		return false
	}
	j.begin()
	return true
}

func (j *judge) drop(n int) {
	j.at += int64(n)
	j.data = j.data[n:]
}

// take makes the first of the waiting keys the current one.
func (j *judge) take() {
	j.settle()
	j.current, j.keys = j.keys[0].key, j.keys[1:]
	j.first, j.seq, j.nonce = j.current.seq, j.current.seq, j.current.firstExplicit()
}

// recordSize is the length of the record that begins b, 0 if its header is not whole.
// No record has this header if !ok. Version 0 is any.
func recordSize(b []byte, version uint16) (size int, ok bool) {
	if len(b) > 1 && b[1] != 3 || len(b) > 2 && (b[2] > 4 || version != 0 && b[2] != 3) {
		return 0, false
	}
	if len(b) < headerSize {
		return 0, true
	}
	n := int(b[3])<<8 | int(b[4])
	limit := 1<<14 + 2048 // RFC 5246, Section 6.2.3
	if version == version13 {
		limit = 1<<14 + 256 // RFC 8446, Section 5.2
	}
	return headerSize + n, n <= limit
}

// misplaced complains about a record that opens at another number than the next.
func (j *judge) misplaced(got, want uint64) {
	if got < want {
		j.violate(Repeat, "a record was sealed under sequence number %d, which had been used; %d was next", got, want)
	} else {
		j.violate(Gap, "a record was sealed under sequence number %d; %d was next", got, want)
	}
}

// record judges one record under the current key.
func (j *judge) record() bool {
	size, ok := j.header(j.data)
	if !ok {
		j.violate(Clear, "what follows record %d is no TLS record, with a write key installed", j.seq)
		return false
	}
	if size == 0 || size > len(j.data) {
		return false
	}
	r := j.data[:size]
	if j.mustOpen(r) {
		j.open(r)
	} else {
		j.framed++
		j.last, j.unknown, j.borrowed = r, true, true
	}
	if j.over {
		return false
	}
	if j.current.onWire {
		if got := j.current.explicit(r); got != j.nonce {
			j.violate(map[bool]Kind{true: Repeat, false: Gap}[got < j.nonce],
				"record %d has the explicit nonce %d; %d was next", j.seq, got, j.nonce)
			return false
		}
		j.nonce++
	}
	j.seq++
	j.keyed += int64(size)
	j.drop(size)
	return true
}

// header is recordSize for the record that comes next, or as much of it as is there.
// TLS 1.3 has one type for all records; of 1.2 the kernel sends any.
func (j *judge) header(b []byte) (size int, ok bool) {
	if j.current.version == version13 && len(b) > 0 && b[0] != 23 {
		return 0, false
	}
	size, ok = recordSize(b, j.current.version)
	if size > 0 && size < headerSize+j.current.overhead() {
		ok = false
	}
	return size, ok
}

func (j *judge) mustOpen(r []byte) bool {
	return j.keyed < fullyOpened || len(r) <= smallRecord || j.seq%sampleEvery == 0 || len(j.keys) > 0 || j.updated || r[0] != 23
}

// open opens a record under the current key, or under the next one if that takes over
// here.
func (j *judge) open(r []byte) {
	if j.current.opens(r, j.seq, &j.scratch) {
		if j.updated {
			j.violate(Late, "record %d follows a KeyUpdate under its key", j.seq)
			return
		}
		j.updated = j.current.updates(j.scratch)
		j.opened++
		j.unknown = false
		return
	}
	if len(j.keys) > 0 && j.keys[0].at <= j.at && j.keys[0].opens(r, j.keys[0].seq, &j.scratch) {
		// The last record of the key before must be known, and none is if it was only framed.
		j.openLast()
		if j.over {
			return
		}
		j.take()
		j.updated = j.current.updates(j.scratch)
		j.opened++
		return
	}
	j.blame(r)
}

// blame says what is wrong with a record that does not open.
func (j *judge) blame(r []byte) {
	for shift := uint64(1); shift <= maxShift; shift++ {
		for _, seq := range []uint64{j.seq - shift, j.seq + shift} {
			if j.current.opens(r, seq, &j.scratch) {
				j.misplaced(seq, j.seq)
				return
			}
		}
	}
	j.violate(Forged, "the record with sequence number %d, of type %d and %d bytes, does not open", j.seq, r[0], len(r)-headerSize)
}

// openLast opens the record before, if it was not. Its number is one below.
func (j *judge) openLast() {
	if !j.unknown {
		return
	}
	j.unknown = false
	if j.current.opens(j.last, j.seq-1, &j.scratch) {
		j.opened++
		j.framed--
		return
	}
	j.seq--
	j.blame(j.last)
}

// end judges what is left when nothing more comes.
func (j *judge) end() {
	if j.over {
		return
	}
	j.advance()
	switch {
	case j.over:
		return
	case j.current != nil:
		j.openLast()
		if j.over {
			return
		}
		if _, ok := j.header(j.data); !ok || len(j.data) > 0 && (j.data[0] < 20 || j.data[0] > 24) {
			j.violate(Clear, "what follows record %d is no TLS record, with a write key installed", j.seq)
			return
		}
		j.cut = len(j.data) > 0
	case j.ulpAt >= 0:
		_, rest := j.plain(j.fromULP(j.data))
		if j.over {
			return
		}
		j.cut = len(rest) > 0
	}
	j.close()
}
