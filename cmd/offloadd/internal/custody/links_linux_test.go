// SPDX-License-Identifier: Apache-2.0

package custody

import (
	"context"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/offloadd/offloadd/ktls/ktlstest"
)

// network is a veth device here, and a peer behind it in a network namespace.
type network struct {
	name     string
	address  string // of the listener
	peerDo   func(func() error) error
	listener net.Listener
}

// newNetwork makes one. Only a machine of our own gets new devices.
func newNetwork(t *testing.T, name, subnet string) *network {
	t.Helper()
	if !ktlstest.InVM() {
		t.Skip("makes network devices, in a machine of its own")
	}
	n := &network{name: name, address: subnet + ".2:0"}
	// The thread is in the namespace and is thrown away with it.
	work, fd := make(chan func()), make(chan int)
	go func() {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Error(err)
		}
		f, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Error(err)
		}
		fd <- f
		for f := range work {
			f()
		}
	}()
	namespace := <-fd
	n.peerDo = func(f func() error) error {
		result := make(chan error)
		work <- func() { result <- f() }
		return <-result
	}
	t.Cleanup(func() {
		close(work)
		unix.Close(namespace)
		if l, err := netlink.LinkByName(name); err == nil {
			netlink.LinkDel(l)
		}
	})
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	check(netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "far", PeerNamespace: netlink.NsFd(namespace)}))
	setUp := func(name, address string) error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		a, err := netlink.ParseAddr(address)
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(l, a); err != nil {
			return err
		}
		return netlink.LinkSetUp(l)
	}
	check(setUp(name, subnet+".1/24"))
	check(n.peerDo(func() error { return setUp("far", subnet+".2/24") }))
	check(n.peerDo(func() (err error) {
		var lc net.ListenConfig
		lc.SetMultipathTCP(false)
		n.listener, err = lc.Listen(context.Background(), "tcp", n.address)
		return err
	}))
	t.Cleanup(func() { n.listener.Close() })
	return n
}

// connect makes a connection through the device.
func (n *network) connect(t *testing.T) *net.TCPConn {
	t.Helper()
	d := net.Dialer{Timeout: 10 * time.Second}
	d.SetMultipathTCP(false)
	c, err := d.Dial("tcp", n.listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.(*net.TCPConn).SetLinger(0)
		c.Close()
	})
	return c.(*net.TCPConn)
}

func (n *network) link(t *testing.T) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(n.name)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// far changes the peer's end of the device.
func (n *network) far(t *testing.T, f func(netlink.Link) error) {
	t.Helper()
	err := n.peerDo(func() error {
		l, err := netlink.LinkByName("far")
		if err != nil {
			return err
		}
		return f(l)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func inDevice() Entry { return Entry{Read: Key{Place: Device}, Write: Key{Place: Device}} }

// barrier waits until the events until now have been seen: it makes a device and
// waits for a mark on a connection that says it is in there.
func barrier(t *testing.T, table *Table) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "barrier0"
	if err := netlink.LinkAdd(&netlink.Dummy{LinkAttrs: attrs}); err != nil {
		t.Fatal(err)
	}
	l, err := netlink.LinkByName("barrier0")
	if err != nil {
		t.Fatal(err)
	}
	index := l.Attrs().Index
	if err := netlink.LinkDel(l); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the barrier's end is seen", func() bool {
		table.mu.Lock()
		defer table.mu.Unlock()
		_, ok := table.losses[index]
		return ok
	})
}

// ethtoolSetGSO is SIOCETHTOOL with ETHTOOL_SGSO: an event of a feature's change.
func ethtoolSetGSO(t *testing.T, device string, on uint32) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	value := struct{ command, data uint32 }{0x24, on}
	request := struct {
		name [16]byte
		data unsafe.Pointer
		rest [16]byte
	}{data: unsafe.Pointer(&value)}
	copy(request.name[:], device)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
		t.Fatal(errno)
	}
}

