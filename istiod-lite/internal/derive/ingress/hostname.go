package ingress

import "strings"

const anyHost = "*"

// host puts an unset name and the catch-all into one form; names are compared in lower case.
func host(h string) string {
	if h == "" {
		return anyHost
	}
	return strings.ToLower(strings.TrimSuffix(h, "."))
}

// covers says that every name that b stands for is one of a's.
func covers(a, b string) bool {
	switch {
	case a == anyHost || a == b:
		return true
	case !strings.HasPrefix(a, "*"):
		return false
	}
	suffix := a[1:]
	return len(b) > len(suffix) && strings.HasSuffix(b, suffix)
}

// intersect is what two hosts have in common.
func intersect(a, b string) (string, bool) {
	switch {
	case covers(a, b):
		return b, true
	case covers(b, a):
		return a, true
	}
	return "", false
}

// moreSpecific says that a, which overlaps with b, is the narrower of the two.
func moreSpecific(a, b string) bool { return a != b && covers(b, a) }
