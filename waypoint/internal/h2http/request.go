package h2http

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/net/http/httpguts"

	"github.com/marrowmesh/marrow/internal/h2"
)

// request makes net/http's request of header fields that internal/h2 has judged
// already: here only the path can still be wrong.
func (x *exchange) request(ctx context.Context, fields []h2.Field) (*http.Request, error) {
	n := 0 // pseudo-headers
	var method, scheme, authority, path, protocol string
	for ; n < len(fields) && strings.HasPrefix(fields[n].Name, ":"); n++ {
		switch f := fields[n]; f.Name {
		case ":method":
			method = f.Value
		case ":scheme":
			scheme = f.Value
		case ":authority":
			authority = f.Value
		case ":path":
			path = f.Value
		case ":protocol":
			protocol = f.Value
		}
	}
	_ = scheme // http and https are the same here: whoever ended TLS knows better than the client
	header := headerOf(fields[n:])
	host := header.Get("Host")
	delete(header, "Host")
	if authority == "" {
		authority = host
	}
	target := &url.URL{Host: authority}
	uri := authority
	if path != "" {
		var err error
		if target, err = url.ParseRequestURI(path); err != nil {
			return nil, fmt.Errorf("path: %w", err)
		}
		uri = path
	}
	if protocol != "" {
		header[":protocol"] = []string{protocol} // as net/http has it
	}
	req := (&http.Request{
		Method: method, URL: target, Proto: "HTTP/2.0", ProtoMajor: 2, Header: header, Host: authority, RequestURI: uri,
		Body: http.NoBody, Trailer: announced(header),
	}).WithContext(ctx)
	x.body.st, x.body.req = x.st, req
	if expects := header["Expect"]; len(expects) > 0 && httpguts.HeaderValuesContainsToken(expects, "100-continue") {
		x.body.continues.Store(true)
		delete(header, "Expect")
	}
	if x.st.HasContent() {
		req.Body, req.ContentLength = &x.body, length(header)
	}
	x.res = response{st: x.st, head: method == http.MethodHead, header: make(http.Header, 8), length: -1}
	return req, nil
}

// headerOf makes a header of fields; all values lie one behind the other.
func headerOf(fields []h2.Field) http.Header {
	header := make(http.Header, len(fields))
	values := make([]string, len(fields))
	for _, f := range fields {
		name := canonical(f.Name)
		switch old := header[name]; {
		case old == nil:
			values[0] = f.Value
			header[name], values = values[:1:1], values[1:]
		case name == "Cookie": // RFC 9113 section 8.2.3
			old[0] += "; " + f.Value
		case name == "Content-Length": // the same twice
		default:
			header[name] = append(old, f.Value)
		}
	}
	return header
}

// length is what the header says, -1 if nothing.
func length(header http.Header) int64 {
	const bits = 63
	if v := header["Content-Length"]; len(v) > 0 {
		if n, err := strconv.ParseUint(v[0], 10, bits); err == nil {
			return int64(n)
		}
	}
	return -1
}

// announced takes the Trailer header off.
func announced(header http.Header) http.Header {
	names := header["Trailer"]
	if names == nil {
		return nil
	}
	delete(header, "Trailer")
	var out http.Header
	for _, v := range names {
		for name := range strings.SplitSeq(v, ",") {
			if name = textproto.CanonicalMIMEHeaderKey(strings.Trim(name, " \t")); httpguts.ValidTrailerHeader(name) && name != "" {
				if out == nil {
					out = http.Header{}
				}
				out[name] = nil
			}
		}
	}
	return out
}

// body is a request's body as its handler sees it.
type body struct {
	st        *h2.Stream
	req       *http.Request
	continues atomic.Bool // the client waits for being told to send it
	closed    atomic.Bool // by the handler, or it has returned
	whole     bool        // all was read
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	switch {
	case b.closed.Load():
		return 0, http.ErrBodyReadAfterClose
	case b.whole:
		return 0, io.EOF
	case b.continues.Swap(false):
		_ = b.st.Inform([]h2.Field{{Name: ":status", Value: "100"}})
	}
	n, err := b.st.Read(p)
	if errors.Is(err, io.EOF) {
		if !b.st.Ended() {
			return n, io.ErrUnexpectedEOF // it was given up
		}
		b.whole = true
		b.trailers()
	}
	return n, err
}

func (b *body) trailers() {
	for _, f := range b.st.Trailers() {
		if b.req.Trailer == nil {
			b.req.Trailer = http.Header{}
		}
		name := canonical(f.Name)
		b.req.Trailer[name] = append(b.req.Trailer[name], f.Value)
	}
}

// Close implements io.Closer. What is under way is thrown away when the handler returns.
func (b *body) Close() error {
	b.closed.Store(true)
	return nil
}
