// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/blob/handoff"
	"github.com/offloadd/offloadd/handshaker"
	"github.com/offloadd/offloadd/ktls"
	"github.com/offloadd/offloadd/ktls/ktlstest"
)

// Two mover processes echo a connection and give it to each other while it is in use.
const (
	moves        = 10
	bytesPerMove = 300 << 10
	moveTransfer = 6 << 20
)

// TestALiveConnectionMovesTenTimesBetweenProcesses: in the middle of a transfer both
// ways, each time as two blobs and a descriptor; no byte is lost, and no key is set
// again.
func TestALiveConnectionMovesTenTimesBetweenProcesses(t *testing.T) {
	ktlstest.Require(t)
	id := sharedIdentity(t)
	for _, suite := range []blob.CipherSuite{
		blob.TLS_AES_128_GCM_SHA256, blob.TLS_CHACHA20_POLY1305_SHA256, blob.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
	} {
		t.Run(suite.String(), func(t *testing.T) {
			p := ktlstest.NewPair(t)
			capture := ktlstest.StartCapture(t, p.Port())
			config := &tls.Config{RootCAs: id.roots, ServerName: "localhost"}
			only(t, suite, config)
			first, second := startMovers(t, id, p.Server, suite)
			client := tls.Client(p.Client, config)
			client.SetDeadline(time.Now().Add(2 * time.Minute))
			data := make([]byte, moveTransfer)
			mathrand.NewChaCha8([32]byte{2}).Read(data)
			copy(data, marker)
			sent := make(chan error, 1)
			go func() {
				_, err := client.Write(data)
				sent <- errors.Join(err, client.CloseWrite())
			}()
			got := sha256.New()
			n, err := io.Copy(got, client)
			if err := errors.Join(err, <-sent); err != nil || n != int64(len(data)) {
				t.Errorf("%d bytes of %d came back, %v", n, len(data), err)
			}
			if want := sha256.Sum256(data); !bytes.Equal(got.Sum(nil), want[:]) {
				t.Error("SHA-256 differs")
			}
			outputs := first.end(t) + second.end(t)
			if n := strings.Count(outputs, "adopted"); n != moves {
				t.Errorf("moved %d times, want %d:\n%s", n, moves, outputs)
			}
			capture.AssertNoPlaintext(t, marker)
		})
	}
}

// moverProcess is one of the two.
type moverProcess struct {
	cmd    *exec.Cmd
	output *bytes.Buffer
}

// end waits for the process and returns what it said.
func (m *moverProcess) end(t *testing.T) string {
	t.Helper()
	timer := time.AfterFunc(time.Minute, func() { m.cmd.Process.Kill() })
	defer timer.Stop()
	if err := m.cmd.Wait(); err != nil {
		t.Errorf("mover: %v\n%s", err, m.output)
	}
	return m.output.String()
}

// startMovers starts both with a channel between them; the first one has the
// connection.
func startMovers(t *testing.T, id *identity, tcp *net.TCPConn, suite blob.CipherSuite) (first, second *moverProcess) {
	t.Helper()
	ours, theirs := channelFiles(t)
	defer ours.Close()
	defer theirs.Close()
	socket, err := tcp.File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	first = startMover(t, id, suite, ours, socket)
	second = startMover(t, id, suite, theirs)
	tcp.Close()
	return first, second
}

// channelFiles returns both ends of a channel, to be inherited.
func channelFiles(t *testing.T) (a, b *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fds[0]), "channel"), os.NewFile(uintptr(fds[1]), "channel")
}