// TestALostDeviceDegradesItsConnections: and nobody else's, once, and for good.
func TestALostDeviceDegradesItsConnections(t *testing.T) {
	for _, c := range []struct {
		name, want string
		lose       func(*testing.T, *network) error
	}{
		{"link down", "cust0 went down: its key is lost", func(t *testing.T, n *network) error { return netlink.LinkSetDown(n.link(t)) }},
		{"moved to another network namespace", "cust0 ", func(t *testing.T, n *network) error {
			var fd int
			if err := n.peerDo(func() (err error) {
				fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
				return err
			}); err != nil {
				return err
			}
			defer unix.Close(fd)
			return netlink.LinkSetNsFd(n.link(t), fd)
		}},
		{"unregistered", "cust0 ", func(t *testing.T, n *network) error { return netlink.LinkDel(n.link(t)) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			n, other := newNetwork(t, "cust0", "198.18.1"), newNetwork(t, "cust1", "198.18.2")
			table, log := watched(t, 100)
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			if err := WatchLinks(ctx, table.log, table); err != nil {
				t.Fatal(err)
			}
			hit := []uint64{add(t, table, n.connect(t), inDevice()), add(t, table, n.connect(t), inDevice())}
			half := add(t, table, n.connect(t), Entry{Read: Key{Place: Device}, Write: Key{Place: Software}})
			unhurt := []uint64{add(t, table, n.connect(t), software()), add(t, table, other.connect(t), inDevice())}
			late, beganBefore := n.connect(t), time.Now()
			if e, _ := table.Get(hit[0]); e.Read.Device != "cust0" || e.Write.Device != "cust0" {
				t.Fatalf("the device is %q and %q, want cust0", e.Read.Device, e.Write.Device)
			}
			if e, _ := table.Get(half); e.Write.Degraded == nil || e.Read.Degraded != nil || !strings.Contains(e.Write.Degraded.Reason, "stops sending for good") {
				t.Errorf("only the read key in a device: %+v", e.Write.Degraded)
			}
			if err := c.lose(t, n); err != nil {
				t.Fatal(err)
			}
			lost := time.Now()
			barrier(t, table)
			for _, socket := range hit {
				e, ok := table.Get(socket)
				if !ok {
					t.Fatal("the entry is gone")
				}
				for _, k := range e.keys() {
					if k.Place != Software || k.Degraded == nil || !strings.HasPrefix(k.Degraded.Reason, c.want) || k.Device != "cust0" {
						t.Errorf("key %+v, %+v; want it in software, degraded because %q", k, k.Degraded, c.want)
					} else if d := lost.Sub(k.Degraded.Since).Abs(); d > 5*time.Second {
						t.Errorf("marked %v away from the loss", d)
					}
				}
			}
			if e, _ := table.Get(half); e.Read.Degraded == nil || !strings.Contains(e.Write.Degraded.Reason, "has stopped sending") {
				t.Errorf("half in the device: %+v", e.Write.Degraded)
			}
			for _, socket := range unhurt {
				if e, _ := table.Get(socket); e.Degraded() {
					t.Errorf("degraded without reason: %+v", e)
				}
			}
			if got := table.Totals(); got.Degraded != 3 || got.DegradedEver != 3 || got.Device != 1 {
				t.Errorf("%+v, want 3 degraded and 1 in a device", got)
			}
			// One line for the half offloaded one when it came, one for the loss.
			if got := log.lines("custody degraded"); got != 2 {
				t.Errorf("logged %d times, want 2", got)
			}
			if c.name != "link down" {
				return
			}
			// Keys that were being installed when it happened; without a route by now.
			if err := netlink.LinkSetUp(n.link(t)); err != nil {
				t.Fatal(err)
			}
			barrier(t, table)
			if err := table.Add(late, inDevice(), beganBefore); err != nil {
				t.Fatal(err)
			}
			if got := table.Totals(); got.Degraded != 4 {
				t.Errorf("%d degraded, want 4: the late one lost its keys too, and none recovers by the link coming up", got.Degraded)
			}
			fresh := add(t, table, n.connect(t), inDevice())
			if e, _ := table.Get(fresh); e.Degraded() {
				t.Errorf("a connection from after the loss is degraded: %+v", e.Read.Degraded)
			}
		})
	}
}

// TestWhatLosesNoKeyIsNoAlarm: the carrier, features and settings of a device.
func TestWhatLosesNoKeyIsNoAlarm(t *testing.T) {
	n := newNetwork(t, "cust0", "198.18.1")
	table, _ := watched(t, 10)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if err := WatchLinks(ctx, table.log, table); err != nil {
		t.Fatal(err)
	}
	socket := add(t, table, n.connect(t), inDevice())
	for name, change := range map[string]func(){
		"carrier": func() {
			n.far(t, netlink.LinkSetDown)
			eventually(t, "no carrier", func() bool { return n.link(t).Attrs().RawFlags&unix.IFF_LOWER_UP == 0 })
			n.far(t, netlink.LinkSetUp)
		},
		"feature": func() { ethtoolSetGSO(t, n.name, 0); ethtoolSetGSO(t, n.name, 1) },
		"MTU": func() {
			if err := netlink.LinkSetMTU(n.link(t), 1400); err != nil {
				t.Fatal(err)
			}
		},
		"name": func() {
			if err := netlink.LinkSetAlias(n.link(t), "renamed"); err != nil {
				t.Fatal(err)
			}
		},
	} {
		change()
		barrier(t, table)
		if e, _ := table.Get(socket); e.Degraded() {
			t.Fatalf("%s: %+v", name, e.Read.Degraded)
		}
	}
}

