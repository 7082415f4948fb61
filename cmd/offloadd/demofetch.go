// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"
)

// demoFile is what the clients fetch.
type demoFile struct {
	name   string // relative to the directory, with slashes
	size   int64  // bytes
	sha256 string
}

// prepareFiles writes the certificate, and the directory if none was given.
func (d *demo) prepareFiles() error {
	if err := writeDemoCertificate(d.path("certificate.pem"), d.path("key.pem")); err != nil {
		return err
	}
	if d.directory == "" {
		d.directory = d.path("files")
		if err := d.writeRandomDirectory(); err != nil {
			return err
		}
	}
	var err error
	d.file, err = largestFile(d.directory)
	if err != nil {
		return err
	}
	d.file.sha256, err = d.hashFile(filepath.Join(d.directory, filepath.FromSlash(d.file.name)))
	return err
}

func (d *demo) writeRandomDirectory() error {
	if err := os.Mkdir(d.directory, 0o755); err != nil {
		return err
	}
	var seed [32]byte
	rand.Read(seed[:]) // never fails (crypto/rand)
	for name, size := range map[string]int64{"random.bin": d.size, "small.txt": 1000, "empty": 0} {
		f, err := os.Create(filepath.Join(d.directory, name))
		if err != nil {
			return err
		}
		progress := d.progress.start("writing "+name, size)
		_, err = io.CopyN(io.MultiWriter(f, progress), mathrand.NewChaCha8(seed), size)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) hashFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(io.MultiWriter(h, d.progress.start("hashing "+filepath.Base(path), d.file.size)), f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func largestFile(directory string) (demoFile, error) {
	var largest demoFile
	err := filepath.WalkDir(directory, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() || entry.Name() == "index.html" { // which http.FileServer redirects
			return err
		}
		info, err := entry.Info()
		if err == nil && info.Size() >= largest.size {
			name, _ := filepath.Rel(directory, path)
			largest = demoFile{name: filepath.ToSlash(name), size: info.Size()}
		}
		return err
	})
	if err == nil && largest.name == "" {
		err = usageError("%s holds no file", directory)
	}
	return largest, err
}

func writeDemoCertificate(chainPath, keyPath string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "offloadd demo"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	chain := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := os.WriteFile(chainPath, chain, 0o644); err != nil {
		return err
	}
	return os.WriteFile(keyPath, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), 0o600)
}

// demoClient is a program nobody here wrote.
type demoClient struct {
	name string
	// command returns how to fetch a path; its standard output is the body, or with raw
	// a whole HTTP response.
	command func(address, ca, path string) (args []string, input string)
	raw     bool
}

var curlClient = demoClient{
	name: "curl",
	command: func(address, ca, path string) ([]string, string) {
		return []string{"curl", "--silent", "--show-error", "--fail", "--noproxy", "*", "--cacert", ca,
			"https://localhost:" + portOf(address) + "/" + path}, ""
	},
}

var opensslClient = demoClient{
	name: "openssl s_client",
	command: func(address, ca, path string) ([]string, string) {
		return []string{"openssl", "s_client", "-quiet", "-verify_quiet", "-connect", address, "-servername", "localhost", "-CAfile", ca,
				"-verify_return_error", "-tls1_2", "-cipher", "ECDHE-ECDSA-AES256-GCM-SHA384"},
			"GET /" + path + " HTTP/1.0\r\nHost: localhost\r\n\r\n"
	},
	raw: true,
}

// fetch has a client fetch the file, and finds in the daemon's log how it went.
func (d *demo) fetch(ctx context.Context, client demoClient) (*demoTransfer, error) {
	args, input := client.command(d.address, d.path("certificate.pem"), d.file.name)
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdin, err := cmd.StdinPipe() // kept open: at its end s_client would close the connection
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	seen := d.log.sockets("handed over")
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	asked := make(chan string, 1)
	go func() { asked <- d.askForKey(ctx, seen) }()
	io.WriteString(stdin, input)
	h := sha256.New()
	n, copyErr := copyBody(io.MultiWriter(h, d.progress.start(client.name+" fetches "+d.file.name, d.file.size)), stdout, client.raw)
	elapsed := time.Since(start)
	stdin.Close()
	if err := errors.Join(copyErr, cmd.Wait()); err != nil {
		return nil, fmt.Errorf("%w: %s", err, bytes.TrimSpace(stderr.Bytes()))
	}
	t := &demoTransfer{
		Client: client.name, File: d.file.name, Bytes: n, Seconds: elapsed.Seconds(),
		SHA256: hex.EncodeToString(h.Sum(nil)), WantSHA256: d.file.sha256, KeyAsked: <-asked,
	}
	if t.SHA256 != t.WantSHA256 || n != d.file.size {
		return nil, fmt.Errorf("got %d bytes with SHA-256 %s, the file has %d with %s", n, t.SHA256, d.file.size, t.WantSHA256)
	}
	return t, d.tell(ctx, t, seen)
}

func copyBody(dst io.Writer, src io.Reader, raw bool) (int64, error) {
	if !raw {
		return io.Copy(dst, src)
	}
	response, err := http.ReadResponse(bufio.NewReaderSize(src, 64<<10), nil)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return 0, errors.New(response.Status)
	}
	return io.Copy(dst, response.Body)
}

// tell fills in what the daemon logged of the connection that is not among the seen.
func (d *demo) tell(ctx context.Context, t *demoTransfer, seen []int64) error {
	handed, err := d.handedOver(ctx, seen)
	if err != nil {
		return err
	}
	cookie := handed.number("socket")
	e, err := d.log.wait(ctx, "installed", func(e logEntry) bool { return e.number("socket") == cookie })
	if err != nil {
		return err
	}
	t.Version, t.Suite, t.Group = e.text("version"), e.text("suite"), e.text("group")
	t.TX, t.RX, t.PathReason = e.text("tx"), e.text("rx"), e.text("path_reason")
	t.ReadBlobBytes, t.WriteBlobBytes = e.number("read_blob_bytes"), e.number("write_blob_bytes")
	t.OpenMicroseconds, t.InstallMicroseconds = e.number("open_us"), e.number("install_us")
	t.AcceptToApplicationMicroseconds = handed.number("accept_to_application_us")
	return nil
}

// handedOver waits for a connection that is not among the seen.
func (d *demo) handedOver(ctx context.Context, seen []int64) (logEntry, error) {
	return d.log.wait(ctx, "handed over", func(e logEntry) bool { return !slices.Contains(seen, e.number("socket")) })
}

// sockets are those that the entries with this message speak of.
func (l *serveLog) sockets(message string) (all []int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.entries {
		if e.text("msg") == message {
			all = append(all, e.number("socket"))
		}
	}
	return all
}

func (l *serveLog) count(message string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.entries {
		if e.text("msg") == message {
			n++
		}
	}
	return n
}
