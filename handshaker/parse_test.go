// SPDX-License-Identifier: Apache-2.0

package handshaker

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"
)

var (
	aRandom = strings.Repeat("ab", 32)
	aSecret = strings.Repeat("cd", 32)
)

func TestKeyLogLines(t *testing.T) {
	for name, tt := range map[string]struct {
		lines []string
		ok    bool
	}{
		"both secrets":     {[]string{"CLIENT_TRAFFIC_SECRET_0 " + aRandom + " " + aSecret, "SERVER_TRAFFIC_SECRET_0 " + aRandom + " " + aSecret}, true},
		"an unknown label": {[]string{"EXPORTER_SECRET " + aRandom + " " + aSecret}, true},
		"twice the same":   {[]string{"CLIENT_RANDOM " + aRandom + " " + aSecret, "CLIENT_RANDOM " + aRandom + " " + aSecret}, false},
		"two connections":  {[]string{"CLIENT_TRAFFIC_SECRET_0 " + aRandom + " " + aSecret, "SERVER_TRAFFIC_SECRET_0 " + aSecret + " " + aSecret}, false},
		"short random":     {[]string{"CLIENT_RANDOM abcd " + aSecret}, false},
		"random not hex":   {[]string{"CLIENT_RANDOM " + strings.Repeat("xy", 32) + " " + aSecret}, false},
		"secret not hex":   {[]string{"CLIENT_RANDOM " + aRandom + " xy"}, false},
		"no secret":        {[]string{"CLIENT_RANDOM " + aRandom + " "}, false},
		"two fields":       {[]string{"CLIENT_RANDOM " + aRandom}, false},
		"empty":            {[]string{""}, false},
	} {
		var l keyLog
		var err error
		for _, line := range tt.lines {
			b := []byte(line + "\n")
			if _, e := l.Write(b); e != nil {
				err = e
			}
			if !bytes.Equal(b, make([]byte, len(b))) {
				t.Errorf("%s: the line was not overwritten", name)
			}
		}
		if (err == nil) != tt.ok || err != nil && !errors.Is(err, ErrLocal) || l.err != err {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && (strings.Contains(err.Error(), "cd") || strings.Contains(err.Error(), "xy")) {
			t.Errorf("%s: the error tells of the secret: %v", name, err)
		}
		client := l.client
		l.destroy()
		if bytes.Contains(client.Bytes(), []byte{0xcd}) {
			t.Errorf("%s: not destroyed", name)
		}
	}
}

func helloMessage(kind byte, body []byte) []byte {
	n := len(body)
	return append([]byte{kind, byte(n >> 16), byte(n >> 8), byte(n)}, body...)
}

func TestHellosAreFoundHoweverTheyAreCut(t *testing.T) {
	random := bytes.Repeat([]byte{7}, 32)
	body := append([]byte{3, 3}, random...)
	body = append(body, 3, 'a', 'b', 'c', 0xc0, 0x2f, 0)
	stream := append(helloMessage(msgServerHello, body), helloMessage(11, make([]byte, 500))...)
	wire := func(cut int) (w []byte) {
		for rest := stream; len(rest) > 0; {
			n := min(cut, len(rest))
			w = append(append(w, 22, 3, 3, byte(n>>8), byte(n)), rest[:n]...)
			rest = rest[n:]
		}
		// What follows is protected and must not be looked at.
		return append(append(w, 20, 3, 3, 0, 1, 1), testRecord(40)...)
	}
	for cut := 1; cut <= len(stream); cut++ {
		rs, err := splitRecords(wire(cut))
		if err != nil {
			t.Fatal(err)
		}
		h, err := parseServerHello(plaintextHandshake(rs))
		if err != nil || h.version != 0x303 || h.suite != 0xc02f || !bytes.Equal(h.random, random) {
			t.Fatalf("records of %d bytes: %+v, %v", cut, h, err)
		}
	}
	for cut := range len(body) + 3 {
		if _, err := parseServerHello(stream[:cut]); !errors.Is(err, ErrLocal) {
			t.Errorf("first %d bytes only: %v", cut, err)
		}
		if _, err := clientRandom(stream[:cut]); !errors.Is(err, ErrLocal) {
			t.Errorf("ServerHello taken for a ClientHello: %v", err)
		}
	}
	if got, err := clientRandom(helloMessage(msgClientHello, body)); err != nil || !bytes.Equal(got, random) {
		t.Error(got, err)
	}
}

func TestAnUnfinishedRecordIsNoticed(t *testing.T) {
	stream := append(testRecord(3), testRecord(5)...)
	for cut := range stream {
		_, err := splitRecords(stream[:cut])
		if whole := cut == 0 || cut == 8; (err == nil) != whole {
			t.Errorf("first %d bytes: %v", cut, err)
		}
	}
}

func FuzzKeyLog(f *testing.F) {
	f.Add([]byte("CLIENT_RANDOM " + aRandom + " " + aSecret + "\n"))
	f.Add([]byte("SERVER_TRAFFIC_SECRET_0 " + aRandom + " " + aSecret + "\n"))
	f.Add([]byte("a b c"))
	f.Fuzz(func(t *testing.T, line []byte) {
		var l keyLog
		b := bytes.Clone(line)
		if _, err := l.Write(b); err == nil && l.master.Len() > 0 {
			// What is accepted writes back to what was read.
			want := fmt.Sprintf("CLIENT_RANDOM %x %x", l.random, l.master.Bytes())
			if got := strings.TrimSuffix(string(line), "\n"); !strings.EqualFold(got, want) {
				t.Errorf("%q read as %q", got, want)
			}
		}
		if !bytes.Equal(b, make([]byte, len(b))) {
			t.Error("line not overwritten")
		}
	})
}

func FuzzHellos(f *testing.F) {
	random, _ := hex.DecodeString(aRandom)
	body := append(append([]byte{3, 3}, random...), 0, 0x13, 0x01, 0)
	f.Add(append([]byte{22, 3, 3, 0, byte(len(body) + 4)}, helloMessage(msgServerHello, body)...))
	f.Add(append([]byte{22, 3, 3, 0, byte(len(body) + 4)}, helloMessage(msgClientHello, body)...))
	f.Fuzz(func(t *testing.T, stream []byte) {
		rs, err := splitRecords(stream)
		if err != nil {
			return
		}
		if !bytes.Equal(bytes.Join(toSlices(rs), nil), stream) {
			t.Error("records do not add up to the stream")
		}
		plain := plaintextHandshake(rs)
		if r, err := clientRandom(plain); err == nil && !bytes.Equal(r, plain[6:38]) {
			t.Error("client random from elsewhere")
		}
		if h, err := parseServerHello(plain); err == nil && !bytes.Equal(h.random, plain[6:38]) {
			t.Error("server random from elsewhere")
		}
		protected12(rs)
		protected13(rs)
		countTickets(plain)
		isFinished(plain)
		new(resumption).parse(plain)
		firstRecord(stream)
	})
}

func toSlices(rs []record) (out [][]byte) {
	for _, r := range rs {
		out = append(out, r)
	}
	return out
}
