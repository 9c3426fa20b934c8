package phases_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	rbacconfig "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// seen is one request as the application's side of the wire has it.
type seen struct {
	method, target string
	header         [][2]string
	wrong          []string // what a lenient application could read in another way
}

func (s seen) get(name string) (out []string) {
	for _, h := range s.header {
		if strings.EqualFold(h[0], name) {
			out = append(out, h[1])
		}
	}
	return out
}

// wire is an application that answers everything and remembers every byte's meaning. It is strict, and its parser its own, so that
// what it finds unambiguous is so for any other.
type wire struct {
	mu   sync.Mutex
	all  []seen
	junk []string
}

func (a *wire) listen(t *testing.T, w *world, addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	end := make(chan struct{})
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { <-end; _ = c.Close() })
			wg.Go(func() { defer func() { _ = c.Close() }(); a.serve(c) })
		}
	})
	w.podTCP(addr, l.Addr().String(), "spiffe://td/ns/shop/sa/app")
	t.Cleanup(func() { _ = l.Close(); close(end); wg.Wait() })
}

func (a *wire) serve(c net.Conn) {
	r := bufio.NewReader(c)
	for {
		s, err := readRequest(r)
		a.mu.Lock()
		switch {
		case err == nil:
			a.all = append(a.all, s)
		case !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
			if _, network := errors.AsType[*net.OpError](err); !network {
				a.junk = append(a.junk, err.Error())
			}
		}
		a.mu.Unlock()
		if err != nil {
			return
		}
		if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"); err != nil {
			return
		}
	}
}

func (a *wire) take() ([]seen, []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	all, junk := a.all, a.junk
	a.all, a.junk = nil, nil
	return all, junk
}

func line(r *bufio.Reader) (string, error) {
	s, err := r.ReadString('\n')
	if err != nil {
		return "", err
	}
	s, ok := strings.CutSuffix(s, "\r\n")
	if !ok || strings.ContainsAny(s, "\r\x00") {
		return "", fmt.Errorf("line %q is not ended by CRLF alone", s)
	}
	return s, nil
}

func readRequest(r *bufio.Reader) (seen, error) {
	var s seen
	first, err := line(r)
	if err != nil {
		return s, err
	}
	part := strings.Split(first, " ")
	if len(part) != 3 || part[2] != "HTTP/1.1" {
		return s, fmt.Errorf("request line %q", first)
	}
	s.method, s.target = part[0], part[1]
	for {
		l, err := line(r)
		if err != nil {
			return s, err
		}
		if l == "" {
			break
		}
		name, value, ok := strings.Cut(l, ":")
		if !ok || name == "" || strings.ContainsAny(name, " \t()\"") || name[0] <= ' ' {
			s.wrong = append(s.wrong, fmt.Sprintf("header line %q", l))
		}
		s.header = append(s.header, [2]string{name, strings.Trim(value, " \t")})
	}
	return s, s.readBody(r)
}

func (s *seen) readBody(r *bufio.Reader) error {
	lengths, codings := s.get("Content-Length"), s.get("Transfer-Encoding")
	switch {
	case len(s.get("Host")) != 1:
		s.wrong = append(s.wrong, "not one Host")
	case len(lengths) > 1 || len(codings) > 1 || len(lengths)+len(codings) > 1:
		s.wrong = append(s.wrong, "more than one framing")
	}
	if len(codings) > 0 {
		if codings[0] != "chunked" {
			return fmt.Errorf("coding %q", codings[0])
		}
		return readChunks(r)
	}
	if len(lengths) > 0 {
		n, err := strconv.ParseUint(lengths[0], 10, 31)
		if err != nil || strconv.FormatUint(n, 10) != lengths[0] {
			return fmt.Errorf("length %q", lengths[0])
		}
		_, err = io.CopyN(io.Discard, r, int64(n))
		return err
	}
	return nil
}

func readChunks(r *bufio.Reader) error {
	for {
		l, err := line(r)
		if err != nil {
			return err
		}
		n, err := strconv.ParseUint(l, 16, 31)
		if err != nil {
			return fmt.Errorf("chunk size %q", l)
		}
		if n == 0 {
			break
		}
		if _, err := io.CopyN(io.Discard, r, int64(n)); err != nil {
			return err
		}
		if l, err := line(r); err != nil || l != "" {
			return fmt.Errorf("chunk ends with %q: %w", l, err)
		}
	}
	for {
		l, err := line(r)
		if err != nil || l == "" {
			return err
		}
		if name, _, _ := strings.Cut(l, ":"); strings.EqualFold(name, "x-role") {
			return fmt.Errorf("trailer %q", l)
		}
	}
}

