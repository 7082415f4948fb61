// SPDX-License-Identifier: Apache-2.0

package ktls

import "fmt"

// Content types (RFC 8446, Section 5.1).
const (
	recordAlert     uint8 = 21
	recordHandshake uint8 = 22
	recordData      uint8 = 23
)

// Alert levels and the descriptions we send or act on (RFC 8446, Section 6).
const (
	alertLevelWarning uint8 = 1
	alertLevelFatal   uint8 = 2

	alertCloseNotify       uint8 = 0
	alertUnexpectedMessage uint8 = 10
	alertBadRecordMAC      uint8 = 20
	alertRecordOverflow    uint8 = 22
	alertIllegalParameter  uint8 = 47
	alertDecodeError       uint8 = 50
	alertInternalError     uint8 = 80
	alertUserCanceled      uint8 = 90
)

// alertName returns the name in RFC 8446, Section 6.2, or RFC 5246, Section 7.2.2.
func alertName(description uint8) string {
	switch description {
	case alertCloseNotify:
		return "close_notify"
	case alertUnexpectedMessage:
		return "unexpected_message"
	case alertBadRecordMAC:
		return "bad_record_mac"
	case alertRecordOverflow:
		return "record_overflow"
	case 40:
		return "handshake_failure"
	case 42:
		return "bad_certificate"
	case 43:
		return "unsupported_certificate"
	case 44:
		return "certificate_revoked"
	case 45:
		return "certificate_expired"
	case 46:
		return "certificate_unknown"
	case alertIllegalParameter:
		return "illegal_parameter"
	case 48:
		return "unknown_ca"
	case 49:
		return "access_denied"
	case alertDecodeError:
		return "decode_error"
	case 51:
		return "decrypt_error"
	case 70:
		return "protocol_version"
	case 71:
		return "insufficient_security"
	case alertInternalError:
		return "internal_error"
	case 86:
		return "inappropriate_fallback"
	case alertUserCanceled:
		return "user_canceled"
	case 100:
		return "no_renegotiation"
	case 109:
		return "missing_extension"
	case 110:
		return "unsupported_extension"
	case 112:
		return "unrecognized_name"
	case 116:
		return "certificate_required"
	case 120:
		return "no_application_protocol"
	}
	return "unknown"
}

// ending is why reading is over, and the alert that tells the peer so.
type ending struct {
	err error
	// alert is what to send; close_notify means that nothing is to be sent.
	alert uint8
}

func (e *ending) Error() string { return e.err.Error() }
func (e *ending) Unwrap() error { return e.err }

// violation is an ending that is the peer's fault.
func violation(alert uint8, format string, args ...any) *ending {
	return &ending{fmt.Errorf("%w: %s", ErrProtocol, fmt.Sprintf(format, args...)), alert}
}
