package h2http

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/marrowmesh/marrow/waypoint/internal/handoff"
)

// telling answers with all that a handler sees of its request.
func telling(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	r.Header.Del("Host") // net/http leaves it, and promises not to
	var lines []string
	for k, v := range r.Header {
		lines = append(lines, fmt.Sprintf("%s: %q", k, v))
	}
	for k, v := range r.Trailer {
		lines = append(lines, fmt.Sprintf("trailer %s: %q", k, v))
	}
	slices.Sort(lines)
	_, _ = fmt.Fprintf(w, "%q %q %q %q %d %q\n%s", r.Method, r.Host, r.RequestURI, r.URL.String(), r.ContentLength, body, strings.Join(lines, "\n"))
}

// message makes the frames of a request of text: "name=value" lines, then for each line "|data" a frame, and trailers behind "+".
func message(text string) []byte {
	var out, block bytes.Buffer
	fr := http2.NewFramer(&out, nil)
	fr.AllowIllegalWrites = true
	enc := hpack.NewEncoder(&block)
	_ = fr.WriteSettings()
	var header, trailer [][2]string
	var data []string
	for line := range strings.SplitSeq(text, "\n") {
		rest, content := strings.CutPrefix(line, "|")
		late, isLate := strings.CutPrefix(line, "+")
		switch {
		case content:
			data = append(data, rest)
		case isLate:
			k, v, _ := strings.Cut(late, "=")
			trailer = append(trailer, [2]string{k, v})
		default:
			k, v, _ := strings.Cut(line, "=")
			header = append(header, [2]string{k, v})
		}
	}
	headers := func(fields [][2]string, end bool) {
		block.Reset()
		for _, f := range fields {
			_ = enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
		}
		_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: end})
	}
	headers(header, len(data)+len(trailer) == 0)
	for i, d := range data {
		_ = fr.WriteData(1, i == len(data)-1 && len(trailer) == 0, []byte(d))
	}
	if len(trailer) > 0 {
		headers(trailer, true)
	}
	return out.Bytes()
}

// answer is what a server says to a message: what its handler saw, or "" if it refused.
func answer(t testing.TB, c net.Conn, sent []byte) string {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	go func() { _, _ = c.Write(append([]byte(http2.ClientPreface), sent...)) }()
	fr := http2.NewFramer(io.Discard, c)
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	var seen strings.Builder
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			return "" // it went away
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			switch f.PseudoValue("status") {
			case "100", "200":
			default:
				return ""
			}
		case *http2.DataFrame:
			if _, _ = seen.Write(f.Data()); f.StreamEnded() {
				return seen.String()
			}
		case *http2.RSTStreamFrame, *http2.GoAwayFrame:
			return ""
		}
	}
}

// both asks ours and net/http's server.
type both struct {
	ours  *Server
	inner *handoff.Listener
}

func newBoth(t testing.TB) *both {
	t.Helper()
	p := &http.Protocols{}
	p.SetUnencryptedHTTP2(true)
	b := &both{ours: &Server{Handler: http.HandlerFunc(telling)}, inner: handoff.New()}
	theirs := &http.Server{Handler: http.HandlerFunc(telling), Protocols: p, DisableGeneralOptionsHandler: true}
	over := make(chan struct{})
	go func() { defer close(over); _ = theirs.Serve(b.inner) }()
	t.Cleanup(func() { b.inner.End(); _ = theirs.Close(); <-over })
	return b
}

func (b *both) judge(t testing.TB, text string) (served bool) {
	t.Helper()
	sent := message(text)
	a, far := net.Pipe()
	over := make(chan struct{})
	go func() { defer close(over); _ = b.ours.Serve(context.Background(), far, "") }()
	ours := answer(t, a, sent)
	_ = a.Close()
	<-over
	if ours == "" {
		return false
	}
	a, far = net.Pipe()
	defer func() { _ = a.Close() }()
	if !b.inner.Offer(far) {
		t.Fatal("net/http's server has ended")
	}
	if theirs := answer(t, a, sent); theirs != ours {
		// It forgets trailers that were not announced.
		if short, _, _ := strings.Cut(ours, "\ntrailer"); theirs == "" || !strings.HasPrefix(theirs, short) {
			t.Errorf("%q: served as\n%s\nbut by net/http as\n%s", text, ours, theirs)
		}
	}
	return true
}

