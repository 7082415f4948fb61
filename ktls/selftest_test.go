// SPDX-License-Identifier: Apache-2.0

package ktls_test

import (
	"testing"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/ktls/ktlstest"
)

// selftest is a case of the kernel's tools/testing/selftests/net/tls.c, by its name
// there, done anew: through Conn where a Conn can express it, else by plain calls.
type selftest struct {
	name   string
	proves string
	run    func(t *testing.T, suite blob.CipherSuite)
	// on says for which suites, nil for all.
	on func(blob.CipherSuite) bool
}

// Ways to run one: with two Conns, by plain calls, with records carried by hand.
func byConn(f func(*ends)) func(*testing.T, blob.CipherSuite) {
	return func(t *testing.T, suite blob.CipherSuite) { f(newEnds(t, suite)) }
}

func byCalls(f func(*wire)) func(*testing.T, blob.CipherSuite) {
	return func(t *testing.T, suite blob.CipherSuite) { f(newWire(t, suite)) }
}

func byHand(f func(*relay)) func(*testing.T, blob.CipherSuite) {
	return func(t *testing.T, suite blob.CipherSuite) { f(newRelay(t, suite)) }
}

// Which suites.
func one(s blob.CipherSuite) bool        { return s == suite13 }
func of12(s blob.CipherSuite) bool       { return s.Version() == blob.TLS12 }
func rekeys(s blob.CipherSuite) bool     { return s.Version() == blob.TLS13 && ktlstest.CanRekey() }
func rekeysOnce(s blob.CipherSuite) bool { return one(s) && ktlstest.CanRekey() }

var (
	someData    = sealedPiece{23, "Hello world"}
	noData      = sealedPiece{23, ""}
	someControl = sealedPiece{22, "Hello world"}
	noControl   = sealedPiece{22, ""}
)

