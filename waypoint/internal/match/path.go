package match

import (
	"errors"
	"fmt"
	"strings"
)

// ErrBadPath refuses a request target that has no single meaning.
var ErrBadPath = errors.New("request path is refused")

// EscapedSlash says what happens to %2F and %5C in a path.
type EscapedSlash uint8

// The actions of Envoy's path_with_escaped_slashes_action.
const (
	SlashKeep EscapedSlash = iota
	SlashReject
	SlashUnescape
	SlashRedirect
)

// Normalization is how a path is brought to one form before anything is matched on it.
type Normalization struct {
	Base         bool // dot segments, escapes of unreserved characters, backslashes
	MergeSlashes bool
	Slashes      EscapedSlash
}

// SplitTarget cuts a request target in origin or absolute form into path and query. "*" stays as it is.
func SplitTarget(target string) (path, query string, err error) {
	if !strings.HasPrefix(target, "/") && target != "*" {
		_, rest, ok := strings.Cut(target, "://")
		if !ok {
			return "", "", fmt.Errorf("target %q is neither a path nor a URL: %w", target, ErrBadPath)
		}
		i := strings.IndexAny(rest, "/?")
		switch {
		case i < 0:
			rest = "/"
		case rest[i] == '?':
			rest = "/" + rest[i:]
		default:
			rest = rest[i:]
		}
		target = rest
	}
	for i := range len(target) {
		switch c := target[i]; {
		case c == '#':
			return "", "", fmt.Errorf("target has a fragment: %w", ErrBadPath)
		case c <= ' ' || c == 0x7f: // HTTP/2 can carry it, but the request line of HTTP/1 would mean something else
			return "", "", fmt.Errorf("target has the character %#x: %w", c, ErrBadPath)
		}
	}
	path, query, _ = strings.Cut(target, "?")
	return path, query, nil
}

// Apply returns the one form of path. redirect is set when the client has to be sent there instead of being served.
func (n Normalization) Apply(path string) (out string, redirect bool, err error) {
	if path == "*" {
		return path, false, nil
	}
	before := path
	if n.Slashes != SlashKeep {
		path = unescapeSlashes(path)
		if path != before {
			if n.Slashes == SlashReject {
				return "", false, fmt.Errorf("path has an escaped slash: %w", ErrBadPath)
			}
			redirect = n.Slashes == SlashRedirect
		}
	}
	if n.Base {
		if path, err = canonicalPath(path); err != nil {
			return "", false, err
		}
	}
	if n.MergeSlashes {
		path = mergeSlashes(path)
	}
	return path, redirect, nil
}

func unescapeSlashes(p string) string {
	if !strings.ContainsRune(p, '%') {
		return p
	}
	return strings.NewReplacer("%2F", "/", "%2f", "/", "%5C", "\\", "%5c", "\\").Replace(p)
}

func mergeSlashes(p string) string {
	if !strings.Contains(p, "//") {
		return p
	}
	b := make([]byte, 0, len(p))
	for i := range len(p) {
		if p[i] == '/' && len(b) > 0 && b[len(b)-1] == '/' {
			continue
		}
		b = append(b, p[i])
	}
	return string(b)
}

// plain says that canonicalPath would not change p: no escape, no backslash, no dot segment, printable ASCII only.
func plain(p string) bool {
	for i := range len(p) {
		switch c := p[i]; {
		case c == '%' || c == '\\' || c <= ' ' || c >= 0x7f:
			return false
		case (c == '.' || c == ';') && i > 0 && p[i-1] == '/':
			return false
		}
	}
	return true
}

// canonicalPath decodes escapes of unreserved characters, writes the others in upper case, turns backslashes into slashes and then
// removes dot segments. An escape that decodes to a dot counts as that dot; a NUL or a broken escape is refused.
func canonicalPath(p string) (string, error) {
	if plain(p) {
		return p, nil
	}
	b := make([]byte, 0, len(p)+8)
	for i := 0; i < len(p); i++ {
		c := p[i]
		switch {
		case c == '%':
			if i+2 >= len(p) || !hex(p[i+1]) || !hex(p[i+2]) {
				return "", fmt.Errorf("path has a broken escape at byte %d: %w", i, ErrBadPath)
			}
			d := unhex(p[i+1])<<4 | unhex(p[i+2])
			i += 2
			switch {
			case d == 0:
				return "", fmt.Errorf("path has an escaped NUL: %w", ErrBadPath)
			case unreserved(d):
				b = append(b, d)
			default:
				b = appendEscape(b, d)
			}
		case c == '\\':
			b = append(b, '/')
		case c <= ' ' || c == 0x7f:
			return "", fmt.Errorf("path has the control character %#x: %w", c, ErrBadPath)
		case c >= 0x80:
			b = appendEscape(b, c)
		default:
			b = append(b, c)
		}
	}
	if err := checkParameters(string(b)); err != nil {
		return "", err
	}
	return removeDots(string(b)), nil
}

// checkParameters refuses "..;x" and its like: applications that cut parameters off a segment would see the dots alone, or nothing at
// all, and resolve to another path than policies saw. "/;x" at the end is the root with a parameter and stays.
func checkParameters(p string) error {
	for rest, more := p[1:], true; more; {
		var s string
		s, rest, more = strings.Cut(rest, "/")
		dots := 0
		for dots < len(s) && s[dots] == '.' {
			dots++
		}
		if dots > 2 || !strings.HasPrefix(s[dots:], ";") && !strings.HasPrefix(s[dots:], "%3B") {
			continue
		}
		if dots > 0 || more {
			return fmt.Errorf("path has the segment %q, a parameter of nothing: %w", s, ErrBadPath)
		}
	}
	return nil
}

func removeDots(p string) string {
	segs := strings.Split(p[1:], "/")
	out := segs[:0]
	for i, s := range segs {
		last := i == len(segs)-1
		switch s {
		case ".":
		case "..":
			if len(out) > 0 {
				out = out[:len(out)-1]
			}
		default:
			out = append(out, s)
			continue
		}
		if last {
			out = append(out, "")
		}
	}
	return "/" + strings.Join(out, "/")
}

func hex(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}

func unhex(c byte) byte {
	switch {
	case c >= 'a':
		return c - 'a' + 10
	case c >= 'A':
		return c - 'A' + 10
	}
	return c - '0'
}

func unreserved(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '.' || c == '_' || c == '~'
}

func appendEscape(b []byte, c byte) []byte {
	const digits = "0123456789ABCDEF"
	return append(b, '%', digits[c>>4], digits[c&15])
}
