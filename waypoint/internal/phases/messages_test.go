package phases

import "testing"

func TestMessages(t *testing.T) {
	body := []byte{0, 0, 0, 0, 3, 'a', 'b', 'c', 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 'x'}
	for piece := 1; piece <= len(body); piece++ {
		var m messages
		for at := 0; at < len(body); at += piece {
			m.see(body[at:min(at+piece, len(body))])
		}
		if got := m.n.Load(); got != 3 {
			t.Errorf("in pieces of %d: %d messages", piece, got)
		}
	}
}