func startMover(t *testing.T, id *identity, suite blob.CipherSuite, files ...*os.File) *moverProcess {
	t.Helper()
	m := &moverProcess{cmd: exec.Command("/proc/self/exe", "-test.run=^TestMoverProcess$"), output: &bytes.Buffer{}}
	m.cmd.Env = append(os.Environ(), fmt.Sprintf("OFFLOADD_TEST_MOVER=%d", suite), "OFFLOADD_TEST_IDENTITY="+id.dir)
	if len(files) > 1 {
		m.cmd.Env = append(m.cmd.Env, "OFFLOADD_TEST_MOVER_SOCKET=1")
	}
	m.cmd.Stdout, m.cmd.Stderr, m.cmd.ExtraFiles = m.output, m.output, files
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.cmd.Process.Kill() })
	return m
}

// TestMoverProcess is the process that startMover starts.
func TestMoverProcess(t *testing.T) {
	word := os.Getenv("OFFLOADD_TEST_MOVER")
	if word == "" {
		return
	}
	suite, err := strconv.ParseUint(word, 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	m := &mover{t: t}
	if m.channel, err = handoff.FileConn(os.NewFile(3, "channel")); err != nil {
		t.Fatal(err)
	}
	m.meet()
	if os.Getenv("OFFLOADD_TEST_MOVER_SOCKET") != "" {
		m.begin(os.NewFile(4, "socket"), blob.CipherSuite(suite))
	}
	m.run()
}

func ktlsSocket(f *os.File) (*net.TCPConn, error) {
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return nil, fmt.Errorf("a %T", c)
	}
	return tcp, nil
}

// mover is one process; conn is nil while the other has the connection.
type mover struct {
	t       *testing.T
	channel *handoff.Conn
	opener  *blob.Opener
	sealer  *blob.Sealer

	tcp     *net.TCPConn
	conn    *ktls.Conn
	custody *ktls.Custody
	facts   blob.Facts
	moved   int
}

// meet exchanges public keys and set-ups, for moving in both directions.
func (m *mover) meet() {
	key, err := blob.GenerateKey()
	if err != nil {
		m.t.Fatal(err)
	}
	m.send(&handoff.Message{Type: handoff.Setup, Body: key.Public().Bytes()}, nil)
	theirs, _ := m.receive(handoff.Setup)
	public, err := blob.ParsePublicKey(theirs.Body)
	if err != nil {
		m.t.Fatal(err)
	}
	sealer, setup, err := blob.NewSealer(public)
	if err != nil {
		m.t.Fatal(err)
	}
	m.send(&handoff.Message{Type: handoff.Ready, Body: setup}, nil)
	ready, _ := m.receive(handoff.Ready)
	if m.opener, err = key.NewOpener(ready.Body); err != nil {
		m.t.Fatal(err)
	}
	m.sealer = sealer
}

func (m *mover) send(message *handoff.Message, tcp *net.TCPConn) {
	var err error
	if tcp == nil {
		err = m.channel.Send(message, nil)
	} else {
		err = m.channel.Send(message, tcp)
	}
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *mover) receive(want handoff.Type) (*handoff.Message, *os.File) {
	message, file, err := m.channel.Receive()
	if errors.Is(err, io.EOF) {
		return nil, nil
	}
	if err != nil || message.Type != want {
		m.t.Fatalf("%v, %v; want %v", message, err, want)
	}
	return message, file
}

// begin is the first import: a handshake, and keys into the kernel.
func (m *mover) begin(socket *os.File, suite blob.CipherSuite) {
	dir := os.Getenv("OFFLOADD_TEST_IDENTITY")
	certificate, err := tls.LoadX509KeyPair(dir+"/ecdsa.pem", dir+"/ecdsa.key")
	if err != nil {
		m.t.Fatal(err)
	}
	config := &tls.Config{Certificates: []tls.Certificate{certificate}}
	only(m.t, suite, config)
	if m.tcp, err = ktlsSocket(socket); err != nil {
		m.t.Fatal(err)
	}
	socket.Close()
	session, err := handshaker.Server(testContext(m.t), m.tcp, &handshaker.Config{TLS: config})
	if err != nil {
		m.t.Fatal(err)
	}
	m.facts = session.Facts
	m.custody, _, err = ktls.InstallKeeping(m.tcp, session.Read, session.Write)
	m.take(err)
}

