package app

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/marrowmesh/marrow/internal/identity"
	"github.com/marrowmesh/marrow/internal/mtls"
	"github.com/marrowmesh/marrow/internal/obs"
)

// certificates holds this waypoint's own certificate and renews it at half its life.
type certificates struct {
	id    identity.ID
	fetch func(context.Context) (*mtls.Certificate, error)
	log   *obs.Logger

	mu    sync.Mutex
	cert  *mtls.Certificate
	err   error
	first chan struct{} // closed with the first certificate
}

func newCertificates(id identity.ID, fetch func(context.Context) (*mtls.Certificate, error), log *obs.Logger) *certificates {
	return &certificates{id: id, fetch: fetch, log: log, first: make(chan struct{})}
}

// Certificate implements mtls.Source.
func (c *certificates) Certificate(ctx context.Context) (*mtls.Certificate, error) {
	select {
	case <-c.first:
	case <-ctx.Done():
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.err != nil {
			return nil, fmt.Errorf("no certificate for %s yet: %w", c.id, c.err)
		}
		return nil, fmt.Errorf("no certificate for %s yet: %w", c.id, context.Cause(ctx))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Now().After(c.cert.Leaf.NotAfter) {
		return nil, fmt.Errorf("certificate of %s expired at %s: %w", c.id, c.cert.Leaf.NotAfter.UTC().Format(time.RFC3339), c.err)
	}
	return c.cert, nil
}

// run fetches until ctx ends; got is called after every success.
func (c *certificates) run(ctx context.Context, got func()) error {
	const least, most = 100 * time.Millisecond, 15 * time.Second
	wait := least
	for {
		cert, err := c.fetch(ctx)
		c.mu.Lock()
		c.err = err
		if err == nil {
			fresh := c.cert == nil
			c.cert = cert
			if fresh {
				close(c.first)
			}
		}
		c.mu.Unlock()
		pause := wait
		if err == nil {
			got()
			wait = least
			pause = max(time.Until(cert.Leaf.NotBefore.Add(cert.Leaf.NotAfter.Sub(cert.Leaf.NotBefore)/2)), least)
			c.log.Info("certificate fetched", obs.F("until", cert.Leaf.NotAfter.UTC().Format(time.RFC3339)))
		} else {
			wait = min(2*wait, most)
			if ctx.Err() == nil {
				c.log.Warn("certificate refused", obs.F("again_in", pause.String()), obs.Err(err))
			}
		}
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		}
	}
}
