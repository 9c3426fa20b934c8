package refusals

import (
	"strconv"
	"strings"
	"time"
)

// Entry is one refused or failed connection or request.
type Entry struct {
	Time   time.Time `json:"time"`
	Proxy  string    `json:"proxy"`
	From   string    `json:"from"`
	To     string    `json:"to"`
	Reason string    `json:"reason"`
}

// Parse reads one line of a proxy's log; ok is false when it tells of no refusal.
func Parse(proxy, line string) (e Entry, ok bool) {
	if strings.HasPrefix(line, "[") {
		e, ok = request(line)
	} else {
		e, ok = connection(line)
	}
	e.Proxy = proxy
	return e, ok
}

// connection reads ztunnel's line: time, level, scope, message and fields, by tabs.
func connection(line string) (Entry, bool) {
	cols := strings.Split(line, "\t")
	if len(cols) < 5 || cols[2] != "access" {
		return Entry{}, false
	}
	f := fields(cols[4])
	if f["error"] == "" {
		return Entry{}, false
	}
	at, err := time.Parse(time.RFC3339, cols[0])
	if err != nil {
		return Entry{}, false
	}
	return Entry{
		Time: at, Reason: f["error"],
		From: first(f["src.identity"], named(f["src.namespace"], f["src.workload"]), f["src.addr"]),
		To:   to(f),
	}, true
}

// to names the destination: its service or workload, and the address that was asked for.
func to(f map[string]string) string {
	name := first(f["dst.service"], named(f["dst.namespace"], f["dst.workload"]))
	addr := first(f["dst.hbone_addr"], f["dst.addr"])
	if name == "" {
		return addr
	}
	return name + " (" + addr + ")"
}

func named(namespace, name string) string {
	if namespace == "" || name == "" {
		return ""
	}
	return namespace + "/" + name
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// fields reads k=v k="quoted v" pairs.
func fields(s string) map[string]string {
	out := map[string]string{}
	for s != "" {
		key, rest, ok := strings.Cut(s, "=")
		if !ok {
			return out
		}
		var value string
		if quoted, err := strconv.QuotedPrefix(rest); err == nil {
			value, _ = strconv.Unquote(quoted)
			rest = rest[len(quoted):]
		} else {
			value, rest, _ = strings.Cut(rest, " ")
		}
		out[strings.TrimSpace(key)] = value
		s = strings.TrimLeft(rest, " ")
	}
	return out
}

// request reads a waypoint's line: [time] "METHOD PATH PROTOCOL" status flags
// details … An answer that came from the application is none of the waypoint's refusals.
func request(line string) (Entry, bool) {
	stamp, rest, ok := strings.Cut(line[1:], "] ")
	if !ok {
		return Entry{}, false
	}
	at, err := time.Parse(time.RFC3339, stamp)
	quoted, qerr := strconv.QuotedPrefix(rest)
	if err != nil || qerr != nil {
		return Entry{}, false
	}
	cols := strings.Fields(rest[len(quoted):])
	if len(cols) < 4 {
		return Entry{}, false
	}
	status, err := strconv.Atoi(cols[0])
	details := cols[2]
	if err != nil || status < 400 || details == "via_upstream" {
		return Entry{}, false
	}
	what := strings.Trim(quoted, `"`)
	e := Entry{Time: at, Reason: cols[0] + " " + details + " (" + what + ")", From: last(cols), To: chain(cols)}
	if cols[1] != "-" {
		e.Reason += " flags " + cols[1]
	}
	return e, true
}

// last is the peer's identity, with which our waypoints end a line.
func last(cols []string) string {
	if id := cols[len(cols)-1]; strings.HasPrefix(id, "spiffe://") {
		return id
	}
	return "unknown"
}

// chain is the service: the part behind the last bar of the chain's or cluster's name.
func chain(cols []string) string {
	for _, c := range cols {
		if strings.HasPrefix(c, "inbound-vip|") || strings.HasPrefix(c, "outbound|") {
			return c[strings.LastIndex(c, "|")+1:]
		}
	}
	return "unknown"
}
