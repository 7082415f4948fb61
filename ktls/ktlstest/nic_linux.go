// SPDX-License-Identifier: Apache-2.0

package ktlstest

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/offloadd/offloadd/blob"
	"github.com/offloadd/offloadd/ktls"
)

// NIC is a pair of emulated network devices with TLS offload, back to back: one end in
// the test's own network namespace, the other in that of a peer. The module is in
// test/vm/tlsnic; it takes TLS 1.2 with AES-GCM, as real ones do.
type NIC struct {
	dir  string // in debugfs
	home netns.NsHandle
	peer netns.NsHandle
}

// PeerNamespace is the name of the peer's network namespace, for "ip netns exec".
const PeerNamespace = "tlsnic-peer"

const (
	nicModule = "tlsnic"
	// nicPatience is how long the module may be in use after the last connection.
	nicPatience = 10 * time.Second
)

// nicEnds are the devices and their addresses, ours first (RFC 5737, RFC 3849).
var nicEnds = [2]struct {
	device    string
	addresses [2]string // IPv4, IPv6
}{
	{"tlsnic0", [2]string{"192.0.2.1/24", "2001:db8::1/64"}},
	{"tlsnic1", [2]string{"192.0.2.2/24", "2001:db8::2/64"}},
}

// NICNetworks are the networks over which a NIC connects.
var NICNetworks = []string{"tcp4", "tcp6"}

// NewNIC loads the module until the test ends. It skips the test where the VM runner
// was not told to build the module.
func NewNIC(t testing.TB) *NIC {
	t.Helper()
	dir := os.Getenv("OFFLOADD_TEST_MODULES")
	if dir == "" {
		t.Skip("needs an emulated network device: go run ./test/vm test -module test/vm/tlsnic")
	}
	n := &NIC{dir: "/sys/kernel/debug/" + nicModule}
	n.makeNamespace(t)
	loadModule(t, filepath.Join(dir, nicModule+".ko"))
	for i, namespace := range []netns.NsHandle{n.home, n.peer} {
		if err := setUpNIC(i, namespace); err != nil {
			t.Fatalf("%s: %v", nicEnds[i].device, err)
		}
	}
	return n
}

func loadModule(t testing.TB, path string) {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := unix.FinitModule(int(file.Fd()), "", 0); err != nil {
		t.Fatalf("load %s: %v", path, err)
	}
	t.Cleanup(func() {
		err := unix.DeleteModule(nicModule, unix.O_NONBLOCK)
		for end := time.Now().Add(nicPatience); err == unix.EAGAIN && time.Now().Before(end); {
			time.Sleep(20 * time.Millisecond)
			err = unix.DeleteModule(nicModule, unix.O_NONBLOCK)
		}
		if err != nil {
			t.Errorf("unload %s: %v", nicModule, err)
		}
	})
}

// makeNamespace makes the peer's namespace, which outlives the device in it.
func (n *NIC) makeNamespace(t testing.TB) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var err error
	if n.home, err = netns.Get(); err != nil {
		t.Fatal(err)
	}
	if n.peer, err = netns.NewNamed(PeerNamespace); err != nil {
		t.Fatalf("make a network namespace: %v", err)
	}
	t.Cleanup(func() {
		if err := errors.Join(n.peer.Close(), n.home.Close(), netns.DeleteNamed(PeerNamespace)); err != nil {
			t.Errorf("remove the peer's network namespace: %v", err)
		}
	})
	if err := netns.Set(n.home); err != nil {
		t.Fatal(err)
	}
}

// setUpNIC moves an end into its namespace and gives it addresses.
func setUpNIC(i int, namespace netns.NsHandle) error {
	link, err := netlink.LinkByName(nicEnds[i].device)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetNsFd(link, int(namespace)); err != nil {
		return err
	}
	handle, err := netlink.NewHandleAt(namespace, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer handle.Close()
	if link, err = handle.LinkByName(nicEnds[i].device); err != nil {
		return err
	}
	for _, address := range nicEnds[i].addresses {
		a, err := netlink.ParseAddr(address)
		if err != nil {
			return err
		}
		a.Flags = unix.IFA_F_NODAD // nobody else is there, and waiting takes a second
		if err := handle.AddrAdd(link, a); err != nil {
			return err
		}
	}
	return handle.LinkSetUp(link)
}

// AtPeer calls f with the thread in the peer's network namespace. Sockets that f opens
// stay there; what f starts in other goroutines is at home.
func (n *NIC) AtPeer(t testing.TB, f func()) {
	t.Helper()
	runtime.LockOSThread()
	if err := netns.Set(n.peer); err != nil {
		t.Fatalf("enter the peer's network namespace: %v", err)
	}
	defer func() {
		if err := netns.Set(n.home); err != nil {
			t.Errorf("leave the peer's network namespace: %v", err)
			return // the thread ends with the goroutine
		}
		runtime.UnlockOSThread()
	}()
	f()
}

// Host is our address, without a port, for one of [NICNetworks].
func (n *NIC) Host(network string) string {
	address := nicEnds[0].addresses[0]
	if network == "tcp6" {
		address = nicEnds[0].addresses[1]
	}
	ip, _, _ := net.ParseCIDR(address) // of the table above
	return ip.String()
}

// NewPair connects the peer, as the client, with us over the devices.
func (n *NIC) NewPair(t testing.TB, network string) *Pair {
	t.Helper()
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(context.Background(), network, net.JoinHostPort(n.Host(network), "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var p *Pair
	// Between literal addresses, Dial stays on its thread.
	n.AtPeer(t, func() { p = Connect(t, l.(*net.TCPListener)) })
	return p
}

// Install installs new keys of the suite at both ends, and returns what the kernel
// says of each, and the digests by which the devices show the keys.
func (n *NIC) Install(t testing.TB, suite blob.CipherSuite, p *Pair) (client, server NICInstalled) {
	t.Helper()
	c, s := NewStates(t, suite, p)
	client, server = digests(c), digests(s)
	var err error
	// The kernel tells about a socket in the socket's own network namespace only.
	n.AtPeer(t, func() { client.Info, err = ktls.Install(p.Client, c.Read, c.Write) })
	if err != nil {
		t.Fatalf("client: %v", err)
	}
	if server.Info, err = ktls.Install(p.Server, s.Read, s.Write); err != nil {
		t.Fatalf("server: %v", err)
	}
	return client, server
}

// NICInstalled tells about one end of a connection over a NIC.
type NICInstalled struct {
	Info        ktls.Info
	Read, Write string // digests of the keys
}

func digests(s States) NICInstalled {
	return NICInstalled{Read: NICDigest(s.Read), Write: NICDigest(s.Write)}
}
