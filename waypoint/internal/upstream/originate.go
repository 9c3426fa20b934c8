package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
)

// Secret is a certificate with its key, or roots; what is not part of it is empty.
type Secret struct{ Chain, Key, Roots, CRL string }

// ErrUnverified is a peer that did not prove what it has to.
var ErrUnverified = errors.New("the endpoint's certificate is not accepted")

// originate speaks TLS on a connection.
func (c *Cluster) originate(ctx context.Context, conn Conn, authority string) (Conn, error) {
	cfg, err := c.store.tlsConfig(c.Config.TLS, authority)
	if err == nil {
		t := tls.Client(conn, cfg)
		if err = t.HandshakeContext(ctx); err == nil {
			return t, nil
		}
	}
	_ = conn.Close()
	return nil, fmt.Errorf("TLS: %w", err)
}

// tlsConfig reads the material anew, so that a file that was renewed counts from the next connection on.
func (s *Store) tlsConfig(t *TLS, authority string) (*tls.Config, error) {
	cfg := &tls.Config{
		ServerName: t.serverName(authority), NextProtos: t.ALPN, MinVersion: t.Min, MaxVersion: t.Max,
		InsecureSkipVerify: true, //nolint:gosec // verified below, by Envoy's rules
	}
	if !t.Cert.none() {
		chain, err := s.material(t.Cert, func(x Secret) string { return x.Chain })
		if err != nil {
			return nil, fmt.Errorf("own certificate: %w", err)
		}
		key, err := s.material(t.Key, func(x Secret) string { return x.Key })
		if err != nil {
			return nil, fmt.Errorf("own key: %w", err)
		}
		pair, err := tls.X509KeyPair([]byte(chain), []byte(key))
		if err != nil {
			return nil, fmt.Errorf("own certificate: %w", err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	if t.Roots.none() && !t.System {
		return cfg, nil // nothing is to be verified
	}
	v := &verifier{t: t, name: cfg.ServerName, now: s.now}
	if !t.System {
		text, err := s.material(t.Roots, func(x Secret) string { return x.Roots })
		if err != nil {
			return nil, fmt.Errorf("roots: %w", err)
		}
		if v.roots = x509.NewCertPool(); !v.roots.AppendCertsFromPEM([]byte(text)) {
			return nil, errors.New("roots: no certificate in them")
		}
	}
	if !t.CRL.none() {
		text, err := s.material(t.CRL, func(Secret) string { return "" })
		if err == nil {
			v.lists, err = revocations([]byte(text))
		}
		if err != nil {
			return nil, fmt.Errorf("crl: %w", err)
		}
	}
	cfg.VerifyConnection = v.verify
	return cfg, nil
}

func (s *Store) material(src Source, part func(Secret) string) (string, error) {
	switch {
	case src.File != "":
		b, err := os.ReadFile(src.File)
		return string(b), err
	case src.Secret != "":
		x, ok := (*s.secrets.Load())[src.Secret]
		if !ok || part(x) == "" {
			return "", fmt.Errorf("secret %q is not known yet, or lacks it", src.Secret)
		}
		return part(x), nil
	}
	return src.Inline, nil
}

// verifier judges an endpoint's certificate.
type verifier struct {
	t     *TLS
	name  string
	now   func() time.Time
	roots *x509.CertPool // nil = the machine's
	lists []*x509.RevocationList
}

func (v *verifier) verify(cs tls.ConnectionState) error {
	if len(cs.PeerCertificates) == 0 {
		return fmt.Errorf("no certificate: %w", ErrUnverified)
	}
	leaf, between := cs.PeerCertificates[0], x509.NewCertPool()
	for _, c := range cs.PeerCertificates[1:] {
		between.AddCert(c)
	}
	chains, err := leaf.Verify(x509.VerifyOptions{Roots: v.roots, Intermediates: between, CurrentTime: v.now()})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnverified, err)
	}
	if v.t.MatchName {
		if v.name == "" {
			return fmt.Errorf("no server name to verify: %w", ErrUnverified)
		}
		if err := leaf.VerifyHostname(v.name); err != nil {
			return fmt.Errorf("%w: %w", ErrUnverified, err)
		}
	}
	if len(v.t.Names) > 0 && !v.named(leaf) {
		return fmt.Errorf("it names none of what is wanted: %w", ErrUnverified)
	}
	if len(v.lists) == 0 {
		return nil
	}
	for _, chain := range chains {
		if err = v.current(chain); err == nil {
			return nil
		}
	}
	return err
}

func (v *verifier) named(leaf *x509.Certificate) bool {
	for i := range v.t.Names {
		a := &v.t.Names[i]
		var have []string
		switch a.Kind {
		case tlsv3.SubjectAltNameMatcher_URI:
			for _, u := range leaf.URIs {
				have = append(have, u.String())
			}
		case tlsv3.SubjectAltNameMatcher_EMAIL:
			have = leaf.EmailAddresses
		case tlsv3.SubjectAltNameMatcher_IP_ADDRESS:
			for _, ip := range leaf.IPAddresses {
				have = append(have, ip.String())
			}
		default:
			if a.DNS != "" && !strings.Contains(a.DNS, "*") && leaf.VerifyHostname(a.DNS) == nil {
				return true
			}
			have = leaf.DNSNames
		}
		if slices.ContainsFunc(have, a.Text.Match) {
			return true
		}
	}
	return false
}

// current demands a list of every issuer in the chain, and that none of them has revoked.
func (v *verifier) current(chain []*x509.Certificate) error {
	for i, c := range chain[:len(chain)-1] {
		issuer, found := chain[i+1], false
		for _, l := range v.lists {
			if string(l.RawIssuer) != string(issuer.RawSubject) || l.CheckSignatureFrom(issuer) != nil {
				continue
			}
			found = l.NextUpdate.IsZero() || v.now().Before(l.NextUpdate)
			for _, r := range l.RevokedCertificateEntries {
				if r.SerialNumber.Cmp(c.SerialNumber) == 0 {
					return fmt.Errorf("certificate %v was revoked: %w", c.SerialNumber, ErrUnverified)
				}
			}
		}
		if !found {
			return fmt.Errorf("there is no current revocation list of %s: %w", issuer.Subject, ErrUnverified)
		}
	}
	return nil
}

func revocations(text []byte) (out []*x509.RevocationList, err error) {
	for {
		var b *pem.Block
		if b, text = pem.Decode(text); b == nil {
			break
		}
		l, err := x509.ParseRevocationList(b.Bytes)
		if err != nil {
			return nil, err
		}
		out = append(out, l)
	}
	if len(out) == 0 {
		return nil, errors.New("no revocation list in it")
	}
	return out, nil
}
