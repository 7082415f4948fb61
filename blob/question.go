// SPDX-License-Identifier: Apache-2.0

package blob

// Question is what the user of a connection asks the one who has its custody. Nothing
// in it, or in its answer, is secret.
type Question struct {
	// Met: a read met a record that is no application data, which is still there. It is
	// to be taken. Nobody reads until the answer.
	Met bool
	// Updated: the asker has taken a KeyUpdate, and nothing behind it; Requested: it asks
	// for one of ours (RFC 8446, Section 4.6.3).
	Updated, Requested bool
	// Quiet: nobody writes until the answer, so what the peer waits for may go out.
	Quiet bool
	// Update: change the write key; Request: and ask the peer to change its own. Only if
	// Quiet.
	Update, Request bool
}

// Valid reports whether the question makes sense.
func (q Question) Valid() bool {
	return (!q.Requested || q.Updated) && (!q.Update || q.Quiet) && (!q.Request || q.Update) && !(q.Met && q.Updated)
}

// Verdict says how a connection goes on.
type Verdict uint8

// The verdicts.
const (
	// GoOn: read on.
	GoOn Verdict = iota
	// EndOfStream: the peer has sent close_notify.
	EndOfStream
	// Alerted: the peer has ended the connection by an alert.
	Alerted
	// Ended: the answerer has ended the connection.
	Ended
)

func (v Verdict) String() string {
	switch v {
	case GoOn:
		return "go on"
	case EndOfStream:
		return "end of stream"
	case Alerted:
		return "alert"
	case Ended:
		return "ended"
	}
	return "unknown verdict"
}

// Answer is what the one with custody says.
type Answer struct {
	Verdict Verdict
	// Owed: something must go before the next write, and could not go now, since somebody
	// may be writing, or the peer makes no room. Ask again, Quiet, before writing.
	Owed bool
	// Refused: the write key cannot be changed here.
	Refused bool
	// Alert is the description of the alert that the peer sent, or was sent; 0 if none.
	Alert uint8
	// Reason is for people.
	Reason string
}
