package obs

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"
)

func fixed(t *testing.T, format, filter string) (*Logger, *Levels, *bytes.Buffer) {
	t.Helper()
	var buf bytes.Buffer
	l, levels, err := NewLogger(&buf, format, filter)
	if err != nil {
		t.Fatal(err)
	}
	l.z.Core().(*core).out.now = func() time.Time {
		return time.Date(2026, 1, 2, 3, 4, 5, 678901234, time.FixedZone("x", 3600))
	}
	return l, levels, &buf
}

func allFields() []Field {
	return []Field{
		F("src.addr", netip.MustParseAddrPort("10.0.0.1:80")), F("dst.addr", netip.MustParseAddrPort("[fd00::1]:80")),
		F("src.identity", "spiffe://td/ns/a/sa/b"), F("bytes_sent", uint64(7)), F("n", -3), F("ok", true),
		F("duration", "12ms"), F("took", 1500*time.Millisecond), F("list", []string{"a", "b"}), F("nothing", nil),
		F("evil", "a\tb\n\"c\"\x1b[31m"), Err(errors.New("no")), Err(nil),
	}
}

func TestPlainFormat(t *testing.T) {
	l, _, buf := fixed(t, "plain", "info")
	l.Named("access").With(F("w", 1)).Info("connection complete\n", allFields()...)
	want := "2026-01-02T02:04:05.678901Z\tinfo\taccess\tconnection complete\\n\t" +
		`w=1 src.addr=10.0.0.1:80 dst.addr=[fd00::1]:80 src.identity="spiffe://td/ns/a/sa/b" bytes_sent=7 n=-3 ok=true duration="12ms" took="1.5s" list="[a b]" nothing="" evil="a\tb\n\"c\"\x1b[31m" error="no"` + "\n"
	if buf.String() != want {
		t.Errorf("got  %q\nwant %q", buf.String(), want)
	}
}

func TestJSONFormat(t *testing.T) {
	l, _, buf := fixed(t, "json", "info")
	l.Named("a").Named("b").Warn("hi", allFields()...)
	var m map[string]any
	if err := json.Unmarshal(buf.Bytes(), &m); err != nil {
		t.Fatal(err)
	}
	if m["scope"] != "a::b" || m["level"] != "warn" || m["message"] != "hi" || m["src.addr"] != "10.0.0.1:80" || m["n"] != -3.0 || m["evil"] != "a\tb\n\"c\"\x1b[31m" {
		t.Errorf("%v", m)
	}
}

func TestLevelsAtRunTime(t *testing.T) {
	l, levels, buf := fixed(t, "plain", "warn,ztunnel::access=info")
	access, deep := l.Named("access"), l.Named("access").Named("deep")
	deepWith := deep.With(F("k", "v"))
	lines := func(f func()) int {
		buf.Reset()
		f()
		return strings.Count(buf.String(), "\n")
	}
	all := func() { l.Info("x"); access.Info("x"); deepWith.Debug("x"); deepWith.Trace("x"); deepWith.Error("x") }
	if n := lines(all); n != 2 {
		t.Errorf("start: %d lines: %s", n, buf)
	}
	if err := levels.Set("trace,access::deep=off", false); err != nil {
		t.Fatal(err)
	}
	if n := lines(all); n != 2 || levels.String() != "trace,access=info,access::deep=off" {
		t.Errorf("changed: %d lines, %s", n, levels)
	}
	if !l.Enabled(LevelTrace) || deep.Enabled(LevelError) {
		t.Error("Enabled disagrees")
	}
	if err := levels.Set("", true); err != nil || levels.String() != "warn,access=info" {
		t.Errorf("reset: %v, %s", err, levels)
	}
}

func TestLevelsBadFilter(t *testing.T) {
	_, levels, _ := fixed(t, "plain", "info")
	for _, bad := range []string{"loud", "a=loud", "=info", "debug,a b=info"} {
		if err := levels.Set(bad, true); err == nil || levels.String() != "info" {
			t.Errorf("%q: %v, now %s", bad, err, levels)
		}
	}
	if _, _, err := NewLogger(&bytes.Buffer{}, "xml", "info"); err == nil {
		t.Error("format xml accepted")
	}
	if _, _, err := NewLogger(&bytes.Buffer{}, "plain", "x=y=z"); err == nil {
		t.Error("filter x=y=z accepted")
	}
}

type oneWrite struct {
	t *testing.T
	n int
}

func (w *oneWrite) Write(p []byte) (int, error) {
	w.n++
	if bytes.Count(p, []byte("\n")) != 1 || p[len(p)-1] != '\n' {
		w.t.Errorf("a write is not one line: %q", p)
	}
	return len(p), nil
}

func TestLinesAreWhole(t *testing.T) {
	w := &oneWrite{t: t}
	l, _, err := NewLogger(w, "plain", "info")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				l.Info("line", F("k", strings.Repeat("v", 5000)))
			}
		})
	}
	wg.Wait()
	if w.n != 400 {
		t.Errorf("%d writes", w.n)
	}
}

func FuzzPlainIsOneLine(f *testing.F) {
	f.Add("msg\x00\n", "va\tlue\u2028")
	f.Fuzz(func(t *testing.T, msg, value string) {
		w := &oneWrite{t: t}
		o := &output{w: nopSync{w}, now: time.Now}
		if err := o.line(0, "s", msg, nil, []Field{F("k", value)}); err != nil {
			t.Fatal(err)
		}
		if b := o.appendPlain(nil, 0, "s", msg, nil, []Field{F("k", value)}); !utf8.Valid(b) || bytes.Count(b, []byte("\t")) != 4 {
			t.Fatalf("%q", b)
		}
	})
}

type nopSync struct{ *oneWrite }

func (nopSync) Sync() error { return nil }

func BenchmarkAccessLine(b *testing.B) {
	l, _, err := NewLogger(discard{}, "plain", "info")
	if err != nil {
		b.Fatal(err)
	}
	addr := netip.MustParseAddrPort("10.0.0.1:80")
	b.ReportAllocs()
	for b.Loop() {
		l.Info("connection complete", F("src.addr", addr), F("src.identity", "spiffe://td/ns/a/sa/b"), F("bytes_sent", 7))
	}
}
