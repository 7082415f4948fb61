// SPDX-License-Identifier: Apache-2.0

package ktls_test

// connRow is a row of the table of a Go program.
type connRow struct {
	act   closeAct
	state closeState
	conn  outcome
	// crypto is what happens with crypto/tls in our place, nil if it is the same, and why
	// we do otherwise.
	crypto *outcome
	why    string
}

// plainRow is a row of the table of a program that knows only plain system calls.
type plainRow struct {
	act   closeAct
	state closeState
	want  outcome
}

const (
	whyFIN     = "A FIN can come from anybody on the path; crypto/tls takes it for the end if it comes between two records"
	whyReset   = "Read and Write have told; that of a net.TCPConn does not repeat it either"
	whyTaken   = whyReset + ". A socket tells a reset once, to whoever asks first, and then only of an end"
	whyUnread  = "A close with data unread is a reset, and takes with it what is on its way; a Conn drops the data before"
	whyBlocked = "crypto/tls closes the socket under a Write that waits"
	whyFull    = "The kernel also holds records that TCP has no room for, so our queue is fuller: close_notify does not fit"
)

var connTable = []connRow{
	{peerNotifies, idle, outcome{"EOF", "ok", "ok", "all, close_notify"}, nil, ""},
	{peerNotifies, dataUnread, outcome{"EOF", "ok", "ok", "all, close_notify"}, nil, ""},
	{peerNotifies, dataQueued, outcome{"EOF", "ok", "ok", "all, close_notify"}, nil, ""},
	{peerNotifies, blockedWriter, outcome{"EOF", "ok", "ok", "all, close_notify"}, nil, ""},
	{peerNotifies, slowPeer, outcome{"EOF", "ok", "ok", "all, close_notify"}, nil, ""},
	{peerNotifies, deadPeer, outcome{"EOF", "ok", "ok", "nothing, no end"}, nil, ""},
	{peerNotifies, deadPeerFull, outcome{"EOF or waits", "waits", "undelivered or ok", "nothing, no end"}, &outcome{"EOF or waits", "waits", "ok", "nothing, no end"}, whyFull},
	{peerFINs, idle, outcome{"unexpected EOF", "ok", "ok", "all, close_notify"}, &outcome{"EOF", "ok", "ok", "all, close_notify"}, whyFIN},
	{peerFINs, dataUnread, outcome{"unexpected EOF", "ok", "ok", "all, close_notify"}, &outcome{"EOF", "ok", "ok", "all, close_notify"}, whyFIN},
	{peerFINs, dataQueued, outcome{"unexpected EOF", "ok", "ok", "all, close_notify"}, &outcome{"EOF", "ok", "ok", "all, close_notify"}, whyFIN},
	{peerFINs, blockedWriter, outcome{"unexpected EOF", "ok", "ok", "all, close_notify"}, &outcome{"EOF", "ok", "ok", "all, close_notify"}, whyFIN},
	{peerFINs, slowPeer, outcome{"unexpected EOF", "ok", "ok", "all, close_notify"}, &outcome{"EOF", "ok", "ok", "all, close_notify"}, whyFIN},
	{peerFINs, deadPeer, outcome{"unexpected EOF", "ok", "ok", "nothing, no end"}, &outcome{"EOF", "ok", "ok", "nothing, no end"}, whyFIN},
	{peerFINs, deadPeerFull, outcome{"unexpected EOF or waits", "waits", "undelivered or ok", "nothing, no end"}, &outcome{"EOF or waits", "waits", "ok", "nothing, no end"}, whyFIN + ". " + whyFull},
	{peerResets, idle, outcome{"reset", "reset", "ok", "gone"}, &outcome{"reset", "reset", "reset", "gone"}, whyReset},
	{peerResets, dataUnread, outcome{"reset", "reset", "ok", "gone"}, &outcome{"reset", "reset", "reset", "gone"}, whyReset},
	{peerResets, dataQueued, outcome{"reset", "reset", "ok", "gone"}, &outcome{"reset", "reset", "reset", "gone"}, whyReset},
	{peerResets, blockedWriter, outcome{"reset or unexpected EOF", "reset", "ok", "gone"}, &outcome{"EOF or reset", "reset", "reset", "gone"}, whyTaken},
	{peerResets, slowPeer, outcome{"reset or unexpected EOF", "reset", "ok", "gone"}, &outcome{"EOF or reset", "reset", "reset", "gone"}, whyTaken},
	{peerResets, deadPeer, outcome{"reset", "reset", "ok", "gone"}, &outcome{"reset", "reset", "reset", "gone"}, whyReset},
	{peerResets, deadPeerFull, outcome{"reset", "reset", "ok", "gone"}, &outcome{"reset", "reset", "reset", "gone"}, whyReset},
	{weClose, idle, outcome{"closed", "closed", "ok", "all, close_notify"}, nil, ""},
	{weClose, dataUnread, outcome{"closed", "closed", "ok", "all, close_notify"}, &outcome{"closed", "closed", "ok", "a part, a reset or all, a reset or all, close_notify"}, whyUnread},
	{weClose, dataQueued, outcome{"closed", "closed", "ok", "all, close_notify"}, nil, ""},
	{weClose, blockedWriter, outcome{"closed", "closed", "ok", "all, close_notify"}, &outcome{"closed", "closed", "ok", "all, a FIN alone"}, whyBlocked},
	{weClose, slowPeer, outcome{"closed", "ok", "ok", "all, close_notify"}, nil, ""},
	{weClose, deadPeer, outcome{"closed", "closed", "ok", "nothing, no end"}, nil, ""},
	{weClose, deadPeerFull, outcome{"closed", "closed", "undelivered or ok", "nothing, no end"}, &outcome{"closed", "closed", "ok", "nothing, no end"}, whyFull},
	{weCloseWrite, idle, outcome{"EOF", "closed for writing", "ok, ok", "all, close_notify"}, nil, ""},
	{weCloseWrite, dataUnread, outcome{"EOF", "closed for writing", "ok, ok", "all, close_notify"}, nil, ""},
	{weCloseWrite, dataQueued, outcome{"EOF", "closed for writing", "ok, ok", "all, close_notify"}, nil, ""},
	{weCloseWrite, blockedWriter, outcome{"EOF", "ok", "ok, ok", "all, close_notify"}, nil, ""},
	{weCloseWrite, slowPeer, outcome{"EOF", "closed for writing", "ok, ok", "all, close_notify"}, nil, ""},
	{weCloseWrite, deadPeer, outcome{"waits", "closed for writing", "ok, ok", "nothing, no end"}, nil, ""},
	{weCloseWrite, deadPeerFull, outcome{"waits", "waits or closed for writing", "waits, undelivered or waits, ok or ok, ok", "nothing, no end"}, &outcome{"waits", "waits", "ok, ok", "nothing, no end"}, whyFull},
}

