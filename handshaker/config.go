// SPDX-License-Identifier: Apache-2.0

package handshaker

import (
	"crypto/tls"
	"fmt"
	"slices"
	"time"

	"github.com/offloadd/offloadd/blob"
)

// Config is what [Server] and [Client] need to know. It may be used for many
// connections at once.
type Config struct {
	// TLS is the template of every connection's configuration. It is cloned and never
	// modified, apart from the session ticket keys that crypto/tls manages in it.
	//
	// The clone has MinVersion raised to TLS 1.2, and TLS 1.2 is limited to the suites
	// of blob.CipherSuites. KeyLogWriter must be nil, as it would copy secrets out, and
	// Renegotiation must be off, or the result is an [ErrConfig]. A config returned by
	// GetConfigForClient gets the same treatment, and one that does not pass ends the
	// handshake; its session tickets are sealed with its own keys and never with those
	// of the template, so a server that wants resumption returns the same config each
	// time or sets the keys.
	TLS *tls.Config

	// TicketWait is for Client and TLS 1.3, where tickets follow the handshake. It is
	// how long to wait for the first one that is not there yet, at most. After a ticket,
	// further ones are waited for only as long as they keep coming (10 ms), and not
	// beyond TicketWait. Zero takes the tickets that are there and waits for none.
	//
	// Tickets that come later reach whoever reads the connection then.
	TicketWait time.Duration
}

// prepare turns a template into the configuration of this connection.
func (h *handshake) prepare(template *tls.Config) (*tls.Config, error) {
	if err := checkConfig(template); err != nil {
		return nil, err
	}
	c := template.Clone()
	c.KeyLogWriter = h.log
	if err := limitVersions(c, h.role); err != nil {
		return nil, err
	}
	h.prepareResumption(c, template)
	if f := template.GetConfigForClient; f != nil {
		c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			chosen, err := f(hello)
			if err != nil || chosen == nil {
				return nil, err
			}
			return h.prepare(chosen)
		}
	}
	return c, nil
}

func checkConfig(c *tls.Config) error {
	switch {
	case c == nil:
		return fmt.Errorf("%w: Config.TLS is nil", ErrConfig)
	case c.KeyLogWriter != nil:
		return fmt.Errorf("%w: unset KeyLogWriter: it copies the secrets that are handed over", ErrConfig)
	case c.Renegotiation != tls.RenegotiateNever:
		return fmt.Errorf("%w: set Renegotiation to RenegotiateNever: no one could do it after the hand-over", ErrConfig)
	case c.MaxVersion != 0 && c.MaxVersion < tls.VersionTLS12:
		return fmt.Errorf("%w: raise MaxVersion to TLS 1.2 or 1.3", ErrConfig)
	}
	return nil
}

// limitVersions leaves only what blob can describe. TLS 1.3 suites cannot be chosen;
// blob knows all that crypto/tls has.
func limitVersions(c *tls.Config, role blob.Role) error {
	c.MinVersion = max(c.MinVersion, tls.VersionTLS12)
	if role == blob.Client && c.EncryptedClientHelloConfigList != nil {
		c.MinVersion = tls.VersionTLS13 // as crypto/tls demands
	}
	suites := []uint16{}
	for _, s := range blob.CipherSuites() {
		if s.Version() == blob.TLS12 && (c.CipherSuites == nil || slices.Contains(c.CipherSuites, uint16(s))) {
			suites = append(suites, uint16(s))
		}
	}
	c.CipherSuites = suites
	if len(suites) == 0 {
		c.MinVersion = tls.VersionTLS13
	}
	if c.MaxVersion != 0 && c.MaxVersion < c.MinVersion {
		return fmt.Errorf("%w: no ECDHE AEAD suite in CipherSuites, or no version between MinVersion and MaxVersion", ErrConfig)
	}
	return nil
}

// prepareResumption makes resumption work over clones, and shows us the sessions.
//
// Ticket keys that crypto/tls makes up live in the tls.Config, so each clone would
// have its own and no ticket would ever be accepted. The template's own methods seal
// and open them instead, and rotate its keys.
func (h *handshake) prepareResumption(c, template *tls.Config) {
	if h.role == blob.Client {
		if c.ClientSessionCache != nil {
			c.ClientSessionCache = watchedCache{c.ClientSessionCache, h.resumption}
		}
		return
	}
	if c.WrapSession == nil {
		c.WrapSession = template.EncryptTicket
	}
	if c.UnwrapSession == nil {
		c.UnwrapSession = template.DecryptTicket
	}
	c.UnwrapSession = h.resumption.unwrap(c.UnwrapSession)
}
