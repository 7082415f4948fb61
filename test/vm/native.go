// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func nativeCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "native",
		Short: "Say whether tests may run on this kernel, without a virtual machine",
		Long:  "Exits with 0 if this kernel has TLS and we are root, else with 1 and a sentence on stderr.",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if err := nativeTLS(); err != nil {
				return &exitError{code: 1, err: err}
			}
			fmt.Println("this kernel has TLS, and we are root")
			return nil
		},
	}
}

// nativeTLS tries what the tests will do: attach the TLS protocol to a connection. As root this also loads the module.
func nativeTLS() error {
	if os.Geteuid() != 0 {
		return errors.New("tests need root, and this is not root")
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer listener.Close()
	conn, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		return err
	}
	defer conn.Close()
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		return err
	}
	var attached error
	if err := raw.Control(func(fd uintptr) {
		attached = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_ULP, tlsModule)
	}); err != nil {
		return err
	}
	switch {
	case errors.Is(attached, unix.ENOENT):
		return fmt.Errorf("the kernel %s has no TLS: neither built in nor as a module (CONFIG_TLS)", kernelRelease())
	case attached != nil:
		return fmt.Errorf("attach TLS to a connection on kernel %s: %w", kernelRelease(), attached)
	}
	return nil
}
