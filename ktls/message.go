// SPDX-License-Identifier: Apache-2.0

package ktls

import (
	"io"

	"github.com/offloadd/offloadd/blob"
	"golang.org/x/crypto/cryptobyte"
)

// Handshake messages that may follow the handshake (RFC 8446, Section 4.6; RFC
// 5246, Section 7.4.1.1).
const (
	messageHelloRequest     uint8 = 0
	messageNewSessionTicket uint8 = 4
	messageKeyUpdate        uint8 = 24
)

const (
	// What a KeyUpdate says (RFC 8446, Section 4.6.3).
	updateNotRequested uint8 = 0
	updateRequested    uint8 = 1

	messageHeaderSize = 4
	// maxMessage bounds in bytes what a peer can make us keep of a message that it
	// spreads over several records; crypto/tls has the same limit.
	maxMessage = 65536
	// maxUseless bounds how many messages without meaning for the application may
	// come between two data records; crypto/tls has the same limit.
	maxUseless = 16
	// maxUpdates bounds how many KeyUpdates may come with neither data nor an answer of
	// ours in between, and maxRequests how many of them may ask for one: each asks for no
	// more than the first did. RFC 8446 has no number; OpenSSL and BoringSSL take 32 of
	// either kind between data.
	maxUpdates  = 1024
	maxRequests = 32
)

// controlReader follows the records of one connection that are not application
// data. The kernel hands over their content and never interprets it.
type controlReader struct {
	version blob.Version
	// handshake and alert hold the beginning of a message whose end has not come yet.
	handshake, alert []byte
	useless          int
	// follows: whoever reads can change the key. Else a KeyUpdate is the end.
	follows bool
	// update is the KeyUpdate that the record at hand ends with, nil if it has none.
	update *keyUpdate
	// updates and requests are those without data in between.
	updates, requests int
}

// keyUpdate is one that the peer sent.
type keyUpdate struct{ requested bool }

// data notes a piece of application data. A message must not be interrupted by it
// (RFC 8446, Section 5.1).
func (r *controlReader) data() *ending {
	if len(r.handshake)+len(r.alert) > 0 {
		return violation(alertUnexpectedMessage, "application data within a handshake message or alert")
	}
	r.useless, r.updates, r.requests = 0, 0, 0
	return nil
}

// control takes a piece of a record of another type. It returns nil if reading
// goes on, when r.update has been seen to: the next record may be under another key.
func (r *controlReader) control(contentType uint8, piece []byte) *ending {
	switch {
	case len(piece) == 0:
		return violation(alertUnexpectedMessage, "empty record of type %d", contentType)
	case contentType == recordAlert && len(r.handshake) == 0:
		return r.alertPiece(piece)
	case contentType == recordHandshake && len(r.alert) == 0:
		return r.handshakePiece(piece)
	}
	return violation(alertUnexpectedMessage, "record of type %d", contentType)
}

func (r *controlReader) alertPiece(piece []byte) *ending {
	r.alert = append(r.alert, piece[:min(len(piece), 3)]...)
	if len(r.alert) < 2 {
		return nil
	}
	if len(r.alert) > 2 {
		return violation(alertDecodeError, "alert of more than two bytes")
	}
	level, description := r.alert[0], r.alert[1]
	r.alert = r.alert[:0]
	switch {
	case description == alertCloseNotify:
		return &ending{io.EOF, alertCloseNotify}
	case r.version == blob.TLS12 && level == alertLevelWarning,
		description == alertUserCanceled:
		// RFC 5246, Section 7.2.2 leaves it to the receiver of a warning whether to go on.
		// After user_canceled comes close_notify (RFC 8446, Section 6.1).
		return r.uselessMessage()
	}
	return &ending{&AlertError{description}, alertCloseNotify}
}

