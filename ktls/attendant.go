// SPDX-License-Identifier: Apache-2.0

package ktls

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"syscall"

	"github.com/offloadd/offloadd/blob"
)

// Attendant does for the user of a connection, who has its descriptor in another
// process, what only the one with custody can: it follows the peer's KeyUpdates and
// changes keys, takes the records that a plain read does not, and says what they mean.
//
// It belongs to one connection, whose descriptor it is given with each call, and is not
// safe for concurrent use. Without custody it takes records all the same, and a KeyUpdate
// ends the connection.
type Attendant struct {
	custody *Custody
	control controlReader
	// enter is told each new state before its key is set.
	enter func(*blob.State) error
	owed  bool // the peer waits for a KeyUpdate of ours
	own   Account
	// read is the number of the record behind the last one that was taken here.
	read uint64
}

// NewAttendant takes over the custody of a connection, or nil. Before a key is set,
// enter, if there is one, is told its state and may refuse it.
//
// On a kernel that cannot change keys, or in TLS 1.2, the secrets of the next ones are
// destroyed here.
func NewAttendant(c syscall.Conn, custody *Custody, version blob.Version, enter func(*blob.State) error) (*Attendant, error) {
	a := &Attendant{custody: custody, enter: enter, control: controlReader{version: version}}
	if custody == nil {
		return a, nil
	}
	a.read = custody.received.seq
	if version == blob.TLS13 {
		switch err := control(c, canRekey); {
		case err == nil:
			a.control.follows = true
			return a, nil
		case !errors.Is(err, ErrNotSupported):
			custody.Destroy()
			return nil, err
		}
	}
	custody.Destroy()
	return a, nil
}

// Destroy overwrites the secrets. It may be called more than once.
func (a *Attendant) Destroy() { a.custody.Destroy() }

// String names the connection without telling a secret.
func (a *Attendant) String() string { return fmt.Sprintf("attendant with %v", a.custody) }

// Format writes String for every verb.
func (a *Attendant) Format(f fmt.State, _ rune) { io.WriteString(f, a.String()) }

// LogValue is String.
func (a *Attendant) LogValue() slog.Value { return slog.StringValue(a.String()) }

// MarshalText is String: an Attendant has no textual form.
func (a *Attendant) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// Epochs returns how often each key was changed; without custody nobody knows, and it is 0.
func (a *Attendant) Epochs() (read, write uint32) {
	if a.custody == nil {
		return 0, 0
	}
	return a.custody.readEpoch, a.custody.writeEpoch
}

// Regain is that of [Custody]. What the Attendant read and wrote itself it adds to the
// account, and it answers a KeyUpdate that the peer waits for before.
func (a *Attendant) Regain(ctx context.Context, c syscall.Conn, account Account) (Info, error) {
	if len(a.control.handshake)+len(a.control.alert) > 0 {
		return Info{}, &NotQuietError{What: "a message of the peer has arrived in part"}
	}
	if a.owed {
		if err := a.answerOwed(c); err != nil {
			return Info{}, err
		}
	}
	info, err := a.custody.Regain(ctx, c, Account{account.Read + a.own.Read, account.Written + a.own.Written})
	if err == nil {
		a.own = Account{}
	}
	return info, err
}

func (a *Attendant) answerOwed(c syscall.Conn) error {
	var end *ending
	err := control(c, func(fd int) error {
		if err := checkSocket(fd, a.custody.cookie); err != nil {
			return err
		}
		_, end = a.tryWriteKey(fd, updateNotRequested)
		return nil
	})
	switch {
	case err != nil:
		return err
	case end != nil:
		return errors.Join(end.err, Shutdown(c))
	case a.owed:
		return &NotQuietError{What: "the peer makes no room for the KeyUpdate it asked for"}
	}
	return nil
}

// Answer does what the question asks for. The error is the reason of the verdict Ended,
// nil for every other. A connection that it ends it shuts down, if the question says that
// nobody writes, or if a key was lost. If the descriptor is not that of the connection,
// nothing was done.
func (a *Attendant) Answer(c syscall.Conn, q blob.Question) (blob.Answer, error) {
	var answer blob.Answer
	var ended error
	err := control(c, func(fd int) error {
		if !q.Valid() {
			return errors.New("a question that contradicts itself")
		}
		if a.custody != nil {
			if err := checkSocket(fd, a.custody.cookie); err != nil {
				return err
			}
		}
		answer, ended = a.answer(fd, q)
		return nil
	})
	if err != nil {
		return blob.Answer{Verdict: blob.Ended, Reason: err.Error()}, err
	}
	return answer, ended
}

func (a *Attendant) answer(fd int, q blob.Question) (blob.Answer, error) {
	var end *ending
	switch {
	case q.Met:
		end = a.takeRecords(fd)
	case q.Updated:
		a.control.update = &keyUpdate{q.Requested}
		end = a.followUpdate(fd)
	}
	sent := true
	if end == nil && q.Quiet && (a.owed || q.Update) {
		if !a.control.follows {
			return blob.Answer{Refused: true, Reason: ErrNoUpdate.Error()}, nil
		}
		request := updateNotRequested
		if q.Request {
			request = updateRequested
		}
		sent, end = a.tryWriteKey(fd, request)
		if end != nil && q.Met && errors.Is(end.err, errBroken) {
			return blob.Answer{}, nil // what came before that can still be read
		}
	}
	if end != nil {
		return a.verdict(fd, q, end)
	}
	return blob.Answer{Owed: a.owed || !sent}, nil
}