var plainTable = []plainRow{
	{peerNotifies, idle, outcome{"EIO", "ok", "ok", "all, a FIN alone"}},
	{peerNotifies, dataUnread, outcome{"EIO", "ok", "ok", "all, a FIN alone"}},
	{peerNotifies, dataQueued, outcome{"EIO", "ok", "ok", "all, a FIN alone"}},
	{peerNotifies, blockedWriter, outcome{"EIO", "ok", "ok", "all, a FIN alone"}},
	{peerNotifies, slowPeer, outcome{"EIO", "ok", "ok", "all, a FIN alone"}},
	{peerNotifies, deadPeer, outcome{"EIO", "ok", "ok", "nothing, no end"}},
	{peerNotifies, deadPeerFull, outcome{"EIO or waits", "waits", "ok", "nothing, no end"}},
	{peerFINs, idle, outcome{"0", "ok", "ok", "all, a FIN alone"}},
	{peerFINs, dataUnread, outcome{"0", "ok", "ok", "all, a FIN alone"}},
	{peerFINs, dataQueued, outcome{"0", "ok", "ok", "all, a FIN alone"}},
	{peerFINs, blockedWriter, outcome{"0", "ok", "ok", "all, a FIN alone"}},
	{peerFINs, slowPeer, outcome{"0", "ok", "ok", "all, a FIN alone"}},
	{peerFINs, deadPeer, outcome{"0", "ok", "ok", "nothing, no end"}},
	{peerFINs, deadPeerFull, outcome{"0 or waits", "waits", "ok", "nothing, no end"}},
	{peerResets, idle, outcome{"reset", "ok, and is lost", "ok", "gone"}},
	{peerResets, dataUnread, outcome{"reset", "ok, and is lost", "ok", "gone"}},
	{peerResets, dataQueued, outcome{"reset", "ok, and is lost", "ok", "gone"}},
	{peerResets, blockedWriter, outcome{"0 or reset", "ok, and is lost or reset", "ok", "gone"}},
	{peerResets, slowPeer, outcome{"0 or reset", "ok, and is lost or reset", "ok", "gone"}},
	{peerResets, deadPeer, outcome{"reset", "ok, and is lost", "ok", "gone"}},
	{peerResets, deadPeerFull, outcome{"reset", "ok, and is lost", "ok", "gone"}},
	{weClose, idle, outcome{"-", "-", "ok", "all, a FIN alone"}},
	{weClose, dataUnread, outcome{"-", "-", "ok", "a part, a reset or all, a reset"}},
	{weClose, dataQueued, outcome{"-", "-", "ok", "all, a FIN alone or a part, a FIN alone"}},
	{weClose, blockedWriter, outcome{"-", "ok", "ok", "all, a FIN alone"}},
	{weClose, slowPeer, outcome{"-", "ok", "ok", "all, a FIN alone"}},
	{weClose, deadPeer, outcome{"-", "-", "ok", "nothing, no end"}},
	{weClose, deadPeerFull, outcome{"-", "-", "ok", "nothing, no end"}},
	{weCloseWrite, idle, outcome{"EIO", "ok, and is lost", "ok, ok", "all, a FIN alone"}},
	{weCloseWrite, dataUnread, outcome{"EIO or reset, and data is missing", "ok, and is lost or reset", "ok, ok", "all, a FIN alone or a part, a FIN alone"}},
	{weCloseWrite, dataQueued, outcome{"EIO or reset, and data is missing", "ok, and is lost or reset", "ok, ok", "all, a FIN alone or a part, a FIN alone"}},
	{weCloseWrite, blockedWriter, outcome{"EIO or reset, and data is missing", "reset or ok, and is lost", "ok, ok", "all, a FIN alone or a part, a FIN alone"}},
	{weCloseWrite, slowPeer, outcome{"EIO or reset, and data is missing", "reset or ok, and is lost", "ok, ok", "all, a FIN alone or a part, a FIN alone"}},
	{weCloseWrite, deadPeer, outcome{"waits", "ok, and is lost", "ok, ok", "nothing, no end"}},
	{weCloseWrite, deadPeerFull, outcome{"waits or reset", "reset or ok, and is lost", "ok, ok", "nothing, no end"}},
	{goodbyeClose, idle, outcome{"-", "-", "ok", "all, close_notify"}},
	{goodbyeClose, dataUnread, outcome{"-", "-", "ok", "a part, a reset or all, a reset or all, close_notify"}},
	{goodbyeClose, dataQueued, outcome{"-", "-", "ok", "all, close_notify"}},
	{goodbyeClose, blockedWriter, outcome{"-", "ok", "ok", "all, close_notify"}},
	{goodbyeClose, slowPeer, outcome{"-", "ok", "ok", "all, close_notify"}},
	{goodbyeClose, deadPeer, outcome{"-", "-", "ok", "nothing, no end"}},
	{goodbyeClose, deadPeerFull, outcome{"-", "-", "waits or ok", "nothing, no end"}},
	{goodbyeShutdown, idle, outcome{"EIO", "ok, and is lost", "ok, ok", "all, close_notify"}},
	{goodbyeShutdown, dataUnread, outcome{"EIO", "ok, and is lost", "ok, ok", "all, close_notify"}},
	{goodbyeShutdown, dataQueued, outcome{"EIO", "ok, and is lost", "ok, ok", "all, close_notify"}},
	{goodbyeShutdown, blockedWriter, outcome{"EIO", "ok", "ok, ok", "all, close_notify"}},
	{goodbyeShutdown, slowPeer, outcome{"EIO", "ok, and is lost", "ok, ok", "all, close_notify"}},
	{goodbyeShutdown, deadPeer, outcome{"waits", "ok, and is lost", "ok, ok", "nothing, no end"}},
	{goodbyeShutdown, deadPeerFull, outcome{"waits or reset", "reset or ok, and is lost", "waits, ok or ok, ok", "nothing, no end"}},
}