func (r *controlReader) handshakePiece(piece []byte) *ending {
	r.handshake = append(r.handshake, piece...)
	for len(r.handshake) >= messageHeaderSize && r.update == nil {
		kind := r.handshake[0]
		size := int(r.handshake[1])<<16 | int(r.handshake[2])<<8 | int(r.handshake[3])
		if size > maxMessage {
			return violation(alertDecodeError, "handshake message of %d bytes", size)
		}
		if len(r.handshake) < messageHeaderSize+size {
			return nil
		}
		if end := r.message(kind, r.handshake[messageHeaderSize:messageHeaderSize+size]); end != nil {
			return end
		}
		r.handshake = r.handshake[messageHeaderSize+size:]
	}
	if r.update != nil && len(r.handshake) > 0 {
		// RFC 8446, Section 5.1: what precedes a change of keys ends with its record.
		return violation(alertUnexpectedMessage, "a message behind a KeyUpdate in its record")
	}
	if len(r.handshake) == 0 {
		r.handshake = nil
	}
	return nil
}

func (r *controlReader) message(kind uint8, body []byte) *ending {
	switch {
	case r.version == blob.TLS13 && kind == messageNewSessionTicket:
		if !validTicket(body) {
			return violation(alertDecodeError, "malformed NewSessionTicket")
		}
		// The resumption secret stayed with the handshake: a ticket is of no use here.
		return r.uselessMessage()
	case r.version == blob.TLS13 && kind == messageKeyUpdate:
		if len(body) != 1 {
			return violation(alertDecodeError, "malformed KeyUpdate")
		}
		if body[0] > updateRequested {
			return violation(alertIllegalParameter, "KeyUpdate with request %d", body[0])
		}
		if r.follows {
			r.update = &keyUpdate{body[0] == updateRequested}
			return nil
		}
		// The peer is right and we cannot: internal_error says just that (RFC 8446,
		// Section 6.2).
		return &ending{ErrKeyUpdate, alertInternalError}
	case r.version == blob.TLS12 && kind == messageHelloRequest:
		if len(body) != 0 {
			return violation(alertDecodeError, "malformed HelloRequest")
		}
		// A client that does not renegotiate may ignore it (RFC 5246, Section 7.4.1.1).
		return r.uselessMessage()
	}
	return violation(alertUnexpectedMessage, "handshake message %d after the handshake", kind)
}

// countUpdate counts a KeyUpdate. answered says that nothing the peer asked for before
// is left to be done.
func (r *controlReader) countUpdate(u *keyUpdate, answered bool) *ending {
	r.updates++
	if u.requested {
		r.requests++
		if answered {
			r.updates, r.requests = 1, 1
		}
	}
	if r.updates > maxUpdates || r.requests > maxRequests {
		return violation(alertUnexpectedMessage, "%d KeyUpdates, %d of them requests, with neither data nor an answer in between",
			r.updates, r.requests)
	}
	return nil
}

func (r *controlReader) uselessMessage() *ending {
	if r.useless++; r.useless > maxUseless {
		return violation(alertUnexpectedMessage, "%d messages without data in between", r.useless)
	}
	return nil
}

// validTicket parses a NewSessionTicket to its end (RFC 8446, Section 4.6.1).
func validTicket(body []byte) bool {
	s := cryptobyte.String(body)
	var lifetime, ageAdd uint32
	var nonce, ticket, extensions cryptobyte.String
	if !s.ReadUint32(&lifetime) || !s.ReadUint32(&ageAdd) ||
		!s.ReadUint8LengthPrefixed(&nonce) ||
		!s.ReadUint16LengthPrefixed(&ticket) || ticket.Empty() ||
		!s.ReadUint16LengthPrefixed(&extensions) || !s.Empty() {
		return false
	}
	for !extensions.Empty() {
		var kind uint16
		var data cryptobyte.String
		if !extensions.ReadUint16(&kind) || !extensions.ReadUint16LengthPrefixed(&data) {
			return false
		}
	}
	return true
}
