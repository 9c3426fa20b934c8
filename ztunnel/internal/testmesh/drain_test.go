package testmesh_test

import (
	"io"
	"testing"
)

// TestDrainTellsPeers: the clients' proxies hear that a pod's proxy goes, so that they open their next
// tunnel elsewhere, while what is open is carried on.
func TestDrainTellsPeers(t *testing.T) {
	bubble(t, nil, func(t *testing.T, w *world) {
		b := w.pod("b", "10.0.0.2")
		b.echo(80)
		c, err := w.stranger("10.0.0.1", b, w.ca, webID)
		if err != nil {
			t.Fatal(err)
		}
		open, _, err := c.Connect(t.Context(), "10.0.0.2:80", nil)
		if err != nil {
			t.Fatal(err)
		}
		if c.GoingAway() {
			t.Fatal("told to go away before the drain")
		}
		b.Drain.Start()
		settle()
		if !c.GoingAway() || c.Reserve() {
			t.Error("the drain was not told: the client would open new tunnels to a proxy that ends")
		}
		buf := make([]byte, 6)
		if _, err := open.Write([]byte("during")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(open, buf); err != nil || string(buf) != "during" {
			t.Errorf("heard %q, %v", buf, err)
		}
		_ = open.Close()
		_ = c.Close()
		c.Wait()
	})
}
