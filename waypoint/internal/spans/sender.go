package spans

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"time"

	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/waypoint/internal/trace"
	"github.com/marrowmesh/marrow/waypoint/internal/upstream"
)

// maxAnswer is the longest answer of a collector.
const maxAnswer = 1 << 20

// sender brings the spans of one collector there, one request after the other.
type sender struct {
	e        *Exporter
	provider *trace.Provider
	in       chan *trace.Span
	idle     chan<- string
	batch    []*trace.Span
	silent   bool // the collector failed last time, which the log knows
}

func (s *sender) run(ctx context.Context) {
	tick := time.NewTicker(s.e.cfg.Flush)
	defer tick.Stop()
	last, asked := time.Now(), false
	for {
		select {
		case span, ok := <-s.in:
			if !ok {
				s.flush(ctx)
				return
			}
			last = time.Now()
			if s.batch = append(s.batch, span); len(s.batch) >= batchLen {
				s.flush(ctx)
			}
		case <-tick.C:
			s.flush(ctx)
			if !asked && time.Since(last) > senderIdle {
				s.idle <- s.provider.Key // it has room for every sender
				asked = true
			}
		}
	}
}

func (s *sender) flush(ctx context.Context) {
	n := len(s.batch)
	if n == 0 {
		return
	}
	lost, err := s.send(ctx)
	s.batch = s.batch[:0]
	if err != nil {
		s.e.count(s.provider, failed, n)
		if !s.silent {
			s.e.cfg.Log.Warn("spans not sent", obs.F("cluster", s.provider.Cluster), obs.F("spans", n), obs.Err(err))
		}
		s.silent = true
		return
	}
	s.silent = false
	lost = min(lost, n)
	s.e.count(s.provider, rejected, lost)
	s.e.count(s.provider, sent, n-lost)
}

// send makes one request. lost is how many spans the collector did not take.
func (s *sender) send(ctx context.Context) (lost int, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.provider.Timeout)
	defer cancel()
	var body []byte
	h := http.Header{"User-Agent": {"marrow-waypoint"}}
	switch s.provider.Protocol {
	case trace.OTLPgRPC, trace.OTLPHTTP:
		body, err = trace.OTLP(s.provider, s.batch)
		h.Set("Content-Type", "application/x-protobuf")
	case trace.ZipkinJSON:
		body, err = trace.Zipkin(s.provider, s.batch)
		h.Set("Content-Type", "application/json")
	}
	if err != nil {
		return 0, fmt.Errorf("encode: %w", err)
	}
	major := 1
	if s.provider.Protocol == trace.OTLPgRPC {
		major, body = 2, trace.Frame(body)
		h.Set("Content-Type", "application/grpc")
		h.Set("Te", "trailers")
	}
	maps.Copy(h, s.provider.Header)
	resp, err := s.post(ctx, major, h, body)
	if err != nil {
		return 0, err
	}
	return s.judge(resp)
}

func (s *sender) post(ctx context.Context, major int, h http.Header, body []byte) (*upstream.Reply, error) {
	u, err := url.ParseRequestURI(s.provider.Path)
	if err != nil {
		return nil, err
	}
	req := &http.Request{
		Method: http.MethodPost, URL: u, Host: upstream.AuthorityOf(s.provider.Host), Header: h,
		Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body)),
		GetBody: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil },
	}
	return s.e.cfg.Upstreams.Ask(ctx, s.provider.Cluster, s.e.cfg.Rand, major, req, maxAnswer)
}

// judge reads a collector's answer.
func (s *sender) judge(resp *upstream.Reply) (lost int, err error) {
	text := resp.Body
	if resp.Status < 200 || resp.Status > 299 {
		return 0, fmt.Errorf("collector answered %d", resp.Status)
	}
	switch s.provider.Protocol {
	case trace.OTLPHTTP:
		return int(trace.Rejected(text)), nil
	case trace.OTLPgRPC:
		code := resp.Trailer.Get("Grpc-Status")
		if code == "" {
			code = resp.Header.Get("Grpc-Status")
		}
		const head = 5
		switch {
		case code != "0":
			return 0, fmt.Errorf("collector answered grpc-status %q", code)
		case len(text) < head:
			return 0, errors.New("collector answered without a message")
		}
		return int(trace.Rejected(text[head:])), nil
	case trace.ZipkinJSON:
	}
	return 0, nil
}
