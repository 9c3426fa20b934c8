package h1

import (
	"errors"
	"net/http"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// statusError is a request that is answered by a status alone.
type statusError struct {
	status int
	text   string
}

func (e *statusError) Error() string { return e.text }

func bad(text string) error { return &statusError{http.StatusBadRequest, text} }

// maxFields is how many header lines a request may have.
const maxFields = 1000

// parseHead reads a head that ends in an empty line. It is as strict as
// net/http, and stricter: every line ends in CR LF, none goes on in the next, and
// nothing leaves a choice of where the body ends.
func parseHead(text string) (*http.Request, error) {
	line, rest, _ := strings.Cut(text, "\r\n")
	req, err := parseLine(line)
	if err != nil {
		return nil, err
	}
	var hosts int
	if req.Header, hosts, err = parseFields(rest); err != nil {
		return nil, err
	}
	host := req.Header.Get("Host")
	switch {
	case req.ProtoMajor != 1:
		return nil, &statusError{http.StatusHTTPVersionNotSupported, "unsupported protocol version"}
	case hosts > 1:
		return nil, bad("too many Host headers")
	case hosts == 0 && req.ProtoMinor >= 1 && req.Method != http.MethodConnect:
		return nil, bad("missing required Host header")
	case !httpguts.ValidHostHeader(host):
		return nil, bad("malformed Host header")
	}
	if req.Host = req.URL.Host; req.Host == "" {
		req.Host = host
	}
	delete(req.Header, "Host")
	connection := req.Header["Connection"]
	req.Close = httpguts.HeaderValuesContainsToken(connection, "close") ||
		req.ProtoMinor == 0 && !httpguts.HeaderValuesContainsToken(connection, "keep-alive")
	return req, frame(req)
}

// parseLine reads a request line.
func parseLine(line string) (*http.Request, error) {
	method, rest, _ := strings.Cut(line, " ")
	target, proto, ok := strings.Cut(rest, " ")
	switch {
	case !ok || !httpguts.ValidHeaderFieldName(method):
		return nil, bad("malformed request line")
	case !clean(target):
		return nil, bad("malformed request target")
	}
	req := &http.Request{Method: method, RequestURI: target, Proto: proto, ProtoMajor: 1, ProtoMinor: 1}
	if proto != "HTTP/1.1" {
		if req.ProtoMajor, req.ProtoMinor, ok = http.ParseHTTPVersion(proto); !ok {
			return nil, bad("malformed HTTP version")
		}
	}
	authority := method == http.MethodConnect && !strings.HasPrefix(target, "/")
	if authority {
		target = "http://" + target
	}
	var err error
	if req.URL, err = url.ParseRequestURI(target); err != nil {
		return nil, bad("malformed request target")
	}
	if authority {
		req.URL.Scheme = ""
	}
	return req, nil
}

// clean is true without control characters.
func clean(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] == 0x7f {
			return false
		}
	}
	return true
}

// parseFields reads header lines up to the empty one, and counts Host headers.
func parseFields(text string) (h http.Header, hosts int, err error) {
	n := strings.Count(text, "\n")
	if n > maxFields {
		return nil, 0, &statusError{http.StatusRequestHeaderFieldsTooLarge, "too many headers"}
	}
	h = make(http.Header, n)
	values := make([]string, n) // of all headers, one behind the other
	for {
		line, rest, ok := strings.Cut(text, "\r\n")
		switch {
		case !ok:
			return nil, 0, bad("malformed header")
		case line == "":
			if rest != "" {
				return nil, 0, bad("bytes after the header")
			}
			return h, hosts, nil
		}
		name, value, ok := strings.Cut(line, ":")
		value = strings.Trim(value, " \t")
		switch {
		case !ok || !httpguts.ValidHeaderFieldName(name): // also a line that goes on the one before
			return nil, 0, bad("malformed header name")
		case !httpguts.ValidHeaderFieldValue(value): // also a CR or LF alone
			return nil, 0, bad("malformed header value")
		}
		name = textproto.CanonicalMIMEHeaderKey(name)
		if name == "Host" {
			hosts++
		}
		if old := h[name]; old != nil {
			h[name] = append(old, value)
		} else {
			values[0] = value
			h[name], values = values[:1:1], values[1:]
		}
		text = rest
	}
}

// frame decides how long the body is.
func frame(req *http.Request) error {
	lengths, encodings := req.Header["Content-Length"], req.Header["Transfer-Encoding"]
	if len(encodings) == 0 {
		if len(lengths) == 0 {
			return nil
		}
		return measure(req, lengths)
	}
	switch {
	case len(encodings) > 1 || !strings.EqualFold(encodings[0], "chunked"):
		return &statusError{http.StatusNotImplemented, "unsupported transfer encoding"}
	case req.ProtoMinor == 0:
		return bad("transfer encoding in HTTP/1.0")
	case len(lengths) > 0:
		return bad("both Transfer-Encoding and Content-Length")
	}
	delete(req.Header, "Transfer-Encoding")
	req.TransferEncoding, req.ContentLength = []string{"chunked"}, -1
	announced := req.Header["Trailer"]
	delete(req.Header, "Trailer")
	for _, v := range announced {
		for name := range strings.SplitSeq(v, ",") {
			name = http.CanonicalHeaderKey(strings.Trim(name, " \t"))
			switch name {
			case "":
			case "Transfer-Encoding", "Trailer", "Content-Length":
				return bad("bad trailer key")
			default:
				if req.Trailer == nil {
					req.Trailer = http.Header{}
				}
				req.Trailer[name] = nil
			}
		}
	}
	return nil
}

// measure reads Content-Length, which may be said more than once, but not in two ways.
func measure(req *http.Request, lengths []string) error {
	for _, l := range lengths[1:] {
		if l != lengths[0] {
			return bad("several Content-Lengths")
		}
	}
	const bits = 63
	n, err := strconv.ParseUint(lengths[0], 10, bits)
	if err != nil {
		return bad("malformed Content-Length")
	}
	req.Header["Content-Length"] = lengths[:1]
	req.ContentLength = int64(n)
	return nil
}

var errTrailer = errors.New("malformed trailer")

// parseTrailer reads the fields behind a chunked body into the request.
func parseTrailer(req *http.Request, text string) error {
	h, _, err := parseFields(text)
	if err != nil {
		return errTrailer
	}
	for name, values := range h {
		if !httpguts.ValidTrailerHeader(name) {
			return errTrailer
		}
		if req.Trailer == nil {
			req.Trailer = http.Header{}
		}
		req.Trailer[name] = values
	}
	return nil
}
