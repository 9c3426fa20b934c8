//go:build !race

package phases_test

import (
	"bufio"
	"io"
	"net/http"
	"runtime"
	"testing"
)

// getter is one client on one tunnel of HTTP/1.1, with everything between it and the application in this process.
func getter(tb testing.TB) (get func()) {
	tb.Helper()
	page := make([]byte, 1000)
	w := one(tb, http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { _, _ = rw.Write(page) }))
	s, _, err := w.tunnel(shopper).Connect(tb.Context(), vip+":80", nil)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = s.Close() })
	br := bufio.NewReader(s)
	return func() {
		if _, err := io.WriteString(s, "GET /a HTTP/1.1\r\nHost: web.shop\r\nUser-Agent: x\r\nAccept: */*\r\n\r\n"); err != nil {
			tb.Fatal(err)
		}
		resp, err := http.ReadResponse(br, nil)
		if err != nil || resp.StatusCode != http.StatusOK {
			tb.Fatal(resp, err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
	}
}

// BenchmarkGet is one GET after another through a waypoint.
func BenchmarkGet(b *testing.B) {
	get := getter(b)
	b.ReportAllocs()
	for b.Loop() {
		get()
	}
}

// TestRequestMemory: a request of a kilobyte takes memory for itself, and none for buffers. The client's and the
// application's part are in the figures. The race detector empties pools at random: this file is built without it.
func TestRequestMemory(t *testing.T) {
	get := getter(t)
	const n = 1000
	for range n {
		get()
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range n {
		get()
	}
	runtime.ReadMemStats(&after)
	size, count := (after.TotalAlloc-before.TotalAlloc)/n, (after.Mallocs-before.Mallocs)/n
	t.Logf("%d bytes in %d pieces", size, count)
	if size > 12_000 || count > 110 {
		t.Errorf("%d bytes in %d pieces for a request, want at most 12000 in 110", size, count)
	}
}
