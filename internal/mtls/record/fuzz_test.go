package record

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"github.com/marrowmesh/marrow/internal/burst"
)

// FuzzRecords gives a Conn any bytes, and records that are sealed rightly
// around any inner bytes: it must end, in an error or at close_notify, and
// deliver what the content records before said, and hold nothing.
func FuzzRecords(f *testing.F) {
	f.Add([]byte{}, []byte{}, false)
	f.Add([]byte{0, 3, 'a', 'b', typeData}, []byte{23, 3, 3, 0, 0}, true)
	f.Add([]byte{0, 4, 1, 0, typeAlert, 0}, []byte{}, true)
	f.Add([]byte{0, 6, msgUpdate, 0, 0, 1, 1, typeHandshake, 0, 2, 'x', typeData}, []byte{20, 3, 3, 0, 1, 1}, false)
	f.Add([]byte{0, 7, msgTicket, 0, 0, 4, 1, 2, typeHandshake, 0, 3, 3, 4, typeHandshake}, []byte{23, 3, 3, 0xff, 0xff}, true)
	f.Add([]byte{0, 1, 0, 0, 0}, []byte{21, 3, 3, 0, 2, 2, 40}, true)
	f.Fuzz(func(t *testing.T, inner, raw []byte, client bool) {
		before := burst.Out()
		id := suites[0]
		a, b := states(id)
		if client {
			a, b = b, a
		}
		s, _ := suiteOf(id)
		p := &peer{out: half{suite: s}}
		if err := p.out.install(a.Out.Secret, 0); err != nil {
			t.Fatal(err)
		}
		var wire, want []byte
		live := true
		for len(inner) >= 2 {
			n := min(int(inner[0])<<8|int(inner[1]), len(inner)-2)
			part := inner[2 : 2+n]
			inner = inner[2+n:]
			wire = append(wire, p.sealed(part)...)
			text := bytes.TrimRight(part, "\x00")
			switch {
			case len(text) == 0 || !live:
				live = false
			case text[len(text)-1] == typeData:
				want = append(want, text[:len(text)-1]...)
			case text[len(text)-1] == typeHandshake && len(text) == 6 && bytes.Equal(text[:4], []byte{msgUpdate, 0, 0, 1}) && text[4] < 2:
				_ = p.out.next()
			}
		}
		var r io.Reader = bytes.NewReader(append(wire, raw...))
		if len(raw)%2 == 1 {
			r = iotest.OneByteReader(r)
		}
		nc := &canned{r: r}
		c, err := New(nc, b)
		if err != nil {
			t.Fatal(err)
		}
		var got []byte
		err = c.Feed(func(p []byte) (int, error) { got = append(got, p...); return len(p), nil })
		if !bytes.HasPrefix(want, got) && !bytes.HasPrefix(got, want) {
			t.Fatalf("delivered %x, sent %x", got, want)
		}
		if len(got) > len(want) {
			t.Fatalf("delivered %d bytes, %d were sealed", len(got), len(want))
		}
		var alert *AlertError
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.As(err, &alert) {
			t.Fatal(err)
		}
		_ = c.Close()
		if out := burst.Out(); out > before {
			t.Fatalf("%d slabs are out", out-before)
		}
	})
}
