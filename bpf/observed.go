// SPDX-License-Identifier: Apache-2.0

package bpf

// The other side of src/observer.h. Each struct has the size and the gaps of its C side, so that a map's value is one.

// Names of maps.
const (
	mapObserved       = "observed"
	mapObservedSums   = "observed_sums"
	mapObservedEvents = "observed_events"
)

// listProgram is the iterator, which is read by its pin.
func listProgram() *Program { return &Program{Name: "observe_list", Attach: "iter", Hook: "tcp"} }

// Directions, as indices.
const (
	outward = iota
	inward
	directions
)

type rawAddress struct {
	Local, Peer         [16]byte
	LocalPort, PeerPort uint16
	Family              uint16
	_                   uint16
}

type rawConnection struct {
	Since         uint64
	Sequence      [directions]uint64
	Bytes         [directions]uint64
	Records       [directions]uint64
	Calls         [directions]uint64
	Errors        [errorKinds]uint32
	Rekeys        [directions]uint32
	Failures      uint32
	Failure       int32
	Unread        uint32
	UnreadRecords uint32
	Ended         int32
	Path          [directions]uint8
	End           uint8
	PeerFirst     uint8
	Version       uint16
	Cipher        uint16
	Address       rawAddress
	_             uint32
}

type rawEvent struct {
	Time       uint64
	Cookie     uint64
	Kind       uint32
	Direction  uint32
	Error      int32
	Layer      uint32
	Connection rawConnection
}

type rawSums struct {
	Connections uint64
	Installs    [directions][2]uint64
	Rekeys      [directions]uint64
	Bytes       [directions]uint64
	Records     [directions]uint64
	Calls       [directions]uint64
	Errors      [errorKinds]uint64
	Failures    uint64
	Ends        [ends]uint64
	Unlisted    uint64
	Lost        uint64
}

type rawListed struct {
	Cookie        uint64
	Inode         uint64
	Sequence      [directions]uint64
	Sent          uint64
	Acked         uint64
	Received      uint64
	Retransmitted uint64
	UID           uint32
	State         uint32
	Version       uint16
	Cipher        uint16
	Path          [directions]uint8
	_             uint16
	Address       rawAddress
}

// Kinds of errors that calls returned. EAGAIN and interruptions are no errors.
const (
	ErrorBadMessage = iota // a record did not authenticate, or is too short
	ErrorIO                // a record is no data, and the caller left no room for its type
	ErrorMessageSize
	ErrorInvalid
	ErrorReset // the connection is no more
	ErrorTimedOut
	ErrorKeyExpired // the peer has changed its key, and nobody has set the new one
	ErrorOther
	errorKinds
)

// ErrorNames are the names of the kinds of errors, by kind.
var ErrorNames = [errorKinds]string{"bad_message", "io", "message_size", "invalid", "reset", "timed_out", "key_expired", "other"}

// An End is how a connection ended.
type End uint8

const (
	Live    End = iota
	Proper      // by FIN, and what had come was read
	Unread      // closed with unread data, which TCP answers by a reset
	Aborted     // from here: SO_LINGER 0, or destroyed
	Reset       // by the peer
	TimedOut
	OtherEnd
	ends
)

// EndNames are the names of ends.
var EndNames = [ends]string{"live", "proper", "unread", "aborted", "reset", "timed_out", "other"}

func (e End) String() string { return nameOf(int(e), EndNames[:]) }

// A Path is where records of a direction are made or opened.
type Path uint8

const (
	NoKey    Path = iota // TCP as it is
	Software             // on the CPU
	Device
)

var pathNames = [...]string{"none", "software", "device"}

func (p Path) String() string { return nameOf(int(p), pathNames[:]) }

// An EventKind is what happened.
type EventKind uint32

const (
	Installed EventKind = iota + 1
	Rekeyed
	Failed // an error
	Closed
)

var eventNames = [...]string{"none", "installed", "rekeyed", "error", "closed"}

func (k EventKind) String() string { return nameOf(int(k), eventNames[:]) }

// nameOf: a later object may know more than this program.
func nameOf(n int, names []string) string {
	if n < len(names) {
		return names[n]
	}
	return "unknown"
}
