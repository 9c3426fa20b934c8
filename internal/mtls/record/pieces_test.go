package record

import (
	"bytes"
	"errors"
	"io"
	"os"
	"testing"
)

// paused gives its parts one by one, and in between a deadline.
type paused struct {
	canned
	parts [][]byte
}

func (p *paused) Read(b []byte) (int, error) {
	if len(p.parts) == 0 {
		return 0, io.EOF
	}
	if len(p.parts[0]) == 0 {
		p.parts = p.parts[1:]
		return 0, os.ErrDeadlineExceeded
	}
	n := copy(b, p.parts[0])
	p.parts[0] = p.parts[0][n:]
	return n, nil
}

// TestExportAnywhere: wherever the stream is when a Conn is exported, in a
// record, in a ticket, around a key update, the next one goes on there, and
// the peer's question is answered once.
func TestExportAnywhere(t *testing.T) {
	for _, leave := range []int{0, 2} {
		_, p := handmade(t, suites[0], true)
		ticket := append([]byte{msgTicket, 0, 0, 20}, make([]byte, 20)...)
		wire := p.record(typeHandshake, ticket[:2], 0)
		wire = append(wire, p.record(typeHandshake, ticket[2:11], 0)...)
		wire = append(wire, p.record(typeHandshake, ticket[11:], 0)...)
		wire = append(wire, p.record(typeData, []byte("one"), 0)...)
		wire = append(wire, p.record(typeHandshake, []byte{msgUpdate, 0, 0}, 0)...)
		wire = append(wire, p.record(typeHandshake, []byte{1, 1}, 0)...)
		if err := p.out.next(); err != nil {
			t.Fatal(err)
		}
		wire = append(wire, p.record(typeData, []byte("two"), 5)...)
		wire = append(wire, p.record(typeAlert, []byte{levelWarning, 0}, 0)...)
		for cut := range len(wire) {
			nc := &paused{parts: [][]byte{bytes.Clone(wire[:cut]), bytes.Clone(wire[cut:])}}
			st, _ := states(suites[0])
			c := newConn(t, nc, st)
			var got []byte
			take := func(p []byte) (int, error) {
				n := max(len(p)-leave, 0)
				got = append(got, p[:n]...)
				return n, nil
			}
			if err := c.Feed(take); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal(cut, err)
			}
			st, err := c.Export()
			if err != nil {
				t.Fatal(cut, err)
			}
			next := newConn(t, nc, st)
			rest := func(p []byte) (int, error) { got = append(got, p...); return len(p), nil }
			if err := next.Feed(rest); err != nil {
				t.Fatal(cut, err)
			}
			if err := next.CloseWrite(); err != nil {
				t.Fatal(cut, err)
			}
			if string(got) != "onetwo" {
				t.Fatalf("cut at %d: %q", cut, got)
			}
			if sent := contents(nc.w.Bytes()); len(sent) != 2 || sent[0] != headSize+1 || sent[1] != 2 {
				t.Fatalf("cut at %d: sent records of %v, want a KeyUpdate and an alert", cut, sent)
			}
		}
	}
}
