package phases

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/marrowmesh/marrow/waypoint/internal/upstream"
)

const (
	maxMirrors    = 256 // copies under way in this process
	mirrorTimeout = 15 * time.Second
)

// mirror sends copies of the request to other clusters and forgets them. Only a request without a body, or with one that is short
// enough to hold, is copied: the original must never wait for a copy.
func (w *forwarding) mirror() {
	for i := range w.f.Mirrors {
		m := &w.f.Mirrors[i]
		if !m.Share.Hit(w.h.cfg.Rand) {
			continue
		}
		c := w.h.cfg.Upstreams.Get(m.Cluster)
		if c == nil || w.hasBody() {
			continue
		}
		if w.h.mirrors.Add(1) > maxMirrors {
			w.h.mirrors.Add(-1)
			continue
		}
		h, host, path := w.mutateRequest(w.f, 1)
		w.injectCopy(h)
		if m.Suffix {
			host += "-shadow"
		}
		q, via := w.q.Query, w.via(host)
		via.Major = 1
		ok := w.h.cfg.Group.Go("mirror", func(ctx context.Context) error {
			defer w.h.mirrors.Add(-1)
			w.h.copyTo(ctx, c, via, &http.Request{Method: w.r.Method, Host: host, Header: h, URL: &url.URL{Scheme: "http", Opaque: path, RawQuery: q}})
			return nil
		})
		if !ok {
			w.h.mirrors.Add(-1)
		}
	}
}

// copyTo sends a copy; whatever becomes of it is nobody's concern.
func (h *Handler) copyTo(ctx context.Context, c *upstream.Cluster, via upstream.Via, req *http.Request) {
	ctx, cancel := context.WithTimeout(ctx, mirrorTimeout)
	defer cancel()
	host, err := c.Pick(upstream.Choice{Rand: h.cfg.Rand})
	if err != nil {
		return
	}
	end, err := c.Begin(ctx, host, via.Major)
	if err != nil {
		return
	}
	defer end()
	req.URL.Host = host.Addr.String()
	resp, err := c.Transport(host, via).RoundTrip(req.WithContext(ctx))
	if err != nil {
		return
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
}