var selftests = []selftest{
	{"sendfile", "a file goes whole", byConn(selftestSendfile), nil},
	{"send_then_sendfile", "a file behind a record", byConn(selftestSendThenSendfile), nil},
	{"multi_chunk_sendfile", "files in pieces of every awkward size", byConn(selftestMultiChunkSendfile), nil},
	{"recv_max", "a full record", byConn(selftestRecvMax), nil},
	{"recv_small", "a small record", byConn(selftestRecvSmall), nil},
	{"msg_more", "MSG_MORE keeps a record open until a send without it", byCalls(selftestMsgMore), nil},
	{"cmsg_msg_more", "only data may stay open", byCalls(selftestCmsgMsgMore), one},
	{"msg_more_then_cmsg", "another type ends the open record", byCalls(selftestMsgMoreThenCmsg), nil},
	{"msg_more_unsent", "an open record does not leave", byCalls(selftestMsgMoreUnsent), nil},
	{"msg_eor", "MSG_EOR ends a record", byCalls(selftestMsgEOR), nil},
	{"sendmsg_single", "one piece", byConn(selftestRecvSmall), nil},
	{"sendmsg_fragmented", "up to 64 pieces in a call", byCalls(selftestSendmsgFragmented), nil},
	{"sendmsg_large", "128 full records in a row", byConn(selftestSendmsgLarge), nil},
	{"sendmsg_multiple", "pieces of several sizes", byCalls(selftestSendmsgMultiple), nil},
	{"sendmsg_multiple_stress", "1024 pieces", byCalls(selftestSendmsgMultipleStress), nil},
	{"splice_from_pipe", "a record from a pipe", byCalls(selftestSpliceFromPipe), nil},
	{"splice_more", "SPLICE_F_MORE keeps a record open", byCalls(selftestSpliceMore), nil},
	{"splice_from_pipe2", "from two pipes", byCalls(selftestSpliceFromPipe2), nil},
	{"send_and_splice", "from a pipe behind a record", byCalls(selftestSendAndSplice), nil},
	{"splice_to_pipe", "a record into a pipe", byCalls(selftestSpliceToPipe), nil},
	{"splice_cmsg_to_pipe", "a record of another type does not go into a pipe, and stays", byCalls(selftestSpliceCmsgToPipe), nil},
	{"splice_dec_cmsg_to_pipe", "nor one that was decrypted already", byCalls(selftestSpliceDecCmsgToPipe), nil},
	{"recv_and_splice", "the half of a record that was not read", byCalls(selftestRecvAndSplice), nil},
	{"peek_and_splice", "what was looked at comes out once", byCalls(selftestPeekAndSplice), nil},
	{"splice_to_pipe_small", "a pipe smaller than a record, as far as Probe says that it loses nothing", byCalls(selftestSpliceToPipeSmall), one},
	{"splice_short", "more fragments than a record takes, then the end of the pipe: nothing stays back", byCalls(selftestSpliceShort), nil},
	{"recvmsg_single", "one piece", byConn(selftestRecvSmall), nil},
	{"recvmsg_single_max", "one full piece", byConn(selftestRecvMax), nil},
	{"recvmsg_multiple", "into 1024 pieces", byCalls(selftestRecvmsgMultiple), nil},
	{"single_send_multiple_recv", "two records from one send", byConn(selftestSingleSendMultipleRecv), nil},
	{"multiple_send_single_recv", "one read of two records", byConn(selftestMultipleSendSingleRecv), nil},
	{"single_send_multiple_recv_non_align", "the rest of a record is what is left of it", byConn(selftestNonAlign), nil},
	{"recv_partial", "a record in two reads", byConn(selftestRecvPartial), nil},
	{"recv_nonblock", "nothing is there", byConn(selftestRecvNonblock), nil},
	{"recv_peek", "a look takes nothing", byCalls(selftestRecvPeek), nil},
	{"recv_peek_multiple", "nor do a hundred", byCalls(selftestRecvPeekMultiple), nil},
	{"recv_peek_multiple_records", "a look into one record, and one that was kept open", byCalls(selftestRecvPeekMultipleRecords), nil},
	{"recv_peek_large_buf_mult_recs", "a look across records", byCalls(selftestRecvPeekLargeBuf), nil},
	{"recv_lowat", "SO_RCVLOWAT counts content", byCalls(selftestRecvLowat), nil},
	{"bidir", "both directions", byConn(selftestBidir), nil},
	{"pollin", "readable with a record, and not without", byCalls(selftestPollin), nil},
	{"poll_wait", "a reader is woken", byConn(selftestPollWait), nil},
	{"poll_wait_split", "the rest of a record is readable", byCalls(selftestPollWaitSplit), nil},
	{"blocking", "100,000 bytes, read while they are written", byConn(selftestBlocking), nil},
	{"nonblocking", "the same through a tiny send buffer", byConn(selftestNonblocking), nil},
	{"mutliproc_even", "6 read and 6 write at once", byCalls(selftestMultiproc(6, 6, false)), one},
	{"mutliproc_readers", "4 read and 12 write", byCalls(selftestMultiproc(4, 12, false)), one},
	{"mutliproc_writers", "10 read and 2 write", byCalls(selftestMultiproc(10, 2, false)), one},
	{"mutliproc_sendpage_even", "the same with files", byCalls(selftestMultiproc(6, 6, true)), one},
	{"mutliproc_sendpage_readers", "the same with files", byCalls(selftestMultiproc(4, 12, true)), one},
	{"mutliproc_sendpage_writers", "the same with files", byCalls(selftestMultiproc(10, 2, true)), one},
	{"control_msg", "another type needs room for it, and waits until it is taken", byCalls(selftestControlMsg), nil},
	{"control_msg_nomerge", "two such records are two", byCalls(selftestControlMsgNomerge), nil},
	{"data_control_data", "data is not read across another type", byCalls(selftestDataControlData), nil},
	{"shutdown", "both ends after a record", byConn(selftestShutdown), nil},
	{"shutdown_unsent", "with a record open, which nobody gets", byCalls(selftestShutdownUnsent), nil},
	{"shutdown_reuse", "a socket that was shut down does not listen or connect", byCalls(selftestShutdownReuse), nil},
	{"getsockopt", "the key as it was set, by its exact size only", byCalls(selftestGetsockopt), nil},
	{"recv_efault", "what was read before a bad address counts", byCalls(selftestRecvEfault), nil},
	{"rekey", "a KeyUpdate stops reading until the next key is there", byCalls(selftestRekey), rekeys},
	{"rekey_fail", "another version or cipher is no next key", byCalls(selftestRekeyFail), rekeys},
	{"rekey_fail (TLS 1.2)", "there is no next key", byCalls(selftestRekeyRefused), of12},
	{"rekey_peek", "a look finds the KeyUpdate", byCalls(selftestRekeyPeek), rekeys},
	{"splice_rekey", "splice stops as reading does", byCalls(selftestSpliceRekey), rekeys},
	{"rekey_peek_splice", "a look, then splice, before the KeyUpdate", byCalls(selftestRekeyPeekSplice), rekeys},
	{"rekey_getsockopt", "the kernel holds the next key", byCalls(selftestRekeyGetsockopt), rekeys},
	{"rekey_poll_pending", "not readable without the next key, and woken by it", byCalls(selftestRekeyPollPending), rekeys},
	{"rekey_poll_delay", "woken by the next record", byCalls(selftestRekeyPollDelay), rekeys},
	{"rekey_rx, rekey_tx", "a key may be replaced before it was used", byCalls(selftestRekeyRX), rekeysOnce},
	{"bad_cipher", "unknown versions and ciphers are refused", byCalls(selftestBadCipher), one},
	{"recseq_wrap", "no record behind the last number", byCalls(selftestRecseqWrap), one},
	{"disconnect", "connect to no address is refused, and harms nothing", byCalls(selftestDisconnect), one},
	{"zero_len data_data_data", "three records", selftestZeroLen(someData, someData, someData), nil},
	{"zero_len data_0ctrl_data", "an empty record of another type ends a Conn", selftestZeroLen(someData, noControl, someData), nil},
	{"zero_len 0data_0data_0data", "empty data is nothing", selftestZeroLen(noData, noData, noData), nil},
	{"zero_len 0data_0data_ctrl", "and hides no other type", selftestZeroLen(noData, noData, someControl), nil},
	{"zero_len 0data_0data_0ctrl", "not even an empty one", selftestZeroLen(noData, noData, noControl), nil},
	{"zero_len 0ctrl_0ctrl_0ctrl", "the first is the end", selftestZeroLen(noControl, noControl, noControl), nil},
	{"zero_len 0data_0data_data", "data behind empty data", selftestZeroLen(noData, noData, someData), nil},
	{"zero_len data_0data_0data", "data before empty data", selftestZeroLen(someData, noData, noData), nil},
	{"bad_rec", "no record: final, though the kernel says so once only", byHand(selftestBadRec), nil},
	{"bad_auth", "a forged record is final", byHand(selftestBadAuth), nil},
	{"bad_in_large_read", "what came before it is read", byHand(selftestBadInLargeRead), nil},
	{"bad_cmsg", "also where it is of another type", byHand(selftestBadCmsg), nil},
	{"timeo", "a reader's time runs out, again and again", byConn(selftestRecvNonblock), one},
	{"poll_partial_rec", "a part of a record is not readable", byHand(selftestPollPartialRecord), nil},
	{"epoll_partial_rec, poll_partial_rec_async", "nor does it wake a Read for good", byHand(selftestPartialRecord), nil},
	{"oob_pressure", "urgent data does no harm", byHand(selftestOOBPressure), one},
	{"tls_12_tx_max_payload_len", "records as small as asked", selftestTxMaxPayloadLen, nil},
	{"tls_12_tx_max_payload_len_open_rec", "not while one is open", byCalls(selftestTxMaxPayloadLenOpenRec), one},
	{"non_established", "the ULP is for established sockets, once", byCalls(selftestNonEstablished), one},
	{"no_pad", "TLS_RX_EXPECT_NO_PAD can be set, asked for, and unset", byCalls(selftestNoPad), one},
	{"tls_v6ops", "over IPv6, whose address stays", selftestV6, one},
	{"prequeue", "records that came before the key", selftestPrequeue, nil},
}

