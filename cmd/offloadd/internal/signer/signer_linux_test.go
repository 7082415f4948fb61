// SPDX-License-Identifier: Apache-2.0

package signer

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// held are the keys of the tests, by number.
var held = func() map[uint16]crypto.Signer {
	a, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	b, _ := rsa.GenerateKey(rand.Reader, 2048)
	_, c, _ := ed25519.GenerateKey(rand.Reader)
	return map[uint16]crypto.Signer{0: a, 1: b, 2: c}
}()

const (
	numberECDSA   = 0
	numberRSA     = 1
	numberEd25519 = 2
)

// running is a Server with one channel.
type running struct {
	server *Server
	worker int        // descriptor of the worker's end
	ended  chan error // what Serve returned

	mu   sync.Mutex
	told []string // guarded by mu
}

func serve(t *testing.T, keys map[uint16]crypto.Signer) *running {
	t.Helper()
	signers, workers, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	r := &running{worker: dup(t, workers), ended: make(chan error, 1)}
	r.server = NewServer(func(what string, key uint16, err error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.told = append(r.told, fmt.Sprintf("%s %d: %v", what, key, err))
	})
	fd := dup(t, signers)
	go func() { r.ended <- r.server.Serve(fd, keys) }()
	return r
}

// dup returns a descriptor that no os.File owns, as an inherited one.
func dup(t *testing.T, f *os.File) int {
	t.Helper()
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

func (r *running) client(t *testing.T, timeout time.Duration) *Client {
	t.Helper()
	c, err := NewClient(r.worker, timeout)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func mustKey(t *testing.T, c *Client, number uint16) *Key {
	t.Helper()
	k, err := c.Key(number, held[number].Public())
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestManySignAtOnceAndEachGetsItsOwn(t *testing.T) {
	r := serve(t, held)
	c := r.client(t, 30*time.Second)
	ec, rs := mustKey(t, c, numberECDSA), mustKey(t, c, numberRSA)
	var jobs sync.WaitGroup
	const each = 100
	for i := range each {
		jobs.Go(func() {
			digest := sha256.Sum256([]byte{byte(i)})
			signature, err := ec.Sign(nil, digest[:], crypto.SHA256)
			if err != nil || !ecdsa.VerifyASN1(held[numberECDSA].Public().(*ecdsa.PublicKey), digest[:], signature) {
				t.Errorf("ECDSA %d: %v", i, err)
			}
			pss := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}
			if signature, err = rs.Sign(nil, digest[:], pss); err == nil {
				err = rsa.VerifyPSS(held[numberRSA].Public().(*rsa.PublicKey), crypto.SHA256, digest[:], signature, pss)
			}
			if err != nil {
				t.Errorf("RSA %d: %v", i, err)
			}
		})
	}
	jobs.Wait()
	if n := r.server.Counts(); n != (Counts{Signed: 2 * each}) {
		t.Errorf("counts %+v", n)
	}
}

func TestTheSignerRefusesAllElse(t *testing.T) {
	r := serve(t, map[uint16]crypto.Signer{numberECDSA: held[numberECDSA], numberEd25519: held[numberEd25519]})
	c := r.client(t, 30*time.Second)
	digest := sha256.Sum256(nil)
	ask := func(number uint16, public crypto.Signer, scheme scheme, hash crypto.Hash, message []byte) error {
		d, _ := publicDigest(public.Public())
		signature, err := c.ask(&request{operation: opSign, key: number, public: d, scheme: scheme, hash: hash, digest: message})
		if err != nil && signature != nil {
			t.Error("a signature beside an error")
		}
		return err
	}
	serversHello := append(bytes.Clone(certificateVerify), digest[:]...)
	clients := bytes.Replace(serversHello, []byte("server"), []byte("client"), 1)
	point := append(make([]byte, 64), 3, 0, 29, 32)
	for _, test := range []struct {
		name string
		err  error
		want error
	}{
		{"its own", ask(numberECDSA, held[numberECDSA], schemeECDSA, crypto.SHA256, digest[:]), nil},
		{"a key of another worker", ask(numberRSA, held[numberRSA], schemePSS, crypto.SHA256, digest[:]), statusNoKey},
		{"a number beyond", ask(0xffff, held[numberRSA], schemePSS, crypto.SHA256, digest[:]), statusNoKey},
		{"a key by another's number", ask(numberECDSA, held[numberRSA], schemePSS, crypto.SHA256, digest[:]), statusOtherKey},
		{"another scheme", ask(numberECDSA, held[numberECDSA], schemePSS, crypto.SHA256, digest[:]), statusMisfit},
		{"Ed25519, TLS 1.3", ask(numberEd25519, held[numberEd25519], schemeEd25519, 0, serversHello), nil},
		{"Ed25519, TLS 1.2", ask(numberEd25519, held[numberEd25519], schemeEd25519, 0, append(point, make([]byte, 32)...)), nil},
		{"Ed25519, a client's", ask(numberEd25519, held[numberEd25519], schemeEd25519, 0, clients), statusMisfit},
		{"Ed25519, half a point", ask(numberEd25519, held[numberEd25519], schemeEd25519, 0, append(point, make([]byte, 31)...)), statusMisfit},
		{"Ed25519, any message", ask(numberEd25519, held[numberEd25519], schemeEd25519, 0, []byte("pay 100")), statusMisfit},
		{"Ed25519, no message", ask(numberEd25519, held[numberEd25519], schemeEd25519, 0, nil), statusMisfit},
	} {
		if !errors.Is(test.err, test.want) {
			t.Errorf("%s: %v, want %v", test.name, test.err, test.want)
		}
	}
	if _, err := c.Key(numberECDSA, held[numberRSA].Public()); !errors.Is(err, statusOtherKey) {
		t.Errorf("the certificate of another key: %v", err)
	}
	if n := r.server.Counts(); n != (Counts{Signed: 3, Refused: 9}) {
		t.Errorf("counts %+v", n)
	}
	if len(r.told) != 1 { // one channel cannot fill the log
		t.Errorf("told %q", r.told)
	}
}

// TestOptionsThatTLSDoesNotHaveDoNotLeaveTheWorker: the signer would end the channel.
func TestOptionsThatTLSDoesNotHaveDoNotLeaveTheWorker(t *testing.T) {
	c := serve(t, held).client(t, 30*time.Second)
	k := mustKey(t, c, numberRSA)
	for _, opts := range []crypto.SignerOpts{crypto.SHA1, crypto.MD5SHA1, crypto.Hash(0), crypto.Hash(99), crypto.SHA512, &rsa.PSSOptions{SaltLength: 20, Hash: crypto.SHA256}, &rsa.PSSOptions{Hash: crypto.SHA256}} {
		if signature, err := k.Sign(nil, make([]byte, 32), opts); err == nil {
			t.Errorf("%T %v: %x", opts, opts.HashFunc(), signature)
		}
	}
	if _, err := k.Sign(nil, make([]byte, 32), crypto.SHA256); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestAHostileWorkerLosesItsChannelAndNothingElse(t *testing.T) {
	good := goodRequest().encode()
	for name, packet := range map[string][]byte{
		"noise":    []byte("GET / HTTP/1.0\r\n\r\n"),
		"one byte": {0},
		"cut off":  good[:len(good)-1],
		"too long": append(good, make([]byte, 4096)...),
	} {
		t.Run(name, func(t *testing.T) {
			r := serve(t, held)
			defer unix.Close(r.worker)
			if _, err := unix.Write(r.worker, packet); err != nil {
				t.Fatal(err)
			}
			if err := <-r.ended; !errors.Is(err, errMalformed) {
				t.Errorf("%v, want %v", err, errMalformed)
			}
			if n, err := unix.Read(r.worker, make([]byte, 1)); n != 0 {
				t.Errorf("read %d bytes, %v; want the end", n, err)
			}
			if n := r.server.Counts(); n != (Counts{Ended: 1}) {
				t.Errorf("counts %+v", n)
			}
		})
	}
	t.Run("gone", func(t *testing.T) {
		r := serve(t, held)
		unix.Close(r.worker)
		if err := <-r.ended; err != nil {
			t.Error(err)
		}
	})
}

// slow is a token that does not answer until it is let.
type slow struct {
	crypto.Signer
	let     chan struct{}
	entered chan struct{}
}

func (s *slow) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	s.entered <- struct{}{}
	<-s.let
	return s.Signer.Sign(rand, digest, opts)
}

func TestAWorkerDoesNotWaitForever(t *testing.T) {
	token := &slow{held[numberECDSA], make(chan struct{}), make(chan struct{}, 1000)}
	r := serve(t, map[uint16]crypto.Signer{numberECDSA: token})
	c := r.client(t, 200*time.Millisecond)
	k := mustKey(t, c, numberECDSA)
	var jobs sync.WaitGroup
	for range 5 * concurrent {
		jobs.Go(func() {
			if _, err := k.Sign(nil, make([]byte, 32), crypto.SHA256); !errors.Is(err, ErrTimeout) {
				t.Errorf("%v, want %v", err, ErrTimeout)
			}
		})
	}
	jobs.Wait()
	if n := len(token.entered); n != concurrent {
		t.Errorf("the token had %d requests of one worker at a time, want %d", n, concurrent)
	}
	close(token.let) // the late answers come now, and nobody takes them for their own
	for deadline := time.Now().Add(20 * time.Second); ; {
		digest := sha256.Sum256([]byte("later"))
		signature, err := k.Sign(nil, digest[:], crypto.SHA256)
		if err == nil {
			if !ecdsa.VerifyASN1(k.Public().(*ecdsa.PublicKey), digest[:], signature) {
				t.Error("the signature is of something else")
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

type broken struct{ crypto.Signer }

func (broken) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("CKR_DEVICE_REMOVED")
}

// TestWhatATokenSaysStaysWithTheSigner: it may tell more than a worker should know.
func TestWhatATokenSaysStaysWithTheSigner(t *testing.T) {
	r := serve(t, map[uint16]crypto.Signer{numberECDSA: broken{held[numberECDSA]}})
	k := mustKey(t, r.client(t, 30*time.Second), numberECDSA)
	_, err := k.Sign(nil, make([]byte, 32), crypto.SHA256)
	if !errors.Is(err, statusToken) || strings.Contains(err.Error(), "CKR") {
		t.Errorf("the worker gets %v", err)
	}
	if len(r.told) != 1 || !strings.Contains(r.told[0], "CKR_DEVICE_REMOVED") {
		t.Errorf("told %q", r.told)
	}
	if n := r.server.Counts(); n != (Counts{Failed: 1}) {
		t.Errorf("counts %+v", n)
	}
}

func TestAClientSaysThatItsSignerIsGone(t *testing.T) {
	signers, workers, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	c, err := NewClient(dup(t, workers), 30*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan error)
	go func() {
		_, err := c.Key(numberECDSA, held[numberECDSA].Public())
		asked <- err
	}()
	if _, err := signers.Read(make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	signers.Close()
	if err := <-asked; !errors.Is(err, ErrGone) {
		t.Errorf("under way: %v", err)
	}
	if _, err := c.Key(numberECDSA, held[numberECDSA].Public()); !errors.Is(err, ErrGone) {
		t.Errorf("later: %v", err)
	}
}

func TestAClientDoesNotBelieveAnAnswerToNothing(t *testing.T) {
	signers, workers, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer signers.Close()
	c, err := NewClient(dup(t, workers), 30*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := signers.Write((&response{number: 7, signature: []byte("forged")}).encode()); err != nil {
		t.Fatal(err)
	}
	if n, err := signers.Read(make([]byte, 1)); err == nil {
		t.Errorf("read %d; want the end", n)
	}
	if _, err := c.Key(numberECDSA, held[numberECDSA].Public()); !errors.Is(err, ErrGone) || !strings.Contains(err.Error(), "to no request") {
		t.Error(err)
	}
	if _, err := NewClient(0, time.Second); err == nil {
		t.Error("standard input is taken for a channel")
	}
}