const plain = ":method=GET\n:scheme=http\n:path=/\n:authority=web"

// refused is what RFC 9113 section 8 and RFC 9110 forbid, or nobody needs.
func refused() map[string]string {
	return map[string]string{
		"escape":             ":method=GET\n:scheme=http\n:path=/%zz\n:authority=web",
		"control":            ":method=GET\n:scheme=http\n:path=/\x01\n:authority=web",
		"absolute":           ":method=GET\n:scheme=http\n:path=http://web/\n:authority=web",
		"no path":            ":method=GET\n:scheme=http\n:authority=web",
		"connect with path":  ":method=CONNECT\n:path=/\n:authority=web:80",
		"protocol":           ":method=CONNECT\n:protocol=websocket\n:scheme=http\n:path=/\n:authority=web:80",
		"user":               ":method=GET\n:scheme=http\n:path=/\n:authority=me@web",
		"another host":       plain + "\nhost=secret",
		"length":             plain + "\ncontent-length=5\n|four",
		"length and nothing": plain + "\ncontent-length=5",
		"two lengths":        plain + "\ncontent-length=4\ncontent-length=5\n|four",
		"signed length":      plain + "\ncontent-length=+4\n|four",
		"chunks":             plain + "\ntransfer-encoding=chunked\n|0\r\n\r\n",
		"connection":         plain + "\nconnection=x-secret",
		"upgrade":            plain + "\nupgrade=h2c",
		"upper case":         plain + "\nX-Up=1",
		"line end in value":  plain + "\nx=a\r",
		"bad trailer":        plain + "\n|x\n+content-length=5",
		"pseudo trailer":     plain + "\n|x\n+:path=/secret",
	}
}

func TestRefusals(t *testing.T) {
	b := newBoth(t)
	for name, text := range refused() {
		if b.judge(t, text) {
			t.Errorf("%s was served", name)
		}
	}
	for _, text := range []string{plain, plain + "\nhost=web\nte=trailers\n|a\n|b", plain + "\ntrailer=x-sum\n|a\n+x-sum=1", ":method=CONNECT\n:authority=web:80"} {
		if !b.judge(t, text) {
			t.Errorf("%q was refused", text)
		}
	}
}

// TestRandomAgainstNetHTTP: whatever lines come together, what we serve net/http serves as the same.
func TestRandomAgainstNetHTTP(t *testing.T) {
	lines := strings.Split(plain+"\n:method=POST\n:method=CONNECT\n:path=*\n:path=/a?b#c\n:path=//x/%41\n:scheme=https\n:authority=\n:authority=a:80\nhost=web\nhost=\n"+
		"content-length=2\ncontent-length=0\nte=trailers\nte=\ncookie=a=1\ncookie=b\ntrailer=x-sum, content-length\ntrailer=x-sum\nexpect=100-continue\nx=\nx=1\nx=ü\n"+
		"x-sum=1\nvia= 1\n|ab\n|\n|a\n+x-sum=7\n+x-other=8\n+host=x", "\n")
	r := rand.New(rand.NewPCG(7, 9113))
	b := newBoth(t)
	served := 0
	const cases = 3000
	for range cases {
		var text []string
		if r.IntN(4) > 0 {
			text = append(text, plain)
		}
		for range r.IntN(5) {
			text = append(text, lines[r.IntN(len(lines))])
		}
		if b.judge(t, strings.Join(text, "\n")) {
			served++
		}
	}
	if served < cases/10 || served > cases*9/10 {
		t.Errorf("%d of %d were served: the cases say little", served, cases)
	}
}

func FuzzAgainstNetHTTP(f *testing.F) {
	f.Add(plain)
	f.Add(":method=POST\n:scheme=https\n:path=/a%20b?c=d\n:authority=web:80\ncontent-length=3\ncookie=a\ncookie=b\n|ab\n|c")
	f.Add(plain + "\ntrailer=x-sum\nexpect=100-continue\n|a\n+x-sum=1")
	for _, text := range refused() {
		f.Add(text)
	}
	b := newBoth(f)
	f.Fuzz(func(t *testing.T, text string) { b.judge(t, text) })
}
