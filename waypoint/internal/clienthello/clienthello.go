package clienthello

import (
	"errors"
	"fmt"
	"strings"
)

// Limit is how many bytes a first message, with the headers of its records, may have.
const Limit = 16<<10 + 5

// Hello is what a client said of the server that it wants.
type Hello struct {
	ServerName string // lower case without the dot at its end; empty = none
	Protocols  []string
}

// Errors that a caller tells apart.
var (
	// ErrShort asks for more bytes.
	ErrShort = errors.New("the client's first message is not whole yet")
	// ErrNotTLS is a client that speaks something else.
	ErrNotTLS = errors.New("the client does not speak TLS")
	// ErrBad is TLS that breaks the rules.
	ErrBad = errors.New("the client's first message is malformed")
)

const (
	recordHeader    = 5
	recordHandshake = 22
	clientHello     = 1
	handshakeHeader = 4
	maxRecord       = 16 << 10
)

// Parse reads the first message from the bytes that came so far.
func Parse(b []byte) (Hello, error) {
	msg, err := message(b)
	if err != nil {
		return Hello{}, err
	}
	return hello(msg)
}

// message joins the records of the first handshake message. What cannot become one is told as early as possible.
func message(b []byte) ([]byte, error) {
	var msg []byte
	want := -1
	for at := 0; ; {
		r := b[at:]
		switch {
		case len(r) > 0 && r[0] != recordHandshake:
			if at == 0 {
				return nil, ErrNotTLS
			}
			return nil, fmt.Errorf("%w: a record of type %d in its middle", ErrBad, r[0])
		case len(r) > 1 && r[1] != 3:
			if at == 0 {
				return nil, ErrNotTLS
			}
			return nil, fmt.Errorf("%w: version %d", ErrBad, r[1])
		case len(r) < recordHeader:
			return nil, ErrShort
		}
		n := int(r[3])<<8 | int(r[4])
		if n == 0 || n > maxRecord || at+recordHeader+n > Limit {
			return nil, fmt.Errorf("%w: a record of %d bytes", ErrBad, n)
		}
		part := r[recordHeader:min(len(r), recordHeader+n)]
		msg = append(msg, part...)
		if len(msg) > 0 && msg[0] != clientHello {
			return nil, fmt.Errorf("%w: handshake message %d comes first", ErrBad, msg[0])
		}
		if want < 0 && len(msg) >= handshakeHeader {
			want = handshakeHeader + (int(msg[1])<<16 | int(msg[2])<<8 | int(msg[3]))
			if want > Limit {
				return nil, fmt.Errorf("%w: it has %d bytes, more than %d", ErrBad, want, Limit)
			}
		}
		if want >= 0 && len(msg) >= want {
			return msg[handshakeHeader:want], nil
		}
		if len(part) < n {
			return nil, ErrShort
		}
		at += recordHeader + n
	}
}

// reader takes fields from the front; after the first that is not whole it gives nothing more.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) take(n int) []byte {
	if r.bad || n > len(r.b) {
		r.bad = true
		return nil
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) number(size int) int {
	n := 0
	for _, c := range r.take(size) {
		n = n<<8 | int(c)
	}
	return n
}

func (r *reader) vector(size int) reader { return reader{b: r.take(r.number(size)), bad: r.bad} }

const (
	extensionName  = 0
	extensionALPN  = 16
	versionAndRand = 2 + 32
)

func hello(b []byte) (Hello, error) {
	r := reader{b: b}
	r.take(versionAndRand)
	r.vector(1) // session
	r.vector(2) // suites
	r.vector(1) // compression
	var h Hello
	if r.bad {
		return h, fmt.Errorf("%w: it ends in the middle", ErrBad)
	}
	if len(r.b) == 0 {
		return h, nil // a client without extensions
	}
	list := r.vector(2)
	if r.bad || len(r.b) > 0 {
		return h, fmt.Errorf("%w: its extensions do not fit", ErrBad)
	}
	seen := map[int]bool{}
	for len(list.b) > 0 {
		kind := list.number(2)
		body := list.vector(2)
		if list.bad {
			return Hello{}, fmt.Errorf("%w: an extension ends in the middle", ErrBad)
		}
		if kind != extensionName && kind != extensionALPN {
			continue
		}
		if seen[kind] {
			return Hello{}, fmt.Errorf("%w: extension %d is there twice", ErrBad, kind)
		}
		seen[kind] = true
		var err error
		if kind == extensionName {
			h.ServerName, err = serverName(body)
		} else {
			h.Protocols, err = protocols(body)
		}
		if err != nil {
			return Hello{}, err
		}
	}
	return h, nil
}

func serverName(r reader) (string, error) {
	list := r.vector(2)
	if r.bad || len(r.b) > 0 || len(list.b) == 0 {
		return "", fmt.Errorf("%w: its server name does not fit", ErrBad)
	}
	name, have := "", false
	for len(list.b) > 0 {
		kind := list.number(1)
		v := list.vector(2)
		if list.bad {
			return "", fmt.Errorf("%w: its server name ends in the middle", ErrBad)
		}
		if kind != 0 {
			continue
		}
		if have {
			return "", fmt.Errorf("%w: it names two servers", ErrBad)
		}
		have, name = true, string(v.b)
	}
	if !hostname(name) && have {
		return "", fmt.Errorf("%w: %q is no server name", ErrBad, name)
	}
	return strings.ToLower(strings.TrimSuffix(name, ".")), nil
}

// hostname lets through what can be a DNS name.
func hostname(s string) bool {
	const longest = 255
	if s == "" || len(s) > longest {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '.', c == '_':
		default:
			return false
		}
	}
	return true
}

func protocols(r reader) ([]string, error) {
	list := r.vector(2)
	if r.bad || len(r.b) > 0 {
		return nil, fmt.Errorf("%w: its protocols do not fit", ErrBad)
	}
	var out []string
	for len(list.b) > 0 {
		v := list.vector(1)
		if list.bad || len(v.b) == 0 {
			return nil, fmt.Errorf("%w: a protocol ends in the middle", ErrBad)
		}
		out = append(out, string(v.b))
	}
	return out, nil
}
