package jwks

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"
	"go.uber.org/goleak"

	"github.com/marrowmesh/marrow/internal/obs"
	"github.com/marrowmesh/marrow/internal/run"
	"github.com/marrowmesh/marrow/waypoint/internal/jwt"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// issuer answers as a test wants, and counts.
type issuer struct {
	mu     sync.Mutex
	asked  int
	status int
	body   string
	header http.Header
	err    error
	delay  time.Duration
}

func (i *issuer) RoundTrip(req *http.Request) (*http.Response, error) {
	i.mu.Lock()
	i.asked++
	status, body, header, err, delay := i.status, i.body, i.header, i.err, i.delay
	i.mu.Unlock()
	if delay > 0 {
		select {
		case <-time.After(delay):
		case <-req.Context().Done():
			return nil, req.Context().Err()
		}
	}
	if err != nil {
		return nil, err
	}
	if header == nil {
		header = http.Header{}
	}
	return &http.Response{StatusCode: status, Status: strconv.Itoa(status), Header: header, Body: io.NopCloser(strings.NewReader(body))}, nil
}

func (i *issuer) set(change func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	change()
}

func (i *issuer) count() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.asked
}

// document is a key set with one key of that id.
func document(t testing.TB, id string) string {
	t.Helper()
	public, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: public, KeyID: id}}})
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func src(uri string) jwt.Source {
	return jwt.Source{URI: uri, Cluster: "c", Timeout: 2 * time.Second, Cache: 5 * time.Minute, Retry: time.Second}
}

// start makes a store that asks i, and the way to end it.
func start(t testing.TB, i http.RoundTripper) (s *Store, stop func()) {
	t.Helper()
	g := run.NewGroup(context.Background())
	s = New(Config{Via: func(string) http.RoundTripper { return i }, Group: g, Log: obs.Discard()})
	return s, func() {
		g.Stop()
		if err := g.Wait(); err != nil {
			t.Error(err)
		}
	}
}

func TestFetchAndRefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{status: 200, body: document(t, "a")}
		s, stop := start(t, i)
		defer stop()
		one := src("http://i/keys")
		s.Need([]jwt.Source{one, one})
		synctest.Wait()
		first := s.Keys(one)
		if first.Len() != 1 || i.count() != 1 {
			t.Fatalf("keys %v after %d fetches", first, i.count())
		}
		// They are fetched again shortly before they are old.
		i.set(func() { i.body = document(t, "b") })
		time.Sleep(5*time.Minute - 6*time.Second)
		synctest.Wait()
		if s.Keys(one) != first {
			t.Error("fetched too early")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if s.Keys(one) == first || i.count() != 2 {
			t.Errorf("not refreshed: %d fetches", i.count())
		}
	})
}

// TestLastGoodStays: whatever comes after good keys, they stay; and the pauses between failures grow.
func TestLastGoodStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{status: 200, body: document(t, "a")}
		s, stop := start(t, i)
		defer stop()
		one := src("http://i/keys")
		s.Need([]jwt.Source{one})
		synctest.Wait()
		good := s.Keys(one)
		i.set(func() { i.err = errors.New("gone") })
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		if s.Keys(one) != good {
			t.Error("the keys are lost")
		}
		if n := i.count(); n < 100 || n > 1500 {
			t.Errorf("%d fetches in a day of failures; want about one a minute", n)
		}
		i.set(func() { i.err, i.body = nil, document(t, "b") })
		time.Sleep(maxPause)
		synctest.Wait()
		if s.Keys(one) == good {
			t.Error("the issuer is back and nobody noticed")
		}
	})
}

// TestBadAnswers: none of these is a key set.
func TestBadAnswers(t *testing.T) {
	for name, change := range map[string]func(i *issuer){
		"error":        func(i *issuer) { i.err = errors.New("refused") },
		"not found":    func(i *issuer) { i.status = 404 },
		"redirect":     func(i *issuer) { i.status, i.header = 302, http.Header{"Location": {"http://169.254.169.254/"}} },
		"no JSON":      func(i *issuer) { i.body = "<html>" },
		"no keys":      func(i *issuer) { i.body = `{"keys":[]}` },
		"only secrets": func(i *issuer) { i.body = `{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}` },
		"too large":    func(i *issuer) { i.body += strings.Repeat(" ", maxDocument) },
		"too late":     func(i *issuer) { i.delay = 3 * time.Second },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				i := &issuer{status: 200, body: document(t, "a")}
				change(i)
				s, stop := start(t, i)
				defer stop()
				one := src("http://i/keys")
				s.Need([]jwt.Source{one})
				time.Sleep(2500 * time.Millisecond)
				synctest.Wait()
				if s.Keys(one) != nil {
					t.Error("was taken for keys")
				}
				if i.count() == 0 {
					t.Error("was not asked")
				}
			})
		})
	}
}

// TestEarlyFetchIsBounded: requests with unknown key ids make one fetch in minEarly, and wait for it; the others go on at once.
func TestEarlyFetchIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{status: 200, body: document(t, "a")}
		s, stop := start(t, i)
		defer stop()
		one := src("http://i/keys")
		s.Need([]jwt.Source{one})
		synctest.Wait()
		old := s.Keys(one)
		if s.Refresh(t.Context(), one, old) {
			t.Error("fetched again at once")
		}
		time.Sleep(minEarly)
		i.set(func() { i.body, i.delay = document(t, "b"), time.Second })
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				if !s.Refresh(t.Context(), one, old) {
					t.Error("nobody waited for the new keys")
				}
			})
		}
		wg.Wait()
		if i.count() != 2 {
			t.Errorf("%d fetches, want one for all of them", i.count())
		}
		seen := s.Keys(one)
		for range 100 {
			time.Sleep(time.Second)
			s.Refresh(t.Context(), one, seen)
			seen = s.Keys(one)
		}
		if n := i.count(); n > 12 {
			t.Errorf("%d fetches in 100 s of unknown ids, want at most 10 more", n)
		}
		// Who saw older keys than there are does not wait.
		if !s.Refresh(t.Context(), one, old) {
			t.Error("newer keys are not told of")
		}
	})
}

