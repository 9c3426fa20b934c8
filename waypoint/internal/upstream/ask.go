package upstream

import (
	"context"
	"fmt"
	"io"
	"net/http"

	"github.com/marrowmesh/marrow/waypoint/internal/match"
)

// Reply is an answer that has come whole.
type Reply struct {
	Status          int
	Header, Trailer http.Header
	Body            []byte
}

// Ask puts one question of the proxy's own, no client's, to a cluster: its endpoints, tunnels, limits and outliers are those of every
// request. major is the client side's version of HTTP, as for Transport. r gets its address here; an answer of more than most bytes is an error.
func (s *Store) Ask(ctx context.Context, cluster string, rand match.Rand, major int, r *http.Request, most int64) (*Reply, error) {
	c := s.Get(cluster)
	if c == nil {
		return nil, fmt.Errorf("cluster %q is not known", cluster)
	}
	c, err := c.Warm(ctx)
	if err != nil {
		return nil, err
	}
	host, err := c.Pick(Choice{Rand: rand})
	if err != nil {
		return nil, err
	}
	end, err := c.Begin(ctx, host, major)
	if err != nil {
		return nil, err
	}
	defer end()
	r.URL.Scheme, r.URL.Host = "http", host.Addr.String()
	resp, err := c.Transport(host, Via{Major: major, Authority: r.Host}).RoundTrip(r.WithContext(ctx))
	if err != nil {
		c.Report(host, LocalErr)
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	c.Report(host, ResultOf(resp.StatusCode))
	body, err := io.ReadAll(io.LimitReader(resp.Body, most+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read the answer: %w", err)
	case int64(len(body)) > most:
		return nil, fmt.Errorf("the answer is longer than %d bytes", most)
	}
	return &Reply{Status: resp.StatusCode, Header: resp.Header, Trailer: resp.Trailer, Body: body}, nil
}

// AuthorityOf makes a cluster's name, which may hold anything, an authority.
func AuthorityOf(name string) string {
	out := []byte(name)
	for i, b := range out {
		switch {
		case b >= 'a' && b <= 'z', b >= 'A' && b <= 'Z', b >= '0' && b <= '9', b == '.', b == '-', b == ':', b == '[', b == ']':
		default:
			out[i] = '-'
		}
	}
	return string(out)
}
