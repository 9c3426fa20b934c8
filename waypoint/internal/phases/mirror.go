package phases

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/marrowmesh/marrow/waypoint/internal/table"
	"github.com/marrowmesh/marrow/waypoint/internal/upstream"
)

const (
	maxMirrors    = 256 // copies under way in this process
	mirrorTimeout = 15 * time.Second
)

// mirror sends copies of the request to other clusters and forgets them. The original never waits for a copy: one with a body leaves
// when the body has passed, and only if it was short enough to hold.
func (w *forwarding) mirror() {
	var all []shadow
	for i := range w.f.Mirrors {
		m := &w.f.Mirrors[i]
		if !m.Share.Hit(w.h.cfg.Rand) {
			continue
		}
		if c := w.h.cfg.Upstreams.Get(m.Cluster); c != nil {
			all = append(all, w.shadow(m, c))
		}
	}
	if len(all) == 0 {
		return
	}
	if !w.hasBody() {
		w.h.cast(all, nil)
		return
	}
	body, h := w.exchange.body, w.h
	body.keep = &kept{limit: replayLimit}
	before := body.whole
	body.whole = func() { // in whatever goroutine reads the body
		if before != nil {
			before()
		}
		if !body.keep.over {
			h.cast(all, body.keep.b)
		}
	}
}

// shadow is a copy that waits for its body.
type shadow struct {
	cluster *upstream.Cluster
	via     upstream.Via
	req     *http.Request
}

func (w *forwarding) shadow(m *table.Mirror, c *upstream.Cluster) shadow {
	h, host, path := w.mutateRequest(w.f, 1)
	w.injectCopy(h)
	if m.Suffix {
		host += "-shadow"
	}
	return shadow{c, w.via(host), &http.Request{
		Method: w.r.Method, Host: host, Header: h, URL: &url.URL{Scheme: "http", Opaque: path, RawQuery: w.q.Query}, Body: http.NoBody,
	}}
}

// cast sends copies on their way.
func (h *Handler) cast(all []shadow, body []byte) {
	for _, s := range all {
		if h.mirrors.Add(1) > maxMirrors {
			h.mirrors.Add(-1)
			continue
		}
		if len(body) > 0 {
			s.req.Body, s.req.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		}
		ok := h.cfg.Group.Go("mirror", func(ctx context.Context) error {
			defer h.mirrors.Add(-1)
			h.copyTo(ctx, s.cluster, s.via, s.req)
			return nil
		})
		if !ok {
			h.mirrors.Add(-1)
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
