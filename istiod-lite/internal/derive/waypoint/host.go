package waypoint

import (
	"regexp"
	"strings"

	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
)

// hostMatch compares with the host that the client named. A client may name the same host with a port or with dots at its end, and its
// application will not mind. So where a match refuses (wide), a host without a port stands for all of these spellings; where a match
// lets through it stands for itself alone, as in Istio.
func hostMatch(wide bool) func(v string) (*rbacv3.Permission, error) {
	return func(v string) (*rbacv3.Permission, error) {
		name, anySubdomain := strings.CutPrefix(v, "*")
		if !wide || name == "" || hasPort(name) || !anySubdomain && strings.HasSuffix(name, "*") {
			return headerPermission(":authority", v, true), nil
		}
		expr := "(?i)"
		if anySubdomain {
			expr += ".*"
		}
		expr += regexp.QuoteMeta(strings.TrimSuffix(name, ".")) + `\.*(:.*)?`
		return &rbacv3.Permission{Rule: &rbacv3.Permission_Header{Header: headerMatch(":authority", regex(expr), false)}}, nil
	}
}

func hasPort(host string) bool {
	return strings.LastIndexByte(host, ':') > strings.LastIndexByte(host, ']')
}