// verdict says why the connection is over, or no more to be read, and ends it if that
// is our doing.
func (a *Attendant) verdict(fd int, q blob.Question, end *ending) (blob.Answer, error) {
	var alert *AlertError
	switch {
	case errors.Is(end.err, io.EOF):
		return blob.Answer{Verdict: blob.EndOfStream, Owed: a.owed}, nil
	case errors.As(end.err, &alert):
		return blob.Answer{Verdict: blob.Alerted, Alert: alert.Description, Reason: alert.Error()}, nil
	}
	answer := blob.Answer{Verdict: blob.Ended, Reason: end.err.Error()}
	if q.Quiet && end.alert != alertCloseNotify {
		answer.Alert = end.alert
		tryAlert(fd, alertLevelFatal, end.alert)
	}
	if q.Quiet || errors.Is(end.err, ErrRekey) {
		_ = shutdownBoth(fd) // an error means that there is no connection
	}
	a.Destroy()
	a.control.follows = false
	return answer, end.err
}

// maxTaken bounds the records that one question takes.
const maxTaken = 64

// takeRecords takes the records that are no data, up to the next that is.
func (a *Attendant) takeRecords(fd int) *ending {
	p, oob := make([]byte, maxRecordContent), make([]byte, cmsgRoom)
	defer clear(p)
	if end := a.noteData(fd); end != nil {
		return end
	}
	for range maxTaken {
		control, err := nextIsControl(fd, oob)
		if err == nil && !control {
			return nil
		}
		n, contentType, whole := 0, uint8(0), false
		if err == nil {
			n, contentType, whole, err = receiveRecord(fd, p, oob)
		}
		if err != nil {
			return endOf(err)
		}
		a.own.Read += uint64(n)
		end := a.control.control(contentType, p[:n])
		if end == nil && whole {
			end = a.followUpdate(fd)
		}
		if end != nil {
			return end
		}
		a.noteTaken(fd)
	}
	return nil
}

// endOf is the ending that an error of reading means, nil if there is just nothing to
// read: what the connection itself has come to the user's next read tells.
func endOf(err error) *ending {
	var end *ending
	if errors.As(err, &end) {
		return end
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		if end, ok := recordErrors[errno]; ok {
			return &end
		}
	}
	return nil
}

// noteData tells the rules for messages whether the user has read data since the last
// question: then more records were opened than the one that it met.
func (a *Attendant) noteData(fd int) *ending {
	seq, ok := a.nextRead(fd)
	if !ok || seq <= a.read+1 {
		return nil
	}
	return a.control.data()
}

func (a *Attendant) noteTaken(fd int) {
	if seq, ok := a.nextRead(fd); ok {
		a.read = seq
	}
}

// nextRead is the number of the next record to be opened. Where it cannot be told, the
// rules for what comes between data are stricter than they need be.
func (a *Attendant) nextRead(fd int) (uint64, bool) {
	if a.custody == nil {
		return 0, false
	}
	seq, err := nextRecord(fd, optRX, a.custody.suite)
	return seq, err == nil
}

// followUpdate changes the read key, if a KeyUpdate has come.
func (a *Attendant) followUpdate(fd int) *ending {
	u := a.control.update
	if u == nil {
		return nil
	}
	a.control.update = nil
	if !a.control.follows {
		return &ending{ErrKeyUpdate, alertInternalError}
	}
	if end := a.control.countUpdate(u, !a.owed); end != nil {
		return end
	}
	if err := a.custody.advance(fd, optRX, readKey, a.enter); err != nil {
		return &ending{fmt.Errorf("%w: %w", ErrRekey, err), alertInternalError}
	}
	a.read = 0
	a.owed = a.owed || u.requested
	return nil
}

// errBroken: nothing can be sent any more.
var errBroken = errors.New("the connection is broken")

// tryWriteKey sends a KeyUpdate and sets the next write key, if the kernel takes the
// message at once, and reports whether it did.
func (a *Attendant) tryWriteKey(fd int, request uint8) (sent bool, end *ending) {
	message := []byte{messageKeyUpdate, 0, 0, 1, request}
	n, err := sendOnce(fd, message, setRecordType(recordHandshake), syscall.MSG_DONTWAIT)
	switch {
	case errors.Is(err, syscall.EAGAIN):
		return false, nil
	case n == 0 && err != nil:
		// The socket tells that once, and has told us. Nobody waits for our KeyUpdate.
		a.owed = false
		err = fmt.Errorf("%w: %w", errBroken, err)
	case n != len(message):
		err = fmt.Errorf("the kernel took %d bytes of a KeyUpdate (%v)", n, err)
	default:
		a.own.Written += uint64(n)
		err = a.custody.advance(fd, optTX, readKey, a.enter)
	}
	if err != nil {
		return true, &ending{fmt.Errorf("%w: %w", ErrRekey, err), alertCloseNotify}
	}
	a.owed = false
	return true, nil
}