// selftestsLeftOut are the others there.
var selftestsLeftOut = map[string]string{
	"base_base":                          "a socket with the ULP and without a key sends clear text: Install and the guards see to it that none is left so",
	"keysizes":                           "TestTheKernelHoldsExactlyTheExportedState sets the keys of all suites, both ways",
	"data_steal":                         "a reader that waits on the plain socket while it gets keys: Install is for who has the socket alone",
	"recvmsg_nopad_retry_iov":            "nobody here reads with TLS_RX_EXPECT_NO_PAD; Probe tries whether it is sound",
	"variants 13_nopad":                  "the same",
	"variants aes_ccm, sm4_*, aria_gcm*": "suites that crypto/tls does not negotiate",
	"notls":                              "the same cases over plain TCP test no TLS",
}

// TestTheKernelsOwnSelftests runs them with every AEAD in one version of TLS at least.
func TestTheKernelsOwnSelftests(t *testing.T) {
	ktlstest.Require(t)
	seen := map[string]bool{}
	for _, s := range selftests {
		if _, both := selftestsLeftOut[s.name]; both || seen[s.name] || s.proves == "" {
			t.Errorf("%s is listed twice, or proves nothing", s.name)
		}
		seen[s.name] = true
		for _, suite := range []blob.CipherSuite{
			blob.TLS_AES_128_GCM_SHA256, blob.TLS_CHACHA20_POLY1305_SHA256,
			blob.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, blob.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
		} {
			if s.on == nil || s.on(suite) {
				t.Run(s.name+", "+suite.String(), func(t *testing.T) {
					t.Parallel()
					s.run(t, suite)
				})
			}
		}
	}
}
