//go:build lab

package lab_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
)

// insideVerb makes this test binary a hostile peer, or an observer, that runs in a pod or on a node of the lab:
//
//	lab.test inside <verb> <JSON>
//
// It answers with one JSON object on standard output.
const insideVerb = "inside"

func inside(args []string) int {
	verbs := map[string]func(context.Context, []byte) (any, error){
		"fetch":    insideFetch,
		"raw":      insideRaw,
		"traces":   insideTraces,
		"csr":      insideCSR,
		"discover": insideDiscover,
		"tunnel":   insideTunnel,
		"flips":    insideFlips,
	}
	verb, ok := verbs[args[0]]
	if !ok {
		fmt.Fprintf(os.Stderr, "no verb %q\n", args[0])
		return 2
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	out, err := verb(ctx, []byte(args[1]))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := json.NewEncoder(os.Stdout).Encode(out); err != nil {
		return 1
	}
	return 0
}

// in runs a verb in a pod (or on a node) and decodes its answer.
func in[T any](w *world, from, verb string, args any) T {
	w.t.Helper()
	var out T
	self, err := os.Executable()
	if err != nil {
		w.t.Fatal(err)
	}
	raw, err := json.Marshal(args)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(w.t.Context(), 30*time.Second)
	defer cancel()
	target := w.target(from)
	if strings.HasPrefix(from, "node-") {
		target = component("cni-" + from) // a pod in the node's own network namespace
	}
	got, err := w.c.Run(ctx, target, self, insideVerb, verb, string(raw))
	if err != nil {
		w.t.Fatalf("%s in %s: %v", verb, from, err)
	}
	if got.Exit != 0 {
		w.t.Fatalf("%s in %s: status %d: %s", verb, from, got.Exit, tail(string(got.Stderr), 2000))
	}
	if err := json.Unmarshal(got.Stdout, &out); err != nil {
		w.t.Fatalf("%s in %s: %v: %q", verb, from, err, got.Stdout)
	}
	return out
}

// fetched is one HTTP answer.
type fetched struct {
	Status int
	Body   string
	Type   string
	Error  string
}

func insideFetch(ctx context.Context, raw []byte) (any, error) {
	var url string
	if err := json.Unmarshal(raw, &url); err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return fetched{Error: err.Error()}, nil
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return fetched{Status: resp.StatusCode, Body: string(body), Type: resp.Header.Get("Content-Type")}, err
}

// rawSend says what to throw at a port.
type rawSend struct {
	Dst     string
	Data    []byte
	Timeout time.Duration // for the whole; 0 = 3 s
	NoClose bool          // keep the sending side open
}

// rawEnd is what became of it.
type rawEnd struct {
	Dial     string // why no connection
	Received []byte
	Closed   bool // the peer ended it, by FIN or RST
	Error    string
}

func insideRaw(ctx context.Context, raw []byte) (any, error) {
	var s rawSend
	if err := json.Unmarshal(raw, &s); err != nil {
		return nil, err
	}
	if s.Timeout == 0 {
		s.Timeout = 3 * time.Second
	}
	d := net.Dialer{Timeout: s.Timeout}
	conn, err := d.DialContext(ctx, "tcp", s.Dst)
	if err != nil {
		return rawEnd{Dial: err.Error()}, nil
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(s.Timeout))
	var end rawEnd
	if _, err := conn.Write(s.Data); err != nil {
		end.Error = err.Error()
	}
	if tcp, ok := conn.(*net.TCPConn); ok && !s.NoClose {
		_ = tcp.CloseWrite()
	}
	got, err := io.ReadAll(io.LimitReader(conn, 1<<20))
	end.Received = got
	switch {
	case err == nil, errors.Is(err, syscall.ECONNRESET):
		end.Closed = true
	default:
		end.Error += err.Error()
	}
	return end, nil
}

// traces is what enrolment may leave in a network namespace.
type traces struct {
	Tables []string // nft tables
	Rules  []string // policy routing rules beyond the kernel's three
	Routes []string // routes outside the tables main and local
}

func insideTraces(context.Context, []byte) (any, error) {
	var out traces
	c, err := nftables.New()
	if err != nil {
		return nil, err
	}
	tables, err := c.ListTables()
	if err != nil {
		return nil, err
	}
	for _, t := range tables {
		out.Tables = append(out.Tables, t.Name)
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		rules, err := netlink.RuleList(family)
		if err != nil {
			return nil, err
		}
		for _, r := range rules {
			if r.Table != 253 && r.Table != 254 && r.Table != 255 {
				out.Rules = append(out.Rules, r.String())
			}
		}
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return nil, err
		}
		for _, r := range routes {
			if r.Table != 0 && r.Table != 254 && r.Table != 255 {
				out.Routes = append(out.Routes, r.String())
			}
		}
	}
	return out, nil
}

func (t traces) empty() bool { return len(t.Tables)+len(t.Rules)+len(t.Routes) == 0 }

// firstLine is enough of a long text for an error message.
func firstLine(b []byte) string {
	line, _, _ := bytes.Cut(b, []byte("\n"))
	return string(line[:min(len(line), 200)])
}