// mode is a value of the mesh's path normalization, and with it what its author says of the applications.
type mode struct {
	name            string
	base, merge     bool
	escaped         hcmv3.HttpConnectionManager_PathWithEscapedSlashesAction
	wantRefusals    int // the least number of spellings of the resource that the corpus has under this reading
	slashesAreEqual bool
}

func modes() []mode {
	return []mode{
		{name: "NONE", wantRefusals: 10},
		{name: "BASE", base: true, wantRefusals: 60},
		{name: "MERGE_SLASHES", base: true, merge: true, wantRefusals: 70},
		{name: "DECODE_AND_MERGE_SLASHES", base: true, merge: true, escaped: hcmv3.HttpConnectionManager_UNESCAPE_AND_FORWARD, wantRefusals: 90, slashesAreEqual: true},
	}
}

// understood says whether an application of that mode takes a target for /secret or something below it. It cuts off what stands behind
// ? and #, decodes each segment once, cuts off its parameters and then resolves dots.
func (m mode) understood(target string) bool {
	if rest, ok := strings.CutPrefix(strings.ToLower(target), "http://"); ok {
		target = "/"
		if i := strings.IndexByte(rest, '/'); i >= 0 && !strings.ContainsAny(rest[:i], "?#") {
			target = rest[i:]
		}
	}
	if i := strings.IndexAny(target, "?#"); i >= 0 {
		target = target[:i]
	}
	if !m.base {
		return target == "/secret" || strings.HasPrefix(target, "/secret/")
	}
	target = strings.ReplaceAll(target, `\`, "/")
	if m.slashesAreEqual {
		target = strings.NewReplacer("%2f", "/", "%2F", "/", "%5c", "/", "%5C", "/").Replace(target)
	}
	var out []string
	for seg := range strings.SplitSeq(strings.TrimPrefix(target, "/"), "/") {
		if d, err := url.PathUnescape(seg); err == nil {
			seg = d
		}
		seg, _, _ = strings.Cut(seg, ";")
		seg, _, _ = strings.Cut(seg, "\x00")
		switch {
		case seg == "." || seg == "" && m.merge:
		case seg == "..":
			out = out[:max(len(out)-1, 0)]
		default:
			out = append(out, seg)
		}
	}
	return len(out) > 0 && out[0] == "secret"
}

func corpus(t *testing.T, name string) []string {
	t.Helper()
	raw, err := os.ReadFile("testdata/hostile/" + name)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for l := range strings.Lines(string(raw)) {
		if l = strings.TrimSpace(l); l != "" && l[0] != '#' {
			out = append(out, l)
		}
	}
	return out
}

func unquote(t *testing.T, s string) string {
	t.Helper()
	v, err := strconv.Unquote(s)
	if err != nil {
		t.Fatalf("%s: %v", s, err)
	}
	return v
}

// guarded refuses /secret, the host admin.example, DELETE and the role admin, in the shapes that istiod sends.
func guarded(t *testing.T) map[string]*anypb.Any {
	path := func(m *matcherv3.StringMatcher) *rbacconfig.Permission {
		return &rbacconfig.Permission{Rule: &rbacconfig.Permission_UrlPath{UrlPath: &matcherv3.PathMatcher{Rule: &matcherv3.PathMatcher_Path{Path: m}}}}
	}
	header := func(name string, m *matcherv3.StringMatcher) *rbacconfig.Permission {
		return &rbacconfig.Permission{Rule: &rbacconfig.Permission_Header{Header: &routev3.HeaderMatcher{
			Name: name, HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: m},
		}}}
	}
	exact := func(s string) *matcherv3.StringMatcher {
		return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: s}}
	}
	starts := func(s string) *matcherv3.StringMatcher {
		return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: s}}
	}
	host := &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{
		SafeRegex: &matcherv3.RegexMatcher{Regex: `(?i)admin\.example\.*(:.*)?`},
	}}
	deny := &rbacconfig.RBAC{Action: rbacconfig.RBAC_DENY, Policies: map[string]*rbacconfig.Policy{"p": {
		Permissions: []*rbacconfig.Permission{
			path(exact("/secret")), path(starts("/secret/")), path(starts("/secret;")), path(starts("/secret%3B")),
			header(":authority", host), header(":method", exact("DELETE")), header("x-role", exact("admin")),
		},
		Principals: []*rbacconfig.Principal{{Identifier: &rbacconfig.Principal_Any{Any: true}}},
	}}}
	return map[string]*anypb.Any{
		"marrow.rbac.deny": pack(t, &rbacv3.RBACPerRoute{Rbac: &rbacv3.RBAC{Rules: deny}}), "marrow.rbac.allow": pack(t, &rbacv3.RBACPerRoute{}),
	}
}

func guardedWorld(t *testing.T, m mode) (*world, *wire) {
	w, app := newWorld(t), &wire{}
	app.listen(t, w, "10.0.0.1:8080")
	hcm := manager(t)
	hcm.NormalizePath, hcm.MergeSlashes, hcm.PathWithEscapedSlashesAction = wrapperspb.Bool(m.base), m.merge, m.escaped
	plain := cluster(t, "v1", func(c *clusterv3.Cluster) { c.TypedExtensionProtocolOptions = nil }) // HTTP/1.1 whatever the client speaks
	w.mustApply(plain, endpoints("v1", "10.0.0.1:8080"), terminate(t), internal(t, hcm), routes(t, guarded(t), to("/", "v1")))
	return w, app
}

// speak sends bytes on a connection of its own and returns the statuses of all answers but the informational ones. When nothing has come
// for a while it says that it will send no more.
func speak(t *testing.T, send string, dial func() net.Conn) []int {
	t.Helper()
	s := dial()
	defer func() { _ = s.Close() }()
	quiet := time.AfterFunc(30*time.Millisecond, func() { _ = s.(interface{ CloseWrite() error }).CloseWrite() })
	defer quiet.Stop()
	_ = s.SetDeadline(time.Now().Add(10 * time.Second))
	_, _ = io.WriteString(s, send)
	r := bufio.NewReader(s)
	var out []int
	for {
		method := http.MethodGet
		if strings.HasPrefix(strings.TrimLeft(send, "\r\n"), "HEAD") && len(out) == 0 {
			method = http.MethodHead
		}
		resp, err := http.ReadResponse(r, &http.Request{Method: method})
		if err != nil {
			return out
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode >= 200 {
			out = append(out, resp.StatusCode)
		}
		quiet.Reset(30 * time.Millisecond)
	}
}

func (w *world) dialer(t *testing.T) func() net.Conn {
	tn := w.tunnel(shopper)
	return func() net.Conn {
		s, _, err := tn.Connect(t.Context(), vip+":80", nil)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
}

func (s seen) unambiguous(t *testing.T, from string) {
	t.Helper()
	if len(s.wrong) > 0 {
		t.Errorf("%s: the application got %s %s with %v", from, s.method, s.target, s.wrong)
	}
}

// TestNoSpellingPasses: whatever spelling of a refused path a client finds, an application that reads paths as the mesh's setting says
// never gets it; and spellings of other paths are served.
func TestNoSpellingPasses(t *testing.T) {
	paths := corpus(t, "paths.txt")
	for _, m := range modes() {
		t.Run(m.name, func(t *testing.T) {
			w, app := guardedWorld(t, m)
			dial := w.dialer(t)
			meant, served := 0, 0
			for _, p := range paths {
				target := unquote(t, p)
				got := speak(t, "GET "+target+" HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n", dial)
				all, junk := app.take()
				if len(junk) > 0 {
					t.Errorf("%s: the application got %q", p, junk)
				}
				for _, s := range all {
					s.unambiguous(t, p)
					if m.understood(s.target) {
						t.Errorf("%s reached the application as %q", p, s.target)
					}
				}
				if m.understood(target) && slices.ContainsFunc(got, func(c int) bool { return c >= 400 }) {
					meant++
				}
				served += len(all)
			}
			t.Logf("%d spellings, %d of them of the resource and refused, %d served", len(paths), meant, served)
			if meant < m.wantRefusals || served < 20 {
				t.Errorf("the corpus says little: %d of the resource, %d served", meant, served)
			}
		})
	}
}

// TestNoSpellingPassesHTTP2 is the same for paths that HTTP/2 can carry.
func TestNoSpellingPassesHTTP2(t *testing.T) {
	for _, m := range modes() {
		t.Run(m.name, func(t *testing.T) {
			w, app := guardedWorld(t, m)
			c := w.client(shopper, vip+":80", true)
			for _, p := range corpus(t, "paths.txt") {
				target := unquote(t, p)
				if !strings.HasPrefix(target, "/") || strings.HasPrefix(target, "//") {
					continue
				}
				req := &http.Request{Method: "GET", URL: &url.URL{Scheme: "http", Host: "web", Opaque: target}, Header: http.Header{}}
				resp, err := c.Do(req.WithContext(t.Context()))
				if err == nil {
					_ = resp.Body.Close()
				}
				all, junk := app.take()
				for _, s := range all {
					s.unambiguous(t, p)
					if m.understood(s.target) {
						t.Errorf("%s reached the application as %q", p, s.target)
					}
				}
				if len(junk) > 0 {
					t.Errorf("%s: the application got %q", p, junk)
				}
			}
		})
	}
}

// adminHost is how generous an application may be with a Host.
func adminHost(h string) bool {
	for part := range strings.SplitSeq(h, ",") {
		part = strings.ToLower(strings.Trim(part, " \t\"'<>()[]{}"))
		part = part[strings.LastIndexByte(part, '@')+1:]
		part = strings.TrimPrefix(strings.TrimPrefix(part, "http:"), "//")
		if d, err := url.PathUnescape(part); err == nil {
			part = d
		}
		if i := strings.IndexAny(part, "/\\?#;:\x00 \t|"); i >= 0 {
			part = part[:i]
		}
		if strings.TrimRight(strings.Trim(part, "[] \t"), ".") == "admin.example" {
			return true
		}
	}
	return false
}

// TestNoHostPasses: a refused host is refused in all its spellings.
func TestNoHostPasses(t *testing.T) {
	w, app := guardedWorld(t, modes()[1])
	dial := w.dialer(t)
	meant := 0
	for _, q := range corpus(t, "hosts.txt") {
		h := unquote(t, q)
		for _, send := range []string{
			"GET /open HTTP/1.1\r\nHost: " + h + "\r\nConnection: close\r\n\r\n",
			"GET http://" + h + "/open HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n",
			"GET http://web/open HTTP/1.1\r\nHost: " + h + "\r\nConnection: close\r\n\r\n",
		} {
			_ = speak(t, send, dial)
			all, junk := app.take()
			for _, s := range all {
				s.unambiguous(t, q)
				if adminHost(s.get("Host")[0]) {
					t.Errorf("%q reached the application as %q", send, s.get("Host"))
				}
			}
			if len(junk) > 0 {
				t.Errorf("%q: the application got %q", send, junk)
			}
		}
		if adminHost(h) {
			meant++
		}
	}
	if meant < 20 {
		t.Errorf("only %d spellings of the host", meant)
	}
}

// TestNothingIsSmuggled: on no connection does the application get a request that was not judged, or one that it could read in two ways.
func TestNothingIsSmuggled(t *testing.T) {
	w, app := guardedWorld(t, modes()[1])
	dial := w.dialer(t)
	cases := corpus(t, "bytes.txt")
	if len(cases) < 200 {
		t.Errorf("only %d cases", len(cases))
	}
	refused := 0
	asked := map[string]int{}
	for _, l := range cases {
		name, q, _ := strings.Cut(l, ": ")
		send := unquote(t, q)
		got := speak(t, send, dial)
		all, junk := app.take()
		if len(junk) > 0 {
			t.Errorf("%s: the application got %q", name, junk)
		}
		for _, c := range got {
			if c >= 400 {
				refused++
			}
		}
		for _, s := range all {
			s.unambiguous(t, name)
			asked[s.method+" "+s.target]++
			switch {
			case modes()[3].understood(s.target):
				t.Errorf("%s: %q reached the application", name, s.target)
			case strings.EqualFold(s.method, "DELETE") && s.method != "delete" && s.method != "Delete":
				t.Errorf("%s: method %q reached the application", name, s.method)
			case adminHost(s.get("Host")[0]):
				t.Errorf("%s: host %q reached the application", name, s.get("Host"))
			case slices.Contains(s.get("X-Role"), "admin"):
				t.Errorf("%s: the role reached the application", name)
			}
		}
	}
	if refused < 100 {
		t.Errorf("only %d requests were refused", refused)
	}
	if resp := speak(t, "GET /open HTTP/1.1\r\nHost: web\r\n\r\n", dial); fmt.Sprint(resp) != "[200]" {
		t.Errorf("after all that a plain request is answered %v", resp)
	}
	all, _ := app.take()
	for _, s := range all {
		asked[s.method+" "+s.target]++
	}
	w.stop()
	judged := map[string]int{}
	for _, l := range w.log.all() {
		if f := strings.Fields(l); len(f) > 2 {
			judged[f[0]+" "+f[1]]++
		}
	}
	for what, n := range asked {
		if n > judged[what] {
			t.Errorf("the application got %q %d times, %d were judged", what, n, judged[what])
		}
	}
}

// TestWireIsStrict: the application of these tests would notice.
func TestWireIsStrict(t *testing.T) {
	for _, bad := range []string{
		"GET / HTTP/1.1\nHost: a\n\n", "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: x\r\n\r\n", "GET /  HTTP/1.1\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\na", "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;x\r\na\r\n0\r\n\r\n",
	} {
		if _, err := readRequest(bufio.NewReader(bytes.NewReader([]byte(bad)))); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
	for _, odd := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\nX : b\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	} {
		if s, _ := readRequest(bufio.NewReader(bytes.NewReader([]byte(odd)))); len(s.wrong) == 0 {
			t.Errorf("%q has nothing wrong", odd)
		}
	}
}
