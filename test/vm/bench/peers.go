// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net"
	"path/filepath"
	"strings"
)

// Roots of the disk of peers.
const (
	stable       = "stable"
	experimental = "experimental"
)

const (
	suiteAES    = "TLS_AES_128_GCM_SHA256"
	suiteChaCha = "TLS_CHACHA20_POLY1305_SHA256"
)

// peer starts a program of the disk. It listens on the stage's address.
func (s *stage) peer(root, name, configuration string, args ...string) error {
	place, err := peerRoot(root)
	if err != nil {
		return err
	}
	file, err := s.write(filepath.Base(name), configuration)
	if err != nil {
		return err
	}
	for i, arg := range args {
		args[i] = strings.ReplaceAll(arg, "CONFIGURATION", file)
	}
	return s.runUntilListening(s.server, program{root: place, path: name, args: args}, s.address)
}

// nginxHead: one process that serves, and nothing written. Only errors are logged.
const nginxHead = `load_module /usr/lib/nginx/modules/ngx_stream_module.so;
daemon off; user root; worker_processes 1; worker_rlimit_nofile 65536; pid /tmp/bench/%[1]s.pid; error_log stderr error;
events { worker_connections 30000; }
`

// nginxTLS are the settings of a listener.
func (s *stage) nginxTLS(suite string, kernel bool) string {
	text := fmt.Sprintf("listen %s ssl backlog=4096; ssl_certificate %s; ssl_certificate_key %s; ssl_protocols TLSv1.3; ssl_conf_command Ciphersuites %s;",
		s.address, s.files.chain, s.files.key, suite)
	if kernel {
		text += " ssl_conf_command Options KTLS;"
	}
	return text
}

func (s *stage) nginx(root, rest string) error {
	return s.peer(root, "/usr/sbin/nginx", fmt.Sprintf(nginxHead, s.name)+rest, "-e", "stderr", "-c", "CONFIGURATION")
}

// nginxHTTP serves the documents.
func nginxHTTP(root, suite string, kernel bool) serve {
	return func(s *stage) error {
		temporary := ""
		for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
			temporary += fmt.Sprintf("%s_temp_path /tmp/bench/%s-%s; ", kind, s.name, kind)
		}
		return s.nginx(root, fmt.Sprintf(`http { access_log off; sendfile on; keepalive_timeout 1h; keepalive_requests 10000000;
%s
server { %s root %s; } }
`, temporary, s.nginxTLS(suite, kernel), s.files.documents))
	}
}

// nginxStream is a proxy.
func nginxStream(root string, kernel bool) serve {
	return func(s *stage) error {
		if err := s.runBackend(); err != nil {
			return err
		}
		return s.nginx(root, fmt.Sprintf("stream { server { %s proxy_pass %s; proxy_timeout 1h; } }\n",
			s.nginxTLS(suiteAES, kernel), s.backendAddress()))
	}
}

// haproxyHead: one thread, and as much splice as it can.
const haproxyHead = `global
  nbthread 1
  maxconn 15000
  %s
  ssl-default-bind-ciphersuites TLS_AES_128_GCM_SHA256
  ssl-default-bind-options ssl-min-ver TLSv1.3
defaults
  timeout connect 1h
  timeout client 1h
  timeout server 1h
  %s
frontend f
  mode %s
  bind %s %s
`

// haproxyListener with or without kernel TLS, which is experimental in HAProxy 3.4.
func (s *stage) haproxy(root, how, mode, rest string) error {
	experimental, splice, bind := "", "option splice-auto", "ssl crt "+s.files.both
	switch how {
	case kernelTLS:
		experimental, splice, bind = "expose-experimental-directives", splice+"\n  option splice-request\n  option splice-response", bind+" ktls on"
	case plaintext:
		splice, bind = splice+"\n  option splice-request\n  option splice-response", ""
	}
	if mode == "http" {
		splice = ""
	}
	return s.peer(root, "/usr/sbin/haproxy", fmt.Sprintf(haproxyHead, experimental, splice, mode, s.address, bind)+rest,
		"-db", "-f", "CONFIGURATION")
}

const (
	kernelTLS = "kernel"
	userTLS   = "user"
	plaintext = "plain"
)

func haproxyTCP(root, how string) serve {
	return func(s *stage) error {
		if err := s.runBackend(); err != nil {
			return err
		}
		return s.haproxy(root, how, "tcp", "  default_backend b\nbackend b\n  mode tcp\n  server s "+s.backendAddress()+"\n")
	}
}

// haproxyHTTP answers each request itself with one byte.
func haproxyHTTP(root, how string) serve {
	return func(s *stage) error {
		return s.haproxy(root, how, "http", "  http-request return status 200 content-type text/plain string 1\n")
	}
}

func stunnel(s *stage) error {
	if err := s.runBackend(); err != nil {
		return err
	}
	return s.peer(stable, "/usr/bin/stunnel4", fmt.Sprintf(`foreground = yes
pid =
syslog = no
debug = err
socket = l:TCP_NODELAY=1
socket = r:TCP_NODELAY=1
[s]
accept = %s
connect = %s
cert = %s
key = %s
sslVersionMin = TLSv1.3
ciphersuites = %s
`, s.address, s.backendAddress(), s.files.chain, s.files.key, suiteAES), "CONFIGURATION")
}

func hitch(s *stage) error {
	if err := s.runBackend(); err != nil {
		return err
	}
	bracketed := func(address string) string {
		host, port, _ := net.SplitHostPort(address) // it is ours
		return fmt.Sprintf("[%s]:%s", host, port)
	}
	return s.peer(stable, "/usr/sbin/hitch", fmt.Sprintf(`frontend = "%s"
backend = "%s"
pem-file = "%s"
workers = 1
tls-protos = TLSv1.3
ciphersuites = "%s"
user = "nobody"
group = "nogroup"
backlog = 4096
`, bracketed(s.address), bracketed(s.backendAddress()), s.files.both, suiteAES), "--config=CONFIGURATION")
}

// iperf3 receives; the sender, which is measured, is the client's side of the work.
func iperf3(s *stage) error {
	place, err := peerRoot(stable)
	if err != nil {
		return err
	}
	_, port, _ := net.SplitHostPort(s.address) // it is ours
	return s.run(s.client, program{root: place, path: "/usr/bin/iperf3", args: []string{"-s", "--forceflush", "-B", "127.0.0.1", "-p", port}, ready: "listening on"})
}