// TestLostLinkEventsMakeUncertain: after them nobody knows whether a device that is
// up was down meanwhile. What comes later is seen again.
func TestLostLinkEventsMakeUncertain(t *testing.T) {
	n := newNetwork(t, "cust0", "198.18.1")
	table, log := watched(t, 10)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	w := &links{table: table, log: table.log, known: make(map[int]link)}
	if _, stop, err := w.subscribe(); err != nil {
		t.Fatal(err)
	} else {
		stop()
	}
	socket := add(t, table, n.connect(t), inDevice())
	failed := make(chan netlink.LinkUpdate)
	close(failed)
	go w.run(ctx, failed, func() {})
	eventually(t, "the connection is uncertain", func() bool {
		e, _ := table.Get(socket)
		return e.Read.Place == Unknown && e.Degraded() && strings.Contains(e.Read.Degraded.Reason, "events of links were lost")
	})
	if err := netlink.LinkSetDown(n.link(t)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the connection is degraded", func() bool {
		e, _ := table.Get(socket)
		return e.Read.Place == Software && strings.Contains(e.Read.Degraded.Reason, "went down")
	})
	if got := table.Totals().DegradedEver; got != 1 {
		t.Errorf("counted %d times", got)
	}
	if log.lines("cannot watch") != 0 {
		t.Error("the watch could not be renewed")
	}
}

// TestAPortOfABondMayHaveHadTheKey: the kernel puts a bond's keys into one of its
// ports and does not say which.
func TestAPortOfABondMayHaveHadTheKey(t *testing.T) {
	table, _ := watched(t, 10)
	p := ktlstest.NewPair(t)
	socket := add(t, table, p.Server, software())
	table.mu.Lock()
	r := table.record(socket)
	r.device = 7
	r.Read.Place, r.Read.Device = Device, "bond0"
	table.put(r)
	table.mu.Unlock()
	w := &links{table: table, log: table.log, known: make(map[int]link)}
	state := func(index int, name string, up bool) *netlink.Dummy {
		a := netlink.NewLinkAttrs()
		a.Index, a.Name = index, name
		if up {
			a.Flags = net.FlagUp
		}
		if index == 8 {
			a.MasterIndex, a.Slave = 7, &netlink.BondSlave{}
		}
		return &netlink.Dummy{LinkAttrs: a}
	}
	w.see(state(7, "bond0", true))
	w.see(state(8, "eth1", true))
	w.see(state(9, "eth2", true))
	w.see(state(9, "eth2", false))
	if e, _ := table.Get(socket); e.Degraded() {
		t.Fatalf("degraded by a device that is no port: %+v", e.Read.Degraded)
	}
	w.see(state(8, "eth1", false))
	e, _ := table.Get(socket)
	if e.Read.Place != Unknown || e.Read.Degraded == nil || !strings.Contains(e.Read.Degraded.Reason, "eth1, a port of bond0, went down") {
		t.Errorf("%+v, %+v", e.Read, e.Read.Degraded)
	}
}

// TestTheDeviceIsThatOfTheRoute: the socket's own choice comes before the address.
func TestTheDeviceIsThatOfTheRoute(t *testing.T) {
	n := newNetwork(t, "cust0", "198.18.1")
	table, _ := watched(t, 10)
	for _, c := range []struct {
		name string
		set  func(fd int) error
	}{
		{"by address", func(int) error { return nil }},
		{"bound to the device", func(fd int) error { return unix.BindToDevice(fd, n.name) }},
		{"IP_UNICAST_IF", func(fd int) error {
			i := uint32(n.link(t).Attrs().Index)
			return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_UNICAST_IF, int(i<<24))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn := n.connect(t)
			if err := onFD(conn, c.set); err != nil {
				t.Fatal(err)
			}
			socket := add(t, table, conn, inDevice())
			if e, _ := table.Get(socket); e.Read.Device != n.name || e.Read.Reason != "" {
				t.Errorf("device %q, %s; want %s", e.Read.Device, e.Read.Reason, n.name)
			}
		})
	}
	// On loopback the kernel offers no device: if it says so all the same, it is lo's.
	p := ktlstest.NewPair(t)
	socket := add(t, table, p.Server, inDevice())
	if e, _ := table.Get(socket); e.Read.Device != "lo" {
		t.Errorf("device %q, want lo", e.Read.Device)
	}
}
