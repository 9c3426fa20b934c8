package h2

import (
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
)

// Requests has a connection carry requests of every kind, with trailers, and
// not only those that ask for a tunnel.
type Requests struct {
	// ExtendedConnect lets CONNECT name a :protocol (RFC 8441), and says so to the peer.
	ExtendedConnect bool
	// HeaderTimeout is how long a header block may take from its first byte to its last; 0 = 10 s. Silence is PingTimeout's.
	HeaderTimeout time.Duration
}

func (r *Requests) headerTimeout() time.Duration {
	if r == nil || r.HeaderTimeout <= 0 {
		return prefaceTimeout
	}
	return r.HeaderTimeout
}

// content is what is known of the message that arrives on a stream, if there is more of it than its header.
type content struct {
	length   int64 // by content-length; -1 = it does not say
	got      int64 // <= length, if that is said (TestContentLength)
	trailers []Field
}

// take counts a DATA frame; it returns what is wrong, or "".
func (t *content) take(n int, end bool) string {
	if t == nil {
		return ""
	}
	t.got += int64(n)
	if t.length >= 0 && (t.got > t.length || end && t.got < t.length) {
		return "content of " + strconv.FormatInt(t.got, 10) + " bytes, content-length says " + strconv.FormatInt(t.length, 10)
	}
	return ""
}

// Trailers is what followed the content. It is there once Read has said io.EOF.
func (s *Stream) Trailers() []Field {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.header.content == nil {
		return nil
	}
	return s.header.content.trailers
}

// Ended reports that the peer has ended its direction in order. A stream that it gave up reads as one that has ended, which is not the
// same to whoever must know whether a message is whole.
func (s *Stream) Ended() bool {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.remoteEnd
}

// takeTrailers is for connections of Requests; it returns what is wrong with a
// trailer section, or "".
func (s *Stream) takeTrailers(k *block) string {
	if k.truncated {
		return "trailers over the limit"
	}
	for _, f := range k.fields {
		if !httpguts.ValidTrailerHeader(f.Name) || hopByHop(f.Name) {
			return f.Name + " as a trailer"
		}
		if padded(f.Value) {
			return "blanks around the value of " + f.Name
		}
	}
	if reason := s.header.content.take(0, true); reason != "" {
		return reason
	}
	if s.header.content == nil {
		s.header.content = &content{length: -1}
	}
	s.header.content.trailers = k.keep()
	return ""
}

// admit judges a request by what the connection is for. length is the content-length, -1 without one.
func (c *Conn) admit(k *block) (length int64, reason string) {
	if c.cfg.Requests == nil {
		return -1, malformed(k)
	}
	if k.truncated {
		return -1, ""
	}
	if reason := pseudoOfRequest(k, c.cfg.Requests.ExtendedConnect); reason != "" {
		return -1, reason
	}
	return fieldsOfRequest(k)
}

// pseudoOfRequest applies RFC 9113 sections 8.3.1 and 8.5, and RFC 8441
// section 4. Unknown and double ones were refused before.
func pseudoOfRequest(k *block, extended bool) string {
	method, scheme, path, authority := k.value(":method"), k.value(":scheme"), k.value(":path"), k.value(":authority")
	plain := method == "CONNECT" && !k.has(":protocol")
	switch {
	case !httpguts.ValidHeaderFieldName(method): // a token
		return ":method " + strconv.Quote(method)
	case k.has(":status"):
		return ":status in a request"
	case k.has(":protocol") && (!extended || method != "CONNECT" || k.value(":protocol") == ""):
		return ":protocol without leave"
	case plain && (k.has(":scheme") || k.has(":path")):
		return "CONNECT with :scheme or :path"
	case plain && authority == "", k.has(":protocol") && authority == "":
		return "CONNECT without :authority"
	case strings.Contains(authority, "@") || !httpguts.ValidHostHeader(authority):
		return ":authority " + strconv.Quote(authority)
	case plain:
		return ""
	case scheme != "http" && scheme != "https":
		return ":scheme " + strconv.Quote(scheme)
	case !validPath(path, method):
		return ":path that is none"
	}
	return ""
}

// validPath takes an absolute path with a query, and * where that has a meaning.
func validPath(path, method string) bool {
	if path == "*" {
		return method == "OPTIONS"
	}
	for i := range len(path) {
		if b := path[i]; b <= ' ' || b == 0x7f {
			return false
		}
	}
	return path != "" && path[0] == '/'
}

// hopByHop is the fields that only HTTP/1 has a meaning for.
func hopByHop(name string) bool {
	switch name {
	case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
		return true
	}
	return false
}

func padded(value string) bool {
	blank := func(b byte) bool { return b == ' ' || b == '\t' }
	return value != "" && (blank(value[0]) || blank(value[len(value)-1]))
}

// fieldsOfRequest applies RFC 9113 sections 8.1.1, 8.2.1, 8.2.2 and 8.3.1, and RFC
// 9110 section 8.6.
func fieldsOfRequest(k *block) (length int64, reason string) {
	length = -1
	authority, named, coded := k.value(":authority"), false, false
	for _, f := range k.fields[k.pseudo:] {
		switch {
		case hopByHop(f.Name):
			return -1, f.Name + " header"
		case padded(f.Value):
			return -1, "blanks around the value of " + f.Name
		}
		switch f.Name {
		case "te":
			if coded || f.Value != "trailers" {
				return -1, "te header"
			}
			coded = true
		case "host":
			if named || authority != "" && f.Value != authority || strings.Contains(f.Value, "@") || !httpguts.ValidHostHeader(f.Value) {
				return -1, "host header that is not :authority"
			}
			named = true
		case "content-length":
			const bits = 63
			n, err := strconv.ParseUint(f.Value, 10, bits)
			if err != nil || length >= 0 && length != int64(n) {
				return -1, "content-length header"
			}
			length = int64(n)
		}
	}
	if k.end && length > 0 {
		return -1, "content-length without content"
	}
	return length, ""
}

// HasContent reports whether something follows the peer's header, be it empty.
func (s *Stream) HasContent() bool {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.header.content != nil
}
