// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The ring that the kernel copies packets into. A plain packet socket would keep a clone
// of each packet instead, which changes what TCP does with its own.
const (
	blockSize   = 256 << 10 // bytes, more than a segment before its segmentation
	blocks      = 256
	blockMillis = 60 // until a block is ours that is not full

	// ancillary is SKF_AD_OFF of linux/filter.h, -0x1000; the interface is at 8 behind
	// it, the packet's type at 4.
	ancillary = 0xfffff000
)

// Offsets in struct tpacket_block_desc and in struct tpacket3_hdr, which begins each
// packet (linux/if_packet.h).
const (
	blockStatus, blockPackets, blockFirst                   = 8, 12, 16
	packetNext, packetCaptured, packetLength, packetNetwork = 0, 12, 16, 26
)

// packets sees all of them, from the IP header on.
type packets struct {
	fd    int
	ring  []byte
	block int // that comes next
	drops uint32
}

func openPackets() (*packets, error) {
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		return nil, err
	}
	// Without a protocol it gets nothing until it is bound.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket AF_PACKET", err)
	}
	p := &packets{fd: fd}
	if err := errors.Join(p.filter(lo.Index), p.share(), p.bind()); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

// filter leaves out what leaves by loopback, where each packet is seen arriving too.
func (p *packets) filter(loopback int) error {
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: ancillary + 8},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(loopback), Jf: 2},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: ancillary + 4},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.PACKET_OUTGOING, Jt: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 1<<32 - 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
	program := &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	return os.NewSyscallError("setsockopt SO_ATTACH_FILTER",
		unix.SetsockoptSockFprog(p.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, program))
}

func (p *packets) share() error {
	if err := unix.SetsockoptInt(p.fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V3); err != nil {
		return os.NewSyscallError("setsockopt PACKET_VERSION", err)
	}
	// The frame size is only looked at.
	request := &unix.TpacketReq3{Block_size: blockSize, Block_nr: blocks, Frame_size: 2048, Frame_nr: blocks * blockSize / 2048,
		Retire_blk_tov: blockMillis}
	if err := unix.SetsockoptTpacketReq3(p.fd, unix.SOL_PACKET, unix.PACKET_RX_RING, request); err != nil {
		return os.NewSyscallError("setsockopt PACKET_RX_RING", err)
	}
	var err error
	p.ring, err = unix.Mmap(p.fd, 0, blocks*blockSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	return os.NewSyscallError("mmap PACKET_RX_RING", err)
}

func (p *packets) bind() error {
	all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
	return os.NewSyscallError("bind", unix.Bind(p.fd, &unix.SockaddrLinklayer{Protocol: all}))
}

func (p *packets) close() {
	if p.ring != nil {
		_ = unix.Munmap(p.ring) // the socket's end frees it
	}
	unix.Close(p.fd)
}

// at returns a block of those that come next, and its status, which is shared with the
// kernel.
func (p *packets) at(i int) (block []byte, status *uint32) {
	block = p.ring[(p.block+i)%blocks*blockSize:][:blockSize]
	return block, (*uint32)(unsafe.Pointer(&block[blockStatus]))
}

// ready counts the blocks that are ours.
func (p *packets) ready() int {
	for i := range blocks {
		if _, status := p.at(i); atomic.LoadUint32(status)&unix.TP_STATUS_USER == 0 {
			return i
		}
	}
	return blocks
}

// read hands on the packets of the next n blocks, which are ready.
func (p *packets) read(n int, file func([]byte)) error {
	for range n {
		block, status := p.at(0)
		if err := readBlock(block, file); err != nil {
			return err
		}
		atomic.StoreUint32(status, unix.TP_STATUS_KERNEL)
		p.block = (p.block + 1) % blocks
	}
	stats, err := unix.GetsockoptTpacketStatsV3(p.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return os.NewSyscallError("getsockopt PACKET_STATISTICS", err)
	}
	p.drops += stats.Drops // reading sets it to 0
	return nil
}

func readBlock(block []byte, file func([]byte)) error {
	number := func(b []byte, at int) uint32 { return binary.NativeEndian.Uint32(b[at:]) }
	at := number(block, blockFirst)
	for range number(block, blockPackets) {
		packet := block[at:]
		captured := number(packet, packetCaptured)
		if captured < number(packet, packetLength) {
			return fmt.Errorf("a packet of %d bytes was cut in the capture", number(packet, packetLength))
		}
		file(packet[binary.NativeEndian.Uint16(packet[packetNetwork:]):][:captured])
		at += number(packet, packetNext)
	}
	return nil
}