// TestFirstRequestWaits: what comes before the first keys waits for them, and not longer than the fetch may take.
func TestFirstRequestWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{status: 200, body: document(t, "a"), delay: time.Second}
		s, stop := start(t, i)
		defer stop()
		one := src("http://i/keys")
		s.Need([]jwt.Source{one})
		if !s.Refresh(t.Context(), one, nil) || s.Keys(one).Len() != 1 {
			t.Error("did not wait")
		}
		late := src("http://i/late")
		i.set(func() { i.delay = time.Hour })
		s.Need([]jwt.Source{one, late})
		began := time.Now()
		if s.Refresh(t.Context(), late, nil) {
			t.Error("keys from nowhere")
		}
		if d := time.Since(began); d > 3*time.Second {
			t.Errorf("waited %v", d)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		time.Sleep(time.Second) // the next fetch runs
		began = time.Now()
		s.Refresh(ctx, late, nil)
		if d := time.Since(began); d > time.Second {
			t.Errorf("a client that went was waited for: %v", d)
		}
	})
}

// TestUnusedSourceEnds: nobody is asked for keys that nobody needs, and who waited is let go.
func TestUnusedSourceEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{status: 200, body: document(t, "a"), delay: time.Second}
		s, stop := start(t, i)
		defer stop()
		one := src("http://i/keys")
		s.Need([]jwt.Source{one})
		var wg sync.WaitGroup
		wg.Go(func() { s.Refresh(t.Context(), one, nil) })
		synctest.Wait()
		s.Need(nil)
		wg.Wait()
		n := i.count()
		time.Sleep(time.Hour)
		if i.count() != n || s.Keys(one) != nil || s.Refresh(t.Context(), one, nil) {
			t.Error("still asked")
		}
	})
}

func TestForbiddenAddresses(t *testing.T) {
	for addr, ok := range map[string]bool{
		"127.0.0.1": false, "127.8.8.8": false, "::1": false, "0.0.0.0": false, "0.1.2.3": false, "::": false, "169.254.169.254": false, "169.254.1.1": false,
		"fe80::1": false, "fe80::1%eth0": false, "224.0.0.1": false, "ff02::1": false, "255.255.255.255": false, "100.100.100.200": false,
		"168.63.129.16": false, "fd00:ec2::254": false, "::ffff:169.254.169.254": false, "::ffff:127.0.0.1": false, "64:ff9b::a9fe:a9fe": false,
		"2002:7f00:1::": false, "::7f00:1": false,
		"10.0.0.1": true, "192.168.1.1": true, "8.8.8.8": true, "2001:db8::1": true, "fd00::1": true, "64:ff9b::808:808": true,
	} {
		if err := Forbidden(netip.MustParseAddr(addr)); (err == nil) != ok {
			t.Errorf("%s: %v", addr, err)
		}
	}
}

// TestOutside asks real servers on loopback, with and without TLS, and is kept from them by default.
func TestOutside(t *testing.T) {
	body := document(t, "a")
	var redirected bool
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/keys":
			_, _ = io.WriteString(w, body)
		case "/away":
			http.Redirect(w, r, "/secret", http.StatusFound)
		case "/secret":
			redirected = true
		}
	})
	plain, secure := httptest.NewServer(handler), httptest.NewTLSServer(handler)
	defer plain.Close()
	defer secure.Close()
	via := func(s *httptest.Server, tls bool) Outside {
		u, err := url.Parse(s.URL)
		if err != nil {
			t.Fatal(err)
		}
		host, port, err := net.SplitHostPort(u.Host)
		if err != nil {
			t.Fatal(err)
		}
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			t.Fatal(err)
		}
		o := Outside{Host: host, Port: uint16(n), TLS: tls, Timeout: time.Second, Allow: func(netip.Addr) error { return nil }}
		if tls {
			o.Roots = secure.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
		}
		return o
	}
	guarded, untrusted := via(plain, false), via(secure, true)
	guarded.Allow, untrusted.Roots = nil, nil
	for _, tc := range []struct {
		name, uri string
		way       Outside
		want      string // of the error
	}{
		{"plain", "http://id.example/keys", via(plain, false), ""},
		{"TLS", "https://id.example/keys", via(secure, true), ""},
		{"loopback by default", "http://id.example/keys", guarded, "own"},
		{"unknown roots", "https://id.example/keys", untrusted, "certificate"},
		{"https without TLS", "https://id.example/keys", via(plain, false), "TLS"},
		{"http with TLS", "http://id.example/keys", via(secure, true), "TLS"},
		{"redirect", "http://id.example/away", via(plain, false), "302"},
	} {
		s, stop := start(t, tc.way)
		keys, err := s.fetch(t.Context(), src(tc.uri))
		if tc.want == "" && (err != nil || keys.Len() != 1) || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v, %v", tc.name, keys, err)
		}
		stop()
	}
	if redirected {
		t.Error("a redirect was followed")
	}
}
