package table

import (
	"strings"
	"time"

	"github.com/marrowmesh/marrow/waypoint/internal/match"
)

// Edge is a compiled listener at the mesh's border: a socket of its own, behind which no tunnel tells who comes.
type Edge struct {
	Name  string
	Port  uint16
	Proxy bool // connections begin with a PROXY header
	// Wait is how long a connection may take until its chain is known; 0 = default.
	Wait   time.Duration
	Chains map[string]*EdgeChain
	// Order are the chains as they came; of equal ones the first counts.
	order []*EdgeChain
	// Looks says that some chain needs the client's first bytes.
	Looks bool
}

// EdgeChain serves some server names, or what is left.
type EdgeChain struct {
	Chain
	Names     []string // lower case: exact or "*.suffix"; none = any
	Transport string   // "tls", "raw_buffer"; empty = any
	TLS       *EdgeTLS // nil = TLS is not ended here
	// Head is how long the head of a request may take; 0 = default.
	Head time.Duration
	// Streams is how many requests one HTTP/2 connection may have open; 0 = default.
	Streams uint32
}

// EdgeTLS is how a chain proves itself, and what it asks of clients.
type EdgeTLS struct {
	Certificates []string // names of secrets
	ALPN         []string
	Min, Max     uint16
	Ciphers      []string // Go's names; none = default
	Curves       []string
	Client       *EdgeClient // nil = nothing is asked
}

// EdgeClient is what is asked of a client's certificate.
type EdgeClient struct {
	Roots    string // name of a secret
	Names    []ClientName
	SPKI     []string // base64 of SHA-256
	Hashes   []string // hexadecimal SHA-256, lower case without colons
	Required bool
	Insecure bool // one that cannot be verified does no harm
}

// ClientName is a name that a client's certificate may have.
type ClientName struct {
	URI  bool // else DNS
	Text match.String
}

// Secret is PEM text that came from the control plane.
type Secret struct{ Chain, Key, Roots, CRL string }

// Find chooses the chain of a connection: the exact server name, then the longest suffix, then chains for any name.
func (e *Edge) Find(name string, encrypted bool) *EdgeChain {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	transport := "raw_buffer"
	if encrypted {
		transport = "tls"
	}
	var best *EdgeChain
	rank := 0
	for _, c := range e.order {
		if c.Transport != "" && c.Transport != transport {
			continue
		}
		r := c.rank(name)
		if r == 0 {
			continue
		}
		if c.Transport != "" {
			r++ // of chains for the same names the one that names the transport
		}
		if r > rank {
			best, rank = c, r
		}
	}
	return best
}

// rank is 0 for a chain that does not serve the name.
func (c *EdgeChain) rank(name string) int {
	if len(c.Names) == 0 {
		return 1
	}
	best := 0
	for _, n := range c.Names {
		switch suffix, wild := strings.CutPrefix(n, "*"); {
		case n == name && name != "":
			return 1 << 20
		case wild && len(name) > len(suffix) && strings.HasSuffix(name, suffix):
			best = max(best, 1+2*len(suffix))
		}
	}
	return best
}

// EdgeChain returns a chain of a listener; nil = it is gone.
func (t *Table) EdgeChain(listener, chain string) *EdgeChain {
	e := t.Edges[listener]
	if e == nil {
		return nil
	}
	return e.Chains[chain]
}

// SecretNames are those that the listener needs, each once.
func (e *Edge) SecretNames() []string {
	seen := map[string]bool{}
	var out []string
	add := func(n string) {
		if n != "" && !seen[n] {
			seen[n] = true
			out = append(out, n)
		}
	}
	for _, c := range e.order {
		if c.TLS == nil {
			continue
		}
		for _, n := range c.TLS.Certificates {
			add(n)
		}
		if c.TLS.Client != nil {
			add(c.TLS.Client.Roots)
		}
	}
	return out
}
