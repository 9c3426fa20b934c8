package edge

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/marrowmesh/marrow/waypoint/internal/table"
)

// certificates keeps one TLS configuration per chain as long as its secrets are the same: sessions can be resumed then.
type certificates struct {
	mu   sync.Mutex
	kept map[*table.EdgeChain]*kept
}

type kept struct {
	secrets []*table.Secret
	cfg     *tls.Config
	err     error
}

// retain forgets the chains that are not in force any more.
func (c *certificates) retain(t *table.Table) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for chain := range c.kept {
		if !slices.ContainsFunc(edges(t), func(e *table.Edge) bool { return e.Chains[chain.Name] == chain }) {
			delete(c.kept, chain)
		}
	}
}

func edges(t *table.Table) []*table.Edge {
	out := make([]*table.Edge, 0, len(t.Edges))
	for _, e := range t.Edges {
		out = append(out, e)
	}
	return out
}

func (c *certificates) config(t *table.Table, chain *table.EdgeChain) (*tls.Config, error) {
	secrets := make([]*table.Secret, 0, len(chain.TLS.Certificates)+1)
	names := slices.Clone(chain.TLS.Certificates)
	if chain.TLS.Client != nil {
		names = append(names, chain.TLS.Client.Roots)
	}
	for _, n := range names {
		s := t.Secrets[n]
		if s == nil {
			return nil, fmt.Errorf("secret %q did not come from the control plane", n)
		}
		secrets = append(secrets, s)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if k := c.kept[chain]; k != nil && slices.Equal(k.secrets, secrets) {
		return k.cfg, k.err
	}
	k := &kept{secrets: secrets}
	k.cfg, k.err = configOf(chain.TLS, secrets)
	if c.kept == nil {
		c.kept = map[*table.EdgeChain]*kept{}
	}
	c.kept[chain] = k
	return k.cfg, k.err
}

func configOf(t *table.EdgeTLS, secrets []*table.Secret) (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: max(t.Min, tls.VersionTLS12), MaxVersion: t.Max, NextProtos: t.ALPN}
	for i, name := range t.Certificates {
		cert, err := tls.X509KeyPair([]byte(secrets[i].Chain), []byte(secrets[i].Key))
		if err != nil {
			return nil, fmt.Errorf("secret %q: %w", name, err)
		}
		cfg.Certificates = append(cfg.Certificates, cert)
	}
	for _, s := range tls.CipherSuites() {
		if slices.Contains(t.Ciphers, s.Name) {
			cfg.CipherSuites = append(cfg.CipherSuites, s.ID)
		}
	}
	curves := map[string]tls.CurveID{
		"X25519": tls.X25519, "P-256": tls.CurveP256, "P-384": tls.CurveP384, "P-521": tls.CurveP521, "X25519MLKEM768": tls.X25519MLKEM768,
	}
	for _, n := range t.Curves {
		cfg.CurvePreferences = append(cfg.CurvePreferences, curves[n])
	}
	if t.Client == nil {
		return cfg, nil
	}
	return cfg, askClients(cfg, t.Client, secrets[len(secrets)-1])
}

// askClients makes the configuration ask for certificates. A session is never resumed then: what was true of a client may have
// been revoked.
func askClients(cfg *tls.Config, c *table.EdgeClient, roots *table.Secret) error {
	cfg.SessionTicketsDisabled = true
	if c.Insecure {
		cfg.ClientAuth = tls.RequestClientCert
		if c.Required {
			cfg.ClientAuth = tls.RequireAnyClientCert
		}
		return nil
	}
	cfg.ClientCAs = x509.NewCertPool()
	if !cfg.ClientCAs.AppendCertsFromPEM([]byte(roots.Roots)) {
		return errors.New("the clients' roots hold no certificate")
	}
	cfg.ClientAuth = tls.VerifyClientCertIfGiven
	if c.Required {
		cfg.ClientAuth = tls.RequireAndVerifyClientCert
	}
	revoked, err := revocations(roots.CRL)
	if err != nil {
		return err
	}
	cfg.VerifyConnection = func(st tls.ConnectionState) error {
		if len(st.PeerCertificates) == 0 {
			return nil // ClientAuth decides whether that may be
		}
		if !named(c, st.PeerCertificates[0]) {
			return errors.New("the client's certificate has none of the names, keys or hashes that are asked for")
		}
		return revoked.check(st.VerifiedChains)
	}
	return nil
}

// named says that a certificate is one of those that are asked for. Names are one condition, keys and hashes another.
func named(c *table.EdgeClient, cert *x509.Certificate) bool {
	if len(c.Names) > 0 && !slices.ContainsFunc(c.Names, func(n table.ClientName) bool {
		if !n.URI {
			return slices.ContainsFunc(cert.DNSNames, n.Text.Match)
		}
		for _, u := range cert.URIs {
			if n.Text.Match(u.String()) {
				return true
			}
		}
		return false
	}) {
		return false
	}
	if len(c.SPKI) == 0 && len(c.Hashes) == 0 {
		return true
	}
	key, whole := sha256.Sum256(cert.RawSubjectPublicKeyInfo), sha256.Sum256(cert.Raw)
	return slices.Contains(c.SPKI, base64.StdEncoding.EncodeToString(key[:])) || slices.Contains(c.Hashes, hex.EncodeToString(whole[:]))
}

// revocationLists are by issuer.
type revocationLists []*x509.RevocationList

func revocations(text string) (revocationLists, error) {
	var out revocationLists
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		l, err := x509.ParseRevocationList(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("the clients' revocation list: %w", err)
		}
		out = append(out, l)
	}
	if len(out) == 0 && strings.TrimSpace(text) != "" {
		return nil, errors.New("the clients' revocation list is no PEM text")
	}
	return out, nil
}

// check wants one chain in which every certificate below the root is vouched for by a list of its issuer.
func (ls revocationLists) check(chains [][]*x509.Certificate) error {
	if len(ls) == 0 {
		return nil
	}
	var problem error
	for _, chain := range chains {
		if problem = ls.checkChain(chain); problem == nil {
			return nil
		}
	}
	return problem
}

func (ls revocationLists) checkChain(chain []*x509.Certificate) error {
	for i := range len(chain) - 1 {
		cert, issuer, heard := chain[i], chain[i+1], false
		for _, l := range ls {
			if !bytes.Equal(l.RawIssuer, issuer.RawSubject) || l.CheckSignatureFrom(issuer) != nil {
				continue
			}
			heard = true
			for _, r := range l.RevokedCertificateEntries {
				if r.SerialNumber.Cmp(cert.SerialNumber) == 0 {
					return fmt.Errorf("the client's certificate %s is revoked", cert.SerialNumber)
				}
			}
		}
		if !heard {
			return fmt.Errorf("no revocation list of %s is at hand", issuer.Subject)
		}
	}
	return nil
}