func (m *mover) take(err error) {
	if err == nil {
		m.conn, err = ktls.NewConn(m.tcp)
	}
	if err != nil {
		m.t.Fatal(err)
	}
}

// run echoes, gives away, takes, until one of the two meets the end.
func (m *mover) run() {
	for {
		if m.conn == nil {
			if !m.adopt() {
				return
			}
			fmt.Println("adopted")
		}
		if m.echo() {
			return
		}
	}
}

// echo echoes until it is time to move, and moves; true at the end of the stream.
func (m *mover) echo() bool {
	buf := make([]byte, 32<<10)
	for total := 0; ; {
		m.conn.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		n, err := m.conn.Read(buf)
		if _, werr := m.conn.Write(buf[:n]); werr != nil {
			m.t.Fatal(werr)
		}
		total += n
		switch {
		case errors.Is(err, io.EOF):
			if err := m.conn.Close(); err != nil {
				m.t.Error(err)
			}
			return true
		case err != nil && !errors.Is(err, os.ErrDeadlineExceeded):
			m.t.Fatal(err)
		}
		if total >= bytesPerMove && m.moved < moves && m.moveNow() {
			return false
		}
	}
}

// moveNow moves the connection, and reads the rest of a record first, if need be.
func (m *mover) moveNow() bool {
	unread, done := m.giveAway()
	if done || unread == 0 {
		return done
	}
	m.conn.SetReadDeadline(time.Time{})
	if _, err := io.CopyN(m.conn, struct{ io.Reader }{m.conn}, int64(unread)); err != nil {
		m.t.Fatal(err)
	}
	_, done = m.giveAway()
	return done
}

// giveAway moves the connection, if it is quiet; else it returns what is in the way.
func (m *mover) giveAway() (unread int, done bool) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	read, write, err := m.conn.Export(ctx, m.custody)
	var notQuiet *ktls.NotQuietError
	if errors.As(err, &notQuiet) {
		fmt.Println(err)
		return notQuiet.Unread, false
	}
	if err != nil {
		m.t.Fatal(err)
	}
	message := &handoff.Message{Type: handoff.Moved, Cookie: read.Cookie, Facts: &m.facts, Body: fmt.Append(nil, m.moved+1)}
	expiry := time.Now().Add(time.Minute)
	if message.Read, err = m.sealer.Seal(read, expiry); err != nil {
		m.t.Fatal(err)
	}
	if message.Write, err = m.sealer.Seal(write, expiry); err != nil {
		m.t.Fatal(err)
	}
	m.send(message, m.tcp)
	if err := m.conn.Close(); err != nil {
		m.t.Error(err)
	}
	m.conn, m.tcp = nil, nil
	return 0, true
}

// adopt takes the connection over; false if the other process has ended.
func (m *mover) adopt() bool {
	message, file := m.receive(handoff.Moved)
	if message == nil {
		return false
	}
	defer file.Close()
	var err error
	if m.tcp, err = ktlsSocket(file); err != nil {
		m.t.Fatal(err)
	}
	want := blob.Binding{Cookie: message.Cookie, Role: blob.Server, Direction: blob.Read, Now: time.Now()}
	read, err := m.opener.Open(message.Read, want)
	if err != nil {
		m.t.Fatal(err)
	}
	want.Direction = blob.Write
	write, err := m.opener.Open(message.Write, want)
	if err != nil {
		m.t.Fatal(err)
	}
	if read.Seq == 0 || write.Seq == 0 {
		m.t.Errorf("moved before it was in use: %v, %v", read, write)
	}
	if m.moved, err = strconv.Atoi(string(message.Body)); err != nil {
		m.t.Fatal(err)
	}
	m.facts = *message.Facts
	m.custody, _, err = ktls.Adopt(m.tcp, read, write)
	m.take(err)
	return true
}
