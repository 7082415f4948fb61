// SPDX-License-Identifier: Apache-2.0

package ktls

import (
	"bytes"
	"encoding/binary"
	"errors"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// netlinkMessage is one as the kernel sends it.
func netlinkMessage(length uint32, kind uint16, body ...byte) []byte {
	b, err := binary.Append(nil, binary.NativeEndian, unix.NlMsghdr{Len: length, Type: kind})
	if err != nil {
		panic(err)
	}
	return append(b, body...)
}

func TestOnlyAWholeAnswerToTheQuestionIsOne(t *testing.T) {
	refusal := binary.NativeEndian.AppendUint32(nil, ^uint32(uint32(syscall.ENOENT)-1))
	for _, c := range []struct {
		name string
		in   []byte
		want []byte
		err  error // nil: any
	}{
		{"an answer", netlinkMessage(20, sockDiagByFamily, 1, 2, 3, 4), []byte{1, 2, 3, 4}, nil},
		{"an empty one", netlinkMessage(16, sockDiagByFamily), []byte{}, nil},
		{"what follows is not looked at", netlinkMessage(18, sockDiagByFamily, 1, 2, 3, 4), []byte{1, 2}, nil},
		{"an error", netlinkMessage(20, unix.NLMSG_ERROR, refusal...), nil, syscall.ENOENT},
		{"a short error", netlinkMessage(18, unix.NLMSG_ERROR, 1, 2), nil, nil},
		{"another type", netlinkMessage(20, unix.NLMSG_DONE, 0, 0, 0, 0), nil, nil},
		{"longer than what came", netlinkMessage(24, sockDiagByFamily, 1, 2, 3, 4), nil, nil},
		{"shorter than its header", netlinkMessage(15, sockDiagByFamily), nil, nil},
		{"a part of a header", make([]byte, 15), nil, nil},
		{"nothing", nil, nil, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := diagReply(c.in)
			if !bytes.Equal(got, c.want) || (err == nil) != (c.want != nil) || c.err != nil && !errors.Is(err, c.err) {
				t.Errorf("%v, %v", got, err)
			}
		})
	}
}

func FuzzDiagReply(f *testing.F) {
	f.Add(netlinkMessage(20, sockDiagByFamily, 1, 2, 3, 4))
	f.Add(netlinkMessage(20, unix.NLMSG_ERROR, 0xfe, 0xff, 0xff, 0xff))
	f.Fuzz(func(t *testing.T, b []byte) {
		body, err := diagReply(b)
		if err == nil && len(body) > len(b)-16 {
			t.Errorf("%d bytes of %d", len(body), len(b))
		}
		if err == nil && len(body) >= diagReplySize {
			decodeULP(body[diagReplySize:])
		}
	})
}
